"""Test beds with Greyhounds in them: one router opposite scapy, and two routers back to back."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import socket

from greyhound import Greyhound
from topology import Bench, Lab, wait_until
from wire import IP, UDP, Ether, GRE, IPv6, Options, Packet, Tap, carries, gre, ip_bytes

_token = itertools.count(1)


def token(size: int = 32) -> bytes:
    """A payload that no other packet has."""
    return f"<greyhound {next(_token):06d}>".encode().ljust(size, b".")[:size]


def v4(payload: bytes | None = None, src: str = "10.1.0.2", dst: str = "10.2.0.2", **fields) -> IP:
    """An inner UDP packet, from the host to the far inner network unless told otherwise."""
    return IP(src=src, dst=dst, **({"id": 0x1234} | fields)) / UDP(sport=1000, dport=2000) / (payload or token())


def v6(payload: bytes | None = None, src: str = "fd01::2", dst: str = "fd02::2", **fields) -> IPv6:
    """The same over IPv6."""
    return IPv6(src=src, dst=dst, **fields) / UDP(sport=1000, dport=2000) / (payload or token())


def back(packet: Packet) -> Packet:
    """The same packet in the other direction: from the far inner network to the host."""
    packet = packet.copy()
    packet.src, packet.dst = packet.dst, packet.src
    return packet


def delivers(frame: Packet) -> bool:
    """Whether the frame carries one of our packets itself, in a tunnel or not, and is no error that quotes one."""
    return b"<greyhound " in frame.original and UDP in frame and not frame.haslayer("ICMP")


def payload_of(packet: Packet) -> bytes:
    """The UDP payload of an inner packet."""
    return bytes(packet[UDP].payload)


class Single:
    """A Greyhound between a host and a far endpoint that scapy plays, with one tunnel `gre1`."""

    carries = "46"
    TUNNEL = {
        "name": "gre1", "mode": "gre", "local": Bench.LOCAL, "remote": Bench.REMOTE,
        "address": ["10.200.0.1/30", "fd00:200::1/64"], "routes": ["10.2.0.0/16", "fd02::/64"],
    }

    def __init__(self, directory: pathlib.Path, tunnel: dict | None = None, *, mtu: int = 1500, inner: int = 1500,
                 queues: int = 1, start: bool = True, **router):
        self._stack = contextlib.ExitStack()
        try:
            self.bench = self._stack.enter_context(Bench(mtu, queues, inner))
            self.host, self.router, self.far = self.bench.host, self.bench.router, self.bench.far
            self.greyhound = self._stack.enter_context(contextlib.closing(Greyhound(self.router, directory)))
            self.inside = self._stack.enter_context(contextlib.closing(Tap(self.host, "h0")))
            self.outside = self._stack.enter_context(contextlib.closing(Tap(self.far, "f0")))
            self.tunnel = self.TUNNEL | (tunnel or {})
            self.rx, self.tx = self._options("i"), self._options("o")
            self.sequence = 0
            self.xdp = router.get("xdp", "auto")
            self.greyhound.configure([self.tunnel], **router)
            if start:
                self.greyhound.start()
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def _options(self, direction: str) -> Options:
        def value(name, default):
            return self.tunnel.get(direction + name, self.tunnel.get(name, default))

        return Options(value("key", None), value("csum", False), value("seq", False))

    # From the host into the tunnel.

    def send_inside(self, *packets: Packet) -> None:
        """The host sends these packets to the router."""
        self.inside.send(*(Ether(src=Bench.HOST_MAC, dst=Bench.INNER_MAC) / packet for packet in packets))

    def encapsulated(self, packet: Packet) -> IP:
        """Sends `packet` from the host and returns the outer packet that crosses the underlay."""
        self.send_inside(packet)
        return self.outside.expect(carries(payload_of(packet)), "outer packet")[IP]

    # From the far endpoint out of the tunnel.

    def around(self, inner: Packet | bytes, outer: dict | None = None, **gre_fields) -> IP:
        """The outer packet of the far endpoint around `inner`, as this tunnel wants it; the arguments override."""
        packet = gre(inner, self.rx, self.sequence, **gre_fields)
        if self.rx.seq:
            self.sequence += 1
        return IP(**({"src": Bench.REMOTE, "dst": Bench.LOCAL, "id": 0x4321} | (outer or {}))) / packet

    def send_outside(self, *packets: Packet, padding: bytes = b"") -> None:
        """The far endpoint sends these packets to the router, each followed by `padding`."""
        header = Ether(src=Bench.FAR_MAC, dst=Bench.OUTER_MAC)
        self.outside.send(*(bytes(header / packet) + padding for packet in packets))

    def decapsulated(self, inner: Packet, **kwargs) -> IP | IPv6:
        """Sends `inner` through the tunnel and returns what the host receives."""
        self.send_outside(self.around(inner, **kwargs))
        return self.arrived(inner)

    def arrived(self, inner: Packet) -> IP | IPv6:
        """The packet at the host that carries the payload of `inner`."""
        frame = self.inside.expect(carries(payload_of(inner)), "inner packet")
        return type(inner)(ip_bytes(frame))

    # Conditions.

    def warm(self) -> None:
        """Neighbours resolved and, where there is one, the fast path carrying both directions."""

        def fast(direction: str) -> int:
            return self.greyhound.tunnel()["fast"][direction] if self.xdp != "off" else 1

        ways = {
            "4": ((lambda: self.encapsulated(v4()), "tx_packets"), (lambda: self.decapsulated(back(v4())), "rx_packets")),
            "6": ((lambda: self.encapsulated(v6()), "tx_packets"), (lambda: self.decapsulated(back(v6())), "rx_packets")),
        }
        for exchange, direction in (way for family in self.carries for way in ways[family]):
            before = fast(direction) if self.xdp != "off" else 0
            wait_until(lambda: (exchange(), fast(direction) > before)[1], f"the fast path carries {direction}")

    def fence_inside(self) -> list[Ether]:
        """Everything that came to the far end up to now, when all that the host has sent is through.

        Two sentinels follow it, one on each path: with IP options through the kernel, plain through the fast path.
        """
        sentinels = [v4(options=b"\1\1\1\1"), v4()]
        self.send_inside(*sentinels)
        return self._until(self.outside, sentinels)

    def fence_outside(self) -> list[Ether]:
        """Everything that came to the host up to now, when all that the far end has sent is through.

        One sentinel after the other: with sequence numbers, the one that overtook would make the other late.
        """
        slow, fast = back(v4()), back(v4())
        self.send_outside(self.around(slow, outer={"options": b"\1\1\1\1"}))
        frames = self._until(self.inside, [slow])
        self.send_outside(self.around(fast))
        return frames + self._until(self.inside, [fast])

    def fence_plain(self) -> list[Ether]:
        """Everything that came to the far end up to now, when what the host sent to the kernel is through.

        The sentinel goes past every tunnel, to the far end itself.
        """
        sentinel = v4(dst=Bench.REMOTE)
        self.send_inside(sentinel)
        return self._until(self.outside, [sentinel])

    @staticmethod
    def _until(tap: Tap, sentinels: list[Packet]) -> list[Ether]:
        missing, seen = [payload_of(packet) for packet in sentinels], []

        def last(frame: Packet) -> bool:
            seen.append(frame)
            missing[:] = [payload for payload in missing if payload not in frame.original]
            return not missing

        tap.expect(last, "sentinels")
        return [frame for frame in seen if not any(payload_of(packet) in frame.original for packet in sentinels)]

    def refused(self, *packets: IP, padding: bytes = b"") -> None:
        """The far endpoint sends these packets; none may come out inside, in whatever form."""
        self.send_outside(*packets, padding=padding)
        came = [frame for frame in self.fence_outside() if b"<greyhound " in frame.original]
        assert not came, "came out inside:\n" + "\n".join(frame.summary() for frame in came)


class OfKind(Single):
    """The same with a tunnel of any kind, over either family; `tunnel` is the configuration less what follows from its mode."""

    CARRIES = {"ipip": "4", "ip6ip6": "6", "ipip6": "4"}

    def __init__(self, directory: pathlib.Path, tunnel: dict, **kwargs):
        self.mode = tunnel["mode"]
        self.over6 = "6" in self.mode
        self.carries = self.CARRIES.get(self.mode, "46")
        options = {key: [net for net in self.TUNNEL[key] if ("6" if ":" in net else "4") in self.carries]
                   for key in ("address", "routes")}
        if self.over6:
            options |= {"local": "fd09::1", "remote": "fd09::2"}
        super().__init__(directory, options | tunnel, start=False, **kwargs)
        try:
            self.router.ip("address", "add", "fd09::1/64", "dev", "outer0", "nodad")
            self.far.ip("address", "add", "fd09::2/64", "dev", "f0", "nodad")
            self.prepare_far()
            self.greyhound.start()
        except BaseException:
            self.close()
            raise

    def prepare_far(self) -> None:
        """Whoever listens to the tunnel's packets keeps the far kernel from answering that nobody does."""
        protocols = {"gre": [47], "ip6gre": [47], "ipip": [4], "sit": [4, 41], "ip6ip6": [41], "ipip6": [4]}[self.mode]
        family = socket.AF_INET6 if self.over6 else socket.AF_INET
        for protocol in protocols:
            self.bench.keep(self.far.socket(family, socket.SOCK_RAW, protocol))

    @property
    def layer(self) -> type:
        """The outer IP header's."""
        return IPv6 if self.over6 else IP

    def encapsulated(self, packet: Packet) -> IP | IPv6:
        self.send_inside(packet)
        return self.outside.expect(carries(payload_of(packet)), "outer packet")[self.layer]

    def around(self, inner: Packet, outer: dict | None = None, **fields) -> IP | IPv6:
        ends = {"src": "fd09::2", "dst": "fd09::1"} if self.over6 else {"src": Bench.REMOTE, "dst": Bench.LOCAL}
        return self.layer(**(ends | (outer or {}))) / self.shim(inner, **fields)

    def shim(self, inner: Packet, **fields) -> Packet:
        """What stands behind the outer header."""
        if "gre" not in self.mode:
            return inner
        packet = gre(inner, self.rx, self.sequence, **fields)
        self.sequence += self.rx.seq
        return packet

    def tos(self, packet: IP | IPv6) -> int:
        """TOS or traffic class."""
        return packet.tc if isinstance(packet, IPv6) else packet.tos


