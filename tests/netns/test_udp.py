"""GRE in UDP (RFC 8086; conformance udp-1): scapy and tshark judge what is on the underlay, over both families."""

from __future__ import annotations

import json
import pathlib
import socket
import subprocess

import pytest
from scapy.layers.inet import UDP
from scapy.packet import bind_layers
from scapy.utils import wrpcap

from beds import OfKind, Pair, Single, back, payload_of, token, v4, v6
from conftest import need
from greyhound import Greyhound, binary
from test_kinds import FAR, Routers
from test_tcp import transfer
from topology import DEADLINE, Bench, wait_until
from wire import GRE, IP, carries, checksums_ok, forwarded, gre_checksum_ok, ip_bytes

PORT = 4754
bind_layers(UDP, GRE, dport=PORT)

UNDERLAYS = {"over v4": {"mode": "gre"}, "over v6": {"mode": "ip6gre"}}
FAMILIES = {"v4": v4, "v6": v6}


class InUdp(OfKind):
    """A router with a tunnel in UDP."""

    def __init__(self, directory: pathlib.Path, underlay: str, tunnel: dict | None = None, **kwargs):
        super().__init__(directory, UNDERLAYS[underlay] | {"encap": "gre-in-udp"} | (tunnel or {}), **kwargs)

    def prepare_far(self) -> None:
        self.bench.sink(self.far, PORT)

    def shim(self, inner, udp: dict | None = None, **fields):
        return UDP(**({"sport": 51515, "dport": PORT} | (udp or {}))) / super().shim(inner, **fields)


@pytest.fixture
def in_udp(tmp_path, xdp):
    """One router; call it with an underlay and a tunnel's options to get it running."""
    beds: list[InUdp] = []

    def build(underlay: str, tunnel: dict | None = None) -> InUdp:
        beds.append(InUdp(tmp_path, underlay, tunnel, xdp=xdp))
        beds[-1].warm()
        return beds[-1]

    yield build
    for bed in beds:
        bed.close()


def took_path(bed: InUdp, before: dict, counter: str, packets: int) -> None:
    """The packets took the path that steering leaves to them."""
    path = "slow" if bed.xdp == "off" else "fast"
    wait_until(lambda: bed.greyhound.tunnel()[path][counter] - before[path][counter] >= packets, f"{packets} {path}")


@pytest.mark.parametrize("options", [{}, {"key": 42, "csum": True, "seq": True}], ids=["plain", "key csum seq"])
@pytest.mark.parametrize("csum", [False, True], ids=["no checksum", "checksum"])
@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_outer_packet(in_udp, underlay, csum, options):
    """Every field around the inner packet, which has nothing changed but its TTL."""
    bed = in_udp(underlay, {"encap_csum": csum, **options})
    before = bed.greyhound.tunnel()
    for family in FAMILIES.values():
        for size in (18, 19, 1300):
            packet = family(token(size))
            outer = bed.encapsulated(packet)
            udp = outer[UDP]
            assert (udp.dport, udp.len) == (PORT, 8 + 4 * (1 + 3 * bool(options)) + len(packet))
            assert 49152 <= udp.sport <= 65535
            assert (udp.chksum != 0) == csum
            tunnel = udp.payload
            assert isinstance(tunnel, GRE) and tunnel.version == 0
            assert (tunnel.key if tunnel.key_present else None) == options.get("key")
            assert not options or gre_checksum_ok(tunnel)
            assert ip_bytes(tunnel.payload) == forwarded(packet)
            if csum:
                assert checksums_ok(outer)
            if bed.over6:
                assert (outer.nh, outer.hlim, outer.tc) == (60, 64, 0)
            else:
                assert (outer.proto, outer.ttl, outer.tos, str(outer.flags)) == (17, 63, 0, "DF")
                assert IP(bytes(outer.copy())[:20]).id != 0
    took_path(bed, before, "tx_packets", 6)


