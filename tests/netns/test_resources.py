"""What the router costs when nothing happens, and what it says of itself."""

from __future__ import annotations

import os
import time

from beds import back, is_gre, v4


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Resident memory in KiB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


def test_idle_costs_nothing(single, xdp, measured):
    """A router with nothing to do sleeps: below 5 % of one core over two quiet seconds.

    The first seconds of an address's life are not quiet (router solicitations, multicast reports), so the
    quietest of a few periods counts.
    """
    bed = single(xdp=xdp)
    bed.warm()
    pid, period, shares = bed.greyhound.process.pid, 2.0, []
    for _ in range(4):
        then, begin = cpu_seconds(pid), time.monotonic()
        time.sleep(period)  # The period that is measured; nothing is waited for.
        shares.append((cpu_seconds(pid) - then) / (time.monotonic() - begin))
        if shares[-1] < 0.05:
            break
    measured(f"xdp = {xdp}: idle, {100 * min(shares):.2f} % of one core; resident, {resident(pid) / 1024:.1f} MiB")
    assert min(shares) < 0.05


def test_memory_does_not_grow(single, xdp):
    """Many packets later the process is no larger: frames, buffers and counters are all there from the start."""
    bed = single(xdp=xdp)
    bed.warm()

    def rounds(count: int) -> int:
        for _ in range(count):
            bed.send_inside(*(v4() for _ in range(20)))
            bed.send_outside(*(bed.around(back(v4())) for _ in range(20)))
            bed.fence_inside()
            bed.fence_outside()
        return resident(bed.greyhound.process.pid)

    first = rounds(10)
    assert rounds(60) - first < 4096


def test_stats_have_the_contract_s_fields(single, xdp):
    """The names that dashboards rely on."""
    bed = single(tunnel={"key": 42}, xdp=xdp)
    bed.warm()
    stats = bed.greyhound.stats()
    assert set(stats) >= {"tunnels", "workers", "drops"}
    tunnel = stats["tunnels"][0]
    assert (tunnel["name"], tunnel["mode"], tunnel["local"], tunnel["remote"]) == ("gre1", "gre", "10.9.0.1", "10.9.0.2")
    assert tunnel["state"] == "up" and isinstance(tunnel["drops"], dict)
    for way in ("rx", "tx"):
        assert tunnel[way]["packets"] > 0 and tunnel[way]["bytes"] > 0
        assert {f"{way}_packets"} <= set(tunnel["fast"]) and {f"{way}_packets"} <= set(tunnel["slow"])
    for worker in stats["workers"]:
        assert set(worker) >= {"id", "cpu", "rx_packets", "tx_packets", "punted", "drops", "ports"}
        for port in worker["ports"]:
            assert set(port) >= {"device", "queue", "mode", "rx_dropped", "rx_ring_full", "fill_ring_empty"}
    devices = {port["device"] for worker in stats["workers"] for port in worker["ports"]}
    assert devices == (set() if xdp == "off" else {"inner0", "outer0"})
    shown = bed.greyhound.ask("tunnel", "show").stdout
    assert all(word in shown for word in ("gre1", "10.9.0.1", "10.9.0.2", "42"))
    assert "gre1" in bed.greyhound.ask("stats").stdout


def test_inner_bytes_are_counted(single, xdp):
    """Counters count inner packets and inner bytes, each once."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.fence_inside()
    bed.fence_outside()
    before = bed.greyhound.tunnel()
    packets = [v4() for _ in range(50)]
    bed.send_inside(*packets)
    bed.outside.collect(lambda f: is_gre(f) and b"<greyhound " in f.original, 50)
    bed.send_outside(*(bed.around(back(packet)) for packet in packets))
    bed.inside.collect(lambda f: b"<greyhound " in f.original, 50)
    after = bed.greyhound.tunnel()
    counted = {way: [after[way][what] - before[way][what] for what in ("packets", "bytes")] for way in ("rx", "tx")}
    assert counted["rx"] == [50, 50 * len(packets[0])]
    # The kernel's own discovery on the tunnel device is counted, too.
    assert 50 <= counted["tx"][0] <= 60 and counted["tx"][1] >= 50 * len(packets[0])
