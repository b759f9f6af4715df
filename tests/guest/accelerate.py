"""`accelerate`: the kernel's own tunnel devices on the fast path, beside the same devices without it.

    host ── h0/inner0 ── router: gre1 … of the kernel's ── outer0/f0 ── far: the same kind of device

What a router sends is compared packet by packet with what its kernel sends alone; every comparison is a test.
"""

from __future__ import annotations

import collections
import json
import pathlib
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import packets
from harness import run, test
from packets import GRE, IPIP, IPV6, gre, ip4, ip6, udp

from greyhound import Greyhound, binary
from topology import Bed, Namespace, veth, wait_until

# What the device is made with, beside its addresses.
ROWS = (
    "gre", "gre key 42", "gre csum", "gre ikey 7 okey 8 icsum", "gre ttl 64 tos inherit", "gre tos 0xb8", "gre nopmtudisc",
    "gre nopmtudisc ignore-df", "ipip", "ipip ttl 64 tos inherit", "sit", "sit mode ip6ip", "sit ttl 64 tos inherit", "ip6gre",
    "ip6gre encaplimit none key 42 csum", "ip6gre hoplimit 7 tclass inherit flowlabel inherit", "ip6gre tclass 0xb8 flowlabel 0x12345",
    "ip6tnl mode any", "ip6tnl mode any encaplimit none tclass inherit", "ip6tnl mode ip6ip6", "ip6tnl mode ipip6 hoplimit 0",
)
NEAR4, FAR4, NEAR6, FAR6 = "10.9.0.1", "10.9.0.2", "fd09::1", "fd09::2"
HOST4, BEHIND4, HOST6, BEHIND6 = "10.1.0.2", "10.2.0.2", "fd01::2", "fd02::2"
MIRRORED = {"ikey": "okey", "okey": "ikey", "icsum": "ocsum", "ocsum": "icsum"}
_ETH_ALL, _OUTGOING = 3, 4


def batch(ns: Namespace, *lines: str) -> None:
    """Several commands of `ip`, in one process."""
    ns.run("sh", "-c", "printf '%s\\n' \"$@\" | ip -batch -", "ip", *lines)


class Wire:
    """All IP packets that come in by a device, and frames out of it."""

    def __init__(self, ns: Namespace, device: str, gateway: str):
        self.socket = ns.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self.socket.bind((device, _ETH_ALL))
        self.socket.setblocking(False)
        self.macs = bytes.fromhex(gateway.replace(":", "")) + bytes.fromhex(ns.mac(device).replace(":", ""))

    def send(self, packet: bytes, padding: bytes = b"") -> None:
        kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
        self.socket.send(self.macs + struct.pack("!H", kind) + packet + padding)

    def receive(self) -> list[bytes]:
        """What waits now, without its padding."""
        got = []
        while True:
            try:
                frame, address = self.socket.recvfrom(70000)
            except BlockingIOError:
                return got
            packet = frame[14:]
            if address[2] == _OUTGOING or frame[12:14] not in (b"\x08\x00", b"\x86\xdd") or packets.is_noise(packet):
                continue
            length = struct.unpack("!H", packet[2:4])[0] if packet[0] >> 4 == 4 else 40 + struct.unpack("!H", packet[4:6])[0]
            got.append(packet[:length])


