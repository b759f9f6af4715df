"""Boots the virtual machine, runs one test of tests/guest in it, and passes on its output and its exit status."""

import argparse
import shlex
import sys

from places import Gone, NoMachine, boot

NOTHING_TRIED = 77
# In MiB; the files are in it too.
MEMORY = 1024
# Two network cards on one wire, eth0 and eth1: such as leave VLAN tags where they are, in the frame.
CARDS = [word for n in (0, 1)
         for word in ("-netdev", f"hubport,id=card{n},hubid=0", "-device", f"virtio-net-pci,netdev=card{n},romfile=")]


def arguments():
    parser = argparse.ArgumentParser()
    for name in ("dir", "cache"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    return parser.parse_args()


def main():
    options = arguments()
    test, *words = options.words
    try:
        machine, guest = boot(options.dir, options.cache, CARDS, MEMORY)
    except NoMachine as why:
        print(f"    skipped: {test}: {why}\n0 passed, 0 failed, 1 skipped")
        return NOTHING_TRIED
    try:
        command = shlex.join(["/usr/bin/python3", f"/greyhound/tests/guest/{test}", *words])
        guest.show = True
        status, _ = guest.run(f"export PYTHONDONTWRITEBYTECODE=1; exec {command}", options.limit)
        if status == 137:
            print(f"{test}: not done within {options.limit} s")
        return status
    except Gone as why:
        print(f"{test}: {why}")
        return 1
    finally:
        machine.kill()
        machine.wait()


if __name__ == "__main__":
    sys.exit(main())
