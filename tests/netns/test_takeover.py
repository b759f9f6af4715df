"""A planned restart: a new process takes over from the running one, under traffic."""

from __future__ import annotations

import socket
import subprocess
import threading

import pytest

from beds import v4
from greyhound import binary
from topology import DEADLINE, wait_until
from wire import GRE, SEQUENCE, carries, ip_bytes


def takeover(bed) -> subprocess.Popen:
    """A second process of the same configuration takes over; the first is waited for."""
    first = bed.greyhound.process
    with bed.greyhound.log_file.open("a", encoding="utf-8") as log:
        second = subprocess.Popen(
            bed.router.command(binary(), "run", "--takeover", "--config", str(bed.greyhound.config_file)),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
    bed.greyhound.process = second
    bed.greyhound.wait_ready()
    assert first.wait(DEADLINE) == 0
    return second


class Flow:
    """Numbered packets from the host into the tunnel, or out of it to the host, evenly, until the end of the block."""

    def __init__(self, bed, inwards: bool = False):
        self.bed, self.inwards, self.sent, self._stop = bed, inwards, 0, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            payload = f"<flow {self.sent:08d}>".encode().ljust(32, b".")
            if self.inwards:
                self.bed.send_outside(self.bed.around(v4(payload, src="10.2.0.2", dst="10.1.0.2")))
            else:
                self.bed.send_inside(v4(payload))
            self.sent += 1
            self._stop.wait(0.0005)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def arrived(self) -> list[bytes]:
        """Every packet of the flow as it left the tunnel, none missing."""
        frames = self.bed.outside.collect(carries(b"<flow "), self.sent, "packets of the flow")
        return [bytes(ip_bytes(frame[GRE].payload))[28:] for frame in frames]


def goes_on(bed) -> None:
    """The flow is carried, by the fast path where there is one. (Nothing here may read what the flow test collects.)"""
    path = "fast" if bed.xdp == "auto" else "slow"
    count = lambda: bed.greyhound.tunnel()[path]["tx_packets"]  # noqa: E731
    before = count()
    wait_until(lambda: count() > before + 20, f"the {path} path carries the flow")


@pytest.mark.parametrize("options", [{}, {"key": 42, "csum": True, "seq": True}], ids=["plain", "key csum seq"])
def test_nothing_is_lost(single, xdp, options, measured):
    """Three processes one after the other: the devices, their carrier, the tunnel's numbers and its counters go along."""
    bed = single(tunnel=options, xdp=xdp)
    bed.warm()
    index = bed.router.link("gre1")["ifindex"]
    with Flow(bed) as flow:
        wait_until(lambda: flow.sent > 200, "the flow is under way")
        for _ in range(2):
            before = bed.greyhound.tunnel()["tx"]["packets"]
            takeover(bed)
            assert bed.greyhound.tunnel()["tx"]["packets"] >= before
            goes_on(bed)
    frames = bed.outside.collect(carries(b"<flow "), flow.sent, "packets of the flow")
    numbers = [bytes(ip_bytes(frame[GRE].payload))[28:] for frame in frames]
    assert len(set(numbers)) == flow.sent
    if options:
        sequences = [getattr(frame[GRE], SEQUENCE) for frame in frames]
        assert len(set(sequences)) == len(sequences), "a sequence number was used twice"
    assert bed.router.link("gre1")["ifindex"] == index
    log = bed.greyhound.log()
    assert log.count("another process has taken over") == 2
    link = bed.router.link("gre1")
    assert link["operstate"] != "DOWN" and "NO-CARRIER" not in link["flags"]
    measured(f"two takeovers, xdp {xdp}, {'numbered' if options else 'plain'}: {flow.sent} packets, none lost")


@pytest.mark.parametrize("options", [{}, {"key": 42, "csum": True}], ids=["plain", "key csum"])
def test_nothing_is_lost_inwards(single, xdp, options, measured):
    """What the sockets hear meanwhile is heard by whoever carries, and judged by tables that are filled."""
    bed = single(tunnel=options, xdp=xdp)
    bed.warm()
    with Flow(bed, inwards=True) as flow:
        wait_until(lambda: flow.sent > 200, "the flow is under way")
        for _ in range(3):
            takeover(bed)
    frames = bed.inside.collect(carries(b"<flow "), flow.sent, "packets of the flow")
    assert len({bytes(ip_bytes(frame))[28:] for frame in frames}) == flow.sent
    assert not bed.greyhound.stats()["drops"]
    measured(f"three takeovers, xdp {xdp}, inwards: {flow.sent} packets, none lost")


def test_the_new_one_stops_in_order(single, xdp):
    """What the last process of the chain inherited is removed at its end as if it had made it."""
    bed = single(xdp=xdp)
    bed.warm()
    added = "mode gre local 10.9.0.1 remote 10.9.0.2 key 7 route 10.3.0.0/16"
    bed.greyhound.ask("tunnel", "add", "gre2", *added.split())
    second = takeover(bed)
    assert {t["name"] for t in bed.greyhound.stats()["tunnels"]} == {"gre1", "gre2"}
    packet = v4(dst="10.3.0.2")
    assert bed.encapsulated(packet)[GRE].key == 7
    assert bed.greyhound.terminate() == 0 and second.poll() == 0
    assert not {"gre1", "gre2", "greyhound0"} & bed.router.devices()
    assert "xdp" not in bed.router.ip("link", "show")
    assert not bed.greyhound.socket.exists()


def test_another_configuration_is_an_upgrade(single, xdp):
    """The new process may have another file: what is no longer in it goes, what is new comes."""
    bed = single(xdp=xdp)
    bed.greyhound.configure([bed.tunnel | {"name": "gre9", "key": 9}], xdp=xdp)
    takeover(bed)
    assert bed.encapsulated(v4())[GRE].key == 9
    assert "gre1" not in bed.router.devices() and "gre9" in bed.router.devices()


@pytest.mark.parametrize("when", ["killed", "refused"])
def test_one_that_fails_changes_nothing(single, xdp, when):
    """A successor that dies, or cannot start, leaves the router as it was, carrying."""
    bed = single(xdp=xdp)
    bed.warm()
    first = bed.greyhound.process
    with Flow(bed) as flow:
        wait_until(lambda: flow.sent > 100, "the flow is under way")
        if when == "refused":
            # The tunnel's name is another device's: known only when it is tried.
            bed.router.ip("link", "add", "gre5", "type", "veth", "peer", "name", "gre6")
            bed.greyhound.configure([bed.tunnel, bed.tunnel | {"name": "gre5", "key": 5, "address": [], "routes": []}], xdp=xdp)
            done = bed.router.run(
                binary(), "run", "--takeover", "--config", str(bed.greyhound.config_file), check=False)
            assert done.returncode == 1 and "gre5: a device of this name exists" in done.stderr
        else:
            # Asks, is given everything, and dies before it has said that it is ready.
            with socket.socket(socket.AF_UNIX) as taker:
                taker.settimeout(DEADLINE)
                taker.connect(str(bed.greyhound.socket))
                taker.sendall(b'{"verb": "takeover"}\n')
                assert taker.recv(4)
        wait_until(lambda: "nobody has taken over" in bed.greyhound.log(), "the first one goes on")
        wait_until(lambda: bed.greyhound.ask("stats", "--json", check=False).returncode == 0, "it answers")
        goes_on(bed)
    assert first.poll() is None
    assert len(set(flow.arrived())) == flow.sent


def test_without_a_router_there_is_nothing_to_take_over(single):
    bed = single(start=False)
    done = bed.router.run(binary(), "run", "--takeover", "--config", str(bed.greyhound.config_file), check=False)
    assert done.returncode == 1
    assert done.stderr == f"greyhound: no greyhound answers on {bed.greyhound.socket}: start without --takeover\n"
