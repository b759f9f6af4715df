//! The slow path's thread: one turn takes a burst from every source that has something.

use std::{collections::HashMap, io, net::IpAddr, ops::ControlFlow, os::fd::AsFd, sync::Arc};

use crossbeam_channel::Receiver as Inbox;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};
use tokio::sync::{Notify, mpsc};

use super::{
    Command, OuterError, ServiceTun, Shown, SlowPathError, SlowSnapshot, SlowStats, Tun, Waker,
    answers::Answers,
    icmp::ErrorSocket,
    next_hop::NextHops,
    raw::{Hears, Receiver},
    send::{RawSender, SendError, Sent, Way},
};
use crate::{
    datapath::{DropReason, Handover, PuntBuf, PuntSource, PuntTo, TunnelRecord},
    fib::{Fib, Resolution},
    packet::{self, PacketBuf, VecBuf, gre, ipv6, transport, udp},
    tunnel::{
        Family, Outer, Payload, Peers, Refusal, Size, Tunnel, TunnelId, decapsulate, encapsulate,
        keepalive,
    },
};

/// Packets taken from one source before the next has its turn.
const BURST: usize = 64;
/// Bursts taken from a punt queue that is about to go, however fast a worker still fills it.
const LAST_TURNS: usize = 64;
/// For the longest outer header: IPv6 with the encapsulation limit, UDP, and GRE with everything.
pub(super) const HEADROOM: usize = ipv6::HEADER_LEN + 8 + udp::HEADER_LEN + gre::MAX_HEADER_LEN;
/// The largest IP packet: an IPv6 header and what its length field can say.
const MAX_PACKET: usize = ipv6::HEADER_LEN + 65_535;

/// What an event's number means; a tunnel's device has the number of its slot.
const WAKER: u64 = u64::MAX;
const ERRORS: u64 = u64::MAX - 1;
const ERRORS6: u64 = u64::MAX - 2;
/// From here on: a raw socket, by what it hears.
const RECEIVERS: u64 = 1 << 32;

pub(super) struct Engine {
    epoll: OwnedFd,
    waker: Waker,
    receivers: Vec<Receiver>,
    pub(super) errors: Vec<ErrorSocket>,
    /// Where errors about our packets are told.
    pub(super) reports: mpsc::Sender<OuterError>,
    pub(super) sender: RawSender,
    pub(super) answers: Answers,
    next_hops: NextHops,
    service: Option<ServiceTun>,
    pub(super) tuns: HashMap<TunnelId, Arc<Tun>>,
    punts: Vec<(u32, PuntSource)>,
    pub(super) snapshot: SlowSnapshot,
    pub(super) stats: Arc<SlowStats>,
    /// A keepalive that was waited for has come back.
    pub(super) answered: Arc<Notify>,
    /// The owner of the sequence numbers was handed something in this turn.
    wake_owner: bool,
    /// Nothing is read: another process may.
    paused: bool,
}

