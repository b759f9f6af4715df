//! Raw sockets that receive: outer packets, as the kernel delivers them.
//!
//! One socket per family and protocol, and none that no tunnel needs: every packet of its protocol that comes to this host
//! is copied to a raw socket.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use rustix::net;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    packet::{Ipv6Header, ipv6, protocol},
    tunnel::{Family, Mode, Payload, Shim, TunnelTable},
};

/// What the kernel may hold for us while we are busy. Bytes.
pub(super) const BUFFER: usize = 4 << 20;

/// Why a raw socket is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    #[error("a raw socket for tunnels needs CAP_NET_RAW in this network namespace; run as root")]
    Denied,
    #[error("cannot {what} a raw socket: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

impl RawError {
    pub(super) fn open(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => RawError::Denied,
            _ => RawError::io("open", source),
        }
    }

    fn io(what: &'static str, source: io::Error) -> Self {
        RawError::Io { what, source }
    }
}

/// What a raw socket hears: the packets of one protocol over one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hears {
    pub family: Family,
    pub protocol: u8,
}

impl Hears {
    /// What these tunnels need, those that are down included: they come and go without new sockets.
    pub fn needed(table: &TunnelTable) -> Vec<Hears> {
        let mut needed = Vec::new();
        for tunnel in table.iter() {
            for &protocol in protocols(tunnel.mode) {
                let family = tunnel.mode.kind().underlay;
                let hears = Hears { family, protocol };
                if !needed.contains(&hears) {
                    needed.push(hears);
                }
            }
        }
        needed
    }
}

/// The protocols of a kind's outer packets.
fn protocols(mode: Mode) -> &'static [u8] {
    let kind = mode.kind();
    match (kind.shim, kind.payload) {
        (Shim::Gre, _) => &[protocol::GRE],
        (Shim::None, Payload::Ipv4) => &[protocol::IPIP],
        (Shim::None, Payload::Ipv6) => &[protocol::IPV6],
        (Shim::None, _) => &[protocol::IPIP, protocol::IPV6],
    }
}

/// Receives every packet of one protocol that the kernel delivers locally over one family: what XDP passed, put together
/// and with its options.
pub(super) struct RawReceiver {
    socket: Socket,
    hears: Hears,
    control: Vec<u8>,
}

impl RawReceiver {
    pub fn open(hears: Hears) -> Result<Self, RawError> {
        let domain = match hears.family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let protocol = Protocol::from(i32::from(hears.protocol));
        let kind = Type::RAW.nonblocking().cloexec();
        let socket = Socket::new(domain, kind, Some(protocol)).map_err(RawError::open)?;
        let failed = |what| move |e: nix::Error| RawError::io(what, e.into());
        match hears.family {
            Family::V4 => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)
                .map_err(failed("set IP_PKTINFO on"))?,
            Family::V6 => {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)
                    .map_err(failed("set IPV6_RECVPKTINFO on"))?;
                setsockopt(&socket, sockopt::Ipv6RecvTClass, &true)
                    .map_err(failed("set IPV6_RECVTCLASS on"))?;
            }
        }
        // Beyond net.core.rmem_max where we may; else as far as that allows. A small buffer loses packets, no more.
        if net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(BUFFER);
        }
        Ok(Self {
            socket,
            hears,
            control: nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo, libc::c_int),
        })
    }

    pub fn hears(&self) -> Hears {
        self.hears
    }

    /// Receives one outer packet, whole, beginning with its IP header: its length, and the index of the device that
    /// it came in by. `WouldBlock` when there is none; any other error is an ICMP error of some earlier packet.
    pub fn recv(&mut self, buf: &mut [u8]) -> io::Result<(usize, Option<u32>)> {
        match self.hears.family {
            Family::V4 => self.recv_v4(buf),
            Family::V6 => self.recv_v6(buf),
        }
    }

    fn recv_v4(&mut self, buf: &mut [u8]) -> io::Result<(usize, Option<u32>)> {
        let mut iov = [IoSliceMut::new(buf)];
        let fd = self.socket.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(fd, &mut iov, Some(&mut self.control), flags)?;
        let device = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => u32::try_from(info.ipi_ifindex).ok(),
            _ => None,
        });
        Ok((message.bytes, device))
    }

    /// A raw socket of IPv6 gives what follows the IPv6 header and its extensions (RFC 3542 section 3). A header is put in
    /// front that says what the lost one said, as far as a tunnel asks: addresses and traffic class.
    fn recv_v6(&mut self, buf: &mut [u8]) -> io::Result<(usize, Option<u32>)> {
        let (header, payload) = buf
            .split_first_chunk_mut::<{ ipv6::HEADER_LEN }>()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut iov = [IoSliceMut::new(payload)];
        let fd = self.socket.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrStorage>(fd, &mut iov, Some(&mut self.control), flags)?;
        let (mut local, mut traffic_class) = (None, 0);
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv6PacketInfo(info) => local = Some(info),
                // The kernel writes the byte as an int.
                ControlMessageOwned::Ipv6TClass(class) => traffic_class = class as u8,
                _ => {}
            }
        }
        let remote = message.address.as_ref().and_then(|a| a.as_sockaddr_in6());
        let (Some(local), Some(remote)) = (local, remote) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let payload_len = u16::try_from(message.bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        Ipv6Header {
            traffic_class,
            flow_label: 0,
            payload_len,
            next_header: self.hears.protocol,
            hop_limit: 0,
            source: remote.ip(),
            destination: local.ipi6_addr.s6_addr.into(),
        }
        .emit(header);
        Ok((ipv6::HEADER_LEN + message.bytes, Some(local.ipi6_ifindex)))
    }
}

impl AsFd for RawReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
