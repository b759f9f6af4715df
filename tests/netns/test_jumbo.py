"""Packets that take several buffers each: devices with an MTU of 9000, on the fast path and without it, byte for byte."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import fragment

from beds import back, is_gre, token, v4, v6
from test_books import balanced
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


def at_rest(bed) -> None:
    """The books balance, and every frame is free or waits for a packet."""
    balanced(bed)

    def frames() -> bool:
        places = [worker["frames"] for worker in bed.greyhound.stats()["workers"]]
        return all(p["free"] + p["receiving"] == p["total"] for p in places)

    wait_until(frames, "every frame is free or with the kernel")


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
        at_rest(bed)


@pytest.mark.parametrize("kind", ["plain", "key csum seq"])
def test_bulk_both_ways(pair, xdp, kind):
    """TCP in bulk with segments of nearly 9000 bytes, offloads as the kernel set them; at least 99 % on the fast path."""
    bed = pair(TUNNELS[kind], mtu=MTU, inner=MTU, xdp=xdp)
    bed.ping("-s", "8900", "-M", "do")
    before = [bed.a.tunnel(), bed.b.tunnel()]
    transfer(bed.host_a, bed.host_b, "10.2.0.2")
    transfer(bed.host_b, bed.host_a, "10.1.0.2")
    if xdp != "off":
        assert_fast(bed, before)
        for router, then in zip((bed.a, bed.b), before):
            fast, old = router.tunnel()["fast"], then["fast"]
            carried = [(fast[way + "_bytes"] - old[way + "_bytes"]) / (fast[way + "_packets"] - old[way + "_packets"])
                       for way in ("rx", "tx")]
            # Half of the packets are acknowledgements.
            assert min(carried) > 3000, carried
