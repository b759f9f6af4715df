//! Whether flows that come by one queue are spread over the workers: as configured, or as what comes asks for.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use super::config::Spread;

/// Tunnel packets in a second from which a worker's load is worth sharing, and below which it is not.
const MUCH: u64 = 20_000;
const LITTLE: u64 = 5_000;
/// The share of one queue, in hundredths, from which it has them alone, and below which it has not.
const ALONE: u64 = 90;
const SHARED: u64 = 70;
/// So many seconds in a row, before flows are spread and before they are not any more: each change may put a few packets of
/// a flow out of their order.
const SECONDS_ON: u32 = 3;
const SECONDS_OFF: u32 = 30;

/// The decision, made once a second.
#[derive(Debug)]
pub struct Spreading {
    configured: Spread,
    on: Arc<AtomicBool>,
    /// By worker, the tunnel packets that its queues had received when they were last looked at.
    before: Vec<u64>,
    /// Seconds for which what came has asked for the contrary.
    contrary: u32,
}

impl Spreading {
    pub fn new(configured: Spread) -> Self {
        Self {
            configured,
            on: Arc::new(AtomicBool::new(configured == Spread::On)),
            before: Vec::new(),
            contrary: 0,
        }
    }

    /// What the workers look at.
    pub fn switch(&self) -> &Arc<AtomicBool> {
        &self.on
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// Whether what comes is to be looked at.
    pub fn is_open(&self) -> bool {
        self.configured == Spread::Auto
    }

    /// Once a second: `arrived` are the tunnel packets that the queues of each worker have received since they began.
    /// `ordered`: a tunnel sends sequence numbers, which one worker owns; packets that other workers forward into it make a
    /// detour. The queue that decided, if this changed something.
    pub fn look(&mut self, arrived: Vec<u64>, ordered: bool) -> Option<usize> {
        let before = std::mem::replace(&mut self.before, arrived);
        if !self.is_open() || before.len() != self.before.len() {
            return None;
        }
        let came = self.before.iter().zip(&before);
        let came: Vec<u64> = came.map(|(now, then)| now.saturating_sub(*then)).collect();
        let all: u64 = came.iter().sum();
        let (queue, most) = (came.iter().copied().enumerate()).max_by_key(|(_, n)| *n)?;
        let has = |share: u64, least: u64| all >= least && most * 100 >= all * share;
        let (contrary, seconds) = match self.is_on() {
            true => (ordered || !has(SHARED, LITTLE), SECONDS_OFF),
            false => (!ordered && has(ALONE, MUCH), SECONDS_ON),
        };
        self.contrary = if contrary { self.contrary + 1 } else { 0 };
        if self.contrary < seconds {
            return None;
        }
        self.contrary = 0;
        self.on.store(!self.is_on(), Relaxed);
        Some(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds after which each change comes, while so many packets a second come by the two queues.
    fn changes(spreading: &mut Spreading, per_second: [u64; 2], seconds: u32) -> Vec<u32> {
        let mut arrived = [0, 0];
        if !spreading.before.is_empty() {
            arrived = [spreading.before[0], spreading.before[1]];
        }
        let mut at = Vec::new();
        for second in 1..=seconds {
            arrived = [arrived[0] + per_second[0], arrived[1] + per_second[1]];
            if spreading.look(arrived.to_vec(), false).is_some() {
                at.push(second);
            }
        }
        at
    }

    #[test]
    fn one_queue_that_has_it_all_is_relieved_and_stays_so() {
        let mut auto = Spreading::new(Spread::Auto);
        // The first look has nothing to compare with.
        assert_eq!(changes(&mut auto, [300_000, 0], 60), [4]);
        assert!(auto.is_on());
        // It goes on while one has the most of it, and a pause does not end it.
        assert_eq!(changes(&mut auto, [60_000, 20_000], 90), [0; 0]);
        assert_eq!(changes(&mut auto, [0, 0], 29), [0; 0]);
        assert_eq!(changes(&mut auto, [300_000, 0], 60), [0; 0]);
        assert_eq!(changes(&mut auto, [50_000, 50_000], 90), [30]);
        assert!(!auto.is_on());
    }

    #[test]
    fn little_even_or_ordered_traffic_is_left_alone() {
        let mut auto = Spreading::new(Spread::Auto);
        assert_eq!(changes(&mut auto, [19_000, 0], 60), [0; 0]);
        assert_eq!(changes(&mut auto, [300_000, 100_000], 60), [0; 0]);
        assert_eq!(changes(&mut auto, [300_000, 0], 2), [0; 0]);
        assert_eq!(changes(&mut auto, [0, 0], 1), [0; 0]);
        assert_eq!(changes(&mut auto, [300_000, 0], 2), [0; 0]);
        for second in 0..60 {
            let arrived = vec![300_000 * (1000 + second), 0];
            assert_eq!(auto.look(arrived, true), None);
        }
        assert!(!auto.is_on());
    }

    #[test]
    fn what_is_configured_is_not_decided_again() {
        for configured in [Spread::On, Spread::Off] {
            let mut fixed = Spreading::new(configured);
            let want = configured == Spread::On;
            assert_eq!(fixed.is_on(), want);
            for per_second in [[0, 0], [300_000, 0]] {
                assert_eq!(changes(&mut fixed, per_second, 60), [0; 0]);
            }
            assert_eq!(fixed.is_on(), want);
        }
    }
}
