"""The network changes while the router runs: neighbours, links and routes are the kernel's, and we follow."""

from __future__ import annotations

import pytest

from beds import back, delivers, is_gre, payload_of, v4, v6
from topology import Bench, wait_until
from wire import GRE, IP, carries, forwarded, ip_bytes


def test_unresolved_neighbours_first(single, xdp):
    """The first packets after the start arrive, both ways and both families: the kernel resolves, and loses nothing."""
    bed = single(xdp=xdp)
    bed.router.ip("neigh", "flush", "all")
    packets = [v4(), v6(), v4()]
    bed.send_inside(*packets)
    for packet in packets:
        outer = bed.outside.expect(carries(payload_of(packet)), "outer packet")
        assert ip_bytes(outer[GRE].payload) == forwarded(packet)
    packets = [back(packet) for packet in packets]
    bed.send_outside(*(bed.around(packet) for packet in packets))
    arrived = bed.inside.collect(carries(b"<greyhound "), len(packets), "inner packets")
    assert sorted(map(ip_bytes, arrived)) == sorted(map(forwarded, packets))


def test_neighbours_flushed_under_way(single, xdp):
    """Entries that vanish are resolved anew; no packet is lost meanwhile."""
    bed = single(xdp=xdp)
    bed.warm()
    for _ in range(5):
        bed.router.ip("neigh", "flush", "all")
        packet = v4()
        assert ip_bytes(bed.encapsulated(packet)[GRE].payload) == forwarded(packet)
        inner = back(v6())
        assert ip_bytes(bed.decapsulated(inner)) == forwarded(inner)


def test_neighbour_moves(single, xdp):
    """A next hop with a new link address gets the packets there."""
    bed = single(xdp=xdp)
    bed.warm()
    for device, address, send, tap in (
        ("outer0", Bench.REMOTE, lambda p: bed.send_inside(p), bed.outside),
        ("inner0", "10.1.0.2", lambda p: bed.send_outside(bed.around(back(p))), bed.inside),
    ):
        moved = "02:00:00:00:77:77"
        bed.router.ip("neigh", "replace", address, "lladdr", moved, "dev", device, "nud", "permanent")

        def arrives() -> bool:
            packet = v4()
            send(packet)
            return tap.expect(carries(payload_of(packet))).dst == moved

        wait_until(arrives, f"packets go to the new link address of {address}")


@pytest.mark.parametrize("device", ["outer0", "inner0"])
def test_link_down_and_up(single, xdp, device):
    """A link that went down carries the tunnel again when it is back, on the fast path where there is one."""
    bed = single(xdp=xdp)
    for name in ("outer0", "inner0"):
        bed.router.sysctl(f"net.ipv6.conf.{name}.keep_addr_on_down", 1)
    bed.warm()
    for _ in range(2):
        bed.router.ip("link", "set", device, "down")
        bed.send_inside(v4(), v6())
        bed.send_outside(bed.around(back(v4())))
        bed.router.ip("link", "set", device, "up")

        def through() -> bool:
            there, here = v4(), back(v4())
            bed.send_inside(there)
            bed.send_outside(bed.around(here))
            seen_out, seen_in = bed.outside.drain(), bed.inside.drain()
            through.out |= any(b"<greyhound " in frame.original for frame in seen_out)
            through.into |= any(b"<greyhound " in frame.original for frame in seen_in)
            return through.out and through.into

        through.out = through.into = False
        wait_until(through, f"both directions work after {device} came back")
        wait_until(lambda: bed.greyhound.tunnel()["state"] == "up", "the tunnel is up")
        bed.warm()


