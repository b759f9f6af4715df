"""Two routers that join two hosts' LANs by a bridged tunnel."""

from __future__ import annotations

import contextlib
import pathlib

from beds import token
from greyhound import Greyhound
from topology import Lab, wait_until
from wire import ARP, IP, UDP, Ether, Packet, Tap


class JoinedLan:
    """Host A and host B in one LAN, 10.5.0.0/24 and fd05::/64, whose wire is the tunnel `tap1`.

    hostA a0 ── lan routerA wan ── wan routerB lan ── b0 hostB

    The routers' own `lan` has no address. `tunnel` as router A has it, less names and addresses.
    """

    def __init__(self, directory: pathlib.Path, *tunnels: dict, mtu: int = 1500, start: bool = True, **router):
        self._stack = contextlib.ExitStack()
        try:
            lab = self._stack.enter_context(Lab(mtu))
            self.lab = lab
            self.host_a, self.router_a, self.router_b, self.host_b = lab.host_a, lab.router_a, lab.router_b, lab.host_b
            for host, device, router_ns, n in (
                (self.host_a, "a0", self.router_a, 1), (self.host_b, "b0", self.router_b, 2),
            ):
                router_ns.ip("address", "flush", "dev", "lan")
                router_ns.sysctl("net.ipv6.conf.lan.disable_ipv6", 1)
                host.ip("address", "flush", "dev", device, "scope", "global")
                host.ip("address", "add", f"10.5.0.{n}/24", "dev", device)
                host.ip("address", "add", f"fd05::{n}/64", "dev", device, "nodad")
            self.a = self._stack.enter_context(contextlib.closing(Greyhound(self.router_a, directory, "A")))
            self.b = self._stack.enter_context(contextlib.closing(Greyhound(self.router_b, directory, "B")))
            self.at_a = self._stack.enter_context(contextlib.closing(Tap(self.host_a, "a0")))
            self.at_b = self._stack.enter_context(contextlib.closing(Tap(self.host_b, "b0")))
            self.wan = self._stack.enter_context(contextlib.closing(Tap(self.router_b, "wan")))
            self.xdp = router.get("xdp", "auto")
            for greyhound, side in ((self.a, 1), (self.b, 2)):
                mine = [self.tunnel(tunnel, n, side) for n, tunnel in enumerate(tunnels or ({},), 1)]
                greyhound.configure(mine, **{"underlay": ["wan"], "overlay": ["lan"]} | router)
                if start:
                    greyhound.spawn()
            if start:
                self.a.wait_ready()
                self.b.wait_ready()
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        self._stack.close()

    @staticmethod
    def tunnel(tunnel: dict, n: int, side: int) -> dict:
        """The tunnel as one side has it."""
        other = 3 - side
        ends = ("fd09::{}" if tunnel.get("mode") == "ip6gretap" else "10.9.0.{}").format
        bridge = {"bridge": "lan"} if n == 1 else {}
        return {"name": f"tap{n}", "mode": "gretap", "local": ends(side), "remote": ends(other)} | bridge | tunnel

    def host_mtu(self, mtu: int) -> None:
        """What the hosts put behind an Ethernet header, at the most."""
        self.host_a.ip("link", "set", "a0", "mtu", str(mtu))
        self.host_b.ip("link", "set", "b0", "mtu", str(mtu))

    def tag_room(self) -> None:
        """Room for two VLAN tags in full frames: a veth has no more than for one."""
        self.host_mtu(1508)
        for ns in (self.router_a, self.router_b):
            ns.ip("link", "set", "lan", "mtu", "1508")

    def ping(self, *options: str, to: str = "10.5.0.2", count: int = 3):
        """Pings from host A; every echo must come back."""
        return self.host_a.run("ping", "-n", "-c", str(count), "-i", "0.05", "-W", "5", *options, to)

    def crosses(self, frame: Packet | bytes, back: bool = False) -> None:
        """A frame that host A sends arrives at host B as it was, to the last byte; or the other way round."""
        sender, receiver = (self.at_b, self.at_a) if back else (self.at_a, self.at_b)
        sent = bytes(frame)
        sender.send(sent)
        receiver.expect(lambda got: got.original == sent, f"the frame {Ether(sent).summary()}")

    def fence(self, back: bool = False) -> list[Ether]:
        """What came to host B up to now, when all that host A has sent is through; or the other way round.

        Two sentinels, one on each path: behind three tags, which only the kernel goes past on a veth, and plain.
        """
        sender, receiver = (self.at_b, self.at_a) if back else (self.at_a, self.at_b)
        plain = udp()
        slow = Ether(src=plain.src, dst=plain.dst, type=0x8100) / bytes.fromhex("0007 8100 0007 8100 0007 1234") / token()
        missing, seen = [bytes(frame) for frame in (slow, plain)], []

        def last(frame: Packet) -> bool:
            if frame.original in missing:
                missing.remove(frame.original)
            else:
                seen.append(frame)
            return not missing

        sender.send(slow, plain)
        receiver.expect(last, "sentinels")
        return seen

    def warm(self) -> None:
        """Neighbours of the underlay are resolved and, where there is one, the fast path carries both directions."""
        for back, greyhound in ((False, self.a), (True, self.b)):
            def carried() -> bool:
                before = greyhound.tunnel("tap1")["fast"]["tx_packets"]
                self.crosses(udp(), back)
                return self.xdp == "off" or greyhound.tunnel("tap1")["fast"]["tx_packets"] > before
            wait_until(carried, "the fast path carries frames")


def udp(size: int = 32, **fields) -> Packet:
    """A frame with a UDP packet between stations that are neither's own."""
    header = Ether(src="02:00:00:00:00:0a", dst="02:00:00:00:00:0b")
    return header / IP(src="10.77.0.1", dst="10.77.0.2", **fields) / UDP(sport=1000, dport=2000) / token(size)


def arp() -> Packet:
    """A question to all stations."""
    return Ether(src="02:00:00:00:00:0a", dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="10.77.0.1", pdst="10.77.0.9")


__all__ = ["JoinedLan", "arp", "udp"]
