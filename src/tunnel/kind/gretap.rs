//! Ethernet frames in GRE over IPv4: protocol 0x6558, the frame whole but for its check sequence.

use super::{Family, Kind, Payload, Shim, none_is_martian};

pub(super) const KIND: Kind = Kind {
    word: "gretap",
    underlay: Family::V4,
    shim: Shim::Gre,
    payload: Payload::Ethernet,
    is_martian: none_is_martian,
};
