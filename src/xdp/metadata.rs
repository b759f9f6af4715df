//! Asks the kernel whether a device can tell an XDP program the VLAN tag that it keeps beside a frame.
//!
//! The kernel binds a program that asks for tags to any device, and where the driver cannot answer every question fails
//! at run time. So ask beforehand: generic netlink family `netdev`, attribute `xdp-rx-metadata-features` (Linux 6.3).

use std::{io, io::Read, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_RX_METADATA_FEATURES: u16 = 5;
const NETDEV_XDP_RX_METADATA_VLAN_TAG: u8 = 4;

/// The length of `struct nlmsghdr` and of `struct genlmsghdr` behind it.
const HEADERS: usize = 16 + 4;

/// Whether the device's driver implements `bpf_xdp_metadata_rx_vlan_tag`; false where the kernel cannot say.
pub(super) fn reads_vlan_tag(ifindex: u32) -> bool {
    rx_metadata(ifindex).is_ok_and(|features| features & NETDEV_XDP_RX_METADATA_VLAN_TAG != 0)
}

/// The low byte of the device's `xdp-rx-metadata-features`.
fn rx_metadata(ifindex: u32) -> io::Result<u8> {
    let protocol = Protocol::from(libc::NETLINK_GENERIC);
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let family = request(
        &socket,
        (GENL_ID_CTRL, CTRL_CMD_GETFAMILY),
        (CTRL_ATTR_FAMILY_NAME, b"netdev\0"),
        CTRL_ATTR_FAMILY_ID,
    )?;
    let family = match family[..] {
        [low, high, ..] => u16::from_ne_bytes([low, high]),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let features = request(
        &socket,
        (family, NETDEV_CMD_DEV_GET),
        (NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes()),
        NETDEV_A_DEV_XDP_RX_METADATA_FEATURES,
    )?;
    let features = <[u8; 8]>::try_from(features).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(u64::from_ne_bytes(features) as u8)
}

/// Sends a request with one attribute and returns one attribute of the answer.
fn request(
    mut socket: &Socket,
    (family, command): (u16, u8),
    (attribute, value): (u16, &[u8]),
    wanted: u16,
) -> io::Result<Vec<u8>> {
    let attribute_length = 4 + value.len();
    let length = HEADERS + attribute_length.next_multiple_of(4);
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 8]); // sequence number, port: one question at a time
    message.extend([command, 1, 0, 0]);
    message.extend((attribute_length as u16).to_ne_bytes());
    message.extend(attribute.to_ne_bytes());
    message.extend(value);
    message.resize(length, 0);
    socket.send(&message)?;

    let mut answer = vec![0; 16 * 1024];
    let received = socket.read(&mut answer)?;
    let answer = &answer[..received];
    if answer.get(4..6) == Some(&(libc::NLMSG_ERROR as u16).to_ne_bytes()[..]) {
        return Err(io::ErrorKind::NotFound.into());
    }
    find_attribute(answer.get(HEADERS..).unwrap_or_default(), wanted)
        .map(<[u8]>::to_vec)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The value of the first attribute of this kind.
fn find_attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [l0, l1, k0, k1, rest @ ..] = attributes {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1])).checked_sub(4)?;
        let kind = u16::from_ne_bytes([*k0, *k1]) & libc::NLA_TYPE_MASK as u16;
        let value = rest.get(..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_broken_ones_end_the_search() {
        // Kinds 1 (3 bytes and padding) and 5 (1 byte), then a length beyond the message.
        let message = [
            [7, 0, 1, 0, 9, 9, 9, 0].as_slice(),
            &[5, 0, 5, 0, 4, 0, 0, 0],
            &[200, 0, 6, 0, 0],
        ]
        .concat();
        assert_eq!(find_attribute(&message, 1), Some(&[9, 9, 9][..]));
        assert_eq!(find_attribute(&message, 5), Some(&[4][..]));
        assert_eq!(find_attribute(&message, 6), None);
        assert_eq!(find_attribute(&[3, 0, 1, 0], 1), None);
    }

    #[test]
    fn loopback_tells_no_tags() {
        assert!(!reads_vlan_tag(1));
    }
}
