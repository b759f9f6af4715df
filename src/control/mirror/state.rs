//! The mirror's data, and the questions that it answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    event::RouteEvent,
    model::{Address, Link, Neighbour, NetConf, Rule},
    nexthop::Nexthops,
    route::{Hop, Route, Table},
    table::{self, Best, Prefix, RouteTable},
    touched::Touched,
};

/// `NETCONFA_IFINDEX_ALL`: the setting for all devices.
const ALL_DEVICES: i32 = -1;

/// The rules that the kernel makes by itself: local, main and, for IPv4, default.
static OWN_RULES: [Rule; 5] = [
    own_rule(false, 0, 255),
    own_rule(false, 32766, 254),
    own_rule(false, 32767, 253),
    own_rule(true, 0, 255),
    own_rule(true, 32766, 254),
];

const fn own_rule(v6: bool, priority: u32, table: u32) -> Rule {
    Rule {
        v6,
        priority,
        table,
        plain: true,
        inverted: false,
        iif: None,
        oif: None,
        from: None,
        to: None,
        l3mdev: false,
    }
}

/// Where a destination leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup<'a> {
    pub table: Table,
    pub prefix: IpNet,
    pub route: &'a Route,
    /// The route's own, or its nexthop object's.
    pub hops: &'a [Hop],
    /// See [`Best::conditional`].
    pub conditional: bool,
}

/// One family's tables.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tables<P: Prefix> {
    main: RouteTable<P>,
    local: RouteTable<P>,
}

impl<P: Prefix> Default for Tables<P> {
    fn default() -> Self {
        Self {
            main: RouteTable::default(),
            local: RouteTable::default(),
        }
    }
}

impl<P: Prefix + Into<IpNet>> Tables<P> {
    pub(super) fn apply(&mut self, prefix: P, event: RouteEvent) -> bool {
        let table = match event.table {
            Table::Main => &mut self.main,
            Table::Local => &mut self.local,
        };
        match event.added {
            Some(how) => table.insert(prefix, event.route, how),
            None => table.remove(prefix, event.route),
        }
    }

    fn lookup(&self, address: P::Address) -> Option<(Table, P, Best<'_>)> {
        let (table, (prefix, best)) = match self.local.lookup(address) {
            Some(found) => (Table::Local, found),
            None => (Table::Main, self.main.lookup(address)?),
        };
        Some((table, prefix, best))
    }

    /// Whether a route satisfies the condition.
    pub(super) fn any(&self, condition: impl Fn(&Route) -> bool) -> bool {
        self.main.any(&condition) || self.local.any(&condition)
    }

    /// See [`RouteTable::change_all`].
    pub(super) fn change_all(
        &mut self,
        which: impl Fn(&Route) -> bool,
        change: impl Fn(&mut Route) -> bool,
    ) -> Vec<IpNet> {
        let mut concerned = self.main.change_all(&which, &change);
        concerned.extend(self.local.change_all(&which, &change));
        concerned.into_iter().map(Into::into).collect()
    }

    /// The same in the main table alone.
    pub(super) fn change_main(
        &mut self,
        which: impl Fn(&Route) -> bool,
        change: impl Fn(&mut Route) -> bool,
    ) -> Vec<IpNet> {
        let concerned = self.main.change_all(which, change);
        concerned.into_iter().map(Into::into).collect()
    }

    /// Takes hops by a device out of use, and the routes that have no other. `doomed` says which routes this concerns.
    pub(super) fn lose_device(
        &mut self,
        ifindex: u32,
        doomed: impl Fn(&Route) -> bool,
    ) -> Vec<IpNet> {
        self.change_all(
            |route| route.uses_device(ifindex) && doomed(route),
            |route| route.lose_device(ifindex),
        )
    }

    /// The prefixes whose routes differ.
    pub(super) fn differences(&self, other: &Self) -> Vec<IpNet> {
        let mut differing = table::differences(&self.main, &other.main);
        differing.extend(table::differences(&self.local, &other.local));
        differing.into_iter().map(Into::into).collect()
    }
}

/// What the kernel forwards by, as far as its messages have told.
///
/// The kernel has two tables without any rule of the administrator's. By its rules `local` is consulted first, and
/// `main` only where `local` has no route for the destination at all: a /24 in `local` hides a /32 in `main`. IPv4
/// keeps both in one trie, where the longer prefix wins, until the first policy rule is made, and apart ever after.
/// [`State::lookup4`] and [`State::lookup6`] follow the rules: the two ways differ only where theirs leads to local
/// delivery, and that is left to the kernel anyway.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    pub(super) links: HashMap<u32, Link>,
    pub(super) names: HashMap<Box<str>, u32>,
    pub(super) addresses: BTreeSet<Address>,
    pub(super) neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    pub(super) netconf: HashMap<(bool, i32), NetConf>,
    pub(super) rules: BTreeSet<Rule>,
    pub(super) nexthops: Nexthops,
    pub(super) v4: Tables<Ipv4Net>,
    pub(super) v6: Tables<Ipv6Net>,
    pub(super) touched: Touched,
}

impl State {
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    pub fn link_by_name(&self, name: &str) -> Option<&Link> {
        self.links.get(self.names.get(name)?)
    }

