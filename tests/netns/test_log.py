"""The log: one line per change of state with its reason, nothing that is expected, nothing per packet."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from beds import v4
from greyhound import binary
from topology import wait_until

LINE = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z +(INFO|WARN|ERROR) (.*)$")


def lines(greyhound) -> list[tuple[str, str]]:
    """Level and text of every line; a line that is none of ours fails."""
    found = []
    for line in greyhound.log().splitlines():
        match = LINE.match(line)
        assert match, f"not a line of the log: {line!r}"
        found.append((match[1], match[2]))
    return found


def says(greyhound, level: str, text: str) -> None:
    """Waits for a line that begins so."""
    wait_until(lambda: any(l == level and t.startswith(text) for l, t in lines(greyhound)), f"{level} {text}")


def test_a_start_and_a_stop(single, xdp):
    """Nothing but our own lines, none of them a complaint: what is expected to fail is not said."""
    bed = single(tunnel={"ttl": 64}, xdp=xdp)
    bed.warm()
    assert bed.greyhound.terminate() == 0
    texts = lines(bed.greyhound)
    assert all(level == "INFO" for level, _ in texts), texts
    assert [text for _, text in texts if text == "ready"] and texts[-1][1] == "stopping"


def test_a_change_of_state_says_why(single):
    """The state, and what it comes from."""
    bed = single(tunnel={"ttl": 64, "keepalive": {"interval": 1, "retries": 2}}, xdp="off")
    greyhound = bed.greyhound
    says(greyhound, "INFO", "tunnel gre1: up; via 10.9.0.2 dev outer0")
    says(greyhound, "WARN", "tunnel gre1: no-keepalive; 10.9.0.2 does not answer")
    bed.router.ip("link", "set", "gre1", "down")
    says(greyhound, "WARN", "tunnel gre1: down; its device was set down")
    bed.router.ip("link", "set", "gre1", "up")
    bed.router.ip("address", "del", "10.9.0.1/24", "dev", "outer0")
    says(greyhound, "WARN", "tunnel gre1: no-route; no way to 10.9.0.2 by an underlay device: `ip route get 10.9.0.2`")


def test_json(single):
    """An object per line, for machines."""
    bed = single(tunnel={"ttl": 64}, xdp="off", start=False)
    with bed.greyhound.log_file.open("a", encoding="utf-8") as log:
        bed.greyhound.process = subprocess.Popen(
            bed.router.command(binary(), "run", "--config", str(bed.greyhound.config_file), "--log-format", "json"),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
    bed.greyhound.wait_ready()
    assert bed.greyhound.terminate() == 0
    objects = [json.loads(line) for line in bed.greyhound.log().splitlines()]
    assert all({"timestamp", "level", "message"} <= line.keys() for line in objects)
    assert [line["level"] for line in objects if line["message"] == "ready"] == ["INFO"]


@pytest.mark.parametrize("path", ["auto", "off"])
def test_packets_write_no_lines(single, path):
    """Neither those that are carried nor those that are dropped."""
    bed = single(tunnel={"ttl": 64}, xdp=path)
    bed.warm()
    before = len(lines(bed.greyhound))
    bed.send_outside(*(bed.around(v4(src="10.2.0.2", dst="10.1.0.2"), proto=0x1234) for _ in range(500)))
    bed.send_inside(*(v4(ttl=1 + n % 2) for n in range(500)))
    wait_until(lambda: bed.greyhound.drops().get("unknown_protocol") == 500, "they are dropped")
    assert len(lines(bed.greyhound)) == before


def test_one_line_does_not_fill_the_log(single):
    """Five hundred of a kind at once, and few after that; how many are left out is said, with the first of them."""
    bed = single(tunnel={"ttl": 64}, xdp="off")
    said, asked = "lines left out like this one: tunnel del: refused", 0
    with bed.greyhound.connected() as ask:
        def left_out() -> bool:
            nonlocal asked
            for _ in range(100):
                assert "error" in ask({"verb": "tunnel del", "name": "none"})
            asked += 100
            return said in bed.greyhound.log()
        wait_until(left_out, "lines are left out")
    texts = [text for _, text in lines(bed.greyhound)]
    written = sum(text.startswith("tunnel del: refused") for text in texts)
    missing = sum(int(text.split()[0]) for text in texts if said in text)
    assert 500 <= written < asked and 0 < missing <= asked - written
