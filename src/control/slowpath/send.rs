//! Raw sockets that send: finished outer packets to the underlay, of both families.
//!
//! The sockets are of protocol 255 (IPPROTO_RAW), for which the header comes with the packet in either family (raw(7),
//! net/ipv6/raw.c). The kernel reports ICMP errors to raw sockets of the protocol that the offending packet carried, and a
//! pending one fails the next send whatever its destination: no error about a tunnel's packet is ever theirs, and they
//! receive nothing.

use std::{
    collections::{HashMap, hash_map::Entry},
    io::{self, IoSlice},
    net::{IpAddr, SocketAddrV4, SocketAddrV6},
    time::{Duration, Instant},
};

use rustix::{io::Errno, net};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    fragment::{FragmentError, fragments},
    fragment6::{Identifications, fragments as fragments6},
    raw::{BUFFER, RawError},
};
use crate::packet::{Ipv4, ipv4};

/// How long the MTU of a path is believed before the kernel is asked again.
const MTU_AGE: Duration = Duration::from_secs(1);

/// A destination, and the device that the packets are bound to.
pub type Path = (IpAddr, Option<u32>);

/// How a packet is to leave.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// By the device, or where the routing table says.
    pub path: Path,
    /// Bytes of the largest packet that gets through, as far as somebody said.
    pub mtu: Option<u16>,
    /// In fragments if need be, whatever its header says.
    pub must_pass: bool,
}

/// Why an outer packet did not leave.
#[derive(Debug)]
pub enum SendError {
    /// It may not be cut, and is larger than its path carries, in bytes.
    TooBig(usize),
    /// The kernel refused it: no route, a full queue, a filter, a device that is gone.
    Refused,
}

/// How a packet left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Whole,
    Fragmented,
}

/// Sends finished outer packets, in fragments where they do not fit and may be cut.
pub struct RawSender {
    /// By family, and by the interface index that each is bound to.
    sockets: HashMap<(bool, Option<u32>), Socket>,
    /// Path MTUs of destinations that packets proved too large for, and when they were asked for.
    mtus: HashMap<Path, (usize, Instant)>,
    identifications: Identifications,
}

impl RawSender {
    /// Opens the socket for IPv4, to learn at once whether it may; others follow when they are wanted.
    pub fn open() -> Result<Self, RawError> {
        let socket = sending_socket(false, None).map_err(RawError::open)?;
        Ok(Self {
            sockets: HashMap::from([((false, None), socket)]),
            mtus: HashMap::new(),
            identifications: Identifications::default(),
        })
    }

    /// Forgets what it knows about devices and paths: devices may have changed.
    pub fn forget(&mut self) {
        self.sockets.retain(|(_, device), _| device.is_none());
        self.mtus.clear();
    }

    /// Sends `packet`, a whole outer packet with its IP header, by the way that `way` says.
    ///
    /// An IPv4 packet is cut where it does not fit, unless it carries DF. What must pass is cut all the same, and loses its DF;
    /// so does the kernel over IPv6, which gives a tunnel for IPv6 no smaller MTU than 1280 (`ip6_tnl_xmit`).
    pub fn send(&mut self, packet: &mut [u8], way: Way) -> Result<Sent, SendError> {
        let path = way.path;
        let keeps_whole = match Ipv4::parse(packet) {
            Ok(ip) => ip.dont_fragment(),
            Err(_) => true,
        };
        let may_cut = !keeps_whole || way.must_pass;
        let said = way.mtu.map(usize::from);
        if let Some(mtu) = said.into_iter().chain(self.known_mtu(path)).min()
            && packet.len() > mtu
        {
            return self.cut(packet, mtu, path, may_cut);
        }
        match self.send_whole(&[IoSlice::new(packet)], path) {
            Err(e) if is(&e, Errno::MSGSIZE) => {
                let mtu = path_mtu(path).map_err(|_| SendError::Refused)?;
                self.mtus.insert(path, (mtu, Instant::now()));
                self.cut(packet, mtu, path, may_cut)
            }
            Err(_) => Err(SendError::Refused),
            Ok(()) => Ok(Sent::Whole),
        }
    }

