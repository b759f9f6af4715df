#!/usr/bin/env python3
"""How fast is it, and how fast are others? `scripts/bench.sh` builds what it takes and calls it; see there."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import signal
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import svg  # noqa: E402
import table  # noqa: E402
from bed import ROOT, Bed, Trouble, run  # noqa: E402
from calm import calm  # noqa: E402
from contestants import DIRECTIONS, Bare, Contestant, Greyhound, KernelGre, Tc, Xdp  # noqa: E402
from measure import IMIX, saturate  # noqa: E402
from ovs import OpenVSwitch  # noqa: E402
from proof import prove  # noqa: E402

# Greyhound beside the forwarder that it is held against: the machine has least time to change between the two.
CONTESTANTS = (Greyhound, Bare, OpenVSwitch, Tc, KernelGre, Xdp)
SIZES = [64, 128, 256, 512, 1024, 1400, IMIX]
TRIES = 3
PARTS = ("rate", "calm")
CALM_ROUNDS = 3
UNKNOWN_TOP = 2e6
"""Packets a second: where the search for the rate without loss begins when the rate at saturation was not measured."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description="Measures Greyhound and others in turns, on the same two devices.")
    parser.add_argument("--only", metavar="NAME,…", help="of: " + " ".join(c.key for c in CONTESTANTS))
    parser.add_argument("--sizes", metavar="BYTES,…", help="lengths of the plain Ethernet frame (64 to 1400), or IMIX (default: all of the table)")
    parser.add_argument("--flows", type=int, default=256, help="how many flows (default 256)")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (default 5); 0 shows again what stands in the JSON file")
    parser.add_argument("--seconds", type=float, help="length of each measurement (default 1)")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="PART,…",
                        help="rate: at saturation; calm: without loss, how long packets are under way, at most 3 rounds (default both)")
    parser.add_argument("--quick", action="store_true", help="64 bytes and IMIX alone, two rounds of half a second")
    parser.add_argument("--json", metavar="FILE", help="write everything there")
    parser.add_argument("--svg", metavar="FILE", help="draw the rates there")
    parser.add_argument("--readme", metavar="FILE", help="replace the tables in that Markdown file, between its lines <!-- bench --> and <!-- /bench -->")
    parser.add_argument("--add", action="store_true", help="the rounds are added to those in the JSON file")
    links = parser.add_argument_group("real links (default: veth pairs)", "Four devices of this machine: source to in, out to sink. They are moved "
                                      "into namespaces meanwhile; they must have no addresses.")
    for end in ("source", "in", "out", "sink"):
        links.add_argument(f"--{end}", metavar="DEVICE")
    parser.add_argument("--dry", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds is None:
        args.rounds = 2 if args.quick else 5
    args.seconds = args.seconds or (0.5 if args.quick else 1.0)
    try:
        args.sizes = [s if s == IMIX else int(s) for s in args.sizes.split(",")] if args.sizes else [64, IMIX] if args.quick else SIZES
    except ValueError:
        parser.error(f"--sizes {args.sizes}: numbers of bytes, or {IMIX}")
    if any(s != IMIX and not 64 <= s <= 1400 for s in args.sizes):
        parser.error("--sizes: 64 to 1400 bytes")
    args.only = args.only.split(",") if args.only else [c.key for c in CONTESTANTS]
    for key in args.only:
        if key not in [c.key for c in CONTESTANTS]:
            parser.error(f"--only {key}: one of {' '.join(c.key for c in CONTESTANTS)}")
    args.parts = args.parts.split(",")
    if not set(args.parts) <= set(PARTS):
        parser.error(f"--parts: of {' '.join(PARTS)}")
    given = {end: vars(args)[end] for end in ("source", "in", "out", "sink")}
    args.given = given if any(given.values()) else None
    if args.given and not all(given.values()):
        parser.error("real links: all of --source, --in, --out, --sink")
    if (args.add or not args.rounds) and not args.json:
        parser.error("--add and --rounds 0: which --json?")
    return args


def machine() -> dict:
    """What it was measured on."""
    info = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    return {"cpu": fields.get("model name", platform.machine()), "cpus": os.cpu_count(), "mhz": float(fields.get("cpu MHz", 0)),
            "virtual": "hypervisor" in fields.get("flags", ""), "kernel": platform.release()}


def commit() -> str:
    done = run("git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "describe", "--always", "--dirty", check=False).strip()
    return done or "unknown"


def command(argv: list[str]) -> str:
    """How it was called, but for where the report goes."""
    files = ("--json", "--svg", "--readme")
    kept = [word for before, word in zip(["", *argv], argv) if word not in files and before not in files and not word.startswith(files)]
    return " ".join(["scripts/bench.sh", *kept])


class Bench:
    """A run: everything in turns, and what is kept of it."""

    def __init__(self, args: argparse.Namespace, bed: Bed):
        self.args, self.bed = args, bed
        self.report = {
            "machine": machine(), "commit": commit(), "date": datetime.date.today().isoformat(),
            "command": command(sys.argv[1:]),
            "devices": "given: " + " ".join(f"{e}={d}" for e, d in args.given.items()) if args.given else "veth pairs, one queue",
            "sizes": args.sizes, "flows": args.flows, "seconds": args.seconds, "rounds": 0,
            "imix": "frames of 64, 576 and 1400 bytes, 7:4:1",
            "contestants": [], "missing": {}, "results": [], "calm": [],
        }
        self.contestants: list[Contestant] = []
        if args.add and pathlib.Path(args.json).exists():
            self.go_on(json.loads(pathlib.Path(args.json).read_text(encoding="utf-8")))

    def go_on(self, earlier: dict) -> None:
        for what in ("commit", "devices", "sizes", "flows", "seconds"):
            if earlier[what] != self.report[what]:
                raise Trouble(f"{self.args.json}: {what} was {earlier[what]}, and is {self.report[what]}: its rounds cannot be added to")
        for what in ("cpu", "cpus", "kernel"):
            if earlier["machine"][what] != self.report["machine"][what]:
                raise Trouble(f"{self.args.json}: another machine: {what} was {earlier['machine'][what]}")
        self.report |= {what: earlier[what] for what in ("results", "rounds", "calm")}

    def choose(self) -> None:
        """Who can run here; why others cannot."""
        for kind in CONTESTANTS:
            contestant = kind(self.bed)
            reason = "not asked for (--only)" if kind.key not in self.args.only else contestant.missing()
            if reason:
                self.report["missing"][kind.key] = {"title": contestant.title, "reason": reason}
                print(f"    {contestant.title}: {reason}", flush=True)
            else:
                self.contestants.append(contestant)
                self.report["contestants"].append({"key": kind.key, "title": contestant.title, "cores": contestant.cores, "gre": kind.gre})
        if not self.contestants:
            raise Trouble("nobody is left to be measured")

    def prove(self) -> None:
        """Each does the whole work: one packet each way, judged byte by byte."""
        for contestant in self.contestants:
            for direction in DIRECTIONS:
                prove(self.bed, contestant, direction)
            print(f"    {contestant.title}: its packets are right ({contestant.cores})", flush=True)

    def measure(self) -> None:
        if "rate" in self.args.parts:
            self.measure_rate()
        if "calm" in self.args.parts:
            for _ in range(min(self.args.rounds, CALM_ROUNDS)):
                for direction in DIRECTIONS:
                    for contestant in self.contestants:
                        self.turn_calm(contestant, direction)
                save(self.args, self.report)

    def turn_calm(self, contestant: Contestant, direction: str) -> None:
        rates = [row["median_pps"] for row in table.summary(self.report)
                 if (row["contestant"], row["direction"], row["size"]) == (contestant.key, direction, 64)]
        top = rates[0] if rates else UNKNOWN_TOP
        done = self.patiently(lambda: calm(self.bed, contestant, direction, self.args.flows, self.args.seconds, top))
        self.report["calm"].append(done)
        delays = done["delay_ns"]
        print(f"    {direction} 64 B  {contestant.key:<9}  without loss {done['lossless_pps'] / 1e6:.2f} Mpps; at half of it p50 "
              f"{delays['p50'] / 1e3:.1f} µs, p99 {delays['p99'] / 1e3:.1f} µs; from idle {done['idle_delay_ns']['p50'] / 1e3:.1f} µs", flush=True)

    def measure_rate(self) -> None:
        for _ in range(self.args.rounds):
            number = self.report["rounds"]
            for direction in DIRECTIONS:
                for size in self.args.sizes:
                    self.turn(number, direction, size)
            self.report["rounds"] += 1
            save(self.args, self.report)

    def turn(self, number: int, direction: str, size: int | str) -> None:
        """Everybody once, one after another; who begins changes from round to round."""
        first = number % len(self.contestants)
        words = []
        for contestant in self.contestants[first:] + self.contestants[:first]:
            result = self.patiently(lambda c=contestant: saturate(self.bed, c, direction, size, self.args.flows, self.args.seconds))
            self.report["results"].append({"round": number, **result})
            words.append(f"{contestant.key} {result['pps'] / 1e6:.2f}")
        label = size if size == IMIX else f"{size} B"
        print(f"    round {number + 1}  {direction} {label:<7} Mpps  {'  '.join(words)}", flush=True)

    def patiently(self, measure):
        """A machine that others use too spoils a measurement now and then: it is tried once more before the run is given up."""
        for left in reversed(range(TRIES)):
            try:
                return measure()
            except Trouble as trouble:
                if not left:
                    raise
                print(f"    again: {trouble}", flush=True)
        raise AssertionError("no try is left")


def save(args: argparse.Namespace, report: dict) -> None:
    """Writes the files that were asked for."""
    report["summary"], report["calm_summary"] = table.summary(report), table.calm_summary(report)
    if args.json:
        pathlib.Path(args.json).write_text(as_json(report), encoding="utf-8")
    if args.svg and report["results"]:
        pathlib.Path(args.svg).write_text(svg.chart(report), encoding="utf-8")
    if args.readme:
        table.put_into(pathlib.Path(args.readme), report)


def as_json(report: dict) -> str:
    """A line for each entry of a list: a run's differences can be read."""
    parts = []
    for name, value in report.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = "[\n  " + ",\n  ".join(json.dumps(one) for one in value) + "\n ]"
        else:
            value = json.dumps(value)
        parts.append(f" {json.dumps(name)}: {value}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    args = arguments()
    if args.dry:
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    if not args.rounds:
        report = json.loads(pathlib.Path(args.json).read_text(encoding="utf-8"))
        save(args, report)
        print("\n".join(table.text(report)))
        return
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="greyhound-bench-")))
        bench = Bench(args, stack.enter_context(Bed(directory, args.given)))
        bench.choose()
        bench.prove()
        bench.measure()
    print("\n".join(table.text(bench.report)))


if __name__ == "__main__":
    try:
        main()
    except Trouble as trouble:
        sys.exit(f"error: {trouble}; nothing is reported")
    except KeyboardInterrupt:
        sys.exit(130)
