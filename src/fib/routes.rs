//! Longest-prefix match.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::NextHop;
use crate::tunnel::TunnelId;

/// Routes of both families, looked up by longest prefix.
#[derive(Debug, Default)]
pub struct RouteTable {
    v4: PrefixMap<Ipv4Net, NextHop>,
    v6: PrefixMap<Ipv6Net, NextHop>,
    /// The gateways of routes into tunnels, and how many routes have them.
    gateways: HashMap<(TunnelId, IpAddr), usize>,
}

impl RouteTable {
    /// Adds a route, or replaces the one with the same prefix.
    pub fn insert(&mut self, prefix: IpNet, next_hop: NextHop) {
        let before = match prefix {
            IpNet::V4(net) => self.v4.insert(net.trunc(), next_hop),
            IpNet::V6(net) => self.v6.insert(net.trunc(), next_hop),
        };
        if let Some(gateway) = tunnel_gateway(next_hop) {
            *self.gateways.entry(gateway).or_default() += 1;
        }
        if let Some(gateway) = before.and_then(tunnel_gateway) {
            self.forget(gateway);
        }
    }

    fn forget(&mut self, gateway: (TunnelId, IpAddr)) {
        if let Entry::Occupied(mut routes) = self.gateways.entry(gateway) {
            *routes.get_mut() -= 1;
            if *routes.get() == 0 {
                routes.remove();
            }
        }
    }

    /// Each gateway of a route into a tunnel, once.
    pub fn tunnel_gateways(&self) -> impl Iterator<Item = (TunnelId, IpAddr)> + '_ {
        self.gateways.keys().copied()
    }

    /// The next hop of the longest prefix that contains `destination`.
    #[inline]
    pub fn lookup(&self, destination: IpAddr) -> Option<NextHop> {
        match destination {
            IpAddr::V4(address) => self
                .v4
                .get_lpm(&Ipv4Net::from(address))
                .map(|(_, hop)| *hop),
            IpAddr::V6(address) => self
                .v6
                .get_lpm(&Ipv6Net::from(address))
                .map(|(_, hop)| *hop),
        }
    }

    /// Every route, in the order of its prefix, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, NextHop)> + '_ {
        let v4 = self.v4.iter().map(|(net, hop)| (IpNet::V4(net), *hop));
        let v6 = self.v6.iter().map(|(net, hop)| (IpNet::V6(net), *hop));
        v4.chain(v6)
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn tunnel_gateway(hop: NextHop) -> Option<(TunnelId, IpAddr)> {
    match hop {
        NextHop::Tunnel { id, gateway, .. } => Some((id, gateway?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::PortId;
    use proptest::prelude::*;

    fn linear(routes: &[(IpNet, NextHop)], destination: IpAddr) -> Option<NextHop> {
        let mut best: Option<(u8, NextHop)> = None;
        for (net, hop) in routes {
            // A later route with the same prefix replaces an earlier one.
            if net.contains(&destination) && best.is_none_or(|(len, _)| net.prefix_len() >= len) {
                best = Some((net.prefix_len(), *hop));
            }
        }
        best.map(|(_, hop)| hop)
    }

    fn hop(n: u16) -> NextHop {
        match n % 3 {
            0 => NextHop::Connected {
                port: PortId(n),
                mtu: 1500,
            },
            1 => NextHop::Tunnel {
                id: TunnelId(n.into()),
                gateway: None,
                mtu: 1476,
            },
            _ => NextHop::Kernel,
        }
    }

    #[test]
    fn gateways_into_tunnels_are_known_as_long_as_a_route_has_them() {
        let into = |id, gateway: &str| NextHop::Tunnel {
            id: TunnelId(id),
            gateway: Some(gateway.parse().unwrap()),
            mtu: 1476,
        };
        let mut table = RouteTable::default();
        let mut put = |prefix: &str, hop| {
            table.insert(prefix.parse().unwrap(), hop);
            let mut known: Vec<_> = (table.tunnel_gateways())
                .map(|(id, gateway)| format!("{} {gateway}", id.0))
                .collect();
            known.sort();
            known
        };
        assert_eq!(put("10.1.0.0/24", into(0, "192.0.2.1")), ["0 192.0.2.1"]);
        assert_eq!(put("10.2.0.0/24", into(0, "192.0.2.1")), ["0 192.0.2.1"]);
        let both = ["0 192.0.2.1", "1 192.0.2.1"];
        assert_eq!(put("10.2.0.0/24", into(1, "192.0.2.1")), both);
        assert_eq!(put("10.1.0.0/24", NextHop::Kernel), ["1 192.0.2.1"]);
        assert_eq!(put("10.2.0.0/24", NextHop::Local), [""; 0]);
    }

    proptest! {
        #[test]
        fn the_lookup_equals_a_linear_scan(
            v4 in proptest::collection::vec((0u32..64, 24u8..=32), 0..24),
            v6 in proptest::collection::vec((0u128..64, 120u8..=128), 0..24),
            wide in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..8),
            probes in proptest::collection::vec(0u32..64, 8),
            anywhere: u32,
        ) {
            let nets = v4.into_iter().chain(wide)
                .map(|(a, len)| IpNet::new(IpAddr::from(std::net::Ipv4Addr::from(a)), len).unwrap().trunc())
                .chain(v6.into_iter().map(|(a, len)| IpNet::new(IpAddr::from(std::net::Ipv6Addr::from(a)), len).unwrap().trunc()));
            let routes: Vec<_> = nets.enumerate().map(|(i, net)| (net, hop(i as u16))).collect();
            let mut table = RouteTable::default();
            for (net, hop) in &routes {
                table.insert(*net, *hop);
            }
            for probe in probes.iter().copied().chain([anywhere]) {
                let v4 = IpAddr::from(std::net::Ipv4Addr::from(probe));
                let v6 = IpAddr::from(std::net::Ipv6Addr::from(u128::from(probe)));
                prop_assert_eq!(table.lookup(v4), linear(&routes, v4));
                prop_assert_eq!(table.lookup(v6), linear(&routes, v6));
            }
        }
    }
}
