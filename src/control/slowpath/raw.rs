//! Sockets that receive: outer packets, as the kernel delivers them.
//!
//! One raw socket per family and protocol, and none that no tunnel needs: every packet of its protocol that comes to this host
//! is copied to a raw socket. GRE in UDP has a UDP socket instead.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use rustix::net::{
    self,
    sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::udp;
use crate::{
    packet::{Ipv4Header, Ipv6Header, UdpHeader, ipv4, ipv6, protocol, udp::HEADER_LEN as UDP_LEN},
    tunnel::{Family, GRE_IN_UDP_PORT, Mode, Payload, Shim, TunnelTable},
};

/// What the kernel may hold for us while we are busy. Bytes.
pub(super) const BUFFER: usize = 4 << 20;

/// Why a raw socket is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    #[error("a raw socket for tunnels needs CAP_NET_RAW in this network namespace; run as root")]
    Denied,
    #[error(
        "UDP port 4754 is taken over {}: GRE in UDP needs it alone; see `ss -uanp sport = :4754` and `ip fou show`",
        .0.as_str()
    )]
    PortTaken(Family),
    #[error("cannot {what} socket: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

impl RawError {
    pub(super) fn open(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => RawError::Denied,
            _ => RawError::io("open a raw", source),
        }
    }

    fn io(what: &'static str, source: io::Error) -> Self {
        RawError::Io { what, source }
    }
}

/// What a socket hears: the packets of one protocol over one family. Of UDP it is GRE's port alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hears {
    pub family: Family,
    pub protocol: u8,
}

impl Hears {
    /// Whether over IPv6, and the protocol: as it is handed over.
    pub fn to_pair(self) -> (bool, u8) {
        (self.family == Family::V6, self.protocol)
    }

    pub fn from_pair((v6, protocol): (bool, u8)) -> Self {
        let family = if v6 { Family::V6 } else { Family::V4 };
        Self { family, protocol }
    }

    const UDP6: Hears = Hears {
        family: Family::V6,
        protocol: protocol::UDP,
    };

    /// What these tunnels need, those that are down included: they come and go without new sockets.
    pub fn needed(table: &TunnelTable) -> Vec<Hears> {
        let mut needed = Vec::new();
        for tunnel in table.iter().filter(|tunnel| !tunnel.kernels) {
            let hears = Hears::of(tunnel.mode, tunnel.udp.is_some());
            needed.extend(
                hears
                    .filter(|hears| !needed.contains(hears))
                    .collect::<Vec<_>>(),
            );
        }
        needed
    }

    /// What a tunnel needs.
    pub fn of(mode: Mode, in_udp: bool) -> impl Iterator<Item = Hears> {
        let kind = mode.kind();
        let protocols: &[u8] = match (kind.shim, kind.payload) {
            (Shim::Gre, _) if in_udp => &[protocol::UDP],
            (Shim::Gre, _) => &[protocol::GRE],
            (Shim::None, Payload::Ipv4) => &[protocol::IPIP],
            (Shim::None, Payload::Ipv6) => &[protocol::IPV6],
            (Shim::None, _) => &[protocol::IPIP, protocol::IPV6],
        };
        protocols.iter().map(|protocol| Hears {
            family: kind.underlay,
            protocol: *protocol,
        })
    }
}

/// Receives every packet of one protocol that the kernel delivers locally over one family: what XDP passed, put together
/// and with its options.
pub(super) struct Receiver {
    socket: Socket,
    hears: Hears,
    control: Vec<u8>,
}

/// Room for what a socket says of a packet.
fn control_space() -> Vec<u8> {
    nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo, libc::c_int)
}

/// What the IP header said that a socket keeps to itself, as far as a tunnel asks.
struct Arrival {
    local: IpAddr,
    remote: SocketAddr,
    tos: u8,
    /// The index of the device that the packet came in by.
    device: Option<u32>,
    /// Bytes of payload.
    len: usize,
}

