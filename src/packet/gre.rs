//! GRE headers (RFC 2784, with key and sequence number of RFC 2890).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |C| |K|S| Reserved0       | Ver |         Protocol Type         |
//! |      Checksum (if C)          |       Reserved1 (if C)        |
//! |                         Key (if K)                            |
//! |                    Sequence Number (if S)                     |
//! ```

use super::{Checksum, EtherType, ParseError};

const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
/// RFC 2784 section 2.3: a receiver must discard packets with any of bits 1, 4 and 5 set (RFC 1701's routing,
/// strict source route and the first recursion bit). Bits 6 to 12 are ignored.
const MUST_BE_ZERO: u16 = 0x4c00;
const VERSION: u16 = 0x0007;

/// The longest header: flags, checksum, key and sequence number.
pub const MAX_HEADER_LEN: usize = 16;

/// A GRE key (RFC 2890 section 2.1): separates flows, or tenants, between the same two addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GreKey(pub u32);

impl GreKey {
    /// A virtual subnet identifier of 24 bits, and the flow within it (RFC 7637 section 3.2).
    #[inline]
    pub fn nvgre(vsid: GreKey, flow: u8) -> GreKey {
        GreKey(vsid.0 << 8 | u32::from(flow))
    }

    /// The virtual subnet, whatever the flow.
    #[inline]
    pub fn vsid(self) -> GreKey {
        GreKey(self.0 >> 8)
    }
}

/// Header length in bytes with these options.
#[inline]
pub const fn header_len(key: bool, checksum: bool, sequence: bool) -> usize {
    4 + 4 * (key as usize + checksum as usize + sequence as usize)
}

/// A packet whose GRE header is complete and understood.
#[derive(Debug, Clone, Copy)]
pub struct Gre<'a> {
    bytes: &'a [u8],
    flags: u16,
    protocol: EtherType,
}

impl<'a> Gre<'a> {
    /// Checks version, flags and length. `bytes` end where the outer packet ends.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let [f0, f1, p0, p1] = *bytes.first_chunk::<4>().ok_or(ParseError::Truncated)?;
        let flags = u16::from_be_bytes([f0, f1]);
        if flags & VERSION != 0 {
            return Err(ParseError::Version);
        }
        if flags & MUST_BE_ZERO != 0 {
            return Err(ParseError::GreFlags);
        }
        let gre = Self {
            bytes,
            flags,
            protocol: EtherType(u16::from_be_bytes([p0, p1])),
        };
        if gre.header_len() > bytes.len() {
            return Err(ParseError::Truncated);
        }
        Ok(gre)
    }

    #[inline]
    pub fn header_len(&self) -> usize {
        header_len(
            self.flags & KEY != 0,
            self.has_checksum(),
            self.flags & SEQUENCE != 0,
        )
    }

    #[inline]
    pub fn protocol(&self) -> EtherType {
        self.protocol
    }

    #[inline]
    pub fn has_checksum(&self) -> bool {
        self.flags & CHECKSUM != 0
    }

    /// Whether the checksum over header and payload is right; true when there is none.
    #[inline]
    pub fn has_valid_checksum(&self) -> bool {
        !self.has_checksum() || Checksum::new().add_bytes(self.bytes).is_valid()
    }

    #[inline]
    fn u32_at(&self, at: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_be_bytes(word)
    }

    #[inline]
    pub fn key(&self) -> Option<GreKey> {
        (self.flags & KEY != 0)
            .then(|| GreKey(self.u32_at(header_len(false, self.has_checksum(), false))))
    }

    #[inline]
    pub fn sequence(&self) -> Option<u32> {
        (self.flags & SEQUENCE != 0).then(|| self.u32_at(self.header_len() - 4))
    }

    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len()..]
    }
}

