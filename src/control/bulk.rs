//! Many netlink requests in few system calls: the kernel carries out all that one datagram holds before `send` returns, and
//! has answered each by then.

use std::{collections::HashMap, io};

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// A request, and its flags beside those that every one has.
pub type Message = (RouteNetlinkMessage, u16);

/// Requests in one datagram. Their answers, of about a kilobyte each as the kernel counts, have to fit an ordinary receive
/// buffer (net.core.rmem_default).
const TOGETHER: usize = 128;

/// Carries out requests in their order; the outcome of each. In the calling thread's network namespace.
pub fn ask(messages: &[Message]) -> io::Result<Vec<io::Result<()>>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    // An answer does not repeat what it answers.
    socket.set_cap_ack(true)?;
    socket.set_non_blocking(true)?;
    let mut outcomes = Vec::with_capacity(messages.len());
    for (n, some) in messages.chunks(TOGETHER).enumerate() {
        let first = (n * TOGETHER) as u32;
        socket.send_to(&datagram(some, first), &SocketAddr::new(0, 0), 0)?;
        let mut answers = receive(&socket)?;
        outcomes.extend((first..).zip(some).map(|(sequence, _)| {
            let silent = || Err(io::Error::other("the kernel does not answer"));
            answers.remove(&sequence).unwrap_or_else(silent)
        }));
    }
    Ok(outcomes)
}

fn datagram(messages: &[Message], first: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sequence, (message, flags)) in (first..).zip(messages) {
        let mut message = NetlinkMessage::from(message.clone());
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.header.sequence_number = sequence;
        message.finalize();
        let at = bytes.len();
        bytes.resize(at + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[at..]);
    }
    bytes
}

/// Every answer that is there, by its sequence number.
fn receive(socket: &Socket) -> io::Result<HashMap<u32, io::Result<()>>> {
    let mut answers = HashMap::new();
    loop {
        let mut buffer = Vec::with_capacity(4096);
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(answers),
            Err(error) => return Err(error),
        }
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&buffer) else {
            continue;
        };
        if let NetlinkPayload::Error(error) = message.payload {
            let outcome = match error.code {
                None => Ok(()),
                Some(_) => Err(error.to_io()),
            };
            answers.insert(message.header.sequence_number, outcome);
        }
    }
}
