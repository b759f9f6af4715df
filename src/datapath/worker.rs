//! The worker's loop: one thread, one queue of every port, bursts from receive to transmit.

use std::{mem, sync::Arc};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::{
    DropReason, ForwardState, Handover, Mates, Port, PuntQueue, PuntReason, PuntTo, Verdict,
    WorkerStats,
    capture::{Tap, Trail, TrailNotes},
    express::Express,
    forward,
    forward::HandoverKind,
    forward_handover, receiver,
    stats::TunnelRecord,
};
use crate::{
    fib::{Fib, PortId, ResolutionCache},
    packet::{PacketBuf, ethernet},
    tunnel::flow_inside,
};

/// Packets taken from one port at a time.
pub const BURST: usize = 64;
/// How often a turn offers packets to a transmit ring that is full.
const TX_ATTEMPTS: usize = 4;
/// Captures at the same time, per worker; more are not begun.
pub const TAPS: usize = 4;

/// A new forwarding table for a worker, with the records of the tunnels in it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub fib: Arc<Fib>,
    pub tunnels: Vec<Option<Arc<TunnelRecord>>>,
}

/// What a worker no longer needs, to be freed by somebody who has the time.
#[derive(Debug)]
pub enum Spent {
    Snapshot(Snapshot),
    Handover(Handover),
    Tap(Tap),
}

/// The worker's connections to the rest of the router.
pub struct Links {
    pub snapshots: Receiver<Snapshot>,
    pub handovers: Receiver<Handover>,
    /// Captures that begin; each ends when its reader is gone.
    pub taps: Receiver<Tap>,
    pub spent: Sender<Spent>,
    pub punts: PuntQueue,
}

/// One worker: its ports in the order of their [`PortId`]s, and everything a packet needs on its way.
pub struct Worker<P: Port> {
    ports: Vec<P>,
    links: Links,
    fib: Arc<Fib>,
    state: ForwardState,
    express: Express,
    /// Finished frames by egress port.
    outgoing: Vec<Vec<P::Buf>>,
    /// Frames that are done with.
    done: Vec<P::Buf>,
    burst: Vec<P::Buf>,
    /// Those of a burst that no other worker has got.
    own: Vec<P::Buf>,
    taps: Vec<Tap>,
    /// The other workers, where there are any and flows may be spread over them.
    mates: Option<Box<Mates>>,
}

impl<P: Port> Worker<P> {
    /// A worker over `ports`; it forwards nothing until its first snapshot.
    pub fn new(ports: Vec<P>, links: Links, owns_sequences: bool, stats: Arc<WorkerStats>) -> Self {
        Self {
            // Any port's burst may go out of any port.
            outgoing: ports
                .iter()
                .map(|_| Vec::with_capacity(BURST * (ports.len() + 1)))
                .collect(),
            done: Vec::with_capacity(BURST * (ports.len() + 1)),
            burst: Vec::with_capacity(BURST),
            own: Vec::with_capacity(BURST),
            taps: Vec::with_capacity(TAPS),
            mates: None,
            ports,
            links,
            fib: Arc::default(),
            express: Express::default(),
            state: ForwardState {
                stats,
                tunnels: Vec::new(),
                owns_sequences,
                resolutions: ResolutionCache::default(),
                trail: TrailNotes::default(),
            },
        }
    }

    /// The same worker as one of several that flows are spread over.
    pub fn with_mates(mut self, mates: Mates) -> Self {
        let more = BURST * mates.others();
        self.outgoing
            .iter_mut()
            .for_each(|queue| queue.reserve(queue.capacity() + more));
        self.done.reserve(self.done.capacity() + more);
        self.mates = Some(Box::new(mates));
        self
    }

    /// Says that the worker is about to sleep; false when its mates have given it something, so that it must not.
    pub fn lie_down(&self) -> bool {
        self.mates.as_ref().is_none_or(|mates| mates.lie_down())
    }

    /// Says that the worker is awake again.
    pub fn rise(&self) {
        if let Some(mates) = &self.mates {
            mates.rise();
        }
    }

    /// Gives the other workers nothing any more, for good.
    pub fn part(&mut self) {
        if let Some(mates) = &mut self.mates {
            mates.part();
        }
    }

