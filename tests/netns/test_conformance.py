"""Conformance, id by id: every line of the checklist is the test of its name, driven by a table of rows.

One router has a tunnel of every kind and option; scapy is the host, the far ends, and the judge. Each table is played with
steering and without. Where an RFC and the Linux kernel disagree, the test says which is followed, and why. The closing
summary lists how many rows of each id passed.
"""

from __future__ import annotations

import functools
import pathlib
import socket
import subprocess

import pytest
from scapy.layers.inet import IP as IPv4
from scapy.layers.inet import fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6ParamProblem, ICMPv6TimeExceeded, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop, PadN, fragment6,
)  # fmt: skip
from scapy.packet import Padding
from scapy.utils import wrpcap

from beds import Single, delivers, payload_of, token
from conftest import need
from conformance import LOCAL, NARROW, Inner, Play, Router, into, out, padded, told
from topology import Bench, wait_until
from wire import GRE, ICMP, IP, TCP, UDP, Dot1Q, Ether, IPv6, Options, Raw, carries, forwarded, ip_bytes, sequence_of


@pytest.fixture(scope="module", params=["auto", "off"])
def router(request, tmp_path_factory):
    """The router with all tunnels, in both modes of steering."""
    bed = Router(tmp_path_factory.mktemp("conformance"), request.param)
    yield bed
    bed.close()


@pytest.fixture
def play(router, request):
    """Plays rows, for the id that the test is named after."""
    name = request.node.originalname.removeprefix("test_").replace("_", "-")
    playing = Play(name, router)
    yield playing
    playing.close()


BARE = Options()
# Every kind without options, and the families that it carries.
KINDS = {"gre": (4, 6), "ip6gre": (4, 6), "ipip": (4,), "sit": (4, 6), "ip6ip6": (6,), "ipip6": (4,)}
GRES = ("gre", "gre-all", "ip6gre", "ip6gre-all")
BOTH_WAYS = (into, out)
TOS = {4: "tos", 6: "tc"}
TTL = {4: "ttl", 6: "hlim"}


def kinds():
    """Every kind with every family that it carries."""
    return [(tunnel, family) for tunnel, families in KINDS.items() for family in families]


def flipped(at: int, packet):
    """The packet with one bit changed at an offset, counted from the end when negative."""
    data = bytearray(bytes(packet))
    data[at] ^= 0x40
    return type(packet)(bytes(data))


def flip(at: int):
    return functools.partial(flipped, at)


def test_gre_1(play, router):
    """Version 0 alone is ours. Version 1 (PPTP) and those to come are somebody else's: the kernel gets them, untouched."""
    for tunnel in ("gre", "gre-all"):
        for version in range(1, 8):
            play.rows([out(tunnel, gre={"version": version}, ignored=True, steered="gre_version")])
    play.rows(out("ip6gre", gre={"version": version}, ignored=True, steered="gre_version") for version in (1, 7))
    with router.router.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE) as pptp:
        pptp.settimeout(5)

        def kernel_gets_it() -> None:
            tunnel = router.tunnels["gre"]
            inner = Inner().back(tunnel)
            router.send_outside(tunnel.around(inner, {}, {"version": 1}, 0))
            while payload_of(inner) not in (data := pptp.recv(2000)):
                pass
            assert IPv4(data)[GRE].version == 1

        play.check("a listener of the kernel's gets PPTP", kernel_gets_it)


def test_gre_2(play):
    """Bits 1 (routing), 4 and 5: discarded. Bits 6 to 12: ignored. All of them, and Reserved1, are sent as zero.

    RFC 2784 section 2.3 is followed. The kernel (gre_parse_header) takes bits 4 and 5, and refuses bits 8 to 12, which it
    compares with its GRE_FLAGS: old RFC 1701 senders would be heard and future ones not, the reverse of what was asked.
    """
    bad = [{"routing_present": 1}, {"strict_route_source": 1}, {"recursion_control": 4}, {"recursion_control": 7}]
    good = [{"recursion_control": n} for n in (1, 2, 3)] + [{"flags": 1 << n} for n in range(5)] + [{"flags": 31}]
    for tunnel in GRES:
        play.rows(out(tunnel, gre=bits, drop="gre_flags", steered="gre_flags") for bits in bad)
        play.rows(out(tunnel, gre=bits) for bits in good)
        play.rows(into(tunnel, family, gre={"flags": 0, "recursion_control": 0}) for family in (4, 6))
    play.rows([out("gre-csum", gre={"offset": 0xFFFF}), into("gre-csum", gre={"offset": 0})])


def test_gre_3(play):
    """The checksum covers header and payload; wrong: discarded. It has to be there exactly where configured, as Linux has it
    (RFC 2784 leaves the second to the receiver)."""
    for tunnel in ("gre-csum", "gre-all", "ip6gre-all"):
        play.rows(row(tunnel, family, size=size) for row in BOTH_WAYS for family in (4, 6) for size in (60, 61, 1300, 1301))
        play.rows(out(tunnel, send=flip(at), drop="gre_checksum") for at in (-1, -16, -33, -40))
        play.rows([out(tunnel, gre={"chksum": 0x1234}, drop="gre_checksum")])
    play.rows([
        into("gre-icsum"), out("gre-icsum"), into("gre-ocsum"), out("gre-ocsum"),
        out("gre-csum", gre={"options": BARE}, drop="gre_checksum_presence"),
        out("gre-icsum", gre={"options": BARE}, drop="gre_checksum_presence"),
        out("gre", gre={"options": Options(csum=True)}, drop="gre_checksum_presence"),
        out("gre", gre={"options": Options(csum=True), "chksum": 1}, drop="gre_checksum_presence"),
        out("gre-ocsum", gre={"options": Options(csum=True)}, drop="gre_checksum_presence"),
        out("ip6gre", gre={"options": Options(csum=True)}, drop="gre_checksum_presence"),
    ])  # fmt: skip


def test_gre_4(play):
    """No key is not key 0, and a tunnel takes its own key alone. What has another is not ours: no drop is counted, and the
    kernel may have a tunnel for it."""
    for tunnel in ("gre", "gre-key", "gre-key0", "gre-one-way", "gre-all", "ip6gre", "ip6gre-all"):
        play.rows(row(tunnel, family) for row in BOTH_WAYS for family in (4, 6))
    play.rows([
        out("gre", gre={"options": Options(key=5)}, **NOT_OURS),
        out("gre-csum", gre={"options": Options(key=0, csum=True)}, **NOT_OURS),
        out("gre-key", gre={"options": BARE}, **NOT_OURS),
        out("gre-key", gre={"key": 0}, **NOT_OURS),
        out("gre-key", gre={"key": 43}, **NOT_OURS),
        out("gre-key", gre={"key": 42 << 24}, **NOT_OURS),
        out("gre-one-way", gre={"key": 2}, **NOT_OURS),
        out("ip6gre", gre={"options": Options(key=0)}, **NOT_OURS),
        out("ip6gre-all", gre={"key": 43}, **NOT_OURS),
    ])  # fmt: skip
    # Its neighbour of the same addresses has no key, and takes it.
    play.rows([out("gre-key0", gre={"options": BARE}, counted="gre"), out("gre", gre={"options": Options(key=0)}, counted="gre-key0")])


