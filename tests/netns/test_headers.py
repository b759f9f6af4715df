"""What outer headers take from inner ones and give back, for every kind and every pairing of families, on both paths."""

from __future__ import annotations

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import HBHOptUnknown, ICMPv6ParamProblem, IPv6, IPv6ExtHdrDestOpt, PadN

from beds import OfKind, back, payload_of, token, v4, v6
from test_conformance import ECN
from wire import carries, checksums_ok, forwarded, ip_bytes

KINDS = ["gre", "ip6gre", "ipip", "sit", "ip6ip6", "ipip6"]
OVER_V6 = ["ip6gre", "ip6ip6"]
FAMILIES = {"4": (v4, "tos"), "6": (v6, "tc")}
LIMIT = 4
"""The option's type (RFC 2473 section 4.1.1)."""


@pytest.fixture
def of_kind(tmp_path, xdp):
    """One router; call it with a tunnel, its mode at the least, to get it running."""
    beds: list[OfKind] = []

    def build(**tunnel) -> OfKind:
        beds.append(OfKind(tmp_path, tunnel, xdp=xdp))
        beds[-1].warm()
        return beds[-1]

    yield build
    for bed in beds:
        bed.close()


@pytest.mark.parametrize("tos", ["inherit", 0xB8])
@pytest.mark.parametrize("mode", KINDS)
def test_outward(of_kind, mode, tos):
    """DSCP inherited or fixed, ECN always the inner packet's, CE as CE (ecn-1, tos-1)."""
    bed = of_kind(mode=mode, tos=tos)
    for family in bed.carries:
        make, field = FAMILIES[family]
        for ecn in range(4):
            packet = make(**{field: 0x28 | ecn})
            outer = bed.encapsulated(packet)
            assert bed.tos(outer) == (0x28 if tos == "inherit" else tos) | ecn
            assert checksums_ok(outer)


@pytest.mark.parametrize("mode", KINDS)
def test_inward(of_kind, mode):
    """All 16 rows of RFC 6040's table; DSCP stays the inner packet's, and every checksum is right (ecn-2, tos-1)."""
    bed = of_kind(mode=mode)
    outer_field = "tc" if bed.over6 else "tos"
    for family in bed.carries:
        make, field = FAMILIES[family]
        for (inner_ecn, outer_ecn), expected in ECN.items():
            inner = back(make(**{field: 0x48 | inner_ecn}))
            outer = {outer_field: 0xB8 | outer_ecn}
            if expected is None:
                with bed.greyhound.expect_drops(ecn_congestion=1):
                    bed.send_outside(bed.around(inner, outer=outer))
                continue
            arrived = bed.decapsulated(inner, outer=outer)
            setattr(inner, field, 0x48 | expected)
            assert ip_bytes(arrived) == forwarded(inner), f"IPv{family}: inner {inner_ecn}, outer {outer_ecn}"
            assert checksums_ok(arrived)


@pytest.mark.parametrize("mode", ["ip6gre", "ip6ip6", "ipip6"])
def test_the_outer_dscp_goes_inside(of_kind, mode):
    """`dscp = "inherit"`, as iproute2 has it."""
    bed = of_kind(mode=mode, dscp="inherit")
    for family in bed.carries:
        make, field = FAMILIES[family]
        inner = back(make(**{field: 0x4A}))
        arrived = bed.decapsulated(inner, outer={"tc": 0xBB})
        assert bed.tos(arrived) == 0xBB and checksums_ok(arrived)


@pytest.mark.parametrize("ttl", ["inherit", 17])
@pytest.mark.parametrize("mode", KINDS)
def test_hop_limits(of_kind, mode, ttl):
    """Inherited from the inner packet after the router has decremented it, or fixed (tos-1)."""
    bed = of_kind(mode=mode, ttl=ttl)
    for family in bed.carries:
        make, _ = FAMILIES[family]
        for inner in (2, 64, 255):
            packet = make(**{"hlim" if family == "6" else "ttl": inner})
            outer = bed.encapsulated(packet)
            seen = outer.hlim if bed.over6 else outer.ttl
            assert seen == (inner - 1 if ttl == "inherit" else ttl)


@pytest.mark.parametrize("label", ["hash", "inherit", 0x12345])
@pytest.mark.parametrize("mode", ["ip6gre", "ip6ip6", "ipip6"])
def test_flow_labels(of_kind, mode, label):
    """From the flow's hash, or the inner packet's own where it has one, or fixed (v6-3)."""
    bed = of_kind(mode=mode, flowlabel=label)
    for family in bed.carries:
        make, _ = FAMILIES[family]
        seen = {bed.encapsulated(make()).fl for _ in range(3)}
        assert len(seen) == 1 and seen != {0}
        if label == 0x12345:
            assert seen == {label}
        if family == "6":
            own = bed.encapsulated(v6(fl=0x54321)).fl
            assert own == {"inherit": 0x54321, 0x12345: 0x12345}.get(label, seen.pop())


def limited(limit: int) -> IPv6:
    """An IPv6 packet that may be encapsulated so many times more."""
    options = [HBHOptUnknown(otype=LIMIT, optdata=bytes([limit])), PadN(optdata=b"\0")]
    header = IPv6(src="fd01::2", dst="fd02::2") / IPv6ExtHdrDestOpt(options=options)
    return header / UDP(sport=1000, dport=2000) / token()


def limit_of(outer: IPv6) -> int | None:
    """The limit that an outer packet says."""
    if outer.nh != 60:
        return None
    (option,) = [option for option in outer[IPv6ExtHdrDestOpt].options if option.otype == LIMIT]
    return option.optdata[0]


@pytest.mark.parametrize("configured", [4, "none"])
@pytest.mark.parametrize("mode", OVER_V6)
def test_encapsulation_limit(of_kind, mode, configured):
    """One that a packet has already counts down; without one it is as configured (v6-3, RFC 2473 section 4.1.1)."""
    bed = of_kind(mode=mode, encaplimit=configured)
    assert limit_of(bed.encapsulated(v6())) == (4 if configured == 4 else None)
    for own in (1, 7, 255):
        packet = limited(own)
        outer = bed.encapsulated(packet)
        assert limit_of(outer) == own - 1
        # The limit in front is the outer packet's; the inner one is as the host sent it.
        assert outer.original[:outer.plen + 40].endswith(forwarded(packet))


@pytest.mark.parametrize("mode", OVER_V6)
def test_encapsulation_limit_of_zero(of_kind, mode):
    """The packet ends here, and its sender is told where it says so (v6-3, RFC 2473 section 4.1.1 a)."""
    bed = of_kind(mode=mode)
    packet = limited(0)
    with bed.greyhound.expect_drops(encap_limit=1):
        bed.send_inside(packet)
        error = bed.inside.expect(lambda frame: ICMPv6ParamProblem in frame, "Parameter Problem")
    problem = error[ICMPv6ParamProblem]
    # 40 bytes of header, two of the options header, two of the option: the value.
    assert (error[IPv6].src, error[IPv6].dst, problem.code, problem.ptr) == ("fd01::1", "fd01::2", 0, 44)
    assert bytes(problem.payload)[:48] == forwarded(packet)[:48]
    assert checksums_ok(error[IPv6])
    other = v6()
    bed.send_inside(other)
    frames = []
    bed.outside.expect(lambda frame: (frames.append(frame), payload_of(other) in frame.original)[1], "the next one")
    assert not [frame for frame in frames if carries(payload_of(packet))(frame)]