def test_far_end_of_the_link_down_and_up(single, xdp):
    """Lost carrier is no more than that."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.far.ip("link", "set", "f0", "down")
    wait_until(lambda: bed.router.link("outer0")["operstate"] != "UP", "outer0 lost its carrier")
    bed.send_inside(v4())
    bed.far.ip("link", "set", "f0", "up")
    wait_until(lambda: bed.router.link("outer0")["operstate"] == "UP", "outer0 has its carrier back")

    def through() -> bool:
        bed.send_inside(v4())
        return any(is_gre(frame) for frame in bed.outside.drain())

    wait_until(through, "packets leave again")
    bed.warm()


def test_tunnel_device_down_and_up(single, xdp):
    """A tunnel that is down takes no packets from either side (gre-11)."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.router.ip("link", "set", "gre1", "down")
    wait_until(lambda: bed.greyhound.tunnel()["state"] != "up", "the tunnel is down")
    bed.outside.drain()
    bed.inside.drain()
    bed.send_inside(v4(), v4(options=b"\1\1\1\1"))
    bed.send_outside(bed.around(back(v4())), bed.around(back(v4()), outer={"options": b"\1\1\1\1"}))
    bed.fence_plain()
    bed.router.ip("link", "set", "gre1", "up")
    # The kernel has dropped the routes with the device; what the configuration says comes back.
    wait_until(lambda: "10.2.0.0/16" in bed.router.ip("route", "show", "dev", "gre1"), "the IPv4 route is back")
    wait_until(lambda: "fd02::/64" in bed.router.ip("-6", "route", "show", "dev", "gre1"), "the IPv6 route is back")
    wait_until(lambda: bed.greyhound.tunnel()["state"] == "up", "the tunnel is up")
    outside, inside = bed.fence_inside(), bed.fence_outside()
    assert not [frame.summary() for frame in outside + inside if delivers(frame)]


def test_routes_come_and_go(single, xdp):
    """A route put on the tunnel by anyone counts from then on, and no longer than it stands."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.router.ip("route", "add", "default", "via", Bench.REMOTE)

    def tunnelled(dst: str) -> bool:
        packet = v4(dst=dst)
        bed.send_inside(packet)
        return is_gre(bed.outside.expect(carries(payload_of(packet))))

    assert not tunnelled("10.50.0.1")
    bed.router.ip("route", "add", "10.50.0.0/16", "dev", "gre1")
    wait_until(lambda: tunnelled("10.50.0.1"), "the new route leads into the tunnel")
    bed.router.ip("route", "add", "10.50.7.0/24", "via", Bench.REMOTE)
    wait_until(lambda: not tunnelled("10.50.7.1"), "a more specific route leads past the tunnel")
    assert tunnelled("10.50.6.1") and tunnelled("10.50.8.1")
    bed.router.ip("route", "del", "10.50.7.0/24")
    wait_until(lambda: tunnelled("10.50.7.1"), "without it the tunnel's route counts again")
    bed.router.ip("route", "del", "10.50.0.0/16")
    wait_until(lambda: not tunnelled("10.50.0.1"), "the route is gone")
    bed.router.ip("route", "replace", "blackhole", "10.2.9.0/24")
    bed.router.ip("route", "add", "unreachable", "10.2.8.0/24")

    def swallowed() -> bool:
        packet = v4(dst="10.2.9.1")
        bed.send_inside(packet)
        return not any(payload_of(packet) in frame.original for frame in bed.fence_inside())

    wait_until(swallowed, "a blackhole beneath the tunnel's route swallows")


def test_routes_through_the_tunnel_by_next_hop(single, xdp):
    """A route `via` the far tunnel address, and a host route, lead into the tunnel too."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.router.ip("route", "add", "10.60.0.0/16", "via", "10.200.0.2", "dev", "gre1")
    bed.router.ip("route", "add", "10.61.0.1/32", "dev", "gre1")
    bed.router.ip("-6", "route", "add", "fd60::/64", "via", "fd00:200::2", "dev", "gre1")
    for packet in (v4(dst="10.60.1.1"), v4(dst="10.61.0.1"), v6(dst="fd60::1")):
        assert ip_bytes(bed.encapsulated(packet)[GRE].payload) == forwarded(packet)


def test_the_remote_is_behind_a_gateway(single, xdp):
    """The outer next hop comes from the kernel's routes, and follows them."""
    bed = single(tunnel={"remote": "192.0.2.9"}, xdp=xdp, start=False)
    bed.router.ip("route", "add", "192.0.2.0/24", "via", "10.9.0.2")
    bed.far.ip("address", "add", "192.0.2.9/32", "dev", "lo")
    bed.far.ip("address", "add", "10.9.0.7/24", "dev", "f0")
    bed.greyhound.start()
    assert bed.encapsulated(v4()).dst == "192.0.2.9"
    bed.send_outside(bed.around(inner := back(v4()), outer={"src": "192.0.2.9"}))
    assert ip_bytes(bed.arrived(inner)) == forwarded(inner)
    moved = "02:00:00:00:77:77"
    bed.router.ip("neigh", "replace", "10.9.0.7", "lladdr", moved, "dev", "outer0", "nud", "permanent")
    bed.router.ip("route", "replace", "192.0.2.0/24", "via", "10.9.0.7")

    def by_the_other() -> bool:
        bed.send_inside(packet := v4())
        return bed.outside.expect(carries(payload_of(packet))).dst == moved

    wait_until(by_the_other, "outer packets take the new gateway")