@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_entropy(in_udp, underlay):
    """A flow has one source port, and over IPv6 one flow label; many flows have many of both."""
    bed = in_udp(underlay)

    def seen(packet) -> tuple:
        outer = bed.encapsulated(packet)
        return outer[UDP].sport, outer.fl if bed.over6 else 0

    def flow(family, sport: int):
        packet = family(token())
        packet[UDP].sport = sport
        return packet

    for family in FAMILIES.values():
        one = {seen(flow(family, 7)) for _ in range(8)}
        assert len(one) == 1, one
        many = [seen(flow(family, sport)) for sport in range(2000, 2064)]
        # 64 flows in 16384 ports: two pairs that share one would already be rare.
        assert len({port for port, _ in many}) >= 61, many
        if bed.over6:
            assert len({label for _, label in many}) >= 63, many


@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_fixed_source_port(in_udp, underlay):
    """`encap_sport` is every packet's."""
    bed = in_udp(underlay, {"encap_sport": 4754})
    for sport in range(3000, 3008):
        packet = v4()
        packet[UDP].sport = sport
        assert bed.encapsulated(packet)[UDP].sport == 4754
    shown = bed.greyhound.ask("tunnel", "show").stdout
    assert "encap gre-in-udp  encap-sport 4754" in shown


@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_received(in_udp, underlay):
    """Any source port; a checksum that is right; over IPv4 none at all. What is inside comes out."""
    bed = in_udp(underlay)
    before = bed.greyhound.tunnel()
    headers = [{}, {"sport": 1}, {"sport": 4754}] + ([] if bed.over6 else [{"chksum": 0}])
    for family in FAMILIES.values():
        for udp in headers:
            inner = back(family())
            assert ip_bytes(bed.decapsulated(inner, udp=udp)) == forwarded(inner)
    took_path(bed, before, "rx_packets", 2 * len(headers))


@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_refused(in_udp, underlay):
    """Wrong checksums, and over IPv6 missing ones, never come out; a worker counts them, the kernel drops them for the slow path."""
    bed = in_udp(underlay)
    bad = [{"chksum": 1}, {"sport": 3, "chksum": 0xBEEF}] + ([{"chksum": 0}] if bed.over6 else [])
    expected = {"udp_checksum": len(bad)} if bed.xdp == "auto" else {}
    counter = "Udp6InCsumErrors" if bed.over6 else "UdpInCsumErrors"

    def kernels() -> int:
        found = bed.router.run("nstat", "-asz", "--json", counter).stdout
        return json.loads(found)["kernel"][counter]

    before = kernels()
    with bed.greyhound.expect_drops(**expected):
        bed.send_outside(*(bed.around(back(v4(b"<bad>".ljust(32, b"."))), udp=udp) for udp in bad))
        good = back(v4())
        bed.send_outside(bed.around(good))
        seen = []
        bed.inside.expect(lambda frame: (seen.append(frame), payload_of(good) in frame.original)[1], "the good one")
    assert not [frame for frame in seen if b"<bad>" in frame.original]
    assert kernels() - before == len(bad) - sum(expected.values())


def test_no_checksum_over_v6_where_configured(in_udp):
    """`encap_csum = false`: none is sent, none is asked for (RFC 8086 section 6.2); a wrong one is wrong still."""
    bed = in_udp("over v6", {"encap_csum": False})
    assert bed.encapsulated(v4())[UDP].chksum == 0
    inner = back(v4())
    assert ip_bytes(bed.decapsulated(inner, udp={"chksum": 0})) == forwarded(inner)
    with bed.greyhound.expect_drops(**({"udp_checksum": 1} if bed.xdp == "auto" else {})):
        bed.send_outside(bed.around(back(v4()), udp={"chksum": 1}))
        bed.decapsulated(back(v4()))


@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_other_datagrams_are_the_kernels(in_udp, underlay):
    """Another port is answered by the kernel as ever; GRE's own port is not closed, whoever asks."""
    bed = in_udp(underlay)
    ends = {"src": "fd09::2", "dst": "fd09::1"} if bed.over6 else {"src": Bench.REMOTE, "dst": Bench.LOCAL}
    name = "ICMPv6DestUnreach" if bed.over6 else "ICMP"

    def answered(port: int) -> None:
        probe = bed.layer(**ends) / UDP(sport=999, dport=port) / token()
        bed.send_outside(probe)
        bed.outside.expect(lambda frame: frame.haslayer(name) and bytes(probe[UDP])[:8] in frame.original, f"an answer to port {port}")

    answered(4755)
    drained = bed.layer(**ends) / UDP(sport=998, dport=PORT) / token()
    bed.send_outside(drained)
    answered(53)
    came = bed.outside.drain()
    assert not [frame for frame in came if frame.haslayer(name) and bytes(drained[UDP])[:4] in frame.original]


