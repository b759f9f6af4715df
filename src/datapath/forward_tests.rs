use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::{
    fib::{Egress, Forwards, NextHop, ResolutionCache, RouteTable},
    packet::{GreKey, MacAddr, VecBuf},
    tunnel::{Family, Mode, Payload, TunnelState, tests::tunnel},
};
use etherparse::PacketBuilder;

#[path = "forward_kernels_tests.rs"]
mod kernels;
#[path = "forward_refusal_tests.rs"]
mod refusals;
#[path = "forward_udp_tests.rs"]
mod udp;
#[path = "forward_vlan_tests.rs"]
mod vlan;
#[path = "forward_wire_tests.rs"]
mod wire;

const UNDERLAY: PortId = PortId(0);
const OVERLAY: PortId = PortId(1);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x20]);
const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x10]);
const INSIDE: [u8; 4] = [10, 1, 0, 2];
const OUTSIDE: [u8; 4] = [10, 2, 0, 2];

fn mac(port: PortId) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, 0xf0 + port.0 as u8])
}

/// A router with one underlay and one overlay port, a plain tunnel and a keyed one with sequence numbers.
struct Bed {
    ports: Vec<PortInfo>,
    tunnels: Vec<(Tunnel, Egress)>,
    routes: RouteTable,
    state: ForwardState,
}

impl Bed {
    fn new() -> Self {
        let on = Forwards { v4: true, v6: true };
        let port = |id: PortId, name: &str, underlay| PortInfo {
            name: name.into(),
            ifindex: 10 + u32::from(id.0),
            mac: mac(id),
            mtu: 1500,
            underlay,
            overlay: !underlay,
            forwards: on,
            partial_checksums: false,
            wire: None,
            vlan: None,
        };
        let egress = Egress {
            adjacency: Some(Adjacency {
                vlan: None,
                mark: Default::default(),
                port: UNDERLAY,
                destination: PEER,
                source: mac(UNDERLAY),
                mtu: 1500,
            }),
            forwards: on,
            wire: None,
        };
        let numbered = Tunnel {
            id: TunnelId(1),
            ikey: Some(GreKey(42)),
            okey: Some(GreKey(42)),
            iseq: true,
            oseq: true,
            mtu: 1468,
            ..tunnel()
        };
        let mut routes = RouteTable::default();
        let to = |n, mtu| NextHop::Tunnel {
            id: TunnelId(n),
            gateway: None,
            mtu,
        };
        let connected = NextHop::Connected {
            port: OVERLAY,
            mtu: 1500,
        };
        for (prefix, hop) in [
            ("10.1.0.0/24", connected.clone()),
            ("fd01::/64", connected),
            ("10.1.0.1/32", NextHop::Local),
            ("10.2.0.0/24", to(0, 1476)),
            ("fd02::/64", to(0, 1476)),
            ("10.3.0.0/24", to(1, 1468)),
            ("10.9.0.0/24", NextHop::Kernel),
        ] {
            routes.insert(prefix.parse().unwrap(), hop);
        }
        Self {
            ports: vec![port(UNDERLAY, "eth0", true), port(OVERLAY, "eth1", false)],
            tunnels: vec![(tunnel(), egress), (numbered, egress)],
            routes,
            state: ForwardState {
                trail: TrailNotes::default(),
                stats: Arc::default(),
                tunnels: (0..2)
                    .map(|_| Some(Arc::new(TunnelRecord::new(0, 1, Arc::default()))))
                    .collect(),
                owns_sequences: true,
                resolutions: ResolutionCache::default(),
            },
        }
    }

    fn fib(&mut self) -> Fib {
        let mut fib = Fib::new(
            self.ports.clone(),
            self.tunnels.clone(),
            &std::mem::take(&mut self.routes),
        );
        fib.add_neighbour(OVERLAY, Ipv4Addr::from(INSIDE).into(), HOST);
        fib.add_neighbour(OVERLAY, "fd01::2".parse().unwrap(), HOST);
        fib.set_own(["10.1.0.1".parse().unwrap()]);
        fib
    }

    fn run(&mut self, frame: &[u8], from: PortId) -> (Verdict, Vec<u8>) {
        let fib = self.fib();
        let mut buf = VecBuf::new(64, frame);
        let verdict = forward(&mut buf, from, &fib, &mut self.state);
        (verdict, buf.data().to_vec())
    }

