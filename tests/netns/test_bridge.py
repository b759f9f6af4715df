"""A bridged tunnel is a wire: whatever one LAN sends comes out in the other, unchanged, on both paths."""

from __future__ import annotations

import socket
import subprocess
import threading

import pytest

from beds import is_gre, token
from conftest import need
from greyhound import binary
from lan import JoinedLan, arp, udp
from test_tcp import transfer
from topology import veth, wait_until
from wire import IP, UDP, Dot1Q, Ether, IPv6, Raw

BULK = 32 << 20
KINDS = {
    "gretap": {},
    "gretap key csum seq": {"key": 42, "csum": True, "seq": True},
    "ip6gretap": {"mode": "ip6gretap"},
    "nvgre": {"nvgre": True, "key": 5000},
}


@pytest.fixture
def joined(tmp_path):
    """Two routers that join two LANs; call it with the tunnel to get them running."""
    beds: list[JoinedLan] = []

    def build(*args, **kwargs) -> JoinedLan:
        beds.append(JoinedLan(tmp_path, *args, **kwargs))
        return beds[-1]

    yield build
    for bed in beds:
        bed.close()


@pytest.mark.parametrize("kind", KINDS)
def test_two_lans_are_one(joined, xdp, kind):
    """ARP, IPv6 neighbour discovery, pings of every size and bulk TCP both ways."""
    bed = joined(KINDS[kind], xdp=xdp)
    mtu = bed.a.tunnel("tap1")["mtu"]
    bed.host_mtu(mtu)
    for to, header in (("10.5.0.2", 28), ("fd05::2", 48)):
        bed.ping(to=to)
        bed.ping("-M", "do", "-s", str(mtu - header), to=to)
        bed.ping("-s", "4000", to=to)
    # The answer to ARP and the neighbour advertisement came from the other host itself.
    for to in ("10.5.0.2", "fd05::2"):
        entry = bed.host_a.ip_json("neighbour", "show", "to", to)[0]
        assert entry["lladdr"] == bed.host_b.mac("b0")
    bed.warm()
    before = [side.tunnel("tap1") for side in (bed.a, bed.b)]
    for there, back in (("10.5.0.2", "10.5.0.1"), ("fd05::2", "fd05::1")):
        transfer(bed.host_a, bed.host_b, there, BULK)
        transfer(bed.host_b, bed.host_a, back, BULK)
    for side, was in zip((bed.a, bed.b), before):
        now = side.tunnel("tap1")
        assert now["drops"] == was["drops"]
        for counter in ("rx_packets", "tx_packets"):
            fast, slow = (now[path][counter] - was[path][counter] for path in ("fast", "slow"))
            assert fast + slow > BULK // 1500
            assert fast / (fast + slow) >= 0.99 if xdp == "auto" else fast == 0, f"{counter}: {fast} fast, {slow} slow"


A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def frames(bed: JoinedLan) -> dict[str, bytes]:
    """Frames that a router would look at twice, and a wire does not."""
    largest = bed.a.tunnel("tap1")["mtu"] + 14
    packet = bytes(udp()[Ether].payload)
    return {
        "another station's": bytes(udp()),
        "the router's own": bytes(Ether(src=A, dst=bed.router_a.mac("lan")) / udp()[Ether].payload),
        "TTL 1": bytes(udp(ttl=1)),
        "options": bytes(udp(options=b"\1\1\1\1")),
        "wrong checksum": bytes(udp(chksum=1)),
        "fragment": bytes(udp(flags="MF", frag=3)),
        "ARP": bytes(arp()),
        "IPv6 neighbour solicitation": bytes(
            Ether(src=A, dst="33:33:ff:00:00:09") / IPv6(src="fe80::a", dst="ff02::1:ff00:9", hlim=255) / Raw(token(24))
        ),
        "STP": bytes.fromhex("0180c2000000 02000000000a 0026 424203") + token(35),
        "LLDP": bytes.fromhex("0180c200000e 02000000000a 88cc") + token(60),
        "LACP": bytes.fromhex("0180c2000002 02000000000a 8809 0101") + token(108),
        "LLC": bytes.fromhex("02000000000b 02000000000a 0064 aaaa03") + token(97),
        "MPLS": bytes(Ether(src=A, dst=B, type=0x8847)) + token(60),
        "802.1Q": bytes(Ether(src=A, dst=B) / Dot1Q(vlan=7, prio=5)) + packet,
        "QinQ": bytes(Ether(src=A, dst=B, type=0x88A8) / Dot1Q(vlan=100) / Dot1Q(vlan=7)) + packet,
        "three tags": bytes(Ether(src=A, dst=B, type=0x88A8) / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3)) + packet,
        "SCTP": bytes(Ether(src=A, dst=B) / IP(src="10.77.0.1", dst="10.77.0.2", proto=132)) + token(40),
        "runt": bytes(Ether(src=A, dst=B, type=0x88B5)) + b"\7",
        "as large as it may be": bytes(Ether(src=A, dst=B, type=0x88B5)) + token(largest - 14),
        "as large, with a tag": bytes(Ether(src=A, dst=B) / Dot1Q(vlan=7, type=0x88B5)) + token(largest - 18),
    }