def test_gre_5(play, router):
    """The first number sent is 0, and none is left out, whichever way a packet enters. Received numbers: repeats and late ones
    are discarded by their signed distance, gaps pass, 0xffffffff is followed by 0; one has to be there where configured.

    After 0xffffffff the kernel expects 0, which to it means "any": so do we (the golden capture gre-seq-window).
    """
    play.rows(into("gre-seq", family, {"options": b"\1\1\1\0"} if family == 4 else {}, slow=family == 4) for family in (4, 6, 4, 6, 6))
    mine = router.tunnels["gre-seq"].far

    def none_is_left_out() -> None:
        sent = [sequence_of(frame[GRE]) for frame in router.recorded("f0") if IP in frame and frame[IP].dst == mine]
        assert len(sent) >= 5 and sent == list(range(len(sent))), sent

    play.check("numbers from 0, without a gap", none_is_left_out)
    window = [
        (100, True), (101, True), (101, False), (99, False), (110, True), (105, False), (0x80000070, False),
        (0x7FFF0000, True), (0xFFFE0000, True), (0xFFFFFFFE, True), (0xFFFFFFFF, True), (0, True), (0xFFFFFFFF, False), (1, True),
    ]  # fmt: skip
    play.rows(out("gre-seq", gre={"number": n}, drop=None if taken else "sequence_old") for n, taken in window)
    play.rows([out("gre-seq", gre={"options": BARE}, drop="sequence_missing"), out("gre-seq", gre={"number": 2})])
    # A number where none is configured is accepted, and not looked at.
    play.rows(out("gre", gre={"options": Options(seq=True), "number": n}) for n in (7, 7, 3))


def test_gre_6(play):
    """An unknown payload is discarded and counted."""
    protocols = [0, 0x1234, 0x6558, 0x88BE, 0x8847, 0x0806]
    play.rows(out(tunnel, gre={"proto": n}, drop="unknown_protocol") for tunnel in GRES for n in protocols)


def test_gre_7(play, router):
    """TTL or hop limit goes down by one in the router, and not in the tunnel; where it would reach zero the sender is told."""
    for tunnel, family in kinds() + [("gre-ttl255", 4), ("gre-ttl1", 4), ("gre-ttl1", 6), ("ip6gre-fixed", 6)]:
        play.rows(row(tunnel, family, {TTL[family]: n}) for row in BOTH_WAYS for n in (2, 64, 255))
    errors = {4: {"type": 11, "code": 0, "src": "10.1.0.1"}, 6: {"type": 3, "code": 0, "src": "fd01::1"}}
    for tunnel, family in kinds():
        row = into(tunnel, family, {TTL[family]: 1})
        play.check(f"told: {row}", functools.partial(told, router, row, errors[family]))
        for row in (out("gre", 4, {"ttl": 1}), out("ip6gre", 4, {"ttl": 1})):
            play.check(f"told: {row}", functools.partial(told, router, row, {"type": 11}))


def nested(tunnel, depth: int, frame):
    """The frame's packet behind `depth` tunnel headers, all between strangers; the outermost goes into `tunnel`."""
    inner = frame.payload
    for n in range(depth - 1):
        inner = IP(src=f"192.0.2.{n + 1}", dst=f"198.51.100.{n + 1}") / GRE(proto=0x0800) / IP(bytes(inner))
    outermost = IP(src="10.1.0.2", dst=tunnel.behind(4, 9)) / GRE(proto=0x0800) / inner
    return Ether(src=frame.src, dst=frame.dst) / outermost


def test_gre_8(play, router):
    """No recursion: what leads back into the tunnel that it came from, the tunnel's own outer packets, headers without end, and
    an outer destination that is routed into its own tunnel."""
    for tunnel in ("gre", "ip6gre", "gre-key", "ipip", "ip6gre-none"):
        there = router.tunnels[tunnel].behind(4, 9)
        play.rows(out(tunnel, inner={"dst": there} | more, drop="recursion") for more in ({}, {"options": b"\1" * 4}))
    tunnel = router.tunnels["gre"]

    def own(frame):
        outer = IP(src=LOCAL[4], dst=tunnel.far) / GRE() / frame.payload
        return Ether(src=frame.src, dst=frame.dst) / IP(src="10.1.0.2", dst=tunnel.behind(4, 9)) / GRE() / outer

    play.rows([into("gre", send=own, drop="recursion")])
    play.rows(into("gre", send=functools.partial(nested, tunnel, depth), drop="recursion") for depth in (9, 12))

    def a_few_are_fine() -> None:
        packet = Inner().there(tunnel)
        frame = nested(tunnel, 5, Ether(src=Bench.HOST_MAC, dst=Bench.INNER_MAC) / packet)
        router.inside.send(frame)
        seen = router.outside.expect(carries(payload_of(packet)))
        assert ip_bytes(seen[GRE].payload) == forwarded(frame.payload)

    play.check("five headers inside each other", a_few_are_fine)

    def a_hello_comes_out() -> None:
        router.router.ip("route", "add", "224.0.0.0/4", "dev", "gre")
        before = router.counters()
        inner = Inner(4, {"dst": "224.0.0.5", "ttl": 1}).back(tunnel)
        router.send_outside(tunnel.around(inner, {}, {}, 0))
        play.risen(before, {"gre slow rx": 1})
        router.router.ip("route", "del", "224.0.0.0/4", "dev", "gre")

    play.check("a packet for the link, although multicast is routed into the tunnel", a_hello_comes_out)

    def into_itself() -> None:
        mine = router.tunnels["gre-ttl255"]
        state = lambda: router.greyhound.tunnel(mine.name)["state"]  # noqa: E731
        router.router.ip("route", "add", f"{mine.far}/32", "dev", mine.name)
        wait_until(lambda: state() == "no-route", "the tunnel has no way to its remote")
        router.send_inside(Inner().there(mine), Inner(4, {"options": b"\1" * 4}).there(mine))
        assert not [frame.summary() for frame in router.fence_plain() if delivers(frame)]
        router.router.ip("route", "del", f"{mine.far}/32", "dev", mine.name)
        wait_until(lambda: state() == "up", "it has one again")

    play.check("a remote that is routed into its own tunnel", into_itself)


def longer(packet, pad: bytes = b"padding in the tunnel"):
    """The outer packet with more bytes in it, behind the inner packet."""
    data = bytes(packet) + pad
    again = type(packet)(data)
    for name in ("len", "chksum", "plen"):
        if name in again.fields:
            again.delfieldval(name)
    again.remove_payload()
    head = 20 if isinstance(packet, IP) else 40
    return again / Raw(data[head:])


