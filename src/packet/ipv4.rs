//! IPv4 headers (RFC 791).

use std::net::Ipv4Addr;

use super::{Checksum, ParseError, checksum};

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// A packet whose header length and total length are consistent with the bytes there are.
#[derive(Debug, Clone, Copy)]
pub struct Ipv4<'a> {
    fixed: &'a [u8; HEADER_LEN],
    packet: &'a [u8],
    header_len: usize,
}

impl<'a> Ipv4<'a> {
    /// Checks version, header length and total length against `bytes`, which may be longer than the packet
    /// (Ethernet padding). The header checksum is not checked: see [`has_valid_checksum`](Self::has_valid_checksum).
    #[inline(always)]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let fixed = bytes
            .first_chunk::<HEADER_LEN>()
            .ok_or(ParseError::Truncated)?;
        if fixed[0] >> 4 != 4 {
            return Err(ParseError::Version);
        }
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header_len < HEADER_LEN || header_len > bytes.len() {
            return Err(ParseError::HeaderLength);
        }
        if total_len < header_len || total_len > bytes.len() {
            return Err(ParseError::TotalLength);
        }
        Ok(Self {
            fixed,
            packet: &bytes[..total_len],
            header_len,
        })
    }

    #[inline]
    fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.fixed[at], self.fixed[at + 1]])
    }

    /// Header length in bytes, options included.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    #[inline]
    pub fn has_options(&self) -> bool {
        self.header_len > HEADER_LEN
    }

    /// Header and payload, in bytes.
    #[inline]
    pub fn total_len(&self) -> usize {
        self.packet.len()
    }

    #[inline]
    pub fn tos(&self) -> u8 {
        self.fixed[1]
    }

    #[inline]
    pub fn identification(&self) -> u16 {
        self.u16_at(4)
    }

    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.u16_at(6) & DONT_FRAGMENT != 0
    }

    /// Part of a larger packet: first, middle or last.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.u16_at(6) & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    #[inline]
    pub fn ttl(&self) -> u8 {
        self.fixed[8]
    }

    #[inline]
    pub fn protocol(&self) -> u8 {
        self.fixed[9]
    }

    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        let h = self.fixed;
        Ipv4Addr::new(h[12], h[13], h[14], h[15])
    }

    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        let h = self.fixed;
        Ipv4Addr::new(h[16], h[17], h[18], h[19])
    }

    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.packet[self.header_len..]
    }

    /// Whether the header checksum is right (options included).
    #[inline(always)]
    pub fn has_valid_checksum(&self) -> bool {
        if !self.has_options() {
            return is_valid(self.fixed);
        }
        Checksum::new()
            .add_bytes(&self.packet[..self.header_len])
            .is_valid()
    }
}

/// Whether the checksum of a header without options is right.
#[inline(always)]
pub fn is_valid(header: &[u8; HEADER_LEN]) -> bool {
    let word = |at: usize| {
        u64::from(u32::from_ne_bytes([
            header[at],
            header[at + 1],
            header[at + 2],
            header[at + 3],
        ]))
    };
    // The sum of a header is not zero, so it is 0xffff in one's complement where 0xffff divides it.
    (word(0) + word(4) + word(8) + word(12) + word(16)) % 0xffff == 0
}

/// The fields of a header without options, as they are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Header {
    pub tos: u8,
    /// Header and payload, in bytes.
    pub total_len: u16,
    pub identification: u16,
    pub dont_fragment: bool,
    pub ttl: u8,
    pub protocol: u8,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
}

impl Ipv4Header {
    /// The checksum, summed up from the fields: to read back in wide words what was just written in narrow ones
    /// would stall the processor.
    #[inline(always)]
    fn checksum(&self, flags: u16) -> u16 {
        Checksum::new()
            .add_u16(u16::from_be_bytes([0x45, self.tos]))
            .add_u16(self.total_len)
            .add_u16(self.identification)
            .add_u16(flags)
            .add_u16(u16::from_be_bytes([self.ttl, self.protocol]))
            .add_u32(self.source.to_bits())
            .add_u32(self.destination.to_bits())
            .finish()
    }

    /// Writes the header, checksum included.
    #[inline(always)]
    pub fn emit(&self, out: &mut [u8; HEADER_LEN]) {
        let flags = if self.dont_fragment { DONT_FRAGMENT } else { 0 };
        out[0] = 0x45;
        out[1] = self.tos;
        out[2..4].copy_from_slice(&self.total_len.to_be_bytes());
        out[4..6].copy_from_slice(&self.identification.to_be_bytes());
        out[6..8].copy_from_slice(&flags.to_be_bytes());
        out[8] = self.ttl;
        out[9] = self.protocol;
        out[10..12].copy_from_slice(&self.checksum(flags).to_be_bytes());
        out[12..16].copy_from_slice(&self.source.octets());
        out[16..20].copy_from_slice(&self.destination.octets());
    }
}

