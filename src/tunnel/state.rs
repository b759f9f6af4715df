//! What changes with packets: sequence numbers, identification, counters.
//!
//! One [`TunnelState`] per tunnel and thread. Only its owning thread writes it, with plain relaxed loads and
//! stores (no locked instructions); the control room reads it at any time. It outlives snapshots and threads.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

/// A counter that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning thread may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The value as of now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Packets and inner bytes of one tunnel, as one thread counted them.
#[derive(Debug, Default)]
#[repr(C)]
pub struct TunnelCounters {
    /// Came out of the tunnel (decapsulated).
    pub rx_packets: Counter,
    /// Inner bytes of those.
    pub rx_bytes: Counter,
    /// Went into the tunnel (encapsulated).
    pub tx_packets: Counter,
    /// Inner bytes of those.
    pub tx_bytes: Counter,
    /// Keepalives that were sent; they are among the packets that went in.
    pub keepalives_sent: Counter,
    /// Those that came back.
    pub keepalives_received: Counter,
    /// The far end's that were sent back to it; they are among the packets that came out.
    pub keepalives_answered: Counter,
    /// TCP connections whose maximum segment size was lowered, counted by their packets.
    pub mss_clamped: Counter,
}

/// A tunnel's sequence numbers. Every thread can reach them, and only the one that owns them at the time may: numbers
/// have to leave, and to be judged, in order.
#[derive(Debug, Default)]
pub struct Sequences {
    /// The next number to send; the first is 0 (RFC 2890 section 2.2).
    tx: AtomicU32,
    /// The next number expected; 0 accepts any, as the kernel's `i_seqno` does.
    rx: AtomicU32,
}

impl Sequences {
    /// Numbers that go on where others ended: the next to send, the next expected.
    pub fn starting_at(tx: u32, rx: u32) -> Self {
        Self {
            tx: AtomicU32::new(tx),
            rx: AtomicU32::new(rx),
        }
    }

    /// The next to send, and the next expected.
    pub fn now(&self) -> (u32, u32) {
        (self.tx.load(Relaxed), self.rx.load(Relaxed))
    }

    /// Goes on where others ended. Only while nobody uses the numbers.
    pub fn resume(&self, (tx, rx): (u32, u32)) {
        self.tx.store(tx, Relaxed);
        self.rx.store(rx, Relaxed);
    }

    /// The number of the next packet to send.
    #[inline]
    pub fn next(&self) -> u32 {
        let n = self.tx.load(Relaxed);
        self.tx.store(n.wrapping_add(1), Relaxed);
        n
    }

    /// Whether a received number is acceptable: as the kernel's `ip_tunnel_rcv`, any when the expected number is 0,
    /// else one whose signed distance to it is not negative.
    #[inline]
    pub fn acceptable(&self, sequence: u32) -> bool {
        let expected = self.rx.load(Relaxed);
        expected == 0 || sequence.wrapping_sub(expected) as i32 >= 0
    }

    /// Remembers an accepted number.
    #[inline]
    pub fn accept(&self, sequence: u32) {
        self.rx.store(sequence.wrapping_add(1), Relaxed);
    }
}

/// What one thread keeps about one tunnel. What each packet changes is in one line of the processor's cache, where nobody
/// else writes.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct TunnelState {
    /// The last outer IPv4 identification sent.
    identification: AtomicU32,
    /// Threads share the identification space by stepping over each other's numbers.
    stride: u32,
    pub counters: TunnelCounters,
    pub sequences: Arc<Sequences>,
}

impl TunnelState {
    /// The state for thread number `thread` of `threads` (both count from zero, `threads` at least 1).
    pub fn new(thread: u32, threads: u32, sequences: Arc<Sequences>) -> Self {
        Self {
            counters: TunnelCounters::default(),
            sequences,
            identification: AtomicU32::new(thread),
            stride: threads.max(1),
        }
    }

    /// Has the processor fetch what the next packet changes.
    #[inline(always)]
    pub fn fetch(&self) {
        let _ = self.counters.tx_packets.get();
    }

    /// The identification of the next outer IPv4 packet: never 0, rising, and different from every
    /// other thread's until the 16 bits wrap.
    #[inline]
    pub fn next_identification(&self) -> u16 {
        loop {
            let id = self.identification.load(Relaxed).wrapping_add(self.stride);
            self.identification.store(id, Relaxed);
            if id as u16 != 0 {
                return id as u16;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_start_at_zero_and_wrap() {
        let first = Sequences::default();
        assert_eq!((first.next(), first.next()), (0, 1));
        let last = Sequences::starting_at(u32::MAX, 0);
        assert_eq!((last.next(), last.next()), (u32::MAX, 0));
    }

    #[test]
    fn received_sequences_follow_the_kernel_window() {
        let sequences = Sequences::default();
        let mut take = |n: u32| {
            let ok = sequences.acceptable(n);
            if ok {
                sequences.accept(n);
            }
            ok
        };
        // The golden capture gre-seq-window, in its order.
        let seen: Vec<bool> = [
            100,
            101,
            101,
            99,
            110,
            105,
            0x8000_0070,
            0x7fff_0000,
            0xfffe_0000,
            0xffff_ffff,
            0xffff_ffff,
            0,
            0xffff_ffff,
            1,
        ]
        .into_iter()
        .map(&mut take)
        .collect();
        assert_eq!(
            seen,
            [
                true, true, false, false, true, false, false, true, true, true, true, true, false,
                true
            ]
        );
    }

    #[test]
    fn identification_is_never_zero_and_distinct_between_threads() {
        let state = |thread| TunnelState::new(thread, 2, Arc::default());
        let (a, b) = (state(0), state(1));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..32_000 {
            let (x, y) = (a.next_identification(), b.next_identification());
            assert!(x != 0 && y != 0 && seen.insert(x) && seen.insert(y));
        }
    }
}