def shortened(length: int, packet):
    """The outer packet with `length` bytes behind its headers; its own length agrees."""
    whole = bytes(packet[GRE])
    packet = packet.copy()
    packet[GRE].underlayer.remove_payload()
    if isinstance(packet, IP):
        packet.proto = 47
    else:
        packet.lastlayer().nh = 47
    return packet / Raw(whole[:length])


def test_gre_9(play):
    """What pads a frame or a tunnel packet stays outside; lengths that lie are refused."""
    for tunnel, family in kinds():
        play.rows([
            into(tunnel, family, send=lambda frame: frame / Padding(b"padding of the link")),
            out(tunnel, family, send=lambda packet: packet / Padding(b"padding of the link")),
            out(tunnel, family, send=longer),
        ])  # fmt: skip
        lies = {4: [{"len": 2000}, {"len": 61}, {"len": 19}], 6: [{"plen": 2000}, {"plen": 21}]}[family]
        play.rows(out(tunnel, family, lie, drop="inner_total_length") for lie in lies)
    cuts = {0: "gre", 2: "gre", 4: "gre", 7: "gre", 8: "inner", 18: "inner", 27: "inner"}
    for tunnel in ("gre-key", "ip6gre-key"):
        play.rows(out(tunnel, send=functools.partial(shortened, at), drop=f"{what}_truncated") for at, what in cuts.items())
    play.rows([
        out("gre", 4, {"ihl": 4}, drop="inner_header_length"),
        out("gre", 4, gre={"proto": 0x86DD}, drop="inner_version"),
        out("gre", 6, gre={"proto": 0x0800}, drop="inner_version"),
        out("gre", 4, {"chksum": 0x1234}, drop="inner_checksum"),
    ])  # fmt: skip


def in_fragments(order, packet):
    """The packet in outer fragments, in this order."""
    if isinstance(packet, IP):
        return order(fragment(IP(bytes(packet)), 400))
    whole = IPv6(src=packet.src, dst=packet.dst) / IPv6ExtHdrFragment(id=packet.plen or 7) / Raw(bytes(packet)[40:])
    whole[IPv6ExtHdrFragment].nh = packet.nh if packet.nh is not None else IPv6(bytes(packet)).nh
    return order(fragment6(whole, 500))


def test_gre_10(play):
    """Outer options, extension headers and fragments are the kernel's to look at first; the packets arrive all the same."""
    hop_by_hop = IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])
    for tunnel, family in kinds() + [("gre-all", 4), ("ip6gre-all", 4)]:
        over6 = tunnel in ("ip6gre", "ip6gre-all", "ip6ip6", "ipip6")
        options = [{"extension": hop_by_hop}, {"extension": padded()}] if over6 else [{"options": b"\1\1\1\1"}, {"options": b"\1" * 40}]
        play.rows(out(tunnel, family, outer=outer, slow=True) for outer in options)
        for order in (list, lambda parts: parts[::-1]):
            play.rows([out(tunnel, family, size=1200, send=functools.partial(in_fragments, order), slow=True)])


NOT_OURS = {"ignored": True, "steered": "unknown_tunnel"}


def test_gre_11(play, router):
    """Only what is configured comes out, and out of the tunnel that ip_tunnel_lookup finds: both addresses; the local one alone,
    or a group; among equals the one that is bound to the device. Tunnels that are down do not count."""
    for tunnel, family in (("gre", 4), ("ipip", 4), ("sit", 6)):
        strangers = [{"src": "10.9.0.99"}, {"dst": "10.1.0.1"}, {"src": router.tunnels["gre-key"].far}]
        play.rows(out(tunnel, family, outer=ends, **NOT_OURS) for ends in strangers)
    for tunnel in ("gre-many", "gre-one", "ip6gre-many"):
        play.rows(row(tunnel, family) for row in BOTH_WAYS for family in (4, 6))
    play.rows([
        out("gre-many", outer={"src": "10.9.0.77"}),
        out("gre-many", outer={"src": router.tunnels["gre-one"].far}, counted="gre-one"),
        out("gre-one", outer={"src": "10.9.0.77"}, counted="gre-many"),
        out("gre-many", gre={"key": 6}, **NOT_OURS),
        out("gre-many", gre={"options": BARE}, **NOT_OURS),
        out("ip6gre-many", outer={"src": "fd09::7777"}),
        out("gre-unbound", counted="gre-bound"),
        out("gre-group"),
        out("gre-group", outer={"dst": LOCAL[4]}, ignored=True),
    ])  # fmt: skip
    state = lambda: router.greyhound.tunnel("gre-one")["state"]  # noqa: E731
    router.router.ip("link", "set", "gre-one", "down")
    wait_until(lambda: state() == "down", "gre-one is down")
    play.rows([out("gre-one", counted="gre-many"), out("gre-one", 6, counted="gre-many")])
    router.router.ip("link", "set", "gre-one", "up")
    wait_until(lambda: state() == "up", "gre-one is up")
    router.settle()
    play.rows([out("gre-one"), out("gre-one", 6)])


def test_v6_1(play):
    """Every kind carries its payloads both ways: 0x86DD in GRE, Next Header 47 over IPv6, 4 and 41 without GRE."""
    for tunnel, family in kinds():
        play.rows(row(tunnel, family, size=size) for row in BOTH_WAYS for size in (60, 61, 1280, 1448))
    # IPv6 to an ipip tunnel, and its like: nobody's packet.
    play.rows(out(tunnel, family, **NOT_OURS) for tunnel, family in (("ipip", 6), ("ipip6", 6), ("ip6ip6", 4)))


def limit(n: int):
    """The destination options header with the tunnel encapsulation limit, as RFC 2473 section 4.1.1 draws it."""
    from scapy.layers.inet6 import HBHOptUnknown

    return IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=4, optlen=1, optdata=bytes([n])), PadN(optdata=b"\0")])


def test_v6_3(play, router):
    """Encapsulation limit (default 4, another, or none) and flow label (the inner flow's hash, inherited, fixed)."""
    for tunnel in ("ip6gre", "ip6gre-none", "ip6gre-limit"):
        play.rows(into(tunnel, family) for family in (4, 6))
        play.rows(out(tunnel, 4, outer={"extension": limit(n)}) for n in (4, 0, 255))
        play.rows([out(tunnel, 4)])
    play.rows([
        into("ip6gre-inherit", 6, {"fl": 0xABCDE, "tc": 0xB8, "hlim": 33}, {"fl": 0xABCDE, "tc": 0xB8, "hlim": 32}),
        into("ip6ip6-inherit", 6, {"fl": 0xABCDE, "tc": 0xB8, "hlim": 33}, {"fl": 0xABCDE, "tc": 0xB8, "hlim": 32}),
        into("ip6gre-fixed", 6, {"fl": 0xABCDE, "tc": 0}, {"fl": 0x12345, "tc": 0xB8, "hlim": 9}),
        into("ip6gre-fixed", 4, {"tos": 0}, {"fl": 0x12345, "tc": 0xB8, "hlim": 9}),
        into("ipip6-none", 4, {}, {"tc": 0xB8, "hlim": 9}),
    ])  # fmt: skip

    def label(tunnel: str, family: int, sport: int) -> int:
        packet = Inner(family).there(router.tunnels[tunnel])
        packet[UDP].sport = sport
        router.send_inside(packet)
        return router.outside.expect(carries(payload_of(packet)))[IPv6].fl

    def labels(tunnel: str, family: int) -> None:
        assert len({label(tunnel, family, 7) for _ in range(4)}) == 1, "one flow, several labels"
        assert len({label(tunnel, family, 2000 + n) for n in range(16)}) >= 15, "many flows, few labels"

    for tunnel, family in (("ip6gre", 4), ("ip6gre", 6), ("ip6ip6", 6), ("ipip6", 4), ("ip6gre-inherit", 6)):
        play.check(f"{tunnel}, IPv{family}: a flow has one label", functools.partial(labels, tunnel, family))


