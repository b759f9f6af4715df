//! IPv4 in IPv6 (RFC 2473).

use super::{Family, Kind, Payload, Shim, none_is_martian};

pub(super) const KIND: Kind = Kind {
    word: "ipip6",
    underlay: Family::V6,
    shim: Shim::None,
    payload: Payload::Ipv4,
    is_martian: none_is_martian,
};
