//! From the mirror's routes to the workers' route table, prefix by prefix.
//!
//! The kernel asks the local table first, so a route of the main table beneath a prefix of the local one is never reached.
//! Routes that lead the same way share one next hop; what that is changes with links and tunnels, without the prefixes.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Scene, ends::Gateways, prefixes::PrefixChanges};
use crate::{
    control::mirror::{self, Best, Hop, RouteKind, State, Touched},
    fib::{HopId, Multipath, Net, NextHop, Prefixes, RouteTable},
    tunnel::Payload,
};

/// Where routes lead, in the kernel's words: the same for all that differ in nothing that concerns a worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Way {
    Local,
    Hops {
        hops: Box<[Hop]>,
        mtu: Option<u32>,
    },
    /// A nexthop object.
    Object {
        id: u32,
        mtu: Option<u32>,
    },
}

/// The ways that routes lead, each with its next hop's number and how many prefixes lead there.
#[derive(Debug, Default)]
struct Ways {
    known: HashMap<Way, HopId>,
    users: HashMap<HopId, (Way, usize)>,
}

/// The prefixes of one family in the local table that hold more than one address.
type Wide<N> = Prefixes<N, ()>;

/// The route table, and what it takes to follow the mirror.
#[derive(Debug, Default)]
pub(super) struct RouteCompiler {
    pub(super) table: RouteTable,
    ways: Ways,
    wide4: Wide<Ipv4Net>,
    wide6: Wide<Ipv6Net>,
    /// Next hops have come, changed or gone since the flag was last lowered.
    pub(super) hops_changed: bool,
}

/// One family's part of the mirror.
struct Source<'a, N> {
    main: &'a mirror::RouteTable<N>,
    local: &'a mirror::RouteTable<N>,
}

impl<'a> Source<'a, Ipv4Net> {
    fn v4(state: &'a State) -> Self {
        Self {
            main: state.main_v4(),
            local: state.local_v4(),
        }
    }
}

impl<'a> Source<'a, Ipv6Net> {
    fn v6(state: &'a State) -> Self {
        Self {
            main: state.main_v6(),
            local: state.local_v6(),
        }
    }
}

impl<N: mirror::Prefix + Net> Source<'_, N> {
    /// What a prefix leads to; none: nothing of its own. `Some(None)`: only the kernel knows.
    fn way(&self, net: N, wide: &Wide<N>) -> Option<Option<Way>> {
        if let Some(best) = self.local.best(net) {
            return Some((best.route.kind == RouteKind::Local).then_some(Way::Local));
        }
        let best = self.main.best(net)?;
        wide.parent(net).is_none().then(|| way(&best))
    }

    /// Follows whether the local table has this prefix. The prefixes that this concerns.
    fn note_wide(&self, net: N, wide: &mut Wide<N>) -> Vec<N> {
        if net.length() == N::BITS {
            return Vec::new();
        }
        let is = self.local.best(net).is_some();
        let was = match is {
            true => wide.insert(net, ()),
            false => wide.remove(net),
        };
        if was.is_some() == is {
            return Vec::new();
        }
        let beneath = self.main.range(net, net.last());
        beneath.map(|(net, _)| net).collect()
    }

    /// Every prefix that has a route.
    fn all(&self) -> Vec<N> {
        let local = self.local.iter().map(|(net, _)| net);
        let main = self.main.iter().map(|(net, _)| net);
        local.chain(main).collect()
    }
}

/// The way that a route of the main table leads; none: only the kernel can follow.
fn way(best: &Best<'_>) -> Option<Way> {
    let route = best.route;
    if best.conditional || route.kind != RouteKind::Unicast {
        return None;
    }
    if let Some(id) = route.nexthop_id {
        return Some(Way::Object { id, mtu: route.mtu });
    }
    Some(Way::Hops {
        hops: usable(&route.hops),
        mtu: route.mtu,
    })
}

/// The hops that the kernel uses.
pub(super) fn alive(hops: &[Hop]) -> Vec<Hop> {
    hops.iter().filter(|hop| !hop.dead).copied().collect()
}

