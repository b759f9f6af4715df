"""One packet through a contestant, judged byte by byte: who does less work than the others is not measured beside them."""

from __future__ import annotations

import ipaddress
import struct
import subprocess
import sys

from bed import Bed, Trouble, wait_until
from contestants import ENCAPSULATE, GRE_OVER_IPV4, Contestant, tunnel_ends
from measure import Source, running

ETHERNET, IPV4, SIZE = 14, 20, 64

# Runs in the sink's namespace: says that it listens, then the first frame of IPv4 that comes.
LISTEN = """
import socket, sys
taken = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
taken.bind((sys.argv[1], 0))
taken.settimeout(10)
print("listening", flush=True)
print(taken.recv(2048).hex())
"""


def prove(bed: Bed, contestant: Contestant, direction: str) -> None:
    with running(contestant, direction):
        listener = bed.start("sink", sys.executable, "-c", LISTEN, bed.device["sink"], name="listener", stdout=subprocess.PIPE)
        try:
            wait_until(lambda: listener.stdout.readline() == "listening\n", "the sink listens")
            source = Source(bed, direction, SIZE, 1)
            source.start("--count", "1")
            source.sent()
            frame = bytes.fromhex(listener.communicate()[0])
        finally:
            listener.kill()
            listener.wait()
    wrong = judge(frame, bed, contestant, direction) if frame else ["no packet arrived"]
    if wrong:
        raise Trouble(f"{contestant.title} does not {direction} as it should: {'; '.join(wrong)}")


def judge(frame: bytes, bed: Bed, contestant: Contestant, direction: str) -> list[str]:
    """What is wrong with a frame."""
    wrong = []

    def same(what, found, wanted):
        if found != wanted:
            wrong.append(f"{what} is {found}, not {wanted}")

    same("destination", frame[:6].hex(":"), bed.mac("sink"))
    same("source", frame[6:12].hex(":"), bed.mac("out"))
    into = direction == ENCAPSULATE
    ip = frame[ETHERNET:]
    if into == contestant.gre:
        local, remote = tunnel_ends(direction) if into else ("198.51.100.2", Bed.IN)
        header(ip, "outer", SIZE - ETHERNET + GRE_OVER_IPV4, 47, 64, (local, remote), same)
        same("GRE header", ip[IPV4:IPV4 + 4].hex(), "00000800")
        ip = ip[GRE_OVER_IPV4:]
    ends = ("10.1.0.2", "10.2.0.2") if into else ("10.2.0.2", "10.3.0.2")
    header(ip, "inner", SIZE - ETHERNET, 17, 63 if contestant.gre else 64, ends, same)
    return wrong


def header(ip: bytes, which: str, length: int, protocol: int, ttl: int, ends: tuple[str, str], same) -> None:
    """One IPv4 header."""
    same(f"{which} version and length", ip[0], 0x45)
    same(f"{which} total length", struct.unpack_from("!H", ip, 2)[0], length)
    same(f"{which} protocol", ip[9], protocol)
    same(f"{which} TTL", ip[8], ttl)
    halves = struct.unpack_from("!10H", ip)
    same(f"{which} checksum adds up to", sum(halves) % 0xffff, 0)
    same(f"{which} addresses", tuple(str(ipaddress.ip_address(ip[at:at + 4])) for at in (12, 16)), ends)
