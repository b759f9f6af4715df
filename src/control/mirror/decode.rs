//! From the kernel's messages to [`Event`]s (rtnetlink(7), linux/rtnetlink.h, linux/netconf.h, linux/fib_rules.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{
    attribute::{Attribute, attributes, ip},
    model::{self, Address, Link, Neighbour, Nud, Rule},
    parts::Parts,
    route::{Hop, Insertion, Route, RouteKind, Table},
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
    /// A nexthop object came, changed or went.
    NexthopObject,
}

/// The settings that a message named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetConfChange {
    pub forwarding: Option<bool>,
    pub force_forwarding: Option<bool>,
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
            Event::NexthopObject => Parts::NONE,
        }
    }
}

/// A message that is shorter than its type allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undecodable;

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
pub(super) const RTM_NEWRULE: u16 = 32;
pub(super) const RTM_DELRULE: u16 = 33;
pub(super) const RTM_NEWNETCONF: u16 = 80;
pub(super) const RTM_DELNETCONF: u16 = 81;
pub(super) const RTM_NEWNEXTHOP: u16 = 104;
pub(super) const RTM_DELNEXTHOP: u16 = 105;

const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_APPEND: u16 = 0x800;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Decodes one message without its netlink header. `flags` are the header's; none for a message out of a dump, which
/// lists routes in their order. Messages that are of no interest here are `None`.
pub(super) fn decode(
    kind: u16,
    flags: Option<u16>,
    payload: &[u8],
) -> Result<Option<Event>, Undecodable> {
    Ok(match kind {
        RTM_NEWLINK => link(payload)?.map(Event::NewLink),
        RTM_DELLINK => link_index(payload)?.map(Event::DelLink),
        RTM_NEWADDR => address(payload)?.map(Event::NewAddress),
        RTM_DELADDR => address(payload)?.map(Event::DelAddress),
        RTM_NEWNEIGH => {
            neighbour(payload)?.map(|(device, ip, n)| Event::NewNeighbour(device, ip, n))
        }
        RTM_DELNEIGH => neighbour(payload)?.map(|(device, ip, _)| Event::DelNeighbour(device, ip)),
        RTM_NEWRULE => rule(payload)?.map(Event::NewRule),
        RTM_DELRULE => rule(payload)?.map(|_| Event::DelRule),
        RTM_NEWNETCONF | RTM_DELNETCONF => netconf(payload, kind == RTM_DELNETCONF)?,
        RTM_NEWNEXTHOP | RTM_DELNEXTHOP => Some(Event::NexthopObject),
        RTM_NEWROUTE => {
            let how = match flags {
                Some(flags) if flags & NLM_F_REPLACE != 0 => Insertion::Replace,
                Some(flags) if flags & NLM_F_APPEND == 0 => Insertion::Prepend,
                _ => Insertion::Append,
            };
            route(payload, Some(how))?.map(Event::Route)
        }
        RTM_DELROUTE => route(payload, None)?.map(Event::Route),
        _ => None,
    })
}

fn u32_at(payload: &[u8], at: usize) -> Result<u32, Undecodable> {
    let bytes = payload.get(at..).and_then(<[u8]>::first_chunk);
    bytes.copied().map(u32::from_ne_bytes).ok_or(Undecodable)
}

fn header<const N: usize>(payload: &[u8]) -> Result<&[u8; N], Undecodable> {
    payload.first_chunk().ok_or(Undecodable)
}

const IFINFOMSG: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;

const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 1 << 3;
const IFF_RUNNING: u32 = 1 << 6;
const IFF_NOARP: u32 = 1 << 7;
const IFF_LOWER_UP: u32 = 1 << 16;

/// The device that a link message is about. A bridge tells of its ports in messages of its own family: one that leaves
/// the bridge is "deleted" there, and lives on.
fn link_index(payload: &[u8]) -> Result<Option<u32>, Undecodable> {
    let header: &[u8; IFINFOMSG] = header(payload)?;
    let index = u32_at(header, 4)?;
    Ok((header[0] == AF_UNSPEC).then_some(index))
}

