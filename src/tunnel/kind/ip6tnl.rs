//! IPv4 and IPv6 in IPv6 (RFC 2473), as one device of the kernel's carries both (`mode any`).

use super::{Family, Kind, Payload, Shim, none_is_martian};

pub(super) const KIND: Kind = Kind {
    word: "ip6tnl",
    underlay: Family::V6,
    shim: Shim::None,
    payload: Payload::Ip,
    is_martian: none_is_martian,
};
