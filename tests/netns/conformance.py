"""The bed and the rows of the conformance suite: one router with a tunnel of every kind and option, and scapy around it.

A row says what is sent, by which side and through which tunnel, and what has to come of it: a packet on the other side,
field by field; an answer; or nothing. Every counter that a row does not name must stay as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import pathlib
from collections.abc import Callable, Iterable

from scapy.layers.inet6 import IPv6ExtHdrDestOpt, PadN
from scapy.packet import bind_layers

from beds import Single, delivers, payload_of, token
from topology import Bench, wait_until
from wire import GRE, IP, SEQUENCE, UDP, Ether, IPv6, Options, Packet, Tap, carries, checksums_ok, forwarded
from wire import gre as gre_around
from wire import gre_checksum_ok, ip_bytes

OVER6 = ("ip6gre", "ip6gretap", "ip6ip6", "ipip6")
WITH_GRE = ("gre", "ip6gre", "gretap", "ip6gretap")
CARRIES = {"ipip": (4,), "ipip6": (4,), "ip6ip6": (6,)}
LOCAL = {4: Bench.LOCAL, 6: "fd09::1"}
ALL = {"key": 42, "csum": True, "seq": True}

TUNNELS: dict[str, dict] = {
    "gre": {},
    "gre-key": {"key": 42},
    "gre-key0": {"key": 0, "beside": "gre"},
    "gre-one-way": {"ikey": 1, "okey": 2, "beside": "gre"},
    "gre-csum": {"csum": True},
    "gre-icsum": {"icsum": True},
    "gre-ocsum": {"ocsum": True},
    "gre-seq": {"seq": True},
    "gre-all": ALL,
    "gre-ttl255": {"ttl": 255},
    "gre-ttl1": {"ttl": 1},
    "gre-inherit": {"tos": "inherit"},
    "gre-b8": {"tos": 0xB8, "ttl": 64},
    "gre-nopmtu": {"pmtudisc": False},
    "gre-ignore-df": {"pmtudisc": False, "ignore_df": True},
    "ip6gre": {"mode": "ip6gre"},
    "ip6gre-none": {"mode": "ip6gre", "encaplimit": "none"},
    "ip6gre-all": {"mode": "ip6gre", "encaplimit": "none", **ALL},
    "ip6gre-key": {"mode": "ip6gre", "key": 42},
    "ip6gre-limit": {"mode": "ip6gre", "encaplimit": 9},
    "ip6gre-inherit": {"mode": "ip6gre", "flowlabel": "inherit", "tclass": "inherit", "hoplimit": "inherit"},
    "ip6gre-fixed": {"mode": "ip6gre", "flowlabel": 0x12345, "tclass": 0xB8, "hoplimit": 9},
    "ipip": {"mode": "ipip"},
    "ipip-inherit": {"mode": "ipip", "ttl": 64, "tos": "inherit"},
    "sit": {"mode": "sit"},
    "sit-inherit": {"mode": "sit", "ttl": 64, "tos": "inherit"},
    "ip6ip6": {"mode": "ip6ip6"},
    "ip6ip6-none": {"mode": "ip6ip6", "encaplimit": "none"},
    "ip6ip6-inherit": {"mode": "ip6ip6", "flowlabel": "inherit", "tclass": "inherit", "hoplimit": "inherit"},
    "ipip6": {"mode": "ipip6"},
    "ipip6-none": {"mode": "ipip6", "encaplimit": "none", "tclass": 0xB8, "hoplimit": 9},
    "gre-clamp": {"clamp_mss": True},
    # Without a remote: from anyone, and to whom the peers' table says.
    "gre-many": {"key": 7, "remote": None},
    "gre-one": {"key": 7},
    "gre-bound": {"key": 8, "remote": None, "dev": "outer0"},
    "gre-unbound": {"key": 8, "remote": None},
    "ip6gre-many": {"mode": "ip6gre", "key": 7, "remote": None},
    # A group: to everybody in it.
    "gre-group": {"remote": "239.1.1.1", "key": 9, "ttl": 64},
    "ipip-group": {"mode": "ipip", "remote": "239.1.1.2", "ttl": 64},
    "sit-group": {"mode": "sit", "remote": "239.1.1.3", "ttl": 64},
    "ip6gre-group": {"mode": "ip6gre", "remote": "ff05::1:1"},
    # GRE in UDP.
    "udp": {"encap": "gre-in-udp"},
    "udp-all": {"encap": "gre-in-udp", "encap_csum": True, **ALL},
    "udp-fixed": {"encap": "gre-in-udp", "encap_sport": 4754},
    "udp6": {"mode": "ip6gre", "encap": "gre-in-udp"},
    "udp6-all": {"mode": "ip6gre", "encap": "gre-in-udp", "encaplimit": "none", **ALL},
    "udp6-none": {"mode": "ip6gre", "encap": "gre-in-udp", "encap_csum": False},
}
# Whose paths turn out to be narrow, or that hear other errors: they remember it.
NARROW = {
    "gre": {}, "gre-all": ALL, "ipip": {"mode": "ipip"}, "sit": {"mode": "sit"}, "ip6gre": {"mode": "ip6gre"},
    "ip6ip6": {"mode": "ip6ip6"}, "ipip6": {"mode": "ipip6"}, "udp": {"encap": "gre-in-udp"},
}  # fmt: skip
TUNNELS |= {f"narrow-{kind}": options for kind, options in NARROW.items()}
TUNNELS |= {f"thin-{kind}": NARROW[kind] for kind in ("gre", "gre-all", "sit", "ip6gre", "ip6ip6", "udp")}
TUNNELS |= {"narrow-nopmtu": {"pmtudisc": False}, "least-gre": {}, "least-ip6gre": {"mode": "ip6gre"}, "expires": {}}
TUNNELS |= {"heard-gre": {}, "heard-ip6gre": {"mode": "ip6gre"}, "quiet": {}}
GRE_IN_UDP = 4754
bind_layers(UDP, GRE, dport=GRE_IN_UDP)


class Tunnel:
    """One of the bed's tunnels: its configuration, its addresses, and what a packet looks like in it."""

    def __init__(self, name: str, number: int, options: dict, beside: Tunnel | None = None):
        self.name, self.number = name, number
        self.options = {key: value for key, value in options.items() if key not in ("beside", "remote")}
        self.mode = self.options.setdefault("mode", "gre")
        self.outer_family = 6 if self.mode in OVER6 else 4
        self.families = CARRIES.get(self.mode, (4, 6))
        # The far end that scapy plays, or one of several.
        self.far = beside.far if beside else f"fd09::{number + 100:x}" if self.outer_family == 6 else f"10.9.0.{number + 100}"
        self.remote = options.get("remote", self.far)
        self.is_group = self.remote is not None and ipaddress.ip_address(self.remote).is_multicast
        self.rx, self.tx = self._gre("i"), self._gre("o")
        self.limit = self.options.get("encaplimit", 4) if self.outer_family == 6 else "none"
        self.in_udp = "encap" in self.options

    def _gre(self, way: str) -> Options:
        get = lambda name, default: self.options.get(way + name, self.options.get(name, default))  # noqa: E731
        return Options(get("key", None), get("csum", False), get("seq", False))

    def behind(self, family: int, host: int = 2) -> str:
        """A host behind the tunnel."""
        return f"10.2.{self.number}.{host}" if family == 4 else f"fd02:0:0:{self.number:x}::{host:x}"

    def configuration(self) -> dict:
        """The `[[tunnel]]` section."""
        nets = {4: f"10.2.{self.number}.0/24", 6: f"fd02:0:0:{self.number:x}::/64"}
        peers = [{"address": self.behind(family), "remote": self.far} for family in self.families]
        ends = {"local": LOCAL[self.outer_family], **({"remote": self.remote} if self.remote else {"peer": peers})}
        return {"name": self.name, "routes": [nets[family] for family in self.families], **ends, **self.options}

    def arrives_at(self) -> tuple[str, str]:
        """Where the far end's packets go: a link address and an outer address."""
        if self.is_group:
            return group_mac(self.remote), self.remote
        return Bench.OUTER_MAC, LOCAL[self.outer_family]

    def leaves_to(self) -> tuple[str, str]:
        """Where the router's go."""
        return (group_mac(self.remote), self.remote) if self.is_group else (Bench.FAR_MAC, self.far)

    def around(self, inner: Packet | bytes, outer: dict, gre: dict, sequence: int, udp: dict | None = None) -> Packet:
        """The far end's packet around `inner`; `outer`, `gre` and `udp` override its fields."""
        layer, outer = (IPv6 if self.outer_family == 6 else IP), dict(outer)
        extension = outer.pop("extension", None)
        header = layer(**({"src": self.far, "dst": self.arrives_at()[1]} | outer))
        if extension is not None:
            header = header / extension
        if self.in_udp:
            header = header / UDP(**({"sport": 51515, "dport": GRE_IN_UDP} | (udp or {})))
        if self.mode not in WITH_GRE:
            return header / inner
        options = gre.get("options", self.rx)
        fields = {name: value for name, value in gre.items() if name != "options"}
        return header / gre_around(inner, options, sequence, **fields)


