//! IPv6 headers (RFC 8200).

use std::net::Ipv6Addr;

use super::{ParseError, protocol};

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;

/// A packet whose payload length is consistent with the bytes there are.
#[derive(Debug, Clone, Copy)]
pub struct Ipv6<'a> {
    fixed: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Ipv6<'a> {
    /// Checks version and payload length against `bytes`, which may be longer than the packet.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (fixed, rest) = bytes
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(ParseError::Truncated)?;
        if fixed[0] >> 4 != 6 {
            return Err(ParseError::Version);
        }
        let payload_len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let payload = rest.get(..payload_len).ok_or(ParseError::TotalLength)?;
        Ok(Self { fixed, payload })
    }

    /// Header and payload, in bytes.
    #[inline]
    pub fn total_len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }

    #[inline]
    pub fn traffic_class(&self) -> u8 {
        self.fixed[0] << 4 | self.fixed[1] >> 4
    }

    #[inline]
    pub fn flow_label(&self) -> u32 {
        let h = self.fixed;
        u32::from_be_bytes([0, h[1] & 0x0f, h[2], h[3]])
    }

    #[inline]
    pub fn next_header(&self) -> u8 {
        self.fixed[6]
    }

    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.fixed[7]
    }

    #[inline]
    pub fn source(&self) -> Ipv6Addr {
        address(self.fixed, 8)
    }

    #[inline]
    pub fn destination(&self) -> Ipv6Addr {
        address(self.fixed, 24)
    }

    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Whether an extension header follows that a router or the receiver of fragments has to look at.
    #[inline]
    pub fn has_extension(&self) -> bool {
        matches!(
            self.next_header(),
            protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::FRAGMENT
                | protocol::DESTINATION_OPTIONS
        )
    }
}

/// What stands behind the extension headers of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpperLayer {
    /// The protocol's number.
    pub protocol: u8,
    /// Where it begins, in bytes from the start of the packet.
    pub at: usize,
    /// The packet is a part of a larger one.
    pub is_fragment: bool,
}

impl Ipv6<'_> {
    /// Goes past hop-by-hop options, destination options and routing headers (RFC 8200 section 4), a few at the most.
    #[inline]
    pub fn upper_layer(&self) -> Result<UpperLayer, ParseError> {
        /// More than these have no use in one packet.
        const CHAIN: usize = 8;
        let mut protocol = self.next_header();
        let mut at = 0;
        for _ in 0..CHAIN {
            let is_fragment = protocol == protocol::FRAGMENT;
            if !matches!(
                protocol,
                protocol::HOP_BY_HOP
                    | protocol::ROUTING
                    | protocol::DESTINATION_OPTIONS
                    | protocol::FRAGMENT
            ) || is_fragment
            {
                return Ok(UpperLayer {
                    protocol,
                    at: HEADER_LEN + at,
                    is_fragment,
                });
            }
            let header = self.payload.get(at..at + 2).ok_or(ParseError::Truncated)?;
            protocol = header[0];
            at += (usize::from(header[1]) + 1) * 8;
            if at > self.payload.len() {
                return Err(ParseError::HeaderLength);
            }
        }
        Err(ParseError::HeaderLength)
    }
}

/// The tunnel encapsulation limit option: type 4 with one byte (RFC 2473 section 4.1.1).
pub const LIMIT_OPTION: u8 = 4;

/// A tunnel encapsulation limit that a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncapsulationLimit {
    /// How often the packet may be encapsulated again.
    pub value: u8,
    /// Where that value stands, in bytes from the start of the packet.
    pub at: usize,
}

impl Ipv6<'_> {
    /// The first tunnel encapsulation limit among the packet's destination options (RFC 2473 section 4.1.1). What other
    /// extension headers there are, authentication and a first fragment's among them, is gone past, as the kernel's
    /// `ip6_tnl_parse_tlv_enc_lim` does.
    #[inline]
    pub fn encapsulation_limit(&self) -> Option<EncapsulationLimit> {
        // Nearly every packet has no such header.
        if self.has_extension() || self.next_header() == protocol::AUTHENTICATION {
            return self.find_limit();
        }
        None
    }

    fn find_limit(&self) -> Option<EncapsulationLimit> {
        let (mut kind, mut at) = (self.next_header(), 0);
        loop {
            let [next, length, high, low, ..] = *self.payload.get(at..at + 8)? else {
                return None;
            };
            let eights = usize::from(length) + 1;
            let len = match kind {
                protocol::FRAGMENT if u16::from_be_bytes([high, low]) & !7 != 0 => return None,
                protocol::FRAGMENT => 8,
                // In units of four bytes, without the first two (RFC 4302 section 2.2).
                protocol::AUTHENTICATION => (eights + 1) * 4,
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                    eights * 8
                }
                _ => return None,
            };
            let header = self.payload.get(at..at + len)?;
            if kind == protocol::DESTINATION_OPTIONS {
                if let Some((value, within)) = limit_among(header) {
                    return Some(EncapsulationLimit {
                        value,
                        at: HEADER_LEN + at + within,
                    });
                }
            }
            (kind, at) = (next, at + len);
        }
    }
}

