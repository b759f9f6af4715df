//! GRE over IPv4 (RFC 2784, RFC 2890), as the Linux kernel does it (net/ipv4/ip_gre.c, ip_tunnel.c).

use super::{Refusal, Tos, Ttl, Tunnel, TunnelId, TunnelState, TunnelTable, ecn};
use crate::packet::{
    EtherType, Gre, GreHeader, Ipv4, Ipv4Header, Ipv6, PacketBuf, ParseError, ipv4, ipv6, protocol,
};

/// A received tunnel packet's outer headers, parsed and matched to a tunnel; the packet is still whole.
#[derive(Debug, Clone, Copy)]
pub struct Outer {
    pub tunnel: TunnelId,
    /// Where the GRE header begins, in bytes from the start of the packet.
    gre_at: usize,
    /// Where the inner packet begins.
    inner_at: usize,
    /// Where the outer packet ends; behind it there may be padding.
    end: usize,
    tos: u8,
    protocol: EtherType,
    has_checksum: bool,
    sequence: Option<u32>,
}

impl Outer {
    /// Parses an outer packet (it begins with the IPv4 header) and finds its tunnel. `device` is the interface index
    /// that it came in by, where known.
    #[inline(always)]
    pub fn parse(
        packet: &[u8],
        tunnels: &TunnelTable,
        device: Option<u32>,
    ) -> Result<Outer, Refusal> {
        let ip = Ipv4::parse(packet).map_err(Refusal::Outer)?;
        if !ip.has_valid_checksum() {
            return Err(Refusal::Outer(ParseError::HeaderChecksum));
        }
        if ip.is_fragment() {
            return Err(Refusal::OuterFragment);
        }
        if ip.protocol() != protocol::GRE {
            return Err(Refusal::UnknownTunnel);
        }
        let gre = Gre::parse(ip.payload()).map_err(Refusal::Gre)?;
        let tunnel = tunnels
            .lookup(ip.destination(), ip.source(), gre.key(), device)
            .ok_or(Refusal::UnknownTunnel)?;
        Ok(Outer {
            tunnel: tunnel.id,
            gre_at: ip.header_len(),
            inner_at: ip.header_len() + gre.header_len(),
            end: ip.total_len(),
            tos: ip.tos(),
            protocol: gre.protocol(),
            has_checksum: gre.has_checksum(),
            sequence: gre.sequence(),
        })
    }
}

/// What the outer header takes from the inner packet.
struct Inner {
    len: usize,
    tos: u8,
    ttl: u8,
    dont_fragment: bool,
    protocol: EtherType,
}

impl Inner {
    #[inline(always)]
    fn parse(packet: &[u8], tunnel: &Tunnel) -> Result<Inner, ParseErrorOrLoop> {
        if packet.first().is_some_and(|byte| byte >> 4 == 6) {
            let ip = Ipv6::parse(packet)?;
            return Ok(Inner {
                len: ip.total_len(),
                tos: ip.traffic_class(),
                ttl: ip.hop_limit(),
                dont_fragment: false,
                protocol: EtherType::IPV6,
            });
        }
        let ip = Ipv4::parse(packet)?;
        if ip.protocol() == protocol::GRE && goes_round(ip, tunnel) {
            return Err(ParseErrorOrLoop::Loop);
        }
        Ok(Inner {
            len: ip.total_len(),
            tos: ip.tos(),
            ttl: ip.ttl(),
            dont_fragment: ip.dont_fragment(),
            protocol: EtherType::IPV4,
        })
    }
}

/// GRE headers that a packet may have inside each other before it gets another one.
const DEPTH: usize = 8;

/// Whether a GRE packet has been in this tunnel before, in others since, or in too many altogether (gre-8). Tunnels whose
/// outer routes lead into each other would otherwise send a packet round for ever: locally sent packets lose no TTL.
fn goes_round(mut ip: Ipv4<'_>, tunnel: &Tunnel) -> bool {
    for _ in 0..DEPTH {
        if (ip.source(), ip.destination()) == (tunnel.local, tunnel.remote) {
            return true;
        }
        // Only the first fragment has a GRE header; of the others the addresses above tell enough.
        let nested = match Gre::parse(ip.payload()) {
            Ok(gre) if gre.protocol() == EtherType::IPV4 => Ipv4::parse(gre.payload()),
            _ => return false,
        };
        match nested {
            Ok(nested) if nested.protocol() == protocol::GRE => ip = nested,
            _ => return false,
        }
    }
    true
}

enum ParseErrorOrLoop {
    Parse(ParseError),
    Loop,
}

impl From<ParseError> for ParseErrorOrLoop {
    fn from(error: ParseError) -> Self {
        ParseErrorOrLoop::Parse(error)
    }
}