impl Engine {
    pub(super) fn new(
        service: Option<ServiceTun>,
        waker: Waker,
        stats: Arc<SlowStats>,
        (reports, answered): (mpsc::Sender<OuterError>, Arc<Notify>),
    ) -> Result<Self, SlowPathError> {
        let failed = |e: Errno| SlowPathError::start("epoll")(e.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let readable = epoll::EventFlags::IN;
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKER), readable).map_err(failed)?;
        Ok(Self {
            epoll,
            waker,
            receivers: Vec::new(),
            errors: Vec::new(),
            reports,
            sender: RawSender::open()?,
            answers: Answers::new(),
            next_hops: NextHops::open().map_err(SlowPathError::start("netlink"))?,
            service,
            tuns: HashMap::new(),
            punts: Vec::new(),
            snapshot: SlowSnapshot::default(),
            stats,
            answered,
            wake_owner: false,
            paused: false,
        })
    }

    pub(super) fn run(mut self, inbox: &Inbox<Command>) {
        let mut buf = VecBuf::with_capacity(HEADROOM, MAX_PACKET);
        let mut events = Vec::with_capacity(BURST);
        let mut busy = false;
        loop {
            let at_once = busy.then(Timespec::default);
            match epoll::wait(&self.epoll, spare_capacity(&mut events), at_once.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return tracing::error!("the slow path ends: it cannot wait: {e}"),
            }
            // Commands first: what was said before a packet came holds for that packet.
            if events.iter().any(|event| event.data.u64() == WAKER) {
                self.waker.clear();
                if self.take_orders(inbox, &mut buf).is_break() {
                    return;
                }
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    WAKER => {}
                    ERRORS => self.hear_errors(Family::V4, &mut buf),
                    ERRORS6 => self.hear_errors(Family::V6, &mut buf),
                    socket if socket >= RECEIVERS => self.receive(socket, &mut buf),
                    slot => self.read_tun(TunnelId(slot as u32), &mut buf),
                }
            }
            busy = self.drain_punts(&mut buf);
            self.wake_owner();
        }
    }

    fn take_orders(&mut self, inbox: &Inbox<Command>, buf: &mut VecBuf) -> ControlFlow<()> {
        loop {
            // While paused there is nothing else to do than to wait for the next order.
            let order = match self.paused {
                true => inbox.recv().ok(),
                false => inbox.try_recv().ok(),
            };
            match order {
                Some(command) => self.obey(command, buf)?,
                None if self.paused => return ControlFlow::Break(()),
                None => return ControlFlow::Continue(()),
            }
        }
    }

    fn show(&self) -> io::Result<Shown> {
        let mut shown = Shown::default();
        for (id, tun) in &self.tuns {
            shown.tuns.push((*id, tun.clone()));
        }
        for receiver in &self.receivers {
            let socket = receiver.as_fd().try_clone_to_owned()?;
            shown.receivers.push((receiver.hears().to_pair(), socket));
        }
        if let Some(service) = &self.service {
            let device = service.as_fd().try_clone_to_owned()?;
            shown.service = Some((service.name().into(), device));
        }
        Ok(shown)
    }

    fn obey(&mut self, command: Command, buf: &mut VecBuf) -> ControlFlow<()> {
        match command {
            Command::Snapshot(snapshot, opened) => {
                self.change_receivers(&Hears::needed(snapshot.fib.tunnels()), opened);
                let receivers = self.receivers.iter();
                receivers.for_each(|receiver| receiver.follow(snapshot.fib.tunnels()));
                self.snapshot = snapshot;
                self.sender.forget();
                self.follow_errors();
            }
            Command::SetService(service) => self.service = Some(service),
            Command::AddTun(id, tun) => self.add_tun(id, tun),
            Command::RemoveTun(id) => drop(self.tuns.remove(&id)),
            Command::Keepalive(id) => self.send_keepalive(id, buf),
            Command::AddPunts(worker, source) => {
                self.remove_punts(worker, buf);
                self.punts.push((worker, source));
            }
            Command::RemovePunts(worker) => self.remove_punts(worker, buf),
            Command::Show(reply) => {
                // Whoever asked may have given up.
                let _ = reply.send(self.show());
            }
            Command::Pause(reply) => {
                self.drain_punts(buf);
                self.wake_owner();
                self.paused = true;
                let _ = reply.send(());
            }
            Command::Resume => self.paused = false,
            Command::Stop => {
                for _ in 0..LAST_TURNS {
                    if !self.drain_punts(buf) {
                        break;
                    }
                }
                self.wake_owner();
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Closes the sockets that hear what is not needed, and listens to new ones.
    fn change_receivers(&mut self, needed: &[Hears], opened: Vec<Receiver>) {
        // A closed descriptor leaves the epoll set by itself.
        self.receivers.retain(|r| needed.contains(&r.hears()));
        for receiver in opened {
            let data = epoll::EventData::new_u64(number(receiver.hears()));
            match epoll::add(&self.epoll, &receiver, data, epoll::EventFlags::IN) {
                Ok(()) => self.receivers.push(receiver),
                Err(e) => tracing::error!("cannot listen to a raw socket: {e}"),
            }
        }
    }

    fn add_tun(&mut self, id: TunnelId, tun: Tun) {
        // The earlier one's descriptor leaves the epoll set as it is closed.
        drop(self.tuns.remove(&id));
        let data = epoll::EventData::new_u64(u64::from(id.0));
        match epoll::add(&self.epoll, &tun, data, epoll::EventFlags::IN) {
            Ok(()) => drop(self.tuns.insert(id, Arc::new(tun))),
            Err(e) => tracing::error!("{}: cannot listen to the tunnel's device: {e}", tun.name()),
        }
    }

    /// Packets that the kernel routed into a tunnel.
    fn read_tun(&mut self, id: TunnelId, buf: &mut VecBuf) {
        for _ in 0..BURST {
            let Some(tun) = self.tuns.get(&id) else {
                return;
            };
            match buf.refill(HEADROOM, |room| tun.recv(room)) {
                Ok(_) => {
                    self.stats.from_devices.add(1);
                    self.enter_tunnel(id, buf);
                }
                Err(e) if again(&e) => return,
                Err(e) => {
                    // EBADFD: somebody deleted the device. It would be reported for ever.
                    tracing::warn!("{}: the tunnel's device is gone: {e}", tun.name());
                    self.tuns.remove(&id);
                    return;
                }
            }
        }
    }

    fn enter_tunnel(&mut self, id: TunnelId, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, id) else {
            return self.stats.drops.count(DropReason::UnknownTunnel);
        };
        if !tunnel.up {
            return self.drop_in(record, DropReason::TunnelDown);
        }
        if !tunnel.alive {
            return self.drop_in(record, DropReason::NoKeepalive);
        }
        let is_frame = is_frame(tunnel);
        if is_frame && !tunnel.fits(buf.data()) {
            return self.drop_in(record, DropReason::FrameTooBig);
        }
        tunnel.clamp_mss(buf.data_mut(), &record.state.counters);
        if is_frame || !tunnel.remote.is_unspecified() {
            return self.fit_in(id, tunnel.remote, buf);
        }
        let destination = match packet::destination(buf.data()) {
            Ok(destination) => destination,
            Err(error) => return self.drop_in(record, Refusal::Inner(error).into()),
        };
        if is_for_many(destination) {
            let peers = tunnel.peers.clone();
            return self.enter_for_all(id, &peers, buf);
        }
        let known = self.snapshot.fib.remote_of(tunnel, destination);
        let remote = known.or_else(|| {
            let tun = self.tuns.get(&id)?;
            let gateway = self.next_hops.gateway(id, tun, destination)?;
            tunnel.remote_of(Some(gateway), destination)
        });
        match remote {
            Some(remote) => self.fit_in(id, remote, buf),
            None => self.drop_in(record, DropReason::NoRemote),
        }
    }

    /// A copy to each peer, as an operator has it of a multipoint tunnel with a list of them (`ip nhrp map multicast`).
    fn enter_for_all(&mut self, id: TunnelId, peers: &Peers, buf: &mut VecBuf) {
        let inner: Box<[u8]> = buf.data().into();
        let copies = peers.remotes().len().saturating_sub(1);
        self.stats.copies.add(copies as u64);
        for remote in peers.remotes() {
            if copy_into(buf, &inner) {
                self.fit_in(id, *remote, buf);
            }
        }
        if let (true, Some((_, record))) = (peers.remotes().is_empty(), find(&self.snapshot, id)) {
            self.drop_in(record, DropReason::NoRemote);
        }
    }

    /// Lets a socket for errors wake the thread.
    pub(super) fn listen(&self, socket: ErrorSocket) -> io::Result<ErrorSocket> {
        let number = match socket.family {
            Family::V4 => ERRORS,
            Family::V6 => ERRORS6,
        };
        let data = epoll::EventData::new_u64(number);
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
        Ok(socket)
    }

    /// An inner packet that fits its path, or whose outer packet may be cut.
    pub(super) fn carry(&mut self, id: TunnelId, remote: IpAddr, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, id) else {
            return self.stats.drops.count(DropReason::UnknownTunnel);
        };
        // A packet to ourselves would come back and enter again (gre-8).
        if remote != tunnel.remote && self.snapshot.fib.is_own(remote) {
            return self.drop_in(record, DropReason::Recursion);
        }
        if tunnel.oseq && self.snapshot.owner.is_some() {
            let packet = Handover::IntoTunnel(id, remote, buf.data().into());
            return self.hand_over(id, packet);
        }
        match encapsulate(tunnel, remote, buf, &record.state) {
            Ok(()) => self.send(id, buf),
            Err(refusal) => self.drop_in(record, refusal.into()),
        }
    }

    /// A finished outer packet, to the underlay.
    fn send(&mut self, id: TunnelId, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, id) else {
            return self.stats.drops.count(DropReason::UnknownTunnel);
        };
        let inner_at = tunnel.inner_at(buf.data());
        let Ok(remote) = packet::destination(buf.data()) else {
            return self.drop_in(record, DropReason::SlowPathRefused);
        };
        let inner = buf.data().get(inner_at..).unwrap_or_default();
        let way = Way {
            path: (remote, tunnel.dev),
            mtu: self.snapshot.paths.get(&(id, remote)).map(|path| path.mtu),
            must_pass: tunnel.packet_in(inner).is_some_and(Size::must_pass),
        };
        match self.sender.send(buf.data_mut(), way) {
            Ok(sent) => {
                let inner_len = buf.data().len().saturating_sub(inner_at);
                record.state.counters.tx_packets.add(1);
                record.state.counters.tx_bytes.add(inner_len as u64);
                self.stats.into_tunnels.add(1);
                if sent == Sent::Fragmented {
                    self.stats.fragmented.add(1);
                }
            }
            Err(SendError::TooBig(mtu)) => self.bounced(id, remote, mtu, buf),
            Err(SendError::Refused) => self.drop_in(record, DropReason::SlowPathRefused),
        }
    }

    /// Outer packets that the kernel received.
    fn receive(&mut self, socket: u64, buf: &mut VecBuf) {
        let found = |r: &Receiver| number(r.hears()) == socket;
        let Some(at) = self.receivers.iter().position(found) else {
            return;
        };
        for _ in 0..BURST {
            let mut device = None;
            let received = buf.refill(HEADROOM, |room| {
                let (len, index) = self.receivers[at].recv(room)?;
                device = index;
                Ok(len)
            });
            match received {
                Ok(_) => {
                    self.stats.from_network.add(1);
                    match Outer::parse(buf.data(), self.snapshot.fib.tunnels(), device) {
                        Ok(outer) => self.leave_tunnel(&outer, buf),
                        Err(refusal) => self.stats.drops.count(refusal.into()),
                    }
                }
                Err(e) if again(&e) => return,
                // An error of an earlier packet; receiving it has cleared it.
                Err(_) => {}
            }
        }
    }

    fn leave_tunnel(&mut self, outer: &Outer, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, outer.tunnel) else {
            return self.stats.drops.count(DropReason::UnknownTunnel);
        };
        // A copy, where another tunnel's socket hears what only the payload tells from its own: the kernel has the packet.
        if tunnel.kernels {
            return;
        }
        // As in datapath::forward: we are no sender of what comes from anybody.
        if outer.remote != tunnel.remote && self.snapshot.fib.is_own(outer.remote) {
            return self.drop_in(record, DropReason::OuterMartian);
        }
        if outer.payload() == keepalive::PROTOCOL && keepalive::is_answer(tunnel, buf.data()) {
            return self.hear_answer(tunnel, record);
        }
        if tunnel.iseq && self.snapshot.owner.is_some() {
            return self.hand_over(outer.tunnel, Handover::FromUnderlay(buf.data().into()));
        }
        match decapsulate(tunnel, outer, buf, &record.state) {
            Ok(()) if keepalive::is_request(tunnel, buf.data()) => {
                self.send_back(outer.tunnel, buf);
            }
            Ok(()) => self.deliver(outer.tunnel, Some(outer.remote), buf),
            Err(refusal) => self.drop_in(record, refusal.into()),
        }
    }

    /// A decapsulated packet, into its tunnel's device. `from` is the outer source where it is known.
    fn deliver(&mut self, id: TunnelId, from: Option<IpAddr>, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, id) else {
            return self.stats.drops.count(DropReason::UnknownTunnel);
        };
        let Some(tun) = self.tuns.get(&id) else {
            return self.drop_in(record, DropReason::TunnelDown);
        };
        if !tunnel.fits_wire(buf.data()) {
            return self.drop_in(record, DropReason::FrameTooBig);
        }
        if tunnel.remote.is_multicast() && is_for_other_member(&self.snapshot.fib, tunnel, buf) {
            return self.drop_in(record, DropReason::OtherMember);
        }
        // As in datapath::forward: it would go round until its TTL ends (gre-8).
        if leads_back(&self.snapshot.fib, tunnel, from, buf.data()) {
            return self.drop_in(record, DropReason::Recursion);
        }
        match is_frame(tunnel) {
            true => self.complete_in_frame(buf),
            false => self.complete_checksum(buf),
        }
        tunnel.clamp_mss(buf.data_mut(), &record.state.counters);
        match tun.send(buf.data()) {
            Ok(()) => {
                record.state.counters.rx_packets.add(1);
                record.state.counters.rx_bytes.add(buf.data().len() as u64);
                self.stats.out_of_tunnels.add(1);
            }
            Err(e) => self.drop_in(record, write_refused(&e)),
        }
    }

    /// What workers passed here. True when there may be more.
    fn drain_punts(&mut self, buf: &mut VecBuf) -> bool {
        let punts = std::mem::take(&mut self.punts);
        let mut more = false;
        for (_, source) in &punts {
            more |= source.drain(BURST, |punt| self.take_punt(punt, buf)) == BURST;
        }
        self.punts = punts;
        more
    }

    fn remove_punts(&mut self, worker: u32, buf: &mut VecBuf) {
        let Some(at) = self.punts.iter().position(|(id, _)| *id == worker) else {
            return;
        };
        let (_, source) = self.punts.swap_remove(at);
        for _ in 0..LAST_TURNS {
            if source.drain(BURST, |punt| self.take_punt(punt, buf)) < BURST {
                break;
            }
        }
    }

    fn take_punt(&mut self, punt: &PuntBuf, buf: &mut VecBuf) {
        self.stats.punted.count(punt.reason);
        if !copy_into(buf, punt.packet()) {
            return self.stats.drops.count(DropReason::NoHeadroom);
        }
        match punt.to {
            PuntTo::Tunnel(id) => self.deliver(id, None, buf),
            PuntTo::Into(id) => {
                self.complete_in_frame(buf);
                self.enter_tunnel(id, buf);
            }
            PuntTo::Underlay(id) => self.send(id, buf),
            PuntTo::Service => self.hand_back(buf),
            PuntTo::Keepalive(id) => self.take_keepalive(id, buf),
            PuntTo::Owner(id) => self.pass_to_owner(id, punt, buf),
        }
    }

    /// A packet as it was received, back to the kernel.
    fn hand_back(&mut self, buf: &mut VecBuf) {
        let Some(service) = &self.service else {
            return self.stats.drops.count(DropReason::SlowPathRefused);
        };
        self.complete_checksum(buf);
        match service.send(buf.data()) {
            Ok(()) => self.stats.returned.add(1),
            Err(_) => self.stats.drops.count(DropReason::SlowPathRefused),
        }
    }

    /// A packet that its worker may not number or judge: an outer one of this tunnel, or one that routes into it.
    fn pass_to_owner(&mut self, id: TunnelId, punt: &PuntBuf, buf: &mut VecBuf) {
        match Outer::parse(buf.data(), self.snapshot.fib.tunnels(), None) {
            Ok(outer) if outer.tunnel == id => self.leave_tunnel(&outer, buf),
            _ if self.snapshot.owner.is_some() => {
                self.hand_over(id, Handover::FromOverlay(punt.from, buf.data().into()));
            }
            // The kernel forwards it into the tunnel's device, from where it comes to us.
            _ => self.hand_back(buf),
        }
    }

    /// To the owner of the sequence numbers. The caller has seen that there is one.
    fn hand_over(&mut self, id: TunnelId, packet: Handover) {
        let sent = match &self.snapshot.owner {
            Some(owner) => owner.queue.try_send(packet).is_ok(),
            None => false,
        };
        if sent {
            self.stats.handed_over.add(1);
            self.wake_owner = true;
        } else if let Some((_, record)) = find(&self.snapshot, id) {
            self.drop_in(record, DropReason::PuntQueueFull);
        } else {
            self.stats.drops.count(DropReason::PuntQueueFull);
        }
    }

    fn wake_owner(&mut self) {
        if let (true, Some(owner)) = (self.wake_owner, &self.snapshot.owner) {
            owner.waker.wake();
        }
        self.wake_owner = false;
    }

    /// What comes over a veth may have a transport checksum that the sender left to the device; the kernel takes a
    /// packet from a TUN device to be finished.
    fn complete_checksum(&self, buf: &mut VecBuf) {
        if transport::complete_checksum(buf.data_mut()) {
            self.stats.checksums_completed.add(1);
        }
    }

    fn complete_in_frame(&self, buf: &mut VecBuf) {
        if transport::complete_in_frame(buf.data_mut()) {
            self.stats.checksums_completed.add(1);
        }
    }

    pub(super) fn drop_in(&self, record: &TunnelRecord, reason: DropReason) {
        record.drops.count(reason);
        self.stats.drops.count(reason);
    }
}

