//! GRE in UDP on the slow path: what leaves by the raw socket, what the UDP socket receives.

use std::{net::UdpSocket, os::fd::BorrowedFd};

use greyhound::{
    control::slowpath::{SlowPath, SlowSnapshot},
    datapath::DropReason,
    tunnel::{Mode, Tunnel, TunnelId, UdpEncap},
};

use super::{Lab, Router, count, eventually, fib, inner, tunnel, tunnel_of};

const PORT: u16 = 50_001;

fn in_udp(v6: bool, checksum: bool) -> Tunnel {
    let udp = UdpEncap {
        source_port: Some(PORT),
        checksum,
    };
    Tunnel {
        udp: Some(udp),
        ..tunnel_of(if v6 { Mode::Ip6gre } else { Mode::Gre })
    }
}

/// The outer headers in scapy's words. Where no checksum is given scapy computes it.
fn outer(v6: bool, into: bool, fields: &str, udp: &str, six: bool) -> String {
    let (local, remote) = match v6 {
        true => ("fd00::1", "fd00::2"),
        false => ("192.0.2.1", "192.0.2.2"),
    };
    let (source, destination) = if into {
        (local, remote)
    } else {
        (remote, local)
    };
    let ip = if v6 { "IPv6" } else { "IP" };
    let gre = if six { "GRE(proto=0x86dd)" } else { "GRE()" };
    format!("{ip}(src='{source}',dst='{destination}',{fields})/UDP(dport=4754,{udp})/{gre}")
}

#[test]
fn udp_1_both_ways_as_scapy_would_send_it() {
    Lab::run(|lab| {
        let mut router = Router::start(tunnel(), None);
        router.enable_ipv6();
        let mut judge = lab.judge();
        for v6 in [false, true] {
            for checksum in [false, true] {
                router.publish(in_udp(v6, checksum), None);
                for six in [false, true] {
                    judge.send(&inner(six, true, 64, "", "b'in'"));
                    let fields = match v6 {
                        true => "hlim=40,fl=0x12345",
                        false => "ttl=40,id=id,flags='DF'",
                    };
                    let none = if checksum { "" } else { ",chksum=0" };
                    let headers = outer(v6, true, fields, &format!("sport={PORT}{none}"), six);
                    judge.want(&format!("{headers}/{}", inner(six, true, 63, "", "b'in'")));
                    // Whatever the source port is, with a checksum and, where that is allowed, without one.
                    let with_and_without = if v6 && checksum {
                        &["sport=7"][..]
                    } else {
                        &["sport=7", "sport=8,chksum=0"]
                    };
                    for udp in with_and_without {
                        let from = outer(v6, false, "", udp, six);
                        judge.send(&format!("{from}/{}", inner(six, false, 64, "", "b'out'")));
                        judge.want(&inner(six, false, 63, "", "b'out'"));
                    }
                }
            }
        }
        let stats = router.slow.stats();
        assert_eq!(stats.drops.total(), 0, "{:?}", stats.drops);
        let unreachable = lab_icmp_errors();
        assert_eq!(unreachable, 0, "somebody was told that the port is closed");
    });
}

/// ICMP and ICMPv6 errors that this namespace has sent.
fn lab_icmp_errors() -> u64 {
    let read =
        |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let v4 = read("snmp");
    let mut icmp = v4.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = (icmp.next().unwrap(), icmp.next().unwrap());
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, sent4) = pairs.find(|(name, _)| *name == "OutDestUnreachs").unwrap();
    let v6 = read("snmp6");
    let mut lines = v6.lines().map(|line| line.split_whitespace());
    let sent6 = lines.find_map(|mut words| {
        (words.next() == Some("Icmp6OutDestUnreachs")).then(|| words.next().unwrap().to_owned())
    });
    sent4.parse::<u64>().unwrap() + sent6.unwrap().parse::<u64>().unwrap()
}

#[test]
fn udp_1_a_wrong_checksum_and_a_missing_one_over_ipv6_stay_out() {
    Lab::run(|lab| {
        let mut router = Router::start(tunnel(), None);
        router.enable_ipv6();
        let mut judge = lab.judge();
        for (v6, bad) in [
            (false, &["sport=1,chksum=1"][..]),
            (true, &["sport=1,chksum=1", "sport=2,chksum=0"]),
        ] {
            router.publish(in_udp(v6, true), None);
            let before = router.record.state.counters.rx_packets.get();
            for udp in bad {
                let from = outer(v6, false, "", udp, false);
                judge.send(&format!("{from}/{}", inner(false, false, 9, "", "b'bad'")));
            }
            let from = outer(v6, false, "", "sport=3", false);
            judge.send(&format!("{from}/{}", inner(false, false, 9, "", "b'good'")));
            judge.want(&inner(false, false, 8, "", "b'good'"));
            let received = router.record.state.counters.rx_packets.get() - before;
            assert_eq!(received, 1, "{v6}");
        }
    });
}