def test_v6_4(play):
    """sit: the outer source has to be the peer; no packet comes out that claims to be from where none can be (RFC 4213
    section 3.6)."""
    play.rows(out("sit", 6, {"src": martian}, drop="inner_martian") for martian in ("ff02::1", "::1", "::ffff:10.0.0.1"))
    play.rows([out("sit", 6, outer={"src": "10.9.0.99"}, **NOT_OURS), out("sit", 6), out("sit", 4)])


def test_v6_5(play, router):
    """No checksum protects the outer IPv6 header: both of its addresses have to be the tunnel's."""
    for tunnel, family in (("ip6gre", 4), ("ip6gre", 6), ("ip6ip6", 6), ("ipip6", 4)):
        play.rows(
            out(tunnel, family, outer=outer, **NOT_OURS)
            for outer in ({"src": "fd09::9999"}, {"dst": "fd01::1"})
        )
        play.rows([out(tunnel, family)])


def test_ecn_1(play):
    """ECN goes out as it is inside, with `tos inherit` and with a fixed TOS, over every kind.

    RFC 6040 section 4.1 is followed: an inner CE goes out as CE. The kernel sends ECT(0) there (RFC 3168's full functionality,
    INET_ECN_encapsulate), and its ip6gre sends nothing at all: congestion marked further on would still be seen, but one that
    was marked before the tunnel is hidden from it.
    """
    for tunnel, family in kinds():
        field = "tc" if tunnel in ("ip6gre", "ip6ip6", "ipip6") else "tos"
        play.rows(into(tunnel, family, {TOS[family]: 0x48 | ecn}, {field: ecn}) for ecn in range(4))
    for tunnel, dscp in (("gre-inherit", 0x48), ("gre-b8", 0xB8), ("ipip-inherit", 0x48), ("sit-inherit", 0x48)):
        families = (4,) if tunnel == "ipip-inherit" else (4, 6)
        play.rows(into(tunnel, f, {TOS[f]: 0x48 | ecn}, {"tos": dscp | ecn}) for f in families for ecn in range(4))
    for tunnel, dscp in (("ip6gre-inherit", 0x48), ("ip6gre-fixed", 0xB8)):
        play.rows(into(tunnel, f, {TOS[f]: 0x48 | ecn}, {"tc": dscp | ecn}) for f in (4, 6) for ecn in range(4))


NOT_ECT, ECT1, ECT0, CE = range(4)
# RFC 6040 figure 4: (inner, outer) and what comes out; None is dropped.
ECN = {
    (NOT_ECT, NOT_ECT): NOT_ECT, (NOT_ECT, ECT0): NOT_ECT, (NOT_ECT, ECT1): NOT_ECT, (NOT_ECT, CE): None,
    (ECT0, NOT_ECT): ECT0, (ECT0, ECT0): ECT0, (ECT0, ECT1): ECT1, (ECT0, CE): CE,
    (ECT1, NOT_ECT): ECT1, (ECT1, ECT0): ECT1, (ECT1, ECT1): ECT1, (ECT1, CE): CE,
    (CE, NOT_ECT): CE, (CE, ECT0): CE, (CE, ECT1): CE, (CE, CE): CE,
}  # fmt: skip


def test_ecn_2(play):
    """All 16 rows of RFC 6040's table, every kind and pairing of families; the inner DSCP stays and the checksum is right."""
    for tunnel, family in kinds():
        outer = "tc" if tunnel in ("ip6gre", "ip6ip6", "ipip6") else "tos"
        for (inside, around), expected in ECN.items():
            more = {"drop": "ecn_congestion"} if expected is None else {"becomes": {TOS[family]: 0x48 | expected}}
            play.rows([out(tunnel, family, {TOS[family]: 0x48 | inside}, {outer: 0xB8 | around}, **more)])


def test_tos_1(play):
    """DSCP and TTL: inherited or fixed, both families, every kind."""
    for dscp in (0, 0x28, 0xB8):
        v4, v6 = {"tos": dscp, "ttl": 33}, {"tc": dscp, "hlim": 33}
        for inner, family in ((v4, 4), (v6, 6)):
            play.rows([
                into("gre", family, inner, {"tos": 0, "ttl": 32}),
                into("gre-inherit", family, inner, {"tos": dscp, "ttl": 32}),
                into("gre-b8", family, inner, {"tos": 0xB8, "ttl": 64}),
                into("gre-ttl255", family, inner, {"tos": 0, "ttl": 255}),
                into("gre-ttl1", family, inner, {"tos": 0, "ttl": 1}),
                into("sit", family, inner, {"tos": 0, "ttl": 32}),
                into("sit-inherit", family, inner, {"tos": dscp, "ttl": 64}),
                # Over IPv6 the default is a hop limit of 64, as the kernel's.
                into("ip6gre", family, inner, {"tc": 0, "hlim": 64}),
                into("ip6gre-inherit", family, inner, {"tc": dscp, "hlim": 32}),
                into("ip6gre-fixed", family, inner, {"tc": 0xB8, "hlim": 9}),
                # The outer fields change nothing inside.
                out("gre", family, inner, {"tos": 0x50, "ttl": 1}),
                out("ip6gre", family, inner, {"tc": 0x50, "hlim": 1}),
            ])  # fmt: skip
        play.rows([
            into("ipip", 4, v4, {"tos": 0, "ttl": 32}), into("ipip-inherit", 4, v4, {"tos": dscp, "ttl": 64}),
            into("ip6ip6", 6, v6, {"tc": 0, "hlim": 64}), into("ip6ip6-inherit", 6, v6, {"tc": dscp, "hlim": 32}),
            into("ipip6", 4, v4, {"tc": 0, "hlim": 64}), into("ipip6-none", 4, v4, {"tc": 0xB8, "hlim": 9}),
        ])  # fmt: skip


