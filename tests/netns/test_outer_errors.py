"""ICMP errors about outer packets: which are believed, what they say of the tunnel, and who hears of it (mtu-3, mtu-4, mtu-5)."""

from __future__ import annotations

import pytest

from beds import back, token, v4
from topology import Bench, wait_until
from wire import GRE, ICMP, IP, Ether, IPv6, Raw, forwarded, ip_bytes

ROUTER = "10.9.0.254"
"""On the underlay, somewhere between the router and the far endpoint."""


def error(quoted: bytes, kind: int = 3, code: int = 4, mtu: int = 1400) -> IP:
    """What that router says about a packet that begins so."""
    said = {"nexthopmtu": mtu} if (kind, code) == (3, 4) else {}
    return IP(src=ROUTER, dst=Bench.LOCAL) / ICMP(type=kind, code=code, **said) / Raw(quoted)


def changed(outer: IP, at: int, value: bytes) -> bytes:
    """The packet's bytes with some replaced."""
    quoted = bytearray(ip_bytes(outer))
    quoted[at:at + len(value)] = value
    return bytes(quoted)


def sized(size: int, **fields) -> IP:
    """An inner packet of `size` bytes in all, with DF."""
    return v4(token(size - 28), **({"flags": "DF"} | fields))


def ignored(bed) -> int:
    return bed.greyhound.stats()["slow_path"]["icmp"]["ignored"]


def passes(bed, packet) -> None:
    """The packet crosses the underlay in one piece."""
    assert ip_bytes(bed.encapsulated(packet)[GRE].payload) == forwarded(packet)


@pytest.mark.parametrize("options", [{"key": 42}, {"key": 42, "csum": True, "seq": True}], ids=["key", "key csum seq"])
def test_only_what_is_about_our_packets_is_believed(single, xdp, options):
    """An error about another packet changes nothing, however little it differs; the same about one of ours does."""
    bed = single(tunnel=options, xdp=xdp)
    bed.warm()
    outer = bed.encapsulated(sized(400))
    quoted = ip_bytes(outer)
    key_at = 20 + (8 if "csum" in options else 4)
    whole = 36 if "seq" in options else 28
    forged = {
        "another source": changed(outer, 12, bytes([10, 9, 0, 7])),
        "another destination": changed(outer, 16, bytes([10, 9, 0, 7])),
        "another protocol": changed(outer, 9, b"\x04"),
        "another key": changed(outer, key_at, (43).to_bytes(4, "big")),
        "no key": changed(outer, 20, bytes([quoted[20] & ~0x20])),
        "another checksum flag": changed(outer, 20, bytes([quoted[20] ^ 0x80])),
        "another sequence flag": changed(outer, 20, bytes([quoted[20] ^ 0x10])),
        "a frame inside": changed(outer, 22, b"\x65\x58"),
        "version 1": changed(outer, 21, b"\x01"),
        "longer than any we sent": changed(outer, 2, (1501).to_bytes(2, "big")),
        "a later fragment": changed(outer, 7, b"\x01"),
        "options": changed(outer, 0, b"\x46"),
        "quoted too short": quoted[:whole - 1],
        "nothing quoted": b"",
    }
    for what, begins in forged.items():
        before = ignored(bed)
        bed.send_outside(error(begins))
        wait_until(lambda: ignored(bed) == before + 1, f"an error about a packet with {what} is ignored")
    broken = error(quoted)
    broken[ICMP].chksum = 0xBAD
    bed.send_outside(broken)
    tunnel = bed.greyhound.tunnel()
    assert tunnel["path_mtu"] == [] and set(tunnel["errors"].values()) == {0}
    passes(bed, sized(tunnel["mtu"]))
    assert bed.greyhound.tunnel()["path_mtu"] == []

    bed.send_outside(error(quoted[:whole]))
    wait_until(lambda: bed.greyhound.tunnel()["path_mtu"], "the error about our packet is believed")
    assert bed.greyhound.tunnel()["path_mtu"][0]["mtu"] == 1400
    passes(bed, sized(1400 - (1500 - tunnel["mtu"])))


def test_what_a_path_mtu_is_at_least_and_at_most(single, xdp):
    """As the kernel: 0 and less than 552 count as 552; what the route carries anyhow is no news, nor is a wider way."""
    bed = single(xdp=xdp)
    bed.warm()
    quoted = ip_bytes(bed.encapsulated(sized(400)))

    # They are heard in their order: what the last one says is known when those before it have had their say.
    for says, known in (((1500, 9000, 65535, 1400), 1400), ((1450, 1499, 1399), 1399), ((0,), 552), ((68, 551, 800), 552)):
        before = bed.greyhound.tunnel()["errors"]["too_big"]
        bed.send_outside(*(error(quoted, mtu=mtu) for mtu in says))
        wait_until(lambda: bed.greyhound.tunnel()["errors"]["too_big"] == before + len(says), f"{says} are heard")
        wait_until(lambda: [way["mtu"] for way in bed.greyhound.tunnel()["path_mtu"]] == [known], f"{known} is known")
    passes(bed, sized(528))
    bed.send_inside(sized(529))
    told = bed.inside.expect(lambda f: ICMP in f and f[ICMP].type == 3, "ICMP 3/4")
    assert told[ICMP].nexthopmtu == 528


