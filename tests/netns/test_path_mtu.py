"""A router in the underlay whose next link is narrow: what is learned of it, who is told, and what gets through all the same."""

from __future__ import annotations

import contextlib
import re
from types import SimpleNamespace

import pytest
from scapy.layers.inet6 import ICMPv6PacketTooBig
from scapy.utils import checksum

from beds import payload_of, token, v4, v6
from test_kinds import FAR, FRAMES, HEADER, KINDS, Routers, options
from test_takeover import takeover
from test_tcp import transfer
from topology import Crossing, wait_until
from wire import ICMP, IP, UDP, Ether, IPv6, Tap, carries, checksums_ok, forwarded, ip_bytes

BULK = 4 << 20
EVERY = KINDS | FRAMES
NARROW = 1400


class Bed(Routers):
    """Two routers with somebody else's between them, and scapy at host A and host B."""

    LAB = Crossing

    def __init__(self, directory, kind: str, **router):
        tunnel = options(kind) | ({"routes": []} if kind in FRAMES else {})
        super().__init__(directory, tunnel, **router)
        mode, self.carries, _, self.mtu = EVERY[kind]
        self.overhead = 1500 - self.mtu
        self.remote = "fd09::2" if "6" in mode else "10.9.0.2"
        # What the router itself puts into frames takes the slow path.
        self.fast = self.xdp != "off" and kind not in FRAMES
        if kind in FRAMES:
            for router_ns, far in ((self.router_a, 2), (self.router_b, 1)):
                router_ns.ip("route", "add", f"10.{far}.0.0/24", "via", f"172.16.1.{far}")
                router_ns.ip("-6", "route", "add", f"fd0{far}::/64", "via", f"fd00:172:1::{far}")
        self.near = self._stack.enter_context(contextlib.closing(Tap(self.host_a, "a0")))
        self.far = self._stack.enter_context(contextlib.closing(Tap(self.host_b, "b0")))
        self.macs = self.host_a.mac("a0"), self.router_a.mac("lan")
        for family in self.carries:
            self.ping(to=FAR[family])

    def send(self, *packets) -> None:
        """Host A sends these packets to its router."""
        self.near.send(*(Ether(src=self.macs[0], dst=self.macs[1]) / packet for packet in packets))

    def sized(self, family: str, size: int, **fields):
        """A packet for host B of `size` bytes in all."""
        if family == "6":
            return v6(token(size - 48), dst="fd02::2", **fields)
        return v4(token(size - 28), dst="10.2.0.2", **({"flags": "DF"} | fields))

    def arrives(self, packet) -> None:
        """Host B receives the packet as both routers forward it."""
        frame = self.far.expect(carries(payload_of(packet)), "the packet")
        assert ip_bytes(frame) == forwarded(type(packet)(forwarded(packet)))

    def learn(self, mtu: int = NARROW) -> None:
        """The underlay becomes narrow, and router A learns that from a packet that is lost on it."""
        self.lab.narrow(mtu)
        known = [{"remote": self.remote, "mtu": mtu}]

        def learned() -> bool:
            self.send(self.sized(self.carries[-1], self.mtu))
            said = self.a.tunnel()["path_mtu"]
            return [{key: way[key] for key in ("remote", "mtu")} for way in said] == known

        wait_until(learned, f"router A knows that the path carries {mtu}")
        # What was told to host A's kernel meanwhile is of no concern here.
        self.near.drain()

    def told(self, family: str, packet) -> int:
        """The MTU that host A is told when it sends the packet, by the address that its router has there."""
        self.send(packet)
        if family == "6":
            error = self.near.expect(lambda f: ICMPv6PacketTooBig in f and carries(payload_of(packet)[:24])(f), "Packet Too Big")
            assert (error[IPv6].src, error[IPv6].dst, error[IPv6].plen) == ("fd01::1", "fd01::2", 1240)
            quoted, said = bytes(error[ICMPv6PacketTooBig].payload), error[ICMPv6PacketTooBig].mtu
            assert quoted == forwarded(packet)[:1232]
            return said
        error = self.near.expect(lambda f: ICMP in f and f[ICMP].type == 3 and carries(payload_of(packet)[:24])(f), "ICMP 3/4")
        assert (error[IP].src, error[IP].dst, error[ICMP].code) == ("10.1.0.1", "10.1.0.2", 4)
        # As the kernel's: golden/README.md.
        assert (error[IP].ttl, error[IP].tos, error[IP].flags.DF, error[IP].len) == (64, 0xC0, False, 576)
        assert checksums_ok(error[IP]) and bytes(error[ICMP].payload)[:548] == forwarded(packet)[:548]
        return error[ICMP].nexthopmtu