/// Replaces the header's 16-bit word at even offset `at` and mends the checksum (RFC 1624).
#[inline]
fn patch(header: &mut [u8; HEADER_LEN], at: usize, new: [u8; 2]) {
    let old = u16::from_be_bytes([header[at], header[at + 1]]);
    let sum = u16::from_be_bytes([header[10], header[11]]);
    header[at] = new[0];
    header[at + 1] = new[1];
    let sum = checksum::update(sum, old, u16::from_be_bytes(new));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Takes one off the TTL of the packet that `bytes` begin with, and mends the checksum. False (and unchanged) when the
/// TTL is zero or there is no header.
#[inline]
pub fn decrement_ttl(bytes: &mut [u8]) -> bool {
    let Some(header) = bytes.first_chunk_mut::<HEADER_LEN>() else {
        return false;
    };
    let Some(ttl) = header[8].checked_sub(1) else {
        return false;
    };
    header[8] = ttl;
    // RFC 1624, equation 3, where the new word is 0x0100 less than the old one: ~m + m' is 0xfeff.
    let sum = u32::from(!u16::from_be_bytes([header[10], header[11]])) + 0xfeff;
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Sets the TOS byte of the packet that `bytes` begin with, and mends the checksum.
#[inline]
pub fn set_tos(bytes: &mut [u8], tos: u8) {
    if let Some(header) = bytes.first_chunk_mut::<HEADER_LEN>() {
        let first = header[0];
        patch(header, 0, [first, tos]);
    }
}

/// Lets the packet that `bytes` begin with be cut on its way, and mends the checksum.
pub fn clear_dont_fragment(bytes: &mut [u8]) {
    if let Some(header) = bytes.first_chunk_mut::<HEADER_LEN>() {
        let flags = u16::from_be_bytes([header[6], header[7]]) & !DONT_FRAGMENT;
        patch(header, 6, flags.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = Ipv4Header> {
        (
            any::<(u8, u16, bool, u8, u8)>(),
            20u16..2000,
            any::<(u32, u32)>(),
        )
            .prop_map(
                |((tos, id, df, ttl, protocol), total_len, (s, d))| Ipv4Header {
                    tos,
                    total_len,
                    identification: id,
                    dont_fragment: df,
                    ttl,
                    protocol,
                    source: s.into(),
                    destination: d.into(),
                },
            )
    }

    fn packet(header: &Ipv4Header) -> Vec<u8> {
        let mut bytes = vec![0xaa; usize::from(header.total_len)];
        header.emit(bytes.first_chunk_mut().unwrap());
        bytes
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(h in header()) {
            let bytes = packet(&h);
            let ip = Ipv4::parse(&bytes).unwrap();
            prop_assert!(ip.has_valid_checksum() && !ip.is_fragment() && !ip.has_options());
            let read = Ipv4Header {
                tos: ip.tos(), total_len: ip.total_len() as u16, identification: ip.identification(),
                dont_fragment: ip.dont_fragment(), ttl: ip.ttl(), protocol: ip.protocol(),
                source: ip.source(), destination: ip.destination(),
            };
            prop_assert_eq!(read, h);
        }

        #[test]
        fn etherparse_reads_the_same(h in header()) {
            let bytes = packet(&h);
            let (their, _) = etherparse::Ipv4Header::from_slice(&bytes).unwrap();
            prop_assert_eq!(their.time_to_live, h.ttl);
            prop_assert_eq!(their.dont_fragment, h.dont_fragment);
            prop_assert_eq!(their.identification, h.identification);
            prop_assert_eq!(their.source, h.source.octets());
            prop_assert_eq!(their.destination, h.destination.octets());
            prop_assert_eq!(their.header_checksum, their.calc_header_checksum());
        }

        #[test]
        fn patches_keep_the_checksum(h in header(), tos: u8) {
            let mut bytes = packet(&h);
            set_tos(&mut bytes, tos);
            let decremented = decrement_ttl(&mut bytes);
            prop_assert_eq!(decremented, h.ttl > 0);
            let ip = Ipv4::parse(&bytes).unwrap();
            prop_assert!(ip.has_valid_checksum());
            prop_assert_eq!((ip.tos(), ip.ttl()), (tos, h.ttl.saturating_sub(1)));
        }

        #[test]
        fn parsing_never_reaches_beyond_the_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(ip) = Ipv4::parse(&bytes) {
                prop_assert!(ip.header_len() + ip.payload().len() <= bytes.len());
            }
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let good = packet(&Ipv4Header {
            tos: 0,
            total_len: 40,
            identification: 1,
            dont_fragment: false,
            ttl: 1,
            protocol: 17,
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
        });
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Ipv4::parse(&bytes).err()
        };
        assert_eq!(with(0, 0x44), Some(ParseError::HeaderLength));
        assert_eq!(with(0, 0x4b), Some(ParseError::HeaderLength));
        assert_eq!(with(0, 0x65), Some(ParseError::Version));
        assert_eq!(with(3, 41), Some(ParseError::TotalLength));
        assert_eq!(with(3, 19), Some(ParseError::TotalLength));
        assert_eq!(Ipv4::parse(&good[..19]).err(), Some(ParseError::Truncated));
    }
}
