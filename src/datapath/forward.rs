//! The forwarding decision: one packet in, one verdict out.

use std::{net::IpAddr, sync::Arc};

use super::{
    DropReason, PuntReason, PuntTo, Verdict, WorkerStats, capture::TrailNotes, stats::TunnelRecord,
    wire,
};
use crate::{
    fib::{
        Adjacency, Fib, IntoTunnel, OnPort, PortId, PortInfo, Resolution, ResolutionCache, Used,
    },
    packet::{
        self, EtherType, Ethernet, Ipv4, Ipv6, PacketBuf, ParseError, ethernet, flow, ipv4, ipv6,
        protocol, transport,
    },
    tunnel::{self, GRE_IN_UDP_PORT, Outer, Payload, Refusal, Tunnel, TunnelId, keepalive},
};

/// What changes with packets and belongs to one worker. It outlives every snapshot.
#[derive(Debug)]
pub struct ForwardState {
    pub stats: Arc<WorkerStats>,
    /// One record per tunnel slot.
    pub tunnels: Vec<Option<Arc<TunnelRecord>>>,
    /// This worker owns the sequence numbers of all tunnels that have them.
    pub owns_sequences: bool,
    pub resolutions: ResolutionCache,
    /// The tunnels that the packet at hand has to do with, for whoever captures it.
    pub trail: TrailNotes,
}

impl ForwardState {
    #[inline]
    pub(super) fn tunnel(&self, id: TunnelId) -> Option<&TunnelRecord> {
        record(&self.tunnels, id)
    }

    #[inline]
    pub(super) fn drop_in(&self, id: TunnelId, reason: impl Into<DropReason>) -> Verdict {
        let reason = reason.into();
        if let Some(record) = self.tunnel(id) {
            record.drops.count(reason);
        }
        Verdict::Drop(reason)
    }
}

#[inline]
fn record(tunnels: &[Option<Arc<TunnelRecord>>], id: TunnelId) -> Option<&TunnelRecord> {
    tunnels.get(id.index())?.as_deref()
}

/// The port that a frame belongs to which was received by the socket of `socket`: a VLAN device by its outer tag, else that
/// one itself. On a wire every frame is the wire's, with whatever tags.
#[inline]
pub fn receiver(frame: &[u8], socket: PortId, fib: &Fib) -> PortId {
    let Some(vid) = ethernet::vlan_of(frame) else {
        return socket;
    };
    let wired = fib.port(socket).is_some_and(|port| port.wire.is_some());
    let vlan = (!wired).then(|| fib.vlan(OnPort { port: socket, vid }));
    vlan.flatten().unwrap_or(socket)
}

/// Decides what becomes of a frame that belongs to port `from` ([`receiver`]), and rewrites it in place. `fib` is an
/// immutable snapshot. The verdict is not counted here but by the caller, who sees whether it could be carried out; what
/// goes into and comes out of a tunnel is counted here, per tunnel.
#[inline]
pub fn forward<B: PacketBuf>(
    packet: &mut B,
    from: PortId,
    fib: &Fib,
    state: &mut ForwardState,
) -> Verdict {
    let Some(port) = fib.port(from) else {
        return Verdict::Drop(DropReason::NotIp);
    };
    if let Some(on) = port.vlan {
        // From here on it is as if the VLAN device had received it.
        if ethernet::vlan_of(packet.data()) != Some(on.vid) || ethernet::pop_tag(packet).is_err() {
            return Verdict::Drop(DropReason::VlanTag);
        }
    }
    if let Some(id) = port.wire {
        return wire::enter(packet, (port, id), fib, state);
    }
    let Ok(frame) = Ethernet::parse(packet.data()) else {
        return Verdict::Drop(DropReason::NotIp);
    };
    let ether_type = frame.ether_type();
    let has_role = port.underlay || port.overlay;
    if ether_type.is_tag() || !has_role {
        return Verdict::Drop(DropReason::VlanTag);
    }
    let is_other = frame.destination() != port.mac;
    if is_other && !(port.underlay && is_to_group(&frame)) {
        return Verdict::Drop(DropReason::OtherMac);
    }
    if ether_type != EtherType::IPV4 && ether_type != EtherType::IPV6 {
        return Verdict::Drop(DropReason::NotIp);
    }
    let tunnelled = port.underlay && may_be_tunnelled(ether_type, frame.payload());
    if packet.trim_front(ethernet::HEADER_LEN).is_err() {
        return Verdict::Drop(DropReason::NotIp);
    }
    if tunnelled {
        match from_underlay(packet, Some(port), fib, state) {
            // Somebody else's tunnel, on its way through: the packet is as it came.
            Verdict::Punt(PuntReason::UnknownTunnel, _) if port.overlay && !is_other => {}
            verdict => return verdict,
        }
    } else if is_other {
        return Verdict::Drop(DropReason::OtherMac);
    }
    from_overlay(packet, port, fib, state)
}

