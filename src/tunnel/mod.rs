//! What a tunnel is, and how packets get into it and out of it.
//!
//! This room turns an inner IP packet into an outer one and back. It knows no devices, no routes and no
//! clock. What changes with packets (sequence numbers, identification, counters) lives in [`TunnelState`];
//! everything else about a tunnel is immutable and comes from the control room.

mod ecn;
pub mod gre;
mod state;
mod table;

pub use gre::{Outer, decapsulate, encapsulate};
pub use state::{Counter, Sequences, TunnelCounters, TunnelState};
pub use table::TunnelTable;

use std::net::Ipv4Addr;

use crate::packet::{GreKey, ParseError};

/// A tunnel's slot: an index that stays the same as long as the tunnel lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(pub u32);

impl TunnelId {
    /// The slot as an index into per-tunnel tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The kinds of tunnel, in iproute2's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// IPv4 or IPv6 in GRE over IPv4 (RFC 2784, 2890).
    Gre,
}

impl Mode {
    /// The word that iproute2 uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Gre => "gre",
        }
    }
}

/// The outer TTL: copied from the inner packet, or fixed (1..=255).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    Inherit,
    Fixed(u8),
}

/// The outer TOS byte: DSCP copied from the inner packet, or fixed. ECN is copied either way (RFC 6040).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tos {
    Inherit,
    Fixed(u8),
}

/// A tunnel as configured, with nothing in it that a packet changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    pub id: TunnelId,
    /// The kernel device's name.
    pub name: Box<str>,
    pub mode: Mode,
    /// Outer source; `0.0.0.0` matches any (Linux: wildcard local).
    pub local: Ipv4Addr,
    /// Outer destination; `0.0.0.0` matches any (Linux: wildcard remote).
    pub remote: Ipv4Addr,
    /// Key expected on receipt; `None` never matches a keyed packet (gre-4).
    pub ikey: Option<GreKey>,
    /// Key sent.
    pub okey: Option<GreKey>,
    pub icsum: bool,
    pub ocsum: bool,
    pub iseq: bool,
    pub oseq: bool,
    pub ttl: Ttl,
    pub tos: Tos,
    /// Outer DF always set; otherwise copied from an inner IPv4 packet, unless `ignore_df`.
    pub pmtudisc: bool,
    pub ignore_df: bool,
    /// The underlay device (interface index) that the tunnel is bound to.
    pub dev: Option<u32>,
    /// The tunnel device's MTU: the largest inner packet, in bytes.
    pub mtu: u16,
    /// The tunnel device is administratively up. A tunnel that is down takes no packets (gre-11).
    pub up: bool,
}

impl Tunnel {
    /// Bytes that encapsulation adds in front of the inner packet: outer IP header and GRE header.
    pub fn overhead(&self) -> usize {
        crate::packet::ipv4::HEADER_LEN
            + crate::packet::gre::header_len(self.okey.is_some(), self.ocsum, self.oseq)
    }

    /// Whether packets of this tunnel carry numbers that must leave, or be judged, in one thread.
    pub fn has_sequence(&self) -> bool {
        self.iseq || self.oseq
    }
}

/// Why a packet did not get into, or out of, a tunnel. The packet is unchanged. The names are the counters'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The outer IP header could not be parsed.
    Outer(ParseError),
    /// A fragment: the kernel has to put the packet together first.
    OuterFragment,
    /// The GRE header could not be parsed.
    Gre(ParseError),
    /// The inner packet could not be parsed, or claims more bytes than there are.
    Inner(ParseError),
    /// No tunnel has these addresses and this key.
    UnknownTunnel,
    /// The GRE payload protocol is neither IPv4 nor IPv6 (gre-6).
    UnknownProtocol,
    /// The GRE checksum is wrong.
    Checksum,
    /// A checksum where the tunnel has none, or none where it has one (gre-3, as Linux).
    ChecksumPresence,
    /// No sequence number where the tunnel wants one.
    SequenceMissing,
    /// The sequence number is older than the last one accepted (RFC 2890 section 2.2).
    SequenceOld,
    /// Outer CE over an inner packet that is not ECN-capable (RFC 6040 section 4.2).
    EcnCongestion,
    /// The inner packet is this tunnel's own outer packet: it would go round for ever (gre-8).
    Recursion,
    /// The outer packet would be longer than an IPv4 packet can be, or there is no room for its headers.
    NoRoom,
    /// The tunnel has no remote address and the packet names none.
    NoRemote,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plain GRE tunnel from 192.0.2.1 to 192.0.2.2 over an MTU of 1500.
    pub(crate) fn tunnel() -> Tunnel {
        Tunnel {
            id: TunnelId(0),
            name: "gre1".into(),
            mode: Mode::Gre,
            local: Ipv4Addr::new(192, 0, 2, 1),
            remote: Ipv4Addr::new(192, 0, 2, 2),
            ikey: None,
            okey: None,
            icsum: false,
            ocsum: false,
            iseq: false,
            oseq: false,
            ttl: Ttl::Inherit,
            tos: Tos::Fixed(0),
            pmtudisc: true,
            ignore_df: false,
            dev: None,
            mtu: 1476,
            up: true,
        }
    }
}