@pytest.fixture
def crossing(tmp_path):
    """Call it with a kind to get the bed running."""
    with contextlib.ExitStack() as stack:
        yield lambda kind, **router: stack.enter_context(contextlib.closing(Bed(tmp_path, kind, **router)))


@pytest.mark.parametrize("kind", EVERY)
def test_path_mtu_is_learned_and_told(crossing, xdp, kind):
    """One packet is lost, then senders are told the path's MTU less the overhead; what fits goes on as before (mtu-2, mtu-3)."""
    bed = crossing(kind, xdp=xdp)
    bed.learn()
    room = NARROW - bed.overhead
    for family in bed.carries:
        assert bed.told(family, bed.sized(family, room + 1)) == room
        assert bed.told(family, bed.sized(family, bed.mtu)) == room
        before = bed.a.tunnel()["fast"]["tx_packets"]
        fits = bed.sized(family, room)
        bed.send(fits)
        bed.arrives(fits)
        fast = bed.a.tunnel()["fast"]["tx_packets"]
        # The worker numbers what the router's own IPv6 says into the tunnel, too.
        assert fast > before if bed.fast else fast == before
    shown = bed.a.ask("tunnel", "show", "gre1").stdout
    assert f"path mtu {room} = {NARROW} of the path to {bed.remote} - " in shown
    assert bed.a.tunnel()["errors"]["too_big"] >= 1
    # The device keeps the underlay's MTU: the path may become wide again.
    assert bed.router_a.link("gre1")["mtu"] == bed.mtu


@pytest.mark.parametrize("kind", [kind for kind in EVERY if "4" in EVERY[kind][1]])
def test_without_df_it_arrives_in_pieces(crossing, xdp, kind):
    """IPv4 without DF is cut inside, where the kernel's own tunnels drop it unheard (mtu-2)."""
    bed = crossing(kind, xdp=xdp)
    bed.learn()
    for size in (NARROW - bed.overhead + 1, bed.mtu):
        packet = bed.sized("4", size, flags=0, id=0x4000 + size % 100)
        bed.send(packet)
        frames = bed.far.collect(lambda f: IP in f and f[IP].id == packet.id, 2, "fragments")
        parts = sorted((frame[IP] for frame in frames), key=lambda part: part.frag)
        assert [(bool(part.flags.MF), part.ttl) for part in parts] == [(True, 62), (False, 62)]
        assert all(checksum(ip_bytes(part)[:20]) == 0 for part in parts)
        assert b"".join(ip_bytes(part)[20:] for part in parts) == bytes(packet)[20:]
    # A fragment is cut where it stands.
    whole = bed.sized("4", bed.mtu, flags="MF", frag=200, id=0x5001)
    bed.send(whole)
    frames = bed.far.collect(lambda f: IP in f and f[IP].id == whole.id, 2, "fragments")
    parts = sorted((frame[IP] for frame in frames), key=lambda part: part.frag)
    assert parts[0].frag == 200 and all(part.flags.MF for part in parts)
    assert b"".join(ip_bytes(part)[20:] for part in parts) == bytes(whole)[20:]


@pytest.mark.parametrize("kind", [kind for kind in EVERY if "6" in EVERY[kind][1]])
def test_1280_bytes_of_ipv6_get_through(crossing, xdp, kind):
    """Over a path that leaves less, in outer fragments although the outer packet would carry DF; no sender is told less (v6-2)."""
    bed = crossing(kind, xdp=xdp)
    bed.learn(1290)
    for _ in range(2):
        packet = bed.sized("6", 1280)
        bed.send(packet)
        bed.arrives(packet)
    assert bed.told("6", bed.sized("6", 1281)) == 1280
    assert bed.a.stats()["slow_path"]["fragmented"] >= 2


