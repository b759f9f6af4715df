"""IP packets and tunnel headers by the standard library: what a virtual machine has."""

from __future__ import annotations

import socket
import struct

ICMP, IPIP, UDP, IPV6, GRE, ICMP6, DSTOPTS = 1, 4, 17, 41, 47, 58, 60


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(src: str, dst: str, protocol: int, body: bytes, *, tos=0, ttl=64, df=False, options=b"", fragment=0, bad=False) -> bytes:
    """`fragment` is the field of flags and offset, less DF."""
    flags = fragment | (0x4000 if df else 0)
    ihl = 5 + len(options) // 4

    def header(check: int) -> bytes:
        fixed = struct.pack("!BBHHHBBH", 0x40 | ihl, tos, ihl * 4 + len(body), 0x1234, flags, ttl, protocol, check)
        return fixed + socket.inet_aton(src) + socket.inet_aton(dst) + options

    return header(checksum(header(0)) ^ (0x5555 if bad else 0)) + body


def ip6(src: str, dst: str, protocol: int, body: bytes, *, tos=0, ttl=64, label=0) -> bytes:
    first = 6 << 28 | tos << 20 | label
    header = struct.pack("!IHBB", first, len(body), protocol, ttl)
    return header + socket.inet_pton(socket.AF_INET6, src) + socket.inet_pton(socket.AF_INET6, dst) + body


def udp(src: str, dst: str, data: bytes, sport=1000, dport=2000) -> bytes:
    family = socket.AF_INET6 if ":" in src else socket.AF_INET
    length = 8 + len(data)
    pseudo = socket.inet_pton(family, src) + socket.inet_pton(family, dst) + struct.pack("!HBB", length, 0, UDP)
    head = struct.pack("!HHH", sport, dport, length)
    return head + struct.pack("!H", checksum(pseudo + head + b"\0\0" + data) or 0xFFFF) + data


def gre(protocol: int, body: bytes, *, key=None, csum=False, seq=None, bits=0, bad=False) -> bytes:
    flags = bits | (0x8000 if csum else 0) | (0x2000 if key is not None else 0) | (0x1000 if seq is not None else 0)
    rest = (b"" if key is None else struct.pack("!I", key)) + (b"" if seq is None else struct.pack("!I", seq)) + body
    head = struct.pack("!HH", flags, protocol)
    if not csum:
        return head + rest
    return head + struct.pack("!HH", checksum(head + b"\0\0\0\0" + rest) ^ (0x5555 if bad else 0), 0) + rest


def fields(packet: bytes) -> tuple[int, int]:
    """Where an IP header ends, extension headers not gone past, and the protocol behind it."""
    return ((packet[0] & 15) * 4, packet[9]) if packet[0] >> 4 == 4 else (40, packet[6])


def without_chance(packet: bytes) -> bytes:
    """Without what is another value each time: the identification (and with it the header's checksum) of what the router makes
    itself, the flow label; and GRE's checksum over such."""
    at, protocol = fields(packet)
    if packet[0] >> 4 == 6:
        label = struct.unpack("!I", packet[:4])[0]
        packet = struct.pack("!I", label & ~0xFFFFF | (1 if label & 0xFFFFF else 0)) + packet[4:]
    else:
        packet = packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]
    if protocol == DSTOPTS:
        at, protocol = at + 8, packet[at]
    inside = None
    if protocol == GRE:
        flags = packet[at] << 8
        inside = at + 4 + 4 * bin(flags & 0xB000).count("1")
    elif protocol in (IPIP, IPV6):
        inside = at
    if inside and len(packet) >= inside + 20 and packet[inside] >> 4 == 4 and packet[inside + 9] == ICMP:
        # An error of the router's, on its way into the tunnel.
        head = packet[:inside]
        if protocol == GRE and flags & 0x8000:
            head = packet[: at + 4] + b"\0\0" + packet[at + 6 : inside]
        packet = head + without_chance(packet[inside:])
    return packet


def is_noise(packet: bytes) -> bool:
    """Neighbour discovery and multicast reports."""
    at, protocol = fields(packet)
    if packet[0] >> 4 == 4:
        return protocol == 2 or len(packet) < 20
    return protocol == 0 or (protocol == ICMP6 and packet[at] in (130, 131, 132, 133, 134, 135, 136, 137, 143))
