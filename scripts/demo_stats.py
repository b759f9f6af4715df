#!/usr/bin/python3
"""The demo's arithmetic: reads `greyhound stats --json` and iperf3's JSON, prints the table."""

import json
import sys


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def ready(path):
    """Every tunnel of a router is up."""
    return all(tunnel["state"] == "up" for tunnel in load(path)["tunnels"])


def tcp(path, wanted):
    """One iperf3 run in words; all of `wanted` bytes must have arrived."""
    run = load(path)
    if "error" in run:
        print(run["error"])
        return False
    end = run["end"]
    got = end["sum_received"]["bytes"]
    print(f"{got / 1e6:.0f} MB at {rate(path)}, {end['sum_sent'].get('retransmits', 0)} segments sent again")
    return got >= int(wanted)


def rate(path):
    """The throughput of an iperf3 run, or a dash where there was none."""
    try:
        return f"{load(path)['end']['sum_received']['bits_per_second'] / 1e9:.2f} Gbit/s"
    except (OSError, ValueError, KeyError):
        return "-"


def packets_in(share):
    """Packets of one path, in both directions."""
    return share["rx_packets"] + share["tx_packets"]


def packets(routers, name):
    """Packets of a tunnel, both routers and directions: (on the fast path, on either)."""
    fast = slow = 0
    for stats in routers:
        for tunnel in stats["tunnels"]:
            if tunnel["name"] == name:
                fast += packets_in(tunnel["fast"])
                slow += packets_in(tunnel["slow"])
    return fast, fast + slow


def drops(stats):
    """Drops by reason over several routers."""
    total = {}
    for router in stats:
        for reason, n in router["drops"].items():
            total[reason] = total.get(reason, 0) + n
        # What the kernel could not put into a worker's rings never became a packet of ours, and is lost all the same.
        for port in (port for worker in router["workers"] for port in worker["ports"]):
            for ring in ("rx_ring_full", "rx_dropped"):
                total[ring] = total.get(ring, 0) + port[ring]
    return {reason: n for reason, n in total.items() if n}


def table(directory, *tunnels):
    """The closing table. Each of `tunnels` is NAME=WORDS. True when the fast path carried 99 % of each."""
    before = [load(f"{directory}/{side}.before.json") for side in "AB"]
    after = [load(f"{directory}/{side}.after.json") for side in "AB"]
    print(f"    {'tunnel':<24}{'A to B':>14}{'B to A':>14}{'packets *':>14}{'fast path':>12}")
    good = True
    for entry in tunnels:
        name, words = entry.split("=", 1)
        fast, every = (now - then for now, then in zip(packets(after, name), packets(before, name)))
        share = 100 * fast / every if every else 0.0
        good &= share >= 99
        forth, back = (rate(f"{directory}/{name}.{way}.json") for way in ("forth", "back"))
        print(f"    {name + ' (' + words + ')':<24}{forth:>14}{back:>14}{every:>14}{share:>10.2f} %")
    counted = drops(after)
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(counted.items())) or "none"
    print("    * of TCP, data and acknowledgements, as both routers counted them")
    print(f"\n    drops by reason, both routers: {reasons}")
    return good


if __name__ == "__main__":
    verb = {"ready": ready, "tcp": tcp, "table": table}[sys.argv[1]]
    sys.exit(0 if verb(*sys.argv[2:]) else 1)
