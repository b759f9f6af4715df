//! IPv6 in IPv6 (RFC 2473).

use super::{Family, Kind, Payload, Shim, none_is_martian};

pub(super) const KIND: Kind = Kind {
    word: "ip6ip6",
    underlay: Family::V6,
    shim: Shim::None,
    payload: Payload::Ipv6,
    is_martian: none_is_martian,
};