def test_udp_1(play, router):
    """GRE in UDP (RFC 8086): port 4754, a source port from the inner flow's hash, or one fixed port; a checksum over IPv4 where
    configured, over IPv6 always unless configured otherwise; a wrong one is refused, by the kernel on the slow path."""
    for tunnel in ("udp", "udp-all", "udp-fixed", "udp6", "udp6-all", "udp6-none"):
        play.rows(row(tunnel, family, size=size) for row in BOTH_WAYS for family in (4, 6) for size in (60, 61, 1300))
        play.rows(out(tunnel, udp={"sport": sport}) for sport in (1, 4754, 65535))
    wrong = {"drop": "udp_checksum"} if router.xdp == "auto" else {"ignored": True}
    play.rows(out(tunnel, udp={"chksum": 0x1234}, **wrong) for tunnel in ("udp", "udp-all", "udp6", "udp6-none"))
    play.rows([out("udp", udp={"chksum": 0}), out("udp6-none", udp={"chksum": 0}), out("udp6", udp={"chksum": 0}, **wrong)])
    # Its neighbours without UDP have other packets, and the other way round.
    play.rows([out("udp", gre={"options": Options(key=1)}, **NOT_OURS), out("udp", outer={"src": router.tunnels["gre"].far}, **NOT_OURS)])

    def port(tunnel: str, family: int, sport: int) -> int:
        packet = Inner(family).there(router.tunnels[tunnel])
        packet[UDP].sport = sport
        router.send_inside(packet)
        return router.outside.expect(carries(payload_of(packet)))[UDP].sport

    def ports(tunnel: str, family: int) -> None:
        assert len({port(tunnel, family, 7) for _ in range(4)}) == 1, "one flow, several ports"
        assert len({port(tunnel, family, 2000 + n) for n in range(16)}) >= 14, "many flows, few ports"

    for tunnel in ("udp", "udp-all", "udp6"):
        for family in (4, 6):
            play.check(f"{tunnel}, IPv{family}: a flow has one port", functools.partial(ports, tunnel, family))


def test_mcast_1(play, router):
    """A multicast remote: the group is joined, what goes in is sent to it, and what any member sends comes out."""
    for tunnel in ("gre-group", "ipip-group", "sit-group", "ip6gre-group"):
        group, families = router.tunnels[tunnel].remote, router.tunnels[tunnel].families
        members = ("fd09::51", "fd09::52") if ":" in group else ("10.9.0.51", "10.9.0.52")
        play.rows(into(tunnel, family, outer={"dst": group}) for family in families)
        play.rows(out(tunnel, family, outer={"src": member}) for family in families for member in members)
        # What goes to one member comes to all: no one forwards it for another.
        there = router.tunnels[tunnel].behind(4, 9)
        play.rows([out(tunnel, 4, {"dst": there}, drop="other_member")])

        def joined() -> None:
            assert group in router.router.ip("maddress", "show", "dev", "outer0")

        def said_to_all() -> None:
            before = router.counters()
            with router.router.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, tunnel.encode())
                sock.sendto(payload := token(), ("224.0.0.5", 2000))
            seen = router.outside.expect(carries(payload), "a hello")
            assert (seen.dst, seen[IPv6 if ":" in group else IP].dst) == router.tunnels[tunnel].leaves_to()
            play.risen(before, {f"{tunnel} slow tx": 1})

        def heard_from_all() -> None:
            before = router.counters()
            inner = Inner(4, {"dst": "224.0.0.5", "ttl": 1}).back(router.tunnels[tunnel])
            router.send_far(router.tunnels[tunnel], router.tunnels[tunnel].around(inner, {}, {}, 0))
            play.risen(before, {f"{tunnel} slow rx": 1})

        play.check(f"{tunnel} joins {group}", joined)
        play.check(f"{tunnel}: a hello of the router's own", said_to_all)
        play.check(f"{tunnel}: a member's hello", heard_from_all)


# What 1500 bytes of underlay leave to the inner packet.
MTUS = {
    "gre": 1476, "gre-key": 1472, "gre-csum": 1472, "gre-seq": 1472, "gre-all": 1464, "ipip": 1480, "sit": 1480,
    "ip6gre": 1448, "ip6gre-none": 1456, "ip6gre-all": 1444, "ip6ip6": 1452, "ip6ip6-none": 1460, "ipip6": 1452, "ipip6-none": 1460,
    # Only what is sent costs.
    "udp": 1468, "udp-all": 1456, "udp6": 1440, "udp6-all": 1436,
    "gre-icsum": 1476, "gre-ocsum": 1472, "gre-one-way": 1472,
}  # fmt: skip


def test_mtu_1(play, router):
    """The tunnel's MTU is the underlay's less the overhead, as Linux's devices have it, and packets of that size pass whole."""

    def device(tunnel: str, mtu: int) -> None:
        assert router.router.link(tunnel)["mtu"] == mtu

    for tunnel, mtu in MTUS.items():
        play.check(f"{tunnel}: {mtu}", functools.partial(device, tunnel, mtu))
        for family in router.tunnels[tunnel].families:
            play.rows(into(tunnel, family, {"flags": "DF"} if family == 4 else {}, size=size) for size in (mtu - 1, mtu))


def test_mtu_2(play, router):
    """Too large, with DF or IPv6: the sender is told the tunnel's MTU. IPv4 without DF: fragments, each in a packet of its own."""
    for tunnel, family in kinds():
        mtu = MTUS[tunnel]
        error = {"type": 3, "code": 4, "nexthopmtu": mtu, "src": "10.1.0.1"} if family == 4 else {"type": 2, "mtu": mtu, "src": "fd01::1"}
        for size in (mtu + 1, 1500):
            row = into(tunnel, family, {"flags": "DF"} if family == 4 else {}, size=size)
            play.check(f"told: {row}", functools.partial(told, router, row, error))
            if family == 4:
                play.check(f"cut: {tunnel} {size}", functools.partial(cut, router, tunnel, size))


ON_THE_WAY = {4: "10.9.0.254", 6: "fd09::fe"}
"""A router of the underlay."""


def crossed(router: Router, name: str) -> bytes:
    """An outer packet of the tunnel's, of 400 bytes inside."""
    tunnel = router.tunnels[name]
    packet = Inner(tunnel.families[0], {}, 400).there(tunnel)
    router.send_inside(packet)
    return router.outside.expect(carries(payload_of(packet)), "the outer packet").original[14:]


def complaint(quoted: bytes, kind: int = 3, code: int = 4, mtu: int = 1400):
    """What a router on the way says of the packet; in ICMPv6's words where it is one of IPv6's."""
    if quoted[0] >> 4 == 4:
        said = {"nexthopmtu": mtu} if (kind, code) == (3, 4) else {}
        return IP(src=ON_THE_WAY[4], dst=LOCAL[4]) / ICMP(type=kind, code=code, **said) / Raw(quoted)
    names = {3: ICMPv6DestUnreach(code=code), 11: ICMPv6TimeExceeded(code=code), 12: ICMPv6ParamProblem(code=code)}
    error = ICMPv6PacketTooBig(mtu=mtu) if (kind, code) == (3, 4) else names[kind]
    return IPv6(src=ON_THE_WAY[6], dst=LOCAL[6]) / error / Raw(quoted[:1232])