/// Whether a frame for more than one station carries a packet to a group, as tunnels with a multicast remote receive.
fn is_to_group(frame: &Ethernet<'_>) -> bool {
    let destination = packet::destination(frame.payload());
    frame.destination().is_group() && destination.is_ok_and(|ip| ip.is_multicast())
}

/// Whether an IP packet has a protocol that tunnels use; destination options may hold an encapsulation limit.
#[inline]
fn may_be_tunnelled(ether_type: EtherType, packet: &[u8]) -> bool {
    let (next, at) = match (ether_type, packet.first()) {
        (EtherType::IPV6, _) => (packet.get(6), ipv6::HEADER_LEN),
        (_, first) => (
            packet.get(9),
            first.map_or(0, |b| usize::from(b & 0x0f) * 4),
        ),
    };
    match next {
        Some(&(protocol::GRE | protocol::IPIP | protocol::IPV6)) => true,
        Some(&protocol::UDP) => packet.get(at + 2..at + 4) == Some(&GRE_IN_UDP_PORT.to_be_bytes()),
        Some(&protocol::DESTINATION_OPTIONS) => ether_type == EtherType::IPV6,
        _ => false,
    }
}

/// As [`forward`], for a packet that the slow path or another worker handed over; it begins with its IP header.
pub fn forward_handover<B: PacketBuf>(
    packet: &mut B,
    kind: HandoverKind,
    fib: &Fib,
    state: &mut ForwardState,
) -> Verdict {
    match kind {
        HandoverKind::IntoTunnel(id, remote) => into_tunnel(packet, (id, remote), fib, state),
        HandoverKind::FromUnderlay => from_underlay(packet, None, fib, state),
        HandoverKind::FromOverlay(from) => match fib.port(from) {
            Some(port) => from_overlay(packet, port, fib, state),
            None => Verdict::Drop(DropReason::NotIp),
        },
    }
}

/// Where a handed-over packet comes from; see [`super::Handover`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandoverKind {
    IntoTunnel(TunnelId, IpAddr),
    FromUnderlay,
    FromOverlay(PortId),
}

/// A packet that a router may forward without looking further into it.
struct Plain {
    source: IpAddr,
    destination: IpAddr,
    len: usize,
}

/// Whether an inner packet is plain; otherwise why it is the kernel's.
#[inline(always)]
fn plain(packet: &[u8]) -> Result<Plain, PuntReason> {
    let not_plain = |_: ParseError| PuntReason::NotPlain;
    if packet.first().is_some_and(|byte| byte >> 4 == 6) {
        let ip = Ipv6::parse(packet).map_err(not_plain)?;
        let (source, destination) = (ip.source(), ip.destination());
        let odd = |a: std::net::Ipv6Addr| {
            a.is_multicast() || a.is_loopback() || a.is_unspecified() || a.is_unicast_link_local()
        };
        if ip.has_extension() || odd(source) || odd(destination) {
            return Err(PuntReason::NotPlain);
        }
        if ip.hop_limit() <= 1 {
            return Err(PuntReason::TtlExpiring);
        }
        return Ok(Plain {
            source: source.into(),
            destination: destination.into(),
            len: ip.total_len(),
        });
    }
    let ip = Ipv4::parse(packet).map_err(not_plain)?;
    let (source, destination) = (ip.source(), ip.destination());
    let odd = |a: std::net::Ipv4Addr| {
        a.is_multicast()
            || a.is_loopback()
            || a.is_broadcast()
            || a.is_link_local()
            || a.octets()[0] == 0
    };
    if ip.has_options() || ip.is_fragment() || odd(source) || odd(destination) {
        return Err(PuntReason::NotPlain);
    }
    if ip.ttl() <= 1 {
        return Err(PuntReason::TtlExpiring);
    }
    Ok(Plain {
        source: source.into(),
        destination: destination.into(),
        len: ip.total_len(),
    })
}

