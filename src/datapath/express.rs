//! Ordinary packets, a burst at a time: IPv4 without options, in plain GRE or on its way into a tunnel over IPv4.
//!
//! What is recognised here goes the way that [`forward`](super::forward) would send it, with the same bytes and the same
//! counts; anything else, and any doubt, is left to that. A burst is gone through in short steps, so that the processor
//! waits for the memory of many packets at the same time: where they go, what is kept about that, and then each packet.

use super::{ForwardState, stats::TunnelRecord};
use crate::{
    fib::{Adjacency, Fib, HopId, Mark, PortId, PortInfo, Resolution},
    packet::{PacketBuf, ethernet, ipv4, protocol, transport},
    tunnel::{GRE_IN_UDP_PORT, Template, TunnelId},
};

/// Packets that are looked at together.
pub const BURST: usize = super::BURST;
/// What is remembered about ways: a power of two, more than there are tunnels in most routers.
const SLOTS: usize = 1 << 14;
/// Room for the longest header that is put in front of a packet: Ethernet, IPv4, GRE with a key.
const ROOM: usize = 48;

/// Where the headers begin in a frame.
const IP: usize = ethernet::HEADER_LEN;
const GRE: usize = IP + ipv4::HEADER_LEN;

/// The port that a burst was received on.
struct Gate {
    /// Its link address, and what is behind it in an Ethernet header with an IPv4 header behind that.
    mac: u64,
    underlay: bool,
    forwards: bool,
    partial_checksums: bool,
}

impl Gate {
    /// None where nothing is ordinary.
    fn of(port: Option<&PortInfo>, fib: &Fib) -> Option<Gate> {
        let port = port.filter(|port| port.wire.is_none() && port.vlan.is_none())?;
        let role = port.underlay || port.overlay;
        let [a, b, c, d, e, f] = port.mac.0;
        (role && !fib.has_rules()).then_some(Gate {
            mac: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]),
            underlay: port.underlay,
            forwards: port.forwards.v4,
            partial_checksums: port.partial_checksums,
        })
    }
}

/// A packet that was recognised.
#[derive(Clone, Copy, Default)]
pub struct Seen {
    /// Where the inner packet begins in the frame, and how long it is; it has no length where nothing was recognised.
    at: u16,
    len: u16,
    /// It is a way's, by this place.
    slot: u16,
    clamps: bool,
    /// The tunnel that it comes out of.
    out_of: Option<TunnelId>,
    destination: u32,
    hop: HopId,
}

/// Where packets of one next hop go.
#[derive(Debug, Clone, Copy, Default)]
enum Onward {
    /// As [`super::forward`] finds out.
    #[default]
    Elsewhere,
    /// Each destination has a way of its own.
    ByDestination,
    Port,
    Tunnel(TunnelId),
}

/// What is known about a way.
#[derive(Debug, Clone, Copy)]
#[repr(align(128))]
struct Way {
    /// The table that says so: that of no table where nothing does.
    number: u64,
    key: u64,
    onward: Onward,
    port: PortId,
    mark: Mark,
    /// The largest packet, in bytes, as it is before it goes into a tunnel.
    mtu: u16,
    header_len: u16,
    clamps: bool,
    template: Template,
    /// The headers in front of a packet, at the end of this.
    header: [u8; ROOM],
}

impl Way {
    const NONE: u64 = u64::MAX;

    fn empty() -> Self {
        Self {
            number: Self::NONE,
            key: 0,
            onward: Onward::Elsewhere,
            port: PortId(0),
            mark: Mark::default(),
            mtu: 0,
            header_len: 0,
            clamps: false,
            template: Template::default(),
            header: [0; ROOM],
        }
    }

