"""Sizes around the tunnel's MTU, with and without DF: who is told, what is fragmented, what passes."""

from __future__ import annotations

import pytest
from scapy.layers.inet import fragment
from scapy.layers.inet6 import ICMPv6PacketTooBig

from beds import back, is_gre, token, v4, v6
from topology import wait_until
from wire import GRE, ICMP, IP, UDP, IPv6, Raw, checksums_ok, forwarded, ip_bytes

# The tunnel, the underlay's MTU and the tunnel device's MTU that follows (mtu-1).
SIZES = {
    "plain": ({}, 1500, 1476),
    "key": ({"key": 42}, 1500, 1472),
    "csum": ({"csum": True}, 1500, 1472),
    "key csum": ({"key": 42, "csum": True}, 1500, 1468),
    "key csum seq": ({"key": 42, "csum": True, "seq": True}, 1500, 1464),
    "underlay of 1400": ({}, 1400, 1376),
    "set by hand": ({"mtu": 1300}, 1500, 1300),
}
EDGES = ["plain", "key csum seq", "set by hand"]


def sized4(size: int, **fields) -> IP:
    """An inner IPv4 packet of `size` bytes in all."""
    return v4(token(size - 28), **fields)


def sized6(size: int) -> IPv6:
    """An inner IPv6 packet of `size` bytes in all."""
    return v6(token(size - 48))


@pytest.mark.parametrize("case", SIZES)
def test_device_mtu(single, xdp, case):
    """The device's MTU is the underlay's less the overhead, as the kernel's tunnels have it."""
    tunnel, underlay, expected = SIZES[case]
    bed = single(tunnel=tunnel, mtu=underlay, xdp=xdp)
    assert bed.router.link("gre1")["mtu"] == expected


@pytest.mark.parametrize("case", EDGES)
def test_up_to_the_mtu_passes(single, xdp, case):
    """One byte less, and exactly the MTU, both ways, with and without DF; on the fast path where there is one."""
    tunnel, underlay, mtu = SIZES[case]
    bed = single(tunnel=tunnel, mtu=underlay, xdp=xdp)
    bed.warm()
    before = bed.greyhound.tunnel()["fast"]
    for size in (mtu - 1, mtu):
        for packet in (sized4(size), sized4(size, flags="DF"), sized6(size)):
            outer = bed.encapsulated(packet)
            assert ip_bytes(outer[GRE].payload) == forwarded(packet)
            assert outer.len <= underlay
            inner = back(packet)
            inner[UDP].payload = Raw(token(len(packet[UDP].payload)))
            inner = type(inner)(bytes(inner))
            assert ip_bytes(bed.decapsulated(inner)) == forwarded(inner)
    # The slow path may carry the kernel's own router solicitations meanwhile.
    # With sequence numbers it hands them over.
    carried = 0 if xdp == "off" else 6
    after = bed.greyhound.tunnel()["fast"]
    assert after == before if xdp == "off" else all(after[path] >= n + carried for path, n in before.items())


@pytest.mark.parametrize("case", EDGES)
def test_too_big_with_df(single, xdp, case):
    """ICMP 3/4 names the tunnel's MTU, quotes the packet, and comes from the router; nothing enters the tunnel (mtu-2)."""
    tunnel, underlay, mtu = SIZES[case]
    bed = single(tunnel=tunnel, mtu=underlay, xdp=xdp)
    bed.warm()
    for size in (mtu + 1, 1500):
        packet = sized4(size, flags="DF")
        bed.send_inside(packet)
        error = bed.inside.expect(lambda frame: ICMP in frame and frame[ICMP].type == 3, "ICMP 3/4")
        assert (error[IP].src, error[IP].dst, error[ICMP].code, error[ICMP].nexthopmtu) == ("10.1.0.1", "10.1.0.2", 4, mtu)
        quoted = bytes(error[ICMP].payload)
        assert len(quoted) >= 28 and quoted[:28] == bytes(packet)[:28] and checksums_ok(error[IP])
    assert not [frame for frame in bed.fence_inside() if b"<greyhound " in frame.original]


@pytest.mark.parametrize("case", EDGES)
def test_too_big_without_df(single, xdp, case):
    """Fragmented before encapsulation, every fragment in a packet of its own; put together they are the packet (mtu-2)."""
    tunnel, underlay, mtu = SIZES[case]
    bed = single(tunnel=tunnel, mtu=underlay, xdp=xdp)
    bed.warm()
    for size in (mtu + 1, 1500):
        packet = sized4(size, id=0x5000 + size % 100)
        bed.send_inside(packet)
        frames = bed.outside.collect(lambda f: is_gre(f) and IP in f[GRE] and f[GRE][IP].id == packet.id, 2, "fragments")
        assert all(frame[IP].len <= underlay and frame[IP].frag == 0 for frame in frames)
        parts = sorted((frame[GRE][IP] for frame in frames), key=lambda part: part.frag)
        assert [(part.ttl, bool(part.flags.MF)) for part in parts] == [(63, True), (63, False)]
        assert parts[1].frag * 8 == parts[0].len - 20
        assert b"".join(ip_bytes(part)[20:] for part in parts) == bytes(packet)[20:]


