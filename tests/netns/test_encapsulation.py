"""What goes into the tunnel, byte for byte: scapy sends it, and scapy reads the outer packet on the underlay."""

from __future__ import annotations

import socket
import subprocess

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, PadN
from scapy.utils import wrpcap

from beds import back, is_gre, payload_of, token, v4, v6
from conftest import need
from topology import Bench
from wire import GRE, IP, IPv6, Ether, carries, checksums_ok, forwarded, gre_checksum_ok, ip_bytes, sequence_of

VARIANTS = {
    "plain": {},
    "key": {"key": 42},
    "key 0": {"key": 0},
    "key as dotted quad": {"key": "1.2.3.4"},
    "csum": {"csum": True},
    "seq": {"seq": True},
    "key csum seq": {"key": 0x11223344, "csum": True, "seq": True},
    "one way only": {"ikey": 1, "okey": 2, "ocsum": True, "iseq": True},
}
FAMILIES = {"v4": v4, "v6": v6}
SIZES = [18, 19, 32, 33, 1400, 1401]


def key_number(key: int | str | None) -> int | None:
    """A key as a number, as iproute2 reads a dotted quad."""
    return int.from_bytes(socket.inet_aton(key), "big") if isinstance(key, str) else key


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_outer_packet(single, xdp, variant, family):
    """Every field of the outer packet, and the inner packet with nothing changed but its TTL."""
    bed = single(tunnel=VARIANTS[variant], xdp=xdp)
    bed.tx = bed.tx.__class__(key_number(bed.tx.key), bed.tx.csum, bed.tx.seq)
    bed.rx = bed.rx.__class__(key_number(bed.rx.key), bed.rx.csum, bed.rx.seq)
    bed.warm()
    before = bed.greyhound.tunnel()
    packets = [FAMILIES[family](token(size)) for size in SIZES]
    for packet in packets:
        outer = bed.encapsulated(packet)
        assert (outer.src, outer.dst, outer.ihl, outer.ttl, outer.tos) == (Bench.LOCAL, Bench.REMOTE, 5, 63, 0)
        assert (str(outer.flags), outer.frag, outer.proto) == ("DF", 0, 47) and outer.id != 0
        tunnel = outer[GRE]
        assert outer.len == 20 + 4 * (1 + bed.tx.csum + (bed.tx.key is not None) + bed.tx.seq) + len(packet)
        assert (tunnel.version, tunnel.flags, tunnel.recursion_control, tunnel.routing_present) == (0, 0, 0, 0)
        assert tunnel.proto == (0x0800 if family == "v4" else 0x86DD)
        assert bool(tunnel.chksum_present) == bed.tx.csum and bool(tunnel.seqnum_present) == bed.tx.seq
        assert (tunnel.key if tunnel.key_present else None) == bed.tx.key
        if bed.tx.csum:
            assert gre_checksum_ok(tunnel) and tunnel.offset == 0
        assert ip_bytes(tunnel.payload) == forwarded(packet)
        assert checksums_ok(outer)
    after = bed.greyhound.tunnel()
    path = "slow" if xdp == "off" else "fast"
    assert after[path]["tx_packets"] - before[path]["tx_packets"] >= len(SIZES)
    assert after["tx"]["bytes"] - before["tx"]["bytes"] >= sum(map(len, packets))


def test_sequence_numbers_begin_at_zero_and_miss_none(single, xdp):
    """Whatever enters the tunnel, by either path, takes the next number (RFC 2890 section 2.2)."""
    bed = single(tunnel={"seq": True, "key": 7}, xdp=xdp)
    numbers = []
    for n in range(12):
        packet = v4(options=b"\1\1\1\1") if n % 3 == 0 else v4()
        bed.send_inside(packet)
        found = False
        while not found:  # Neighbour discovery on the tunnel device takes numbers, too.
            frame = bed.outside.expect(is_gre, "outer packet")
            numbers.append(sequence_of(frame[GRE]))
            found = payload_of(packet) in frame.original
    assert numbers == list(range(len(numbers)))


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


