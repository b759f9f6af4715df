//! Inner packets that are larger than the path carries, and errors about outer ones.

use greyhound::{control::slowpath::OuterError, packet::icmp};

use super::*;

/// A router whose way to the other end carries `mtu` bytes, as somebody said.
fn narrow(tunnel: Tunnel, mtu: u16) -> Router {
    let mut router = Router::start(tunnel.clone(), None);
    narrower(&mut router, tunnel, mtu);
    router
}

fn narrower(router: &mut Router, tunnel: Tunnel, mtu: u16) {
    let path = Path {
        mtu,
        route_mtu: 1500,
    };
    router.paths.insert((ID, tunnel.remote), path);
    router.publish(tunnel, None);
}

/// An inner packet of `len` bytes in all, as scapy builds it.
fn sized(ipv6: bool, ttl: u8, len: usize, fields: &str) -> String {
    let headers = if ipv6 { 48 } else { 28 };
    inner(
        ipv6,
        true,
        ttl,
        fields,
        &format!("(b'x'*{})", len - headers),
    )
}

#[test]
fn mtu_2_the_sender_is_told_as_the_kernel_would_tell_it() {
    Lab::run(|lab| {
        let mut router = narrow(tunnel(), 1000);
        router.enable_ipv6();
        let mut judge = lab.judge();
        for mode in IP_KINDS {
            let tunnel = tunnel_of(mode);
            let path = if mode.kind().underlay == Family::V6 {
                1380
            } else {
                1000
            };
            narrower(&mut router, tunnel.clone(), path);
            let room = usize::from(path) - tunnel.overhead();
            for &six in payloads(mode) {
                let room = if six { room.max(1280) } else { room };
                let large = |ttl| {
                    sized(
                        six,
                        ttl,
                        room + 1,
                        if six { "" } else { ",flags='DF',tos=0x12" },
                    )
                };
                judge.send(&large(64));
                // What is quoted has been forwarded.
                judge.want(&match six {
                    true => format!(
                        "IPv6(src='fd00::1',dst='fd01::9',hlim=64,fl=label)/ICMPv6PacketTooBig(mtu={room})/bytes({})[:1232]",
                        large(63)
                    ),
                    false => format!(
                        "IP(src='192.0.2.1',dst='10.1.0.9',tos=0xd2,id=id,ttl=64)/ICMP(type=3,code=4,nexthopmtu={room})/bytes({})[:548]",
                        large(63)
                    ),
                });
            }
        }
        let stats = router.slow.stats();
        assert_eq!(stats.icmp.answered.get(), 9);
        assert_eq!(count(&stats.drops, DropReason::OuterTooBig), 9);
    });
}

#[test]
fn mtu_2_without_df_each_piece_of_the_inner_packet_is_encapsulated() {
    Lab::run(|lab| {
        let mut router = narrow(tunnel(), 1000);
        let mut judge = lab.judge();
        for mode in IP_KINDS
            .into_iter()
            .filter(|m| payloads(*m).contains(&false))
        {
            let path = if mode.kind().underlay == Family::V6 {
                1280
            } else {
                1000
            };
            let tunnel = tunnel_of(mode);
            narrower(&mut router, tunnel.clone(), path);
            let room = usize::from(path) - tunnel.overhead();
            judge.send(&sized(false, 64, 1400, ",id=7"));
            let fields = match mode.kind().underlay {
                Family::V6 => "hlim=40,fl=0x12345",
                Family::V4 => "ttl=40,id=id,flags='DF'",
            };
            for piece in 0..2 {
                judge.want(&format!(
                    "{}/fragment({},{})[{piece}]",
                    outer(mode, true, false, false, fields),
                    sized(false, 63, 1400, ",id=7"),
                    (room - 20) / 8 * 8,
                ));
            }
        }
        assert_eq!(router.slow.stats().drops.total(), 0);
    });
}

#[test]
fn v6_2_1280_bytes_leave_in_outer_fragments_without_df() {
    Lab::run(|lab| {
        let mut router = narrow(tunnel(), 1290);
        router.enable_ipv6();
        let mut judge = lab.judge();
        for mode in [Mode::Gre, Mode::Sit] {
            narrower(&mut router, tunnel_of(mode), 1290);
            judge.send(&sized(true, 64, 1280, ""));
            let whole = format!(
                "{}/{}",
                outer(mode, true, true, false, "ttl=40,id=id"),
                sized(true, 63, 1280, "")
            );
            // 1270 bytes are left for pieces of the payload, in eights.
            assert_eq!(judge.ask("want_fragments", &whole), "ok 2 1284");
        }
        for mode in [Mode::Ip6gre, Mode::Ip6ip6] {
            narrower(&mut router, tunnel_of(mode), 1300);
            judge.send(&sized(true, 64, 1280, ""));
            let whole = format!(
                "{}/{}",
                outer(mode, true, true, false, "hlim=40,fl=0x12345"),
                sized(true, 63, 1280, "")
            );
            assert_eq!(judge.ask("want_fragments6", &whole), "ok 2 1296");
        }
        let stats = router.slow.stats();
        assert_eq!((stats.fragmented.get(), stats.drops.total()), (4, 0));
    });
}

