//! What an outer header takes from the packet inside.

use std::net::IpAddr;

use super::{Family, Mode, Payload, Refusal, Tunnel, ecn};
use crate::packet::{EtherType, Ethernet, Ipv4, Ipv6, flow};

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
    /// What GRE calls the payload.
    pub ether_type: EtherType,
}

impl Inner {
    /// Looks at a packet that is about to enter `tunnel`.
    #[inline]
    pub fn parse(packet: &[u8], tunnel: &Tunnel) -> Result<Inner, Refusal> {
        let payload = tunnel.mode.kind().payload;
        if payload == Payload::Ethernet {
            return Inner::frame(packet);
        }
        match packet.first().map(|byte| byte >> 4) {
            Some(6) if payload != Payload::Ipv4 => {
                let ip = Ipv6::parse(packet).map_err(Refusal::Inner)?;
                let ends = (ip.source().into(), ip.destination().into());
                refuse_own(tunnel, ends, ip.next_header())?;
                Ok(Inner::ipv6(&ip))
            }
            Some(6) => Err(Refusal::UnknownProtocol),
            _ if payload == Payload::Ipv6 => match Ipv4::parse(packet) {
                Ok(_) => Err(Refusal::UnknownProtocol),
                Err(error) => Err(Refusal::Inner(error)),
            },
            _ => {
                let ip = Ipv4::parse(packet).map_err(Refusal::Inner)?;
                let ends = (ip.source().into(), ip.destination().into());
                refuse_own(tunnel, ends, ip.protocol())?;
                Ok(Inner::ipv4(&ip))
            }
        }
    }

    #[inline]
    fn ipv4(ip: &Ipv4<'_>) -> Inner {
        Inner {
            len: ip.total_len(),
            tos: ip.tos(),
            ttl: ip.ttl(),
            dont_fragment: ip.dont_fragment(),
            flow_label: 0,
            ether_type: EtherType::IPV4,
        }
    }

    #[inline]
    fn ipv6(ip: &Ipv6<'_>) -> Inner {
        Inner {
            len: ip.total_len(),
            tos: ip.traffic_class(),
            ttl: ip.hop_limit(),
            dont_fragment: false,
            flow_label: ip.flow_label(),
            ether_type: EtherType::IPV6,
        }
    }

    /// An Ethernet frame: TTL and TOS come from an IP packet directly in it, not from one behind a VLAN tag.
    fn frame(frame: &[u8]) -> Result<Inner, Refusal> {
        let ethernet = Ethernet::parse(frame).map_err(Refusal::Inner)?;
        let inside = match ethernet.ether_type() {
            EtherType::IPV4 => Ipv4::parse(ethernet.payload())
                .ok()
                .map(|ip| Inner::ipv4(&ip)),
            EtherType::IPV6 => Ipv6::parse(ethernet.payload())
                .ok()
                .map(|ip| Inner::ipv6(&ip)),
            _ => None,
        };
        let (tos, ttl, dont_fragment, flow_label) = match inside {
            Some(ip) => (ip.tos, ip.ttl, ip.dont_fragment, ip.flow_label),
            None => (0, DEFAULT_TTL, false, 0),
        };
        Ok(Inner {
            len: frame.len(),
            tos,
            ttl,
            dont_fragment,
            flow_label,
            ether_type: EtherType::TRANSPARENT_ETHERNET,
        })
    }

    /// The hash of the flow that `packet`, which this is about, belongs to.
    #[inline]
    pub fn flow_hash(&self, packet: &[u8]) -> u32 {
        match self.ether_type {
            EtherType::TRANSPARENT_ETHERNET => packet.get(14..).map_or(0, flow::hash),
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
        dscp & !ecn::MASK | ecn::encapsulate(self.tos)
    }

    #[inline]
    pub fn outer_ttl(&self, tunnel: &Tunnel) -> u8 {
        match tunnel.ttl {
            super::Ttl::Inherit => self.ttl,
            super::Ttl::Fixed(ttl) => ttl,
        }
    }
}

/// A tunnel's own outer packets must not enter it again: they would go round for ever (gre-8).
#[inline]
fn refuse_own(tunnel: &Tunnel, ends: (IpAddr, IpAddr), protocol: u8) -> Result<(), Refusal> {
    let same_family = matches!(
        (tunnel.mode.kind().underlay, ends.0),
        (Family::V4, IpAddr::V4(_)) | (Family::V6, IpAddr::V6(_))
    );
    if same_family && ends == (tunnel.local, tunnel.remote) && carries(tunnel.mode, protocol) {
        return Err(Refusal::Recursion);
    }
    Ok(())
}

/// Whether outer packets of this kind have that protocol number, or may have it behind an option.
fn carries(mode: Mode, protocol: u8) -> bool {
    use crate::packet::protocol::{DESTINATION_OPTIONS, GRE, IPIP, IPV6};
    let kind = mode.kind();
    match (kind.shim, protocol) {
        (super::Shim::Gre, GRE) | (super::Shim::None, IPIP | IPV6) => true,
        (_, DESTINATION_OPTIONS) => kind.underlay == Family::V6,
        _ => false,
    }
}
