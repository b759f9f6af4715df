//! One routing table of one family.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};

use super::route::{self, Insertion, Route};

/// The prefixes of one family.
pub trait Prefix: Copy + Ord {
    type Address: Copy;
    const BITS: u8;
    fn containing(address: Self::Address, len: u8) -> Option<Self>;
    /// The prefix length, in bits.
    fn length(self) -> u8;
    /// Adds to the routes of one prefix as this family does; whether the result is in doubt.
    fn insert(list: &mut Vec<Route>, route: Route, how: Insertion) -> bool;
    fn remove(list: &mut Vec<Route>, route: Route) -> bool;
}

impl Prefix for Ipv4Net {
    type Address = Ipv4Addr;
    const BITS: u8 = 32;
    fn containing(address: Ipv4Addr, len: u8) -> Option<Self> {
        Ipv4Net::new(address, len).ok().map(|net| net.trunc())
    }
    fn length(self) -> u8 {
        self.prefix_len()
    }
    fn insert(list: &mut Vec<Route>, route: Route, how: Insertion) -> bool {
        route::insert4(list, route, how)
    }
    fn remove(list: &mut Vec<Route>, route: Route) -> bool {
        route::remove4(list, &route)
    }
}

impl Prefix for Ipv6Net {
    type Address = Ipv6Addr;
    const BITS: u8 = 128;
    fn containing(address: Ipv6Addr, len: u8) -> Option<Self> {
        Ipv6Net::new(address, len).ok().map(|net| net.trunc())
    }
    fn length(self) -> u8 {
        self.prefix_len()
    }
    fn insert(list: &mut Vec<Route>, route: Route, how: Insertion) -> bool {
        route::insert6(list, route, how)
    }
    fn remove(list: &mut Vec<Route>, route: Route) -> bool {
        route::remove6(list, route)
    }
}

/// The route in use for a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Best<'a> {
    pub route: &'a Route,
    /// Which route applies depends on more than the destination (TOS, source): only the kernel can tell.
    pub conditional: bool,
}

/// The route in use among those of one prefix, which are in the kernel's order. A hop whose device has no
/// carrier counts as usable, as it does for the kernel, unless the kernel itself says that it is dead.
fn best(routes: &[Route]) -> Option<Best<'_>> {
    let mut alive = routes.iter().filter(|route| route.alive());
    let first = alive.next()?;
    let mut conditional = first.is_conditional();
    let mut route = first;
    for other in alive {
        conditional |= other.is_conditional();
        if route.is_conditional() && !other.is_conditional() {
            route = other;
        }
    }
    Some(Best { route, conditional })
}

/// One routing table of one family: every route, in the kernel's order of preference within a prefix.
#[derive(Debug, Clone)]
pub struct RouteTable<P> {
    prefixes: BTreeMap<P, Vec<Route>>,
    /// How many prefixes there are of each length.
    lengths: Vec<u32>,
    /// How many hops lead out of each device.
    devices: HashMap<u32, u32>,
    with_nexthop_id: usize,
}

impl<P: Prefix> Default for RouteTable<P> {
    fn default() -> Self {
        Self {
            prefixes: BTreeMap::new(),
            lengths: vec![0; usize::from(P::BITS) + 1],
            devices: HashMap::new(),
            with_nexthop_id: 0,
        }
    }
}

impl<P: PartialEq> PartialEq for RouteTable<P> {
    fn eq(&self, other: &Self) -> bool {
        self.prefixes == other.prefixes
    }
}

impl<P: Prefix> RouteTable<P> {
    /// Prefixes that have a route.
    pub fn len(&self) -> usize {
        self.prefixes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }

    /// The usable route with the longest prefix, as `fib_table_lookup` finds it: a prefix whose routes are all dead
    /// does not hide a shorter one.
    pub fn lookup(&self, address: P::Address) -> Option<(P, Best<'_>)> {
        (0..=P::BITS)
            .rev()
            .filter(|len| self.lengths[usize::from(*len)] > 0)
            .find_map(|len| {
                let prefix = P::containing(address, len)?;
                Some((prefix, self.best(prefix)?))
            })
    }

