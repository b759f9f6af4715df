"""One measurement: so many packets of one size through one contestant."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import time

from bed import PATIENCE, ROOT, SOURCE_CPU, Bed, Trouble, end, wait_until
from contestants import ENCAPSULATE, GRE_OVER_IPV4, Contestant

EXAMPLES = ROOT / "target/release/examples"
IMIX = "IMIX"
IMIX_MEAN = (7 * 64 + 4 * 576 + 1400) / 12
WARMUP = 0.5
SURPLUS = 1.05
"""The source has to send so much more than arrives, or it is what was measured."""


def facts(line: str) -> dict[str, int]:
    """A line "name number name number …"."""
    words = line.split()
    return {name: int(float(value)) for name, value in zip(words[::2], words[1::2])}


class Sink:
    """Counts what arrives."""

    def __init__(self, bed: Bed, stamp_at: int | None = None):
        options = ["--stamp-at", str(stamp_at)] if stamp_at else []
        self.bed = bed
        self.process = bed.start("sink", str(EXAMPLES / "count"), bed.device["sink"], "--cpu", str(SOURCE_CPU), *options,
                                 name="sink", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.read()

    def read(self) -> dict[str, int]:
        """Packets and bytes so far, and the time."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Trouble(f"the sink: {self.bed.said('sink')}")
        return facts(line)

    def settled(self) -> dict[str, int]:
        """What had arrived when nothing came any more."""
        last = self.read()
        while True:
            time.sleep(0.1)
            now = self.read()
            if now["packets"] == last["packets"]:
                return now
            last = now

    def close(self) -> dict[str, int]:
        """How long packets were under way, if they said when they were sent."""
        self.process.stdin.close()
        said = self.process.stdout.read()
        self.process.wait(PATIENCE)
        return facts(said)


class Source:
    """Makes packets for a direction."""

    def __init__(self, bed: Bed, direction: str, size: int | str, flows: int):
        self.bed = bed
        inner = ("10.1.0.2", "10.2.0.2") if direction == ENCAPSULATE else ("10.2.0.2", "10.3.0.2")
        self.options = ["--to-mac", bed.mac("in"), "--src", inner[0], "--dst", inner[1], "--flows", str(flows)]
        self.options += ["--imix"] if size == IMIX else ["--size", str(size)]
        self.options += ["--cpu", str(SOURCE_CPU), "--from-mac", bed.mac("source")]
        if direction != ENCAPSULATE:
            self.options += ["--gre", f"198.51.100.2,{Bed.IN}"]
        self.processes: list[subprocess.Popen] = []

    def start(self, *options: str) -> None:
        self.processes.append(self.bed.start("source", str(EXAMPLES / "blast"), self.bed.device["source"], *self.options, *options,
                                             name=f"source{len(self.processes)}", stdout=subprocess.PIPE))

    def ended(self) -> list[dict[str, int]]:
        """Waits until all have ended: what each made, and how fast."""
        said = []
        for n, process in enumerate(self.processes):
            said.append(facts(process.communicate()[0]))
            if process.returncode != 0:
                raise Trouble(f"the source: {self.bed.said(f'source{n}')}")
        self.processes = []
        return said

    def sent(self) -> int:
        """Waits until all have ended: how many packets they made."""
        return sum(one["sent"] for one in self.ended())

    def stop(self) -> None:
        for process in self.processes:
            end(process)


@contextlib.contextmanager
def running(contestant: Contestant, direction: str):
    """The contestant, up; and down again whatever happens."""
    try:
        contestant.start(direction)
        yield
    finally:
        contestant.stop()


def cpu_times(pid: int | None) -> tuple[int, int]:
    """User and system time of a process with all its threads so far, in nanoseconds."""
    if pid is None:
        return 0, 0
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return int(fields[11]) * tick, int(fields[12]) * tick


def frame_arriving(contestant: Contestant, direction: str, size: int | str) -> float:
    """How long a frame is at the far end, in bytes."""
    plain = IMIX_MEAN if size == IMIX else size
    into = direction == ENCAPSULATE
    return plain + GRE_OVER_IPV4 * (into if contestant.gre else not into)