class Site(Bed):
    """Host, router and far end; no tunnel yet, and the router without `accelerate`. Host and far end answer nothing unless `alive`."""

    def __init__(self, directory: pathlib.Path, alive: bool = True):
        super().__init__()
        try:
            self.host, self.router, self.far = (self.namespace(role) for role in ("host", "router", "far"))
            self.router.make_router()
            veth(self.host, "h0", self.router, "inner0")
            veth(self.far, "f0", self.router, "outer0")
            for ns, device in ((self.far, "f0"), (self.router, "outer0"), (self.host, "h0"), (self.router, "inner0")):
                # On a wire checksums are whole.
                ns.run("ethtool", "-K", device, "tx", "off")
            for ns, *lines in (
                (self.router, "address add 10.1.0.1/24 dev inner0", "address add fd01::1/64 dev inner0 nodad",
                 f"address add {NEAR4}/24 dev outer0", f"address add {NEAR6}/64 dev outer0 nodad"),
                (self.host, f"address add {HOST4}/24 dev h0", f"address add {HOST6}/64 dev h0 nodad",
                 "route add default via 10.1.0.1", "route add ::/0 via fd01::1"),
                (self.far, f"address add {FAR4}/24 dev f0", f"address add {FAR6}/64 dev f0 nodad",
                 f"address add {BEHIND4}/32 dev lo", f"address add {BEHIND6}/128 dev lo nodad"),
            )[: 3 if alive else 1]:
                batch(ns, *lines)
            for ns, device in ((self.router, "outer0"), (self.far, "f0"), (self.host, "h0"), (self.router, "inner0")):
                ns.sysctl(f"net.ipv4.conf.{device}.rp_filter", 0)
            self.router.sysctl("net.ipv4.conf.all.rp_filter", 0)
            self.inside = Wire(self.host, "h0", self.router.mac("inner0"))
            self.outside = Wire(self.far, "f0", self.router.mac("outer0"))
            self.neighbours()
            self.greyhound = self.keep(Greyhound(self.router, directory))
            self.greyhound.start([], accelerate=False)
        except BaseException:
            self._stack.close()
            raise

    def neighbours(self) -> None:
        """Known for good, so that no packet waits for one."""
        for ns, device, addresses, mac in (
            (self.router, "inner0", (HOST4, HOST6), self.host.mac("h0")),
            (self.router, "outer0", (FAR4, FAR6, "10.9.0.3", "fd09::3"), self.far.mac("f0")),
        ):
            batch(ns, *(f"neigh replace {address} dev {device} lladdr {mac} nud permanent" for address in addresses))

    def make(self, row: str, name: str = "gre1", ns: Namespace | None = None) -> None:
        """The kernel's device, with routes to what is behind."""
        ns = ns or self.router
        kind, *options = row.split()
        v6 = kind.startswith("ip6")
        near = ns is self.router
        ends = ((NEAR6, FAR6) if v6 else (NEAR4, FAR4))[:: 1 if near else -1]
        if not near:
            options = [MIRRORED.get(word, word) for word in options]
        ns.ip("link", "add", name, "type", kind, "local", ends[0], "remote", ends[1], *options)
        ns.ip("link", "set", name, "addrgenmode", "none", check=False)
        nets = ("10.2.0.0/24", "fd02::/64") if near else ("10.1.0.0/24", "fd01::/64")
        batch(ns, f"link set {name} multicast off up", *(f"route replace {net} dev {name}" for net in nets))
        ns.sysctl(f"net.ipv4.conf.{name}.rp_filter", 0)

    def ask(self, request: dict) -> dict:
        """On a connection of its own: one that is silent is closed."""
        with self.greyhound.connected() as ask:
            return ask(request)

    def accelerate(self, value, tunnels: list[dict] | None = None) -> None:
        self.greyhound.configure(tunnels or [], accelerate=value)
        answer = self.ask({"verb": "reload"})
        assert "ok" in answer, answer

    def tunnel(self, name: str = "gre1") -> dict | None:
        all_of_them = self.ask({"verb": "tunnel show"})["ok"]
        return next((t for t in all_of_them if t["name"] == name), None)

    def is_fast(self, name: str = "gre1") -> bool:
        mine = self.tunnel(name)
        return bool(mine) and mine["accelerated"] and mine["state"] == "up"

    def wait_fast(self, name: str = "gre1") -> None:
        wait_until(lambda: self.is_fast(name), f"{name} is accelerated")

    def close_device(self, name: str = "gre1") -> None:
        for ns in (self.router, self.far):
            ns.ip("link", "del", name, check=False)


def inner_probes(mtu: int) -> list[bytes]:
    """What the host sends towards what is behind the tunnel."""
    probes: list[bytes] = []

    def four(n: int, size: int = 40, **how) -> None:
        data = struct.pack("!H", n) + bytes(size)
        probes.append(ip4(HOST4, BEHIND4, packets.UDP, udp(HOST4, BEHIND4, data), **how))

    def six(n: int, size: int = 40, **how) -> None:
        data = struct.pack("!H", n) + bytes(size)
        probes.append(ip6(HOST6, BEHIND6, packets.UDP, udp(HOST6, BEHIND6, data), **how))

    for ecn in range(4):
        four(ecn, tos=0xB8 | ecn)
        four(10 + ecn, tos=ecn, df=True)
        six(20 + ecn, tos=0x28 | ecn)
        six(30 + ecn, tos=ecn, label=0x54321)
    for n, ttl in enumerate((1, 2, 3, 255)):
        four(40 + n, ttl=ttl)
        six(50 + n, ttl=ttl)
    for n, room in enumerate((mtu - 1, mtu, mtu + 1)):
        four(60 + n, room - 30, df=True)
        four(70 + n, room - 30)
        six(80 + n, room - 50)
    four(90, options=b"\x01\x01\x01\x00")
    four(91, fragment=0x2000)
    four(92, fragment=0x0004)
    four(93, bad=True)
    # A tunnel in the tunnel, the tunnel itself among them.
    probes.append(ip4(HOST4, BEHIND4, GRE, gre(0x0800, ip4("1.1.1.1", "2.2.2.2", packets.UDP, udp("1.1.1.1", "2.2.2.2", b"in")))))
    probes.append(ip4(NEAR4, FAR4, GRE, gre(0x0800, ip4("1.1.1.1", "2.2.2.2", packets.UDP, udp("1.1.1.1", "2.2.2.2", b"me")))))
    probes.append(ip6(FAR6, BEHIND6, packets.UDP, udp(FAR6, BEHIND6, b"from the other end")))
    return probes


