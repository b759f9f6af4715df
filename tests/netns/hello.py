"""What routing daemons say to everybody on a link: sockets in a namespace that send and hear it on one device."""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass

from topology import DEADLINE, Namespace


@dataclass(frozen=True)
class Hello:
    """A multicast message as its protocol sends it: group, IP protocol or UDP port, TTL or hop limit."""

    group: str
    ttl: int
    protocol: int = socket.IPPROTO_UDP
    port: int = 0

    @property
    def is_v6(self) -> bool:
        return ":" in self.group

    def _socket(self, ns: Namespace) -> socket.socket:
        family = socket.AF_INET6 if self.is_v6 else socket.AF_INET
        kind = socket.SOCK_RAW if self.protocol != socket.IPPROTO_UDP else socket.SOCK_DGRAM
        sock = ns.socket(family, kind, self.protocol)
        if kind == socket.SOCK_DGRAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with ns.entered():
                sock.bind(("", self.port))
        return sock

    def say(self, ns: Namespace, device: str, payload: bytes) -> None:
        """Sends it out of the device, and not to this host itself."""
        with self._socket(ns) as sock, ns.entered():
            index = socket.if_nametoindex(device)
            if self.is_v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, self.ttl)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", b"", b"", index))
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, self.ttl)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            sock.sendto(payload, (self.group, self.port))

    def ear(self, ns: Namespace, device: str) -> Ear:
        """Joins the group on the device."""
        sock = self._socket(ns)
        with ns.entered():
            index = socket.if_nametoindex(device)
            sock.setsockopt(socket.SOL_SOCKET, 25, device.encode())  # SO_BINDTODEVICE
            group = socket.inet_pton(sock.family, self.group)
            if self.is_v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("i", index))
            else:
                sock.setsockopt(
                    socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + struct.pack("4si", b"", index)
                )
        return Ear(sock)


class Ear:
    """Hears one kind of message on one device."""

    def __init__(self, sock: socket.socket):
        self._sock = sock

    def hears(self, payload: bytes) -> None:
        """Fails unless a message with this payload comes, once."""
        end = time.monotonic() + DEADLINE
        while select.select([self._sock], [], [], max(0, end - time.monotonic()))[0]:
            if payload in self._sock.recv(2000):
                return
        raise AssertionError(f"not heard: {payload!r}")

    def waiting(self) -> list[bytes]:
        """Whatever else has come."""
        messages = []
        while select.select([self._sock], [], [], 0)[0]:
            messages.append(self._sock.recv(2000))
        return messages

    def close(self) -> None:
        self._sock.close()


HELLOS = {
    "OSPF": Hello("224.0.0.5", 1, protocol=89),
    "RIPv2": Hello("224.0.0.9", 1, port=520),
    "PIM": Hello("224.0.0.13", 1, protocol=103),
    "mDNS": Hello("224.0.0.251", 255, port=5353),
    "OSPFv3": Hello("ff02::5", 1, protocol=89),
    "RIPng": Hello("ff02::9", 255, port=521),
    "PIMv6": Hello("ff02::d", 1, protocol=103),
    "mDNSv6": Hello("ff02::fb", 255, port=5353),
}
