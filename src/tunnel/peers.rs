//! The other ends of a tunnel that has no remote of its own.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, LazyLock},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::{Family, Tunnel};

/// Which outer address the packets for an inner address go to: what a neighbour table is to an Ethernet device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peers {
    v4: PrefixMap<Ipv4Net, IpAddr>,
    v6: PrefixMap<Ipv6Net, IpAddr>,
    /// Each outer address once, in the order that they were first named in.
    remotes: Vec<IpAddr>,
    /// A next hop that is not here has no outer address: as a neighbour that is not known.
    closed: bool,
}

impl Peers {
    /// No peers: one for all the tunnels that have a remote, for it is not small.
    pub fn none() -> Arc<Self> {
        static NONE: LazyLock<Arc<Peers>> = LazyLock::new(Arc::default);
        NONE.clone()
    }

    /// None yet, and next hops stand for nothing by themselves.
    pub fn closed() -> Self {
        Self {
            closed: true,
            ..Self::default()
        }
    }

    /// Packets whose next hop is within `inner`, and within no longer prefix here, go to `remote`.
    pub fn insert(&mut self, inner: IpNet, remote: IpAddr) {
        match inner {
            IpNet::V4(net) => self.v4.insert(net.trunc(), remote),
            IpNet::V6(net) => self.v6.insert(net.trunc(), remote),
        };
        if !self.remotes.contains(&remote) {
            self.remotes.push(remote);
        }
    }

    /// The outer destination, over `underlay`, of a unicast packet for `destination`; `gateway` is its route's.
    ///
    /// The next hop is looked up here, as the kernel does it among its neighbours. One that is not here is itself the outer
    /// destination, if it is a gateway that can be one (`ip_tunnel_xmit`, `ip6_tnl_xmit`): an inner address never is.
    #[inline]
    pub fn remote_of(
        &self,
        underlay: Family,
        gateway: Option<IpAddr>,
        destination: IpAddr,
    ) -> Option<IpAddr> {
        let peer = self.lookup(gateway.unwrap_or(destination));
        peer.or_else(|| outer_address(underlay, gateway.filter(|_| !self.closed)?))
    }

    /// The outer address of the longest prefix that contains `next_hop`.
    #[inline]
    fn lookup(&self, next_hop: IpAddr) -> Option<IpAddr> {
        match next_hop {
            IpAddr::V4(address) => self.v4.get_lpm(&address.into()).map(|(_, remote)| *remote),
            IpAddr::V6(address) => self.v6.get_lpm(&address.into()).map(|(_, remote)| *remote),
        }
    }

    /// Every entry, in the order of its prefix, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, IpAddr)> + '_ {
        let v4 = self.v4.iter().map(|(net, to)| (IpNet::V4(net), *to));
        let v6 = self.v6.iter().map(|(net, to)| (IpNet::V6(net), *to));
        v4.chain(v6)
    }

    /// Each outer address once: where a packet for everybody goes.
    pub fn remotes(&self) -> &[IpAddr] {
        &self.remotes
    }
}

impl Tunnel {
    /// The outer destination of a unicast packet for `destination`; `gateway` is its route's.
    ///
    #[inline]
    pub fn remote_of(&self, gateway: Option<IpAddr>, destination: IpAddr) -> Option<IpAddr> {
        if !self.remote.is_unspecified() {
            return Some(self.remote);
        }
        let underlay = self.mode.kind().underlay;
        self.peers.remote_of(underlay, gateway, destination)
    }
}

