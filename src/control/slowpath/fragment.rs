//! Cuts an IPv4 packet into fragments (RFC 791 section 3.2): an outer one, or an inner one before it is encapsulated.
//!
//! A raw socket with IP_HDRINCL leaves fragmenting to its user (raw(7)): what does not fit the device is refused
//! with EMSGSIZE.

use crate::packet::{Checksum, Ipv4, ipv4};

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Options that go into every fragment have this bit (RFC 791 section 3.1).
const COPIED: u8 = 0x80;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

/// Why a packet cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FragmentError {
    /// The packet carries DF.
    DontFragment,
    /// Not a whole packet, or one with nothing behind its header.
    Malformed,
    /// The MTU has no room for a header and eight bytes.
    MtuTooSmall,
}

/// The fragments of one packet, in order. Each item is a header and the bytes that follow it.
#[derive(Debug)]
pub struct Fragments<'a> {
    header: Vec<u8>,
    payload: &'a [u8],
    /// Where the payload begins in the packet that it belongs to, in eights: the packet may be a fragment itself.
    base: u16,
    /// More of that packet follows.
    more: bool,
    /// Bytes of the payload already given out: a multiple of eight until the last fragment.
    done: usize,
    /// Bytes of payload per fragment but the last: a multiple of eight.
    step: usize,
}

/// The fragments of `packet` for a path of `mtu` bytes. A packet that fits comes out as one piece, unchanged.
pub fn fragments(packet: &[u8], mtu: usize) -> Result<Fragments<'_>, FragmentError> {
    let ip = Ipv4::parse(packet).map_err(|_| FragmentError::Malformed)?;
    let (header, payload) = packet.split_at(ip.header_len());
    let flags = u16::from_be_bytes([packet[6], packet[7]]);
    if ip.total_len() != packet.len() || payload.is_empty() {
        return Err(FragmentError::Malformed);
    }
    if flags & DONT_FRAGMENT != 0 {
        return Err(FragmentError::DontFragment);
    }
    let step = mtu.saturating_sub(header.len()) & !7;
    if step == 0 {
        return Err(FragmentError::MtuTooSmall);
    }
    let step = if packet.len() <= mtu {
        payload.len()
    } else {
        step
    };
    Ok(Fragments {
        header: header.to_vec(),
        payload,
        base: flags & OFFSET,
        more: flags & MORE_FRAGMENTS != 0,
        done: 0,
        step,
    })
}

impl<'a> Iterator for Fragments<'a> {
    type Item = (Vec<u8>, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self
            .payload
            .get(self.done..)
            .filter(|rest| !rest.is_empty())?;
        let piece = &rest[..rest.len().min(self.step)];
        let more = match self.more || piece.len() < rest.len() {
            true => MORE_FRAGMENTS,
            false => 0,
        };
        // Both fit: the packet's total length is a 16-bit field, and the offset counts eights.
        let total = (self.header.len() + piece.len()) as u16;
        let offset = self.base + (self.done / 8) as u16;
        let header = &mut self.header;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[6..8].copy_from_slice(&(more | offset & OFFSET).to_be_bytes());
        header[10..12].fill(0);
        let sum = Checksum::new().add_bytes(header).finish();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        let item = (header.clone(), piece);
        self.done += piece.len();
        keep_copied(&mut header[ipv4::HEADER_LEN..]);
        Some(item)
    }
}

/// Of the options, leaves those that go into every fragment. The others' places are filled, so that the header keeps its
/// length (as `ip_options_fragment` in net/ipv4/ip_options.c).
fn keep_copied(options: &mut [u8]) {
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        let len = match kind {
            END_OF_OPTIONS => return,
            NO_OPERATION => 1,
            _ => match options.get(at + 1) {
                Some(len) if *len >= 2 => usize::from(*len),
                _ => return,
            },
        };
        let Some(option) = options.get_mut(at..at + len) else {
            return;
        };
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        at += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice};
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
            refused(&packet(&payload, 1, false), 27),
            Some(FragmentError::MtuTooSmall)
        );
        assert_eq!(
            refused(&packet(&[], 1, false), 68),
            Some(FragmentError::Malformed)
        );
        let whole = packet(&payload, 1, false);
        assert_eq!(refused(&whole[..119], 68), Some(FragmentError::Malformed));
        let padded = [&whole[..], &[0]].concat();
        assert_eq!(refused(&padded, 68), Some(FragmentError::Malformed));
    }

    #[test]
    fn a_fragment_is_cut_again_where_it_stands() {
        let payload: Vec<u8> = (0..200).collect();
        let mut middle =
            Ipv4Header::new(200, 9, IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        middle.fragment_offset = IpFragOffset::try_new(100).unwrap();
        middle.identification = 0;
        middle.dont_fragment = false;
        for last in [false, true] {
            middle.more_fragments = !last;
            middle.header_checksum = middle.calc_header_checksum();
            let bytes = [&middle.to_bytes()[..], &payload].concat();
            let pieces: Vec<_> = fragments(&bytes, 108).unwrap().collect();
            let seen: Vec<_> = pieces
                .iter()
                .map(|(header, payload)| {
                    let header = Ipv4Header::from_slice(header).unwrap().0;
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                    (
                        header.fragment_offset.value(),
                        header.more_fragments,
                        payload.len(),
                    )
                })
                .collect();
            assert_eq!(seen, [(100, true, 88), (111, true, 88), (122, !last, 24)]);
        }
    }

    #[test]
    fn options_go_where_rfc_791_wants_them() {
        // Router alert (copied), record route (not), end of list.
        let options = [148, 4, 0, 0, 7, 7, 4, 1, 2, 3, 4, 0];
        let mut header =
            Ipv4Header::new(100, 9, IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        header.options = options.as_slice().try_into().unwrap();
        header.set_payload_len(100).unwrap();
        header.dont_fragment = false;
        header.header_checksum = header.calc_header_checksum();
        let bytes = [&header.to_bytes()[..], &[5; 100]].concat();
        let pieces: Vec<_> = fragments(&bytes, 32 + 56).unwrap().collect();
        assert_eq!(pieces.len(), 2);
        let read = |n: usize| Ipv4Header::from_slice(&pieces[n].0).unwrap().0;
        assert_eq!(read(0).options.as_slice(), options);
        let kept = [148, 4, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0];
        assert_eq!(read(1).options.as_slice(), kept);
        for n in 0..2 {
            assert_eq!(read(n).header_checksum, read(n).calc_header_checksum());
        }
        // Options that lie are left as they are.
        for broken in [[7, 0, 0, 0], [7, 40, 0, 0], [1, 1, 1, 7]] {
            let mut options = broken;
            keep_copied(&mut options);
            assert_eq!(options, broken);
        }
    }
}
