//! Out of the tunnel.

use std::net::IpAddr;

use super::{
    GRE_IN_UDP_PORT, Payload, Refusal, Shim, Tunnel, TunnelId, TunnelState, TunnelTable, ecn,
    outer::{Shell, addresses},
    table::Class,
};
use crate::packet::{
    EtherType, Ethernet, Gre, GreKey, Ipv4, Ipv6, PacketBuf, ParseError, Udp, ethernet, gre, ipv4,
    ipv6, protocol, transport, udp,
};

/// A received tunnel packet's outer headers, parsed and matched to a tunnel; the packet is still whole.
#[derive(Debug, Clone, Copy)]
pub struct Outer {
    pub tunnel: TunnelId,
    /// Who sent it: the outer source.
    pub remote: IpAddr,
    /// Where a UDP header begins, in bytes from the start of the packet.
    udp_at: Option<usize>,
    /// Where the shim begins; without one, the inner packet.
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
            remote: shell.remote,
            udp_at: None,
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
                key = outer.take_gre(body)?;
                match outer.payload {
                    EtherType::TRANSPARENT_ETHERNET => Class::Tap,
                    _ => Class::Gre,
                }
            }
            protocol::UDP => {
                key = outer.take_udp(body)?;
                match outer.payload {
                    EtherType::TRANSPARENT_ETHERNET => Class::TapInUdp,
                    _ => Class::GreInUdp,
                }
            }
            protocol::IPIP => Class::Ipv4,
            protocol::IPV6 => {
                outer.payload = EtherType::IPV6;
                Class::Ipv6
            }
            _ => return Err(Refusal::UnknownTunnel),
        };
        let find = |class, key| tunnels.lookup(class, shell.local, shell.remote, key, device);
        // A frame that no Ethernet tunnel takes is an unknown payload to the IP tunnel of the same name.
        let tunnel = match (find(class, key), class) {
            (None, Class::Tap) => {
                let vsid = key.map(GreKey::vsid);
                find(Class::Nvgre, vsid).or_else(|| find(Class::Gre, key))
            }
            (None, Class::TapInUdp) => find(Class::GreInUdp, key),
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

    /// GRE in UDP; any other datagram is nobody's tunnel. What follows the datagram is cut off, as the kernel does.
    #[inline]
    fn take_udp(&mut self, body: &[u8]) -> Result<Option<GreKey>, Refusal> {
        if body.get(2..4) != Some(&GRE_IN_UDP_PORT.to_be_bytes()) {
            return Err(Refusal::UnknownTunnel);
        }
        let datagram = Udp::parse(body).map_err(|_| Refusal::UdpLength)?;
        self.udp_at = Some(self.shim_at);
        self.end = self.shim_at + datagram.total_len();
        self.shim_at += udp::HEADER_LEN;
        self.take_gre(&body[udp::HEADER_LEN..datagram.total_len()])
    }

    #[inline]
    fn take_gre(&mut self, body: &[u8]) -> Result<Option<GreKey>, Refusal> {
        let gre = Gre::parse(body).map_err(Refusal::Gre)?;
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
        Ok(gre.key())
    }

    /// Whether a GRE header has bits set that only the kernel's own reader knows what to do with (8 to 12).
    #[inline]
    pub fn has_odd_flags(&self, packet: &[u8]) -> bool {
        let is_gre = self.inner_at > self.shim_at;
        is_gre
            && packet
                .get(self.shim_at + 1)
                .is_some_and(|flags| flags & 0xf8 != 0)
    }

    /// Finishes what a sender behind a veth has left to the device: the checksum of the TCP or UDP packet inside, and that
    /// of the GRE or the UDP header around. The kernel computes an outer checksum as if the inner one were finished (`lco_csum`),
    /// so the inner one comes first. True when there was something to do.
    #[inline]
    pub fn complete_checksums(&self, packet: &mut [u8]) -> bool {
        let inner = packet.get_mut(self.inner_at..self.end).unwrap_or_default();
        let inside = match self.payload {
            EtherType::TRANSPARENT_ETHERNET => transport::complete_in_frame(inner),
            _ => transport::complete_checksum(inner),
        };
        let body = packet.get_mut(self.shim_at..self.end).unwrap_or_default();
        let gre = self.has_checksum && gre::complete_checksum(body);
        let around = self.udp_at.is_some() && transport::complete_checksum(packet);
        inside || gre || around
    }
}

/// The packet inside an outer one that has passed every check.
#[derive(Debug, Clone, Copy)]
pub struct Inside {
    /// Where it begins, in bytes from the start of the outer packet, and how long it is.
    at: usize,
    len: usize,
    /// The TOS byte that it gets, of the IP packet that begins so many bytes behind its start.
    new_tos: Option<(usize, EtherType, u8)>,
}