    fn cut(
        &mut self,
        packet: &mut [u8],
        mtu: usize,
        path: Path,
        may_cut: bool,
    ) -> Result<Sent, SendError> {
        if !may_cut {
            return Err(SendError::TooBig(mtu));
        }
        let sent = if path.0.is_ipv6() {
            let identification = self.identifications.next();
            let pieces = fragments6(packet, mtu, identification).map_err(refused)?;
            self.send_pieces(pieces, path)
        } else {
            ipv4::clear_dont_fragment(packet);
            self.send_pieces(fragments(packet, mtu).map_err(refused)?, path)
        };
        if sent.is_err() {
            // The path may have become narrower: the next packet asks again.
            self.mtus.remove(&path);
            return Err(SendError::Refused);
        }
        Ok(Sent::Fragmented)
    }

    fn send_pieces<'a, H: AsRef<[u8]>>(
        &mut self,
        pieces: impl Iterator<Item = (H, &'a [u8])>,
        path: Path,
    ) -> io::Result<()> {
        for (header, payload) in pieces {
            self.send_whole(
                &[IoSlice::new(header.as_ref()), IoSlice::new(payload)],
                path,
            )?;
        }
        Ok(())
    }

    fn send_whole(&mut self, packet: &[IoSlice<'_>], (to, device): Path) -> io::Result<()> {
        let key = (to.is_ipv6(), device);
        let socket = match self.sockets.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(sending_socket(key.0, device)?),
        };
        let to = address((to, device), 0);
        let Err(first) = socket.send_to_vectored(packet, &to) else {
            return Ok(());
        };
        if is(&first, Errno::AGAIN) || is(&first, Errno::NOBUFS) {
            return Err(first);
        }
        // What failed may have been an error left over from another packet.
        let _ = socket.take_error();
        let again = socket.send_to_vectored(packet, &to).map(|_| ());
        let gone = |e| is(e, Errno::NODEV) || is(e, Errno::NXIO);
        if device.is_some() && again.as_ref().is_err_and(gone) {
            // A device of that index may come back.
            self.sockets.remove(&key);
        }
        again
    }

    /// What the kernel said of a path lately.
    pub fn known_mtu(&self, path: Path) -> Option<usize> {
        let (mtu, asked) = self.mtus.get(&path)?;
        (asked.elapsed() < MTU_AGE).then_some(*mtu)
    }
}

fn refused(_: FragmentError) -> SendError {
    SendError::Refused
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// The destination as sockets want it: the device is the scope of a link-local address.
fn address((to, device): Path, port: u16) -> SockAddr {
    match to {
        IpAddr::V4(to) => SocketAddrV4::new(to, port).into(),
        IpAddr::V6(to) => SocketAddrV6::new(to, port, 0, device.unwrap_or(0)).into(),
    }
}

fn domain(ipv6: bool) -> Domain {
    if ipv6 { Domain::IPV6 } else { Domain::IPV4 }
}

fn sending_socket(ipv6: bool, device: Option<u32>) -> io::Result<Socket> {
    let raw = Protocol::from(libc::IPPROTO_RAW);
    let kind = Type::RAW.nonblocking().cloexec();
    let socket = Socket::new(domain(ipv6), kind, Some(raw))?;
    if net::sockopt::set_socket_send_buffer_size_force(&socket, BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER);
    }
    // What goes to a group is for the other members.
    match ipv6 {
        true => socket.set_multicast_loop_v6(false)?,
        false => socket.set_multicast_loop_v4(false)?,
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
/// (IP_MTU in ip(7), IPV6_MTU in ipv6(7)). Connecting a datagram socket sends nothing.
fn path_mtu(path: Path) -> io::Result<usize> {
    let ipv6 = path.0.is_ipv6();
    let socket = Socket::new(domain(ipv6), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    bind_device(&socket, path.1)?;
    socket.connect(&address(path, 9))?;
    let mtu = match ipv6 {
        true => net::sockopt::ipv6_mtu(&socket)?,
        false => net::sockopt::ip_mtu(&socket)?,
    };
    Ok(mtu as usize)
}
