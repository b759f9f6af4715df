//! Ethernet frames in GRE over IPv6.

use super::{Family, Kind, Payload, Shim, none_is_martian};

pub(super) const KIND: Kind = Kind {
    word: "ip6gretap",
    underlay: Family::V6,
    shim: Shim::Gre,
    payload: Payload::Ethernet,
    is_martian: none_is_martian,
};