/// Takes one off TTL or hop limit; the packet was found to have more than one.
#[inline]
fn decrement(packet: &mut [u8], destination: IpAddr) {
    match destination {
        IpAddr::V4(_) => ipv4::decrement_ttl(packet),
        IpAddr::V6(_) => ipv6::decrement_hop_limit(packet),
    };
}

/// Puts the Ethernet header of `adjacency` in front of an IP packet.
#[inline(always)]
fn transmit<B: PacketBuf>(packet: &mut B, adjacency: &Adjacency, used: &Used) -> Verdict {
    let ether_type = match packet.data().first().map(|byte| byte >> 4) {
        Some(6) => EtherType::IPV6,
        _ => EtherType::IPV4,
    };
    let Ok(frame) = packet.prepend(ethernet::HEADER_LEN) else {
        return Verdict::Drop(DropReason::NoHeadroom);
    };
    ethernet::write(frame, adjacency.destination, adjacency.source, ether_type);
    used.note(adjacency.mark);
    match adjacency.vlan.map(|vid| ethernet::push_tag(packet, vid)) {
        Some(Err(_)) => Verdict::Drop(DropReason::NoHeadroom),
        _ => Verdict::Transmit(adjacency.port),
    }
}

/// An inner packet from an overlay device: into the tunnel that its route names.
#[inline]
fn from_overlay<B: PacketBuf>(
    packet: &mut B,
    port: &PortInfo,
    fib: &Fib,
    state: &mut ForwardState,
) -> Verdict {
    let to_kernel = |reason| Verdict::Punt(reason, PuntTo::Service);
    let inner = match plain(packet.data()) {
        Ok(inner) => inner,
        Err(reason) => return to_kernel(reason),
    };
    if fib.is_own(inner.source) {
        return to_kernel(PuntReason::NotPlain);
    }
    // The steering program leaves these to the kernel; the service device would forward them all the same.
    if !port.forwards.family_of(inner.destination) {
        return Verdict::Drop(DropReason::ForwardingOff);
    }
    let flow = || flow::hash(packet.data());
    let route = match state.resolutions.resolve(fib, inner.destination, flow) {
        Resolution::Tunnel(route) => route,
        Resolution::Local => return to_kernel(PuntReason::LocalDelivery),
        _ => return to_kernel(PuntReason::NoRoute),
    };
    let way = match way_in(route, (packet.data(), inner.len), fib, state) {
        Ok(way) => way,
        Err(NoWay::Kernels(PuntReason::SequenceOwner)) => {
            return Verdict::Punt(PuntReason::SequenceOwner, PuntTo::Owner(route.id));
        }
        Err(NoWay::Kernels(reason)) => return to_kernel(reason),
        Err(NoWay::Nobodys(reason)) => return state.drop_in(route.id, reason),
    };
    if port.partial_checksums && transport::complete_checksum(packet.data_mut()) {
        state.stats.checksums_completed.add(1);
    }
    go_in(packet, &inner, &way, state)
}

/// A tunnel that can take a packet, the outer destination, and the neighbour on the way there.
struct Way<'f> {
    tunnel: &'f Tunnel,
    remote: IpAddr,
    adjacency: Adjacency,
}

/// Why a packet does not get into the tunnel that its route names.
enum NoWay {
    Kernels(PuntReason),
    Nobodys(DropReason),
}