def test_link_padding_stays_outside(single, xdp):
    """What pads a short Ethernet frame is no part of the packet (gre-9)."""
    bed = single(xdp=xdp)
    bed.warm()
    for packet in (v4(token(18)), v6(token(18))):
        bed.inside.send(bytes(Ether(src=Bench.HOST_MAC, dst=Bench.INNER_MAC) / packet) + b"padding of the link")
        outer = bed.outside.expect(carries(payload_of(packet)))[IP]
        assert outer.len == 24 + len(packet) and b"padding" not in outer.original


@pytest.mark.parametrize("ttl", ["inherit", 1, 64, 255])
def test_ttl(single, xdp, ttl):
    """Inherited from the inner packet after the router has decremented it, or fixed (tos-1)."""
    bed = single(tunnel={"ttl": ttl}, xdp=xdp)
    bed.warm()
    for inner in (2, 17, 64, 255):
        for packet in (v4(ttl=inner), v6(hlim=inner)):
            outer = bed.encapsulated(packet)
            assert outer.ttl == (inner - 1 if ttl == "inherit" else ttl)
            assert ip_bytes(outer[GRE].payload) == forwarded(packet)


@pytest.mark.parametrize("tos", ["inherit", 0, 0xB8])
def test_tos_and_ecn(single, xdp, tos):
    """DSCP inherited or fixed; the ECN bits are always the inner packet's, CE as CE (RFC 6040, ecn-1)."""
    bed = single(tunnel={"tos": tos}, xdp=xdp)
    bed.warm()
    for dscp in (0, 0x28, 0xB8):
        for ecn in range(4):
            for packet in (v4(tos=dscp | ecn), v6(tc=dscp | ecn)):
                outer = bed.encapsulated(packet)
                assert outer.tos == (dscp if tos == "inherit" else tos) | ecn
                assert ip_bytes(outer[GRE].payload) == forwarded(packet)


DF_RULES = {
    "pmtudisc": ({}, lambda inner: True),
    "nopmtudisc": ({"pmtudisc": False}, lambda inner: inner),
    "ignore-df": ({"pmtudisc": False, "ignore_df": True}, lambda inner: False),
}


@pytest.mark.parametrize("rule", DF_RULES)
def test_outer_df(single, xdp, rule):
    """The kernel's rules for the outer DF; an IPv6 packet counts as one without (mtu-3)."""
    tunnel, expected = DF_RULES[rule]
    bed = single(tunnel=tunnel, xdp=xdp)
    bed.warm()
    for packet, inner_df in ((v4(), False), (v4(flags="DF"), True), (v6(), False)):
        outer = bed.encapsulated(packet)
        assert bool(outer.flags.DF) == expected(inner_df) and outer.id != 0
        assert ip_bytes(outer[GRE].payload) == forwarded(packet)


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


def test_a_dissector_finds_no_fault(single, xdp, tmp_path):
    """tshark, which verifies IP, GRE, UDP and ICMP checksums, reads the underlay without complaint."""
    tshark = need("tshark")
    bed = single(tunnel={"key": 42, "csum": True, "seq": True}, xdp=xdp)
    bed.warm()
    packets = [v4(token(size)) for size in SIZES] + [v6(token(size)) for size in SIZES]
    bed.send_inside(*packets)
    frames = bed.outside.collect(lambda f: is_gre(f) and b"<greyhound " in f.original, len(packets), "outer packets")
    file = tmp_path / "underlay.pcap"
    wrpcap(str(file), frames)
    checks = [option for name in ("ip", "udp") for option in ("-o", f"{name}.check_checksum:TRUE")]
    fields = ["gre.checksum.status", "gre.key", "udp.checksum.status", "_ws.malformed", "_ws.expert.severity"]
    command = [tshark, "-r", str(file), *checks, "-T", "fields", *(word for field in fields for word in ("-e", field))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    # A status of 1 is "good"; no expert has anything to remark.
    assert rows == [["1", "0x0000002a", "1", "", ""]] * len(packets)
