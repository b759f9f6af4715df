//! Every reason for which the forwarding decision discards a packet, and a packet that it discards for it.

use super::*;
use crate::tunnel::UdpEncap;
use std::collections::BTreeSet;

/// What never comes to the forwarding decision, or is not its own to discard.
const ELSEWHERE: &[DropReason] = &[
    // Handed to the kernel: it puts fragments together, and other versions and tunnels may be somebody else's.
    DropReason::OuterFragment,
    DropReason::GreVersion,
    DropReason::UnknownTunnel,
    // The worker's, when its queues and frames run out.
    DropReason::TxRingFull,
    DropReason::PuntQueueFull,
    DropReason::NoFrame,
    DropReason::SpreadFull,
    // The slow path's.
    DropReason::OuterTooBig,
    DropReason::SlowPathRefused,
    DropReason::NoKeepalive,
];

/// A frame of the underlay with these bytes behind an IPv4 header from the tunnel's far end.
fn behind_ipv4(protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; ipv4::HEADER_LEN];
    packet.extend_from_slice(body);
    crate::packet::Ipv4Header {
        tos: 0,
        total_len: packet.len() as u16,
        identification: 1,
        dont_fragment: true,
        ttl: 64,
        protocol,
        source: Ipv4Addr::new(192, 0, 2, 2),
        destination: Ipv4Addr::new(192, 0, 2, 1),
    }
    .emit(packet.first_chunk_mut().unwrap());
    framed(mac(UNDERLAY), &packet)
}

/// The same with a GRE header of this payload.
fn behind_gre(protocol: u16, inner: &[u8]) -> Vec<u8> {
    let [high, low] = protocol.to_be_bytes();
    behind_ipv4(47, &[&[0, 0, high, low], inner].concat())
}

/// What becomes of a frame from the underlay where the first tunnel is this one.
fn arrives(near: Tunnel, frame: &[u8]) -> Verdict {
    let mut bed = Bed::new();
    bed.tunnels[0].0 = near;
    bed.verdict(frame, UNDERLAY)
}

fn ipv4_with(at: usize, value: u8) -> Vec<u8> {
    let mut packet = ipv4(OUTSIDE, INSIDE, 64, 8);
    packet[at] = value;
    packet
}

/// From the far end of this tunnel, as that has it configured.
fn from_far_end(far: &Tunnel, inner: &[u8]) -> Vec<u8> {
    let mut buf = VecBuf::new(128, inner);
    let state = TunnelState::new(0, 1, Arc::default());
    tunnel::encapsulate(far, far.remote, &mut buf, &state).unwrap();
    framed(mac(UNDERLAY), buf.data())
}

fn broken_outside() -> Vec<(&'static str, Verdict)> {
    let good = behind_gre(0x0800, &ipv4(OUTSIDE, INSIDE, 64, 8));
    let with = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        arrives(tunnel(), &frame)
    };
    let in_udp = Tunnel {
        udp: Some(UdpEncap {
            source_port: None,
            checksum: true,
        }),
        ..tunnel()
    };
    let mut datagram = from_far_end(&in_udp.far_end(), &ipv4(OUTSIDE, INSIDE, 64, 8));
    let cut = {
        let mut frame = datagram.clone();
        frame[14 + 20 + 4..14 + 20 + 6].copy_from_slice(&7u16.to_be_bytes());
        arrives(in_udp.clone(), &frame)
    };
    datagram[14 + 20 + 6] ^= 1;
    let from_us = {
        let any = Tunnel {
            remote: Ipv4Addr::UNSPECIFIED.into(),
            ..tunnel()
        };
        let ours = Tunnel {
            local: [10, 1, 0, 1].into(),
            ..tunnel().far_end()
        };
        arrives(any, &from_far_end(&ours, &ipv4(OUTSIDE, INSIDE, 64, 8)))
    };
    vec![
        ("outer_truncated", arrives(tunnel(), &good[..14 + 19])),
        ("outer_version", with(14, 0x55)),
        ("outer_header_length", with(14, 0x44)),
        ("outer_total_length", with(16, 0xff)),
        ("outer_checksum", with(15, 0xff)),
        ("outer_martian", from_us),
        ("udp_length", cut),
        ("udp_checksum", arrives(in_udp, &datagram)),
        // A key that is announced and not there.
        (
            "gre_truncated",
            arrives(tunnel(), &behind_ipv4(47, &[0x20, 0, 8, 0])),
        ),
        ("gre_flags", with(34, 0x40)),
    ]
}

