"""Frames on the wire: raw sockets in a namespace, scapy to build and to read what crosses them."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, _ICMPv6Error
from scapy.layers.l2 import ARP, GRE, Dot1Q, Ether
from scapy.packet import NoPayload, Packet, Raw
from scapy.utils import checksum

from topology import DEADLINE, Namespace

__all__ = ["ARP", "GRE", "ICMP", "IP", "TCP", "UDP", "Dot1Q", "Ether", "IPv6", "Packet", "Raw"]

SEQUENCE = "sequence_number" if any(f.name == "sequence_number" for f in GRE.fields_desc) else "seqence_number"
"""scapy's name of the GRE sequence number, once misspelt."""

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_PACKET_OUTGOING = 4
_VLAN_VALID, _VLAN_TPID_VALID = 1 << 4, 1 << 6


class Tap:
    """A packet socket on one device: sends frames as they are, and sees every frame that arrives there.

    A VLAN tag that the kernel keeps beside the frame is put back where it was on the wire.
    """

    def __init__(self, ns: Namespace, device: str):
        self.device, self.role = device, ns.role
        with ns.entered():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
            self._sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._sock.bind((device, _ETH_P_ALL))
        self._sock.setblocking(False)

    def close(self) -> None:
        self._sock.close()

    def send(self, *frames: Packet | bytes) -> None:
        """Sends frames, in order. A link that is down takes none, and that is no error here."""
        for frame in frames:
            try:
                self._sock.send(bytes(frame))
            except OSError as error:
                if error.errno not in (errno.ENETDOWN, errno.ENOBUFS, errno.ENXIO):
                    raise

    def _receive(self) -> Ether | None:
        """The next waiting frame that came from the other end, or None."""
        while True:
            try:
                data, ancillary, _, address = self._sock.recvmsg(70000, 64)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno == errno.ENETDOWN:  # Said once when the device goes down.
                    continue
                raise
            if address[2] == _PACKET_OUTGOING:
                continue
            for level, kind, value in ancillary:
                if level == _SOL_PACKET and kind == _PACKET_AUXDATA:
                    status, _, _, _, _, tci, tpid = struct.unpack("IIIHHHH", value[:20])
                    if status & _VLAN_VALID:
                        tpid = tpid if status & _VLAN_TPID_VALID else 0x8100
                        data = data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
            return Ether(data)

    def drain(self) -> list[Ether]:
        """Every frame that waits now."""
        frames = []
        while (frame := self._receive()) is not None:
            frames.append(frame)
        return frames

    def collect(self, wanted: Callable[[Packet], bool], count: int, what: str = "frames") -> list[Ether]:
        """The next `count` frames that are `wanted`, in order of arrival; fails with what came instead."""
        end, got, others = time.monotonic() + DEADLINE, [], []
        while len(got) < count:
            frame = self._receive()
            if frame is None:
                left = end - time.monotonic()
                if left <= 0:
                    seen = "\n  ".join(f.summary() for f in others[-20:]) or "nothing"
                    raise AssertionError(
                        f"{self.role} {self.device}: {len(got)} of {count} {what}; besides them came\n  {seen}"
                    )
                select.select([self._sock], [], [], left)
                continue
            (got if wanted(frame) else others).append(frame)
        return got

    def expect(self, wanted: Callable[[Packet], bool], what: str = "the frame") -> Ether:
        """The next frame that is `wanted`."""
        return self.collect(wanted, 1, what)[0]


@dataclass(frozen=True)
class Options:
    """The GRE options of one direction of a tunnel."""

    key: int | None = None
    csum: bool = False
    seq: bool = False


def gre(inner: Packet | bytes, options: Options = Options(), sequence: int = 0, **fields) -> GRE:
    """A GRE packet around `inner`, built by scapy; `fields` override what the options say."""
    values = {"proto": 0x86DD if isinstance(inner, IPv6) else 0x0800, "chksum_present": int(options.csum)}
    if options.key is not None:
        values.update(key_present=1, key=options.key)
    if options.seq:
        values.update({"seqnum_present": 1, SEQUENCE: sequence})
    values.update(fields)
    return GRE(**values) / inner


def sequence_of(packet: GRE) -> int:
    """The GRE packet's sequence number."""
    return getattr(packet, SEQUENCE)


def gre_checksum_ok(packet: GRE) -> bool:
    """Whether the checksum over the GRE header and payload as received is right (RFC 2784 section 2.3)."""
    return bool(packet.chksum_present) and checksum(packet.original) == 0


def ip_bytes(packet: Packet) -> bytes:
    """The IP packet in `packet` as received, without link padding."""
    layer = packet if isinstance(packet, (IP, IPv6)) else packet.getlayer(IP) or packet.getlayer(IPv6)
    length = layer.len if isinstance(layer, IP) else layer.plen + 40
    return layer.original[:length]


def checksums_ok(packet: IP | IPv6) -> bool:
    """Whether scapy would write the very checksums that the packet carries, header and transport."""
    packet = type(packet)(ip_bytes(packet))
    again = packet.copy()
    layer = again
    while not isinstance(layer, NoPayload):
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                layer.delfieldval(name)
        # What an ICMP message quotes is not the whole packet, and its checksums cannot be told.
        layer = NoPayload() if isinstance(layer, (ICMP, _ICMPv6Error)) else layer.payload
    return bytes(again) == packet.original


def forwarded(packet: IP | IPv6) -> bytes:
    """The bytes of `packet` after one router: TTL or hop limit less one, header checksum to match."""
    packet = type(packet)(bytes(packet))
    if isinstance(packet, IP):
        packet.ttl -= 1
        del packet.chksum
    else:
        packet.hlim -= 1
    return bytes(packet)


def tagged(frame: Packet) -> bool:
    """Whether the frame carries a VLAN tag."""
    return frame.type in (0x8100, 0x88A8)


def carries(payload: bytes) -> Callable[[Packet], bool]:
    """A predicate: the frame contains these bytes."""
    return lambda frame: payload in frame.original


__all__ += [
    "Options", "SEQUENCE", "Tap", "carries", "checksums_ok", "forwarded", "gre", "gre_checksum_ok",
    "ip_bytes", "sequence_of", "tagged",
]
