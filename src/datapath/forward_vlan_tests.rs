//! VLAN devices: a tag decides whose frame it is, and what leaves has its device's tag and no other.

use super::*;
use crate::packet::Vid;

fn vid(number: u16) -> Vid {
    Vid::new(number).unwrap()
}

/// Puts 802.1Q tags with this control information into a frame, the first one outermost.
fn tag(frame: &[u8], controls: &[u16]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for control in controls {
        tagged.extend([0x81, 0]);
        tagged.extend(control.to_be_bytes());
    }
    tagged.extend(&frame[12..]);
    tagged
}

/// A frame without its tag, and the tag's control information.
fn untag(frame: &[u8]) -> (u16, Vec<u8>) {
    assert_eq!(frame[12..14], [0x81, 0]);
    let control = u16::from_be_bytes([frame[14], frame[15]]);
    (control, [&frame[..12], &frame[16..]].concat())
}

/// The bed's two ports as VLANs 100 and 7 of one device, which is a port of nothing itself: the second of two sockets.
/// Their numbers are 2 and 3.
fn stick() -> Bed {
    let mut bed = Bed::new();
    let socket = |name: &str| PortInfo {
        name: name.into(),
        underlay: false,
        overlay: false,
        ..bed.ports[0].clone()
    };
    let sockets = vec![socket("other"), socket("eth0")];
    let on = |number| OnPort {
        port: PortId(1),
        vid: vid(number),
    };
    bed.ports[0].vlan = Some(on(100));
    bed.ports[1].vlan = Some(on(7));
    bed.ports.splice(0..0, sockets);
    for (_, egress) in &mut bed.tunnels {
        let adjacency = egress.adjacency.as_mut().unwrap();
        (adjacency.port, adjacency.vlan) = (PortId(1), Some(vid(100)));
    }
    let connected = NextHop::Connected {
        port: PortId(3),
        mtu: 1500,
    };
    for prefix in ["10.1.0.0/24", "fd01::/64"] {
        bed.routes
            .insert(prefix.parse().unwrap(), connected.clone());
    }
    bed
}

/// What a worker does with a frame that comes in by a socket.
fn carry(bed: &mut Bed, frame: &[u8], socket: u16) -> (Verdict, Vec<u8>) {
    let mut fib = bed.fib();
    fib.add_neighbour(PortId(3), Ipv4Addr::from(INSIDE).into(), HOST);
    let from = receiver(frame, PortId(socket), &fib);
    let mut buf = VecBuf::new(256, frame);
    let verdict = forward(&mut buf, from, &fib, &mut bed.state);
    (verdict, buf.data().to_vec())
}

#[test]
fn a_router_on_a_stick_sends_with_the_tag_of_the_other_side() {
    let mut plain = Bed::new();
    let (_, expected) = plain.run(&outbound(OUTSIDE, 64, 32), OVERLAY);
    // Priority and drop eligibility of what comes in go nowhere: sent is 0.
    for control in [7, 0xf000 | 7] {
        let mut bed = stick();
        let (verdict, frame) = carry(&mut bed, &tag(&outbound(OUTSIDE, 64, 32), &[control]), 1);
        assert_eq!(verdict, Verdict::Transmit(PortId(1)));
        assert_eq!(untag(&frame), (100, expected.clone()));
        assert_eq!(bed.record(0).state.counters.tx_bytes.get(), 60);
    }
    let sent = ipv4(OUTSIDE, INSIDE, 64, 32);
    let (_, expected) = Bed::new().run(&inbound(&sent, false), UNDERLAY);
    let (verdict, frame) = carry(&mut stick(), &tag(&inbound(&sent, false), &[100]), 1);
    assert_eq!(verdict, Verdict::Transmit(PortId(1)));
    assert_eq!(untag(&frame), (7, expected));
}