fn broken_inside() -> Vec<(&'static str, Verdict)> {
    let gre = |inner: &[u8]| arrives(tunnel(), &behind_gre(0x0800, inner));
    let nvgre = Tunnel {
        nvgre: true,
        ikey: Some(GreKey(0x12_3456)),
        okey: Some(GreKey(0x12_3456)),
        ..Tunnel::new(Mode::Gretap, tunnel().local, tunnel().remote)
    };
    let wired = Tunnel {
        wire: Some(1000),
        ..Tunnel::new(Mode::Gretap, tunnel().local, tunnel().remote)
    };
    let mut frame = framed(HOST, &ipv4(OUTSIDE, INSIDE, 64, 1200));
    let large = from_far_end(&wired.far_end(), &frame);
    let untagged = from_far_end(&nvgre.far_end(), &frame);
    let tagged = {
        let mut outer = untagged.clone();
        // Behind Ethernet, IPv4 and a keyed GRE header stands the inner frame.
        outer[14 + 20 + 8 + 12..][..2].copy_from_slice(&0x8100u16.to_be_bytes());
        outer
    };
    frame.truncate(13);
    let far = tunnel().far_end();
    let counted = |near: Tunnel, far: Tunnel, times: usize| {
        let mut bed = Bed::new();
        bed.tunnels[0].0 = near;
        let frame = from_far_end(&far, &ipv4(OUTSIDE, INSIDE, 64, 8));
        for _ in 1..times {
            bed.verdict(&frame, UNDERLAY);
            bed.routes = Bed::new().routes;
        }
        bed.verdict(&frame, UNDERLAY)
    };
    let summed = Tunnel {
        icsum: true,
        ..tunnel()
    };
    let numbered = Tunnel {
        iseq: true,
        ..tunnel()
    };
    let mut wrong = from_far_end(&summed.far_end(), &ipv4(OUTSIDE, INSIDE, 64, 8));
    wrong[14 + 20 + 4] ^= 1;
    let congested = {
        let mut frame = behind_gre(0x0800, &ipv4(OUTSIDE, INSIDE, 64, 8));
        ipv4::set_tos(&mut frame[14..], 3);
        arrives(tunnel(), &frame)
    };
    let sit = Tunnel::new(Mode::Sit, tunnel().local, tunnel().remote);
    let martian = from_far_end(&sit.far_end(), &ipv6("ff02::1", "fd01::2", 64, 8));
    vec![
        ("inner_truncated", gre(&[0x45; 19])),
        ("inner_version", gre(&ipv4_with(0, 0x55))),
        ("inner_header_length", gre(&ipv4_with(0, 0x44))),
        ("inner_total_length", gre(&ipv4_with(2, 0xff))),
        ("inner_checksum", gre(&ipv4_with(10, 0xff))),
        ("inner_tagged", arrives(nvgre, &tagged)),
        ("frame_too_big", arrives(wired.clone(), &large)),
        (
            "inner_truncated",
            arrives(wired, &behind_gre(0x6558, &frame)),
        ),
        ("inner_martian", arrives(sit, &martian)),
        (
            "unknown_protocol",
            arrives(tunnel(), &behind_gre(0x880b, &[0; 20])),
        ),
        // Frames out of a tunnel that has none.
        (
            "unknown_protocol",
            arrives(tunnel(), &behind_gre(0x6558, &[0; 60])),
        ),
        ("gre_checksum", arrives(summed.clone(), &wrong)),
        ("gre_checksum_presence", counted(summed, far.clone(), 1)),
        ("sequence_missing", counted(numbered.clone(), far, 1)),
        (
            "sequence_old",
            counted(numbered.clone(), numbered.far_end(), 2),
        ),
        ("ecn_congestion", congested),
    ]
}

