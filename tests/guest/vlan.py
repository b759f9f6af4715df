"""VLAN devices (the kernel's 802.1q) as ports: who gets what, by which path, and with which tag it leaves.

    host ── VLAN 7 ── router ── VLAN 100 ── far, whose tunnel is the kernel's
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import struct
import subprocess
import sys

from harness import run, test

from greyhound import Greyhound, binary
from topology import Bed, Namespace, veth, wait_until

UNDER, OVER = 100, 7
TUNNEL = {
    "name": "gre1", "mode": "gre", "local": "10.9.0.1", "remote": "10.9.0.2", "ttl": 64,
    "address": ["172.16.0.1/30"], "routes": ["10.2.0.0/24", "fd02::/64"],
}
SOL_PACKET, PACKET_AUXDATA, VLAN_VALID = 263, 8, 0x10


def vlan(ns: Namespace, device: str, number: int, *options: str) -> str:
    """A VLAN device, up; its name."""
    name = f"{device}.{number}"
    ns.ip("link", "add", "link", device, "name", name, "type", "vlan", "id", str(number), *options)
    sysctl(ns, "ipv6/conf/{}/accept_dad", name, 0)
    ns.ip("link", "set", name, "up")
    return name


def sysctl(ns: Namespace, key: str, device: str, value: int) -> None:
    """A device's setting; its name may have dots."""
    with ns.entered(), open(f"/proc/sys/net/{key.format(device)}", "w", encoding="ascii") as file:
        file.write(str(value))


