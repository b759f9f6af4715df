//! The other ends of tunnels: which there are, where they are, and how much can be sent there.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use super::{OuterHop, Scene, TunnelDevice, TunnelStatus, clamp, word};
use crate::{control::config::TunnelConfig, fib::RouteTable, packet::MacAddr, tunnel::TunnelId};

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

impl Scene<'_> {
    pub(super) fn statuses(&self, routes: &RouteTable) -> Vec<TunnelStatus> {
        let mut gateways: HashMap<TunnelId, BTreeSet<IpAddr>> = HashMap::new();
        for (id, gateway) in routes.tunnel_gateways() {
            gateways.entry(id).or_default().insert(gateway);
        }
        let of = |t: &TunnelDevice<'_>| self.status(t, gateways.remove(&t.id).unwrap_or_default());
        self.tunnels.iter().map(of).collect()
    }

    fn status(&self, tunnel: &TunnelDevice<'_>, gateways: BTreeSet<IpAddr>) -> TunnelStatus {
        let link = self.state.link(tunnel.ifindex);
        let config = tunnel.config;
        let mut status = TunnelStatus {
            up: link.is_some_and(|link| link.up),
            mtu: link.map_or(0, |link| clamp(link.mtu)),
            outer: None,
            peers: None,
        };
        if !config.remote.is_unspecified() {
            status.outer = self.outer_hop(config, config.remote);
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
                outer: self.outer_hop(config, remote),
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
            kernel_only: self.state.foreign_rules(),
        })
    }

    /// The largest inner packet, in bytes, for each outer address of each tunnel that can be sent to. The unspecified address
    /// stands for all peers of a tunnel: there the widest counts, and the worker sees to those that have less.
    pub(super) fn rooms(&self, statuses: &[TunnelStatus]) -> HashMap<(TunnelId, IpAddr), u16> {
        let mut rooms = HashMap::new();
        for (t, status) in self.tunnels.iter().zip(statuses).filter(|(_, s)| s.up) {
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
}
