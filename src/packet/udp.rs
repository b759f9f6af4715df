//! UDP headers (RFC 768; over IPv6 with RFC 8200 section 8.1).

use super::{Checksum, ParseError};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// A datagram whose length is consistent with the bytes there are.
#[derive(Debug, Clone, Copy)]
pub struct Udp<'a> {
    fixed: &'a [u8; HEADER_LEN],
    datagram: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Checks the length against `bytes`, which may go on behind the datagram. A length of zero, a jumbogram's (RFC 2675
    /// section 4), is refused like any other that is too short.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let fixed = bytes
            .first_chunk::<HEADER_LEN>()
            .ok_or(ParseError::Truncated)?;
        let len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let datagram = bytes
            .get(..len)
            .filter(|datagram| datagram.len() >= HEADER_LEN)
            .ok_or(ParseError::TotalLength)?;
        Ok(Self { fixed, datagram })
    }

    #[inline]
    pub fn source_port(&self) -> u16 {
        u16::from_be_bytes([self.fixed[0], self.fixed[1]])
    }

    #[inline]
    pub fn destination_port(&self) -> u16 {
        u16::from_be_bytes([self.fixed[2], self.fixed[3]])
    }

    /// Header and payload, in bytes.
    #[inline]
    pub fn total_len(&self) -> usize {
        self.datagram.len()
    }

    /// Zero means that the sender made none.
    #[inline]
    pub fn has_checksum(&self) -> bool {
        self.fixed[6..8] != [0, 0]
    }

    /// Whether the checksum is right; true when there is none. `addresses` are those of the IP header as they stand there,
    /// source and destination.
    #[inline]
    pub fn has_valid_checksum(&self, addresses: &[u8]) -> bool {
        !self.has_checksum()
            || Checksum::pseudo_header(addresses, super::protocol::UDP, self.datagram.len())
                .add_bytes(self.datagram)
                .is_valid()
    }
}

/// The fields of a header as they are to be written; the length is the datagram's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpHeader {
    pub source_port: u16,
    pub destination_port: u16,
}

impl UdpHeader {
    /// Writes the header into the front of `datagram`, whose rest is the payload. The checksum is computed where
    /// `addresses`, source and destination as they stand in the IP header, are given, and is zero otherwise. False, and
    /// nothing written, when there is no room or it is longer than a datagram can be.
    #[inline]
    pub fn emit(&self, datagram: &mut [u8], addresses: Option<&[u8]>) -> bool {
        let Ok(len) = u16::try_from(datagram.len()) else {
            return false;
        };
        let Some(out) = datagram.first_chunk_mut::<HEADER_LEN>() else {
            return false;
        };
        out[..2].copy_from_slice(&self.source_port.to_be_bytes());
        out[2..4].copy_from_slice(&self.destination_port.to_be_bytes());
        out[4..6].copy_from_slice(&len.to_be_bytes());
        out[6..].fill(0);
        if let Some(addresses) = addresses {
            let sum = Checksum::pseudo_header(addresses, super::protocol::UDP, usize::from(len))
                .add_bytes(datagram)
                .finish();
            datagram[6..8].copy_from_slice(&never_zero(sum).to_be_bytes());
        }
        true
    }
}

/// RFC 768: an all-zero checksum means "none", so one that comes out as zero is sent as its other form.
#[inline]
pub fn never_zero(sum: u16) -> u16 {
    match sum {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    /// A packet built by somebody else's code, and where its UDP header begins.
    fn packet(v6: bool, ports: (u16, u16), payload: &[u8]) -> (Vec<u8>, usize) {
        let (builder, at) = match v6 {
            true => (PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64), 40),
            false => (PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64), 20),
        };
        let mut out = Vec::new();
        let builder = builder.udp(ports.0, ports.1);
        builder.write(&mut out, payload).unwrap();
        (out, at)
    }

    fn addresses(packet: &[u8], at: usize) -> &[u8] {
        match at {
            40 => &packet[8..40],
            _ => &packet[12..20],
        }
    }

    proptest! {
        #[test]
        fn headers_are_read_and_written_as_by_others(
            v6: bool, ports: (u16, u16), payload in proptest::collection::vec(any::<u8>(), 0..80), padding in 0usize..9,
        ) {
            let (mut whole, at) = packet(v6, ports, &payload);
            let datagram = whole[at..].to_vec();
            whole.resize(whole.len() + padding, 0x55);
            let udp = Udp::parse(&whole[at..]).unwrap();
            prop_assert_eq!((udp.source_port(), udp.destination_port()), ports);
            prop_assert_eq!(udp.total_len(), datagram.len());
            prop_assert!(udp.has_checksum() && udp.has_valid_checksum(addresses(&whole, at)));
            let header = UdpHeader { source_port: ports.0, destination_port: ports.1 };
            let mut made = datagram.clone();
            made[..8].fill(0x55);
            prop_assert!(header.emit(&mut made, Some(addresses(&whole, at))));
            prop_assert_eq!(&made, &datagram);
            prop_assert!(header.emit(&mut made, None));
            prop_assert_eq!(&made[6..8], [0, 0]);
            prop_assert_eq!((&made[..6], &made[8..]), (&datagram[..6], &datagram[8..]));
        }

        #[test]
        fn a_flipped_bit_breaks_the_checksum(v6: bool, at in 0usize..24, bit in 0u8..8) {
            let (mut whole, begin) = packet(v6, (5, 4754), &[0x5a; 16]);
            // The length decides what is summed up at all.
            prop_assume!(!(4..6).contains(&at));
            whole[begin + at] ^= 1 << bit;
            let udp = Udp::parse(&whole[begin..]).unwrap();
            prop_assert!(!udp.has_valid_checksum(addresses(&whole, begin)));
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let (whole, at) = packet(false, (1, 2), b"x");
        for (len, expected) in [
            (0, Some(ParseError::TotalLength)),
            (7, Some(ParseError::TotalLength)),
            (8, None),
            (9, None),
            (10, Some(ParseError::TotalLength)),
        ] {
            let mut bytes = whole[at..].to_vec();
            bytes[5] = len;
            assert_eq!(Udp::parse(&bytes).err(), expected, "{len}");
        }
        let cut = Udp::parse(&whole[at..at + 7]);
        assert_eq!(cut.err(), Some(ParseError::Truncated));
    }

    #[test]
    fn a_sum_of_zero_is_sent_as_ones() {
        let mut seen = 0;
        for word in 0..=u16::MAX {
            let mut datagram = [0; 10];
            datagram[8..].copy_from_slice(&word.to_be_bytes());
            let header = UdpHeader {
                source_port: 1,
                destination_port: 2,
            };
            assert!(header.emit(&mut datagram, Some(&[0; 8])));
            let udp = Udp::parse(&datagram).unwrap();
            assert!(udp.has_checksum() && udp.has_valid_checksum(&[0; 8]));
            seen += usize::from(datagram[6..8] == [0xff, 0xff]);
        }
        assert!(seen > 0);
    }
}