fn link(payload: &[u8]) -> Result<Option<Link>, Undecodable> {
    let Some(index) = link_index(payload)? else {
        return Ok(None);
    };
    let flags = u32_at(payload, 8)?;
    let has = |flag| flags & flag != 0;
    let mut link = Link {
        index,
        name: "".into(),
        kind: None,
        mac: None,
        mtu: 0,
        up: has(IFF_UP),
        carrier: has(IFF_UP) && has(IFF_LOWER_UP),
        running: has(IFF_UP) && has(IFF_RUNNING),
        no_arp: has(IFF_NOARP),
        loopback: has(IFF_LOOPBACK),
        link: None,
        link_elsewhere: false,
        master: None,
        vlan: None,
        rx_queues: 1,
        tx_queues: 1,
        xdp_program: None,
    };
    for attribute in attributes(payload, IFINFOMSG) {
        match attribute.kind {
            IFLA_ADDRESS => link.mac = attribute.mac(),
            IFLA_IFNAME => link.name = attribute.text().unwrap_or_default(),
            IFLA_MTU => link.mtu = attribute.u32().unwrap_or(0),
            IFLA_LINK => link.link = attribute.u32(),
            IFLA_LINK_NETNSID => link.link_elsewhere = true,
            IFLA_MASTER => link.master = attribute.u32(),
            IFLA_NUM_RX_QUEUES => link.rx_queues = attribute.u32().unwrap_or(1),
            IFLA_NUM_TX_QUEUES => link.tx_queues = attribute.u32().unwrap_or(1),
            IFLA_XDP => {
                let id = attribute.nested().find(|a| a.kind == IFLA_XDP_PROG_ID);
                link.xdp_program = id.and_then(|a| a.u32());
            }
            IFLA_LINKINFO => link_info(&attribute, &mut link),
            _ => {}
        }
    }
    if link.name.is_empty() {
        return Err(Undecodable);
    }
    Ok(Some(link))
}

fn link_info(info: &Attribute<'_>, link: &mut Link) {
    let find = |kind| info.nested().find(|a| a.kind == kind);
    link.kind = find(IFLA_INFO_KIND).and_then(|a| a.text());
    if link.kind.as_deref() == Some("vlan") {
        let data = find(IFLA_INFO_DATA);
        let id = data.and_then(|data| data.nested().find(|a| a.kind == IFLA_VLAN_ID));
        link.vlan = id.and_then(|a| a.u16());
    }
}

const IFADDRMSG: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

fn address(payload: &[u8]) -> Result<Option<Address>, Undecodable> {
    let header: &[u8; IFADDRMSG] = header(payload)?;
    let (mut local, mut remote) = (None, None);
    for attribute in attributes(payload, IFADDRMSG) {
        match attribute.kind {
            IFA_LOCAL => local = attribute.ip(),
            IFA_ADDRESS => remote = attribute.ip(),
            _ => {}
        }
    }
    // IFA_ADDRESS is the peer's where there is one, else our own; IPv6 leaves IFA_LOCAL out without a peer.
    let Some(ip) = local.or(remote) else {
        return Ok(None);
    };
    Ok(matches!(header[0], AF_INET | AF_INET6).then_some(Address {
        ifindex: u32_at(header, 4)?,
        ip,
        prefix_len: header[1],
        peer: remote.filter(|remote| *remote != ip),
    }))
}

const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NTF_PROXY: u8 = 1 << 3;

fn neighbour(payload: &[u8]) -> Result<Option<(u32, IpAddr, Neighbour)>, Undecodable> {
    let header: &[u8; NDMSG] = header(payload)?;
    if !matches!(header[0], AF_INET | AF_INET6) || header[10] & NTF_PROXY != 0 {
        return Ok(None);
    }
    let nud = match u16::from_ne_bytes([header[8], header[9]]) {
        0x01 => Nud::Incomplete,
        0x02 => Nud::Reachable,
        0x04 => Nud::Stale,
        0x08 => Nud::Delay,
        0x10 => Nud::Probe,
        0x20 => Nud::Failed,
        0x40 => Nud::NoArp,
        0x80 => Nud::Permanent,
        _ => Nud::None,
    };
    let (mut ip, mut mac) = (None, None);
    for attribute in attributes(payload, NDMSG) {
        match attribute.kind {
            NDA_DST => ip = attribute.ip(),
            NDA_LLADDR => mac = attribute.mac(),
            _ => {}
        }
    }
    let ifindex = u32_at(header, 4)?;
    Ok(ip.map(|ip| (ifindex, ip, Neighbour { mac, nud })))
}

