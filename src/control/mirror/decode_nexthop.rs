//! Nexthop messages (struct nhmsg, linux/nexthop.h).

use super::{
    attribute::{Attribute, attributes},
    decode::{Undecodable, header, u32_at},
    decode_route::hop,
    event::Event,
    nexthop::Nexthop,
};

const NHMSG: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const NHA_FDB: u16 = 11;
/// `NEXTHOP_GRP_TYPE_MPATH`: hash-threshold. The other, resilient, keeps buckets that only the kernel knows.
const HASH_THRESHOLD: u16 = 0;
/// struct nexthop_grp: number, weight less one (lower byte, then upper), padding.
const MEMBER: usize = 8;

/// The number of the object that a message is about.
pub fn nexthop_id(payload: &[u8]) -> Result<u32, Undecodable> {
    let _: &[u8; NHMSG] = header(payload)?;
    let id = attributes(payload, NHMSG).find(|a| a.kind == NHA_ID);
    id.and_then(|a| a.u32()).ok_or(Undecodable)
}

pub fn nexthop(payload: &[u8]) -> Result<Event, Undecodable> {
    let id = nexthop_id(payload)?;
    let mut single = hop(u32_at(payload, 4)? as u8, 0);
    let (mut members, mut others) = (None, false);
    for attribute in attributes(payload, NHMSG) {
        match attribute.kind {
            NHA_GROUP => members = Some(group(&attribute)),
            NHA_GROUP_TYPE => others |= attribute.u16() != Some(HASH_THRESHOLD),
            NHA_BLACKHOLE | NHA_FDB => others = true,
            NHA_OIF => single.oif = attribute.u32().unwrap_or(0),
            NHA_GATEWAY => single.gateway = attribute.ip(),
            NHA_ENCAP_TYPE => single.encap = true,
            _ => {}
        }
    }
    let object = match members {
        _ if others => Nexthop::Other,
        Some(members) => Nexthop::Group(members),
        None => Nexthop::Hop(single),
    };
    Ok(Event::NewNexthop(id, object))
}

fn group(attribute: &Attribute<'_>) -> Vec<(u32, u16)> {
    let members = attribute.value.chunks_exact(MEMBER).map(|member| {
        let id = u32::from_ne_bytes([member[0], member[1], member[2], member[3]]);
        let less_one = u16::from_le_bytes([member[4], member[5]]);
        (id, less_one.saturating_add(1))
    });
    members.collect()
}