def test_other_errors_are_counted_and_unreachable_is_shown(single, xdp):
    """The tunnel goes on; who said what stands in `tunnel show` until something comes out of the tunnel again (mtu-4)."""
    bed = single(xdp=xdp)
    bed.warm()
    quoted = ip_bytes(bed.encapsulated(sized(400)))
    bed.send_outside(error(quoted, 11, 0), error(quoted, 12, 0), error(quoted, 3, 1))
    wait_until(lambda: bed.greyhound.tunnel()["unreachable"], "unreachable is noted")
    tunnel = bed.greyhound.tunnel()
    assert tunnel["errors"] == {"too_big": 0, "unreachable": 1, "time_exceeded": 1, "parameter_problem": 1}
    assert tunnel["unreachable"] | {"seconds_ago": 0} == {
        "remote": Bench.REMOTE, "from": ROUTER, "code": 1, "reason": "host", "seconds_ago": 0,
    }
    shown = bed.greyhound.ask("tunnel", "show").stdout
    assert f"unreachable {Bench.REMOTE} (host), said {ROUTER} " in shown and "parameter_problem 1" in shown
    assert tunnel["state"] == "up"
    passes(bed, sized(400))
    inner = back(v4())
    assert ip_bytes(bed.decapsulated(inner)) == forwarded(inner)
    wait_until(lambda: bed.greyhound.tunnel()["unreachable"] is None, "it is forgotten")


def narrow(bed, mtu: int) -> None:
    """A router on the way says that it carries no more."""
    bed.send_outside(error(ip_bytes(bed.encapsulated(sized(400))), mtu=mtu))
    wait_until(lambda: bed.greyhound.tunnel()["path_mtu"], "the path MTU is learned")


def test_nobody_is_told_who_may_not_be(single, xdp):
    """Errors, and fragments but the first, are refused without a word (mtu-5)."""
    bed = single(xdp=xdp)
    bed.warm()
    narrow(bed, 1000)
    packets = {
        "an error": IP(src="10.1.0.2", dst="10.2.0.2", flags="DF") / ICMP(type=3, code=1) / Raw(token(1300)),
        "a redirect": IP(src="10.1.0.2", dst="10.2.0.2", flags="DF") / ICMP(type=5, code=1) / Raw(token(1300)),
        "a later fragment": IP(src="10.1.0.2", dst="10.2.0.2", flags="DF", frag=50, proto=17) / Raw(token(1300)),
        "an error over IPv6": IPv6(src="fd01::2", dst="fd02::2", nh=58) / Raw(b"\x01\0\0\0" + token(1300)),
        "a later fragment over IPv6": IPv6(src="fd01::2", dst="fd02::2", nh=44) / Raw(b"\x11\0\0\x51\0\0\0\x07" + token(1300)),
    }
    with bed.greyhound.expect_drops(outer_too_big=len(packets)):
        bed.send_inside(*packets.values())
    icmp = bed.greyhound.stats()["slow_path"]["icmp"]
    assert (icmp["answered"], icmp["not_answered"]) == (0, len(packets))
    # The same from an honest host is answered: the errors before it would have come first.
    bed.send_inside(sized(1001))
    came = bed.inside.expect(lambda frame: frame.haslayer(ICMP), "ICMP 3/4")
    assert came[ICMP].nexthopmtu == 976


def test_a_flood_is_not_answered_with_a_flood(single, xdp):
    """However many packets are too big, a sender is told only so often; another one is told all the same (mtu-5)."""
    bed = single(xdp=xdp)
    bed.warm()
    narrow(bed, 1000)
    packet = Ether(src=Bench.HOST_MAC, dst=Bench.INNER_MAC) / sized(1400)
    told = lambda: bed.greyhound.stats()["slow_path"]["icmp"]
    for batch in range(1, 11):
        bed.inside.send(*[bytes(packet)] * 100)
        wait_until(lambda: told()["answered"] + told()["rate_limited"] == batch * 100, "the flood is through")
    counted = told()
    assert 20 <= counted["answered"] < 1000 and counted["rate_limited"] > 0
    bed.inside.drain()
    other = sized(1400, src="10.1.0.77")
    bed.host.ip("address", "add", "10.1.0.77/24", "dev", "h0")
    bed.send_inside(other)
    came = bed.inside.expect(lambda f: ICMP in f and f[IP].dst == "10.1.0.77", "ICMP 3/4 for the other host")
    assert came[ICMP].nexthopmtu == 976
