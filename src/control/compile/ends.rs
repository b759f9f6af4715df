//! The ends of tunnels: which there are, where they are, and how much can be sent there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Scene, TunnelDevice, clamp};
use crate::{
    control::{
        config::TunnelConfig,
        mirror::{Lookup, RouteKind, Table},
    },
    fib::{Adjacency, Egress, Mark},
    packet::MacAddr,
    tunnel::{Payload, Shim, Tunnel, TunnelId},
    xdp::{TunnelClass, TunnelMatch},
};

/// Where a tunnel's outer packets go, as far as the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterHop {
    pub ifindex: u32,
    /// The gateway, or the remote itself where it is on the link.
    pub neighbour: IpAddr,
    pub mac: Option<MacAddr>,
    /// Largest outer packet, in bytes: the route's, or what a router on the way said.
    pub mtu: u16,
    /// The same of the route alone.
    pub route_mtu: u16,
    /// The route has an MTU of its own, and that is below the device's.
    pub has_metric: bool,
    /// The route is one that only the kernel can follow (multipath, policy, encapsulation).
    pub kernel_only: bool,
}

/// A tunnel's state at the moment of compilation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelStatus {
    /// The tunnel device is there and administratively up.
    pub up: bool,
    /// As of the tunnel: its far end answers keepalives, or is not asked.
    pub alive: bool,
    /// The tunnel device has a carrier: the kernel sends packets into it.
    pub carrier: bool,
    /// The tunnel device's MTU; 0 when there is no device.
    pub mtu: u16,
    /// None: the remote cannot be reached, or there is none.
    pub outer: Option<OuterHop>,
    /// Of a tunnel without a remote: each outer address that a peer or a route names, once.
    pub peers: Option<Vec<PeerStatus>>,
}

pub(super) fn word(outer: Option<&OuterHop>) -> &'static str {
    match outer {
        None => "no-route",
        Some(outer) if outer.mac.is_none() => "unresolved",
        Some(_) => "up",
    }
}

impl TunnelStatus {
    /// The word for it in the statistics. A tunnel without a remote is up with its device: its peers have words of their own.
    pub fn word(&self) -> &'static str {
        match (self.up, &self.peers) {
            (false, _) => "down",
            (true, Some(_)) => "up",
            (true, None) if self.outer.is_some() && !self.alive => "no-keepalive",
            (true, None) => word(self.outer.as_ref()),
        }
    }

    /// Into a tunnel whose device has no carrier the kernel sends nothing; neither do the workers then.
    pub(super) fn sends(&self) -> bool {
        self.carrier && self.alive
    }

    /// Every outer address that it sends to, and where that is; `remote` is the tunnel's own.
    pub fn ways(&self, remote: IpAddr) -> impl Iterator<Item = (IpAddr, Option<OuterHop>)> + '_ {
        let peers = self.peers.iter().flatten();
        let own = (!remote.is_unspecified()).then_some((remote, self.outer));
        own.into_iter()
            .chain(peers.map(|peer| (peer.remote, peer.outer)))
    }

    /// Every neighbour on the underlay that it sends to.
    pub fn outers(&self) -> impl Iterator<Item = OuterHop> + '_ {
        let peers = self.peers.iter().flatten().filter_map(|peer| peer.outer);
        self.outer.into_iter().chain(peers)
    }
}

/// One of the other ends of a tunnel without a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStatus {
    pub remote: IpAddr,
    /// None: it cannot be reached.
    pub outer: Option<OuterHop>,
}

impl PeerStatus {
    /// The word for it in the statistics.
    pub fn word(&self) -> &'static str {
        word(self.outer.as_ref())
    }
}

/// The gateways of routes into tunnels.
pub(super) type Gateways = BTreeMap<TunnelId, BTreeSet<IpAddr>>;

