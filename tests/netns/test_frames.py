"""Frames beside the plain ones: order, identifications, unfinished checksums, other stations, the router's own addresses."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, PadN

from beds import back, is_gre, payload_of, token, v4, v6
from topology import Bench
from wire import GRE, IP, UDP, Ether, IPv6, carries, checksums_ok, forwarded, ip_bytes


def test_identifications_differ(single, xdp):
    """Outer packets of one flow never share an identification while both may be under way, and none has 0."""
    bed = single(xdp=xdp)
    bed.warm()
    packets = [v4() for _ in range(100)]
    bed.send_inside(*packets)
    frames = bed.outside.collect(carries(b"<greyhound "), len(packets), "outer packets")
    numbers = [frame[IP].id for frame in frames]
    assert len(set(numbers)) == len(numbers) and 0 not in numbers


def test_order_is_kept(single, xdp):
    """Packets leave in the order in which they came, in both directions."""
    bed = single(xdp=xdp)
    bed.warm()
    packets = [v4() for _ in range(100)]
    bed.send_inside(*packets)
    frames = bed.outside.collect(carries(b"<greyhound "), len(packets), "outer packets")
    assert [payload_of(frame[GRE]) for frame in frames] == [payload_of(packet) for packet in packets]
    packets = [back(packet) for packet in packets]
    bed.send_outside(*(bed.around(packet) for packet in packets))
    frames = bed.inside.collect(carries(b"<greyhound "), len(packets), "inner packets")
    assert [payload_of(frame) for frame in frames] == [payload_of(packet) for packet in packets]


def test_options_and_extension_headers(single, xdp):
    """What the fast path leaves to the kernel arrives all the same: IP options, extension headers, fragments."""
    bed = single(xdp=xdp)
    bed.warm()
    extended = IPv6(src="fd01::2", dst="fd02::2") / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
    extended = extended / UDP(sport=1000, dport=2000) / token()
    for packet in (v4(options=b"\1\1\1\1"), extended, v4(flags="MF", id=0x77)):
        outer = bed.encapsulated(packet)
        assert ip_bytes(outer[GRE].payload) == forwarded(packet)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def test_unfinished_checksums_are_completed(single, xdp, family):
    """A host behind a veth leaves transport checksums to its device, which has none: ours are right on the wire."""
    bed = single(xdp=xdp)
    bed.warm()
    remote = "10.2.0.2" if family == socket.AF_INET else "fd02::2"
    layer = IP if family == socket.AF_INET else IPv6
    for size in (18, 19, 1000, 1001):
        payload = token(size)
        with bed.host.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(payload, (remote, 2000))
        frame = bed.outside.expect(carries(payload), "UDP of the host's own")
        assert checksums_ok(frame[GRE][layer])
    with bed.host.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        sock.connect_ex((remote, 4242))
        frame = bed.outside.expect(lambda f: is_gre(f) and f.haslayer("TCP"), "TCP of the host's own")
        assert frame["TCP"].dport == 4242 and checksums_ok(frame[GRE][layer])


def test_not_to_us(single, xdp):
    """A frame to another station's address is not taken, although the packet in it is one of ours."""
    bed = single(xdp=xdp)
    bed.warm()
    packet = bed.around(back(v4()))
    bed.outside.send(Ether(src=Bench.FAR_MAC, dst="02:00:00:00:99:99") / packet)
    bed.inside.send(Ether(src=Bench.HOST_MAC, dst="02:00:00:00:99:99") / v4())
    bed.refused()
    assert not [frame for frame in bed.fence_inside() if b"<greyhound " in frame.original]


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
