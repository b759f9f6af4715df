//! What the kernel's messages say, in the mirror's words.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    model::{Address, Link, Neighbour, Rule},
    nexthop::Nexthop,
    parts::Parts,
    route::{Insertion, Route, Table},
};

/// What the kernel told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    NewLink(Link),
    DelLink(u32),
    NewAddress(Address),
    DelAddress(Address),
    NewNeighbour(u32, IpAddr, Neighbour),
    DelNeighbour(u32, IpAddr),
    /// Settings of one device, or of all (ifindex −1).
    NetConf {
        v6: bool,
        ifindex: i32,
        change: NetConfChange,
    },
    DelNetConf {
        v6: bool,
        ifindex: i32,
    },
    NewRule(Rule),
    DelRule,
    Route(RouteEvent),
    /// A nexthop object, with its number.
    NewNexthop(u32, Nexthop),
    DelNexthop(u32),
}

/// The settings that a message named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetConfChange {
    pub forwarding: Option<bool>,
    pub ignore_linkdown: Option<bool>,
}

/// A route came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteEvent {
    pub prefix: IpNet,
    pub table: Table,
    pub route: Route,
    /// How it came; none when it went.
    pub added: Option<Insertion>,
}

impl Event {
    /// The part of the mirror that the event belongs to.
    pub fn part(&self) -> Parts {
        match self {
            Event::NewLink(_) | Event::DelLink(_) => Parts::LINKS,
            Event::NewAddress(_) | Event::DelAddress(_) => Parts::ADDRESSES,
            Event::NewNeighbour(..) | Event::DelNeighbour(..) => Parts::NEIGHBOURS,
            Event::NetConf { v6: false, .. } | Event::DelNetConf { v6: false, .. } => {
                Parts::NETCONF4
            }
            Event::NetConf { .. } | Event::DelNetConf { .. } => Parts::NETCONF6,
            Event::NewRule(_) | Event::DelRule => Parts::RULES,
            Event::Route(route) if route.prefix.addr().is_ipv4() => Parts::ROUTES4,
            Event::Route(_) => Parts::ROUTES6,
            Event::NewNexthop(..) | Event::DelNexthop(_) => Parts::NEXTHOPS,
        }
    }
}
