//! Ethernet II headers (IEEE 802.3), and the VLAN tags behind them (IEEE 802.1Q).

use std::{net::IpAddr, num::NonZeroU16};

use super::{NoRoom, PacketBuf, ParseError};

/// Bytes of an untagged Ethernet header.
pub const HEADER_LEN: usize = 14;

/// A link-layer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Where frames for a multicast group go (RFC 1112 section 6.4, RFC 2464 section 7).
    pub fn of_group(group: IpAddr) -> Self {
        match group {
            IpAddr::V4(v4) => {
                let [_, b, c, d] = v4.octets();
                Self([0x01, 0x00, 0x5e, b & 0x7f, c, d])
            }
            IpAddr::V6(v6) => {
                let [.., a, b, c, d] = v6.octets();
                Self([0x33, 0x33, a, b, c, d])
            }
        }
    }

    /// For more stations than one.
    #[inline]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl std::fmt::Display for MacAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The type of an Ethernet frame's payload; GRE uses the same numbers (RFC 2784 section 2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    pub const IPV4: Self = Self(0x0800);
    pub const ARP: Self = Self(0x0806);
    pub const VLAN: Self = Self(0x8100);
    pub const QINQ: Self = Self(0x88a8);
    pub const IPV6: Self = Self(0x86dd);
    /// An Ethernet frame in a tunnel.
    pub const TRANSPARENT_ETHERNET: Self = Self(0x6558);
    /// Web Cache Communication Protocol: an IPv4 packet on its way to a cache.
    pub const WCCP: Self = Self(0x883e);

    /// Whether a VLAN tag follows, of a customer or of a provider.
    #[inline]
    pub fn is_tag(self) -> bool {
        matches!(self, EtherType::VLAN | EtherType::QINQ)
    }
}

/// VLAN tags that a frame may have in front of what it carries: a provider's and a customer's.
const TAGS: usize = 2;
/// Bytes of a VLAN tag.
pub const TAG_LEN: usize = 4;
/// Bytes of both link addresses, behind which the first tag stands.
const ADDRESSES: usize = 12;

/// The number of a VLAN: 1 to 4094. 0 is a tag with a priority alone, 4095 is reserved (IEEE 802.1Q table 9-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vid(NonZeroU16);

impl Vid {
    const RESERVED: u16 = 4095;

    pub fn new(number: u16) -> Option<Self> {
        let number = NonZeroU16::new(number).filter(|number| number.get() < Self::RESERVED);
        number.map(Self)
    }

    #[inline]
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl std::fmt::Display for Vid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The VLAN that a frame's outer tag names, if that is a customer's (802.1Q) and names one. Priority and drop eligibility
/// are not looked at.
#[inline]
pub fn vlan_of(frame: &[u8]) -> Option<Vid> {
    if type_before(frame, HEADER_LEN)? != EtherType::VLAN {
        return None;
    }
    let EtherType(control) = type_before(frame, HEADER_LEN + 2)?;
    // With what is behind the tag, or it is none.
    type_before(frame, HEADER_LEN + TAG_LEN)?;
    Vid::new(control & 0x0fff)
}

/// Takes the outer tag out of a frame that has one ([`vlan_of`]).
#[inline]
pub fn pop_tag<B: PacketBuf>(frame: &mut B) -> Result<(), NoRoom> {
    if frame.data().len() < HEADER_LEN + TAG_LEN {
        return Err(NoRoom);
    }
    frame.data_mut().copy_within(..ADDRESSES, TAG_LEN);
    frame.trim_front(TAG_LEN)
}

/// Puts a tag into a frame, in front of any other, with priority 0 and not eligible to be dropped.
#[inline]
pub fn push_tag<B: PacketBuf>(frame: &mut B, vid: Vid) -> Result<(), NoRoom> {
    if frame.data().len() < HEADER_LEN {
        return Err(NoRoom);
    }
    let frame = frame.prepend(TAG_LEN)?;
    frame.copy_within(TAG_LEN..TAG_LEN + ADDRESSES, 0);
    frame[ADDRESSES..HEADER_LEN].copy_from_slice(&EtherType::VLAN.0.to_be_bytes());
    frame[HEADER_LEN..HEADER_LEN + 2].copy_from_slice(&vid.get().to_be_bytes());
    Ok(())
}

/// What a frame carries behind its VLAN tags, and where that begins, in bytes from the start of the frame.
#[inline]
pub fn behind_tags(frame: &[u8]) -> Option<(EtherType, usize)> {
    let mut at = HEADER_LEN;
    for _ in 0..TAGS {
        match type_before(frame, at)? {
            tag if tag.is_tag() => at += TAG_LEN,
            _ => break,
        }
    }
    Some((type_before(frame, at)?, at))
}

/// Where the IP packet begins that a frame carries, behind VLAN tags or without.
#[inline]
pub fn ip_at(frame: &[u8]) -> Option<usize> {
    match behind_tags(frame)? {
        (EtherType::IPV4 | EtherType::IPV6, at) => Some(at),
        _ => None,
    }
}

#[inline]
fn type_before(frame: &[u8], at: usize) -> Option<EtherType> {
    match frame.get(at - 2..at)? {
        &[high, low] => Some(EtherType(u16::from_be_bytes([high, low]))),
        _ => None,
    }
}

/// A frame whose header is complete.
#[derive(Debug, Clone, Copy)]
pub struct Ethernet<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Splits a frame into header and payload.
    #[inline]
    pub fn parse(frame: &'a [u8]) -> Result<Self, ParseError> {
        let (header, payload) = frame
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(ParseError::Truncated)?;
        Ok(Self { header, payload })
    }

