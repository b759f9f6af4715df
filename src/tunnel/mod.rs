//! What a tunnel is, and how packets get into it and out of it.
//!
//! This room turns an inner IP packet into an outer one and back. It knows no devices, no routes and no
//! clock. What changes with packets (sequence numbers, identification, counters) lives in [`TunnelState`];
//! everything else about a tunnel is immutable and comes from the control room.

mod decapsulate;
mod door;
mod ecn;
mod encapsulate;
mod flow;
mod inner;
pub mod keepalive;
mod kind;
mod outer;
mod peers;
mod quoted;
mod size;
mod state;
mod table;
mod template;

pub use decapsulate::{Inside, Outer, decapsulate, look_inside, take_out};
pub use door::{Door, Doors};
pub use encapsulate::encapsulate;
pub use flow::flow_inside;
pub use kind::{Family, Kind, Mode, Payload, Shim};
pub use outer::{GRE_IN_UDP_PORT, Overhead, overhead};
pub use peers::Peers;
pub use quoted::Quoted;
pub use size::Size;
pub use state::{Counter, Sequences, TunnelCounters, TunnelState};
pub use table::{Class, TunnelTable};
pub use template::Template;

use std::{net::IpAddr, sync::Arc};

use crate::packet::{GreKey, ParseError, ethernet, gre, mss, protocol};

/// A tunnel's slot: an index that stays the same as long as the tunnel lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(pub u32);

impl TunnelId {
    /// The slot as an index into per-tunnel tables.
    pub fn index(self) -> usize {
        self.0 as usize
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

/// The outer flow label, over IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowLabel {
    /// From the inner flow's hash (RFC 6438).
    Hash,
    /// The inner packet's own where it has one; else as [`Hash`](Self::Hash).
    Inherit,
    /// 20 bits.
    Fixed(u32),
}

/// GRE in UDP (RFC 8086): what the UDP header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpEncap {
    /// None: from the inner flow's hash.
    pub source_port: Option<u16>,
    /// A checksum is sent; without, zero. Over IPv6 it is asked for on receipt, too (RFC 8086 section 6.2).
    pub checksum: bool,
}

/// A tunnel as configured, with nothing in it that a packet changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    pub id: TunnelId,
    /// The kernel device's name.
    pub name: Box<str>,
    pub mode: Mode,
    /// Outer source, of the family that the mode says; unspecified matches any (Linux: wildcard local).
    pub local: IpAddr,
    /// Outer destination, one end or a multicast group; unspecified: the packets say it, and any is received from (Linux:
    /// wildcard remote).
    pub remote: IpAddr,
    /// Where packets go that have no remote to go to.
    pub peers: Arc<Peers>,
    /// Key expected on receipt; `None` never matches a keyed packet (gre-4).
    pub ikey: Option<GreKey>,
    /// Key sent.
    pub okey: Option<GreKey>,
    /// The keys are virtual subnet identifiers of 24 bits (RFC 7637), and packets carry a hash of their flow beside them.
    pub nvgre: bool,
    pub icsum: bool,
    pub ocsum: bool,
    pub iseq: bool,
    pub oseq: bool,
    pub ttl: Ttl,
    pub tos: Tos,
    /// On receipt the inner DSCP becomes the outer one's; otherwise it stays.
    pub copy_dscp: bool,
    /// Outer DF always set; otherwise copied from an inner IPv4 packet, unless `ignore_df`.
    pub pmtudisc: bool,
    pub ignore_df: bool,
    pub flow_label: FlowLabel,
    /// How often outer packets may be encapsulated again (RFC 2473 section 4.1.1), over IPv6.
    pub encaplimit: Option<u8>,
    /// GRE stands in UDP; none but with the GRE kinds.
    pub udp: Option<UdpEncap>,
    /// The underlay device (interface index) that the tunnel is bound to.
    pub dev: Option<u32>,
    /// The tunnel device's MTU: the largest inner packet, in bytes.
    pub mtu: u16,
    /// Bytes of inner packets that passing TCP connections are held to (RFC 9293 section 3.7.1): what the tunnel carries at the
    /// moment, where that was asked for.
    pub clamp_mss: Option<u16>,
    /// The MTU of the device that the tunnel's frames come from and go to, as over a wire; none where there is no such device.
    pub wire: Option<u16>,
    /// A device of the kernel's own, which is the slow path: its packets are what the kernel would have sent, and what is not
    /// plain is the kernel's, as it came.
    pub kernels: bool,
    /// The tunnel device is administratively up. A tunnel that is down takes no packets (gre-11).
    pub up: bool,
    /// It sends keepalives, and knows them when they come back.
    pub keepalive: bool,
    /// Its far end answers keepalives, or is not asked. Without answers nothing but keepalives is sent.
    pub alive: bool,
}

