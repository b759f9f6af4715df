//! What user space and the steering program agree on: `bpf/steer.h` in Rust.
//!
//! Keys and values are written byte by byte, so that no layout is ever assumed; the sizes are compared with the maps' own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The counters' names, in the order of `enum steer_reason`.
pub const REASONS: [&str; 25] = [
    "redirected_underlay",
    "redirected_overlay",
    "port_off",
    "not_ip",
    "other_mac",
    "vlan_tag",
    "ip_options",
    "bad_header",
    "bad_checksum",
    "fragment",
    "not_tunnel",
    "gre_version",
    "gre_flags",
    "unknown_tunnel",
    "kernel_tunnel",
    "forwarding_off",
    "multicast",
    "martian",
    "ttl",
    "no_route",
    "kernel_route",
    "too_big",
    "partial_checksum",
    "split_header",
    "no_socket",
];

/// The counter behind those of the reasons: `STEER_STRANGERS`.
pub const STRANGERS: u32 = REASONS.len() as u32;

/// `STEER_VLANS`: entries for a device and the VLAN devices on it.
pub const VLANS: u32 = 4096;

pub const PORT_UNDERLAY: u16 = 1 << 0;
pub const PORT_OVERLAY: u16 = 1 << 1;
pub const PORT_FORWARD4: u16 = 1 << 2;
pub const PORT_FORWARD6: u16 = 1 << 3;
pub const PORT_PARTIAL_CHECKSUMS: u16 = 1 << 4;
pub const PORT_ANY_REMOTE: u16 = 1 << 5;
pub const PORT_ANY_REMOTE6: u16 = 1 << 6;
pub const PORT_WIRE: u16 = 1 << 7;
pub const PORT_NVGRE: u16 = 1 << 8;
pub const PORT_GROUPS: u16 = 1 << 9;

/// `enum steer_tunnel_flags`.
pub const TUNNEL_KNOWN: u32 = 1 << 0;
pub const TUNNEL_ZERO_CHECKSUM: u32 = 1 << 1;
pub const TUNNEL_FAST: u32 = 1 << 2;
pub const TUNNEL_SOCKET: u32 = 1 << 3;

/// `struct steer_port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortEntry {
    pub mac: [u8; 6],
    pub flags: u16,
    pub first_slot: u32,
    pub queues: u32,
    pub largest: u32,
}

impl PortEntry {
    pub fn bytes(&self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..6].copy_from_slice(&self.mac);
        bytes[6..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.first_slot.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.queues.to_ne_bytes());
        bytes[16..].copy_from_slice(&self.largest.to_ne_bytes());
        bytes
    }
}

/// `enum steer_key`, and the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    None,
    Whole(u32),
    /// The virtual subnet, in the lower 24 bits.
    Subnet(u32),
}

/// `struct steer_tunnel4` or `steer_tunnel6`; both addresses are of one family.
pub fn tunnel(local: IpAddr, remote: IpAddr, protocol: u8, key: Key) -> Vec<u8> {
    let (kind, key) = match key {
        Key::None => (0, 0),
        Key::Whole(key) => (1, key),
        Key::Subnet(subnet) => (2, subnet << 8),
    };
    let mut bytes = ends(local, remote);
    bytes.extend(key.to_be_bytes());
    bytes.extend([protocol, kind, 0, 0]);
    bytes
}

/// `struct steer_peer4` or `steer_peer6`; both addresses are of one family.
pub fn peer(local: IpAddr, remote: IpAddr, protocol: u8) -> Vec<u8> {
    let mut bytes = ends(local, remote);
    bytes.extend(u32::from(protocol).to_ne_bytes());
    bytes
}

fn ends(local: IpAddr, remote: IpAddr) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(ip) => Ipv4Addr::octets(&ip).to_vec(),
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip).to_vec(),
    };
    [octets(local), octets(remote)].concat()
}

/// `struct steer_prefix4` or `steer_prefix6`.
pub fn prefix(net: IpNet) -> Vec<u8> {
    let mut bytes = u32::from(net.prefix_len()).to_ne_bytes().to_vec();
    match net.network() {
        IpAddr::V4(ip) => bytes.extend(ip.octets()),
        IpAddr::V6(ip) => bytes.extend(ip.octets()),
    }
    bytes
}

/// The prefix that a key stands for.
pub fn prefix_of(key: &[u8]) -> Option<IpNet> {
    let (length, address) = key.split_first_chunk()?;
    let length = u8::try_from(u32::from_ne_bytes(*length)).ok()?;
    let address = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
        (Ok(v4), _) => IpAddr::from(v4),
        (_, Ok(v6)) => IpAddr::from(v6),
        _ => return None,
    };
    IpNet::new(address, length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = include_str!("../../bpf/steer.h");

    #[test]
    fn reasons_stand_in_the_headers_order() {
        let in_header: Vec<&str> = HEADER
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("X("))
            .filter_map(|rest| rest.split(')').next())
            .collect();
        assert_eq!(in_header, REASONS);
    }

    #[test]
    fn there_are_as_many_vlans() {
        assert!(HEADER.contains(&format!("#define STEER_VLANS {VLANS}\n")));
    }

    #[test]
    fn flags_have_the_headers_bits() {
        let flags = [
            ("UNDERLAY", PORT_UNDERLAY),
            ("OVERLAY", PORT_OVERLAY),
            ("FORWARD4", PORT_FORWARD4),
            ("FORWARD6", PORT_FORWARD6),
            ("PARTIAL_CHECKSUMS", PORT_PARTIAL_CHECKSUMS),
            ("ANY_REMOTE", PORT_ANY_REMOTE),
            ("ANY_REMOTE6", PORT_ANY_REMOTE6),
            ("WIRE", PORT_WIRE),
            ("NVGRE", PORT_NVGRE),
            ("GROUPS", PORT_GROUPS),
        ];
        let flags = flags.map(|(name, value)| (format!("PORT_{name}"), u32::from(value)));
        let tunnel = [
            ("TUNNEL_KNOWN".to_owned(), TUNNEL_KNOWN),
            ("TUNNEL_FAST".to_owned(), TUNNEL_FAST),
            ("TUNNEL_SOCKET".to_owned(), TUNNEL_SOCKET),
            ("TUNNEL_ZERO_CHECKSUM".to_owned(), TUNNEL_ZERO_CHECKSUM),
        ];
        for (name, value) in flags.into_iter().chain(tunnel) {
            let line = format!("STEER_{name} = 1 << {},", value.trailing_zeros());
            assert!(HEADER.contains(&line), "{line}");
        }
    }
}