    fn verdict(&mut self, frame: &[u8], from: PortId) -> Verdict {
        self.run(frame, from).0
    }

    fn record(&self, id: usize) -> &TunnelRecord {
        self.state.tunnels[id].as_ref().unwrap()
    }
}

fn ipv4(source: [u8; 4], destination: [u8; 4], ttl: u8, payload: usize) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ipv4(source, destination, ttl)
        .udp(1000, 2000)
        .write(&mut out, &vec![0xab; payload])
        .unwrap();
    out
}

fn ipv6(source: &str, destination: &str, hops: u8, payload: usize) -> Vec<u8> {
    let octets = |a: &str| a.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut out = Vec::new();
    PacketBuilder::ipv6(octets(source), octets(destination), hops)
        .udp(1000, 2000)
        .write(&mut out, &vec![0xab; payload])
        .unwrap();
    out
}

fn framed(to: MacAddr, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14];
    let kind = if packet[0] >> 4 == 6 {
        EtherType::IPV6
    } else {
        EtherType::IPV4
    };
    ethernet::write(&mut frame, to, HOST, kind);
    frame.extend_from_slice(packet);
    frame
}

/// A frame from the inside host to the far side.
fn outbound(destination: [u8; 4], ttl: u8, payload: usize) -> Vec<u8> {
    framed(mac(OVERLAY), &ipv4(INSIDE, destination, ttl, payload))
}

/// A frame from the tunnel's far end that carries `inner`; `numbered` uses the second tunnel.
fn inbound(inner: &[u8], numbered: bool) -> Vec<u8> {
    let far = Tunnel {
        okey: numbered.then_some(GreKey(42)),
        oseq: numbered,
        ..tunnel().far_end()
    };
    let mut buf = VecBuf::new(64, inner);
    tunnel::encapsulate(
        &far,
        far.remote,
        &mut buf,
        &TunnelState::new(0, 1, Arc::default()),
    )
    .unwrap();
    framed(mac(UNDERLAY), buf.data())
}

fn service(reason: PuntReason) -> Verdict {
    Verdict::Punt(reason, PuntTo::Service)
}

fn into_tun(reason: PuntReason) -> Verdict {
    Verdict::Punt(reason, PuntTo::Tunnel(TunnelId(0)))
}

#[test]
fn an_outbound_packet_is_encapsulated_and_addressed_to_the_underlay_neighbour() {
    let mut bed = Bed::new();
    let (verdict, frame) = bed.run(&outbound(OUTSIDE, 64, 32), OVERLAY);
    assert_eq!(verdict, Verdict::Transmit(UNDERLAY));
    let ethernet = Ethernet::parse(&frame).unwrap();
    assert_eq!(
        (ethernet.destination(), ethernet.source()),
        (PEER, mac(UNDERLAY))
    );
    let outer = Ipv4::parse(ethernet.payload()).unwrap();
    assert_eq!((outer.protocol(), outer.ttl()), (protocol::GRE, 63));
    // gre-7: the inner TTL went down by one, and its checksum with it.
    assert_eq!(&frame[14 + 24..], ipv4(INSIDE, OUTSIDE, 63, 32));
    let counters = &bed.record(0).state.counters;
    assert_eq!(
        (counters.tx_packets.get(), counters.tx_bytes.get()),
        (1, 60)
    );
}

#[test]
fn an_inbound_packet_is_decapsulated_and_addressed_to_the_inner_neighbour() {
    let mut bed = Bed::new();
    for (sent, expected) in [
        (ipv4(OUTSIDE, INSIDE, 64, 32), ipv4(OUTSIDE, INSIDE, 63, 32)),
        (
            ipv6("fd02::2", "fd01::2", 9, 5),
            ipv6("fd02::2", "fd01::2", 8, 5),
        ),
    ] {
        bed.routes = Bed::new().routes;
        let (verdict, frame) = bed.run(&inbound(&sent, false), UNDERLAY);
        assert_eq!(verdict, Verdict::Transmit(OVERLAY));
        let ethernet = Ethernet::parse(&frame).unwrap();
        assert_eq!(
            (ethernet.destination(), ethernet.source()),
            (HOST, mac(OVERLAY))
        );
        assert_eq!(ethernet.payload(), expected);
    }
    let counters = &bed.record(0).state.counters;
    assert_eq!(counters.rx_packets.get(), 2);
    assert_eq!(counters.rx_bytes.get(), 60 + 53);
}

