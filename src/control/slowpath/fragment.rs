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
