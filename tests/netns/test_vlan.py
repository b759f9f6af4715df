"""VLAN tags: a tagged frame is another network's, wherever the tag hides. It never comes out without its tag."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from beds import Single, back, v4, v6
from conftest import need
from topology import Bench, Namespace
from wire import Dot1Q, Ether, Packet, Tap, tagged

HERE = pathlib.Path(__file__).parent


def nothing_crossed(bed: Single) -> None:
    """No frame that carries one of our packets came out on either side, in whatever form."""
    for frames in (bed.fence_inside(), bed.fence_outside()):
        came = [frame.summary() for frame in frames if b"<greyhound " in frame.original]
        assert not came, came


def inside(*layers: Packet) -> Packet:
    """A frame from the host, with `layers` between Ethernet and the packet."""
    frame = Ether(src=Bench.HOST_MAC, dst=Bench.INNER_MAC)
    for layer in layers:
        frame = frame / layer
    return frame


def test_tags_in_the_frame(single, xdp):
    """802.1Q and 802.1ad tags as bytes of the frame, single and double, both ways."""
    bed = single(xdp=xdp)
    bed.warm()
    double = Dot1Q(vlan=100, type=0x8100) / Dot1Q(vlan=5)
    for packet in (v4(), v6()):
        bed.inside.send(inside(Dot1Q(vlan=5), packet), inside(double, packet))
        service = bytes(inside(Dot1Q(vlan=5), packet))
        bed.inside.send(service[:12] + b"\x88\xa8" + service[14:])
    far = Ether(src=Bench.FAR_MAC, dst=Bench.OUTER_MAC)
    for packet in (back(v4()), back(v6())):
        bed.outside.send(far / Dot1Q(vlan=5) / bed.around(packet), far / double / bed.around(packet))
    nothing_crossed(bed)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> pathlib.Path:
    """The program that tags frames as a VLAN device would."""
    target = tmp_path_factory.mktemp("tag") / "tag.o"
    subprocess.run([need("clang"), "-O2", "-target", "bpf", "-c", str(HERE / "tag.bpf.c"), "-o", str(target)], check=True)
    return target


def tag_everything(ns: Namespace, device: str, program: pathlib.Path) -> None:
    """From now on every frame that leaves by `device` has a tag, kept beside the frame as veth does by default."""
    ns.run("tc", "qdisc", "add", "dev", device, "clsact")
    done = ns.run("tc", "filter", "add", "dev", device, "egress", "bpf", "da", "obj", str(program), "sec", "tc", check=False)
    if done.returncode != 0:
        pytest.skip(f"tc cannot attach a program here: {done.stderr.strip()}")


def untag(ns: Namespace, device: str) -> None:
    """Frames that leave by `device` have no tag any more."""
    ns.run("tc", "qdisc", "del", "dev", device, "clsact")


@pytest.mark.parametrize("side", ["overlay", "underlay"])
def test_tags_beside_the_frame(single, xdp, tagger, side):
    """A tag that the sender's veth keeps beside the frame is invisible in the frame's bytes; it counts all the same."""
    bed = single(xdp=xdp)
    bed.warm()
    ns, device, seen_at = (bed.host, "h0", "inner0") if side == "overlay" else (bed.far, "f0", "outer0")
    probe = Tap(bed.router, seen_at)
    tag_everything(ns, device, tagger)
    for family in (v4, v6):
        if side == "overlay":
            bed.send_inside(family(), family())
        else:
            bed.send_outside(bed.around(back(family())), bed.around(back(family())))
    seen = probe.collect(lambda frame: b"<greyhound " in frame.original, 4, "tagged frames that the kernel has to judge")
    probe.close()
    assert all(map(tagged, seen))
    untag(ns, device)
    nothing_crossed(bed)


