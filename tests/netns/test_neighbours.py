"""Neighbours that only the fast path sends to: the kernel is told that they are in use, while they are."""

from __future__ import annotations

import json
import subprocess
import threading
import time

from beds import Single, back, v4, v6
from topology import wait_until


def quick(bed: Single) -> None:
    """Entries that grow old in seconds: 1.5 to 4.5, and always later than a probe counts as use."""
    for device in ("inner0", "outer0"):
        for family in ("ipv4", "ipv6"):
            for key, value in (("base_reachable_time_ms", 3000), ("delay_first_probe_time", 1), ("gc_stale_time", 2)):
                bed.router.sysctl(f"net.{family}.neigh.{device}.{key}", value)


class States:
    """Every state that the router's neighbours have been seen in, by address, while it watches."""

    def __init__(self, bed: Single):
        self.process = subprocess.Popen(bed.router.command("ip", "-o", "monitor", "neigh"), stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)

    def of(self, address: str) -> set[str]:
        words = (line.split() for line in list(self.lines))
        return {line[-1] for line in words if address in line}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()


def nud(bed: Single, device: str, address: str) -> str:
    found = json.loads(bed.router.ip("-j", "neigh", "show", "dev", device, "to", address) or "[]")
    return found[0]["state"][0] if found else "NONE"


def test_who_is_sent_to_stays_reachable_and_who_is_not_grows_old(single):
    """A host behind the decapsulated side and the outer next hop, which the kernel itself never sends to."""
    bed = single(start=False)
    quick(bed)
    bed.greyhound.start()
    bed.warm()
    hosts = {"10.1.0.2": back(v4()), "fd01::2": back(v6())}
    states = States(bed)
    try:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            for inner in hosts.values():
                bed.send_outside(bed.around(inner))
            bed.send_inside(v4())
            time.sleep(0.1)
        for address in (*hosts, "10.9.0.2"):
            seen = states.of(address)
            # It was asked, more than once, and answered in time.
            assert "REACHABLE" in seen and not seen & {"STALE", "FAILED"}, (address, seen, states.lines)
        # Nobody sends any more: nobody keeps them.
        for device, address in (("inner0", "10.1.0.2"), ("inner0", "fd01::2")):
            wait_until(lambda d=device, a=address: nud(bed, d, a) in ("STALE", "NONE"), f"{address} grows old")
        count = len(states.lines)
        time.sleep(3)
        later = states.lines[count:]
        assert not [line for line in later if line.split()[-1] in ("DELAY", "PROBE") and "10.1.0.2" in line], later
    finally:
        states.close()