def group_mac(address: str) -> str:
    """The link address of a multicast group (RFC 1112 section 6.4, RFC 2464 section 7)."""
    octets = ipaddress.ip_address(address).packed
    ends = b"\x01\x00\x5e" + bytes([octets[1] & 0x7F]) + octets[2:] if len(octets) == 4 else b"\x33\x33" + octets[12:]
    return ends.hex(":")


class Router(Single):
    """The router with all tunnels. Its device names are the tunnels' names, and no tunnel has an address."""

    def __init__(self, directory: pathlib.Path, xdp: str, tunnels: dict[str, dict] = TUNNELS, **router):
        super().__init__(directory, start=False, xdp=xdp, **router)
        try:
            self.tunnels: dict[str, Tunnel] = {}
            for number, (name, options) in enumerate(tunnels.items()):
                beside = self.tunnels.get(options.get("beside"))
                self.tunnels[name] = Tunnel(name, number, options, beside)
            self._recorders = [self._stack.enter_context(contextlib.closing(Tap(ns, name))) for ns, name in ((self.far, "f0"), (self.host, "h0"))]
            self._prepare()
            self.greyhound.start([tunnel.configuration() for tunnel in self.tunnels.values()], xdp=xdp, **router)
            self._asking = contextlib.ExitStack()
            self._stack.callback(lambda: self._asking.close())
            self._connect()
            self._recorded: dict[str, list[Ether]] = {"f0": [], "h0": []}
            self.sent: dict[str, int] = {}
            self._warm()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        # What the kernel has to say of itself into the tunnels it says at once: no link-local addresses, groups reported
        # within milliseconds.
        self.router.sysctl("net.ipv6.conf.default.addr_gen_mode", 1)
        for version in (1, 2):
            self.router.sysctl(f"net.ipv6.conf.default.mldv{version}_unsolicited_report_interval", 10)
        self.router.ip("address", "add", "fd09::1/64", "dev", "outer0", "nodad")
        for address in {tunnel.far for tunnel in self.tunnels.values()}:
            self.router.ip("neigh", "replace", address, "lladdr", Bench.FAR_MAC, "dev", "outer0", "nud", "permanent")
        for address in ("10.1.0.2", "fd01::2"):
            self.router.ip("neigh", "replace", address, "lladdr", Bench.HOST_MAC, "dev", "inner0", "nud", "permanent")

    def _connect(self) -> None:
        with contextlib.suppress(OSError):
            self._asking.close()
        self.ask = self._asking.enter_context(self.greyhound.connected())

    def settle(self) -> None:
        """Until the kernel has said into a tunnel what it says when the device comes up."""
        seen: list[dict] = []
        wait_until(lambda: (seen.append(self.counters()), len(seen) > 10 and seen[-1] == seen[-10])[1], "no counter rises")

    def send_far(self, tunnel: Tunnel, *packets: Packet) -> None:
        """The far end sends these packets to the tunnel's end."""
        header = Ether(src=Bench.FAR_MAC, dst=tunnel.arrives_at()[0])
        self.outside.send(*(header / packet for packet in packets))

    def recorded(self, device: str) -> list[Ether]:
        """Every frame that the router has sent to a device since before it started."""
        for tap in self._recorders:
            self._recorded[tap.device] += tap.drain()
        return self._recorded[device]

    def _warm(self) -> None:
        """Until the fast path, where there is one, carries both families both ways."""
        path = "slow" if self.xdp == "off" else "fast"

        def carried(row: Row) -> bool:
            before = self.counters()
            row.run(self, self.tunnels[row.tunnel])
            return self.counters().get(f"{row.tunnel} {path} {row.way}x", 0) > before.get(f"{row.tunnel} {path} {row.way}x", 0)

        for tunnel in ("gre", "ip6gre"):
            for row in (into(tunnel), into(tunnel, 6), out(tunnel), out(tunnel, 6)):
                wait_until(lambda: carried(row), f"{path} path: {row}")

    def counters(self) -> dict[str, int]:
        """Everything that may rise by a packet, zeros left out: packets per tunnel, path and way, and drops by reason."""
        try:
            stats = self.ask({"verb": "stats"})["ok"]
        except OSError:  # The router closes a connection on which nothing is asked for a while.
            self._connect()
            stats = self.ask({"verb": "stats"})["ok"]
        found = {
            f"{tunnel['name']} {path} {way}x": tunnel[path][f"{way}x_packets"]
            for tunnel in stats["tunnels"] for path in ("fast", "slow") for way in ("r", "t")
        }
        found |= {f"drop {reason}": n for reason, n in stats["drops"].items()}
        for tunnel in stats["tunnels"]:
            for reason, n in tunnel["drops"].items():
                found[f"{tunnel['name']} drop {reason}"] = n
            for kind, n in tunnel["errors"].items():
                found[f"{tunnel['name']} error {kind}"] = n
        found |= {f"icmp {what}": n for what, n in stats["slow_path"]["icmp"].items()}
        steering = stats["xdp"].get("all", {})
        found |= {f"steering {reason}": n for reason, n in steering.items() if not reason.startswith("redirected")}
        return {name: n for name, n in found.items() if n}

    def fences(self, tunnel: Tunnel) -> dict[str, int]:
        """How the packets of `through` are counted: one with outer options, one without."""
        rise = {"slow": 2} if self.xdp == "off" else {"fast": 2} if tunnel.rx.seq else {"slow": 1, "fast": 1}
        return {f"{tunnel.name} {path} rx": n for path, n in rise.items()}

    def through(self, tunnel: Tunnel) -> list[Ether]:
        """What came to the host, when all that the far end has sent is through, on either path."""
        family = tunnel.families[0]
        option = {"options": b"\1\1\1\1"} if tunnel.outer_family == 4 else {"extension": padded()}
        seen: list[Ether] = []
        for outer in (option, {}):
            inner = Inner(family).back(tunnel)
            self.sent[tunnel.name] = self.sent.get(tunnel.name, -1) + 1
            self.send_far(tunnel, tunnel.around(inner, outer, {}, self.sent[tunnel.name]))
            seen += self._until(self.inside, [inner])
        return seen


