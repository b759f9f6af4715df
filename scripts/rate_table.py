#!/usr/bin/python3
"""rate.sh's arithmetic: judges each measurement and prints the table of their medians."""

import json
import os
import statistics
import sys
import time

ETHERNET, GRE_OVER_IPV4 = 64, 24
# What arrives at the far end, in bytes: proof that the packets were encapsulated, or were not.
FRAME = {"bare": ETHERNET, "encapsulate": ETHERNET + GRE_OVER_IPV4, "decapsulate": ETHERNET}
# XDP_ATTACHED_DRV of linux/if_link.h.
NATIVE = 1
# The source has to send so much more than arrives, or it is what was measured.
SURPLUS = 1.05


def refuse(kind, words):
    sys.exit(f"error: {kind}: {words}; nothing is reported")


def facts(path):
    """A line "name number name number …" as a dictionary."""
    with open(path, encoding="utf-8") as file:
        words = file.read().split()
    return {name: float(number) for name, number in zip(words[::2], words[1::2])}


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def ready(path):
    """The tunnel is up, and so is its next hop."""
    tunnels = load(path)["tunnels"]
    sys.exit(0 if tunnels and all(t["state"] == "up" for t in tunnels) else 1)


def check_native(kind, directory):
    devices = {"in"} if kind == "bare" else {"in", "out"}
    for link in load(f"{directory}/links"):
        if link["ifname"] in devices and link.get("xdp", {}).get("mode") != NATIVE:
            refuse(kind, f"XDP on {link['ifname']} is not native")


def check_router(kind, directory):
    stats = load(f"{directory}/stats")
    tunnel = stats["tunnels"][0]
    field = "tx_packets" if kind == "encapsulate" else "rx_packets"
    if tunnel["slow"][field] or any(w["punted"] for w in stats["workers"]):
        refuse(kind, f"{tunnel['slow'][field]} packets took the slow path")
    if not tunnel["fast"][field]:
        refuse(kind, "no packet took the fast path")
    for port in stats["workers"][0]["ports"]:
        if port["mode"] not in ("copy", "zero-copy"):
            refuse(kind, f"{port['device']} runs in mode {port['mode']}")
    return stats["drops"]


def judge(kind, directory):
    """One measurement as a line of JSON, or a refusal."""
    counted = facts(f"{directory}/counter")
    sent = sum(facts(f"{directory}/source{n}")["pps"] for n in (1, 2))
    check_native(kind, directory)
    drops = {} if kind == "bare" else check_router(kind, directory)
    packets = counted["packets"]
    # Packets and bytes are read while they are counted, a packet or two apart.
    if round(counted["bytes"] / packets, 2) != FRAME[kind]:
        refuse(kind, f"frames of {counted['bytes'] / packets:.2f} bytes arrived, not of {FRAME[kind]}")
    if sent < SURPLUS * counted["pps"]:
        refuse(kind, f"the source sent {sent:.0f} packets a second, and {counted['pps']:.0f} arrived")
    user, system = counted["user_ns"] / packets, counted["system_ns"] / packets
    result = {
        "kind": kind,
        "pps": counted["pps"],
        "user": user,
        "system": system,
        "busy": (user + system) * counted["pps"] / 1e9,
        "sent": sent,
        "drops": drops,
    }
    with open(f"{directory}/memory", encoding="utf-8") as file:
        result["rss_kib"] = int(file.read().split()[1])
    print(json.dumps(result))


def cpu_ns(pid):
    """Time on the CPU of all threads of a process so far, in nanoseconds."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total


def idle(pid, seconds):
    """The CPU's share that a quiet process takes."""
    before, start = cpu_ns(pid), time.monotonic_ns()
    time.sleep(float(seconds))
    share = (cpu_ns(pid) - before) / (time.monotonic_ns() - start)
    print(json.dumps({"kind": "idle", "share": share}))


def spread(values):
    """How far the rounds lie apart, in percent of the median."""
    return 100 * (max(values) - min(values)) / statistics.median(values)


def table(path):
    with open(path, encoding="utf-8") as file:
        results = [json.loads(line) for line in file]
    runs = {kind: [r for r in results if r["kind"] == kind] for kind in FRAME}

    def median(kind, field):
        return statistics.median(r[field] for r in runs[kind])

    def ratio(kind, value):
        """The median over the rounds of each one's ratio to the bare forwarder of the same round."""
        pairs = zip(runs[kind], runs["bare"])
        return statistics.median(value(run) / value(bare) for run, bare in pairs)

    columns = ("Mpps", "ratio", "spread", "user ns", "system ns", "per CPU", "ratio", "CPU busy")
    print(f"    {'':<24}" + "".join(f"{c:>11}" for c in columns))
    names = {"bare": "bare AF_XDP forwarder", "encapsulate": "GRE encapsulation", "decapsulate": "GRE decapsulation"}
    for kind, name in names.items():
        cells = (
            f"{median(kind, 'pps') / 1e6:.3f}",
            f"{ratio(kind, lambda r: r['pps']):.3f}",
            f"{spread([r['pps'] for r in runs[kind]]):.0f} %",
            f"{median(kind, 'user'):.0f}",
            f"{median(kind, 'system'):.0f}",
            f"{statistics.median(1e3 / (r['user'] + r['system']) for r in runs[kind]):.3f}",
            f"{ratio(kind, lambda r: 1 / (r['user'] + r['system'])):.3f}",
            f"{100 * median(kind, 'busy'):.0f} %",
        )
        print(f"    {name:<24}" + "".join(f"{c:>11}" for c in cells))
    routers = runs["encapsulate"] + runs["decapsulate"]
    sent = statistics.median(r["sent"] for r in results if "sent" in r)
    drops = sorted({reason for r in routers for reason, n in r["drops"].items() if n})
    shares = [r["share"] for r in results if r["kind"] == "idle"]
    print(f"""
    ns are CPU time per packet of the whole process; "per CPU" is million packets per second of it. Ratios are to the
    bare forwarder of the same round; spread is largest less smallest of {len(runs['bare'])} rounds. The source sent {sent / 1e6:.2f} Mpps.
    XDP native, no packet on the slow path; drops by reason besides what rings had no room for: {', '.join(drops) or 'none'}.
    idle: {100 * statistics.median(shares):.2f} % of one CPU; resident memory under load: {max(r['rss_kib'] for r in routers) / 1024:.0f} MiB""")


if __name__ == "__main__":
    verb = {"ready": ready, "judge": judge, "idle": idle, "table": table}[sys.argv[1]]
    verb(*sys.argv[2:])
