//! ICMP and ICMPv6 errors (RFC 792, RFC 1191, RFC 4443): read those of others, write our own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Checksum, Ipv4, Ipv6, ipv4, ipv6, protocol};

/// Bytes in front of the quoted packet.
const HEADER_LEN: usize = 8;
/// The most that is quoted over IPv4: a message of 576 bytes, which every host takes (RFC 1812 section 4.3.2.3).
const QUOTED: usize = 576 - ipv4::HEADER_LEN - HEADER_LEN;
/// The most that is quoted over IPv6: a message of 1280 bytes (RFC 4443 section 2.4 c).
const QUOTED_V6: usize = 1280 - ipv6::HEADER_LEN - HEADER_LEN;

const FRAGMENTATION_NEEDED: u8 = 4;

/// The types of ICMP that are errors and say something about a packet of ours.
pub const ERRORS: [u8; 3] = [3, 11, 12];
/// The same of ICMPv6.
pub const ERRORS_V6: [u8; 4] = [1, 2, 3, 4];

/// What happened to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does not fit the next link, which takes this many bytes; 0 from routers that do not say (RFC 1191 section 5).
    TooBig(u32),
    /// It cannot be delivered; the code says why.
    Unreachable(u8),
    /// TTL, hop limit or the time to put fragments together ran out.
    TimeExceeded,
    ParameterProblem,
}

/// An error, and the beginning of the packet that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error<'a> {
    pub kind: Kind,
    pub quoted: &'a [u8],
}

impl<'a> Error<'a> {
    /// Reads an ICMP message, whole; none where it is no error or its checksum is wrong.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let ([kind, code, _, _, _, _, high, low], quoted) =
            message.split_first_chunk::<HEADER_LEN>()?;
        let kind = match (*kind, *code) {
            (3, FRAGMENTATION_NEEDED) => Kind::TooBig(u16::from_be_bytes([*high, *low]).into()),
            (3, code) => Kind::Unreachable(code),
            (11, _) => Kind::TimeExceeded,
            (12, _) => Kind::ParameterProblem,
            _ => return None,
        };
        let intact = Checksum::new().add_bytes(message).is_valid();
        intact.then_some(Self { kind, quoted })
    }

    /// Reads an ICMPv6 message whose checksum has been verified, as a raw socket's is (RFC 3542 section 3.1).
    pub fn parse_v6(message: &'a [u8]) -> Option<Self> {
        let ([kind, code, _, _, mtu @ ..], quoted) = message.split_first_chunk::<HEADER_LEN>()?;
        let kind = match kind {
            1 => Kind::Unreachable(*code),
            2 => Kind::TooBig(u32::from_be_bytes(*mtu)),
            3 => Kind::TimeExceeded,
            4 => Kind::ParameterProblem,
            _ => return None,
        };
        Some(Self { kind, quoted })
    }
}

/// The message that tells the sender of an IPv4 packet to send no more than `mtu` bytes at a time.
pub fn fragmentation_needed(packet: &[u8], mtu: u16) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(QUOTED)];
    let [high, low] = mtu.to_be_bytes();
    let mut message = vec![3, FRAGMENTATION_NEEDED, 0, 0, 0, 0, high, low];
    message.extend_from_slice(quoted);
    let sum = Checksum::new().add_bytes(&message).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The same for IPv6, but for the checksum, which a raw socket fills in.
pub fn packet_too_big(packet: &[u8], mtu: u16) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(QUOTED_V6)];
    let [high, low] = mtu.to_be_bytes();
    let mut message = vec![2, 0, 0, 0, 0, 0, high, low];
    message.extend_from_slice(quoted);
    message
}

/// The message that shows the sender of an IPv6 packet the byte that is in the way, "erroneous header field" (RFC 4443
/// section 3.4), but for the checksum.
pub fn parameter_problem(packet: &[u8], pointer: u32) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(QUOTED_V6)];
    let mut message = vec![4, 0, 0, 0];
    message.extend_from_slice(&pointer.to_be_bytes());
    message.extend_from_slice(quoted);
    message
}

