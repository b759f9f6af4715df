"""Multicast inside: what routing daemons say to their neighbours, over every kind of tunnel that carries it."""

from __future__ import annotations

import contextlib

import pytest

from hello import HELLOS
from test_kinds import KINDS, Routers, options


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "limit" not in kind])
def test_hellos_both_ways(tmp_path, xdp, kind):
    """OSPF, RIP, PIM and mDNS, with the TTLs that they have, go through once and whole; nothing is dropped."""
    _, carries, _, _ = KINDS[kind]
    with contextlib.closing(Routers(tmp_path, options(kind) | {"ttl": 64}, xdp=xdp)) as bed:
        for name, hello in HELLOS.items():
            if ("6" if hello.is_v6 else "4") not in carries:
                continue
            for here, there in ((bed.router_a, bed.router_b), (bed.router_b, bed.router_a)):
                with contextlib.closing(hello.ear(there, "gre1")) as ear:
                    payload = f"<{name} from {here.role}>".encode().ljust(64, b".")
                    hello.say(here, "gre1", payload)
                    ear.hears(payload)
                    assert not any(payload in message for message in ear.waiting()), "twice"
        for side in (bed.a, bed.b):
            # The kernel's own IPv6 messages find no room where IPv4 alone is carried.
            own = {"unknown_protocol"} if carries == "4" else set()
            assert not {reason for reason, n in side.tunnel()["drops"].items() if n} - own