class Pair:
    """Two Greyhounds and the tunnels between them; `tunnels` as router A has them, less names and addresses."""

    LAB = Lab

    def __init__(self, directory: pathlib.Path, *tunnels: dict, mtu: int = 1500, inner: int = 1500, start: bool = True,
                 **router):
        self._stack = contextlib.ExitStack()
        try:
            lab = self._stack.enter_context(self.LAB(mtu, inner))
            self.lab = lab
            self.host_a, self.router_a, self.router_b, self.host_b = lab.host_a, lab.router_a, lab.router_b, lab.host_b
            self.a = self._stack.enter_context(contextlib.closing(Greyhound(self.router_a, directory, "A")))
            self.b = self._stack.enter_context(contextlib.closing(Greyhound(self.router_b, directory, "B")))
            self.xdp = router.get("xdp", "auto")
            for greyhound, side in ((self.a, 1), (self.b, 2)):
                mine = [self._tunnel(tunnel, n, side) for n, tunnel in enumerate(tunnels or ({},), 1)]
                greyhound.configure(mine, underlay=["wan"], overlay=["lan"], **router)
            if start:
                self.start()
        except BaseException:
            self._stack.close()
            raise

    def start(self) -> None:
        """Starts both routers, as they are configured."""
        for greyhound in (self.a, self.b):
            greyhound.spawn()
        for greyhound in (self.a, self.b):
            greyhound.wait_ready()

    def close(self) -> None:
        self._stack.close()

    @staticmethod
    def _tunnel(tunnel: dict, n: int, side: int) -> dict:
        other = 3 - side
        if side == 2:
            swap = {"ikey": "okey", "okey": "ikey", "icsum": "ocsum", "ocsum": "icsum", "iseq": "oseq", "oseq": "iseq"}
            tunnel = {swap.get(key, key): value for key, value in tunnel.items()}
        routes = [f"10.{other}.0.0/24", f"fd0{other}::/64"] if n == 1 else []
        return {
            "name": f"gre{n}", "mode": "gre", "local": f"10.9.0.{side}", "remote": f"10.9.0.{other}",
            "address": [f"172.16.{n}.{side}/30", f"fd00:172:{n}::{side}/64"], "routes": routes,
        } | tunnel

    def ping(self, *options: str, to: str = "10.2.0.2", count: int = 3):
        """Pings from host A; every echo must come back."""
        return self.host_a.run("ping", "-n", "-c", str(count), "-i", "0.05", "-W", "5", *options, to)


def is_gre(frame: Packet) -> bool:
    """Whether the frame is a tunnel packet."""
    return IP in frame and frame[IP].proto == 47 and GRE in frame