    /// Whether all other workers have parted, so that nothing can come from them but what waits already.
    pub fn is_alone(&self) -> bool {
        self.mates.as_ref().is_none_or(|mates| mates.is_alone())
    }

    /// The ports, for their file descriptors and statistics.
    pub fn ports(&self) -> &[P] {
        &self.ports
    }

    /// The ports, for whoever plays their wires.
    pub fn ports_mut(&mut self) -> &mut [P] {
        &mut self.ports
    }

    /// Takes the worker apart, to close its ports in order.
    pub fn into_ports(self) -> Vec<P> {
        self.ports
    }

    /// Once round: configuration, housekeeping, receive, forward, transmit, recycle. Returns how many packets were
    /// handled.
    pub fn turn(&mut self) -> usize {
        self.state.stats.turns.add(1);
        self.adopt_taps();
        self.service();
        let mut handled = 0;
        for index in 0..self.ports.len() {
            handled += self.receive(index);
        }
        handled += self.take_handovers();
        handled += self.take_spread();
        match handled {
            // Whoever has packets has looked behind them.
            0 => self.adopt_snapshot(),
            _ => self.state.stats.busy_turns.add(1),
        }
        self.transmit();
        if let Some(port) = self.ports.first_mut() {
            port.recycle(&mut self.done);
        }
        self.links.punts.announce();
        handled
    }

    fn service(&mut self) {
        for port in &mut self.ports {
            if port.service().is_err() {
                self.state.stats.port_errors.add(1);
            }
        }
    }

    fn adopt_snapshot(&mut self) {
        while let Ok(snapshot) = self.links.snapshots.try_recv() {
            let spent = Snapshot {
                fib: mem::replace(&mut self.fib, snapshot.fib),
                tunnels: mem::replace(&mut self.state.tunnels, snapshot.tunnels),
            };
            self.discard(Spent::Snapshot(spent));
        }
    }

    /// Leaves the freeing to the other side; only when that has fallen behind is it done here.
    fn discard(&self, spent: Spent) {
        match self.links.spent.try_send(spent) {
            Ok(()) => {}
            Err(TrySendError::Full(spent) | TrySendError::Disconnected(spent)) => drop(spent),
        }
    }

    fn adopt_taps(&mut self) {
        while let Ok(tap) = self.links.taps.try_recv() {
            self.drop_spent_taps();
            match self.taps.len() < TAPS {
                true => self.taps.push(tap),
                false => self.discard(Spent::Tap(tap)),
            }
        }
    }

    fn drop_spent_taps(&mut self) {
        while let Some(spent) = self.taps.iter().position(|tap| tap.is_over()) {
            let tap = self.taps.swap_remove(spent);
            self.discard(Spent::Tap(tap));
        }
    }

    /// Whether somebody captures what comes now.
    #[inline]
    fn is_watched(&mut self) -> bool {
        if self.taps.is_empty() {
            return false;
        }
        self.drop_spent_taps();
        self.taps.iter_mut().for_each(|tap| tap.burst());
        !self.taps.is_empty()
    }

    #[cold]
    fn watch(&mut self, packet: &[u8], from: Option<PortId>) {
        self.state.trail.take();
        self.taps
            .iter_mut()
            .for_each(|tap| tap.before(packet, from));
    }

    /// Tells whoever captures what became of the packet that was last shown.
    #[inline]
    fn seen(&mut self, sent: Option<&[u8]>, verdict: Verdict) {
        if !self.taps.is_empty() {
            self.tell(sent, verdict);
        }
    }

    #[cold]
    fn tell(&mut self, sent: Option<&[u8]>, verdict: Verdict) {
        let trail = self.state.trail.take();
        for tap in &mut self.taps {
            tap.after(sent, trail, verdict);
        }
    }

    fn receive(&mut self, index: usize) -> usize {
        let socket = PortId(index as u16);
        let mut burst = mem::take(&mut self.burst);
        let n = self.ports[index].rx_burst(&mut burst, BURST);
        self.state.stats.rx_packets.add(n as u64);
        if let Some(port) = self.state.stats.ports.get(index) {
            port.rx_packets.add(n as u64);
        }
        if n > 0 {
            // A packet may come as soon as the snapshot that it needs is on its way.
            self.adopt_snapshot();
        }
        let watched = n > 0 && self.is_watched();
        if n > 0 {
            self.spread(&mut burst, socket, watched);
            self.forward_burst(&mut burst, socket, watched);
        }
        self.burst = burst;
        n
    }

