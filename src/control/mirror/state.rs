//! The mirror's data, and what each message of the kernel does to it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    decode::{Event, NetConfChange, RouteEvent},
    model::{Address, Link, Neighbour, NetConf, Rule},
    parts::Parts,
    route::{Route, RouteKind, Table},
    table::{Best, Prefix, RouteTable},
};

/// `NETCONFA_IFINDEX_ALL`: the setting for all devices.
const ALL_DEVICES: i32 = -1;

/// The rules that the kernel makes by itself: local, main and, for IPv4, default.
const OWN_RULES: [Rule; 5] = [
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
    }
}

/// What an event did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effect {
    pub changed: Parts,
    /// Parts that may now differ from the kernel's and have to be read anew.
    pub doubt: Parts,
}

/// Where a destination leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup<'a> {
    pub table: Table,
    pub prefix: IpNet,
    pub route: &'a Route,
    /// See [`Best::conditional`].
    pub conditional: bool,
}

/// One family's tables.
#[derive(Debug, Clone, PartialEq)]
struct Tables<P: Prefix> {
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
    fn apply(&mut self, prefix: P, event: RouteEvent) -> bool {
        let table = match event.table {
            Table::Main => &mut self.main,
            Table::Local => &mut self.local,
        };
        match event.added {
            Some(how) => table.insert(prefix, event.route, how),
            None => table.remove(prefix, event.route),
        }
    }

    fn lookup(&self, address: P::Address) -> Option<Lookup<'_>> {
        let (table, (prefix, best)) = match self.local.lookup(address) {
            Some(found) => (Table::Local, found),
            None => (Table::Main, self.main.lookup(address)?),
        };
        Some(Lookup {
            table,
            prefix: prefix.into(),
            route: best.route,
            conditional: best.conditional,
        })
    }

    fn uses_device(&self, ifindex: u32) -> bool {
        self.main.uses_device(ifindex) || self.local.uses_device(ifindex)
    }

    fn uses_nexthop_objects(&self) -> bool {
        self.main.uses_nexthop_objects() || self.local.uses_nexthop_objects()
    }

    fn lose_device(&mut self, ifindex: u32, doomed: impl Fn(&Route) -> bool + Copy) {
        self.main.lose_device(ifindex, doomed);
        self.local.lose_device(ifindex, doomed);
    }
}

