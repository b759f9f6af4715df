"""What comes out of the tunnel, byte for byte: scapy is the far endpoint, and scapy reads at the host."""

from __future__ import annotations

import pytest
from scapy.layers.inet import fragment

from beds import back, payload_of, token, v4, v6
from test_encapsulation import FAMILIES, SIZES, VARIANTS, key_number
from topology import Bench
from wire import GRE, IP, UDP, IPv6, Options, carries, checksums_ok, forwarded, gre, ip_bytes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_inner_packet(single, xdp, variant, family):
    """The inner packet arrives at the host with nothing changed but its TTL, in a frame between the right stations."""
    bed = single(tunnel=VARIANTS[variant], xdp=xdp)
    bed.rx = Options(key_number(bed.rx.key), bed.rx.csum, bed.rx.seq)
    bed.tx = Options(key_number(bed.tx.key), bed.tx.csum, bed.tx.seq)
    bed.warm()
    before = bed.greyhound.tunnel()
    for size in SIZES:
        inner = back(FAMILIES[family](token(size)))
        bed.send_outside(bed.around(inner))
        frame = bed.inside.expect(carries(payload_of(inner)), "inner packet")
        assert (frame.src, frame.dst) == (Bench.INNER_MAC, Bench.HOST_MAC)
        assert ip_bytes(frame) == forwarded(inner)
    after = bed.greyhound.tunnel()
    path = "slow" if xdp == "off" else "fast"
    assert after[path]["rx_packets"] - before[path]["rx_packets"] >= len(SIZES)


def test_padding_and_trailing_bytes_are_cut(single, xdp):
    """Neither what pads the frame nor what follows the inner packet is forwarded (gre-9)."""
    bed = single(xdp=xdp)
    bed.warm()
    for inner in (back(v4(token(18))), back(v6(token(18)))):
        bed.send_outside(bed.around(inner), padding=b"padding of the link")
        frame = bed.inside.expect(carries(payload_of(inner)))
        assert ip_bytes(frame) == forwarded(inner) and b"padding" not in frame.original
        trailing = IP(src=Bench.REMOTE, dst=Bench.LOCAL) / GRE(proto=0x0800 if IP in inner else 0x86DD)
        inner[UDP].payload = type(inner[UDP].payload)(token(18))
        bed.send_outside(trailing / (bytes(inner) + b"padding in the tunnel"))
        frame = bed.inside.expect(carries(payload_of(inner)))
        assert ip_bytes(frame) == forwarded(type(inner)(bytes(inner))) and b"padding" not in frame.original


@pytest.mark.parametrize("tunnel", [{}, {"key": 42, "csum": True, "seq": True}], ids=["plain", "key csum seq"])
def test_outer_options_and_fragments(single, xdp, tunnel):
    """What the kernel has to touch first: outer options, and outer fragments in whatever order (gre-10)."""
    bed = single(tunnel=tunnel, xdp=xdp)
    bed.warm()
    inner = back(v4())
    assert ip_bytes(bed.decapsulated(inner, outer={"options": b"\1\1\1\1"})) == forwarded(inner)
    for n, order in enumerate((list, reversed)):
        inner = back(v4(token(1200)))
        outer = bed.around(inner, outer={"id": 0x700 + n})
        bed.send_outside(*order(fragment(IP(bytes(outer)), 400)))
        assert ip_bytes(bed.arrived(inner)) == forwarded(inner)
    inner = back(v6(token(1200)))
    bed.send_outside(*fragment(IP(bytes(bed.around(inner, outer={"id": 0x800}))), 400))
    assert ip_bytes(bed.arrived(inner)) == forwarded(inner)


def test_outer_fields_that_do_not_matter(single, xdp):
    """Outer TTL 1, any DSCP, no DF, and the GRE bits that a receiver ignores (gre-2)."""
    bed = single(xdp=xdp)
    bed.warm()
    for outer in ({"ttl": 1}, {"tos": 0xB8}, {"flags": "DF"}, {"id": 0}):
        inner = back(v4(tos=0x28))
        assert ip_bytes(bed.decapsulated(inner, outer=outer)) == forwarded(inner)
    for bits in ({"recursion_control": 1}, {"recursion_control": 3}, {"flags": 31}):
        inner = back(v4())
        assert ip_bytes(bed.decapsulated(inner, **bits)) == forwarded(inner)