    /// Forwards all packets of a burst that the socket of a port has received.
    fn forward_burst(&mut self, burst: &mut Vec<P::Buf>, socket: PortId, watched: bool) {
        if !watched {
            (self.express).look(burst, socket, &self.fib, &self.state);
        }
        for (nth, mut packet) in burst.drain(..).enumerate() {
            if watched {
                self.watch(packet.data(), Some(socket));
            } else if let Some(port) = self.express(nth, &mut packet) {
                self.send(packet, port);
                continue;
            }
            let from = receiver(packet.data(), socket, &self.fib);
            let verdict = forward(&mut packet, from, &self.fib, &mut self.state);
            self.carry_out(packet, verdict, from);
        }
    }

    /// Forwards the burst's packet `nth` if that is an ordinary one.
    #[inline]
    fn express(&mut self, nth: usize, packet: &mut P::Buf) -> Option<PortId> {
        let seen = self.express.seen(nth)?;
        self.express.carry(packet, seen, &self.fib, &self.state)
    }

    #[inline]
    fn send(&mut self, packet: P::Buf, port: PortId) {
        match self.outgoing.get_mut(port.index()) {
            Some(queue) => queue.push(packet),
            None => self.discard_packet(packet, DropReason::TxRingFull),
        }
    }

    /// Passes on what other workers are to forward, where flows are spread over them.
    fn spread(&mut self, burst: &mut Vec<P::Buf>, socket: PortId, watched: bool) {
        let Some(mut mates) = self.mates.take_if(|mates| mates.is_on()) else {
            return;
        };
        let mut own = mem::take(&mut self.own);
        for packet in burst.drain(..) {
            let from = receiver(packet.data(), socket, &self.fib);
            match self.owner(packet.data(), from, &mates) {
                Some(to) => self.pass_on(packet, (to, socket), &mut mates, watched),
                None => own.push(packet),
            }
        }
        mem::swap(burst, &mut own);
        self.own = own;
        mates.flush();
        self.mates = Some(mates);
    }

    /// The other worker that a tunnel packet from the underlay goes to, by the flow inside.
    #[inline]
    fn owner(&self, frame: &[u8], from: PortId, mates: &Mates) -> Option<usize> {
        self.fib.port(from).filter(|port| port.underlay)?;
        let packet = frame.get(ethernet::ip_at(frame)?..)?;
        mates.owner(flow_inside(packet)?)
    }

    #[inline]
    fn pass_on(
        &mut self,
        packet: P::Buf,
        (to, socket): (usize, PortId),
        mates: &mut Mates,
        watched: bool,
    ) {
        if mates.send(to, packet.data(), socket) {
            // Whoever captures is told by the worker that has it now.
            self.state.stats.spread_out.add(1);
            self.done.push(packet);
            return;
        }
        if watched {
            self.watch(packet.data(), Some(socket));
        }
        self.discard_packet(packet, DropReason::SpreadFull);
    }

    /// Goes on with frames that other workers have received.
    fn take_spread(&mut self) -> usize {
        let Some(mut mates) = self.mates.take() else {
            return 0;
        };
        let mut taken = 0;
        if mates.is_waited_for() {
            // As for those that were received here.
            self.adopt_snapshot();
            let watched = self.is_watched();
            taken = mates.drain(|socket, frame| self.go_on_with(frame, socket, watched));
            self.state.stats.spread_in.add(taken as u64);
        }
        self.mates = Some(mates);
        taken
    }

    fn go_on_with(&mut self, frame: &[u8], socket: PortId, watched: bool) {
        let Some(mut packet) = self.frame_with(frame) else {
            return self.state.stats.drops.count(DropReason::NoFrame);
        };
        if watched {
            self.watch(packet.data(), Some(socket));
        }
        let from = receiver(packet.data(), socket, &self.fib);
        let verdict = forward(&mut packet, from, &self.fib, &mut self.state);
        self.carry_out(packet, verdict, from);
    }

