"""A line of the table as each end has to hear it: a configuration file, and `ip` commands."""

import ipaddress
from dataclasses import dataclass

DEVICE = "t0"
BRIDGE = "br0"
PREFIX = {4: 29, 6: 64}

@dataclass(frozen=True)
class Kind:
    """What a kind looks like from outside: the kernel's type, its delivery and the payloads that it carries."""

    link: str
    delivery: int
    payloads: tuple
    gre: bool = False
    layer2: bool = False


KINDS = {
    "gre": Kind("gre", 4, (4, 6), gre=True),
    "gretap": Kind("gretap", 4, (4, 6), gre=True, layer2=True),
    "ip6gre": Kind("ip6gre", 6, (4, 6), gre=True),
    "ip6gretap": Kind("ip6gretap", 6, (4, 6), gre=True, layer2=True),
    "ipip": Kind("ipip", 4, (4,)),
    "sit": Kind("sit", 4, (6,)),
    "ip6ip6": Kind("ip6tnl mode ip6ip6", 6, (6,)),
    "ipip6": Kind("ip6tnl mode ipip6", 6, (4,)),
}

# Words without a value, and Greyhound's key for each.
FLAGS = {name: f"{name} = true" for name in ("csum", "icsum", "ocsum", "seq", "iseq", "oseq")} | {
    "nopmtudisc": "pmtudisc = false", "ignore-df": "ignore_df = true", "encap-csum": "encap_csum = true",
    "encap-udp6-csum": "encap_csum6 = true", "noencap-udp6-csum": "encap_csum6 = false"}
MIRRORED = {f"{a}{name}": f"{b}{name}" for name in ("key", "csum", "seq") for a, b in ("io", "oi")}
MANY = ("peers", "via", "neigh")
OURS = ("bridge", "nvgre", "keepalive")
# GRE in UDP (RFC 8086). Linux's receiver is not the tunnel's, and is made beside it.
UDP_PORT = 4754
FOU = f"fou encap-dport {UDP_PORT}"
# The underlay's MTU where a line says nothing, and more than any kind takes of it.
WAN = 1500
MOST = 80
# The smallest MTU that an IPv6 link may have: below it the kernel takes IPv6 off the device.
IPV6_MIN = 1280


