//! Cuts an outer IPv6 packet into fragments (RFC 8200 section 4.5).
//!
//! As the kernel's `ip6_find_1stfragopt` has it, destination options of the first header stay in front of every fragment: a
//! tunnel within the tunnel then finds the encapsulation limit in each of them.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
};

use super::fragment::FragmentError;
use crate::packet::{Ipv6, ipv6, protocol};

/// Bytes of the fragment header.
const HEADER_LEN: usize = 8;

/// Numbers for packets that are cut. They begin anywhere, so that a router that was restarted does not repeat them at once.
pub struct Identifications(u32);

impl Default for Identifications {
    fn default() -> Self {
        Self(RandomState::new().build_hasher().finish() as u32)
    }
}

impl Identifications {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(1);
        self.0
    }
}

/// The fragments of one packet, in order. Each item is the headers and the bytes that follow them.
#[derive(Debug)]
pub struct Fragments<'a> {
    /// The headers of every fragment; the fragment header is the last.
    headers: Vec<u8>,
    payload: &'a [u8],
    /// Bytes of the payload already given out: a multiple of eight until the last fragment.
    done: usize,
    /// Bytes of payload per fragment but the last: a multiple of eight.
    step: usize,
}

/// The fragments of `packet` for a path of `mtu` bytes. A packet that fits comes out as one fragment.
pub fn fragments(
    packet: &[u8],
    mtu: usize,
    identification: u32,
) -> Result<Fragments<'_>, FragmentError> {
    let ip = Ipv6::parse(packet).map_err(|_| FragmentError::Malformed)?;
    let (next_at, split) = match (ip.next_header(), ip.payload()) {
        (protocol::DESTINATION_OPTIONS, [_, eights, ..]) => {
            let len = (usize::from(*eights) + 1) * 8;
            (ipv6::HEADER_LEN, ipv6::HEADER_LEN + len)
        }
        (protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT, _) => {
            return Err(FragmentError::Malformed);
        }
        _ => (6, ipv6::HEADER_LEN),
    };
    let (unfragmentable, payload) = packet
        .split_at_checked(split)
        .filter(|(_, payload)| !payload.is_empty() && ip.total_len() == packet.len())
        .ok_or(FragmentError::Malformed)?;
    let step = mtu.saturating_sub(split + HEADER_LEN) & !7;
    if step == 0 {
        return Err(FragmentError::MtuTooSmall);
    }
    let mut headers = unfragmentable.to_vec();
    let next_header = std::mem::replace(&mut headers[next_at], protocol::FRAGMENT);
    headers.extend_from_slice(&[next_header, 0, 0, 0]);
    headers.extend_from_slice(&identification.to_be_bytes());
    Ok(Fragments {
        headers,
        payload,
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
        let more = u16::from(piece.len() < rest.len());
        let mut headers = self.headers.clone();
        // Both fit: a fragment is no longer than the MTU, and the packet's length is a 16-bit field.
        let len = headers.len() - ipv6::HEADER_LEN + piece.len();
        headers[4..6].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
        let at = headers.len() - HEADER_LEN;
        headers[at + 2..at + 4].copy_from_slice(&(self.done as u16 | more).to_be_bytes());
        self.done += piece.len();
        Some((headers, piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv6FragmentHeader, Ipv6Header};
    use proptest::prelude::*;

    /// A packet built by somebody else's code, with the encapsulation limit in front of the payload or without.
    fn packet(payload: &[u8], limit: bool) -> Vec<u8> {
        let options: &[u8] = if limit {
            &[47, 0, 4, 1, 4, 1, 1, 0]
        } else {
            &[]
        };
        let header = Ipv6Header {
            payload_length: (options.len() + payload.len()) as u16,
            next_header: IpNumber(if limit { 60 } else { 47 }),
            source: [1; 16],
            destination: [2; 16],
            ..Ipv6Header::default()
        };
        [&header.to_bytes()[..], options, payload].concat()
    }

    proptest! {
        #[test]
        fn fragments_fit_and_put_together_are_the_packet(
            payload in proptest::collection::vec(any::<u8>(), 1..6000),
            mtu in 64usize..3000,
            limit: bool,
            identification: u32,
        ) {
            let whole = packet(&payload, limit);
            let split = if limit { 48 } else { 40 };
            let (original, _) = Ipv6Header::from_slice(&whole).unwrap();
            let pieces: Vec<Vec<u8>> = fragments(&whole, mtu, identification)
                .unwrap()
                .map(|(headers, payload)| [&headers[..], payload].concat())
                .collect();
            let filled = (mtu - split - 8) / 8 * 8;
            prop_assert_eq!(pieces.len(), payload.len().div_ceil(filled));
            let mut together = Vec::new();
            for (n, piece) in pieces.iter().enumerate() {
                prop_assert!(piece.len() <= mtu);
                let (header, rest) = Ipv6Header::from_slice(piece).unwrap();
                prop_assert_eq!(usize::from(header.payload_length), rest.len());
                let same = Ipv6Header {
                    payload_length: original.payload_length,
                    next_header: if limit { header.next_header } else { IpNumber(47) },
                    ..header.clone()
                };
                prop_assert_eq!(same, original.clone());
                if limit {
                    prop_assert_eq!(&rest[..8], &[44, 0, 4, 1, 4, 1, 1, 0][..]);
                }
                prop_assert_eq!(if limit { rest[0] } else { header.next_header.0 }, 44);
                let (fragment, data) = Ipv6FragmentHeader::from_slice(&piece[split..]).unwrap();
                prop_assert_eq!(fragment.next_header, IpNumber(47));
                prop_assert_eq!(fragment.identification, identification);
                // etherparse takes M for the field's upper bit; RFC 8200 section 4.5 has it as the lowest.
                let field = u16::from_be_bytes([piece[split + 2], piece[split + 3]]);
                prop_assert_eq!(usize::from(field & !7), together.len());
                prop_assert_eq!(field & 7, u16::from(n + 1 < pieces.len()));
                together.extend_from_slice(data);
            }
            prop_assert_eq!(together, payload);
        }
    }

    #[test]
    fn what_may_not_be_cut_is_refused() {
        let refused = |packet: &[u8], mtu| fragments(packet, mtu, 1).err();
        let whole = packet(&[1; 100], true);
        assert_eq!(refused(&whole, 63), Some(FragmentError::MtuTooSmall));
        assert_eq!(refused(&whole[..147], 1280), Some(FragmentError::Malformed));
        let padded = [&whole[..], &[0]].concat();
        assert_eq!(refused(&padded, 1280), Some(FragmentError::Malformed));
        assert_eq!(
            refused(&packet(&[], false), 1280),
            Some(FragmentError::Malformed)
        );
        let mut long = whole.clone();
        long[41] = 200;
        assert_eq!(refused(&long, 1280), Some(FragmentError::Malformed));
        let mut fragment = whole;
        fragment[6] = 44;
        assert_eq!(refused(&fragment, 1280), Some(FragmentError::Malformed));
    }
}
