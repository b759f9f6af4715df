//! IPv4 in IPv4 (RFC 2003).

use super::{Family, Kind, Payload, Shim, none_is_martian};

pub(super) const KIND: Kind = Kind {
    word: "ipip",
    underlay: Family::V4,
    shim: Shim::None,
    payload: Payload::Ipv4,
    is_martian: none_is_martian,
};