def padded() -> Packet:
    """A destination options header with padding in it."""
    return IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])


@dataclasses.dataclass(frozen=True)
class Inner:
    """An inner UDP packet of `size` bytes with these fields of its IP header."""

    family: int = 4
    fields: dict = dataclasses.field(default_factory=dict)
    size: int = 60

    def _packet(self, src: str, dst: str) -> Packet:
        layer, header = (IP, 28) if self.family == 4 else (IPv6, 48)
        ends = {"src": src, "dst": dst} | ({"id": 0x1234} if self.family == 4 else {})
        return layer(**(ends | self.fields)) / UDP(sport=1000, dport=2000) / token(self.size - header)

    def there(self, tunnel: Tunnel) -> Packet:
        """From the host to a host behind the tunnel."""
        return self._packet("10.1.0.2" if self.family == 4 else "fd01::2", tunnel.behind(self.family))

    def back(self, tunnel: Tunnel) -> Packet:
        """The other way."""
        return self._packet(tunnel.behind(self.family), "10.1.0.2" if self.family == 4 else "fd01::2")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table; `into` and `out` write it."""

    tunnel: str
    way: str  # "t": into the tunnel, from the host; "r": out of it, from the far end. As in tx and rx.
    inner: Inner
    outer: dict
    gre: dict
    drop: str | None = None
    steered: str | None = None
    """The steering program's reason to leave it to the kernel."""
    slow: bool = False
    """It is the kernel's on the way, so that it takes the slow path in both modes."""
    becomes: dict = dataclasses.field(default_factory=dict)
    """Fields of the inner packet that change, beside TTL or hop limit less one."""
    send: Callable | None = None
    """What is sent in place of the packet: a function of that packet."""
    ignored: bool = False
    """Nothing comes of it, and nothing of ours counts it."""
    counted: str = ""
    """The tunnel that counts it, if it is another."""
    udp: dict = dataclasses.field(default_factory=dict)
    """Fields of the UDP header in front of GRE."""

    def __str__(self) -> str:
        """What is not as in every row."""
        said = [f"IPv{self.inner.family}", str(self.inner.size)]
        said += [f"{name}={value}" for name, value in self.inner.fields.items()]
        said += [f"{field.name}={value}" for field in dataclasses.fields(self)[3:] if (value := getattr(self, field.name))]
        return f"{'into' if self.way == 't' else 'out of'} {self.tunnel}: {' '.join(said)}"

    def run(self, bed: Router, tunnel: Tunnel) -> dict[str, int]:
        """Plays the row; returns by how much each counter has to rise."""
        self._into(bed, tunnel) if self.way == "t" else self._out(bed, tunnel)
        rise = {}
        # One thread numbers and judges all packets of a tunnel with sequence numbers.
        numbered = tunnel.rx.seq if self.way == "r" else tunnel.tx.seq
        path = "slow" if bed.xdp == "off" or self.slow and not numbered else "fast"
        if self.drop:
            rise[f"drop {self.drop}"] = 1
        elif not self.ignored:
            rise[f"{self.counted or self.tunnel} {path} {self.way}x"] = 1
        if self.steered and bed.xdp != "off":
            rise[f"steering {self.steered}"] = 1
        return rise

    def _into(self, bed: Router, tunnel: Tunnel) -> None:
        packet = self.inner.there(tunnel)
        frame = Ether(src=Bench.HOST_MAC, dst=Bench.INNER_MAC) / packet
        bed.inside.send(self.send(frame) if self.send else frame)
        if self.drop or self.ignored:
            return
        seen = bed.outside.expect(carries(payload_of(packet)), "the outer packet")
        judge_outer(tunnel, seen, packet, self)

    def _out(self, bed: Router, tunnel: Tunnel) -> None:
        inner = self.inner.back(tunnel)
        number = self.gre.get("number", None)
        gre = {name: value for name, value in self.gre.items() if name != "number"}
        refused = self.drop or self.ignored
        if number is None:
            number = bed.sent.get(tunnel.name, -1) + 1
        if not refused:
            bed.sent[tunnel.name] = number
        packet = tunnel.around(inner, self.outer, gre, number, self.udp)
        sent = self.send(packet) if self.send else packet
        bed.send_far(tunnel, *(sent if isinstance(sent, list) else [sent]))
        if refused:
            return
        seen = bed.inside.expect(carries(payload_of(inner)), "the inner packet")
        assert len(seen.original) == 14 + len(ip_bytes(seen)), "something behind the packet"
        assert (seen.src, seen.dst) == (Bench.INNER_MAC, Bench.HOST_MAC)
        wanted = inner.copy()
        for name, value in self.becomes.items():
            setattr(wanted, name, value)
        assert ip_bytes(seen) == forwarded(wanted), f"inner packet: {seen.summary()}"


