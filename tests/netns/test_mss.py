"""`clamp_mss`: what TCP connections that pass through the tunnel announce, on both paths, both ways, both families."""

from __future__ import annotations

import contextlib
import itertools
import socket

import pytest

from beds import back, is_gre
from lan import JoinedLan
from wire import GRE, IP, TCP, Dot1Q, Ether, IPv6, checksums_ok, ip_bytes

_port = itertools.count(20000)


def syn(v6: bool, announce: list | None = None, flags: str = "S", **fields):
    """A TCP segment from the host with a port of its own."""
    ip = IPv6(src="fd01::2", dst="fd02::2", **fields) if v6 else IP(src="10.1.0.2", dst="10.2.0.2", **fields)
    announce = [("MSS", 1460), ("SAckOK", b"")] if announce is None else announce
    return ip / TCP(sport=next(_port), dport=80, flags=flags, options=announce)


def same_connection(packet):
    """A predicate: the frame carries a segment between the packet's ports."""
    ports = packet[TCP].sport, packet[TCP].dport
    return lambda frame: frame.haslayer(TCP) and (frame[TCP].sport, frame[TCP].dport) == ports


def through(bed, packet, outbound: bool):
    """Sends the packet into the tunnel or out of it, and returns the TCP header that arrives, checksums found right."""
    if outbound:
        bed.send_inside(packet)
        frame = bed.outside.expect(lambda f: is_gre(f) and same_connection(packet)(f), "the segment")[GRE].payload
    else:
        bed.send_outside(bed.around(packet))
        frame = bed.inside.expect(same_connection(packet), "the segment")[type(packet)]
    arrived = type(packet)(ip_bytes(frame))
    assert checksums_ok(arrived)
    return arrived[TCP]


def announced(segment: TCP) -> int | None:
    return dict(segment.options).get("MSS")


@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("outbound", [True, False], ids=["in", "out"])
def test_syn_and_answer_are_lowered_and_nothing_else(single, xdp, outbound, v6):
    """SYN and SYN-ACK announce what the tunnel carries; smaller ones, others' options and other segments stay."""
    bed = single(tunnel={"clamp_mss": True}, xdp=xdp)
    bed.warm()
    turned = (lambda p: p) if outbound else back
    room = 1476 - (60 if v6 else 40)
    for flags in ("S", "SA"):
        assert announced(through(bed, turned(syn(v6, flags=flags)), outbound)) == room
    for announce, arrives in (
        ([("NOP", None), ("MSS", 9000), ("WScale", 7)], room),  # at an odd offset
        ([("MSS", room)], room),
        ([("MSS", 536)], 536),
        ([("SAckOK", b"")], None),
    ):
        packet = turned(syn(v6, announce))
        assert announced(through(bed, packet, outbound)) == arrives
    assert announced(through(bed, turned(syn(v6, flags="A")), outbound)) == 1460
    if not v6:
        # IP options: by the kernel, whatever the steering.
        assert announced(through(bed, turned(syn(v6, options=b"\1\1\1\1")), outbound)) == room
    assert bed.greyhound.tunnel()["mss_clamped"] == (3 if v6 else 4)


def test_left_alone_unless_asked_for(single, xdp):
    bed = single(xdp=xdp)
    bed.warm()
    for v6, outbound in itertools.product((False, True), repeat=2):
        packet = syn(v6) if outbound else back(syn(v6))
        assert announced(through(bed, packet, outbound)) == 1460
    assert bed.greyhound.tunnel()["mss_clamped"] == 0


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_a_hosts_own_connection(single, xdp, family):
    """A host behind a veth leaves its checksum unfinished: it arrives finished, around the lowered size."""
    bed = single(tunnel={"clamp_mss": True, "mtu": 1300}, xdp=xdp)
    bed.warm()
    connection = bed.host.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    with contextlib.closing(connection), contextlib.suppress(BlockingIOError):
        connection.connect(("fd02::2" if family == socket.AF_INET6 else "10.2.0.2", 8080))
    frame = bed.outside.expect(lambda f: is_gre(f) and f.haslayer(TCP) and f[TCP].dport == 8080, "the SYN")
    inner = frame[GRE].payload
    inner = type(inner)(ip_bytes(inner))
    assert checksums_ok(inner)
    assert announced(inner[TCP]) == 1300 - (60 if family == socket.AF_INET6 else 40)


@pytest.mark.parametrize("mode, room", [("gretap", 1462), ("ip6gretap", 1434)])
def test_in_frames_too(tmp_path, xdp, mode, room):
    """Between two LANs that are one: also behind a VLAN tag, which takes its bytes; everything else of the frame stays."""
    with contextlib.closing(JoinedLan(tmp_path, {"mode": mode, "clamp_mss": True}, xdp=xdp)) as bed:
        bed.warm()
        clamped = 0
        for v6, tags, returns in itertools.product((False, True), (0, 1), (False, True)):
            header = Ether(src="02:00:00:00:00:0a", dst="02:00:00:00:00:0b")
            frame = (header / Dot1Q(vlan=7) if tags else header) / syn(v6)
            sender, receiver = (bed.at_b, bed.at_a) if returns else (bed.at_a, bed.at_b)
            sender.send(frame)
            arrived = receiver.expect(same_connection(frame), "the segment")
            wanted = frame.copy()
            wanted[TCP].options = [("MSS", room - 4 * tags - (60 if v6 else 40)), ("SAckOK", b"")]
            assert arrived.original == bytes(wanted)
            clamped += 1
        # Whoever comes first lowers it.
        assert bed.a.tunnel("tap1")["mss_clamped"] == bed.b.tunnel("tap1")["mss_clamped"] == clamped // 2