impl Inside {
    /// The packet as it is inside `outer`, which is whole.
    #[inline]
    pub fn of<'p>(&self, outer: &'p [u8]) -> &'p [u8] {
        outer.get(self.at..self.at + self.len).unwrap_or_default()
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
    let inside = look_inside(tunnel, outer, packet.data(), state)?;
    take_out(tunnel, (outer, &inside), packet, state)
}

/// Every check that there is, and nothing changed.
#[inline(always)]
pub fn look_inside(
    tunnel: &Tunnel,
    outer: &Outer,
    data: &[u8],
    state: &TunnelState,
) -> Result<Inside, Refusal> {
    let short = Refusal::Outer(ParseError::Truncated);
    let body = data.get(outer.shim_at..outer.end).ok_or(short)?;
    if let Some(at) = outer.udp_at {
        check_udp(
            tunnel,
            addresses(data),
            data.get(at..outer.end).ok_or(short)?,
        )?;
    }
    if tunnel.mode.kind().shim == Shim::Gre {
        check_gre(tunnel, outer, body, state)?;
    }
    let inner = data.get(outer.inner_at..outer.end).ok_or(short)?;
    let (len, tos) = check_inner(tunnel, outer.payload, inner)?;
    // As the kernel, which marks the IP packet in a frame too, where it is directly in it (`ip_tunnel_rcv`).
    let (at, ether_type, tos) = match outer.payload {
        EtherType::TRANSPARENT_ETHERNET => match ip_in_frame(inner) {
            Some((ether_type, tos)) => (ethernet::HEADER_LEN, ether_type, tos),
            None => (0, outer.payload, 0),
        },
        ether_type => (0, ether_type, tos),
    };
    let new_tos = match ether_type {
        EtherType::TRANSPARENT_ETHERNET => tos,
        _ => {
            let merged = ecn::decapsulate(outer.tos, tos).ok_or(Refusal::EcnCongestion)?;
            match tunnel.copy_dscp && at == 0 {
                true => outer.tos & !ecn::MASK | merged & ecn::MASK,
                false => merged,
            }
        }
    };
    Ok(Inside {
        at: outer.inner_at,
        len,
        new_tos: (new_tos != tos).then_some((at, ether_type, new_tos)),
    })
}

/// Takes the packet out that was found inside.
#[inline(always)]
pub fn take_out<B: PacketBuf>(
    tunnel: &Tunnel,
    (outer, inside): (&Outer, &Inside),
    packet: &mut B,
    state: &TunnelState,
) -> Result<(), Refusal> {
    if packet.trim_front(inside.at).is_err() || packet.truncate(inside.len).is_err() {
        return Err(Refusal::Outer(ParseError::Truncated));
    }
    if let Some((at, ether_type, tos)) = inside.new_tos {
        let ip = packet.data_mut().get_mut(at..).unwrap_or_default();
        match ether_type {
            EtherType::IPV4 => ipv4::set_tos(ip, tos),
            _ => ipv6::set_traffic_class(ip, tos),
        }
    }
    if let (true, Some(sequence)) = (tunnel.iseq, outer.sequence) {
        state.sequences.accept(sequence);
    }
    Ok(())
}

/// The UDP checksum: right where there is one, and over IPv6 there only without one where the tunnel does without (RFC 8086
/// sections 6.1 and 6.2).
#[inline]
fn check_udp(tunnel: &Tunnel, addresses: &[u8], datagram: &[u8]) -> Result<(), Refusal> {
    let udp = Udp::parse(datagram).map_err(|_| Refusal::UdpLength)?;
    let wanted = tunnel.local.is_ipv6() && tunnel.udp.is_none_or(|encap| encap.checksum);
    match udp.has_valid_checksum(addresses) && (udp.has_checksum() || !wanted) {
        true => Ok(()),
        false => Err(Refusal::UdpChecksum),
    }
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

/// Kind and TOS of an IP packet directly in a frame; none behind a VLAN tag.
fn ip_in_frame(frame: &[u8]) -> Option<(EtherType, u8)> {
    let frame = Ethernet::parse(frame).ok()?;
    let tos = match frame.ether_type() {
        EtherType::IPV4 => Ipv4::parse(frame.payload()).ok()?.tos(),
        EtherType::IPV6 => Ipv6::parse(frame.payload()).ok()?.traffic_class(),
        _ => return None,
    };
    Some((frame.ether_type(), tos))
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
            let frame = Ethernet::parse(inner).map_err(Refusal::Inner)?;
            match tunnel.nvgre && frame.ether_type().is_tag() {
                true => Err(Refusal::InnerTagged),
                false => Ok((inner.len(), 0)),
            }
        }
        _ => Err(Refusal::UnknownProtocol),
    }
}