@pytest.mark.parametrize("kind", ["gretap", "ip6gretap"])
def test_every_frame_crosses_as_it_is(joined, xdp, kind):
    """Whoever it is for and whatever is in it, to the last byte, both ways; and nothing else comes."""
    bed = joined(KINDS[kind], xdp=xdp)
    bed.warm()
    bed.host_mtu(1500)
    # What the hosts' own stacks said before the tunnel was up is no business of this test.
    with bed.a.expect_drops(), bed.b.expect_drops():
        for back in (False, True):
            for frame in frames(bed).values():
                bed.crosses(frame, back)
            assert not [frame.summary() for frame in bed.fence(back) if b"<greyhound " in frame.original]


PUSH_TAG = """
static int (*push)(void *, unsigned short, unsigned short) = (void *)18; /* bpf_skb_vlan_push */
__attribute__((section("tc"), used)) int tag(void *skb) { return push(skb, 0x0081, 0x6007) ? 2 : 0; }
"""


def test_tags_beside_the_frame(joined, tmp_path, xdp):
    """A VLAN tag that a veth keeps beside the frame crosses in the frame: none is lost, and none is mixed up."""
    bed = joined(xdp=xdp)
    bed.warm()
    source, program = tmp_path / "push.c", tmp_path / "push.o"
    source.write_text(PUSH_TAG)
    subprocess.run([need("clang"), "-O2", "-target", "bpf", "-c", str(source), "-o", str(program)], check=True)
    bed.host_a.run("tc", "qdisc", "add", "dev", "a0", "clsact")
    bed.host_a.run("tc", "filter", "add", "dev", "a0", "egress", "bpf", "da", "obj", str(program), "sec", "tc")
    for frame in (udp(), arp()):
        bed.at_a.send(frame)
        raw = bytes(frame)
        expected = raw[:12] + bytes.fromhex("8100 6007") + raw[12:]
        bed.at_b.expect(lambda got: got.original == expected, "the frame with its tag")


def test_larger_frames_are_dropped_and_counted(joined, xdp):
    """One byte more than the MTU, not counting tags: dropped where it would enter, and nobody is told."""
    bed = joined(xdp=xdp)
    bed.warm()
    bed.host_mtu(1500)
    mtu = bed.a.tunnel("tap1")["mtu"]
    for header in (Ether(src=A, dst=B, type=0x88B5), Ether(src=A, dst=B) / Dot1Q(vlan=7, type=0x88B5)):
        with bed.a.expect_drops(frame_too_big=1):
            bed.at_a.send(bytes(header) + token(mtu + 1))
            assert not [frame for frame in bed.fence() if b"<greyhound " in frame.original]
    assert bed.a.tunnel("tap1")["drops"]["frame_too_big"] == 2
    bed.host_a.run("ping", "-c", "1", "-W", "1", "-M", "do", "-s", str(mtu - 27), "10.5.0.2", check=False)
    assert bed.a.tunnel("tap1")["drops"]["frame_too_big"] == 3


