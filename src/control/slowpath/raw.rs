//! Raw sockets: outer packets from the kernel, and outer packets to the underlay.
//!
//! Receiving and sending have sockets of their own. The kernel reports ICMP errors to raw sockets of the protocol
//! that the offending packet carried (raw(7)), and a pending one fails the next send whatever its destination. The
//! sending sockets are of protocol 255 (IPPROTO_RAW): no error about GRE is ever theirs, and they receive nothing.

use std::{
    collections::{HashMap, hash_map::Entry},
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use rustix::{io::Errno, net};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::fragment::{FragmentError, fragments};
use crate::{
    datapath::DropReason,
    packet::{Ipv4, protocol},
};

/// What the kernel may hold for us while we are busy. Bytes.
const BUFFER: usize = 4 << 20;

/// How long the MTU of a path is believed before the kernel is asked again.
const MTU_AGE: Duration = Duration::from_secs(1);

/// Why a raw socket is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    #[error("a raw socket for GRE needs CAP_NET_RAW in this network namespace; run as root")]
    Denied,
    #[error("cannot {what} a raw socket: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

impl RawError {
    fn open(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => RawError::Denied,
            _ => RawError::io("open", source),
        }
    }

    fn io(what: &'static str, source: io::Error) -> Self {
        RawError::Io { what, source }
    }
}

/// Receives every GRE packet that the kernel delivers locally: what XDP passed, put together and with its options.
/// Attach a socket filter through the file descriptor to see those of our tunnels only.
pub struct RawReceiver {
    socket: Socket,
    control: Vec<u8>,
}

impl RawReceiver {
    pub fn open() -> Result<Self, RawError> {
        let gre = Protocol::from(i32::from(protocol::GRE));
        let socket = Socket::new(Domain::IPV4, Type::RAW.nonblocking().cloexec(), Some(gre))
            .map_err(RawError::open)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)
            .map_err(|e| RawError::io("set IP_PKTINFO on", e.into()))?;
        // Beyond net.core.rmem_max where we may; else as far as that allows. A small buffer loses packets, no more.
        if net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(BUFFER);
        }
        Ok(Self {
            socket,
            control: nix::cmsg_space!(libc::in_pktinfo),
        })
    }

    /// Receives one outer packet, whole, beginning with its IP header: its length, and the index of the device that
    /// it came in by. `WouldBlock` when there is none; any other error is an ICMP error of some earlier packet.
    pub fn recv(&mut self, buf: &mut [u8]) -> io::Result<(usize, Option<u32>)> {
        let mut iov = [IoSliceMut::new(buf)];
        let message = recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut iov,
            Some(&mut self.control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let device = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => u32::try_from(info.ipi_ifindex).ok(),
            _ => None,
        });
        Ok((message.bytes, device))
    }
}

impl AsFd for RawReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Why an outer packet did not leave.
#[derive(Debug)]
pub enum SendError {
    /// It is larger than the path's MTU and carries DF. Whoever answers the inner sender with an ICMP error does it
    /// on this.
    TooBig,
    /// The kernel refused it: no route, a full queue, a filter, a device that is gone.
    Refused(io::Error),
}

impl From<SendError> for DropReason {
    fn from(error: SendError) -> Self {
        match error {
            SendError::TooBig => DropReason::OuterTooBig,
            SendError::Refused(_) => DropReason::SlowPathRefused,
        }
    }
}

/// How a packet left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Whole,
    Fragmented,
}

/// Sends finished outer IPv4 packets, in fragments where they do not fit and may be cut.
pub struct RawSender {
    /// By the interface index that each is bound to.
    sockets: HashMap<Option<u32>, Socket>,
    /// Path MTUs of destinations that packets proved too large for, and when they were asked for.
    mtus: HashMap<(Ipv4Addr, Option<u32>), (usize, Instant)>,
}

impl RawSender {
    pub fn open() -> Result<Self, RawError> {
        let socket = sending_socket(None).map_err(RawError::open)?;
        Ok(Self {
            sockets: HashMap::from([(None, socket)]),
            mtus: HashMap::new(),
        })
    }

    /// Forgets what it knows about devices and paths: devices may have changed.
    pub fn forget(&mut self) {
        self.sockets.retain(|device, _| device.is_none());
        self.mtus.clear();
    }

