//! ICMP errors about outer packets, received.
//!
//! The kernel has no tunnel that it could tell, so it tells nobody but raw sockets of ICMP: these get a copy of every error
//! that comes to this host. One socket per family that a tunnel has outside, and the kernel lets only errors through.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

// Its macros name each other.
use nix::{setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use rustix::net;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    packet::icmp,
    tunnel::{Family, TunnelId},
};

/// Errors that the kernel may hold for us while we are busy. Bytes.
const BUFFER: usize = 256 << 10;

/// ICMP_FILTER of linux/icmp.h, which libc lacks: a set bit blocks the type. Of the types above 31 none passes.
const ICMP_FILTER: libc::c_int = 1;
/// ICMPV6_FILTER of linux/icmpv6.h.
const ICMPV6_FILTER: libc::c_int = 1;

sockopt_impl!(Filter4, SetOnly, libc::SOL_RAW, ICMP_FILTER, u32);
sockopt_impl!(
    Filter6,
    SetOnly,
    libc::IPPROTO_ICMPV6,
    ICMPV6_FILTER,
    [u32; 8]
);

/// A raw socket of ICMP or ICMPv6 that lets only these types in, by their number.
pub(super) fn socket(family: Family, passes: &[u8]) -> io::Result<Socket> {
    let (domain, protocol) = match family {
        Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
        Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
    let mut blocked = [u32::MAX; 8];
    for kind in passes {
        blocked[usize::from(*kind) / 32] &= !(1 << (kind % 32));
    }
    match family {
        Family::V4 => setsockopt(&socket, Filter4, &blocked[0])?,
        Family::V6 => setsockopt(&socket, Filter6, &blocked)?,
    }
    Ok(socket)
}

/// Receives the errors that come to this host over one family.
pub(super) struct ErrorSocket {
    pub family: Family,
    socket: Socket,
}

impl ErrorSocket {
    pub fn open(family: Family) -> io::Result<Self> {
        let socket = match family {
            Family::V4 => socket(family, &icmp::ERRORS)?,
            Family::V6 => socket(family, &icmp::ERRORS_V6)?,
        };
        if net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(BUFFER);
        }
        Ok(Self { family, socket })
    }

    /// Receives one message, over IPv4 with its IP header: its length, and who sent it. `WouldBlock` when there is none.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<(usize, IpAddr)> {
        let flags = net::RecvFlags::DONTWAIT;
        let (len, _, from) = net::recvfrom(&self.socket, buf, flags)?;
        let from = match from.map(net::SocketAddrAny::try_into) {
            Some(Ok(std::net::SocketAddr::V4(v4))) => IpAddr::V4(*v4.ip()),
            Some(Ok(std::net::SocketAddr::V6(v6))) => IpAddr::V6(*v6.ip()),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok((len, from))
    }
}

impl AsFd for ErrorSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An error about one of our packets, as far as the control room has something to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterError {
    pub tunnel: TunnelId,
    /// Where the packet was on its way to.
    pub remote: IpAddr,
    /// Who says so.
    pub from: IpAddr,
    pub kind: icmp::Kind,
}