#[test]
fn every_outbound_exception_goes_to_the_kernel_as_it_came() {
    let fragment = {
        let mut frame = outbound(OUTSIDE, 64, 32);
        frame[14 + 6] = 0x20;
        frame
    };
    let v6 = |source, destination| framed(mac(OVERLAY), &ipv6(source, destination, 64, 8));
    let hop_by_hop = {
        let mut frame = v6("fd01::2", "fd02::2");
        frame[14 + 6] = 0;
        frame
    };
    let from = |source| framed(mac(OVERLAY), &ipv4(source, OUTSIDE, 64, 8));
    let cases: &[(&str, Vec<u8>, PuntReason)] = &[
        ("ttl 1", outbound(OUTSIDE, 1, 8), PuntReason::TtlExpiring),
        ("fragment", fragment, PuntReason::NotPlain),
        ("hop by hop", hop_by_hop, PuntReason::NotPlain),
        (
            "multicast",
            outbound([224, 0, 0, 5], 64, 8),
            PuntReason::NotPlain,
        ),
        ("martian source", from([127, 0, 0, 1]), PuntReason::NotPlain),
        (
            "from the router itself",
            from([10, 1, 0, 1]),
            PuntReason::NotPlain,
        ),
        ("link-local", v6("fe80::1", "fd02::2"), PuntReason::NotPlain),
        (
            "to the router",
            outbound([10, 1, 0, 1], 64, 8),
            PuntReason::LocalDelivery,
        ),
        (
            "no route",
            outbound([198, 51, 100, 1], 64, 8),
            PuntReason::NoRoute,
        ),
        (
            "not into a tunnel",
            outbound([10, 9, 0, 1], 64, 8),
            PuntReason::NoRoute,
        ),
        (
            "one over the mtu",
            outbound(OUTSIDE, 64, 1477 - 28),
            PuntReason::TooBig,
        ),
    ];
    for (name, frame, reason) in cases {
        let mut bed = Bed::new();
        let (verdict, after) = bed.run(frame, OVERLAY);
        assert_eq!(verdict, service(*reason), "{name}");
        assert_eq!(after, frame[14..], "{name}: changed");
    }
    let fits = outbound(OUTSIDE, 64, 1476 - 28);
    let mut bed = Bed::new();
    assert_eq!(bed.verdict(&fits, OVERLAY), Verdict::Transmit(UNDERLAY));
}

#[test]
fn what_the_kernel_has_switched_off_is_left_to_it() {
    let frame = outbound(OUTSIDE, 64, 8);
    let mut bed = Bed::new();
    bed.ports[1].forwards.v4 = false;
    assert_eq!(
        bed.verdict(&frame, OVERLAY),
        Verdict::Drop(DropReason::ForwardingOff)
    );

    let mut bed = Bed::new();
    bed.tunnels[0].1.adjacency = None;
    let not_ready = service(PuntReason::TunnelNotReady);
    assert_eq!(bed.verdict(&frame, OVERLAY), not_ready);

    let mut bed = Bed::new();
    bed.tunnels[0].0.up = false;
    assert_eq!(bed.verdict(&frame, OVERLAY), not_ready);
    bed.routes = Bed::new().routes;
    let arriving = inbound(&ipv4(OUTSIDE, INSIDE, 64, 8), false);
    assert_eq!(
        bed.verdict(&arriving, UNDERLAY),
        service(PuntReason::UnknownTunnel)
    );

    let mut bed = Bed::new();
    bed.tunnels[0].1.forwards.v4 = false;
    assert_eq!(
        bed.verdict(&arriving, UNDERLAY),
        into_tun(PuntReason::ForwardingOff)
    );
}

