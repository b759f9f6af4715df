use super::*;
use crate::{
    datapath::{
        PortStats, PuntSource, Wake,
        memory::{self, HEADROOM, MemoryPort, Pool},
        punt_queue,
    },
    fib::{Adjacency, Egress, Forwards, NextHop, PortInfo, RouteTable},
    packet::MacAddr,
    tunnel::{Counter, TunnelId, tests::tunnel},
};
use crossbeam_channel::{bounded, unbounded};
use etherparse::PacketBuilder;
use proptest::prelude::*;

const FRAMES: usize = 160;

struct Silent;
impl Wake for Silent {
    fn wake(&self) {}
}

struct Bed {
    worker: Worker<MemoryPort>,
    pool: Pool,
    stats: Arc<WorkerStats>,
    snapshots: Sender<Snapshot>,
    handovers: Sender<Handover>,
    taps: Sender<Tap>,
    spent: Receiver<Spent>,
    punts: PuntSource,
}

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

fn fib() -> Fib {
    let forwards = Forwards { v4: true, v6: true };
    let port = |n: u8, underlay| PortInfo {
        name: format!("eth{n}").into(),
        ifindex: u32::from(n) + 1,
        mac: mac(n),
        mtu: 1500,
        underlay,
        overlay: !underlay,
        forwards,
        partial_checksums: false,
        wire: None,
        vlan: None,
    };
    let adjacency = Adjacency {
        vlan: None,
        mark: Default::default(),
        port: PortId(0),
        destination: mac(9),
        source: mac(0),
        mtu: 1500,
    };
    let egress = Egress {
        adjacency: Some(adjacency),
        forwards,
        wire: None,
    };
    let mut routes = RouteTable::default();
    let hop = NextHop::Tunnel {
        id: TunnelId(0),
        gateway: None,
        mtu: 1476,
    };
    routes.insert("10.2.0.0/24".parse().unwrap(), hop);
    Fib::new(
        vec![port(0, true), port(1, false)],
        [(tunnel(), egress)],
        &routes,
    )
}

impl Bed {
    fn new(ring_len: usize, punt_capacity: usize) -> Self {
        let pool = memory::pool(FRAMES);
        let ports = vec![
            MemoryPort::new(&pool, ring_len),
            MemoryPort::new(&pool, ring_len),
        ];
        let (snapshots, snapshot_rx) = bounded(4);
        let (handovers, handover_rx) = unbounded();
        let (taps, tap_rx) = bounded(TAPS + 1);
        let (spent_tx, spent) = bounded(1);
        let (queue, punts) = punt_queue(punt_capacity, 2048, Box::new(Silent));
        let stats = Arc::new(WorkerStats::with_ports(ports.len()));
        let links = Links {
            snapshots: snapshot_rx,
            handovers: handover_rx,
            taps: tap_rx,
            spent: spent_tx,
            punts: queue,
        };
        let bed = Self {
            worker: Worker::new(ports, links, true, stats.clone()),
            pool,
            stats,
            snapshots,
            handovers,
            taps,
            spent,
            punts,
        };
        bed.publish();
        bed
    }

    fn publish(&self) {
        let snapshot = Snapshot {
            fib: Arc::new(fib()),
            tunnels: vec![Some(Arc::new(TunnelRecord::new(0, 1, Arc::default())))],
        };
        self.snapshots.try_send(snapshot).unwrap();
    }

    /// Frames that are free or in a transmit ring; between turns there is no other place.
    fn frames(&self) -> usize {
        let rings: usize = self.worker.ports().iter().map(MemoryPort::in_ring).sum();
        self.pool.borrow().len() + rings
    }

    /// Every packet that came in ended in exactly one way.
    fn books_balance(&self) -> bool {
        let s = &self.stats;
        let came = s.rx_packets.get() + s.handed_over.get() + s.spread_in.get();
        let of_ports = |n: fn(&PortStats) -> &Counter| s.ports.iter().map(|p| n(p).get()).sum();
        let by_port: [u64; 3] = [
            of_ports(|p| &p.rx_packets),
            of_ports(|p| &p.tx_packets),
            of_ports(|p| &p.tx_dropped),
        ];
        let ring_full = (s.drops.iter()).find(|(why, _)| *why == DropReason::TxRingFull);
        came == s.tx_packets.get() + s.punts.total() + s.drops.total() + s.spread_out.get()
            && by_port == [s.rx_packets.get(), s.tx_packets.get(), ring_full.unwrap().1]
            && s.busy_turns.get() <= s.turns.get()
    }
}

fn packet(kind: u8) -> Vec<u8> {
    let destination = match kind % 3 {
        0 => [10, 2, 0, 2],
        1 => [10, 7, 0, 2],
        _ => [224, 0, 0, 5],
    };
    let mut out = Vec::new();
    PacketBuilder::ethernet2(mac(8).0, mac(if kind % 5 == 4 { 7 } else { 1 }).0)
        .ipv4([10, 1, 0, 2], destination, 64)
        .udp(1, 2)
        .write(&mut out, &[kind; 20])
        .unwrap();
    out
}

