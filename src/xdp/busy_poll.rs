//! Busy polling: the worker drives the device's NAPI itself, instead of waiting for an interrupt to do it.
//!
//! As Documentation/networking/napi.rst and af_xdp.rst ask: the socket prefers it (`SO_PREFER_BUSY_POLL`, Linux 5.11), and every
//! call on an idle socket polls the device.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use super::open::{PortError, PortSet};

/// How long a blocking call would poll, in microseconds. Ours never block; what counts is that it is not 0.
const MICROSECONDS: libc::c_int = 20;
/// Packets that one poll takes from the device: NAPI's own weight.
const BUDGET: libc::c_int = 64;

/// What a socket says of its busy polling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPoll {
    /// `SO_BUSY_POLL`, in microseconds.
    pub microseconds: u32,
    /// `SO_BUSY_POLL_BUDGET` as it was set, in packets: the kernel does not tell it again.
    pub budget: u32,
    /// The NAPI that is polled; 0 where the kernel does not know which is the queue's: in generic mode, and of drivers that do not
    /// say it (veth) since Linux 6.13.
    pub napi: u32,
}

impl PortSet {
    /// Has every socket of the set poll its device. Refused before Linux 5.11.
    pub fn prefer_busy_poll(&mut self) -> Result<(), PortError> {
        for port in &mut self.ports {
            prefer(port.fd()).map_err(|(option, source)| PortError::BusyPoll {
                device: port.spec.device.clone(),
                queue: port.spec.queue,
                option,
                hint: hint(&source),
                source,
            })?;
            port.polls = true;
        }
        Ok(())
    }
}

fn prefer(socket: BorrowedFd<'_>) -> Result<(), (&'static str, io::Error)> {
    for (name, option, value) in [
        ("SO_PREFER_BUSY_POLL", libc::SO_PREFER_BUSY_POLL, 1),
        ("SO_BUSY_POLL", libc::SO_BUSY_POLL, MICROSECONDS),
        ("SO_BUSY_POLL_BUDGET", libc::SO_BUSY_POLL_BUDGET, BUDGET),
    ] {
        set(socket, option, value).map_err(|why| (name, why))?;
    }
    Ok(())
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOPROTOOPT) => "; it needs Linux 5.11 or later: busy_poll = false",
        Some(libc::EPERM) => "; CAP_NET_ADMIN is needed",
        _ => "",
    }
}

impl BusyPoll {
    /// Asks the kernel; none where the socket does not prefer busy polling.
    pub fn of(socket: impl AsFd) -> Option<Self> {
        let get = |option| get(socket.as_fd(), option).ok();
        if get(libc::SO_PREFER_BUSY_POLL)? == 0 {
            return None;
        }
        Some(Self {
            microseconds: get(libc::SO_BUSY_POLL)? as u32,
            budget: BUDGET as u32,
            napi: get(libc::SO_INCOMING_NAPI_ID)? as u32,
        })
    }
}

fn set(socket: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed and so open; the kernel reads four bytes of `value`. No frame is involved.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn get(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed and so open; the kernel writes at most `len` bytes into `value`, which this function
    // owns. No frame is involved.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &mut len,
        )
    };
    match answer {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn what_was_refused_is_named_with_what_mends_it() {
        let old = io::Error::from_raw_os_error(libc::ENOPROTOOPT);
        assert!(hint(&old).contains("Linux 5.11"));
        assert!(hint(&io::Error::from_raw_os_error(libc::EPERM)).contains("CAP_NET_ADMIN"));
        let pipe = std::io::pipe().unwrap().0;
        assert_eq!(prefer(pipe.as_fd()).unwrap_err().0, "SO_PREFER_BUSY_POLL");
    }

    #[test]
    fn a_socket_that_was_not_told_to_does_not_poll() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(BusyPoll::of(&socket), None);
    }
}
