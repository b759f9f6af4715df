"""Keepalives in Cisco's manner: a tunnel packet around the packet that is to come back; the device's carrier follows."""

from __future__ import annotations

import pytest

from beds import Single, back, is_gre, payload_of, v4
from test_kinds import Routers, options as kind_options
from topology import Bench, wait_until
from wire import GRE, IP, IPv6, Options, carries, forwarded, gre, gre_checksum_ok, ip_bytes, sequence_of

QUICK = {"interval": 1, "retries": 2}
VARIANTS = {
    "plain": {},
    "key": {"key": 42},
    "ikey okey": {"ikey": 7, "okey": 42},
    "key csum seq": {"key": 42, "csum": True, "seq": True},
}
FAR6, NEAR6 = "fd09::2", "fd09::1"


def nothing(key: int | None = None, csum: bool = False, **fields) -> GRE:
    """A GRE header with nothing behind it."""
    keyed = {"key_present": 1, "key": key} if key is not None else {}
    return GRE(proto=0, chksum_present=int(csum), **keyed, **fields)


def keepalive(src: str = Bench.REMOTE, dst: str = Bench.LOCAL, header: GRE | None = None, **fields) -> IP | IPv6:
    """The packet that is to come back, as the end at `dst` writes it into its keepalives."""
    header = header if header is not None else nothing()
    if ":" in src:
        return IPv6(src=src, dst=dst, **({"hlim": 255, "tc": 0xC0, "nh": 47} | fields)) / header
    return IP(src=src, dst=dst, **({"ttl": 255, "tos": 0xC0, "id": 0, "flags": "DF", "proto": 47} | fields)) / header


def is_keepalive(frame) -> bool:
    """Whether the frame is a tunnel packet around a packet that is to come back."""
    layer = frame.getlayer(GRE)
    return layer is not None and layer.getlayer(GRE, 2) is not None and layer.getlayer(GRE, 2).proto == 0


def is_bare(frame) -> bool:
    """Whether the frame is what came out of a keepalive, on its way back."""
    return GRE in frame and frame[GRE].proto == 0


def inner_of(frame) -> IP | IPv6:
    """The packet in a keepalive that is to come back."""
    payload = ip_bytes(frame[GRE].payload)
    return (IPv6 if payload[0] >> 4 == 6 else IP)(payload)


class Far:
    """The far end of a `Single`, which sends back what comes out of its tunnel."""

    def __init__(self, bed: Single):
        self.bed = bed

    def next(self):
        """The next keepalive of the router."""
        return self.bed.outside.expect(is_keepalive, "a keepalive")

    def answer(self, count: int = 1) -> None:
        """Sends the next keepalives back, as any router does."""
        for _ in range(count):
            self.bed.send_outside(type(inner_of(frame := self.next()))(forwarded(inner_of(frame))))


def carrier(bed: Single, device: str = "gre1") -> bool:
    """What `ip -j link` says."""
    return "LOWER_UP" in bed.router.link(device)["flags"]


def seen(bed: Single, name: str = "gre1") -> dict:
    """The tunnel's keepalives by its statistics."""
    return bed.greyhound.tunnel(name)["keepalive"]


def words(variant: str) -> tuple[Options, Options]:
    """What the router sends, and what it expects."""
    set_, of = VARIANTS[variant], lambda d, k: set_.get(d + k, set_.get(k))
    common = bool(set_.get("csum")), bool(set_.get("seq"))
    return Options(of("o", "key"), *common), Options(of("i", "key"), *common)


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_the_wire(single, xdp, variant):
    """What is sent is an ordinary packet of the tunnel, and inside is what a router can only send back."""
    bed = single(tunnel={**VARIANTS[variant], "ttl": 64, "keepalive": QUICK}, xdp=xdp)
    sends, expects = words(variant)
    frames = [bed.outside.expect(is_keepalive) for _ in range(2)]
    for frame in frames:
        outer, header = frame[IP], frame[GRE]
        assert (outer.src, outer.dst, outer.ttl, outer.tos) == (Bench.LOCAL, Bench.REMOTE, 64, 0)
        assert (header.proto, header.key_present, header.chksum_present) == (0x0800, sends.key is not None, sends.csum)
        assert sends.key is None or header.key == sends.key
        assert not sends.csum or gre_checksum_ok(header)
        assert ip_bytes(header.payload) == bytes(keepalive(header=nothing(expects.key, expects.csum)))
    if sends.seq:
        assert sequence_of(frames[1][GRE]) > sequence_of(frames[0][GRE])
    tunnel = bed.greyhound.tunnel()
    assert tunnel["tx"]["packets"] >= 2 and tunnel["keepalive"]["sent"] >= 2