#[test]
fn udp_1_marks_fragments_and_extension_headers_are_the_outer_packets_own() {
    Lab::run(|lab| {
        let mut router = Router::start(tunnel(), None);
        router.enable_ipv6();
        let mut judge = lab.judge();
        for v6 in [false, true] {
            router.publish(in_udp(v6, v6), None);
            let marked = if v6 { "tc=0xbb" } else { "tos=0xbb" };
            let from = outer(v6, false, marked, "sport=1", false);
            judge.send(&format!(
                "{from}/{}",
                inner(false, false, 9, ",tos=2", "b'ce'")
            ));
            judge.want(&inner(false, false, 8, ",tos=3", "b'ce'"));
            let packet = |ttl| inner(false, false, ttl, "", "bytes(1300)");
            let cut = match v6 {
                false => format!(
                    "fragment(IP(bytes({}/{})),fragsize=496)[::-1]",
                    outer(false, false, "id=9", "sport=1", false),
                    packet(64)
                ),
                // Its checksum is that of the packet without the fragment header.
                true => format!(
                    "(lambda p: fragment6(IPv6(src=p.src,dst=p.dst,nh=44)/IPv6ExtHdrFragment(nh=17,id=77)/Raw(bytes(p)[40:]),600)[::-1])\
                     (IPv6(bytes({}/{})))",
                    outer(true, false, "", "sport=1", false),
                    packet(64)
                ),
            };
            judge.send(&cut);
            judge.want(&packet(63));
        }
        // Behind an encapsulation limit, as Linux sends it.
        judge.send(&format!(
            "IPv6(src='fd00::2',dst='fd00::1')/IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=4,optdata=b'\\x04'),PadN(optdata=b'\\0')])\
             /UDP(sport=9,dport=4754)/GRE()/{}",
            inner(false, false, 64, "", "b'limited'")
        ));
        judge.want(&inner(false, false, 63, "", "b'limited'"));
        let stats = router.slow.stats();
        assert_eq!(stats.drops.total(), 0, "{:?}", stats.drops);
    });
}

#[test]
fn udp_1_a_datagram_that_is_no_tunnels_is_counted() {
    Lab::run(|lab| {
        let router = Router::start(in_udp(false, false), None);
        let mut judge = lab.judge();
        let from = outer(false, false, "", "sport=1", false);
        judge.send(&from.replace("GRE()", "GRE(key_present=1,key=5)"));
        router.dropped(DropReason::UnknownTunnel, 1);
        judge.send(&from.replace("/GRE()", "/b'no'"));
        router.dropped(DropReason::GreTruncated, 1);
        // Plain GRE is no packet of a tunnel in UDP, and has no socket here.
        judge.send(
            "IP(src='192.0.2.2',dst='192.0.2.1')/GRE()/IP(src='10.2.0.9',dst='10.1.0.9')/UDP()",
        );
        judge.send(&format!("{from}/{}", inner(false, false, 9, "", "b'last'")));
        judge.want(&inner(false, false, 8, "", "b'last'"));
        assert_eq!(router.record.state.counters.rx_packets.get(), 1);
    });
}

#[test]
fn the_udp_port_is_taken_where_a_tunnel_needs_it_and_shared_with_nobody() {
    Lab::run(|_| {
        let mut slow = SlowPath::start(None).unwrap();
        let no_filter = |_: BorrowedFd<'_>| {};
        let open = || {
            let has = |file: &str| {
                let table =
                    std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
                let mut locals = table
                    .lines()
                    .skip(1)
                    .map(|line| line.split_whitespace().nth(1));
                locals.any(|local| local.unwrap().ends_with(":1292"))
            };
            (has("udp"), has("udp6"))
        };
        let snapshot = |tunnels: &[Tunnel]| {
            let numbered = tunnels.iter().zip(0..).map(|(tunnel, id)| Tunnel {
                id: TunnelId(id),
                ..tunnel.clone()
            });
            SlowSnapshot {
                fib: fib(numbered),
                ..SlowSnapshot::default()
            }
        };
        let (four, six) = (in_udp(false, false), in_udp(true, true));
        for (tunnels, expected) in [
            (&[][..], (false, false)),
            (&[tunnel()], (false, false)),
            (&[four.clone(), four.clone()], (true, false)),
            (&[six.clone(), four.clone()], (true, true)),
            (&[six.clone(), tunnel()], (false, true)),
            (&[], (false, false)),
        ] {
            slow.publish(snapshot(tunnels), &no_filter).unwrap();
            eventually("the ports that are needed, and no other", || {
                open() == expected
            });
        }
        for (address, mode, family) in [
            ("192.0.2.1:4754", Mode::Gre, "IPv4"),
            ("[fd00::1]:4754", Mode::Ip6gre, "IPv6"),
        ] {
            let taken = UdpSocket::bind(address).unwrap();
            let refused = slow.open([(mode, true)].into_iter(), &no_filter);
            assert_eq!(
                refused.unwrap_err().to_string(),
                format!(
                    "UDP port 4754 is taken over {family}: GRE in UDP needs it alone; see `ss -uanp sport = :4754` and `ip \
                     fou show`"
                )
            );
            drop(taken);
            slow.open([(mode, true)].into_iter(), &no_filter).unwrap();
            UdpSocket::bind(address).expect_err("a second one gets it");
        }
        assert_eq!(count(&slow.stats().drops, DropReason::UnknownTunnel), 0);
    });
}
