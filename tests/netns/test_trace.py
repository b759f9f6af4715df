"""Errors that routers send back: time exceeded from each hop, in its own address."""

from __future__ import annotations

import pytest

from beds import back, v4, v6
from conftest import need
from wire import GRE, ICMP, IP, IPv6

TUNNELS = {"plain": {}, "key csum seq": {"key": 42, "csum": True, "seq": True}}


@pytest.mark.parametrize("kind", TUNNELS)
def test_traceroute(pair, xdp, kind):
    """Both routers show, the underlay does not, and the far host answers."""
    need("traceroute")
    bed = pair(TUNNELS[kind], xdp=xdp)
    for options, hops in (
        (["-4", "10.2.0.2"], ["10.1.0.1", "172.16.1.2", "10.2.0.2"]),
        (["-6", "fd02::2"], ["fd01::1", "fd00:172:1::2", "fd02::2"]),
    ):
        lines = bed.host_a.run("traceroute", "-n", "-q", "1", "-w", "5", *options).stdout.splitlines()[1:]
        assert [line.split()[1] for line in lines] == hops


def test_time_exceeded(single, xdp):
    """A packet whose time is up is answered from the device on which it came in, and does not cross."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.send_inside(packet := v4(ttl=1))
    error = bed.inside.expect(lambda f: ICMP in f and f[ICMP].type == 11, "ICMP time exceeded")
    assert (error[IP].src, error[IP].dst) == ("10.1.0.1", "10.1.0.2")
    assert bytes(error[ICMP].payload)[:28] == bytes(packet)[:28]
    bed.send_inside(v6(hlim=1))
    error = bed.inside.expect(lambda f: f.haslayer("ICMPv6TimeExceeded"), "ICMPv6 time exceeded")
    assert (error[IPv6].src, error[IPv6].dst) == ("fd01::1", "fd01::2")
    bed.send_outside(bed.around(back(v4(ttl=1))))
    error = bed.outside.expect(lambda f: GRE in f and ICMP in f and f[ICMP].type == 11, "ICMP through the tunnel")
    assert (error[GRE][IP].src, error[GRE][IP].dst) == ("10.200.0.1", "10.2.0.2")
    bed.send_outside(bed.around(back(v6(hlim=1))))
    error = bed.outside.expect(lambda f: GRE in f and f.haslayer("ICMPv6TimeExceeded"), "ICMPv6 through the tunnel")
    assert (error[GRE][IPv6].src, error[GRE][IPv6].dst) == ("fd00:200::1", "fd02::2")


def test_no_route_inside(single, xdp):
    """A packet for an inner address that has no route is answered by the kernel, through the tunnel."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.send_outside(bed.around(v4(src="10.2.0.2", dst="10.77.0.1")))
    frame = bed.outside.expect(lambda f: GRE in f and f.haslayer(ICMP) and f[ICMP].type == 3, "ICMP unreachable")
    assert frame[GRE][IP].dst == "10.2.0.2" and IPv6 not in frame
