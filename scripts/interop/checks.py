"""What is judged of every tunnel. A check returns when all is well, raises AssertionError with what it saw, or NotApplicable."""

import re

from bed import DEVICE
from probes import Prober, traffic_class

# The slow path is not there for speed.
BYTES = {"auto": 20_000_000, "off": 5_000_000}
HEADERS = {4: 28, 6: 48}


class NotApplicable(Exception):
    """The tunnel has no such thing."""


def both(bed):
    return ((bed.a, bed.b), (bed.b, bed.a))


def ping(end, target, *options, count=3):
    """All of `count` echoes come back."""
    status, output = end.run(f"ping -n -c {count} -i 0.05 -W 3 {' '.join(options)} {target}", 30)
    assert status == 0 and " 0% packet loss" in output, f"ping {' '.join(options)} {target}: {' / '.join(output.splitlines()[1:])}"
    return output


def mtu_of(end):
    return int(end.router.must(f"cat /sys/class/net/{DEVICE}/mtu"))


def check_mtu(bed, tunnel, _):
    """Both ends come to the same MTU."""
    ours, kernels = mtu_of(bed.a), mtu_of(bed.b)
    assert ours == kernels, f"Greyhound's MTU is {ours}, the kernel's {kernels}"


def check_ping(bed, tunnel, _):
    for end, other in both(bed):
        for version in tunnel.kind.payloads:
            ping(end.host, other.inner[version])


def check_full(bed, tunnel, _):
    """As large as the tunnel carries whole, DF set."""
    for end, other in both(bed):
        for version in tunnel.kind.payloads:
            ping(end.host, other.inner[version], "-M do", f"-s {mtu_of(end) - HEADERS[version]}")


def check_fragments(bed, tunnel, _):
    """Larger than the tunnel carries. An IPv6 host fragments by itself, once either host has been told Packet Too Big."""
    for end, other in both(bed):
        for version in tunnel.kind.payloads:
            if version == 6:
                end.host.until(f"ping -n -c 1 -W 1 -s 4000 {other.inner[6]}")
            ping(end.host, other.inner[version], *(["-M dont"] if version == 4 else []), "-s 4000")


def check_too_big(bed, tunnel, _):
    """One byte more than the tunnel carries, DF set: the router says so to the host, with the tunnel's MTU."""
    for end, other in both(bed):
        for version in tunnel.kind.payloads:
            mtu = mtu_of(end)
            hear_of_mtu(end, other, version, mtu - HEADERS[version] + 1, mtu)
    forget(bed)


def hear_of_mtu(end, other, version, size, mtu):
    """The host's second word, if not its first: what teaches the router may be lost on the way."""
    ping_once = f"ping -n -c 1 -W 1 -M do -s {size} {other.inner[version]}"
    _, output = end.host.run(f"for n in 1 2 3; do {ping_once} | grep -i 'mtu' && break; done")
    said = set(re.findall(r"mtu ?[:=] ?(\d+)", output))
    assert said == {str(mtu)}, f"{end.name}, IPv{version}, {size} bytes: told {' '.join(said) or 'nothing'}, not {mtu}"


def forget(bed):
    for place in (bed.a.host, bed.b.host, bed.b.router):
        place.run("ip route flush cache; ip -6 route flush cache")


def check_path(bed, tunnel, _):
    """The underlay's path narrows to 1400: a packet lost on it lowers the tunnel's MTU, and the next one's sender is told."""
    version = tunnel.payload
    complaints = {}
    for end, other in both(bed):
        delivery = tunnel.kind.delivery
        route = f"ip -{delivery} route replace {other.outer[delivery]} dev {other.port}"
        bed.underlay.must(f"{route} mtu lock 1400")
        try:
            hear_of_mtu(end, other, version, mtu_of(end) - HEADERS[version], mtu_of(end) - 100)
        except AssertionError as why:
            complaints[end.name] = str(why)
        bed.underlay.must(route.replace("replace", "del"))
    forget(bed)
    assert not complaints, "; ".join(complaints.values())


def check_tcp(bed, tunnel, xdp):
    """Bytes arrive as they were sent, both ways."""
    version, size = tunnel.payload, BYTES[xdp]
    for end, other in both(bed):
        file = f"{end.files}/{size}"
        end.host.must(f"[ -s {file}.digest ] || (head -c {size} /dev/urandom >{file}; sha256sum <{file} >{file}.digest)", 60)
        sent = end.host.must(f"cat {file}.digest")
        port, got, never = bed.next_port(), f"{other.files}/got", f"{other.files}/never"
        # nc ends when its input does: this one never does.
        other.host.must(f"rm -f {got}; [ -p {never} ] || mkfifo {never};"
                        f"(timeout 90 busybox nc -l -p {port} <>{never} | sha256sum >{got}) >/dev/null 2>&1 &")
        other.host.until(f"grep -q ':{port:04X} .* 0A ' /proc/net/tcp /proc/net/tcp6")
        status, output = end.host.run(f"timeout 60 busybox nc {other.inner[version]} {port} <{file}", 70)
        assert status == 0, f"TCP from {end.name}'s host: {output.strip() or f'not through within a minute ({status})'}"
        digest = other.host.until(f"[ -s {got} ] && cat {got}", 60)
        assert digest == sent, f"TCP from {end.name}'s host: {size} bytes arrive with another digest"


