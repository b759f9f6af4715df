use std::{net::Ipv4Addr, sync::Arc};

use super::*;
use crate::{
    datapath::{TunnelRecord, Verdict, WorkerStats, forward},
    fib::{Egress, Forwards, Multipath, NextHop, ResolutionCache, RouteTable},
    packet::{Checksum, GreKey, MacAddr, VecBuf, Vid},
    tunnel::{Mode, Peers, Tos, Ttl, Tunnel, UdpEncap},
};
use proptest::prelude::*;

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const TUNNELS: usize = 12;

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }
    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
    /// One time in `n`.
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

fn port(n: usize) -> PortInfo {
    PortInfo {
        name: format!("eth{n}").into(),
        ifindex: n as u32 + 2,
        mac: MAC,
        mtu: 1500,
        underlay: n != 1,
        overlay: n != 0,
        forwards: Forwards { v4: true, v6: true },
        partial_checksums: n == 2,
        wire: None,
        vlan: None,
    }
}

fn tunnel(n: usize, random: &mut Random) -> Tunnel {
    let local = Ipv4Addr::new(192, 0, 2, 1 + random.below(2) as u8);
    let remote = match random.below(12) {
        0 => Ipv4Addr::UNSPECIFIED,
        1 => Ipv4Addr::new(239, 0, 0, 1),
        _ => Ipv4Addr::new(198, 51, 100, n as u8 / 2),
    };
    let modes = [
        Mode::Gre,
        Mode::Gre,
        Mode::Gre,
        Mode::Ipip,
        Mode::Sit,
        Mode::Gretap,
    ];
    let key = random.of(&[None, None, Some(GreKey(7)), Some(GreKey(0))]);
    let gre = Tunnel::new(random.of(&modes), local, remote);
    let mut peers = Peers::default();
    peers.insert(
        "10.2.0.0/16".parse().unwrap(),
        Ipv4Addr::new(198, 51, 100, 77).into(),
    );
    Tunnel {
        id: TunnelId(n as u32),
        ikey: key,
        okey: key,
        peers: Arc::new(peers),
        icsum: random.one_in(12),
        ocsum: random.one_in(12),
        iseq: random.one_in(12),
        oseq: random.one_in(12),
        udp: random.one_in(12).then_some(UdpEncap {
            source_port: None,
            checksum: false,
        }),
        ttl: random.of(&[Ttl::Inherit, Ttl::Fixed(64), Ttl::Fixed(255)]),
        tos: random.of(&[Tos::Inherit, Tos::Fixed(0), Tos::Fixed(0xb9)]),
        pmtudisc: !random.one_in(3),
        ignore_df: random.one_in(3),
        copy_dscp: random.one_in(10),
        clamp_mss: random.one_in(4).then_some(500),
        dev: random.of(&[None, None, None, Some(2), Some(9)]),
        kernels: random.one_in(12),
        keepalive: random.one_in(6),
        up: !random.one_in(12),
        ..gre
    }
}

