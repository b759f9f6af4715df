"""A gretap or ip6gretap without a wire: a device for frames like any other, with addresses and routes, or in a bridge."""

from __future__ import annotations

import contextlib
import re

import pytest

from beds import is_gre, token, v4, v6
from lan import JoinedLan, udp
from test_kinds import UNDERLAY6, Routers
from test_path_mtu import NARROW, Bed
from test_tcp import transfer
from topology import Crossing, veth
from wire import ARP, GRE, IP, Dot1Q, Ether, IPv6, Tap, carries, forwarded, ip_bytes

BULK = 8 << 20
# Mode, further options, MTU over 1500 bytes.
KINDS = {
    "gretap": ("gretap", {}, 1462),
    "gretap key csum seq": ("gretap", {"key": 42, "csum": True, "seq": True}, 1450),
    "gretap, nopmtudisc": ("gretap", {"pmtudisc": False, "ttl": 64}, 1462),
    "ip6gretap": ("ip6gretap", {}, 1434),
    "ip6gretap, no limit": ("ip6gretap", {"encaplimit": "none"}, 1442),
}
FAR = {"4": "10.2.0.2", "6": "fd02::2"}


def options(kind: str) -> dict:
    """The kind's configuration as router A has it."""
    mode, extra, _ = KINDS[kind]
    tunnel = {"mode": mode, **extra, "routes": []}
    return tunnel | ({"local": UNDERLAY6[0], "remote": UNDERLAY6[1]} if "6" in mode else {})


def route(bed) -> None:
    """Each router finds the other's LAN behind the other's address on the tunnel's device."""
    for ns, other in ((bed.router_a, 2), (bed.router_b, 1)):
        ns.ip("route", "add", f"10.{other}.0.0/24", "via", f"172.16.1.{other}", "dev", "gre1")
        ns.ip("-6", "route", "add", f"fd0{other}::/64", "via", f"fd00:172:1::{other}", "dev", "gre1")


@pytest.mark.parametrize("kind", KINDS)
def test_routed(tmp_path, xdp, kind):
    """Neighbours are resolved through the tunnel; pings of every size, bulk TCP, and the kernel's own "too big"."""
    mtu = KINDS[kind][2]
    with contextlib.closing(Routers(tmp_path, options(kind), xdp=xdp)) as bed:
        route(bed)
        assert bed.a.tunnel()["mtu"] == bed.router_a.link("gre1")["mtu"] == mtu
        for family, header in (("4", 28), ("6", 48)):
            bed.ping(f"-{family}", to=FAR[family])
            bed.ping(f"-{family}", "-M", "do", "-s", str(mtu - header), to=FAR[family])
            bed.ping(f"-{family}", "-M", "dont", "-s", "4000", to=FAR[family])
            refused = bed.host_a.run("ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", str(mtu - header + 1), FAR[family], check=False)
            assert refused.returncode == 1 and re.search(rf"mtu[:= ]+{mtu}\b", refused.stdout + refused.stderr)
            transfer(bed.host_a, bed.host_b, FAR[family], BULK)
        neighbour = bed.router_a.ip_json("neighbour", "show", "to", "172.16.1.2", "dev", "gre1")[0]
        assert neighbour["lladdr"] == bed.router_b.mac("gre1")
        for side in (bed.a, bed.b):
            tunnel = side.tunnel()
            assert not any(tunnel["drops"].values()), tunnel["drops"]
            # What is behind a link address is the kernel's to find; numbers are a worker's all the same.
            assert "seq" in kind or not any(tunnel["fast"].values())


def test_outer_packet(single, xdp):
    """The frame is whole and the kernel's; outer TTL, TOS and DF come from the packet in it (tap-1)."""
    tunnel = {"mode": "gretap", "address": ["10.200.0.1/30", "fd00:200::1/64"], "routes": [], "tos": "inherit"}
    bed = single(tunnel=tunnel, xdp=xdp)
    peer = "02:00:00:00:03:01"
    for family, gateway, net in (("-4", "10.200.0.2", "10.2.0.0/16"), ("-6", "fd00:200::2", "fd02::/64")):
        bed.router.ip("neighbour", "add", gateway, "lladdr", peer, "dev", "gre1")
        bed.router.ip(family, "route", "add", net, "via", gateway, "dev", "gre1")
    for packet, tos in ((v4(tos=0xB8), 0xB8), (v4(flags="DF", ttl=9), 0), (v6(tc=0x20, hlim=7), 0x20)):
        outer = bed.encapsulated(packet)
        inner = type(packet)(forwarded(packet))
        assert (outer.proto, outer[GRE].proto, outer.flags.DF) == (47, 0x6558, True)
        assert outer.ttl == (inner.hlim if isinstance(inner, IPv6) else inner.ttl)
        assert outer.tos == tos
        frame = Ether(bytes(outer[GRE].payload))
        assert (frame.src, frame.dst) == (bed.router.mac("gre1"), peer)
        assert bytes(frame.payload) == bytes(inner)
    # A question to all: TTL 64, as the kernel has it of what is no IP packet.
    bed.router.ip("route", "add", "10.3.0.0/24", "dev", "gre1")
    bed.send_inside(v4(dst="10.3.0.9"))
    outer = bed.outside.expect(lambda f: is_gre(f) and ARP in f, "the question")[IP]
    assert outer.ttl == 64 and outer[ARP].pdst == "10.3.0.9"


