"""`greyhound capture`: what the fast path does with packets, read by tshark."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess

import pytest

from beds import Single, back, v4, v6
from conftest import need
from greyhound import Greyhound, binary
from topology import DEADLINE, Bench, wait_until
from wire import UDP

FIELDS = ("frame.interface_name", "frame.comment", "frame.packet_flags_direction", "ip.dst", "udp.payload")


@pytest.fixture
def single(tmp_path):
    with contextlib.closing(Single(tmp_path)) as bed:
        bed.warm()
        yield bed


class Capture:
    """A capture that runs beside a test."""

    def __init__(self, router: Greyhound, *words: str, **popen):
        command = [binary(), "capture", *words, "--socket", str(router.socket)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
            **({"stdout": subprocess.PIPE} | popen),
        )

    def end(self, number: int = signal.SIGINT) -> tuple[bytes, str]:
        """Interrupts it; returns what it wrote and said."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[bytes, str]:
        out, said = self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == 0, said
        return out, said.decode()


def begun(router: Greyhound, capture: Capture, n: int = 1) -> None:
    """The router has begun `n` captures."""
    def is_so() -> bool:
        assert capture.process.poll() is None, capture.process.stderr.read()
        return router.log().count("capture: begun") >= n
    wait_until(is_so, "the capture has begun")


def read(file: pathlib.Path) -> list[dict]:
    """What tshark reads of a capture, a packet each."""
    tshark = need("tshark")
    options = [word for field in FIELDS for word in ("-e", field)]
    done = subprocess.run([tshark, "-r", str(file), "-T", "json", *options], capture_output=True, check=True)
    packets = [packet["_source"]["layers"] for packet in json.loads(done.stdout)]
    return [{field: packet.get(field, [None]) for field in FIELDS} for packet in packets]


def of(packets: list[dict], inner) -> list[dict]:
    """Those that carry the payload of `inner`."""
    wanted = bytes(inner[UDP].payload).hex()
    return [packet for packet in packets if packet["udp.payload"][0] == wanted]


def views(packets: list[dict]) -> list[tuple]:
    """Interface, direction and comment of each."""
    return [(p["frame.interface_name"][0], p["frame.packet_flags_direction"][0], p["frame.comment"][0]) for p in packets]


def test_before_and_after(single, tmp_path):
    """A packet into a tunnel and one out of it, as they came and as they left; each with tunnel, worker and verdict."""
    file = tmp_path / "all.pcapng"
    capture = Capture(single.greyhound, "-w", str(file))
    begun(single.greyhound, capture)
    there, here = v4(), back(v4())
    single.encapsulated(there)
    single.decapsulated(here)
    assert capture.end() == (b"", "2 packets captured\n")
    packets = read(file)
    out, into = "0x00000002", "0x00000001"
    sent = "tunnel=gre1 direction=out worker=0 verdict=transmit"
    assert views(of(packets, there)) == [("inner0", into, sent), ("outer0", out, sent)]
    assert [len(packet["ip.dst"]) for packet in of(packets, there)] == [1, 2]
    received = "tunnel=gre1 direction=in worker=0 verdict=transmit"
    assert views(of(packets, here)) == [("outer0", into, received), ("inner0", out, received)]
    assert [len(packet["ip.dst"]) for packet in of(packets, here)] == [2, 1]


def test_only_what_is_asked_for(single, tmp_path):
    """By direction, by drop reason, by tunnel, by tcpdump's words; several captures side by side."""
    wanted = {
        "in": ("-Q", "in"), "out": ("--direction", "out"), "drop": ("--drop",), "reason": ("--drop=ecn_congestion",),
        "other": ("--drop=sequence_old",), "filter": ("udp", "and", "dst", "10.2.0.2"), "gre": (f"ip proto 47 and src {Bench.REMOTE}",),
    }
    # Four at a time is what the router takes.
    for group in (("in", "out", "drop", "reason"), ("other", "filter", "gre")):
        captures = {}
        for name in group:
            before = single.greyhound.log().count("capture: begun")
            captures[name] = Capture(single.greyhound, "-w", str(tmp_path / name), *wanted[name])
            begun(single.greyhound, captures[name], before + 1)
        there, here = v4(), back(v4())
        single.encapsulated(there)
        single.decapsulated(here)
        with single.greyhound.expect_drops(ecn_congestion=1):
            single.send_outside(single.around(back(v4()), {"tos": 3}))
        for capture in captures.values():
            capture.end()
        for name in group:
            packets = read(tmp_path / name)
            came = [bool(of(packets, there)), bool(of(packets, here)), any("ecn_congestion" in c for *_, c in views(packets))]
            expected = {
                "in": [False, True, True], "out": [True, False, False], "drop": [False, False, True],
                "reason": [False, False, True], "other": [False, False, False], "filter": [True, False, False],
                "gre": [False, True, True],
            }
            assert came == expected[name], f"{name}: {views(packets)}"


