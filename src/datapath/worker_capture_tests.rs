//! What a capture shows of a worker's packets.

use std::{sync::atomic::AtomicU64, time::Duration};

use super::*;
use crate::datapath::{
    TAPS,
    capture::{Choice, Clock, Direction, TapSource, Trail, tap},
    filter::Filter,
};

/// Each look is a nanosecond later.
#[derive(Debug, Default)]
struct Ticks(AtomicU64);
impl Clock for Ticks {
    fn now(&self) -> u64 {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

/// What is compared of a shot: where it came by, its fate, its tunnels, and the lengths before and after.
type Seen = (Option<PortId>, Verdict, Trail, usize, usize);

fn begin(bed: &Bed, choice: Choice, every: u32, capacity: usize) -> TapSource {
    let (tap, source) = tap(choice, every, (capacity, 2048), Arc::new(Ticks::default()));
    bed.taps.send(tap.of(3)).unwrap();
    source
}

fn drain(source: &TapSource) -> Vec<Seen> {
    let look = || {
        source.next(Duration::ZERO, |s| {
            assert_eq!(s.worker, 3);
            (s.from, s.verdict, s.trail, s.before.len, s.after.len)
        })
    };
    std::iter::from_fn(look).collect()
}

/// A tunnelled packet, into the tunnel; one without a route; one for another station; a tunnel packet, out of it.
fn mixed(bed: &mut Bed) {
    let mut inside = Vec::new();
    PacketBuilder::ipv4([10, 2, 0, 2], [10, 1, 0, 2], 64)
        .udp(1, 2)
        .write(&mut inside, &[0; 20])
        .unwrap();
    let mut outside = Vec::new();
    let (local, remote) = match (tunnel().local, tunnel().remote) {
        (std::net::IpAddr::V4(local), std::net::IpAddr::V4(remote)) => (local, remote),
        _ => unreachable!("the tunnel is IPv4's"),
    };
    let payload = [&[0, 0, 8, 0][..], &inside].concat();
    PacketBuilder::ethernet2(mac(9).0, mac(0).0)
        .ipv4(remote.octets(), local.octets(), 64)
        .write(&mut outside, etherparse::IpNumber::GRE, &payload)
        .unwrap();
    let ports = &mut bed.worker.ports;
    ports[1].wire_in.extend([packet(0), packet(1), packet(9)]);
    ports[0].wire_in.push_back(outside);
}

fn trail(out_of: bool, into: bool) -> Trail {
    Trail {
        out_of: out_of.then_some(TunnelId(0)),
        into: into.then_some(TunnelId(0)),
    }
}

#[test]
fn every_packet_is_shown_with_its_fate() {
    let mut bed = Bed::new(64, 4);
    let source = begin(&bed, Choice::default(), 1, 16);
    mixed(&mut bed);
    bed.worker.turn();
    let out = PuntTo::Tunnel(TunnelId(0));
    let (plain, tunnelled) = (packet(0).len(), packet(0).len() + 24);
    let mut seen = drain(&source);
    // No route leads to 10.1.0.2 here.
    let (_, verdict, ..) = seen[0];
    assert_eq!(verdict, Verdict::Punt(PuntReason::NoRoute, out));
    assert_eq!(
        seen.split_off(1),
        [
            (
                Some(PortId(1)),
                Verdict::Transmit(PortId(0)),
                trail(false, true),
                plain,
                tunnelled
            ),
            (
                Some(PortId(1)),
                Verdict::Punt(PuntReason::NoRoute, PuntTo::Service),
                trail(false, false),
                plain,
                0
            ),
            (
                Some(PortId(1)),
                Verdict::Drop(DropReason::OtherMac),
                trail(false, false),
                plain,
                0
            ),
        ]
    );
    assert_eq!(
        seen[0],
        (
            Some(PortId(0)),
            verdict,
            trail(true, false),
            14 + 24 + 48,
            0
        )
    );
    assert!(bed.books_balance());
    assert_eq!(source.shed(), 0);
}

#[test]
fn before_and_after_are_the_frames_themselves() {
    let mut bed = Bed::new(64, 4);
    let source = begin(&bed, Choice::default(), 1, 16);
    bed.worker.ports[1].wire_in.push_back(packet(0));
    bed.worker.turn();
    let shown = source.next(Duration::ZERO, |shot| {
        (shot.before.bytes().to_vec(), shot.after.bytes().to_vec())
    });
    bed.worker.turn();
    let sent = bed.worker.ports[0].wire_out[0].clone();
    assert_eq!(shown, Some((packet(0), sent)));
}

#[test]
fn a_choice_leaves_out_the_rest() {
    let of = |choice: Choice| {
        let mut bed = Bed::new(64, 4);
        let source = begin(&bed, choice, 1, 16);
        mixed(&mut bed);
        bed.worker.turn();
        drain(&source)
            .into_iter()
            .map(|(_, verdict, ..)| verdict)
            .collect::<Vec<_>>()
    };
    let sent = Verdict::Transmit(PortId(0));
    let came_out = Verdict::Punt(PuntReason::NoRoute, PuntTo::Tunnel(TunnelId(0)));
    let dropped = Verdict::Drop(DropReason::OtherMac);
    let tunnel = |n| Some(TunnelId(n));
    let way = |direction| Choice {
        direction: Some(direction),
        ..Choice::default()
    };
    assert_eq!(
        of(Choice {
            tunnel: tunnel(0),
            ..Choice::default()
        }),
        [came_out, sent]
    );
    assert_eq!(
        of(Choice {
            tunnel: tunnel(1),
            ..Choice::default()
        }),
        []
    );
    assert_eq!(of(way(Direction::Sent)), [sent]);
    assert_eq!(of(way(Direction::Received)), [came_out]);
    assert_eq!(
        of(Choice {
            tunnel: tunnel(1),
            ..way(Direction::Sent)
        }),
        []
    );
    assert_eq!(
        of(Choice {
            drops: Some(None),
            ..Choice::default()
        }),
        [dropped]
    );
    assert_eq!(
        of(Choice {
            drops: Some(Some(DropReason::OtherMac)),
            ..Choice::default()
        }),
        [dropped]
    );
    assert_eq!(
        of(Choice {
            drops: Some(Some(DropReason::NotIp)),
            ..Choice::default()
        }),
        []
    );
}

#[test]
fn a_filter_looks_at_both_sides() {
    // Protocol 47 in IPv4: the one packet comes so, the other leaves so.
    let gre = Filter::new(&[
        (0x30, 0, 0, 23),
        (0x15, 0, 1, 47),
        (0x06, 0, 0, 1),
        (0x06, 0, 0, 0),
    ])
    .unwrap();
    let mut bed = Bed::new(64, 4);
    let source = begin(
        &bed,
        Choice {
            filter: Some(gre),
            ..Choice::default()
        },
        1,
        16,
    );
    mixed(&mut bed);
    bed.worker.turn();
    let trails: Vec<Trail> = drain(&source)
        .into_iter()
        .map(|(_, _, trail, ..)| trail)
        .collect();
    assert_eq!(trails, [trail(true, false), trail(false, true)]);
}

#[test]
fn one_of_so_many_is_shown() {
    let mut bed = Bed::new(64, 4);
    let source = begin(&bed, Choice::default(), 4, 16);
    bed.worker.ports[1]
        .wire_in
        .extend((0..12).map(|_| packet(0)));
    bed.worker.turn();
    assert_eq!(drain(&source).len(), 3);
}

#[test]
fn what_nobody_takes_in_time_is_shed_and_counted() {
    let mut bed = Bed::new(64, 4);
    let source = begin(&bed, Choice::default(), 1, 4);
    bed.worker.ports[1]
        .wire_in
        .extend((0..10).map(|_| packet(0)));
    bed.worker.turn();
    assert_eq!(source.shed(), 6);
    assert_eq!(drain(&source).len(), 4);
    // The packets themselves went their way, and the capture goes on.
    assert_eq!(bed.stats.tx_packets.get(), 10);
    bed.worker.ports[1].wire_in.push_back(packet(0));
    bed.worker.turn();
    assert_eq!(drain(&source).len(), 1);
    assert_eq!(source.shed(), 6);
}

#[test]
fn a_full_ring_is_shown_as_a_drop() {
    let mut bed = Bed::new(2, 4);
    bed.worker.ports[0].completes = 0;
    let choice = Choice {
        drops: Some(Some(DropReason::TxRingFull)),
        ..Choice::default()
    };
    let source = begin(&bed, choice, 1, 16);
    bed.worker.ports[1]
        .wire_in
        .extend((0..3).map(|_| packet(0)));
    bed.worker.turn();
    let full = Verdict::Drop(DropReason::TxRingFull);
    assert_eq!(
        drain(&source),
        [(
            Some(PortId(0)),
            full,
            Trail::default(),
            packet(0).len() + 24,
            0
        )]
    );
}

#[test]
fn a_capture_ends_when_its_reader_has_gone() {
    let mut bed = Bed::new(64, 4);
    // Also one whose packets never come.
    let never = Choice {
        tunnel: Some(TunnelId(7)),
        ..Choice::default()
    };
    let mut sources: Vec<_> = (0..TAPS)
        .map(|_| begin(&bed, never.clone(), 1, 4))
        .collect();
    bed.worker.adopt_taps();
    let one_more = begin(&bed, Choice::default(), 1, 4);
    bed.worker.adopt_taps();
    assert_eq!(bed.worker.taps.len(), TAPS, "more than there may be");
    drop(one_more);
    sources.pop();
    let in_its_place = begin(&bed, Choice::default(), 1, 4);
    bed.worker.ports[1].wire_in.push_back(packet(0));
    bed.worker.turn();
    assert_eq!(drain(&in_its_place).len(), 1);
    drop((sources, in_its_place));
    bed.worker.ports[1].wire_in.push_back(packet(0));
    bed.worker.turn();
    assert!(bed.worker.taps.is_empty());
    assert_eq!(bed.stats.tx_packets.get(), 2);
}