#[test]
fn every_inbound_exception_goes_into_the_tunnels_device() {
    let to = |destination, ttl, payload| ipv4(OUTSIDE, destination, ttl, payload);
    let cases = [
        ("ttl 1", to(INSIDE, 1, 8), PuntReason::TtlExpiring),
        (
            "the router itself",
            to([10, 1, 0, 1], 64, 8),
            PuntReason::LocalDelivery,
        ),
        (
            "unknown neighbour",
            to([10, 1, 0, 77], 64, 8),
            PuntReason::Unresolved,
        ),
        (
            "no route",
            to([198, 51, 100, 1], 64, 8),
            PuntReason::NoRoute,
        ),
        (
            "into a tunnel that it does not fit",
            to([10, 3, 0, 1], 64, 1441),
            PuntReason::TooBig,
        ),
        ("multicast", to([224, 0, 0, 5], 1, 8), PuntReason::NotPlain),
    ];
    for (name, inner, reason) in cases {
        let mut bed = Bed::new();
        let (verdict, after) = bed.run(&inbound(&inner, false), UNDERLAY);
        assert_eq!(verdict, into_tun(reason), "{name}");
        assert_eq!(after, inner, "{name}: changed");
        // The slow path counts these when it delivers them.
        assert_eq!(bed.record(0).state.counters.rx_packets.get(), 0);
    }
    let mut bed = Bed::new();
    bed.ports[1].mtu = 1400;
    bed.routes.insert(
        "10.1.0.0/24".parse().unwrap(),
        NextHop::Connected {
            port: OVERLAY,
            mtu: 1400,
        },
    );
    let big = inbound(&to(INSIDE, 64, 1401 - 28), false);
    assert_eq!(bed.verdict(&big, UNDERLAY), into_tun(PuntReason::TooBig));
}

#[test]
fn broken_tunnel_packets_are_dropped_for_their_own_reason() {
    let good = inbound(&ipv4(OUTSIDE, INSIDE, 64, 8), false);
    let with = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    let cases = [
        ("gre routing bit", with(34, 0x40), DropReason::GreFlags),
        (
            "unknown payload",
            with(36, 0x99),
            DropReason::UnknownProtocol,
        ),
        ("inner version", with(38, 0x55), DropReason::InnerVersion),
        ("inner length", with(41, 0xff), DropReason::InnerTotalLength),
        ("inner checksum", with(48, 0xff), DropReason::InnerChecksum),
        ("outer checksum", with(15, 0xff), DropReason::OuterChecksum),
        ("outer length", with(16, 0xff), DropReason::OuterTotalLength),
        (
            "outer truncated",
            good[..14 + 19].to_vec(),
            DropReason::OuterTruncated,
        ),
    ];
    for (name, frame, reason) in cases {
        let verdict = Bed::new().verdict(&frame, UNDERLAY);
        assert_eq!(verdict, Verdict::Drop(reason), "{name}");
    }
    let mut bed = Bed::new();
    bed.verdict(&with(36, 0x99), UNDERLAY);
    let counted: Vec<_> = bed.record(0).drops.iter().filter(|(_, n)| *n > 0).collect();
    assert_eq!(counted, [(DropReason::UnknownProtocol, 1)]);
    // PPTP is somebody else's GRE.
    assert_eq!(
        Bed::new().verdict(&with(35, 1), UNDERLAY),
        service(PuntReason::NotPlain)
    );
}

#[test]
fn frames_that_are_not_ours_to_touch_are_dropped() {
    let mut other = outbound(OUTSIDE, 64, 8);
    other[5] ^= 1;
    assert_eq!(
        Bed::new().verdict(&other, OVERLAY),
        Verdict::Drop(DropReason::OtherMac)
    );
    let mut arp = outbound(OUTSIDE, 64, 8);
    arp[13] = 0x06;
    assert_eq!(
        Bed::new().verdict(&arp, OVERLAY),
        Verdict::Drop(DropReason::NotIp)
    );
    assert_eq!(
        Bed::new().verdict(&[0; 13], OVERLAY),
        Verdict::Drop(DropReason::NotIp)
    );
}

/// The packet that is to come back to `tunnel`.
fn to_come_back(tunnel: &Tunnel) -> Vec<u8> {
    let mut out = [0; keepalive::MAX_LEN];
    let len = keepalive::write(tunnel, &mut out).unwrap();
    out[..len].to_vec()
}

