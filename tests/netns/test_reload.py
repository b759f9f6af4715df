"""Changes of a running router: the file read anew, tunnels added and removed by words. What is not touched loses nothing."""

from __future__ import annotations

import json
import signal
import threading

import pytest

from beds import Single, payload_of, v4
from greyhound import config
from topology import wait_until
from wire import GRE, IP, carries, ip_bytes, forwarded

OTHER = {
    "name": "gre2", "mode": "gre", "local": "10.9.0.1", "remote": "10.9.0.2", "key": 7,
    "address": ["10.201.0.1/30"], "routes": ["10.3.0.0/16"],
}


def write(bed: Single, *tunnels: dict, **router) -> None:
    """Another configuration file, in the place of the one that runs."""
    bed.greyhound.configure(list(tunnels), **router)


def reload(bed: Single) -> dict:
    """`greyhound reload`, and what it says was done."""
    return json.loads(bed.greyhound.ask("reload", "--json").stdout)


def refusal(bed: Single, *verb: str) -> str:
    """The one line that a verb was refused with."""
    done = bed.greyhound.ask(*verb, check=False)
    assert done.returncode == 1 and done.stdout == "", done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def goes_by(bed: Single, dst: str, key: int | None) -> None:
    """A packet to `dst` leaves in the tunnel with that key."""
    packet = v4(dst=dst)
    outer = bed.encapsulated(packet)
    assert ip_bytes(outer[GRE].payload) == forwarded(packet)
    assert (outer[GRE].key if outer[GRE].key_present else None) == key


def test_reload_does_what_the_file_says_and_says_so(single, xdp):
    """Tunnels come, change in place and go; the answer names each, and the rest is as it was."""
    bed = single(xdp=xdp)
    bed.warm()
    index = bed.router.link("gre1")["ifindex"]
    assert reload(bed) == {"added": [], "removed": [], "changed": [], "unchanged": 1, "router": []}

    write(bed, bed.tunnel, OTHER, xdp=xdp)
    assert reload(bed) == {"added": ["gre2"], "removed": [], "changed": [], "unchanged": 1, "router": []}
    goes_by(bed, "10.3.0.2", 7)
    goes_by(bed, "10.2.0.2", None)

    changed = bed.tunnel | {"key": 9, "ttl": 33}
    write(bed, changed, OTHER | {"routes": ["10.4.0.0/16"], "address": ["10.201.0.2/30"]}, xdp=xdp)
    done = reload(bed)
    assert done["changed"] == [
        {"name": "gre1", "keys": ["ikey", "okey", "ttl"]}, {"name": "gre2", "keys": ["address", "routes"]},
    ]
    goes_by(bed, "10.2.0.2", 9)
    goes_by(bed, "10.4.0.2", 7)
    assert bed.router.link("gre1")["ifindex"] == index, "the device was made anew"
    assert bed.router.link("gre1")["mtu"] == 1472, "the MTU follows the overhead"
    routes = {route["dst"] for route in bed.router.ip_json("route", "show", "dev", "gre2")}
    assert routes == {"10.4.0.0/16", "10.201.0.0/30"}
    addresses = {a["local"] for a in bed.router.ip_json("-4", "address", "show", "dev", "gre2")[0]["addr_info"]}
    assert addresses == {"10.201.0.2"}

    write(bed, changed, xdp=xdp)
    assert reload(bed)["removed"] == ["gre2"]
    assert "gre2" not in bed.router.devices()
    goes_by(bed, "10.2.0.2", 9)


def test_a_route_moves_between_tunnels(single, xdp):
    """One reload takes a prefix from a tunnel and gives it to another, new or old: at no moment is there none."""
    bed = single(xdp=xdp)
    write(bed, bed.tunnel | {"routes": []}, OTHER | {"routes": ["10.2.0.0/16"]}, xdp=xdp)
    assert reload(bed)["added"] == ["gre2"]
    goes_by(bed, "10.2.0.2", 7)
    write(bed, bed.tunnel, OTHER, xdp=xdp)
    reload(bed)
    goes_by(bed, "10.2.0.2", None)
    goes_by(bed, "10.3.0.2", 7)