    #[inline]
    pub fn destination(&self) -> MacAddr {
        let h = self.header;
        MacAddr([h[0], h[1], h[2], h[3], h[4], h[5]])
    }

    #[inline]
    pub fn source(&self) -> MacAddr {
        let h = self.header;
        MacAddr([h[6], h[7], h[8], h[9], h[10], h[11]])
    }

    #[inline]
    pub fn ether_type(&self) -> EtherType {
        EtherType(u16::from_be_bytes([self.header[12], self.header[13]]))
    }

    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Writes a header into the first bytes of `frame`; false when the frame is too short.
#[inline]
pub fn write(
    frame: &mut [u8],
    destination: MacAddr,
    source: MacAddr,
    ether_type: EtherType,
) -> bool {
    let Some(header) = frame.first_chunk_mut::<HEADER_LEN>() else {
        return false;
    };
    header[..6].copy_from_slice(&destination.0);
    header[6..12].copy_from_slice(&source.0);
    header[12..].copy_from_slice(&ether_type.0.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_parsed() {
        let mut frame = [0u8; 16];
        let (d, s) = (MacAddr([1, 2, 3, 4, 5, 6]), MacAddr([7, 8, 9, 10, 11, 12]));
        assert!(write(&mut frame, d, s, EtherType::IPV6));
        let ethernet = Ethernet::parse(&frame).unwrap();
        assert_eq!((ethernet.destination(), ethernet.source()), (d, s));
        assert_eq!(ethernet.ether_type(), EtherType::IPV6);
        assert_eq!(ethernet.payload(), [0, 0]);
    }

    #[test]
    fn two_tags_are_gone_past_and_no_more() {
        let frame = |types: &[u16]| {
            let mut frame = vec![0; 12];
            for (n, kind) in types.iter().enumerate() {
                frame.extend(kind.to_be_bytes());
                frame.extend(vec![0; if n + 1 < types.len() { 2 } else { 0 }]);
            }
            frame
        };
        for (types, kind, at) in [
            (&[0x0806][..], 0x0806, 14),
            (&[0x8100, 0x0800], 0x0800, 18),
            (&[0x88a8, 0x8100, 0x86dd], 0x86dd, 22),
            (&[0x8100, 0x8100, 0x8100, 0x0800], 0x8100, 22),
        ] {
            let found = behind_tags(&frame(types));
            assert_eq!(found, Some((EtherType(kind), at)), "{types:x?}");
        }
        // The frame ends within its tags.
        assert_eq!(behind_tags(&frame(&[0x88a8, 0x8100, 0x0800])[..19]), None);
        assert_eq!(behind_tags(&[]), None);
    }

    #[test]
    fn a_tag_is_put_in_and_taken_out() {
        use crate::packet::VecBuf;
        let plain: Vec<u8> = (0..20).collect();
        let mut frame = VecBuf::new(4, &plain);
        let vid = Vid::new(4094).unwrap();
        push_tag(&mut frame, vid).unwrap();
        let expected = [&plain[..12], &[0x81, 0, 0x0f, 0xfe], &plain[12..]].concat();
        assert_eq!(frame.data(), expected);
        assert_eq!(vlan_of(frame.data()), Some(vid));
        assert_eq!(push_tag(&mut frame, vid), Err(NoRoom));
        assert_eq!(frame.data(), expected);
        pop_tag(&mut frame).unwrap();
        assert_eq!(frame.data(), plain);
        assert_eq!(pop_tag(&mut VecBuf::new(0, &plain[..17])), Err(NoRoom));
        assert_eq!(
            push_tag(&mut VecBuf::new(9, &plain[..13]), vid),
            Err(NoRoom)
        );
    }

    #[test]
    fn the_outer_tag_names_the_vlan() {
        let vid = |tag: &[u8]| vlan_of(&[&[0; 12], tag].concat()).map(Vid::get);
        assert_eq!(vid(&[0x81, 0, 0x00, 7, 8, 0]), Some(7));
        // Priority and drop eligibility do not matter, nor what is behind the tag.
        assert_eq!(vid(&[0x81, 0, 0xf1, 0, 0x81, 0]), Some(256));
        for none in [
            &[0x81, 0, 0xe0, 0, 8, 0][..],
            &[0x81, 0, 0x0f, 0xff, 8, 0],
            &[0x88, 0xa8, 0, 7, 8, 0],
            &[8, 0, 0x81, 0, 0, 7],
            &[0x81, 0, 0, 7, 8],
            &[0x81],
        ] {
            assert_eq!(vid(none), None, "{none:x?}");
        }
    }

    #[test]
    fn a_groups_link_address_holds_its_last_bits() {
        for (group, mac) in [
            ("239.129.1.2", "01:00:5e:01:01:02"),
            ("224.0.0.5", "01:00:5e:00:00:05"),
            ("ff02::5", "33:33:00:00:00:05"),
            ("ff05::1:2345:6789", "33:33:23:45:67:89"),
        ] {
            let found = MacAddr::of_group(group.parse().unwrap());
            assert_eq!(found.to_string(), mac);
            assert!(found.is_group());
        }
        assert!(MacAddr([0xff; 6]).is_group() && !MacAddr([2, 0, 0, 0, 0, 1]).is_group());
    }

    #[test]
    fn short_frames_are_refused() {
        assert!(Ethernet::parse(&[0; 13]).is_err());
        assert!(!write(
            &mut [0; 13],
            MacAddr::default(),
            MacAddr::default(),
            EtherType::ARP
        ));
    }
}
