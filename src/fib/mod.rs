//! Where a packet goes next.
//!
//! A [`Fib`] is an immutable snapshot of what the kernel knows: ports, tunnels, routes and neighbours, compiled for
//! lookups. The control room builds it from its mirror of the kernel; workers only read it. It knows no packets and no
//! I/O.

mod cache;
mod direct;
mod multipath;
mod own;
mod prefixes;
mod routes;
mod shared;
mod trie;
mod used;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rustc_hash::FxBuildHasher;

pub use cache::ResolutionCache;
pub use multipath::Multipath;
use own::Own;
pub use prefixes::{Net, Prefixes};
pub use routes::{HopId, RouteTable, Routes};
use shared::Sharded;
pub use used::{Mark, Used, is_marked};

use crate::{
    packet::{MacAddr, Vid},
    tunnel::{Doors, Tunnel, TunnelId, TunnelTable},
};

/// A port: the index of a device in the router's list of devices. Devices that workers have sockets on come first, and a
/// worker's socket has its device's number; VLAN devices on them follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A device that the router's workers have sockets on, or a VLAN device on one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInfo {
    pub name: Box<str>,
    pub ifindex: u32,
    pub mac: MacAddr,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    pub underlay: bool,
    pub overlay: bool,
    /// The kernel forwards packets that come in here, per family.
    pub forwards: Forwards,
    /// Packets from this device may carry unfinished transport checksums (a veth).
    pub partial_checksums: bool,
    /// Every frame from here goes into this tunnel, and the tunnel's come out here.
    pub wire: Option<TunnelId>,
    /// A VLAN device: its frames come and go by another port, with this tag.
    pub vlan: Option<OnPort>,
}

/// Where a VLAN device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OnPort {
    pub port: PortId,
    pub vid: Vid,
}

/// Whether the kernel forwards packets that come in by a device (net.ipv4.conf.*.forwarding and its sibling).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forwards {
    pub v4: bool,
    pub v6: bool,
}

impl Forwards {
    #[inline]
    pub fn family_of(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

/// A neighbour that can be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adjacency {
    /// The one with the socket.
    pub port: PortId,
    /// Frames carry this tag.
    pub vlan: Option<Vid>,
    /// To be noted where packets go there.
    pub mark: Mark,
    pub destination: MacAddr,
    pub source: MacAddr,
    /// Largest IP packet, in bytes: the device's, or the route's where that is smaller.
    pub mtu: u16,
}

/// What a route says about the packets it matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NextHop {
    /// The destination itself is a neighbour on this port. The MTU is the route's or the device's.
    Connected { port: PortId, mtu: u16 },
    /// A gateway is the neighbour.
    Via {
        port: PortId,
        gateway: IpAddr,
        mtu: u16,
    },
    /// Into a tunnel; what the gateway is for, [`Tunnel::remote_of`] says. The MTU is the route's or the tunnel's.
    Tunnel {
        id: TunnelId,
        gateway: Option<IpAddr>,
        mtu: u16,
    },
    /// One of several, by flow; none of them is itself such.
    Multipath(Arc<Multipath>),
    /// The router's own address.
    Local,
    /// Anything that only the kernel can follow.
    #[default]
    Kernel,
}

/// A packet's route leads into a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntoTunnel {
    pub id: TunnelId,
    /// The outer destination; none where the tunnel has none for this packet.
    pub remote: Option<IpAddr>,
    /// Largest inner packet, in bytes: the tunnel's, or the route's where that is smaller.
    pub mtu: u16,
}

/// The outcome of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    Adjacent(Adjacency),
    Tunnel(IntoTunnel),
    /// One of several next hops: [`Fib::choose`] says which.
    Multipath(HopId),
    Local,
    /// The next hop's link address is not known.
    Unresolved,
    /// No route, or one that only the kernel can follow.
    Kernel,
}

/// How a tunnel's packets leave and enter this router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Egress {
    /// The neighbour on the underlay that outer packets to the tunnel's remote go to; none while it is not resolved.
    pub adjacency: Option<Adjacency>,
    /// Whether decapsulated packets are forwarded: the tunnel device's setting.
    pub forwards: Forwards,
    /// The port that decapsulated frames leave by; none where the tunnel has none, or it cannot send at the moment.
    pub wire: Option<PortId>,
}

