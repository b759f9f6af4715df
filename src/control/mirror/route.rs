//! A route, and how the kernel orders those of one prefix.

use std::{net::IpAddr, sync::Arc};

use ipnet::Ipv6Net;

/// The tables that the kernel consults without any rule of the administrator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    Local,
    Main,
}

/// What becomes of packets that match a route (rtnetlink(7), `rtm_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKind {
    Unicast,
    Local,
    Broadcast,
    Anycast,
    Multicast,
    Blackhole,
    Unreachable,
    Prohibit,
    /// The lookup goes on with the next rule.
    Throw,
    /// A type that is not known here.
    Other(u8),
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hop {
    /// 0 where a route has no device (blackhole and its like).
    pub oif: u32,
    /// The next hop; an IPv6 one is possible for an IPv4 route (RFC 5549). None: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Share of the flows among several hops, 1..=256.
    pub weight: u16,
    /// Lightweight tunnel encapsulation is applied: only the kernel can follow.
    pub encap: bool,
    /// The kernel does not use this hop: its device is down, or has no carrier and is set to ignore such.
    pub dead: bool,
    /// The device has no carrier. The kernel goes on using the route unless `dead` is set as well.
    pub linkdown: bool,
    /// The gateway need not be within a connected prefix.
    pub onlink: bool,
}

impl Hop {
    /// The same place, whatever the state of the device.
    fn same(&self, other: &Hop) -> bool {
        (self.oif, self.gateway, self.encap) == (other.oif, other.gateway, other.encap)
    }
}

/// A route without its prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    pub kind: RouteKind,
    /// The lower, the better.
    pub metric: u32,
    /// Applies to packets of this TOS only, unless 0. IPv4 only.
    pub tos: u8,
    /// Who installed it (RTPROT_*).
    pub protocol: u8,
    pub scope: u8,
    /// The MTU metric, in bytes.
    pub mtu: Option<u32>,
    /// The address that the host itself would send from.
    pub prefsrc: Option<IpAddr>,
    /// Applies to packets from these sources only. IPv6 only.
    pub source: Option<Ipv6Net>,
    /// The nexthop object that the route uses: it has the hops then.
    pub nexthop_id: Option<u32>,
    /// More than one: multipath.
    pub hops: Vec<Hop>,
}

/// How a new route joins those of its prefix (NLM_F_REPLACE, NLM_F_APPEND, neither).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insertion {
    Replace,
    Append,
    Prepend,
}

impl Route {
    /// Some usable hop is left, or none is needed.
    pub fn alive(&self) -> bool {
        self.hops.is_empty() || self.hops.iter().any(|hop| !hop.dead)
    }

    fn is_multipath(&self) -> bool {
        self.hops.len() > 1
    }

    /// Whether a hop leads out of the device.
    pub fn uses_device(&self, ifindex: u32) -> bool {
        self.hops.iter().any(|hop| hop.oif == ifindex)
    }

    /// It depends on more than the destination.
    pub fn is_conditional(&self) -> bool {
        self.tos != 0 || self.source.is_some()
    }

    /// The same route, whatever the state of its devices.
    fn same(&self, other: &Route) -> bool {
        self.kind == other.kind
            && (self.tos, self.metric) == (other.tos, other.metric)
            && (self.protocol, self.scope) == (other.protocol, other.scope)
            && (self.mtu, self.prefsrc) == (other.mtu, other.prefsrc)
            && (self.source, self.nexthop_id) == (other.source, other.nexthop_id)
            && self.hops.len() == other.hops.len()
            && self.hops.iter().zip(&other.hops).all(|(a, b)| a.same(b))
    }

    /// What IPv4 allows one route of, unless it is told to append (fib_find_alias).
    fn slot(&self) -> (std::cmp::Reverse<u8>, u32) {
        (std::cmp::Reverse(self.tos), self.metric)
    }

