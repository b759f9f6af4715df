//! Inner packets that are larger than the path to the other end carries (mtu-2), and errors about outer ones (mtu-3, mtu-4).
//!
//! The tunnel's device has its MTU from the underlay's devices and routes, and the kernel sees to that one by itself. What
//! comes here has passed it, and is too large for what a router on the way said, or for a path that changed just now.

use std::{io, net::IpAddr};

use super::{
    OuterError, fragment,
    icmp::ErrorSocket,
    thread::{Engine, again, copy_into, find, is_frame},
};
use crate::{
    datapath::DropReason,
    packet::{Ethernet, Ipv4, PacketBuf, VecBuf, icmp},
    tunnel::{Family, Quoted, Size, Tunnel, TunnelId},
};

/// Errors taken before other sources have their turn.
const BURST: usize = 64;

/// What is known of the way to one outer address of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Bytes of the largest outer packet that gets through, as far as anybody said.
    pub mtu: u16,
    /// The same for the route alone: nothing larger has ever left.
    pub route_mtu: u16,
}

/// The packet whose sender may be told of it: not one that went to many stations at once (RFC 1122 section 3.2.2).
fn answerable<'p>(tunnel: &Tunnel, inner: &'p [u8]) -> Option<&'p [u8]> {
    let is_to_group = is_frame(tunnel)
        && Ethernet::parse(inner).is_ok_and(|frame| frame.destination().is_group());
    tunnel.packet_in(inner).filter(|_| !is_to_group)
}

impl Engine {
    /// Bytes of the largest outer packet to `remote`, where that is known.
    fn path(&self, tunnel: &Tunnel, remote: IpAddr) -> Option<usize> {
        let said = self.snapshot.paths.get(&(tunnel.id, remote));
        let said = said.map(|path| usize::from(path.mtu));
        let found = self.sender.known_mtu((remote, tunnel.dev));
        said.into_iter().chain(found).min()
    }

