//! Which prefixes the steering program has to know: those that lead into tunnels, and beneath them those that lead
//! elsewhere; nothing that a longer or shorter one says already.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{Scene, TunnelStatus, routes::is_tunnel};
use crate::{
    fib::{HopId, Net, NextHop, Prefixes, RouteTable},
    xdp::{Limits, PrefixAction, PrefixPlan},
};

/// What the steering program does with a prefix that leads to this next hop. Whether a tunnel is ready, and for how large
/// packets, is the hop's matter, not the prefix's.
fn action(id: HopId, hop: &NextHop) -> PrefixAction {
    let hop_limit = Limits::default().hops as usize;
    match is_tunnel(hop) && id.index() < hop_limit {
        true => PrefixAction::Hop(id.index() as u32),
        false => PrefixAction::Kernel,
    }
}

/// What has changed since the steering program was last told.
#[derive(Debug)]
pub(super) enum PrefixChanges {
    /// It has to be told anew.
    All,
    Some(BTreeMap<IpNet, Option<PrefixAction>>),
}

impl Default for PrefixChanges {
    fn default() -> Self {
        Self::Some(BTreeMap::new())
    }
}

impl PrefixChanges {
    pub(super) fn all(&mut self) {
        *self = Self::All;
    }

    /// A prefix led to the next hop `old`, and leads now where `nets` says.
    pub(super) fn note<'t, N: Net + Into<IpNet>>(
        &mut self,
        (net, old): (N, Option<HopId>),
        nets: &Prefixes<N, HopId>,
        hop: impl Fn(HopId) -> &'t NextHop,
    ) {
        let Self::Some(changes) = self else { return };
        let action = |id: HopId| action(id, hop(id));
        let (before, now) = (old.map(action), nets.get(net).map(action));
        if before == now {
            return;
        }
        // One that says what is said above it, or above everything, is left out.
        let above = nets.parent(net);
        let above = above.map_or(PrefixAction::Kernel, |(_, id)| action(id));
        changes.insert(net.into(), now.filter(|now| *now != above));
        let inside = now.unwrap_or(above);
        if before.unwrap_or(above) != inside {
            for (child, id) in nets.children(net) {
                let said = Some(action(id)).filter(|said| *said != inside);
                changes.insert(child.into(), said);
            }
        }
    }

    /// What the steering program is to be told.
    pub(super) fn plan(self, table: &RouteTable) -> PrefixPlan {
        match self {
            Self::Some(changes) => PrefixPlan::Changes(changes),
            Self::All => PrefixPlan::All(all(table)),
        }
    }
}

fn all(table: &RouteTable) -> BTreeMap<IpNet, PrefixAction> {
    let mut said = BTreeMap::new();
    let v4 = table.v4().iter().map(|(net, id)| (IpNet::V4(net), id));
    let v6 = table.v6().iter().map(|(net, id)| (IpNet::V6(net), id));
    // Entries that cover the prefix at hand, widest first; a parent always comes before its children.
    let mut above: Vec<(IpNet, PrefixAction)> = Vec::new();
    for (net, id) in v4.chain(v6) {
        while above
            .last()
            .is_some_and(|(parent, _)| !parent.contains(&net))
        {
            above.pop();
        }
        let action = action(id, table.hop(id));
        let inherited = above
            .last()
            .map_or(PrefixAction::Kernel, |(_, action)| *action);
        if action != inherited {
            above.push((net, action));
            said.insert(net, action);
        }
    }
    said
}

impl Scene<'_> {
    /// The largest inner packet for each next hop, by number: that of its widest tunnel, and the worker sees to those that
    /// take less.
    pub(super) fn hops(&self, table: &RouteTable, statuses: &[TunnelStatus]) -> Vec<u16> {
        let rooms = self.rooms(statuses);
        let room = |hop: &NextHop| match hop {
            NextHop::Tunnel { id, gateway, mtu } => {
                Some(self.room(&rooms, (*id, *gateway))?.min(*mtu))
            }
            _ => None,
        };
        let of = |hop: &NextHop| match hop {
            NextHop::Multipath(hops) if is_tunnel(hop) => hops.hops().filter_map(room).max(),
            hop => room(hop),
        };
        let mut hops: Vec<u16> = (table.hop_ids())
            .map(|id| of(table.hop(id)).unwrap_or(0))
            .collect();
        let used = hops.iter().rposition(|mtu| *mtu > 0).map_or(0, |at| at + 1);
        hops.truncate(used.min(Limits::default().hops as usize));
        hops
    }
}