def test_inner_frame(single, xdp):
    """What comes out of the tunnel is the device's: a packet in a frame to its address is forwarded, another is not."""
    tunnel = {"mode": "gretap", "address": ["10.200.0.1/30"], "routes": []}
    bed = single(tunnel=tunnel, xdp=xdp)
    bed.router.ip("route", "add", "10.2.0.0/16", "via", "10.200.0.2", "dev", "gre1", "onlink")
    packet = v4(src="10.2.0.2", dst="10.1.0.2")
    mine = Ether(dst=bed.router.mac("gre1"), src="02:00:00:00:03:01")
    bed.send_outside(bed.around(bytes(mine / packet), proto=0x6558))
    frame = bed.inside.expect(carries(bytes(packet)[28:]), "the packet")
    assert ip_bytes(frame) == forwarded(packet)
    # As the kernel: no tunnel for packets has these addresses.
    with bed.greyhound.expect_drops(unknown_tunnel=2):
        bed.send_outside(bed.around(v4(src="10.2.0.2", dst="10.1.0.2"), proto=0x0800), bed.around(v6(), proto=0x86DD))
    with bed.greyhound.expect_drops(inner_truncated=1):
        bed.send_outside(bed.around(bytes(13), proto=0x6558))


@pytest.mark.parametrize("kind", ["gretap", "ip6gretap"])
def test_path_mtu(tmp_path, xdp, kind):
    """What a router in the underlay says of its next link is told to senders, less the headers and the frame's own (mtu-3)."""

    class Frames(Routers):
        LAB = Crossing
        send, sized, arrives, told, learn = Bed.send, Bed.sized, Bed.arrives, Bed.told, Bed.learn

    with contextlib.ExitStack() as stack:
        bed = stack.enter_context(contextlib.closing(Frames(tmp_path, options(kind), xdp=xdp)))
        route(bed)
        bed.carries, bed.mtu = "46", KINDS[kind][2]
        bed.remote = UNDERLAY6[1] if "6" in kind else "10.9.0.2"
        bed.near = stack.enter_context(contextlib.closing(Tap(bed.host_a, "a0")))
        bed.far = stack.enter_context(contextlib.closing(Tap(bed.host_b, "b0")))
        bed.macs = bed.host_a.mac("a0"), bed.router_a.mac("lan")
        for family in "46":
            bed.ping(to=FAR[family])
        bed.learn()
        room = NARROW - (1500 - bed.mtu)
        for family in "46":
            packet = bed.sized(family, room)
            bed.send(packet)
            bed.arrives(packet)
            assert bed.told(family, bed.sized(family, room + 1)) == room
        # What may be cut is cut inside the frame.
        packet = v4(token(room), dst="10.2.0.2")
        bed.send(packet)
        pieces = bed.far.collect(lambda f: IP in f and f[IP].id == packet.id and f[IP].dst == "10.2.0.2", 2, "pieces")
        assert [piece[IP].frag * 8 for piece in pieces] == [0, len(bytes(pieces[0][IP].payload))]


def test_in_a_bridge(tmp_path, xdp):
    """The device as a port of the kernel's own bridge, beside the LAN: a switch with the tunnel as one of its cables."""
    with contextlib.closing(JoinedLan(tmp_path, start=False)) as bed:
        for greyhound, ns, side in ((bed.a, bed.router_a, 1), (bed.b, bed.router_b, 2)):
            tunnel = {key: value for key, value in JoinedLan.tunnel({}, 1, side).items() if key != "bridge"}
            greyhound.start([tunnel], underlay=["wan"], overlay=["lan"], xdp=xdp)
            ns.ip("link", "add", "br0", "type", "bridge")
            for port in ("lan", "tap1"):
                ns.ip("link", "set", port, "master", "br0")
            ns.ip("link", "set", "br0", "up")
        bed.host_mtu(1462)
        bed.ping()
        bed.ping("-s", "4000", to="fd05::2")
        for frame in (udp(), Ether(src="02:00:00:00:00:0a", dst="02:00:00:00:00:0b") / Dot1Q(vlan=7) / udp()[IP]):
            bed.crosses(frame)
            bed.crosses(frame, back=True)
        transfer(bed.host_a, bed.host_b, "10.5.0.2", BULK)