const FIB_RULE_HDR: usize = 12;
const FIB_RULE_PERMANENT: u32 = 1;
const FR_ACT_TO_TBL: u8 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;

fn rule(payload: &[u8]) -> Result<Option<Rule>, Undecodable> {
    let header: &[u8; FIB_RULE_HDR] = header(payload)?;
    if !matches!(header[0], AF_INET | AF_INET6) {
        return Ok(None);
    }
    let mut rule = Rule {
        v6: header[0] == AF_INET6,
        priority: 0,
        table: u32::from(header[4]),
        plain: header[1..4] == [0; 3]
            && header[7] == FR_ACT_TO_TBL
            && u32_at(header, 8)? & !FIB_RULE_PERMANENT == 0,
    };
    for attribute in attributes(payload, FIB_RULE_HDR) {
        match attribute.kind {
            FRA_PRIORITY => rule.priority = attribute.u32().unwrap_or(0),
            FRA_TABLE => rule.table = attribute.u32().unwrap_or(0),
            FRA_PAD | FRA_PROTOCOL => {}
            // −1 suppresses nothing.
            FRA_SUPPRESS_IFGROUP | FRA_SUPPRESS_PREFIXLEN if attribute.u32() == Some(u32::MAX) => {}
            _ => rule.plain = false,
        }
    }
    Ok(Some(rule))
}

const NETCONFMSG: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_IGNORE_ROUTES_WITH_LINKDOWN: u16 = 6;
const NETCONFA_FORCE_FORWARDING: u16 = 9;
/// `NETCONFA_IFINDEX_DEFAULT`: what new devices start with.
const FUTURE_DEVICES: i32 = -2;

fn netconf(payload: &[u8], deleted: bool) -> Result<Option<Event>, Undecodable> {
    // The header is one byte, padded.
    let v6 = match payload.first() {
        Some(&AF_INET) => false,
        Some(&AF_INET6) => true,
        Some(_) => return Ok(None),
        None => return Err(Undecodable),
    };
    let mut ifindex = None;
    let mut change = NetConfChange::default();
    for attribute in attributes(payload, NETCONFMSG) {
        match attribute.kind {
            NETCONFA_IFINDEX => ifindex = attribute.array().map(i32::from_ne_bytes),
            NETCONFA_FORWARDING => change.forwarding = attribute.flag(),
            NETCONFA_FORCE_FORWARDING if v6 => change.force_forwarding = attribute.flag(),
            NETCONFA_IGNORE_ROUTES_WITH_LINKDOWN => change.ignore_linkdown = attribute.flag(),
            _ => {}
        }
    }
    let ifindex = ifindex.ok_or(Undecodable)?;
    Ok((ifindex != FUTURE_DEVICES).then_some(if deleted {
        Event::DelNetConf { v6, ifindex }
    } else {
        Event::NetConf {
            v6,
            ifindex,
            change,
        }
    }))
}

const RTMSG: usize = 12;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_NH_ID: u16 = 30;
const RTAX_MTU: u16 = 2;
const RTNEXTHOP: usize = 8;
const RTNH_F_DEAD: u8 = 1;
const RTNH_F_ONLINK: u8 = 4;
const RTNH_F_LINKDOWN: u8 = 16;
/// An exception (a learned path MTU, a redirect), not a route.
const RTM_F_CLONED: u32 = 0x200;

