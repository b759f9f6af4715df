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

    #[test]
    fn lengths_that_lie_are_refused() {
        let bytes = packet(0, 64, b"payload");
        assert_eq!(Ipv6::parse(&bytes[..39]).err(), Some(ParseError::Truncated));
        assert_eq!(
            Ipv6::parse(&bytes[..46]).err(),
            Some(ParseError::TotalLength)
        );
    }
}
