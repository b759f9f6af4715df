//! What each message of the kernel does to the [`State`].

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    event::{Event, NetConfChange, RouteEvent},
    model::{Address, Link, Neighbour, NetConf},
    parts::Parts,
    route::{Route, RouteKind},
    state::State,
};

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
        let unpaired = link.link == Some(0) && link.kind.as_deref() == Some("veth");
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
