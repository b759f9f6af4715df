//! A device that receives frames for any station.

use std::{
    io, mem,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Keeps a device promiscuous as long as this value, or the process, lives. The kernel counts who wants it, so that it stays
/// so for others (packet(7), PACKET_MR_PROMISC).
#[derive(Debug)]
pub(super) struct Promiscuous {
    _socket: OwnedFd,
}

impl Promiscuous {
    pub(super) fn keep(ifindex: u32) -> io::Result<Promiscuous> {
        // Of no protocol: it receives nothing.
        let socket = socket_with(
            AddressFamily::PACKET,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // SAFETY: all zeroes is a valid packet_mreq.
        let mut membership: libc::packet_mreq = unsafe { mem::zeroed() };
        membership.mr_ifindex = ifindex as i32;
        membership.mr_type = libc::PACKET_MR_PROMISC as u16;
        // SAFETY: the option's value is one packet_mreq, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const membership).cast(),
                mem::size_of_val(&membership) as libc::socklen_t,
            )
        };
        match result {
            0 => Ok(Promiscuous { _socket: socket }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
