//! GRE in UDP on the fast path (udp-1).

use super::*;
use crate::tunnel::UdpEncap;

/// A bed whose first tunnel is GRE in UDP over one family or the other, and the far end of that tunnel.
fn bed_in_udp(v6: bool, checksum: bool) -> (Bed, Tunnel) {
    let (mut bed, far) = bed_of(if v6 { Mode::Ip6gre } else { Mode::Gre });
    let udp = Some(UdpEncap {
        source_port: None,
        checksum,
    });
    bed.tunnels[0].0.udp = udp;
    (bed, Tunnel { udp, ..far })
}

/// A frame from the far end that carries an IPv4 packet.
fn inbound_from(far: &Tunnel) -> Vec<u8> {
    let mut buf = VecBuf::new(64, &ipv4(OUTSIDE, INSIDE, 64, 8));
    let state = TunnelState::new(0, 1, Arc::default());
    tunnel::encapsulate(far, far.remote, &mut buf, &state).unwrap();
    framed(mac(UNDERLAY), buf.data())
}

#[test]
fn udp_1_gre_in_udp_goes_both_ways() {
    for v6 in [false, true] {
        for checksum in [false, true] {
            let (mut bed, far) = bed_in_udp(v6, checksum);
            let (verdict, frame) = bed.run(&outbound(OUTSIDE, 64, 8), OVERLAY);
            assert_eq!(verdict, Verdict::Transmit(UNDERLAY));
            let outer = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(etherparse::TransportSlice::Udp(udp)) = outer.transport else {
                panic!("no UDP");
            };
            assert_eq!(udp.destination_port(), 4754);
            assert_eq!(udp.checksum() != 0, checksum);
            assert_eq!(&udp.payload()[4..], ipv4(INSIDE, OUTSIDE, 63, 8));

            bed.routes = Bed::new().routes;
            let (verdict, frame) = bed.run(&inbound_from(&far), UNDERLAY);
            assert_eq!(verdict, Verdict::Transmit(OVERLAY));
            assert_eq!(&frame[14..], ipv4(OUTSIDE, INSIDE, 63, 8));
        }
    }
}

#[test]
fn udp_1_broken_datagrams_are_dropped_for_their_own_reason() {
    for v6 in [false, true] {
        let (mut bed, far) = bed_in_udp(v6, true);
        let good = inbound_from(&far);
        let udp_at = if v6 { 14 + 48 } else { 14 + 20 };
        let mut with = |at: usize, value: u8| {
            let mut frame = good.clone();
            frame[udp_at + at] = value;
            bed.routes = Bed::new().routes;
            bed.verdict(&frame, UNDERLAY)
        };
        let wrong = with(6, !good[udp_at + 6]);
        assert_eq!(wrong, Verdict::Drop(DropReason::UdpChecksum));
        assert_eq!(with(4, 0xff), Verdict::Drop(DropReason::UdpLength));
        assert_eq!(with(8, 0x40), Verdict::Drop(DropReason::GreFlags));
        // Other datagrams are not ours to judge.
        assert_eq!(
            with(3, 0),
            service(if v6 {
                PuntReason::UnknownTunnel
            } else {
                PuntReason::NoRoute
            })
        );
        // Without a checksum, where the tunnel wants one.
        let (_, far) = bed_in_udp(v6, false);
        let frame = inbound_from(&far);
        bed.routes = Bed::new().routes;
        let expected = match v6 {
            true => Verdict::Drop(DropReason::UdpChecksum),
            false => Verdict::Transmit(OVERLAY),
        };
        assert_eq!(bed.verdict(&frame, UNDERLAY), expected);
        let mut drops = bed.record(0).drops.iter();
        let counted = drops.find(|(reason, _)| *reason == DropReason::UdpChecksum);
        assert_eq!(counted.unwrap().1, if v6 { 2 } else { 1 });
    }
}

#[test]
fn an_outer_checksum_that_a_veth_left_open_is_none_that_is_wrong() {
    for v6 in [false, true] {
        let (_, far) = bed_in_udp(v6, true);
        let mut frame = inbound_from(&far);
        let (addresses, at) = if v6 { (22..54, 62) } else { (26..34, 34) };
        let len = frame.len() - at;
        let pseudo =
            crate::packet::Checksum::pseudo_header(&frame[addresses], protocol::UDP, len).fold();
        frame[at + 6..at + 8].copy_from_slice(&pseudo.to_be_bytes());
        for veth in [true, false] {
            let (mut bed, _) = bed_in_udp(v6, true);
            bed.ports[0].partial_checksums = veth;
            let (verdict, inner) = bed.run(&frame, UNDERLAY);
            if !veth {
                assert_eq!(verdict, Verdict::Drop(DropReason::UdpChecksum));
                continue;
            }
            assert_eq!(verdict, Verdict::Transmit(OVERLAY));
            assert_eq!(&inner[14..], ipv4(OUTSIDE, INSIDE, 63, 8));
            assert_eq!(bed.state.stats.checksums_completed.get(), 1);
        }
    }
}

#[test]
fn what_only_looks_like_a_tunnels_packet_passes_through_a_device_of_both_roles() {
    // A UDP length that cannot be, another port, and GRE of the old kind.
    let udp = |port: u16, len: u16| {
        let mut packet = ipv4(INSIDE, OUTSIDE, 64, 32);
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        packet[24..26].copy_from_slice(&len.to_be_bytes());
        packet
    };
    let mut gre = ipv4(INSIDE, OUTSIDE, 64, 32);
    gre[9] = protocol::GRE;
    gre[10..12].fill(0);
    let sum = crate::packet::Checksum::new()
        .add_bytes(&gre[..20])
        .finish();
    gre[10..12].copy_from_slice(&sum.to_be_bytes());
    gre[20..24].copy_from_slice(&[0x40, 0, 8, 0]);
    for (own, packet, dropped) in [
        (false, udp(4754, 0xffff), None),
        (false, udp(2000, 40), None),
        (false, gre.clone(), None),
        (true, udp(4754, 0xffff), Some(DropReason::UdpLength)),
        (true, gre, Some(DropReason::GreFlags)),
    ] {
        let mut bed = Bed::new();
        bed.ports[1].underlay = true;
        let mut fib = bed.fib();
        if own {
            fib.set_own([IpAddr::from(OUTSIDE)]);
        }
        let mut buf = VecBuf::new(64, &framed(mac(OVERLAY), &packet));
        let verdict = forward(&mut buf, OVERLAY, &fib, &mut bed.state);
        let expected = dropped.map_or(Verdict::Transmit(UNDERLAY), Verdict::Drop);
        assert_eq!(verdict, expected, "{own}");
    }
}