    /// An inner packet for the tunnel's other end at `remote`, whatever its size.
    pub(super) fn fit_in(&mut self, id: TunnelId, remote: IpAddr, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, id) else {
            return self.stats.drops.count(DropReason::UnknownTunnel);
        };
        if let Some(pointer) = tunnel.may_not_enter(buf.data()) {
            self.drop_in(record, DropReason::EncapLimit);
            let device = self.device(id);
            return self
                .answers
                .parameter_problem(buf.data(), pointer, device, &self.stats.icmp);
        }
        let size = match self.path(tunnel, remote) {
            Some(path) => Size::of(tunnel, buf.data(), path),
            None => Size::Fits,
        };
        match size {
            Size::Fits | Size::CutOuter => self.carry(id, remote, buf),
            size => self.too_big(id, remote, size, buf),
        }
    }

    /// A finished outer packet that was found too large for a path of `path` bytes when it was about to leave.
    pub(super) fn bounced(&mut self, id: TunnelId, remote: IpAddr, path: usize, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, id) else {
            return self.stats.drops.count(DropReason::UnknownTunnel);
        };
        let inner: Box<[u8]> = buf
            .data()
            .get(tunnel.inner_at(buf.data())..)
            .unwrap_or_default()
            .into();
        let size = Size::of(tunnel, &inner, path);
        // What fits a path and was refused all the same would be refused again.
        if matches!(size, Size::Fits | Size::CutOuter) || !copy_into(buf, &inner) {
            return self.drop_in(record, DropReason::OuterTooBig);
        }
        self.too_big(id, remote, size, buf);
    }

    fn too_big(&mut self, id: TunnelId, remote: IpAddr, size: Size, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, id) else {
            return self.stats.drops.count(DropReason::UnknownTunnel);
        };
        match size {
            Size::CutInner(room) => self.cut(id, remote, room, buf),
            Size::Refused(mtu) => {
                self.drop_in(record, DropReason::OuterTooBig);
                let device = self.device(id);
                match answerable(tunnel, buf.data()) {
                    Some(packet) => self.answers.too_big(packet, mtu, device, &self.stats.icmp),
                    None => self.stats.icmp.not_answered.add(1),
                }
            }
            Size::Fits | Size::CutOuter | Size::Lost => {
                self.drop_in(record, DropReason::OuterTooBig);
            }
        }
    }

    /// The index of a tunnel's device; 0 where it is gone.
    fn device(&self, id: TunnelId) -> u32 {
        let index = self.tuns.get(&id).and_then(|tun| tun.index().ok());
        index.unwrap_or_default()
    }

    /// Cuts an inner packet, or the one in a frame, into pieces of at most `room` bytes, each of which is encapsulated.
    fn cut(&mut self, id: TunnelId, remote: IpAddr, room: usize, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, id) else {
            return self.stats.drops.count(DropReason::UnknownTunnel);
        };
        let inner: Box<[u8]> = buf.data().into();
        let packet = tunnel.packet_in(&inner).unwrap_or_default();
        let link_header = &inner[..inner.len() - packet.len()];
        let Ok(pieces) = fragment::fragments(packet, room) else {
            return self.drop_in(record, DropReason::OuterTooBig);
        };
        self.stats.inner_fragmented.add(1);
        for (n, (header, payload)) in pieces.into_iter().enumerate() {
            self.stats.copies.add(u64::from(n > 0));
            if copy_into(buf, &[link_header, &header, payload].concat()) {
                self.carry(id, remote, buf);
            }
        }
    }

    /// Opens and closes the sockets that hear errors, as the families ask that tunnels have outside.
    pub(super) fn follow_errors(&mut self) {
        let tunnels = self.snapshot.fib.tunnels();
        for family in [Family::V4, Family::V6] {
            let needed = tunnels.iter().any(|t| t.mode.kind().underlay == family);
            let open = self.errors.iter().any(|socket| socket.family == family);
            match (needed, open) {
                (true, false) => match ErrorSocket::open(family).and_then(|s| self.listen(s)) {
                    Ok(socket) => self.errors.push(socket),
                    Err(why) => tracing::error!("path MTUs are not learned: raw socket: {why}"),
                },
                // A closed descriptor leaves the epoll set by itself.
                (false, true) => self.errors.retain(|socket| socket.family != family),
                _ => {}
            }
        }
    }

    /// Errors that routers on the way sent.
    pub(super) fn hear_errors(&mut self, family: Family, buf: &mut VecBuf) {
        let Some(at) = self.errors.iter().position(|s| s.family == family) else {
            return;
        };
        for _ in 0..BURST {
            let mut from = None;
            let received = buf.refill(0, |room| {
                let (len, sender) = self.errors[at].recv(room)?;
                from = Some(sender);
                Ok::<_, io::Error>(len)
            });
            match (received, from) {
                (Ok(_), Some(from)) => self.hear_error(family, buf.data(), from),
                (Err(e), _) if again(&e) => return,
                _ => {}
            }
        }
    }

    fn hear_error(&self, family: Family, message: &[u8], from: IpAddr) {
        let error = match family {
            Family::V4 => Ipv4::parse(message)
                .ok()
                .and_then(|ip| icmp::Error::parse(ip.payload())),
            Family::V6 => icmp::Error::parse_v6(message),
        };
        let Some(error) = error else {
            return;
        };
        let quoted = Quoted::parse(error.quoted);
        let mut ours = false;
        for id in quoted.iter().flat_map(|quoted| self.senders(quoted)) {
            let Some((_, record)) = find(&self.snapshot, id) else {
                continue;
            };
            ours = true;
            record.errors.count(error.kind);
            // When more come than the control room takes, the same ones come again.
            let _ = quoted.map(|quoted| {
                self.reports.try_send(OuterError {
                    tunnel: id,
                    remote: quoted.remote,
                    from,
                    kind: error.kind,
                })
            });
        }
        if !ours {
            self.stats.icmp.ignored.add(1);
        }
    }

    /// The tunnels that could have sent a packet: more than one where nothing tells them apart but the device that they are
    /// bound to.
    fn senders<'e>(&'e self, quoted: &'e Quoted<'_>) -> impl Iterator<Item = TunnelId> + 'e {
        let could = |tunnel: &&Tunnel| {
            let path = self.snapshot.paths.get(&(tunnel.id, quoted.remote));
            // Of a tunnel with many remotes only those that there is a way to are its peers.
            let peer = path.is_some() || tunnel.remote == quoted.remote;
            let sent = path.is_none_or(|path| quoted.len <= usize::from(path.route_mtu));
            quoted.is_of(tunnel) && peer && sent && !quoted.remote.is_multicast()
        };
        let tunnels = self.snapshot.fib.tunnels().iter();
        tunnels.filter(could).map(|tunnel| tunnel.id)
    }
}
