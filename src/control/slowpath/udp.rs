//! The UDP socket of GRE in UDP: one per family on port 4754, and none that no tunnel needs.
//!
//! It keeps the kernel from answering tunnel packets with port unreachable, and it receives what XDP passed: put together,
//! and with its checksum verified. The port is not shared (no SO_REUSEADDR): with another receiver on it, each
//! packet would come to one of them only.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

// Its macros name each other.
use nix::{
    setsockopt_impl, sockopt_impl,
    sys::socket::{setsockopt, sockopt},
};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::raw::RawError;
use crate::tunnel::{Family, GRE_IN_UDP_PORT, TunnelTable};

sockopt_impl!(
    /// A datagram over IPv6 may come without a checksum (linux/udp.h).
    NoCheck6Rx,
    SetOnly,
    libc::IPPROTO_UDP,
    libc::UDP_NO_CHECK6_RX,
    bool
);

/// Opens the socket of one family, bound to the port on every address.
pub(super) fn open(family: Family) -> Result<Socket, RawError> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let (domain, any) = match family {
        Family::V4 => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
        Family::V6 => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let failed = |what| move |source: io::Error| RawError::Io { what, source };
    let socket = Socket::new(domain, kind, Some(Protocol::UDP)).map_err(failed("open a UDP"))?;
    if family == Family::V6 {
        // Beside it stands the one for IPv4.
        socket
            .set_only_v6(true)
            .map_err(failed("set IPV6_V6ONLY on a UDP"))?;
    }
    ask_for_headers(&socket, family).map_err(failed("set options on a UDP"))?;
    let port = SocketAddr::new(any, GRE_IN_UDP_PORT);
    match socket.bind(&port.into()) {
        Err(e) if e.raw_os_error() == Some(Errno::ADDRINUSE.raw_os_error()) => {
            Err(RawError::PortTaken(family))
        }
        bound => bound
            .map(|()| socket)
            .map_err(failed("bind to port 4754 a UDP")),
    }
}

/// With each packet comes what its IP header said of it.
fn ask_for_headers(socket: &Socket, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => {
            setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
            socket.set_recv_tos_v4(true)
        }
        Family::V6 => {
            setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            socket.set_recv_tclass_v6(true)
        }
    }
}

/// Lets packets without a checksum in over IPv6 as soon as one of these tunnels does without: the kernel decides by the port.
/// Which tunnel a packet belongs to is the socket filter's question.
pub(super) fn follow(socket: &Socket, table: &TunnelTable) -> io::Result<()> {
    let does_without = table
        .iter()
        .any(|tunnel| tunnel.local.is_ipv6() && tunnel.udp.is_some_and(|encap| !encap.checksum));
    Ok(setsockopt(socket, NoCheck6Rx, &does_without)?)
}
