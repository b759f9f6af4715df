//! Copies of packets for whoever watches: chosen, bounded, and free of allocation on the worker's side.
//!
//! A worker with no [`Tap`] pays one test per burst. With one, a packet is copied before it is forwarded, because forwarding
//! rewrites it in place; what became of it is known afterwards.

use std::{
    cell::Cell,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{DropReason, Verdict, filter::Filter};
use crate::{fib::PortId, tunnel::TunnelId};

/// The tunnels that one packet had to do with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trail {
    /// It came out of this one, or would have.
    pub out_of: Option<TunnelId>,
    /// It went into this one, or would have.
    pub into: Option<TunnelId>,
}

/// The trail of the packet at hand, noted on the way.
#[derive(Debug, Default)]
pub struct TrailNotes {
    out_of: Cell<Option<TunnelId>>,
    into: Cell<Option<TunnelId>>,
}

impl TrailNotes {
    #[inline]
    pub(super) fn came_out_of(&self, id: TunnelId) {
        self.out_of.set(Some(id));
    }

    #[inline]
    pub(super) fn goes_into(&self, id: TunnelId) {
        self.into.set(Some(id));
    }

    pub(super) fn take(&self) -> Trail {
        Trail {
            out_of: self.out_of.take(),
            into: self.into.take(),
        }
    }
}

/// Which way through a tunnel, as the tunnel's counters have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Out of the tunnel: from the underlay.
    Received,
    /// Into the tunnel: towards the underlay.
    Sent,
}

/// Which packets are wanted. What is `None` matches all.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    pub tunnel: Option<TunnelId>,
    pub direction: Option<Direction>,
    /// Only packets that were dropped, for any reason or for this one.
    pub drops: Option<Option<DropReason>>,
    /// Judges the frame as it was received and as it is sent; one of them is enough.
    pub filter: Option<Filter>,
}

impl Choice {
    fn takes(&self, trail: Trail, verdict: Verdict) -> bool {
        let is = |id: Option<TunnelId>| id.is_some() && self.tunnel.is_none_or(|t| id == Some(t));
        let way = match self.direction {
            Some(Direction::Received) => is(trail.out_of),
            Some(Direction::Sent) => is(trail.into),
            None => self.tunnel.is_none() || is(trail.out_of) || is(trail.into),
        };
        let fate = match (self.drops, verdict) {
            (None, _) | (Some(None), Verdict::Drop(_)) => true,
            (Some(Some(wanted)), Verdict::Drop(reason)) => wanted == reason,
            (Some(_), _) => false,
        };
        way && fate
    }
}

/// The beginning of a frame.
#[derive(Debug, Default)]
pub struct Copied {
    bytes: Box<[u8]>,
    kept: usize,
    /// The frame's length in bytes; 0: there was none.
    pub len: usize,
}

impl Copied {
    fn with_room(snaplen: usize) -> Self {
        Self {
            bytes: vec![0; snaplen].into(),
            ..Self::default()
        }
    }

    fn set(&mut self, frame: &[u8]) {
        self.len = frame.len();
        self.kept = frame.len().min(self.bytes.len());
        self.bytes[..self.kept].copy_from_slice(&frame[..self.kept]);
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.kept]
    }
}

/// One packet and its fate. The buffers go round.
#[derive(Debug)]
pub struct Shot {
    /// Nanoseconds since 1970 when its burst was received.
    pub at: u64,
    pub worker: u32,
    /// Where it was received; none when it was handed over, and then `before` begins with the IP header.
    pub from: Option<PortId>,
    pub verdict: Verdict,
    pub trail: Trail,
    /// As it was received.
    pub before: Copied,
    /// As it is sent; empty otherwise.
    pub after: Copied,
}

/// Tells the time; the worker asks once per burst.
pub trait Clock: std::fmt::Debug + Send + Sync {
    /// Nanoseconds since 1970.
    fn now(&self) -> u64;
}

/// Packets that were wanted and not copied, because nobody had taken the last ones yet.
pub type Shed = Arc<AtomicU64>;

/// A worker's end of one capture.
#[derive(Debug)]
pub struct Tap {
    choice: Arc<Choice>,
    clock: Arc<dyn Clock>,
    /// One of so many packets that are wanted.
    every: u32,
    skipped: u32,
    worker: u32,
    now: u64,
    held: Option<Box<Shot>>,
    filtered: bool,
    empty: Receiver<Box<Shot>>,
    full: Sender<Box<Shot>>,
    shed: Shed,
    reader: Weak<()>,
}

