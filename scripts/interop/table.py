"""What is tried. A tunnel is a line, in the words of `ip link add … type`; a kind that Greyhound does not have yet is skipped.

Words that have a direction are Greyhound's: its `ikey` is the kernel's `okey`. Words that no `type` has:

    mtu N    the tunnel devices' own MTU
    wan N    the MTU of all other devices
    peers    Greyhound without a remote and with a table of peers, the kernel being two of them
    via      Greyhound without a remote, which is the route's next hop; so the kernel, where it can
    neigh    the kernel without a remote, which is a neighbour's link address
    bridge   the hosts of both ends in one network, joined by Ethernet frames
    nvgre    Greyhound's key as a virtual subnet
    keepalive    Greyhound sends keepalives
"""

import sys

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
    "gre remote 239.1.1.1 ttl 64",
    "gre peers",
    "gre via",
    "gre key 42 neigh",
    "gre keepalive",
    "gre mtu 576",
    "gre wan 1280",
    "gre wan 3500",
    "gretap",
    "gretap key 42 csum seq",
    "gretap ttl 64 tos inherit",
    "gretap bridge",
    "gretap ttl 64 tos inherit key 42 csum seq bridge",
    "gretap key 5000 nvgre bridge",
    "ip6gre",
    "ip6gre encaplimit none",
    "ip6gre key 42 csum seq",
    "ip6gre hoplimit 7 tclass inherit flowlabel inherit",
    "ip6gre tclass 0xb8 flowlabel 0x12345",
    "ip6gre encap fou encap-udp6-csum",
    "ip6gre encap fou noencap-udp6-csum key 42 csum seq",
    "ip6gre peers",
    "ip6gretap",
    "ip6gretap encaplimit none key 42 csum seq bridge",
    "ipip",
    "ipip ttl 64 tos inherit",
    "ipip nopmtudisc",
    "ipip via",
    "sit",
    "sit ttl 64 tos inherit",
    "sit nopmtudisc",
    "sit via",
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
    "gre remote 239.1.1.1 ttl 64",
    "gre peers",
    "gretap",
    "gretap bridge",
    "ip6gre",
    "ip6gre key 42 csum seq",
    "ip6gre encap fou encap-udp6-csum",
    "ip6gre peers",
    "ip6gretap bridge",
    "ipip",
    "sit",
    "ip6ip6",
    "ipip6",
]


def rows(xdp, only):
    """What is to be run, in order: (xdp, its lines that contain `only`)."""
    for each in ("auto", "off") if xdp == "both" else (xdp,):
        yield each, [line for line in (SLOW if each == "off" and xdp == "both" else TUNNELS) if only in line]


if __name__ == "__main__":
    for _xdp, _lines in rows(*sys.argv[1:]):
        print("\n".join(f"{line}, xdp {_xdp}" for line in _lines))