    /// The way of packets for `destination` whose route has the next hop `hop`.
    fn find(fib: &Fib, hop: HopId, destination: u32) -> Self {
        let address = std::net::Ipv4Addr::from(destination).into();
        let mut way = Self::empty();
        match fib.resolve_hop(hop, address) {
            Resolution::Adjacent(adjacency) => way.to(&adjacency, &[], adjacency.mtu),
            Resolution::Tunnel(route) => {
                let tunnel = fib.tunnels().get(route.id).filter(|tunnel| tunnel.up);
                let (Some(tunnel), Some(remote)) = (tunnel, route.remote) else {
                    return way;
                };
                let (template, adjacency) = (Template::of(tunnel), fib.adjacency(tunnel, remote));
                let (Some(template), Some(adjacency)) = (template, adjacency) else {
                    return way;
                };
                if remote != tunnel.remote {
                    return way;
                }
                let headers = template.bytes().len() as u16;
                let mtu = route.mtu.min(adjacency.mtu.saturating_sub(headers));
                way.to(&adjacency, template.bytes(), mtu);
                if let Onward::Port = way.onward {
                    way.onward = Onward::Tunnel(route.id);
                }
                way.clamps = tunnel.clamp_mss.is_some();
                way.template = template;
            }
            _ => {}
        }
        way
    }

    /// To a neighbour, with `headers` between the Ethernet header and the packet.
    fn to(&mut self, adjacency: &Adjacency, headers: &[u8], mtu: u16) {
        if adjacency.vlan.is_some() {
            return;
        }
        let len = ethernet::HEADER_LEN + headers.len();
        let frame = &mut self.header[ROOM - len..];
        frame[ethernet::HEADER_LEN..].copy_from_slice(headers);
        ethernet::write(
            frame,
            adjacency.destination,
            adjacency.source,
            crate::packet::EtherType::IPV4,
        );
        self.onward = Onward::Port;
        self.port = adjacency.port;
        self.mark = adjacency.mark;
        self.header_len = len as u16;
        self.mtu = mtu;
    }
}

/// The ways that one worker's packets have gone lately.
pub struct Express {
    ways: Box<[Way]>,
    seen: Box<[Seen; BURST]>,
    /// The burst may carry unfinished transport checksums.
    partial_checksums: bool,
}

impl Default for Express {
    fn default() -> Self {
        Self {
            ways: vec![Way::empty(); SLOTS].into(),
            seen: Box::new([Seen::default(); BURST]),
            partial_checksums: false,
        }
    }
}