def test_full_frames_in_fragments(joined, xdp):
    """Where the outer packet may be cut, a LAN of 1500 bytes is carried whole over an underlay of 1500."""
    bed = joined({"mtu": 1500, "pmtudisc": False, "ignore_df": True}, xdp=xdp)
    bed.tag_room()
    bed.warm()
    for to, header in (("10.5.0.2", 28), ("fd05::2", 48)):
        bed.ping("-M", "do", "-s", str(1500 - header), to=to)
    bed.crosses(bytes(Ether(src=A, dst=B) / Dot1Q(vlan=7, type=0x88B5)) + token(1500))
    bed.crosses(bytes(Ether(src=A, dst=B) / Dot1Q(vlan=7) / Dot1Q(vlan=8, type=0x88B5)) + token(1500), back=True)
    assert not bed.a.drops() and not bed.b.drops()


def test_full_frames_over_a_wider_underlay(joined, xdp):
    """An underlay that has room for them carries full frames of 1500 bytes with two tags on the fast path."""
    bed = joined({"mtu": 1500}, mtu=1600, xdp=xdp)
    bed.tag_room()
    bed.warm()
    before = bed.a.tunnel("tap1")["fast"]["tx_packets"]
    for header in (
        Ether(src=A, dst=B), Ether(src=A, dst=B) / Dot1Q(vlan=7),
        Ether(src=A, dst=B, type=0x88A8) / Dot1Q(vlan=7) / Dot1Q(vlan=8),
    ):
        bed.crosses(bytes(header / IP(src="10.77.0.1", dst="10.77.0.2") / UDP(sport=1, dport=2) / token(1500 - 28)))
    assert bed.a.tunnel("tap1")["fast"]["tx_packets"] - before == (3 if xdp == "auto" else 0)


def filters(ns, device: str) -> str:
    """The tc filters on what comes in by a device."""
    return ns.run("tc", "filter", "show", "dev", device, "ingress", check=False).stdout


def clsact(ns, device: str) -> bool:
    """Whether there is a place for tc filters on the device."""
    return "clsact" in ns.run("tc", "qdisc", "show", "dev", device).stdout


def promiscuous(ns, device: str) -> bool:
    """Whether somebody wants all frames of the device."""
    return ns.link(device)["promiscuity"] > 0


def to_the_router(bed: JoinedLan):
    """A packet that host A sends to its router for the far router, as if there were no tunnel."""
    return Ether(src=A, dst=bed.router_a.mac("lan")) / IP(src="10.1.0.2", dst="10.9.0.2") / UDP(sport=1000, dport=2000) / token()


def leaks(bed: JoinedLan) -> list:
    """What of host A's frames has left router A by the underlay in clear since the last look."""
    bed.at_a.send(to_the_router(bed), arp(), udp())
    # From the router itself, behind all that it might have forwarded.
    sentinel = token()
    with bed.router_a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(sentinel, ("10.9.0.2", 2000))
    seen = []

    def last(frame) -> bool:
        seen.append(frame)
        return sentinel in frame.original

    bed.wan.expect(last, "the sentinel")
    return [frame for frame in seen[:-1] if b"<greyhound " in frame.original and not is_gre(frame)]


def test_stop_removes_everything(joined, xdp):
    """The device is as it was before: no filter, no qdisc, not promiscuous, its frames the router's again."""
    bed = joined(xdp=xdp)
    bed.warm()
    assert "greyhound_wire" in filters(bed.router_a, "lan") and promiscuous(bed.router_a, "lan")
    assert not leaks(bed)
    assert bed.a.terminate() == 0
    assert not filters(bed.router_a, "lan") and not clsact(bed.router_a, "lan")
    assert not promiscuous(bed.router_a, "lan")
    assert bed.router_a.link("tap1") is None
    assert leaks(bed), "the router forwards again what comes in there"


