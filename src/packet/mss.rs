//! The maximum segment size that the ends of a TCP connection announce (RFC 9293 section 3.7.1), lowered on the way.
//!
//! It helps hosts whose path MTU discovery does not work because somebody drops the ICMP errors: their segments then fit
//! from the start.

use super::{Ipv4, Ipv6, checksum, ethernet, ipv4, ipv6, protocol};

/// Bytes of a TCP header without options.
const TCP_HEADER_LEN: usize = 20;
/// Where a TCP header has its length (upper four bits, in words of four bytes), its flags and its checksum.
const LENGTH_AT: usize = 12;
const FLAGS_AT: usize = 13;
const CHECKSUM_AT: usize = 16;
const SYN: u8 = 0x02;

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Lowers the maximum segment size of the TCP SYN that `packet` begins with to what fits into packets of `mtu` bytes: less 40
/// bytes of headers over IPv4, 60 over IPv6. True when there was something to lower.
///
/// The TCP checksum is mended, so it has to be a finished one: see
/// [`complete_checksum`](super::transport::complete_checksum). Anything else stays as it is: packets that are no SYN,
/// fragments, segments without the option, options that end beyond the header.
#[inline]
pub fn clamp(packet: &mut [u8], mtu: u16) -> bool {
    let Some((tcp_at, end, ip_len)) = syn(packet) else {
        return false;
    };
    let Some(tcp) = packet.get_mut(tcp_at..end) else {
        return false;
    };
    let room = mtu.saturating_sub((ip_len + TCP_HEADER_LEN) as u16);
    lower(tcp, room)
}

/// As [`clamp`], for the IP packet in an Ethernet frame that may have `mtu` bytes behind its header; VLAN tags take theirs of
/// them.
#[inline]
pub fn clamp_in_frame(frame: &mut [u8], mtu: u16) -> bool {
    let Some(at) = ethernet::ip_at(frame) else {
        return false;
    };
    let mtu = mtu.saturating_sub((at - ethernet::HEADER_LEN) as u16);
    frame.get_mut(at..).is_some_and(|packet| clamp(packet, mtu))
}

/// Where the header of a TCP SYN begins and ends, and how many bytes an IP header of its family has.
#[inline]
fn syn(packet: &[u8]) -> Option<(usize, usize, usize)> {
    let (at, segment, ip_len) = match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4::parse(packet).ok()?;
            if ip.protocol() != protocol::TCP || ip.is_fragment() {
                return None;
            }
            (ip.header_len(), ip.payload(), ipv4::HEADER_LEN)
        }
        6 => {
            let ip = Ipv6::parse(packet).ok()?;
            let upper = ip.upper_layer().ok()?;
            if upper.protocol != protocol::TCP || upper.is_fragment {
                return None;
            }
            let segment = packet.get(upper.at..ip.total_len())?;
            (upper.at, segment, ipv6::HEADER_LEN)
        }
        _ => return None,
    };
    let fixed = segment.first_chunk::<TCP_HEADER_LEN>()?;
    let len = usize::from(fixed[LENGTH_AT] >> 4) * 4;
    let whole = fixed[FLAGS_AT] & SYN != 0 && (TCP_HEADER_LEN..=segment.len()).contains(&len);
    whole.then_some((at, at + len, ip_len))
}

/// Lowers every such option of a whole TCP header; the receiver goes by the last one.
#[inline]
fn lower(tcp: &mut [u8], room: u16) -> bool {
    let mut lowered = false;
    let mut at = TCP_HEADER_LEN;
    while let Some(&kind) = tcp.get(at) {
        let len = match kind {
            END_OF_OPTIONS => break,
            NO_OPERATION => 1,
            // RFC 9293 section 3.1: the length counts kind and length too.
            _ => match tcp.get(at + 1) {
                Some(len) if *len >= 2 => usize::from(*len),
                _ => break,
            },
        };
        if let (MAXIMUM_SEGMENT_SIZE, Some([_, 4, high, low])) = (kind, tcp.get(at..at + 4)) {
            let old = u16::from_be_bytes([*high, *low]);
            if old > room {
                replace(tcp, at + 2, old, room);
                lowered = true;
            }
        }
        at += len;
    }
    lowered
}