class Tunnel:
    """A line of the table."""

    def __init__(self, line):
        self.line = line
        self.mode, *rest = line.split()
        self.kind = KINDS[self.mode]
        self.options = {}
        while rest:
            word = rest.pop(0)
            self.options[word] = True if word in FLAGS or word in MANY or word in OURS else rest.pop(0)
        self.wan = int(self.options.pop("wan", WAN))
        self.mtu = int(self.options.pop("mtu", 0))
        self.group = self.options.pop("remote", None)
        self.bridge, self.nvgre, self.keepalive = (bool(self.options.pop(word, None)) for word in OURS)
        self.many = next((word for word in MANY if self.options.pop(word, None)), None)
        small = (self.mtu or self.wan - MOST) < IPV6_MIN
        self.payloads = tuple(version for version in self.kind.payloads if version == 4 or not small)
        self.payload = self.payloads[0]

    # --- Greyhound's words

    def configuration(self, end, router):
        """The file; `router` is what it says for the router as a whole, a line each."""
        family, other = self.kind.delivery, end.other
        lines = ["[router]", *router, "[[tunnel]]", f'name = "{DEVICE}"', f'mode = "{self.mode}"', f'local = "{end.outer[family]}"',
                 *self.keys()]
        if not self.bridge:
            lines.append(f'address = {[f"{end.tunnel[version]}/{PREFIX[version]}" for version in self.payloads]}')
        if self.many not in ("peers", "via"):
            lines.append(f'remote = "{self.group or other.outer[family]}"')
        if self.many == "peers":
            for peer in (other, other.second):
                for version in self.payloads:
                    lines += ["[[tunnel.peer]]", f'address = "{peer.tunnel[version]}"', f'remote = "{peer.outer[family]}"']
        return "\n".join(lines) + "\n"

    def keys(self):
        if self.mtu:
            yield f"mtu = {self.mtu}"
        if self.bridge:
            yield 'bridge = "lan"'
        if self.nvgre:
            yield "nvgre = true"
        if self.keepalive:
            yield "keepalive = {interval = 1, retries = 2}"
        for word, value in self.options.items():
            if word in FLAGS:
                yield FLAGS[word]
            elif word == "encap":
                yield 'encap = "gre-in-udp"'
            else:
                word = word.replace("-", "_")
                yield f"{word} = {value}" if value[0].isdigit() else f'{word} = "{value}"'

    # --- The kernel's words

    def commands(self, end):
        """Shell commands that make the kernel's end."""
        family, other = self.kind.delivery, end.other
        if "encap" in self.options:
            # GRO merges the packets, and fou_udp_recv() refuses the merged ones (seen on 6.1, between two kernels as well).
            port = f"port {UDP_PORT}" + (" -6" if family == 6 else "")
            yield f"ethtool -K {end.wan} gro off; ip fou del {port} 2>/dev/null || true; ip fou add {port} ipproto 47"
        remote = "" if self.many == "neigh" or self.many == "via" and not self.kind.gre else f"remote {other.outer[family]}"
        if self.group:
            remote = f"remote {self.group} dev {end.wan}"
            if family == 6:
                # ip_gre joins the group; ip6_gre does not, and hears nothing unless somebody else has joined. This joins, but
                # comes with a route that keeps the packets here.
                yield f"ip addr replace {self.group} dev {end.wan} autojoin; ip -6 route del local {self.group} table local || true"
        yield self.device(DEVICE, end, remote)
        if self.many == "peers":
            yield self.device(f"{DEVICE}b", end.second, remote)
        if self.nvgre:
            # The flow is in the key's last byte: one device to send with one key, another to receive any.
            yield f"ip link add {DEVICE}b type {self.kind.link} external; ip link set {DEVICE}b up"
        if self.bridge:
            yield f"ip link add {BRIDGE} type bridge; ip link set {BRIDGE} up; ip addr flush dev lan"
            yield from (f"ip link set {port} master {BRIDGE}" for port in ("lan", DEVICE))
        if self.nvgre:
            yield f"ip link set {DEVICE}b master {BRIDGE}; ip link set {DEVICE}b type bridge_slave learning off"
        if self.keepalive and family == 4:
            yield f"echo 1 >/proc/sys/net/ipv4/conf/{DEVICE}/accept_local"
        if self.many == "neigh":
            for version in self.payloads:
                yield f"ip neigh replace {other.tunnel[version]} lladdr {other.outer[family]} dev {DEVICE}"

    def device(self, name, end, remote):
        mtu = f"mtu {self.mtu} " if self.mtu else ""
        values = {word: "" if value is True else FOU if word == "encap" else value for word, value in self.options.items()}
        if self.nvgre:
            values["key"] = int(values["key"]) << 8
        words = " ".join(f"{MIRRORED.get(word, word)} {value}" for word, value in values.items())
        versions = () if self.bridge else self.payloads
        addresses = "".join(f"; ip addr add {end.tunnel[version]}/{PREFIX[version]} dev {name}" for version in versions)
        return (f"ip link add {name} {mtu}type {self.kind.link} local {end.outer[self.kind.delivery]} {remote} {words};"
                f"echo 0 >/proc/sys/net/ipv6/conf/{name}/accept_dad 2>/dev/null || true; ip link set {name} up{addresses}")

    # --- Both ends'

    def routes(self, end, is_kernel):
        """Shell commands that lead to the other end's network."""
        for version in () if self.bridge else self.payloads:
            hop = ""
            if self.kind.layer2 or self.many == ("neigh" if is_kernel else "peers"):
                hop = f"via {end.other.tunnel[version]}"
            elif self.many == "via" and not (is_kernel and self.kind.gre):
                hop = f"via {'::' if version == 6 else ''}{end.other.outer[4]} onlink"
            yield f"ip -{version} route replace {end.other.net[version]} dev {DEVICE} {hop}"

    def leaves_df(self, version):
        """Whether the outer header of such a payload, itself with DF, has no DF: then no path is too narrow for it."""
        return "ignore-df" in self.options or "nopmtudisc" in self.options and version == 6

    def expects(self, name, by_kernel):
        """The value of `key`, `csum` or `seq` for packets towards an end, or None."""
        if name == "key" and self.group and self.kind.delivery == 4 and "key" not in self.options:
            # iproute2 makes the group a tunnel's key where none is given.
            return int(ipaddress.ip_address(self.group))
        value = self.options.get(name) or self.options.get(("o" if by_kernel else "i") + name)
        return int(value) << 8 if name == "key" and self.nvgre else value
