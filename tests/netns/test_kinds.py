"""Every kind of tunnel between two routers: what it carries, on both paths, to the last byte of its MTU."""

from __future__ import annotations

import pytest

from beds import Pair
from test_tcp import transfer
from topology import wait_until

BULK = 32 << 20
UNDERLAY6 = ("fd09::1", "fd09::2")
# Mode, what it carries, further options, and the MTU over 1500 bytes (conformance mtu-1).
KINDS = {
    "gre": ("gre", "46", {}, 1476),
    "gre key csum seq": ("gre", "46", {"key": 42, "csum": True, "seq": True}, 1464),
    "ip6gre": ("ip6gre", "46", {}, 1448),
    "ip6gre, no limit": ("ip6gre", "46", {"encaplimit": "none"}, 1456),
    "ip6gre key csum seq": ("ip6gre", "46", {"key": 42, "csum": True, "seq": True, "encaplimit": "none"}, 1444),
    "ipip": ("ipip", "4", {}, 1480),
    "sit": ("sit", "46", {}, 1480),
    "ip6ip6": ("ip6ip6", "6", {}, 1452),
    "ip6ip6, no limit": ("ip6ip6", "6", {"encaplimit": "none"}, 1460),
    "ipip6": ("ipip6", "4", {}, 1452),
}
# Those that carry frames, between routers that have addresses on them.
FRAMES = {"gretap": ("gretap", "46", {}, 1462), "ip6gretap": ("ip6gretap", "46", {}, 1434)}
FAR = {"4": "10.2.0.2", "6": "fd02::2"}
HEADER = {"4": 28, "6": 48}


def options(kind: str) -> dict:
    """The kind's configuration as router A has it, over the underlay of its family."""
    mode, carries, extra, _ = (KINDS | FRAMES)[kind]
    tunnel = {"mode": mode, **extra}
    only = {"4": lambda net: ":" not in net, "6": lambda net: ":" in net}.get(carries, lambda net: True)
    tunnel["routes"] = [net for net in ("10.2.0.0/24", "fd02::/64") if only(net)]
    tunnel["address"] = [net for net in ("172.16.1.1/30", "fd00:172:1::1/64") if only(net)]
    if "6" in mode:
        tunnel |= {"local": UNDERLAY6[0], "remote": UNDERLAY6[1]}
    return tunnel


class Routers(Pair):
    """A pair whose tunnel is the same at both ends, with the sides' own addresses."""

    @staticmethod
    def _tunnel(tunnel: dict, n: int, side: int) -> dict:
        made = Pair._tunnel(tunnel, n, side)
        if side == 2:
            if ":" in made["local"]:
                made["local"], made["remote"] = UNDERLAY6[1], UNDERLAY6[0]
            made["routes"] = [net.replace("10.2.", "10.1.").replace("fd02:", "fd01:") for net in made["routes"]]
            made["address"] = [net.replace(".1/", ".2/").replace("::1/", "::2/") for net in made["address"]]
        return made


@pytest.mark.parametrize("kind", KINDS)
def test_kind_between_routers(tmp_path, xdp, kind):
    """Pings of every size up to the MTU and beyond it, and bulk TCP both ways, on the path that the mode says."""
    _, carries, _, mtu = KINDS[kind]
    bed = Routers(tmp_path, options(kind), xdp=xdp)
    try:
        assert bed.a.tunnel()["mtu"] == mtu
        for family in carries:
            bed.ping(f"-{family}", to=FAR[family])
            bed.ping(f"-{family}", "-M", "do", "-s", str(mtu - HEADER[family]), to=FAR[family])
            bed.ping(f"-{family}", "-M", "dont", "-s", "4000", to=FAR[family])
        before = [side.tunnel() for side in (bed.a, bed.b)]
        for family in carries:
            near = {"4": "10.1.0.2", "6": "fd01::2"}[family]
            transfer(bed.host_a, bed.host_b, FAR[family], BULK)
            transfer(bed.host_b, bed.host_a, near, BULK)
        for side, was in zip((bed.a, bed.b), before):
            now = side.tunnel()
            # The kernel's router solicitations and multicast reports find no room in a tunnel that carries IPv4 only.
            own = {"unknown_protocol"} if carries == "4" else set()
            lost = {reason: n for reason, n in now["drops"].items() if n != was["drops"].get(reason, 0)}
            assert not lost.keys() - own, lost
            for counter in ("rx_packets", "tx_packets"):
                fast, slow = (now[path][counter] - was[path][counter] for path in ("fast", "slow"))
                assert fast + slow > BULK // 1500
                assert fast / (fast + slow) >= 0.99 if xdp == "auto" else fast == 0, f"{counter}: {fast} fast, {slow} slow"
    finally:
        bed.close()


@pytest.mark.parametrize("kind", ["ipip", "ip6ip6", "ipip6"])
def test_other_payloads_stay_out(tmp_path, xdp, kind):
    """A packet of the family that the kind does not carry is dropped, and counted, and harms nothing."""
    _, carries, _, _ = KINDS[kind]
    other = "6" if carries == "4" else "4"
    bed = Routers(tmp_path, options(kind), xdp=xdp)
    try:
        net = {"4": "10.2.0.0/24", "6": "fd02::/64"}[other]
        bed.router_a.ip(f"-{other}", "route", "add", net, "dev", "gre1")
        bed.host_a.run("ping", "-n", f"-{other}", "-c", "1", "-W", "1", FAR[other], check=False)
        wait_until(lambda: bed.a.tunnel()["drops"].get("unknown_protocol", 0) > 0, "the drop is counted")
        bed.ping(f"-{carries}", to=FAR[carries])
    finally:
        bed.close()
