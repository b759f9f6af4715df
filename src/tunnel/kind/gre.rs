//! IPv4 or IPv6 in GRE over IPv4 (RFC 2784, 2890; RFC 7676 for IPv6 payload).

use super::{Family, Kind, Payload, Shim, none_is_martian};

pub(super) const KIND: Kind = Kind {
    word: "gre",
    underlay: Family::V4,
    shim: Shim::Gre,
    payload: Payload::Ip,
    is_martian: none_is_martian,
};

#[cfg(test)]
#[path = "gre_tests.rs"]
mod tests;
