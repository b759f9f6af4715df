"""What traffic through the tunnel is judged by. A check returns when all is well; what it returns is the name of a known
difference. Else it raises AssertionError with what it saw, or NotApplicable."""

import re

from bed import BYTES, UNDERLAY
from tunnels import DEVICE, IPV6_MIN

ALL_HOSTS = {4: "224.0.0.1", 6: "ff02::1"}
HEADERS = {4: 28, 6: 48}


class NotApplicable(Exception):
    """The tunnel has no such thing."""


def both(bed):
    return ((bed.a, bed.b), (bed.b, bed.a))


def together(commands):
    """One shell command that runs all of them at the same time: a virtual machine without KVM is slow to start each."""
    return " ".join(f"{command} 2>&1 &" for command in commands) + " wait"


def ping(place, targets, count=3):
    """All of `count` echoes come back from each target, a line of ping's options and an address."""
    # All at once, and no more of them while there is time: with -W, ping would wait for two round trips at most.
    _, output = place.run(together(f"ping -n -c {count} -l {count} -i 20 -w 10 {target}" for target in targets), 30)
    assert output.count(" 0% packet loss") == len(targets), f"ping {', '.join(targets)}: {' / '.join(output.splitlines())}"


def check_mtu(bed, tunnel, _):
    """Both ends come to the same MTU."""
    ours, kernels = bed.a.mtu, bed.b.mtu
    if ours == IPV6_MIN > kernels:
        return "below 1280 a device of the kernel's loses IPv6, Greyhound's stays at 1280 and keeps it (RFC 8200)"
    assert ours == kernels, f"Greyhound's MTU is {ours}, the kernel's {kernels}"
    return None


def check_ping(bed, tunnel, _):
    for end, other in both(bed):
        ping(end.host, [other.inner[version] for version in tunnel.payloads])


def check_full(bed, tunnel, _):
    """As large as the tunnel carries whole, DF set."""
    for end, other in both(bed):
        ping(end.host, [f"-M do -s {end.whole - HEADERS[version]} {other.inner[version]}" for version in tunnel.payloads])


def check_fragments(bed, tunnel, _):
    """Larger than the tunnel carries. An IPv6 host fragments by itself, once either host has been told Packet Too Big."""
    for end, other in both(bed):
        size = 2 * end.whole + 1000
        options = {4: f"-M dont -s {size}", 6: f"-s {size}"}
        if 6 in tunnel.payloads:
            end.host.until(f"ping -n -c 1 -W 0.3 {options[6]} {other.inner[6]}")
        ping(end.host, [f"{options[version]} {other.inner[version]}" for version in tunnel.payloads])


def only_routed(tunnel):
    """Frames have no router between the hosts that would say anything."""
    if tunnel.bridge:
        raise NotApplicable


def check_too_big(bed, tunnel, _):
    """One byte more than the tunnel carries, DF set: the router says so to the host, with the tunnel's MTU."""
    only_routed(tunnel)
    for end, other in both(bed):
        hear_of_mtu(end, other, tunnel.payloads, end.whole + 1, end.whole)


def hear_of_mtu(end, other, versions, size, mtu):
    """The answer to a packet that is too big: not always to the first, which may be lost on the way and teach the router."""
    once = "ping -n -c 1 -W 0.3 -M do -s {} {} 2>&1 | grep -i -m 1 mtu"
    tries = [once.format(size - HEADERS[version], other.inner[version]) for version in versions]
    _, output = end.host.run(together(f"{{ for n in 1 2 3 4; do {command} && break; done; }}" for command in tries))
    said = re.findall(r"mtu ?[:=] ?(\d+)", output)
    assert said == [str(mtu)] * len(versions), f"{end.name}, {size} bytes: told {' and '.join(said) or 'nothing'}, not {mtu}"


def check_path(bed, tunnel, _):
    """The underlay's path narrows by 100: a packet lost on it lowers the tunnel's MTU, and the next one's sender is told.

    Without DF outside, the underlay fragments instead. Errors about multicast there are none (RFC 1122 section 3.2.2).
    """
    only_routed(tunnel)
    if tunnel.mtu or tunnel.group:
        raise NotApplicable
    complaints = {}
    whole = [version for version in tunnel.payloads if tunnel.leaves_df(version)]
    told = [version for version in tunnel.payloads if version not in whole]
    for end, other in both(bed):
        delivery = tunnel.kind.delivery
        route = f"ip -{delivery} route replace {other.outer[delivery]} dev {UNDERLAY}"
        bed.underlay.must(f"{route} mtu lock {tunnel.wan - 100}")
        try:
            if whole:
                ping(end.host, [f"-M do -s {end.whole - HEADERS[version]} {other.inner[version]}" for version in whole])
            if told:
                hear_of_mtu(end, other, told, end.whole, end.whole - 100)
        except AssertionError as why:
            complaints[end.name] = str(why)
        bed.underlay.must(route.replace("replace", "del"))
    # An ICMPv6 error about UDP finds no tunnel: __udp6_lib_err() looks for a socket, and fou's has no encap_err_lookup.
    known = {bed.b.name} if tunnel.kind.delivery == 6 and "encap" in tunnel.options else set()
    assert complaints.keys() <= known, "; ".join(complaints.values())
    return "the kernel does not learn the path's MTU for GRE in UDP over IPv6" if complaints else None


