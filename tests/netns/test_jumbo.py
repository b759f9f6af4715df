"""Packets that take several buffers each: devices with an MTU of 9000, on the fast path and without it, byte for byte."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import fragment

from beds import back, is_gre, token, v4, v6
from test_tcp import BYTES, assert_fast, transfer
from topology import wait_until
from wire import GRE, ICMP, IP, UDP, Raw, checksums_ok, forwarded, ip_bytes

MTU = 9000
# Around what one buffer holds (veth's first one, a frame of ours), what two hold, and the most; the tunnel's MTU is 8976.
SIZES = [*range(3480, 3540, 7), *range(3790, 3850, 3), 4072, 4096, 4120, *range(7640, 7700, 5), 8150, 8192, 8950, 8975, 8976]
TUNNELS = {
    "plain": {},
    "key csum seq": {"key": 42, "csum": True, "seq": True},
    "in UDP": {"encap": "gue"},
}


def filled(size: int) -> bytes:
    """A payload of so many bytes, no two places alike."""
    mark = token()
    return mark + random.Random(size).randbytes(size - len(mark))


def sized4(size: int, **fields) -> IP:
    """An inner IPv4 packet of `size` bytes in all."""
    return v4(filled(size - 28), **fields)


def sized6(size: int):
    """An inner IPv6 packet of `size` bytes in all."""
    return v6(filled(size - 48))


def books_balance(greyhound) -> None:
    """Every frame is in one place: with the kernel, with the worker, or free."""
    def balanced() -> bool:
        workers = greyhound.stats()["workers"]
        return all(sum(w["frames"][k] for k in ("free", "receiving", "worker", "transmitting")) == w["frames"]["total"]
                   and w["frames"]["worker"] == 0 and w["frames"]["transmitting"] == 0 for w in workers)
    wait_until(balanced, "the frames balance")


@pytest.mark.parametrize("kind", ["plain", "key csum seq"])
def test_every_size_passes_both_ways(single, xdp, kind):
    """What went in comes out, bit by bit, on the fast path where there is one."""
    bed = single(tunnel=TUNNELS[kind], mtu=MTU, inner=MTU, xdp=xdp)
    bed.warm()
    before = bed.greyhound.tunnel()["fast"]
    sizes = [size for size in SIZES if size <= bed.router.link("gre1")["mtu"]]
    for size in sizes:
        for packet in (sized4(size, flags="DF"), sized6(size)):
            outer = bed.encapsulated(packet)
            assert ip_bytes(outer[GRE].payload) == forwarded(packet)
            assert checksums_ok(outer)
            inner = back(packet)
            inner[UDP].payload = Raw(filled(len(packet[UDP].payload)))
            inner = type(inner)(bytes(inner))
            assert ip_bytes(bed.decapsulated(inner)) == forwarded(inner)
    after = bed.greyhound.tunnel()["fast"]
    carried = 0 if xdp == "off" else 2 * len(sizes)
    assert all(after[path] >= n + carried for path, n in before.items())
    if xdp != "off":
        books_balance(bed.greyhound)