    fn take_handovers(&mut self) -> usize {
        let waiting = self.links.handovers.len().min(BURST);
        if waiting > 0 {
            // A packet may be handed over as soon as the snapshot that it needs is on its way.
            self.adopt_snapshot();
        }
        let watched = waiting > 0 && self.is_watched();
        for _ in 0..waiting {
            let Ok(handover) = self.links.handovers.try_recv() else {
                break;
            };
            self.state.stats.handed_over.add(1);
            let (kind, bytes, from) = match &handover {
                Handover::IntoTunnel(id, remote, bytes) => {
                    (HandoverKind::IntoTunnel(*id, *remote), bytes, PortId(0))
                }
                Handover::FromUnderlay(bytes) => (HandoverKind::FromUnderlay, bytes, PortId(0)),
                Handover::FromOverlay(port, bytes) => {
                    (HandoverKind::FromOverlay(*port), bytes, *port)
                }
            };
            match self.frame_with(bytes) {
                Some(mut packet) => {
                    if watched {
                        self.watch(packet.data(), None);
                    }
                    let verdict = forward_handover(&mut packet, kind, &self.fib, &mut self.state);
                    self.carry_out(packet, verdict, from);
                }
                None => self.state.stats.drops.count(DropReason::NoFrame),
            }
            self.discard(Spent::Handover(handover));
        }
        waiting
    }

    /// A free frame that holds a copy of `bytes`.
    fn frame_with(&mut self, bytes: &[u8]) -> Option<P::Buf> {
        let mut packet = self.ports.first_mut()?.take(bytes.len())?;
        if packet.prepend(bytes.len()).is_err() {
            self.done.push(packet);
            return None;
        }
        packet.data_mut().copy_from_slice(bytes);
        Some(packet)
    }

    /// Sees a verdict through, and counts what became of the packet.
    fn carry_out(&mut self, packet: P::Buf, verdict: Verdict, from: PortId) {
        match verdict {
            Verdict::Transmit(port) if port.index() < self.outgoing.len() => {
                self.seen(Some(packet.data()), verdict);
                self.send(packet, port);
            }
            Verdict::Transmit(_) => self.discard_packet(packet, DropReason::TxRingFull),
            Verdict::Punt(reason, to) => self.punt(packet, reason, to, from),
            Verdict::Drop(reason) => self.discard_packet(packet, reason),
        }
    }

    fn discard_packet(&mut self, packet: P::Buf, reason: DropReason) {
        self.state.stats.drops.count(reason);
        self.seen(None, Verdict::Drop(reason));
        self.done.push(packet);
    }

    fn punt(&mut self, packet: P::Buf, reason: PuntReason, to: PuntTo, from: PortId) {
        if self.links.punts.push(packet.data(), to, reason, from) {
            self.state.stats.punts.count(reason);
            self.seen(None, Verdict::Punt(reason, to));
            self.done.push(packet);
        } else {
            self.discard_packet(packet, DropReason::PuntQueueFull);
        }
    }

    /// Offers every finished frame to its port, and drops what a full ring does not take in a few attempts.
    fn transmit(&mut self) {
        let stats = &self.state.stats;
        for (index, (port, queue)) in self.ports.iter_mut().zip(&mut self.outgoing).enumerate() {
            let offered = queue.len();
            for _ in 0..TX_ATTEMPTS {
                if queue.is_empty() {
                    break;
                }
                let sent = port.tx_burst(queue);
                stats.tx_packets.add(sent as u64);
                if !queue.is_empty() && port.service().is_err() {
                    stats.port_errors.add(1);
                    break;
                }
            }
            if let Some(port) = stats.ports.get(index) {
                port.tx_packets.add((offered - queue.len()) as u64);
                port.tx_dropped.add(queue.len() as u64);
            }
            for packet in queue.drain(..) {
                stats.drops.count(DropReason::TxRingFull);
                for tap in &mut self.taps {
                    tap.before(packet.data(), Some(PortId(index as u16)));
                    let full = Verdict::Drop(DropReason::TxRingFull);
                    tap.after(None, Trail::default(), full);
                }
                self.done.push(packet);
            }
        }
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
