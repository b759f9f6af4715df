"""Routing daemons over tunnels: BIRD speaks OSPF and BGP between two Greyhounds, and what it learns is used at once."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import time

import pytest

from beds import Pair, payload_of, v4
from conftest import need
from topology import DEADLINE, Namespace, wait_until
from wire import Ether, Tap, carries

# Behind router B, and known to A by a routing protocol alone.
FAR = "10.77.0.0/24"
FAR_HOST = "10.77.0.2"
NO_ROUTES = {"routes": []}


class Bird:
    """A BIRD in a router's namespace, with a protocol over its tunnels."""

    def __init__(self, ns: Namespace, directory: pathlib.Path, number: int, protocols: str):
        self.ns, self.control = ns, f"/run/{ns.name}-bird.ctl"
        config = directory / f"bird{number}.conf"
        # Debian's BIRD drops root, which reading the test's files takes.
        config.write_text(f"""
router id 10.255.0.{number};
protocol device {{ scan time 1; }}
protocol direct {{ ipv4; interface "lan", "far"; }}
protocol kernel {{ ipv4 {{ import none; export all; }}; merge paths on; }}
{protocols}
""", encoding="utf-8")
        self.log = directory / f"bird{number}.log"
        ns.run(need("bird"), "-p", "-c", str(config))
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                ns.command(need("bird"), "-f", "-c", str(config), "-s", self.control), stdout=log, stderr=log
            )

    def ask(self, *words: str) -> str:
        """`birdc …`."""
        done = subprocess.run([need("birdc"), "-s", self.control, *words], capture_output=True, text=True, timeout=DEADLINE)
        return done.stdout

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE)
        pathlib.Path(self.control).unlink(missing_ok=True)
        print(f"--- bird in {self.ns.role}\n{self.log.read_text(encoding='utf-8')[-3000:]}")


def ospf(number: int) -> str:
    return """
protocol ospf v2 inner {
    ecmp yes;
    ipv4 { import all; export where source = RTS_DEVICE; };
    area 0 {
        interface "gre*" { type ptp; hello 1; retransmit 2; dead 5; };
        interface "lan", "far" { stub; };
    };
}
"""


def bgp(number: int) -> str:
    other = 3 - number
    return f"""
protocol bgp inner {{
    local 172.16.1.{number} as 6500{number};
    neighbor 172.16.1.{other} as 6500{other};
    connect retry time 1;
    connect delay time 1;
    error wait time 1, 2;
    hold time 6;
    ipv4 {{ import all; export where source = RTS_DEVICE; next hop self; }};
}}
"""


@contextlib.contextmanager
def birds(bed: Pair, directory: pathlib.Path, protocols):
    """A far network behind router B, and a BIRD in each router."""
    bed.router_b.ip("link", "add", "far", "type", "veth", "peer", "name", "far1")
    for device in ("far", "far1"):
        bed.router_b.ip("link", "set", device, "up")
    bed.router_b.ip("address", "add", "10.77.0.1/24", "dev", "far")
    bed.router_b.ip("neigh", "add", FAR_HOST, "lladdr", "02:00:00:00:77:02", "dev", "far", "nud", "permanent")
    with contextlib.ExitStack() as stack:
        for number, ns in ((1, bed.router_a), (2, bed.router_b)):
            bird = stack.enter_context(contextlib.closing(Bird(ns, directory, number, protocols(number))))
            if number == 1:
                first = bird
        yield first


def hops(bed: Pair) -> list[str]:
    """The tunnels by which router A's kernel reaches the far network."""
    found = bed.router_a.ip_json("route", "show", FAR)
    return sorted(hop["dev"] for route in found for hop in route.get("nexthops", [route]))


def sent(bed: Pair, path: str = "tx") -> list[int]:
    """Packets that went into each of router A's tunnels, by either path or by the fast one."""
    reports = bed.a.stats()["tunnels"]
    return [report["tx"]["packets"] if path == "tx" else report[path]["tx_packets"] for report in reports]


def send_far(bed: Pair, tap: Tap, number: int = 1) -> list:
    """Packets of as many flows from host A to the far network, as they cross the underlay."""
    packets = [v4(dst=FAR_HOST, src=f"10.1.0.{2 + n % 200}") for n in range(number)]
    for n, packet in enumerate(packets):
        packet["UDP"].sport = 1000 + n
        del packet["UDP"].chksum
    header = Ether(src=bed.host_a.mac("a0"), dst=bed.router_a.mac("lan"))
    tap.send(*(header / packet for packet in packets))
    return packets


@pytest.mark.parametrize("protocols", [ospf, bgp], ids=["ospf", "bgp"])
def test_routes_of_a_daemon(tmp_path, pair, xdp, protocols, measured):
    """The daemons find each other through the tunnel; a route that appears is used, one that vanishes is not."""
    bed = pair(NO_ROUTES, xdp=xdp)
    with birds(bed, tmp_path, protocols) as bird, contextlib.closing(Tap(bed.host_a, "a0")) as inside, \
            contextlib.closing(Tap(bed.router_b, "far1")) as outside:
        wait_until(lambda: hops(bed) == ["gre1"], "the kernel has the daemon's route", 60)

        def carried() -> bool:
            before = sent(bed, "fast")
            (packet,) = send_far(bed, inside)
            outside.expect(carries(payload_of(packet)), "the packet in the far network")
            return xdp == "off" or sent(bed, "fast") > before

        wait_until(carried, "packets take the new route")
        # Away and back again, at the daemon's word: what the route's news takes to reach the packets.
        bird.ask("disable", "inner")
        wait_until(lambda: hops(bed) == [], "the route is gone")
        bird.ask("enable", "inner")
        wait_until(lambda: hops(bed) == ["gre1"], "the route is there again", 60)
        began = time.monotonic()
        wait_until(carried, "packets take it again")
        measured(f"{protocols.__name__}, xdp {xdp}: packets follow {time.monotonic() - began:.3f} s after the kernel's route")


def test_ecmp_over_two_tunnels(tmp_path, pair, xdp):
    """Two equal ways: flows use both; one tunnel cut, all take the other."""
    bed = pair(NO_ROUTES | {"key": 1}, NO_ROUTES | {"key": 2}, xdp=xdp)
    bed.router_a.sysctl("net.ipv4.fib_multipath_hash_policy", 1)
    with birds(bed, tmp_path, ospf), contextlib.closing(Tap(bed.host_a, "a0")) as inside, \
            contextlib.closing(Tap(bed.router_b, "far1")) as outside:
        wait_until(lambda: hops(bed) == ["gre1", "gre2"], "two equal ways", 60)

        def used() -> list[bool]:
            """Whether a good part of 64 flows takes each tunnel; every packet arrives."""
            before = sent(bed)
            wanted = {payload_of(packet) for packet in send_far(bed, inside, 64)}
            outside.collect(lambda f: any(p in f.original for p in wanted), len(wanted), "packets of the flows")
            return [now - then >= 8 for now, then in zip(sent(bed), before)]

        wait_until(lambda: used() == [True, True], "flows use both tunnels")
        # Nothing comes out of it at the far end any more: OSPF finds out.
        bed.router_b.ip("link", "set", "gre1", "down")
        wait_until(lambda: hops(bed) == ["gre2"], "one way is left", 60)
        wait_until(lambda: used() == [False, True], "all flows take it")