/// Who is to be told of an error about this packet; none where nobody may be (mtu-5; RFC 1812 section 4.3.2.7, RFC 4443
/// section 2.4 e): it is an error itself, a fragment but the first, for many, or from nobody in particular.
pub fn answerable(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        6 => answerable_v6(packet).map(IpAddr::V6),
        _ => answerable_v4(packet).map(IpAddr::V4),
    }
}

fn answerable_v4(packet: &[u8]) -> Option<Ipv4Addr> {
    /// The highest type that Linux knows (NR_ICMP_TYPES): of others nobody can say that they are no errors.
    const LAST_KNOWN: u8 = 18;
    let ip = Ipv4::parse(packet).ok()?;
    let (source, destination) = (ip.source(), ip.destination());
    let nobody = |a: Ipv4Addr| a.octets()[0] == 0 || a.is_loopback() || a.octets()[0] >= 224;
    if nobody(source) || destination.is_multicast() || destination.is_broadcast() {
        return None;
    }
    if u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0 {
        return None;
    }
    let is_error = match (ip.protocol(), ip.payload().first()) {
        (protocol::ICMP, Some(kind)) => matches!(kind, 3..=5 | 11 | 12) || *kind > LAST_KNOWN,
        (protocol::ICMP, None) => true,
        _ => false,
    };
    (!is_error).then_some(source)
}

