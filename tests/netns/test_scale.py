"""Tunnels by the thousand: all come up, carry, are changed one at a time, survive the process, and go together."""

from __future__ import annotations

import ipaddress
import json
import signal
import subprocess

from beds import Single, v4
from greyhound import binary
from topology import Bench, wait_until

TUNNELS = 2000
FIRST_REMOTE, FIRST_NET = ipaddress.ip_address("198.18.0.1"), ipaddress.ip_address("20.0.0.0")
LONG = 120.0
"""Seconds: a busy machine takes its time over thousands of devices."""


def net_of(n: int) -> str:
    """The network behind tunnel n."""
    return f"{FIRST_NET + 256 * n}/24"


def host_of(n: int) -> str:
    """A host behind tunnel n."""
    return str(FIRST_NET + 256 * n + 7)


def tunnels(count: int = TUNNELS) -> list[dict]:
    """Tunnels to as many routers behind the far one."""
    remotes = [str(FIRST_REMOTE + n) for n in range(count)]
    return [{"name": f"gre{n}", "mode": "gre", "local": Bench.LOCAL, "remote": remotes[n], "routes": [net_of(n)]}
            for n in range(count)]


def ask(bed: Single, *verb: str) -> str:
    """A verb that may take longer than one about a single tunnel."""
    done = subprocess.run([binary(), *verb, "--socket", str(bed.greyhound.socket)],
                          capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    return done.stdout


def states(bed: Single) -> dict[str, str]:
    """Every tunnel's state."""
    return {tunnel["name"]: tunnel["state"] for tunnel in json.loads(ask(bed, "tunnel", "show", "--json"))}


def all_up(bed: Single, count: int = TUNNELS) -> None:
    """Waits until there are so many tunnels, and all of them up."""

    def ready() -> bool:
        code = bed.greyhound.process.poll()
        assert code is None, f"greyhound ended with {code}"
        up = states(bed) if bed.greyhound.ask("tunnel", "show", "gre0", "--json", check=False).returncode == 0 else {}
        return len(up) == count and set(up.values()) == {"up"}

    wait_until(ready, f"{count} tunnels are up", LONG)


def carries(bed: Single, n: int, ttl: int = 64) -> None:
    """Tunnel n takes a packet there, and brings one back."""
    outer = bed.encapsulated(v4(dst=host_of(n), ttl=ttl))
    remote = str(FIRST_REMOTE + n)
    assert (outer.src, outer.dst) == (Bench.LOCAL, remote)
    bed.decapsulated(v4(src=host_of(n), dst="10.1.0.2"), outer={"src": remote})


def devices(bed: Single) -> dict[str, int]:
    """The tunnels' devices and their indexes, as the kernel has them."""
    links = json.loads(bed.router.run("ip", "-json", "link", "show").stdout)
    return {link["ifname"]: link["ifindex"] for link in links if link["ifname"].startswith("gre") and link["ifname"][3:].isdigit()}


def test_thousands_of_tunnels(single, xdp):
    """All up, the first and the last carry, one changed is one touched, a crash costs no device, a stop leaves none."""
    bed = single(xdp=xdp, start=False)
    bed.router.ip("route", "add", "198.18.0.0/15", "via", Bench.REMOTE)
    # An IPv6 address on each device would be the kernel's work, not the router's.
    bed.router.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    wanted = tunnels()
    bed.greyhound.configure(wanted, xdp=xdp)
    bed.greyhound.spawn()
    all_up(bed)
    first = devices(bed)
    assert len(first) == TUNNELS
    for n in (0, TUNNELS // 2, TUNNELS - 1):
        carries(bed, n)

    # One changed is one touched; a tenth goes and comes by one reload each.
    bed.greyhound.configure(wanted[:7] + [wanted[7] | {"ttl": 9}] + wanted[8:], xdp=xdp)
    done = json.loads(ask(bed, "reload", "--json"))
    assert [change["name"] for change in done["changed"]] == ["gre7"] and done["unchanged"] == TUNNELS - 1
    assert bed.encapsulated(v4(dst=host_of(7))).ttl == 9
    assert devices(bed) == first
    fewer = TUNNELS - TUNNELS // 10
    bed.greyhound.configure(wanted[:fewer], xdp=xdp)
    assert len(json.loads(ask(bed, "reload", "--json"))["removed"]) == TUNNELS // 10
    assert devices(bed) == {name: index for name, index in first.items() if int(name[3:]) < fewer}
    carries(bed, fewer - 1)
    bed.greyhound.configure(wanted, xdp=xdp)
    assert len(json.loads(ask(bed, "reload", "--json"))["added"]) == TUNNELS // 10
    all_up(bed)
    carries(bed, TUNNELS - 1)
    before = devices(bed)

    bed.greyhound.signal(signal.SIGKILL)
    bed.greyhound.spawn()
    all_up(bed)
    assert devices(bed) == before
    for n in (0, TUNNELS - 1):
        carries(bed, n)
    bed.greyhound.process.send_signal(signal.SIGTERM)
    assert bed.greyhound.process.wait(LONG) == 0
    assert devices(bed) == {}
    routes = bed.router.run("ip", "route", "show").stdout
    assert "gre" not in routes and "198.18.0.0/15" in routes


def test_a_bystander_s_devices_stay(single):
    """The devices that go together are the router's alone: others of the same kind stay, in their group and with their routes."""
    bed = single(start=False)
    bed.router.ip("route", "add", "198.18.0.0/15", "via", Bench.REMOTE)
    for n in range(12):
        bed.router.ip("tuntap", "add", f"other{n}", "mode", "tun")
        bed.router.ip("link", "set", f"other{n}", "group", "77", "up")
        bed.router.ip("route", "add", f"30.0.{n}.0/24", "dev", f"other{n}")
    bed.greyhound.configure(tunnels(40))
    bed.greyhound.spawn()
    all_up(bed, 40)
    # One that the operator has put into a group goes with the others.
    bed.router.ip("link", "set", "gre3", "group", "77")
    assert bed.greyhound.terminate() == 0
    assert devices(bed) == {}
    for n in range(12):
        assert bed.router.link(f"other{n}")["group"] == "77"
        assert f"dev other{n}" in bed.router.ip("route", "show", f"30.0.{n}.0/24")


def test_more_tunnels_than_open_files_are_refused(single):
    """A limit that is too low is said in one line, and nothing is made."""
    bed = single(start=False)
    bed.greyhound.configure(tunnels(300))
    # Without the capability that raises any limit.
    without = ["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"]
    command = bed.router.command(*without, "prlimit", "--nofile=500:500", binary(), "run", "--config", str(bed.greyhound.config_file))
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 1
    assert "300 tunnels need 556 open files and 500 are allowed" in done.stderr and "LimitNOFILE=556" in done.stderr
    assert devices(bed) == {}
