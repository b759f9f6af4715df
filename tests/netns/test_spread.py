"""Two queues, and all tunnel packets by one of them: the flows inside are spread over both workers."""

from __future__ import annotations

import collections
import contextlib
import threading

import pytest

from beds import v4
from test_books import balanced, worker_books
from test_takeover import takeover
from topology import Bench, wait_until
from wire import UDP, Ether, carries

FLOWS, EACH = 40, 25
MARK = b"<spread "


def numbered(bed, flow: int, n: int) -> bytes:
    """Packet `n` of a flow out of the tunnel, as a frame of the far end's."""
    inner = v4(MARK + f"{flow:05d} {n:08d}>".encode(), src="10.2.0.2", dst="10.1.0.2")
    inner[UDP].sport = 5000 + flow
    return bytes(Ether(src=Bench.FAR_MAC, dst=Bench.OUTER_MAC) / bed.around(inner))


def told(frame) -> tuple[int, int]:
    """Flow and number of a packet that has come out."""
    flow, n = bytes(frame[UDP].payload)[len(MARK):-1].split()
    return int(flow), int(n)


def by_flow(frames) -> dict[int, list[int]]:
    """The numbers of each flow, in the order in which they came."""
    flows = collections.defaultdict(list)
    for flow, n in map(told, frames):
        flows[flow].append(n)
    return flows


class Flows:
    """Numbered packets of many flows, out of the tunnel, until the end of the block."""

    def __init__(self, bed, pause: float = 0.0005):
        self.bed, self.pause, self.rounds = bed, pause, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            for flow in range(8):
                self.bed.outside.send(numbered(self.bed, flow, self.rounds))
                self._stop.wait(self.pause)
            self.rounds += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def two_queues(single, **router):
    """A bed whose router has two workers."""
    bed = single(queues=2, tunnel={"ttl": 64}, **router)
    bed.warm()
    assert len(bed.greyhound.stats()["workers"]) == 2
    return bed


def moved(bed) -> list[int]:
    """What each worker has passed on to the other."""
    return [worker["spread_out"] for worker in bed.greyhound.stats()["workers"]]


def test_flows_are_carried_by_both_each_in_its_order(single):
    """Every packet once, in order within its flow, and the books of both workers add up."""
    bed = two_queues(single, spread=True)
    frames = [numbered(bed, flow, n) for n in range(EACH) for flow in range(FLOWS)]
    before = bed.greyhound.stats()["workers"]
    bed.outside.send(*frames)
    came = bed.inside.collect(carries(MARK), len(frames), "packets of the flows")
    assert by_flow(came) == {flow: list(range(EACH)) for flow in range(FLOWS)}
    stats = balanced(bed)
    assert stats["spread"] is True and not stats["drops"]
    tx = [now["tx_packets"] - then["tx_packets"] for now, then in zip(stats["workers"], before)]
    assert min(tx) > len(frames) / 10 and sum(tx) >= len(frames), tx
    first, second = stats["workers"]
    assert first["rx_packets"] - before[0]["rx_packets"] >= len(frames), "all came by the first queue"
    assert first["spread_out"] == second["spread_in"] > len(frames) / 10
    table = bed.greyhound.ask("stats").stdout
    assert "spread out" in table and f" {first['spread_out']} " in table


@pytest.mark.parametrize("options", [{"spread": False}, {}, {"spread": True, "key": 7, "seq": True}],
                         ids=["off", "auto, little to do", "sequence numbers"])
def test_what_is_not_spread_stays(single, options):
    """Switched off, without need, or told by its order: the worker that receives it carries it."""
    tunnel = {key: options[key] for key in ("key", "seq") if key in options}
    router = {key: options[key] for key in ("spread",) if key in options}
    bed = single(queues=2, tunnel=tunnel, **router)
    bed.warm()
    bed.outside.send(*(numbered(bed, flow, n) for n in range(5) for flow in range(FLOWS)))
    came = bed.inside.collect(carries(MARK), 5 * FLOWS, "packets of the flows")
    assert [told(frame) for frame in came] == [(flow, n) for n in range(5) for flow in range(FLOWS)]
    assert sum(worker["spread_out"] for worker in balanced(bed)["workers"]) == 0


def all_came(bed, flows: Flows) -> None:
    """Nothing is missing and nothing came twice. What the kernel carries meanwhile may be overtaken."""
    came = bed.inside.collect(carries(MARK), 8 * flows.rounds, "packets of the flows")
    for flow, numbers in by_flow(came).items():
        assert sorted(numbers) == list(range(flows.rounds)), f"flow {flow}"


def test_a_reload_loses_nothing_that_is_on_its_way_to_another_worker(single):
    """The workers end and others start, and what one had given the other is carried and counted."""
    bed = two_queues(single, spread=True)
    with Flows(bed) as flows:
        wait_until(lambda: sum(moved(bed)) > 100, "flows are spread")
        for spread in (False, True):
            bed.greyhound.configure([bed.tunnel], spread=spread)
            bed.greyhound.ask("reload")
            rounds = flows.rounds
            wait_until(lambda: flows.rounds > rounds + 20, "the flows go on")
            assert bed.greyhound.stats()["spread"] is spread
    all_came(bed, flows)
    stats = balanced(bed)
    assert sum(worker["spread_out"] for worker in stats["ended"]) > 100 and not stats["drops"]


def test_a_takeover_loses_nothing_that_is_on_its_way_to_another_worker(single):
    """The next process spreads them as the first did."""
    bed = two_queues(single, spread=True)
    with Flows(bed) as flows:
        wait_until(lambda: sum(moved(bed)) > 100, "flows are spread")
        takeover(bed)
        wait_until(lambda: sum(moved(bed)) > 100, "flows are spread by the next process")
    all_came(bed, flows)
    assert not worker_books(bed.greyhound.stats())


def test_auto_relieves_the_one_queue(single):
    """Many packets by one queue, for some seconds: flows are spread, and the log says why."""
    bed = two_queues(single)
    frames = [numbered(bed, flow, 0) for flow in range(8)] * 64
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            bed.outside.send(*frames)

    thread = threading.Thread(target=flood)
    thread.start()
    with contextlib.ExitStack() as stack:
        stack.callback(thread.join)
        stack.callback(stop.set)
        wait_until(lambda: bed.greyhound.stats()["spread"], "flows are spread", 40)
        wait_until(lambda: sum(moved(bed)) > 1000, "the other worker has its share")
    assert "tunnel packets come by queue 0 alone: spread over 2 workers" in bed.greyhound.log()
    balanced(bed)
