"""What is judged of a tunnel packet by packet: the headers that the ends write, and what they refuse.

Where Greyhound does by an RFC what the kernel does not, the check knows both, and returns the difference's name.
"""

from concurrent.futures import ThreadPoolExecutor

from checks import NotApplicable
from probes import Prober, traffic_class

CE = 3


def ask_both(bed, tunnel, probes):
    """Both ends' answers to what `probes` makes for each, at the same time: Greyhound's, then the kernel's."""
    def ask(end):
        with Prober(bed, tunnel, end) as prober:
            return prober.ask(*probes(prober))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(ask, (bed.a, bed.b)))


def check_header(bed, tunnel, _):
    """TTL, TOS, DF, GRE flags, key, encapsulation limit: what the kernel writes for a packet is what Greyhound writes."""
    marks = (0x00, 0xB8, 0xB9, 0xBA, 0xBB)
    differences = set()
    for inner_tos, *replies in zip(marks, *ask_both(bed, tunnel, lambda _: [{"inner_tos": tos} for tos in marks])):
        for end, reply in zip((bed.a, bed.b), replies):
            assert reply, f"{end.name}: no answer to a probe with TOS {inner_tos:#x}"
            if tunnel.kind.gre:
                wanted = {name: tunnel.expects(name, end is bed.a) for name in ("key", "csum", "seq")}
                assert reply.gre_is(**wanted, nvgre=tunnel.nvgre), f"{end.name}: GRE header {bytes(reply.gre)[:16].hex()}, not one with {wanted}"
        ours, kernels = ({"inner tos": traffic_class(reply.inner), **reply.header(tunnel)} for reply in replies)
        differences |= traffic_class_differences(inner_tos & 3, ours, kernels)
        different = {name: (ours.get(name), kernels.get(name)) for name in kernels | ours if ours.get(name) != kernels.get(name)}
        assert not different, f"inner TOS {inner_tos:#x}: " + ", ".join(
            f"{name} {values[0]}, the kernel's {values[1]}" for name, values in different.items())
    return "; ".join(sorted(differences))


def traffic_class_differences(ecn, ours, kernels):
    """RFC 6040 section 4.1: the outer ECN field is the inner one. Takes what is known to differ out of the comparison."""
    assert ours["tos"] & 3 == ecn, f"Greyhound marks a packet with ECN {ecn:02b} as {ours['tos'] & 3:02b} outside"
    kernel_ecn = kernels["tos"] & 3
    if kernel_ecn == ecn:
        return set()
    # INET_ECN_encapsulate() resets a mark to ECT(0); ip6gre does not look at the mark unless it inherits all of the class.
    if ecn == CE and kernel_ecn == 2:
        name = "the kernel marks CE as ECT(0) outside, Greyhound as CE (RFC 6040)"
    elif kernel_ecn == 0:
        name = "the kernel leaves out the ECN mark outside, Greyhound copies it (RFC 6040)"
    else:
        return set()
    kernels["tos"] = kernels["tos"] & ~3 | ecn
    return {name}


def check_ecn(bed, tunnel, _):
    """RFC 6040 on decapsulation: (outer, inner) to what the inner host sees, or None for a drop."""
    rows = [((3, 2), 3), ((3, 1), 3), ((3, 3), 3), ((3, 0), None), ((1, 2), 1), ((0, 2), 2), ((2, 0), 0), ((1, 0), 0)]
    complaints = []
    answers = ask_both(bed, tunnel, lambda _: [{"outer_tos": outer, "inner_tos": inner} for (outer, inner), _ in rows])
    for end, replies in zip((bed.a, bed.b), answers):
        for ((outer, inner), wanted), reply in zip(rows, replies):
            seen = traffic_class(reply.inner) & 3 if reply else None
            if seen != wanted:
                complaints.append(f"{end.name}: ECN {outer:02b} around {inner:02b} gives {seen}, not {wanted}")
    assert not complaints, "; ".join(complaints)


def only_gre(tunnel):
    if not tunnel.kind.gre:
        raise NotApplicable


def expect(bed, tunnel, probes, answered, known=None):
    """`answered` says for each of the probes whether it comes through. `known`: what the kernel may do instead, and its name."""
    ours, kernels = (tuple(bool(reply) for reply in replies) for replies in ask_both(bed, tunnel, probes))
    assert ours == answered, f"Greyhound answers {ours}, not {answered}"
    name = (known or {}).get(kernels)
    assert kernels == answered or name, f"the kernel answers {kernels}, not {answered}"
    return name


def check_key(bed, tunnel, _):
    """Another key, and none where there is one."""
    only_gre(tunnel)
    if tunnel.nvgre:
        # The kernel's device for any flow is one for any key.
        raise NotApplicable

    def probes(prober):
        key = prober.expects("key")
        wrong = {"key_present": 1, "key": (int(key or 0) + 1) % 2**32}
        return [wrong, {"key_present": 0, "key": None} if key else {"key_present": 1, "key": 0}]

    # ip6gre_tunnel_lookup() compares the key alone, not whether there is one.
    return expect(bed, tunnel, probes, (False, False), {
        (False, True): "the kernel's ip6gre without a key takes packets with key 0, Greyhound does not (RFC 2890)"})


def check_checksum(bed, tunnel, _):
    """A wrong one; none where there has to be one, and a right one where there is to be none."""
    only_gre(tunnel)

    def probes(prober):
        present = 1 if prober.expects("csum") else 0
        return [{"chksum_present": 1, "chksum": 0xBAD}, {"chksum_present": 1 - present}]

    return expect(bed, tunnel, probes, (False, False))


def check_sequence(bed, tunnel, _):
    """A number once more, an older one, one after a gap, none; a number where none is asked for is not looked at."""
    only_gre(tunnel)
    complaints = []
    for end, replies in zip((bed.a, bed.b), ask_both(bed, tunnel, sequences)):
        got = [bool(reply) for reply in replies]
        asked = tunnel.expects("seq", end is bed.b)
        answered = [True, False, True, False, True, False] if asked else [True, True]
        if got != answered:
            complaints.append(f"{end.name} answers {got}, not {answered}")
    assert not complaints, "; ".join(complaints)


def sequences(prober):
    if not prober.expects("seq"):
        return [{"seqnum_present": 1, "seqence_number": 5}] * 2
    first = prober.sequence()
    prober.end.sequence = gap = first + 10
    return [{"sequence": number} for number in (first, first, first + 5, first + 2, gap)] + [{"seqnum_present": 0}]


def check_bits(bed, tunnel, _):
    """Version 1; then bits that RFC 2784 has a receiver refuse (4 and 5) or pass over (6 and 7, 8 to 12)."""
    only_gre(tunnel)
    probes = [{"version": 1}, {"strict_route_source": 1}, {"recursion_control": 4}, {"recursion_control": 3}, {"flags": 31}]
    # gre_rcv() reads 9 to 12 as part of the version; an IPv6 packet does not come by there.
    return expect(bed, tunnel, lambda _: probes, (False, False, False, True, True), {
        (False, True, True, True, False): "the kernel takes GRE bits 4 and 5 and refuses 8 to 12, Greyhound the other way round (RFC 2784)",
        (False, True, True, True, True): "the kernel takes GRE bits 4 and 5 over IPv6, Greyhound does not (RFC 2784)"})


# With sequence numbers, probes put the ends ahead of each other: real traffic comes before them.
CHECKS = {
    "head": check_header,
    "ecn": check_ecn,
    "key": check_key,
    "csum": check_checksum,
    "seq": check_sequence,
    "bits": check_bits,
}
