"""Below saturation: the rate without loss, how long packets are under way at half of it, and after idle."""

from __future__ import annotations

import pathlib
import time

from bed import Bed, Trouble
from contestants import ENCAPSULATE, GRE_OVER_IPV4, Contestant
from measure import Sink, Source, running

SIZE = 64
PAYLOAD_AT = 42
"""Where the UDP payload begins in a frame without a tunnel: the time of sending stands there."""
STEPS = 6
"""The rate without loss is found to 1/64 of what was tried first."""
TRIES = 2
IDLE_PACKETS, IDLE_GAP_MS = 50, 20


class Calm:
    """A contestant that is up, in one direction."""

    def __init__(self, bed: Bed, contestant: Contestant, direction: str, flows: int, seconds: float):
        self.bed, self.contestant, self.direction = bed, contestant, direction
        self.flows, self.seconds = flows, seconds
        self.stamp_at = PAYLOAD_AT + GRE_OVER_IPV4 * ((direction == ENCAPSULATE) == contestant.gre)

    def send(self, *options: str) -> dict:
        """What was sent, what arrived, how fast and how late."""
        sink, source = Sink(self.bed, self.stamp_at), Source(self.bed, self.direction, SIZE, self.flows)
        try:
            source.start("--stamp", *options)
            [sent] = source.ended()
            arrived = sink.settled()["packets"]
        finally:
            source.stop()
            delays = sink.close()
        return {**sent, "arrived": arrived, "delays": delays}

    def paced(self, rate: float) -> dict:
        return self.send("--rate", str(int(rate)), "--seconds", f"{self.seconds:.2f}")

    def without_loss(self, rate: float) -> dict | None:
        """The best of a few tries: what somebody else does on this machine costs packets too."""
        for _ in range(TRIES):
            done = self.paced(rate)
            if done["arrived"] == done["sent"]:
                return done
        return None

    def search(self, top: float) -> tuple[float, dict]:
        """The highest rate of which nothing was lost, as it was asked for and as it was; binary, from `top` down."""
        done = self.without_loss(top)
        if done:
            return top, done
        low, high, best = 0.0, top, None
        for _ in range(STEPS):
            rate = (low + high) / 2
            done = self.without_loss(rate)
            if done:
                low, best = rate, done
            else:
                high = rate
        if best is None:
            raise Trouble(f"{self.contestant.title}, {self.direction}: packets were lost even at {high:.0f} a second")
        return low, best

    def idle_share(self) -> float | None:
        """The share of a CPU that the process takes when nothing comes."""
        pid = self.contestant.pid()
        if pid is None:
            return None
        before, start = cpu_ns(pid), time.monotonic_ns()
        time.sleep(self.seconds)
        return (cpu_ns(pid) - before) / (time.monotonic_ns() - start)


def calm(bed: Bed, contestant: Contestant, direction: str, flows: int, seconds: float, top: float) -> dict:
    """One measurement; `top` is what the contestant takes at saturation, in packets a second."""
    with running(contestant, direction):
        one = Calm(bed, contestant, direction, flows, seconds)
        asked, best = one.search(top)
        half = one.paced(asked / 2)
        idle = one.send("--count", str(IDLE_PACKETS), "--gap", str(IDLE_GAP_MS), "--seconds", "60")
        if idle["arrived"] != IDLE_PACKETS:
            raise Trouble(f"{contestant.title}, {direction}: of {IDLE_PACKETS} single packets {idle['arrived']} arrived")
        share = one.idle_share()
    return {
        "contestant": contestant.key, "direction": direction, "size": SIZE,
        # The source paused between its calls: what it sent in all its time, not what it was asked for.
        "lossless_pps": best["pps"], "frames": {"sent": best["sent"], "arrived": best["arrived"]}, "all_of_top": asked == top,
        "half_pps": half["pps"], "delay_ns": half["delays"], "idle_delay_ns": idle["delays"], "idle_share": share,
    }


def cpu_ns(pid: int) -> int:
    """Time on the CPU of all threads of a process so far."""
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in pathlib.Path(f"/proc/{pid}/task").iterdir())
