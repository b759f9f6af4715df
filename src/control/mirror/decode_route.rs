//! Route messages (struct rtmsg).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{
    attribute::{Attribute, attributes, ip},
    decode::{AF_INET, AF_INET6, Undecodable, header, u32_at},
    event::RouteEvent,
    model,
    route::{Hop, Insertion, Route, RouteKind, Table},
};

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

/// A route of the tables that are mirrored, or none.
pub fn route(payload: &[u8], added: Option<Insertion>) -> Result<Option<RouteEvent>, Undecodable> {
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
    if route.nexthop_id.is_some() {
        // What the kernel repeats of the object here is not told anew when that changes (nexthop_compat_mode).
        route.hops.clear();
    } else if has_hop && route.hops.is_empty() {
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

pub(super) fn hop(flags: u8, oif: u32) -> Hop {
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
