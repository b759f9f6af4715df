"""Who is measured: each takes packets from "in", encapsulates or decapsulates them, and sends them out of "out"."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

from bed import ROOT, ROUTER_CPU, Bed, Trouble, end, run, wait_until

ENCAPSULATE, DECAPSULATE = "encapsulate", "decapsulate"
DIRECTIONS = (ENCAPSULATE, DECAPSULATE)
GRE_OVER_IPV4 = 24
"""Bytes that the outer headers take."""


def tunnel_ends(direction: str) -> tuple[str, str]:
    """The tunnel's local and remote address: its underlay is "out" when packets go into it, and "in" when they come out."""
    return (Bed.OUT, "192.0.2.2") if direction == ENCAPSULATE else (Bed.IN, "198.51.100.2")


class Contestant:
    key = title = ""
    cores = ""
    """What it runs on, in a few words."""
    gre = True
    """Whether it does more than forward."""

    def __init__(self, bed: Bed):
        self.bed = bed
        self.inside, self.outside = bed.device["in"], bed.device["out"]
        self.process = None

    def missing(self) -> str | None:
        """Why it cannot run here."""
        return None

    def start(self, direction: str) -> None:
        """Returns when it forwards."""
        raise NotImplementedError

    def stop(self) -> None:
        if self.process:
            end(self.process)
            self.process = None

    def pid(self) -> int | None:
        """The process that does the work, if one does."""
        return self.process.pid if self.process else None

    def facts(self, direction: str) -> dict:
        """What it says of itself after a measurement; refuses what is not what was meant to be measured."""
        return {}

    def native(self, *ends: str) -> None:
        """Refuses XDP in generic mode."""
        for at in ends:
            # XDP_ATTACHED_DRV of linux/if_link.h.
            if self.bed.link_of(at).get("xdp", {}).get("mode") != 1:
                raise Trouble(f"{self.title}: XDP on {self.bed.device[at]} is not native")

    def dies(self) -> bool:
        return self.process.poll() is not None


class Greyhound(Contestant):
    key, title = "greyhound", "Greyhound"
    cores = f"worker on CPU {ROUTER_CPU}"

    def __init__(self, bed: Bed):
        super().__init__(bed)
        self.binary = os.environ.get("GREYHOUND", str(ROOT / "target/release/greyhound"))
        self.socket = str(bed.directory / "control.sock")

    def start(self, direction: str) -> None:
        local, remote = tunnel_ends(direction)
        underlay, overlay = (self.outside, self.inside) if direction == ENCAPSULATE else (self.inside, self.outside)
        config = self.bed.directory / "greyhound.toml"
        config.write_text(f"""[router]
underlay = ["{underlay}"]
overlay = ["{overlay}"]
workers = [{ROUTER_CPU}]
control = "{self.socket}"

[[tunnel]]
name = "gre1"
mode = "gre"
local = "{local}"
remote = "{remote}"
ttl = 64
routes = ["10.2.0.0/24"]
""", encoding="utf-8")
        pathlib.Path(self.socket).unlink(missing_ok=True)
        self.process = self.bed.start("router", self.binary, "run", "--config", str(config), name="greyhound")
        wait_until(self.up, "Greyhound's tunnel is up")

    def up(self) -> bool:
        if self.dies():
            raise Trouble(f"Greyhound did not come up: {self.bed.said('greyhound')}")
        tunnels = (self.stats() or {}).get("tunnels")
        return bool(tunnels) and all(t["state"] == "up" for t in tunnels)

    def stats(self) -> dict | None:
        text = run(self.binary, "stats", "--json", "--socket", self.socket, check=False)
        return json.loads(text) if text else None

    def facts(self, direction: str) -> dict:
        self.native("in", "out")
        stats = self.stats()
        tunnel = stats["tunnels"][0]
        field = "tx_packets" if direction == ENCAPSULATE else "rx_packets"
        if tunnel["slow"][field] or any(worker["punted"] for worker in stats["workers"]):
            raise Trouble(f"Greyhound: {tunnel['slow'][field]} packets took the slow path")
        if not tunnel["fast"][field]:
            raise Trouble("Greyhound: no packet took the fast path")
        ports = [port for worker in stats["workers"] for port in worker["ports"]]
        for port in ports:
            if port["mode"] not in ("copy", "zero-copy"):
                raise Trouble(f"Greyhound: {port['device']} runs in mode {port['mode']}")
        return {
            "mode": ports[0]["mode"],
            "drops": {reason: n for reason, n in stats["drops"].items() if n},
            "rss_kib": resident(self.process.pid),
        }


class Bare(Contestant):
    key, title = "bare", "bare AF_XDP forwarder"
    cores = f"one thread on CPU {ROUTER_CPU}"
    gre = False

    def start(self, direction: str) -> None:
        self.process = self.bed.start(
            "router", str(ROOT / "target/release/examples/bare_forward"), self.inside, self.outside, "--cpu", str(ROUTER_CPU),
            "--seconds", "600", "--from-mac", self.bed.mac("out"), "--to-mac", self.bed.mac("sink"), name="bare")
        # It attaches its program last.
        wait_until(lambda: self.dies() or "xdp" in self.bed.link_of("in"), "the bare forwarder is up")
        if self.dies():
            raise Trouble(f"the bare forwarder did not come up: {self.bed.said('bare')}")

    def facts(self, direction: str) -> dict:
        self.native("in")
        return {"rss_kib": resident(self.process.pid)}


