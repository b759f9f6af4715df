//! Keepalives as Cisco's routers send them ("GRE Tunnel Keepalive", document 118370): a tunnel packet around the packet
//! that is to come back, which any router sends on its way once it has taken it out of the tunnel. The far end need not
//! know that there are keepalives.
//!
//! ```text
//! sent       IP local > remote, GRE | IP remote > local, GRE of protocol 0     encapsulated as any inner packet
//! comes back                          IP remote > local, GRE of protocol 0     beside the tunnel, not through it
//! ```

use std::net::IpAddr;

use super::{Tunnel, outer::Shell};
use crate::packet::{
    EtherType, Gre, GreHeader, Ipv4, Ipv4Header, Ipv6, Ipv6Header, gre, ipv4, ipv6, protocol,
};

/// The most bytes of a packet that is to come back.
pub const MAX_LEN: usize = ipv6::HEADER_LEN + gre::MAX_HEADER_LEN;

/// What GRE calls the payload of a packet that has none.
pub const PROTOCOL: EtherType = EtherType(0);

/// Network control, class selector 6 (RFC 4594 section 3.1): a full queue is not to look like a dead peer.
const TOS: u8 = 0xc0;
/// The far end forwards it once, and whoever is between the ends as well.
const TTL: u8 = 255;

/// Writes the packet that is to come back into the front of `out`: its length in bytes. What came back by another way
/// than the far end shall not pass for it, so it bears what the tunnel expects on receipt, key and checksum; it cannot
/// bear a number, for it comes beside the numbered packets. None where the tunnel's ends are not of one family.
pub fn write(tunnel: &Tunnel, out: &mut [u8; MAX_LEN]) -> Option<usize> {
    let header = GreHeader {
        protocol: PROTOCOL,
        checksum: tunnel.icsum,
        key: tunnel.ikey,
        sequence: None,
    };
    let at = match (tunnel.remote, tunnel.local) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Ipv4Header {
                tos: TOS,
                total_len: (ipv4::HEADER_LEN + header.len()) as u16,
                identification: 0,
                dont_fragment: true,
                ttl: TTL,
                protocol: protocol::GRE,
                source,
                destination,
            }
            .emit(out.first_chunk_mut()?);
            ipv4::HEADER_LEN
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Ipv6Header {
                traffic_class: TOS,
                flow_label: 0,
                payload_len: header.len() as u16,
                next_header: protocol::GRE,
                hop_limit: TTL,
                source,
                destination,
            }
            .emit(out.first_chunk_mut()?);
            ipv6::HEADER_LEN
        }
        _ => return None,
    };
    let end = at + header.len();
    header.emit(&mut out[at..end]).then_some(end)
}

/// Whether a received outer packet, whole, is one of this tunnel's own keepalives, come back. On a tunnel that sends none
/// nothing is.
pub fn is_answer(tunnel: &Tunnel, packet: &[u8]) -> bool {
    let Ok(shell) = Shell::parse(packet) else {
        return false;
    };
    let body = packet.get(shell.header_len..shell.end).unwrap_or_default();
    let Ok(gre) = Gre::parse(body) else {
        return false;
    };
    tunnel.keepalive
        && shell.protocol == protocol::GRE
        && (shell.local, shell.remote) == (tunnel.local, tunnel.remote)
        && gre.protocol() == PROTOCOL
        && gre.payload().is_empty()
        && gre.key() == tunnel.ikey
        && gre.sequence().is_none()
        && gre.has_checksum() == tunnel.icsum
        && gre.has_valid_checksum()
}

/// Whether an inner packet that has just come out of this tunnel is the far end's keepalive: the packet is to go back to
/// exactly where the tunnel's packets go, so that nobody can have anything sent elsewhere. To the kernel it would be a
/// martian, for it comes from one of our own addresses.
#[inline]
pub fn is_request(tunnel: &Tunnel, inner: &[u8]) -> bool {
    let next = match inner.first().map(|byte| byte >> 4) {
        Some(6) => inner.get(6),
        _ => inner.get(9),
    };
    next == Some(&protocol::GRE) && comes_from_us(tunnel, inner)
}

fn comes_from_us(tunnel: &Tunnel, inner: &[u8]) -> bool {
    if !tunnel.mode.kind().has_keepalives()
        || tunnel.local.is_unspecified()
        || tunnel.remote.is_unspecified()
        || tunnel.remote.is_multicast()
    {
        return false;
    }
    let (source, destination, body) = if inner.first().is_some_and(|byte| byte >> 4 == 6) {
        match Ipv6::parse(inner) {
            Ok(ip) if ip.hop_limit() > 1 => {
                (ip.source().into(), ip.destination().into(), ip.payload())
            }
            _ => return false,
        }
    } else {
        match Ipv4::parse(inner) {
            Ok(ip) if ip.ttl() > 1 && !ip.has_options() && !ip.is_fragment() => {
                (ip.source().into(), ip.destination().into(), ip.payload())
            }
            _ => return false,
        }
    };
    let is_keepalive = |gre: Gre<'_>| gre.protocol() == PROTOCOL;
    (source, destination) == (tunnel.local, tunnel.remote)
        && Gre::parse(body).is_ok_and(is_keepalive)
}

#[cfg(test)]
#[path = "keepalive_tests.rs"]
mod tests;