def learn(play: Play, name: str, mtu: int, quoted: bytes | None = None, known: int | None = None) -> None:
    """The tunnel learns that its path carries no more than `mtu`, or `known`."""
    router, quoted = play.bed, quoted or crossed(play.bed, name)
    router.settle()
    before = router.counters()
    router.send_outside(complaint(quoted, mtu=mtu))
    play.risen(before, {f"{name} error too_big": 1})
    path = lambda: [way["mtu"] for way in router.greyhound.tunnel(name)["path_mtu"]]  # noqa: E731
    wait_until(lambda: path() == [known or mtu], f"{name}: the path is known to carry {known or mtu}")


def forgeries(quoted: bytes, key_at: int | None) -> dict[str, bytes]:
    """The beginning of packets that the tunnel cannot have sent, each nearly the one that it did send."""
    v6 = quoted[0] >> 4 == 6
    places = {"source": 23 if v6 else 15, "destination": 39 if v6 else 19, "protocol": 6 if v6 else 9}
    places |= {"key": key_at} if key_at else {}
    forged = {what: bytes([*quoted[:at], quoted[at] ^ 1, *quoted[at + 1:]]) for what, at in places.items()}
    return forged | {"too little": quoted[: 40 if v6 else 24], "nothing": quoted[: 20 if v6 else 10]}


def refused(play: Play, row, error: dict) -> None:
    """The sender is told by us, and the packet counted."""
    before = play.bed.counters()
    told(play.bed, row, error)
    play.risen(before, {"icmp answered": 1, "drop outer_too_big": 1})


def test_mtu_3(play, router):
    """The outer DF follows the kernel's rules. An error about an outer packet lowers the path's MTU if a tunnel can have sent that
    packet; it is not believed below the minimum, and expires. Then senders are told the new limit, or packets cut.

    Where the kernel drops an IPv4 packet without DF unheard because its outer packet carries DF (golden/README.md, "ICMP about
    an outer packet"), ours cuts the inner packet, as for the device's MTU: mtu-2 asks for it.
    """
    for tunnel, rule in (("gre", (1, 1)), ("ipip", (1, 1)), ("gre-nopmtu", (0, 1)), ("gre-ignore-df", (0, 0))):
        flags = ["DF" if df else "" for df in rule]
        play.rows(into(tunnel, 4, {"flags": inner}, {"flags": outer}) for inner, outer in zip(("", "DF"), flags))
        if tunnel != "ipip":
            play.rows([into(tunnel, 6, {}, {"flags": flags[0]})])
    for kind in NARROW:
        narrowed(play, kind)
    mtu, size = 1400 - 24, MTUS["gre"]
    play.check("narrow-nopmtu learns 1400", functools.partial(learn, play, "narrow-nopmtu", 1400))
    row = into("narrow-nopmtu", 4, {"flags": "DF"}, size=size)
    play.check(f"told: {row}", functools.partial(refused, play, row, {"nexthopmtu": mtu}))
    for family in (4, 6):
        play.check("narrow-nopmtu: cut outside", functools.partial(cut_outside, router, "narrow-nopmtu", family, size))
    # 0 and less than 552 count as 552 (net.ipv4.route.min_pmtu); over IPv6 less than 1280 counts as nothing (RFC 8201 section 4).
    for name, mtu, known in (("least-gre", 900, 900), ("least-gre", 0, 552), ("least-ip6gre", 1300, 1300), ("least-ip6gre", 600, 1300)):
        play.check(f"{name}: {mtu} is taken as {known}", functools.partial(learn, play, name, mtu, None, known))

    def expires() -> None:
        router.router.sysctl("net.ipv4.route.mtu_expires", 1)
        learn(play, "expires", 1400)
        wait_until(lambda: router.greyhound.tunnel("expires")["path_mtu"] == [], "the path MTU is forgotten")
        router.router.sysctl("net.ipv4.route.mtu_expires", 600)
        play.rows([into("expires", 4, {"flags": "DF"}, size=MTUS["gre"])])

    play.check("it expires", expires)


def narrowed(play: Play, kind: str) -> None:
    """A tunnel of the kind before and after its path is found to carry 1400 bytes."""
    router, name = play.bed, f"narrow-{kind}"
    tunnel, mtu = router.tunnels[name], MTUS[kind]
    room = 1400 - (1500 - mtu)
    key_at = 20 + 8 + 3 if kind == "gre-all" else None

    def unbelieved() -> None:
        quoted = crossed(router, name)
        router.settle()
        for what, begins in forgeries(quoted, key_at).items():
            before = router.counters()
            router.send_outside(complaint(begins))
            play.risen(before, {"icmp ignored": 1})
            assert router.greyhound.tunnel(name)["path_mtu"] == [], f"believed: another {what}"

    play.check(f"{name}: errors about others' packets", unbelieved)
    play.check(f"{name} learns 1400", functools.partial(learn, play, name, 1400))
    for family in tunnel.families:
        df = {"flags": "DF"} if family == 4 else {}
        play.rows([into(name, family, df, size=room)])
        error = {"type": 3, "code": 4, "nexthopmtu": room, "src": "10.1.0.1"} if family == 4 else {"type": 2, "mtu": room, "src": "fd01::1"}
        for size in (room + 1, mtu):
            row = into(name, family, df, size=size)
            play.check(f"told: {row}", functools.partial(refused, play, row, error))
            if family == 4:
                play.check(f"cut: {name} {size}", functools.partial(cut, router, name, size))


def cut_outside(router: Router, name: str, family: int, size: int) -> None:
    """An inner packet crosses whole, in two outer fragments."""
    tunnel = router.tunnels[name]
    packet = Inner(family, {}, size).there(tunnel)
    router.send_inside(packet)
    over6 = tunnel.outer_family == 6

    def is_part(frame) -> bool:
        if over6:
            return IPv6 in frame and frame[IPv6].dst == tunnel.far and frame.haslayer(IPv6ExtHdrFragment)
        return IP in frame and frame[IP].dst == tunnel.far and (frame[IP].flags.MF or frame[IP].frag)

    frames = router.outside.collect(is_part, 2, "outer fragments")
    if over6:
        parts = sorted((frame[IPv6ExtHdrFragment] for frame in frames), key=lambda part: part.offset)
        assert parts[0].id == parts[1].id and [part.m for part in parts] == [1, 0]
        whole = b"".join(bytes(part.payload) for part in parts)
    else:
        parts = sorted((frame[IP] for frame in frames), key=lambda part: part.frag)
        assert parts[0].id == parts[1].id != 0 and not parts[0].flags.DF and [bool(part.flags.MF) for part in parts] == [True, False]
        whole = b"".join(ip_bytes(part)[20:] for part in parts)
    assert whole.endswith(forwarded(packet)) and len(whole) < len(packet) + 40


