//! The router's own addresses.

use std::{collections::HashSet, net::IpAddr};

use rustc_hash::FxBuildHasher;

/// Words of the filter: 4096 bits.
const WORDS: usize = 64;

/// The addresses, and a filter (Bloom 1970, with one hash) that answers for nearly all that are not among them.
#[derive(Debug)]
pub struct Own {
    addresses: HashSet<IpAddr, FxBuildHasher>,
    filter: [u64; WORDS],
}

impl Default for Own {
    fn default() -> Self {
        Self::new([])
    }
}

/// Word and bit of an IPv4 address.
#[inline]
fn place(address: u32) -> (usize, u32) {
    // 2^32 divided by the golden ratio: the upper bits depend on all below.
    let hash = address.wrapping_mul(0x9e37_79b1);
    ((hash >> 26) as usize % WORDS, hash >> 20 & 63)
}

impl Own {
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let addresses: HashSet<IpAddr, FxBuildHasher> = addresses.into_iter().collect();
        let mut filter = [0; WORDS];
        for address in &addresses {
            if let IpAddr::V4(address) = address {
                let (word, bit) = place(address.to_bits());
                filter[word] |= 1 << bit;
            }
        }
        Self { addresses, filter }
    }

    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.contains_v4(address.to_bits()),
            IpAddr::V6(_) => self.addresses.contains(&address),
        }
    }

    #[inline]
    pub fn contains_v4(&self, address: u32) -> bool {
        let (word, bit) = place(address);
        self.filter[word] >> bit & 1 != 0 && self.is_there(address)
    }

    #[cold]
    fn is_there(&self, address: u32) -> bool {
        self.addresses
            .contains(&std::net::Ipv4Addr::from(address).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_loses_none_and_adds_none() {
        let own = |n: u32| n.wrapping_mul(0x0101_0305);
        let addresses = Own::new((0..3000).map(|n| std::net::Ipv4Addr::from(own(n)).into()));
        assert!((0..3000).all(|n| addresses.contains_v4(own(n))));
        assert!((3000..9000).all(|n| !addresses.contains_v4(own(n))));
        assert!(!Own::default().contains_v4(0));
    }
}