    /// The route in use for exactly this prefix.
    pub fn best(&self, prefix: P) -> Option<Best<'_>> {
        best(self.prefixes.get(&prefix)?)
    }

    /// Every prefix that has a usable route, in order, a shorter prefix before those within it.
    pub fn iter(&self) -> impl Iterator<Item = (P, Best<'_>)> {
        self.prefixes
            .iter()
            .filter_map(|(prefix, routes)| Some((*prefix, best(routes)?)))
    }

    /// Every prefix with all its routes, usable or not, in the kernel's order of preference.
    pub fn all(&self) -> impl Iterator<Item = (P, &[Route])> {
        self.prefixes
            .iter()
            .map(|(prefix, routes)| (*prefix, routes.as_slice()))
    }

    /// Every route of a prefix, usable or not, in the kernel's order of preference.
    pub fn routes(&self, prefix: P) -> &[Route] {
        self.prefixes.get(&prefix).map_or(&[], Vec::as_slice)
    }

    /// Whether a route leads out of the device.
    pub fn uses_device(&self, ifindex: u32) -> bool {
        self.devices.contains_key(&ifindex)
    }

    /// Whether a route uses a nexthop object.
    pub fn uses_nexthop_objects(&self) -> bool {
        self.with_nexthop_id > 0
    }

    /// Adds a route. True when the routes of the prefix may now differ from the kernel's.
    pub fn insert(&mut self, prefix: P, route: Route, how: Insertion) -> bool {
        self.edit(prefix, |list| P::insert(list, route, how))
    }

    /// Removes a route. True when the routes of the prefix may now differ from the kernel's.
    pub fn remove(&mut self, prefix: P, route: Route) -> bool {
        self.edit(prefix, |list| P::remove(list, route))
    }

    /// Takes hops by a device out of use, and the routes that have no other. `doomed` says which routes are
    /// affected at all. Walks the whole table when any route leads out of the device.
    pub fn lose_device(&mut self, ifindex: u32, doomed: impl Fn(&Route) -> bool) {
        if !self.uses_device(ifindex) {
            return;
        }
        let on_device = |route: &Route| route.hops.iter().any(|hop| hop.oif == ifindex);
        let affected: Vec<P> = self
            .prefixes
            .iter()
            .filter(|(_, routes)| routes.iter().any(on_device))
            .map(|(prefix, _)| *prefix)
            .collect();
        for prefix in affected {
            self.edit(prefix, |list| {
                list.retain_mut(|r| !on_device(r) || !doomed(r) || r.lose_device(ifindex));
            });
        }
    }

    fn edit<T>(&mut self, prefix: P, change: impl FnOnce(&mut Vec<Route>) -> T) -> T {
        let mut list = match self.prefixes.get_mut(&prefix) {
            Some(list) => std::mem::take(list),
            None => Vec::new(),
        };
        let had = !list.is_empty();
        list.iter().for_each(|route| self.count(route, false));
        let result = change(&mut list);
        list.iter().for_each(|route| self.count(route, true));
        let length = &mut self.lengths[usize::from(prefix.length())];
        *length = (*length + u32::from(!list.is_empty())).saturating_sub(u32::from(had));
        if list.is_empty() {
            self.prefixes.remove(&prefix);
        } else {
            list.shrink_to_fit();
            self.prefixes.insert(prefix, list);
        }
        result
    }

    fn count(&mut self, route: &Route, up: bool) {
        let step = |n: usize| if up { n + 1 } else { n.saturating_sub(1) };
        if route.nexthop_id.is_some() {
            self.with_nexthop_id = step(self.with_nexthop_id);
        }
        for hop in &route.hops {
            let n = self.devices.entry(hop.oif).or_default();
            *n = step(*n as usize) as u32;
            if *n == 0 {
                self.devices.remove(&hop.oif);
            }
        }
    }
}