impl Scene<'_> {
    /// In the order of the tunnels. `gateways` are those of routes into them.
    pub(super) fn statuses(&self, mut gateways: Gateways) -> Vec<TunnelStatus> {
        let of = |t: &TunnelDevice<'_>| self.status(t, gateways.remove(&t.id).unwrap_or_default());
        self.tunnels.iter().map(of).collect()
    }

    fn status(&self, tunnel: &TunnelDevice<'_>, gateways: BTreeSet<IpAddr>) -> TunnelStatus {
        let link = self.state.link(tunnel.ifindex);
        let config = tunnel.config;
        let mut status = TunnelStatus {
            up: link.is_some_and(|link| link.up),
            alive: tunnel.alive,
            carrier: link.is_some_and(|link| link.carrier),
            mtu: link.map_or(0, |link| clamp(link.mtu)),
            outer: None,
            peers: None,
        };
        if !config.remote.is_unspecified() {
            status.outer = self.outer_hop(tunnel, config.remote);
            return status;
        }
        let underlay = config.mode.kind().underlay;
        let named = (gateways.into_iter())
            .filter_map(|gateway| config.peers.remote_of(underlay, Some(gateway), gateway));
        let mut seen = HashSet::new();
        let remotes = config.peers.remotes().iter().copied().chain(named);
        let peers = (remotes.filter(|remote| seen.insert(*remote)))
            .map(|remote| PeerStatus {
                remote,
                outer: self.outer_hop(tunnel, remote),
            })
            .collect();
        status.peers = Some(peers);
        status
    }

    /// Where the packets to a group leave: by the tunnel's device, whatever the routes say, and to no neighbour in particular.
    pub(super) fn group_hop(&self, config: &TunnelConfig, group: IpAddr) -> Option<OuterHop> {
        let link = self.state.link_by_name(config.dev.as_deref()?)?;
        link.up.then_some(OuterHop {
            ifindex: link.index,
            neighbour: group,
            mac: link.mac.map(|_| MacAddr::of_group(group)),
            mtu: clamp(link.mtu),
            route_mtu: clamp(link.mtu),
            has_metric: false,
            kernel_only: self.rules.decide_outer(config.local),
        })
    }

    /// The largest inner packet, in bytes, for each outer address of each tunnel that can be sent to. The unspecified address
    /// stands for all peers of a tunnel: there the widest counts, and the worker sees to those that have less.
    pub(super) fn rooms(&self, statuses: &[TunnelStatus]) -> HashMap<(TunnelId, IpAddr), u16> {
        let mut rooms = HashMap::new();
        for (t, status) in self
            .tunnels
            .iter()
            .zip(statuses)
            .filter(|(_, s)| s.up && s.sends())
        {
            let room = |outer| {
                let adjacency = self.adjacency(outer)?;
                Some(adjacency.mtu.saturating_sub(t.config.overhead()))
            };
            if let Some(room) = room(status.outer) {
                rooms.insert((t.id, t.config.remote), room);
            }
            // The table's come first, and routes name the others.
            let in_table = t.config.peers.remotes().len();
            for (n, peer) in status.peers.iter().flatten().enumerate() {
                let Some(room) = room(peer.outer) else {
                    continue;
                };
                rooms.insert((t.id, peer.remote), room);
                if n < in_table {
                    let widest = rooms.entry((t.id, t.config.remote)).or_default();
                    *widest = room.max(*widest);
                }
            }
        }
        rooms
    }

    /// Where the kernel sends the outer packets. A route into one of our tunnels is none: the packet would go round
    /// (gre-8).
    fn outer_hop(&self, t: &TunnelDevice<'_>, remote: IpAddr) -> Option<OuterHop> {
        let config = t.config;
        if remote.is_multicast() {
            return self.group_hop(config, remote);
        }
        let found = self.state.lookup(remote)?;
        let route = found.route;
        if found.table == Table::Local || route.kind != RouteKind::Unicast {
            return None;
        }
        let hop = found.hops.iter().find(|hop| !hop.dead)?;
        let bound = config
            .dev
            .as_deref()
            .and_then(|dev| self.state.link_by_name(dev));
        let elsewhere = config.dev.is_some() && bound.map(|link| link.index) != Some(hop.oif);
        if self.by_ifindex.contains_key(&hop.oif) {
            return None;
        }
        let neighbour = hop.gateway.unwrap_or(remote);
        let (route_mtu, device_mtu) = (self.mtu(route.mtu, hop.oif), self.mtu(None, hop.oif));
        let learned = t.paths.get(remote);
        Some(OuterHop {
            ifindex: hop.oif,
            neighbour,
            mac: self.state.neighbour(hop.oif, neighbour).and_then(|n| n.mac),
            mtu: learned.map_or(route_mtu, |mtu| mtu.min(route_mtu)),
            route_mtu,
            has_metric: route_mtu < device_mtu,
            kernel_only: self.is_kernels(&found)
                || elsewhere
                || self.rules.decide_outer(config.local),
        })
    }

    /// Whether following a route takes more than its next hop.
    fn is_kernels(&self, found: &Lookup<'_>) -> bool {
        let alive = || found.hops.iter().filter(|hop| !hop.dead);
        found.conditional || alive().count() > 1 || alive().any(|hop| hop.encap)
    }

    pub(super) fn tunnel(&self, t: &TunnelDevice<'_>, status: &TunnelStatus) -> Tunnel {
        // 0 is no device: bound to one that is not there, it sends nothing.
        let index = |dev| self.state.link_by_name(dev).map_or(0, |link| link.index);
        let dev = t.config.dev.as_deref().map(index);
        let tunnel = t.config.tunnel(t.id, dev, status.mtu, status.up);
        let rooms = (status.outers()).map(|outer| outer.mtu.saturating_sub(t.config.overhead()));
        let narrowest = rooms.chain([status.mtu]).min();
        let bridge = t.config.bridge.as_deref();
        // A device that is not there takes nothing, of whatever size.
        let mtu = |name| (self.state.link_by_name(name)).map_or(u16::MAX, |link| clamp(link.mtu));
        Tunnel {
            clamp_mss: tunnel.clamp_mss.and(narrowest),
            wire: bridge.map(mtu),
            alive: t.alive,
            ..tunnel
        }
    }

    pub(super) fn egress(&self, t: &TunnelDevice<'_>, status: &TunnelStatus) -> Egress {
        let bridge = t.config.bridge.as_deref();
        let bridge = bridge.and_then(|name| self.state.link_by_name(name));
        Egress {
            adjacency: self.adjacency(status.outer.filter(|_| status.sends())),
            forwards: self.forwards(t.ifindex),
            wire: bridge
                .filter(|link| self.sends(link.index))
                .and_then(|link| self.port(link.index)),
        }
    }

    /// The next hop of outer packets as workers use it, where they can.
    pub(super) fn adjacency(&self, outer: Option<OuterHop>) -> Option<Adjacency> {
        let outer = outer.filter(|outer| !outer.kernel_only)?;
        let port = self.port(outer.ifindex)?;
        let device = &self.devices[port.index()];
        let link = self.state.link(outer.ifindex)?;
        (device.underlay && self.sends(link.index)).then_some(Adjacency {
            port: device.vlan.map_or(port, |on| on.port),
            vlan: device.vlan.map(|on| on.vid),
            mark: Mark::of(outer.ifindex, outer.neighbour),
            destination: outer.mac?,
            source: link.mac?,
            mtu: outer.mtu,
        })
    }

    /// What names the packets of tunnels that are up and whose local address is this router's.
    pub(super) fn matches(&self, statuses: &[TunnelStatus]) -> BTreeSet<TunnelMatch> {
        let own: HashSet<IpAddr> = self.state.addresses().map(|a| a.ip).collect();
        let is_own =
            |local: IpAddr| local.is_unspecified() || own.contains(&local) || self.delivers(local);
        (self.tunnels.iter().zip(statuses))
            .filter(|(t, status)| status.up && is_own(t.config.local))
            .flat_map(|(t, _)| matches(t.config))
            .collect()
    }

    /// The largest inner packet, in bytes, for a tunnel and its route's gateway, if it can be sent there.
    pub(super) fn room(
        &self,
        rooms: &HashMap<(TunnelId, IpAddr), u16>,
        (id, gateway): (TunnelId, Option<IpAddr>),
    ) -> Option<u16> {
        let remote = self.remote(id, gateway)?;
        rooms.get(&(id, remote)).copied()
    }

    /// The outer address of packets into a tunnel by a gateway; the unspecified address stands for all peers.
    pub(super) fn remote(&self, id: TunnelId, gateway: Option<IpAddr>) -> Option<IpAddr> {
        let config = self.by_id.get(&id)?.config;
        match gateway {
            Some(gateway) if config.remote.is_unspecified() => {
                let underlay = config.mode.kind().underlay;
                config.peers.remote_of(underlay, Some(gateway), gateway)
            }
            _ => Some(config.remote),
        }
    }

    /// A local route makes a whole prefix the router's own, without any address (AnyIP).
    fn delivers(&self, address: IpAddr) -> bool {
        let found = self.state.lookup(address);
        found.is_some_and(|f| f.table == Table::Local && f.route.kind == RouteKind::Local)
    }
}