fn answerable_v6(packet: &[u8]) -> Option<Ipv6Addr> {
    const REDIRECT: u8 = 137;
    let ip = Ipv6::parse(packet).ok()?;
    let (source, destination) = (ip.source(), ip.destination());
    let nobody = source.is_unspecified() || source.is_loopback() || source.is_multicast();
    if nobody || source.to_ipv4_mapped().is_some() || destination.is_multicast() {
        return None;
    }
    let upper = ip.upper_layer().ok()?;
    let (protocol, at) = match upper.is_fragment {
        false => (upper.protocol, upper.at),
        // Next header, reserved, and the offset in the upper 13 bits (RFC 8200 section 4.5).
        true => match packet.get(upper.at..upper.at + 4)? {
            [next, _, high, low] if u16::from_be_bytes([*high, *low]) & !7 == 0 => {
                (*next, upper.at + 8)
            }
            _ => return None,
        },
    };
    let is_error = match (protocol, packet.get(at)) {
        (protocol::ICMPV6, Some(kind)) => *kind < 128 || *kind == REDIRECT,
        (protocol::ICMPV6, None) => true,
        _ => false,
    };
    (!is_error).then_some(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{
        Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
        Ipv6Header, PacketBuilder, icmpv4, icmpv6,
    };
    use proptest::prelude::*;

    fn v4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut out = Vec::new();
        let builder = PacketBuilder::ipv4(source, destination, 9).udp(1, 2);
        builder.write(&mut out, &[7; 900]).unwrap();
        out
    }

    fn v6(source: &str, destination: &str) -> Vec<u8> {
        let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let mut out = Vec::new();
        let builder = PacketBuilder::ipv6(octets(source), octets(destination), 9).udp(1, 2);
        builder.write(&mut out, &[7; 1400]).unwrap();
        out
    }

    #[test]
    fn what_is_written_is_what_etherparse_reads_and_quotes_as_linux_does() {
        let packet = v4([10, 0, 0, 1], [10, 0, 0, 2]);
        let message = fragmentation_needed(&packet, 1376);
        let (header, rest) = Icmpv4Header::from_slice(&message).unwrap();
        let needed = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1376 };
        assert_eq!(header.icmp_type, Icmpv4Type::DestinationUnreachable(needed));
        assert_eq!(header.checksum, header.icmp_type.calc_checksum(rest));
        assert_eq!(rest, &packet[..548]);
        let read = Error::parse(&message).unwrap();
        assert_eq!((read.kind, read.quoted), (Kind::TooBig(1376), rest));
        assert_eq!(fragmentation_needed(&packet[..60], 9)[8..], packet[..60]);

        let packet = v6("fd00::1", "fd00::2");
        let message = packet_too_big(&packet, 1376);
        let (header, rest) = Icmpv6Header::from_slice(&message).unwrap();
        assert_eq!(header.icmp_type, Icmpv6Type::PacketTooBig { mtu: 1376 });
        assert_eq!(rest, &packet[..1232]);
        let read = Error::parse_v6(&message).unwrap();
        assert_eq!((read.kind, read.quoted), (Kind::TooBig(1376), rest));
    }

    #[test]
    fn v6_3_a_parameter_problem_points_into_the_packet() {
        let packet = vec![0x60; 2000];
        let message = parameter_problem(&packet, 44);
        let (header, rest) = Icmpv6Header::from_slice(&message).unwrap();
        let problem = icmpv6::ParameterProblemHeader {
            code: icmpv6::ParameterProblemCode::ErroneousHeaderField,
            pointer: 44,
        };
        assert_eq!(header.icmp_type, Icmpv6Type::ParameterProblem(problem));
        assert_eq!(rest, &packet[..1232]);
    }

    #[test]
    fn errors_are_told_from_everything_else() {
        use icmpv4::{DestUnreachableHeader as D, ParameterProblemHeader, TimeExceededCode};
        let read = |kind: Icmpv4Type| {
            let message = [
                &Icmpv4Header::with_checksum(kind, b"quoted").to_bytes()[..],
                b"quoted",
            ]
            .concat();
            Error::parse(&message).map(|error| error.kind)
        };
        for (code, unreachable) in [(0, D::Network), (1, D::Host), (13, D::FilterProhibited)] {
            let kind = Icmpv4Type::DestinationUnreachable(unreachable);
            assert_eq!(read(kind), Some(Kind::Unreachable(code)));
        }
        let exceeded = Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit);
        assert_eq!(read(exceeded), Some(Kind::TimeExceeded));
        let problem = Icmpv4Type::ParameterProblem(ParameterProblemHeader::BadLength);
        assert_eq!(read(problem), Some(Kind::ParameterProblem));
        let echo = etherparse::IcmpEchoHeader { id: 1, seq: 1 };
        assert_eq!(read(Icmpv4Type::EchoRequest(echo)), None);

        use icmpv6::{DestUnreachableCode, ParameterProblemCode, ParameterProblemHeader as P};
        let read = |kind: Icmpv6Type| {
            let message = [&Icmpv6Header::new(kind).to_bytes()[..], b"quoted"].concat();
            Error::parse_v6(&message).map(|error| error.kind)
        };
        let address = DestUnreachableCode::Address;
        let unreachable = Icmpv6Type::DestinationUnreachable(address);
        assert_eq!(read(unreachable), Some(Kind::Unreachable(3)));
        let exceeded = Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded);
        assert_eq!(read(exceeded), Some(Kind::TimeExceeded));
        let problem = Icmpv6Type::ParameterProblem(P {
            code: ParameterProblemCode::ErroneousHeaderField,
            pointer: 0,
        });
        assert_eq!(read(problem), Some(Kind::ParameterProblem));
        assert_eq!(read(Icmpv6Type::EchoRequest(echo)), None);
    }

    #[test]
    fn a_broken_message_is_none() {
        let message = fragmentation_needed(&v4([10, 0, 0, 1], [10, 0, 0, 2]), 1376);
        for at in [3, 6, 7, 8, 555] {
            let mut broken = message.clone();
            broken[at] ^= 1;
            assert_eq!(Error::parse(&broken), None, "{at}");
        }
        assert_eq!(Error::parse(&message[..7]), None);
        assert_eq!(Error::parse_v6(&[2, 0, 0, 0, 0, 0, 5]), None);
    }

    #[test]
    fn mtu_5_nobody_is_told_but_the_one_sender_of_a_packet_that_is_no_error() {
        let (a, b) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        assert_eq!(answerable(&v4(a, b)), Some(IpAddr::from(a)));
        for source in [
            [0, 0, 0, 0],
            [127, 0, 0, 1],
            [224, 0, 0, 5],
            [240, 0, 0, 1],
            [255; 4],
        ] {
            assert_eq!(answerable(&v4(source, b)), None, "{source:?}");
        }
        for destination in [[224, 0, 0, 5], [239, 1, 1, 1], [255; 4]] {
            assert_eq!(answerable(&v4(a, destination)), None, "{destination:?}");
        }
        let fragment = |offset, more| {
            let mut bytes = v4(a, b);
            let mut ip = Ipv4Header::from_slice(&bytes).unwrap().0;
            ip.more_fragments = more;
            ip.fragment_offset = IpFragOffset::try_new(offset).unwrap();
            bytes[..20].copy_from_slice(&ip.to_bytes());
            answerable(&bytes)
        };
        assert_eq!(fragment(0, true), Some(IpAddr::from(a)));
        assert_eq!(fragment(1, true), None);
        assert_eq!(fragment(185, false), None);
        for kind in 0..=255 {
            let ip = Ipv4Header::new(8, 9, IpNumber::ICMP, a, b).unwrap();
            let bytes = [&ip.to_bytes()[..], &[kind, 0, 0, 0, 0, 0, 0, 0]].concat();
            let is_error = matches!(kind, 3 | 4 | 5 | 11 | 12 | 19..);
            assert_eq!(answerable(&bytes).is_none(), is_error, "type {kind}");
        }
    }

    #[test]
    fn mtu_5_over_ipv6() {
        let (a, b) = ("fd00::1", "fd00::2");
        assert_eq!(answerable(&v6(a, b)), Some(a.parse().unwrap()));
        assert!(answerable(&v6("fe80::1", b)).is_some());
        for source in ["::", "::1", "ff02::1", "::ffff:10.0.0.1"] {
            assert_eq!(answerable(&v6(source, b)), None, "{source}");
        }
        assert_eq!(answerable(&v6(a, "ff0e::1")), None);
        let with = |next: u8, rest: &[u8]| {
            let ip = Ipv6Header {
                payload_length: rest.len() as u16,
                next_header: IpNumber(next),
                source: a.parse::<Ipv6Addr>().unwrap().octets(),
                destination: b.parse::<Ipv6Addr>().unwrap().octets(),
                ..Ipv6Header::default()
            };
            answerable(&[&ip.to_bytes()[..], rest].concat()).is_some()
        };
        assert!(with(44, &[17, 0, 0, 1, 0, 0, 0, 9, 1, 2]));
        assert!(!with(44, &[17, 0, 0, 9, 0, 0, 0, 9, 1, 2]));
        for kind in 0..=255 {
            let told = kind >= 128 && kind != 137;
            assert_eq!(with(58, &[kind, 0, 0, 0]), told, "type {kind}");
            let first_fragment = [58, 0, 0, 1, 0, 0, 0, 9, kind, 0];
            assert_eq!(with(44, &first_fragment), told, "type {kind}");
            let behind_options = [58, 0, 1, 4, 0, 0, 0, 0, kind, 0];
            assert_eq!(with(60, &behind_options), told, "type {kind}");
        }
        assert!(!with(58, &[]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), first in 0x40u8..0x70) {
            let _ = (Error::parse(&bytes), Error::parse_v6(&bytes));
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let _ = answerable(&bytes);
            let _ = (fragmentation_needed(&bytes, 1), packet_too_big(&bytes, 1));
        }
    }
}