#[test]
fn keepalives_are_known_on_their_way_there_and_back() {
    let keepalive = |id| Verdict::Punt(PuntReason::Keepalive, PuntTo::Keepalive(TunnelId(id)));
    for id in [0, 1] {
        // Numbers do not matter to what comes back beside the tunnel.
        let mut bed = Bed::new();
        bed.state.owns_sequences = false;
        bed.tunnels[id].0.keepalive = true;
        let ours = to_come_back(&bed.tunnels[id].0);
        let came = bed.run(&framed(mac(UNDERLAY), &ours), UNDERLAY);
        assert_eq!(came, (keepalive(id as u32), ours), "tunnel {id}");

        let mut bed = Bed::new();
        let theirs = to_come_back(&bed.tunnels[id].0.far_end());
        let came = bed.run(&inbound(&theirs, id == 1), UNDERLAY);
        assert_eq!(came, (keepalive(id as u32), theirs), "tunnel {id}");
        assert_eq!(bed.record(id).state.counters.rx_packets.get(), 0);
    }
}

#[test]
fn what_only_looks_like_a_keepalive_is_none() {
    // Nobody waits for it.
    let ours = to_come_back(&tunnel());
    let unknown = Verdict::Drop(DropReason::UnknownProtocol);
    let came = Bed::new().verdict(&framed(mac(UNDERLAY), &ours), UNDERLAY);
    assert_eq!(came, unknown);
    // To somebody else, or from somebody else, or not through the tunnel.
    let theirs = to_come_back(&tunnel().far_end());
    for at in [15, 19] {
        let mut other = theirs.clone();
        other[at] ^= 0x40;
        other[10..12].fill(0);
        let sum = crate::packet::Checksum::new()
            .add_bytes(&other[..20])
            .finish();
        other[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut bed = Bed::new();
        bed.routes.insert(
            "192.0.2.0/24".parse().unwrap(),
            NextHop::Connected {
                port: UNDERLAY,
                mtu: 1500,
            },
        );
        let verdict = bed.verdict(&inbound(&other, false), UNDERLAY);
        let Verdict::Punt(reason, PuntTo::Tunnel(TunnelId(0))) = verdict else {
            panic!("{verdict:?}");
        };
        assert_ne!(reason, PuntReason::Keepalive);
    }
    let bare = Bed::new().verdict(&framed(mac(UNDERLAY), &theirs), UNDERLAY);
    assert_eq!(bare, service(PuntReason::UnknownTunnel));
}

#[test]
fn sequence_numbers_are_left_to_their_owner() {
    let out = outbound([10, 3, 0, 2], 64, 8);
    let arriving = inbound(&ipv4([10, 3, 0, 2], INSIDE, 64, 8), true);
    let mut bed = Bed::new();
    bed.state.owns_sequences = false;
    let owner = Verdict::Punt(PuntReason::SequenceOwner, PuntTo::Owner(TunnelId(1)));
    assert_eq!(bed.run(&out, OVERLAY), (owner, out[14..].to_vec()));
    bed.routes = Bed::new().routes;
    assert_eq!(
        bed.run(&arriving, UNDERLAY),
        (owner, arriving[14..].to_vec())
    );
    bed.routes = Bed::new().routes;
    bed.state.owns_sequences = true;
    assert_eq!(bed.verdict(&out, OVERLAY), Verdict::Transmit(UNDERLAY));
    bed.routes = Bed::new().routes;
    assert_eq!(bed.verdict(&arriving, UNDERLAY), Verdict::Transmit(OVERLAY));
    bed.routes = Bed::new().routes;
    assert_eq!(
        bed.verdict(&arriving, UNDERLAY),
        Verdict::Drop(DropReason::SequenceOld)
    );
}

#[test]
fn handed_over_packets_take_the_same_ways() {
    let mut bed = Bed::new();
    let fib = bed.fib();
    let mut run = |kind, bytes: &[u8]| {
        let mut buf = VecBuf::new(64, bytes);
        forward_handover(&mut buf, kind, &fib, &mut bed.state)
    };
    let inner = ipv4(INSIDE, [10, 3, 0, 2], 64, 8);
    let into = HandoverKind::IntoTunnel(TunnelId(1), tunnel().remote);
    assert_eq!(run(into, &inner), Verdict::Transmit(UNDERLAY));
    let from = HandoverKind::FromOverlay(OVERLAY);
    assert_eq!(run(from, &inner), Verdict::Transmit(UNDERLAY));
    let arriving = inbound(&ipv4([10, 3, 0, 2], INSIDE, 64, 8), true);
    let outer = HandoverKind::FromUnderlay;
    assert_eq!(run(outer, &arriving[14..]), Verdict::Transmit(OVERLAY));
    let unknown = HandoverKind::IntoTunnel(TunnelId(9), tunnel().remote);
    assert_eq!(run(unknown, &inner), Verdict::Drop(DropReason::TunnelDown));

    let mut bed = Bed::new();
    bed.tunnels[1].1.adjacency = None;
    let fib = bed.fib();
    let mut buf = VecBuf::new(64, &inner);
    let verdict = forward_handover(&mut buf, into, &fib, &mut bed.state);
    let out = PuntTo::Underlay(TunnelId(1));
    assert_eq!(verdict, Verdict::Punt(PuntReason::TunnelNotReady, out));
    assert_eq!(
        Ipv4::parse(buf.data()).unwrap().protocol(),
        protocol::GRE,
        "finished by its owner"
    );
}

#[test]
fn unfinished_checksums_are_completed_on_ports_that_have_them_only() {
    let whole = outbound(OUTSIDE, 64, 9);
    let mut unfinished = whole.clone();
    let pseudo = crate::packet::Checksum::new()
        .add_bytes(&whole[14 + 12..14 + 20])
        .add_u16(17)
        .add_u16(17)
        .fold();
    unfinished[40..42].copy_from_slice(&pseudo.to_be_bytes());
    for veth in [true, false] {
        let mut bed = Bed::new();
        bed.ports[1].partial_checksums = veth;
        let (verdict, frame) = bed.run(&unfinished, OVERLAY);
        assert_eq!(verdict, Verdict::Transmit(UNDERLAY));
        let sent = &frame[14 + 24 + 26..14 + 24 + 28];
        let expected = if veth { &whole } else { &unfinished };
        assert_eq!(sent, &expected[40..42]);
        assert_eq!(bed.state.stats.checksums_completed.get(), u64::from(veth));
    }
}

/// A TCP SYN that announces 1460 bytes, and where that stands.
fn syn(v6: bool, outbound: bool) -> (Vec<u8>, usize) {
    let six = |a: &str| a.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let (v4_ends, v6_ends) = match outbound {
        true => ((INSIDE, OUTSIDE), ("fd01::2", "fd02::2")),
        false => ((OUTSIDE, INSIDE), ("fd02::2", "fd01::2")),
    };
    let builder = match v6 {
        true => PacketBuilder::ipv6(six(v6_ends.0), six(v6_ends.1), 64),
        false => PacketBuilder::ipv4(v4_ends.0, v4_ends.1, 64),
    };
    let mut out = Vec::new();
    builder
        .tcp(1000, 80, 7, 64_000)
        .syn()
        .options_raw(&[2, 4, 0x05, 0xb4])
        .unwrap()
        .write(&mut out, &[])
        .unwrap();
    (out, if v6 { 62 } else { 42 })
}

#[test]
fn connections_are_held_to_the_tunnels_size_in_both_directions_where_asked() {
    for clamp_mss in [None, Some(1376)] {
        for v6 in [false, true] {
            let announced = match (clamp_mss, v6) {
                (None, _) => 1460u16,
                (Some(mtu), false) => mtu - 40,
                (Some(mtu), true) => mtu - 60,
            };
            let mut bed = Bed::new();
            bed.ports[1].partial_checksums = true;
            bed.tunnels[0].0.clamp_mss = clamp_mss;
            let (mut packet, at) = syn(v6, true);
            // As a container's own SYN comes over a veth: the checksum is left to the device.
            let tcp = at - 22;
            let pseudo = crate::packet::Checksum::new()
                .add_bytes(&packet[if v6 { 8..40 } else { 12..20 }])
                .add_u16(6)
                .add_u16(24);
            packet[tcp + 16..tcp + 18].copy_from_slice(&pseudo.fold().to_be_bytes());
            let (verdict, frame) = bed.run(&framed(mac(OVERLAY), &packet), OVERLAY);
            assert_eq!(verdict, Verdict::Transmit(UNDERLAY));
            let sent = &frame[14 + 24..];
            assert_eq!(sent[at..at + 2], announced.to_be_bytes());
            assert!(pseudo.add_bytes(&sent[tcp..]).is_valid());

            bed.routes = Bed::new().routes;
            let (packet, _) = syn(v6, false);
            let (verdict, frame) = bed.run(&inbound(&packet, false), UNDERLAY);
            assert_eq!(verdict, Verdict::Transmit(OVERLAY));
            let sent = &frame[14..];
            assert_eq!(sent[at..at + 2], announced.to_be_bytes());
            assert!(pseudo.add_bytes(&sent[tcp..]).is_valid());
            let counted = bed.record(0).state.counters.mss_clamped.get();
            assert_eq!(counted, if clamp_mss.is_some() { 2 } else { 0 });
        }
    }
}

/// A bed whose first tunnel is of this kind, and the far end of that tunnel.
fn bed_of(mode: Mode) -> (Bed, Tunnel) {
    let v6 = mode.kind().underlay == Family::V6;
    let end = |n: u16| match v6 {
        true => IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, n]),
        false => IpAddr::from([192, 0, 2, n as u8]),
    };
    let near = Tunnel::new(mode, end(1), end(2));
    let far = near.far_end();
    let mut bed = Bed::new();
    bed.tunnels[0].0 = near;
    (bed, far)
}