fn on_the_way_in() -> Vec<(&'static str, Verdict)> {
    let enters = |near: Tunnel, inner: &[u8]| {
        let mut bed = Bed::new();
        bed.tunnels[0].0 = near;
        bed.verdict(&framed(mac(OVERLAY), inner), OVERLAY)
    };
    let over_ipv6 = Tunnel::new(
        Mode::Ip6gre,
        "fd09::1".parse::<IpAddr>().unwrap(),
        "fd09::2".parse::<IpAddr>().unwrap(),
    );
    // May not be encapsulated again (RFC 2473 section 4.1.1); and a packet of the very tunnel.
    let exhausted = {
        let mut inner = ipv6("fd01::2", "fd02::2", 64, 8);
        inner[6] = protocol::DESTINATION_OPTIONS;
        inner[40..48].copy_from_slice(&[17, 0, 4, 1, 0, 1, 1, 0]);
        let mut bed = Bed::new();
        bed.tunnels[0].0 = over_ipv6;
        let handed = HandoverKind::IntoTunnel(TunnelId(0), "fd09::2".parse().unwrap());
        let fib = bed.fib();
        forward_handover(&mut VecBuf::new(128, &inner), handed, &fib, &mut bed.state)
    };
    let own = {
        let mut bed = Bed::new();
        bed.routes
            .insert("192.0.2.2/32".parse().unwrap(), to_first());
        let outer = from_far_end(&tunnel(), &ipv4(INSIDE, OUTSIDE, 64, 8));
        bed.verdict(&framed(mac(OVERLAY), &outer[14..]), OVERLAY)
    };
    let nobody = Tunnel {
        remote: Ipv4Addr::UNSPECIFIED.into(),
        ..tunnel()
    };
    let group = Tunnel {
        remote: [239, 1, 1, 1].into(),
        ..tunnel()
    };
    let other_members = {
        let member = Tunnel {
            local: [192, 0, 2, 7].into(),
            remote: group.remote,
            ..tunnel()
        };
        let mut frame = from_far_end(&member, &ipv4(OUTSIDE, [10, 2, 0, 9], 64, 8));
        frame[..6].copy_from_slice(&MacAddr::of_group(group.remote).0);
        arrives(group, &frame)
    };
    let cramped = {
        let mut bed = Bed::new();
        let fib = bed.fib();
        let mut buf = VecBuf::new(8, &outbound(OUTSIDE, 64, 8));
        forward(&mut buf, OVERLAY, &fib, &mut bed.state)
    };
    let gone = {
        let mut bed = Bed::new();
        let fib = bed.fib();
        let handed = HandoverKind::IntoTunnel(TunnelId(9), tunnel().remote);
        let mut buf = VecBuf::new(64, &ipv4(INSIDE, OUTSIDE, 64, 8));
        forward_handover(&mut buf, handed, &fib, &mut bed.state)
    };
    let switched_off = {
        let mut bed = Bed::new();
        bed.ports[1].forwards.v4 = false;
        bed.verdict(&outbound(OUTSIDE, 64, 8), OVERLAY)
    };
    let ipip6 = Tunnel::new(Mode::Ipip, tunnel().local, tunnel().remote);
    vec![
        (
            "unknown_protocol",
            enters(ipip6, &ipv6("fd01::2", "fd02::2", 64, 8)),
        ),
        ("encap_limit", exhausted),
        ("recursion", own),
        ("no_remote", enters(nobody, &ipv4(INSIDE, OUTSIDE, 64, 8))),
        ("other_member", other_members),
        ("no_headroom", cramped),
        ("tunnel_down", gone),
        ("forwarding_off", switched_off),
        (
            "other_mac",
            Bed::new().verdict(&framed(PEER, &ipv4(INSIDE, OUTSIDE, 64, 8)), OVERLAY),
        ),
        ("not_ip", Bed::new().verdict(&[0; 13], OVERLAY)),
        ("vlan_tag", {
            let mut frame = outbound(OUTSIDE, 64, 8);
            frame[12..14].copy_from_slice(&[0x81, 0]);
            Bed::new().verdict(&frame, OVERLAY)
        }),
    ]
}

fn to_first() -> NextHop {
    NextHop::Tunnel {
        id: TunnelId(0),
        gateway: None,
        mtu: 1476,
    }
}

#[test]
fn every_reason_has_a_packet_that_is_dropped_for_it() {
    let rows = [broken_outside(), broken_inside(), on_the_way_in()].concat();
    let mut reached = BTreeSet::new();
    for (reason, verdict) in rows {
        match verdict {
            Verdict::Drop(dropped) => assert_eq!(dropped.as_str(), reason),
            other => panic!("{reason}: {other:?}"),
        }
        reached.insert(reason);
    }
    let elsewhere = ELSEWHERE.iter().map(|reason| reason.as_str());
    let known: BTreeSet<&str> = reached.iter().copied().chain(elsewhere).collect();
    let all: BTreeSet<&str> = DropReason::ALL.iter().map(|r| r.as_str()).collect();
    assert_eq!(known, all, "a reason that no packet here is dropped for");
}

/// A GRE packet belongs to a tunnel by its payload too, as in the kernel's tables: an IP packet to no Ethernet tunnel.
#[test]
fn an_ip_packet_is_not_for_an_ethernet_tunnel() {
    let tap = Tunnel::new(Mode::Gretap, tunnel().local, tunnel().remote);
    for protocol in [0x0800, 0x86dd, 0x0000, 0x880b] {
        let frame = behind_gre(protocol, &ipv4(OUTSIDE, INSIDE, 64, 8));
        let verdict = arrives(tap.clone(), &frame);
        assert_eq!(verdict, service(PuntReason::UnknownTunnel), "{protocol:#x}");
    }
    // Beside an IP tunnel with the same ends each gets its own.
    let mut bed = Bed::new();
    bed.tunnels[1].0 = Tunnel {
        id: TunnelId(1),
        ..tap.clone()
    };
    let ip = behind_gre(0x0800, &ipv4(OUTSIDE, INSIDE, 64, 8));
    assert_eq!(bed.verdict(&ip, UNDERLAY), Verdict::Transmit(OVERLAY));
    bed.routes = Bed::new().routes;
    let frame = behind_gre(0x6558, &framed(HOST, &ipv4(OUTSIDE, INSIDE, 64, 8)));
    let tapped = Verdict::Punt(PuntReason::NotPlain, PuntTo::Tunnel(TunnelId(1)));
    assert_eq!(bed.verdict(&frame, UNDERLAY), tapped);
}