def into(tunnel: str, family: int = 4, inner: dict | None = None, outer: dict | None = None, gre: dict | None = None,
         size: int = 60, **more) -> Row:
    """From the host: a packet with these `inner` fields gets these `outer` and `gre` fields, and is else as configured."""
    return Row(tunnel, "t", Inner(family, inner or {}, size), outer or {}, gre or {}, **more)


def out(tunnel: str, family: int = 4, inner: dict | None = None, outer: dict | None = None, gre: dict | None = None,
        size: int = 60, **more) -> Row:
    """From the far end: the same the other way round; the fields are those that are sent."""
    return Row(tunnel, "r", Inner(family, inner or {}, size), outer or {}, gre or {}, **more)


def judge_outer(tunnel: Tunnel, frame: Ether, packet: Packet, row: Row) -> None:
    """Every field around `packet`, and in it nothing but one TTL less."""
    mac, remote = tunnel.leaves_to()
    assert (frame.src, frame.dst) == (Bench.OUTER_MAC, mac)
    over6 = tunnel.outer_family == 6
    outer = frame[IPv6 if over6 else IP]
    assert (outer.src, outer.dst) == (LOCAL[tunnel.outer_family], remote)
    assert checksums_ok(outer) or tunnel.in_udp and outer[UDP].chksum == 0
    inside = 41 if isinstance(packet, IPv6) else 4
    protocol, layer = (17 if tunnel.in_udp else 47 if tunnel.mode in WITH_GRE else inside), outer
    if over6:
        assert (outer.version, outer.plen) == (6, len(ip_bytes(outer)) - 40)
        if tunnel.limit == "none":
            assert outer.nh == protocol
        else:
            layer = outer[IPv6ExtHdrDestOpt]
            assert (outer.nh, layer.nh, bytes(layer)[1:8]) == (60, protocol, bytes([0, 4, 1, tunnel.limit, 1, 1, 0]))
        assert outer.fl != 0
    else:
        assert (outer.version, outer.ihl, outer.frag, outer.proto) == (4, 5, 0, protocol) and outer.id != 0
        assert not outer.flags.MF and not outer.flags.evil
    wanted(outer, row.outer)
    if tunnel.in_udp:
        judge_udp(tunnel, outer[UDP])
        wanted(outer[UDP], row.udp)
    if tunnel.mode in WITH_GRE:
        judge_gre(tunnel.tx, outer[GRE], packet)
        wanted(outer[GRE], {SEQUENCE if name == "number" else name: value for name, value in row.gre.items()})
        layer = outer[GRE]
    assert ip_bytes(layer.payload) == forwarded(packet)
    assert frame.original.endswith(forwarded(packet)), "something behind the packet"


