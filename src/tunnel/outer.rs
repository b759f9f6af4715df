//! The outer IP header: written for both families, and read.

use std::net::IpAddr;

use super::{
    Family, FlowLabel, Mode, Payload, Refusal, Shim, Tunnel, TunnelState, UdpEncap, inner::Inner,
};
use crate::packet::{
    EtherType, Ipv4, Ipv4Header, Ipv6, Ipv6Header, ParseError, UdpHeader, ethernet, ipv4, ipv6,
    protocol, udp,
};

/// The destination port of GRE in UDP (RFC 8086 section 3.2.2).
pub const GRE_IN_UDP_PORT: u16 = 4754;
/// Source ports that say nothing but which flow is inside: 49152 to 65535 (RFC 8086 section 3.2.1).
pub(super) const ENTROPY_PORTS: (u16, u32) = (49_152, 14);

/// Bytes of the destination options header that carries the tunnel encapsulation limit (RFC 2473 section 4.1.1).
pub(super) const LIMIT_OPTION_LEN: usize = 8;

/// What an outer header says about the packet behind it.
pub(super) struct Shell {
    pub local: IpAddr,
    pub remote: IpAddr,
    pub tos: u8,
    pub protocol: u8,
    /// Where the header and its options end, in bytes from the start of the packet.
    pub header_len: usize,
    /// Where the packet ends; behind it there may be padding.
    pub end: usize,
}

impl Shell {
    /// Reads the outer header of a received packet. Options and extension headers are gone past; fragments are refused.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Shell, Refusal> {
        if packet.first().is_some_and(|byte| byte >> 4 == 6) {
            return Shell::ipv6(packet);
        }
        let ip = Ipv4::parse(packet).map_err(Refusal::Outer)?;
        if !ip.has_valid_checksum() {
            return Err(Refusal::Outer(ParseError::HeaderChecksum));
        }
        if ip.is_fragment() {
            return Err(Refusal::OuterFragment);
        }
        Ok(Shell {
            local: ip.destination().into(),
            remote: ip.source().into(),
            tos: ip.tos(),
            protocol: ip.protocol(),
            header_len: ip.header_len(),
            end: ip.total_len(),
        })
    }

    #[inline]
    fn ipv6(packet: &[u8]) -> Result<Shell, Refusal> {
        let ip = Ipv6::parse(packet).map_err(Refusal::Outer)?;
        let upper = ip.upper_layer().map_err(Refusal::Outer)?;
        if upper.is_fragment {
            return Err(Refusal::OuterFragment);
        }
        Ok(Shell {
            local: ip.destination().into(),
            remote: ip.source().into(),
            tos: ip.traffic_class(),
            protocol: upper.protocol,
            header_len: upper.at,
            end: ip.total_len(),
        })
    }
}

/// Bytes that encapsulation adds in front of the inner packet, header by header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overhead {
    /// The outer IP header's family.
    pub family: Family,
    pub ip: usize,
    /// The destination options header with the encapsulation limit.
    pub limit: usize,
    pub udp: usize,
    pub gre: usize,
    /// The inner frame's own header. It is there before encapsulation, but the tunnel device's MTU does not count it.
    pub ethernet: usize,
}

impl Overhead {
    /// Where the outer IP header and its options end.
    #[inline]
    pub(super) fn udp_at(self) -> usize {
        self.ip + self.limit
    }

    /// Where a GRE header begins, and without one the inner packet.
    #[inline]
    pub(super) fn shim_at(self) -> usize {
        self.udp_at() + self.udp
    }

    /// Bytes that are put in front of the inner packet.
    #[inline]
    pub fn total(self) -> usize {
        self.ip + self.limit + self.udp + self.gre
    }

    /// What the underlay carries beyond the tunnel device's MTU, outermost header first: what they are called, and their bytes.
    pub fn parts(self) -> impl Iterator<Item = (&'static str, usize)> {
        let parts = [
            (self.family.as_str(), self.ip),
            ("limit", self.limit),
            ("UDP", self.udp),
            ("GRE", self.gre),
            ("Ethernet", self.ethernet),
        ];
        parts.into_iter().filter(|(_, bytes)| *bytes > 0)
    }
}

/// What a tunnel of this kind adds to each packet. `gre` is what a GRE header takes, with the options that are sent.
#[inline]
pub fn overhead(mode: Mode, limit: Option<u8>, in_udp: bool, gre: usize) -> Overhead {
    let kind = mode.kind();
    let (ip, limit) = match kind.underlay {
        Family::V4 => (ipv4::HEADER_LEN, 0),
        Family::V6 if limit.is_some() => (ipv6::HEADER_LEN, LIMIT_OPTION_LEN),
        Family::V6 => (ipv6::HEADER_LEN, 0),
    };
    Overhead {
        family: kind.underlay,
        ip,
        limit,
        udp: if in_udp { udp::HEADER_LEN } else { 0 },
        gre: match kind.shim {
            Shim::Gre => gre,
            Shim::None => 0,
        },
        ethernet: match kind.payload {
            Payload::Ethernet => ethernet::HEADER_LEN,
            _ => 0,
        },
    }
}

