"""A router judged by a Linux kernel: the captures in tests/golden are played again, and the same must come out.

Each frame that the prober sent is sent to a Greyhound configured like the kernel was, and what the kernel emitted
for it, on either side, must be emitted, field by field, and nothing else. Free are identifications, the flow label of
errors, and sequence numbers as such (they must rise). Where ours differs on purpose, `own_way` says so and why.
"""

from __future__ import annotations

import itertools
import pathlib

import pytest
from scapy.utils import RawPcapReader

from beds import is_gre
from topology import Bench
from wire import GRE, ICMP, IP, SEQUENCE, Ether, IPv6, Packet, forwarded, gre_checksum_ok, sequence_of

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CASES = {
    "gre": {},
    "gre-key": {"key": 0x11223344},
    "gre-csum": {"csum": True},
    "gre-seq": {"seq": True},
    "gre-key-csum-seq": {"key": 42, "csum": True, "seq": True},
    "gre-seq-window": {"key": 42, "seq": True},
    "gre-ttl64": {"ttl": 64},
    "gre-tos-inherit": {"tos": "inherit"},
    "gre-tos-b8": {"tos": 0xB8},
    "gre-ttl64-nopmtudisc": {"ttl": 64, "pmtudisc": False},
    "gre-nopmtudisc": {"pmtudisc": False},
    "gre-nopmtudisc-ignore-df": {"pmtudisc": False, "ignore_df": True},
    "gre-nopmtudisc-mtu1500": {"pmtudisc": False, "mtu": 1500},
}
ROUTER_MACS = (Bench.INNER_MAC, Bench.OUTER_MAC)
ROUTER_ADDRESSES = ("10.9.0.1", "10.1.0.1", "10.200.0.1", "fd01::1", "fd00:200::1")


class Probe:
    """A frame of the prober's, and the frames that the kernel emitted for it, each with its side."""

    def __init__(self, side: str, frame: bytes):
        self.side, self.frame = side, frame
        self.expected: list[tuple[str, bytes]] = []

    @property
    def packet(self) -> Ether:
        return Ether(self.frame)


def probes(name: str) -> list[Probe]:
    """A case's probes in order, without those that are ICMP errors about outer packets and what follows them."""
    events = []
    for side, file in (("outer", f"{name}.pcap"), ("inner", f"{name}.inner.pcap")):
        events += [((meta.sec, meta.usec), side, data) for data, meta in RawPcapReader(str(GOLDEN / file))]
    found: list[Probe] = []
    for _, side, data in sorted(events):
        frame = Ether(data)
        if frame.src in ROUTER_MACS:
            found[-1].expected.append((side, data))
        elif side == "outer" and IP in frame and frame[IP].proto == 1:
            break  # Path MTU discovery for the tunnel's own packets: another matter, and it has state.
        else:
            found.append(Probe(side, data))
    return found


def own_way(probe: Probe) -> list[tuple[str, bytes]]:
    """What ours emits for a probe: what the kernel did, but for the differences on purpose."""
    expected = list(probe.expected)
    packet = probe.packet
    if probe.side == "outer" and GRE in packet and packet[IP].frag == 0:
        header = packet[GRE]
        if header.strict_route_source or header.recursion_control & 4:
            return []  # gre-2: bits 4 and 5 are refused (RFC 2784), where the kernel takes them.
        if header.flags and header.version == 0:
            # gre-2: bits 8 to 12 are ignored (RFC 2784), where the kernel refuses them.
            arrives = Ether(src=Bench.INNER_MAC, dst=Bench.HOST_MAC) / IP(forwarded(IP(bytes(packet[GRE].payload))))
            return [("inner", bytes(arrives))]
        # The kernel answers an unknown tunnel with ICMP 3/3. With us the kernel knows a listener for protocol 47.
        expected = [
            (side, data) for side, data in expected
            if side == "inner" or is_gre(Ether(data)) or ICMP not in Ether(data)
        ]
    return [(side, congested(data) if side == "outer" else data) for side, data in expected]


def congested(data: bytes) -> bytes:
    """ecn-1: an inner CE goes out as CE (RFC 6040), where the kernel sends ECT(0)."""
    frame = Ether(data)
    if is_gre(frame) and not frame[IP].frag:
        inner = frame[GRE].payload
        if (inner.tos if isinstance(inner, IP) else inner.tc if isinstance(inner, IPv6) else 0) & 3 == 3:
            frame[IP].tos |= 3
            del frame[IP].chksum
    return bytes(frame)


def is_keepalive(probe: Probe) -> bool:
    """A tunnel packet around one that has our own address as its source: `test_keepalive` has more to say of it."""
    packet = probe.packet
    return GRE in packet and isinstance(packet[GRE].payload, IP) and packet[GRE].payload.src == Bench.LOCAL


def blank(packet: Packet) -> None:
    """Blanks the fields that are free, in an IP header and what follows it."""
    if isinstance(packet, IP):
        packet.id = packet.chksum = 0
    elif isinstance(packet, IPv6) and packet.src in ROUTER_ADDRESSES:
        packet.fl = 0


