//! What an outer header takes from the packet inside.

use std::net::IpAddr;

use super::{Family, GRE_IN_UDP_PORT, Mode, Payload, Refusal, Shim, Tunnel, ecn};
use crate::packet::{
    self, EtherType, Ethernet, Gre, Ipv4, Ipv6, ethernet, flow,
    ipv6::EncapsulationLimit,
    protocol::{DESTINATION_OPTIONS, GRE, IPIP, IPV6, UDP},
    udp,
};

/// The outer TTL where the inner packet has none: Linux's `IPDEFTTL`.
const DEFAULT_TTL: u8 = 64;

/// An inner packet, looked at once.
pub(super) struct Inner {
    /// Without what the frame was padded with.
    pub len: usize,
    pub tos: u8,
    pub ttl: u8,
    pub dont_fragment: bool,
    pub flow_label: u32,
    /// The tunnel encapsulation limit: as it came, then as it leaves.
    pub limit: Option<u8>,
    /// Of its flow; 0 until somebody needs it.
    pub hash: u32,
    /// What GRE calls the payload.
    pub ether_type: EtherType,
}

impl Inner {
    /// Looks at a packet that is about to enter `tunnel`, on the way to `remote`.
    #[inline(always)]
    pub fn parse(packet: &[u8], tunnel: &Tunnel, remote: IpAddr) -> Result<Inner, Refusal> {
        let payload = tunnel.mode.kind().payload;
        if payload == Payload::Ethernet {
            return Inner::frame(packet, tunnel.nvgre);
        }
        match packet.first().map(|byte| byte >> 4) {
            Some(6) if payload != Payload::Ipv4 => {
                let ip = Ipv6::parse(packet).map_err(Refusal::Inner)?;
                refuse_round((packet, ip.payload()), ip.next_header(), tunnel, remote)?;
                Ok(Inner::ipv6(&ip))
            }
            Some(6) => Err(Refusal::UnknownProtocol),
            _ if payload == Payload::Ipv6 => match Ipv4::parse(packet) {
                Ok(_) => Err(Refusal::UnknownProtocol),
                Err(error) => Err(Refusal::Inner(error)),
            },
            _ => {
                let ip = Ipv4::parse(packet).map_err(Refusal::Inner)?;
                refuse_round((packet, ip.payload()), ip.protocol(), tunnel, remote)?;
                Ok(Inner::ipv4(&ip))
            }
        }
    }

    #[inline(always)]
    fn ipv4(ip: &Ipv4<'_>) -> Inner {
        Inner {
            len: ip.total_len(),
            tos: ip.tos(),
            ttl: ip.ttl(),
            dont_fragment: ip.dont_fragment(),
            flow_label: 0,
            limit: None,
            hash: 0,
            ether_type: EtherType::IPV4,
        }
    }

    #[inline(always)]
    fn ipv6(ip: &Ipv6<'_>) -> Inner {
        Inner {
            len: ip.total_len(),
            tos: ip.traffic_class(),
            ttl: ip.hop_limit(),
            dont_fragment: false,
            flow_label: ip.flow_label(),
            limit: ip.encapsulation_limit().map(|limit| limit.value),
            hash: 0,
            ether_type: EtherType::IPV6,
        }
    }

    /// An Ethernet frame: TTL and TOS come from an IP packet directly in it, not from one behind a VLAN tag.
    fn frame(frame: &[u8], nvgre: bool) -> Result<Inner, Refusal> {
        let ethernet = Ethernet::parse(frame).map_err(Refusal::Inner)?;
        if nvgre && ethernet.ether_type().is_tag() {
            return Err(Refusal::InnerTagged);
        }
        let inside = match ethernet.ether_type() {
            EtherType::IPV4 => Ipv4::parse(ethernet.payload())
                .ok()
                .map(|ip| Inner::ipv4(&ip)),
            EtherType::IPV6 => Ipv6::parse(ethernet.payload())
                .ok()
                .map(|ip| Inner::ipv6(&ip)),
            _ => None,
        };
        let inside = inside.unwrap_or(Inner {
            len: 0,
            tos: 0,
            ttl: DEFAULT_TTL,
            dont_fragment: false,
            flow_label: 0,
            limit: None,
            hash: 0,
            ether_type: EtherType::TRANSPARENT_ETHERNET,
        });
        Ok(Inner {
            len: frame.len(),
            ether_type: EtherType::TRANSPARENT_ETHERNET,
            ..inside
        })
    }

    /// The encapsulation limit of the outer packet over IPv6: one less than the packet's own, or else as configured. A packet
    /// that may not be encapsulated again is refused (RFC 2473 section 4.1.1; `ip6_tnl_start_xmit`, `prepare_ip6gre_xmit_ipv6`).
    #[inline]
    pub fn outer_limit(&self, tunnel: &Tunnel) -> Result<Option<u8>, Refusal> {
        match (tunnel.mode.kind().underlay, self.limit) {
            (Family::V4, _) => Ok(None),
            (Family::V6, None) => Ok(tunnel.encaplimit),
            (Family::V6, Some(limit)) => match limit.checked_sub(1) {
                None => Err(Refusal::EncapLimit),
                less => Ok(less),
            },
        }
    }

    /// The hash of the flow that `packet`, which this is about, belongs to.
    #[inline]
    pub fn flow_hash(&self, packet: &[u8]) -> u32 {
        match self.ether_type {
            EtherType::TRANSPARENT_ETHERNET => flow::hash_frame(packet),
            _ => flow::hash(packet),
        }
    }