/// The protocol number of what follows the outer header.
#[inline]
fn protocol_of(tunnel: &Tunnel, inner: &Inner) -> u8 {
    match (tunnel.mode.kind().shim, inner.ether_type) {
        _ if tunnel.udp.is_some() => protocol::UDP,
        (Shim::Gre, _) => protocol::GRE,
        (Shim::None, EtherType::IPV6) => protocol::IPV6,
        (Shim::None, _) => protocol::IPIP,
    }
}

/// Writes the outer header, to `remote`, into the front of `packet`, which is whole otherwise.
#[inline]
pub(super) fn emit(
    tunnel: &Tunnel,
    remote: IpAddr,
    packet: &mut [u8],
    inner: &Inner,
    state: &TunnelState,
) -> Result<(), Refusal> {
    let len = packet.len();
    let tos = inner.outer_tos(tunnel);
    match (tunnel.local, remote) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let out = packet.first_chunk_mut().ok_or(Refusal::NoRoom)?;
            Ipv4Header {
                tos,
                total_len: u16::try_from(len).map_err(|_| Refusal::NoRoom)?,
                identification: state.next_identification(),
                dont_fragment: tunnel.sends_whole(inner.dont_fragment),
                ttl: inner.outer_ttl(tunnel),
                protocol: protocol_of(tunnel, inner),
                source,
                destination,
            }
            .emit(out);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (out, rest) = packet.split_first_chunk_mut().ok_or(Refusal::NoRoom)?;
            let mut next_header = protocol_of(tunnel, inner);
            if let Some(limit) = inner.limit {
                let option = rest.first_chunk_mut().ok_or(Refusal::NoRoom)?;
                // Type 4, length 1, the limit; PadN of one byte fills the eight (RFC 2473 section 4.1.1).
                *option = [next_header, 0, ipv6::LIMIT_OPTION, 1, limit, 1, 1, 0];
                next_header = protocol::DESTINATION_OPTIONS;
            }
            Ipv6Header {
                traffic_class: tos,
                flow_label: flow_label(tunnel, inner),
                payload_len: u16::try_from(rest.len()).map_err(|_| Refusal::NoRoom)?,
                next_header,
                hop_limit: inner.outer_ttl(tunnel),
                source,
                destination,
            }
            .emit(out);
        }
        _ => return Err(Refusal::NoRemote),
    }
    match &tunnel.udp {
        Some(encap) => {
            let at = tunnel.headers_with(inner.limit).udp_at();
            emit_udp(encap, packet, at, inner.hash)
        }
        None => Ok(()),
    }
}

/// The outer flow label; the inner one's is copied on request where there is one.
#[inline]
fn flow_label(tunnel: &Tunnel, inner: &Inner) -> u32 {
    match tunnel.flow_label {
        FlowLabel::Fixed(label) => label,
        FlowLabel::Inherit if inner.flow_label != 0 => inner.flow_label,
        // Zero means "no label" (RFC 6437 section 2).
        _ => (inner.hash & 0xf_ffff).max(1),
    }
}

/// Writes the UDP header at `at` into `packet`, which is whole otherwise. `hash` is the inner flow's.
#[inline]
fn emit_udp(encap: &UdpEncap, packet: &mut [u8], at: usize, hash: u32) -> Result<(), Refusal> {
    let (first, bits) = ENTROPY_PORTS;
    let header = UdpHeader {
        // The flow label takes the hash from its other end.
        source_port: (encap.source_port).unwrap_or(first | (hash >> (32 - bits)) as u16),
        destination_port: GRE_IN_UDP_PORT,
    };
    let (ip, datagram) = packet.split_at_mut_checked(at).ok_or(Refusal::NoRoom)?;
    let addresses = encap.checksum.then(|| addresses(ip));
    match header.emit(datagram, addresses) {
        true => Ok(()),
        false => Err(Refusal::NoRoom),
    }
}

/// Source and destination as they stand in an IP header, for the pseudo-header of what follows it.
#[inline]
pub(super) fn addresses(ip: &[u8]) -> &[u8] {
    let range = match ip.first().map(|byte| byte >> 4) {
        Some(6) => 8..40,
        _ => 12..20,
    };
    ip.get(range).unwrap_or_default()
}
