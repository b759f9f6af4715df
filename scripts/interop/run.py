"""Runs the table of tunnels, prints the table of results. Started by interop.sh, in the underlay's namespace."""

import argparse
import sys
import time

from bed import Bed
from checks import CHECKS, NotApplicable
from places import Failed, Gone
from table import SLOW, TUNNELS, Tunnel

WIDTH = 40
COLOURS = {"ok": "\033[32m", "FAIL": "\033[31m"}


def arguments():
    parser = argparse.ArgumentParser()
    for name in ("name", "dir", "greyhound", "cache", "peer", "xdp", "only"):
        parser.add_argument(f"--{name}", required=True)
    return parser.parse_args()


class Results:
    """Cells as they come, and their sum."""

    def __init__(self):
        self.count = {"passed": 0, "failed": 0, "skipped": 0}
        self.notes = []

    def cell(self, where, column, outcome, why=""):
        if outcome in ("ok", "FAIL"):
            self.count[{"ok": "passed", "FAIL": "failed"}[outcome]] += 1
        if why:
            self.notes.append(f"{outcome}: {where}, {column}: {why}")
        word = outcome.ljust(6)
        if sys.stdout.isatty() and outcome in COLOURS:
            word = f"{COLOURS[outcome]}{word}\033[0m"
        print(word, end="", flush=True)

    def judge(self, where, column, check):
        try:
            check()
            self.cell(where, column, "ok")
        except NotApplicable:
            self.cell(where, column, "-")
        except (AssertionError, Failed, OSError) as why:
            self.cell(where, column, "FAIL", str(why))


def run_tunnel(bed, tunnel, xdp, results):
    where = f"{tunnel.line}, xdp {xdp}"
    print(tunnel.line.ljust(WIDTH), end="", flush=True)
    refusal = bed.refusal(tunnel, xdp)
    if refusal:
        print("not available in this version")
        results.count["skipped"] += 1
        return
    try:
        bed.up(tunnel, xdp)
        for column, check in CHECKS.items():
            results.judge(where, column, lambda check=check: check(bed, tunnel, xdp))
    except Failed as why:
        results.cell(where, "up", "FAIL", f"{why}; Greyhound's last words: {bed.last_words()}")
    finally:
        bed.down()
    print()


def run_table(bed, options, results):
    kernel = bed.b.router.must("uname -r")
    print(f"Greyhound against Linux {kernel} ({'a virtual machine' if options.peer == 'guest' else 'this host'})")
    for xdp in ("auto", "off") if options.xdp == "both" else (options.xdp,):
        print(f"\n{f'xdp = {xdp}'.ljust(WIDTH)}" + "".join(name.ljust(6) for name in CHECKS))
        for line in SLOW if xdp == "off" and options.xdp == "both" else TUNNELS:
            if options.only in line:
                run_tunnel(bed, Tunnel(line), xdp, results)


def main():
    options = arguments()
    began = time.monotonic()
    results, bed = Results(), None
    try:
        bed = Bed(options)
        run_table(bed, options, results)
    except (Failed, Gone) as why:
        results.count["failed"] += 1
        results.notes.append(f"error: {why}")
    finally:
        if bed:
            bed.close()
    if results.notes:
        print()
    for note in results.notes:
        print(note)
    print(f"\n{time.monotonic() - began:.0f} s")
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**results.count))
    return 1 if results.count["failed"] or not sum(results.count.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
