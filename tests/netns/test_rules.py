"""Policy rules: the fast path is off only where one may concern its packets."""

from __future__ import annotations

from beds import Single, back, v4
from topology import wait_until


def fast(bed: Single) -> dict:
    return bed.greyhound.tunnel()["fast"]


def ways(bed: Single) -> tuple[bool, bool]:
    """Whether a packet into the tunnel and one out of it go fast; both get through in any case."""
    before = fast(bed)
    bed.encapsulated(v4())
    bed.decapsulated(back(v4()))
    after = fast(bed)
    return after["tx_packets"] > before["tx_packets"], after["rx_packets"] > before["rx_packets"]


def test_a_rule_counts_where_it_may_concern_our_packets(single):
    bed = single()
    bed.warm()
    everything = ["table", "main", "priority", "100"]
    for selector, expected in (
        (["iif", "elsewhere"], (True, True)),
        (["oif", "elsewhere"], (True, True)),
        (["iif", "inner0"], (False, False)),
        (["from", "10.9.0.1"], (False, True)),
        (["fwmark", "7"], (False, False)),
        (["not", "iif", "elsewhere"], (False, False)),
    ):
        bed.router.ip("rule", "add", *selector, *everything)
        wait_until(lambda e=expected: ways(bed) == e, f"with a rule {selector}: into and out of the tunnel fast {expected}")
        bed.router.ip("rule", "del", "priority", "100")
        wait_until(lambda: ways(bed) == (True, True), "without it all is fast again")
