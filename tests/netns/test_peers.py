"""One tunnel, many peers: a hub and three spokes on one underlay link, and three members of a multicast group."""

from __future__ import annotations

import contextlib
import json

import pytest

from echo import echoes
from greyhound import Greyhound
from hello import HELLOS
from topology import Segment, wait_until

SPOKES = (2, 3, 4)


class Routers:
    """A Greyhound on each router of a segment; `tunnel` makes gre1 of router n."""

    def __init__(self, directory, count: int, tunnel, **router):
        self._stack = contextlib.ExitStack()
        try:
            segment = self._stack.enter_context(Segment(count))
            self.hosts, self.routers = segment.hosts, segment.routers
            self.greyhounds = []
            for n, ns in enumerate(segment.routers, 1):
                greyhound = self._stack.enter_context(contextlib.closing(Greyhound(ns, directory, f"R{n}")))
                greyhound.configure([{"name": "gre1"} | tunnel(n)], underlay=["wan"], overlay=["lan"], **router)
                greyhound.spawn()
                self.greyhounds.append(greyhound)
            for greyhound in self.greyhounds:
                greyhound.wait_ready()
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def ping(self, a: int, b: int, families: str) -> None:
        """Every echo between the hosts behind routers a and b comes back, once."""
        for family in families:
            to = {"4": f"10.{b}.0.2", "6": f"fd0{b}::2"}[family]
            echoes(self.hosts[a - 1], to)


def underlay(mode: str, n: int) -> str:
    """Router n's outer address."""
    return f"fd09::{n}" if "6" in mode else f"10.9.0.{n}"


def kind(mode: str) -> dict:
    """The keys for a mode, or for one in UDP."""
    mode, _, udp = mode.partition(" ")
    return {"mode": mode} | ({"encap": "gre-in-udp"} if udp else {})


def hub_and_spokes(mode: str, peers: bool):
    """gre1 of router n: the hub's without a remote, the spokes' to the hub."""

    def tunnel(n: int) -> dict:
        made = {
            **kind(mode), "local": underlay(mode, n), "ttl": 64,
            "address": [f"172.16.0.{n}/24", f"fd00:172::{n}/64"],
        }
        if n > 1:
            return made | {"remote": underlay(mode, 1)}
        if peers:
            addresses = [(address, n) for n in SPOKES for address in (f"172.16.0.{n}", f"fd00:172::{n}")]
            made["peer"] = [{"address": inner, "remote": underlay(mode, n)} for inner, n in addresses]
        return made

    return tunnel


@pytest.mark.parametrize("mode", ["gre", "ip6gre", "gre in UDP"])
def test_hub_by_peer_table(tmp_path, xdp, mode):
    """Next hops inside, as a routing protocol installs them: the table says where they are outside."""
    with contextlib.closing(Routers(tmp_path, 4, hub_and_spokes(mode, True), xdp=xdp)) as bed:
        hub = bed.routers[0]
        for n in SPOKES:
            hub.ip("route", "add", f"10.{n}.0.0/24", "via", f"172.16.0.{n}", "dev", "gre1")
            hub.ip("-6", "route", "add", f"fd0{n}::/64", "via", f"fd00:172::{n}", "dev", "gre1")
        carries_unicast(bed, xdp)
        hellos_reach_everybody(bed)
        peers = json.loads(bed.greyhounds[0].ask("tunnel", "show", "--json").stdout)[0]["peers"]
        assert {(peer["address"], peer["remote"], peer["state"]) for peer in peers} == {
            (address, underlay(mode, n), "up") for n in SPOKES for address in (f"172.16.0.{n}", f"fd00:172::{n}")
        }
        assert "peer 172.16.0.3  remote" in bed.greyhounds[0].ask("tunnel", "show").stdout
        # A spoke's address inside is its own next hop.
        hub.run("ping", "-n", "-c", "1", "-W", "5", "172.16.0.3")
        # Nobody's address.
        with bed.greyhounds[0].expect_drops(no_remote=1):
            hub.run("ping", "-n", "-c", "1", "-W", "1", "172.16.0.77", check=False)