class Site(Bed):
    """Host, router and far end; the router's two sides are devices of their own, or (`one`) VLANs of one."""

    def __init__(self, directory: pathlib.Path, under: int | None = UNDER, over: int | None = OVER, one: bool = False,
                 card: bool = False):
        super().__init__()
        try:
            self.host, self.router, self.far = (self.namespace(role) for role in ("host", "router", "far"))
            self.router.make_router()
            if one:
                self.trunk(card)
            else:
                veth(self.host, "h0", self.router, "inner0")
                veth(self.far, "f0", self.router, "outer0")
                self.parents = ("outer0", "inner0")
            self.underlay, self.overlay = (
                parent if number is None else vlan(self.router, parent, number)
                for parent, number in zip(self.parents, (under, over)))
            self.outside = "f0" if under is None else vlan(self.far, "f0", under)
            self.inside = "h0" if over is None else vlan(self.host, "h0", over)
            self.addresses()
            self.greyhound = self.keep(Greyhound(self.router, directory))
        except BaseException:
            self._stack.close()
            raise

    def trunk(self, card: bool) -> None:
        """Everybody on one wire that passes tags on: a bridge, and towards the router a card's wire or a veth."""
        link = self.namespace("link")
        link.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        link.ip("link", "set", "br0", "up")
        veth(self.host, "h0", link, "p1")
        veth(self.far, "f0", link, "p2")
        if card:
            # They come back here, under whatever name, when the namespaces that had them go.
            found = wait_until(lambda: (c := cards())[1:] and c, "both cards are here")
            for device, ns, name in zip(found, (self.router, link), ("trunk", "p0")):
                ns_move(device, ns, name)
        else:
            veth(self.router, "trunk", link, "p0")
        for port in ("p0", "p1", "p2"):
            link.ip("link", "set", port, "master", "br0")
        self.link = link
        self.parents = ("trunk", "trunk")

    def addresses(self) -> None:
        for ns, device, *nets in (
            (self.host, self.inside, "10.1.0.2/24", "fd01::2/64"),
            (self.router, self.overlay, "10.1.0.1/24", "fd01::1/64"),
            (self.router, self.underlay, "10.9.0.1/24"),
            (self.far, self.outside, "10.9.0.2/24"),
            (self.far, "lo", "10.2.0.2/32", "fd02::2/128"),
        ):
            for net in nets:
                ns.ip("address", "add", net, "dev", device, *(["nodad"] if ":" in net else []))
        self.host.ip("route", "add", "default", "via", "10.1.0.1")
        self.host.ip("-6", "route", "add", "default", "via", "fd01::1")
        self.far.ip("link", "add", "gre1", "type", "gre", "local", "10.9.0.2", "remote", "10.9.0.1", "ttl", "64")
        self.far.ip("link", "set", "gre1", "up")
        for net in ("10.1.0.0/24", "fd01::/64"):
            self.far.ip("route", "add", net, "dev", "gre1")

    def start(self, tunnel: dict | None = None, **router) -> Site:
        self.greyhound.start([tunnel or TUNNEL], **({"underlay": [self.underlay], "overlay": [self.overlay]} | router))
        return self

    # What happens to packets.

    def ping(self, count: int = 5, to: str = "10.2.0.2") -> None:
        """Each echo comes back."""
        self.host.run("ping", "-n", "-c", str(count), "-i", "0.05", "-W", "5", to)

    def fast(self) -> tuple[int, int]:
        share = self.greyhound.tunnel()["fast"]
        return share["rx_packets"], share["tx_packets"]

    def goes_fast(self) -> None:
        """Both directions by the fast path, every packet of both families, as soon as neighbours are known."""

        def warm(to: str) -> bool:
            before = self.fast()
            self.host.run("ping", "-n", "-c", "1", "-W", "1", to, check=False)
            return all(now > then for now, then in zip(self.fast(), before))

        for to in ("10.2.0.2", "fd02::2"):
            wait_until(lambda t=to: warm(t), f"the fast path carries to {to}; {self.steering()}")
            before, slow = self.fast(), self.greyhound.tunnel()["slow"]
            self.ping(to=to)
            after = self.fast()
            assert [now - then for now, then in zip(after, before)] >= [5, 5], (before, after, slow, self.steering())

    def goes_slow(self) -> None:
        """All by the slow path."""
        wait_until(lambda: self.host.run("ping", "-n", "-c", "1", "-W", "1", "10.2.0.2", check=False).returncode == 0, "an echo")
        before = self.fast()
        self.ping()
        assert self.fast() == before, self.steering()

    def steering(self) -> dict[str, int]:
        counters = self.greyhound.stats()["xdp"].get("all", {})
        return {reason: n for reason, n in counters.items() if n}

    def redirected(self) -> int:
        return sum(n for reason, n in self.steering().items() if reason.startswith("redirected"))

    def check(self) -> list[dict]:
        """The findings of `greyhound check`."""
        done = self.router.run(binary(), "check", "--json", "--config", str(self.greyhound.config_file), check=False)
        return json.loads(done.stdout)["findings"]

    def left(self, device: str) -> str:
        """What `check` says of a device that is left to the kernel."""
        found = [f["found"] for f in self.check() if f["subject"] == device and "left to the kernel" in f["found"]]
        return found[0] if found else ""


def cards() -> list[str]:
    """This machine's network cards, by name."""
    return sorted(path.name for path in pathlib.Path("/sys/class/net").iterdir() if (path / "device").exists())


def ns_move(device: str, ns: Namespace, name: str) -> None:
    """This machine's card into a namespace, under another name."""
    subprocess.run(["ip", "link", "set", device, "down"], check=True)
    subprocess.run(["ip", "link", "set", device, "name", name, "netns", ns.name], check=True)
    ns.ip("link", "set", name, "up")


class Wire:
    """A packet socket on a device: whole frames, and the tags that the kernel has taken out of them."""

    def __init__(self, ns: Namespace, device: str):
        self.socket = ns.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.socket.bind((device, 3))
        self.socket.settimeout(5)

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self.socket.send(frame)

    def seen(self, token: bytes) -> tuple[int | None, bytes]:
        """The tag's control information and the frame, of the next frame that has `token` in it and was not sent here."""
        while True:
            frame, ancillary, _, (_, _, kind, *_) = self.socket.recvmsg(4096, 256)
            if token in frame and kind != 4:
                status, _, _, _, _, tci, _ = struct.unpack_from("IIIHHHH", ancillary[0][2])
                return (tci if status & VLAN_VALID else None), frame

    def close(self) -> None:
        self.socket.close()


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ipv4(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0,
                         socket.inet_aton(source), socket.inet_aton(destination))
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def udp(payload: bytes) -> bytes:
    return struct.pack("!HHHH", 1000, 2000, 8 + len(payload), 0) + payload