fn fib(random: &mut Random) -> Fib {
    let adjacency = |random: &mut Random| Adjacency {
        vlan: random.one_in(10).then(|| Vid::new(7).unwrap()),
        mark: Mark::of(2, Ipv4Addr::new(10, 9, 9, random.below(9) as u8).into()),
        port: PortId(random.below(3) as u16),
        destination: PEER,
        source: MAC,
        mtu: 600 + random.below(3) as u16 * 12,
    };
    let tunnels: Vec<_> = (0..TUNNELS)
        .map(|n| {
            let egress = Egress {
                adjacency: (!random.one_in(8)).then(|| adjacency(random)),
                forwards: Forwards {
                    v4: !random.one_in(8),
                    v6: true,
                },
                wire: None,
            };
            (tunnel(n, random), egress)
        })
        .collect();
    let mut routes = RouteTable::default();
    for n in 0..40u8 {
        let into = NextHop::Tunnel {
            id: TunnelId(random.below(TUNNELS + 1) as u32),
            gateway: random
                .one_in(6)
                .then(|| Ipv4Addr::new(198, 51, 100, 1).into()),
            mtu: 560 + random.below(30) as u16,
        };
        let port = PortId(random.below(3) as u16);
        let via = NextHop::Via {
            port,
            gateway: Ipv4Addr::new(10, 1, 0, random.below(4) as u8).into(),
            mtu: 580 + random.below(10) as u16,
        };
        let hop = match random.below(12) {
            0 => NextHop::Local,
            1 => NextHop::Kernel,
            2 => NextHop::Connected { port, mtu: 600 },
            3 => {
                let hops = Multipath::new(&[(into, 1), (via, 2)]).unwrap();
                NextHop::Multipath(Arc::new(hops))
            }
            4..8 => via,
            _ => into,
        };
        routes.insert(format!("10.2.{n}.0/24").parse().unwrap(), hop);
    }
    let into = NextHop::Tunnel {
        id: TunnelId(3),
        gateway: None,
        mtu: 576,
    };
    routes.insert("0.0.0.0/0".parse().unwrap(), into);
    let mut ports: Vec<PortInfo> = (0..3).map(port).collect();
    ports[1].forwards.v4 = !random.one_in(8);
    let mut fib = Fib::new(ports, tunnels, &routes);
    for n in 0..40u8 {
        for port in (0..3).map(PortId) {
            if !random.one_in(4) {
                fib.add_neighbour(port, Ipv4Addr::new(10, 1, 0, n).into(), PEER);
                fib.add_neighbour(port, Ipv4Addr::new(10, 2, n, 1).into(), PEER);
            }
        }
    }
    fib.set_own([
        Ipv4Addr::new(192, 0, 2, 1).into(),
        Ipv4Addr::new(10, 1, 0, 254).into(),
    ]);
    fib.set_rules(random.one_in(20));
    fib
}

/// An IPv4 header in front of `body`.
fn ip(random: &mut Random, protocol: u8, ends: (Ipv4Addr, Ipv4Addr), body: &[u8]) -> Vec<u8> {
    let len = (20 + body.len()) as u16;
    let tos = random.of(&[0, 0, 0, 1, 2, 3, 0xb8, 0xba]);
    let ttl = random.of(&[64, 64, 64, 64, 255, 2, 2, 1]);
    let flags = random.of(&[0x40, 0x40, 0x40, 0, 0, 0, 0, 0x20]);
    let mut out = vec![
        0x45,
        tos,
        (len >> 8) as u8,
        len as u8,
        1,
        2,
        flags,
        0,
        ttl,
        protocol,
        0,
        0,
    ];
    out.extend(ends.0.octets());
    out.extend(ends.1.octets());
    let sum = Checksum::new().add_bytes(&out).finish();
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out.extend(body);
    out
}

/// A UDP packet, a TCP SYN, or something else.
fn plain(random: &mut Random) -> Vec<u8> {
    let near = [
        Ipv4Addr::new(10, 1, 0, 9),
        Ipv4Addr::new(10, 1, 0, 254),
        Ipv4Addr::new(10, 200, 1, 2),
        Ipv4Addr::new(169, 254, 1, 2),
        Ipv4Addr::new(169, 1, 1, 2),
        Ipv4Addr::new(0, 1, 1, 2),
    ];
    let far = Ipv4Addr::new(10, 2, random.below(42) as u8, random.below(3) as u8);
    let far = random.of(&[
        far,
        far,
        far,
        far,
        far,
        far,
        Ipv4Addr::new(224, 0, 0, 5),
        Ipv4Addr::new(8, 8, 8, 8),
    ]);
    let source = if random.one_in(3) {
        random.of(&near)
    } else {
        near[0]
    };
    let ends = (source, far);
    let length = random.of(&[8, 30, 30, 40, 100, 520, 540, 560]) + random.below(16);
    let mut body: Vec<u8> = (0..length).map(|n| n as u8).collect();
    let protocol = match random.below(10) {
        0 => random.of(&[47, 4, 41, 60]),
        _ => random.of(&[17, 17, 6, 6, 1]),
    };
    match protocol {
        17 => {
            let port = random.of(&[9, 9, 9, 4754u16]).to_be_bytes();
            body[2..6].copy_from_slice(&[port[0], port[1], (length >> 8) as u8, length as u8]);
            // As a sender leaves it that has a device finish it.
            if random.one_in(2) {
                let octets = [ends.0.octets(), ends.1.octets()].concat();
                let sum = Checksum::pseudo_header(&octets, 17, length).fold();
                body[6..8].copy_from_slice(&sum.to_be_bytes());
            }
        }
        6 if length >= 24 => {
            body[12..14].copy_from_slice(&[0x60, 0x02]);
            body[20..24].copy_from_slice(&[2, 4, 5, 0xb4]);
        }
        _ => {}
    }
    ip(random, protocol, ends, &body)
}

