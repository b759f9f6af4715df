//! Routes: prefixes that lead to next hops.
//!
//! Many prefixes share one next hop, which can change without them ([`HopId`]). What workers read is a [`Routes`], a
//! snapshot; the [`RouteTable`] that it comes from goes on changing, and both share what is equal.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    NextHop,
    direct::{self, Direct},
    prefixes::Prefixes,
    shared::Paged,
    trie::Trie,
};

/// A next hop's number in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct HopId(u32);

impl HopId {
    /// [`NextHop::Kernel`], which every table has.
    pub const KERNEL: HopId = HopId(0);

    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Routes of both families at one moment. A clone costs a few references.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    v4: Direct,
    v6: Trie,
    hops: Paged<NextHop>,
}

impl Routes {
    /// The number of the next hop of the longest prefix that contains `destination`.
    #[inline]
    pub fn lookup(&self, destination: IpAddr) -> Option<HopId> {
        let found = match destination {
            IpAddr::V4(address) => self.v4.lookup(address.to_bits()),
            IpAddr::V6(address) => self.v6.lookup(address.to_bits()),
        };
        found.map(HopId)
    }

    /// Whether there are many next hops, or prefixes all over the address space.
    #[inline]
    pub fn is_large(&self) -> bool {
        self.v4.is_large()
    }

    /// The same for an IPv4 destination; [`HopId::KERNEL`] where no prefix contains it.
    #[inline]
    pub fn lookup_v4(&self, destination: u32) -> HopId {
        HopId(self.v4.lookup(destination).unwrap_or(HopId::KERNEL.0))
    }

    /// A next hop; [`NextHop::Kernel`] for a number that there is not.
    #[inline]
    pub fn hop(&self, id: HopId) -> &NextHop {
        self.hops.get(id.index()).unwrap_or(&NextHop::Kernel)
    }
}

/// Routes of both families, to be changed one by one.
#[derive(Debug, Default)]
pub struct RouteTable {
    v4: Prefixes<Ipv4Net, HopId>,
    v6: Prefixes<Ipv6Net, HopId>,
    routes: Routes,
    /// The numbers that were given out reach to here.
    last: u32,
    free: Vec<HopId>,
}

impl RouteTable {
    /// A number for a next hop, until it is given back by [`RouteTable::remove_hop`].
    pub fn add_hop(&mut self, hop: NextHop) -> HopId {
        let id = self.free.pop().unwrap_or_else(|| HopId(self.last + 1));
        if id.0 > direct::MAX_VALUE {
            // More than there are IPv4 networks that routers agree to carry.
            return HopId::KERNEL;
        }
        self.last = self.last.max(id.0);
        self.set_hop(id, hop);
        id
    }

    /// Another next hop for all routes that lead to `id`.
    pub fn set_hop(&mut self, id: HopId, hop: NextHop) {
        if id != HopId::KERNEL && self.routes.hop(id) != &hop {
            self.routes.hops.set(id.index(), hop);
        }
    }

    /// No route leads there any more.
    pub fn remove_hop(&mut self, id: HopId) {
        if id != HopId::KERNEL {
            self.set_hop(id, NextHop::Kernel);
            self.free.push(id);
        }
    }

    /// Lets a prefix lead to a next hop. Returns the one that it led to.
    pub fn set(&mut self, prefix: IpNet, id: HopId) -> Option<HopId> {
        match prefix.trunc() {
            IpNet::V4(net) => {
                let network = net.network().to_bits();
                self.routes.v4.insert(network, net.prefix_len(), id.0);
                self.v4.insert(net, id)
            }
            IpNet::V6(net) => {
                let network = net.network().to_bits();
                self.routes.v6.insert(network, net.prefix_len(), id.0);
                self.v6.insert(net, id)
            }
        }
    }

    /// Removes a prefix. Returns the next hop that it led to, if it was there.
    pub fn remove(&mut self, prefix: IpNet) -> Option<HopId> {
        match prefix.trunc() {
            IpNet::V4(net) => {
                let was = self.v4.remove(net)?;
                let cover = self.v4.parent(net);
                let cover = cover.map(|(above, id)| (above.prefix_len(), id.0));
                let network = net.network().to_bits();
                self.routes.v4.remove(network, net.prefix_len(), cover);
                Some(was)
            }
            IpNet::V6(net) => {
                let was = self.v6.remove(net)?;
                let network = net.network().to_bits();
                self.routes.v6.remove(network, net.prefix_len());
                Some(was)
            }
        }
    }

    /// Adds a route with a next hop of its own.
    pub fn insert(&mut self, prefix: IpNet, hop: NextHop) {
        let id = self.add_hop(hop);
        self.set(prefix, id);
    }

    pub fn v4(&self) -> &Prefixes<Ipv4Net, HopId> {
        &self.v4
    }

    pub fn v6(&self) -> &Prefixes<Ipv6Net, HopId> {
        &self.v6
    }

    /// A next hop; [`NextHop::Kernel`] for a number that there is not.
    pub fn hop(&self, id: HopId) -> &NextHop {
        self.routes.hop(id)
    }