def comparable(data: bytes) -> bytes:
    """A frame with everything blanked that is free; its checksums have been verified before."""
    frame = Ether(data)
    if IP in frame and frame[IP].proto == 47 and frame[IP].frag == 0:
        blank(frame[IP])
        if GRE in frame and not frame[GRE].version:
            header = frame[GRE]
            if header.seqnum_present:
                setattr(header, SEQUENCE, 0)
            if header.chksum_present:
                header.chksum = 0
            inner = header.payload
            if isinstance(inner, (IP, IPv6)) and inner.src in ROUTER_ADDRESSES:
                blank(inner)
    elif IP in frame and (frame[IP].src in ROUTER_ADDRESSES):
        blank(frame[IP])
    elif IPv6 in frame:
        blank(frame[IPv6])
    return bytes(frame)


def relevant(frame: Ether) -> bool:
    """Whether a frame is an answer to a probe: not ARP, neighbour or listener discovery."""
    if IP in frame:
        return True
    discovery = ("ICMPv6ND_NS", "ICMPv6ND_NA", "ICMPv6ND_RS", "ICMPv6MLReport2", "ICMPv6MLReport", "ICMPv6MLDone")
    return IPv6 in frame and not any(frame.haslayer(layer) for layer in discovery)


def is_noise(frame: Ether) -> bool:
    """What the router's kernel says into the tunnel of itself."""
    return is_gre(frame) and IPv6 in frame[GRE] and (frame[GRE][IPv6].dst.startswith("ff02") or not relevant(Ether() / frame[GRE][IPv6]))


class Replay:
    """Plays probes against a bed and keeps account of what came without being expected."""

    def __init__(self, bed):
        self.bed = bed
        self.taps = {"inner": bed.inside, "outer": bed.outside}
        self.surplus: list[tuple[str, Ether]] = []
        self.sequences: list[int] = []

    def see(self, side: str, frame: Ether) -> bool:
        """Checks what every emitted frame must fulfil. False for frames that say nothing."""
        if is_gre(frame) and frame[IP].frag == 0 and frame[GRE].seqnum_present:
            self.sequences.append(sequence_of(frame[GRE]))
        if is_gre(frame) and frame[IP].frag == 0 and frame[GRE].chksum_present and not frame[IP].flags.MF:
            assert gre_checksum_ok(frame[GRE])
        return relevant(frame) and frame.src in ROUTER_MACS and not is_noise(frame)

    def play(self, probe: Probe, number: int) -> None:
        """Sends the probe and takes what is expected for it, in any order between the sides."""
        wanted = [(side, comparable(data)) for side, data in own_way(probe)]
        self.taps[probe.side].send(probe.frame)
        for side in ("inner", "outer"):
            mine = [data for where, data in wanted if where == side]

            def match(frame: Ether) -> bool:
                if not self.see(side, frame):
                    return False
                data = comparable(frame.original)
                if data in mine:
                    mine.remove(data)
                    return True
                self.surplus.append((side, frame))
                return False

            try:
                self.taps[side].collect(match, len(mine), f"frames for probe {number}")
            except AssertionError as missing:
                came = "\n".join(f"{s}: {f.original.hex()}" for s, f in self.surplus)
                raise AssertionError(
                    f"probe {number}: {probe.packet.summary()}\n{missing}\nwanted {[d.hex() for d in mine]}\ncame\n{came}"
                ) from None

    def close(self) -> None:
        """Nothing came that was not expected, and sequence numbers rose."""
        self.bed.sequence = 1000
        for side, frames in (("outer", self.bed.fence_inside()), ("inner", self.bed.fence_outside())):
            self.surplus += [(side, frame) for frame in frames if self.see(side, frame)]
        assert not self.surplus, "\n".join(f"{side}: {frame.summary()}" for side, frame in self.surplus)
        assert all(a < b for a, b in itertools.pairwise(self.sequences))


@pytest.mark.parametrize("case", CASES)
def test_replay(single, xdp, case):
    """The case's probes, one after the other."""
    bed = single(tunnel=CASES[case], xdp=xdp)
    # Neighbours resolved without the help of the tunnel, whose sequence numbers the capture determines.
    for target in ("10.1.0.2", "fd01::2", "10.9.0.2"):
        bed.router.run("ping", "-n", "-c", "1", "-W", "5", target)
    bed.inside.drain()
    bed.outside.drain()
    replay, played = Replay(bed), 0
    for number, probe in enumerate(probes(case)):
        if not is_keepalive(probe):
            replay.play(probe, number)
            played += 1
    replay.close()
    assert played >= 9


@pytest.mark.parametrize("accept", [False, True], ids=["default", "accept_local"])
def test_keepalive(single, xdp, accept):
    """A keepalive goes back to the sender in clear, as Cisco's want it. The kernel does that with `accept_local` on the tunnel's
    device alone; ours needs no setting."""
    bed = single(xdp=xdp)
    bed.warm()
    bed.router.sysctl("net.ipv4.conf.gre1.accept_local", int(accept))
    for probe in filter(is_keepalive, probes("gre")):
        bed.outside.drain()
        bed.send_outside(probe.packet[IP])
        bed.fence_outside()
        back = [frame for frame in bed.outside.drain() if IP in frame and frame[IP].src == Bench.LOCAL and frame[IP].len == 24]
        assert len(back) == 1