/// The way into the tunnel of `route` for an inner packet, which has `len` bytes without padding.
#[inline(always)]
fn way_in<'f>(
    route: IntoTunnel,
    (packet, len): (&[u8], usize),
    fib: &'f Fib,
    state: &ForwardState,
) -> Result<Way<'f>, NoWay> {
    state.trail.goes_into(route.id);
    let not_ready = NoWay::Kernels(PuntReason::TunnelNotReady);
    let Some(tunnel) = fib.tunnels().get(route.id).filter(|tunnel| tunnel.up) else {
        return Err(not_ready);
    };
    let remote = match route.remote {
        Some(remote) => remote,
        // A neighbour of the device that is not known: the kernel asks for it.
        None if tunnel.kernels => return Err(not_ready),
        None => return Err(NoWay::Nobodys(DropReason::NoRemote)),
    };
    let adjacency = fib.adjacency(tunnel, remote).ok_or(not_ready)?;
    if len > usize::from(route.mtu) || len + tunnel.overhead() > usize::from(adjacency.mtu) {
        return Err(NoWay::Kernels(PuntReason::TooBig));
    }
    if tunnel.oseq && !state.owns_sequences {
        return Err(NoWay::Kernels(PuntReason::SequenceOwner));
    }
    // The kernel says itself what does not get into a tunnel of its own.
    if tunnel.kernels && !tunnel.admits(packet, remote) {
        return Err(NoWay::Kernels(PuntReason::NotPlain));
    }
    Ok(Way {
        tunnel,
        remote,
        adjacency,
    })
}

/// Forwards a plain packet into a tunnel.
#[inline]
fn go_in<B: PacketBuf>(
    packet: &mut B,
    inner: &Plain,
    way: &Way<'_>,
    state: &ForwardState,
) -> Verdict {
    if let Some(record) = state.tunnel(way.tunnel.id) {
        (way.tunnel).clamp_mss(packet.data_mut(), &record.state.counters);
    }
    decrement(packet.data_mut(), inner.destination);
    let to = (way.remote, &way.adjacency);
    encapsulate(packet, way.tunnel, to, inner.len, state)
}

/// Encapsulates a packet that is known to fit, and addresses it to `remote` and the neighbour on the way there.
#[inline]
pub(super) fn encapsulate<B: PacketBuf>(
    packet: &mut B,
    tunnel: &Tunnel,
    (remote, adjacency): (IpAddr, &Adjacency),
    inner_len: usize,
    state: &ForwardState,
) -> Verdict {
    let Some(record) = state.tunnel(tunnel.id) else {
        return Verdict::Drop(DropReason::TunnelDown);
    };
    if let Err(refusal) = tunnel::encapsulate(tunnel, remote, packet, &record.state) {
        return state.drop_in(tunnel.id, refusal);
    }
    let verdict = transmit(packet, adjacency, &state.stats.used);
    if let Verdict::Transmit(_) = verdict {
        record.state.counters.tx_packets.add(1);
        record.state.counters.tx_bytes.add(inner_len as u64);
    }
    verdict
}

/// An inner packet that the kernel has forwarded into the tunnel's device, for the owner of its sequence numbers.
fn into_tunnel<B: PacketBuf>(
    packet: &mut B,
    (id, remote): (TunnelId, IpAddr),
    fib: &Fib,
    state: &mut ForwardState,
) -> Verdict {
    state.trail.goes_into(id);
    let (Some(tunnel), Some(record)) = (fib.tunnels().get(id), state.tunnel(id)) else {
        return Verdict::Drop(DropReason::TunnelDown);
    };
    if !tunnel.up {
        return state.drop_in(id, DropReason::TunnelDown);
    }
    let inner_len = packet.data().len();
    match fib.adjacency(tunnel, remote) {
        Some(adjacency)
            if inner_len + tunnel.overhead_of(packet.data()) <= usize::from(adjacency.mtu) =>
        {
            encapsulate(packet, tunnel, (remote, &adjacency), inner_len, state)
        }
        // The number is taken here, in order; the kernel resolves the next hop or the slow path fragments.
        _ => match tunnel::encapsulate(tunnel, remote, packet, &record.state) {
            Ok(()) => Verdict::Punt(PuntReason::TunnelNotReady, PuntTo::Underlay(id)),
            Err(refusal) => state.drop_in(id, refusal),
        },
    }
}