def wanted(layer: Packet, fields: dict) -> None:
    """These fields of a header."""
    for name, value in fields.items():
        got = getattr(layer, name)
        assert (str(got) if name == "flags" and isinstance(layer, IP) else got) == value, f"{name}: {got}, not {value}"


def judge_udp(tunnel: Tunnel, header: UDP) -> None:
    """The UDP header of RFC 8086: its port, a source port of the dynamic range, a checksum where one is wanted."""
    assert (header.dport, header.len) == (GRE_IN_UDP, len(header.original))
    fixed = tunnel.options.get("encap_sport")
    assert header.sport == fixed if fixed else 49152 <= header.sport <= 65535
    assert (header.chksum != 0) == tunnel.options.get("encap_csum", tunnel.outer_family == 6)


def judge_gre(options: Options, header: GRE, packet: Packet) -> None:
    """The GRE header as the options want it."""
    present = bool(header.chksum_present), bool(header.key_present), bool(header.seqnum_present)
    assert present == (options.csum, options.key is not None, options.seq)
    assert (header.version, header.flags, header.recursion_control, header.routing_present, header.strict_route_source) == (0,) * 5
    assert header.proto == (0x86DD if isinstance(packet, IPv6) else 0x0800)
    assert (header.key if header.key_present else None) == options.key
    if options.csum:
        assert gre_checksum_ok(header) and header.offset == 0


