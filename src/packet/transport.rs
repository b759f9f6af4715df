//! Transport checksums that were left for a device to finish.
//!
//! A packet that a local program sends over a veth carries, where the checksum belongs, only the folded sum of the
//! pseudo-header (Linux: `CHECKSUM_PARTIAL`); a real device would finish it. Before such a packet leaves in a
//! tunnel the whole checksum has to be computed. A field that happens to equal the pseudo-header's sum although it
//! was finished is computed to the same value again, so the test for it can do no harm.

use super::{Checksum, Ipv4, Ipv6, ethernet, ipv6, protocol, udp};

const UDP_FIELD: usize = 6;

/// Where a protocol keeps its checksum, in bytes from the start of its header.
#[inline]
fn field_offset(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(UDP_FIELD),
        _ => None,
    }
}

/// Finishes the TCP or UDP checksum of the IP packet that `packet` begins with, where it is unfinished. True when it
/// was. Fragments and anything else stay as they are.
#[inline]
pub fn complete_checksum(packet: &mut [u8]) -> bool {
    let Some((start, end, offset, pseudo)) = locate(packet) else {
        return false;
    };
    let Some(segment) = packet.get_mut(start..end) else {
        return false;
    };
    let Some(field) = segment.get(offset..offset + 2) else {
        return false;
    };
    if u16::from_be_bytes([field[0], field[1]]) != pseudo.fold() {
        return false;
    }
    // The field holds the pseudo-header's sum already, so the sum over the segment includes it.
    let sum = Checksum::new().add_bytes(segment).finish();
    let sum = if offset == UDP_FIELD {
        udp::never_zero(sum)
    } else {
        sum
    };
    segment[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// As [`complete_checksum`], for the IP packet in an Ethernet frame, also behind VLAN tags.
#[inline]
pub fn complete_in_frame(frame: &mut [u8]) -> bool {
    let packet = ethernet::ip_at(frame).and_then(|at| frame.get_mut(at..));
    packet.is_some_and(complete_checksum)
}

/// The segment's range, its checksum field, and the pseudo-header's sum.
#[inline]
fn locate(packet: &[u8]) -> Option<(usize, usize, usize, Checksum)> {
    match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4::parse(packet).ok()?;
            let offset = field_offset(ip.protocol())?;
            if ip.is_fragment() {
                return None;
            }
            let start = ip.header_len();
            let pseudo =
                Checksum::pseudo_header(&packet[12..20], ip.protocol(), ip.total_len() - start);
            Some((start, ip.total_len(), offset, pseudo))
        }
        6 => {
            let ip = Ipv6::parse(packet).ok()?;
            let (protocol, start) = match (ip.next_header(), ip.payload()) {
                // Eight bytes of options, a tunnel's encapsulation limit: no room for an address that changes the sum.
                (protocol::DESTINATION_OPTIONS, [next, 0, ..]) => (*next, ipv6::HEADER_LEN + 8),
                (protocol, _) => (protocol, ipv6::HEADER_LEN),
            };
            let offset = field_offset(protocol)?;
            let len = ip.total_len().checked_sub(start)?;
            let pseudo = Checksum::pseudo_header(&packet[8..40], protocol, len);
            Some((start, ip.total_len(), offset, pseudo))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};
    use proptest::prelude::*;

    fn build(v6: bool, tcp: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let builder = if v6 {
            PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64)
        } else {
            PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        if tcp {
            builder
                .tcp(1000, 2000, 7, 1000)
                .write(&mut out, payload)
                .unwrap();
        } else {
            builder.udp(1000, 2000).write(&mut out, payload).unwrap();
        }
        out
    }

    /// Leaves the checksum as Linux leaves it on a veth: the folded, uncomplemented pseudo-header sum.
    fn unfinish(packet: &mut [u8]) {
        let (start, _, offset, pseudo) = locate(packet).unwrap();
        packet[start + offset..start + offset + 2].copy_from_slice(&pseudo.fold().to_be_bytes());
    }

    proptest! {
        #[test]
        fn unfinished_checksums_become_right(v6: bool, tcp: bool, payload in proptest::collection::vec(any::<u8>(), 0..80)) {
            let finished = build(v6, tcp, &payload);
            let mut packet = finished.clone();
            unfinish(&mut packet);
            prop_assert!(complete_checksum(&mut packet));
            prop_assert_eq!(packet, finished);
        }

        #[test]
        fn finished_checksums_stay(v6: bool, tcp: bool, payload in proptest::collection::vec(any::<u8>(), 0..80)) {
            let finished = build(v6, tcp, &payload);
            let mut packet = finished.clone();
            complete_checksum(&mut packet);
            prop_assert_eq!(&packet, &finished);
            let headers = PacketHeaders::from_ip_slice(&packet).unwrap();
            prop_assert!(matches!(headers.transport, Some(TransportHeader::Tcp(_) | TransportHeader::Udp(_))));
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            complete_in_frame(&mut bytes);
            complete_checksum(&mut bytes);
        }

        #[test]
        fn frames_with_and_without_tags_are_finished(v6: bool, tcp: bool, tags in 0usize..4, payload in proptest::collection::vec(any::<u8>(), 0..80)) {
            let packet = build(v6, tcp, &payload);
            let mut open = packet.clone();
            unfinish(&mut open);
            let mut header = vec![2; 12];
            for _ in 0..tags {
                header.extend([0x81, 0, 0, 7]);
            }
            header.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
            let mut frame = [&header[..], &open[..]].concat();
            // A third tag hides what is behind it.
            prop_assert_eq!(complete_in_frame(&mut frame), tags < 3);
            let inside = if tags < 3 { packet } else { open };
            prop_assert_eq!(&frame[header.len()..], &inside[..]);
        }
    }

    #[test]
    fn an_encapsulation_limit_is_gone_past() {
        let finished = build(true, false, b"payload");
        let mut packet = finished.clone();
        packet.splice(40..40, [protocol::UDP, 0, 4, 1, 4, 1, 1, 0]);
        packet[5] += 8;
        packet[6] = protocol::DESTINATION_OPTIONS;
        let mut unfinished = packet.clone();
        unfinish(&mut unfinished);
        assert_ne!(unfinished, packet);
        assert!(complete_checksum(&mut unfinished));
        assert_eq!(unfinished, packet);
        // More options than that may move the packet's ends.
        unfinished[41] = 1;
        assert!(!complete_checksum(&mut unfinished));
    }

    #[test]
    fn a_udp_checksum_that_comes_out_as_zero_is_sent_as_ones() {
        for low in 0..=u16::MAX {
            let mut packet = build(false, false, &low.to_be_bytes());
            unfinish(&mut packet);
            complete_checksum(&mut packet);
            assert_ne!(&packet[26..28], [0, 0]);
        }
    }
}
