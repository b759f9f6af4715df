"""Packets that take several buffers each: devices with an MTU of 9000, on the fast path and without it, byte for byte."""

from __future__ import annotations

import random

import pytest

from beds import back, is_gre, token, v4, v6
from test_books import balanced
from test_tcp import assert_fast, transfer
from topology import wait_until
from wire import GRE, ICMP, IP, UDP, Raw, checksums_ok, forwarded, ip_bytes

MTU = 9000
# Around what one buffer holds (veth's first one, a frame of ours), what two hold, and the most; the tunnel's MTU is 8976.
SIZES = [*range(3480, 3540, 7), *range(3790, 3850, 3), 4072, 4096, 4120, *range(7640, 7700, 5), 8150, 8192, 8950, 8975, 8976]
TUNNELS = {
    "plain": {},
    "key csum seq": {"key": 42, "csum": True, "seq": True},
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


@pytest.mark.parametrize("kind", TUNNELS)
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


@pytest.mark.parametrize("kind", TUNNELS)
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


def test_a_smaller_underlay_decides(single, xdp):
    """Inside 9000, outside 1500: who sends too much is told so or is cut, and what fits passes; and the other way round."""
    bed = single(mtu=1500, inner=MTU, xdp=xdp)
    bed.warm()
    assert bed.router.link("gre1")["mtu"] == 1476
    for size in (1477, 3600, 9000):
        packet = sized4(size, flags="DF")
        bed.send_inside(packet)
        error = bed.inside.expect(lambda frame: ICMP in frame and frame[ICMP].type == 3, "ICMP 3/4")
        assert (error[ICMP].code, error[ICMP].nexthopmtu) == (4, 1476)
        packet = sized4(size, id=0x5000 + size)
        bed.send_inside(packet)
        pieces = -(-(size - 20) // 1456)
        frames = bed.outside.collect(lambda f: is_gre(f) and IP in f[GRE] and f[GRE][IP].id == packet.id, pieces, "pieces")
        parts = sorted((frame[GRE][IP] for frame in frames), key=lambda part: part.frag)
        assert b"".join(ip_bytes(part)[20:] for part in parts) == bytes(packet)[20:]
    packet = sized4(1476, flags="DF")
    assert ip_bytes(bed.encapsulated(packet)[GRE].payload) == forwarded(packet)
    if xdp != "off":
        at_rest(bed)


def test_a_smaller_overlay_decides(single, xdp):
    """Outside 9000, inside 1500: a large packet out of the tunnel is answered through it, and the books balance."""
    bed = single(mtu=MTU, inner=1500, xdp=xdp)
    bed.warm()
    for size in (1501, 3600, 8976):
        bed.send_outside(bed.around(back(sized4(size, flags="DF"))))
        error = bed.outside.expect(lambda f: is_gre(f) and f.haslayer(ICMP) and f[ICMP].type == 3, "ICMP 3/4")
        assert error[ICMP].nexthopmtu == 1500
    if xdp != "off":
        assert bed.greyhound.stats()["workers"][0]["punts"]["too_big"] >= 3
        at_rest(bed)


def test_what_workers_cannot_finish_arrives_whole(single):
    """Large packets that are found unfit only inside a worker go on by the slow path, as they came."""
    bed = single(mtu=MTU, inner=MTU)
    bed.warm()
    before = bed.greyhound.stats()["workers"][0]["punted"]
    for size in (3600, 8900):
        inner = back(sized4(size, options=b"\1\1\1\1"))
        assert ip_bytes(bed.decapsulated(inner))[24:] == bytes(inner)[24:]
    assert bed.greyhound.stats()["workers"][0]["punted"] >= before + 2
    at_rest(bed)