    /// Every link, in no order.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// Every address of this host, by device.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.addresses.iter()
    }

    /// The addresses of one device.
    pub fn addresses_of(&self, ifindex: u32) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |a| a.ifindex == ifindex)
    }

    /// The link address to send to, where there is a usable entry.
    pub fn neighbour(&self, ifindex: u32, ip: IpAddr) -> Option<&Neighbour> {
        self.neighbour_entry(ifindex, ip).filter(|n| n.nud.usable())
    }

    /// The entry in whatever state: incomplete and failed ones too.
    pub fn neighbour_entry(&self, ifindex: u32, ip: IpAddr) -> Option<&Neighbour> {
        self.neighbours.get(&(ifindex, ip))
    }

    /// Every usable neighbour as ((device, address), entry).
    pub fn neighbours(&self) -> impl Iterator<Item = (&(u32, IpAddr), &Neighbour)> {
        self.neighbours.iter().filter(|(_, n)| n.nud.usable())
    }

    /// The usable neighbours of one device.
    pub fn neighbours_of(&self, ifindex: u32) -> impl Iterator<Item = (IpAddr, &Neighbour)> {
        let first = (ifindex, Ipv4Addr::UNSPECIFIED.into());
        let of_device = self.neighbours.range(first..);
        of_device
            .take_while(move |((index, _), _)| *index == ifindex)
            .filter(|(_, n)| n.nud.usable())
            .map(|((_, ip), n)| (*ip, n))
    }

    /// Whether the kernel forwards IPv4 packets that come in by the device (net.ipv4.conf.DEV.forwarding).
    pub fn forwards4(&self, ifindex: u32) -> bool {
        let setting = i32::try_from(ifindex).map(|ifindex| self.netconf.get(&(false, ifindex)));
        matches!(setting, Ok(Some(netconf)) if netconf.forwarding)
    }

    /// Whether the kernel forwards IPv6 packets that come in by the device, which must have IPv6. `ip6_forward` asks net.ipv6.conf.all.forwarding, never the
    /// device's own switch, which only makes the device a router towards its link. The exception,
    /// net.ipv6.conf.DEV.force_forwarding (Linux 6.17), is not told by netlink: such a device's packets are left to
    /// the kernel.
    pub fn forwards6(&self, ifindex: u32) -> bool {
        let has_v6 = |index| self.netconf.contains_key(&(true, index));
        let all = self.netconf.get(&(true, ALL_DEVICES));
        all.is_some_and(|all| all.forwarding) && i32::try_from(ifindex).is_ok_and(has_v6)
    }

    /// Policy rules exist, of either family, besides the kernel's own three, or one of those is gone: a lookup by
    /// destination no longer says where a packet goes. A VRF's rule (l3mdev) counts.
    pub fn foreign_rules(&self) -> bool {
        self.lacks_own_rules() || self.rules_of_others().next().is_some()
    }

    /// One that knows rules and nothing else.
    pub fn of_rules(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self {
            rules: rules.into_iter().collect(),
            ..Self::default()
        }
    }

    /// The rules that are not the kernel's own.
    pub fn rules_of_others(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| !OWN_RULES.contains(rule))
    }

    /// One of the kernel's own rules is gone.
    pub fn lacks_own_rules(&self) -> bool {
        // A kernel without policy routing has no rules at all.
        let has_some = |v6| self.rules.iter().any(|rule| rule.v6 == v6);
        let mut own = OWN_RULES.iter();
        own.any(|rule| has_some(rule.v6) && !self.rules.contains(rule))
    }

    /// Where an IPv4 destination leads.
    pub fn lookup4(&self, destination: Ipv4Addr) -> Option<Lookup<'_>> {
        self.found(self.v4.lookup(destination)?)
    }

    /// Where an IPv6 destination leads.
    pub fn lookup6(&self, destination: Ipv6Addr) -> Option<Lookup<'_>> {
        self.found(self.v6.lookup(destination)?)
    }

    fn found<'a, P: Into<IpNet>>(
        &'a self,
        (table, prefix, best): (Table, P, Best<'a>),
    ) -> Option<Lookup<'a>> {
        Some(Lookup {
            table,
            prefix: prefix.into(),
            route: best.route,
            hops: self.hops(best.route),
            conditional: best.conditional,
        })
    }

    /// The hops of a route: its own, or its nexthop object's. A route whose object is not known, or has something else than
    /// hops, has none.
    pub fn hops<'a>(&'a self, route: &'a Route) -> &'a [Hop] {
        match route.nexthop_id {
            Some(id) => self.nexthop_hops(id),
            None => &route.hops,
        }
    }

    /// The hops of a nexthop object; none where there is no such, or it has something else than hops.
    pub fn nexthop_hops(&self, id: u32) -> &[Hop] {
        self.nexthops.hops(id)
    }

    /// How many nexthop objects there are.
    pub fn nexthops(&self) -> usize {
        self.nexthops.len()
    }

    /// The prefixes and neighbours that have changed since the last call.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Where a destination leads.
    pub fn lookup(&self, destination: IpAddr) -> Option<Lookup<'_>> {
        match destination {
            IpAddr::V4(destination) => self.lookup4(destination),
            IpAddr::V6(destination) => self.lookup6(destination),
        }
    }

    /// The table `main` of IPv4.
    pub fn main_v4(&self) -> &RouteTable<Ipv4Net> {
        &self.v4.main
    }

    /// The table `main` of IPv6.
    pub fn main_v6(&self) -> &RouteTable<Ipv6Net> {
        &self.v6.main
    }

    /// The table `local` of IPv4.
    pub fn local_v4(&self) -> &RouteTable<Ipv4Net> {
        &self.v4.local
    }

    /// The table `local` of IPv6.
    pub fn local_v6(&self) -> &RouteTable<Ipv6Net> {
        &self.v6.local
    }

    /// The route in use of every prefix in `main`, in order, shorter prefixes before those within them.
    pub fn main_routes_v4(&self) -> impl Iterator<Item = (Ipv4Net, Best<'_>)> {
        self.v4.main.iter()
    }

    /// As [`State::main_routes_v4`].
    pub fn main_routes_v6(&self) -> impl Iterator<Item = (Ipv6Net, Best<'_>)> {
        self.v6.main.iter()
    }
}