def frame(to: str, tags: list[tuple[int, int]], packet: bytes) -> bytes:
    """A frame to a link address, with these tags (EtherType, control information) in it."""
    head = mac(to) + mac("02:00:00:00:aa:aa")
    for kind, control in tags:
        head += struct.pack("!HH", kind, control)
    return head + b"\x08\x00" + packet


LAYOUTS = {
    "underlay": {"over": None},
    "overlay": {"under": None},
    "both": {},
    "stick": {"one": True},
    "beside the device itself": {"one": True, "over": None},
}


@test(*LAYOUTS)
def carries(layout: str, directory: pathlib.Path) -> None:
    with Site(directory, **LAYOUTS[layout]) as site:
        site.start().goes_fast()
        # On the wire: its own tag, with priority 0, and no other.
        seen = site.keep(Wire(site.far, "f0"))
        site.host.run("ping", "-n", "-c", "1", "-W", "5", "-p", "6772657968", "10.2.0.2")
        assert seen.seen(b"greyh")[0] == (None if LAYOUTS[layout].get("under", 1) is None else UNDER)
        findings = [f for f in site.check() if f["severity"] == "fail"]
        assert not findings, findings


@test("auto", "generic")
def on_a_card(xdp: str, directory: pathlib.Path) -> None:
    """Tags stay in the frames: the program that cannot ask for them."""
    with Site(directory, one=True, card=True) as site:
        site.start(xdp=xdp).goes_fast()


@test()
def on_a_veth_in_generic_mode_the_kernel_carries(directory: pathlib.Path) -> None:
    """Nobody sees the tags there."""
    with Site(directory, one=True) as site:
        site.start(xdp="generic").goes_slow()
        assert "left to the kernel" in site.greyhound.log()


@test("veth", "card")
def tenants_are_kept_apart(device: str, directory: pathlib.Path) -> None:
    with Site(directory, one=True, card=device == "card") as site:
        for ns in (site.host, site.far):
            site.sink(ns, 2000)
        site.start().goes_fast()
        # Nobody else's frames are forwarded by the kernel either.
        sysctl(site.router, "ipv4/conf/{}/forwarding", "trunk", 0)
        vlan(site.router, "trunk", 8)
        sysctl(site.router, "ipv4/conf/{}/forwarding", "trunk.8", 0)
        router = site.router.mac("trunk")
        wire, far = site.keep(Wire(site.host, "h0")), site.keep(Wire(site.far, "f0"))

        def packet(token: bytes) -> bytes:
            return ipv4("10.1.0.2", "10.2.0.2", 17, udp(token))

        before = site.redirected()
        wire.send(*(frame(router, tags, packet(b"<stranger>")) for tags in (
            [], [(0x8100, 8)], [(0x8100, 9)], [(0x8100, 0)], [(0x8100, 0xE000)], [(0x88A8, OVER)],
            [(0x8100, OVER), (0x8100, OVER)], [(0x8100, 8), (0x8100, OVER)], [(0x88A8, 8), (0x8100, OVER)])))
        outer = ipv4("10.9.0.2", "10.9.0.1", 47, b"\0\0\x08\0" + ipv4("10.2.0.2", "10.1.0.2", 17, udp(b"<stranger>")))
        far.send(*(frame(router, tags, outer) for tags in ([(0x8100, 9)], [(0x88A8, UNDER)])))
        # What is the tenant's, whatever its priority, is the first that arrives, and all that was redirected.
        wire.send(frame(router, [(0x8100, 0xF000 | OVER)], packet(b"<tenant's>")))
        control, got = far.seen(b"<")
        assert b"<tenant's>" in got and control == UNDER, (control, got)
        far.send(frame(router, [(0x8100, 0xA000 | UNDER)], outer.replace(b"<stranger>", b"<tenant's>")))
        control, got = wire.seen(b"<")
        assert b"<tenant's>" in got and control == OVER, (control, got)
        assert site.redirected() == before + 2, site.steering()