def check_path_taken(bed, tunnel, xdp):
    """The bulk went by the fast path, or by none of it."""
    counted = next(t for t in bed.stats()["tunnels"] if t["name"] == DEVICE)
    for way in ("rx", "tx"):
        fast, slow = counted["fast"][f"{way}_packets"], counted["slow"][f"{way}_packets"]
        if xdp == "off":
            assert fast == 0 and slow > 100, f"{way}: {fast} fast, {slow} slow, with the fast path off"
        else:
            assert fast > max(100, 5 * slow), f"{way}: {fast} fast, {slow} slow"


def check_multicast(bed, tunnel, _):
    """A group that both routers are in: all-hosts, as a routing daemon's hello. No loopback: who answers is the other.

    With a TTL beyond the usual 1, which a tunnel that inherits it would take no further than the underlay's first router.
    """
    groups = {4: "224.0.0.1", 6: "ff02::1"}
    for end, _other in both(bed):
        for version in tunnel.kind.payloads:
            _, output = end.router.run(f"ping -n -c 3 -i 0.1 -W 2 -L -t 8 -I {DEVICE} {groups[version]}")
            answered = re.findall(r"bytes from ([0-9a-f.:]+).*icmp_seq=(\d)", output)
            assert len({number for _, number in answered}) == 3, (
                f"{end.name} to {groups[version]}: {len(answered)} of 3 answered: {' / '.join(output.splitlines())}")


def check_header(bed, tunnel, _):
    """TTL, TOS, DF, GRE flags, key, encapsulation limit: what the kernel writes for a packet is what Greyhound writes."""
    for tos in (0x00, 0xB8, 0xBA):
        seen = []
        for end in (bed.a, bed.b):
            with Prober(bed, tunnel, end) as prober:
                (reply,) = prober.ask({"inner_tos": tos, "outer_tos": 0})
                assert reply, f"{end.name}: no answer to a probe with TOS {tos:#x}"
                seen.append(reply.header() | {"inner tos": hex(traffic_class(reply.inner))})
        ours, kernels = seen
        assert ours == kernels, f"inner TOS {tos:#x}: " + ", ".join(
            f"{name} {ours.get(name)}, the kernel's {kernels.get(name)}" for name in kernels | ours if ours.get(name) != kernels.get(name))


def expect(bed, tunnel, probes, answered):
    """Sends the probes to either end; `answered` says for each whether its kernel answers, and Greyhound has to do the same."""
    complaints = []
    for end in (bed.a, bed.b):
        with Prober(bed, tunnel, end) as prober:
            replies = prober.ask(*probes(prober))
        got = [bool(reply) for reply in replies]
        if got != answered:
            complaints.append(f"{end.name} answers {got}, not {answered}")
    assert not complaints, "; ".join(complaints)


def check_ecn(bed, tunnel, _):
    """RFC 6040 on decapsulation: (outer, inner) to what the inner host sees, or None for a drop."""
    rows = [((3, 2), 3), ((3, 1), 3), ((3, 3), 3), ((3, 0), None), ((1, 2), 1), ((0, 2), 2), ((2, 0), 0), ((1, 0), 0)]
    complaints = []
    for end in (bed.a, bed.b):
        with Prober(bed, tunnel, end) as prober:
            replies = prober.ask(*({"outer_tos": outer, "inner_tos": inner} for (outer, inner), _ in rows))
        for ((outer, inner), wanted), reply in zip(rows, replies):
            seen = traffic_class(reply.inner) & 3 if reply else None
            if seen != wanted:
                complaints.append(f"{end.name}: ECN {outer:02b} around {inner:02b} gives {seen}, not {wanted}")
    assert not complaints, "; ".join(complaints)


def only_gre(tunnel):
    if not tunnel.kind.gre:
        raise NotApplicable


def check_key(bed, tunnel, _):
    """Another key, and none where there is one."""
    only_gre(tunnel)
    wrong = {"key_present": 1, "key": int(tunnel.options.get("key", 0)) + 1}
    missing = {"key": None} if "key" in tunnel.options else {"key_present": 1, "key": 0}
    expect(bed, tunnel, lambda _: [wrong, missing], [False, False])


def check_checksum(bed, tunnel, _):
    """A wrong one; none where there has to be one, and a wrong one where there is to be none."""
    only_gre(tunnel)
    if "csum" in tunnel.options:
        probes = [{"chksum": 0xBAD}, {"chksum_present": 0}]
    else:
        probes = [{"chksum_present": 1, "chksum": 0xBAD}, {"chksum_present": 1}]
    expect(bed, tunnel, lambda _: probes, [False, False])


def check_sequence(bed, tunnel, _):
    """A number once more, an older one, one after a gap; a number where none is asked for is not looked at."""
    only_gre(tunnel)
    if "seq" not in tunnel.options:
        twice = {"seqnum_present": 1, "seqence_number": 5}
        expect(bed, tunnel, lambda _: [twice, twice], [True, True])
        return

    def probes(prober):
        first = prober.sequence()
        gap = first + 10
        bed.sequence = gap
        return [{"sequence": n} for n in (first, first, first + 5, first + 2, gap)] + [{"seqnum_present": 0}]

    expect(bed, tunnel, probes, [True, False, True, False, True, False])


# In this order: with sequence numbers, probes put the ends ahead of each other, so that real traffic comes before them.
CHECKS = {
    "mtu": check_mtu,
    "ping": check_ping,
    "full": check_full,
    "frag": check_fragments,
    "big": check_too_big,
    "tcp": check_tcp,
    "fast": check_path_taken,
    "mcast": check_multicast,
    "pmtu": check_path,
    "head": check_header,
    "ecn": check_ecn,
    "key": check_key,
    "csum": check_checksum,
    "seq": check_sequence,
}
