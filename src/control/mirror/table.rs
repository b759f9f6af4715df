//! One routing table of one family.

use std::{
    collections::{BTreeMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
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
    fn insert(list: &mut Vec<Arc<Route>>, route: Route, how: Insertion) -> bool;
    fn remove(list: &mut Vec<Arc<Route>>, route: Route) -> bool;
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
    fn insert(list: &mut Vec<Arc<Route>>, route: Route, how: Insertion) -> bool {
        route::insert4(list, route, how)
    }
    fn remove(list: &mut Vec<Arc<Route>>, route: Route) -> bool {
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
    fn insert(list: &mut Vec<Arc<Route>>, route: Route, how: Insertion) -> bool {
        route::insert6(list, route, how)
    }
    fn remove(list: &mut Vec<Arc<Route>>, route: Route) -> bool {
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
fn best(routes: &[Arc<Route>]) -> Option<Best<'_>> {
    let mut alive = routes.iter().map(Arc::as_ref).filter(|route| route.alive());
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

/// The routes of one prefix.
#[derive(Debug, Clone, PartialEq)]
enum List {
    One(Arc<Route>),
    Several(Box<[Arc<Route>]>),
}

impl List {
    fn routes(&self) -> &[Arc<Route>] {
        match self {
            List::One(route) => std::slice::from_ref(route),
            List::Several(routes) => routes,
        }
    }
}

/// One routing table of one family: every route, in the kernel's order of preference within a prefix. Routes that differ by
/// their prefix alone are kept once.
#[derive(Debug, Clone)]
pub struct RouteTable<P> {
    prefixes: BTreeMap<P, List>,
    /// How many prefixes there are of each length.
    lengths: Vec<u32>,
    /// Every route that is in use, and some that were.
    bodies: HashSet<Arc<Route>>,
    /// How many bodies there were when the unused ones were last thrown away.
    swept: usize,
}

impl<P: Prefix> Default for RouteTable<P> {
    fn default() -> Self {
        Self {
            prefixes: BTreeMap::new(),
            lengths: vec![0; usize::from(P::BITS) + 1],
            bodies: HashSet::new(),
            swept: 0,
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
        best(self.prefixes.get(&prefix)?.routes())
    }

    /// Every prefix that has a usable route, in order, a shorter prefix before those within it.
    pub fn iter(&self) -> impl Iterator<Item = (P, Best<'_>)> {
        self.prefixes
            .iter()
            .filter_map(|(prefix, list)| Some((*prefix, best(list.routes())?)))
    }

    /// Every prefix within `from..=to` that has a usable route, in order.
    pub fn range(&self, from: P, to: P) -> impl Iterator<Item = (P, Best<'_>)> {
        let range = self.prefixes.range(from..=to);
        range.filter_map(|(prefix, list)| Some((*prefix, best(list.routes())?)))
    }

    /// Every prefix with all its routes, usable or not, in the kernel's order of preference.
    pub fn all(&self) -> impl Iterator<Item = (P, &[Arc<Route>])> {
        self.prefixes
            .iter()
            .map(|(prefix, list)| (*prefix, list.routes()))
    }

    /// Every route of a prefix, usable or not, in the kernel's order of preference.
    pub fn routes(&self, prefix: P) -> &[Arc<Route>] {
        self.prefixes.get(&prefix).map_or(&[], List::routes)
    }

    /// Whether a route satisfies the condition. Its cost does not grow with the prefixes, as long as they share routes.
    pub fn any(&self, condition: impl Fn(&Route) -> bool) -> bool {
        let used = |body: &Arc<Route>| Arc::strong_count(body) > 1;
        (self.bodies.iter()).any(|body| used(body) && condition(body))
    }

    /// Adds a route. True when the routes of the prefix may now differ from the kernel's.
    pub fn insert(&mut self, prefix: P, route: Route, how: Insertion) -> bool {
        self.edit(prefix, |list| P::insert(list, route, how))
    }

    /// Removes a route. True when the routes of the prefix may now differ from the kernel's.
    pub fn remove(&mut self, prefix: P, route: Route) -> bool {
        self.edit(prefix, |list| P::remove(list, route))
    }

    /// Changes every route that satisfies `which`; those of which `change` says false go. The prefixes that this concerned.
    /// Walks the whole table, if there is any such route.
    pub fn change_all(
        &mut self,
        which: impl Fn(&Route) -> bool,
        change: impl Fn(&mut Route) -> bool,
    ) -> Vec<P> {
        if !self.any(&which) {
            return Vec::new();
        }
        let concerned = |list: &List| list.routes().iter().any(|route| which(route));
        let prefixes: Vec<P> = (self.prefixes.iter())
            .filter(|(_, list)| concerned(list))
            .map(|(prefix, _)| *prefix)
            .collect();
        for prefix in &prefixes {
            self.edit(*prefix, |list| {
                list.retain_mut(|route| !which(route) || change(Arc::make_mut(route)));
            });
        }
        prefixes
    }

    fn edit<T>(&mut self, prefix: P, change: impl FnOnce(&mut Vec<Arc<Route>>) -> T) -> T {
        let old = self.prefixes.remove(&prefix);
        let had = old.is_some();
        let mut list = match old {
            Some(List::One(route)) => vec![route],
            Some(List::Several(routes)) => routes.into_vec(),
            None => Vec::new(),
        };
        let result = change(&mut list);
        for route in &mut list {
            self.share(route);
        }
        let length = &mut self.lengths[usize::from(prefix.length())];
        *length = (*length + u32::from(!list.is_empty())).saturating_sub(u32::from(had));
        let list = match list.len() {
            0 => return result,
            1 => list.pop().map(List::One),
            _ => Some(List::Several(list.into())),
        };
        self.prefixes.extend(list.map(|list| (prefix, list)));
        result
    }

    /// Lets equal routes be one.
    fn share(&mut self, route: &mut Arc<Route>) {
        if let Some(known) = self.bodies.get(&**route) {
            *route = known.clone();
            return;
        }
        self.bodies.insert(route.clone());
        if self.bodies.len() > 2 * self.swept + 64 {
            self.bodies.retain(|body| Arc::strong_count(body) > 1);
            self.swept = self.bodies.len();
        }
    }
}

/// The prefixes whose routes differ between two tables.
pub(super) fn differences<P: Prefix>(a: &RouteTable<P>, b: &RouteTable<P>) -> Vec<P> {
    let mut differing = Vec::new();
    let (mut a, mut b) = (a.all().peekable(), b.all().peekable());
    loop {
        match (a.peek(), b.peek()) {
            (Some((p, _)), Some((q, _))) if p < q => differing.extend(a.next().map(|x| x.0)),
            (Some((p, _)), Some((q, _))) if q < p => differing.extend(b.next().map(|x| x.0)),
            (Some((p, here)), Some((_, there))) => {
                if here != there {
                    differing.push(*p);
                }
                a.next();
                b.next();
            }
            (Some(_), None) => differing.extend(a.next().map(|x| x.0)),
            (None, Some(_)) => differing.extend(b.next().map(|x| x.0)),
            (None, None) => return differing,
        }
    }
}