/// A tunnel packet from the underlay: out of its tunnel, and on to the inner next hop. `port` is where it came in;
/// none for a packet that the kernel has seen before.
#[inline]
fn from_underlay<B: PacketBuf>(
    packet: &mut B,
    port: Option<&PortInfo>,
    fib: &Fib,
    state: &mut ForwardState,
) -> Verdict {
    let device = port.map(|port| port.ifindex);
    let outer = match Outer::parse(packet.data(), fib.tunnels(), device) {
        Ok(outer) => outer,
        Err(Refusal::UnknownTunnel) => {
            return Verdict::Punt(PuntReason::UnknownTunnel, PuntTo::Service);
        }
        // PPTP's GRE is somebody else's, and fragments are the kernel's to put together.
        Err(Refusal::OuterFragment | Refusal::Gre(ParseError::Version)) => {
            return Verdict::Punt(PuntReason::NotPlain, PuntTo::Service);
        }
        // Nor does a router look so far into what only passes through.
        Err(Refusal::Gre(_) | Refusal::UdpLength)
            if port.is_some_and(|port| port.overlay) && !is_for_us(packet.data(), fib) =>
        {
            return Verdict::Punt(PuntReason::UnknownTunnel, PuntTo::Service);
        }
        Err(refusal) => return Verdict::Drop(refusal.into()),
    };
    let id = outer.tunnel;
    state.trail.came_out_of(id);
    let (Some(tunnel), Some(record)) = (fib.tunnels().get(id), record(&state.tunnels, id)) else {
        return Verdict::Punt(PuntReason::UnknownTunnel, PuntTo::Service);
    };
    if tunnel.kernels {
        return out_of_kernels(packet, (port, &outer), tunnel, fib, state);
    }
    if outer.payload() == keepalive::PROTOCOL && keepalive::is_answer(tunnel, packet.data()) {
        return Verdict::Punt(PuntReason::Keepalive, PuntTo::Keepalive(id));
    }
    // Where any sender will do, we are none: it is a packet that came back to us, or a forged one.
    if outer.remote != tunnel.remote && fib.is_own(outer.remote) {
        return state.drop_in(id, DropReason::OuterMartian);
    }
    if port.is_some_and(|port| port.partial_checksums)
        && outer.complete_checksums(packet.data_mut())
    {
        state.stats.checksums_completed.add(1);
    }
    if tunnel.iseq && !state.owns_sequences {
        return Verdict::Punt(PuntReason::SequenceOwner, PuntTo::Owner(id));
    }
    if let Err(refusal) = tunnel::decapsulate(tunnel, &outer, packet, &record.state) {
        return state.drop_in(id, refusal);
    }
    if tunnel.mode.kind().payload == Payload::Ethernet {
        return wire::leave(packet, (tunnel, record), fib);
    }
    if keepalive::is_request(tunnel, packet.data()) {
        return Verdict::Punt(PuntReason::Keepalive, PuntTo::Keepalive(id));
    }
    tunnel.clamp_mss(packet.data_mut(), &record.state.counters);
    // The slow path counts these for the tunnel when it delivers them.
    let to_kernel = |reason| Verdict::Punt(reason, PuntTo::Tunnel(id));
    let (inner, onward) = match forwardable(packet.data(), id, fib, &mut state.resolutions) {
        Ok(found) => found,
        Err(reason) => return to_kernel(reason),
    };
    let counters = &record.state.counters;
    let came_out = || {
        counters.rx_packets.add(1);
        counters.rx_bytes.add(inner.len as u64);
    };
    match onward {
        Onward::Port(adjacency) => {
            decrement(packet.data_mut(), inner.destination);
            let verdict = transmit(packet, &adjacency, &state.stats.used);
            if let Verdict::Transmit(_) = verdict {
                came_out();
            }
            verdict
        }
        // What goes to a group comes to every member, and none forwards for another: they would all send it again.
        Onward::Tunnel(route) if route.id == id && tunnel.remote.is_multicast() => {
            state.drop_in(id, DropReason::OtherMember)
        }
        // Back to where it came from: it would go round until its TTL ends (gre-8). Another end of the same tunnel is fine.
        Onward::Tunnel(route) if route.id == id && route.remote == Some(outer.remote) => {
            state.drop_in(id, Refusal::Recursion)
        }
        Onward::Tunnel(route) => match way_in(route, (packet.data(), inner.len), fib, state) {
            Ok(way) => {
                came_out();
                go_in(packet, &inner, &way, state)
            }
            Err(NoWay::Kernels(reason)) => to_kernel(reason),
            Err(NoWay::Nobodys(reason)) => {
                came_out();
                state.drop_in(route.id, reason)
            }
        },
    }
}