class Outer:
    """Outer packets of a row, from the far end."""

    def __init__(self, row: str):
        self.kind, *self.options = row.split()
        self.v6 = self.kind.startswith("ip6")
        words = iter(self.options)
        given = {word: word if word in ("csum", "icsum", "ocsum") else next(words, "") for word in words
                 if word in ("key", "ikey", "okey", "csum", "icsum", "ocsum")}
        key = given.get("key") or given.get("ikey")
        self.key = int(key) if key else None
        self.csum = "csum" in given or "icsum" in given

    def around(self, inner: bytes, *, outer=None, **header) -> bytes:
        v6_inside = inner[0] >> 4 == 6
        protocol, body = (IPV6 if v6_inside else IPIP), inner
        if "gre" in self.kind:
            how = {"key": self.key, "csum": self.csum} | header
            protocol, body = GRE, gre(how.pop("protocol", 0x86DD if v6_inside else 0x0800), inner, **how)
        outer = dict(outer or {})
        if self.v6:
            limit = outer.pop("limit", None)
            if limit is not None:
                body, protocol = bytes([protocol, 0, 4, 1, limit, 1, 1, 0]) + body, packets.DSTOPTS
            outer.pop("df", None)
            return ip6(outer.pop("src", FAR6), NEAR6, protocol, body, **outer)
        return ip4(outer.pop("src", FAR4), NEAR4, protocol, body, **outer)


def outer_probes(row: str) -> list[tuple[bytes, bytes]]:
    """Each with what it is padded with."""
    o, probes, number = Outer(row), [], iter(range(1000))

    def four(**how) -> bytes:
        return ip4(BEHIND4, HOST4, packets.UDP, udp(BEHIND4, HOST4, struct.pack("!H", next(number)) + bytes(30)), **how)

    def six(**how) -> bytes:
        return ip6(BEHIND6, HOST6, packets.UDP, udp(BEHIND6, HOST6, struct.pack("!H", next(number)) + bytes(30)), **how)

    def add(packet: bytes, padding: bytes = b"") -> None:
        probes.append((packet, padding))

    for outside in range(4):
        for inside in range(4):
            add(o.around(four(tos=0xA8 | inside), outer={"tos": 0x50 | outside}))
            add(o.around(six(tos=0xA8 | inside), outer={"tos": 0x50 | outside}))
    for inner in (four, six):
        add(o.around(inner(), outer={"ttl": 1}))
        add(o.around(inner(ttl=1)))
        add(o.around(inner(ttl=2)))
        add(o.around(inner()) , b"padding")
        add(o.around(inner() + b"trailing"))
        add(o.around(inner()[:30]))
        add(o.around(inner(), outer={"src": "fd09::3" if o.v6 else "10.9.0.3"}))
        if "gre" in o.kind:
            for header in ({"key": 0}, {"key": 99}, {"key": None}, {"csum": not o.csum}, {"csum": True, "bad": True}, {"seq": 5},
                           {"bits": 0x0800}, {"bits": 0x0400}, {"bits": 0x0700}, {"bits": 0x0080}, {"bits": 0x0008}, {"bits": 0x4000},
                           {"bits": 1}, {"protocol": 0x88B5}, {"protocol": 0x6558}):
                add(o.around(inner(), **header))
        if o.v6:
            add(o.around(inner(), outer={"limit": 4}))
            add(o.around(inner(), outer={"limit": 0}))
        else:
            add(o.around(inner(), outer={"options": b"\x01\x01\x01\x00"}))
            add(o.around(inner(), outer={"bad": True}))
    add(o.around(four(bad=True)))
    add(o.around(four(options=b"\x01\x01\x01\x00")))
    add(o.around(four(fragment=0x2000)))
    # To the router, from the router, to nobody.
    add(o.around(ip4(BEHIND4, "10.1.0.1", packets.UDP, udp(BEHIND4, "10.1.0.1", b"to you"))))
    add(o.around(ip4("10.1.0.1", HOST4, packets.UDP, udp("10.1.0.1", HOST4, b"from you"))))
    add(o.around(ip4(BEHIND4, "203.0.113.1", packets.UDP, udp(BEHIND4, "203.0.113.1", b"to nobody"))))
    # Back to where it came from.
    add(o.around(ip4(HOST4, BEHIND4, packets.UDP, udp(HOST4, BEHIND4, b"and back again"))))
    add(o.around(ip6("::ffff:1.2.3.4", HOST6, packets.UDP, udp("::ffff:1.2.3.4", HOST6, b"mapped"))))
    return probes