@pytest.mark.parametrize("variant", ["plain", "key csum seq"])
def test_a_far_end_that_falls_silent_and_comes_back(single, xdp, variant):
    """Up while it answers; without carrier, and without a packet but keepalives, while it does not; up with one answer."""
    bed = single(tunnel={**VARIANTS[variant], "keepalive": QUICK}, xdp=xdp)
    far = Far(bed)
    far.answer(4)
    wait_until(lambda: seen(bed)["received"] == 4, "the answers are counted")
    assert carrier(bed) and bed.greyhound.tunnel()["state"] == "up" and seen(bed)["state"] == "up"

    wait_until(lambda: bed.greyhound.tunnel()["state"] == "no-keepalive", "the tunnel is down")
    wait_until(lambda: not carrier(bed), "the device has no carrier")
    assert seen(bed)["state"] == "down" and seen(bed)["received"] == 4
    assert bed.greyhound.log().count("2 keepalives in a row unanswered") == 1
    bed.outside.drain()
    bed.send_inside(v4(), v4(options=b"\1\1\1\1"))
    assert not [frame for frame in bed.fence_plain() if is_gre(frame) and not is_keepalive(frame)]
    # What comes out of it is welcome, as with any device that has lost its carrier one way.
    assert bed.decapsulated(back(v4()))
    far.next()

    far.answer()
    wait_until(lambda: carrier(bed), "the device has its carrier back")
    wait_until(lambda: bed.greyhound.tunnel()["state"] == "up", "the tunnel is up")
    assert seen(bed)["received"] == 5 and seen(bed)["state"] == "up"
    assert bed.greyhound.log().count("keepalive answered after") == 1

    def passes() -> bool:
        packet = v4()
        bed.send_inside(packet)
        frames = bed.fence_plain()
        if any(is_keepalive(frame) for frame in frames):
            last = next(frame for frame in frames if is_keepalive(frame))
            bed.send_outside(IP(forwarded(inner_of(last))))
        return any(is_gre(frame) and payload_of(packet) in frame.original for frame in frames)

    wait_until(passes, "inner packets are sent again")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_far_ends_keepalives_are_sent_back(single, xdp, variant):
    """Without any configuration, on both paths: TTL less one, no other change, counted."""
    bed = single(tunnel=VARIANTS[variant], xdp=xdp)
    bed.warm()
    theirs = [
        keepalive(Bench.LOCAL, Bench.REMOTE),
        keepalive(Bench.LOCAL, Bench.REMOTE, nothing(42), tos=0, flags=0, id=7),
        keepalive(Bench.LOCAL, Bench.REMOTE, nothing(42, True)),
    ]
    before = bed.greyhound.tunnel()
    for inner in theirs:
        # The second one is the slow path's in any case.
        for outer in ({}, {"options": b"\1\1\1\1"}):
            bed.send_outside(bed.around(inner, outer=outer))
            frame = bed.outside.expect(is_bare, "what comes back")
            assert frame.dst == Bench.FAR_MAC
            expected, got = IP(forwarded(inner)), IP(ip_bytes(frame))
            # The kernel gives a packet without identification one, which nobody asks for.
            if expected.id == 0:
                expected.id, got.id = 0, 0
            del expected.chksum, got.chksum
            assert bytes(got) == bytes(expected)
    after = bed.greyhound.tunnel()
    assert after["keepalive"]["answered"] == 6 and after["keepalive"]["state"] == "off"
    assert after["rx"]["packets"] - before["rx"]["packets"] == 6
    assert after["drops"] == before["drops"]


def test_answering_does_not_depend_on_being_answered(single, xdp):
    """A far end that does not hear us is still told that we hear it."""
    bed = single(tunnel={"keepalive": QUICK}, xdp=xdp)
    wait_until(lambda: not carrier(bed), "the device has no carrier")
    bed.send_outside(bed.around(keepalive(Bench.LOCAL, Bench.REMOTE)))
    bed.outside.expect(is_bare, "what comes back")
    assert seen(bed)["answered"] == 1 and seen(bed)["state"] == "down"