@pytest.mark.parametrize("case", EDGES)
def test_too_big_v6(single, xdp, case):
    """Packet Too Big with the tunnel's MTU (mtu-2)."""
    tunnel, underlay, mtu = SIZES[case]
    bed = single(tunnel=tunnel, mtu=underlay, xdp=xdp)
    bed.warm()
    packet = sized6(mtu + 1)
    bed.send_inside(packet)
    error = bed.inside.expect(lambda frame: ICMPv6PacketTooBig in frame, "Packet Too Big")
    assert (error[IPv6].src, error[IPv6].dst, error[ICMPv6PacketTooBig].mtu) == ("fd01::1", "fd01::2", mtu)
    assert bytes(error[ICMPv6PacketTooBig].payload)[:48] == bytes(packet)[:48]
    assert not [frame for frame in bed.fence_inside() if b"<greyhound " in frame.original]


def test_too_big_for_the_overlay(single, xdp):
    """A packet that came out of the tunnel and does not fit the device beyond: its sender is told, through the tunnel."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.router.ip("link", "set", "inner0", "mtu", "1300")

    def told() -> bool:
        bed.send_outside(bed.around(back(sized4(1301, flags="DF"))))
        error = bed.outside.expect(lambda f: is_gre(f) and f.haslayer(ICMP) and f[ICMP].type == 3, "ICMP 3/4")
        return error[ICMP].nexthopmtu == 1300

    assert told()
    inner = back(sized4(1300, flags="DF"))
    assert ip_bytes(bed.decapsulated(inner)) == forwarded(inner)
    big = back(sized4(1400, id=0x6001))
    bed.send_outside(bed.around(big))
    parts = bed.inside.collect(lambda f: IP in f and f[IP].id == big.id, 2, "fragments")
    assert b"".join(ip_bytes(part)[20:] for part in sorted(parts, key=lambda f: f[IP].frag)) == bytes(big)[20:]


def test_a_changed_underlay_mtu_is_followed(single, xdp):
    """`mtu = "auto"` follows the underlay while the router runs."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.router.ip("link", "set", "outer0", "mtu", "1400")
    wait_until(lambda: bed.router.link("gre1")["mtu"] == 1376, "the tunnel's MTU is 1376")
    packet = sized4(1377, flags="DF")
    bed.send_inside(packet)
    error = bed.inside.expect(lambda frame: ICMP in frame and frame[ICMP].type == 3, "ICMP 3/4")
    assert error[ICMP].nexthopmtu == 1376
    packet = sized4(1376, flags="DF")
    assert ip_bytes(bed.encapsulated(packet)[GRE].payload) == forwarded(packet)


def test_an_underlay_too_narrow_for_ipv6(single, xdp):
    """The device stays wide enough for IPv6, whose 1280 bytes leave in outer fragments; IPv4 is held to what fits (v6-2)."""
    bed = single(mtu=1300, xdp=xdp)
    bed.warm()
    assert bed.router.link("gre1")["mtu"] == 1280
    packet = sized6(1280)
    bed.send_inside(packet)
    frames = bed.outside.collect(lambda f: IP in f and f[IP].proto == 47 and (f[IP].flags.MF or f[IP].frag), 2, "outer fragments")
    parts = sorted((frame[IP] for frame in frames), key=lambda part: part.frag)
    assert all(part.len <= 1300 and not part.flags.DF for part in parts) and parts[0].id == parts[1].id
    assert b"".join(ip_bytes(part)[20:] for part in parts)[4:] == forwarded(packet)
    bed.send_inside(sized4(1277, flags="DF"))
    error = bed.inside.expect(lambda frame: ICMP in frame and frame[ICMP].type == 3, "ICMP 3/4")
    assert error[ICMP].nexthopmtu == 1276
    for packet in (sized4(1276, flags="DF"), sized6(1276)):
        assert ip_bytes(bed.encapsulated(packet)[GRE].payload) == forwarded(packet)


def test_inner_fragments_cross(single, xdp):
    """Fragments that a host made are carried as they are, both ways."""
    bed = single(xdp=xdp)
    bed.warm()
    whole = v4(token(1200), id=0x7101)
    parts = [IP(bytes(part)) for part in fragment(whole, 400)]
    bed.send_inside(*parts)
    frames = bed.outside.collect(lambda f: is_gre(f) and IP in f[GRE] and f[GRE][IP].id == whole.id, len(parts), "fragments")
    assert [ip_bytes(frame[GRE].payload) for frame in frames] == [forwarded(part) for part in parts]
    whole = back(v4(token(1200), id=0x7102))
    parts = [IP(bytes(part)) for part in fragment(whole, 400)]
    bed.send_outside(*(bed.around(part) for part in parts))
    frames = bed.inside.collect(lambda f: IP in f and f[IP].id == whole.id, len(parts), "fragments")
    assert [ip_bytes(frame) for frame in frames] == [forwarded(part) for part in parts]


def test_outer_fragments_where_df_allows(single, xdp):
    """A tunnel MTU raised to the underlay's, without DF: the outer packet is fragmented, one identification for both."""
    bed = single(tunnel={"pmtudisc": False, "ignore_df": True, "mtu": 1500}, xdp=xdp)
    bed.warm()
    for packet in (sized4(1500, flags="DF"), sized6(1500)):
        bed.send_inside(packet)
        frames = bed.outside.collect(lambda f: IP in f and f[IP].proto == 47 and (f[IP].flags.MF or f[IP].frag), 2)
        assert frames[0][IP].id == frames[1][IP].id != 0
        parts = sorted((frame[IP] for frame in frames), key=lambda part: part.frag)
        assert all(part.len <= 1500 for part in parts)
        assert b"".join(ip_bytes(part)[20:] for part in parts)[4:] == forwarded(packet)


