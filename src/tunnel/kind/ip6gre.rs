//! IPv4 or IPv6 in GRE over IPv6 (RFC 7676).

use super::{Family, Kind, Payload, Shim, none_is_martian};

pub(super) const KIND: Kind = Kind {
    word: "ip6gre",
    underlay: Family::V6,
    shim: Shim::Gre,
    payload: Payload::Ip,
    is_martian: none_is_martian,
};