#[inline]
fn replace(tcp: &mut [u8], at: usize, old: u16, new: u16) {
    tcp[at..at + 2].copy_from_slice(&new.to_be_bytes());
    let sum = u16::from_be_bytes([tcp[CHECKSUM_AT], tcp[CHECKSUM_AT + 1]]);
    // At an odd offset the bytes weigh as if they were swapped (RFC 1071 section 2).
    let (old, new) = match at % 2 {
        0 => (old, new),
        _ => (old.swap_bytes(), new.swap_bytes()),
    };
    let sum = checksum::update(sum, old, new);
    tcp[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{
        IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, PacketHeaders, TcpHeader, TransportHeader,
    };
    use proptest::prelude::*;

    /// A TCP packet with these raw options, built and summed by somebody else's code.
    fn packet(v6: bool, syn: bool, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut tcp = TcpHeader::new(1000, 2000, 7, 64_000);
        tcp.syn = syn;
        tcp.ack = true;
        tcp.set_options_raw(options).unwrap();
        let len = tcp.header_len_u16() + payload.len() as u16;
        let mut bytes = Vec::new();
        if v6 {
            let ip = Ipv6Header {
                payload_length: len,
                next_header: IpNumber::TCP,
                hop_limit: 9,
                source: [0xfd; 16],
                destination: [0xfe; 16],
                ..Ipv6Header::default()
            };
            tcp.checksum = tcp.calc_checksum_ipv6(&ip, payload).unwrap();
            ip.write(&mut bytes).unwrap();
        } else {
            let ip = Ipv4Header::new(len, 9, IpNumber::TCP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
            tcp.checksum = tcp.calc_checksum_ipv4(&ip, payload).unwrap();
            ip.write(&mut bytes).unwrap();
        }
        tcp.write(&mut bytes).unwrap();
        bytes.extend_from_slice(payload);
        bytes
    }

    fn is_checksum_right(packet: &[u8]) -> bool {
        let headers = PacketHeaders::from_ip_slice(packet).unwrap();
        let Some(TransportHeader::Tcp(tcp)) = headers.transport else {
            return false;
        };
        let (net, payload) = (headers.net.unwrap(), headers.payload.slice());
        let right = match net {
            etherparse::NetHeaders::Ipv4(ip, _) => tcp.calc_checksum_ipv4(&ip, payload),
            etherparse::NetHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(&ip, payload),
            _ => return false,
        };
        // 0x0000 and 0xffff are the same number in one's complement.
        let right = right.unwrap();
        tcp.checksum == right || (tcp.checksum ^ right) == 0xffff && matches!(right, 0 | 0xffff)
    }

    /// The announced size, as somebody else reads it.
    fn announced(packet: &[u8]) -> Option<u16> {
        let headers = PacketHeaders::from_ip_slice(packet).unwrap();
        let Some(TransportHeader::Tcp(tcp)) = headers.transport else {
            return None;
        };
        tcp.options_iterator().find_map(|option| match option {
            Ok(etherparse::TcpOptionElement::MaximumSegmentSize(size)) => Some(size),
            _ => None,
        })
    }

    proptest! {
        #[test]
        fn it_is_lowered_and_never_raised(
            v6: bool, size: u16, mtu: u16, pads in 0usize..4,
            payload in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            // At any alignment, between other options.
            let mut options = vec![1; pads];
            options.extend_from_slice(&[2, 4]);
            options.extend_from_slice(&size.to_be_bytes());
            options.extend_from_slice(&[4, 2, 3, 3, 7]);
            let before = packet(v6, true, &options, &payload);
            let mut after = before.clone();
            let room = mtu.saturating_sub(if v6 { 60 } else { 40 });
            prop_assert_eq!(clamp(&mut after, mtu), size > room);
            prop_assert_eq!(announced(&after), Some(size.min(room)));
            prop_assert!(is_checksum_right(&after));
            if size <= room {
                prop_assert_eq!(after, before);
            }
        }

        #[test]
        fn any_options_are_survived_and_the_checksum_stays_right(
            v6: bool, options in proptest::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..40), mtu: u16,
        ) {
            let mut bytes = packet(v6, true, &options, b"data");
            let before = bytes.clone();
            clamp(&mut bytes, mtu);
            prop_assert!(is_checksum_right(&bytes));
            // Nothing but options and checksum has changed.
            let tcp = if v6 { 40 } else { 20 };
            let end = bytes.len() - 4;
            prop_assert_eq!(&bytes[..tcp + 16], &before[..tcp + 16]);
            prop_assert_eq!(&bytes[end..], &before[end..]);
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..100), first in 0x40u8..0x70, mtu: u16) {
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            clamp(&mut bytes, mtu);
            clamp_in_frame(&mut bytes, mtu);
        }

        #[test]
        fn in_a_frame_tags_take_their_bytes(v6: bool, mtu in 100u16..9000, tags in 0usize..4) {
            let mut inside = packet(v6, true, &SIZE_9000, b"");
            let kind: [u8; 2] = if v6 { [0x86, 0xdd] } else { [8, 0] };
            let tag: &[u8] = &[0x81, 0, 0, 7];
            let header = [&[2; 12][..], &tag.repeat(tags), &kind].concat();
            let mut frame = [&header[..], &inside].concat();
            // Nobody looks behind three.
            let lowered = tags < 3 && clamp(&mut inside, mtu - 4 * tags as u16);
            prop_assert_eq!(clamp_in_frame(&mut frame, mtu), lowered);
            prop_assert_eq!(frame, [&header[..], &inside].concat());
        }
    }

    const SIZE_9000: [u8; 4] = [2, 4, 0x23, 0x28];

    fn stays(mut bytes: Vec<u8>) -> bool {
        let before = bytes.clone();
        !clamp(&mut bytes, 1400) && bytes == before
    }

    #[test]
    fn what_is_no_whole_syn_with_the_option_stays() {
        for v6 in [false, true] {
            assert!(!stays(packet(v6, true, &SIZE_9000, b"")));
            assert!(stays(packet(v6, false, &SIZE_9000, b"")));
            assert!(stays(packet(v6, true, &[4, 2], b"")));
            // An option that claims another length, one behind the end of the list, one behind one that has no length.
            assert!(stays(packet(v6, true, &[2, 3, 0x23, 0x28], b"")));
            assert!(stays(packet(v6, true, &[0, 2, 4, 0x23, 0x28], b"")));
            assert!(stays(packet(v6, true, &[9, 0, 2, 4, 0x23, 0x28], b"")));
            assert!(stays(packet(v6, true, &[1, 1, 1, 2], &[4, 0x23, 0x28])));
            // The header is said to be longer than the packet, or shorter than a header.
            for words in [0, 4, 15] {
                let mut bytes = packet(v6, true, &SIZE_9000, b"");
                bytes[if v6 { 52 } else { 32 }] = words << 4;
                assert!(stays(bytes), "{words}");
            }
            let whole = packet(v6, true, &SIZE_9000, b"");
            for len in 0..whole.len() {
                assert!(stays(whole[..len].to_vec()), "{len}");
            }
        }
    }

    #[test]
    fn fragments_stay() {
        let whole = packet(false, true, &SIZE_9000, b"");
        for (more, offset) in [(true, 0), (false, 64)] {
            let mut bytes = whole.clone();
            let mut ip = Ipv4Header::from_slice(&bytes).unwrap().0;
            ip.more_fragments = more;
            ip.fragment_offset = IpFragOffset::try_new(offset).unwrap();
            bytes[..20].copy_from_slice(&ip.to_bytes());
            assert!(stays(bytes));
        }
        let whole = packet(true, true, &SIZE_9000, b"");
        let (ip, segment) = whole.split_at(40);
        let mut bytes = [ip, &[6, 0, 0, 1, 0, 0, 0, 9], segment].concat();
        bytes[6] = 44;
        bytes[5] += 8;
        assert!(stays(bytes));
    }

    #[test]
    fn extension_headers_are_gone_past() {
        let whole = packet(true, true, &SIZE_9000, b"");
        let (ip, segment) = whole.split_at(40);
        let mut bytes = [ip, &[6, 0, 1, 4, 0, 0, 0, 0], segment].concat();
        bytes[6] = 60;
        bytes[5] += 8;
        assert!(clamp(&mut bytes, 1400));
        assert_eq!(bytes[40 + 8 + 22..40 + 8 + 24], 1340u16.to_be_bytes());
    }
}
