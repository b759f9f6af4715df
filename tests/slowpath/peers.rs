//! Tunnels without a remote, and tunnels to groups. B answers to more addresses than it has.

use std::net::IpAddr;

use greyhound::{fib::NextHop, tunnel::Peers};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Without a remote: two peers by prefix, and a route by a gateway in the kernel and in the table alike.
fn start(mode: Mode, peers: [(&str, &str); 2], gateway: &str) -> Router {
    let mut table = Peers::default();
    for (inner, outer) in peers {
        table.insert(inner.parse().unwrap(), ip(outer));
    }
    let any = match mode.kind().underlay {
        Family::V4 => "0.0.0.0",
        Family::V6 => "::",
    };
    let tunnel = Tunnel {
        remote: ip(any),
        peers: Arc::new(table),
        ..tunnel_of(mode)
    };
    let mut router = Router::start(tunnel.clone(), None);
    let mut routes = RouteTable::default();
    let hop = NextHop::Tunnel {
        id: ID,
        gateway: Some(ip(gateway)),
        mtu: 1400,
    };
    routes.insert("10.3.0.0/16".parse().unwrap(), hop);
    router.publish_fib([tunnel], routes);
    router
}

/// B takes what goes to these addresses.
fn stand_ins(lab: &Lab, addresses: &[&str]) {
    let links = run(&format!("ip -n {} -br link show dev ul", lab.b));
    let mac = links.split_whitespace().nth(2).unwrap();
    for address in addresses {
        run(&format!(
            "ip neigh replace {address} lladdr {mac} nud permanent dev ul"
        ));
    }
}

const PEERS4: [(&str, &str); 2] = [("10.2.0.0/17", "192.0.2.2"), ("172.16.0.9/32", "192.0.2.3")];
const PEERS6: [(&str, &str); 2] = [("10.2.0.0/17", "fd00::2"), ("172.16.0.9/32", "fd00::3")];

#[test]
fn the_peer_table_and_the_next_hop_say_where_a_packet_goes() {
    Lab::run(|lab| {
        stand_ins(lab, &["192.0.2.3", "192.0.2.4"]);
        let router = start(Mode::Gre, PEERS4, "192.0.2.4");
        run("ip route add 10.3.0.0/16 via 192.0.2.4 dev gre1 onlink");
        run("ip route add 172.16.0.9 dev gre1");
        let mut judge = lab.judge();
        for (inside, outside) in [
            ("10.2.0.9", "192.0.2.2"),
            ("172.16.0.9", "192.0.2.3"),
            ("10.3.0.9", "192.0.2.4"),
        ] {
            judge.send(&format!("IP(src='10.1.0.9',dst='{inside}',ttl=64)/ICMP()"));
            judge.want(&format!(
                "IP(src='192.0.2.1',dst='{outside}',id=id,flags='DF',ttl=40)/GRE()/IP(src='10.1.0.9',dst='{inside}',ttl=63)/ICMP()"
            ));
        }
        // On the link, but nobody's: an inner address does not become an outer one.
        judge.send("IP(src='10.1.0.9',dst='10.2.200.9',ttl=64)/ICMP()");
        router.dropped(DropReason::NoRemote, 1);
        assert_eq!(router.record.state.counters.tx_packets.get(), 3);
        // From anybody.
        judge.send(
            "IP(src='192.0.2.77',dst='192.0.2.1')/GRE()/IP(src='10.2.0.9',dst='10.1.0.9',ttl=9)/ICMP()",
        );
        judge.want("IP(src='10.2.0.9',dst='10.1.0.9',ttl=8)/ICMP()");
    });
}

