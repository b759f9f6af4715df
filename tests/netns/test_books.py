"""The counters add up: every frame that comes is forwarded, punted or dropped, once, and is found in the books."""

from __future__ import annotations

import pytest
from beds import back, is_gre, v4, v6
from topology import Bench, wait_until
from wire import IP, Dot1Q, Ether, Options, gre

KEYED = {"key": 7, "csum": True, "seq": True, "ttl": 64}


def both(stats: dict) -> list[dict]:
    """The reports of workers that run, and of those that have ended."""
    return stats["workers"] + stats.get("ended", [])


def total(reasons: dict[str, int]) -> int:
    return sum(reasons.values())


def worker_books(stats: dict) -> list[str]:
    """What does not add up in the workers' books."""
    wrong = []
    for worker in both(stats):
        came = worker["rx_packets"] + worker["handed_over"] + worker["spread_in"]
        went = worker["tx_packets"] + worker["spread_out"] + worker["punted"] + total(worker["drops"])
        if came != went:
            wrong.append(f"worker {worker['id']}: {came} came, {went} went")
        if worker["punted"] != total(worker["punts"]):
            wrong.append(f"worker {worker['id']}: {worker['punted']} punted, by reason {worker['punts']}")
        for field, of_ports in (
            (worker["rx_packets"], "rx_packets"),
            (worker["tx_packets"], "tx_packets"),
            (worker["drops"].get("tx_ring_full", 0), "tx_ring_full"),
        ):
            if field != sum(port[of_ports] for port in worker["ports"]):
                wrong.append(f"worker {worker['id']}: {of_ports} {field}, by port {worker['ports']}")
    spread = [sum(worker[way] for worker in both(stats)) for way in ("spread_out", "spread_in")]
    if spread[0] != spread[1]:
        wrong.append(f"spread among the workers: {spread[0]} went, {spread[1]} came")
    return wrong


def slow_books(stats: dict) -> list[str]:
    """What does not add up in the slow path's books, or between them and the workers'."""
    slow, wrong = stats["slow_path"], []
    came = (slow["from_devices"] + slow["from_network"] + total(slow["punts"]) + slow["copies"] + slow["keepalives_sent"])
    went = (slow["into_tunnels"] + slow["out_of_tunnels"] + slow["handed_over"] + slow["returned"]
            + slow["keepalives_received"] + total(slow["drops"]))
    if came != went:
        wrong.append(f"slow path: {came} came, {went} went: {slow}")
    of_tunnels = [sum(tunnel["slow"][way] for tunnel in stats["tunnels"]) for way in ("tx_packets", "rx_packets")]
    if of_tunnels != [slow["into_tunnels"], slow["out_of_tunnels"]]:
        wrong.append(f"slow path: tunnels say {of_tunnels}: {slow}")
    for worker_field, slow_count in (("punted", total(slow["punts"])), ("handed_over", slow["handed_over"])):
        if sum(worker[worker_field] for worker in both(stats)) != slow_count:
            wrong.append(f"{worker_field}: not what the slow path says ({slow_count})")
    sums: dict[str, int] = {}
    for drops in [slow["drops"], *(worker["drops"] for worker in both(stats))]:
        for reason, n in drops.items():
            sums[reason] = sums.get(reason, 0) + n
    if sums != stats["drops"]:
        wrong.append(f"drops: {stats['drops']}, and in parts {sums}")
    return wrong


def steering_books(stats: dict) -> list[str]:
    """What does not add up between the steering program and the workers' sockets."""
    wrong = []
    sums: dict[str, int] = {}
    for device, reasons in stats["xdp"].items():
        if device == "all":
            continue
        for reason, n in reasons.items():
            sums[reason] = sums.get(reason, 0) + n
        taken = reasons["redirected_underlay"] + reasons["redirected_overlay"]
        ports = [port for worker in both(stats) for port in worker["ports"] if port["device"] == device]
        got = sum(port["rx_packets"] + port["rx_dropped"] + port["rx_ring_full"] for port in ports)
        if taken != got:
            wrong.append(f"{device}: {taken} redirected, {got} came to its sockets: {ports}")
    if sums != stats["xdp"].get("all", {}):
        wrong.append(f"steering: {stats['xdp'].get('all')}, and by device {sums}")
    return wrong


def balanced(bed) -> dict:
    """The statistics, once everything has come to rest and adds up."""
    last: list[str] = []

    def is_balanced() -> dict | None:
        stats = bed.greyhound.stats()
        last[:] = worker_books(stats) + slow_books(stats) + steering_books(stats)
        return stats if not last else None

    try:
        return wait_until(is_balanced, "the books balance", 5)
    except AssertionError:
        raise AssertionError("the books do not balance:\n" + "\n".join(last)) from None


