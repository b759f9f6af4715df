"""Echo requests whose replies are waited for, however late: ping gives up on the last ones after two round trips."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import Counter

from scapy.utils import checksum

from topology import DEADLINE, Namespace


def echoes(ns: Namespace, to: str, count: int = 5) -> None:
    """Every one of `count` echo requests is answered, and once."""
    v6 = ":" in to
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if v6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    request, reply = (128, 129) if v6 else (8, 0)
    token, seen = os.urandom(16), Counter()
    with ns.socket(family, socket.SOCK_RAW, protocol) as sock:
        def receive(seconds: float) -> None:
            while select.select([sock], [], [], max(0, seconds))[0]:
                packet = sock.recv(2000)
                message = packet if v6 else packet[(packet[0] & 15) * 4:]
                if message[0] == reply and message[8:] == token:
                    seen[struct.unpack("!H", message[6:8])[0]] += 1
                seconds = 0

        for n in range(count):
            message = struct.pack("!BBHHH", request, 0, 0, os.getpid() & 0xFFFF, n) + token
            # Over IPv6 the kernel sums.
            message = message if v6 else message[:2] + struct.pack("!H", checksum(message)) + message[4:]
            sock.sendto(message, (to, 0))
            receive(0.05)
        end = time.monotonic() + DEADLINE
        while len(seen) < count and time.monotonic() < end:
            receive(end - time.monotonic())
        # What comes twice comes at once.
        receive(0.05)
    assert seen == {n: 1 for n in range(count)}, f"{ns.role} to {to}: of {count} requests came replies {dict(seen)}"
