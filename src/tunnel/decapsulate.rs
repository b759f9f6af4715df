//! Out of the tunnel.

use super::{
    Payload, Refusal, Shim, Tunnel, TunnelId, TunnelState, TunnelTable, ecn, outer::Shell,
    table::Class,
};
use crate::packet::{
    EtherType, Gre, Ipv4, Ipv6, PacketBuf, ParseError, ethernet, ipv4, ipv6, protocol,
};

/// A received tunnel packet's outer headers, parsed and matched to a tunnel; the packet is still whole.
#[derive(Debug, Clone, Copy)]
pub struct Outer {
    pub tunnel: TunnelId,
    /// Where the shim begins, in bytes from the start of the packet; without one, the inner packet.
    shim_at: usize,
    /// Where the inner packet begins.
    inner_at: usize,
    /// Where the outer packet ends; behind it there may be padding.
    end: usize,
    tos: u8,
    payload: EtherType,
    has_checksum: bool,
    sequence: Option<u32>,
}

impl Outer {
    /// Parses an outer packet (it begins with its IP header) and finds its tunnel. `device` is the interface index
    /// that it came in by, where known.
    #[inline]
    pub fn parse(
        packet: &[u8],
        tunnels: &TunnelTable,
        device: Option<u32>,
    ) -> Result<Outer, Refusal> {
        let shell = Shell::parse(packet)?;
        let body = packet
            .get(shell.header_len..shell.end)
            .ok_or(Refusal::Outer(ParseError::HeaderLength))?;
        let mut outer = Outer {
            tunnel: TunnelId(0),
            shim_at: shell.header_len,
            inner_at: shell.header_len,
            end: shell.end,
            tos: shell.tos,
            payload: EtherType::IPV4,
            has_checksum: false,
            sequence: None,
        };
        let mut key = None;
        let class = match shell.protocol {
            protocol::GRE => {
                let gre = Gre::parse(body).map_err(Refusal::Gre)?;
                key = gre.key();
                outer.take_gre(&gre);
                match outer.payload {
                    EtherType::TRANSPARENT_ETHERNET => Class::Tap,
                    _ => Class::Gre,
                }
            }
            protocol::IPIP => Class::Ipv4,
            protocol::IPV6 => {
                outer.payload = EtherType::IPV6;
                Class::Ipv6
            }
            _ => return Err(Refusal::UnknownTunnel),
        };
        let find = |class| tunnels.lookup(class, shell.local, shell.remote, key, device);
        // A frame that no Ethernet tunnel takes is an unknown payload to the IP tunnel of the same name.
        let tunnel = match (find(class), class) {
            (None, Class::Tap) => find(Class::Gre),
            (found, _) => found,
        };
        let tunnel = tunnel.ok_or(Refusal::UnknownTunnel)?;
        outer.tunnel = tunnel.id;
        Ok(outer)
    }

    /// What GRE says that is inside; without GRE, what the outer header says.
    #[inline]
    pub fn payload(&self) -> EtherType {
        self.payload
    }

    #[inline]
    fn take_gre(&mut self, gre: &Gre<'_>) {
        self.inner_at = self.shim_at + gre.header_len();
        self.payload = gre.protocol();
        self.has_checksum = gre.has_checksum();
        self.sequence = gre.sequence();
        // Web cache redirection: version 2 puts four bytes before the IPv4 packet, version 1 nothing. As the kernel's
        // gre_parse_header, in a header without options only.
        if self.payload == EtherType::WCCP && gre.header_len() == 4 {
            self.payload = EtherType::IPV4;
            if gre.payload().first().is_some_and(|byte| byte >> 4 != 4) {
                self.inner_at += 4;
            }
        }
    }
}

/// Turns an outer packet, whose headers are `outer`, into the inner packet, in place; trailing bytes beyond the
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
    let body = data.get(outer.shim_at..outer.end).ok_or(short)?;
    if tunnel.mode.kind().shim == Shim::Gre {
        check_gre(tunnel, outer, body, state)?;
    }
    let inner = data.get(outer.inner_at..outer.end).ok_or(short)?;
    let (len, tos) = check_inner(tunnel, outer.payload, inner)?;
    let new_tos = match outer.payload {
        // The kernel does not look into frames either (`ip_tunnel_rcv`).
        EtherType::TRANSPARENT_ETHERNET => tos,
        _ => ecn::decapsulate(outer.tos, tos).ok_or(Refusal::EcnCongestion)?,
    };

    if packet.trim_front(outer.inner_at).is_err() || packet.truncate(len).is_err() {
        return Err(short);
    }
    if new_tos != tos {
        match outer.payload {
            EtherType::IPV4 => ipv4::set_tos(packet.data_mut(), new_tos),
            _ => ipv6::set_traffic_class(packet.data_mut(), new_tos),
        }
    }
    if let (true, Some(sequence)) = (tunnel.iseq, outer.sequence) {
        state.sequences.accept(sequence);
    }
    Ok(())
}

/// Checksum and sequence number, as the kernel asks for them: both there and right, or configured not to be.
#[inline]
fn check_gre(
    tunnel: &Tunnel,
    outer: &Outer,
    gre: &[u8],
    state: &TunnelState,
) -> Result<(), Refusal> {
    if outer.has_checksum != tunnel.icsum {
        return Err(Refusal::ChecksumPresence);
    }
    if outer.has_checksum && !Gre::parse(gre).map_err(Refusal::Gre)?.has_valid_checksum() {
        return Err(Refusal::Checksum);
    }
    match (tunnel.iseq, outer.sequence) {
        (true, None) => Err(Refusal::SequenceMissing),
        (true, Some(n)) if !state.sequences.acceptable(n) => Err(Refusal::SequenceOld),
        _ => Ok(()),
    }
}

/// The inner packet's length and TOS byte, after everything about it that can be checked has been.
#[inline]
fn check_inner(tunnel: &Tunnel, payload: EtherType, inner: &[u8]) -> Result<(usize, u8), Refusal> {
    let kind = tunnel.mode.kind();
    match (payload, kind.payload) {
        (EtherType::IPV4, Payload::Ip | Payload::Ipv4) => {
            let ip = Ipv4::parse(inner).map_err(Refusal::Inner)?;
            if !ip.has_valid_checksum() {
                return Err(Refusal::Inner(ParseError::HeaderChecksum));
            }
            Ok((ip.total_len(), ip.tos()))
        }
        (EtherType::IPV6, Payload::Ip | Payload::Ipv6) => {
            let ip = Ipv6::parse(inner).map_err(Refusal::Inner)?;
            if (kind.is_martian)(ip.source()) {
                return Err(Refusal::InnerMartian);
            }
            Ok((ip.total_len(), ip.traffic_class()))
        }
        (EtherType::TRANSPARENT_ETHERNET, Payload::Ethernet) => {
            if inner.len() < ethernet::HEADER_LEN {
                return Err(Refusal::Inner(ParseError::Truncated));
            }
            Ok((inner.len(), 0))
        }
        _ => Err(Refusal::UnknownProtocol),
    }
}
