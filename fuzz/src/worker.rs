//! Packets through the real worker: its loop, its ports in memory, its punts and handovers.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use greyhound::{
    datapath::{
        DropReason, Handover, HandoverKind, Links, Port, PuntSource, Snapshot, Spent, TunnelRecord,
        Wake, Worker, WorkerStats,
        memory::{self, MemoryPort, Pool},
        punt_queue,
    },
    fib::PortId,
    tunnel::Outer,
};

use super::{
    Input,
    bed::{self, Bed, UNDERLAY},
    event::{Door, Event},
    forward, judge,
};

/// Few, so that they run out.
const FRAMES: usize = 24;
const RING: usize = 6;
const PUNTS: usize = 8;

struct Silent;
impl Wake for Silent {
    fn wake(&self) {}
}

struct Routers {
    worker: Worker<MemoryPort>,
    pool: Pool,
    stats: Arc<WorkerStats>,
    records: Vec<Option<Arc<TunnelRecord>>>,
    snapshots: Sender<Snapshot>,
    handovers: Sender<Handover>,
    _spent: Receiver<Spent>,
    punts: PuntSource,
}

/// The input: a sequence of events and of things that happen between them.
///
/// No frame is ever lost, every packet ends in exactly one counted way, and what leaves is right.
pub fn worker(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut bed = Routers::new(input.byte());
    while !input.0.is_empty() {
        match input.byte() {
            // The wire takes this many frames per turn from now on, or none and says so.
            n @ 0..16 => bed.wires(usize::from(n % 8), n >= 8),
            16..32 => {
                bed.turn();
            }
            32..40 => {
                bed.punts
                    .drain(PUNTS, |punt| assert!(!punt.packet().is_empty()));
            }
            40..44 => bed.publish(),
            len => {
                let event = Event::read(&mut input, usize::from(len - 44) * 8);
                bed.take(event);
            }
        }
    }
    bed.finish();
}

impl Routers {
    fn new(switches: u8) -> Routers {
        let pool = memory::pool(FRAMES);
        let ports = (0..bed::PORTS)
            .map(|_| MemoryPort::new(&pool, RING))
            .collect();
        let (snapshots, snapshot_rx) = bounded(1);
        let (handovers, handover_rx) = unbounded();
        let (spent_tx, spent) = bounded(1);
        let (queue, punts) = punt_queue(PUNTS, 1600, Box::new(Silent));
        let stats = Arc::<WorkerStats>::default();
        let links = Links {
            snapshots: snapshot_rx,
            handovers: handover_rx,
            taps: crossbeam_channel::never(),
            spent: spent_tx,
            punts: queue,
        };
        let bed = Routers {
            worker: Worker::new(ports, links, switches & 1 == 0, stats.clone()),
            pool,
            stats,
            records: Bed::get().records(),
            snapshots,
            handovers,
            _spent: spent,
            punts,
        };
        bed.publish();
        bed
    }

    fn publish(&self) {
        let snapshot = Snapshot {
            fib: Bed::get().fib.clone(),
            tunnels: self.records.clone(),
        };
        // One that waits already will do.
        let _ = self.snapshots.try_send(snapshot);
    }

    fn wires(&mut self, completes: usize, broken: bool) {
        for port in self.worker.ports_mut() {
            (port.completes, port.broken) = (completes, broken);
        }
    }

    fn take(&mut self, event: Event) {
        let packet = || event.packet().into();
        let handover = match event.door {
            Door::Port(port) => {
                let ports = self.worker.ports_mut();
                return ports[port.index()].wire_in.push_back(event.bytes);
            }
            Door::Handover(HandoverKind::IntoTunnel(id, remote)) => {
                Handover::IntoTunnel(id, remote, packet())
            }
            Door::Handover(HandoverKind::FromUnderlay) => Handover::FromUnderlay(packet()),
            Door::Handover(HandoverKind::FromOverlay(port)) => {
                Handover::FromOverlay(port, packet())
            }
        };
        self.handovers.send(handover).expect("the worker listens");
    }

    fn turn(&mut self) -> usize {
        let handled = self.worker.turn();
        let ports = self.worker.ports();
        let rings: usize = ports.iter().map(MemoryPort::in_ring).sum();
        assert_eq!(self.pool.borrow().len() + rings, FRAMES, "frames were lost");
        let s = &self.stats;
        let came = s.rx_packets.get() + s.handed_over.get();
        let went = s.tx_packets.get() + s.punts.total() + s.drops.total();
        assert_eq!(came, went, "packets ended in no way, or in several");
        let out: usize = ports.iter().map(|port| port.wire_out.len()).sum();
        assert_eq!(s.tx_packets.get(), (out + rings) as u64);
        handled
    }

    /// Everything that waits goes through, and everything that came out is looked at.
    fn finish(mut self) {
        self.wires(usize::MAX, false);
        while self.turn() > 0 {
            self.punts.drain(usize::MAX, |_| {});
        }
        self.counters_add_up();
        let mut last = vec![None; Bed::get().names.len()];
        for (port, id) in self.worker.into_ports().iter_mut().zip(0..) {
            port.service().expect("the wire is whole");
            for frame in &port.wire_out {
                let packet = forward::frame(PortId(id), frame);
                if PortId(id) == UNDERLAY {
                    sent(packet, &mut last);
                }
            }
        }
        assert_eq!(self.pool.borrow().len(), FRAMES, "frames were lost");
    }

    /// What was given to the wires came out of tunnels, or went into tunnels, or both.
    fn counters_add_up(&self) {
        let counters = || self.records.iter().flatten().map(|r| &r.state.counters);
        let went_in: u64 = counters().map(|c| c.tx_packets.get()).sum();
        let came_out: u64 = counters().map(|c| c.rx_packets.get()).sum();
        let refused = self.stats.drops.iter();
        let refused = refused.filter(|(reason, _)| *reason == DropReason::TxRingFull);
        let given: u64 = self.stats.tx_packets.get() + refused.map(|(_, n)| n).sum::<u64>();
        assert!(went_in <= given && given <= went_in + came_out);
    }
}

/// Checks an outer packet; `last` are the sequence numbers that tunnels have sent, which must rise.
fn sent(packet: &[u8], last: &mut [Option<u32>]) {
    let bed = Bed::get();
    let outer = Outer::parse(packet, &bed.far, None).expect("a packet for the far end");
    let tunnel = bed.tunnel(outer.tunnel.0 as u8);
    let overhead = tunnel.inner_at(packet);
    let number = u32::from_be_bytes(
        packet[overhead - 4..overhead]
            .try_into()
            .expect("four bytes"),
    );
    let remote = judge::Ip::whole(packet).destination;
    judge::outer(tunnel, remote, packet, &packet[overhead..], number);
    if tunnel.oseq {
        let last = &mut last[tunnel.id.index()];
        assert!(
            last.is_none_or(|last| last < number),
            "{last:?}, then {number}"
        );
        *last = Some(number);
    }
}