def test_v6_2(play, router):
    """1280 bytes of IPv6 get through whatever the path, in outer fragments where it must be, and no sender is told less.

    RFC 8200 section 5 is followed; where the outer packet carries DF the kernel drops such packets unheard.
    """
    for kind in ("gre", "gre-all", "sit", "ip6gre", "ip6ip6", "udp"):
        name = f"thin-{kind}"
        play.check(f"{name} learns 1290", functools.partial(learn, play, name, 1290))
        for size in (1279, 1280):
            play.check(f"{name}: {size} bytes cross", functools.partial(cut_outside, router, name, 6, size))
        row = into(name, 6, size=1281)
        play.check(f"told: {row}", functools.partial(refused, play, row, {"type": 2, "mtu": 1280, "src": "fd01::1"}))


def test_mtu_4(play, router):
    """Other errors about outer packets are counted, each for its tunnel; unreachable is shown, and takes nothing down."""
    for name in ("heard-gre", "heard-ip6gre"):

        def heard(kind: int, code: int, counter: str) -> None:
            quoted = crossed(router, name)
            router.settle()
            before = router.counters()
            router.send_outside(complaint(quoted, kind, code))
            play.risen(before, {f"{name} error {counter}": 1})
            assert router.greyhound.tunnel(name)["state"] == "up"

        for kind, code, counter in ((11, 0, "time_exceeded"), (12, 0, "parameter_problem"), (3, 1, "unreachable")):
            play.check(f"{name}: {counter}", functools.partial(heard, kind, code, counter))

        def shown() -> None:
            wait_until(lambda: router.greyhound.tunnel(name)["unreachable"], "unreachable is noted")
            noted = router.greyhound.tunnel(name)["unreachable"]
            assert (noted["from"], noted["remote"]) == (ON_THE_WAY[router.tunnels[name].outer_family], router.tunnels[name].far)

        play.check(f"{name}: it is shown", shown)
        play.rows([into(name), into(name, 6), out(name)])
        gone = lambda: wait_until(lambda: router.greyhound.tunnel(name)["unreachable"] is None, "it is forgotten")  # noqa: E731
        play.check(f"{name}: and forgotten when something comes out", gone)


def test_mtu_5(play, router):
    """No ICMP error answers an error, a later fragment, or a source that cannot be; nor a flood with a flood."""
    tunnel = router.tunnels["quiet"]
    play.check("quiet learns 1000", functools.partial(learn, play, "quiet", 1000))
    v4 = {"src": "10.1.0.2", "dst": tunnel.behind(4), "flags": "DF"}
    v6 = {"src": "fd01::2", "dst": tunnel.behind(6)}
    unanswered = {
        "an error": IP(**v4) / ICMP(type=3, code=1) / Raw(token(1300)),
        "a redirect": IP(**v4) / ICMP(type=5, code=1) / Raw(token(1300)),
        "a later fragment": IP(**v4, frag=50, proto=17) / Raw(token(1300)),
        "an error over IPv6": IPv6(**v6, nh=58) / Raw(b"\x01\0\0\0" + token(1300)),
        "a later fragment over IPv6": IPv6(**v6, nh=44) / Raw(b"\x11\0\0\x51\0\0\0\x07" + token(1300)),
    }

    def no_answer(packet, rise: dict) -> None:
        before = router.counters()
        router.send_inside(packet)
        came = router.fence_plain()
        play.risen(before, rise)
        answers = [frame.summary() for frame in came + router.inside.drain() if frame.haslayer(ICMP) or frame.haslayer(ICMPv6PacketTooBig)]
        assert not answers, answers

    for what, packet in unanswered.items():
        play.check(what, functools.partial(no_answer, packet, {"icmp not_answered": 1, "drop outer_too_big": 1}))
    for source in ("127.0.0.1", "224.0.0.1", "0.0.0.0", "255.255.255.255"):
        packet = IP(**(v4 | {"src": source})) / UDP(sport=1000, dport=2000) / Raw(token(1300))
        play.check(f"from {source}", functools.partial(no_answer, packet, {}))
    row = into("quiet", 4, {"flags": "DF"}, size=977)
    play.check("an honest host", functools.partial(refused, play, row, {"nexthopmtu": 976}))

    def flood() -> None:
        router.router.ip("neigh", "replace", "10.1.0.77", "lladdr", Bench.HOST_MAC, "dev", "inner0", "nud", "permanent")
        router.send_inside(*[IP(**(v4 | {"src": "10.1.0.77"})) / UDP(sport=1000, dport=2000) / Raw(token(1300))] * 600)
        rise = lambda name: router.counters().get(name, 0) - start.get(name, 0)  # noqa: E731
        wait_until(lambda: rise("icmp answered") + rise("icmp rate_limited") == 600, "the flood is through")
        assert rise("icmp rate_limited") > 0

    start = router.counters()
    play.check("a flood", flood)
    play.check("an honest host beside it", functools.partial(refused, play, row, {"nexthopmtu": 976}))
    router.inside.drain()


def cut(router: Router, name: str, size: int) -> None:
    """An IPv4 packet without DF crosses in two fragments, which together are the packet."""
    tunnel = router.tunnels[name]
    packet = Inner(4, {"id": 0x4000 + size}, size).there(tunnel)
    router.send_inside(packet)
    mine = lambda frame: frame.haslayer(IP) and innermost(frame).id == packet.id and innermost(frame).src == packet.src  # noqa: E731
    frames = router.outside.collect(mine, 2, "fragments")
    parts = sorted((innermost(frame) for frame in frames), key=lambda part: part.frag)
    assert [bool(part.flags.MF) for part in parts] == [True, False]
    assert b"".join(ip_bytes(part)[20:] for part in parts) == bytes(packet)[20:]
    assert all(len(frame.original) <= 1514 for frame in frames)


def innermost(frame):
    """The innermost IPv4 header of a frame."""
    return frame.getlayer(IP, len([layer for layer in frame.layers() if layer is IP]))



def dissect(tshark: str, file: pathlib.Path) -> list[str]:
    """The packets that tshark has something to say against, a line each."""
    # RFC 6936 allows a tunnel over IPv6 to leave it out, and one of them was told to.
    settings = [f"{name}.check_checksum:TRUE" for name in ("ip", "udp", "tcp")] + ["udp.ignore_ipv6_zero_checksum:TRUE"]
    bad = [f"{name}.checksum.status == 0" for name in ("ip", "udp", "tcp", "icmp", "icmpv6", "gre")]
    wrong = " || ".join(["_ws.malformed", "_ws.expert.severity >= 0x600000", *bad])
    command = [tshark, "-r", str(file), *(word for setting in settings for word in ("-o", setting)), "-Y", wrong]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()


def everything(router: Router) -> int:
    """Sends something of everything through every tunnel, both ways; returns how many packets that are at each end."""
    count = 0
    for name, tunnel in router.tunnels.items():
        # Other tests may have made the path narrow.
        sizes = (60, 61) if router.greyhound.tunnel(name)["path_mtu"] else (60, 61, 1300)
        for family in tunnel.families:
            for size in sizes:
                for row in (into(name, family, size=size), out(name, family, size=size)):
                    row.run(router, tunnel)
                count += 1
            # The host's own, with checksums that it leaves to its device.
            domain = socket.AF_INET if family == 4 else socket.AF_INET6
            with router.host.socket(domain, socket.SOCK_DGRAM) as sock:
                sock.sendto(payload := token(), (tunnel.behind(family), 2000))
            router.outside.expect(carries(payload))
            with router.host.socket(domain, socket.SOCK_STREAM) as sock:
                sock.setblocking(False)
                sock.connect_ex((tunnel.behind(family), 4242))
                router.outside.expect(lambda frame: frame.haslayer(TCP) and frame[TCP].dport == 4242)
    return count



