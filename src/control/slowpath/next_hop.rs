//! Asking the kernel for the next hop of a packet that it has routed into a tunnel.
//!
//! A TUN device gives a packet without it. The mirror mostly knows it; the kernel always does, of routes that are newer than
//! the mirror, that stand in other tables or that depend on more than the destination (ip-route(8), `ip route get`).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::Tun;
use crate::tunnel::TunnelId;

/// How long an answer is believed.
const AGE: Duration = Duration::from_secs(1);
/// Answers that are kept; with more, all are forgotten.
const ANSWERS: usize = 4096;
/// More than an answer has.
const DATAGRAM: usize = 8192;

/// A tunnel, and an inner destination.
type Question = (TunnelId, IpAddr);

/// The kernel's latest answers, and the way to it.
pub(super) struct NextHops {
    socket: Socket,
    answers: HashMap<Question, (Option<IpAddr>, Instant)>,
    sequence: u32,
}

impl NextHops {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // The kernel answers within the call that asks.
        socket.set_non_blocking(true)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            answers: HashMap::new(),
            sequence: 0,
        })
    }

    /// The gateway of packets for `destination` that leave by a tunnel's device; none where they are on the link, or the
    /// kernel knows no such way.
    pub fn gateway(&mut self, id: TunnelId, tun: &Tun, destination: IpAddr) -> Option<IpAddr> {
        let question = (id, destination);
        if let Some((answer, since)) = self.answers.get(&question)
            && since.elapsed() < AGE
        {
            return *answer;
        }
        let device = tun.index().ok();
        let answer = device.and_then(|device| self.ask(device, destination).ok().flatten());
        if self.answers.len() >= ANSWERS {
            self.answers.clear();
        }
        self.answers.insert(question, (answer, Instant::now()));
        answer
    }

    fn ask(&mut self, device: u32, destination: IpAddr) -> io::Result<Option<IpAddr>> {
        let lookup = match destination {
            IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, 32)
                .output_interface(device)
                .build(),
            IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, 128)
                .output_interface(device)
                .build(),
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(lookup));
        request.header.flags = NLM_F_REQUEST;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answer = Vec::with_capacity(DATAGRAM);
        loop {
            answer.clear();
            self.socket.recv(&mut answer, 0)?;
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
                .map_err(io::Error::other)?;
            // An answer that was not fetched is still there.
            if message.header.sequence_number == self.sequence {
                return Ok(gateway_of(&message.payload));
            }
        }
    }
}

fn gateway_of(answer: &NetlinkPayload<RouteNetlinkMessage>) -> Option<IpAddr> {
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(RouteMessage {
        attributes,
        ..
    })) = answer
    else {
        return None;
    };
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some((*v6).into()),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    })
}