/// The hops that the kernel uses, less what does not matter for that.
fn usable(hops: &[Hop]) -> Box<[Hop]> {
    let plain = |hop: &Hop| Hop {
        linkdown: false,
        onlink: false,
        ..*hop
    };
    alive(hops).iter().map(plain).collect()
}

impl RouteCompiler {
    /// Follows the prefixes that were touched, and notes what the steering program has to know of it.
    pub(super) fn follow(
        &mut self,
        scene: &Scene<'_>,
        touched: &Touched,
        changes: &mut PrefixChanges,
    ) {
        let state = scene.state;
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        match touched.routes() {
            Some(nets) => {
                for net in nets {
                    match *net {
                        IpNet::V4(net) => v4.push(net),
                        IpNet::V6(net) => v6.push(net),
                    }
                }
            }
            None => {
                v4.extend(Source::v4(state).all());
                v6.extend(Source::v6(state).all());
                v4.extend(self.table.v4().iter().map(|(net, _)| net));
                v6.extend(self.table.v6().iter().map(|(net, _)| net));
                changes.all();
            }
        }
        let todo = todo(v4, &Source::v4(state), &mut self.wide4);
        for net in todo {
            let way = Source::v4(state).way(net, &self.wide4);
            if let Some((old, new)) = self.lead(scene, net.into(), way) {
                changes.note((net, old), self.table.v4(), |id| self.table.hop(id));
                self.settle(old, new);
            }
        }
        let todo = self::todo(v6, &Source::v6(state), &mut self.wide6);
        for net in todo {
            let way = Source::v6(state).way(net, &self.wide6);
            if let Some((old, new)) = self.lead(scene, net.into(), way) {
                changes.note((net, old), self.table.v6(), |id| self.table.hop(id));
                self.settle(old, new);
            }
        }
    }

    /// Lets a prefix lead another way. What it led to, and what now, if that differs.
    fn lead(
        &mut self,
        scene: &Scene<'_>,
        net: IpNet,
        way: Option<Option<Way>>,
    ) -> Option<(Option<HopId>, Option<HopId>)> {
        let new = way.map(|way| way.map_or(HopId::KERNEL, |way| self.hop(scene, way)));
        let old = match new {
            Some(id) => self.table.set(net, id),
            None => self.table.remove(net),
        };
        (old != new).then_some((old, new))
    }

    /// The number of a way's next hop.
    fn hop(&mut self, scene: &Scene<'_>, way: Way) -> HopId {
        if let Some(id) = self.ways.known.get(&way) {
            return *id;
        }
        let id = self.table.add_hop(scene.next_hop(&way));
        if id != HopId::KERNEL {
            self.ways.known.insert(way.clone(), id);
            self.ways.users.insert(id, (way, 0));
            self.hops_changed = true;
        }
        id
    }

    /// Counts who leads where; a next hop that nobody leads to goes.
    fn settle(&mut self, old: Option<HopId>, new: Option<HopId>) {
        if let Some((_, n)) = new.and_then(|new| self.ways.users.get_mut(&new)) {
            *n += 1;
        }
        let Some(old) = old else { return };
        let Some((way, n)) = self.ways.users.get_mut(&old) else {
            return;
        };
        *n -= 1;
        if *n == 0 {
            self.ways.known.remove(way);
            self.ways.users.remove(&old);
            self.table.remove_hop(old);
            self.hops_changed = true;
        }
    }

    /// Brings every next hop up to date. True when one leads into a tunnel that did not, or the other way round.
    pub(super) fn refresh(&mut self, scene: &Scene<'_>) -> bool {
        let mut turned = false;
        for (way, id) in &self.ways.known {
            let new = scene.next_hop(way);
            let old = self.table.hop(*id);
            if *old != new {
                turned |= is_tunnel(old) != is_tunnel(&new);
                self.hops_changed = true;
                self.table.set_hop(*id, new);
            }
        }
        turned
    }