#[test]
fn v6_1_every_kind_carries_its_payloads_both_ways() {
    for mode in Mode::ALL {
        let payload = mode.kind().payload;
        for v6 in [false, true] {
            let (there, back) = match v6 {
                true => (
                    ipv6("fd01::2", "fd02::2", 64, 8),
                    ipv6("fd02::2", "fd01::2", 64, 8),
                ),
                false => (ipv4(INSIDE, OUTSIDE, 64, 8), ipv4(OUTSIDE, INSIDE, 64, 8)),
            };
            let carried = match payload {
                Payload::Ip => true,
                Payload::Ipv4 => !v6,
                Payload::Ipv6 => v6,
                Payload::Ethernet => continue,
            };
            let (mut bed, far) = bed_of(mode);
            let (verdict, frame) = bed.run(&framed(mac(OVERLAY), &there), OVERLAY);
            if !carried {
                assert_eq!(
                    verdict,
                    Verdict::Drop(DropReason::UnknownProtocol),
                    "{mode:?}"
                );
                continue;
            }
            assert_eq!(verdict, Verdict::Transmit(UNDERLAY), "{mode:?}");
            let outer_v6 = mode.kind().underlay == Family::V6;
            let kind = Ethernet::parse(&frame).unwrap().ether_type();
            assert_eq!(kind == EtherType::IPV6, outer_v6, "{mode:?}");

            let mut buf = VecBuf::new(64, &back);
            let state = TunnelState::new(0, 1, Arc::default());
            tunnel::encapsulate(&far, far.remote, &mut buf, &state).unwrap();
            bed.routes = Bed::new().routes;
            let (verdict, frame) = bed.run(&framed(mac(UNDERLAY), buf.data()), UNDERLAY);
            assert_eq!(verdict, Verdict::Transmit(OVERLAY), "{mode:?}");
            assert_eq!(frame.len(), 14 + back.len());
        }
    }
}

