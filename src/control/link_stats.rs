//! What the kernel has counted on devices (`ip -s link`), asked for when somebody wants to know.

use std::io;

use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// More than an answer about one device has.
const DATAGRAM: usize = 32 << 10;

/// Packets, and their bytes without outer headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

/// Of each device by its interface index; none of one that is gone.
pub fn of(devices: impl Iterator<Item = u32>) -> Vec<Option<LinkStats>> {
    let mut devices = devices.peekable();
    if devices.peek().is_none() {
        return Vec::new();
    }
    let mut socket = open();
    let mut ask = |n, index| ask(socket.as_mut().ok()?, n, index).ok()?;
    let numbered = devices.enumerate();
    numbered
        .map(|(n, index)| ask(n as u32 + 1, index))
        .collect()
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    // The kernel answers within the call that asks.
    socket.set_non_blocking(true)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn ask(socket: &mut Socket, sequence: u32, index: u32) -> io::Result<Option<LinkStats>> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link));
    request.header.flags = NLM_F_REQUEST;
    request.header.sequence_number = sequence;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answer = Vec::with_capacity(DATAGRAM);
    socket.recv(&mut answer, 0)?;
    let message =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload else {
        return Ok(None);
    };
    Ok(link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Stats64(s) => Some(LinkStats {
                rx_packets: s.rx_packets,
                rx_bytes: s.rx_bytes,
                tx_packets: s.tx_packets,
                tx_bytes: s.tx_bytes,
            }),
            _ => None,
        }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_has_counted_and_a_device_that_is_not_there_has_not() {
        let lo = std::fs::read_to_string("/sys/class/net/lo/ifindex").unwrap();
        let stats = of([lo.trim().parse().unwrap(), u32::MAX >> 1].into_iter());
        assert!(stats[0].is_some() && stats[1].is_none(), "{stats:?}");
    }
}
