//! The hash of a flow: the same for all packets of a flow, spread evenly over flows.
//!
//! It makes entropy where an outer header has room for it: the IPv6 flow label (RFC 6438), the UDP source port of
//! GRE-in-UDP (RFC 8086 section 3.2.1), the choice of one of several ways.

use super::{EtherType, Ipv4, Ipv6, ethernet, protocol};

/// An odd number whose multiples spread well: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline]
fn mix(state: u64, word: u64) -> u64 {
    (state ^ word).wrapping_mul(SPREAD).rotate_left(29)
}

#[inline]
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    let n = bytes.len().min(8);
    word[..n].copy_from_slice(&bytes[..n]);
    u64::from_le_bytes(word)
}

/// The hash of the flow that the IP packet at the start of `packet` belongs to: addresses, protocol and, of whole TCP, UDP
/// and SCTP packets, ports. Fragments of one packet hash alike. Anything that is no IP packet hashes to zero.
#[inline]
pub fn hash(packet: &[u8]) -> u32 {
    let (addresses, protocol, payload) = match packet.first().map(|byte| byte >> 4) {
        Some(4) => match Ipv4::parse(packet) {
            Ok(ip) if ip.is_fragment() => (&packet[12..20], ip.protocol(), &[][..]),
            Ok(ip) => (&packet[12..20], ip.protocol(), ip.payload()),
            Err(_) => return 0,
        },
        Some(6) => match Ipv6::parse(packet) {
            Ok(ip) => (&packet[8..40], ip.next_header(), ip.payload()),
            Err(_) => return 0,
        },
        _ => return 0,
    };
    let mut state = mix(0, u64::from(protocol));
    for piece in addresses.chunks(8) {
        state = mix(state, word(piece));
    }
    if matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        state = mix(state, word(payload.get(..4).unwrap_or_default()));
    }
    finish(state)
}

#[inline]
fn finish(state: u64) -> u32 {
    let state = mix(state, 0);
    (state >> 32) as u32 ^ state as u32
}

/// The hash of the flow that an Ethernet frame belongs to: that of the IP packet in it, also behind VLAN tags; of any other
/// frame, that of its link addresses.
#[inline]
pub fn hash_frame(frame: &[u8]) -> u32 {
    let packet = match ethernet::behind_tags(frame) {
        Some((EtherType::IPV4 | EtherType::IPV6, at)) => frame.get(at..).map_or(0, hash),
        _ => 0,
    };
    match (packet, frame.get(..12)) {
        (0, Some(addresses)) => {
            let state = mix(0, word(addresses));
            finish(mix(state, word(&addresses[8..])))
        }
        (packet, _) => packet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use std::collections::HashSet;

    fn udp(v6: bool, source: u16, destination: u16) -> Vec<u8> {
        let mut out = Vec::new();
        let builder = if v6 {
            PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64)
        } else {
            PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        let builder = builder.udp(source, destination);
        builder.write(&mut out, &source.to_be_bytes()).unwrap();
        out
    }

    #[test]
    fn flows_spread_over_every_part_of_the_hash() {
        for v6 in [false, true] {
            let hashes: Vec<u32> = (0..4096).map(|n| hash(&udp(v6, n, 53))).collect();
            for shift in [0, 8, 16, 24] {
                let mut buckets = [0u32; 16];
                hashes
                    .iter()
                    .for_each(|h| buckets[(h >> shift) as usize % 16] += 1);
                // 256 each on average; the standard deviation is 16.
                assert!(
                    buckets.iter().all(|n| (170..350).contains(n)),
                    "{buckets:?}"
                );
            }
            let distinct: HashSet<_> = hashes.iter().collect();
            assert!(distinct.len() > 4090);
        }
    }

    #[test]
    fn one_flow_has_one_hash_whatever_else_changes() {
        for v6 in [false, true] {
            let packet = udp(v6, 7, 53);
            let mut other = packet.clone();
            *other.last_mut().unwrap() ^= 0xff;
            if v6 {
                super::super::ipv6::decrement_hop_limit(&mut other);
            } else {
                super::super::ipv4::decrement_ttl(&mut other);
            }
            assert_eq!(hash(&packet), hash(&other));
            assert_ne!(hash(&packet), hash(&udp(v6, 7, 54)));
        }
    }

    #[test]
    fn a_frame_hashes_as_the_packet_in_it_or_by_its_addresses() {
        let packet = udp(false, 7, 53);
        let frame = |header: &[u8]| hash_frame(&[&[2; 12], header, &packet].concat());
        assert_eq!(frame(&[8, 0]), hash(&packet));
        assert_eq!(
            frame(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0]),
            hash(&packet)
        );
        let mut arp = [3; 60];
        let of = |frame: &[u8]| hash_frame(frame);
        let before = of(&arp);
        arp[59] = 9;
        assert_eq!(of(&arp), before);
        arp[11] = 9;
        assert_ne!(of(&arp), before);
        assert_eq!(of(&[1; 11]), 0);
    }

    #[test]
    fn fragments_of_a_packet_hash_alike() {
        let mut first = udp(false, 1, 2);
        first[6] = 0x20;
        let mut second = udp(false, 9, 9);
        second[7] = 5;
        assert_eq!(hash(&first), hash(&second));
        assert_eq!(hash(&[]), 0);
    }
}
