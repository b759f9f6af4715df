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
/// and SCTP packets, ports; of echoes their identifier. Fragments of one packet hash alike. Anything that is no IP packet
/// hashes to zero.
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
    let particular = match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => payload.get(..4),
        protocol::ICMP | protocol::ICMPV6 if is_query(protocol, payload) => payload.get(4..6),
        _ => None,
    };
    if let Some(bytes) = particular {
        state = mix(state, word(bytes));
    }
    fold(state)
}

/// Whether an ICMP message has an identifier, as the kernel's `icmp_has_id`: echo and timestamp, request and reply.
#[inline]
fn is_query(protocol: u8, message: &[u8]) -> bool {
    match (protocol, message.first()) {
        (protocol::ICMP, Some(kind)) => matches!(kind, 0 | 8 | 13 | 14),
        (_, Some(kind)) => matches!(kind, 128 | 129),
        _ => false,
    }
}

#[inline]
fn fold(state: u64) -> u32 {
    let state = mix(state, 0);
    (state >> 32) as u32 ^ state as u32
}

/// The same for an Ethernet frame: the flow of the IP packet in it, also behind VLAN tags; of any other frame the two
/// addresses and the type.
#[inline]
pub fn hash_frame(frame: &[u8]) -> u32 {
    let (Some((kind, at)), Some(addresses)) = (ethernet::behind_tags(frame), frame.get(..12))
    else {
        return 0;
    };
    let packet = frame.get(at..).unwrap_or_default();
    match (kind, packet.first().map(|byte| byte >> 4)) {
        (EtherType::IPV4, Some(4)) | (EtherType::IPV6, Some(6)) => hash(packet),
        _ => {
            let state = mix(mix(0, u64::from(kind.0)), word(&addresses[..6]));
            fold(mix(state, word(&addresses[6..])))
        }
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
    fn echoes_differ_by_their_identifier_alone() {
        let echo = |v6: bool, id: u16, seq: u16| {
            let mut out = Vec::new();
            if v6 {
                let builder = PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64);
                let builder = builder.icmpv6_echo_request(id, seq);
                builder.write(&mut out, b"ping").unwrap();
            } else {
                let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
                let builder = builder.icmpv4_echo_request(id, seq);
                builder.write(&mut out, b"ping").unwrap();
            }
            out
        };
        for (v6, at) in [(false, 20), (true, 40)] {
            assert_eq!(hash(&echo(v6, 1, 1)), hash(&echo(v6, 1, 2)));
            assert_ne!(hash(&echo(v6, 1, 1)), hash(&echo(v6, 2, 1)));
            // What stands there in an error is no identifier but, for example, an MTU.
            let error = |id| {
                let mut packet = echo(v6, id, 1);
                packet[at] = 3;
                packet
            };
            assert_eq!(hash(&error(1)), hash(&error(2)));
        }
    }

    #[test]
    fn frames_hash_by_what_is_in_them() {
        let frame = |tags: &[[u8; 4]], kind: [u8; 2], packet: &[u8]| {
            let mut frame = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2].to_vec();
            frame.extend(tags.iter().flatten());
            frame.extend(kind);
            frame.extend(packet);
            frame
        };
        let (v4, v6) = ([8, 0], [0x86, 0xdd]);
        // Priority 2: behind the tag's type stands what could be the first byte of an IPv4 header.
        let (tag, outer) = ([0x81, 0, 0x45, 1], [0x88, 0xa8, 0, 2]);
        let packet = udp(false, 7, 53);
        for tags in [&[][..], &[tag], &[outer, tag]] {
            assert_eq!(hash_frame(&frame(tags, v4, &packet)), hash(&packet));
        }
        let packet = udp(true, 7, 53);
        assert_eq!(hash_frame(&frame(&[], v6, &packet)), hash(&packet));
        let arp = frame(&[], [8, 6], &[0, 1, 8, 0, 6, 4, 0, 1]);
        let mut other = arp.clone();
        *other.last_mut().unwrap() = 2;
        assert_eq!(hash_frame(&arp), hash_frame(&other));
        other[11] = 3;
        assert_ne!(hash_frame(&arp), hash_frame(&other));
        assert_ne!(hash_frame(&arp), hash_frame(&frame(&[], [8, 7], &[])));
        for len in 0..arp.len() {
            hash_frame(&arp[..len]);
        }
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
