//! Which tunnel has which slot while tunnels come and go.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::tunnel::TunnelId;

/// A slot rests for so long before another tunnel gets it. Packets of the one before may still lie in some queue, and
/// would come out of the wrong tunnel.
const REST: Duration = Duration::from_secs(10);

/// Slots that no tunnel has.
#[derive(Debug, Default)]
pub struct Slots {
    /// The first that none has ever had.
    fresh: u32,
    /// In the order in which they were given up.
    resting: VecDeque<(TunnelId, Instant)>,
}

impl Slots {
    /// The first `n` slots are taken.
    pub fn after(n: usize) -> Self {
        Self {
            fresh: n as u32,
            ..Self::default()
        }
    }

    pub fn take(&mut self, now: Instant) -> TunnelId {
        let rested = |(_, since): &(_, Instant)| now.duration_since(*since) >= REST;
        if self.resting.front().is_some_and(rested)
            && let Some((slot, _)) = self.resting.pop_front()
        {
            return slot;
        }
        let slot = TunnelId(self.fresh);
        self.fresh += 1;
        slot
    }

    pub fn give_back(&mut self, slot: TunnelId, now: Instant) {
        self.resting.push_back((slot, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_rests_before_another_tunnel_gets_it() {
        let now = Instant::now();
        let mut slots = Slots::after(2);
        slots.give_back(TunnelId(0), now);
        assert_eq!(slots.take(now), TunnelId(2));
        slots.give_back(TunnelId(1), now + REST);
        assert_eq!(slots.take(now + REST), TunnelId(0));
        assert_eq!(slots.take(now + REST), TunnelId(3));
        assert_eq!(slots.take(now + REST * 2), TunnelId(1));
    }
}
