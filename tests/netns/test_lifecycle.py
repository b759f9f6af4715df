"""Start, stop, refusal: what the router leaves behind, and what it never touches."""

from __future__ import annotations

import os
import signal
import stat
import subprocess

import pytest

from beds import back, v4
from greyhound import binary
from topology import DEADLINE, Bench, veth, wait_until
from wire import forwarded, ip_bytes

STOPS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}


@pytest.mark.parametrize("name", STOPS)
def test_orderly_stop(single, xdp, name):
    """Exit code 0, and everything it made is gone: devices, routes, socket, XDP programs, rules."""
    bed = single(xdp=xdp, start=False)
    devices, rules = bed.router.devices(), bed.router.ip("rule")
    routes = bed.router.ip("route") + bed.router.ip("-6", "route")
    bed.greyhound.start()
    bed.warm()
    assert bed.router.devices() > devices
    assert bed.greyhound.signal(STOPS[name]) == 0
    assert bed.router.devices() == devices
    assert (bed.router.ip("rule"), bed.router.ip("route") + bed.router.ip("-6", "route")) == (rules, routes)
    assert not any("xdp" in bed.router.link(device) for device in ("inner0", "outer0"))
    assert not bed.greyhound.socket.exists()


def test_stop_and_start(single, xdp):
    """What was stopped starts again, and works."""
    bed = single(xdp=xdp)
    for _ in range(3):
        bed.decapsulated(back(v4()))
        assert bed.greyhound.terminate() == 0
        bed.greyhound.start()
        packet = v4()
        assert ip_bytes(bed.encapsulated(packet)["GRE"].payload) == forwarded(packet)


def test_stop_before_it_is_ready(single):
    """A signal during the start is an orderly stop, too."""
    bed = single(start=False)
    devices = bed.router.devices()
    bed.greyhound.spawn()
    wait_until(lambda: bed.router.link("gre1") or bed.greyhound.process.poll() is not None, "gre1 is there")
    assert bed.greyhound.terminate() == 0
    assert bed.router.devices() == devices


def test_control_socket_mode(single):
    """Owner and group may talk to the router, nobody else."""
    bed = single()
    assert stat.S_IMODE(os.stat(bed.greyhound.socket).st_mode) == 0o660


def test_second_start_is_refused(single, xdp, tmp_path):
    """A second router on the same control socket exits 1 with one line; the first is not disturbed."""
    bed = single(xdp=xdp)
    bed.warm()
    second = subprocess.run(
        bed.router.command(binary(), "run", "--config", str(bed.greyhound.config_file)),
        capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL,
    )
    assert second.returncode == 1 and str(bed.greyhound.socket) in second.stderr
    packet = v4()
    assert ip_bytes(bed.encapsulated(packet)["GRE"].payload) == forwarded(packet)
    assert bed.greyhound.stats()["tunnels"][0]["state"] == "up"
    assert bed.greyhound.terminate() == 0


def test_nobody_there(tmp_path):
    """Without a router, every question is refused with one clear line that names the socket."""
    path = tmp_path / "none.sock"
    for verb in (["stats"], ["stats", "--json"], ["tunnel", "show"]):
        done = subprocess.run([binary(), *verb, "--socket", str(path)], capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 1 and not done.stdout
        assert str(path) in done.stderr and len(done.stderr.strip().splitlines()) == 1


GOOD = """
[router]
underlay = ["outer0"]
overlay = ["inner0"]
control = "{socket}"

[[tunnel]]
name = "gre1"
mode = "gre"
local = "10.9.0.1"
remote = "10.9.0.2"
"""
# What is changed in the good configuration, and words that the message must have.
BROKEN = {
    "unknown key": ("mode = \"gre\"", "mode = \"gre\"\ncolour = 3", ["colour"]),
    "unknown mode": ("mode = \"gre\"", "mode = \"gretel\"", ["gretel", "gre"]),
    "wrong type": ("local = \"10.9.0.1\"", "local = 10", ["local"]),
    "not an address": ("10.9.0.2", "10.9.0.256", ["10.9.0.256"]),
    "key too large": ("mode = \"gre\"", "mode = \"gre\"\nkey = 4294967296", ["key"]),
    "ttl 0": ("mode = \"gre\"", "mode = \"gre\"\nttl = 0", ["ttl"]),
    "name too long": ("gre1", "a-name-of-16-let", ["a-name-of-16-let"]),
    "no such device": ("outer0", "outer9", ["outer9"]),
    "mtu above the underlay's": (
        "mode = \"gre\"", "mode = \"gre\"\nmtu = 1477", ["1477 is above", "1476 = 1500 of outer0 - 20 IPv4 - 4 GRE"],
    ),
    "not TOML": ("[router]", "[router", []),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_configuration(single, case):
    """Refused by `run` before anything is touched, and by `check`; the message names what is wrong and where."""
    old, new, words = BROKEN[case]
    bed = single(start=False)
    devices = bed.router.devices()
    bed.greyhound.config_file.write_text(GOOD.format(socket=bed.greyhound.socket).replace(old, new, 1))
    for verb in ("run", "check"):
        done = subprocess.run(
            bed.router.command(binary(), verb, "--config", str(bed.greyhound.config_file)),
            capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL,
        )
        assert done.returncode in (1, 2), done
        said = done.stderr + done.stdout
        assert all(word in said for word in words), said
        if verb == "run" and case not in ("no such device", "mtu above the underlay's"):
            assert bed.greyhound.config_file.name in said and "panicked" not in said
        assert bed.router.devices() == devices and not bed.greyhound.socket.exists()
        assert not any("xdp" in bed.router.link(device) for device in ("inner0", "outer0"))


def test_check_finds_a_fit_host(single):
    """`check` on the test bed, with nothing running: a table, exit code 0; and as JSON."""
    bed = single(start=False)
    command = bed.router.command(binary(), "check", "--config", str(bed.greyhound.config_file))
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    bed.router.sysctl("net.ipv4.ip_forward", 0)
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1 and "ip_forward" in done.stdout + done.stderr


def test_a_device_vanishes(single, xdp):
    """An underlay device that is removed and made again: the router survives, and carries again."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.router.ip("link", "del", "outer0")
    wait_until(lambda: bed.router.link("outer0") is None, "outer0 is gone")
    assert bed.greyhound.stats()
    assert bed.greyhound.process.poll() is None
    veth(bed.far, "f0", bed.router, "outer0")
    bed.router.ip("link", "set", "outer0", "address", Bench.OUTER_MAC)
    bed.far.ip("link", "set", "f0", "address", Bench.FAR_MAC)
    bed.router.ip("address", "add", "10.9.0.1/24", "dev", "outer0")
    bed.far.ip("address", "add", "10.9.0.2/24", "dev", "f0")
    bed.outside.close()
    bed.outside = type(bed.outside)(bed.far, "f0")

    def through() -> bool:
        bed.send_inside(v4())
        return any(frame.haslayer("GRE") for frame in bed.outside.drain())

    wait_until(through, "the tunnel carries again")
    assert bed.greyhound.terminate() == 0
