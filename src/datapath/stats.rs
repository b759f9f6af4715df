//! Counters that one worker writes and everybody may read.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{DropReason, PuntReason};
use crate::packet::icmp;
use crate::tunnel::{Counter, Sequences, TunnelState};

/// Discarded packets by reason.
#[derive(Debug)]
pub struct DropCounts([Counter; DropReason::COUNT]);

impl Default for DropCounts {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl DropCounts {
    #[inline]
    pub fn count(&self, reason: DropReason) {
        self.0[reason.index()].add(1);
    }

    /// Every reason with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|r| (*r, self.0[r.index()].get()))
    }

    pub fn total(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

/// Punted packets by reason.
#[derive(Debug)]
pub struct PuntCounts([Counter; PuntReason::COUNT]);

impl Default for PuntCounts {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl PuntCounts {
    #[inline]
    pub fn count(&self, reason: PuntReason) {
        self.0[reason.index()].add(1);
    }

    /// Every reason with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (PuntReason, u64)> + '_ {
        PuntReason::ALL
            .iter()
            .map(|r| (*r, self.0[r.index()].get()))
    }

    pub fn total(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

/// ICMP errors about a tunnel's outer packets.
#[derive(Debug, Default)]
pub struct ErrorCounts {
    pub too_big: Counter,
    pub unreachable: Counter,
    pub time_exceeded: Counter,
    pub parameter_problem: Counter,
}

impl ErrorCounts {
    pub fn count(&self, kind: icmp::Kind) {
        let counter = match kind {
            icmp::Kind::TooBig(_) => &self.too_big,
            icmp::Kind::Unreachable(_) => &self.unreachable,
            icmp::Kind::TimeExceeded => &self.time_exceeded,
            icmp::Kind::ParameterProblem => &self.parameter_problem,
        };
        counter.add(1);
    }
}

/// What one thread keeps about one tunnel: its numbers, its drops by reason, and the errors it heard.
#[derive(Debug)]
pub struct TunnelRecord {
    pub state: TunnelState,
    pub drops: DropCounts,
    pub errors: ErrorCounts,
}

impl TunnelRecord {
    /// The record for thread number `thread` of `threads`; see [`TunnelState::new`].
    pub fn new(thread: u32, threads: u32, sequences: Arc<Sequences>) -> Self {
        Self {
            state: TunnelState::new(thread, threads, sequences),
            drops: DropCounts::default(),
            errors: ErrorCounts::default(),
        }
    }
}

/// One worker's books. At any quiet moment `rx_packets + handed_over` equals `tx_packets + punted + drops`.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Frames received on any port.
    pub rx_packets: Counter,
    /// Packets that the slow path or another worker handed over.
    pub handed_over: Counter,
    /// Frames that a transmit ring took.
    pub tx_packets: Counter,
    pub punts: PuntCounts,
    pub drops: DropCounts,
    /// Unfinished transport checksums that were completed.
    pub checksums_completed: Counter,
    /// Times round the loop. A worker whose turns stand still while it is not asleep hangs.
    pub turns: Counter,
    /// Times the worker went to sleep.
    pub sleeps: Counter,
    /// Port errors (a device that is down, or gone).
    pub port_errors: Counter,
    asleep: AtomicU64,
}

impl WorkerStats {
    /// The worker says that it is about to sleep, or awake.
    pub fn set_asleep(&self, asleep: bool) {
        self.asleep.store(u64::from(asleep), Relaxed);
        if asleep {
            self.sleeps.add(1);
        }
    }

    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Relaxed) != 0
    }
}