    /// Sends `packet`, a whole outer packet with its IPv4 header, through the interface with index `device`, or
    /// where the routing table says.
    pub fn send(&mut self, packet: &[u8], device: Option<u32>) -> Result<Sent, SendError> {
        let malformed = || SendError::Refused(io::ErrorKind::InvalidData.into());
        let ip = Ipv4::parse(packet).map_err(|_| malformed())?;
        let path = (ip.destination(), device);
        if !ip.dont_fragment() && self.known_mtu(path).is_some_and(|mtu| packet.len() > mtu) {
            return self.send_fragments(packet, path);
        }
        match self.send_whole(&[IoSlice::new(packet)], path) {
            Err(e) if is(&e, Errno::MSGSIZE) && ip.dont_fragment() => Err(SendError::TooBig),
            Err(e) if is(&e, Errno::MSGSIZE) => self.send_fragments(packet, path),
            Err(e) => Err(SendError::Refused(e)),
            Ok(()) => Ok(Sent::Whole),
        }
    }

    fn send_fragments(&mut self, packet: &[u8], path: Path) -> Result<Sent, SendError> {
        let mtu = match self.known_mtu(path) {
            Some(mtu) => mtu,
            None => {
                let mtu = path_mtu(path).map_err(SendError::Refused)?;
                self.mtus.insert(path, (mtu, Instant::now()));
                mtu
            }
        };
        let pieces = fragments(packet, mtu).map_err(|e| match e {
            FragmentError::DontFragment => SendError::TooBig,
            e => SendError::Refused(io::Error::other(format!("{e:?}"))),
        })?;
        for (header, payload) in pieces {
            let sent = self.send_whole(&[IoSlice::new(&header), IoSlice::new(payload)], path);
            if let Err(e) = sent {
                // The path may have become narrower: the next packet asks again.
                self.mtus.remove(&path);
                return Err(SendError::Refused(e));
            }
        }
        Ok(Sent::Fragmented)
    }

    fn send_whole(&mut self, packet: &[IoSlice<'_>], (to, device): Path) -> io::Result<()> {
        let socket = match self.sockets.entry(device) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(sending_socket(device)?),
        };
        let to = SockAddr::from(SocketAddrV4::new(to, 0));
        let Err(first) = socket.send_to_vectored(packet, &to) else {
            return Ok(());
        };
        if is(&first, Errno::AGAIN) || is(&first, Errno::NOBUFS) {
            return Err(first);
        }
        // What failed may have been an error left over from another packet.
        let _ = socket.take_error();
        let again = socket.send_to_vectored(packet, &to).map(|_| ());
        if again
            .as_ref()
            .is_err_and(|e| is(e, Errno::NODEV) || is(e, Errno::NXIO))
        {
            // A device of that index may come back.
            self.sockets
                .retain(|bound, _| bound.is_none() || *bound != device);
        }
        again
    }

    fn known_mtu(&self, path: Path) -> Option<usize> {
        let (mtu, asked) = self.mtus.get(&path)?;
        (asked.elapsed() < MTU_AGE).then_some(*mtu)
    }
}

/// A destination, and the device that the packets are bound to.
type Path = (Ipv4Addr, Option<u32>);

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn sending_socket(device: Option<u32>) -> io::Result<Socket> {
    let raw = Protocol::from(libc::IPPROTO_RAW);
    let socket = Socket::new(Domain::IPV4, Type::RAW.nonblocking().cloexec(), Some(raw))?;
    socket.set_header_included_v4(true)?;
    if net::sockopt::set_socket_send_buffer_size_force(&socket, BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER);
    }
    bind_device(&socket, device)?;
    Ok(socket)
}

fn bind_device(socket: &Socket, device: Option<u32>) -> io::Result<()> {
    if let Some(index) = device {
        let name = net::netdevice::index_to_name(socket, index)?;
        socket.bind_device(Some(name.as_bytes()))?;
    }
    Ok(())
}

/// The MTU of the path to a destination as the kernel knows it: the route's, the device's, or a learned one
/// (IP_MTU in ip(7)). Connecting a datagram socket sends nothing.
fn path_mtu((to, device): Path) -> io::Result<usize> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    bind_device(&socket, device)?;
    socket.connect(&SockAddr::from(SocketAddrV4::new(to, 9)))?;
    Ok(net::sockopt::ip_mtu(&socket)? as usize)
}
