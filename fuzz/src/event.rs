//! Packets on their way to the router: the fuzzer's bytes as they are, or behind headers that are right.

use std::net::IpAddr;

use greyhound::{
    datapath::HandoverKind,
    fib::PortId,
    packet::{Checksum, EtherType, GreHeader, GreKey, Ipv4Header, Ipv6Header, ethernet},
    tunnel::{GRE_IN_UDP_PORT, Payload, Shim, Tunnel},
};

use super::{
    Input,
    bed::{self, BOTH, Bed, HOST, ODD, OVERLAY, UNDERLAY, WIRE},
};

/// By which door a packet comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Port(PortId),
    Handover(HandoverKind),
}

/// A packet at a door. At a port it begins with its Ethernet header, else with its IP header.
#[derive(Debug)]
pub struct Event {
    pub door: Door,
    pub bytes: Vec<u8>,
}

/// What the first byte of an event chooses; the upper bits choose the port.
pub const RAW: u8 = 0;
pub const FRAMED: u8 = 1;
pub const INTO: u8 = 2;
pub const SHIM: u8 = 3;
pub const OUT: u8 = 4;
const INTO_HANDED: u8 = 5;
const OUT_HANDED: u8 = 6;

impl Event {
    /// Reads a mode, a tunnel's number, a TOS byte, and at most `len` bytes of packet.
    pub fn read(input: &mut Input<'_>, len: usize) -> Event {
        let mode = input.byte();
        let tunnel = Bed::get().tunnel(input.byte());
        let tos = input.byte();
        let bytes = input.take(len.min(60_000));
        let port = PortId(u16::from(mode >> 4) % bed::PORTS as u16);
        let inside = [OVERLAY, BOTH, ODD, OVERLAY, WIRE][port.index()];
        let outside = [UNDERLAY, BOTH][port.index() % 2];
        let at = |port, packet: Vec<u8>| (Door::Port(port), framed(port, &packet));
        let handed = |kind, packet| (Door::Handover(kind), packet);
        let (door, bytes) = match mode & 7 {
            RAW => (Door::Port(port), bytes.to_vec()),
            FRAMED => at(port, bytes.to_vec()),
            INTO => at(inside, toward(tunnel, bytes)),
            SHIM => at(outside, around(&sender(tunnel), tos, bytes)),
            OUT => at(outside, whole(&sender(tunnel), tos, bytes)),
            INTO_HANDED => {
                let remote = tunnel.remote_of(None, bed::behind(0, false));
                let kind = HandoverKind::IntoTunnel(tunnel.id, remote.expect("a remote or a peer"));
                handed(kind, bytes.to_vec())
            }
            OUT_HANDED => handed(
                HandoverKind::FromUnderlay,
                whole(&sender(tunnel), tos, bytes),
            ),
            _ => handed(HandoverKind::FromOverlay(inside), toward(tunnel, bytes)),
        };
        Event { door, bytes }
    }

    /// The IP packet in it.
    pub fn packet(&self) -> &[u8] {
        match self.door {
            Door::Port(WIRE) => &self.bytes,
            Door::Port(_) => self.bytes.get(ethernet::HEADER_LEN..).unwrap_or_default(),
            Door::Handover(_) => &self.bytes,
        }
    }
}

/// The other end of `tunnel`, or one of several.
fn sender(tunnel: &Tunnel) -> Tunnel {
    let far = tunnel.far_end();
    match tunnel.peers.remotes() {
        [] => far,
        [.., last] => Tunnel {
            local: *last,
            ..far
        },
    }
}

/// A packet in a frame for `port`.
fn framed(port: PortId, packet: &[u8]) -> Vec<u8> {
    let ether_type = match packet.first().map(|byte| byte >> 4) {
        Some(6) => EtherType::IPV6,
        _ => EtherType::IPV4,
    };
    let mut frame = vec![0; ethernet::HEADER_LEN];
    ethernet::write(&mut frame, bed::mac(port), HOST, ether_type);
    frame.extend_from_slice(packet);
    frame
}