impl Tunnel {
    /// A tunnel of this kind as iproute2 makes it when told no more than that: in slot 0, up, over an underlay of 1500
    /// bytes, without GRE options.
    pub fn new(mode: Mode, local: impl Into<IpAddr>, remote: impl Into<IpAddr>) -> Tunnel {
        let v6 = mode.kind().underlay == Family::V6;
        let encaplimit = v6.then_some(4);
        let gre = gre::header_len(false, false, false);
        let headers = overhead(mode, encaplimit, false, gre);
        let mtu = 1500 - headers.total() - headers.ethernet;
        Tunnel {
            id: TunnelId(0),
            name: mode.as_str().into(),
            mode,
            local: local.into(),
            remote: remote.into(),
            peers: Arc::default(),
            ikey: None,
            okey: None,
            nvgre: false,
            icsum: false,
            ocsum: false,
            iseq: false,
            oseq: false,
            ttl: if v6 { Ttl::Fixed(64) } else { Ttl::Inherit },
            tos: Tos::Fixed(0),
            copy_dscp: false,
            pmtudisc: true,
            ignore_df: false,
            flow_label: FlowLabel::Hash,
            encaplimit,
            udp: None,
            dev: None,
            mtu: mtu as u16,
            clamp_mss: None,
            wire: None,
            kernels: false,
            up: true,
            keepalive: false,
            alive: true,
        }
    }

    /// The same tunnel as its other end has it configured: what one sends, the other expects.
    pub fn far_end(&self) -> Tunnel {
        Tunnel {
            local: self.remote,
            remote: self.local,
            ikey: self.okey,
            okey: self.ikey,
            icsum: self.ocsum,
            ocsum: self.icsum,
            iseq: self.oseq,
            oseq: self.iseq,
            ..self.clone()
        }
    }

    /// What encapsulation adds in front of the inner packet, header by header.
    #[inline]
    pub fn headers(&self) -> Overhead {
        self.headers_with(self.encaplimit)
    }

    /// The same with this encapsulation limit.
    #[inline]
    fn headers_with(&self, limit: Option<u8>) -> Overhead {
        let gre = gre::header_len(self.okey.is_some(), self.ocsum, self.oseq);
        overhead(self.mode, limit, self.udp.is_some(), gre)
    }

    /// The bytes of those.
    #[inline]
    pub fn overhead(&self) -> usize {
        self.headers().total()
    }

    /// The same in front of this very packet: one that carries an encapsulation limit gets one, also where none is configured
    /// (RFC 2473 section 4.1.1).
    #[inline]
    pub fn overhead_of(&self, inner: &[u8]) -> usize {
        match inner::own_limit(inner, self) {
            Some(_) => self.headers_with(Some(0)).total(),
            None => self.overhead(),
        }
    }

    /// Where an inner packet says that it may not be encapsulated again, in bytes from its start: what the pointer of the ICMPv6
    /// Parameter Problem is to show (RFC 2473 section 4.1.1 a). Frames are refused without a word.
    pub fn may_not_enter(&self, inner: &[u8]) -> Option<u32> {
        let limit = inner::own_limit(inner, self)?;
        let is_frame = self.mode.kind().payload == Payload::Ethernet;
        (limit.value == 0 && !is_frame).then_some(limit.at as u32)
    }

    /// Where the inner packet begins in an outer one that this tunnel has made.
    #[inline]
    pub fn inner_at(&self, outer: &[u8]) -> usize {
        let limited = outer.get(6) == Some(&protocol::DESTINATION_OPTIONS);
        self.headers_with(limited.then_some(0)).total()
    }

    /// The outer headers have a place that tells flows apart.
    #[inline]
    fn shows_flow(&self) -> bool {
        let port = self.udp.is_some_and(|udp| udp.source_port.is_none());
        self.local.is_ipv6() || port || self.nvgre
    }