def test_sighup_reloads(single):
    """SIGHUP is a reload; the log says what was done."""
    bed = single()
    write(bed, bed.tunnel, OTHER)
    bed.greyhound.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "gre2" in bed.router.devices(), "the new tunnel's device")
    wait_until(lambda: "reload: added gre2; unchanged 1" in bed.greyhound.log(), "the log's line")


def test_words_of_iproute2(single, xdp):
    """`tunnel add` and `tunnel del`; what was added by words outlives a reload, and the file can take it over."""
    bed = single(xdp=xdp)
    add = "mode gre local 10.9.0.1 remote 10.9.0.2 key 7 csum ttl 64 address 10.201.0.1/30 route 10.3.0.0/16"
    assert bed.greyhound.ask("tunnel", "add", "gre2", *add.split()).stdout == "added gre2; unchanged 1\n"
    goes_by(bed, "10.3.0.2", 7)
    assert bed.encapsulated(v4(dst="10.3.0.2"))[IP].ttl == 64
    assert reload(bed)["unchanged"] == 2
    goes_by(bed, "10.3.0.2", 7)

    write(bed, bed.tunnel, OTHER, xdp=xdp)
    assert reload(bed)["changed"] == [{"name": "gre2", "keys": ["icsum", "ocsum", "ttl"]}]
    assert bed.greyhound.ask("tunnel", "del", "gre2").stdout == "removed gre2; unchanged 1\n"
    assert "gre2" not in bed.router.devices()
    assert reload(bed)["added"] == ["gre2"]
    goes_by(bed, "10.3.0.2", 7)


def state_of(bed: Single) -> tuple:
    """Everything that a refused change must leave as it is."""
    ns = bed.router
    return (
        ns.ip("-d", "link", "show"), ns.ip("address", "show"), ns.ip("route", "show", "table", "all"),
        [{k: t[k] for k in ("name", "state", "mtu", "ikey")} for t in bed.greyhound.stats()["tunnels"]],
    )


@pytest.mark.parametrize("tunnels, router, why", [
    ([{"name": "gre3", "mode": "gree"}], {}, "mode = "),
    ([OTHER | {"key": 1 << 32}], {}, "key = 4294967296: expected"),
    ([OTHER, OTHER | {"name": "gre3", "address": [], "routes": []}], {}, "are those of tunnel"),
    ([OTHER], {"overlay": ["nowhere0"]}, "there is no such device"),
    ([OTHER], {"persist": False}, "router.persist cannot be changed"),
    ([OTHER | {"mtu": 1473}], {}, "mtu = 1473 is above the underlay's: 1472 = 1500 of outer0 - 20 IPv4 - 8 GRE"),
    # Only the kernel knows: these fail half-way, and are taken back.
    ([OTHER, OTHER | {"name": "inner1", "key": 8, "address": [], "routes": []}], {}, "inner1: a device of this name exists"),
    ([OTHER | {"routes": ["10.3.0.0/16", "10.77.0.0/16"]}], {}, "cannot add the route 10.77.0.0/16"),
], ids=["word", "value", "twin", "device", "fixed key", "mtu", "taken name", "taken route"])
def test_refused_whole(single, tunnels, router, why):
    """A reload that cannot be done is refused with one line, and nothing has changed."""
    bed = single()
    bed.router.ip("link", "add", "inner1", "type", "veth", "peer", "name", "inner2")
    bed.router.ip("route", "add", "10.77.0.0/16", "via", "10.1.0.2", "proto", "static")
    before = state_of(bed)
    write(bed, bed.tunnel | {"address": bed.tunnel["address"] + ["10.222.0.1/30"]}, *tunnels, **router)
    assert why in refusal(bed, "reload")
    assert state_of(bed) == before
    goes_by(bed, "10.2.0.2", None)