/// Out of a tunnel whose device is the kernel's own. All is judged before anything is changed: what is not plain goes back as it
/// came, and the kernel's device has it.
#[inline]
fn out_of_kernels<B: PacketBuf>(
    packet: &mut B,
    (port, outer): (Option<&PortInfo>, &Outer),
    tunnel: &Tunnel,
    fib: &Fib,
    state: &mut ForwardState,
) -> Verdict {
    let back = |reason| Verdict::Punt(reason, PuntTo::Service);
    let id = outer.tunnel;
    let Some(record) = record(&state.tunnels, id) else {
        return back(PuntReason::UnknownTunnel);
    };
    if port.is_some_and(|port| port.partial_checksums)
        && outer.complete_checksums(packet.data_mut())
    {
        state.stats.checksums_completed.add(1);
    }
    let from_us = outer.remote != tunnel.remote && fib.is_own(outer.remote);
    if from_us || outer.has_odd_flags(packet.data()) {
        return back(PuntReason::NotPlain);
    }
    let Ok(inside) = tunnel::look_inside(tunnel, outer, packet.data(), &record.state) else {
        return back(PuntReason::NotPlain);
    };
    let packet_in = inside.of(packet.data());
    let (inner, onward) = match forwardable(packet_in, id, fib, &mut state.resolutions) {
        Ok(found) => found,
        Err(reason) => return back(reason),
    };
    let onward = match onward {
        Onward::Port(adjacency) => Ok(adjacency),
        Onward::Tunnel(route) if route.id == id && route.remote == Some(outer.remote) => {
            return back(PuntReason::NotPlain);
        }
        Onward::Tunnel(route) => match way_in(route, (packet_in, inner.len), fib, state) {
            Ok(way) => Err(way),
            Err(NoWay::Kernels(reason)) => return back(reason),
            Err(NoWay::Nobodys(_)) => return back(PuntReason::NoRoute),
        },
    };
    if tunnel::take_out(tunnel, (outer, &inside), packet, &record.state).is_err() {
        return back(PuntReason::NotPlain);
    }
    let counters = &record.state.counters;
    counters.rx_packets.add(1);
    counters.rx_bytes.add(inner.len as u64);
    match onward {
        Ok(adjacency) => {
            decrement(packet.data_mut(), inner.destination);
            transmit(packet, &adjacency, &state.stats.used)
        }
        Err(way) => go_in(packet, &inner, &way, state),
    }
}

/// Whether the packet's destination is an address of the router.
fn is_for_us(packet: &[u8], fib: &Fib) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(6) => Ipv6::parse(packet).is_ok_and(|ip| fib.is_own(ip.destination().into())),
        _ => Ipv4::parse(packet).is_ok_and(|ip| fib.is_own(ip.destination().into())),
    }
}

/// Where a decapsulated packet goes next.
enum Onward {
    Port(Adjacency),
    Tunnel(IntoTunnel),
}

/// Whether a decapsulated packet can go straight on; otherwise why it is the kernel's.
#[inline(always)]
fn forwardable(
    packet: &[u8],
    id: TunnelId,
    fib: &Fib,
    resolutions: &mut ResolutionCache,
) -> Result<(Plain, Onward), PuntReason> {
    let inner = plain(packet)?;
    // From ourselves, out of a tunnel: a martian to the kernel, unless accept_local is on.
    if fib.is_own(inner.source) {
        return Err(PuntReason::NotPlain);
    }
    if !fib.egress(id).forwards.family_of(inner.destination) {
        return Err(PuntReason::ForwardingOff);
    }
    let flow = || flow::hash(packet);
    let adjacency = match resolutions.resolve(fib, inner.destination, flow) {
        Resolution::Adjacent(adjacency) => adjacency,
        Resolution::Tunnel(route) => return Ok((inner, Onward::Tunnel(route))),
        Resolution::Local => return Err(PuntReason::LocalDelivery),
        Resolution::Unresolved => return Err(PuntReason::Unresolved),
        Resolution::Kernel | Resolution::Multipath(_) => return Err(PuntReason::NoRoute),
    };
    if inner.len > usize::from(adjacency.mtu) {
        return Err(PuntReason::TooBig);
    }
    Ok((inner, Onward::Port(adjacency)))
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