class InKernel(Contestant):
    """What runs in the kernel's receive path would share the source's CPU, where packets come in."""

    def start(self, direction: str) -> None:
        self.forward(direction)
        self.move(True)

    def stop(self) -> None:
        self.move(False)
        self.undo()

    def move(self, away: bool) -> None:
        """The kernel's own receive path goes to the other CPU by RPS."""
        mask = f"{1 << ROUTER_CPU:x}" if away else "0"
        write = f"for queue in /sys/class/net/{self.inside}/queues/rx-*; do echo {mask} >$queue/rps_cpus; done"
        self.bed.run("router", "sh", "-c", write, check=away)

    def forward(self, direction: str) -> None:
        raise NotImplementedError

    def undo(self) -> None:
        raise NotImplementedError

    def compiled(self, direction: str) -> str:
        """The programs, with what they need to know compiled in."""
        local, remote = (number(address) for address in tunnel_ends(direction))
        made = str(self.bed.directory / "forward.o")
        architecture = run("uname", "-m").strip()
        run("clang", "-O2", "-g", "-target", "bpf", f"-I/usr/include/{architecture}-linux-gnu", f"-DLOCAL={local}", f"-DREMOTE={remote}",
            f"-DFROM_MAC={octets(self.bed.mac('out'))}", f"-DTO_MAC={octets(self.bed.mac('sink'))}",
            f"-DOUT={self.bed.link_of('out')['ifindex']}",
            "-c", str(ROOT / "scripts/bench/forward.bpf.c"), "-o", made)
        return made

    def missing(self) -> str | None:
        return None if shutil.which("clang") else "no clang to compile its program with"


class Tc(InKernel):
    key, title = "tc", "kernel forwarding, tc encapsulation"
    cores = f"RPS to CPU {ROUTER_CPU}"

    def forward(self, direction: str) -> None:
        hook, device = ("egress", self.outside) if direction == ENCAPSULATE else ("ingress", self.inside)
        program = self.compiled(direction)
        if direction == ENCAPSULATE:
            self.bed.ip("router", "route", "add", "10.2.0.0/24", "via", "192.0.2.2", "dev", self.outside)
        self.at = device
        names = self.bed.names["router"]
        run("tc", "-n", names, "qdisc", "add", "dev", device, "clsact")
        run("tc", "-n", names, "filter", "add", "dev", device, hook, "bpf", "direct-action", "object-file", program,
            "section", f"tc-{direction}")

    def undo(self) -> None:
        run("tc", "-n", self.bed.names["router"], "qdisc", "del", "dev", self.at, "clsact", check=False)
        self.bed.ip("router", "route", "del", "10.2.0.0/24", check=False)


class Xdp(InKernel):
    key, title = "xdp", "XDP program in the kernel"
    cores = f"threaded NAPI on CPU {ROUTER_CPU}"

    def forward(self, direction: str) -> None:
        self.bed.ip("router", "link", "set", "dev", self.inside, "xdpdrv", "object", self.compiled(direction), "section", f"xdp-{direction}")

    def move(self, away: bool) -> None:
        """RPS comes after XDP: a thread receives."""
        self.bed.run("router", "sh", "-c", f"echo {int(away)} >/sys/class/net/{self.inside}/threaded", check=away)
        if away:
            for thread in wait_until(lambda: threads_of(self.inside), f"a thread receives for {self.inside}"):
                os.sched_setaffinity(thread, {ROUTER_CPU})

    def undo(self) -> None:
        self.bed.ip("router", "link", "set", "dev", self.inside, "xdp", "off", check=False)

    def facts(self, direction: str) -> dict:
        self.native("in")
        return {}


class KernelGre(InKernel):
    key, title = "kernel", "kernel's GRE device"
    cores = f"RPS to CPU {ROUTER_CPU}"

    def missing(self) -> str | None:
        try:
            self.bed.ip("router", "link", "add", "gre-probe", "type", "gre", "local", Bed.OUT, "remote", "192.0.2.2")
        except Trouble as trouble:
            return f"this kernel has no gre device ({str(trouble).rsplit(': ', 1)[-1]})"
        self.bed.ip("router", "link", "del", "gre-probe")
        return None

    def forward(self, direction: str) -> None:
        local, remote = tunnel_ends(direction)
        self.bed.ip("router", "link", "add", "gre-bench", "type", "gre", "local", local, "remote", remote, "ttl", "64")
        self.bed.ip("router", "link", "set", "gre-bench", "up")
        self.bed.sysctl("router", "net.ipv4.conf.gre-bench.rp_filter", 0)
        self.bed.ip("router", "route", "add", "10.2.0.0/24", "dev", "gre-bench")

    def undo(self) -> None:
        self.bed.ip("router", "link", "del", "gre-bench", check=False)


def resident(pid: int) -> int:
    """Resident memory in KiB."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def threads_of(device: str) -> list[int]:
    """The kernel's threads that receive for a device."""
    found = []
    for comm in pathlib.Path("/proc").glob("[0-9]*/comm"):
        try:
            name = comm.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if name.startswith(f"napi/{device}-"):
            found.append(int(comm.parent.name))
    return found


def number(address: str) -> str:
    """An IPv4 address as C has it."""
    return "0x" + "".join(f"{int(octet):02x}" for octet in address.split("."))


def octets(mac: str) -> str:
    return ",".join(f"0x{octet}" for octet in mac.split(":"))