def told(bed: Router, row: Row, error: dict) -> None:
    """The sender of the row's packet gets this ICMP error about it, and the packet itself goes no further."""
    tunnel = bed.tunnels[row.tunnel]
    if row.way == "t":
        packet, tap = row.inner.there(tunnel), bed.inside
        bed.send_inside(packet)
    else:
        packet, tap = row.inner.back(tunnel), bed.outside
        bed.send_far(tunnel, tunnel.around(packet, row.outer, row.gre, 0))
    layer, name = (IPv6, "ICMPv6") if row.inner.family == 6 else (IP, "ICMP")
    mine = payload_of(packet)[:20]

    def about_it(frame: Packet) -> bool:
        return mine in frame.original and not delivers(frame)

    answer = layer(frame_with(tap.expect(about_it, f"an {name} error"), packet.src))
    assert answer.dst == packet.src and checksums_ok(answer)
    for field, value in error.items():
        got = getattr(answer if field in ("src", "ttl", "tos", "hlim") else answer.payload, field)
        assert got == value, f"{field}: {got}, not {value}"
    header, limit = (48, 1280) if row.inner.family == 6 else (28, 576)
    quoted = bytes(answer.payload.payload)
    assert quoted[:header] in (bytes(packet)[:header], forwarded(packet)[:header]), "another packet is quoted"
    assert len(answer.original) <= limit, "longer than an error may be"


