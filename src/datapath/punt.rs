//! The ways between a worker and the slow path: bounded, counted, and free of allocation on the worker's side.

use std::net::IpAddr;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::{PuntReason, PuntTo};
use crate::{fib::PortId, tunnel::TunnelId};

/// A packet on its way from a worker to the slow path. The buffers go round: the slow path gives each one back.
#[derive(Debug)]
pub struct PuntBuf {
    pub to: PuntTo,
    pub reason: PuntReason,
    /// The port that it was received on.
    pub from: PortId,
    len: usize,
    bytes: Box<[u8]>,
}

/// A buffer in transit, full or empty.
pub type Punted = Box<PuntBuf>;

impl PuntBuf {
    /// The packet, beginning with its IP header.
    pub fn packet(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Wakes the other side of a queue, from any thread and without blocking.
pub trait Wake: Send {
    fn wake(&self);
}

/// The worker's end: takes empty buffers, sends full ones.
pub struct PuntQueue {
    empty: Receiver<Punted>,
    full: Sender<Punted>,
    waker: Box<dyn Wake>,
    unannounced: bool,
}

/// The slow path's end.
pub struct PuntSource {
    full: Receiver<Punted>,
    empty: Sender<Punted>,
}

/// A queue of `capacity` packets of at most `packet_len` bytes. `waker` wakes the slow path.
pub fn punt_queue(
    capacity: usize,
    packet_len: usize,
    waker: Box<dyn Wake>,
) -> (PuntQueue, PuntSource) {
    let (full_tx, full_rx) = bounded(capacity);
    let (empty_tx, empty_rx) = bounded(capacity);
    for _ in 0..capacity {
        let buf = Box::new(PuntBuf {
            to: PuntTo::Service,
            reason: PuntReason::NotPlain,
            from: PortId(0),
            len: 0,
            bytes: vec![0; packet_len].into_boxed_slice(),
        });
        // The channel holds exactly `capacity` buffers, so there is always room.
        let _ = empty_tx.try_send(buf);
    }
    (
        PuntQueue {
            empty: empty_rx,
            full: full_tx,
            waker,
            unannounced: false,
        },
        PuntSource {
            full: full_rx,
            empty: empty_tx,
        },
    )
}

impl PuntQueue {
    /// Copies `packet` into the queue. False when the queue is full or the packet does not fit.
    pub fn push(&mut self, packet: &[u8], to: PuntTo, reason: PuntReason, from: PortId) -> bool {
        let Ok(mut buf) = self.empty.try_recv() else {
            return false;
        };
        let fits = packet.len() <= buf.bytes.len();
        buf.len = if fits { packet.len() } else { 0 };
        buf.to = to;
        buf.reason = reason;
        buf.from = from;
        if fits {
            buf.bytes[..packet.len()].copy_from_slice(packet);
        }
        // A buffer that carries nothing still goes round, so that none is lost.
        match self.full.try_send(buf) {
            Ok(()) => self.unannounced = true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => return false,
        }
        fits
    }

    /// Wakes the slow path if something was pushed since the last call: once per turn, not per packet.
    pub fn announce(&mut self) {
        if std::mem::take(&mut self.unannounced) {
            self.waker.wake();
        }
    }
}

impl PuntSource {
    /// Hands at most `max` waiting packets to `take`, and every buffer back to the worker. Returns how many.
    pub fn drain(&self, max: usize, mut take: impl FnMut(&PuntBuf)) -> usize {
        let mut n = 0;
        while n < max {
            let Ok(buf) = self.full.try_recv() else { break };
            if buf.len > 0 {
                take(&buf);
            }
            n += 1;
            let _ = self.empty.try_send(buf);
        }
        n
    }
}

/// A packet on its way to the worker that owns a tunnel's sequence numbers. Each begins with its IP header.
#[derive(Debug)]
pub enum Handover {
    /// An inner packet that the kernel has already forwarded into the tunnel's device (its TTL is decremented), and the outer
    /// address that it goes to.
    IntoTunnel(TunnelId, IpAddr, Box<[u8]>),
    /// An outer packet as received: a tunnel packet, whole.
    FromUnderlay(Box<[u8]>),
    /// An inner packet as another worker received it on an overlay device; still to be forwarded.
    FromOverlay(PortId, Box<[u8]>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    struct Count(Arc<AtomicUsize>);
    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_full_queue_refuses_and_recovers() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let (mut queue, source) = punt_queue(2, 4, Box::new(Count(wakes.clone())));
        let push =
            |q: &mut PuntQueue, p: &[u8]| q.push(p, PuntTo::Service, PuntReason::TooBig, PortId(0));
        assert!(push(&mut queue, b"ab") && push(&mut queue, b"cd"));
        assert!(!push(&mut queue, b"ef"));
        queue.announce();
        queue.announce();
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
        let mut seen = Vec::new();
        assert_eq!(source.drain(8, |p| seen.push(p.packet().to_vec())), 2);
        assert_eq!(seen, [b"ab", b"cd"]);
        assert!(push(&mut queue, b"gh"));
    }

    #[test]
    fn a_packet_that_does_not_fit_is_refused_without_losing_a_buffer() {
        let (mut queue, source) = punt_queue(1, 4, Box::new(Count(Arc::default())));
        for _ in 0..3 {
            assert!(!queue.push(b"hello", PuntTo::Service, PuntReason::TooBig, PortId(0)));
            assert_eq!(source.drain(8, |_| panic!("nothing was punted")), 1);
        }
        assert!(queue.push(b"ok", PuntTo::Service, PuntReason::TooBig, PortId(0)));
    }
}