def test_forged_keepalives_are_not_sent_back(single, xdp):
    """Only out of the tunnel, and only to its far end: nobody has anything sent anywhere."""
    bed = single(tunnel={"key": 42}, xdp=xdp)
    bed.warm()
    good = dict(src=Bench.LOCAL, dst=Bench.REMOTE)
    forged = [
        keepalive(**good),  # Not out of a tunnel at all.
        bed.around(keepalive(**good), key=43),
        bed.around(keepalive(**good), outer={"src": "10.9.0.3"}),
        bed.around(keepalive(Bench.LOCAL, "10.9.0.3")),
        bed.around(keepalive("10.1.0.1", Bench.REMOTE)),
        bed.around(keepalive(**good, ttl=1)),
        bed.around(keepalive(**good, flags="MF")),
        bed.around(keepalive(**good, options=b"\1\1\1\1")),
        bed.around(keepalive(**good, header=GRE(proto=0x0800) / v4())),
        bed.around(keepalive(**good, header=nothing(version=1))),
        bed.around(keepalive(FAR6, NEAR6)),
    ]
    bed.outside.drain()
    bed.send_outside(*forged)
    bed.fence_outside()
    back_at_the_far_end = [frame for frame in bed.fence_plain() if GRE in frame and frame[GRE].proto != 0x0800]
    assert not [frame.summary() for frame in back_at_the_far_end]
    assert seen(bed)["answered"] == 0


def test_forged_answers_are_not_heard(single, xdp):
    """What comes back is what was sent, or it is an unknown payload as ever; so is a right one that nobody waits for."""
    bed = single(tunnel={"key": 42, "csum": True, "keepalive": {"interval": 2, "retries": 255}}, xdp=xdp)
    bed.warm()
    ours = IP(forwarded(inner_of(Far(bed).next())))
    head = dict(src=Bench.REMOTE, dst=Bench.LOCAL, ttl=254)
    with bed.greyhound.expect_drops(unknown_protocol=2, gre_checksum_presence=1, gre_checksum=1):
        bed.send_outside(
            keepalive(**head, header=nothing(42, True) / b"more"),
            keepalive(**head, header=nothing(42, True, seqnum_present=1)),
            keepalive(**head, header=nothing(42)),
            keepalive(**head, header=nothing(42, True, chksum=1)),
        )
        bed.fence_outside()
    bed.send_outside(keepalive(**head, header=nothing(43, True)), keepalive(**(head | {"src": "10.9.0.3"})))
    bed.fence_outside()
    assert seen(bed)["received"] == 0
    bed.send_outside(ours)
    wait_until(lambda: seen(bed)["received"] == 1, "the true one is heard")
    bed.greyhound.terminate()

    bed.tunnel.pop("keepalive")
    bed.greyhound.start([bed.tunnel], xdp=xdp)
    bed.warm()
    with bed.greyhound.expect_drops(unknown_protocol=1):
        bed.send_outside(ours)
        bed.fence_outside()
    assert seen(bed)["received"] == 0


def test_over_ipv6(single, xdp):
    """The same with IPv6 outside and, for the packet that is to come back, inside."""
    bed = single(tunnel={"mode": "ip6gre", "local": NEAR6, "remote": FAR6, "key": 42, "keepalive": QUICK},
                 xdp=xdp, start=False)
    bed.router.ip("address", "add", f"{NEAR6}/64", "dev", "outer0", "nodad")
    bed.far.ip("address", "add", f"{FAR6}/64", "dev", "f0", "nodad")
    bed.greyhound.start()
    far = Far(bed)
    frame = far.next()
    assert (frame[IPv6].src, frame[IPv6].dst, frame[GRE].proto) == (NEAR6, FAR6, 0x86DD)
    assert ip_bytes(frame[GRE].payload) == bytes(keepalive(FAR6, NEAR6, nothing(42)))
    far.answer(4)
    wait_until(lambda: seen(bed)["received"] >= 4, "the answers are counted")
    assert carrier(bed)
    inner = keepalive(NEAR6, FAR6, nothing(42))
    bed.send_outside(IPv6(src=FAR6, dst=NEAR6) / gre(inner, Options(42)))
    back_again = bed.outside.expect(is_bare, "what comes back")
    assert ip_bytes(back_again) == forwarded(inner)
    assert seen(bed)["answered"] == 1
    wait_until(lambda: not carrier(bed), "the device has no carrier")
    far.next()
    far.answer()
    wait_until(lambda: carrier(bed), "the device has its carrier back")


