"""Runs the table of tunnels, prints the table of results. Started by interop.sh, in the underlay's namespace."""

import argparse
import signal
import sys
import time

import checks
import headers
from bed import Bed
from checks import NotApplicable
from places import Failed, Gone, NoMachine
from table import TUNNELS, rows
from tunnels import Tunnel

CHECKS = checks.CHECKS | headers.CHECKS
COLOURS = {"ok": "\033[32m", "ok*": "\033[32m", "FAIL": "\033[31m"}
COUNTED = {"ok": "passed", "ok*": "passed", "FAIL": "failed", "skipped": "skipped"}


# As automake's and meson's test harnesses have it.
NOTHING_TRIED = 77


class OutOfTime(Exception):
    """The whole run has taken as long as it may."""


def arguments():
    parser = argparse.ArgumentParser()
    for name in ("name", "dir", "greyhound", "cache", "peer", "xdp", "only"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--limit", type=int, required=True)
    return parser.parse_args()


class Results:
    """Cells as they come, and their sum."""

    def __init__(self):
        self.count = {"passed": 0, "failed": 0, "skipped": 0}
        self.notes = []
        self.differences = {}

    def note(self, outcome, where, why):
        self.count[COUNTED[outcome]] += 1
        if outcome == "ok*":
            self.differences.setdefault(why, []).append(where)
        elif why:
            self.notes.append(f"{outcome}: {where}: {why}")

    def cell(self, where, column, outcome, why=""):
        if outcome in COUNTED:
            self.note(outcome, f"{where}, {column}", why)
        word = outcome.ljust(6)
        if sys.stdout.isatty() and outcome in COLOURS:
            word = f"{COLOURS[outcome]}{word}\033[0m"
        print(word, end="", flush=True)

    def judge(self, where, column, check):
        try:
            difference = self.twice(where, column, check)
            self.cell(where, column, "ok*" if difference else "ok", difference)
        except NotApplicable:
            self.cell(where, column, "-")
        except (AssertionError, Failed, OSError) as why:
            self.cell(where, column, "FAIL", str(why))

    def twice(self, where, column, check):
        """An emulated machine on a busy one loses packets: what was lost once is asked for once more, and that is said."""
        try:
            return check()
        except (AssertionError, Failed, OSError) as why:
            first = str(why)
        difference = check()
        self.notes.append(f"at the second try: {where}, {column}: {first}")
        return difference

    def summary(self):
        for difference, where in self.differences.items():
            yield f"* {difference}: {len(where)} cells, first {where[0]}"
        yield from self.notes


def run_tunnel(bed, tunnel, xdp, results):
    where = f"{tunnel.line}, xdp {xdp}"
    refusal = bed.refusal(tunnel, xdp)
    if refusal:
        print("not available in this version")
        results.note("skipped", where, "not available in this version")
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


def run_table(bed, options, results, done):
    kernel = bed.b.router.must("uname -r")
    width = max(len(line) for line in TUNNELS) + 2
    print(f"Greyhound against Linux {kernel} ({'a virtual machine' if options.peer == 'guest' else 'this host'})")
    for xdp, lines in rows(options.xdp, options.only):
        print(f"\n{f'xdp = {xdp}'.ljust(width)}" + "".join(name.ljust(6) for name in CHECKS))
        for line in lines:
            print(line.ljust(width), end="", flush=True)
            run_tunnel(bed, Tunnel(line), xdp, results)
            done.add((xdp, line))


def out_of_time(*_):
    raise OutOfTime


def skip_the_rest(options, results, done, why):
    for xdp, lines in rows(options.xdp, options.only):
        for line in lines:
            if (xdp, line) not in done:
                results.note("skipped", f"{line}, xdp {xdp}", why)


def main():
    options = arguments()
    began = time.monotonic()
    results, bed, done = Results(), None, set()
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(options.limit)
    try:
        bed = Bed(options)
        run_table(bed, options, results, done)
    except OutOfTime:
        print()
        skip_the_rest(options, results, done, f"not done within {options.limit} s")
    except NoMachine as why:
        skip_the_rest(options, results, done, str(why))
    except (Failed, Gone) as why:
        results.note("FAIL", "the bed", str(why))
    finally:
        signal.alarm(0)
        if bed:
            bed.close()
    print("", *results.summary(), "", f"{time.monotonic() - began:.0f} s", sep="\n")
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**results.count))
    if results.count["failed"]:
        return 1
    return 0 if results.count["passed"] else NOTHING_TRIED


if __name__ == "__main__":
    sys.exit(main())