#[test]
fn the_kernel_is_asked_for_a_next_hop_that_the_mirror_does_not_know() {
    Lab::run(|lab| {
        stand_ins(lab, &["192.0.2.3", "192.0.2.4"]);
        let router = start(Mode::Gre, PEERS4, "192.0.2.4");
        router.enable_ipv6();
        let mut judge = lab.judge();
        // Newer than the mirror; in another table; a peer of the tunnel; and of the other family.
        run("ip route add 10.4.0.0/16 via 192.0.2.4 dev gre1 onlink");
        run("ip route add 10.5.0.0/16 via 192.0.2.3 dev gre1 onlink table 100");
        run("ip rule add to 10.5.0.0/16 lookup 100");
        run("ip route add 10.6.0.0/16 via 172.16.0.9 dev gre1 onlink");
        run("ip -6 route add fd03::/64 via ::192.0.2.4 dev gre1 onlink");
        for (inside, outside) in [
            ("10.4.0.9", "192.0.2.4"),
            ("10.5.0.9", "192.0.2.3"),
            ("10.6.0.9", "192.0.2.3"),
        ] {
            judge.send(&format!("IP(src='10.1.0.9',dst='{inside}',ttl=64)/ICMP()"));
            judge.want(&format!(
                "IP(src='192.0.2.1',dst='{outside}',id=id,flags='DF',ttl=40)/GRE()/IP(src='10.1.0.9',dst='{inside}',ttl=63)/ICMP()"
            ));
        }
        judge.send("IPv6(src='fd01::9',dst='fd03::9',hlim=64)/UDP()");
        judge.want("IP(src='192.0.2.1',dst='192.0.2.4',id=id,flags='DF',ttl=40)/GRE(proto=0x86dd)/IPv6(src='fd01::9',dst='fd03::9',hlim=63)/UDP()");
        // It does not know of one either.
        judge.send("IP(src='10.1.0.9',dst='10.2.200.9',ttl=64)/ICMP()");
        router.dropped(DropReason::NoRemote, 1);
    });
}

#[test]
fn a_packet_to_ourselves_is_not_sent() {
    Lab::run(|lab| {
        let mut router = start(Mode::Gre, PEERS4, "192.0.2.4");
        let peers = [("10.2.0.0/17", "192.0.2.99"), PEERS4[1]];
        let mut table = Peers::default();
        for (inner, outer) in peers {
            table.insert(inner.parse().unwrap(), ip(outer));
        }
        let tunnel = Tunnel {
            remote: ip("0.0.0.0"),
            peers: Arc::new(table),
            ..tunnel()
        };
        let mut fib = Fib::new(
            Vec::new(),
            [(tunnel, Egress::default())],
            &RouteTable::default(),
        );
        fib.set_own([ip("192.0.2.99")]);
        router.publish_as(Arc::new(fib), None);
        let mut judge = lab.judge();
        judge.send("IP(src='10.1.0.9',dst='10.2.0.9',ttl=64)/ICMP()");
        router.dropped(DropReason::Recursion, 1);
        // Others are carried as ever.
        judge.send("IP(src='192.0.2.77',dst='192.0.2.1')/GRE()/IP(src='10.2.0.9',dst='10.1.0.9',ttl=9)/ICMP()");
        judge.want("IP(src='10.2.0.9',dst='10.1.0.9',ttl=8)/ICMP()");
    });
}

#[test]
fn what_is_for_everybody_goes_to_each_peer() {
    Lab::run(|lab| {
        stand_ins(lab, &["192.0.2.3", "192.0.2.4", "fd00::3"]);
        for (mode, peers, [one, two]) in [
            (Mode::Gre, PEERS4, ["192.0.2.2", "192.0.2.3"]),
            (Mode::Ip6gre, PEERS6, ["fd00::2", "fd00::3"]),
        ] {
            let router = start(mode, peers, "192.0.2.4");
            let mut judge = lab.judge();
            let socket = UdpSocket::bind("172.16.0.1:520").unwrap();
            socket.set_broadcast(true).unwrap();
            run("ip route replace 255.255.255.255 dev gre1");
            for to in ["224.0.0.9", "255.255.255.255"] {
                socket.send_to(b"hello", (to, 520)).unwrap();
                let ttl = if to == "224.0.0.9" { 1 } else { 64 };
                for remote in [one, two] {
                    let ip = match mode {
                        Mode::Gre => {
                            format!("IP(src='192.0.2.1',dst='{remote}',id=id,flags='DF',ttl=40)")
                        }
                        _ => format!("IPv6(src='fd00::1',dst='{remote}',nh=47,fl=0x12345,hlim=40)"),
                    };
                    let at = if mode == Mode::Gre { "inner" } else { "inner6" };
                    judge.want(&format!(
                        "{ip}/GRE()/IP(src='172.16.0.1',dst='{to}',id={at},flags='DF',ttl={ttl})/UDP(sport=520,dport=520)/b'hello'"
                    ));
                }
            }
            assert_eq!(router.record.state.counters.tx_packets.get(), 4);
            assert_eq!(router.slow.stats().drops.total(), 0);
            drop(router);
            run("ip link del gre1");
        }
    });
}

