//! What each message of the kernel does to the [`State`].

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    event::{Event, NetConfChange, RouteEvent},
    model::{Address, Link, Neighbour, NetConf},
    nexthop::Nexthop,
    parts::Parts,
    route::{Route, RouteKind},
    state::State,
};

/// Routes that the kernel makes by itself, and tells of.
const RTPROT_KERNEL: u8 = 2;

/// What an event did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effect {
    pub changed: Parts,
    /// Parts that may now differ from the kernel's and have to be read anew.
    pub doubt: Parts,
}

impl State {
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
                let gone = gone.is_some_and(|n| n.nud.usable());
                self.touched.add_neighbours(gone.then_some((ifindex, ip)));
                changed_if(gone, Parts::NEIGHBOURS)
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
            Event::NewNexthop(id, object) => self.new_nexthop(id, object),
            Event::DelNexthop(id) => self.del_nexthop(id),
        }
    }

    /// Takes one part over from a state that was dumped afresh. Whether something differed.
    pub(in crate::control) fn take_part(&mut self, part: Parts, fresh: State) -> bool {
        fn take<T: PartialEq>(mine: &mut T, fresh: T) -> bool {
            let differs = *mine != fresh;
            *mine = fresh;
            differs
        }
        match part {
            Parts::LINKS => {
                self.names = fresh.names;
                take(&mut self.links, fresh.links)
            }
            Parts::ADDRESSES => take(&mut self.addresses, fresh.addresses),
            Parts::NEIGHBOURS => self.take_neighbours(fresh.neighbours),
            Parts::RULES => take(&mut self.rules, fresh.rules),
            Parts::NETCONF4 | Parts::NETCONF6 => {
                let v6 = part == Parts::NETCONF6;
                let before = self.netconf.clone();
                self.netconf.retain(|(family, _), _| *family != v6);
                self.netconf.extend(fresh.netconf);
                self.netconf != before
            }
            Parts::NEXTHOPS => {
                let known = |id: &u32| fresh.nexthops.ids().any(|other| other == *id);
                let gone: Vec<u32> = self.nexthops.ids().filter(|id| !known(id)).collect();
                gone.into_iter().for_each(|id| self.lose_nexthop(id));
                take(&mut self.nexthops, fresh.nexthops)
            }
            Parts::ROUTES4 => {
                let differing = self.v4.differences(&fresh.v4);
                self.v4 = fresh.v4;
                self.touch(differing)
            }
            Parts::ROUTES6 => {
                let differing = self.v6.differences(&fresh.v6);
                self.v6 = fresh.v6;
                self.touch(differing)
            }
            _ => false,
        }
    }

    fn take_neighbours(&mut self, fresh: BTreeMap<(u32, IpAddr), Neighbour>) -> bool {
        let old = std::mem::replace(&mut self.neighbours, fresh);
        let new = &self.neighbours;
        let changed = new
            .iter()
            .filter(|(key, entry)| old.get(key) != Some(entry));
        let gone = old.keys().filter(|key| !new.contains_key(key));
        let differing: Vec<_> = changed.map(|(key, _)| *key).chain(gone.copied()).collect();
        let differs = !differing.is_empty();
        self.touched.add_neighbours(differing);
        differs
    }

    /// Notes that routes of these prefixes have changed. Whether there are any.
    fn touch(&mut self, prefixes: Vec<IpNet>) -> bool {
        let any = !prefixes.is_empty();
        self.touched.add_routes(prefixes);
        any
    }

    fn new_link(&mut self, link: Link) -> Effect {
        let ifindex = link.index;
        let (up, carrier) = (link.up, (link.carrier, link.running));
        let (name, mtu) = (link.name.clone(), link.mtu);
        let unpaired = link.link == Some(0) && link.kind.as_deref() == Some("veth");
        let is_gre = link.kind.as_deref() == Some("gre");
        let changed = self.links.get(&ifindex) != Some(&link);
        let old = self.links.insert(ifindex, link);
        if let Some(old) = &old {
            if old.name != name && self.names.get(&old.name) == Some(&ifindex) {
                self.names.remove(&old.name);
            }
        }
        self.names.insert(name, ifindex);
        let mut effect = changed_if(changed, Parts::LINKS);
        if unpaired {
            // The first of a pair is told before it has its peer, and not again afterwards.
            effect.doubt |= Parts::LINKS;
        }
        if is_gre && old.is_some() {
            // `ip tunnel change` tells of it before it has set the flags (`ipgre_tunnel_ctl`), and not again afterwards.
            effect.doubt |= Parts::LINKS;
        }
        if let Some(old) = old {
            if (old.up, old.carrier) != (up, carrier.0) {
                effect.doubt |= self.nexthops_by(ifindex, up && carrier.0);
            }
            if (old.up, (old.carrier, old.running)) != (up, carrier) {
                // The kernel changes hops' states, and drops IPv4 routes of a device that goes down, without a word.
                effect.doubt |= self.routes_by(ifindex);
            }
            if old.up && !up {
                // Its own addresses stay local (fib_sync_down_dev spares them).
                let doomed = |route: &Route| route.kind != RouteKind::Local;
                let lost = self.v4.lose_device(ifindex, doomed);
                self.touch(lost);
                effect.changed |= effect.doubt;
            }
            if old.mtu != mtu && self.v6.any(|route| route.uses_device(ifindex)) {
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
        let doubt = self.routes_by(ifindex) | self.nexthops_by(ifindex, false);
        let lost = self.v4.lose_device(ifindex, |_| true);
        self.touch(lost);
        let lost = self.v6.lose_device(ifindex, |_| true);
        self.touch(lost);
        self.addresses.retain(|address| address.ifindex != ifindex);
        let on_device = |key: &&(u32, IpAddr)| key.0 == ifindex;
        let gone: Vec<_> = self.neighbours.keys().filter(on_device).copied().collect();
        self.touched.add_neighbours(gone);
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
        let IpAddr::V4(ip) = address.ip else {
            return effect;
        };
        // Routes that prefer a source go silently when it is on no device any more (`fib_sync_down_addr`).
        if !self.addresses.iter().any(|other| other.ip == ip) {
            let prefers = |route: &Route| route.prefsrc == Some(address.ip);
            let lost = self.v4.change_main(prefers, |_| false);
            if self.touch(lost) {
                effect.changed |= Parts::ROUTES4;
            }
        }
        // With a device's last address go all its routes; while there is another one, what had this source may stay or go.
        let by_device =
            |route: &Route| route.uses_device(address.ifindex) && route.protocol != RTPROT_KERNEL;
        if self.v4.any(by_device) {
            effect.doubt |= Parts::ROUTES4;
        }
        effect
    }

    /// A change of state among the usable ones is kept, but is no news.
    fn new_neighbour(&mut self, key: (u32, IpAddr), new: Neighbour) -> Effect {
        let old = self.neighbours.insert(key, new);
        let send_to = |n: Neighbour| n.nud.usable().then_some((n.mac, n.outer));
        let changed = old.and_then(send_to) != send_to(new);
        self.touched.add_neighbours(changed.then_some(key));
        changed_if(changed, Parts::NEIGHBOURS)
    }

    fn new_netconf(&mut self, v6: bool, ifindex: i32, change: NetConfChange) -> Effect {
        let old = self.netconf.get(&(v6, ifindex)).copied();
        let before = old.unwrap_or_default();
        let new = NetConf {
            forwarding: change.forwarding.unwrap_or(before.forwarding),
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
        self.touched.add_routes([event.prefix]);
        let (part, doubt) = match event.prefix {
            IpNet::V4(prefix) => (Parts::ROUTES4, self.v4.apply(prefix, event)),
            IpNet::V6(prefix) => (Parts::ROUTES6, self.v6.apply(prefix, event)),
        };
        Effect {
            changed: part,
            doubt: if doubt { part } else { Parts::NONE },
        }
    }

    /// The routes that use it are as new, and none of them is told (net.ipv4.nexthop_compat_mode says otherwise, but not of
    /// all).
    fn new_nexthop(&mut self, id: u32, object: Nexthop) -> Effect {
        changed_if(self.nexthops.insert(id, object), Parts::NEXTHOPS)
    }

    fn del_nexthop(&mut self, id: u32) -> Effect {
        self.lose_nexthop(id);
        changed_if(self.nexthops.remove(id), Parts::NEXTHOPS)
    }

    /// The routes by a nexthop object go with it, those of IPv4 without a word (`fib_flush`).
    fn lose_nexthop(&mut self, id: u32) {
        let users = |route: &Route| route.nexthop_id == Some(id);
        let mut gone = self.v4.change_all(users, |_| false);
        gone.extend(self.v6.change_all(users, |_| false));
        self.touch(gone);
    }

    /// A device that goes down takes its nexthop objects with it, without a word (`nexthop_flush_dev`).
    fn nexthops_by(&mut self, ifindex: u32, up: bool) -> Parts {
        let on_device = self.nexthops.by_device(ifindex);
        if on_device.is_empty() {
            return Parts::NONE;
        }
        if !up {
            for id in on_device {
                self.lose_nexthop(id);
                self.nexthops.remove(id);
            }
        }
        Parts::NEXTHOPS
    }

    fn routes_by(&self, ifindex: u32) -> Parts {
        let mut parts = Parts::NONE;
        if self.v4.any(|route| route.uses_device(ifindex)) {
            parts |= Parts::ROUTES4;
        }
        if self.v6.any(|route| route.uses_device(ifindex)) {
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