def test_a_pipe_and_a_count(single):
    """`-w -` into tshark, which reads while the capture runs; `-c` ends it."""
    reader = subprocess.Popen([need("tshark"), "-l", "-r", "-", "-T", "fields", "-e", "frame.comment"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    capture = Capture(single.greyhound, "-w", "-", "-c", "3", stdout=reader.stdin)
    reader.stdin.close()
    begun(single.greyhound, capture)
    single.encapsulated(v4())
    # The first packet is there while the capture goes on.
    assert reader.stdout.readline().decode().startswith("tunnel=gre1 direction=out")
    single.encapsulated(v6())
    single.decapsulated(back(v4()))
    _, said = capture.wait()
    assert said == "3 packets captured\n"
    assert len(reader.stdout.read().splitlines()) == 5
    assert reader.wait(DEADLINE) == 0


def test_lines(single):
    """Without a file: a line for each packet as it came and as it left."""
    capture = Capture(single.greyhound, "-c", "1", "udp", "port", "2000")
    begun(single.greyhound, capture)
    single.encapsulated(v4())
    out, said = capture.wait()
    lines = [line.split(" ", 1)[1] for line in out.decode().splitlines()]
    fate = "[tunnel=gre1 direction=out worker=0 verdict=transmit]"
    assert lines == [
        f"inner0 in 10.1.0.2.1000 > 10.2.0.2.2000: UDP, length 74 {fate}",
        f"outer0 out {Bench.LOCAL} > {Bench.REMOTE}: GRE, length 98 {fate}",
    ]
    assert said == "1 packet captured\n"


def test_sampling_and_length(single, tmp_path):
    """One packet of four, and no more of each than is asked for."""
    file = tmp_path / "some.pcapng"
    capture = Capture(single.greyhound, "-w", str(file), "--sample", "4", "-s", "60", "-Q", "out")
    begun(single.greyhound, capture)
    for _ in range(8):
        single.encapsulated(v4())
    assert capture.end(signal.SIGTERM)[1] == "2 packets captured\n"
    done = subprocess.run([need("tshark"), "-r", str(file), "-T", "fields", "-e", "frame.cap_len", "-e", "frame.len"],
                          capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["60", "74", "60", "98"] * 2


def test_the_fast_path_starts_anew(single, tmp_path):
    """A capture goes on when workers are replaced, and knows tunnels that were made meanwhile."""
    file = tmp_path / "on.pcapng"
    capture = Capture(single.greyhound, "-w", str(file))
    begun(single.greyhound, capture)
    single.encapsulated(v4())
    single.router.ip("link", "set", "inner0", "mtu", "1400")
    wait_until(lambda: single.greyhound.log().count("worker 0: CPU") == 2, "another worker")
    single.greyhound.ask("tunnel", "add", "gre2", "mode", "gre", "local", Bench.LOCAL, "remote", Bench.REMOTE, "key", "7",
                         "route", "10.3.0.0/24")
    last = v4(dst="10.3.0.2")

    def captured() -> bool:
        single.encapsulated(v4(dst="10.3.0.2"))
        return single.greyhound.tunnel("gre2")["fast"]["tx_packets"] > 0
    wait_until(captured, "the other tunnel's packets take the fast path")
    single.encapsulated(last)
    capture.end()
    assert [comment.split()[0] for *_, comment in views(of(read(file), last))] == ["tunnel=gre2"] * 2


def test_a_reader_that_does_not_read(single):
    """It costs packets of the capture, which are counted; the router's are none of its business."""
    reading, writing = os.pipe()
    capture = Capture(single.greyhound, "-w", "-", stdout=writing)
    os.close(writing)
    begun(single.greyhound, capture)
    inner, before = v4(b"x" * 1400), single.greyhound.tunnel()["fast"]["tx_packets"]
    for _ in range(60):
        # As many as there are frames to receive into; the next ones when these are through.
        single.send_inside(*[inner] * 100)
        before += 100
        wait_until(lambda: single.greyhound.tunnel()["fast"]["tx_packets"] >= before, "all are through")
    with open(reading, "rb") as pipe:
        capture.process.send_signal(signal.SIGINT)
        while pipe.read(1 << 16):
            pass
    _, said = capture.wait()
    captured, _, shed = said.partition(" packets captured, ")
    lost = int(shed.split(" more were not copied")[0])
    assert lost > 0 and int(captured) + lost >= 6000, said


def test_who_goes_away_is_forgotten(single):
    """Killed readers leave room for others."""
    for n in range(1, 10):
        capture = Capture(single.greyhound, "-w", "/dev/null")
        begun(single.greyhound, capture, n)
        capture.process.kill()
        capture.process.communicate()
        refused = lambda: "running already" in single.greyhound.ask("capture", "-c", "1", "--drop=x", check=False).stderr  # noqa: E731
        wait_until(lambda: not refused(), "room for another")


@pytest.mark.parametrize("words, why", [
    (("--tunnel", "gre7"), 'no tunnel "gre7"; see `greyhound tunnel show`'),
    (("--drop=nothing",), 'no drop reason "nothing": expected any, or one of other_mac'),
    (("udp", "and"), "filter"),
])
def test_refused(single, words, why):
    done = single.greyhound.ask("capture", *words, check=False)
    assert done.returncode == 1 and why in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_without_a_fast_path(tmp_path):
    with contextlib.closing(Single(tmp_path, xdp="off")) as bed:
        done = bed.greyhound.ask("capture", check=False)
        assert done.returncode == 1 and "there is no fast path: tcpdump sees everything" in done.stderr