    /// The key of a packet whose flow has this hash.
    #[inline]
    fn key_of(&self, hash: u32) -> Option<GreKey> {
        match self.okey {
            Some(vsid) if self.nvgre => Some(GreKey::nvgre(vsid, hash as u8)),
            key => key,
        }
    }

    /// Whether a frame is no larger than the tunnel device's MTU allows, not counting its Ethernet header and VLAN tags.
    #[inline]
    pub fn fits(&self, frame: &[u8]) -> bool {
        frame_fits(frame, self.mtu)
    }

    /// The same of the device at the other end of the tunnel's wire.
    #[inline]
    pub fn fits_wire(&self, frame: &[u8]) -> bool {
        self.wire.is_none_or(|mtu| frame_fits(frame, mtu))
    }

    /// The IP packet that an inner packet is, or has in it as a frame.
    #[inline]
    pub fn packet_in<'p>(&self, inner: &'p [u8]) -> Option<&'p [u8]> {
        match self.mode.kind().payload {
            Payload::Ethernet => inner.get(ethernet::ip_at(inner)?..),
            _ => Some(inner),
        }
    }

    /// Holds the TCP connection that an inner packet opens to what the tunnel carries, where that was asked for. The packet's
    /// checksum is a finished one.
    #[inline]
    pub fn clamp_mss(&self, inner: &mut [u8], counters: &TunnelCounters) {
        let Some(mtu) = self.clamp_mss else {
            return;
        };
        let lowered = match self.mode.kind().payload {
            Payload::Ethernet => mss::clamp_in_frame(inner, mtu),
            _ => mss::clamp(inner, mtu),
        };
        if lowered {
            counters.mss_clamped.add(1);
        }
    }
}

#[inline]
fn frame_fits(frame: &[u8], mtu: u16) -> bool {
    let header = ethernet::behind_tags(frame).map_or(ethernet::HEADER_LEN, |(_, at)| at);
    frame.len() <= header + usize::from(mtu)
}

/// Why a packet did not get into, or out of, a tunnel. The packet is unchanged. The names are the counters'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The outer IP header could not be parsed.
    Outer(ParseError),
    /// A fragment: the kernel has to put the packet together first.
    OuterFragment,
    /// The UDP header is cut, or its length cannot be.
    UdpLength,
    /// The UDP checksum is wrong, or missing over IPv6 where the tunnel wants one.
    UdpChecksum,
    /// The GRE header could not be parsed.
    Gre(ParseError),
    /// The inner packet could not be parsed, or claims more bytes than there are.
    Inner(ParseError),
    /// No tunnel has these addresses and this key.
    UnknownTunnel,
    /// The tunnel does not carry such a payload (gre-6).
    UnknownProtocol,
    /// A frame with a VLAN tag, which NVGRE does not carry (RFC 7637 section 3.3).
    InnerTagged,
    /// The inner source address is one that no packet may come from (v6-4).
    InnerMartian,
    /// The GRE checksum is wrong.
    Checksum,
    /// A checksum where the tunnel has none, or none where it has one (gre-3, as Linux).
    ChecksumPresence,
    /// No sequence number where the tunnel wants one.
    SequenceMissing,
    /// The sequence number is older than the last one accepted (RFC 2890 section 2.2).
    SequenceOld,
    /// The inner packet says that it may not be encapsulated again (RFC 2473 section 4.1.1).
    EncapLimit,
    /// Outer CE over an inner packet that is not ECN-capable (RFC 6040 section 4.2).
    EcnCongestion,
    /// The inner packet is this tunnel's own outer packet: it would go round for ever (gre-8).
    Recursion,
    /// The outer packet would be longer than an IPv4 packet can be, or there is no room for its headers.
    NoRoom,
    /// The tunnel has no remote, and neither peers nor routes say where the packet goes.
    NoRemote,
}

#[cfg(test)]
mod header_tests;
#[cfg(test)]
mod udp_tests;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plain GRE tunnel from 192.0.2.1 to 192.0.2.2 over an MTU of 1500.
    pub(crate) fn tunnel() -> Tunnel {
        Tunnel::new(Mode::Gre, [192, 0, 2, 1], [192, 0, 2, 2])
    }
}
