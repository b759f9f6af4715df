"""A bridged tunnel is a wire: whatever one LAN sends comes out in the other, unchanged, on both paths."""

from __future__ import annotations

import pytest

from lan import HOST_MTU, JoinedLan, arp, udp
from test_tcp import transfer
from topology import wait_until
from wire import Dot1Q, Ether

BULK = 32 << 20
KINDS = {
    "gretap": {},
    "gretap key csum seq": {"key": 42, "csum": True, "seq": True},
    "ip6gretap": {"mode": "ip6gretap"},
    "nvgre": {"nvgre": True, "key": 5000},
}


@pytest.fixture
def joined(tmp_path):
    """Two routers that join two LANs; call it with the tunnel to get them running."""
    beds: list[JoinedLan] = []

    def build(*args, **kwargs) -> JoinedLan:
        beds.append(JoinedLan(tmp_path, *args, **kwargs))
        return beds[-1]

    yield build
    for bed in beds:
        bed.close()


@pytest.mark.parametrize("kind", KINDS)
def test_two_lans_are_one(joined, xdp, kind):
    """ARP, IPv6 neighbour discovery, pings of every size and bulk TCP both ways."""
    bed = joined(KINDS[kind], xdp=xdp)
    mtu = bed.a.tunnel("tap1")["mtu"]
    bed.host_mtu(mtu)
    for to, header in (("10.5.0.2", 28), ("fd05::2", 48)):
        bed.ping(to=to)
        bed.ping("-M", "do", "-s", str(mtu - header), to=to)
        bed.ping("-s", "4000", to=to)
    # The answer to ARP and the neighbour advertisement came from the other host itself.
    for to in ("10.5.0.2", "fd05::2"):
        entry = bed.host_a.ip_json("neighbour", "show", "to", to)[0]
        assert entry["lladdr"] == bed.host_b.mac("b0")
    bed.warm()
    before = [side.tunnel("tap1") for side in (bed.a, bed.b)]
    for there, back in (("10.5.0.2", "10.5.0.1"), ("fd05::2", "fd05::1")):
        transfer(bed.host_a, bed.host_b, there, BULK)
        transfer(bed.host_b, bed.host_a, back, BULK)
    for side, was in zip((bed.a, bed.b), before):
        now = side.tunnel("tap1")
        assert now["drops"] == was["drops"]
        for counter in ("rx_packets", "tx_packets"):
            fast, slow = (now[path][counter] - was[path][counter] for path in ("fast", "slow"))
            assert fast + slow > BULK // 1500
            assert fast / (fast + slow) >= 0.99 if xdp == "auto" else fast == 0, f"{counter}: {fast} fast, {slow} slow"