/// How a tunnel's packets name it on receipt: once for every outer protocol that it takes.
fn matches(config: &TunnelConfig) -> impl Iterator<Item = TunnelMatch> + '_ {
    let kind = config.mode.kind();
    let classes = match (kind.shim, config.udp, kind.payload) {
        (Shim::Gre, Some(udp), _) => [
            Some(TunnelClass::GreInUdp {
                zero_checksum: !udp.checksum,
            }),
            None,
        ],
        (Shim::Gre, None, _) if config.nvgre => [Some(TunnelClass::Nvgre), None],
        (Shim::Gre, None, _) => [Some(TunnelClass::Gre), None],
        (Shim::None, _, Payload::Ipv4) => [Some(TunnelClass::Ipv4), None],
        (Shim::None, _, Payload::Ipv6) => [Some(TunnelClass::Ipv6), None],
        (Shim::None, ..) => [Some(TunnelClass::Ipv4), Some(TunnelClass::Ipv6)],
    };
    // What is sent to a group comes from any member.
    let (local, remote) = match config.remote {
        IpAddr::V4(group) if group.is_multicast() => (group.into(), Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V6(group) if group.is_multicast() => (group.into(), Ipv6Addr::UNSPECIFIED.into()),
        remote => (config.local, remote),
    };
    classes.into_iter().flatten().map(move |class| TunnelMatch {
        class,
        local,
        remote,
        key: config.ikey,
        // Without a wire, frames are the kernel's to route or to bridge.
        fast: kind.payload != Payload::Ethernet || config.bridge.is_some(),
        socket: !config.kernels,
    })
}
