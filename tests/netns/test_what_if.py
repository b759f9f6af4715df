"""`greyhound trace`: what it says of a packet is what becomes of such a packet, and asking changes nothing."""

from __future__ import annotations

import json

import pytest

from beds import back, v4, v6
from test_multipath import TwoTunnels, flows
from topology import Bench, wait_until
from wire import GRE, IP, IPv6

OPTIONS = {"key": 42, "csum": True, "seq": True, "ttl": 64}


def ask(bed, *words: str) -> dict:
    return json.loads(bed.greyhound.ask("trace", *words, "--json").stdout)


def like(packet) -> list[str]:
    """The words for one of the beds' UDP packets."""
    ttl, tos = (packet.hlim, packet.tc) if IPv6 in packet else (packet.ttl, packet.tos)
    udp = packet["UDP"]
    return [packet.src, packet.dst, "--protocol", "udp", "--sport", str(udp.sport), "--dport", str(udp.dport),
            "--size", str(len(packet)), "--ttl", str(ttl), "--tos", str(tos)]


def unnoticed(bed, *words: str) -> dict:
    """Asks, and finds nothing counted: at a moment when the hosts' own multicast is not counted either."""

    def counters() -> list:
        stats = bed.greyhound.stats()
        return [stats["drops"], stats["xdp"], [(t["rx"], t["tx"], t["drops"]) for t in stats["tunnels"]]]

    def once() -> dict | None:
        before = counters()
        said = ask(bed, *words)
        return said if counters() == before else None

    return wait_until(once, "asking is not counted")


def taken(said: dict, xdp: str) -> bool:
    """The path that the bed's steering gives to plain packets."""
    return said["path"] == ("slow" if xdp == "off" else "fast")


@pytest.mark.parametrize("packet", [v4, v6], ids=["ipv4", "ipv6"])
def test_into_the_tunnel(single, xdp, packet):
    """The outer packet is the one that such a packet gets, sequence number included, and that number is not used up."""
    bed = single(tunnel=OPTIONS, xdp=xdp)
    bed.warm()
    probe = packet(**({"tos": 0x28} if packet is v4 else {"tc": 0x28}))
    said = unnoticed(bed, *like(probe), "--from", "inner0")
    assert ask(bed, *like(probe)) == said  # Where such a source is, the router knows.
    assert said["verdict"] == "sent" and taken(said, xdp), said
    assert said["steering"] == (None if xdp == "off" else "redirected_overlay")
    assert said["tunnel"] == "gre1" and said["route"]["hops"][0]["device"] == "gre1"
    assert said["next_hop"]["device"] == "outer0" and said["next_hop"]["lladdr"] == Bench.FAR_MAC
    seen = bed.encapsulated(probe)
    gre = GRE(bytes(seen.payload))
    leaves = said["leaves"]
    assert (leaves["source"], leaves["destination"], leaves["protocol"]) == (seen.src, seen.dst, seen.proto)
    assert (leaves["ttl"], leaves["tos"], leaves["bytes"]) == (seen.ttl, seen.tos, seen.len)
    assert leaves["df"] == bool(seen.flags.DF)
    assert (leaves["key"], leaves["sequence"]) == (gre.key, gre.sequence_number)


@pytest.mark.parametrize("packet", [v4, v6], ids=["ipv4", "ipv6"])
def test_out_of_the_tunnel(single, xdp, packet):
    """From the tunnel: the outer packet that the far end sends, judged by the underlay device, and what leaves."""
    bed = single(tunnel=OPTIONS, xdp=xdp)
    bed.warm()
    probe = back(packet())
    said = unnoticed(bed, *like(probe), "--from", "gre1")
    assert ask(bed, *like(probe)) == said
    assert (said["packet"]["source"], said["packet"]["destination"]) == (Bench.REMOTE, Bench.LOCAL)
    assert said["packet"]["key"] == 42 and said["packet"]["protocol"] == 47
    assert said["inner"]["source"] == probe.src
    assert said["steering"] == (None if xdp == "off" else "redirected_underlay")
    arrived = bed.decapsulated(probe)
    if xdp == "off":
        assert said["verdict"] == "kernel" and said["path"] == "slow" and "gre1" in said["meaning"]
        return
    assert said["verdict"] == "sent" and said["path"] == "fast" and said["from"] == "outer0"
    leaves, ttl = said["leaves"], arrived.ttl if IP in arrived else arrived.hlim
    assert (leaves["source"], leaves["ttl"], leaves["bytes"]) == (arrived.src, ttl, len(arrived))
    assert said["next_hop"]["device"] == "inner0" and said["next_hop"]["lladdr"] == Bench.HOST_MAC