#[test]
fn a_group_takes_everything_and_gives_what_any_member_sends() {
    Lab::run(|lab| {
        let link = run("ip -o link show dev ul");
        let device = link.split(':').next().unwrap().parse().unwrap();
        for (mode, group, mac, [us, member]) in [
            (
                Mode::Gre,
                "239.129.1.2",
                "01:00:5e:01:01:02",
                ["192.0.2.1", "192.0.2.77"],
            ),
            (
                Mode::Ip6gre,
                "ff05::4242",
                "33:33:00:00:42:42",
                ["fd00::1", "fd00::77"],
            ),
        ] {
            let tunnel = Tunnel {
                remote: ip(group),
                dev: Some(device),
                ..tunnel_of(mode)
            };
            let joined = || run("ip maddr show dev ul").contains(group);
            let mut router = Router::start(tunnel.clone(), None);
            let mut routes = RouteTable::default();
            let hop = NextHop::Tunnel {
                id: ID,
                gateway: None,
                mtu: 1400,
            };
            routes.insert("10.2.0.0/16".parse().unwrap(), hop);
            router.publish_fib([tunnel.clone()], routes);
            assert!(joined());
            let mut judge = lab.judge();
            let header = |from: &str| match mode {
                Mode::Gre => format!("IP(src='{from}',dst='{group}',id=id,flags='DF',ttl=40)"),
                _ => format!("IPv6(src='{from}',dst='{group}',nh=47,fl=0x12345,hlim=40)"),
            };
            judge.send("IP(src='10.1.0.9',dst='10.2.0.9',ttl=64)/ICMP()");
            judge.want_to(
                mac,
                &format!(
                    "{}/GRE()/IP(src='10.1.0.9',dst='10.2.0.9',ttl=63)/ICMP()",
                    header(us)
                ),
            );
            let socket = UdpSocket::bind("172.16.0.1:520").unwrap();
            socket.send_to(b"hello", "224.0.0.9:520").unwrap();
            let at = if mode == Mode::Gre { "inner" } else { "inner6" };
            judge.want_to(mac, &format!(
                "{}/GRE()/IP(src='172.16.0.1',dst='224.0.0.9',id={at},flags='DF',ttl=1)/UDP(sport=520,dport=520)/b'hello'",
                header(us)
            ));
            judge.send_to(
                mac,
                &format!(
                    "{}/GRE()/IP(src='10.2.0.9',dst='10.1.0.9',ttl=9)/ICMP()",
                    header(member)
                ),
            );
            judge.want("IP(src='10.2.0.9',dst='10.1.0.9',ttl=8)/ICMP()");
            // For another member: it has got it too.
            judge.send_to(
                mac,
                &format!(
                    "{}/GRE()/IP(src='10.2.0.9',dst='10.2.0.8',ttl=9)/ICMP()",
                    header(member)
                ),
            );
            router.dropped(DropReason::OtherMember, 1);
            // Nothing of our own came back.
            let counters = &router.record.state.counters;
            assert_eq!(
                (counters.tx_packets.get(), counters.rx_packets.get()),
                (2, 1)
            );
            assert_eq!(router.slow.stats().drops.total(), 1);
            // Down is out of the group.
            router.publish(
                Tunnel {
                    up: false,
                    ..tunnel
                },
                None,
            );
            assert!(!joined());
            drop(router);
            run("ip link del gre1");
        }
    });
}
