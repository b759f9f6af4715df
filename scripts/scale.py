#!/usr/bin/env python3
"""What many tunnels and routes cost: every step timed, and the router's memory. `scripts/scale.sh` calls it; see there."""

import argparse
import contextlib
import ipaddress
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "netns"))
from greyhound import Greyhound, binary  # noqa: E402
from topology import Bench  # noqa: E402

# Nothing here is a limit of the router: so long is waited for.
PATIENCE = 600.0
FIRST_REMOTE, FIRST_ROUTE = ipaddress.ip_address("198.18.0.1"), ipaddress.ip_address("20.0.0.0")


def tunnels_of(count: int, routes: int) -> list[dict]:
    """`count` tunnels to as many routers behind the gateway; the routes are spread over them."""
    made, share = [], routes // count
    for n in range(count):
        nets = [f"{FIRST_ROUTE + 256 * (n * share + k)}/24" for k in range(share)]
        made.append({"name": f"gre{n}", "mode": "gre", "local": Bench.LOCAL, "remote": str(FIRST_REMOTE + n), "routes": nets})
    return made


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads, and of our own children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    mine = ended.ru_utime + ended.ru_stime
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return mine
    return mine + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Figures:
    """The steps in their order, with what they took."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []

    def note(self, what: str, figure: str) -> None:
        self.rows.append((what, figure))
        print(f"    {what:<50}{figure:>18}", flush=True)

    def took(self, what: str, seconds: float, cpu: float) -> None:
        self.note(what, f"{seconds:.2f} s ({cpu:.2f} s)")

    @contextlib.contextmanager
    def timed(self, what: str, pid: int):
        begin, cpu = time.monotonic(), cpu_seconds(pid)
        yield
        self.took(what, time.monotonic() - begin, cpu_seconds(pid) - cpu)


class Scale:
    """A router with many tunnels in a namespace of its own."""

    def __init__(self, stack: contextlib.ExitStack, ipv6: str):
        self.bed = stack.enter_context(Bench())
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="greyhound-scale-")))
        self.router = Greyhound(self.bed.router, directory)
        stack.callback(self.end)
        self.bed.router.ip("route", "add", "198.18.0.0/15", "via", Bench.REMOTE)
        if ipv6 == "none":
            self.bed.router.sysctl("net.ipv6.conf.default.addr_gen_mode", 1)
        if ipv6 == "off":
            self.bed.router.sysctl("net.ipv6.conf.default.disable_ipv6", 1)

    def end(self) -> None:
        if self.router.process and self.router.process.poll() is None:
            self.router.process.kill()
            self.router.process.wait()
        self.router.socket.unlink(missing_ok=True)

    def ask(self, *verb: str) -> str:
        done = subprocess.run([binary(), *verb, "--socket", str(self.router.socket)], capture_output=True, text=True,
                              timeout=PATIENCE)
        if done.returncode != 0:
            raise SystemExit(f"greyhound {' '.join(verb)}: {done.stderr.strip()}\n{self.router.log()[-2000:]}")
        return done.stdout

    def start(self, figures: Figures, what: str) -> None:
        log = len(self.router.log())
        begin, cpu_before = time.monotonic(), cpu_seconds(0)
        process = self.router.spawn()
        while "ready" not in self.router.log()[log:]:
            if process.poll() is not None or time.monotonic() - begin > PATIENCE:
                raise SystemExit(f"it did not start:\n{self.router.log()[-2000:]}")
            time.sleep(0.01)
        figures.took(what, time.monotonic() - begin, cpu_seconds(process.pid) - cpu_before)
        while not all(tunnel["state"] == "up" for tunnel in json.loads(self.ask("tunnel", "show", "--json"))):
            time.sleep(0.05)
        figures.took("  … and every tunnel is up", time.monotonic() - begin, cpu_seconds(process.pid) - cpu_before)

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.router.process.send_signal(number)
        self.router.process.wait(PATIENCE)

    def memory(self) -> dict[str, int]:
        with open(f"/proc/{self.router.process.pid}/status", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return {name: int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM", "RssAnon")}


def measure(count: int, routes: int, ipv6: str) -> None:
    """All steps, one after the other."""
    figures = Figures()
    with contextlib.ExitStack() as stack:
        scale = Scale(stack, ipv6)
        scale.router.configure(tunnels_of(1, 1))
        scale.start(Figures(), "with one tunnel: start")
        alone = scale.memory()
        scale.stop()
        all_tunnels = tunnels_of(count, routes)
        scale.router.configure(all_tunnels)
        scale.start(figures, "start")
        memory, pid = scale.memory(), scale.router.process.pid
        each = (memory["RssAnon"] - alone["RssAnon"]) * 1024 / count
        figures.note("memory per tunnel and its routes", f"{each:.0f} bytes")
        figures.note("resident; at the most", f"{memory['VmRSS'] >> 10}; {memory['VmHWM'] >> 10} MiB")
        for verb in ("stats", "stats --json", "tunnel show", "tunnel show --json", "route show"):
            with figures.timed(verb, pid):
                scale.ask(*verb.split())
        more = "mode gre local 10.9.0.1 remote 198.19.255.1"
        with figures.timed("tunnel add", pid):
            scale.ask("tunnel", "add", "extra", *more.split())
        with figures.timed("tunnel del", pid):
            scale.ask("tunnel", "del", "extra")
        with figures.timed("reload, nothing changed", pid):
            scale.ask("reload")
        all_tunnels[count // 2] |= {"ttl": 9}
        scale.router.configure(all_tunnels)
        with figures.timed("reload, one tunnel changed", pid):
            scale.ask("reload")
        tenth = count // 10
        scale.router.configure(all_tunnels[tenth:])
        with figures.timed(f"reload, {tenth} tunnels removed", pid):
            scale.ask("reload")
        scale.router.configure(all_tunnels)
        with figures.timed(f"reload, {tenth} tunnels added", pid):
            scale.ask("reload")
        with figures.timed("a port down and up again: answered", pid):
            for way in ("down", "up"):
                scale.bed.router.ip("link", "set", "outer0", way)
            scale.bed.router.ip("route", "replace", "198.18.0.0/15", "via", Bench.REMOTE)
            while not all(tunnel["state"] == "up" for tunnel in json.loads(scale.ask("tunnel", "show", "--json"))):
                time.sleep(0.05)
        scale.stop(signal.SIGKILL)
        scale.start(figures, "start after kill -9: devices adopted")
        pid = scale.router.process.pid
        with figures.timed("orderly stop", pid):
            scale.stop()
        left = [name for name in scale.bed.router.devices() if name.startswith("gre")]
        figures.note("devices left", str(len(left)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tunnels", type=int, default=10_000)
    parser.add_argument("--routes", type=int, default=100_000)
    parser.add_argument("--ipv6", choices=("on", "none", "off"), default="off")
    options = parser.parse_args()
    measure(options.tunnels, options.routes, options.ipv6)


if __name__ == "__main__":
    main()
