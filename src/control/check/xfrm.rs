//! IPsec policies, as the kernel lists them (NETLINK_XFRM, linux/xfrm.h).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
};

use ipnet::IpNet;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recv, sendto};
use socket2::{Domain, Protocol, Socket, Type};

use super::host::{Policy, Seen};

// linux/netlink.h
const HEADER: usize = 16;
const REQUEST_DUMP: u16 = 0x001 | 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;

// linux/xfrm.h
const NEW_POLICY: u16 = 0x13;
const GET_POLICY: u16 = 0x15;
/// `struct xfrm_userpolicy_info`: where its parts are, and how long it is.
const DESTINATION: usize = 0;
const SOURCE: usize = 16;
const FAMILY: usize = 40;
const PREFIX_D: usize = 42;
const PREFIX_S: usize = 43;
const PROTOCOL: usize = 44;
const DIRECTION: usize = 160;
const ACTION: usize = 161;
const INFO: usize = 168;

/// Every policy; none where the kernel has no IPsec.
pub(super) fn policies() -> Seen<Vec<Policy>> {
    match list() {
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(Vec::new()),
        listed => listed.map_err(|e| e.to_string()),
    }
}

fn list() -> io::Result<Vec<Policy>> {
    let domain = Domain::from(libc::AF_NETLINK);
    let xfrm = Protocol::from(libc::NETLINK_XFRM);
    let fd = Socket::new(domain, Type::RAW, Some(xfrm))?;
    let mut request = [0; HEADER];
    request[..4].copy_from_slice(&(HEADER as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&GET_POLICY.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    let kernel = NetlinkAddr::new(0, 0);
    sendto(fd.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
    let mut policies = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if read(&buffer[..len], &mut policies)? {
            return Ok(policies);
        }
    }
}

/// Takes in what one datagram holds; true at the end of the list.
fn read(mut bytes: &[u8], policies: &mut Vec<Policy>) -> io::Result<bool> {
    while let Some((len, kind)) = header(bytes) {
        let Some(body) = bytes.get(HEADER..len) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let code = body
                    .first_chunk()
                    .map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(-code));
            }
            NEW_POLICY => policies.extend(policy(body)),
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// A message's length, its header included, and its type.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let [l0, l1, l2, l3, t0, t1, ..] = *bytes.first_chunk::<HEADER>()?;
    let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    Some((len, u16::from_ne_bytes([t0, t1])))
}

/// None for what names no family, or is a socket's own.
fn policy(info: &[u8]) -> Option<Policy> {
    let info = info.get(..INFO)?;
    let family = u16::from_ne_bytes([info[FAMILY], info[FAMILY + 1]]);
    let net = |at: usize, prefix: usize| {
        let address: IpAddr = match i32::from(family) {
            libc::AF_INET => Ipv4Addr::from(*info[at..].first_chunk::<4>()?).into(),
            libc::AF_INET6 => Ipv6Addr::from(*info[at..].first_chunk::<16>()?).into(),
            _ => return None,
        };
        IpNet::new(address, info[prefix]).ok()
    };
    Some(Policy {
        direction: match info[DIRECTION] {
            0 => "in",
            1 => "out",
            2 => "fwd",
            _ => return None,
        },
        source: net(SOURCE, PREFIX_S)?,
        destination: net(DESTINATION, PREFIX_D)?,
        protocol: info[PROTOCOL],
        blocks: info[ACTION] == 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes
    }

    fn info(family: i32, direction: u8) -> Vec<u8> {
        let mut info = vec![0; INFO];
        info[DESTINATION..4].copy_from_slice(&[198, 51, 100, 0]);
        info[SOURCE..SOURCE + 4].copy_from_slice(&[192, 0, 2, 1]);
        info[FAMILY..FAMILY + 2].copy_from_slice(&(family as u16).to_ne_bytes());
        (info[PREFIX_D], info[PREFIX_S], info[PROTOCOL]) = (24, 32, 47);
        (info[DIRECTION], info[ACTION]) = (direction, 1);
        info
    }

    #[test]
    fn a_list_is_read_to_its_end() {
        let wanted = message(NEW_POLICY, &info(libc::AF_INET, 1));
        // A socket's own policy, a family that is none, and one that is cut.
        let other = message(NEW_POLICY, &info(libc::AF_INET, 4));
        let strange = message(NEW_POLICY, &info(0, 1));
        let short = message(NEW_POLICY, &[0; 20]);
        let mut policies = Vec::new();
        let datagram = [wanted, other, strange, short].concat();
        assert!(!read(&datagram, &mut policies).unwrap());
        assert!(read(&message(DONE, &[0; 4]), &mut policies).unwrap());
        let expected = Policy {
            direction: "out",
            source: "192.0.2.1/32".parse().unwrap(),
            destination: "198.51.100.0/24".parse().unwrap(),
            protocol: 47,
            blocks: true,
        };
        assert_eq!(policies, [expected]);
    }

    #[test]
    fn what_the_kernel_refuses_is_said() {
        let refused = message(ERROR, &(-libc::EPERM).to_ne_bytes());
        let error = read(&refused, &mut Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        let mut lying = message(NEW_POLICY, &[0; 8]);
        lying[0] = 200;
        assert!(read(&lying, &mut Vec::new()).is_err());
    }
}