/// The packet with a destination behind `tunnel`, if it has room for one, and a right header checksum.
fn toward(tunnel: &Tunnel, packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    match bed::behind(tunnel.id.0 as u8, v6) {
        IpAddr::V6(to) if packet.len() >= 40 => packet[24..40].copy_from_slice(&to.octets()),
        IpAddr::V4(to) if packet.len() >= 20 => {
            packet[16..20].copy_from_slice(&to.octets());
            sum_up(&mut packet);
        }
        _ => {}
    }
    packet
}

/// Mends the checksum of an IPv4 header.
pub fn sum_up(packet: &mut [u8]) {
    let len = (usize::from(packet[0] & 15) * 4).clamp(20, packet.len());
    packet[10..12].fill(0);
    let sum = Checksum::new().add_bytes(&packet[..len]).finish();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The outer IP header of `tunnel` around any bytes.
fn around(tunnel: &Tunnel, tos: u8, bytes: &[u8]) -> Vec<u8> {
    let version = bytes.first().map_or(4, |byte| byte >> 4);
    let protocol = match (tunnel.mode.kind().shim, version) {
        (Shim::Gre, _) if tunnel.udp.is_some() => 17,
        (Shim::Gre, _) => 47,
        (Shim::None, 6) => 41,
        (Shim::None, _) => 4,
    };
    let mut packet = Vec::new();
    match (tunnel.local, tunnel.remote) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = [0; 20];
            Ipv4Header {
                tos,
                total_len: (20 + bytes.len()) as u16,
                identification: 1,
                dont_fragment: true,
                ttl: 64,
                protocol,
                source,
                destination,
            }
            .emit(&mut header);
            packet.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let limit = tunnel.encaplimit.map(|n| [protocol, 0, 4, 1, n, 1, 1, 0]);
            let option = limit.as_ref().map_or(&[][..], |option| &option[..]);
            let mut header = [0; 40];
            Ipv6Header {
                traffic_class: tos,
                flow_label: 1,
                payload_len: (option.len() + bytes.len()) as u16,
                next_header: if option.is_empty() { protocol } else { 60 },
                hop_limit: 64,
                source,
                destination,
            }
            .emit(&mut header);
            packet.extend(header);
            packet.extend(option);
        }
        ends => panic!("a tunnel between {ends:?}"),
    }
    packet.extend(bytes);
    packet
}

/// All outer headers of `tunnel` around any bytes.
fn whole(tunnel: &Tunnel, tos: u8, inner: &[u8]) -> Vec<u8> {
    let kind = tunnel.mode.kind();
    if kind.shim == Shim::None {
        return around(tunnel, tos, inner);
    }
    let protocol = match (kind.payload, inner.first().map(|byte| byte >> 4)) {
        (Payload::Ethernet, _) => EtherType::TRANSPARENT_ETHERNET,
        (_, Some(6)) => EtherType::IPV6,
        _ => EtherType::IPV4,
    };
    let header = GreHeader {
        protocol,
        checksum: tunnel.ocsum,
        key: match tunnel.nvgre {
            true => tunnel.okey.map(|vsid| GreKey::nvgre(vsid, 7)),
            false => tunnel.okey,
        },
        sequence: tunnel.oseq.then_some(0),
    };
    let mut bytes = vec![0; header.len()];
    bytes.extend_from_slice(inner);
    header.emit(&mut bytes);
    if tunnel.udp.is_some() {
        bytes = behind_udp(tunnel, &bytes);
    }
    around(tunnel, tos, &bytes)
}

/// The same behind a UDP header with a right checksum.
fn behind_udp(tunnel: &Tunnel, gre: &[u8]) -> Vec<u8> {
    let len = (8 + gre.len()) as u16;
    let ports = [50_000u16, GRE_IN_UDP_PORT, len, 0];
    let mut bytes: Vec<u8> = ports.iter().flat_map(|field| field.to_be_bytes()).collect();
    bytes.extend_from_slice(gre);
    let ends = [tunnel.local, tunnel.remote].into_iter();
    let sum = ends.fold(Checksum::new(), |sum, address| match address {
        IpAddr::V4(v4) => sum.add_bytes(&v4.octets()),
        IpAddr::V6(v6) => sum.add_bytes(&v6.octets()),
    });
    let sum = sum.add_u16(17).add_u16(len).add_bytes(&bytes).finish();
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    bytes
}