@pytest.mark.parametrize("mode", ["gre", "ipip", "sit"])
def test_hub_by_next_hop(tmp_path, xdp, mode):
    """`ip route add … via OUTER dev gre1 onlink`, without any peer table; changed while it runs."""
    with contextlib.closing(Routers(tmp_path, 4, hub_and_spokes(mode, False), xdp=xdp)) as bed:
        hub = bed.routers[0]
        for n in SPOKES:
            hub.ip("route", "add", f"10.{n}.0.0/24", "via", f"10.9.0.{n}", "dev", "gre1", "onlink")
            if mode != "ipip":
                hub.ip("-6", "route", "add", f"fd0{n}::/64", "via", f"::10.9.0.{n}", "dev", "gre1", "onlink")
        peers = {(f"10.9.0.{n}", "up") for n in SPOKES}
        wait_until(lambda: {(p["remote"], p["state"]) for p in bed.greyhounds[0].tunnel().get("peers", [])} == peers, "peers")
        carries_unicast(bed, xdp, "4" if mode == "ipip" else "46")
        # Another next hop: spoke 3's network has moved to spoke 4.
        hub.ip("route", "replace", "10.3.0.0/24", "via", "10.9.0.4", "dev", "gre1", "onlink")
        peers = {("10.9.0.2", "up"), ("10.9.0.3", "up"), ("10.9.0.4", "up")}
        if mode == "ipip":
            peers.remove(("10.9.0.3", "up"))
        wait_until(lambda: {(p["remote"], p["state"]) for p in bed.greyhounds[0].tunnel().get("peers", [])} == peers, "peers")
        bed.hosts[3].ip("address", "add", "10.3.0.2/32", "dev", "lo")
        bed.routers[3].ip("route", "add", "10.3.0.2/32", "via", "10.4.0.2")
        before = bed.greyhounds[3].tunnel()["rx"]["packets"]
        bed.hosts[0].run("ping", "-n", "-c", "3", "-i", "0.05", "-W", "5", "10.3.0.2")
        assert bed.greyhounds[3].tunnel()["rx"]["packets"] >= before + 3


def carries_unicast(bed: Routers, xdp: str, families: str = "46") -> None:
    """Hosts reach each other, from spoke to spoke through the hub as well; on the fast path where there is one."""
    for n in SPOKES:
        for route in ("10.0.0.0/8", "fd00::/13"):
            bed.routers[n - 1].ip("route", "replace", route, "dev", "gre1")
    targets = [(1, n) for n in SPOKES] + [(n, 1) for n in SPOKES] + [(2, 3), (4, 2)]
    for a, b in targets:
        bed.ping(a, b, families)
    for n in (1, *SPOKES):
        counted = bed.greyhounds[n - 1].tunnel()
        assert not counted["drops"].keys() - {"unknown_protocol", "no_remote"}, counted["drops"]
        for direction in ("rx_packets", "tx_packets"):
            fast = counted["fast"][direction]
            assert fast >= 8 * len(families) if xdp == "auto" else fast == 0, f"router {n}: {direction} {fast} fast"


def hellos_reach_everybody(bed: Routers) -> None:
    """The hub's go to each spoke once; a spoke's come to the hub."""
    for name in ("OSPF", "mDNS", "OSPFv3"):
        hello = HELLOS[name]
        with contextlib.ExitStack() as stack:
            ears = {n: stack.enter_context(contextlib.closing(hello.ear(bed.routers[n - 1], "gre1"))) for n in (1, *SPOKES)}
            payload = f"<{name} from the hub>".encode().ljust(64, b".")
            sent = bed.greyhounds[0].tunnel()["tx"]["packets"]
            hello.say(bed.routers[0], "gre1", payload)
            for n in SPOKES:
                ears[n].hears(payload)
                assert not any(payload in message for message in ears[n].waiting()), "twice"
            assert bed.greyhounds[0].tunnel()["tx"]["packets"] >= sent + len(SPOKES)
            for n in SPOKES:
                payload = f"<{name} from spoke {n}>".encode().ljust(64, b".")
                hello.say(bed.routers[n - 1], "gre1", payload)
                ears[1].hears(payload)


