//! ICMP errors to the senders of inner packets: "too big", and an encapsulation limit that is used up.
//!
//! By raw sockets of ICMP that leave the IP header to the kernel: it then takes the source address from the route to the
//! sender, as `icmp_send` in net/ipv4/icmp.c does.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddrV4, SocketAddrV6},
    time::{Duration, Instant},
};

use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use socket2::{SockAddr, Socket};

use super::{icmp, stats::IcmpStats};
use crate::{packet::icmp as message, tunnel::Family};

/// Precedence "internetwork control", as RFC 1812 section 4.3.2.5 wants it of errors.
const CONTROL: u8 = 0xc0;
/// What stays of the TOS of the packet that an error is about (IPTOS_TOS_MASK).
const TOS: u8 = 0x1e;

/// Senders are told apart as far as there are places: a power of two.
const PLACES: usize = 256;
/// What the senders of one place are told at once at the most, and how often after that.
const BURST: u32 = 20;
const INTERVAL: Duration = Duration::from_millis(10);

/// Tells senders what became of their packets.
pub(super) struct Answers {
    v4: Option<Socket>,
    v6: Option<Socket>,
    limit: RateLimit,
}

impl Answers {
    pub fn new() -> Self {
        Self {
            v4: None,
            v6: None,
            limit: RateLimit::new(Instant::now()),
        }
    }

    /// Tells the sender of an inner packet to send no more than `mtu` bytes at a time, if it may be told. `device` is the
    /// index of the tunnel's device, on which a link-local sender is.
    pub fn too_big(&mut self, packet: &[u8], mtu: u16, device: u32, stats: &IcmpStats) {
        let is_v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
        let message = || match is_v6 {
            true => message::packet_too_big(packet, mtu),
            false => message::fragmentation_needed(packet, mtu),
        };
        self.tell(packet, message, device, stats);
    }

    /// Tells the sender of an inner IPv6 packet which byte of it is in the way.
    pub fn parameter_problem(
        &mut self,
        packet: &[u8],
        pointer: u32,
        device: u32,
        stats: &IcmpStats,
    ) {
        let message = || message::parameter_problem(packet, pointer);
        self.tell(packet, message, device, stats);
    }

    fn tell(
        &mut self,
        packet: &[u8],
        message: impl FnOnce() -> Vec<u8>,
        device: u32,
        stats: &IcmpStats,
    ) {
        let Some(sender) = message::answerable(packet) else {
            return stats.not_answered.add(1);
        };
        if !self.limit.allows(sender, Instant::now()) {
            return stats.rate_limited.add(1);
        }
        let message = message();
        let sent = match sender {
            IpAddr::V4(sender) => self.v4(packet, &message, SocketAddrV4::new(sender, 0)),
            IpAddr::V6(sender) => {
                let scope = if sender.is_unicast_link_local() {
                    device
                } else {
                    0
                };
                let to = SocketAddrV6::new(sender, 0, 0, scope);
                opened(&mut self.v6, Family::V6)
                    .and_then(|socket| send(socket, &message, to.into()))
            }
        };
        match sent {
            Ok(()) => stats.answered.add(1),
            Err(_) => stats.not_answered.add(1),
        }
    }

    fn v4(&mut self, packet: &[u8], message: &[u8], to: SocketAddrV4) -> io::Result<()> {
        let socket = opened(&mut self.v4, Family::V4)?;
        let tos = packet.get(1).map_or(0, |tos| tos & TOS);
        socket.set_tos_v4((CONTROL | tos).into())?;
        send(socket, message, to.into())
    }
}

fn send(socket: &Socket, message: &[u8], to: SockAddr) -> io::Result<()> {
    if socket.send_to(message, &to).is_ok() {
        return Ok(());
    }
    // What failed may have been an error left over from another message.
    let _ = socket.take_error();
    socket.send_to(message, &to).map(|_| ())
}

fn opened(socket: &mut Option<Socket>, family: Family) -> io::Result<&Socket> {
    if socket.is_none() {
        // Nothing is received here.
        let new = icmp::socket(family, &[])?;
        new.set_recv_buffer_size(0)?;
        if family == Family::V4 {
            // No DF, as the kernel's own errors (icmp_init() in net/ipv4/icmp.c).
            set_ip_mtu_discover(&new, Ipv4PathMtuDiscovery::DONT)?;
        }
        *socket = Some(new);
    }
    socket
        .as_ref()
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Bounds what each sender is told (mtu-5): a token bucket for every place, kept as the moment when it is full again.
struct RateLimit {
    full: Box<[Instant; PLACES]>,
    hasher: RandomState,
}

impl RateLimit {
    fn new(now: Instant) -> Self {
        Self {
            full: Box::new([now; PLACES]),
            hasher: RandomState::new(),
        }
    }

    fn allows(&mut self, sender: IpAddr, now: Instant) -> bool {
        let place = self.hasher.hash_one(sender) as usize % PLACES;
        let full = self.full[place].max(now) + INTERVAL;
        let allowed = full - now <= INTERVAL * BURST;
        if allowed {
            self.full[place] = full;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtu_5_a_sender_is_told_a_few_times_at_once_and_then_at_a_steady_rate() {
        let start = Instant::now();
        let mut limit = RateLimit::new(start);
        let sender = IpAddr::from([10, 0, 0, 1]);
        let mut allowed = |after: Duration, asked: usize| {
            let at = start + after;
            (0..asked).filter(|_| limit.allows(sender, at)).count()
        };
        assert_eq!(allowed(Duration::ZERO, 1000), 20);
        assert_eq!(allowed(INTERVAL / 2, 10), 0);
        assert_eq!(allowed(INTERVAL, 10), 1);
        assert_eq!(allowed(INTERVAL * 6, 10), 5);
        // Full again, and not more than full.
        assert_eq!(allowed(Duration::from_secs(60), 1000), 20);
    }

    #[test]
    fn mtu_5_one_sender_does_not_silence_the_others() {
        let now = Instant::now();
        let mut limit = RateLimit::new(now);
        let flood = IpAddr::from([10, 0, 0, 1]);
        while limit.allows(flood, now) {}
        let others = (0..=255).map(|n| IpAddr::from([10, 9, 0, n]));
        let told = others.filter(|other| limit.allows(*other, now)).count();
        // Only those that share the flood's place are not, and they are few.
        assert!(told > 240, "{told}");
    }
}