@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_congestion_marks(in_udp, underlay):
    """RFC 6040 through UDP: outward copied, inward merged, on both paths."""
    bed = in_udp(underlay)
    for family, field in ((v4, "tos"), (v6, "tc")):
        for ecn in range(4):
            outer = bed.encapsulated(family(**{field: 0xB8 | ecn}))
            assert bed.tos(outer) == ecn
            if ecn:
                marked = {"tc" if bed.over6 else "tos": 3}
                inner = back(family(**{field: 0xB8 | ecn}))
                got = bed.decapsulated(inner, outer=marked)
                assert getattr(got, field) == 0xBB and checksums_ok(got)


@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_a_dissector_finds_no_fault(in_udp, underlay, tmp_path):
    """tshark sees GRE in UDP, verifies every checksum, and has nothing to remark."""
    tshark = need("tshark")
    bed = in_udp(underlay, {"key": 42, "csum": True, "seq": True, "encap_csum": True})
    packets = [family(token(size)) for family in FAMILIES.values() for size in (18, 33, 1300)]
    bed.send_inside(*packets)
    frames = bed.outside.collect(carries(b"<greyhound "), len(packets), "outer packets")
    file = tmp_path / "underlay.pcap"
    wrpcap(str(file), frames)
    checks = [option for name in ("ip", "udp") for option in ("-o", f"{name}.check_checksum:TRUE")]
    fields = ["udp.dstport", "udp.checksum.status", "gre.key", "gre.checksum.status", "_ws.malformed", "_ws.expert.severity"]
    command = [tshark, "-r", str(file), *checks, "-T", "fields", *(word for field in fields for word in ("-e", field))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    # Ports and states of the outer and of the inner datagram; 1 is "good".
    assert rows == [[f"{PORT},2000", "1,1", "0x0000002a", "1", "", ""]] * len(packets)


BETWEEN = {
    "over v4": ({"mode": "gre"}, 1468),
    "over v4, everything": ({"mode": "gre", "key": 42, "csum": True, "seq": True, "encap_csum": True}, 1456),
    "over v6": ({"mode": "ip6gre"}, 1440),
    "over v6, no limit, no checksum": ({"mode": "ip6gre", "encaplimit": "none", "encap_csum": False}, 1448),
    "over v6, everything": ({"mode": "ip6gre", "key": 42, "csum": True, "seq": True}, 1428),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_between_routers(tmp_path, xdp, case):
    """Pings of every size up to the MTU and beyond it, and bulk TCP both ways, on the path that the mode says."""
    options, mtu = BETWEEN[case]
    tunnel = options | {"encap": "gre-in-udp", "routes": ["10.2.0.0/24", "fd02::/64"],
                        "address": ["172.16.1.1/30", "fd00:172:1::1/64"]}
    if "6" in options["mode"]:
        tunnel |= {"local": "fd09::1", "remote": "fd09::2"}
    bed = Routers(tmp_path, tunnel, xdp=xdp)
    try:
        assert bed.a.tunnel()["mtu"] == mtu
        for family, header in (("4", 28), ("6", 48)):
            bed.ping(f"-{family}", to=FAR[family])
            bed.ping(f"-{family}", "-M", "do", "-s", str(mtu - header), to=FAR[family])
            bed.ping(f"-{family}", "-M", "dont", "-s", "4000", to=FAR[family])
        before = [side.tunnel() for side in (bed.a, bed.b)]
        for near, far in (("10.1.0.2", "10.2.0.2"), ("fd01::2", "fd02::2")):
            transfer(bed.host_a, bed.host_b, far, 16 << 20)
            transfer(bed.host_b, bed.host_a, near, 16 << 20)
        for side, was in zip((bed.a, bed.b), before):
            now = side.tunnel()
            assert now["drops"] == was["drops"]
            for counter in ("rx_packets", "tx_packets"):
                fast, slow = (now[path][counter] - was[path][counter] for path in ("fast", "slow"))
                assert fast / (fast + slow) >= 0.99 if xdp == "auto" else fast == 0, f"{counter}: {fast} fast, {slow} slow"
    finally:
        bed.close()


def test_beside_plain_gre(tmp_path, xdp):
    """Two tunnels that differ by nothing but UDP: each carries its own packets."""
    bed = Pair(tmp_path, {}, {"encap": "gre-in-udp"}, xdp=xdp)
    try:
        bed.ping()
        for side, other in ((bed.a, 2), (bed.b, 1)):
            side.ns.ip("route", "replace", f"10.{other}.0.0/24", "dev", "gre2")

        def carried() -> bool:
            before = [(side.tunnel("gre1"), side.tunnel("gre2")) for side in (bed.a, bed.b)]
            bed.ping(count=5)
            for side, (bare, in_udp) in zip((bed.a, bed.b), before):
                if side.tunnel("gre2")["rx"]["packets"] - in_udp["rx"]["packets"] < 5:
                    return False
                if side.tunnel("gre1")["rx"]["packets"] - bare["rx"]["packets"] >= 5:
                    return False
            return True

        wait_until(carried, "the second tunnel carries the pings")
    finally:
        bed.close()


def test_a_taken_port_is_refused_and_found(tmp_path, xdp):
    """Somebody else has the port: no start, one line that says so, nothing left behind; `check` finds it."""
    with Bench() as bench:
        holder = bench.router.socket(socket.AF_INET, socket.SOCK_DGRAM)
        holder.bind(("10.9.0.1", PORT))
        greyhound = Greyhound(bench.router, tmp_path)
        try:
            greyhound.configure([Single.TUNNEL | {"encap": "gre-in-udp"}], xdp=xdp)
            assert greyhound.spawn().wait(DEADLINE) == 1
            last = greyhound.log().strip().splitlines()[-1]
            assert "UDP port 4754 is taken over IPv4" in last
            assert "gre1" not in bench.router.devices()

            def port() -> tuple[str, str]:
                command = (binary(), "check", "--json", "--config", str(greyhound.config_file))
                findings = json.loads(bench.router.run(*command, check=False).stdout)["findings"]
                (found,) = [finding for finding in findings if finding["check"] == "port"]
                return found["severity"], found["found"].split(":")[0]

            assert port() == ("fail", "UDP port 4754 over IPv4 is not to be had")
            holder.close()
            assert port() == ("ok", "UDP port 4754 over IPv4 is free")
            greyhound.start()
            assert port() == ("ok", "UDP port 4754 over IPv4 is in use")
        finally:
            holder.close()
            greyhound.close()


def test_a_tunnel_goes_into_udp_while_it_runs(tmp_path, xdp):
    """A reload puts a tunnel into UDP and back; where the port is taken nothing changes."""
    bed = Pair(tmp_path, {}, xdp=xdp)
    try:
        bed.ping()
        plain = [[Pair._tunnel({}, 1, side)] for side in (1, 2)]
        in_udp = [[tunnels[0] | {"encap": "gre-in-udp"}] for tunnels in plain]

        def reload(tunnels) -> list[int]:
            codes = []
            for side, wanted in zip((bed.a, bed.b), tunnels):
                side.configure(wanted, underlay=["wan"], overlay=["lan"], xdp=xdp)
                codes.append(side.ask("reload", check=False).returncode)
            return codes

        def answers() -> bool:
            return bed.host_a.run("ping", "-n", "-c", "1", "-W", "1", "10.2.0.2", check=False).returncode == 0

        holder = bed.router_a.socket(socket.AF_INET, socket.SOCK_DGRAM)
        holder.bind(("0.0.0.0", PORT))
        assert reload([in_udp[0], plain[1]]) == [1, 0]
        assert bed.a.tunnel().get("encap") is None
        bed.ping()
        holder.close()
        assert reload(in_udp) == [0, 0]
        wait_until(answers, "a ping through UDP")
        assert bed.a.tunnel()["encap"] == "gre-in-udp"
        assert bed.a.tunnel()["mtu"] == 1468
        assert reload(plain) == [0, 0]
        wait_until(answers, "a ping through plain GRE")
        assert bed.a.tunnel()["mtu"] == 1476
    finally:
        bed.close()