impl From<ParseErrorOrLoop> for Refusal {
    fn from(error: ParseErrorOrLoop) -> Self {
        match error {
            ParseErrorOrLoop::Parse(error) => Refusal::Inner(error),
            ParseErrorOrLoop::Loop => Refusal::Recursion,
        }
    }
}

/// Turns an inner IP packet into an outer one, in place. The packet begins with its IP header before and after;
/// bytes behind the inner packet (Ethernet padding) are cut off (gre-9).
#[inline]
pub fn encapsulate<B: PacketBuf>(
    tunnel: &Tunnel,
    packet: &mut B,
    state: &TunnelState,
) -> Result<(), Refusal> {
    let inner = Inner::parse(packet.data(), tunnel)?;
    if tunnel.remote.is_unspecified() {
        return Err(Refusal::NoRemote);
    }
    let overhead = tunnel.overhead();
    let total_len = u16::try_from(overhead + inner.len).map_err(|_| Refusal::NoRoom)?;
    if packet.headroom() < overhead {
        return Err(Refusal::NoRoom);
    }
    // Both were checked above; nothing is changed before this point.
    packet
        .truncate(inner.len)
        .map_err(|_| Refusal::Inner(ParseError::TotalLength))?;
    let out = packet.prepend(overhead).map_err(|_| Refusal::NoRoom)?;

    let gre = GreHeader {
        protocol: inner.protocol,
        checksum: tunnel.ocsum,
        key: tunnel.okey,
        sequence: tunnel.oseq.then(|| state.sequences.next()),
    };
    let (header, rest) = out
        .split_first_chunk_mut::<{ ipv4::HEADER_LEN }>()
        .ok_or(Refusal::NoRoom)?;
    gre.emit(rest);
    Ipv4Header {
        tos: match tunnel.tos {
            Tos::Inherit => inner.tos & !ecn::MASK,
            Tos::Fixed(tos) => tos & !ecn::MASK,
        } | ecn::encapsulate(inner.tos),
        total_len,
        identification: state.next_identification(),
        dont_fragment: tunnel.pmtudisc || (inner.dont_fragment && !tunnel.ignore_df),
        ttl: match tunnel.ttl {
            Ttl::Inherit => inner.ttl,
            Ttl::Fixed(ttl) => ttl,
        },
        protocol: protocol::GRE,
        source: tunnel.local,
        destination: tunnel.remote,
    }
    .emit(header);
    Ok(())
}

/// Turns an outer packet, whose headers are `outer`, into the inner IP packet, in place; trailing bytes beyond the
/// inner length are cut off. Everything is validated before anything is changed.
#[inline]
pub fn decapsulate<B: PacketBuf>(
    tunnel: &Tunnel,
    outer: &Outer,
    packet: &mut B,
    state: &TunnelState,
) -> Result<(), Refusal> {
    let data = packet.data();
    let short = Refusal::Outer(ParseError::Truncated);
    let gre = data.get(outer.gre_at..outer.end).ok_or(short)?;
    if outer.has_checksum != tunnel.icsum {
        return Err(Refusal::ChecksumPresence);
    }
    if outer.has_checksum && !Gre::parse(gre).map_err(Refusal::Gre)?.has_valid_checksum() {
        return Err(Refusal::Checksum);
    }
    match (tunnel.iseq, outer.sequence) {
        (true, None) => return Err(Refusal::SequenceMissing),
        (true, Some(n)) if !state.sequences.acceptable(n) => return Err(Refusal::SequenceOld),
        _ => {}
    }
    let inner = data.get(outer.inner_at..outer.end).ok_or(short)?;
    let (len, tos) = match outer.protocol {
        EtherType::IPV4 => {
            let ip = Ipv4::parse(inner).map_err(Refusal::Inner)?;
            if !ip.has_valid_checksum() {
                return Err(Refusal::Inner(ParseError::HeaderChecksum));
            }
            (ip.total_len(), ip.tos())
        }
        EtherType::IPV6 => {
            let ip = Ipv6::parse(inner).map_err(Refusal::Inner)?;
            (ip.total_len(), ip.traffic_class())
        }
        _ => return Err(Refusal::UnknownProtocol),
    };
    let new_tos = ecn::decapsulate(outer.tos, tos).ok_or(Refusal::EcnCongestion)?;

    if packet.trim_front(outer.inner_at).is_err() || packet.truncate(len).is_err() {
        return Err(short);
    }
    if new_tos != tos {
        match outer.protocol {
            EtherType::IPV4 => ipv4::set_tos(packet.data_mut(), new_tos),
            _ => ipv6::set_traffic_class(packet.data_mut(), new_tos),
        }
    }
    if let (true, Some(sequence)) = (tunnel.iseq, outer.sequence) {
        state.sequences.accept(sequence);
    }
    Ok(())
}

#[cfg(test)]
#[path = "gre_tests.rs"]
mod tests;