/// The limit in a destination options header, and where its value stands there.
fn limit_among(header: &[u8]) -> Option<(u8, usize)> {
    const PAD1: u8 = 0;
    let mut at = 2;
    while let [kind, length, value, ..] = *header.get(at..)? {
        match (kind, length) {
            (LIMIT_OPTION, 1) => return Some((value, at + 2)),
            (PAD1, _) => at += 1,
            _ => at += 2 + usize::from(length),
        }
    }
    None
}

/// The fields of a header as they are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Header {
    pub traffic_class: u8,
    /// 20 bits.
    pub flow_label: u32,
    /// What follows the header, in bytes.
    pub payload_len: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
}

impl Ipv6Header {
    #[inline]
    pub fn emit(&self, out: &mut [u8; HEADER_LEN]) {
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        out[..4].copy_from_slice(&first.to_be_bytes());
        out[4..6].copy_from_slice(&self.payload_len.to_be_bytes());
        out[6] = self.next_header;
        out[7] = self.hop_limit;
        out[8..24].copy_from_slice(&self.source.octets());
        out[24..40].copy_from_slice(&self.destination.octets());
    }
}

#[inline]
fn address(header: &[u8; HEADER_LEN], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    octets.into()
}

/// Takes one off the hop limit. False (and unchanged) when it is zero or there is no header.
#[inline]
pub fn decrement_hop_limit(bytes: &mut [u8]) -> bool {
    let Some(header) = bytes.first_chunk_mut::<HEADER_LEN>() else {
        return false;
    };
    let Some(hop_limit) = header[7].checked_sub(1) else {
        return false;
    };
    header[7] = hop_limit;
    true
}