@pytest.mark.parametrize("mode", ["gre", "ip6gre", "ipip", "sit", "gre in UDP", "ip6gre in UDP"])
def test_mcast_1_group(tmp_path, xdp, mode):
    """Three members of a group: unicast and multicast reach who they are for, once, and nobody sends them on."""
    group = "ff05::4242" if "6" in mode else "239.129.1.1"

    def tunnel(n: int) -> dict:
        nets = [f"10.{m}.0.0/24" for m in (1, 2, 3) if m != n]
        nets += [f"fd0{m}::/64" for m in (1, 2, 3) if m != n and mode != "ipip"]
        return {
            **kind(mode), "local": underlay(mode, n), "remote": group, "ttl": 64,
            "address": [f"172.16.0.{n}/24", f"fd00:172::{n}/64"], "routes": nets,
        }

    with contextlib.closing(Routers(tmp_path, 3, tunnel, xdp=xdp)) as bed:
        for router in bed.routers:
            assert group in router.ip("maddress", "show", "dev", "wan")
        for a, b in ((1, 2), (2, 3), (3, 1)):
            bed.ping(a, b, "4" if mode == "ipip" else "46")
            echoes(bed.routers[a - 1], f"172.16.0.{b}", 1)
        for name in ("OSPF", "OSPFv3") if mode != "ipip" else ("OSPF",):
            hello = HELLOS[name]
            with contextlib.ExitStack() as stack:
                ears = [stack.enter_context(contextlib.closing(hello.ear(router, "gre1"))) for router in bed.routers]
                for n, router in enumerate(bed.routers):
                    payload = f"<{name} from member {n}>".encode().ljust(64, b".")
                    hello.say(router, "gre1", payload)
                    for m, ear in enumerate(ears):
                        if m != n:
                            ear.hears(payload)
                        assert not any(payload in message for message in ear.waiting()), f"{n} to {m}"
        for greyhound in bed.greyhounds:
            counted = greyhound.tunnel()
            # What goes to one member comes to all.
            assert counted["drops"]["other_member"] >= 10
            assert not counted["drops"].keys() - {"other_member", "unknown_protocol"}, counted["drops"]
            for direction in ("rx_packets", "tx_packets"):
                fast = counted["fast"][direction]
                assert fast >= 5 if xdp == "auto" else fast == 0, f"{direction} {fast} fast"


@pytest.mark.parametrize("mode", ["gre", "ip6gre"])
def test_mcast_1_the_device_comes_back(tmp_path, xdp, mode):
    """A group is joined again on an underlay device that was away."""
    group = "ff05::4242" if "6" in mode else "239.129.1.1"

    def tunnel(n: int) -> dict:
        return {
            "mode": mode, "local": underlay(mode, n), "remote": group, "ttl": 64, "dev": "wan",
            "address": [f"172.16.0.{n}/24"], "routes": [f"10.{3 - n}.0.0/24"],
        }

    with contextlib.closing(Routers(tmp_path, 2, tunnel, xdp=xdp)) as bed:
        bed.hosts[0].run("ping", "-n", "-c", "1", "-W", "5", "10.2.0.2")
        one = bed.routers[0]
        one.ip("link", "set", "wan", "name", "gone")
        wait_until(lambda: bed.greyhounds[0].tunnel()["state"] == "no-route", "the device is gone")
        assert group not in one.ip("maddress", "show", "dev", "gone")
        one.ip("link", "set", "gone", "name", "wan")
        one.ip("link", "set", "wan", "up")
        wait_until(lambda: bed.greyhounds[0].tunnel()["state"] == "up", "it is back")
        assert group in one.ip("maddress", "show", "dev", "wan")
        wait_until(
            lambda: bed.hosts[0].run("ping", "-n", "-c", "1", "-W", "1", "10.2.0.2", check=False).returncode == 0,
            "packets pass again",
        )