def frame_with(frame: Ether, destination: str) -> bytes:
    """The innermost IP packet in a frame that goes to `destination` and is no part of a quotation."""
    layer = frame.payload
    while layer:
        if isinstance(layer, (IP, IPv6)) and layer.dst == destination:
            return ip_bytes(layer)
        layer = layer.payload
    raise AssertionError(f"nothing to {destination}: {frame.summary()}")


MODES = ("auto", "off")


class Results:
    """How many rows of each id passed, per mode; the closing table."""

    def __init__(self):
        self.counts: dict[str, dict[str, list[int]]] = {}

    def add(self, name: str, mode: str, passed: int, failed: int) -> None:
        mine = self.counts.setdefault(name, {}).setdefault(mode, [0, 0])
        mine[0] += passed
        mine[1] += failed

    def lines(self) -> Iterable[str]:
        """The table; empty if nothing ran."""
        if not self.counts:
            return
        yield f"{'conformance':<14}{'with XDP':>14}{'without':>14}   rows passed"
        for name, modes in self.counts.items():
            yield f"{name:<14}" + "".join(f"{cell(modes.get(mode)):>14}" for mode in MODES)
        yield f"{'all':<14}" + "".join(f"{cell(self.total(mode)):>14}" for mode in MODES)

    def total(self, mode: str) -> list[int]:
        """Passed and failed of all ids in a mode."""
        counts = [modes[mode] for modes in self.counts.values() if mode in modes]
        return [sum(count[n] for count in counts) for n in (0, 1)]


def cell(counts: list[int] | None) -> str:
    if counts is None:
        return "-"
    passed, failed = counts
    return f"{passed} of {passed + failed}"


RESULTS = Results()


class Play:
    """Plays rows for one id in one mode, all of them, and then says which failed."""

    def __init__(self, name: str, bed: Router):
        self.name, self.bed = name, bed
        self.failures: list[str] = []
        self.passed = 0

    def rows(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.check(str(row), lambda: self._row(row))

    def check(self, what: str, run: Callable[[], object]) -> None:
        """One row that is a function."""
        try:
            run()
            self.passed += 1
        except AssertionError as failure:
            self.failures.append(f"{what}\n    {failure}")
            self.bed.inside.drain()
            self.bed.outside.drain()

    def _row(self, row: Row) -> None:
        bed, tunnel = self.bed, self.bed.tunnels[row.tunnel]
        before = bed.counters()
        rise = row.run(bed, tunnel)
        if row.ignored:
            # No counter will say when it is through.
            came = bed.through(tunnel) if row.way == "r" else bed.fence_plain()
            assert not [frame.summary() for frame in came if delivers(frame)], "it came out"
            rise |= bed.fences(tunnel) if row.way == "r" else {}
        self.risen(before, rise)

    def risen(self, before: dict[str, int], expected: dict[str, int]) -> None:
        """The counters rise by exactly so much, the per-tunnel drop counts aside, which repeat the others."""

        def rise() -> dict[str, int]:
            now = self.bed.counters()
            return {
                name: n - before.get(name, 0) for name, n in now.items()
                if n != before.get(name, 0) and (" drop " not in name or name.startswith("drop "))
                and (name in expected or not name.startswith("steering "))
            }

        last: dict[str, int] = {}

        def matches() -> bool:
            last.clear()
            last.update(rise())
            return last == expected

        try:
            wait_until(matches, "counters", deadline=5)
        except AssertionError:
            raise AssertionError(f"counters rose by {last}, not by {expected}") from None

    def close(self) -> None:
        """The result; fails with every row that failed. What was refused has not come out by now, or was counted twice."""
        came = self.bed.inside.drain() + self.bed.outside.drain()
        self.failures += [f"came out: {frame.summary()}" for frame in came if delivers(frame)]
        RESULTS.add(self.name, self.bed.xdp, self.passed, len(self.failures))
        assert not self.failures, f"{len(self.failures)} of {self.passed + len(self.failures)} rows:\n" + "\n".join(self.failures)