/// A gateway as an address of the underlay. An IPv4 one may come in the form `::192.0.2.3`, which is how a route for
/// IPv6 names it (RFC 4291 section 2.5.5.1; `ip_tunnel_xmit`, `ipip6_tunnel_xmit`).
#[inline]
fn outer_address(underlay: Family, gateway: IpAddr) -> Option<IpAddr> {
    match (underlay, gateway) {
        (Family::V4, IpAddr::V4(_)) | (Family::V6, IpAddr::V6(_)) => Some(gateway),
        (Family::V4, IpAddr::V6(v6)) => {
            let bits = u32::try_from(v6.to_bits()).ok()?;
            // ::/104 holds the unspecified and the loopback address too.
            (bits > 0xff_ffff).then(|| Ipv4Addr::from_bits(bits).into())
        }
        (Family::V6, IpAddr::V4(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::{Mode, tests::tunnel};
    use std::sync::Arc;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Where a packet goes; `gateway` may be empty.
    fn remote(mode: Mode, peers: &[(&str, &str)], gateway: &str, destination: &str) -> String {
        let mut table = Peers::default();
        for (inner, outer) in peers {
            table.insert(inner.parse().unwrap(), address(outer));
        }
        let v6 = mode.kind().underlay == Family::V6;
        let tunnel = Tunnel {
            mode,
            remote: address(if v6 { "::" } else { "0.0.0.0" }),
            peers: Arc::new(table),
            ..tunnel()
        };
        let gateway = (!gateway.is_empty()).then(|| address(gateway));
        let found = tunnel.remote_of(gateway, address(destination));
        found.map_or("none".to_owned(), |remote| remote.to_string())
    }

    const V4: &[(&str, &str)] = &[
        ("172.16.0.3/32", "192.0.2.3"),
        ("172.16.0.0/16", "192.0.2.4"),
        ("fd00::/64", "192.0.2.6"),
    ];
    const V6: &[(&str, &str)] = &[
        ("172.16.0.3/32", "2001:db8::3"),
        ("fd00::/64", "2001:db8::6"),
    ];

    #[test]
    fn the_next_hop_is_looked_up_by_longest_prefix() {
        let to = |gateway, destination| remote(Mode::Gre, V4, gateway, destination);
        assert_eq!(to("", "172.16.0.3"), "192.0.2.3");
        assert_eq!(to("", "172.16.9.9"), "192.0.2.4");
        assert_eq!(to("", "fd00::9"), "192.0.2.6");
        // The gateway is the next hop, not the destination.
        assert_eq!(to("172.16.0.3", "172.16.9.9"), "192.0.2.3");
        assert_eq!(to("fd00::1", "10.0.0.1"), "192.0.2.6");
        assert_eq!(
            remote(Mode::Ip6gre, V6, "172.16.0.3", "10.0.0.1"),
            "2001:db8::3"
        );
    }

    #[test]
    fn a_gateway_that_is_no_peer_is_the_outer_address() {
        for (mode, gateway, expected) in [
            (Mode::Gre, "192.0.2.9", "192.0.2.9"),
            (Mode::Sit, "::192.0.2.9", "192.0.2.9"),
            (Mode::Gre, "::192.0.2.9", "192.0.2.9"),
            (Mode::Ip6gre, "2001:db8::9", "2001:db8::9"),
            // Of the other family.
            (Mode::Gre, "2001:db8::9", "none"),
            (Mode::Sit, "::1", "none"),
            (Mode::Sit, "::", "none"),
            (Mode::Ip6gre, "192.0.2.9", "none"),
        ] {
            assert_eq!(remote(mode, &[], gateway, "10.0.0.1"), expected, "{mode:?}");
        }
    }

    #[test]
    fn an_inner_address_never_becomes_an_outer_one() {
        assert_eq!(remote(Mode::Gre, V4, "", "192.0.2.9"), "none");
        assert_eq!(remote(Mode::Ip6gre, V6, "", "2001:db8::9"), "none");
        assert_eq!(remote(Mode::Sit, &[], "", "::192.0.2.9"), "none");
    }

    #[test]
    fn a_remote_of_its_own_is_the_only_one() {
        let mut peers = Peers::default();
        peers.insert("10.0.0.0/8".parse().unwrap(), address("192.0.2.9"));
        let peers = Arc::new(peers);
        let tunnel = Tunnel { peers, ..tunnel() };
        let gateway = Some(address("192.0.2.8"));
        assert_eq!(
            tunnel.remote_of(gateway, address("10.0.0.1")),
            Some(tunnel.remote)
        );
    }

    #[test]
    fn a_packet_for_everybody_goes_to_each_once() {
        let mut peers = Peers::default();
        for (inner, outer) in [V4[0], V4[1], ("10.0.0.0/8", "192.0.2.3")] {
            peers.insert(inner.parse().unwrap(), address(outer));
        }
        assert_eq!(
            peers.remotes(),
            [address("192.0.2.3"), address("192.0.2.4")]
        );
    }
}
