//! From the kernel's messages to [`Event`]s (rtnetlink(7), linux/rtnetlink.h, linux/netconf.h, linux/fib_rules.h).

use std::net::IpAddr;

use super::{
    attribute::attributes,
    decode_link::{link, link_index},
    decode_nexthop::{nexthop, nexthop_id},
    decode_route::route,
    event::{Event, NetConfChange},
    model::{self, Address, Neighbour, Nud, Rule},
    route::Insertion,
};

/// A message that is shorter than its type allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undecodable;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_APPEND: u16 = 0x800;

pub const AF_UNSPEC: u8 = 0;
pub const AF_INET: u8 = 2;
pub const AF_INET6: u8 = 10;

/// Decodes one message without its netlink header. `flags` are the header's; none for a message out of a dump, which
/// lists routes in their order. Messages that are of no interest here are `None`.
pub fn decode(kind: u16, flags: Option<u16>, payload: &[u8]) -> Result<Option<Event>, Undecodable> {
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
        RTM_NEWNEXTHOP => Some(nexthop(payload)?),
        RTM_DELNEXTHOP => Some(Event::DelNexthop(nexthop_id(payload)?)),
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

/// Four bytes of a header.
pub fn u32_at(payload: &[u8], at: usize) -> Result<u32, Undecodable> {
    let bytes = payload.get(at..).and_then(<[u8]>::first_chunk);
    bytes.copied().map(u32::from_ne_bytes).ok_or(Undecodable)
}

/// The message's own header.
pub fn header<const N: usize>(payload: &[u8]) -> Result<&[u8; N], Undecodable> {
    payload.first_chunk().ok_or(Undecodable)
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
    let (mut ip, mut mac, mut outer) = (None, None, None);
    for attribute in attributes(payload, NDMSG) {
        match attribute.kind {
            NDA_DST => ip = attribute.ip(),
            NDA_LLADDR => (mac, outer) = (attribute.mac(), attribute.ip()),
            _ => {}
        }
    }
    let ifindex = u32_at(header, 4)?;
    let neighbour = Neighbour { mac, outer, nud };
    Ok(ip.map(|ip| (ifindex, ip, neighbour)))
}

const FIB_RULE_HDR: usize = 12;
const FIB_RULE_PERMANENT: u32 = 1;
const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_L3MDEV: u16 = 19;
const FRA_PROTOCOL: u16 = 21;

pub fn rule(payload: &[u8]) -> Result<Option<Rule>, Undecodable> {
    let header: &[u8; FIB_RULE_HDR] = header(payload)?;
    if !matches!(header[0], AF_INET | AF_INET6) {
        return Ok(None);
    }
    let (mut from, mut to) = (None, None);
    let mut rule = Rule {
        inverted: u32_at(header, 8)? & FIB_RULE_INVERT != 0,
        v6: header[0] == AF_INET6,
        priority: 0,
        table: u32::from(header[4]),
        plain: header[1..4] == [0; 3]
            && header[7] == FR_ACT_TO_TBL
            && u32_at(header, 8)? & !FIB_RULE_PERMANENT == 0,
        ..Rule::default()
    };
    for attribute in attributes(payload, FIB_RULE_HDR) {
        match attribute.kind {
            FRA_PRIORITY => rule.priority = attribute.u32().unwrap_or(0),
            FRA_TABLE => rule.table = attribute.u32().unwrap_or(0),
            FRA_PAD | FRA_PROTOCOL => {}
            FRA_DST => (to, rule.plain) = (attribute.ip(), false),
            FRA_SRC => (from, rule.plain) = (attribute.ip(), false),
            FRA_IIFNAME => (rule.iif, rule.plain) = (attribute.text(), false),
            FRA_OIFNAME => (rule.oif, rule.plain) = (attribute.text(), false),
            FRA_L3MDEV => (rule.l3mdev, rule.plain) = (attribute.value.first() == Some(&1), false),
            // −1 suppresses nothing.
            FRA_SUPPRESS_IFGROUP | FRA_SUPPRESS_PREFIXLEN if attribute.u32() == Some(u32::MAX) => {}
            _ => rule.plain = false,
        }
    }
    rule.to = to.and_then(|to| model::prefix(to, header[1]));
    rule.from = from.and_then(|from| model::prefix(from, header[2]));
    Ok(Some(rule))
}

const NETCONFMSG: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_IGNORE_ROUTES_WITH_LINKDOWN: u16 = 6;
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