/// The reader's end. When it is dropped, workers drop their taps at the next burst.
pub struct TapSource {
    full: Receiver<Box<Shot>>,
    empty: Sender<Box<Shot>>,
    shed: Shed,
    /// Tells the taps that there is a reader.
    _reader: Arc<()>,
}

/// A capture of `choice`, one of `every` packets: at most `capacity` packets wait, of `snaplen` bytes at the most. Workers get
/// copies of the tap by [`Tap::of`].
pub fn tap(
    choice: Choice,
    every: u32,
    (capacity, snaplen): (usize, usize),
    clock: Arc<dyn Clock>,
) -> (Tap, TapSource) {
    let (empty_tx, empty) = bounded(capacity);
    let (full, full_rx) = bounded(capacity);
    for _ in 0..capacity {
        let shot = Shot {
            at: 0,
            worker: 0,
            from: None,
            verdict: Verdict::Drop(DropReason::NotIp),
            trail: Trail::default(),
            before: Copied::with_room(snaplen),
            after: Copied::with_room(snaplen),
        };
        // The channel holds exactly `capacity` of them.
        let _ = empty_tx.try_send(Box::new(shot));
    }
    let (shed, reader) = (Shed::default(), Arc::new(()));
    let tap = Tap {
        choice: Arc::new(choice),
        clock,
        every: every.max(1),
        skipped: 0,
        worker: 0,
        now: 0,
        held: None,
        filtered: false,
        empty,
        full,
        shed: shed.clone(),
        reader: Arc::downgrade(&reader),
    };
    let source = TapSource {
        full: full_rx,
        empty: empty_tx,
        shed,
        _reader: reader,
    };
    (tap, source)
}

impl Tap {
    /// The same capture for a worker.
    pub fn of(&self, worker: u32) -> Self {
        Self {
            choice: self.choice.clone(),
            clock: self.clock.clone(),
            worker,
            held: None,
            empty: self.empty.clone(),
            full: self.full.clone(),
            shed: self.shed.clone(),
            reader: self.reader.clone(),
            ..*self
        }
    }

    /// Whether nobody reads any more.
    pub(super) fn is_over(&self) -> bool {
        self.reader.strong_count() == 0
    }

    /// A burst begins.
    pub(super) fn burst(&mut self) {
        self.now = self.clock.now();
    }

    /// Looks at a packet before it is forwarded; `from` says whether it is a frame.
    pub(super) fn before(&mut self, packet: &[u8], from: Option<PortId>) {
        if self.held.is_none() {
            self.held = self.empty.try_recv().ok();
        }
        let filter = self.choice.filter.as_ref();
        self.filtered = filter.is_none_or(|filter| from.is_some() && filter.accepts(packet));
        if let Some(shot) = &mut self.held {
            shot.before.set(packet);
            shot.from = from;
        }
    }

    /// Looks at it again: `sent` is the frame that leaves.
    pub(super) fn after(&mut self, sent: Option<&[u8]>, trail: Trail, verdict: Verdict) {
        let accepts = |frame| (self.choice.filter.as_ref()).is_some_and(|f| f.accepts(frame));
        if !(self.filtered || sent.is_some_and(accepts)) || !self.choice.takes(trail, verdict) {
            return;
        }
        self.skipped += 1;
        if self.skipped < self.every {
            return;
        }
        self.skipped = 0;
        let Some(mut shot) = self.held.take() else {
            self.shed.fetch_add(1, Relaxed);
            return;
        };
        shot.at = self.now;
        shot.worker = self.worker;
        shot.verdict = verdict;
        shot.trail = trail;
        shot.after.set(sent.unwrap_or_default());
        // There is room for every buffer; only the reader may have gone.
        let _ = self.full.try_send(shot);
    }
}

impl TapSource {
    /// Waits for the next packet and shows it to `look`; none when no worker holds the tap any more, or at `deadline`.
    pub fn next<T>(
        &self,
        patience: std::time::Duration,
        look: impl FnOnce(&Shot) -> T,
    ) -> Option<T> {
        let shot = self.full.recv_timeout(patience).ok()?;
        let seen = look(&shot);
        let _ = self.empty.try_send(shot);
        Some(seen)
    }

    /// Packets that were wanted and not copied, so far.
    pub fn shed(&self) -> u64 {
        self.shed.load(Relaxed)
    }
}