def outcome(site: Site, row: str, mtu: int, expected: int | None) -> collections.Counter:
    """What comes of all probes: by side, every packet without what chance is in it."""
    site.inside.receive()
    site.outside.receive()
    got: list[tuple[str, bytes]] = []

    def look() -> None:
        for side, wire in (("host", site.inside), ("far", site.outside)):
            got.extend((side, packet) for packet in wire.receive())

    for probe in inner_probes(mtu):
        site.inside.send(probe)
        time.sleep(0.001)
        look()
    for probe, padding in outer_probes(row):
        site.outside.send(probe, padding)
        time.sleep(0.001)
        look()
    end = time.monotonic() + 10
    quiet = time.monotonic()
    while time.monotonic() < end:
        before = len(got)
        look()
        if len(got) > before:
            quiet = time.monotonic()
        if time.monotonic() - quiet > (0.4 if expected is None or len(got) >= expected else 3):
            break
        time.sleep(0.01)
    return collections.Counter((side, packets.without_chance(packet)) for side, packet in got)


def device_stats(site: Site, name: str = "gre1") -> tuple[int, int]:
    stats = site.router.ip_json("-s", "link", "show", "dev", name)[0]["stats64"]
    return stats["rx"]["packets"], stats["tx"]["packets"]


def difference(alone: collections.Counter, ours: collections.Counter) -> str:
    lines = []
    for word, rest in (("the kernel alone", alone - ours), ("accelerated", ours - alone)):
        lines += [f"{word} {n} x {side}: {packet.hex()}" for (side, packet), n in list(rest.items())[:6]]
    return "\n".join(lines)


SITE: list[Site] = []


def site(directory: pathlib.Path) -> Site:
    """One for all tests that leave it as it was."""
    if not SITE:
        SITE.append(Site(pathlib.Path("/tmp"), alive=False))
    SITE[0].close_device()
    SITE[0].accelerate(False)
    return SITE[0]


@test(*ROWS)
def as_the_kernel(row: str, directory: pathlib.Path) -> None:
    """Every probe has the outcome that the kernel alone gives it; the fast path has carried; the counters add up."""
    s = site(directory)
    s.make(row)
    mtu = s.router.link("gre1")["mtu"]
    alone = outcome(s, row, mtu, None)
    s.accelerate(True)
    s.wait_fast()
    before, kernels = s.tunnel(), device_stats(s)
    ours = outcome(s, row, mtu, alone.total())
    after, kernels_after = s.tunnel(), device_stats(s)
    assert ours == alone, difference(alone, ours)
    fast = {way: after["fast"][way] - before["fast"][way] for way in ("rx_packets", "tx_packets")}
    slow = {way: after["slow"][way] - before["slow"][way] for way in ("rx_packets", "tx_packets")}
    assert fast["rx_packets"] >= 8 and fast["tx_packets"] >= 8, (fast, slow)
    assert [slow["rx_packets"], slow["tx_packets"]] == [n - m for n, m in zip(kernels_after, kernels)], (slow, kernels, kernels_after)
    for way in ("rx", "tx"):
        assert after[way]["packets"] == after["fast"][f"{way}_packets"] + after["slow"][f"{way}_packets"]