/// The tunnels, and how their packets leave.
#[derive(Debug, Default)]
struct Tunnels {
    table: TunnelTable,
    egress: Vec<Egress>,
    doors: Doors,
}

/// Tunnels and next hops that a first cache of 32 kB holds, with the packets.
const SMALL: usize = 64;

/// The forwarding table in use. A clone shares everything with it, and a change of the clone copies what it touches.
#[derive(Debug, Clone, Default)]
pub struct Fib {
    ports: Arc<[PortInfo]>,
    vlans: Arc<HashMap<OnPort, PortId, FxBuildHasher>>,
    tunnels: Arc<Tunnels>,
    /// The neighbour on the underlay for each outer address of a tunnel without a remote, where it is resolved.
    peers: Arc<HashMap<(TunnelId, IpAddr), Adjacency, FxBuildHasher>>,
    routes: Routes,
    neighbours: Sharded<(PortId, IpAddr), MacAddr>,
    /// The router's own addresses: nobody else may send from them.
    own: Arc<Own>,
    /// Policy rules decide where packets go, which only the kernel can follow.
    has_rules: bool,
    /// Two tables with different contents never have the same number; the empty one's is 0.
    number: u64,
    /// What makes this router choose otherwise among several next hops than the one before it (RFC 2992 section 2).
    seed: u32,
}

fn next_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Relaxed) + 1
}

impl Fib {
    /// A table of these ports and tunnels. A tunnel without an egress is not ready.
    pub fn new(
        ports: Vec<PortInfo>,
        tunnels: impl IntoIterator<Item = (Tunnel, Egress)>,
        routes: &RouteTable,
    ) -> Self {
        let mut fib = Self::default();
        fib.set_ports(ports);
        fib.set_tunnels(tunnels);
        fib.set_routes(routes.snapshot());
        fib
    }

    pub fn set_ports(&mut self, ports: Vec<PortInfo>) {
        let of = |mac: MacAddr| {
            mac.0
                .iter()
                .fold(0u32, |sum, byte| sum.rotate_left(8) ^ u32::from(*byte))
        };
        self.seed = ports.first().map_or(0, |port| of(port.mac));
        let vlan = |(n, port): (usize, &PortInfo)| Some((port.vlan?, PortId(n as u16)));
        self.vlans = Arc::new(ports.iter().enumerate().filter_map(vlan).collect());
        self.ports = ports.into();
        self.number = next_number();
    }

    /// A tunnel without an egress is not ready.
    pub fn set_tunnels(&mut self, tunnels: impl IntoIterator<Item = (Tunnel, Egress)>) {
        let mut egress = Vec::new();
        let table = TunnelTable::new(tunnels.into_iter().map(|(tunnel, out)| {
            let slot = tunnel.id.index();
            if egress.len() <= slot {
                egress.resize(slot + 1, Egress::default());
            }
            egress[slot] = out;
            tunnel
        }));
        let forwards = |id: TunnelId| egress[id.index()].forwards.v4;
        let doors = Doors::new(&table, forwards);
        self.tunnels = Arc::new(Tunnels {
            table,
            egress,
            doors,
        });
        self.number = next_number();
    }

    /// The neighbours on the underlay that outer packets go to, of tunnels without a remote of their own.
    pub fn set_peers(&mut self, peers: impl IntoIterator<Item = ((TunnelId, IpAddr), Adjacency)>) {
        self.peers = Arc::new(peers.into_iter().collect());
    }

    pub fn set_routes(&mut self, routes: Routes) {
        self.routes = routes;
        self.number = next_number();
    }

    /// Adds a neighbour whose link address is known.
    pub fn add_neighbour(&mut self, port: PortId, address: IpAddr, mac: MacAddr) {
        self.neighbours.insert((port, address), mac);
        self.number = next_number();
    }