def check_length(contestant: Contestant, direction: str, size: int | str, total: dict) -> None:
    """Proof that the packets were encapsulated, or were not."""
    mean, wanted = total["bytes"] / total["packets"], frame_arriving(contestant, direction, size)
    if abs(mean - wanted) > (0.02 * wanted if size == IMIX else 0):
        raise Trouble(f"{contestant.title}, {direction}, {size}: frames of {mean:.2f} bytes arrived, not of {wanted:g}")


class Ledger:
    """Where the frames are that the source has made; the drivers of a veth's two ends count every one of them."""

    def __init__(self, bed: Bed):
        self.bed = bed
        self.before = self.read()

    def read(self) -> dict[str, int]:
        source, inside = self.bed.counters("source"), self.bed.counters("in")
        total = lambda counters, end: sum(n for name, n in counters.items() if name.startswith(("rx_", "tx_")) and name.endswith(end))  # noqa: E731
        return {
            "refused": total(source, "_xdp_xmit_errors"),
            "entered": total(inside, "_xdp_packets"),
            "no_room": total(inside, "_drops") - total(inside, "_xdp_drops"),
            "lost_behind": self.bed.statistic("out", "tx_dropped"),
        }

    def close(self, sent: int, arrived: int) -> dict[str, int]:
        """
        The account of one measurement, in frames:

        sent = refused (the source's device had no room) + entered (the contestant's device took them);
        entered = arrived + lost (by the contestant, "no_room" of it before an AF_XDP ring).
        """
        after = self.read()
        frames = {name: after[name] - n for name, n in self.before.items()}
        if self.bed.given and not frames["entered"]:
            # Not a veth: every driver has names of its own.
            return {"sent": sent, "arrived": arrived}
        frames |= {"sent": sent, "arrived": arrived, "lost": frames["entered"] - arrived}
        if frames.pop("lost_behind"):
            raise Trouble(f"packets were lost between {self.bed.device['out']} and the sink")
        if sent != frames["refused"] + frames["entered"]:
            raise Trouble(f"packets were lost before they came in: {frames}")
        if frames["lost"] < frames["no_room"]:
            raise Trouble(f"more packets arrived than came in: {frames}")
        return frames


def saturate(bed: Bed, contestant: Contestant, direction: str, size: int | str, flows: int, seconds: float) -> dict:
    """The source sends more than anybody can take: what arrives is the rate."""
    with running(contestant, direction):
        ledger, sink, source = Ledger(bed), Sink(bed), Source(bed, direction, size, flows)
        try:
            # Two, because each waits for the kernel's grace periods between its calls; the other fills the gaps.
            for _ in range(2):
                source.start("--seconds", f"{WARMUP + seconds + 0.2:.2f}")
            wait_until(lambda: sink.read()["packets"] > 0, f"a packet that went through {contestant.title} ({direction}, {size})")
            time.sleep(WARMUP)
            first, cpu = sink.read(), cpu_times(contestant.pid())
            time.sleep(seconds)
            last, cpu_after = sink.read(), cpu_times(contestant.pid())
            sent = source.sent()
            total = sink.settled()
        finally:
            source.stop()
            sink.close()
        said = contestant.facts(direction)
        frames = ledger.close(sent, total["packets"])
    check_length(contestant, direction, size, total)
    if sent < SURPLUS * total["packets"]:
        raise Trouble(f"{contestant.title}, {direction}, {size}: the source was the bottleneck: {sent} sent, {total['packets']} arrived")
    window, packets = (last["ns"] - first["ns"]) / 1e9, last["packets"] - first["packets"]
    return {
        "contestant": contestant.key, "direction": direction, "size": size, "pps": packets / window,
        "user_share": (cpu_after[0] - cpu[0]) / 1e9 / window, "system_share": (cpu_after[1] - cpu[1]) / 1e9 / window,
        "frames": frames, **said,
    }
