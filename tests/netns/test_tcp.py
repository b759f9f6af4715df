"""TCP in bulk between hosts whose offloads stand as the kernel set them, with digests compared."""

from __future__ import annotations

import hashlib
import os
import socket
import threading

import pytest

from beds import Pair
from topology import DEADLINE, Namespace

BYTES = 200 << 20
TUNNELS = {
    "plain": {},
    "key": {"key": 42},
    "key csum seq": {"key": 42, "csum": True, "seq": True},
    "fixed ttl, nopmtudisc": {"ttl": 64, "tos": "inherit", "pmtudisc": False},
}


class Receiver(threading.Thread):
    """Takes one connection in a namespace and digests what comes."""

    def __init__(self, ns: Namespace, family: int):
        super().__init__(daemon=True)
        self.listener = ns.socket(family, socket.SOCK_STREAM)
        self.listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
        self.listener.listen(1)
        self.listener.settimeout(DEADLINE)
        self.port = self.listener.getsockname()[1]
        self.digest, self.count = hashlib.sha256(), 0

    def run(self) -> None:
        with self.listener, self.listener.accept()[0] as connection:
            connection.settimeout(DEADLINE)
            buffer = memoryview(bytearray(1 << 20))
            while n := connection.recv_into(buffer):
                self.digest.update(buffer[:n])
                self.count += n


def transfer(sender: Namespace, receiver: Namespace, address: str, count: int = BYTES) -> None:
    """Sends `count` bytes to `address`; the digest of what arrives must be that of what was sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sink = Receiver(receiver, family)
    sink.start()
    block, digest = os.urandom(1 << 20), hashlib.sha256()
    with sender.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(DEADLINE)
        sock.connect((address, sink.port))
        for n in range(count >> 20):
            # Every block differs from every other, so that none can stand in for another.
            data = n.to_bytes(8, "big") + block[8:]
            digest.update(data)
            sock.sendall(data)
    sink.join(3 * DEADLINE)
    assert not sink.is_alive() and sink.count == count
    assert sink.digest.digest() == digest.digest()


def assert_fast(bed: Pair, before: list[dict], name: str = "gre1") -> None:
    """At least 99 % of the packets since `before` took the fast path, in both routers and both directions."""
    for then, router in zip(before, (bed.a, bed.b)):
        now = router.tunnel(name)
        for direction in ("rx_packets", "tx_packets"):
            fast, slow = (now[path][direction] - then[path][direction] for path in ("fast", "slow"))
            assert fast / (fast + slow) >= 0.99, f"{router.name} {direction}: fast {fast}, slow {slow}"


@pytest.mark.parametrize("kind", TUNNELS)
def test_bulk_both_ways(pair, xdp, kind):
    """200 MiB each way arrive as they were sent; with XDP at least 99 % of the packets take the fast path."""
    bed = pair(TUNNELS[kind], xdp=xdp)
    bed.ping()
    before = [bed.a.tunnel(), bed.b.tunnel()]
    transfer(bed.host_a, bed.host_b, "10.2.0.2")
    transfer(bed.host_b, bed.host_a, "10.1.0.2")
    if xdp != "off":
        assert_fast(bed, before)


def test_bulk_over_v6(pair, xdp):
    """The same inside IPv6."""
    bed = pair({"key": 42}, xdp=xdp)
    bed.ping(to="fd02::2")
    before = [bed.a.tunnel(), bed.b.tunnel()]
    transfer(bed.host_a, bed.host_b, "fd02::2", BYTES // 4)
    transfer(bed.host_b, bed.host_a, "fd01::2", BYTES // 4)
    if xdp != "off":
        assert_fast(bed, before)


def test_tunnels_side_by_side(pair, xdp):
    """Several tunnels between the same two addresses differ by their keys; each carries its own traffic (gre-11)."""
    bed = pair({}, {"key": 0}, {"key": 42, "csum": True, "seq": True}, xdp=xdp)
    bed.ping()
    for n in (2, 3):
        bed.host_a.ip("address", "add", f"10.1.{n}.2/24", "dev", "a0")
        bed.router_a.ip("address", "add", f"10.1.{n}.1/24", "dev", "lan")
        bed.host_b.ip("address", "add", f"10.2.{n}.2/24", "dev", "b0")
        bed.router_b.ip("address", "add", f"10.2.{n}.1/24", "dev", "lan")
        bed.router_a.ip("route", "add", f"10.2.{n}.0/24", "dev", f"gre{n}")
        bed.router_b.ip("route", "add", f"10.1.{n}.0/24", "dev", f"gre{n}")
    for n, count in ((2, 20), (3, 30)):
        before = {name: bed.a.tunnel(name) for name in ("gre1", "gre2", "gre3")}
        bed.ping("-I", f"10.1.{n}.2", to=f"10.2.{n}.2", count=count)
        for name, then in before.items():
            now = bed.a.tunnel(name)
            counted = [now[way]["packets"] - then[way]["packets"] for way in ("rx", "tx")]
            if name == f"gre{n}":
                assert min(counted) >= count
            else:
                assert max(counted) < count


def test_large_ping(pair, xdp):
    """Echoes of 4000 and of 60000 bytes: the inner fragments are fragmented again, and all come together."""
    bed = pair({"key": 42, "csum": True, "seq": True}, xdp=xdp)
    for size in (4000, 60000):
        done = bed.ping("-M", "dont", "-s", str(size))
        assert " 0% packet loss" in done.stdout


def test_every_packet_is_counted_once(pair, xdp):
    """fast + slow is the tunnel's count, and one end's tx is the other end's rx."""
    bed = pair({"key": 42}, xdp=xdp)
    transfer(bed.host_a, bed.host_b, "10.2.0.2", 20 << 20)
    a, b = bed.a.tunnel(), bed.b.tunnel()
    for stats in (a, b):
        for way in ("rx", "tx"):
            assert stats[way]["packets"] == stats["fast"][f"{way}_packets"] + stats["slow"][f"{way}_packets"]
