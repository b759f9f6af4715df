#!/usr/bin/python3
"""Counts the instructions that a packet takes in a worker's turn, in memory, and compares them with what is kept.

usage: scripts/instructions.py [--renew] [CASE ...]

The count is callgrind's, of benches/forward.rs in the release profile: the same packets each time, 16,384 of them less 8,192,
so that nothing of the start is in it. More than 5 % above what benches/instructions.json has ends with status 1; where
that was counted with another compiler, nothing is compared and the status is 77. --renew writes the file anew.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEPT = ROOT / "benches" / "instructions.json"
PACKETS = 8192
GROWTH = 1.05


def built():
    """The benchmark's path."""
    command = ["cargo", "bench", "--locked", "--bench", "forward", "--no-run", "--message-format", "json", "--target-dir", "target"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    for message in map(json.loads, lines):
        if message.get("executable") and message["target"]["name"] == "forward":
            return message["executable"]
    sys.exit("cargo names no benchmark")


def collected(bench, case, packets, place):
    command = ["valgrind", "--tool=callgrind", "--toggle-collect=*bed::Bed::turns*", f"--callgrind-out-file={place}/out",
               bench, "--count", case, str(packets)]
    said = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
    return int(re.search(r"Collected : (\d+)", said).group(1))


def main():
    words = sys.argv[1:]
    if "-h" in words or "--help" in words:
        sys.exit(__doc__)
    renew = "--renew" in words
    if not shutil.which("valgrind"):
        print("skipped: no valgrind")
        sys.exit(77)
    bench = built()
    compiler = subprocess.run(["rustc", "-V"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"compiler": None, "instructions": {}}
    cases = subprocess.run([bench, "--counted"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    cases = [word for word in words if not word.startswith("-")] or cases
    found, grown = {}, []
    with tempfile.TemporaryDirectory() as place:
        for case in cases:
            more, less = (collected(bench, case, n * PACKETS, place) for n in (2, 1))
            found[case] = round((more - less) / PACKETS, 1)
            before = kept["instructions"].get(case)
            print(f"{case:<26}{found[case]:>8}   kept: {before}", flush=True)
            if before and found[case] > before * GROWTH:
                grown.append(case)
    if renew:
        KEPT.write_text(json.dumps({"compiler": compiler, "instructions": found}, indent=2) + "\n")
    elif kept["compiler"] != compiler:
        print(f"skipped: counted with {kept['compiler']}, this is {compiler}")
        sys.exit(77)
    elif grown:
        sys.exit(f"more than 5 % above what is kept: {', '.join(grown)}")


main()