    /// The gateways of routes into tunnels.
    pub(super) fn gateways(&self) -> Gateways {
        let mut gateways = Gateways::new();
        let mut note = |hop: &NextHop| {
            if let NextHop::Tunnel {
                id,
                gateway: Some(gateway),
                ..
            } = hop
            {
                gateways.entry(*id).or_default().insert(*gateway);
            }
        };
        for id in self.ways.known.values() {
            match self.table.hop(*id) {
                NextHop::Multipath(hops) => hops.hops().for_each(&mut note),
                hop => note(hop),
            }
        }
        gateways
    }

    /// The gateways of routes with several hops, as (device, address). The kernel chooses by a hash of its own, so it may never
    /// resolve the one that a worker needs.
    pub(super) fn gateways_of_several<'a>(
        &'a self,
        state: &'a State,
    ) -> impl Iterator<Item = (u32, IpAddr)> + 'a {
        let hops = |way: &'a Way| match way {
            Way::Local => &[][..],
            Way::Hops { hops, .. } => hops,
            Way::Object { id, .. } => state.nexthop_hops(*id),
        };
        let several = self
            .ways
            .known
            .keys()
            .map(hops)
            .filter(|hops| hops.len() > 1);
        several
            .flatten()
            .filter_map(|hop| Some((hop.oif, hop.gateway?)))
    }
}

/// The prefixes to look at, each once: what was touched, and what is beneath a prefix that the local table has or has not
/// any more.
fn todo<N: mirror::Prefix + Net>(
    mut nets: Vec<N>,
    source: &Source<'_, N>,
    wide: &mut Wide<N>,
) -> Vec<N> {
    nets.sort_unstable();
    nets.dedup();
    let beneath: Vec<N> = (nets.iter())
        .flat_map(|net| source.note_wide(*net, wide))
        .collect();
    if !beneath.is_empty() {
        nets.extend(beneath);
        nets.sort_unstable();
        nets.dedup();
    }
    nets
}

/// Whether every packet that it takes goes into a tunnel.
pub(super) fn is_tunnel(hop: &NextHop) -> bool {
    let one = |hop: &NextHop| matches!(hop, NextHop::Tunnel { .. });
    match hop {
        NextHop::Multipath(hops) => hops.hops().all(one),
        hop => one(hop),
    }
}

impl Scene<'_> {
    /// A way in the workers' words.
    fn next_hop(&self, way: &Way) -> NextHop {
        match way {
            Way::Local => NextHop::Local,
            Way::Hops { hops, mtu } => self.one_of(hops, *mtu),
            Way::Object { id, mtu } => self.one_of(&usable(self.state.nexthop_hops(*id)), *mtu),
        }
    }

    /// The only hop, or one of several by flow. Where one of them is the kernel's they all are: the shares would not be
    /// right otherwise.
    fn one_of(&self, hops: &[Hop], mtu: Option<u32>) -> NextHop {
        let all: Vec<_> = (hops.iter())
            .map(|hop| (self.single(hop, mtu), hop.weight))
            .collect();
        match &all[..] {
            [(only, _)] => only.clone(),
            all if all.iter().any(|(hop, _)| *hop == NextHop::Kernel) => NextHop::Kernel,
            all => Multipath::new(all)
                .map_or(NextHop::Kernel, |hops| NextHop::Multipath(Arc::new(hops))),
        }
    }

    pub(super) fn single(&self, hop: &Hop, mtu: Option<u32>) -> NextHop {
        if hop.encap {
            return NextHop::Kernel;
        }
        let mtu = self.mtu(mtu, hop.oif);
        if let Some(tunnel) = self.by_ifindex.get(&hop.oif) {
            // What is behind a device for frames has link addresses, which the kernel resolves.
            if tunnel.config.mode.kind().payload == Payload::Ethernet {
                return NextHop::Kernel;
            }
            return NextHop::Tunnel {
                id: tunnel.id,
                gateway: hop.gateway,
                mtu,
            };
        }
        let port = self.port(hop.oif).filter(|_| self.sends(hop.oif));
        match (port, hop.gateway) {
            (Some(port), None) => NextHop::Connected { port, mtu },
            (Some(port), Some(gateway)) => NextHop::Via { port, gateway, mtu },
            (None, _) => NextHop::Kernel,
        }
    }
}
