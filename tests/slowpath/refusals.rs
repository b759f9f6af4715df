//! Every reason for which the slow path discards a packet, and a packet that it discards for it.

use std::{collections::BTreeSet, net::IpAddr};

use greyhound::fib::NextHop;

use super::*;

/// What never comes to the slow path, or is not its own to discard.
const ELSEWHERE: &[DropReason] = &[
    // The kernel has looked at the outer header before, put fragments together, and summed up datagrams; whether one may
    // come without a sum is the socket filter's question.
    DropReason::OuterTruncated,
    DropReason::OuterVersion,
    DropReason::OuterHeaderLength,
    DropReason::OuterTotalLength,
    DropReason::OuterChecksum,
    DropReason::OuterFragment,
    DropReason::UdpLength,
    DropReason::UdpChecksum,
    // The workers'.
    DropReason::OtherMac,
    DropReason::VlanTag,
    DropReason::NotIp,
    DropReason::ForwardingOff,
    DropReason::TxRingFull,
    DropReason::NoFrame,
    // Between two workers alone.
    DropReason::SpreadFull,
];

/// How a packet gets there.
enum By<'a> {
    /// B sends it: a tunnel packet to A, or an inner one that A routes into the tunnel.
    Wire(&'a str),
    /// A worker punted it.
    Punt(PuntTo, &'a str),
    /// A sends a datagram of so many bytes into the tunnel.
    Host(usize),
}

/// The router, and the reasons that were seen.
struct Bench {
    router: Router,
    judge: Judge,
    punts: PuntQueue,
    reached: BTreeSet<&'static str>,
}

impl Bench {
    /// A packet that is dropped, for this reason and no other.
    fn drops(&mut self, reason: DropReason, by: By<'_>) {
        let stats = self.router.slow.stats();
        let before = (count(&stats.drops, reason), stats.drops.total());
        match by {
            By::Wire(packet) => self.judge.send(packet),
            By::Punt(to, packet) => {
                let packet = scapy(packet);
                let pushed = self
                    .punts
                    .push(&packet, to, PuntReason::NotPlain, PortId(0));
                assert!(pushed);
                self.punts.announce();
            }
            By::Host(bytes) => {
                let host = UdpSocket::bind("172.16.0.1:0").unwrap();
                host.send_to(&vec![0; bytes], "10.2.0.9:9").unwrap();
            }
        }
        let word = reason.as_str();
        eventually(word, || stats.drops.total() > before.1);
        let after = (count(&stats.drops, reason), stats.drops.total());
        let drops = || stats.drops.iter().filter(|(_, n)| *n > 0);
        let seen: Vec<_> = drops().map(|(reason, n)| (reason.as_str(), n)).collect();
        assert_eq!(after, (before.0 + 1, before.1 + 1), "{word}: {seen:?}");
        self.reached.insert(word);
    }

    fn publish(&mut self, tunnel: Tunnel) {
        self.router.publish(tunnel, None);
    }
}

const FROM_B: &str = "IP(src='192.0.2.2',dst='192.0.2.1')";
const INNER: &str = "IP(src='10.2.0.9',dst='10.1.0.9')/UDP(sport=1,dport=2)/b'inner'";

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn gretap() -> Tunnel {
    Tunnel {
        name: "gre1".into(),
        ..Tunnel::new(Mode::Gretap, [192, 0, 2, 1], [192, 0, 2, 2])
    }
}

fn broken_outside(bench: &mut Bench) {
    let from_b = |gre: &str| format!("{FROM_B}/{gre}/{INNER}");
    let raw =
        |hex: &str| format!("IP(src='192.0.2.2',dst='192.0.2.1',proto=47)/bytes.fromhex('{hex}')");
    bench.publish(tunnel());
    bench.drops(DropReason::GreTruncated, By::Wire(&raw("20000800")));
    bench.drops(DropReason::GreVersion, By::Wire(&from_b("GRE(version=1)")));
    bench.drops(DropReason::GreFlags, By::Wire(&raw("4000080000000000")));
    let other_key = from_b("GRE(key_present=1,key=5)");
    bench.drops(DropReason::UnknownTunnel, By::Wire(&other_key));
    let unknown = raw("0000880b0001020304050607");
    bench.drops(DropReason::UnknownProtocol, By::Wire(&unknown));
    // A frame to a tunnel that has none, and a packet to one that has nothing else.
    let frame = format!("{FROM_B}/GRE(proto=0x6558)/Ether()/{INNER}");
    bench.drops(DropReason::UnknownProtocol, By::Wire(&frame));
    bench.publish(gretap());
    bench.drops(DropReason::UnknownTunnel, By::Wire(&from_b("GRE()")));

    let summed = Tunnel {
        icsum: true,
        ..tunnel()
    };
    bench.publish(summed);
    bench.drops(DropReason::GreChecksumPresence, By::Wire(&from_b("GRE()")));
    let wrong = from_b("GRE(chksum_present=1,chksum=1)");
    bench.drops(DropReason::GreChecksum, By::Wire(&wrong));
    let numbered = Tunnel {
        iseq: true,
        ..tunnel()
    };
    bench.publish(numbered);
    bench.drops(DropReason::SequenceMissing, By::Wire(&from_b("GRE()")));
    let seventh = from_b("GRE(seqnum_present=1,sequence_number=7)");
    bench.judge.send(&seventh);
    let counters = bench.router.record.clone();
    eventually("the first of two", || {
        counters.state.counters.rx_packets.get() == 1
    });
    bench.drops(DropReason::SequenceOld, By::Wire(&seventh));

    // From our own address, where anybody may send; the kernel lets it in only when told.
    run("sysctl -qw net.ipv4.conf.ul.accept_local=1");
    let any = Tunnel {
        remote: ip("0.0.0.0"),
        ..tunnel()
    };
    let mut from_anyone = Fib::new(
        Vec::new(),
        [(any, Egress::default())],
        &RouteTable::default(),
    );
    from_anyone.set_own([ip("192.0.2.1")]);
    bench.router.publish_as(Arc::new(from_anyone), None);
    let ours = format!("IP(src='192.0.2.1',dst='192.0.2.1')/GRE()/{INNER}");
    bench.drops(DropReason::OuterMartian, By::Wire(&ours));
}

fn broken_inside(bench: &mut Bench) {
    bench.publish(tunnel());
    for (reason, inner) in [
        (DropReason::InnerTruncated, "bytes([0x45]*19)"),
        (DropReason::InnerVersion, "IP(version=5)/UDP()"),
        (DropReason::InnerHeaderLength, "IP(ihl=4)/UDP()"),
        (DropReason::InnerTotalLength, "IP(len=2000)/UDP()"),
        (DropReason::InnerChecksum, "IP(chksum=1)/UDP()"),
    ] {
        let packet = format!("{FROM_B}/GRE(proto=0x0800)/{inner}");
        bench.drops(reason, By::Wire(&packet));
    }
    let congested = format!("IP(src='192.0.2.2',dst='192.0.2.1',tos=3)/GRE()/{INNER}");
    bench.drops(DropReason::EcnCongestion, By::Wire(&congested));

    let sit = Tunnel::new(Mode::Sit, [192, 0, 2, 1], [192, 0, 2, 2]);
    bench.publish(sit);
    let martian = format!("{FROM_B}/IPv6(src='ff02::1',dst='fd01::9')/UDP()");
    bench.drops(DropReason::InnerMartian, By::Wire(&martian));

    let nvgre = Tunnel {
        nvgre: true,
        ikey: Some(GreKey(0x12_3456)),
        okey: Some(GreKey(0x12_3456)),
        ..gretap()
    };
    bench.publish(nvgre);
    let tagged = format!(
        "{FROM_B}/GRE(proto=0x6558,key_present=1,key=0x12345600)/Ether()/Dot1Q(vlan=7)/{INNER}"
    );
    bench.drops(DropReason::InnerTagged, By::Wire(&tagged));
    let wired = Tunnel {
        wire: Some(1000),
        ..gretap()
    };
    bench.publish(wired);
    let large = format!("{FROM_B}/GRE(proto=0x6558)/Ether()/{INNER}/bytes(1000)");
    bench.drops(DropReason::FrameTooBig, By::Wire(&large));
}

fn back_into_the_tunnel(bench: &mut Bench) {
    let routed = |tunnel: Tunnel| {
        let mut routes = RouteTable::default();
        let hop = NextHop::Tunnel {
            id: ID,
            gateway: None,
            mtu: 1400,
        };
        routes.insert("10.2.0.0/16".parse().unwrap(), hop);
        Arc::new(Fib::new(Vec::new(), [(tunnel, Egress::default())], &routes))
    };
    let onward = "IP(src='10.2.0.7',dst='10.2.0.9')/UDP(sport=1,dport=2)/b'onward'";
    bench.router.publish_as(routed(tunnel()), None);
    let outer = format!("{FROM_B}/GRE()/{onward}");
    bench.drops(DropReason::Recursion, By::Wire(&outer));
    let group = Tunnel {
        remote: ip("239.1.1.1"),
        ..tunnel()
    };
    bench.router.publish_as(routed(group), None);
    bench.drops(
        DropReason::OtherMember,
        By::Punt(PuntTo::Tunnel(ID), onward),
    );
}

fn on_the_way_in(bench: &mut Bench) {
    let inner = "IP(src='10.1.0.9',dst='10.2.0.9')/UDP(sport=1,dport=2)/b'inner'";
    let own = "IP(src='192.0.2.1',dst='192.0.2.2')/GRE()/IP()/UDP()";
    let nested = format!("IP(src='10.1.0.9',dst='10.2.0.9')/{own}");
    for (reason, packet, tunnel) in [
        (
            DropReason::TunnelDown,
            inner,
            Tunnel {
                up: false,
                ..tunnel()
            },
        ),
        (
            DropReason::NoKeepalive,
            inner,
            Tunnel {
                alive: false,
                ..tunnel()
            },
        ),
        (
            DropReason::NoRemote,
            inner,
            Tunnel {
                remote: ip("0.0.0.0"),
                ..tunnel()
            },
        ),
        (DropReason::Recursion, &nested, tunnel()),
        // No way there.
        (
            DropReason::SlowPathRefused,
            inner,
            Tunnel {
                remote: ip("203.0.113.1"),
                ..tunnel()
            },
        ),
    ] {
        bench.publish(tunnel);
        bench.drops(reason, By::Wire(packet));
    }
    let numbered = Tunnel {
        oseq: true,
        ..tunnel()
    };
    let (queue, _handovers) = bounded(0);
    let waker = Box::new(Bell(Arc::default()));
    bench.router.publish(numbered, Some(Owner { queue, waker }));
    bench.drops(DropReason::PuntQueueFull, By::Wire(inner));

    // Larger than the path, with DF; and larger than any outer packet.
    let large = Tunnel {
        mtu: 65535,
        ..tunnel()
    };
    run("ip link set gre1 mtu 65535");
    bench.publish(large);
    bench.drops(DropReason::NoHeadroom, By::Host(65507));
    bench.drops(DropReason::OuterTooBig, By::Host(3000));

    let ipip = Tunnel::new(Mode::Ipip, [192, 0, 2, 1], [192, 0, 2, 2]);
    bench.publish(ipip);
    let six = "IPv6(src='fd01::9',dst='fd02::9')/UDP(sport=1,dport=2)/b'six'";
    bench.drops(DropReason::UnknownProtocol, By::Punt(PuntTo::Into(ID), six));
    let over_ipv6 = tunnel_of(Mode::Ip6gre);
    bench.publish(over_ipv6);
    let exhausted = "IPv6(src='fd01::9',dst='fd02::9')/IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=4,optdata=b'\\0'),\
        PadN(optdata=b'\\0')])/UDP(sport=1,dport=2)";
    bench.drops(
        DropReason::EncapLimit,
        By::Punt(PuntTo::Into(ID), exhausted),
    );
}

#[test]
fn every_reason_has_a_packet_that_is_dropped_for_it() {
    Lab::run(|lab| {
        let router = Router::start(tunnel(), None);
        let mut bench = Bench {
            punts: router.punts(),
            judge: lab.judge(),
            router,
            reached: BTreeSet::new(),
        };
        broken_outside(&mut bench);
        broken_inside(&mut bench);
        back_into_the_tunnel(&mut bench);
        on_the_way_in(&mut bench);
        let elsewhere = ELSEWHERE.iter().map(|reason| reason.as_str());
        let known: BTreeSet<&str> = bench.reached.iter().copied().chain(elsewhere).collect();
        let all: BTreeSet<&str> = DropReason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(known, all, "a reason that no packet here is dropped for");
    });
}
