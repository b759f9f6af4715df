"""Network namespaces, veth pairs and the two test beds that the namespace tests run on.

Every name carries this process's id and a serial number, so that runs never meet. Nothing here knows Greyhound:
`greyhound.py` starts routers in these namespaces, `wire.py` sends and receives frames in them.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

DEADLINE = 20.0
"""Seconds after which a condition that should come true counts as broken. Never a measure of speed."""

_CLONE_NEWNET = 0x40000000
_serial = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def wait_until(condition: Callable[[], object], what: str, deadline: float = DEADLINE):
    """Polls `condition` until it is truthy and returns its value; fails naming `what` after `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what} (last: {value!r})")
        time.sleep(0.02)


def _setns(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, _CLONE_NEWNET) != 0:
            err = ctypes.get_errno()
            raise OSError(err, f"setns {path}: {os.strerror(err)}")
    finally:
        os.close(fd)


class Namespace:
    """A network namespace of our own; `close` ends every process in it and removes it."""

    def __init__(self, role: str):
        self.name = f"gh{os.getpid()}-{next(_serial)}-{role}"
        self.role = role
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.ip("link", "set", "lo", "up")

    def command(self, *argv: str) -> list[str]:
        """The command line that runs `argv` inside; it becomes the process itself, not a child of it."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, check: bool = True, timeout: float = 3 * DEADLINE):
        """Runs `argv` inside and returns the completed process, output as text."""
        done = subprocess.run(
            self.command(*argv), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{self.role}: {' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def ip(self, *args: str, check: bool = True) -> str:
        """`ip -n NAMESPACE …`; a failure names the command."""
        done = subprocess.run(["ip", "-n", self.name, *args], capture_output=True, text=True, timeout=DEADLINE)
        if check and done.returncode != 0:
            raise AssertionError(f"{self.role}: ip {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def ip_json(self, *args: str) -> list[dict]:
        """`ip -j …` as Python objects; empty when the thing does not exist."""
        out = self.ip("-j", *args, check=False)
        return [entry for entry in json.loads(out or "[]") if entry]

    def link(self, device: str) -> dict | None:
        """What `ip -d link show` says of a device, or None."""
        found = self.ip_json("-d", "link", "show", "dev", device)
        return found[0] if found else None

    def mac(self, device: str) -> str:
        """The device's link address."""
        return self.link(device)["address"]

    def devices(self) -> set[str]:
        """The names of all devices."""
        return {entry["ifname"] for entry in self.ip_json("link", "show")}

    def sysctl(self, key: str, value: int | str) -> None:
        """Sets `net.…` inside."""
        with self.entered(), open("/proc/sys/" + key.replace(".", "/"), "w", encoding="ascii") as file:
            file.write(str(value))

    def make_router(self) -> None:
        """Switches forwarding on, and the rate limits off that would hide an ICMP error from a test."""
        self.sysctl("net.ipv4.ip_forward", 1)
        self.sysctl("net.ipv6.conf.all.forwarding", 1)
        self.sysctl("net.ipv4.icmp_ratelimit", 0)
        self.sysctl("net.ipv6.icmp.ratelimit", 0)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread inside the namespace: sockets made here stay in it."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(f"/run/netns/{self.name}")
            yield
        finally:
            if _libc.setns(home, _CLONE_NEWNET) != 0:
                os._exit(70)  # In the wrong namespace every further test would lie.
            os.close(home)

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A socket that lives inside."""
        with self.entered():
            return socket.socket(family, kind, proto)

    def close(self) -> None:
        """Ends what still runs inside and removes the namespace with its devices."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)


def veth(a: Namespace, a_name: str, b: Namespace, b_name: str, mtu: int = 1500, queues: int = 1) -> None:
    """A veth pair between two namespaces, both ends up, one queue each way; or `queues` of them at `b`, where all that `a`
    sends comes by the first.

    Native XDP on a veth wants at least as many receive queues as its peer has transmit queues.
    """
    one = ["numtxqueues", "1", "numrxqueues", str(queues)]
    all_ = ["numtxqueues", str(queues), "numrxqueues", str(queues)]
    a.ip("link", "add", a_name, *one, "type", "veth", "peer", "name", b_name, *all_, "netns", b.name)
    for ns, name in ((a, a_name), (b, b_name)):
        # Duplicate address detection would keep every IPv6 address unusable for the first seconds.
        ns.sysctl(f"net.ipv6.conf.{name}.accept_dad", 0)
        ns.ip("link", "set", name, "mtu", str(mtu), "up")


class Bed:
    """Namespaces that are removed together, in the order opposite to that of their making."""

    def __init__(self):
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._stack.close()

    def namespace(self, role: str) -> Namespace:
        """A new namespace, removed with the bed."""
        ns = Namespace(role)
        self._stack.callback(ns.close)
        return ns

    def keep(self, closable):
        """Has `closable` closed before the namespaces go."""
        self._stack.callback(closable.close)
        return closable

    def sink(self, ns: Namespace, port: int) -> None:
        """Binds a UDP port for both families, so that the host does not answer with ICMP errors."""
        sock = self.keep(ns.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", port))


class Bench(Bed):
    """One router between a host and a far endpoint that is played by scapy.

    host h0 ── inner0 router outer0 ── f0 far

    Addresses and link addresses are those of the golden captures: the router is the captures' kernel.
    """

    HOST_MAC, INNER_MAC = "02:00:00:00:01:02", "52:54:00:4b:50:11"
    FAR_MAC, OUTER_MAC = "02:00:00:00:02:02", "52:54:00:4b:50:10"
    LOCAL, REMOTE = "10.9.0.1", "10.9.0.2"

    def __init__(self, mtu: int = 1500, queues: int = 1, inner: int = 1500):
        super().__init__()
        try:
            self._build(mtu, queues, inner)
        except BaseException:
            self._stack.close()
            raise

    def _build(self, mtu: int, queues: int, inner: int) -> None:
        self.host, self.router, self.far = (self.namespace(role) for role in ("host", "router", "far"))
        veth(self.host, "h0", self.router, "inner0", inner, queues)
        veth(self.far, "f0", self.router, "outer0", mtu, queues)
        for ns, name, mac in (
            (self.host, "h0", self.HOST_MAC),
            (self.router, "inner0", self.INNER_MAC),
            (self.router, "outer0", self.OUTER_MAC),
            (self.far, "f0", self.FAR_MAC),
        ):
            ns.ip("link", "set", name, "address", mac)
        self.router.make_router()
        self.host.ip("address", "add", "10.1.0.2/24", "dev", "h0")
        self.host.ip("address", "add", "fd01::2/64", "dev", "h0", "nodad")
        self.router.ip("address", "add", "10.1.0.1/24", "dev", "inner0")
        self.router.ip("address", "add", "fd01::1/64", "dev", "inner0", "nodad")
        self.router.ip("address", "add", "10.9.0.1/24", "dev", "outer0")
        self.far.ip("address", "add", "10.9.0.2/24", "dev", "f0")
        self.host.ip("route", "add", "default", "via", "10.1.0.1")
        self.host.ip("-6", "route", "add", "default", "via", "fd01::1")
        self.sink(self.host, 2000)
        # A listener for protocol 47: without one the far kernel answers every tunnel packet with ICMP 3/2.
        self.keep(self.far.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE))


class Lab(Bed):
    """Two routers back to back, a host behind each.

    hostA a0 ── lan routerA wan ── wan routerB lan ── b0 hostB
    """

    def __init__(self, mtu: int = 1500, inner: int = 1500):
        super().__init__()
        try:
            self._build(mtu, inner)
        except BaseException:
            self._stack.close()
            raise

    def _build(self, mtu: int, inner: int) -> None:
        self.host_a, self.router_a, self.router_b, self.host_b = (
            self.namespace(role) for role in ("hostA", "routerA", "routerB", "hostB")
        )
        veth(self.host_a, "a0", self.router_a, "lan", inner)
        veth(self.host_b, "b0", self.router_b, "lan", inner)
        self._wire(mtu)
        sides = ((self.host_a, "a0", self.router_a, 1), (self.host_b, "b0", self.router_b, 2))
        for host, device, router, n in sides:
            router.make_router()
            host.ip("address", "add", f"10.{n}.0.2/24", "dev", device)
            host.ip("address", "add", f"fd0{n}::2/64", "dev", device, "nodad")
            router.ip("address", "add", f"10.{n}.0.1/24", "dev", "lan")
            router.ip("address", "add", f"fd0{n}::1/64", "dev", "lan", "nodad")
            host.ip("route", "add", "default", "via", f"10.{n}.0.1")
            host.ip("-6", "route", "add", "default", "via", f"fd0{n}::1")
            self.sink(host, 2000)

    def _wire(self, mtu: int) -> None:
        """Connects the routers by their `wan`."""
        veth(self.router_a, "wan", self.router_b, "wan", mtu)
        for n, router in enumerate((self.router_a, self.router_b), 1):
            router.ip("address", "add", f"10.9.0.{n}/24", "dev", "wan")
            router.ip("address", "add", f"fd09::{n}/64", "dev", "wan", "nodad")


class Crossing(Lab):
    """The same with a router of somebody else's between the two.

    hostA a0 ── lan routerA wan ── u1 underlay u2 ── wan routerB lan ── b0 hostB
    """

    GATEWAYS = ("10.9.0.254", "fd09::fe")

    def _wire(self, mtu: int) -> None:
        self.underlay = self.namespace("underlay")
        self.underlay.make_router()
        for n, router in enumerate((self.router_a, self.router_b), 1):
            veth(router, "wan", self.underlay, f"u{n}", mtu)
            for gateway, net, far, size in zip(self.GATEWAYS, ("10.9.0.", "fd09::"), (3 - n, 3 - n), (32, 128)):
                nodad = ["nodad"] if size == 128 else []
                router.ip("address", "add", f"{net}{n}/{size}", "dev", "wan", *nodad)
                router.ip("route", "add", f"{net}{far}/{size}", "via", gateway, "dev", "wan", "onlink")
                self.underlay.ip("address", "add", f"{gateway}/{size}", "dev", f"u{n}", *nodad)
                self.underlay.ip("route", "add", f"{net}{n}/{size}", "dev", f"u{n}")

    def narrow(self, mtu: int | None, towards: int = 2) -> None:
        """The underlay's way towards router A (1) or B (2) carries no more than so many bytes, or again what its link does."""
        for net, size in (("10.9.0.", 32), ("fd09::", 128)):
            limit = [] if mtu is None else ["mtu", "lock", str(mtu)]
            self.underlay.ip("route", "replace", f"{net}{towards}/{size}", "dev", f"u{towards}", *limit)


class Segment(Bed):
    """Routers 1 to `count` on one underlay link, a host behind each.

    hostN h0 ── lan routerN wan ── bridge
    """

    def __init__(self, count: int):
        super().__init__()
        try:
            self._build(count)
        except BaseException:
            self._stack.close()
            raise

    def _build(self, count: int) -> None:
        self.link = self.namespace("link")
        # It floods multicast, like a switch that does not snoop.
        self.link.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self.link.ip("link", "set", "br0", "up")
        self.hosts, self.routers = [], []
        for n in range(1, count + 1):
            host, router = self.namespace(f"host{n}"), self.namespace(f"router{n}")
            veth(host, "h0", router, "lan")
            veth(router, "wan", self.link, f"port{n}")
            self.link.ip("link", "set", f"port{n}", "master", "br0")
            router.make_router()
            host.ip("address", "add", f"10.{n}.0.2/24", "dev", "h0")
            host.ip("address", "add", f"fd0{n}::2/64", "dev", "h0", "nodad")
            router.ip("address", "add", f"10.{n}.0.1/24", "dev", "lan")
            router.ip("address", "add", f"fd0{n}::1/64", "dev", "lan", "nodad")
            router.ip("address", "add", f"10.9.0.{n}/24", "dev", "wan")
            router.ip("address", "add", f"fd09::{n}/64", "dev", "wan", "nodad")
            host.ip("route", "add", "default", "via", f"10.{n}.0.1")
            host.ip("-6", "route", "add", "default", "via", f"fd0{n}::1")
            self.hosts.append(host)
            self.routers.append(router)