class Pair(Site):
    """Both ends have the same device, and all of them answer."""

    def __init__(self, directory: pathlib.Path, row: str = "gre"):
        super().__init__(directory)
        try:
            for ns in (self.router, self.far):
                self.make(row, ns=ns)
            self.accelerate(True)
            self.wait_fast()
        except BaseException:
            self._stack.close()
            raise

    def ping(self, count: int = 5) -> None:
        self.host.run("ping", "-n", "-c", str(count), "-i", "0.05", "-W", "5", BEHIND4)

    def goes(self, path: str, way: str = "tx") -> None:
        """Echoes go by this path, and not by the other."""
        before = self.tunnel()
        self.ping()
        after = self.tunnel()
        rose = {p: after[p][f"{way}_packets"] - before[p][f"{way}_packets"] for p in ("fast", "slow")}
        assert rose == {"fast": 0, "slow": 0, path: 5}, rose


class Flow:
    """Numbered datagrams from the host to what is behind the tunnel; which arrive, and how long nothing did."""

    PORT = 7000

    def __init__(self, bed: Site, pause: float = 0.002):
        self.pause, self.sent, self.stop = pause, 0, threading.Event()
        self.out = bed.host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.heard = bed.far.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.heard.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
        self.heard.bind((BEHIND4, self.PORT))
        self.heard.setblocking(False)
        self.arrived: list[int] = []
        self.gap = 0.0
        self.threads = [threading.Thread(target=self.send), threading.Thread(target=self.hear)]

    def send(self) -> None:
        while not self.stop.wait(self.pause):
            self.out.sendto(struct.pack("!I", self.sent) + bytes(60), (BEHIND4, self.PORT))
            self.sent += 1

    def hear(self) -> None:
        last = None
        quiet = time.monotonic() + 1
        while not self.stop.is_set() or time.monotonic() < quiet:
            if not self.stop.is_set():
                quiet = time.monotonic() + 1
            if not select.select([self.heard], [], [], 0.1)[0]:
                continue
            now = time.monotonic()
            self.arrived.append(struct.unpack("!I", self.heard.recv(100)[:4])[0])
            if last is not None and not self.stop.is_set():
                self.gap = max(self.gap, now - last)
            last = now

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        self.out.close()
        self.heard.close()

    def lost(self) -> int:
        return self.sent - len(set(self.arrived))