def test_killed(joined, xdp):
    """`kill -9`: the frames of the LAN are dropped, none is forwarded in clear or answered; a restart takes it up again."""
    bed = joined(xdp=xdp)
    bed.warm()
    before = bed.router_a.link("tap1")["ifindex"]
    bed.a.kill()
    wait_until(lambda: "NO-CARRIER" in bed.router_a.link("tap1")["flags"], "tap1 has no carrier")
    assert not leaks(bed)
    bed.host_a.run("ip", "neighbour", "replace", "10.9.0.1", "lladdr", bed.router_a.mac("lan"), "dev", "a0")
    assert bed.host_a.run("ping", "-c", "1", "-W", "1", "-I", "a0", "10.9.0.1", check=False).returncode != 0
    bed.a.start()
    bed.warm()
    assert bed.router_a.link("tap1")["ifindex"] == before
    bed.ping()
    assert bed.a.terminate() == 0
    assert not filters(bed.router_a, "lan") and not clsact(bed.router_a, "lan")


def test_killed_and_started_without_the_tunnel(joined):
    """What is left of a wire does not swallow the frames of a device that has another use now."""
    bed = joined(xdp="off")
    bed.a.kill()
    assert not leaks(bed)
    bed.a.start([{"name": "gre1", "mode": "gre", "local": "10.9.0.1", "remote": "10.9.0.2"}], underlay=["wan"], overlay=["lan"])
    assert not filters(bed.router_a, "lan") and not clsact(bed.router_a, "lan")
    assert leaks(bed)
    # The device that was left is used without the wire, too.
    bed.a.terminate()
    bed.a.start([JoinedLan.tunnel({"bridge": "lan"}, 1, 1)], underlay=["wan"], overlay=["lan"])
    bed.a.kill()
    plain = {key: value for key, value in JoinedLan.tunnel({}, 1, 1).items() if key != "bridge"}
    bed.a.start([plain], underlay=["wan"], overlay=["lan"])
    assert not filters(bed.router_a, "tap1") and not filters(bed.router_a, "lan")
    # Nor is a device left blind that the configuration does not know any more.
    bed.a.terminate()
    bed.a.start([JoinedLan.tunnel({"bridge": "lan"}, 1, 1)], underlay=["wan"], overlay=["lan"])
    bed.a.kill()
    bed.a.start([], underlay=["wan"], overlay=[], xdp="off")
    wait_until(lambda: not filters(bed.router_a, "lan"), "the filter is gone")


def test_filters_of_others_stay(joined):
    """Somebody's own tc filters on the device are still there at the end, and the place for them with them."""
    bed = joined(xdp="off", start=False)
    bed.router_a.run("tc", "qdisc", "add", "dev", "lan", "clsact")
    own = ["dev", "lan", "egress", "pref", "7", "protocol", "all", "bpf", "bytecode", "1,6 0 0 4294967295", "flowid", "1:1"]
    bed.router_a.run("tc", "filter", "add", *own)
    for greyhound in (bed.a, bed.b):
        greyhound.start()
    bed.ping()
    bed.a.terminate()
    assert clsact(bed.router_a, "lan")
    assert "pref 7" in bed.router_a.run("tc", "filter", "show", "dev", "lan", "egress").stdout
    other = ["dev", "lan", "ingress", "pref", "1", "protocol", "all", "u32", "match", "u32", "0", "0", "flowid", "1:1"]
    bed.router_a.run("tc", "filter", "add", *other)
    bed.a.spawn()
    assert bed.a.process.wait(20) == 1
    assert "somebody else's tc filter has priority 1" in bed.a.log()
    assert bed.router_a.link("tap1") is None


def test_filters_that_somebody_removes_come_back(joined, xdp):
    """Without them the kernel would have the frames: they are put back, and that is said."""
    bed = joined(xdp=xdp)
    bed.warm()
    bed.router_a.run("tc", "qdisc", "del", "dev", "lan", "clsact")
    wait_until(lambda: "greyhound_wire" in filters(bed.router_a, "lan"), "the filter is back")
    assert "filters had been removed" in bed.a.log()
    bed.ping()
    assert not leaks(bed)