def risen(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    """The counters that rose, and by how much."""
    return {reason: n - before.get(reason, 0) for reason, n in after.items() if n != before.get(reason, 0)}


def sent_by(ns, device: str) -> int:
    """The kernel's own count of the frames that this device has sent to its peer."""
    return ns.ip_json("-s", "link", "show", "dev", device)[0]["stats64"]["tx"]["packets"]


def settled(bed, wires: dict) -> tuple[dict, dict[str, int], list]:
    """Statistics that balance, what the wires had sent, and what the far end had received at one and the same moment: nobody
    keeps the kernels from asking for neighbours in between."""
    seen = []
    while True:
        sent = {device: sent_by(*wire) for device, wire in wires.items()}
        stats = balanced(bed)
        seen.extend(frame for frame in bed.outside.drain() if is_gre(frame))
        still = {device: sent_by(*wire) for device, wire in wires.items()}
        if still == sent and bed.greyhound.tunnel()["tx"] == stats["tunnels"][0]["tx"]:
            return stats, sent, seen


def a_known_mix(bed) -> None:
    """Seventeen packets into the tunnel, thirteen out of it, two that are dropped, and eleven that are not its business."""
    host = {"src": Bench.HOST_MAC, "dst": Bench.INNER_MAC}
    bed.inside.send(
        *(Ether(**host) / v4() for _ in range(9)),
        *(Ether(**host) / v6() for _ in range(5)),
        *(Ether(**host) / v4(options=b"\1\1\1\1") for _ in range(3)),
        *(Ether(**host) / v4(ttl=1) for _ in range(2)),
        *(Ether(**host) / Dot1Q(vlan=7) / v4() for _ in range(2)),
        *(Ether(**host) / v4(dst="10.77.0.1") for _ in range(4)),
        Ether(src=Bench.HOST_MAC, dst="02:00:00:00:77:77") / v4(),
    )
    bed.send_outside(*(bed.around(back(v4())) for _ in range(8)))
    bed.send_outside(*(bed.around(back(v6())) for _ in range(4)))
    bed.send_outside(bed.around(back(v4()), outer={"options": b"\1\1\1\1"}))
    # Not one after the other in time, but in their numbers: the one with options goes by the kernel.
    wait_until(lambda: bed.greyhound.tunnel()["rx"]["packets"] >= bed.rx_before + 13, "what comes out has come out")
    bed.send_outside(*(bed.around(back(v4()), proto=0x1234) for _ in range(2)))
    stranger = gre(v4(), Options(key=99))
    bed.send_outside(*(IP(src=Bench.REMOTE, dst=Bench.LOCAL) / stranger for _ in range(2)))


STEERED = {"redirected_overlay": 14, "ip_options": 3, "ttl": 2, "vlan_tag": 2, "no_route": 4}
STEERED_OUTSIDE = {"redirected_underlay": 14, "ip_options": 1, "unknown_tunnel": 2}
NOISE = {"not_ip", "multicast", "other_mac", "martian"}
"""Reasons of frames that the kernels on both sides send by themselves: neighbours asked for, groups joined."""


@pytest.mark.parametrize("tunnel", [{"ttl": 64}, KEYED], ids=["plain", "key-csum-seq"])
def test_a_known_mix(single, xdp, tunnel):
    """Each packet of it is in its place in the books, and nowhere else."""
    bed = single(tunnel=tunnel, xdp=xdp)
    bed.warm()
    wires = {"inner0": (bed.host, "h0"), "outer0": (bed.far, "f0")}
    before, sent, _ = settled(bed, wires)
    bed.rx_before = before["tunnels"][0]["rx"]["packets"]
    a_known_mix(bed)

    seen = []

    def is_through() -> dict | None:
        seen.extend(frame for frame in bed.outside.drain() if is_gre(frame))
        after = bed.greyhound.stats()
        rose = risen_in(after, before)
        ours = sum(b"<greyhound " in frame.original for frame in seen)
        return after if ours == 17 and rose["drops"] == {"unknown_protocol": 2} and rose["filtered"] == 2 else None

    wait_until(is_through, "the mix is through")
    after, sent_now, more = settled(bed, wires)
    seen.extend(more)
    rose = risen_in(after, before)
    assert rose["rx"] == 13
    # Every packet that the far end received, those of the router's own kernel among them.
    assert rose["tx"] == len(seen)
    assert rose["tunnel drops"] == rose["drops"] == {"unknown_protocol": 2}
    slow_only = xdp == "off"
    own = len(seen) - 17
    if slow_only:
        assert rose["slow"] == {"from_devices": 17 + own, "from_network": 15}
        return
    assert rose["slow"] == {"from_devices": 3 + own, "from_network": 1}
    for device, expected in (("inner0", STEERED), ("outer0", STEERED_OUTSIDE)):
        reasons = risen(after["xdp"][device], before["xdp"][device])
        assert {reason: n for reason, n in reasons.items() if reason not in NOISE} == expected, device
        assert total(reasons) == sent_now[device] - sent[device], device


def risen_in(after: dict, before: dict) -> dict:
    """What rose, in the places that the mix is looked for."""
    (new,), (old,) = after["tunnels"], before["tunnels"]
    slow = {name: after["slow_path"][name] - before["slow_path"][name] for name in ("from_devices", "from_network")}
    return {
        "rx": new["rx"]["packets"] - old["rx"]["packets"],
        "tx": new["tx"]["packets"] - old["tx"]["packets"],
        "tunnel drops": risen(new["drops"], old["drops"]),
        "drops": risen(after["drops"], before["drops"]),
        "filtered": total(after["slow_path"]["filtered"]) - total(before["slow_path"]["filtered"]),
        "slow": slow,
    }


def test_several_peers_and_pieces(single, xdp):
    """What one packet becomes several of is counted: a copy for each peer, and pieces."""
    peers = [{"address": f"10.200.0.{n}", "remote": f"10.9.0.{n}"} for n in (2, 3, 4)]
    bed = single(tunnel={"remote": None, "peer": peers, "ttl": 64}, xdp=xdp, start=False)
    bed.greyhound.configure([{k: v for k, v in bed.tunnel.items() if v is not None} | {"routes": []}], xdp=xdp)
    bed.greyhound.start()
    for n in (2, 3, 4):
        bed.router.ip("neigh", "replace", f"10.9.0.{n}", "lladdr", Bench.FAR_MAC, "dev", "outer0")
    before = balanced(bed)
    bed.router.run("ping", "-c", "2", "-i", "0.2", "-W", "1", "-I", "gre1", "224.0.0.251", check=False)
    wait_until(lambda: bed.greyhound.stats()["slow_path"]["copies"] >= before["slow_path"]["copies"] + 4, "copies")
    after = balanced(bed)
    slow = {name: after["slow_path"][name] - before["slow_path"][name] for name in ("from_devices", "into_tunnels")}
    assert slow["into_tunnels"] == 3 * slow["from_devices"] >= 6


def test_keepalives(single, xdp):
    """Keepalives are made here and end here: they have a place of their own."""
    bed = single(tunnel={"ttl": 64, "keepalive": {"interval": 1, "retries": 30}}, xdp=xdp)
    wait_until(lambda: bed.greyhound.stats()["slow_path"]["keepalives_sent"] >= 2, "keepalives are sent")
    balanced(bed)


def test_the_books_go_on_when_the_fast_path_starts_again(single):
    """Another MTU of a device ends the workers; what they counted stays in the books."""
    bed = single(tunnel={"ttl": 64})
    bed.warm()
    before = balanced(bed)
    handled = sum(worker["rx_packets"] for worker in before["workers"])
    assert handled > 0 and "ended" not in before
    bed.router.ip("link", "set", "inner0", "mtu", "1400")
    wait_until(lambda: "ended" in bed.greyhound.stats(), "the workers have ended")
    bed.warm()
    after = balanced(bed)
    assert sum(worker["rx_packets"] for worker in after["ended"]) >= handled
    assert sum(worker["rx_packets"] for worker in after["workers"]) > 0
    assert all(port["mode"] == "ended" for worker in after["ended"] for port in worker["ports"])


def test_time_of_a_worker(single):
    """What a worker was awake and asleep makes all the time since it began, and packets make it turn."""
    bed = single(tunnel={"ttl": 64})
    bed.warm()
    (old,) = bed.greyhound.stats()["workers"]
    for _ in range(5):
        bed.encapsulated(v4())
    (new,) = bed.greyhound.stats()["workers"]
    assert new["busy_turns"] >= old["busy_turns"] + 5
    assert new["turns"] > new["busy_turns"] and new["sleeps"] > old["sleeps"]
    assert new["awake_seconds"] > old["awake_seconds"] and new["asleep_seconds"] > old["asleep_seconds"]
    uptime = bed.greyhound.stats()["router"]["uptime_seconds"]
    assert new["awake_seconds"] + new["asleep_seconds"] <= uptime + 2
