"""Routes with several next hops: flows spread by weight, each keeps its way, and moves when that is cut."""

from __future__ import annotations

import contextlib
import json

import pytest

from beds import Single, payload_of, v4
from topology import Bench, veth, wait_until
from wire import GRE, IP, Tap, carries

FLOWS = 200


def flows(dst: str, src: str = "10.1.0.2") -> list[IP]:
    """A packet of each of many flows."""
    packets = []
    for n in range(FLOWS):
        packet = v4(src=src, dst=dst)
        packet["UDP"].sport = 3000 + n
        del packet["UDP"].chksum
        packets.append(packet)
    return packets


class TwoTunnels:
    """A router with tunnels `gre1` and `gre2`, told apart by their keys, and 10.3.0.0/16 through both."""

    def __init__(self, bed: Single, *hops: str):
        self.bed = bed
        tunnel = {"mode": "gre", "local": Bench.LOCAL, "remote": Bench.REMOTE}
        bed.greyhound.start([tunnel | {"name": f"gre{n}", "key": n} for n in (1, 2)], xdp=bed.xdp)
        bed.router.ip("route", "add", "10.3.0.0/16", *hops)

    def ways(self) -> list[int]:
        """The tunnel that each flow took, in order. Every packet arrives."""
        packets = flows("10.3.0.2")
        self.bed.send_inside(*packets)
        order = {payload_of(packet): n for n, packet in enumerate(packets)}
        frames = self.bed.outside.collect(carries(b"<greyhound "), len(packets), "outer packets")
        taken = {order[bytes(GRE(bytes(frame[IP].payload))[IP]["UDP"].payload)]: frame[GRE].key for frame in frames}
        return [taken[n] for n in range(len(packets))]

    def fast(self) -> int:
        """Packets that went into the tunnels on the fast path."""
        return sum(tunnel["fast"]["tx_packets"] for tunnel in self.bed.greyhound.stats()["tunnels"])

    def settled(self) -> list[int]:
        """The tunnel of each flow, once all take the fast path where there is one."""

        def all_fast():
            before = self.fast()
            taken = self.ways()
            return taken if self.bed.xdp == "off" or self.fast() - before == FLOWS else None

        return wait_until(all_fast, "all flows take the fast path")


@pytest.mark.parametrize("nexthops", ["route", "objects"])
def test_two_tunnels(single, xdp, nexthops):
    """Both are used by weight, three to one; a flow keeps its tunnel; one is cut, and its flows take the other."""
    bed = single(xdp=xdp, start=False)
    bed.router.sysctl("net.ipv4.fib_multipath_hash_policy", 1)
    if nexthops == "route":
        tunnels = TwoTunnels(bed, "nexthop", "dev", "gre1", "weight", "3", "nexthop", "dev", "gre2", "weight", "1")
    else:
        tunnels = TwoTunnels(bed, "dev", "gre1")
        for number, device in ((1, "gre1"), (2, "gre2")):
            bed.router.ip("nexthop", "add", "id", str(number), "dev", device)
        bed.router.ip("nexthop", "add", "id", "9", "group", "1,3/2,1")
        bed.router.ip("route", "replace", "10.3.0.0/16", "nhid", "9")
        wait_until(lambda: len(set(tunnels.ways())) == 2, "both tunnels are used")
    first = tunnels.settled()
    share = first.count(1)
    # Three in four; the standard deviation of 200 flows is 6.
    assert 120 <= share <= 180, f"{share} of {FLOWS} flows take gre1"
    assert tunnels.settled() == first, "a flow changed its tunnel"

    bed.router.ip("link", "set", "gre1", "down")
    wait_until(lambda: set(tunnels.ways()) == {2}, "all flows take gre2")
    assert set(tunnels.settled()) == {2}


def test_a_group_changes_under_its_routes(single):
    """Weights of a nexthop group change at once for every route that uses it."""
    bed = single(start=False)
    tunnels = TwoTunnels(bed, "dev", "gre1")
    for number, device in ((1, "gre1"), (2, "gre2")):
        bed.router.ip("nexthop", "add", "id", str(number), "dev", device)
    bed.router.ip("nexthop", "add", "id", "9", "group", "1")
    bed.router.ip("route", "replace", "10.3.0.0/16", "nhid", "9")
    assert set(tunnels.settled()) == {1}
    bed.router.ip("nexthop", "replace", "id", "9", "group", "2")
    wait_until(lambda: set(tunnels.ways()) == {2}, "all flows take gre2")
    assert set(tunnels.settled()) == {2}


