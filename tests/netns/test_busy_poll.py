"""busy_poll: workers poll their devices and never sleep."""

from __future__ import annotations

from beds import back, v4
from test_books import balanced
from test_takeover import Flow, goes_on, takeover
from topology import wait_until


def polls(bed) -> list[dict | None]:
    """What each socket says of its busy polling."""
    return [port.get("busy_poll") for worker in bed.greyhound.stats()["workers"] for port in worker["ports"]]


def test_traffic_flows_and_the_sockets_say_that_they_poll(single):
    """Both ways, through sockets whose options the kernel confirms; whether it knows a veth's NAPI depends on its version."""
    bed = single(busy_poll=True)
    bed.warm()
    for _ in range(20):
        bed.encapsulated(v4())
        bed.decapsulated(back(v4()))
    stats = balanced(bed)
    (worker,) = stats["workers"]
    for port in worker["ports"]:
        napi = port["busy_poll"]["napi"]
        assert port["busy_poll"] == {"microseconds": 20, "budget": 64, "napi": napi}
    turns = worker["turns"]
    wait_until(lambda: bed.greyhound.stats()["workers"][0]["turns"] > turns + 10_000, "it goes round without packets")
    text = bed.greyhound.ask("stats").stdout
    for port in worker["ports"]:
        napi = port["busy_poll"]["napi"]
        what = f"NAPI {napi}" if napi else "but the kernel does not know the device's NAPI: only the rings are polled"
        assert f"worker 0: {port['device']} queue 0: busy polling, {what}\n" in text


def test_it_comes_and_goes_with_a_reload(single):
    """Off by default; a reload replaces the sockets."""
    bed = single()
    bed.warm()
    assert polls(bed) == [None, None] and "busy polling" not in bed.greyhound.ask("stats").stdout
    for on in (True, False):
        bed.greyhound.configure([bed.tunnel], busy_poll=on)
        bed.greyhound.ask("reload")
        assert [poll is not None for poll in polls(bed)] == [on, on]
        bed.warm()


def test_a_takeover_and_the_end(single):
    """A worker that never sleeps rests all the same, which a takeover waits for; nothing is lost, and it ends."""
    bed = single(busy_poll=True)
    bed.warm()
    with Flow(bed) as flow:
        wait_until(lambda: flow.sent > 100, "the flow is under way")
        takeover(bed)
        goes_on(bed)
    flow.arrived()
    assert polls(bed) != [None, None]
    assert bed.greyhound.terminate() == 0
