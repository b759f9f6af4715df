//! The outer headers of a tunnel over IPv4, made once and patched per packet.

use std::net::IpAddr;

use super::{Family, Payload, Shim, Tos, Ttl, Tunnel, TunnelState, ecn};
use crate::packet::{Checksum, EtherType, GreHeader, ipv4, protocol};

/// The longest: IPv4 and GRE with a key.
const MAX_LEN: usize = ipv4::HEADER_LEN + 8;

const DONT_FRAGMENT: u8 = 0x40;

/// The headers of packets that carry IPv4, but for what each packet says itself: length, identification, and what is
/// inherited.
#[derive(Debug, Clone, Copy, Default)]
pub struct Template {
    bytes: [u8; MAX_LEN],
    len: u8,
    /// The outer byte is the fixed one and those bits of the inner one.
    tos: (u8, u8),
    ttl: (u8, u8),
    /// The same of the upper byte of the fragment field.
    flags: (u8, u8),
    /// The sum of what is written above.
    sum: u32,
}

/// What the outer header takes from an IPv4 header.
#[inline(always)]
fn merged((fixed, inherited): (u8, u8), inner: u8) -> u8 {
    fixed | inner & inherited
}

impl Template {
    /// The headers of `tunnel` to its remote; none where packets need more than this.
    pub fn of(tunnel: &Tunnel) -> Option<Self> {
        let kind = tunnel.mode.kind();
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (tunnel.local, tunnel.remote) else {
            return None;
        };
        let plain =
            kind.underlay == Family::V4 && matches!(kind.payload, Payload::Ip | Payload::Ipv4);
        let works = tunnel.ocsum || tunnel.oseq || tunnel.nvgre || tunnel.udp.is_some();
        if !plain || works || tunnel.kernels || destination.is_unspecified() {
            return None;
        }
        let mut template = Self {
            len: ipv4::HEADER_LEN as u8,
            tos: match tunnel.tos {
                Tos::Inherit => (0, 0xff),
                Tos::Fixed(tos) => (tos & !ecn::MASK, ecn::MASK),
            },
            ttl: match tunnel.ttl {
                Ttl::Inherit => (0, 0xff),
                Ttl::Fixed(ttl) => (ttl, 0),
            },
            flags: match (tunnel.sends_whole(false), tunnel.sends_whole(true)) {
                (true, _) => (DONT_FRAGMENT, 0),
                (false, true) => (0, DONT_FRAGMENT),
                (false, false) => (0, 0),
            },
            ..Self::default()
        };
        let (ip, shim) = template.bytes.split_at_mut(ipv4::HEADER_LEN);
        ip[0] = 0x45;
        ip[9] = match kind.shim {
            Shim::Gre => protocol::GRE,
            Shim::None => protocol::IPIP,
        };
        ip[12..16].copy_from_slice(&source.octets());
        ip[16..20].copy_from_slice(&destination.octets());
        let sum = Checksum::new().add_bytes(ip).fold();
        if kind.shim == Shim::Gre {
            let header = GreHeader {
                protocol: EtherType::IPV4,
                checksum: false,
                key: tunnel.okey,
                sequence: None,
            };
            header.emit(shim);
            template.len += header.len() as u8;
        }
        template.sum = sum.into();
        Some(template)
    }

    /// The headers as far as they are the same for every packet.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Completes an outer IPv4 header that [`bytes`](Self::bytes) were written into. The outer packet has `len` bytes, and `inner`
    /// is the beginning of the header inside.
    #[inline(always)]
    pub fn complete(
        &self,
        outer: &mut [u8; ipv4::HEADER_LEN],
        len: u16,
        (inner_tos, inner_flags, inner_ttl): (u8, u8, u8),
        state: &TunnelState,
    ) {
        let tos = merged(self.tos, inner_tos);
        let ttl = merged(self.ttl, inner_ttl);
        let flags = merged(self.flags, inner_flags);
        let identification = state.next_identification();
        let mut sum = self.sum + u32::from(tos) + u32::from(len) + u32::from(identification);
        sum += u32::from(flags) << 8;
        sum += u32::from(ttl) << 8;
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        outer[1] = tos;
        outer[2..4].copy_from_slice(&len.to_be_bytes());
        outer[4..6].copy_from_slice(&identification.to_be_bytes());
        outer[6] = flags;
        outer[8] = ttl;
        outer[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
}
