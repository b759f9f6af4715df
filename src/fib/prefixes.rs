//! Prefixes in order, and how they lie within each other.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Included, Unbounded},
};

use ipnet::{Ipv4Net, Ipv6Net};

/// A prefix of one family. In the order of its type a prefix stands before those that it contains, and these before all
/// others that follow.
pub trait Net: Copy + Ord {
    fn contains(self, other: Self) -> bool;
    /// The longest prefix that contains both.
    fn common(self, other: Self) -> Self;
    /// The last prefix within this one: its last address.
    fn last(self) -> Self;
}

macro_rules! net {
    ($net:ty, $bits:literal) => {
        impl Net for $net {
            fn contains(self, other: Self) -> bool {
                <$net>::contains(&self, &other)
            }

            fn common(self, other: Self) -> Self {
                let (a, b) = (self.addr(), other.addr());
                let equal = (a.to_bits() ^ b.to_bits()).leading_zeros() as u8;
                let len = equal.min(self.prefix_len()).min(other.prefix_len());
                <$net>::new(a, len).map_or(self, |net| net.trunc())
            }

            fn last(self) -> Self {
                <$net>::new(self.broadcast(), $bits).unwrap_or(self)
            }
        }
    };
}

net!(Ipv4Net, 32);
net!(Ipv6Net, 128);

/// Prefixes of one family, each with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefixes<N: Net, V>(BTreeMap<N, V>);

impl<N: Net, V> Default for Prefixes<N, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<N: Net, V: Copy> Prefixes<N, V> {
    /// Gives a prefix a value, and returns the one that it had.
    pub fn insert(&mut self, net: N, value: V) -> Option<V> {
        self.0.insert(net, value)
    }

    /// Takes a prefix out, and returns its value.
    pub fn remove(&mut self, net: N) -> Option<V> {
        self.0.remove(&net)
    }

    pub fn get(&self, net: N) -> Option<V> {
        self.0.get(&net).copied()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every prefix in order.
    pub fn iter(&self) -> impl Iterator<Item = (N, V)> + '_ {
        self.0.iter().map(|(net, value)| (*net, *value))
    }

    /// The longest prefix that contains `net` and is not `net` itself.
    pub fn parent(&self, net: N) -> Option<(N, V)> {
        let mut found = self.0.range(..net).next_back()?;
        while !found.0.contains(net) {
            // What contains `net` contains all between it and `net`, so it contains what the two have in common.
            found = self.0.range(..=found.0.common(net)).next_back()?;
        }
        Some((*found.0, *found.1))
    }

    /// The prefixes within `net` that are within no other prefix within it.
    pub fn children(&self, net: N) -> impl Iterator<Item = (N, V)> + '_ {
        let mut after = net;
        std::iter::from_fn(move || {
            let (child, value) = self.0.range((Excluded(after), Unbounded)).next()?;
            after = child.last();
            net.contains(*child).then_some((*child, *value))
        })
    }

    /// Every prefix within `within`, itself included, behind `after`, in order.
    pub fn range(&self, after: Option<N>, within: Option<N>) -> impl Iterator<Item = (N, V)> + '_ {
        let last = within.map(N::last);
        let from = match (after.max(within), after) {
            (Some(from), Some(after)) if from == after => Excluded(from),
            (Some(from), _) => Included(from),
            (None, _) => Unbounded,
        };
        // Nothing is behind the last one, not even an empty range.
        let any = after.is_none_or(|after| last.is_none_or(|last| after < last));
        let range = any.then(|| self.0.range((from, last.map_or(Unbounded, Included))));
        range
            .into_iter()
            .flatten()
            .map(|(net, value)| (*net, *value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(address: u32, len: u8) -> Ipv4Net {
        Ipv4Net::new(address.into(), len).unwrap().trunc()
    }

    proptest! {
        #[test]
        fn the_family_of_a_prefix_is_what_a_linear_scan_finds(
            nets in proptest::collection::btree_set((0u32..32, 24u8..=32), 0..24),
            wide in proptest::collection::btree_set((any::<u32>(), 0u8..=32), 0..8),
            (address, len) in (0u32..32, 22u8..=32),
            after in (0u32..40, 24u8..=32),
        ) {
            let mut prefixes = Prefixes::default();
            let nets: Vec<_> = nets.into_iter().chain(wide).map(|(a, len)| net(a, len)).collect();
            for net in &nets {
                prefixes.insert(*net, ());
            }
            let (this, after) = (net(address, len), net(after.0, after.1));
            let above = |of: Ipv4Net| {
                let around = nets.iter().copied().filter(|n| *n != of && n.contains(&of));
                around.max_by_key(|n| n.prefix_len())
            };
            prop_assert_eq!(prefixes.parent(this).map(|(n, ())| n), above(this));
            let inside = || nets.iter().copied().filter(|n| Ipv4Net::contains(&this, n));
            let is_child = |n: &Ipv4Net| {
                *n != this && above(*n).is_none_or(|above| !(above != this && Ipv4Net::contains(&this, &above)))
            };
            let mut children: Vec<_> = inside().filter(is_child).collect();
            children.sort();
            children.dedup();
            prop_assert_eq!(prefixes.children(this).map(|(n, ())| n).collect::<Vec<_>>(), children);
            let mut within: Vec<_> = inside().collect();
            within.sort();
            within.dedup();
            let found: Vec<_> = prefixes.range(None, Some(this)).map(|(n, ())| n).collect();
            prop_assert_eq!(&found, &within);
            let behind = |n: &Ipv4Net| *n > after;
            within.retain(behind);
            let found: Vec<_> = prefixes.range(Some(after), Some(this)).map(|(n, ())| n).collect();
            prop_assert_eq!(&found, &within);
            let all = prefixes.iter().map(|(n, ())| n).filter(behind);
            let found: Vec<_> = prefixes.range(Some(after), None).map(|(n, ())| n).collect();
            prop_assert_eq!(found, all.collect::<Vec<_>>());
        }
    }
}
