//! Netlink attributes (struct nlattr) as a cursor over bytes: whatever they claim, nothing is read beyond their end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::MacAddr;

const HEADER: usize = 4;
/// The upper two bits of a type are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const TYPE_MASK: u16 = 0x3fff;

/// One attribute. A value that is shorter than asked for is as good as absent.
#[derive(Debug, Clone, Copy)]
pub struct Attribute<'a> {
    pub kind: u16,
    pub value: &'a [u8],
}

/// The attributes behind a header of `header` bytes. A malformed one ends the list.
pub fn attributes(message: &[u8], header: usize) -> impl Iterator<Item = Attribute<'_>> {
    let mut rest = message.get(header..).unwrap_or_default();
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk::<HEADER>()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(HEADER..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute {
            kind: u16::from_ne_bytes([c, d]) & TYPE_MASK,
            value,
        })
    })
}

impl<'a> Attribute<'a> {
    pub fn array<const N: usize>(&self) -> Option<[u8; N]> {
        self.value.first_chunk().copied()
    }

    pub fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    pub fn be16(&self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn be32(&self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u16(&self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    pub fn u32(&self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    pub fn flag(&self) -> Option<bool> {
        self.u32().map(|value| value != 0)
    }

    pub fn mac(&self) -> Option<MacAddr> {
        self.value.try_into().ok().map(MacAddr)
    }

    pub fn text(&self) -> Option<Box<str>> {
        let text = self.value.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into())
    }

    pub fn ip(&self) -> Option<IpAddr> {
        ip(self.value)
    }

    pub fn nested(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        attributes(self.value, 0)
    }
}

/// An address of exactly 4 or 16 bytes.
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(v6).into())
}
