//! Counters that one worker writes and everybody may read.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use super::{DropReason, PuntReason};
use crate::fib::Used;
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

/// One worker's books. At any quiet moment `rx_packets + handed_over + spread_in` equals `tx_packets + punted + drops +
/// spread_out`.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Frames received on any port.
    pub rx_packets: Counter,
    /// Packets that the slow path or another worker handed over.
    pub handed_over: Counter,
    /// Received frames that went to other workers because of their flow, and that came from others so.
    pub spread_out: Counter,
    pub spread_in: Counter,
    /// Frames that a transmit ring took.
    pub tx_packets: Counter,
    pub punts: PuntCounts,
    pub drops: DropCounts,
    /// Unfinished transport checksums that were completed.
    pub checksums_completed: Counter,
    /// By port, in the order of their [`PortId`](crate::fib::PortId)s; what goes over a port is counted above too.
    pub ports: Box<[PortStats]>,
    /// Times round the loop. A worker whose turns stand still while it is not asleep hangs.
    pub turns: Counter,
    /// Those in which there was a packet.
    pub busy_turns: Counter,
    /// Times the worker went to sleep.
    pub sleeps: Counter,
    /// Port errors (a device that is down, or gone).
    pub port_errors: Counter,
    /// The neighbours that packets were sent to.
    pub used: Used,
    /// Sleep that is over, and waking that is over, in nanoseconds.
    asleep: Counter,
    awake: Counter,
    /// When the one of the two began that is not over, in nanoseconds by the worker's clock; 0: it does not run.
    since: AtomicU64,
    sleeps_now: AtomicBool,
}

/// What one worker moved over one port.
#[derive(Debug, Default)]
pub struct PortStats {
    pub rx_packets: Counter,
    /// Frames that the transmit ring took.
    pub tx_packets: Counter,
    /// Frames that it did not take: [`DropReason::TxRingFull`].
    pub tx_dropped: Counter,
}

impl WorkerStats {
    /// The books of a worker with `ports` ports.
    pub fn with_ports(ports: usize) -> Self {
        Self {
            ports: (0..ports).map(|_| PortStats::default()).collect(),
            ..Self::default()
        }
    }

    /// The worker begins to run at `now`, in nanoseconds by a clock that never goes back. It is awake.
    pub fn begin(&self, now: u64) {
        self.since.store(now, Relaxed);
    }

    /// The worker is about to sleep.
    pub fn fall_asleep(&self, now: u64) {
        self.turn_over(&self.awake, now);
        self.sleeps_now.store(true, Relaxed);
        self.sleeps.add(1);
    }

    /// The worker is awake again.
    pub fn wake_up(&self, now: u64) {
        self.turn_over(&self.asleep, now);
        self.sleeps_now.store(false, Relaxed);
    }

    /// The worker ends, awake.
    pub fn end(&self, now: u64) {
        self.turn_over(&self.awake, now);
        self.since.store(0, Relaxed);
    }

    fn turn_over(&self, over: &Counter, now: u64) {
        over.add(now.saturating_sub(self.since.swap(now, Relaxed)));
    }

    pub fn is_asleep(&self) -> bool {
        self.sleeps_now.load(Relaxed)
    }

    /// How long the worker was awake and how long it slept up to `now`, in nanoseconds.
    pub fn awake_and_asleep(&self, now: u64) -> (u64, u64) {
        let (mut awake, mut asleep) = (self.awake.get(), self.asleep.get());
        let since = match self.since.load(Relaxed) {
            0 => now,
            since => since,
        };
        let current = if self.is_asleep() {
            &mut asleep
        } else {
            &mut awake
        };
        *current += now.saturating_sub(since);
        (awake, asleep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_awake_and_asleep_is_all_the_time_there_is() {
        let stats = WorkerStats::default();
        assert_eq!(stats.awake_and_asleep(50), (0, 0));
        stats.begin(100);
        assert_eq!(stats.awake_and_asleep(103), (3, 0));
        stats.fall_asleep(110);
        assert_eq!(stats.awake_and_asleep(130), (10, 20));
        stats.wake_up(140);
        assert!(!stats.is_asleep());
        assert_eq!(stats.awake_and_asleep(145), (15, 30));
        stats.end(150);
        assert_eq!(stats.awake_and_asleep(999), (20, 30));
    }
}