fn route(payload: &[u8], added: Option<Insertion>) -> Result<Option<RouteEvent>, Undecodable> {
    let header: &[u8; RTMSG] = header(payload)?;
    let flags = u32_at(header, 8)?;
    let any: IpAddr = match header[0] {
        AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return Ok(None),
    };
    if flags & RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let (mut table, mut destination, mut source) = (u32::from(header[4]), any, any);
    let mut single = hop(flags as u8, 0);
    let mut has_hop = false;
    let mut route = Route {
        kind: route_kind(header[7]),
        metric: 0,
        tos: header[3],
        protocol: header[5],
        scope: header[6],
        mtu: None,
        prefsrc: None,
        source: None,
        nexthop_id: None,
        hops: Vec::new(),
    };
    for attribute in attributes(payload, RTMSG) {
        match attribute.kind {
            RTA_DST => destination = attribute.ip().ok_or(Undecodable)?,
            RTA_SRC => source = attribute.ip().ok_or(Undecodable)?,
            RTA_TABLE => table = attribute.u32().ok_or(Undecodable)?,
            RTA_PRIORITY => route.metric = attribute.u32().ok_or(Undecodable)?,
            RTA_PREFSRC => route.prefsrc = attribute.ip(),
            RTA_NH_ID => route.nexthop_id = attribute.u32(),
            RTA_METRICS => {
                let mtu = attribute.nested().find(|a| a.kind == RTAX_MTU);
                route.mtu = mtu.and_then(|a| a.u32());
            }
            RTA_MULTIPATH => route.hops = hops(attribute.value)?,
            _ => has_hop |= hop_attribute(&attribute, &mut single),
        }
    }
    let table = match table {
        254 => Table::Main,
        255 => Table::Local,
        _ => return Ok(None),
    };
    if has_hop && route.hops.is_empty() {
        route.hops.push(single);
    }
    if let (IpAddr::V6(_), true) = (source, header[2] > 0) {
        match model::prefix(source, header[2]) {
            Some(IpNet::V6(net)) => route.source = Some(net),
            _ => return Err(Undecodable),
        }
    }
    Ok(Some(RouteEvent {
        prefix: model::prefix(destination, header[1]).ok_or(Undecodable)?,
        table,
        route,
        added,
    }))
}

fn route_kind(kind: u8) -> RouteKind {
    match kind {
        1 => RouteKind::Unicast,
        2 => RouteKind::Local,
        3 => RouteKind::Broadcast,
        4 => RouteKind::Anycast,
        5 => RouteKind::Multicast,
        6 => RouteKind::Blackhole,
        7 => RouteKind::Unreachable,
        8 => RouteKind::Prohibit,
        9 => RouteKind::Throw,
        other => RouteKind::Other(other),
    }
}

fn hop(flags: u8, oif: u32) -> Hop {
    Hop {
        oif,
        gateway: None,
        weight: 1,
        encap: false,
        dead: flags & RTNH_F_DEAD != 0,
        linkdown: flags & RTNH_F_LINKDOWN != 0,
        onlink: flags & RTNH_F_ONLINK != 0,
    }
}

/// Takes an attribute that belongs to a next hop; whether it does.
fn hop_attribute(attribute: &Attribute<'_>, hop: &mut Hop) -> bool {
    match attribute.kind {
        RTA_OIF => hop.oif = attribute.u32().unwrap_or(0),
        RTA_GATEWAY => hop.gateway = attribute.ip(),
        // struct rtvia: the family in two bytes, then the address.
        RTA_VIA => hop.gateway = attribute.value.get(2..).and_then(ip),
        RTA_ENCAP_TYPE => hop.encap = true,
        _ => return false,
    }
    true
}

/// The hops of a multipath route: struct rtnexthop and its attributes, each aligned to four bytes.
fn hops(mut bytes: &[u8]) -> Result<Vec<Hop>, Undecodable> {
    let mut hops = Vec::new();
    while bytes.len() >= RTNEXTHOP {
        let len = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let one = bytes.get(..len).filter(|one| one.len() >= RTNEXTHOP);
        let one = one.ok_or(Undecodable)?;
        let mut next = hop(one[2], u32_at(one, 4)?);
        next.weight = u16::from(one[3]) + 1;
        for attribute in attributes(one, RTNEXTHOP) {
            hop_attribute(&attribute, &mut next);
        }
        hops.push(next);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(hops)
}
