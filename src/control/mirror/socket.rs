//! The netlink socket: subscribed to everything that the mirror holds, and dumping one part at a time.

use std::{future::poll_fn, io};

use rtnetlink::{
    MulticastGroup as Group,
    sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use rustix::net::sockopt;

use super::parts::Parts;

const GROUPS: [Group; 11] = [
    Group::Link,
    Group::Neigh,
    Group::Ipv4Ifaddr,
    Group::Ipv6Ifaddr,
    Group::Ipv4Route,
    Group::Ipv6Route,
    Group::Ipv4Rule,
    Group::Ipv6Rule,
    Group::Ipv4Netconf,
    Group::Ipv6Netconf,
    Group::Nexthop,
];

/// More than the kernel puts into one datagram: it fills dumps up to 32 KiB.
const DATAGRAM: usize = 256 * 1024;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETRULE: u16 = 34;
const RTM_GETNETCONF: u16 = 82;
const RTM_GETNEXTHOP: u16 = 106;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

pub struct RouteSocket {
    socket: TokioSocket,
    /// Our address: replies carry it, notifications do not.
    pub port: u32,
    sequence: u32,
}

/// What one attempt to receive gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A datagram is in the buffer.
    Datagram,
    Nothing,
    /// The kernel had more to tell than the receive buffer holds.
    Overrun,
}

impl RouteSocket {
    /// Opens and subscribes. `receive_buffer` is in bytes; where CAP_NET_ADMIN is missing net.core.rmem_max limits it.
    pub fn open(receive_buffer: usize) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let inner = socket.socket_mut();
        if sockopt::set_socket_recv_buffer_size_force(&*inner, receive_buffer).is_err() {
            sockopt::set_socket_recv_buffer_size(&*inner, receive_buffer)?;
        }
        let address = inner.bind_auto()?;
        for group in GROUPS {
            inner.add_membership(group as u32)?;
        }
        Ok(Self {
            socket,
            port: address.port_number(),
            sequence: 0,
        })
    }

    /// A buffer that any datagram fits in.
    pub fn buffer() -> Vec<u8> {
        Vec::with_capacity(DATAGRAM)
    }

    /// Asks for one part. Returns the sequence number that the replies will carry.
    pub fn request_dump(&mut self, part: Parts) -> io::Result<u32> {
        // 0 is what the kernel's own notifications carry.
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let request = dump_request(part, self.sequence);
        let socket = self.socket.socket_ref();
        socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
        Ok(self.sequence)
    }

    /// Waits for a datagram.
    pub async fn wait(&self, buffer: &mut Vec<u8>) -> io::Result<Received> {
        buffer.clear();
        let outcome = poll_fn(|cx| self.socket.poll_recv_from(cx, buffer)).await;
        received(outcome, buffer)
    }

    /// Takes one datagram, if there is one.
    pub fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<Received> {
        buffer.clear();
        let outcome = self.socket.socket_ref().recv_from(buffer, 0);
        received(outcome.map(|(_, from)| from), buffer)
    }
}

fn received(outcome: io::Result<SocketAddr>, buffer: &mut Vec<u8>) -> io::Result<Received> {
    match outcome {
        Ok(from) => {
            if from.port_number() != 0 {
                // Only the kernel is believed.
                buffer.clear();
            }
            Ok(Received::Datagram)
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOBUFS) => Ok(Received::Overrun),
            Some(libc::EAGAIN | libc::EINTR) => Ok(Received::Nothing),
            _ => Err(error),
        },
    }
}

/// A netlink header, the part's own header with nothing but the family in it, and for links the wish for no counters.
fn dump_request(part: Parts, sequence: u32) -> Vec<u8> {
    let (kind, header, family) = match part {
        Parts::LINKS => (RTM_GETLINK, 16, libc::AF_UNSPEC),
        Parts::ADDRESSES => (RTM_GETADDR, 8, libc::AF_UNSPEC),
        Parts::NEIGHBOURS => (RTM_GETNEIGH, 12, libc::AF_UNSPEC),
        Parts::RULES => (RTM_GETRULE, 12, libc::AF_UNSPEC),
        Parts::NETCONF4 => (RTM_GETNETCONF, 4, libc::AF_INET),
        Parts::NETCONF6 => (RTM_GETNETCONF, 4, libc::AF_INET6),
        Parts::NEXTHOPS => (RTM_GETNEXTHOP, 8, libc::AF_UNSPEC),
        Parts::ROUTES6 => (RTM_GETROUTE, 12, libc::AF_INET6),
        _ => (RTM_GETROUTE, 12, libc::AF_INET),
    };
    let mut body = vec![0; header];
    body[0] = family as u8;
    if part == Parts::LINKS {
        body.extend(8u16.to_ne_bytes());
        body.extend(IFLA_EXT_MASK.to_ne_bytes());
        body.extend(RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    }
    let mut request = Vec::with_capacity(16 + body.len());
    request.extend((16 + body.len() as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend(sequence.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend(body);
    request
}