    /// Takes the hops by `ifindex` out of use. False when nothing usable is left.
    pub(super) fn lose_device(&mut self, ifindex: u32) -> bool {
        for hop in self.hops.iter_mut().filter(|hop| hop.oif == ifindex) {
            hop.dead = true;
        }
        self.alive()
    }
}

/// Whether a list of routes may now differ from the kernel's.
pub(super) type Doubt = bool;

/// Adds an IPv4 route as `fib_table_insert` does. Saying it twice changes nothing.
pub(super) fn insert4(list: &mut Vec<Arc<Route>>, route: Route, how: Insertion) -> Doubt {
    let slot = route.slot();
    match how {
        Insertion::Replace => {
            // The kernel replaces the first route of the slot, whatever it is.
            if let Some(first) = list.iter_mut().find(|old| old.slot() == slot) {
                *first = Arc::new(route);
                return false;
            }
        }
        _ => list.retain(|old| !old.same(&route)),
    }
    let before = |old: &Arc<Route>| match how {
        Insertion::Prepend => old.slot() < slot,
        _ => old.slot() <= slot,
    };
    let at = list.iter().take_while(|old| before(old)).count();
    list.insert(at, Arc::new(route));
    false
}

/// Removes an IPv4 route.
pub(super) fn remove4(list: &mut Vec<Arc<Route>>, route: &Route) -> Doubt {
    match list.iter().position(|old| old.same(route)) {
        Some(at) => {
            list.remove(at);
            false
        }
        None => list.iter().any(|old| old.slot() == route.slot()),
    }
}

/// Adds an IPv6 route as the kernel's notifications mean it: a route that joins others of its metric
/// is told with all its hops, and a replacement takes the place of all of them.
pub(super) fn insert6(list: &mut Vec<Arc<Route>>, mut route: Route, how: Insertion) -> Doubt {
    // The kernel tells the hops beginning with the newest, and dumps them beginning with the oldest.
    route.hops.sort_by_key(|hop| (hop.oif, hop.gateway));
    if let Some(old) = list.iter_mut().find(|old| old.same(&route)) {
        *old = Arc::new(route);
        return false;
    }
    let peer = |old: &Route| (old.metric, old.source) == (route.metric, route.source);
    let mut doubt = false;
    if how == Insertion::Replace {
        // Which of several unrelated routes of the metric goes is the kernel's secret.
        doubt = list.iter().filter(|old| peer(old)).count() > 1;
        list.retain(|old| !peer(old));
    } else if route.is_multipath() {
        let known = |hop: &Hop| route.hops.iter().any(|new| new.same(hop));
        list.retain(|old| !(peer(old) && old.kind == route.kind && old.hops.iter().all(known)));
    }
    let metric = route.metric;
    let at = list.iter().take_while(|old| old.metric <= metric).count();
    list.insert(at, Arc::new(route));
    doubt
}

/// Removes an IPv6 route, or some hops of one: a single hop that goes is told alone.
pub(super) fn remove6(list: &mut Vec<Arc<Route>>, mut route: Route) -> Doubt {
    route.hops.sort_by_key(|hop| (hop.oif, hop.gateway));
    if let Some(at) = list.iter().position(|old| old.same(&route)) {
        list.remove(at);
        return false;
    }
    let peer = |old: &Route| {
        (old.metric, old.source, old.kind) == (route.metric, route.source, route.kind)
    };
    let gone = |hop: &Hop| route.hops.iter().any(|other| other.same(hop));
    let mut found = false;
    list.retain_mut(|old| {
        if !peer(old) || !old.hops.iter().any(gone) {
            return true;
        }
        found = true;
        let old = Arc::make_mut(old);
        old.hops.retain(|hop| !gone(hop));
        if let [only] = &mut old.hops[..] {
            // A single hop is told without a weight.
            only.weight = 1;
        }
        !old.hops.is_empty()
    });
    !found && list.iter().any(|old| peer(old))
}