#[test]
fn v6_4_sit_lets_no_martian_out_and_no_stranger_in() {
    let (mut bed, far) = bed_of(Mode::Sit);
    let state = TunnelState::new(0, 1, Arc::default());
    let mut arrives = |far: &Tunnel, source: &str| {
        let mut buf = VecBuf::new(64, &ipv6(source, "fd01::2", 64, 8));
        tunnel::encapsulate(far, far.remote, &mut buf, &state).unwrap();
        bed.routes = Bed::new().routes;
        bed.verdict(&framed(mac(UNDERLAY), buf.data()), UNDERLAY)
    };
    for source in ["ff02::1", "::1", "::ffff:10.0.0.1"] {
        let martian = Verdict::Drop(DropReason::InnerMartian);
        assert_eq!(arrives(&far, source), martian, "{source}");
    }
    assert_eq!(arrives(&far, "fd02::2"), Verdict::Transmit(OVERLAY));
    let stranger = Tunnel {
        local: IpAddr::from([192, 0, 2, 3]),
        ..far.clone()
    };
    let unknown = service(PuntReason::UnknownTunnel);
    assert_eq!(arrives(&stranger, "fd02::2"), unknown);
}

#[test]
fn v6_5_both_addresses_decide_over_ipv6() {
    let (mut bed, far) = bed_of(Mode::Ip6ip6);
    let state = TunnelState::new(0, 1, Arc::default());
    let other = IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, 9]);
    let strangers = [
        Tunnel {
            local: other,
            ..far.clone()
        },
        Tunnel {
            remote: other,
            ..far
        },
    ];
    for stranger in strangers {
        let mut buf = VecBuf::new(64, &ipv6("fd02::2", "fd01::2", 64, 8));
        tunnel::encapsulate(&stranger, stranger.remote, &mut buf, &state).unwrap();
        bed.routes = Bed::new().routes;
        let verdict = bed.verdict(&framed(mac(UNDERLAY), buf.data()), UNDERLAY);
        assert_eq!(verdict, service(PuntReason::UnknownTunnel));
    }
}