pub(super) fn is_frame(tunnel: &Tunnel) -> bool {
    tunnel.mode.kind().payload == Payload::Ethernet
}

/// Whether the kernel would send a packet that came by a tunnel's group back to the group, as every other member would.
fn is_for_other_member(fib: &Fib, tunnel: &Tunnel, buf: &VecBuf) -> bool {
    let destination = packet::destination(buf.data());
    !is_frame(tunnel) && destination.is_ok_and(|to| !is_for_many(to) && fib.leads_into(tunnel, to))
}

/// Whether a packet for this address is for every station that hears it.
fn is_for_many(destination: IpAddr) -> bool {
    let is_broadcast = matches!(destination, IpAddr::V4(v4) if v4.is_broadcast());
    is_broadcast || destination.is_multicast()
}

fn is_link_local(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Whether the packet, which replaces what `buf` held, found room.
pub(super) fn copy_into(buf: &mut VecBuf, packet: &[u8]) -> bool {
    let copied = buf.refill(HEADROOM, |room| {
        let room = room.get_mut(..packet.len()).ok_or(())?;
        room.copy_from_slice(packet);
        Ok::<_, ()>(packet.len())
    });
    copied.is_ok()
}

/// The number of a raw socket's events.
fn number(hears: Hears) -> u64 {
    let family = match hears.family {
        Family::V4 => 0,
        Family::V6 => 1,
    };
    RECEIVERS | family << 8 | u64::from(hears.protocol)
}

pub(super) fn find(snapshot: &SlowSnapshot, id: TunnelId) -> Option<(&Tunnel, &TunnelRecord)> {
    let record = snapshot.records.get(id.index())?.as_deref()?;
    Some((snapshot.fib.tunnels().get(id)?, record))
}

/// Whether the kernel would send a packet that came out of `tunnel` back to the end of it that it came from.
fn leads_back(fib: &Fib, tunnel: &Tunnel, from: Option<IpAddr>, packet: &[u8]) -> bool {
    let is_frame = tunnel.mode.kind().payload == Payload::Ethernet;
    match packet::destination(packet) {
        // The kernel forwards none of these by its routes.
        Ok(to) if is_frame || is_for_many(to) || is_link_local(to) => false,
        Ok(to) => {
            let back = Some(from.unwrap_or(tunnel.remote));
            matches!(fib.resolve(to), Resolution::Tunnel(route) if route.id == tunnel.id && route.remote == back)
        }
        Err(_) => false,
    }
}

pub(super) fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Why a TUN device did not take a packet: EIO says that it is down, EBADFD that it has been deleted.
fn write_refused(error: &io::Error) -> DropReason {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::IO | Errno::BADFD) => DropReason::TunnelDown,
        _ => DropReason::SlowPathRefused,
    }
}
