//! IPv6 in IPv4 (RFC 4213), and as Linux's default mode "any" has it, IPv4 in IPv4 too.

use std::net::Ipv6Addr;

use super::{Family, Kind, Payload, Shim};

pub(super) const KIND: Kind = Kind {
    word: "sit",
    underlay: Family::V4,
    shim: Shim::None,
    payload: Payload::Ip,
    is_martian,
};

/// The same without IPv4 (`mode ip6ip`).
pub(super) const KIND6: Kind = Kind {
    payload: Payload::Ipv6,
    ..KIND
};

/// RFC 4213 section 3.6: packets from such sources are discarded.
fn is_martian(source: Ipv6Addr) -> bool {
    source.is_multicast() || source.is_loopback() || source.to_ipv4_mapped().is_some()
}