    /// The outer TOS byte or traffic class: DSCP as configured, ECN always from inside (ecn-1).
    #[inline]
    pub fn outer_tos(&self, tunnel: &Tunnel) -> u8 {
        let dscp = match tunnel.tos {
            super::Tos::Inherit => self.tos,
            super::Tos::Fixed(tos) => tos,
        };
        let ecn = match (tunnel.kernels, tunnel.mode) {
            (false, _) => ecn::encapsulate(self.tos),
            // `prepare_ip6gre_xmit_ipv4`, and its sibling, take the whole byte as it is.
            (true, Mode::Ip6gre) => return dscp,
            (true, _) => ecn::encapsulate_as_kernel(self.tos),
        };
        dscp & !ecn::MASK | ecn
    }

    #[inline]
    pub fn outer_ttl(&self, tunnel: &Tunnel) -> u8 {
        match tunnel.ttl {
            super::Ttl::Inherit => self.ttl,
            super::Ttl::Fixed(ttl) => ttl,
        }
    }
}

impl Tunnel {
    /// Whether an IP packet gets into the tunnel on the way to `remote` without a word against it. Of the kernel's own tunnels:
    /// a packet that seems to come from the other end itself is the kernel's, which drops it (`ip6_tnl_addr_conflict`).
    #[inline]
    pub fn admits(&self, packet: &[u8], remote: IpAddr) -> bool {
        let from_there = || packet::source(packet).is_ok_and(|source| source == remote);
        let limit = |inner: Inner| inner.outer_limit(self).is_ok();
        Inner::parse(packet, self, remote).is_ok_and(limit) && !(self.kernels && from_there())
    }
}

/// The encapsulation limit of an inner packet that enters `tunnel`, where that goes over IPv6.
#[inline]
pub(super) fn own_limit(packet: &[u8], tunnel: &Tunnel) -> Option<EncapsulationLimit> {
    let kind = tunnel.mode.kind();
    let at = match (kind.underlay, kind.payload) {
        (Family::V4, _) => return None,
        (_, Payload::Ethernet) => match Ethernet::parse(packet) {
            Ok(frame) if frame.ether_type() == EtherType::IPV6 => ethernet::HEADER_LEN,
            _ => return None,
        },
        _ => 0,
    };
    let limit = Ipv6::parse(packet.get(at..)?).ok()?.encapsulation_limit()?;
    Some(EncapsulationLimit {
        at: at + limit.at,
        ..limit
    })
}

/// Tunnel headers that a packet may have inside each other before it gets another one.
pub(super) const DEPTH: usize = 8;

/// Refuses a packet that has been in this tunnel and on the way to `remote` before, in others since, or in too many altogether (gre-8). Tunnels whose
/// outer routes lead into each other would otherwise send a packet round for ever: locally sent packets lose no TTL.
#[inline(always)]
fn refuse_round(
    (packet, body): (&[u8], &[u8]),
    protocol: u8,
    tunnel: &Tunnel,
    remote: IpAddr,
) -> Result<(), Refusal> {
    let tunnelled = match protocol {
        GRE | IPIP | IPV6 | DESTINATION_OPTIONS => true,
        UDP => is_gre_in_udp(body),
        _ => false,
    };
    match tunnelled && goes_round(packet, tunnel, remote) {
        true => Err(Refusal::Recursion),
        false => Ok(()),
    }
}

/// Whether a UDP packet goes to GRE's port.
#[inline]
fn is_gre_in_udp(datagram: &[u8]) -> bool {
    datagram.get(2..4) == Some(&GRE_IN_UDP_PORT.to_be_bytes())
}

fn goes_round(packet: &[u8], tunnel: &Tunnel, remote: IpAddr) -> bool {
    let mut rest = packet;
    for _ in 0..DEPTH {
        let Some((ends, protocol, body)) = head(rest) else {
            return false;
        };
        let in_udp = protocol == UDP && is_gre_in_udp(body);
        let ours = match tunnel.mode.kind().shim {
            Shim::Gre if tunnel.udp.is_some() => in_udp,
            Shim::Gre => protocol == GRE,
            Shim::None => matches!(protocol, IPIP | IPV6),
        };
        if ours && ends == (tunnel.local, remote) {
            return true;
        }
        // Only the first fragment has a tunnel header; of the others the addresses tell enough.
        let gre = match protocol {
            UDP if in_udp => body.get(udp::HEADER_LEN..).unwrap_or_default(),
            IPIP | IPV6 => {
                rest = body;
                continue;
            }
            GRE => body,
            _ => return false,
        };
        rest = match Gre::parse(gre) {
            Ok(gre) if matches!(gre.protocol(), EtherType::IPV4 | EtherType::IPV6) => gre.payload(),
            _ => return false,
        };
    }
    // A further header would be one too many, if there is one.
    match head(rest) {
        Some((_, UDP, body)) => is_gre_in_udp(body),
        Some((_, protocol, _)) => matches!(protocol, GRE | IPIP | IPV6),
        None => false,
    }
}

/// Source and destination of an IP packet, its protocol, and what that is followed by.
fn head(packet: &[u8]) -> Option<((IpAddr, IpAddr), u8, &[u8])> {
    if packet.first()? >> 4 == 6 {
        let ip = Ipv6::parse(packet).ok()?;
        let upper = ip.upper_layer().ok()?;
        let ends = (ip.source().into(), ip.destination().into());
        return Some((ends, upper.protocol, packet.get(upper.at..)?));
    }
    let ip = Ipv4::parse(packet).ok()?;
    let ends = (ip.source().into(), ip.destination().into());
    Some((ends, ip.protocol(), packet.get(ip.header_len()..)?))
}