/// Computes the checksum of a packet that has one, where a sender behind a veth has left it to the device: no more than zero
/// stands there then (`gre_build_header`). True when there was something to do.
#[inline]
pub fn complete_checksum(packet: &mut [u8]) -> bool {
    if packet.get(4..6) != Some(&[0, 0]) {
        return false;
    }
    let checksum = Checksum::new().add_bytes(packet).finish();
    packet[4..6].copy_from_slice(&checksum.to_be_bytes());
    checksum != 0
}

/// The fields of a header as they are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GreHeader {
    pub protocol: EtherType,
    pub checksum: bool,
    pub key: Option<GreKey>,
    pub sequence: Option<u32>,
}

impl GreHeader {
    #[inline]
    pub fn len(&self) -> usize {
        header_len(self.key.is_some(), self.checksum, self.sequence.is_some())
    }

    /// Always false: even the shortest header has four bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the header into the front of `packet`, whose rest is the payload that the checksum covers. False, and
    /// nothing written, when there is no room.
    #[inline]
    pub fn emit(&self, packet: &mut [u8]) -> bool {
        let len = self.len();
        let Some(out) = packet.get_mut(..len) else {
            return false;
        };
        let mut flags = 0;
        let mut at = 4;
        if self.checksum {
            flags |= CHECKSUM;
            out[at..at + 4].fill(0);
            at += 4;
        }
        if let Some(GreKey(key)) = self.key {
            flags |= KEY;
            out[at..at + 4].copy_from_slice(&key.to_be_bytes());
            at += 4;
        }
        if let Some(sequence) = self.sequence {
            flags |= SEQUENCE;
            out[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
        }
        out[..2].copy_from_slice(&flags.to_be_bytes());
        out[2..4].copy_from_slice(&self.protocol.0.to_be_bytes());
        if self.checksum {
            let sum = Checksum::new().add_bytes(packet).finish();
            packet[4..6].copy_from_slice(&sum.to_be_bytes());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = GreHeader> {
        any::<(u16, bool, Option<u32>, Option<u32>)>().prop_map(
            |(protocol, checksum, key, sequence)| GreHeader {
                protocol: EtherType(protocol),
                checksum,
                key: key.map(GreKey),
                sequence,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(h in header(), payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = vec![0x55; h.len()];
            bytes.extend_from_slice(&payload);
            prop_assert!(h.emit(&mut bytes));
            let gre = Gre::parse(&bytes).unwrap();
            prop_assert!(gre.has_valid_checksum());
            prop_assert_eq!(gre.payload(), &payload[..]);
            let read = GreHeader {
                protocol: gre.protocol(), checksum: gre.has_checksum(), key: gre.key(), sequence: gre.sequence(),
            };
            prop_assert_eq!(read, h);
            for len in 0..h.len() {
                prop_assert_eq!(Gre::parse(&bytes[..len]).err(), Some(ParseError::Truncated));
            }
        }

        #[test]
        fn a_flipped_bit_breaks_the_checksum(at in 0usize..20, bit in 0u8..8) {
            let h = GreHeader { protocol: EtherType::IPV4, checksum: true, key: Some(GreKey(42)), sequence: Some(7) };
            let mut bytes = vec![0x5a; 36];
            h.emit(&mut bytes);
            bytes[16 + at] ^= 1 << bit;
            prop_assert!(!Gre::parse(&bytes).unwrap().has_valid_checksum());
        }
    }

    #[test]
    fn flags_and_versions_are_judged_bit_by_bit() {
        // RFC 2784 counts bits from the left.
        for bit in 0..16u16 {
            let mut bytes = [0u8; 16];
            bytes[..2].copy_from_slice(&(0x8000u16 >> bit).to_be_bytes());
            let expected = match bit {
                1 | 4 | 5 => Some(ParseError::GreFlags),
                13..=15 => Some(ParseError::Version),
                _ => None,
            };
            assert_eq!(Gre::parse(&bytes).err(), expected, "bit {bit}");
        }
    }
}
