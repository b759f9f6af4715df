#!/usr/bin/env python3
"""What restarts, crashes and reloads lose of a steady flow. `scripts/takeover.sh` calls it; see there."""

import argparse
import contextlib
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "netns"))
from greyhound import Greyhound, binary, config  # noqa: E402
from topology import Bench, wait_until  # noqa: E402

FLOW = str(ROOT / "target" / "release" / "examples" / "flow")
TUNNEL = {"name": "gre1", "mode": "gre", "local": Bench.LOCAL, "remote": Bench.REMOTE, "routes": ["10.2.0.0/16"]}
# So long the flow goes on around and between the restarts.
CALM = 1.5
# So long a restart, or a hundred reloads, may take.
LONGEST = 1.5


class Restarts:
    """One router, and what happens to it."""

    def __init__(self, bed: Bench, directory: pathlib.Path):
        self.bed = bed
        self.router = Greyhound(bed.router, directory)
        self.router.configure([TUNNEL])
        self.start()

    def start(self, *options: str) -> None:
        already = self.router.log().count("ready")
        with self.router.log_file.open("a", encoding="utf-8") as log:
            command = [binary(), "run", *options, "--config", str(self.router.config_file)]
            self.router.process = subprocess.Popen(self.bed.router.command(*command), stdout=log, stderr=log)
        wait_until(lambda: self.router.log().count("ready") > already, "the router is ready")

    def takeover(self) -> None:
        before = self.router.process
        self.start("--takeover")
        before.wait()

    def crash(self) -> None:
        self.router.kill()
        self.start()

    def reload(self) -> None:
        """Another tunnel comes, changes and goes: a hundred reloads."""
        other = {"name": "gre2", "mode": "gre", "local": Bench.LOCAL, "remote": "10.9.0.77", "key": 7}
        with self.router.connected() as ask:
            for n in range(100):
                others = ([], [other], [other | {"key": 8}])[n % 3]
                self.router.config_file.write_text(config(self.router.socket, [TUNNEL, *others]), encoding="utf-8")
                if "ok" not in (answer := ask({"verb": "reload"})):
                    sys.exit(f"reload: {answer}")

    def nothing(self) -> None:
        """For comparison."""

    def close(self) -> None:
        if self.router.process and self.router.process.poll() is None:
            self.router.process.send_signal(signal.SIGTERM)
            self.router.process.wait()


def words(line: str) -> dict[str, float]:
    """`name number name number …`"""
    parts = line.split()
    return {name: float(value) for name, value in zip(parts[::2], parts[1::2])}


def measure(bed: Bench, restarts: Restarts, what: str, inwards: bool, options: argparse.Namespace) -> None:
    """One flow over some restarts, and one line about it."""
    seconds = (CALM + LONGEST) * options.times + CALM
    if inwards:
        source, sink = (bed.far, "f0"), (bed.host, "h0")
        packet = ["--to-mac", Bench.OUTER_MAC, "--gre", f"{Bench.REMOTE},{Bench.LOCAL}", "--src", "10.2.0.2", "--dst", "10.1.0.2"]
    else:
        source, sink = (bed.host, "h0"), (bed.far, "f0")
        packet = ["--to-mac", Bench.INNER_MAC, "--src", "10.1.0.2", "--dst", "10.2.0.2"]
    hearing = subprocess.Popen(sink[0].command(FLOW, sink[1], "--hear", "--seconds", str(seconds + 2)), stdout=subprocess.PIPE, text=True)
    time.sleep(0.5)
    sending = subprocess.Popen(source[0].command(FLOW, source[1], "--rate", str(options.rate), "--seconds", str(seconds), *packet),
                               stdout=subprocess.PIPE, text=True)
    for _ in range(options.times):
        time.sleep(CALM)
        getattr(restarts, what)()
    sent, heard = words(sending.communicate()[0]), words(hearing.communicate()[0])
    lost = int(sent["sent"] - heard["heard"])
    way = "decapsulation" if inwards else "encapsulation"
    print(f"    {f'{options.times} x {what}, {way}':<30} sent {int(sent['sent']):>9}  lost {lost:>7}  in a row {int(heard['in_a_row']):>6}  "
          f"reordered {int(heard['reordered']):>5}  gap {heard['gap_ms']:>7.1f} ms  source's pause {sent['pause_ms']:>6.1f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--what", default="nothing,takeover,crash,reload")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        bed = stack.enter_context(Bench())
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="greyhound-takeover-")))
        restarts = stack.enter_context(contextlib.closing(Restarts(bed, directory)))
        # Both neighbours are known before the first packet.
        bed.router.run("ping", "-c", "1", Bench.REMOTE)
        bed.router.run("ping", "-c", "1", "10.1.0.2")
        for what in options.what.split(","):
            for inwards in (False, True):
                measure(bed, restarts, what, inwards, options)


if __name__ == "__main__":
    main()