@pytest.mark.parametrize("words, why", [
    ("gre1 mode gre local 10.9.0.1 remote 10.9.0.9", 'tunnel "gre1": name = "gre1": another tunnel\'s already'),
    ("gre2 mode gre local 10.9.0.1 remote 10.9.0.2", "are those of tunnel \"gre1\""),
    ("gre2 mode gre local", "local at the end: expected a value behind it"),
    ("gre2 mode gre local 10.9.0.1 remote 10.9.0.3 colour blue", "unknown key \"colour\""),
    ("gre2 mode ipip local 10.9.0.1 remote 10.9.0.3 mtu 1481", "mtu = 1481 is above the underlay's: 1480 = 1500 of outer0"),
    ("gre2 mode ipip local 10.9.0.1 remote 10.9.0.3 key 4", "key = 4: not with mode ipip"),
])
def test_refused_words(single, words, why):
    """So is a tunnel in words that mean nothing, or nothing possible."""
    bed = single()
    before = state_of(bed)
    assert why in refusal(bed, "tunnel", "add", *words.split())
    assert "no tunnel \"gre7\": there are gre1" in refusal(bed, "tunnel", "del", "gre7")
    assert state_of(bed) == before


def test_other_devices_under_way(single, xdp):
    """The fast path moves to other devices and modes, and what it was not on before it is on then."""
    bed = single(xdp=xdp)
    bed.router.ip("link", "add", "inner1", "numtxqueues", "1", "numrxqueues", "1", "type", "veth", "peer", "name", "inner2")
    bed.router.ip("link", "set", "inner1", "up")
    other = "off" if xdp == "auto" else "auto"
    for overlay, mode in ((["inner0", "inner1"], xdp), (["inner0", "inner1"], other), (["inner0"], xdp)):
        write(bed, bed.tunnel, overlay=overlay, xdp=mode)
        assert set(reload(bed)["router"]) <= {"overlay", "xdp"}
        goes_by(bed, "10.2.0.2", None)
        bed.xdp = mode
        bed.warm()
        devices = {port["device"] for worker in bed.greyhound.stats()["workers"] for port in worker["ports"]}
        assert devices == ({"outer0", *overlay} if mode == "auto" else set())


def test_a_thousand_reloads_lose_nothing(single, measured):
    """A numbered flow through an untouched tunnel while another one comes, changes and goes."""
    bed = single()
    bed.warm()
    kinds = [(bed.tunnel,), (bed.tunnel, OTHER), (bed.tunnel, OTHER | {"key": 8, "routes": ["10.5.0.0/16"]})]
    files = []
    for n, tunnels in enumerate(kinds):
        files.append(config(bed.greyhound.socket, list(tunnels)))
        assert files[n]
    sent, stop = [], threading.Event()

    def flow() -> None:
        while not stop.is_set():
            packet = v4(token_of(len(sent)))
            sent.append(packet)
            bed.send_inside(packet)
            # Paced: the question is what a reload loses, not what a full ring does.
            stop.wait(0.0005)

    sender = threading.Thread(target=flow)
    sender.start()
    try:
        with bed.greyhound.connected() as ask:
            for n in range(1000):
                bed.greyhound.config_file.write_text(files[n % len(files)], encoding="utf-8")
                answer = ask({"verb": "reload"})
                assert "ok" in answer, answer
    finally:
        stop.set()
        sender.join()
    expected = {bytes(payload_of(packet)) for packet in sent}
    outer = bed.outside.collect(carries(b"<flow "), len(sent), "packets of the flow")
    arrived = [bytes(ip_bytes(frame[GRE].payload))[28:] for frame in outer]
    assert set(arrived) == expected and len(arrived) == len(expected)
    assert arrived == sorted(arrived), "reordered"
    counted = bed.greyhound.tunnel()
    measured(f"1,000 reloads: {len(sent)} packets of an untouched tunnel, none lost or reordered; "
             f"{counted['fast']['tx_packets']} of its packets on the fast path, {counted['slow']['tx_packets']} on the slow one")


def token_of(n: int) -> bytes:
    """A payload that says its place in the flow."""
    return f"<flow {n:08d}>".encode().ljust(32, b".")
