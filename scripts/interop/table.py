"""What is tried. A tunnel is a line, in the words of `ip link add … type`; a kind that Greyhound does not have yet is skipped.

Words that have a direction are Greyhound's: its `ikey` is the kernel's `okey`. Words that no `type` has:
`mtu N`, the tunnel devices' own MTU; `wan N`, the MTU of all other devices.
"""

import sys
from dataclasses import dataclass

TUNNELS = [
    "gre",
    "gre key 42",
    "gre csum",
    "gre seq",
    "gre key 42 csum seq",
    "gre ikey 7 okey 4294967295 ocsum iseq",
    "gre ttl 64",
    "gre ttl 64 tos inherit",
    "gre ttl 255 tos 0xb8",
    "gre nopmtudisc",
    "gre nopmtudisc ignore-df",
    "gre encap fou",
    "gre encap fou encap-sport 50000 encap-csum key 42 csum seq",
    "gre mtu 576",
    "gre wan 1280",
    "gre wan 3500",
    "gretap",
    "gretap key 42 csum seq",
    "gretap ttl 64 tos inherit",
    "ip6gre",
    "ip6gre encaplimit none",
    "ip6gre key 42 csum seq",
    "ip6gre hoplimit 7 tclass inherit flowlabel inherit",
    "ip6gre tclass 0xb8 flowlabel 0x12345",
    "ip6gre encap fou encap-udp6-csum",
    "ip6gre encap fou noencap-udp6-csum key 42 csum seq",
    "ip6gretap",
    "ip6gretap encaplimit none key 42 csum seq",
    "ipip",
    "ipip ttl 64 tos inherit",
    "ipip nopmtudisc",
    "sit",
    "sit ttl 64 tos inherit",
    "sit nopmtudisc",
    "ip6ip6",
    "ip6ip6 encaplimit none tclass inherit flowlabel inherit",
    "ipip6",
    "ipip6 encaplimit none hoplimit 7 tclass inherit",
]

# With the fast path off, for all that is left to the slow path: these unless asked for more.
SLOW = [
    "gre",
    "gre key 42 csum seq",
    "gre ttl 64 tos inherit",
    "gre nopmtudisc",
    "gre encap fou",
    "gretap",
    "ip6gre",
    "ip6gre key 42 csum seq",
    "ip6gre encap fou encap-udp6-csum",
    "ip6gretap",
    "ipip",
    "sit",
    "ip6ip6",
    "ipip6",
]


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
# GRE in UDP (RFC 8086). Linux's receiver is not the tunnel's, and is made beside it.
UDP_PORT = 4754
FOU = f"fou encap-dport {UDP_PORT}"
MIRRORED = {f"{a}{name}": f"{b}{name}" for name in ("key", "csum", "seq") for a, b in ("io", "oi")}
# The smallest MTU that an IPv6 link may have: below it the kernel takes IPv6 off the device.
IPV6_MIN = 1280
# The underlay's MTU where a line says nothing, and more than any kind takes of it.
WAN = 1500
MOST = 80


class Tunnel:
    """A line of the table, in the kernel's words and in Greyhound's."""

    def __init__(self, line):
        self.line = line
        self.mode, *rest = line.split()
        self.kind = KINDS[self.mode]
        self.options = {}
        while rest:
            word = rest.pop(0)
            self.options[word] = True if word in FLAGS else rest.pop(0)
        self.wan = int(self.options.pop("wan", WAN))
        self.mtu = int(self.options.pop("mtu", 0))
        small = (self.mtu or self.wan - MOST) < IPV6_MIN
        self.payloads = tuple(version for version in self.kind.payloads if version == 4 or not small)
        self.payload = self.payloads[0]

    def link(self, local, remote):
        """What follows `ip link add NAME` at the kernel's end."""
        mtu = f"mtu {self.mtu} " if self.mtu else ""
        values = {word: "" if value is True else FOU if word == "encap" else value for word, value in self.options.items()}
        words = [f"{MIRRORED.get(word, word)} {value}" for word, value in values.items()]
        return f"{mtu}type {self.kind.link} local {local} remote {remote} {' '.join(words)}"

    def config(self):
        if self.mtu:
            yield f"mtu = {self.mtu}"
        for word, value in self.options.items():
            if word in FLAGS:
                yield FLAGS[word]
            elif word == "encap":
                yield 'encap = "gre-in-udp"'
            else:
                word = word.replace("-", "_")
                yield f"{word} = {value}" if value[0].isdigit() else f'{word} = "{value}"'

    def leaves_df(self, version):
        """Whether the outer header of such a payload, itself with DF, has no DF: then no path is too narrow for it."""
        return "ignore-df" in self.options or "nopmtudisc" in self.options and version == 6

    def expects(self, name, by_kernel):
        """The value of `key`, `csum` or `seq` for packets towards an end, or None."""
        return self.options.get(name) or self.options.get(("o" if by_kernel else "i") + name)


def rows(xdp, only):
    """What is to be run, in order: (xdp, its lines that contain `only`)."""
    for each in ("auto", "off") if xdp == "both" else (xdp,):
        yield each, [line for line in (SLOW if each == "off" and xdp == "both" else TUNNELS) if only in line]


if __name__ == "__main__":
    for _xdp, _lines in rows(*sys.argv[1:]):
        print("\n".join(f"{line}, xdp {_xdp}" for line in _lines))