#[test]
fn a_tagged_frame_is_no_untagged_one_nor_another_vlans() {
    let (out, back) = (
        outbound(OUTSIDE, 64, 8),
        inbound(&ipv4(OUTSIDE, INSIDE, 64, 8), false),
    );
    let dropped = Verdict::Drop(DropReason::VlanTag);
    let mut provider = tag(&out, &[7]);
    provider[12..14].copy_from_slice(&[0x88, 0xa8]);
    for (name, frame, socket) in [
        ("no tag", out.clone(), 1),
        ("no tag, underlay", back.clone(), 1),
        ("another VLAN", tag(&out, &[8]), 1),
        ("a priority alone", tag(&out, &[0xe000]), 1),
        ("the reserved number", tag(&out, &[4095]), 1),
        ("802.1ad", provider, 1),
        ("two tags", tag(&out, &[7, 7]), 1),
        ("two tags, the inner one ours", tag(&out, &[8, 7]), 1),
        ("cut within the tag", tag(&out, &[7])[..17].to_vec(), 1),
        ("another device's VLAN 7", tag(&out, &[7]), 0),
    ] {
        assert_eq!(carry(&mut stick(), &frame, socket).0, dropped, "{name}");
    }
    // To a port of its own the untagged frame is as ever, and the tagged one beside it.
    let mut bed = stick();
    bed.ports[1].overlay = true;
    bed.ports[1].mac = mac(OVERLAY);
    let mut verdict = |frame: &[u8]| {
        bed.routes = stick().routes;
        carry(&mut bed, frame, 1).0
    };
    assert_eq!(verdict(&out), Verdict::Transmit(PortId(1)));
    assert_eq!(verdict(&tag(&out, &[7])), Verdict::Transmit(PortId(1)));
    assert_eq!(verdict(&tag(&out, &[8])), dropped);
    // What came by a VLAN's tunnel does not come by the device beneath.
    assert_ne!(verdict(&back), Verdict::Transmit(PortId(1)));
}

#[test]
fn what_the_kernel_gets_has_lost_its_tag_and_names_its_device() {
    let frame = tag(&outbound([198, 51, 100, 1], 64, 8), &[7]);
    let (verdict, packet) = carry(&mut stick(), &frame, 1);
    assert_eq!(verdict, service(PuntReason::NoRoute));
    assert_eq!(packet, frame[18..]);
    let fib = stick().fib();
    assert_eq!(receiver(&frame, PortId(1), &fib), PortId(3));
    assert_eq!(receiver(&frame, PortId(0), &fib), PortId(0));
}

#[test]
fn a_wire_from_a_vlan_takes_its_tag_off_and_puts_it_on() {
    let wired = || {
        let (mut bed, far) = bed_of(Mode::Gretap);
        let ports = stick().ports;
        bed.ports = ports;
        bed.ports[3].wire = Some(TunnelId(0));
        let (tunnel, egress) = &mut bed.tunnels[0];
        tunnel.wire = Some(1500);
        egress.wire = Some(PortId(3));
        let adjacency = egress.adjacency.as_mut().unwrap();
        (adjacency.port, adjacency.vlan) = (PortId(1), Some(vid(100)));
        (bed, far)
    };
    // Whoever it is for, and whatever tags stand behind the outer one.
    let plain = framed(PEER, &ipv4(INSIDE, OUTSIDE, 1, 8));
    for inner in [plain.clone(), tag(&plain, &[0xe00c])] {
        let (mut bed, far) = wired();
        let (verdict, frame) = carry(&mut bed, &tag(&inner, &[0xa007]), 1);
        assert_eq!(verdict, Verdict::Transmit(PortId(1)));
        let (control, outer) = untag(&frame);
        assert_eq!(control, 100);
        assert!(outer.ends_with(&inner));
        assert_eq!(outer.len(), 14 + 24 + inner.len());
        let mut buf = VecBuf::new(64, &inner);
        let state = TunnelState::new(0, 1, Arc::default());
        tunnel::encapsulate(&far, far.remote, &mut buf, &state).unwrap();
        let back = tag(&framed(mac(UNDERLAY), buf.data()), &[100]);
        let (verdict, frame) = carry(&mut bed, &back, 1);
        assert_eq!(verdict, Verdict::Transmit(PortId(1)));
        assert_eq!(untag(&frame), (7, inner.clone()));
        let counters = &bed.record(0).state.counters;
        assert_eq!(counters.rx_bytes.get(), inner.len() as u64);
    }
}

#[test]
fn on_a_wire_a_vlans_frame_is_the_wires() {
    let (mut bed, _) = bed_of(Mode::Gretap);
    bed.ports = stick().ports;
    bed.ports[1].wire = Some(TunnelId(0));
    bed.tunnels[0].0.wire = Some(1500);
    let frame = tag(&outbound(OUTSIDE, 64, 8), &[7]);
    let (verdict, sent) = carry(&mut bed, &frame, 1);
    assert!(matches!(verdict, Verdict::Transmit(_)), "{verdict:?}");
    assert!(sent.ends_with(&frame));
}