proptest! {
    #[test]
    fn no_frame_is_ever_lost(
        ring_len in 1usize..40, punt_capacity in 1usize..20,
        turns in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..90), 0usize..50, any::<bool>(), any::<bool>()), 1..20),
    ) {
        let mut bed = Bed::new(ring_len, punt_capacity);
        for (arrivals, completes, broken, slow_path_reads) in turns {
            for port in &mut bed.worker.ports {
                port.completes = completes;
                port.broken = broken;
            }
            for kind in arrivals {
                match kind % 7 {
                    6 => bed.handovers.send(Handover::IntoTunnel(TunnelId(0), tunnel().remote, packet(kind)[14..].into())).unwrap(),
                    n => bed.worker.ports[usize::from(n == 5)].wire_in.push_back(packet(kind)),
                }
                if kind % 7 < 5 {
                    bed.worker.ports[1].wire_in.push_back(packet(kind));
                }
            }
            bed.worker.turn();
            if slow_path_reads {
                bed.punts.drain(64, |_| {});
            }
            prop_assert_eq!(bed.frames(), FRAMES);
            prop_assert!(bed.books_balance());
        }
        // Shutdown: what the rings still hold completes, and every frame is free.
        for port in &mut bed.worker.ports {
            (port.completes, port.broken) = (usize::MAX, false);
            port.service().unwrap();
        }
        prop_assert_eq!(bed.pool.borrow().len(), FRAMES);
    }
}

#[test]
fn packets_leave_in_the_order_they_came() {
    let mut bed = Bed::new(64, 4);
    for n in 0..100u8 {
        let mut frame = packet(0);
        *frame.last_mut().unwrap() = n;
        bed.worker.ports[1].wire_in.push_back(frame);
    }
    while bed.worker.turn() > 0 {}
    let last: Vec<u8> = bed.worker.ports[0]
        .wire_out
        .iter()
        .map(|f| *f.last().unwrap())
        .collect();
    assert_eq!(last, (0..100).collect::<Vec<u8>>());
}

#[test]
fn a_full_transmit_ring_drops_and_counts() {
    let mut bed = Bed::new(8, 4);
    bed.worker.ports[0].completes = 0;
    bed.worker.ports[1]
        .wire_in
        .extend((0..20).map(|_| packet(0)));
    bed.worker.turn();
    let dropped = |bed: &Bed| {
        let mut all = bed.stats.drops.iter();
        all.find(|(r, _)| *r == DropReason::TxRingFull).unwrap().1
    };
    assert_eq!((bed.stats.tx_packets.get(), dropped(&bed)), (8, 12));
    assert_eq!(bed.frames(), FRAMES);
}

#[test]
fn punts_carry_the_packet_without_its_ethernet_header() {
    let mut bed = Bed::new(8, 4);
    bed.worker.ports[1].wire_in.push_back(packet(1));
    bed.worker.turn();
    let mut seen = Vec::new();
    bed.punts.drain(8, |p| {
        seen.push((p.to, p.reason, p.from, p.packet().to_vec()))
    });
    let expected = (
        PuntTo::Service,
        PuntReason::NoRoute,
        PortId(1),
        packet(1)[14..].to_vec(),
    );
    assert_eq!(seen, [expected]);
}

#[test]
fn spent_snapshots_go_back_to_be_freed() {
    let mut bed = Bed::new(8, 4);
    bed.worker.turn();
    let first = bed.spent.try_recv();
    assert!(matches!(first, Ok(Spent::Snapshot(_))));
    let old = Arc::downgrade(&bed.worker.fib);
    bed.publish();
    bed.worker.turn();
    assert!(old.upgrade().is_some(), "freed by the worker");
    drop(bed.spent.try_recv());
    assert!(old.upgrade().is_none());
}

#[test]
fn a_handed_over_packet_of_full_size_keeps_its_headroom() {
    let mut bed = Bed::new(8, 4);
    let mut big = Vec::new();
    PacketBuilder::ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64)
        .udp(1, 2)
        .write(&mut big, &vec![0; 1476 - 28])
        .unwrap();
    let handover = Handover::IntoTunnel(TunnelId(0), tunnel().remote, big.into());
    bed.handovers.send(handover).unwrap();
    bed.worker.turn();
    bed.worker.turn();
    assert_eq!(bed.worker.ports[0].wire_out[0].len(), 14 + 1500);
    const { assert!(memory::FRAME_LEN - 1500 > HEADROOM) };
}

#[test]
fn a_packet_is_handed_over_under_the_snapshot_that_was_published_before_it() {
    let mut bed = Bed::new(8, 4);
    // As if both came in the middle of a turn that has looked for snapshots already.
    let handover = Handover::IntoTunnel(TunnelId(0), tunnel().remote, packet(0)[14..].into());
    bed.handovers.send(handover).unwrap();
    assert_eq!(bed.worker.take_handovers(), 1);
    bed.worker.transmit();
    assert_eq!(bed.stats.tx_packets.get(), 1);
    assert_eq!(bed.stats.drops.total(), 0);
}

#[test]
fn a_packet_is_received_under_the_snapshot_that_was_published_before_it() {
    let mut bed = Bed::new(8, 4);
    bed.worker.ports[1].wire_in.push_back(packet(0));
    assert_eq!(bed.worker.receive(1), 1);
    bed.worker.transmit();
    assert_eq!(bed.stats.tx_packets.get(), 1);
    assert_eq!(bed.stats.drops.total(), 0);
}

#[path = "worker_capture_tests.rs"]
mod capture;
#[path = "worker_spread_tests.rs"]
mod spread;
