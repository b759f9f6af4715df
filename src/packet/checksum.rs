//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! The one's complement sum does not care about byte order: words are added as they lie in memory, wide, and
//! only the folded result is brought into network order.

/// A one's complement sum in the making.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checksum(u64);

impl Checksum {
    /// The empty sum.
    #[inline]
    pub fn new() -> Self {
        Self(0)
    }

    /// The sum over the pseudo-header of a transport packet of `len` bytes (RFC 768, RFC 8200 section 8.1). `addresses` are
    /// source and destination as they stand in the IP header.
    #[inline]
    pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> Self {
        Self::new()
            .add_bytes(addresses)
            .add_u16(u16::from(protocol))
            .add_u32(len as u32)
    }

    /// Adds bytes that begin at an even offset of the covered data. An odd last byte counts as followed by zero, so
    /// only the last piece may have an odd length.
    #[inline]
    pub fn add_bytes(mut self, bytes: &[u8]) -> Self {
        // Four bytes at a time into 64 bits: 2^32 additions fit, far more than a packet has.
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let word = u64::from_ne_bytes([
                word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
            ]);
            self.0 += (word & 0xffff_ffff) + (word >> 32);
        }
        let mut halves = words.remainder().chunks_exact(2);
        for half in &mut halves {
            self.0 += u64::from(u16::from_ne_bytes([half[0], half[1]]));
        }
        if let [last] = halves.remainder() {
            self.0 += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        self
    }

    /// Adds a 16-bit value, given in host order.
    #[inline]
    pub fn add_u16(self, value: u16) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// Adds a 32-bit value, given in host order.
    #[inline]
    pub fn add_u32(self, value: u32) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// The folded sum, not complemented, in host order.
    #[inline]
    pub fn fold(self) -> u16 {
        let mut sum = self.0;
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum to write into a header whose checksum field was zero, in host order.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// Whether data that contains its own checksum is intact.
    #[inline]
    pub fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

/// The checksum after one 16-bit word of the covered data changed (RFC 1624, equation 3). Host order.
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The textbook loop of RFC 1071 section 4.1.
    fn textbook(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Checksum::new().add_bytes(&bytes).fold(), 0xddf2);
    }

    #[test]
    fn rfc_1624_example() {
        // RFC 1624 section 4: the field 0x5555 becomes 0x3285 under checksum 0xdd2f; the result is 0x0000.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #[test]
        fn agrees_with_the_textbook(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Checksum::new().add_bytes(&bytes).finish(), textbook(&bytes));
        }

        #[test]
        fn pieces_at_even_offsets_add_up(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..100) {
            let cut = (cut * 2).min(bytes.len() & !1);
            let whole = Checksum::new().add_bytes(&bytes).fold();
            let pieces = Checksum::new().add_bytes(&bytes[..cut]).add_bytes(&bytes[cut..]).fold();
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn an_update_equals_a_new_sum(mut bytes in proptest::collection::vec(any::<u8>(), 20), new: u16) {
            bytes[10] = 0;
            bytes[11] = 0;
            let before = Checksum::new().add_bytes(&bytes).finish();
            let old = u16::from_be_bytes([bytes[8], bytes[9]]);
            bytes[8..10].copy_from_slice(&new.to_be_bytes());
            let after = Checksum::new().add_bytes(&bytes).finish();
            let updated = update(before, old, new);
            // 0x0000 and 0xffff are the same number in one's complement.
            prop_assert!(updated == after || (updated ^ after) == 0xffff && (after == 0 || updated == 0));
        }
    }
}
