//! Which neighbours packets have gone to lately.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// How many marks there are: a power of two.
const MARKS: usize = 4096;

/// A mark on each neighbour that a packet was sent to: workers set it, and whoever reads it takes it away. Neighbours may
/// share one, and then both count as used.
#[derive(Debug)]
pub struct Used(Box<[AtomicBool]>);

impl Default for Used {
    fn default() -> Self {
        Self((0..MARKS).map(|_| AtomicBool::new(false)).collect())
    }
}

/// The place of a neighbour's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark(u16);

impl Mark {
    /// By interface index and address.
    pub fn of(ifindex: u32, address: IpAddr) -> Self {
        // As in the cache: the upper bits of the product depend on all below.
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let folded = match address {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                (bits >> 64) as u64 ^ bits as u64
            }
        };
        let folded = folded ^ u64::from(ifindex) << 32;
        Self((folded.wrapping_mul(MULTIPLIER) >> (u64::BITS - MARKS.ilog2())) as u16)
    }
}

impl Used {
    /// A packet goes there. Most of the time the mark stands already, and nothing is written that other workers read.
    #[inline]
    pub fn note(&self, mark: Mark) {
        let place = &self.0[usize::from(mark.0) % MARKS];
        if !place.load(Relaxed) {
            place.store(true, Relaxed);
        }
    }

    /// The marks that were set since the last call.
    pub fn take(&self) -> Vec<bool> {
        self.0
            .iter()
            .map(|mark| mark.swap(false, Relaxed))
            .collect()
    }
}

/// Whether a mark is among those that [`Used::take`] gave.
pub fn is_marked(taken: &[bool], mark: Mark) -> bool {
    taken.get(usize::from(mark.0)).copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_taken_once() {
        let used = Used::default();
        let [one, other] = ["10.1.0.1", "10.1.0.2"].map(|ip| Mark::of(3, ip.parse().unwrap()));
        used.note(one);
        used.note(one);
        let taken = used.take();
        assert!(is_marked(&taken, one) && !is_marked(&taken, other));
        assert!(!is_marked(&used.take(), one));
        // The same address behind another device is another neighbour.
        assert_ne!(Mark::of(4, "10.1.0.1".parse().unwrap()), one);
    }

    #[test]
    fn neighbours_of_a_network_have_marks_of_their_own() {
        let marks = (0..=255u8).map(|n| Mark::of(3, IpAddr::from([10, 1, 0, n])).0);
        assert!(marks.collect::<std::collections::BTreeSet<_>>().len() > 200);
    }
}