@pytest.mark.parametrize("kind", ["gre", "gre key csum seq", "sit", "ip6gre", "ipip6", "gretap"])
def test_tcp_works_through(crossing, xdp, kind):
    """Hosts that discover the path MTU get their bytes through both ways, narrow as the way is."""
    bed = crossing(kind, xdp=xdp)
    bed.lab.narrow(NARROW)
    bed.lab.narrow(NARROW, towards=1)
    for family in bed.carries:
        transfer(bed.host_a, bed.host_b, FAR[family], BULK)
        transfer(bed.host_b, bed.host_a, {"4": "10.1.0.2", "6": "fd01::2"}[family], BULK)
        # The host has learned it by the way.
        size = str(bed.mtu - HEADER[family])
        ping = bed.host_a.run("ping", f"-{family}", "-n", "-c", "1", "-M", "do", "-s", size, FAR[family], check=False)
        assert re.search(rf"mtu[:=] ?{NARROW - bed.overhead}\b", ping.stdout + ping.stderr), ping
    assert [way["mtu"] for way in bed.a.tunnel()["path_mtu"]] == [NARROW]


def test_clamped_connections_need_no_discovery(crossing, xdp):
    """With `clamp_mss`, connections that begin after the path MTU was learned announce what the path carries."""
    bed = crossing("gre", xdp=xdp)
    bed.a.configure([bed._tunnel(options("gre") | {"clamp_mss": True}, 1, 1)], underlay=["wan"], overlay=["lan"], xdp=xdp)
    bed.a.ask("reload")
    bed.learn()
    errors = bed.a.tunnel()["errors"]["too_big"]
    transfer(bed.host_a, bed.host_b, FAR["4"], BULK)
    transfer(bed.host_a, bed.host_b, FAR["6"], BULK)
    tunnel = bed.a.tunnel()
    assert tunnel["mss_clamped"] >= 4
    assert tunnel["errors"]["too_big"] == errors


def test_a_path_mtu_expires(crossing, xdp):
    """After net.ipv4.route.mtu_expires the path is tried again at its full width."""
    bed = crossing("gre", xdp=xdp)
    bed.router_a.sysctl("net.ipv4.route.mtu_expires", 1)
    bed.learn()
    bed.lab.narrow(None)
    wait_until(lambda: bed.a.tunnel()["path_mtu"] == [], "the path MTU is forgotten")
    packet = bed.sized("4", bed.mtu)
    bed.send(packet)
    bed.arrives(packet)


def test_a_planned_restart_forgets_nothing(crossing, xdp):
    """The process that takes over knows the path from the first packet on."""
    bed = crossing("gre", xdp=xdp)
    bed.learn()
    takeover(SimpleNamespace(greyhound=bed.a, router=bed.router_a))
    # Nobody has to say so again: the packet leaves no more, and is answered at once.
    assert bed.told("4", bed.sized("4", bed.mtu)) == NARROW - bed.overhead
    assert bed.a.tunnel()["errors"]["too_big"] == 0


def test_another_way_is_learned_anew(crossing, xdp):
    """What was said of one way says nothing of another: when the next hop changes, the path MTU is forgotten."""
    bed = crossing("gre", xdp=xdp)
    bed.learn()
    bed.lab.underlay.ip("address", "add", "10.9.0.253/32", "dev", "u1")
    bed.lab.narrow(None)
    bed.router_a.ip("route", "replace", "10.9.0.2/32", "via", "10.9.0.253", "dev", "wan", "onlink")
    wait_until(lambda: bed.a.tunnel()["path_mtu"] == [], "the path MTU is forgotten")
    wait_until(lambda: bed.a.tunnel()["state"] == "up", "the tunnel is up again")
    packet = bed.sized("4", bed.mtu)
    bed.send(packet)
    bed.arrives(packet)