class Tenants:
    """Two tenants' LANs on each side, joined by a virtual subnet each (RFC 7637)."""

    SUBNETS = {"lan": 5000, "lan2": 5001}

    def __init__(self, directory, xdp: str):
        self._stack = contextlib.ExitStack()
        bed = self._stack.enter_context(contextlib.closing(JoinedLan(directory, lab=Crossing, start=False)))
        self.bed, self.taps = bed, {}
        for side, router, greyhound, first in ((1, bed.router_a, bed.a, bed.at_a), (2, bed.router_b, bed.b, bed.at_b)):
            second = bed.lab.namespace(f"second{side}")
            veth(second, "c0", router, "lan2")
            router.sysctl("net.ipv6.conf.lan2.disable_ipv6", 1)
            second.sysctl("net.ipv6.conf.c0.disable_ipv6", 1)
            self.taps[side] = {"lan": first, "lan2": self._stack.enter_context(contextlib.closing(Tap(second, "c0")))}
            tunnels = [
                JoinedLan.tunnel({"name": f"nv{vsid}", "bridge": lan, "nvgre": True, "key": vsid}, 1, side)
                for lan, vsid in self.SUBNETS.items()
            ]
            greyhound.configure(tunnels, underlay=["wan"], overlay=list(self.SUBNETS), xdp=xdp)
            greyhound.spawn()
        self.wan = self._stack.enter_context(contextlib.closing(Tap(bed.lab.underlay, "u1")))
        bed.a.wait_ready()
        bed.b.wait_ready()

    def close(self) -> None:
        self._stack.close()


def test_nvgre_tenants(tmp_path, xdp):
    """Tenants with the same addresses are kept apart by their virtual subnets, and flows are told apart (nvgre-1)."""
    with contextlib.closing(Tenants(tmp_path, xdp)) as tenants:
        bed = tenants.bed
        flows = {lan: set() for lan in Tenants.SUBNETS}
        for lan, vsid in Tenants.SUBNETS.items():
            other = next(name for name in Tenants.SUBNETS if name != lan)
            for port in range(16):
                frame = udp()
                frame["UDP"].sport = 1000 + port
                del frame["UDP"].chksum
                raw = bytes(frame)
                tenants.taps[1][lan].send(raw)
                outer = tenants.wan.expect(lambda f, raw=raw: is_gre(f) and raw[42:] in f.original, "the outer packet")[IP]
                assert (outer[GRE].key >> 8, outer[GRE].proto) == (vsid, 0x6558)
                assert not outer[GRE].chksum_present and not outer[GRE].seqnum_present
                flows[lan].add(outer[GRE].key & 0xFF)
                tenants.taps[2][lan].expect(lambda f, raw=raw: f.original == raw, "the frame")
            assert not [f for f in tenants.taps[2][other].drain() if b"<greyhound " in f.original], "crossed over"
            assert len(flows[lan]) > 8
        # RFC 7637 section 3.3: no tags inside.
        tagged = Ether(src="02:00:00:00:00:0a", dst="02:00:00:00:00:0b") / Dot1Q(vlan=7) / udp()[IP]
        with bed.a.expect_drops(inner_tagged=1):
            tenants.taps[1]["lan"].send(tagged)
        # Any flow of the subnet is received, and no other subnet's.
        for key, arrives in ((5000 << 8 | 77, True), (5002 << 8, False), (5000, False)):
            raw = bytes(udp())
            header = Ether(src=bed.router_a.mac("wan"), dst=bed.lab.underlay.mac("u1"))
            forged = header / IP(src="10.9.0.1", dst="10.9.0.2") / GRE(proto=0x6558, key_present=1, key=key) / raw
            with contextlib.closing(Tap(bed.router_a, "wan")) as tap:
                tap.send(forged)
            if arrives:
                tenants.taps[2]["lan"].expect(lambda f, raw=raw: f.original == raw, "the frame")
            last = bytes(udp())
            tenants.taps[1]["lan"].send(last)
            tenants.taps[2]["lan"].expect(lambda f, last=last: f.original == last, "the sentinel")
            others = [tap.drain() for tap in tenants.taps[2].values()]
            assert not any(raw == frame.original for frames in others for frame in frames)
        shown = bed.a.ask("tunnel", "show", "nv5000").stdout
        assert "bridge lan" in shown and "nvgre" in shown and "key 5000" in shown
        tunnel = bed.a.tunnel("nv5001")
        assert (tunnel["bridge"], tunnel["nvgre"], tunnel["ikey"]) == ("lan2", True, 5001)