def test_what_the_kernel_answers(single, xdp):
    """TTL 1, too big, no route, for the router itself: who answers, and why; nothing leaves."""
    bed = single(xdp=xdp)
    bed.warm()
    on = xdp != "off"
    for words, reason, why in (
        (["10.1.0.2", "10.2.0.2", "--ttl", "1"], "ttl", "time is up"),
        (["10.1.0.2", "10.2.0.2", "--size", "1477", "--df"], "too_big", "too big"),
        (["10.1.0.2", "10.77.0.2"], "no_route", "own routes"),
        (["10.1.0.2", "10.1.0.1"], "no_route" if on else "local_delivery", "this router"),
        (["fd01::2", "fd02::2", "--ttl", "1"], "ttl", "time is up"),
    ):
        said = ask(bed, *words, "--from", "inner0")
        assert (said["verdict"], said["path"], said["reason"]) == ("kernel", "slow", reason), said
        assert why in said["meaning"] and said["leaves"] is None
        assert said["steering"] == (reason if on else None)
    # One byte less fits.
    assert ask(bed, "10.1.0.2", "10.2.0.2", "--size", "1476", "--df")["verdict"] == "sent"


def test_a_tunnel_that_is_down(single, xdp):
    bed = single(xdp=xdp)
    bed.warm()
    bed.router.ip("link", "set", "gre1", "down")
    wait_until(lambda: bed.greyhound.tunnel()["state"] == "down", "the router knows")
    said = ask(bed, "10.1.0.2", "10.2.0.2", "--from", "inner0")
    assert said["verdict"] in ("kernel", "dropped") and said["leaves"] is None, said


def test_one_of_several_ways(single, xdp):
    """Of two tunnels the one that the flow takes, for each of many flows."""
    bed = single(xdp=xdp, start=False)
    bed.router.sysctl("net.ipv4.fib_multipath_hash_policy", 1)
    tunnels = TwoTunnels(bed, "nexthop", "dev", "gre1", "nexthop", "dev", "gre2")
    if xdp == "off":
        said = ask(bed, *like(flows("10.3.0.2")[0]), "--from", "inner0")
        assert said["tunnel"] in ("gre1", "gre2")
        return
    seen = tunnels.settled()
    for packet, way in list(zip(flows("10.3.0.2"), seen))[::10]:
        said = ask(bed, *like(packet), "--from", "inner0")
        assert (said["tunnel"], said["leaves"]["key"]) == (f"gre{way}", way)
    assert set(seen) == {1, 2}


def test_questions_without_sense(single):
    """One line: what was found, and what would be accepted."""
    bed = single()
    for words, complaint in (
        (["10.1.0.2", "10.2.0.2", "--from", "eth9"], "eth9 is none of the router's devices: expected outer0, inner0 or a tunnel"),
        (["10.1.0.2", "fd02::2", "--from", "inner0"], "10.1.0.2 and fd02::2: expected two addresses of one family"),
        (["10.1.0.2", "10.2.0.2", "--size", "20"], "size 20: expected 28 at the least"),
    ):
        done = bed.greyhound.ask("trace", *words, check=False)
        assert done.returncode == 1 and complaint in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_text(single):
    """What an operator reads: a line for each step."""
    bed = single(tunnel={"key": 42, "ttl": 64})
    bed.warm()
    lines = bed.greyhound.ask("trace", "10.1.0.2", "10.2.0.2", "--df").stdout.splitlines()
    assert lines[0] == "10.1.0.2 > 10.2.0.2  icmp  84 bytes ttl 64 df  from inner0"
    names = [line.split()[0] for line in lines[1:]]
    assert names == ["steering", "route", "tunnel", "leaves", "next", "fast"], lines
    assert lines[-1].split() == ["fast", "sent:", "by", "outer0"]
