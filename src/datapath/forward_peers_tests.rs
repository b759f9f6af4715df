//! Tunnels whose packets say where they go, and tunnels to groups.

use super::*;
use crate::tunnel::Peers;

fn peer_mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, n])
}

fn outer_address(mode: Mode, n: u8) -> IpAddr {
    match mode.kind().underlay {
        Family::V6 => IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, u16::from(n)]),
        Family::V4 => IpAddr::from([192, 0, 2, n]),
    }
}

/// A tunnel of this kind, number 0, without a remote. Peers 3 and 4 by the table, 4 without a link address; 5 by a route's
/// gateway; and a route on the link.
fn table(mode: Mode) -> (Bed, Fib) {
    let mut peers = Peers::default();
    for (inner, n) in [
        ("10.2.0.0/24", 3),
        ("fd02::/64", 3),
        ("10.4.0.0/24", 4),
        ("fd04::/64", 4),
    ] {
        peers.insert(inner.parse().unwrap(), outer_address(mode, n));
    }
    let any = match mode.kind().underlay {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    let tunnel = Tunnel {
        peers: Arc::new(peers),
        mtu: 1400,
        ..Tunnel::new(mode, outer_address(mode, 1), any)
    };
    let mut bed = Bed::new();
    bed.tunnels[0].0 = tunnel;
    bed.tunnels[0].1.adjacency = None;
    for (prefix, gateway) in [
        ("10.4.0.0/24", None),
        ("fd04::/64", None),
        ("10.5.0.0/24", Some(outer_address(mode, 5))),
        ("fd05::/64", Some(outer_address(mode, 5))),
        ("10.6.0.0/24", None),
        ("fd06::/64", None),
    ] {
        let hop = NextHop::Tunnel {
            id: TunnelId(0),
            gateway,
            mtu: 1400,
        };
        bed.routes.insert(prefix.parse().unwrap(), hop);
    }
    let mut fib = bed.fib();
    fib.set_peers([(3, 1500), (5, 1300)].map(|(n, mtu)| {
        let adjacency = Adjacency {
            vlan: None,
            mark: Default::default(),
            port: UNDERLAY,
            destination: peer_mac(n),
            source: mac(UNDERLAY),
            mtu,
        };
        ((TunnelId(0), outer_address(mode, n)), adjacency)
    }));
    (bed, fib)
}

/// What becomes of a packet for the far net `n`: the verdict, the outer destination and the link address.
fn sent(bed: &mut Bed, fib: &Fib, v6: bool, n: u8, payload: usize) -> (Verdict, IpAddr, MacAddr) {
    let inner = match v6 {
        true => ipv6("fd01::2", &format!("fd0{n}::2"), 64, payload),
        false => ipv4(INSIDE, [10, n, 0, 2], 64, payload),
    };
    let mut buf = VecBuf::new(64, &framed(mac(OVERLAY), &inner));
    let verdict = forward(&mut buf, OVERLAY, fib, &mut bed.state);
    let frame = match verdict {
        Verdict::Transmit(_) => buf.data().to_vec(),
        _ => framed(MacAddr::default(), buf.data()),
    };
    let frame = Ethernet::parse(&frame).unwrap();
    let destination = packet::destination(frame.payload()).unwrap();
    (verdict, destination, frame.destination())
}

#[test]
fn the_next_hop_says_the_outer_destination_on_every_kind() {
    for mode in Mode::ALL {
        let (mut bed, fib) = table(mode);
        for v6 in [false, true] {
            match (mode.kind().payload, v6) {
                (Payload::Ip, _) | (Payload::Ipv4, false) | (Payload::Ipv6, true) => {}
                _ => continue,
            }
            let mut goes = |n, payload| sent(&mut bed, &fib, v6, n, payload);
            for n in [3, 5] {
                let net = if n == 3 { 2 } else { n };
                let expected = (
                    Verdict::Transmit(UNDERLAY),
                    outer_address(mode, n),
                    peer_mac(n),
                );
                assert_eq!(goes(net, 8), expected, "{mode:?} {v6}");
            }
            // Too big for this peer, though not for the other.
            assert_eq!(goes(2, 1300).0, Verdict::Transmit(UNDERLAY), "{mode:?}");
            assert_eq!(goes(5, 1300).0, service(PuntReason::TooBig), "{mode:?}");
            // The kernel resolves it.
            let not_ready = service(PuntReason::TunnelNotReady);
            assert_eq!(goes(4, 8).0, not_ready, "{mode:?}");
            let nobody = Verdict::Drop(DropReason::NoRemote);
            assert_eq!(goes(6, 8).0, nobody, "{mode:?}");
        }
        let drops = bed.record(0).drops.iter();
        let nobody = drops.filter(|(reason, _)| *reason == DropReason::NoRemote);
        let families = match mode.kind().payload {
            Payload::Ip => 2,
            Payload::Ipv4 | Payload::Ipv6 => 1,
            Payload::Ethernet => 0,
        };
        assert_eq!(nobody.map(|(_, n)| n).sum::<u64>(), families, "{mode:?}");
    }
}

#[test]
fn gre_8_a_packet_does_not_go_to_a_peer_twice() {
    let (mut bed, fib) = table(Mode::Gre);
    let again = |n: u8, bed: &mut Bed| {
        // What the tunnel sent to peer n has come back and is to go to peer 3.
        let far = fib.tunnels().get(TunnelId(0)).unwrap();
        let mut buf = VecBuf::new(64, &ipv4(INSIDE, [10, 9, 0, 2], 64, 8));
        let state = TunnelState::new(0, 1, Arc::default());
        tunnel::encapsulate(far, outer_address(Mode::Gre, n), &mut buf, &state).unwrap();
        let into = HandoverKind::IntoTunnel(TunnelId(0), outer_address(Mode::Gre, 3));
        forward_handover(&mut buf, into, &fib, &mut bed.state)
    };
    let round = Verdict::Drop(DropReason::Recursion);
    assert_eq!(again(3, &mut bed), round);
    assert_eq!(again(5, &mut bed), Verdict::Transmit(UNDERLAY));
}

/// A frame of a packet that `from` sends to `to` in a tunnel of this kind.
fn arriving(mode: Mode, from: IpAddr, to: IpAddr, link: MacAddr) -> Vec<u8> {
    let inner = match mode.kind().payload {
        Payload::Ipv6 => ipv6("fd02::2", "fd01::2", 64, 8),
        _ => ipv4(OUTSIDE, INSIDE, 64, 8),
    };
    carrying(&inner, mode, (from, to), link)
}

fn carrying(inner: &[u8], mode: Mode, (from, to): (IpAddr, IpAddr), link: MacAddr) -> Vec<u8> {
    let mut buf = VecBuf::new(64, inner);
    let state = TunnelState::new(0, 1, Arc::default());
    tunnel::encapsulate(&Tunnel::new(mode, from, to), to, &mut buf, &state).unwrap();
    framed(link, buf.data())
}

fn received(bed: &mut Bed, fib: &Fib, frame: &[u8]) -> Verdict {
    let mut buf = VecBuf::new(64, frame);
    forward(&mut buf, UNDERLAY, fib, &mut bed.state)
}

#[test]
fn anybody_may_send_to_a_tunnel_without_a_remote_but_ourselves() {
    for mode in [Mode::Gre, Mode::Ip6gre, Mode::Ipip, Mode::Ip6ip6] {
        let (mut bed, mut fib) = table(mode);
        let (us, stranger) = (outer_address(mode, 1), outer_address(mode, 99));
        fib.set_own([us]);
        let frame = arriving(mode, stranger, us, mac(UNDERLAY));
        let out = Verdict::Transmit(OVERLAY);
        assert_eq!(received(&mut bed, &fib, &frame), out, "{mode:?}");
        let frame = arriving(mode, us, us, mac(UNDERLAY));
        let martian = Verdict::Drop(DropReason::OuterMartian);
        assert_eq!(received(&mut bed, &fib, &frame), martian, "{mode:?}");
    }
}

#[test]
fn mcast_1_a_group_takes_what_any_member_sends() {
    for (mode, group, other) in [
        (Mode::Gre, "239.1.1.1", "239.1.1.2"),
        (Mode::Sit, "239.1.1.1", "239.1.1.2"),
        (Mode::Ip6gre, "ff05::1", "ff05::2"),
        (Mode::Ip6ip6, "ff05::1", "ff05::2"),
    ] {
        let (group, other): (IpAddr, IpAddr) = (group.parse().unwrap(), other.parse().unwrap());
        let (us, member) = (outer_address(mode, 1), outer_address(mode, 7));
        let mut bed = Bed::new();
        bed.tunnels[0].0 = Tunnel::new(mode, us, group);
        bed.tunnels[0].1.adjacency = Some(Adjacency {
            vlan: None,
            mark: Default::default(),
            port: UNDERLAY,
            destination: MacAddr::of_group(group),
            source: mac(UNDERLAY),
            mtu: 1500,
        });
        let mut fib = bed.fib();
        fib.set_own([us]);
        let v6 = mode.kind().payload == Payload::Ipv6;
        assert_eq!(
            sent(&mut bed, &fib, v6, 2, 8),
            (Verdict::Transmit(UNDERLAY), group, MacAddr::of_group(group))
        );
        let mut arrives = |from, to, link| {
            let frame = arriving(mode, from, to, link);
            received(&mut bed, &fib, &frame)
        };
        let to_group = MacAddr::of_group(group);
        assert_eq!(
            arrives(member, group, to_group),
            Verdict::Transmit(OVERLAY),
            "{mode:?}"
        );
        let martian = Verdict::Drop(DropReason::OuterMartian);
        assert_eq!(arrives(us, group, to_group), martian, "{mode:?}");
        let unknown = service(PuntReason::UnknownTunnel);
        assert_eq!(arrives(member, other, MacAddr::of_group(other)), unknown);
        // Its own address is not the group's.
        assert_eq!(arrives(member, us, mac(UNDERLAY)), unknown);
        let other_mac = Verdict::Drop(DropReason::OtherMac);
        assert_eq!(
            arrives(member, us, to_group),
            other_mac,
            "unicast in a frame for many"
        );
        assert_eq!(arrives(member, group, PEER), other_mac);
    }
}

#[test]
fn mcast_1_no_member_forwards_for_another() {
    let (group, member) = (IpAddr::from([239, 1, 1, 1]), IpAddr::from([192, 0, 2, 7]));
    let mut bed = Bed::new();
    bed.tunnels[0].0 = Tunnel::new(Mode::Gre, tunnel().local, group);
    let fib = bed.fib();
    // Behind another member, by our own route: it has got the packet too.
    let inner = ipv4([10, 2, 0, 7], [10, 2, 0, 9], 64, 8);
    let frame = carrying(&inner, Mode::Gre, (member, group), MacAddr::of_group(group));
    let dropped = Verdict::Drop(DropReason::OtherMember);
    assert_eq!(received(&mut bed, &fib, &frame), dropped);
    assert_eq!(bed.record(0).drops.total(), 1);
    // Multicast is for the kernel, of every member.
    let inner = ipv4([10, 2, 0, 7], [224, 0, 0, 5], 1, 8);
    let frame = carrying(&inner, Mode::Gre, (member, group), MacAddr::of_group(group));
    let not_plain = into_tun(PuntReason::NotPlain);
    assert_eq!(received(&mut bed, &fib, &frame), not_plain);
}

#[test]
fn what_is_multicast_and_no_tunnels_is_not_ours() {
    let mut bed = Bed::new();
    bed.ports[0].overlay = true;
    let fib = bed.fib();
    let group = [224, 0, 0, 5];
    let frame = framed(MacAddr::of_group(group.into()), &ipv4(INSIDE, group, 64, 8));
    let other_mac = Verdict::Drop(DropReason::OtherMac);
    assert_eq!(received(&mut bed, &fib, &frame), other_mac);
}