@test()
def options_that_cannot_be_done_alike_are_left_alone(directory: pathlib.Path) -> None:
    with Site(directory) as site:
        site.start().goes_fast()
        device = site.underlay
        wire = site.keep(Wire(site.far, "f0"))
        for on, off, word, control in (
            (["egress-qos-map", "0:3"], ["egress-qos-map", "0:0"], "egress-qos-map", 0x6000 | UNDER),
            (["reorder_hdr", "off"], ["reorder_hdr", "on"], "reorder_hdr", UNDER),
        ):
            site.router.ip("link", "set", device, "type", "vlan", *on)
            wait_until(lambda w=word: f"{device}: left to the kernel" in site.greyhound.log() and w in site.greyhound.log(), word)
            site.goes_slow()
            assert word in site.left(device), site.check()
            site.host.run("ping", "-n", "-c", "1", "-W", "5", "-p", "6772657968", "10.2.0.2")
            seen, _ = wire.seen(b"greyh")
            assert seen == control, (word, seen)
            wire.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while wire.socket.recv(4096):
                    pass
            wire.socket.settimeout(5)
            site.router.ip("link", "set", device, "type", "vlan", *off)
            site.goes_fast()
        # These change nothing for packets.
        site.router.ip("link", "set", device, "type", "vlan", "ingress-qos-map", "1:2", "loose_binding", "on")
        site.goes_fast()


@test()
def what_is_not_ours_is_named(directory: pathlib.Path) -> None:
    with Site(directory, under=None) as site:
        router = site.router
        router.ip("link", "add", "link", "outer0", "name", "service", "type", "vlan", "proto", "802.1ad", "id", "5")
        vlan(router, "inner0.7", 9)
        router.ip("link", "add", "br0", "type", "bridge")
        router.ip("link", "set", "br0", "up")
        vlan(router, "br0", 7)
        router.ip("link", "add", "bond0", "type", "bond")
        names = {"service": "802.1ad", "inner0.7.9": "QinQ", "br0": "bridge", "br0.7": "br0", "bond0": "bond"}
        for name in names:
            router.ip("link", "set", name, "up")
        site.greyhound.configure([TUNNEL], underlay=["outer0"], overlay=["inner0.7", *names])
        for name, word in names.items():
            assert word in site.left(name), (name, site.check())
        # The others go fast beside them.
        site.start(overlay=["inner0.7", *names]).goes_fast()
        for name, word in names.items():
            assert f"{name}: left to the kernel" in site.greyhound.log(), name


@test("bridge", "bond")
def a_stacked_device_goes_the_slow_way(kind: str, directory: pathlib.Path) -> None:
    """Bridges and bonds as the underlay."""
    with Site(directory, under=None, over=None) as site:
        router = site.router
        router.ip("address", "flush", "dev", "outer0")
        router.ip("link", "set", "outer0", "down")
        router.ip("link", "add", "stack", "type", kind)
        router.ip("link", "set", "outer0", "master", "stack")
        for device in ("outer0", "stack"):
            router.ip("link", "set", device, "up")
        router.ip("address", "add", "10.9.0.1/24", "dev", "stack")
        site.start(underlay=["stack"]).goes_slow()
        assert kind in site.left("stack"), site.check()


