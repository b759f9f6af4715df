"""Every command of the documents runs, in order, on the machines that its prompt names, and prints what the document says.

A `console` block has lines `A# command`; what follows is expected output, in this order, with numbers and link addresses of
their own; `…` stands for any lines. A `toml` block behind "`/etc/greyhound/greyhound.toml` on A" is written there.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import pytest

from greyhound import ROOT, binary
from topology import DEADLINE, Bed, Namespace, veth, wait_until

DOCUMENTS = sorted(path.name for path in (ROOT / "docs").glob("*.md") if "```console" in path.read_text())
PROMPT = re.compile(r"^(A|B|hostA|hostB|lanA|lanB)[#$] (.*)$")
FILE = re.compile(r"`/etc/greyhound/greyhound.toml` on (A|B):$")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
ASKS = re.compile(r"^(greyhound (tunnel show|stats|route show|trace)|ping )")
"""What may be asked again until the answer is there: neighbours are resolved and news travel."""

SERVICE = """#!/bin/bash
# systemctl, as far as the documents use it: the service is the router.
case " $* " in
*" start "* | *" --now "*)
    setsid {greyhound} run --config {config} >/dev/null 2>>{log} </dev/null &
    for ((i = 0; i < 200; i++)); do {greyhound} stats --socket {socket} >/dev/null 2>&1 && exit; sleep 0.05; done
    cat {log} >&2; exit 1 ;;
*) echo "systemctl $*: not in the documents' world" >&2; exit 1 ;;
esac
"""
PROGRAM = """#!/bin/bash
# greyhound, with this machine's own files for the host's.
case $1 in
run | check) exec {greyhound} "$@" --config {config} ;;
*) exec {greyhound} "$@" --socket {socket} ;;
esac
"""


class Machines(Bed):
    """The documents' machines: two routers with a provider between them, and hosts."""

    def __init__(self, directory: pathlib.Path):
        super().__init__()
        self.directory = directory
        self.all: dict[str, Namespace] = {}

    def __enter__(self):
        for name in ("A", "B", "hostA", "hostB", "lanA", "lanB", "isp"):
            self.all[name] = self.namespace(name.lower())
        for side, net, number, isp in (("A", "192.0.2", 1, "toA"), ("B", "198.51.100", 2, "toB")):
            router, host, lan = self.all[side], self.all["host" + side], self.all["lan" + side]
            veth(router, "eth0", self.all["isp"], isp)
            veth(router, "eth1", host, "eth0")
            veth(router, "eth2", lan, "eth0")
            router.ip("addr", "add", f"{net}.1/30", "dev", "eth0")
            router.ip("addr", "add", f"10.{number}.0.1/24", "dev", "eth1")
            router.ip("route", "add", "default", "via", f"{net}.2")
            host.ip("addr", "add", f"10.{number}.0.2/24", "dev", "eth0")
            host.ip("route", "add", "default", "via", f"10.{number}.0.1")
            lan.ip("addr", "add", f"10.9.0.{number}/24", "dev", "eth0")
            self.all["isp"].ip("addr", "add", f"{net}.2/30", "dev", isp)
            self.programs(side)
        self.all["isp"].make_router()
        return self

    def words(self, side: str) -> dict[str, str]:
        place = self.directory / side
        return {"greyhound": binary(), "config": str(place / "greyhound.toml"), "log": str(place / "log"),
                "socket": f"/run/{self.all[side].name}.sock"}

    def programs(self, side: str) -> None:
        (self.directory / side / "bin").mkdir(parents=True)
        for name, text in (("greyhound", PROGRAM), ("systemctl", SERVICE)):
            path = self.directory / side / "bin" / name
            path.write_text(text.format(**self.words(side)), encoding="utf-8")
            path.chmod(0o755)

    def write(self, side: str, text: str) -> None:
        """The configuration, which answers where nobody else does."""
        socket = self.words(side)["socket"]
        text = text.replace("[router]\n", f'[router]\ncontrol = "{socket}"\n')
        (self.directory / side / "greyhound.toml").write_text(text, encoding="utf-8")

    def run(self, machine: str, command: str) -> tuple[int, str]:
        path = f"{self.directory / machine / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(self.all[machine].command("env", f"PATH={path}", "bash", "-c", command), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE,
                              stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout


def steps(document: str) -> list[tuple]:
    """The document's configurations and commands, in order."""
    found = []
    for fence in FENCE.finditer(document):
        kind, body = fence.groups()
        if kind == "toml":
            before = document[:fence.start()].rstrip().rsplit("\n", 1)[-1]
            place = FILE.search(before)
            assert place, f"a configuration for nobody, behind: {before}"
            found.append(("write", place.group(1), body))
        elif kind == "console":
            for line in body.splitlines():
                prompt = PROMPT.match(line)
                if prompt:
                    found.append(("run", *prompt.groups(), []))
                else:
                    assert found and found[-1][0] == "run", line
                    found[-1][3].append(line)
    return found


def plain(line: str) -> str:
    """A line without what is another in every run: numbers behind the addresses' first digits, link addresses, spaces."""
    line = re.sub(r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b", "LLADDR", line)
    line = re.sub(r"\b\d+ (failed|to look at|in order)", r"N \1", line)
    line = re.sub(r"\btime \d+ms\b", "time", line)
    return " ".join(line.split())


def differs(expected: list[str], output: str) -> str | None:
    """The first expected line that does not come, or comes where the document has no dots."""
    lines = [plain(line) for line in output.splitlines()]
    gap = False
    for line in expected:
        if line.strip() == "…":
            gap = True
            continue
        want = plain(line)
        fits = (lambda have: have == want or have.startswith(want + ",") or have.startswith(want + " time"))
        at = next((n for n, have in enumerate(lines) if fits(have)), None)
        if at is None or (at > 0 and not gap):
            return line
        lines, gap = lines[at + 1:], False
    return None if gap or not any(lines) else f"nothing more than: {lines[0]}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document(name, tmp_path):
    """From its first line to its last."""
    with Machines(tmp_path) as machines:
        for step in steps((ROOT / "docs" / name).read_text(encoding="utf-8")):
            if step[0] == "write":
                machines.write(*step[1:])
                continue
            _, machine, command, expected = step
            seen = []

            def said() -> bool:
                code, output = machines.run(machine, command)
                seen[:] = [code, output]
                fails = "not fit" in "".join(expected)
                return code == int(fails) and differs(expected, output) is None

            try:
                wait_until(said, command) if ASKS.match(command) else said() or pytest.fail(command, pytrace=False)
            except (AssertionError, pytest.fail.Exception):
                pytest.fail(f"{name}: {machine}# {command}\nexit {seen[0]}, wanted: {differs(expected, seen[1])}\n{seen[1]}",
                            pytrace=False)


def test_a_difference_is_seen():
    """The judge itself."""
    assert differs(["a 1", "…"], "a 1\nb\n") is None
    assert differs(["a", "b"], "a\nx\nb\n") == "b"
    assert differs(["a"], "b\n") == "a"
    assert differs(["a"], "a\nb\n") == "nothing more than: b"
    assert differs(["x lladdr 32:82:e3:d7:77:75"], "x  lladdr 02:00:00:00:00:01\n") is None
