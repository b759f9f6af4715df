//! Frames to be judged, built by etherparse, and the ways to break them.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;

pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
pub const LOCAL6: &str = "2001:db8:ffff::1";
pub const REMOTE6: &str = "2001:db8:ffff::2";
pub const INNER_A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);
pub const INNER_B: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);

pub fn v6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

pub fn ether(dst: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &OTHER_MAC, &ethertype.to_be_bytes(), payload].concat()
}

/// An IPv4 frame with this protocol and payload, TTL 64.
pub fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(OTHER_MAC, MAC).ipv4(src.octets(), dst.octets(), 64);
    let mut frame = Vec::new();
    builder.write(&mut frame, protocol.into(), payload).unwrap();
    frame
}

pub fn ipv6(src: &str, dst: &str, next_header: u8, payload: &[u8]) -> Vec<u8> {
    const NO_NEXT_HEADER: u8 = 59;
    let builder = PacketBuilder::ethernet2(OTHER_MAC, MAC).ipv6(v6(src), v6(dst), 64);
    let mut frame = Vec::new();
    // The builder refuses extension headers that it has not built itself.
    builder
        .write(&mut frame, NO_NEXT_HEADER.into(), payload)
        .unwrap();
    spoil(frame, |ip| ip[6] = next_header)
}

/// The frame with its IPv4 header changed and the header checksum made right again.
pub fn edit(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut frame[14..]);
    frame[24..26].fill(0);
    let words = frame[14..34].chunks_exact(2);
    let sum: u32 = words.map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The frame with its bytes behind the Ethernet header changed, and nothing made right.
pub fn spoil(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut frame[14..]);
    frame
}

/// Behind an outer header: flags, then checksum, key and sequence number as the flags say, then a little IPv4.
pub fn gre_payload(flags: u16, key: u32) -> Vec<u8> {
    let mut payload = [flags.to_be_bytes(), [8, 0]].concat();
    for (bit, word) in [(0x8000, 0xaaaa_0000), (0x2000, key), (0x1000, 7)] {
        if flags & bit != 0 {
            payload.extend(u32::to_be_bytes(word));
        }
    }
    payload.extend(inner(4));
    payload
}

pub fn gre(src: Ipv4Addr, dst: Ipv4Addr, flags: u16, key: u32) -> Vec<u8> {
    ipv4(src, dst, 47, &gre_payload(flags, key))
}

pub fn gre6(src: &str, dst: &str, flags: u16, key: u32) -> Vec<u8> {
    ipv6(src, dst, 47, &gre_payload(flags, key))
}

/// What a tunnel of this protocol carries: a UDP packet with 8 bytes of payload; IPv6 for 41, otherwise IPv4 (behind a plain GRE header).
pub fn inner(protocol: u8) -> Vec<u8> {
    match protocol {
        47 => gre_payload(0, 0),
        41 => ipv6("2001:db8:2::5", "2001:db8:1::5", 17, &[0; 8])[14..].to_vec(),
        _ => ipv4(INNER_B, INNER_A, 17, &[0; 8])[14..].to_vec(),
    }
}

/// From our peer to us, over IPv6.
pub fn outer6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    ipv6(REMOTE6, LOCAL6, next_header, payload)
}

/// A UDP packet to GRE's port, without a checksum.
pub fn in_udp(payload: &[u8]) -> Vec<u8> {
    udp_packet(4754, payload)
}

pub fn udp_packet(port: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let words = [0xc123, port, length, 0];
    [&words.map(u16::to_be_bytes).concat(), payload].concat()
}

/// The same over IPv6, with its checksum.
pub fn in_udp6(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(OTHER_MAC, MAC).ipv6(v6(src), v6(dst), 64);
    let mut frame = Vec::new();
    let builder = builder.udp(0xc123, 4754);
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// Destination options that hold a tunnel encapsulation limit, as Linux writes them.
pub fn limit(next_header: u8) -> [u8; 8] {
    [next_header, 0, 4, 1, 4, 1, 1, 0]
}

pub fn ours6(flags: u16, key: u32) -> Vec<u8> {
    gre6(REMOTE6, LOCAL6, flags, key)
}

pub fn ours(flags: u16, key: u32) -> Vec<u8> {
    gre(REMOTE, LOCAL, flags, key)
}

pub fn udp(dst: Ipv4Addr) -> Vec<u8> {
    ipv4(INNER_A, dst, 17, &[0; 16])
}

pub fn udp6(dst: &str) -> Vec<u8> {
    ipv6("2001:db8:1::5", dst, 17, &[0; 16])
}

/// A frame whose IP packet has exactly this length.
pub fn sized4(length: usize) -> Vec<u8> {
    ipv4(INNER_A, INNER_B, 17, &vec![0; length - 20])
}

pub fn sized6(length: usize) -> Vec<u8> {
    let payload = vec![0; length - 40];
    ipv6("2001:db8:1::5", "2001:db8:2::5", 17, &payload)
}

pub fn spoil_mac(mut frame: Vec<u8>, byte: usize) -> Vec<u8> {
    frame[byte] ^= 0x10;
    frame
}
