//! Several next hops for one route.

use super::NextHop;

/// The next hops of a multipath route and their shares. A flow keeps its next hop as long as the route stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multipath(Box<[Member]>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    /// The largest hash of its flows.
    upper: u32,
    hop: NextHop,
}

impl Multipath {
    /// Next hops with their weights, in order: hash-threshold (RFC 2992) with the kernel's rounding (`fib_rebalance`).
    /// None without a weight.
    pub fn new(hops: &[(NextHop, u16)]) -> Option<Self> {
        let total: u64 = hops.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut sum = 0;
        let member = |(hop, weight): &(NextHop, u16)| {
            sum += u64::from(*weight);
            let share = ((sum << 32) + total / 2) / total;
            Member {
                upper: u32::try_from(share.saturating_sub(1)).unwrap_or(u32::MAX),
                hop: hop.clone(),
            }
        };
        (total > 0).then(|| {
            Self(
                hops.iter()
                    .filter(|(_, weight)| *weight > 0)
                    .map(member)
                    .collect(),
            )
        })
    }

    /// The next hop of flows with this hash.
    #[inline]
    pub fn choose(&self, hash: u32) -> &NextHop {
        let last = self.0.len() - 1;
        let at = self.0[..last]
            .iter()
            .position(|member| hash <= member.upper);
        &self.0[at.unwrap_or(last)].hop
    }

    /// Every next hop, in order.
    pub fn hops(&self) -> impl Iterator<Item = &NextHop> {
        self.0.iter().map(|member| &member.hop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::PortId;

    fn hop(n: u16) -> NextHop {
        NextHop::Connected {
            port: PortId(n),
            mtu: 1500,
        }
    }

    #[test]
    fn weights_are_shares() {
        assert_eq!(Multipath::new(&[]), None);
        assert_eq!(Multipath::new(&[(hop(0), 0)]), None);
        let hops = Multipath::new(&[(hop(0), 1), (hop(1), 0), (hop(2), 2), (hop(3), 1)]).unwrap();
        let mut seen = [0; 4];
        for n in 0..4096u32 {
            let chosen = hops.choose(n << 20);
            seen[(0..4).find(|n| *chosen == hop(*n)).unwrap() as usize] += 1;
        }
        assert_eq!(seen, [1024, 0, 2048, 1024]);
        assert_eq!(*hops.choose(u32::MAX), hop(3));
    }

    #[test]
    fn a_flow_whose_next_hop_stays_keeps_it_when_the_last_one_goes() {
        let three = Multipath::new(&[(hop(0), 1), (hop(1), 1), (hop(2), 1)]).unwrap();
        let two = Multipath::new(&[(hop(0), 1), (hop(1), 1)]).unwrap();
        let stays = |n: u32| *three.choose(n) != hop(0) || *two.choose(n) == hop(0);
        assert!((0..=u32::MAX).step_by(1 << 20).all(stays));
    }
}