/// A frame that one of the ports receives: plain, or in a tunnel of `fib`, and sometimes damaged.
fn frame(random: &mut Random, from: PortId, fib: &Fib) -> Vec<u8> {
    let mut packet = plain(random);
    let tunnelled = if from == PortId(1) { 8 } else { 2 };
    if random.one_in(tunnelled) {
        let id = TunnelId(random.below(TUNNELS) as u32);
        if let Some(tunnel) = fib.tunnels().get(id) {
            let (std::net::IpAddr::V4(local), std::net::IpAddr::V4(remote)) =
                (tunnel.local, tunnel.remote)
            else {
                unreachable!()
            };
            let mut gre = match tunnel.ikey {
                Some(GreKey(key)) => [&[0x20, 0, 8, 0][..], &key.to_be_bytes()].concat(),
                None => vec![0, 0, 8, 0],
            };
            gre.append(&mut packet);
            packet = ip(random, 47, (remote, local), &gre);
        }
    }
    let mut frame = [&MAC.0[..], &PEER.0, &[8, 0], &packet].concat();
    frame.resize(frame.len() + random.of(&[0, 0, 0, 3, 20]), 0xee);
    if random.one_in(4) {
        let at = random.below(frame.len().min(80));
        frame[at] ^= 1 << random.below(8);
    }
    if random.one_in(20) {
        frame.truncate(random.below(frame.len()));
    }
    frame
}

fn state() -> ForwardState {
    let record = |_| Some(Arc::new(TunnelRecord::new(0, 1, Arc::default())));
    ForwardState {
        stats: Arc::new(WorkerStats::default()),
        tunnels: (0..TUNNELS).map(record).collect(),
        owns_sequences: true,
        resolutions: ResolutionCache::default(),
        trail: Default::default(),
    }
}

/// What is seen of a burst: each packet's verdict and bytes, and every counter.
type Seen = (Vec<(Verdict, Vec<u8>)>, String);

fn books(state: &ForwardState) -> String {
    format!("{:?} {:?}", state.tunnels, state.stats.drops) + &marks(state)
}

fn marks(state: &ForwardState) -> String {
    let completed = state.stats.checksums_completed.get();
    format!("{completed} {:?}", state.stats.used.take())
}

fn by_forward(frames: &[Vec<u8>], from: PortId, fib: &Fib, state: &mut ForwardState) -> Seen {
    let packets = frames.iter().map(|frame| {
        let mut packet = VecBuf::new(256, frame);
        let verdict = forward(&mut packet, from, fib, state);
        (verdict, packet.data().to_vec())
    });
    (packets.collect(), books(state))
}

/// The same by the worker's way, and how many packets were ordinary to the end.
fn by_express(
    express: &mut Express,
    frames: &[Vec<u8>],
    from: PortId,
    (fib, state): (&Fib, &mut ForwardState),
) -> (Seen, usize) {
    let burst: Vec<VecBuf> = frames.iter().map(|frame| VecBuf::new(256, frame)).collect();
    express.look(&burst, from, fib, state);
    let mut carried = 0;
    let packets = burst.into_iter().enumerate().map(|(n, mut packet)| {
        let seen = express.seen(n);
        let port = seen.and_then(|seen| express.carry(&mut packet, seen, fib, state));
        carried += usize::from(port.is_some());
        let verdict = match port {
            Some(port) => Verdict::Transmit(port),
            None => forward(&mut packet, from, fib, state),
        };
        (verdict, packet.data().to_vec())
    });
    let packets = packets.collect();
    ((packets, books(state)), carried)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the table and the packets: what goes this way goes as it would have gone, to the last byte and count.
    #[test]
    fn it_is_as_if_every_packet_had_gone_through_forward(seed in 1u64..u64::MAX) {
        let mut random = Random(seed);
        let mut fib = fib(&mut random);
        let (mut one, mut other) = (state(), state());
        let mut express = Express::default();
        for round in 0..4 {
            if round == 2 {
                // Another table, whose ways are others.
                fib = self::fib(&mut random);
            }
            let from = PortId(random.below(3) as u16);
            let frames: Vec<_> = (0..64).map(|_| frame(&mut random, from, &fib)).collect();
            let wanted = by_forward(&frames, from, &fib, &mut one);
            let (got, _) = by_express(&mut express, &frames, from, (&fib, &mut other));
            for ((frame, wanted), got) in frames.iter().zip(&wanted.0).zip(&got.0) {
                prop_assert_eq!(wanted, got, "{:02x?} from {:?}", frame, from);
            }
            prop_assert_eq!(wanted.1, got.1);
        }
    }
}