def test_no_recursion(single, xdp):
    """The remote endpoint routed into the tunnel itself: no packet goes round, and the router lives (gre-8)."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.router.ip("route", "add", f"{Bench.REMOTE}/32", "dev", "gre1")
    for _ in range(20):
        bed.send_inside(v4(), v4(options=b"\1\1\1\1"), v4(dst=Bench.REMOTE))
    bed.greyhound.stats()
    nested = [f for f in bed.outside.drain() if is_gre(f) and f[GRE].haslayer(GRE) and f[GRE].payload.haslayer(GRE)]
    assert not nested
    bed.router.ip("route", "del", f"{Bench.REMOTE}/32")

    def through() -> bool:
        bed.send_inside(v4())
        return any(is_gre(frame) and b"<greyhound " in frame.original for frame in bed.outside.drain())

    wait_until(through, "packets cross again")


def test_from_tunnel_to_tunnel(single, xdp):
    """What comes out of one tunnel and routes into another is forwarded like anything else, on the fast path too."""
    bed = single(xdp=xdp, start=False)
    second = bed.TUNNEL | {"name": "gre2", "key": 7, "address": ["10.200.1.1/30"], "routes": ["10.3.0.0/16"]}
    bed.greyhound.start([bed.tunnel, second], xdp=xdp)

    def crosses(inner) -> None:
        bed.send_outside(bed.around(inner))
        frame = bed.outside.expect(carries(payload_of(inner)), "packet in the second tunnel")
        assert is_gre(frame) and frame[GRE].key_present and frame[GRE].key == 7
        assert ip_bytes(frame[GRE].payload) == forwarded(inner)

    crosses(v4(src="10.2.0.2", dst="10.3.0.2"))
    if xdp == "auto":
        bed.warm()
    before = [bed.greyhound.tunnel(name)["fast"] for name in ("gre1", "gre2")]
    for _ in range(10):
        crosses(v4(src="10.2.0.2", dst="10.3.0.2"))
    now = [bed.greyhound.tunnel(name)["fast"] for name in ("gre1", "gre2")]
    expected = 10 if xdp == "auto" else 0
    assert now[0]["rx_packets"] - before[0]["rx_packets"] == expected
    assert now[1]["tx_packets"] - before[1]["tx_packets"] == expected


def test_nothing_goes_back_to_where_it_came_from(single):
    """Two routers that each take the other for the way: the fast path ends it at once (gre-8)."""
    bed = single()
    bed.warm()
    with bed.greyhound.expect_drops(recursion=1):
        bed.refused(bed.around(v4(src="10.2.0.2", dst="10.2.0.3")))


def test_the_routers_own_traffic(pair, xdp):
    """The routers themselves reach each other and the far hosts through the tunnel."""
    bed = pair({"key": 42, "csum": True, "seq": True}, xdp=xdp)
    bed.router_a.run("ping", "-n", "-c", "3", "-i", "0.05", "-W", "5", "172.16.1.2")
    bed.router_a.run("ping", "-n", "-c", "3", "-i", "0.05", "-W", "5", "-I", "10.1.0.1", "10.2.0.2")
    bed.host_a.run("ping", "-n", "-c", "3", "-i", "0.05", "-W", "5", "10.2.0.1")


def test_forwarding_off(single, xdp):
    """A router whose forwarding is switched off does not forward, by neither path."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.router.sysctl("net.ipv4.ip_forward", 0)

    def stopped() -> bool:
        packet, inner = v4(), back(v4())
        bed.send_inside(packet)
        bed.send_outside(bed.around(inner))
        bed.encapsulated(v6())
        bed.decapsulated(back(v6()))
        return not any(payload_of(p) in f.original for p, tap in ((packet, bed.outside), (inner, bed.inside)) for f in tap.drain())

    wait_until(stopped, "no IPv4 packet is forwarded")
    bed.router.sysctl("net.ipv4.ip_forward", 1)

    def started() -> bool:
        bed.send_inside(v4())
        return any(is_gre(frame) and IP in frame[GRE].payload for frame in bed.outside.drain())

    wait_until(started, "IPv4 packets are forwarded again")