class Transfer:
    """Bytes over TCP from the host to what is behind the tunnel: all of them, in the end."""

    def __init__(self, bed: Site, size: int, port: int = 7001):
        self.size, self.received = size, 0
        self.listener = bed.far.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.listener.bind((BEHIND4, port))
        self.listener.listen(1)
        self.listener.settimeout(60)
        self.client = bed.host.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.client.settimeout(60)
        self.threads = [threading.Thread(target=self.serve), threading.Thread(target=self.send, args=(port,))]
        for thread in self.threads:
            thread.start()

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        connection.settimeout(60)
        while data := connection.recv(1 << 16):
            self.received += len(data)
        connection.close()

    def send(self, port: int) -> None:
        self.client.connect((BEHIND4, port))
        block = bytes(1 << 14)
        for _ in range(self.size // len(block)):
            self.client.sendall(block)
        self.client.close()

    def under_way(self) -> None:
        wait_until(lambda: self.received > self.size // 10, "the transfer is under way")
        assert self.received < self.size * 9 // 10, "the transfer was too short"

    def finishes(self) -> None:
        for thread in self.threads:
            thread.join(90)
        assert self.received == self.size, (self.received, self.size)
        self.listener.close()


def say(text: str) -> None:
    print(f"          {text}", file=sys.__stdout__, flush=True)


@test("SIGKILL", "SIGTERM")
def an_end_under_traffic(how: str, directory: pathlib.Path) -> None:
    """The kernel carries on with the next packet; nothing of the device was ever ours."""
    with Pair(directory) as s:
        addresses = s.router.ip("address", "show", "dev", "gre1")
        routes = s.router.ip("route", "show", "dev", "gre1")
        transfer = Transfer(s, 24 << 20)
        with Flow(s) as flow:
            transfer.under_way()
            fast = s.tunnel()["fast"]
            assert fast["tx_packets"] > 1000 and fast["rx_packets"] > 100, fast
            before = len(flow.arrived)
            s.greyhound.signal(getattr(signal, how))
            transfer.finishes()
            wait_until(lambda: len(flow.arrived) > before + 100, "the flow goes on")
        say(f"{how}: {flow.lost()} of {flow.sent} datagrams lost, nothing came for {flow.gap * 1000:.0f} ms at the longest")
        assert s.router.ip("address", "show", "dev", "gre1") == addresses
        assert s.router.ip("route", "show", "dev", "gre1") == routes
        # What was in the rings of a process that was killed is lost with it.
        assert flow.lost() <= (200 if how == "SIGKILL" else 0), flow.lost()


@test()
def switched_on_and_off_without_loss(directory: pathlib.Path) -> None:
    with Pair(directory) as s:
        with Flow(s) as flow:
            for value in (False, True, ["gre1"], False, True):
                before = len(flow.arrived)
                s.accelerate(value)
                if value:
                    s.wait_fast()
                wait_until(lambda: len(flow.arrived) > before + 50, "the flow goes on")
        assert flow.lost() == 0 and len(flow.arrived) == flow.sent, (flow.lost(), len(flow.arrived), flow.sent)
        s.goes("fast")


@test()
def taken_over(directory: pathlib.Path) -> None:
    """Another process of the same configuration goes on with the counters, and no packet is lost."""
    with Pair(directory) as s:
        s.ping()
        first, before = s.greyhound.process, s.tunnel()["fast"]
        with Flow(s) as flow:
            wait_until(lambda: len(flow.arrived) > 100, "a flow")
            with s.greyhound.log_file.open("a", encoding="utf-8") as log:
                s.greyhound.process = subprocess.Popen(
                    s.router.command(binary(), "run", "--takeover", "--config", str(s.greyhound.config_file)),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            assert first.wait(20) == 0
            s.greyhound.wait_ready()
            s.wait_fast()
            after = len(flow.arrived)
            wait_until(lambda: len(flow.arrived) > after + 100, "the flow goes on")
        assert flow.lost() == 0, (flow.lost(), flow.sent)
        assert s.tunnel()["fast"]["tx_packets"] > before["tx_packets"] + 100
        s.goes("fast")


@test()
def changes_are_followed(directory: pathlib.Path) -> None:
    """What becomes of the device is so for the next packets, on the fast path."""
    s = site(directory)
    s.make("gre")
    s.accelerate(True)
    s.wait_fast()

    def outer(wanted, path: str = "fast") -> None:
        """The next packet of the host's leaves like this, by this path."""

        def sent() -> bool:
            before = s.tunnel()
            s.outside.receive()
            s.inside.send(ip4(HOST4, BEHIND4, packets.UDP, udp(HOST4, BEHIND4, b"next"), tos=2))
            got: list[bytes] = []
            wait_until(lambda: got.extend(s.outside.receive()) or got, "an outer packet")
            after = s.tunnel()
            rose = after and before and after[path]["tx_packets"] - before[path]["tx_packets"]
            return len(got) == 1 and wanted(got[0]) and rose == 1

        wait_until(sent, f"a packet as it was asked for, by the {path} path; {s.tunnel()}")

    outer(lambda p: p[8] == 63 and p[20:22] == b"\0\0")
    s.router.ip("tunnel", "change", "gre1", "mode", "gre", "local", NEAR4, "remote", FAR4, "ttl", "33")
    outer(lambda p: p[8] == 33)
    s.router.ip("tunnel", "change", "gre1", "mode", "gre", "local", NEAR4, "remote", FAR4, "ttl", "44", "key", "5")
    outer(lambda p: p[8] == 44 and p[20:22] == b"\x20\0" and p[24:28] == b"\0\0\0\5")
    s.router.ip("link", "set", "gre1", "type", "gre", "local", NEAR4, "remote", "10.9.0.3", "tos", "0x20")
    outer(lambda p: p[16:20] == b"\x0a\x09\0\3" and p[1] == 0x22)
    # Numbers are the kernel's, and say so; then it is taken again.
    s.router.ip("link", "set", "gre1", "type", "gre", "local", NEAR4, "remote", FAR4, "seq")
    wait_until(lambda: s.tunnel()["left_to_kernel"], "it is left alone")
    assert s.tunnel()["left_to_kernel"].startswith("seq"), s.tunnel()
    outer(lambda p: p[20] & 0x10, "slow")
    s.router.ip("link", "set", "gre1", "type", "gre", "local", NEAR4, "remote", FAR4, "noseq")
    s.wait_fast()
    outer(lambda p: p[20:22] == b"\x20\0" and p[8] == 44)
    # Down and up, another name, another device of the same name.
    s.router.ip("link", "set", "gre1", "down")
    wait_until(lambda: s.tunnel()["state"] == "down", "it is down")
    s.router.ip("link", "set", "gre1", "name", "gre7")
    batch(s.router, "link set gre7 up", "route replace 10.2.0.0/24 dev gre7")
    wait_until(lambda: s.is_fast("gre7") and s.tunnel("gre1") is None, "it is accelerated under its new name")
    s.router.ip("link", "set", "gre7", "mtu", "1300")
    wait_until(lambda: s.tunnel("gre7")["mtu"] == 1300, "the MTU is followed")
    s.router.ip("link", "del", "gre7")
    wait_until(lambda: s.tunnel("gre7") is None, "it is gone")
    s.make("gre ttl 55")
    s.wait_fast()
    outer(lambda p: p[8] == 55)


LEFT = {
    "t-ext": ("type gre external", "external"),
    "t-seq": (f"type gre local {NEAR4} remote {FAR4} key 1 seq", "seq"),
    "t-fou": (f"type gre local {NEAR4} remote {FAR4} key 2 encap fou encap-sport auto encap-dport 5555", "encap"),
    "t-mark": (f"type gre local {NEAR4} remote {FAR4} key 3 fwmark 7", "fwmark"),
    "t-anywhere": (f"type gre remote {FAR4} key 4", "no local address"),
    "t-tap": (f"type gretap local {NEAR4} remote {FAR4} key 5", "gretap: it carries Ethernet frames"),
    "t-group": (f"type gre local {NEAR4} remote 239.1.1.1 ttl 1", "its remote is a multicast group"),
    "t-6to4": (f"type sit local {NEAR4}", "no remote: 6to4"),
    "t-vrf": (f"type gre local {NEAR4} remote {FAR4} key 6", "it belongs to red"),
    "t-lo": (f"type gre local {NEAR4} remote {FAR4} key 7 dev inner0", "it is bound to inner0"),
    "t-6": (f"type ip6gre local {NEAR6}", "no remote"),
}


@test()
def what_is_left_alone_is_named(directory: pathlib.Path) -> None:
    """By `tunnel show`, the log, once, and `check`."""
    s = site(directory)
    try:
        for name, (options, _) in LEFT.items():
            s.router.ip("link", "add", name, *options.split())
        batch(s.router, "link add red type vrf table 77", "link set t-vrf master red")
        s.accelerate(True)
        said = {name: s.tunnel(name)["left_to_kernel"] for name in LEFT}
        text, log = s.greyhound.ask("tunnel", "show").stdout, s.greyhound.log()
        done = s.router.run(binary(), "check", "--json", "--config", str(s.greyhound.config_file), check=False)
        findings = {f["subject"]: f for f in json.loads(done.stdout)["findings"] if f["check"] == "accelerate"}
        for name, (_, why) in LEFT.items():
            assert said[name] and said[name].startswith(why), (name, said[name])
            assert f"left to the kernel: {said[name]}" in text, text
            assert log.count(f"{name}: left to the kernel: {said[name]}") == 1, log
            assert findings[name]["severity"] == "warn" and said[name] in findings[name]["found"], findings[name]
        assert "gre0" not in text and not any(t["accelerated"] for t in s.ask({"verb": "tunnel show"})["ok"])
    finally:
        for name in ("red", *LEFT):
            s.router.ip("link", "del", name, check=False)
        # The kernel makes it with the first VRF, and leaves it.
        for family in ("-4", "-6"):
            s.router.ip(family, "rule", "del", "pref", "1000", check=False)


@test()
def neighbours_are_peers(directory: pathlib.Path) -> None:
    """A gre device without a remote: each packet goes where its next hop's link address says, as NHRP writes it."""
    s = site(directory)
    s.router.ip("link", "add", "gre1", "type", "gre", "local", NEAR4, "key", "9", "ttl", "64")
    batch(s.router, "link set gre1 multicast off up", "address add 172.16.0.1/24 dev gre1",
          f"neigh replace 172.16.0.2 lladdr {FAR4} dev gre1 nud permanent",
          "route add 10.2.0.0/24 via 172.16.0.2 dev gre1", "route add 10.3.0.0/24 via 172.16.0.3 dev gre1")
    s.accelerate(True)
    s.wait_fast()

    def goes(destination: str, remote: str) -> None:
        def sent() -> bool:
            before = s.tunnel()["fast"]["tx_packets"]
            s.outside.receive()
            s.inside.send(ip4(HOST4, destination, packets.UDP, udp(HOST4, destination, b"next")))
            time.sleep(0.05)
            got = s.outside.receive()
            there = len(got) == 1 and got[0][16:20] == socket.inet_aton(remote) and got[0][24:28] == b"\0\0\0\x09"
            return there and s.tunnel()["fast"]["tx_packets"] == before + 1

        wait_until(sent, f"{destination} goes to {remote} by the fast path; {s.tunnel()}")

    goes(BEHIND4, FAR4)
    s.router.ip("neigh", "replace", "172.16.0.3", "lladdr", "10.9.0.3", "dev", "gre1", "nud", "permanent")
    goes("10.3.0.7", "10.9.0.3")
    s.router.ip("neigh", "replace", "172.16.0.2", "lladdr", "10.9.0.3", "dev", "gre1", "nud", "permanent")
    goes(BEHIND4, "10.9.0.3")
    # And from any of them.
    before = s.tunnel()["fast"]["rx_packets"]
    inner = ip4(BEHIND4, HOST4, packets.UDP, udp(BEHIND4, HOST4, b"back"))
    s.outside.send(ip4("10.9.0.3", NEAR4, GRE, gre(0x0800, inner, key=9)))
    wait_until(lambda: s.tunnel()["fast"]["rx_packets"] == before + 1, "it comes in by the fast path")


@test()
def checksums_that_a_veth_leaves_open(directory: pathlib.Path) -> None:
    """With the offloads on, as containers have them: TCP through a tunnel with checksums, both ways by the fast path."""
    with Pair(directory, "gre csum key 3") as s:
        for ns, device in ((s.far, "f0"), (s.router, "outer0"), (s.host, "h0"), (s.router, "inner0")):
            ns.run("ethtool", "-K", device, "tx", "on")
        Transfer(s, 4 << 20).finishes()
        fast = s.tunnel()["fast"]
        assert fast["rx_packets"] > 200 and fast["tx_packets"] > 1000, s.tunnel()


@test("gre", "ipip", "sit", "ip6gre", "ip6ip6")
def the_kernels_driver_keeps_quiet(mode: str, directory: pathlib.Path) -> None:
    """Beside a tunnel of our own, whose packets the kernel's driver gets a copy of, and says "unreachable" to those of no tunnel alone."""
    s = site(directory)
    v6 = mode.startswith("ip6")
    ends = (NEAR6, FAR6) if v6 else (NEAR4, FAR4)
    s.accelerate(False, [{"name": "own", "mode": mode, "local": ends[0], "remote": ends[1]}])
    s.router.sysctl("net.ipv4.conf.own.rp_filter", 0)
    o = Outer(mode.replace("ip6ip6", "ip6tnl"))
    # For the kernel: with options, or in fragments.
    how = {} if v6 else {"options": b"\x01\x01\x01\x00"}
    inner = (ip6(BEHIND6, HOST6, packets.UDP, udp(BEHIND6, HOST6, b"for us")) if mode in ("sit", "ip6ip6") else
             ip4(BEHIND4, HOST4, packets.UDP, udp(BEHIND4, HOST4, b"for us")))
    ours = o.around(inner, outer=how)
    strangers = o.around(inner, outer=how | {"src": "fd09::3" if v6 else "10.9.0.3"})
    if v6:
        # A hop-by-hop header (PadN) before all else.
        ours, strangers = (p[:4] + struct.pack("!HB", len(p) - 32, 0) + p[7:40] + bytes([p[6], 0, 1, 4, 0, 0, 0, 0]) + p[40:]
                           for p in (ours, strangers))
    wait_until(lambda: s.tunnel("own")["state"] == "up", "the tunnel is up")
    got: list[bytes] = []

    def says(source: str) -> bool:
        """Somebody says "port unreachable" about a packet of this source's."""
        kind, at = ((58, b"\x01\x04") if v6 else (1, b"\x03\x03"))
        family = socket.AF_INET6 if v6 else socket.AF_INET
        return any(packets.fields(p)[1] == kind and p[packets.fields(p)[0]:][:2] == at and socket.inet_pton(family, source) in p[48:]
                   if v6 else packets.fields(p)[1] == kind and p[20:22] == at and p[28 + 12 : 28 + 16] == socket.inet_pton(family, source)
                   for p in got)

    def both() -> bool:
        s.outside.send(ours)
        s.outside.send(strangers)
        time.sleep(0.2)
        got.extend(s.outside.receive())
        return says("fd09::3" if v6 else "10.9.0.3")

    wait_until(both, "the kernel's driver is there, and answers a stranger")
    assert any(b"for us" in packet for packet in s.inside.receive()), "our own packet has come out"
    assert not says(ends[1]), [packet.hex() for packet in got]


if __name__ == "__main__":
    try:
        status = run()
    finally:
        for bed in SITE:
            bed._stack.close()
    sys.exit(status)