/// Sets the traffic class; flow label and version stay.
#[inline]
pub fn set_traffic_class(bytes: &mut [u8], class: u8) {
    if let Some(header) = bytes.first_chunk_mut::<HEADER_LEN>() {
        header[0] = header[0] & 0xf0 | class >> 4;
        header[1] = header[1] & 0x0f | class << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(class: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        etherparse::Ipv6Header {
            traffic_class: class,
            flow_label: etherparse::Ipv6FlowLabel::try_new(0xabcde).unwrap(),
            payload_length: payload.len() as u16,
            next_header: etherparse::ip_number::UDP,
            hop_limit,
            source: [1; 16],
            destination: [2; 16],
        }
        .write(&mut bytes)
        .unwrap();
        bytes.extend_from_slice(payload);
        bytes
    }

    proptest! {
        #[test]
        fn fields_are_those_that_etherparse_wrote(class: u8, hop_limit: u8, new: u8) {
            let mut bytes = packet(class, hop_limit, b"payload");
            bytes.extend_from_slice(b"padding");
            let ip = Ipv6::parse(&bytes).unwrap();
            prop_assert_eq!((ip.traffic_class(), ip.hop_limit(), ip.next_header()), (class, hop_limit, 17));
            prop_assert_eq!((ip.payload(), ip.total_len()), (&b"payload"[..], 47));
            set_traffic_class(&mut bytes, new);
            prop_assert_eq!(decrement_hop_limit(&mut bytes), hop_limit > 0);
            let (their, _) = etherparse::Ipv6Header::from_slice(&bytes).unwrap();
            prop_assert_eq!((their.traffic_class, their.hop_limit), (new, hop_limit.saturating_sub(1)));
            prop_assert_eq!(their.flow_label.value(), 0xabcde);
        }
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_what_etherparse_reads(class: u8, label in 0u32..1 << 20, hops: u8, s: u128, d: u128) {
            let mut bytes = [0xaa; 40];
            Ipv6Header {
                traffic_class: class, flow_label: label, payload_len: 0, next_header: 47, hop_limit: hops,
                source: s.into(), destination: d.into(),
            }.emit(&mut bytes);
            let (their, _) = etherparse::Ipv6Header::from_slice(&bytes).unwrap();
            prop_assert_eq!((their.traffic_class, their.flow_label.value()), (class, label));
            prop_assert_eq!((their.hop_limit, their.next_header.0, their.payload_length), (hops, 47, 0));
            prop_assert_eq!((u128::from_be_bytes(their.source), u128::from_be_bytes(their.destination)), (s, d));
            let ip = Ipv6::parse(&bytes).unwrap();
            prop_assert_eq!(ip.upper_layer(), Ok(UpperLayer { protocol: 47, at: 40, is_fragment: false }));
            prop_assert_eq!(ip.flow_label(), label);
        }
    }

    #[test]
    fn extension_headers_are_gone_past() {
        let mut payload = vec![60, 0, 5, 2, 0, 0, 1, 0];
        payload.extend_from_slice(&[47, 1, 4, 1, 4, 1, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend_from_slice(b"gre!");
        let mut bytes = packet(0, 64, &payload);
        bytes[6] = protocol::HOP_BY_HOP;
        let upper = |bytes: &[u8]| Ipv6::parse(bytes).unwrap().upper_layer();
        let expected = UpperLayer {
            protocol: 47,
            at: 64,
            is_fragment: false,
        };
        assert_eq!(upper(&bytes), Ok(expected));
        bytes[48] = protocol::FRAGMENT;
        assert!(upper(&bytes).unwrap().is_fragment);
        bytes[48] = 60;
        bytes[49] = 200;
        assert_eq!(upper(&bytes), Err(ParseError::HeaderLength));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let bytes = packet(0, 64, b"payload");
        assert_eq!(Ipv6::parse(&bytes[..39]).err(), Some(ParseError::Truncated));
        assert_eq!(
            Ipv6::parse(&bytes[..46]).err(),
            Some(ParseError::TotalLength)
        );
    }

    /// An IPv6 packet with this chain of headers behind its own.
    fn chain(first: u8, headers: &[&[u8]]) -> Vec<u8> {
        let mut bytes = packet(0, 64, &headers.concat());
        bytes[6] = first;
        bytes
    }

    #[test]
    fn v6_3_an_encapsulation_limit_is_found_wherever_it_stands() {
        let limit = |next: u8, value: u8| [next, 0, 4, 1, value, 1, 1, 0];
        let padding = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let found = |bytes: &[u8]| {
            let limit = Ipv6::parse(bytes).unwrap().encapsulation_limit();
            limit.map(|limit| {
                assert_eq!(bytes[limit.at], limit.value);
                (limit.value, limit.at)
            })
        };
        let udp: &[u8] = &[0; 8];
        let first_fragment = [60, 0, 0, 1, 0, 0, 0, 9];
        let later_fragment = [60, 0, 0, 8, 0, 0, 0, 9];
        let authentication = [60, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
        for (what, bytes, expected) in [
            ("alone", chain(60, &[&limit(17, 7), udp]), Some((7, 44))),
            ("zero", chain(60, &[&limit(17, 0), udp]), Some((0, 44))),
            (
                "behind hop-by-hop options",
                chain(0, &[&padding(60), &limit(17, 3), udp]),
                Some((3, 52)),
            ),
            (
                "behind a routing header",
                chain(43, &[&padding(60), &limit(17, 3), udp]),
                Some((3, 52)),
            ),
            (
                "behind authentication",
                chain(51, &[&authentication, &limit(17, 3), udp]),
                Some((3, 56)),
            ),
            (
                "in the first fragment",
                chain(44, &[&first_fragment, &limit(17, 3), udp]),
                Some((3, 52)),
            ),
            (
                "in the second options",
                chain(60, &[&padding(60), &limit(17, 3), udp]),
                Some((3, 52)),
            ),
            (
                "behind padding and another option",
                chain(60, &[&[17, 0, 0, 4, 1, 9, 1, 0], udp]),
                Some((9, 45)),
            ),
            (
                "in a long header",
                chain(
                    60,
                    &[&[17, 1, 1, 6, 0, 0, 0, 0, 0, 0, 4, 1, 5, 0, 0, 0], udp],
                ),
                Some((5, 52)),
            ),
            (
                "two: the first one counts",
                chain(60, &[&limit(60, 6), &limit(17, 2), udp]),
                Some((6, 44)),
            ),
            (
                "of two bytes",
                chain(60, &[&[17, 0, 4, 2, 7, 7, 1, 0], udp]),
                None,
            ),
            (
                "cut off by the header's end",
                chain(60, &[&[17, 0, 1, 2, 0, 0, 4, 1], &[7; 8]]),
                None,
            ),
            (
                "an option that leaves the header",
                chain(60, &[&[17, 0, 1, 200, 4, 1, 7, 0], udp]),
                None,
            ),
            (
                "in a later fragment",
                chain(44, &[&later_fragment, &limit(17, 3), udp]),
                None,
            ),
            (
                "among hop-by-hop options",
                chain(0, &[&limit(17, 3), udp]),
                None,
            ),
            (
                "behind the transport header",
                chain(17, &[udp, &limit(17, 3)]),
                None,
            ),
            ("no options", chain(17, &[udp]), None),
            (
                "a header that is cut",
                chain(60, &[&limit(17, 3)[..7]]),
                None,
            ),
            (
                "a length beyond the packet",
                chain(60, &[&[17, 9, 1, 4, 0, 0, 0, 0]]),
                None,
            ),
        ] {
            assert_eq!(found(&bytes), expected, "{what}");
        }
    }

    proptest! {
        #[test]
        fn any_chain_is_survived(first: u8, bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let bytes = chain(first, &[&bytes]);
            Ipv6::parse(&bytes).unwrap().encapsulation_limit();
        }
    }
}