    /// Forgets a neighbour.
    pub fn remove_neighbour(&mut self, port: PortId, address: IpAddr) {
        self.neighbours.remove(&(port, address));
        self.number = next_number();
    }

    /// Forgets all neighbours.
    pub fn clear_neighbours(&mut self) {
        self.neighbours = Sharded::default();
        self.number = next_number();
    }

    /// Whether every packet is left to the kernel, because policy rules decide. The routes go on to say what the gateways of
    /// tunnels are.
    pub fn set_rules(&mut self, has_rules: bool) {
        self.has_rules = has_rules;
        self.number = next_number();
    }

    /// The addresses of the router.
    pub fn set_own(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.own = Arc::new(Own::new(addresses));
    }

    /// Whether it is an address of the router.
    #[inline]
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(address)
    }

    /// The same of an IPv4 address.
    #[inline]
    pub fn is_own_v4(&self, address: u32) -> bool {
        self.own.contains_v4(address)
    }

    /// Two tables that lead a packet different ways never have the same number.
    #[inline]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Policy rules decide, so that every packet is the kernel's.
    #[inline]
    pub fn has_rules(&self) -> bool {
        self.has_rules
    }

    /// Where ordinary packets come out.
    #[inline]
    pub fn doors(&self) -> &Doors {
        &self.tunnels.doors
    }

    /// Whether there is so much in the table that a processor's first cache does not hold it.
    #[inline]
    pub fn is_large(&self) -> bool {
        self.tunnels.egress.len() > SMALL || self.routes.is_large()
    }

    #[inline]
    pub fn port(&self, id: PortId) -> Option<&PortInfo> {
        self.ports.get(id.index())
    }

    /// The VLAN device whose frames come in by this port with this tag.
    #[inline]
    pub fn vlan(&self, on: OnPort) -> Option<PortId> {
        self.vlans.get(&on).copied()
    }

    pub fn ports(&self) -> &[PortInfo] {
        &self.ports
    }

    #[inline]
    pub fn tunnels(&self) -> &TunnelTable {
        &self.tunnels.table
    }

    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// How a tunnel's packets leave; not ready for a slot that is empty.
    #[inline]
    pub fn egress(&self, id: TunnelId) -> Egress {
        self.tunnels
            .egress
            .get(id.index())
            .copied()
            .unwrap_or_default()
    }

    /// The neighbour on the underlay for a tunnel's packets to `remote`; none where it is not resolved.
    #[inline]
    pub fn adjacency(&self, tunnel: &Tunnel, remote: IpAddr) -> Option<Adjacency> {
        match tunnel.remote == remote {
            true => self.egress(tunnel.id).adjacency,
            false => self.peers.get(&(tunnel.id, remote)).copied(),
        }
    }

    /// Whether a packet for `destination` is routed into this tunnel, or may be.
    pub fn leads_into(&self, tunnel: &Tunnel, destination: IpAddr) -> bool {
        self.into(tunnel, destination).is_some()
    }

    /// The outer destination of a unicast packet for `destination` that the kernel has routed into a tunnel.
    pub fn remote_of(&self, tunnel: &Tunnel, destination: IpAddr) -> Option<IpAddr> {
        let gateway = self.into(tunnel, destination).flatten();
        tunnel.remote_of(gateway, destination)
    }

    /// Whether a packet's route leads into a tunnel, and the gateway there.
    fn into(&self, tunnel: &Tunnel, destination: IpAddr) -> Option<Option<IpAddr>> {
        let gateway = |hop: &NextHop| match hop {
            NextHop::Tunnel { id, gateway, .. } if *id == tunnel.id => Some(*gateway),
            _ => None,
        };
        match self.routes.hop(self.routes.lookup(destination)?) {
            NextHop::Multipath(hops) => hops.hops().find_map(gateway),
            hop => gateway(hop),
        }
    }

    /// Where a packet for `destination` goes.
    pub fn resolve(&self, destination: IpAddr) -> Resolution {
        if self.has_rules {
            return Resolution::Kernel;
        }
        match self.routes.lookup(destination) {
            Some(id) => self.resolve_hop(id, destination),
            None => Resolution::Kernel,
        }
    }

    /// Where a packet for `destination` goes whose route has this next hop.
    pub fn resolve_hop(&self, id: HopId, destination: IpAddr) -> Resolution {
        match self.routes.hop(id) {
            NextHop::Multipath(_) => Resolution::Multipath(id),
            hop => self.follow(hop, destination),
        }
    }

    /// Where a packet of the flow with this hash goes, whose route has several next hops.
    pub fn choose(&self, id: HopId, destination: IpAddr, flow: u32) -> Resolution {
        match self.routes.hop(id) {
            NextHop::Multipath(hops) => {
                // The finalizer of MurmurHash3: every bit of flow and seed reaches the upper ones.
                let mut hash = flow ^ self.seed;
                hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
                hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
                self.follow(hops.choose(hash ^ hash >> 16), destination)
            }
            hop => self.follow(hop, destination),
        }
    }

    #[inline]
    fn follow(&self, hop: &NextHop, destination: IpAddr) -> Resolution {
        match *hop {
            NextHop::Connected { port, mtu } => self.adjacent(port, destination, mtu),
            NextHop::Via { port, gateway, mtu } => self.adjacent(port, gateway, mtu),
            NextHop::Tunnel { id, gateway, mtu } => {
                let tunnel = self.tunnels().get(id);
                let remote = tunnel.and_then(|tunnel| tunnel.remote_of(gateway, destination));
                Resolution::Tunnel(IntoTunnel { id, remote, mtu })
            }
            NextHop::Local => Resolution::Local,
            NextHop::Multipath(_) | NextHop::Kernel => Resolution::Kernel,
        }
    }

    #[inline]
    fn adjacent(&self, port: PortId, neighbour: IpAddr, mtu: u16) -> Resolution {
        let (Some(info), Some(&destination)) =
            (self.port(port), self.neighbours.get(&(port, neighbour)))
        else {
            return Resolution::Unresolved;
        };
        Resolution::Adjacent(Adjacency {
            port: info.vlan.map_or(port, |on| on.port),
            vlan: info.vlan.map(|on| on.vid),
            mark: Mark::of(info.ifindex, neighbour),
            destination,
            source: info.mac,
            mtu,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    pub(crate) fn port(name: &str) -> PortInfo {
        PortInfo {
            name: name.into(),
            ifindex: 7,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            underlay: false,
            overlay: true,
            forwards: Forwards { v4: true, v6: true },
            partial_checksums: false,
            wire: None,
            vlan: None,
        }
    }

    fn fib() -> Fib {
        let mut routes = RouteTable::default();
        let p = PortId(0);
        routes.insert(
            "10.1.0.0/24".parse().unwrap(),
            NextHop::Connected { port: p, mtu: 1500 },
        );
        let gateway = "10.1.0.9".parse().unwrap();
        routes.insert(
            "10.2.0.0/16".parse().unwrap(),
            NextHop::Via {
                port: p,
                gateway,
                mtu: 1400,
            },
        );
        routes.insert("10.1.0.1/32".parse().unwrap(), NextHop::Local);
        let mut fib = Fib::new(vec![port("eth1")], [], &routes);
        fib.add_neighbour(p, gateway, MAC);
        fib
    }

    #[test]
    fn a_gateway_is_looked_up_as_the_neighbour() {
        let Resolution::Adjacent(a) = fib().resolve("10.2.3.4".parse().unwrap()) else {
            panic!("not adjacent");
        };
        assert_eq!((a.destination, a.mtu, a.port), (MAC, 1400, PortId(0)));
    }

    #[test]
    fn a_connected_destination_is_its_own_neighbour() {
        let fib = fib();
        assert!(matches!(
            fib.resolve("10.1.0.9".parse().unwrap()),
            Resolution::Adjacent(_)
        ));
        assert_eq!(
            fib.resolve("10.1.0.8".parse().unwrap()),
            Resolution::Unresolved
        );
        assert_eq!(fib.resolve("10.1.0.1".parse().unwrap()), Resolution::Local);
        assert_eq!(
            fib.resolve("192.0.2.1".parse().unwrap()),
            Resolution::Kernel
        );
    }
}