#[test]
fn a_strangers_tunnel_passes_through_a_device_of_both_roles() {
    let mut bed = Bed::new();
    bed.ports[1].underlay = true;
    let mut gre = ipv4(INSIDE, OUTSIDE, 64, 32);
    gre[9] = protocol::GRE;
    gre[10..12].fill(0);
    let sum = crate::packet::Checksum::new()
        .add_bytes(&gre[..20])
        .finish();
    gre[10..12].copy_from_slice(&sum.to_be_bytes());
    gre[20..24].copy_from_slice(&[0, 0, 8, 0]);
    let verdict = bed.verdict(&framed(mac(OVERLAY), &gre), OVERLAY);
    assert_eq!(verdict, Verdict::Transmit(UNDERLAY));
}

#[test]
fn a_packet_goes_from_one_tunnel_into_another() {
    let mut bed = Bed::new();
    let inner = ipv4(OUTSIDE, [10, 3, 0, 1], 64, 8);
    let (verdict, frame) = bed.run(&inbound(&inner, false), UNDERLAY);
    assert_eq!(verdict, Verdict::Transmit(UNDERLAY));
    let mut outer = VecBuf::new(0, &frame[ethernet::HEADER_LEN..]);
    let (state, numbered) = (
        TunnelState::new(0, 1, Arc::default()),
        bed.tunnels[1].0.clone(),
    );
    let peer = numbered.far_end();
    let table = tunnel::TunnelTable::new([peer.clone()]);
    let parsed = Outer::parse(outer.data(), &table, None).unwrap();
    tunnel::decapsulate(&peer, &parsed, &mut outer, &state).unwrap();
    assert_eq!(outer.data()[8], 63, "forwarded once");
    let counted = |bed: &Bed, id: usize| {
        let counters = &bed.record(id).state.counters;
        (counters.rx_packets.get(), counters.tx_packets.get())
    };
    assert_eq!((counted(&bed, 0), counted(&bed, 1)), ((1, 0), (0, 1)));

    // Numbers are another thread's: the kernel routes it into the second tunnel's device, from where it gets to that thread.
    let mut bed = Bed::new();
    bed.state.owns_sequences = false;
    let verdict = bed.verdict(&inbound(&inner, false), UNDERLAY);
    let back = Verdict::Punt(PuntReason::SequenceOwner, PuntTo::Tunnel(TunnelId(0)));
    assert_eq!(verdict, back);
    assert_eq!((counted(&bed, 0), counted(&bed, 1)), ((0, 0), (0, 0)));
}

#[test]
fn gre_8_nothing_goes_back_to_where_it_came_from() {
    let mut bed = Bed::new();
    let inner = ipv4(OUTSIDE, [10, 2, 0, 9], 64, 8);
    let verdict = bed.verdict(&inbound(&inner, false), UNDERLAY);
    assert_eq!(verdict, Verdict::Drop(DropReason::Recursion));
    assert_eq!(bed.record(0).drops.total(), 1);
}

#[path = "forward_peers_tests.rs"]
mod peers;