NOT_ECT, ECT1, ECT0, CE = range(4)
# RFC 6040 figure 4: (inner, outer) and what comes out; None is dropped.
ECN = {
    (NOT_ECT, NOT_ECT): NOT_ECT, (NOT_ECT, ECT0): NOT_ECT, (NOT_ECT, ECT1): NOT_ECT, (NOT_ECT, CE): None,
    (ECT0, NOT_ECT): ECT0, (ECT0, ECT0): ECT0, (ECT0, ECT1): ECT1, (ECT0, CE): CE,
    (ECT1, NOT_ECT): ECT1, (ECT1, ECT0): ECT1, (ECT1, ECT1): ECT1, (ECT1, CE): CE,
    (CE, NOT_ECT): CE, (CE, ECT0): CE, (CE, ECT1): CE, (CE, CE): CE,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_ecn_matrix(single, xdp, family):
    """All 16 rows of RFC 6040's table; DSCP stays the inner packet's and the header checksum right (ecn-2)."""
    bed = single(xdp=xdp)
    bed.warm()
    field = "tos" if family == "v4" else "tc"
    for (inner_ecn, outer_ecn), expected in ECN.items():
        inner = back(FAMILIES[family](**{field: 0x48 | inner_ecn}))
        outer = {"tos": 0xB8 | outer_ecn}
        if expected is None:
            with bed.greyhound.expect_drops(ecn_congestion=1):
                bed.refused(bed.around(inner, outer=outer))
            continue
        arrived = bed.decapsulated(inner, outer=outer)
        setattr(inner, field, 0x48 | expected)
        assert ip_bytes(arrived) == forwarded(inner), f"inner {inner_ecn}, outer {outer_ecn}"


def changed(packet: IP, at: int, value: int) -> IP:
    """The packet with one byte changed (exclusive or) at an offset, counted from its end when negative."""
    data = bytearray(bytes(packet))
    data[at] ^= value
    return IP(bytes(data))


KEYED, SUMMED, NUMBERED = {"key": 42}, {"csum": True}, {"seq": True}
BARE = Options()

# What must not come out: the tunnel, how the packet differs from a good one, and the drop that counts it.
# None: not one of our drops (not our packet, or the kernel's to discard).
REFUSED = {
    "wrong key": (KEYED, dict(key=43), "unknown_tunnel"),
    "no key": (KEYED, dict(options=BARE), "unknown_tunnel"),
    "key 0 is not 42": (KEYED, dict(key=0), "unknown_tunnel"),
    "key 0 where there is none": ({}, dict(options=Options(key=0)), "unknown_tunnel"),
    "no key is not key 0": ({"key": 0}, dict(options=BARE), "unknown_tunnel"),
    "key where there is none": ({}, dict(options=Options(key=5)), "unknown_tunnel"),
    "the key that goes out": ({"ikey": 1, "okey": 2}, dict(key=2), "unknown_tunnel"),
    "wrong checksum": (SUMMED, dict(chksum=0x1234), "gre_checksum"),
    "no checksum": (SUMMED, dict(options=BARE), "gre_checksum_presence"),
    "checksum where there is none": ({}, dict(options=Options(csum=True)), "gre_checksum_presence"),
    "no sequence number": (NUMBERED, dict(options=BARE), "sequence_missing"),
    "unknown protocol": ({}, dict(proto=0x1234), "unknown_protocol"),
    "Ethernet on a layer 3 tunnel": ({}, dict(proto=0x6558), "unknown_protocol"),
    "protocol 0": ({}, dict(proto=0), "unknown_protocol"),
    "routing bit": ({}, dict(routing_present=1), "gre_flags"),
    "strict source route bit": ({}, dict(strict_route_source=1), "gre_flags"),
    "bit 5": ({}, dict(recursion_control=4), "gre_flags"),
    "version 1": ({}, dict(version=1), None),
    "version 7": ({}, dict(version=7), None),
    "v6 that says it is v4": ({}, dict(inner=back(v6()), proto=0x0800), "inner_version"),
    "v4 that says it is v6": ({}, dict(inner=back(v4()), proto=0x86DD), "inner_version"),
    "v4 longer than the frame": ({}, dict(inner=back(v4(len=2000))), "inner_total_length"),
    "v4 one byte longer": ({}, dict(inner=back(v4(b"<greyhound long>", len=45))), "inner_total_length"),
    "v6 longer than the frame": ({}, dict(inner=back(v6(plen=2000))), "inner_total_length"),
    "v4 shorter than its header": ({}, dict(inner=back(v4(len=19))), "inner_total_length"),
    "v4 header length 4": ({}, dict(inner=back(v4(ihl=4))), "inner_header_length"),
    "v4 header checksum": ({}, dict(inner=back(v4(chksum=0x1234))), None),
    "a stranger": ({}, dict(outer={"src": "10.9.0.3"}), None),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(single, xdp, case):
    """Nothing comes out, in whatever form, and the drop is counted under its name."""
    tunnel, difference, reason = REFUSED[case]
    bed = single(tunnel=tunnel, xdp=xdp)
    bed.warm()
    difference = dict(difference)
    inner = difference.pop("inner", None) or back(v4())
    outer = {"src": Bench.REMOTE, "dst": Bench.LOCAL} | difference.pop("outer", {})
    packet = IP(**outer) / gre(inner, difference.pop("options", bed.rx), 1000, **difference)
    if reason is None:
        bed.refused(packet)
    elif reason == "unknown_tunnel":
        # Another's tunnel between the same two hosts, perhaps: left to the kernel, and no drop of ours.
        before = bed.greyhound.drops()
        bed.refused(packet)
        assert bed.greyhound.drops() == before
        if xdp != "off":
            assert bed.greyhound.stats()["xdp"]["all"]["unknown_tunnel"] == 1
    else:
        with bed.greyhound.expect_drops(**{reason: 1}):
            bed.refused(packet)


def test_truncated(single, xdp):
    """Packets that end within a header (their lengths agreeing) are dropped, each counted once."""
    bed = single(tunnel={"key": 42}, xdp=xdp)
    bed.warm()
    whole = bytes(gre(back(v4()), bed.rx))
    cuts = {0: "gre_truncated", 2: "gre_truncated", 4: "gre_truncated", 7: "gre_truncated",
            8: "inner_truncated", 18: "inner_truncated", 27: "inner_truncated"}  # fmt: skip
    for length, reason in cuts.items():
        with bed.greyhound.expect_drops(**{reason: 1}):
            bed.refused(IP(src=Bench.REMOTE, dst=Bench.LOCAL, proto=47) / whole[:length])


def test_corrupted_checksums(single, xdp):
    """The GRE checksum covers header and payload: one changed bit anywhere is noticed (gre-3)."""
    bed = single(tunnel={"csum": True, "key": 42}, xdp=xdp)
    bed.warm()
    for at in (-1, -20, 20 + 4, 20 + 12 + 8):
        with bed.greyhound.expect_drops(gre_checksum=1):
            bed.refused(changed(bed.around(back(v4())), at, 0x40))
    inner = back(v4())
    assert checksums_ok(bed.decapsulated(inner))


def test_sequence_window(single, xdp):
    """Repeats and late numbers are dropped, gaps pass, 0xffffffff is followed by 0 (gre-5)."""
    bed = single(tunnel={"seq": True, "key": 42}, xdp=xdp)

    def delivered(number: int) -> bool:
        inner = back(v4())
        bed.sequence = number
        bed.send_outside(bed.around(inner))
        drops = bed.greyhound.drops
        from topology import wait_until

        def judged() -> str | None:
            if any(payload_of(inner) in frame.original for frame in bed.inside.drain()):
                return "delivered"
            return "dropped" if drops().get("sequence_old", 0) > before else None

        before = dropped_so_far[0]
        verdict = wait_until(judged, f"a verdict on number {number:#x}")
        dropped_so_far[0] += verdict == "dropped"
        return verdict == "delivered"

    dropped_so_far = [0]
    numbers = [100, 101, 101, 99, 110, 105, 0x80000070, 0x7FFF0000, 0xFFFE0000, 0xFFFFFFFE, 0xFFFFFFFF, 0, 0xFFFFFFFF, 1]
    seen = [delivered(number) for number in numbers]
    assert seen == [True, True, False, False, True, False, False, True, True, True, True, True, False, True]


def test_not_to_us(single, xdp):
    """A frame to another station's address is not taken, although the packet in it is one of ours."""
    bed = single(xdp=xdp)
    bed.warm()
    from wire import Ether

    packet = bed.around(back(v4()))
    bed.outside.send(Ether(src=Bench.FAR_MAC, dst="02:00:00:00:99:99") / packet)
    bed.inside.send(Ether(src=Bench.HOST_MAC, dst="02:00:00:00:99:99") / v4())
    bed.refused()
    assert not [frame for frame in bed.fence_inside() if b"<greyhound " in frame.original]


def test_host_unreachable_inside(single, xdp):
    """A packet for an inner address that has no route is answered by the kernel, through the tunnel."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.send_outside(bed.around(v4(src="10.2.0.2", dst="10.77.0.1")))
    frame = bed.outside.expect(lambda f: GRE in f and f.haslayer("ICMP") and f["ICMP"].type == 3, "ICMP unreachable")
    assert frame[GRE][IP].dst == "10.2.0.2" and IPv6 not in frame


@pytest.mark.parametrize("side", ["overlay", "underlay"])
def test_own_address_as_source(single, xdp, side):
    """A packet that claims to come from the router itself is a martian to the kernel, and crosses by neither path."""
    bed = single(xdp=xdp)
    bed.warm()
    for own in ("10.1.0.1", "10.9.0.1", "10.200.0.1"):
        if side == "overlay":
            bed.send_inside(v4(src=own))
            came = bed.fence_inside()
        else:
            bed.send_outside(bed.around(v4(src=own, dst="10.1.0.2")))
            came = bed.fence_outside()
        assert not [frame.summary() for frame in came if b"<greyhound " in frame.original], own