def check_tcp(bed, tunnel, _):
    """Bytes arrive as they were sent, both ways."""
    version = tunnel.payload
    for end, other in both(bed):
        file, port, got, never = f"{end.files}/sent", bed.next_port(), f"{other.files}/got", f"{other.files}/never"
        # nc ends when its input does: this one never does.
        other.host.must(f"rm -f {got}; [ -p {never} ] || mkfifo {never};"
                        f"(timeout 60 busybox nc -l -p {port} <>{never} | md5sum >{got}) >/dev/null 2>&1 &")
        other.host.until(f"grep -q ':{port:04X} .* 0A ' /proc/net/tcp /proc/net/tcp6")
        status, output = end.host.run(f"timeout 30 busybox nc {other.inner[version]} {port} <{file}", 40)
        assert status == 0, f"TCP from {end.name}'s host: {output.strip() or f'not through within half a minute ({status})'}"
        digest = other.host.until(f"[ -s {got} ] && cat {got}", 30)
        assert digest == end.digest, f"TCP from {end.name}'s host: {BYTES} bytes arrive with another digest"


def check_path_taken(bed, tunnel, xdp):
    """The bulk went by the fast path, or by none of it; an Ethernet tunnel that is not bridged takes the slow one."""
    counted = next(t for t in bed.stats()["tunnels"] if t["name"] == DEVICE)
    for way in ("rx", "tx"):
        fast, slow = counted["fast"][f"{way}_packets"], counted["slow"][f"{way}_packets"]
        if tunnel.kind.layer2 and not tunnel.bridge and xdp != "off":
            # A worker numbers its packets where there are numbers.
            assert fast + slow > 100, f"{way}: {fast} fast, {slow} slow"
        elif xdp == "off":
            assert fast == 0 and slow > 100, f"{way}: {fast} fast, {slow} slow, with the fast path off"
        else:
            assert fast > max(100, 5 * slow), f"{way}: {fast} fast, {slow} slow"


def check_multicast(bed, tunnel, _):
    """A group that both are in: all-hosts, as a routing daemon's hello. No loopback: who answers is the other.

    With a TTL beyond the usual 1, which a tunnel that inherits it would take no further than the underlay's first router.
    """
    if tunnel.many == "via":
        raise NotApplicable
    for end, _other in both(bed):
        if tunnel.bridge:
            ping(end.host, [f"-L -t 8 -I eth0 -I {end.inner[version]} {ALL_HOSTS[version]}" for version in tunnel.payloads])
            continue
        if tunnel.many == "neigh" and end is bed.b:
            # The kernel sends it to 224.0.0.1 of the underlay: arp_mc_map() of a tunnel's device.
            continue
        # By its tunnel address: among several peers nobody knows who has a link-local one.
        ping(end.router, [f"-L -t 8 -I {DEVICE} -I {end.tunnel[version]} {ALL_HOSTS[version]}" for version in tunnel.payloads])


def check_many(bed, tunnel, _):
    """The second peer gets what is for it, and of multicast as much as the first."""
    if tunnel.many != "peers":
        raise NotApplicable
    version, second = tunnel.payload, bed.b.second
    ping(bed.a.host, [second.tunnel[version]])
    before = received(bed)
    ping(bed.a.router, [f"-L -t 8 -I {DEVICE} -I {bed.a.tunnel[version]} {ALL_HOSTS[version]}"])
    got = [now - earlier for now, earlier in zip(received(bed), before)]
    assert before[1] >= 3 and min(got) >= 3, f"the second got {before[1]} of 3 packets, and of 3 to all {got}"


def received(bed):
    """Packets that the kernel's tunnels have received so far, the first's and the second's."""
    lines = bed.b.router.must("cat /proc/net/dev").splitlines()
    counts = {name.strip(): int(numbers.split()[1]) for name, _, numbers in (line.partition(":") for line in lines) if numbers}
    return counts[DEVICE], counts[f"{DEVICE}b"]


def check_expired(bed, tunnel, _):
    """The inner TTL ends at the far router: it says so through the tunnel, by its tunnel address, as a traceroute shows.

    Where the tunnel inherits the TTL, the outer packet ends one router earlier.
    """
    only_routed(tunnel)
    if tunnel.kind.delivery == 4 and tunnel.options.get("ttl", "inherit") == "inherit":
        raise NotApplicable
    for end, other in both(bed):
        _, output = end.host.run(together(f"ping -n -c 1 -W 2 -t 2 {other.inner[version]}" for version in tunnel.payloads))
        said = set(re.findall(r"From ([0-9a-f.:]+?):? icmp_seq=\d Time (?:to live )?exceeded", output))
        wanted = {other.tunnel[version] for version in tunnel.payloads}
        assert said == wanted, f"{other.name}: {said or 'nobody'} says time exceeded, not {wanted}"


def check_keepalive(bed, tunnel, _):
    """The kernel sends our keepalives back while it takes packets with its own address as source, and no longer."""
    if not tunnel.keepalive:
        raise NotApplicable
    switch = f"/proc/sys/net/ipv4/conf/{DEVICE}/accept_local"
    counted = next(t for t in bed.stats()["tunnels"] if t["name"] == DEVICE)["keepalive"]
    assert counted["received"] > 0, f"no keepalive came back: {counted}"
    show = f"{bed.greyhound} tunnel show --socket {bed.dir}/control.sock"
    bed.b.router.must(f"echo 0 >{switch}")
    bed.a.router.until(f"{show} | grep 'state no-keepalive' && ip link show {DEVICE} | grep NO-CARRIER")
    bed.b.router.must(f"echo 1 >{switch}")
    bed.a.router.until(f"{show} | grep 'state up' && ! ip link show {DEVICE} | grep NO-CARRIER")


CHECKS = {
    "mtu": check_mtu,
    "ping": check_ping,
    "full": check_full,
    "frag": check_fragments,
    "big": check_too_big,
    "tcp": check_tcp,
    "fast": check_path_taken,
    "mcast": check_multicast,
    "many": check_many,
    "hops": check_expired,
    "keep": check_keepalive,
    "pmtu": check_path,
}