#[test]
fn many_packets_do_go_this_way() {
    let mut random = Random(88_172_645_463_325_252);
    let (mut carried, mut sent) = ([0; 3], [0; 3]);
    for _ in 0..200 {
        let fib = fib(&mut random);
        for from in 0..3 {
            let port = PortId(from as u16);
            let frames: Vec<_> = (0..64).map(|_| frame(&mut random, port, &fib)).collect();
            let (packets, _) = by_forward(&frames, port, &fib, &mut state());
            let sends = |(verdict, _): &&(Verdict, _)| matches!(verdict, Verdict::Transmit(_));
            sent[from] += packets.iter().filter(sends).count();
            carried[from] +=
                by_express(&mut Express::default(), &frames, port, (&fib, &mut state())).1;
        }
    }
    // The others are in a VLAN, damaged, or in a tunnel with options or of another kind.
    for from in 0..3 {
        assert!(carried[from] * 6 > sent[from], "{carried:?} of {sent:?}");
    }
}

#[test]
fn ways_that_have_the_same_place_are_kept_apart() {
    let mut routes = RouteTable::default();
    let port = PortId(1);
    routes.insert(
        "10.2.0.0/16".parse().unwrap(),
        NextHop::Connected { port, mtu: 1500 },
    );
    let tunnel = Tunnel::new(Mode::Gre, [192, 0, 2, 1], [198, 51, 100, 1]);
    let egress = Egress {
        forwards: Forwards { v4: true, v6: true },
        ..Egress::default()
    };
    let mut fib = Fib::new(
        (0..3).map(self::port).collect(),
        [(tunnel, egress)],
        &routes,
    );
    let one = u32::from(Ipv4Addr::new(10, 2, 0, 1));
    let same = |n: &u32| place_of_destination(*n).0 == place_of_destination(one).0;
    let other = (one + 1..).find(same).unwrap();
    let macs = [MacAddr([2, 0, 0, 0, 1, 1]), MacAddr([2, 0, 0, 0, 1, 2])];
    for (address, mac) in [one, other].into_iter().zip(macs) {
        fib.add_neighbour(port, Ipv4Addr::from(address).into(), mac);
    }
    let frame = |to: u32| {
        let mut random = Random(1);
        let inner = loop {
            let ends = (Ipv4Addr::new(10, 200, 0, 1), Ipv4Addr::from(to));
            let packet = ip(&mut random, 17, ends, &[0; 30]);
            if packet[8] > 1 && packet[6] != 0x20 {
                break packet;
            }
        };
        let ends = (Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(192, 0, 2, 1));
        let outer = loop {
            let packet = ip(&mut random, 47, ends, &[&[0, 0, 8, 0], &inner[..]].concat());
            if packet[6] != 0x20 && packet[1] == 0 {
                break packet;
            }
        };
        [&MAC.0[..], &PEER.0, &[8, 0], &outer].concat()
    };
    let frames = [one, other, one].map(frame).to_vec();
    let mut express = Express::default();
    for _ in 0..2 {
        let ((packets, _), _) = by_express(&mut express, &frames, PortId(0), (&fib, &mut state()));
        let sent: Vec<&[u8]> = packets.iter().map(|(_, bytes)| &bytes[..6]).collect();
        assert_eq!(sent, [&macs[0].0[..], &macs[1].0, &macs[0].0]);
    }
}