#[test]
fn mtu_5_what_is_for_many_is_not_answered() {
    Lab::run(|_| {
        let router = narrow(tunnel(), 1000);
        let daemon = UdpSocket::bind("172.16.0.1:520").unwrap();
        set_ip_mtu_discover(&daemon, Ipv4PathMtuDiscovery::DO).unwrap();
        daemon.send_to(&[0; 1200], "224.0.0.9:520").unwrap();
        router.dropped(DropReason::OuterTooBig, 1);
        let icmp = &router.slow.stats().icmp;
        assert_eq!((icmp.answered.get(), icmp.not_answered.get()), (0, 1));
    });
}

/// What a worker has finished, and could not send itself.
#[test]
fn what_a_worker_punted_is_told_or_cut_alike() {
    Lab::run(|lab| {
        let router = narrow(tunnel(), 1000);
        let mut judge = lab.judge();
        let mut punts = router.punts();
        let mut punt = |inner: &str| {
            let outer =
                format!("IP(src='192.0.2.1',dst='192.0.2.2',id=77,flags='DF',ttl=9)/GRE()/{inner}");
            let to = PuntTo::Underlay(ID);
            assert!(punts.push(&scapy(&outer), to, PuntReason::TunnelNotReady, PortId(0)));
            punts.announce();
        };
        punt(&sized(false, 63, 1200, ",flags='DF'"));
        judge.want(&format!(
            "IP(src='192.0.2.1',dst='10.1.0.9',tos=0xc0,id=id,ttl=64)/ICMP(type=3,code=4,nexthopmtu=976)/bytes({})[:548]",
            sized(false, 63, 1200, ",flags='DF'")
        ));
        punt(&sized(false, 63, 1200, ",id=7"));
        for piece in 0..2 {
            judge.want(&format!(
                "IP(src='192.0.2.1',dst='192.0.2.2',id=id,flags='DF',ttl=63)/GRE()/fragment({},952)[{piece}]",
                sized(false, 63, 1200, ",id=7"),
            ));
        }
    });
}

#[test]
fn the_owner_of_the_numbers_gets_pieces_that_fit() {
    Lab::run(|lab| {
        let mut router = narrow(numbered_tunnel(), 1000);
        let (queue, handovers) = bounded(8);
        let waker = Box::new(Bell(Arc::default()));
        router.publish(numbered_tunnel(), Some(Owner { queue, waker }));
        let mut judge = lab.judge();
        judge.send(&sized(false, 64, 1400, ",id=7"));
        let room = 1000 - numbered_tunnel().overhead();
        for piece in 0..2 {
            let expected = scapy(&format!(
                "fragment({},{})[{piece}]",
                sized(false, 63, 1400, ",id=7"),
                (room - 20) / 8 * 8
            ));
            match handovers.recv_timeout(PATIENCE).unwrap() {
                Handover::IntoTunnel(ID, _, packet) => assert_eq!(*packet, expected[..]),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn mtu_3_errors_about_our_packets_are_reported_and_counted_and_others_are_not() {
    Lab::run(|lab| {
        let mut router = Router::start(tunnel(), None);
        let mut reports = router.slow.take_reports().unwrap();
        assert!(router.slow.take_reports().is_none());
        let mut judge = lab.judge();
        for mode in IP_KINDS {
            let tunnel = tunnel_of(mode);
            router.publish(tunnel.clone(), None);
            let over_ipv6 = mode.kind().underlay == Family::V6;
            let six = payloads(mode)[0];
            let quoted = |fields: &str| {
                format!(
                    "bytes({}/{})[:128]",
                    outer(mode, true, six, false, fields),
                    sized(six, 63, 400, "")
                )
            };
            let said = |error: &str, quoted: &str| match over_ipv6 {
                true => format!("IPv6(src='fd00::2',dst='fd00::1')/{error}/{quoted}"),
                false => format!("IP(src='192.0.2.2',dst='192.0.2.1')/{error}/{quoted}"),
            };
            let (too_big, unreachable) = match over_ipv6 {
                true => ("ICMPv6PacketTooBig(mtu=1400)", "ICMPv6DestUnreach(code=3)"),
                false => ("ICMP(type=3,code=4,nexthopmtu=1400)", "ICMP(type=3,code=1)"),
            };
            let ignored = router.slow.stats().icmp.ignored.get();
            let elsewhere = if over_ipv6 {
                "dst='fd00::7'"
            } else {
                "dst='192.0.2.7'"
            };
            // scapy takes the later of two.
            let stranger = quoted("")
                .replace("dst='fd00::2'", elsewhere)
                .replace("dst='192.0.2.2'", elsewhere);
            judge.send(&said(too_big, &stranger));
            eventually("a stranger's is ignored", || {
                router.slow.stats().icmp.ignored.get() == ignored + 1
            });
            let mut next = |kind| {
                let report = reports.blocking_recv().unwrap();
                let from = tunnel.remote;
                assert_eq!(
                    report,
                    OuterError {
                        tunnel: ID,
                        remote: tunnel.remote,
                        from,
                        kind
                    }
                );
            };
            judge.send(&said(too_big, &quoted("")));
            next(icmp::Kind::TooBig(1400));
            judge.send(&said(unreachable, &quoted("")));
            next(icmp::Kind::Unreachable(if over_ipv6 { 3 } else { 1 }));
        }
        let errors = &router.record.errors;
        assert_eq!((errors.too_big.get(), errors.unreachable.get()), (6, 6));
    });
}
