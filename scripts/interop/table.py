"""What is tried. A tunnel is a line, in the words of `ip link add … type`; a kind that Greyhound does not have yet is skipped."""

from dataclasses import dataclass

TUNNELS = [
    "gre",
    "gre key 42",
    "gre csum",
    "gre seq",
    "gre key 42 csum seq",
    "gre ttl 64",
    "gre tos inherit",
    "gre nopmtudisc",
    "ipip",
    "ipip ttl 64 tos inherit",
    "sit",
    "gretap",
    "gretap key 42 csum seq",
    "ip6gre",
    "ip6gre encaplimit none key 42 csum seq",
    "ip6gretap encaplimit none",
    "ip6ip6",
    "ipip6",
]

# With the fast path off, for all that is left to the slow path: these unless asked for more.
SLOW = ["gre", "gre key 42 csum seq", "gre tos inherit", "ipip", "sit", "gretap", "ip6gre", "ip6gretap encaplimit none", "ip6ip6", "ipip6"]


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

FLAGS = {"csum": "csum = true", "seq": "seq = true", "nopmtudisc": "pmtudisc = false"}


class Tunnel:
    """A line of the table, in the kernel's words and in Greyhound's."""

    def __init__(self, line):
        self.line = line
        mode, *self.words = line.split()
        self.mode, self.kind = mode, KINDS[mode]
        self.payload = self.kind.payloads[0]
        self.options, rest = {}, list(self.words)
        while rest:
            word = rest.pop(0)
            self.options[word] = True if word in FLAGS else rest.pop(0)

    def link(self, local, remote):
        return f"type {self.kind.link} local {local} remote {remote} {' '.join(self.words)}"

    def config(self):
        for word, value in self.options.items():
            if word in FLAGS:
                yield FLAGS[word]
            else:
                yield f"{word} = {value}" if value.isdigit() else f'{word} = "{value}"'