/// What the kernel forwards by, as far as its messages have told.
///
/// The kernel has two tables without any rule of the administrator's. By its rules `local` is consulted first, and
/// `main` only where `local` has no route for the destination at all: a /24 in `local` hides a /32 in `main`. IPv4 keeps
/// both in one trie, where the longer prefix wins, until the first policy rule is made, and apart ever after. [`State::lookup4`] and
/// [`State::lookup6`] follow the rules. The two differ only where the answer is local delivery, which is the kernel's
/// business anyway.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    links: HashMap<u32, Link>,
    names: HashMap<Box<str>, u32>,
    addresses: BTreeSet<Address>,
    neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    netconf: HashMap<(bool, i32), NetConf>,
    rules: BTreeSet<Rule>,
    v4: Tables<Ipv4Net>,
    v6: Tables<Ipv6Net>,
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

    /// Whether the kernel forwards IPv4 packets that come in by the device (net.ipv4.conf.DEV.forwarding).
    pub fn forwards4(&self, ifindex: u32) -> bool {
        self.device_netconf(false, ifindex).forwarding
    }

    /// Whether the kernel forwards IPv6 packets that come in by the device. `ip6_forward` asks
    /// net.ipv6.conf.all.forwarding, never the device's own, which makes it a router towards its hosts;
    /// net.ipv6.conf.DEV.force_forwarding is the exception.
    pub fn forwards6(&self, ifindex: u32) -> bool {
        let all = self.netconf.get(&(true, ALL_DEVICES));
        all.is_some_and(|all| all.forwarding) || self.device_netconf(true, ifindex).force_forwarding
    }

    fn device_netconf(&self, v6: bool, ifindex: u32) -> NetConf {
        i32::try_from(ifindex)
            .ok()
            .and_then(|ifindex| self.netconf.get(&(v6, ifindex)).copied())
            .unwrap_or_default()
    }

    /// Policy rules exist, of either family, besides the kernel's own three, or one of those is gone: a lookup by
    /// destination no longer says where a packet goes. A VRF's rule (l3mdev) counts.
    pub fn foreign_rules(&self) -> bool {
        [false, true].into_iter().any(|v6| {
            let own = OWN_RULES.iter().filter(|rule| rule.v6 == v6);
            let present = || self.rules.iter().filter(|rule| rule.v6 == v6);
            // A kernel without policy routing has no rules at all.
            present().next().is_some() && !present().eq(own)
        })
    }

    /// Where an IPv4 destination leads.
    pub fn lookup4(&self, destination: Ipv4Addr) -> Option<Lookup<'_>> {
        self.v4.lookup(destination)
    }

    /// Where an IPv6 destination leads.
    pub fn lookup6(&self, destination: Ipv6Addr) -> Option<Lookup<'_>> {
        self.v6.lookup(destination)
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

    /// Takes in what the kernel told.
    pub fn apply(&mut self, event: Event) -> Effect {
        match event {
            Event::NewLink(link) => self.new_link(link),
            Event::DelLink(ifindex) => self.del_link(ifindex),
            Event::NewAddress(address) => {
                changed_if(self.addresses.insert(address), Parts::ADDRESSES)
            }
            Event::DelAddress(address) => self.del_address(&address),
            Event::NewNeighbour(ifindex, ip, neighbour) => {
                self.new_neighbour((ifindex, ip), neighbour)
            }
            Event::DelNeighbour(ifindex, ip) => {
                let gone = self.neighbours.remove(&(ifindex, ip));
                changed_if(gone.is_some_and(|n| n.nud.usable()), Parts::NEIGHBOURS)
            }
            Event::NetConf {
                v6,
                ifindex,
                change,
            } => self.new_netconf(v6, ifindex, change),
            Event::DelNetConf { v6, ifindex } => {
                let gone = self.netconf.remove(&(v6, ifindex)).is_some();
                changed_if(gone, netconf_part(v6))
            }
            Event::NewRule(rule) => Effect {
                changed: changed_if(self.rules.insert(rule), Parts::RULES).changed,
                doubt: Parts::RULES,
            },
            // Two rules can look alike here, so what is left is for a dump to say.
            Event::DelRule => Effect {
                changed: Parts::NONE,
                doubt: Parts::RULES,
            },
            Event::Route(route) => self.route(route),
            Event::NexthopObject => self.nexthop_object(),
        }
    }

    /// Takes one part over from a state that was dumped afresh.
    pub(super) fn take_part(&mut self, part: Parts, fresh: State) {
        match part {
            Parts::LINKS => {
                self.links = fresh.links;
                self.names = fresh.names;
            }
            Parts::ADDRESSES => self.addresses = fresh.addresses,
            Parts::NEIGHBOURS => self.neighbours = fresh.neighbours,
            Parts::RULES => self.rules = fresh.rules,
            Parts::NETCONF4 | Parts::NETCONF6 => {
                let v6 = part == Parts::NETCONF6;
                self.netconf.retain(|(family, _), _| *family != v6);
                self.netconf.extend(fresh.netconf);
            }
            Parts::ROUTES4 => self.v4 = fresh.v4,
            Parts::ROUTES6 => self.v6 = fresh.v6,
            _ => {}
        }
    }

    /// Whether one part is not as in a state that was dumped afresh.
    pub(super) fn part_differs(&self, part: Parts, fresh: &State) -> bool {
        let netconf = |state: &State, v6: bool| -> BTreeMap<i32, NetConf> {
            let of_family = state
                .netconf
                .iter()
                .filter(|((family, _), _)| *family == v6);
            of_family.map(|((_, device), n)| (*device, *n)).collect()
        };
        match part {
            Parts::LINKS => self.links != fresh.links,
            Parts::ADDRESSES => self.addresses != fresh.addresses,
            Parts::NEIGHBOURS => self.neighbours != fresh.neighbours,
            Parts::RULES => self.rules != fresh.rules,
            Parts::NETCONF4 => netconf(self, false) != netconf(fresh, false),
            Parts::NETCONF6 => netconf(self, true) != netconf(fresh, true),
            Parts::ROUTES4 => self.v4 != fresh.v4,
            Parts::ROUTES6 => self.v6 != fresh.v6,
            _ => false,
        }
    }

    fn new_link(&mut self, link: Link) -> Effect {
        let ifindex = link.index;
        let (up, carrier) = (link.up, (link.carrier, link.running));
        let (name, mtu) = (link.name.clone(), link.mtu);
        let changed = self.links.get(&ifindex) != Some(&link);
        let old = self.links.insert(ifindex, link);
        if let Some(old) = &old {
            if old.name != name && self.names.get(&old.name) == Some(&ifindex) {
                self.names.remove(&old.name);
            }
        }
        self.names.insert(name, ifindex);
        let mut effect = changed_if(changed, Parts::LINKS);
        if let Some(old) = old {
            if (old.up, (old.carrier, old.running)) != (up, carrier) {
                // The kernel changes hops' states, and drops IPv4 routes of a device that goes down, without a word.
                effect.doubt |= self.routes_by(ifindex);
            }
            if old.up && !up {
                // Its own addresses stay local (fib_sync_down_dev spares them).
                let doomed = |route: &Route| route.kind != RouteKind::Local;
                self.v4.lose_device(ifindex, doomed);
                effect.changed |= effect.doubt;
            }
            if old.mtu != mtu && self.v6.uses_device(ifindex) {
                // A route's MTU metric follows the device's (rt6_mtu_change).
                effect.doubt |= Parts::ROUTES6;
            }
        }
        effect
    }

    fn del_link(&mut self, ifindex: u32) -> Effect {
        let Some(link) = self.links.remove(&ifindex) else {
            return Effect::default();
        };
        if self.names.get(&link.name) == Some(&ifindex) {
            self.names.remove(&link.name);
        }
        let doubt = self.routes_by(ifindex);
        self.v4.lose_device(ifindex, |_| true);
        self.v6.lose_device(ifindex, |_| true);
        self.addresses.retain(|address| address.ifindex != ifindex);
        self.neighbours.retain(|(device, _), _| *device != ifindex);
        self.netconf
            .retain(|(_, device), _| u32::try_from(*device) != Ok(ifindex));
        let with_it = Parts::LINKS | Parts::ADDRESSES | Parts::NEIGHBOURS | Parts::NETCONF;
        Effect {
            changed: with_it | doubt,
            doubt,
        }
    }

    fn del_address(&mut self, address: &Address) -> Effect {
        let mut effect = changed_if(self.addresses.remove(address), Parts::ADDRESSES);
        if address.ip.is_ipv4() {
            // Routes that prefer this source go silently, and with a device's last address all its routes.
            effect.doubt |= Parts::ROUTES4;
        }
        effect
    }

    /// A change of state among the usable ones is kept, but is no news.
    fn new_neighbour(&mut self, key: (u32, IpAddr), new: Neighbour) -> Effect {
        let old = self.neighbours.insert(key, new);
        let send_to = |n: Neighbour| n.nud.usable().then_some(n.mac);
        let changed = old.and_then(send_to) != send_to(new);
        changed_if(changed, Parts::NEIGHBOURS)
    }

    fn new_netconf(&mut self, v6: bool, ifindex: i32, change: NetConfChange) -> Effect {
        let old = self.netconf.get(&(v6, ifindex)).copied();
        let before = old.unwrap_or_default();
        let new = NetConf {
            forwarding: change.forwarding.unwrap_or(before.forwarding),
            force_forwarding: change.force_forwarding.unwrap_or(before.force_forwarding),
            ignore_linkdown: change.ignore_linkdown.unwrap_or(before.ignore_linkdown),
        };
        self.netconf.insert((v6, ifindex), new);
        let mut effect = changed_if(old != Some(new), netconf_part(v6));
        if before.ignore_linkdown != new.ignore_linkdown {
            effect.doubt |= if v6 { Parts::ROUTES6 } else { Parts::ROUTES4 };
        }
        effect
    }

    fn route(&mut self, event: RouteEvent) -> Effect {
        let (part, doubt) = match event.prefix {
            IpNet::V4(prefix) => (Parts::ROUTES4, self.v4.apply(prefix, event)),
            IpNet::V6(prefix) => (Parts::ROUTES6, self.v6.apply(prefix, event)),
        };
        Effect {
            changed: part,
            doubt: if doubt { part } else { Parts::NONE },
        }
    }

    /// A nexthop object changed: the routes that use it did, and the kernel tells only if net.ipv4.nexthop_compat_mode
    /// is on, and of an IPv4 route's end not even then.
    fn nexthop_object(&self) -> Effect {
        let mut doubt = Parts::NONE;
        if self.v4.uses_nexthop_objects() {
            doubt |= Parts::ROUTES4;
        }
        if self.v6.uses_nexthop_objects() {
            doubt |= Parts::ROUTES6;
        }
        Effect {
            changed: Parts::NONE,
            doubt,
        }
    }

    fn routes_by(&self, ifindex: u32) -> Parts {
        let mut parts = Parts::NONE;
        if self.v4.uses_device(ifindex) {
            parts |= Parts::ROUTES4;
        }
        if self.v6.uses_device(ifindex) {
            parts |= Parts::ROUTES6;
        }
        parts
    }
}

fn netconf_part(v6: bool) -> Parts {
    if v6 { Parts::NETCONF6 } else { Parts::NETCONF4 }
}

fn changed_if(changed: bool, part: Parts) -> Effect {
    Effect {
        changed: if changed { part } else { Parts::NONE },
        doubt: Parts::NONE,
    }
}