impl Receiver {
    pub fn open(hears: Hears) -> Result<Self, RawError> {
        let socket = match hears.protocol {
            protocol::UDP => udp::open(hears.family)?,
            _ => open_raw(hears)?,
        };
        // Beyond net.core.rmem_max where we may; else as far as that allows. A small buffer loses packets, no more.
        if net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(BUFFER);
        }
        Ok(Self {
            socket,
            hears,
            control: control_space(),
        })
    }

    /// A socket that another process has opened so, and handed over with what it has received.
    pub fn handed(hears: Hears, socket: OwnedFd) -> Self {
        Self {
            socket: socket.into(),
            hears,
            control: control_space(),
        }
    }

    pub fn hears(&self) -> Hears {
        self.hears
    }

    /// Takes what these tunnels want.
    pub fn follow(&self, table: &TunnelTable) {
        if self.hears == Hears::UDP6 {
            if let Err(e) = udp::follow(&self.socket, table) {
                tracing::error!("cannot set UDP_NO_CHECK6_RX: {e}");
            }
        }
    }

    /// Receives one outer packet, whole, beginning with its IP header: its length, and the index of the device that
    /// it came in by. `WouldBlock` when there is none; any other error is an ICMP error of some earlier packet.
    pub fn recv(&mut self, buf: &mut [u8]) -> io::Result<(usize, Option<u32>)> {
        match (self.hears.protocol, self.hears.family) {
            (protocol::UDP, _) => self.recv_udp(buf),
            (_, Family::V4) => self.recv_v4(buf),
            (_, Family::V6) => self.recv_v6(buf),
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
    /// front that says what the lost one said.
    fn recv_v6(&mut self, buf: &mut [u8]) -> io::Result<(usize, Option<u32>)> {
        let payload = buf.get_mut(ipv6::HEADER_LEN..).unwrap_or_default();
        let arrival = self.arrival(payload)?;
        arrival.emit_ip(buf, self.hears.protocol, arrival.len)
    }

    /// The same for a UDP socket, which keeps the UDP header, too. The kernel has verified the checksum: over IPv6, where a
    /// tunnel asks for one, a right one is put in its place.
    fn recv_udp(&mut self, buf: &mut [u8]) -> io::Result<(usize, Option<u32>)> {
        let ip_len = match self.hears.family {
            Family::V4 => ipv4::HEADER_LEN,
            Family::V6 => ipv6::HEADER_LEN,
        };
        let payload = buf.get_mut(ip_len + UDP_LEN..).unwrap_or_default();
        let arrival = self.arrival(payload)?;
        let len = UDP_LEN + arrival.len;
        let received = arrival.emit_ip(buf, protocol::UDP, len)?;
        let (ip, rest) = buf.split_at_mut(ip_len);
        let header = UdpHeader {
            source_port: arrival.remote.port(),
            destination_port: GRE_IN_UDP_PORT,
        };
        let addresses = ip.get(8..40).filter(|_| arrival.local.is_ipv6());
        header.emit(&mut rest[..len], addresses);
        Ok(received)
    }

    fn arrival(&mut self, payload: &mut [u8]) -> io::Result<Arrival> {
        let mut iov = [IoSliceMut::new(payload)];
        let fd = self.socket.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrStorage>(fd, &mut iov, Some(&mut self.control), flags)?;
        let (mut local, mut device, mut tos) = (None, None, 0);
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    local = Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
                    device = u32::try_from(info.ipi_ifindex).ok();
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    local = Some(IpAddr::from(info.ipi6_addr.s6_addr));
                    device = Some(info.ipi6_ifindex);
                }
                ControlMessageOwned::Ipv4Tos(byte) => tos = byte,
                // The kernel writes the byte as an int.
                ControlMessageOwned::Ipv6TClass(class) => tos = class as u8,
                _ => {}
            }
        }
        let remote = message.address.as_ref().and_then(|address| {
            let v4 = address
                .as_sockaddr_in()
                .map(|a| SocketAddr::V4((*a).into()));
            v4.or_else(|| (address.as_sockaddr_in6()).map(|a| SocketAddr::V6((*a).into())))
        });
        let (Some(local), Some(remote)) = (local, remote) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        Ok(Arrival {
            local,
            remote,
            tos,
            device,
            len: message.bytes,
        })
    }
}

impl Arrival {
    /// Writes an IP header into the front of `buf`, before `len` bytes that are there already: the packet's length, and the
    /// device.
    fn emit_ip(
        &self,
        buf: &mut [u8],
        protocol: u8,
        len: usize,
    ) -> io::Result<(usize, Option<u32>)> {
        let wrong = |_| io::Error::from(io::ErrorKind::InvalidData);
        let short = || io::Error::from(io::ErrorKind::InvalidInput);
        let total = match (self.local, self.remote.ip()) {
            (IpAddr::V4(destination), IpAddr::V4(source)) => {
                let total = ipv4::HEADER_LEN + len;
                let header = Ipv4Header {
                    tos: self.tos,
                    total_len: u16::try_from(total).map_err(wrong)?,
                    identification: 0,
                    dont_fragment: false,
                    ttl: 0,
                    protocol,
                    source,
                    destination,
                };
                header.emit(buf.first_chunk_mut().ok_or_else(short)?);
                total
            }
            (IpAddr::V6(destination), IpAddr::V6(source)) => {
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: 0,
                    payload_len: u16::try_from(len).map_err(wrong)?,
                    next_header: protocol,
                    hop_limit: 0,
                    source,
                    destination,
                };
                header.emit(buf.first_chunk_mut().ok_or_else(short)?);
                ipv6::HEADER_LEN + len
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok((total, self.device))
    }
}

fn open_raw(hears: Hears) -> Result<Socket, RawError> {
    let domain = match hears.family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let protocol = Protocol::from(i32::from(hears.protocol));
    let kind = Type::RAW.nonblocking().cloexec();
    let socket = Socket::new(domain, kind, Some(protocol)).map_err(RawError::open)?;
    let failed = |what| move |e: nix::Error| RawError::io(what, e.into());
    match hears.family {
        Family::V4 => {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)
                .map_err(failed("set IP_PKTINFO on a raw"))?;
            // Else the kernel believes every error about a packet of this protocol, whatever its key, and holds our own
            // packets to it (`raw_err` in net/ipv4/raw.c).
            set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::OMIT)
                .map_err(|e| RawError::io("set IP_MTU_DISCOVER on a raw", e.into()))?;
        }
        Family::V6 => {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)
                .map_err(failed("set IPV6_RECVPKTINFO on a raw"))?;
            setsockopt(&socket, sockopt::Ipv6RecvTClass, &true)
                .map_err(failed("set IPV6_RECVTCLASS on a raw"))?;
        }
    }
    Ok(socket)
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