def test_two_ports(single):
    """Out of the tunnel: both devices are used, evenly, a flow keeps its device; one cut, all take the other."""
    bed = single(start=False)
    other = bed.bench.namespace("other")
    veth(other, "h1", bed.router, "inner1")
    other.ip("address", "add", "10.5.0.2/24", "dev", "h1")
    bed.router.ip("address", "add", "10.5.0.1/24", "dev", "inner1")
    bed.router.sysctl("net.ipv4.conf.all.rp_filter", 0)
    for device, neighbour, host in (("inner0", "10.1.0.2", bed.host), ("inner1", "10.5.0.2", other)):
        mac = host.mac("h0" if host is bed.host else "h1")
        bed.router.ip("neigh", "replace", neighbour, "lladdr", mac, "dev", device, "nud", "permanent")
    bed.router.ip("route", "add", "10.4.0.0/16", "nexthop", "via", "10.1.0.2", "nexthop", "via", "10.5.0.2")
    bed.greyhound.start([bed.tunnel], overlay=["inner0", "inner1"])
    with contextlib.closing(Tap(other, "h1")) as second:

        def ways() -> list[int]:
            packets = flows("10.4.0.9", src="10.2.0.2")
            bed.send_outside(*(bed.around(packet) for packet in packets))
            order = {payload_of(packet): n for n, packet in enumerate(packets)}
            taken: dict[int, int] = {}

            def all_there() -> bool:
                for device, tap in enumerate((bed.inside, second)):
                    for frame in tap.drain():
                        if b"<greyhound " in frame.original and "UDP" in frame:
                            taken[order.get(bytes(frame["UDP"].payload), -1)] = device
                taken.pop(-1, None)
                return len(taken) == len(packets)

            wait_until(all_there, "every packet arrives at one of the hosts")
            return [taken[n] for n in range(len(packets))]

        def settled() -> list[int]:
            def all_fast():
                before = bed.greyhound.tunnel()["fast"]["rx_packets"]
                taken = ways()
                return taken if bed.greyhound.tunnel()["fast"]["rx_packets"] - before == FLOWS else None

            return wait_until(all_fast, "all flows take the fast path")

        first = settled()
        # Half; the standard deviation of 200 flows is 7.
        assert 65 <= first.count(0) <= 135, f"{first.count(0)} of {FLOWS} flows leave by inner0"
        assert settled() == first, "a flow changed its device"
        bed.router.ip("link", "set", "inner1", "down")
        wait_until(lambda: set(ways()) == {0}, "all flows leave by inner0")


def test_route_show(single):
    """The table in use, as text and as data: where each route leads, and why not on the fast path."""
    bed = single()
    bed.router.ip("route", "add", "blackhole", "10.6.0.0/16")
    bed.router.ip("route", "add", "10.7.0.0/16", "via", "10.1.0.77")

    def shown(*words: str) -> dict[str, dict]:
        found = json.loads(bed.greyhound.ask("route", "show", *words, "--json").stdout)
        return {route["prefix"]: route for route in found}

    wait_until(lambda: "10.7.0.0/16" in shown(), "the new route is in the table")
    routes = shown()
    tunnel, gateway = routes["10.2.0.0/16"], routes["10.7.0.0/16"]
    assert (tunnel["path"], tunnel["hops"][0]["device"], tunnel["hops"][0]["tunnel"]) == ("fast", "gre1", True)
    assert (gateway["path"], gateway["hops"][0]["via"]) == ("slow", "10.1.0.77")
    assert "10.1.0.77 on inner0 has no link address" in gateway["why"]
    assert (routes["10.6.0.0/16"]["kind"], routes["10.6.0.0/16"]["path"]) == ("blackhole", "slow")
    assert routes["10.1.0.1/32"]["kind"] == "local"
    assert routes["fd02::/64"]["path"] == "fast"
    # One address: the route that its packets take.
    assert list(shown("10.2.3.4")) == ["10.2.0.0/16"]
    text = bed.greyhound.ask("route", "show", "10.2.0.0/16").stdout
    assert text == "10.2.0.0/16 dev gre1 mtu 1476  fast\n"
    bed.router.ip("link", "set", "gre1", "down")
    wait_until(lambda: "10.2.0.0/16" not in shown(), "the kernel has taken the route away")
