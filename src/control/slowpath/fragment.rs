//! Cuts an outer IPv4 packet into fragments (RFC 791 section 3.2).
//!
//! A raw socket with IP_HDRINCL leaves fragmenting to its user (raw(7)): what does not fit the device is refused
//! with EMSGSIZE.

use crate::packet::{Checksum, ipv4};

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Why a packet cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FragmentError {
    /// The packet carries DF.
    DontFragment,
    /// Not a whole IPv4 packet without options, or one without the identification that its fragments would share
    /// (the kernel would give each of them another).
    Malformed,
    /// The MTU has no room for a header and eight bytes.
    MtuTooSmall,
}

/// The fragments of one packet, in order. Each item is a header and the bytes that follow it.
#[derive(Debug)]
pub struct Fragments<'a> {
    header: [u8; ipv4::HEADER_LEN],
    payload: &'a [u8],
    /// Bytes of the payload already given out: a multiple of eight until the last fragment.
    done: usize,
    /// Bytes of payload per fragment but the last: a multiple of eight.
    step: usize,
}

/// The fragments of `packet` for a path of `mtu` bytes. A packet that fits comes out as one piece, unchanged.
pub fn fragments(packet: &[u8], mtu: usize) -> Result<Fragments<'_>, FragmentError> {
    let (header, payload) = packet
        .split_first_chunk::<{ ipv4::HEADER_LEN }>()
        .ok_or(FragmentError::Malformed)?;
    let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (total, identification, flags) = (field(2), field(4), field(6));
    if header[0] != 0x45
        || usize::from(total) != packet.len()
        || identification == 0
        || payload.is_empty()
        || flags & (MORE_FRAGMENTS | OFFSET) != 0
    {
        return Err(FragmentError::Malformed);
    }
    if flags & DONT_FRAGMENT != 0 {
        return Err(FragmentError::DontFragment);
    }
    let step = mtu.saturating_sub(ipv4::HEADER_LEN) & !7;
    if step == 0 {
        return Err(FragmentError::MtuTooSmall);
    }
    let step = if packet.len() <= mtu {
        payload.len()
    } else {
        step
    };
    Ok(Fragments {
        header: *header,
        payload,
        done: 0,
        step,
    })
}

impl<'a> Iterator for Fragments<'a> {
    type Item = ([u8; ipv4::HEADER_LEN], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self
            .payload
            .get(self.done..)
            .filter(|rest| !rest.is_empty())?;
        let piece = &rest[..rest.len().min(self.step)];
        let more = if piece.len() < rest.len() {
            MORE_FRAGMENTS
        } else {
            0
        };
        // Both fit: the packet's total length is a 16-bit field, and the offset counts eights.
        let total = (ipv4::HEADER_LEN + piece.len()) as u16;
        let offset = (self.done / 8) as u16;
        let mut header = self.header;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[6..8].copy_from_slice(&(more | offset).to_be_bytes());
        header[10..12].fill(0);
        let sum = Checksum::new().add_bytes(&header).finish();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        self.done += piece.len();
        Some((header, piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv4Header, Ipv4HeaderSlice};
    use proptest::prelude::*;

    /// A packet built by somebody else's code.
    fn packet(payload: &[u8], identification: u16, dont_fragment: bool) -> Vec<u8> {
        let (source, destination) = ([192, 0, 2, 1], [192, 0, 2, 2]);
        let len = u16::try_from(payload.len()).unwrap();
        let mut header = Ipv4Header::new(len, 61, IpNumber::GRE, source, destination).unwrap();
        header.identification = identification;
        header.dont_fragment = dont_fragment;
        header.header_checksum = header.calc_header_checksum();
        [&header.to_bytes()[..], payload].concat()
    }

    proptest! {
        #[test]
        fn fragments_fit_and_put_together_are_the_packet(
            payload in proptest::collection::vec(any::<u8>(), 1..6000),
            mtu in 28usize..3000,
            identification in 1u16..,
        ) {
            let whole = packet(&payload, identification, false);
            let original = Ipv4HeaderSlice::from_slice(&whole).unwrap().to_header();
            let pieces: Vec<Vec<u8>> = fragments(&whole, mtu)
                .unwrap()
                .map(|(header, payload)| [&header[..], payload].concat())
                .collect();
            // RFC 791: as few as possible, for all but the last are filled.
            let filled = (mtu - 20) / 8 * 8;
            let expected = if whole.len() <= mtu { 1 } else { payload.len().div_ceil(filled) };
            prop_assert_eq!(pieces.len(), expected);
            let mut together = Vec::new();
            for (n, piece) in pieces.iter().enumerate() {
                prop_assert!(piece.len() <= mtu);
                let header = Ipv4HeaderSlice::from_slice(piece).unwrap().to_header();
                prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                prop_assert_eq!(usize::from(header.total_len), piece.len());
                prop_assert_eq!(usize::from(header.fragment_offset.value()) * 8, together.len());
                prop_assert_eq!(header.more_fragments, n + 1 < pieces.len());
                together.extend_from_slice(&piece[20..]);
                let same = Ipv4Header {
                    total_len: original.total_len,
                    fragment_offset: original.fragment_offset,
                    more_fragments: false,
                    header_checksum: original.header_checksum,
                    ..header
                };
                prop_assert_eq!(same, original.clone());
            }
            prop_assert_eq!(together, payload);
        }
    }

    #[test]
    fn the_largest_packet_can_be_cut() {
        let whole = packet(&vec![7; 65_515], 1, false);
        let pieces: Vec<_> = fragments(&whole, 68).unwrap().collect();
        let last = Ipv4HeaderSlice::from_slice(&pieces[pieces.len() - 1].0)
            .unwrap()
            .to_header();
        assert_eq!(pieces.len(), 65_515usize.div_ceil(48));
        assert_eq!(
            usize::from(last.fragment_offset.value()) * 8,
            65_515 / 48 * 48
        );
    }

    #[test]
    fn what_may_not_be_cut_is_refused() {
        let payload = [1; 100];
        let refused = |packet: &[u8], mtu| fragments(packet, mtu).err();
        assert_eq!(
            refused(&packet(&payload, 1, true), 68),
            Some(FragmentError::DontFragment)
        );
        assert_eq!(
            refused(&packet(&payload, 0, false), 68),
            Some(FragmentError::Malformed)
        );
        assert_eq!(
            refused(&packet(&payload, 1, false), 27),
            Some(FragmentError::MtuTooSmall)
        );
        assert_eq!(
            refused(&packet(&[], 1, false), 68),
            Some(FragmentError::Malformed)
        );
        let whole = packet(&payload, 1, false);
        assert_eq!(refused(&whole[..119], 68), Some(FragmentError::Malformed));
        let mut fragment = whole.clone();
        fragment[6] = 0x20;
        assert_eq!(refused(&fragment, 68), Some(FragmentError::Malformed));
        let mut options = whole;
        options[0] = 0x46;
        assert_eq!(refused(&options, 68), Some(FragmentError::Malformed));
    }
}