class Wire:
    """A router whose inner device is the other end of an Ethernet tunnel, over either family."""

    HEADERS = {"gretap": 20, "ip6gretap": 48}

    def __init__(self, directory: pathlib.Path, xdp: str, mode: str, **options):
        six = mode == "ip6gretap"
        ends = {"local": "fd09::1", "remote": "fd09::2"} if six else {}
        tunnel = {"mode": mode, "bridge": "inner0", "address": [], "routes": []} | ends | options
        self.bed = bed = Single(directory, tunnel, start=False, xdp=xdp)
        self.family, self.headers = (IPv6 if six else IP), self.HEADERS[mode]
        for address in ("10.1.0.1/24", "fd01::1/64"):
            bed.router.ip("address", "del", address, "dev", "inner0")
        bed.router.ip("address", "add", "fd09::1/64", "dev", "outer0", "nodad")
        bed.far.ip("address", "add", "fd09::2/64", "dev", "f0", "nodad")
        bed.greyhound.start()

    def goes_in(self, frame: bytes) -> GRE:
        """What the frame has around it on the underlay; inside it is byte for byte what was sent."""
        self.bed.inside.send(frame)
        outer = self.bed.outside.expect(lambda f: f.original.endswith(frame) and f.haslayer(GRE), "the frame in the tunnel")
        header = outer[self.family].original[self.headers:-len(frame)]
        return GRE(header)

    def comes_out(self, frame: bytes, **fields) -> None:
        """A packet of the far end with the frame in it: the frame leaves by the inner device as it is."""
        header = GRE(proto=0x6558, **fields)
        ip = IPv6(src="fd09::2", dst="fd09::1", nh=47) if self.family is IPv6 else IP(src=Bench.REMOTE, dst=Bench.LOCAL, proto=47)
        self.bed.outside.send(Ether(src=Bench.FAR_MAC, dst=Bench.OUTER_MAC) / ip / header / Raw(frame))
        self.bed.inside.expect(lambda f: f.original == frame, "the frame out of the tunnel")


@pytest.fixture
def wire(tmp_path, router):
    """Lays a wire, in the mode of the suite's router."""
    wires: list[Wire] = []

    def build(mode: str, **options) -> Wire:
        wires.append(Wire(tmp_path, router.xdp, mode, **options))
        return wires[-1]

    yield build
    for laid in wires:
        laid.bed.close()


def frames() -> dict[str, bytes]:
    """Frames that a wire has to carry, each with a payload of its own."""
    link = {"src": Bench.HOST_MAC, "dst": "02:00:00:00:77:77"}
    data = IP(src="10.7.0.1", dst="10.7.0.2") / UDP(sport=1, dport=2)
    return {name: bytes(frame / Raw(token(64))) for name, frame in {
        "IPv4": Ether(**link) / data,
        "IPv6": Ether(**link) / IPv6(src="fd07::1", dst="fd07::2") / UDP(sport=1, dport=2),
        "802.1Q": Ether(**link) / Dot1Q(vlan=7, prio=3) / data,
        "802.1ad": Ether(**link, type=0x88A8) / Dot1Q(vlan=9) / Dot1Q(vlan=7) / data,
        "broadcast": Ether(src=Bench.HOST_MAC, dst="ff:ff:ff:ff:ff:ff", type=0x0806),
        "LLDP": Ether(src=Bench.HOST_MAC, dst="01:80:c2:00:00:0e", type=0x88CC),
        "spanning tree": Ether(src=Bench.HOST_MAC, dst="01:80:c2:00:00:00", type=0x0026),
        "its own address": Ether(src=Bench.HOST_MAC, dst=Bench.INNER_MAC) / data,
    }.items()}


@pytest.mark.parametrize("mode", Wire.HEADERS)
def test_tap_1(wire, play, mode):
    """Protocol 0x6558 carries whole Ethernet frames, VLAN tags included, over both families."""
    laid = wire(mode)
    for name, frame in frames().items():
        def both_ways(frame=frame) -> None:
            header = laid.goes_in(frame)
            assert (header.proto, header.key_present, header.chksum_present, header.seqnum_present) == (0x6558, 0, 0, 0)
            laid.comes_out(frame[:6] + bytes.fromhex(Bench.FAR_MAC.replace(":", "")) + frame[12:])

        play.check(f"{mode}: {name}", both_ways)


def test_nvgre_1(wire, play):
    """RFC 7637: the key is the virtual subnet, and in its last byte the flow, which a receiver does not look at."""
    laid, vsid = wire("gretap", nvgre=True, key=0x5123), 0x5123
    untagged = {name: frame for name, frame in frames().items() if "802.1" not in name}
    for name, frame in untagged.items():
        def both_ways(frame=frame) -> None:
            header = laid.goes_in(frame)
            assert (header.proto, header.key_present, header.key >> 8) == (0x6558, 1, vsid)
            assert (header.chksum_present, header.seqnum_present) == (0, 0)
            for flow in (0, 1, 0xFF):
                answer = frame[:6] + bytes.fromhex(Bench.FAR_MAC.replace(":", "")) + frame[12:-1] + bytes([flow])
                laid.comes_out(answer, key_present=1, key=vsid << 8 | flow)

        play.check(f"nvgre: {name}", both_ways)

    def another_subnet() -> None:
        frame = frames()["IPv4"]
        header = GRE(proto=0x6558, key_present=1, key=(vsid + 1) << 8)
        packet = IP(src=Bench.REMOTE, dst=Bench.LOCAL, proto=47) / header / Raw(frame)
        laid.bed.outside.send(Ether(src=Bench.FAR_MAC, dst=Bench.OUTER_MAC) / packet)
        laid.comes_out(frames()["IPv6"], key_present=1, key=vsid << 8)
        assert not [f for f in laid.bed.inside.drain() if f.original == frame]

    play.check("nvgre: another subnet stays out", another_subnet)


def test_the_third_judge(router, tmp_path):
    """tshark dissects everything that the router has sent in this suite, to both sides: no malformed packet, no wrong checksum of
    IP, GRE, UDP, TCP or ICMP, nothing that an expert warns of."""
    tshark = need("tshark")
    count = everything(router)
    for device in ("f0", "h0"):
        frames = [frame for frame in router.recorded(device) if frame.src in (Bench.OUTER_MAC, Bench.INNER_MAC)]
        assert len(frames) >= count
        wrpcap(str(tmp_path / f"{device}.pcap"), frames)
        faults = dissect(tshark, tmp_path / f"{device}.pcap")
        assert not faults, "\n".join(faults[:20])