def test_the_kernels_routes_decide_where_packets_go_meanwhile(single, xdp):
    """With ignore_routes_with_linkdown the next best route is used, on the fast path where there is one."""
    bed = single(start=False, xdp=xdp)
    first = bed.tunnel | {"key": 1, "keepalive": QUICK, "routes": []}
    second = bed.tunnel | {"name": "gre2", "key": 2, "address": [], "routes": []}
    bed.router.sysctl("net.ipv4.conf.default.ignore_routes_with_linkdown", 1)
    bed.greyhound.start([first, second], xdp=xdp)
    bed.router.ip("route", "add", "10.2.0.0/16", "dev", "gre1", "metric", "10")
    bed.router.ip("route", "add", "10.2.0.0/16", "dev", "gre2", "metric", "20")
    far = Far(bed)

    def key_of_a_packet() -> int | None:
        packet = v4()
        bed.send_inside(packet)
        frames = [frame for frame in bed.fence_plain() if payload_of(packet) in frame.original]
        return frames[0][GRE].key if frames else None

    wait_until(lambda: key_of_a_packet() == 1, "packets take the better route")
    wait_until(lambda: not carrier(bed), "the device has no carrier")
    wait_until(lambda: key_of_a_packet() == 2, "packets take the other tunnel")
    if xdp == "auto":
        before = bed.greyhound.tunnel("gre2")["fast"]["tx_packets"]
        wait_until(lambda: key_of_a_packet() == 2 and bed.greyhound.tunnel("gre2")["fast"]["tx_packets"] > before,
                   "the fast path carries them")
    bed.outside.drain()
    far.answer()
    wait_until(lambda: key_of_a_packet() == 1, "packets take the first tunnel again")


def test_reload_without_keepalive_gives_the_carrier_back(single, xdp):
    """Who does not ask any more takes the far end for there, as ever."""
    bed = single(tunnel={"keepalive": QUICK}, xdp=xdp)
    wait_until(lambda: not carrier(bed), "the device has no carrier")
    bed.tunnel.pop("keepalive")
    bed.greyhound.configure([bed.tunnel], xdp=xdp)
    bed.greyhound.ask("reload")
    wait_until(lambda: carrier(bed), "the device has its carrier back")
    wait_until(lambda: bed.greyhound.tunnel()["state"] == "up", "the tunnel is up")
    bed.warm()
    assert seen(bed)["state"] == "off"


@pytest.mark.parametrize("kind", ["gre", "gre key csum seq", "ip6gre key csum seq"])
def test_between_two_routers(tmp_path, xdp, kind):
    """One side asks, then both do; a far end whose tunnel is down is silent."""
    bed = Routers(tmp_path, kind_options(kind) | {"keepalive": QUICK}, xdp=xdp, start=False)
    try:
        silent = bed._tunnel(kind_options(kind), 1, 2)
        bed.b.configure([silent], underlay=["wan"], overlay=["lan"], xdp=xdp)
        bed.start()
        counts = lambda side: side.tunnel()["keepalive"]
        wait_until(lambda: counts(bed.a)["received"] >= 3, "A's keepalives come back")
        assert counts(bed.b)["answered"] >= 3 and counts(bed.a)["answered"] == counts(bed.b)["sent"] == 0
        bed.b.configure([silent | {"keepalive": QUICK}], underlay=["wan"], overlay=["lan"], xdp=xdp)
        bed.b.ask("reload")
        wait_until(lambda: counts(bed.b)["received"] >= 3, "B's keepalives come back")
        assert counts(bed.a)["answered"] >= 3
        assert bed.a.tunnel()["state"] == bed.b.tunnel()["state"] == "up"
        bed.ping()
        bed.router_b.ip("link", "set", "gre1", "down")
        wait_until(lambda: bed.a.tunnel()["state"] == "no-keepalive", "A misses the answers")
        wait_until(lambda: "LOWER_UP" not in bed.router_a.link("gre1")["flags"], "A's device has no carrier")
        bed.router_b.ip("link", "set", "gre1", "up")
        wait_until(lambda: bed.a.tunnel()["state"] == bed.b.tunnel()["state"] == "up", "both are up again")
        wait_until(lambda: bed.host_a.run("ping", "-n", "-c", "1", "-W", "1", "10.2.0.2", check=False).returncode == 0,
                   "pings pass again")
    finally:
        bed.close()