    /// The numbers of all next hops, and of some that there were.
    pub fn hop_ids(&self) -> impl Iterator<Item = HopId> {
        (0..=self.last).map(HopId)
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The routes as they are now.
    pub fn snapshot(&self) -> Routes {
        self.routes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::PortId;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn hop(n: u16) -> NextHop {
        NextHop::Connected {
            port: PortId(n),
            mtu: 1500,
        }
    }

    /// The longest prefix that contains the destination.
    fn linear(routes: &BTreeMap<IpNet, HopId>, destination: IpAddr) -> Option<HopId> {
        let around = routes.iter().filter(|(net, _)| net.contains(&destination));
        around
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|(_, id)| *id)
    }

    /// Prefixes that get in each other's way, and some from anywhere.
    fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = |(a, len): (u32, u8)| IpNet::V4(Ipv4Net::new(a.into(), len).unwrap().trunc());
        let v6 = |(a, len): (u128, u8)| IpNet::V6(Ipv6Net::new(a.into(), len).unwrap().trunc());
        prop_oneof![
            (0u32..600, 20u8..=32).prop_map(v4),
            (any::<u32>(), 0u8..=32).prop_map(v4),
            ((0u32..32).prop_map(|a| a << 19), 0u8..=20).prop_map(v4),
            (0u128..600, 100u8..=128).prop_map(v6),
            (any::<u128>(), 0u8..=128).prop_map(v6),
            ((0u128..32).prop_map(|a| a << 100), 0u8..=40).prop_map(v6),
        ]
    }

    /// A few addresses within a prefix and beside it.
    fn probes(net: IpNet) -> [IpAddr; 4] {
        let step = |ip: IpAddr, n: i8| -> IpAddr {
            match ip {
                IpAddr::V4(ip) => {
                    std::net::Ipv4Addr::from(ip.to_bits().wrapping_add_signed(n.into())).into()
                }
                IpAddr::V6(ip) => {
                    std::net::Ipv6Addr::from(ip.to_bits().wrapping_add_signed(n.into())).into()
                }
            }
        };
        let (first, last) = (net.network(), net.broadcast());
        [first, last, step(first, -1), step(last, 1)]
    }

    proptest! {
        /// Random additions and removals: the table looks up as a linear scan does, and so does every snapshot after all
        /// later changes.
        #[test]
        fn lookups_equal_a_linear_scan_and_snapshots_stay(
            changes in proptest::collection::vec((prefix(), 0u16..6), 1..60),
            keep in proptest::collection::vec(any::<bool>(), 60),
        ) {
            let mut table = RouteTable::default();
            let ids: Vec<HopId> = (0..4).map(|n| table.add_hop(hop(n))).collect();
            let mut routes = BTreeMap::new();
            let mut snapshots = vec![(table.snapshot(), routes.clone())];
            for ((net, what), keep) in changes.iter().zip(keep) {
                // Removed more often than by chance: something that is there.
                let net = match what {
                    4 => routes.keys().next().copied().unwrap_or(*net),
                    _ => *net,
                };
                let expected = match ids.get(usize::from(*what)) {
                    Some(id) => {
                        let expected = routes.insert(net, *id);
                        prop_assert_eq!(table.set(net, *id), expected);
                        continue;
                    }
                    None => routes.remove(&net),
                };
                prop_assert_eq!(table.remove(net), expected);
                if keep {
                    snapshots.push((table.snapshot(), routes.clone()));
                }
            }
            snapshots.push((table.snapshot(), routes));
            for (snapshot, routes) in &snapshots {
                for address in changes.iter().flat_map(|(net, _)| probes(*net)) {
                    prop_assert_eq!(snapshot.lookup(address), linear(routes, address), "{}", address);
                }
            }
            prop_assert_eq!(table.len(), snapshots.last().unwrap().1.len());
        }
    }

    #[test]
    fn a_table_that_was_emptied_holds_nothing() {
        let mut table = RouteTable::default();
        let nets = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.1.0/24",
            "10.1.1.9/32",
            "::/0",
            "fd00::/8",
            "fd00::1/128",
        ];
        let nets = nets.map(|net| net.parse::<IpNet>().unwrap());
        nets.iter().for_each(|net| table.insert(*net, hop(1)));
        nets.iter()
            .rev()
            .for_each(|net| assert!(table.remove(*net).is_some()));
        assert!(table.is_empty());
        for net in nets {
            assert_eq!(table.snapshot().lookup(net.addr()), None);
        }
    }

    #[test]
    fn a_next_hop_changes_for_all_its_routes_and_no_snapshot() {
        let mut table = RouteTable::default();
        let id = table.add_hop(hop(1));
        let nets = ["10.1.0.0/16", "fd00::/64"].map(|net| net.parse::<IpNet>().unwrap());
        nets.iter()
            .for_each(|net| assert_eq!(table.set(*net, id), None));
        let before = table.snapshot();
        table.set_hop(id, hop(2));
        let after = table.snapshot();
        for net in nets {
            let find = |routes: &Routes| routes.hop(routes.lookup(net.addr()).unwrap()).clone();
            assert_eq!((find(&before), find(&after)), (hop(1), hop(2)));
        }
    }

    #[test]
    fn numbers_of_next_hops_are_used_again() {
        let mut table = RouteTable::default();
        let first = table.add_hop(hop(1));
        let second = table.add_hop(hop(2));
        assert!(first != second && first != HopId::KERNEL);
        table.remove_hop(first);
        assert_eq!(*table.hop(first), NextHop::Kernel);
        assert_eq!((table.add_hop(hop(3)), table.hop_ids().count()), (first, 3));
        table.set_hop(HopId::KERNEL, hop(1));
        assert_eq!(*table.hop(HopId::KERNEL), NextHop::Kernel);
    }
}
