//! Header codecs and checksums over byte slices.
//!
//! This room knows nothing but bytes: no sockets, no clock, no configuration. A header is checked once
//! when it is parsed; afterwards its accessors cannot fail. Nothing here allocates, except [`VecBuf`] and who writes ICMP errors:
//! the slow path and the tests use them.

use std::net::IpAddr;

mod buf;
pub mod checksum;
pub mod ethernet;
pub mod flow;
pub mod gre;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod mss;
pub mod transport;
pub mod udp;

pub use buf::{NoRoom, PacketBuf, VecBuf};
pub use checksum::Checksum;
pub use ethernet::{EtherType, Ethernet, MacAddr, Vid};
pub use gre::{Gre, GreHeader, GreKey};
pub use ipv4::{Ipv4, Ipv4Header};
pub use ipv6::{Ipv6, Ipv6Header};
pub use udp::{Udp, UdpHeader};

/// Where an IP packet goes.
pub fn destination(packet: &[u8]) -> Result<IpAddr, ParseError> {
    match packet.first().map(|byte| byte >> 4) {
        Some(6) => Ok(Ipv6::parse(packet)?.destination().into()),
        _ => Ok(Ipv4::parse(packet)?.destination().into()),
    }
}

/// The source of an IP packet.
pub fn source(packet: &[u8]) -> Result<IpAddr, ParseError> {
    match packet.first().map(|byte| byte >> 4) {
        Some(6) => Ok(Ipv6::parse(packet)?.source().into()),
        _ => Ok(Ipv4::parse(packet)?.source().into()),
    }
}

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers") that a router has to know.
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6: u8 = 41;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
}

/// Why a header was not accepted. Each is a counter name downstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParseError {
    /// The bytes end before the header, or before the length that the header claims.
    Truncated,
    /// The version field is not the one expected here.
    Version,
    /// IPv4 IHL below 5, or a header length beyond the packet.
    HeaderLength,
    /// A total or payload length below the header or beyond the packet.
    TotalLength,
    /// The IPv4 header checksum is wrong.
    HeaderChecksum,
    /// GRE bits that must be zero are set (RFC 2784 section 2.3).
    GreFlags,
}