def test_the_device_comes_and_goes(joined, xdp):
    """A device that vanishes and comes back as another one is bridged again."""
    bed = joined(xdp=xdp)
    bed.warm()
    bed.router_a.ip("link", "del", "lan")
    wait_until(lambda: "lan is gone" in bed.a.log(), "it is noticed")
    bed.at_a.close()
    veth(bed.host_a, "a0", bed.router_a, "lan")
    bed.host_a.ip("address", "add", "10.5.0.1/24", "dev", "a0")
    wait_until(lambda: "greyhound_wire" in filters(bed.router_a, "lan"), "the wire is there again")
    bed.ping()
    if xdp == "auto":
        def fast() -> bool:
            before = bed.a.tunnel("tap1")["fast"]["tx_packets"]
            bed.ping(count=1)
            return bed.a.tunnel("tap1")["fast"]["tx_packets"] > before
        wait_until(fast, "the fast path carries again")


def test_reload(joined, xdp):
    """A bridged tunnel comes and goes while the router runs; its bridge is not changed under it."""
    bed = joined(xdp=xdp)
    bed.ping()
    mine = JoinedLan.tunnel({}, 1, 1)
    bed.a.configure([mine | {"ttl": 9}], underlay=["wan"], overlay=["lan"], xdp=xdp)
    assert "changed tap1 (ttl)" in bed.a.ask("reload").stdout
    bed.ping()
    plain = {key: value for key, value in mine.items() if key != "bridge"}
    bed.a.configure([plain], underlay=["wan"], overlay=["lan"], xdp=xdp)
    refused = bed.a.ask("reload", check=False)
    assert refused.returncode == 1 and "bridge cannot be changed while it runs" in refused.stderr
    bed.ping()
    # Another tunnel takes the device over: the wire is not let go in between.
    bed.a.configure([mine | {"name": "tap9"}], underlay=["wan"], overlay=["lan"], xdp=xdp)
    bed.a.ask("reload")
    assert bed.router_a.link("tap1") is None and "greyhound_wire" in filters(bed.router_a, "lan")
    bed.ping()
    bed.a.configure([], underlay=["wan"], overlay=["lan"], xdp=xdp)
    bed.a.ask("reload")
    assert not filters(bed.router_a, "lan") and not clsact(bed.router_a, "lan") and not promiscuous(bed.router_a, "lan")
    assert leaks(bed)
    bed.a.ask("tunnel", "add", "tap1", "mode", "gretap", "local", "10.9.0.1", "remote", "10.9.0.2", "bridge", "lan")
    bed.ping()


def test_takeover(joined, xdp):
    """Another process takes over under traffic: no frame is lost, and none gets into the kernel meanwhile."""
    bed = joined(xdp=xdp)
    bed.warm()
    stop, sent = threading.Event(), []

    def send() -> None:
        while not stop.wait(0.001):
            sent.append(bytes(udp()))
            bed.at_a.send(sent[-1])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        wait_until(lambda: len(sent) > 100, "frames are under way")
        first = bed.a.process
        with bed.a.log_file.open("a", encoding="utf-8") as log:
            bed.a.process = subprocess.Popen(
                bed.router_a.command(binary(), "run", "--takeover", "--config", str(bed.a.config_file)),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        bed.a.wait_ready()
        assert first.wait(20) == 0
        assert "greyhound_wire" in filters(bed.router_a, "lan") and promiscuous(bed.router_a, "lan")
        count = len(sent)
        wait_until(lambda: len(sent) > count + 100, "the other process carries")
    finally:
        stop.set()
        sender.join()
    came = [frame.original for frame in bed.at_b.collect(lambda frame: frame.original in sent, len(sent), "frames")]
    assert sorted(came) == sorted(sent)
    # What the new process inherited it removes in the end.
    assert bed.a.terminate() == 0
    assert not filters(bed.router_a, "lan") and not clsact(bed.router_a, "lan") and bed.router_a.link("tap1") is None
