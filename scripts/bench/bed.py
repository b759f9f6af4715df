"""Where it is measured: a source, a router and a sink in network namespaces of their own, joined by two links."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 20.0
"""Seconds that anything may take to come up or to end."""

SOURCE_CPU, ROUTER_CPU = 0, 1


class Trouble(Exception):
    """Why there is nothing to report."""


def wait_until(condition, what: str, patience: float = PATIENCE):
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + patience
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Trouble(f"waited {patience:.0f} s in vain: {what}")
        time.sleep(0.02)


def run(*argv: str, check: bool = True) -> str:
    """A short command's output."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise Trouble(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


class Bed:
    """
    source ── in, the router, out ── sink

    Either veth pairs, or devices that are given: these are moved into the namespaces, and back at the end.
    """

    ROLES = ("source", "router", "sink")
    IN, OUT = "198.51.100.1", "192.0.2.1"
    """The router's own addresses on its two devices; its neighbours there end in 2."""

    def __init__(self, directory: pathlib.Path, given: dict[str, str] | None):
        self.directory = directory
        self.given = given
        number = os.getpid()
        self.names = {role: f"greyhound-bench-{number}-{role}" for role in self.ROLES}
        # The kernel's threads are found by the device's name, so no other machine's or namespace's may be called so.
        self.device = given or {"source": "eth0", "in": f"in{number}", "out": f"out{number}", "sink": "eth0"}
        self.role_of = {"source": "source", "in": "router", "out": "router", "sink": "sink"}
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Bed:
        with contextlib.ExitStack() as undo:
            self.stack = undo
            for role in self.ROLES:
                run("ip", "netns", "add", self.names[role])
                undo.callback(run, "ip", "netns", "del", self.names[role], check=False)
                # Nothing but the measured packets: no neighbour discovery of IPv6.
                self.sysctl(role, "net.ipv6.conf.all.disable_ipv6", 1)
                self.sysctl(role, "net.ipv6.conf.default.disable_ipv6", 1)
            if self.given:
                self.take_given()
            else:
                self.link("source", "in")
                self.link("out", "sink")
            self.address()
            self.stack = undo.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def command(self, role: str, *argv: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[role], *argv]

    def run(self, role: str, *argv: str, check: bool = True) -> str:
        return run(*self.command(role, *argv), check=check)

    def start(self, role: str, *argv: str, name: str, stdin=subprocess.DEVNULL, stdout=None) -> subprocess.Popen:
        """A process in a namespace; what it says goes to a file of that name. Whoever starts it ends it."""
        with open(self.directory / name, "w", encoding="utf-8") as log:
            return subprocess.Popen(self.command(role, *argv), stdin=stdin, stdout=stdout or log, stderr=log, text=True)

    def said(self, name: str) -> str:
        """The last that a process said."""
        words = (self.directory / name).read_text(encoding="utf-8", errors="replace").strip()
        return " / ".join(words.splitlines()[-3:]) or "it said nothing"

    def sysctl(self, role: str, key: str, value: int) -> None:
        self.run(role, "sysctl", "-qw", f"{key}={value}")

    def ip(self, role: str, *argv: str, check: bool = True) -> str:
        return run("ip", "-n", self.names[role], *argv, check=check)

    def link(self, one: str, other: str) -> None:
        """A veth pair, one queue each way, as native XDP on a veth wants it."""
        queues = ("numtxqueues", "1", "numrxqueues", "1")
        a, b = self.role_of[one], self.role_of[other]
        run("ip", "-n", self.names[a], "link", "add", self.device[one], *queues, "type", "veth",
            "peer", "name", self.device[other], *queues, "netns", self.names[b])

    def take_given(self) -> None:
        for end, device in self.device.items():
            link = json.loads(run("ip", "-json", "-details", "address", "show", "dev", device))[0]
            if link["addr_info"] and any(a["scope"] != "link" for a in link["addr_info"]):
                raise Trouble(f"{device} has addresses: whoever uses them would lose the device; remove them first")
            if "xdp" in link:
                raise Trouble(f"another XDP program sits on {device}: ip link set {device} xdp off")
            name = self.names[self.role_of[end]]
            run("ip", "link", "set", device, "netns", name)
            # By our own process: its namespace is where the device came from.
            self.stack.callback(run, "ip", "-n", name, "link", "set", device, "netns", str(os.getpid()), check=False)

    def address(self) -> None:
        for end, device in self.device.items():
            self.ip(self.role_of[end], "link", "set", device, "up")
            # Without a program of XDP on it a veth takes frames from its peer's only while it has GRO.
            self.run(self.role_of[end], "ethtool", "-K", device, "gro", "on", check=False)
        inside, outside = self.device["in"], self.device["out"]
        # Two each: a device that loses its last address loses its neighbours too.
        for address, device in ((self.IN, inside), ("10.1.0.1", inside), (self.OUT, outside), ("10.3.0.1", outside)):
            self.ip("router", "address", "add", f"{address}/24", "dev", device)
        self.neighbour("192.0.2.2", "out", "sink")
        self.neighbour("10.3.0.2", "out", "sink")
        self.neighbour("198.51.100.2", "in", "source")
        self.sysctl("router", "net.ipv4.ip_forward", 1)
        for name in ("all", inside):
            self.sysctl("router", f"net.ipv4.conf.{name}.rp_filter", 0)
        for end in self.device:
            wait_until(lambda end=end: self.link_of(end)["operstate"] == "UP", f"{self.device[end]} is up")

    def neighbour(self, address: str, end: str, at: str) -> None:
        self.ip("router", "neighbour", "add", address, "lladdr", self.mac(at), "dev", self.device[end], "nud", "permanent")

    def link_of(self, end: str) -> dict:
        return json.loads(self.ip(self.role_of[end], "-json", "link", "show", "dev", self.device[end]))[0]

    def mac(self, end: str) -> str:
        return self.link_of(end)["address"]

    def statistic(self, end: str, name: str) -> int:
        return int(self.run(self.role_of[end], "cat", f"/sys/class/net/{self.device[end]}/statistics/{name}"))

    def counters(self, end: str) -> dict[str, int]:
        """What the driver counts (ethtool -S), by its own names."""
        counted = {}
        for line in self.run(self.role_of[end], "ethtool", "-S", self.device[end], check=False).splitlines()[1:]:
            name, _, value = line.partition(":")
            if value.strip().isdigit():
                counted[name.strip()] = int(value)
        return counted


def end(process: subprocess.Popen, patience: float = PATIENCE) -> None:
    """Ends a process that we started, by force when it does not go."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