/// A big-endian number of 16 bits.
#[inline(always)]
fn word(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

#[inline(always)]
fn address(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Whether packets from and to addresses with this first byte may be ordinary ones: not 0, 127, 169 (of which a part is link-local)
/// and from 224 on.
#[inline(always)]
fn is_usual(first: u8) -> bool {
    const UNUSUAL: [bool; 256] = {
        let mut unusual = [false; 256];
        unusual[0] = true;
        unusual[127] = true;
        unusual[169] = true;
        let mut n = 224;
        while n < 256 {
            unusual[n] = true;
            n += 1;
        }
        unusual
    };
    !UNUSUAL[usize::from(first)]
}

/// Whether a packet with this IPv4 protocol may be a tunnel's.
#[inline(always)]
fn is_tunnels(protocol: u8) -> bool {
    const TUNNELS: u64 = 1 << protocol::GRE
        | 1 << protocol::IPIP
        | 1 << protocol::IPV6
        | 1 << protocol::DESTINATION_OPTIONS;
    protocol < 64 && TUNNELS >> protocol & 1 != 0
}

/// The length of an inner packet with this header and the next four bytes, if it is an ordinary one of at most `room` bytes.
#[inline(always)]
fn ordinary(ip: &[u8; 24], room: usize, fib: &Fib) -> Option<u16> {
    let len = word(ip[2], ip[3]);
    let fits = usize::from(len) >= ipv4::HEADER_LEN && usize::from(len) <= room;
    let whole = word(ip[6], ip[7]) & 0x3fff == 0;
    if ip[0] != 0x45 || !fits || !whole || ip[8] <= 1 {
        return None;
    }
    if is_tunnels(ip[9]) || ip[9] == protocol::UDP && word(ip[22], ip[23]) == GRE_IN_UDP_PORT {
        return None;
    }
    let source = u32::from_be_bytes([ip[12], ip[13], ip[14], ip[15]]);
    let usual = is_usual(ip[12]) && is_usual(ip[16]) && !fib.is_own_v4(source);
    usual.then_some(len)
}

/// Where the packet inside a GRE header begins in the frame, by the header's first byte.
#[inline(always)]
fn behind_gre(flags: u8) -> usize {
    GRE + 4 + usize::from(flags & 0x20) / 8
}

/// Where the packet that is to be forwarded begins in a frame, as it seems.
#[inline(always)]
fn inner_at(frame: &[u8], gate: &Gate) -> usize {
    match (gate.underlay, frame.get(IP + 9), frame.get(GRE)) {
        (true, Some(&protocol::GRE), Some(flags)) => behind_gre(*flags),
        _ => IP,
    }
}

/// Recognises a packet that comes out of a tunnel.
#[inline(always)]
fn out_of(frame: &[u8], outer: &[u8; 24], fib: &Fib, seen: &mut Seen) -> Option<()> {
    let end = usize::from(word(outer[2], outer[3]));
    let whole = word(outer[6], outer[7]) & 0x3fff == 0;
    // ECN of the outer header changes the inner one by no more than ECT(1) and CE (RFC 6040).
    if end > frame.len() - IP || !whole || outer[1] & 1 != 0 {
        return None;
    }
    let keyed = match outer[20..24] {
        [0, 0, 8, 0] => false,
        [0x20, 0, 8, 0] => true,
        _ => return None,
    };
    if !ipv4::is_valid(outer.first_chunk()?) {
        return None;
    }
    let at = behind_gre(outer[20]);
    let key = match keyed {
        true => Some(address(frame, GRE + 4)?),
        false => None,
    };
    let ends = (address(outer, 12)?, address(outer, 16)?);
    let door = fib.doors().find(ends, key)?;
    let ip = frame.get(at..)?.first_chunk()?;
    let room = (IP + end).checked_sub(at)?;
    let len = ordinary(ip, room, fib)?;
    if !ipv4::is_valid(ip.first_chunk()?) {
        return None;
    }
    seen.at = at as u16;
    seen.clamps = door.clamps;
    seen.out_of = Some(door.tunnel);
    seen.len = len;
    Some(())
}

/// Recognises a packet, whose next hop is known.
#[inline(always)]
fn recognise(frame: &[u8], gate: &Gate, fib: &Fib, seen: &mut Seen) -> Option<()> {
    let head: &[u8; GRE + 4] = frame.first_chunk()?;
    let mac = u64::from_le_bytes(*head.first_chunk()?) & 0xffff_ffff_ffff;
    if mac != gate.mac || head[12..15] != [8, 0, 0x45] {
        return None;
    }
    let ip: &[u8; 24] = head[IP..].first_chunk()?;
    if gate.underlay && ip[9] == protocol::GRE {
        return out_of(frame, ip, fib, seen);
    }
    if !gate.forwards {
        return None;
    }
    let len = ordinary(ip, frame.len() - IP, fib)?;
    seen.at = IP as u16;
    seen.out_of = None;
    seen.len = len;
    Some(())
}

/// The place of a way and its key there: of a next hop, or of a destination.
#[inline(always)]
fn place_of_hop(hop: HopId) -> (usize, u64) {
    (hop.index() % SLOTS, hop.index() as u64)
}

#[inline(always)]
fn place_of_destination(destination: u32) -> (usize, u64) {
    // As in the routes' cache.
    let spread = destination.wrapping_mul(0x9e37_79b1) >> (u32::BITS - SLOTS.ilog2());
    (spread as usize, 1 << 32 | u64::from(destination))
}

impl Express {
    /// Looks at a burst that the socket of `port` has received. What was recognised, [`carry`](Self::carry) takes.
    #[inline]
    pub fn look<B: PacketBuf>(
        &mut self,
        burst: &[B],
        port: PortId,
        fib: &Fib,
        state: &ForwardState,
    ) {
        let packets = burst.iter().zip(self.seen.iter_mut());
        let Some(gate) = Gate::of(fib.port(port), fib) else {
            packets.for_each(|(_, seen)| seen.len = 0);
            return;
        };
        self.partial_checksums = gate.partial_checksums;
        for (packet, seen) in packets {
            let frame = packet.data();
            let to = address(frame, inner_at(frame, &gate) + 16).unwrap_or_default();
            seen.destination = to;
            seen.hop = fib.routes().lookup_v4(to);
        }
        for (packet, seen) in burst.iter().zip(self.seen.iter_mut()) {
            seen.len = 0;
            // What was recognised by halves has no length.
            let _ = recognise(packet.data(), &gate, fib, seen);
        }
        self.find_ways(burst.len(), fib);
        if fib.is_large() {
            self.fetch(burst.len(), state);
        }
    }

    /// What was recognised of the burst's packet `n`.
    #[inline(always)]
    pub fn seen(&self, n: usize) -> Option<Seen> {
        let seen = self.seen[n % BURST];
        (seen.len != 0).then_some(seen)
    }

    #[inline]
    fn find_ways(&mut self, packets: usize, fib: &Fib) {
        let mut learned = false;
        for seen in self.seen.iter_mut().take(packets) {
            let (mut at, key) = place_of_hop(seen.hop);
            let mut way = &self.ways[at];
            if (way.number, way.key) != (fib.number(), key) {
                self.ways[at] = learn(fib, seen.hop, None);
                learned = true;
                way = &self.ways[at];
            }
            if let Onward::ByDestination = way.onward {
                let key;
                (at, key) = place_of_destination(seen.destination);
                let way = &self.ways[at];
                if (way.number, way.key) != (fib.number(), key) {
                    self.ways[at] = learn(fib, seen.hop, Some(seen.destination));
                    learned = true;
                }
            }
            seen.slot = at as u16;
        }
        if learned {
            self.forget_lost(packets);
        }
    }

    /// Where two of a burst's ways have the same place, only the packets of the last one know it.
    #[cold]
    fn forget_lost(&mut self, packets: usize) {
        for seen in self.seen.iter_mut().take(packets) {
            let key = self.ways[usize::from(seen.slot) % SLOTS].key;
            let own = [
                place_of_hop(seen.hop).1,
                place_of_destination(seen.destination).1,
            ];
            if !own.contains(&key) {
                seen.len = 0;
            }
        }
    }

    /// Has the processor fetch the records of the burst's tunnels: it waits for all of them at the same time.
    fn fetch(&self, packets: usize, state: &ForwardState) {
        let fetch = |id| state.tunnel(id).map(|record| record.state.fetch());
        for seen in self.seen.iter().take(packets) {
            if let Onward::Tunnel(id) = self.ways[usize::from(seen.slot) % SLOTS].onward {
                fetch(id);
            }
            seen.out_of.and_then(fetch);
        }
    }
}

/// The way of a next hop, or of a destination behind it.
#[cold]
#[inline(never)]
fn learn(fib: &Fib, hop: HopId, destination: Option<u32>) -> Way {
    let mut way = match (destination, fib.routes().hop(hop)) {
        (None, crate::fib::NextHop::Connected { .. }) => Way {
            onward: Onward::ByDestination,
            ..Way::empty()
        },
        (destination, _) => Way::find(fib, hop, destination.unwrap_or_default()),
    };
    way.number = fib.number();
    way.key = match destination {
        Some(destination) => place_of_destination(destination).1,
        None => place_of_hop(hop).1,
    };
    way
}

/// A recognised packet and the books of the tunnel that it comes out of.
type Came<'a> = (Seen, Option<&'a TunnelRecord>);

impl Express {
    /// Sends a packet that was recognised on its way, if that is an ordinary one: the port that its frame is for. Otherwise the
    /// packet is as it was, and nothing is counted.
    #[inline]
    pub fn carry<B: PacketBuf>(
        &self,
        packet: &mut B,
        seen: Seen,
        fib: &Fib,
        state: &ForwardState,
    ) -> Option<PortId> {
        let way = &self.ways[usize::from(seen.slot) % SLOTS];
        if seen.len > way.mtu {
            return None;
        }
        let record = match seen.out_of {
            Some(id) => Some(state.tunnel(id)?),
            None => None,
        };
        match way.onward {
            Onward::Port => self.leave(packet, way, (seen, Some(record?)), (fib, state)),
            Onward::Tunnel(id) if seen.out_of != Some(id) => {
                let into = (id, state.tunnel(id)?);
                self.enter(packet, (way, into), (seen, record), (fib, state))
            }
            _ => None,
        }
    }

    /// Out of a tunnel, to a neighbour.
    #[inline(always)]
    fn leave<B: PacketBuf>(
        &self,
        packet: &mut B,
        way: &Way,
        came: Came<'_>,
        (fib, state): (&Fib, &ForwardState),
    ) -> Option<PortId> {
        let (len, at) = (usize::from(came.0.len), usize::from(came.0.at));
        packet.trim_front(at - ethernet::HEADER_LEN).ok()?;
        packet.truncate(ethernet::HEADER_LEN + len).ok()?;
        let (header, inner) =
            (packet.data_mut()).split_first_chunk_mut::<{ ethernet::HEADER_LEN }>()?;
        header.copy_from_slice(&way.header[ROOM - ethernet::HEADER_LEN..]);
        self.finish(inner, came, (fib, state));
        ipv4::decrement_ttl(inner);
        state.stats.used.note(way.mark);
        Some(way.port)
    }

    /// Into a tunnel, from an overlay device or out of another tunnel.
    #[inline(always)]
    fn enter<B: PacketBuf>(
        &self,
        packet: &mut B,
        (way, (id, into)): (&Way, (TunnelId, &TunnelRecord)),
        came: Came<'_>,
        (fib, state): (&Fib, &ForwardState),
    ) -> Option<PortId> {
        let (len, at) = (came.0.len, usize::from(came.0.at));
        packet.prepend(ROOM - at).ok()?;
        packet.truncate(ROOM + usize::from(len)).ok()?;
        let (header, inner) = packet.data_mut().split_first_chunk_mut::<ROOM>()?;
        self.finish(inner, came, (fib, state));
        if way.clamps {
            clamp(inner, (id, into), fib);
        }
        ipv4::decrement_ttl(inner);
        *header = way.header;
        let front = ROOM - usize::from(way.header_len);
        let outer = header.get_mut(front + IP..)?.first_chunk_mut()?;
        let outer_len = len + way.header_len - ethernet::HEADER_LEN as u16;
        let inherited = (inner[1], inner[6], inner[8]);
        (way.template).complete(outer, outer_len, inherited, &into.state);
        packet.trim_front(front).ok()?;
        into.state.counters.tx_packets.add(1);
        into.state.counters.tx_bytes.add(len.into());
        state.stats.used.note(way.mark);
        Some(way.port)
    }

    /// What is done with a packet wherever it goes: an unfinished checksum, and the books of the tunnel that it came out of.
    #[inline(always)]
    fn finish(
        &self,
        inner: &mut [u8],
        (seen, record): Came<'_>,
        (fib, state): (&Fib, &ForwardState),
    ) {
        if self.partial_checksums && transport::complete_checksum(inner) {
            state.stats.checksums_completed.add(1);
        }
        let Some(record) = record else {
            return;
        };
        if let (true, Some(id)) = (seen.clamps, seen.out_of) {
            clamp(inner, (id, record), fib);
        }
        record.state.counters.rx_packets.add(1);
        record.state.counters.rx_bytes.add(seen.len.into());
    }
}

/// Holds a TCP connection to what the tunnel carries.
#[cold]
fn clamp(inner: &mut [u8], (id, record): (TunnelId, &TunnelRecord), fib: &Fib) {
    if let Some(tunnel) = fib.tunnels().get(id) {
        tunnel.clamp_mss(inner, &record.state.counters);
    }
}

#[cfg(test)]
#[path = "express_tests.rs"]
mod tests;
