//! Answers to remember.

use std::net::IpAddr;

use super::{Fib, Resolution};

/// How many destinations are remembered: a power of two.
const SLOTS: usize = 1024;

/// The latest answers of [`Fib::resolve`], by destination. One thread's own: a lookup of a destination that it has
/// seen lately costs one comparison, however many routes there are. Answers of another table are never returned.
#[derive(Debug)]
pub struct ResolutionCache(Box<[Entry]>);

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// The number of the table that answered; none has the number of an empty place.
    table: u64,
    destination: IpAddr,
    resolution: Resolution,
}

const EMPTY: Entry = Entry {
    table: u64::MAX,
    destination: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
    resolution: Resolution::Kernel,
};

impl Default for ResolutionCache {
    fn default() -> Self {
        Self(vec![EMPTY; SLOTS].into())
    }
}

impl ResolutionCache {
    /// Where `fib` sends a packet for `destination`. `flow` is the hash of the packet's flow, and asked for only where
    /// there are several ways.
    #[inline(always)]
    pub fn resolve(
        &mut self,
        fib: &Fib,
        destination: IpAddr,
        flow: impl FnOnce() -> u32,
    ) -> Resolution {
        let entry = &mut self.0[slot(destination)];
        if entry.table != fib.number || entry.destination != destination {
            *entry = Entry {
                table: fib.number,
                destination,
                resolution: fib.resolve(destination),
            };
        }
        match entry.resolution {
            Resolution::Multipath(id) => fib.choose(id, destination, flow()),
            resolution => resolution,
        }
    }
}

/// The place of a destination. Neighbouring addresses have different ones.
#[inline]
fn slot(destination: IpAddr) -> usize {
    // 2^64 divided by the golden ratio (Knuth, multiplicative hashing): the upper bits depend on all below.
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let folded = match destination {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (bits >> 64) as u64 ^ bits as u64
        }
    };
    (folded.wrapping_mul(MULTIPLIER) >> (u64::BITS - SLOTS.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::{NextHop, PortId, RouteTable};
    use proptest::prelude::*;

    fn table(hops: &[(u8, bool)]) -> Fib {
        let mut routes = RouteTable::default();
        let port = PortId(0);
        for &(host, local) in hops {
            let hop = if local {
                NextHop::Local
            } else {
                NextHop::Connected { port, mtu: 1500 }
            };
            routes.insert(format!("10.0.0.{host}/32").parse().unwrap(), hop);
        }
        Fib::new(Vec::new(), [], &routes)
    }

    proptest! {
        #[test]
        fn it_answers_as_the_table_at_hand(
            first in proptest::collection::vec((0u8..8, any::<bool>()), 0..8),
            second in proptest::collection::vec((0u8..8, any::<bool>()), 0..8),
            probes in proptest::collection::vec((0u8..8, any::<bool>()), 0..64),
        ) {
            let tables = [table(&first), table(&second)];
            let mut cache = ResolutionCache::default();
            for (host, which) in probes {
                let fib = &tables[usize::from(which)];
                let destination = IpAddr::from([10, 0, 0, host]);
                prop_assert_eq!(cache.resolve(fib, destination, || 0), fib.resolve(destination));
            }
        }
    }

    #[test]
    fn destinations_that_share_a_place_are_kept_apart() {
        let fib = table(&[(1, true)]);
        let mut cache = ResolutionCache::default();
        let one = IpAddr::from([10, 0, 0, 1]);
        let other = (0u32..)
            .map(|n| IpAddr::from(n.to_be_bytes()))
            .find(|&a| a != one && slot(a) == slot(one))
            .unwrap();
        assert_eq!(cache.resolve(&fib, one, || 0), Resolution::Local);
        assert_eq!(cache.resolve(&fib, other, || 0), Resolution::Kernel);
        assert_eq!(cache.resolve(&fib, one, || 0), Resolution::Local);
    }

    #[test]
    fn a_new_neighbour_is_seen() {
        let port = crate::fib::tests::port("eth1");
        let mut routes = RouteTable::default();
        let hop = NextHop::Connected {
            port: PortId(0),
            mtu: 1500,
        };
        routes.insert("10.0.0.0/24".parse().unwrap(), hop);
        let mut fib = Fib::new(vec![port], [], &routes);
        let mut cache = ResolutionCache::default();
        let host = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(cache.resolve(&fib, host, || 0), Resolution::Unresolved);
        fib.add_neighbour(PortId(0), host, Default::default());
        assert!(matches!(
            cache.resolve(&fib, host, || 0),
            Resolution::Adjacent(_)
        ));
    }
}
