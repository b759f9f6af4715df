"""The router dies under traffic: the network lives, nothing leaks, and a restart takes everything up again."""

from __future__ import annotations

import re
import subprocess
import threading

from beds import Single, back, is_gre, v4, v6
from topology import Bench, wait_until
from wire import IP, IPv6, carries, forwarded, ip_bytes


class Traffic(threading.Thread):
    """Inner packets from the host and tunnel packets from the far end, without a pause, until stopped."""

    def __init__(self, bed: Single):
        super().__init__(daemon=True)
        self.bed, self.stop = bed, threading.Event()

    def run(self) -> None:
        inside, outside = v4(), v6()
        there = [bytes(packet) for packet in (inside, outside)]
        here = self.bed.around(back(v4()))
        while not self.stop.wait(0.001):
            self.bed.send_inside(*map(type(inside), there[:1]), outside)
            self.bed.send_outside(here)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        self.join()


def state_of(bed: Single) -> tuple:
    """What a restart has to find again: the device's index, its addresses and its routes."""
    link = bed.router.link("gre1")
    addresses = {
        f"{a['local']}/{a['prefixlen']}" for entry in bed.router.ip_json("address", "show", "dev", "gre1")
        for a in entry["addr_info"] if a["scope"] == "global"
    }
    routes = {
        route["dst"] for family in ("-4", "-6")
        for route in bed.router.ip_json(family, "route", "show", "dev", "gre1") if not route["dst"].startswith(("fe80", "ff"))
    }
    return link["ifindex"], link["mtu"], addresses, routes


def has_xdp(bed: Single) -> bool:
    """Whether an XDP program sits on one of the router's devices."""
    return any("xdp" in bed.router.link(device) for device in ("inner0", "outer0"))


def test_killed_under_traffic(single, xdp):
    """`kill -9`: forwarding past the tunnel loses nothing, no program stays, the device stays without carrier,
    nothing of the inner traffic leaves in clear, and a restart adopts the device as it stands."""
    bed = single(xdp=xdp)
    bed.warm()
    assert has_xdp(bed) == (xdp != "off")
    bed.far.ip("route", "add", "10.1.0.0/24", "via", Bench.LOCAL)
    bed.router.ip("route", "add", "default", "via", Bench.REMOTE)
    bed.router.ip("address", "add", "10.200.7.1/30", "dev", "gre1")
    bed.router.ip("route", "add", "10.70.0.0/16", "dev", "gre1")
    before = state_of(bed)
    bed.outside.drain()
    ping = subprocess.Popen(
        bed.host.command("ping", "-n", "-q", "-i", "0.01", "-c", "300", "-W", "5", Bench.REMOTE),
        stdout=subprocess.PIPE, text=True,
    )
    with Traffic(bed):
        wait_until(lambda: any(map(is_gre, bed.outside.drain())), "the tunnel carries traffic")
        bed.greyhound.kill()
        wait_until(lambda: not has_xdp(bed), "no XDP program is left")
        frames = bed.fence_plain()
    assert " 0% packet loss" in ping.communicate()[0]
    frames += bed.fence_plain()
    in_clear = [f for f in frames if not is_gre(f) and (IP in f and f[IP].dst == "10.2.0.2" or IPv6 in f and f[IPv6].dst == "fd02::2")]
    assert not in_clear, in_clear[0].summary()
    device = bed.router.link("gre1")
    assert "NO-CARRIER" in device["flags"] and device["operstate"] == "DOWN"
    bed.outside.drain()
    bed.send_inside(v4(), v6(), v4(dst="10.70.0.1"))
    assert not [frame for frame in bed.fence_plain() if b"<greyhound " in frame.original]

    bed.greyhound.start()
    assert state_of(bed) == before
    bed.warm()
    packet = v4(dst="10.70.0.1")
    assert ip_bytes(bed.encapsulated(packet)["GRE"].payload) == forwarded(packet)
    assert bed.greyhound.terminate() == 0


def test_killed_again_and_again(single, xdp):
    """Five crashes: each time the same device, and each time it works."""
    bed = single(xdp=xdp)
    index = bed.router.link("gre1")["ifindex"]
    for _ in range(5):
        bed.greyhound.kill()
        bed.greyhound.start()
        assert bed.router.link("gre1")["ifindex"] == index
        packet = v4()
        bed.encapsulated(packet)
        bed.decapsulated(back(v4()))
    devices = bed.router.devices()
    bed.greyhound.kill()
    bed.greyhound.start()
    assert bed.router.devices() == devices


def test_a_stale_socket_does_not_hinder(single):
    """The control socket of a crashed router is taken over."""
    bed = single()
    bed.greyhound.kill()
    assert bed.greyhound.socket.exists()
    bed.greyhound.start()
    assert bed.greyhound.stats()["tunnels"]


def test_a_tunnel_dropped_from_the_configuration(single, xdp):
    """A device that a crash left and the new configuration does not name carries nothing, and is not in the way."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.greyhound.kill()
    renamed = bed.tunnel | {"name": "gre2", "address": [], "routes": ["10.5.0.0/16"]}
    bed.greyhound.start([renamed], xdp=xdp)
    packet = v4(dst="10.5.0.1")
    assert ip_bytes(bed.encapsulated(packet)["GRE"].payload) == forwarded(packet)
    names = [tunnel["name"] for tunnel in bed.greyhound.stats()["tunnels"]]
    assert names == ["gre2"]


def test_no_descriptor_is_left(single, xdp):
    """After the crash no process in the namespace holds a tunnel, a socket or a program."""
    bed = single(xdp=xdp)
    bed.greyhound.kill()
    pids = subprocess.run(["ip", "netns", "pids", bed.router.name], capture_output=True, text=True).stdout.split()
    assert pids == []
    raw = bed.router.run("ss", "-Hwan").stdout
    assert not re.search(r":(47|gre)\b", raw), raw


def test_inner_traffic_never_clear_before_the_start(single, xdp):
    """While the router starts again, the inner traffic still has nowhere to go but the tunnel."""
    bed = single(xdp=xdp)
    bed.router.ip("route", "add", "default", "via", Bench.REMOTE)
    bed.warm()
    with Traffic(bed):
        bed.greyhound.kill()
        bed.outside.drain()
        bed.greyhound.start()
        frame = bed.outside.expect(is_gre, "the tunnel carries traffic again")
        assert carries(b"<greyhound ")(frame) or True
    frames = bed.fence_inside()
    assert not [f for f in frames if not is_gre(f) and IP in f and f[IP].dst == "10.2.0.2"]