@test()
def follows_what_becomes_of_the_devices(directory: pathlib.Path) -> None:
    with Site(directory, one=True) as site:
        router, log = site.router, site.greyhound.log
        site.start().goes_fast()

        def restore(device: str, *nets: str) -> None:
            for net in nets:
                router.ip("address", "replace", net, "dev", device, *(["nodad"] if ":" in net else []))
            router.ip("route", "replace", "10.2.0.0/24", "dev", "gre1")

        inside = ("10.1.0.1/24", "fd01::1/64")
        # A VLAN device down and up again: IPv6 addresses went with it.
        router.ip("link", "set", site.overlay, "down")
        router.ip("link", "set", site.overlay, "up")
        restore(site.overlay, *inside)
        site.goes_fast()
        # Gone, and there again.
        router.ip("link", "del", site.overlay)
        wait_until(lambda: f'"{site.overlay}": there is no such device' in log(), "the loss is said")
        vlan(router, "trunk", OVER)
        restore(site.overlay, *inside)
        site.goes_fast()
        # In another namespace, and back.
        router.ip("link", "set", site.overlay, "netns", site.far.name)
        count = log().count("fast path on again")
        site.far.ip("link", "set", site.overlay, "netns", router.name)
        router.ip("link", "set", site.overlay, "up")
        restore(site.overlay, *inside)
        site.goes_fast()
        # The device beneath down and up again: the VLAN devices go down and up with it.
        router.ip("link", "set", "trunk", "down")
        router.ip("link", "set", "trunk", "up")
        restore(site.overlay, *inside)
        site.goes_fast()
        # Renamed: the one that was meant is not there.
        router.ip("link", "set", site.overlay, "down")
        router.ip("link", "set", site.overlay, "name", "other")
        router.ip("link", "set", "other", "up")
        restore("other", *inside)
        site.goes_slow()
        router.ip("link", "set", "other", "down")
        router.ip("link", "set", "other", "name", site.overlay)
        router.ip("link", "set", site.overlay, "up")
        restore(site.overlay, *inside)
        site.goes_fast()
        # The device beneath renamed: nobody named it.
        router.ip("link", "set", "trunk", "down")
        router.ip("link", "set", "trunk", "name", "stem")
        router.ip("link", "set", "stem", "up")
        restore(site.overlay, *inside)
        site.goes_fast()
        assert log().count("fast path on again") > count


@test("auto", "off")
def a_wire_from_a_vlan(xdp: str, directory: pathlib.Path) -> None:
    """Ethernet over GRE bound to a VLAN device: its frames without its tag, other tags as they are, nobody else's."""
    with Site(directory) as site:
        site.far.ip("link", "add", "tap1", "type", "gretap", "local", "10.9.0.2", "remote", "10.9.0.1", "ttl", "64", "key", "9")
        site.router.ip("address", "flush", "dev", site.overlay)
        for ns, device, n in ((site.far, "tap1", 2), (site.host, site.inside, 1)):
            ns.ip("link", "set", device, "mtu", "1400", "up")
            ns.ip("address", "add", f"10.5.0.{n}/24", "dev", device)
            ns.ip("address", "add", f"10.6.0.{n}/24", "dev", vlan(ns, device, 9))
        tunnel = {"name": "lan1", "mode": "gretap", "local": "10.9.0.1", "remote": "10.9.0.2", "ttl": 64, "key": 9,
                  "bridge": site.overlay}
        site.start(tunnel, xdp=xdp)
        for to in ("10.5.0.2", "10.6.0.2"):
            wait_until(lambda t=to: site.host.run("ping", "-n", "-c", "1", "-W", "1", t, check=False).returncode == 0, to)
        share = "slow" if xdp == "off" else "fast"
        before = site.greyhound.tunnel("lan1")[share]
        site.ping(to="10.5.0.2")
        site.ping(to="10.6.0.2")
        after = site.greyhound.tunnel("lan1")[share]
        for way in ("rx_packets", "tx_packets"):
            assert after[way] >= before[way] + 10, (before, after, site.steering())
        # Another VLAN's frames, and frames without a tag, stay on this side.
        inner, seen = site.keep(Wire(site.host, "h0")), site.keep(Wire(site.far, "tap1"))
        to = "02:00:00:00:bb:bb"
        for tags in ([(0x8100, 8)], [], [(0x8100, 0)], [(0x88A8, OVER)], [(0x8100, 8), (0x8100, OVER)]):
            inner.send(frame(to, tags, ipv4("10.5.0.1", "10.5.0.9", 17, udp(b"<stranger>"))))
        inner.send(frame(to, [(0x8100, OVER)], ipv4("10.5.0.1", "10.5.0.9", 17, udp(b"<tenant's>"))))
        control, got = seen.seen(b"<")
        assert b"<tenant's>" in got and control is None, (control, got)


if __name__ == "__main__":
    sys.exit(run())
