//! Where a packet goes next.
//!
//! A [`Fib`] is an immutable snapshot of what the kernel knows: ports, tunnels, routes and neighbours, compiled for
//! lookups. The control room builds it from its mirror of the kernel; workers only read it. It knows no packets and no
//! I/O.

mod cache;
mod routes;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rustc_hash::FxBuildHasher;

pub use cache::ResolutionCache;
pub use routes::RouteTable;

use crate::{
    packet::MacAddr,
    tunnel::{Tunnel, TunnelId, TunnelTable},
};

/// A port: the index of a device in the router's list of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A device that the router's workers have sockets on.
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
    pub port: PortId,
    pub destination: MacAddr,
    pub source: MacAddr,
    /// Largest IP packet, in bytes: the device's, or the route's where that is smaller.
    pub mtu: u16,
}

/// What a route says about the packets it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// The router's own address.
    Local,
    /// Anything that only the kernel can follow.
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
}

/// The forwarding table in use.
#[derive(Debug, Default)]
pub struct Fib {
    ports: Vec<PortInfo>,
    tunnels: TunnelTable,
    egress: Vec<Egress>,
    /// The same neighbour for each outer address of a tunnel without a remote, where it is resolved.
    peers: HashMap<(TunnelId, IpAddr), Adjacency, FxBuildHasher>,
    routes: Arc<RouteTable>,
    neighbours: HashMap<(PortId, IpAddr), MacAddr, FxBuildHasher>,
    /// The router's own addresses: nobody else may send from them.
    own: HashSet<IpAddr, FxBuildHasher>,
    /// Two tables with different contents never have the same number; the empty one's is 0.
    number: u64,
}

fn next_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Relaxed) + 1
}

impl Fib {
    /// A table of these ports and tunnels, without routes. A tunnel without an egress is not ready.
    pub fn new(
        ports: Vec<PortInfo>,
        tunnels: impl IntoIterator<Item = (Tunnel, Egress)>,
        routes: impl Into<Arc<RouteTable>>,
    ) -> Self {
        let mut egress = Vec::new();
        let tunnels = TunnelTable::new(tunnels.into_iter().map(|(tunnel, out)| {
            let slot = tunnel.id.index();
            if egress.len() <= slot {
                egress.resize(slot + 1, Egress::default());
            }
            egress[slot] = out;
            tunnel
        }));
        Self {
            ports,
            tunnels,
            egress,
            peers: HashMap::default(),
            routes: routes.into(),
            neighbours: HashMap::default(),
            own: HashSet::default(),
            number: next_number(),
        }
    }

    /// Adds a neighbour whose link address is known.
    pub fn add_neighbour(&mut self, port: PortId, address: IpAddr, mac: MacAddr) {
        self.neighbours.insert((port, address), mac);
        self.number = next_number();
    }

    /// Adds the neighbour on the underlay that outer packets to `remote` go to, of a tunnel without a remote of its own.
    pub fn add_peer(&mut self, id: TunnelId, remote: IpAddr, adjacency: Adjacency) {
        self.peers.insert((id, remote), adjacency);
    }

    /// Adds an address of the router.
    pub fn add_own(&mut self, address: IpAddr) {
        self.own.insert(address);
    }

    /// Whether it is an address of the router.
    #[inline]
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    #[inline]
    pub fn port(&self, id: PortId) -> Option<&PortInfo> {
        self.ports.get(id.index())
    }

    pub fn ports(&self) -> &[PortInfo] {
        &self.ports
    }

    #[inline]
    pub fn tunnels(&self) -> &TunnelTable {
        &self.tunnels
    }

    pub fn routes(&self) -> &RouteTable {
        &self.routes
    }

    /// The routes, for the next table where they are the same.
    pub fn shared_routes(&self) -> Arc<RouteTable> {
        self.routes.clone()
    }

    /// How a tunnel's packets leave; not ready for a slot that is empty.
    #[inline]
    pub fn egress(&self, id: TunnelId) -> Egress {
        self.egress.get(id.index()).copied().unwrap_or_default()
    }

    /// The neighbour on the underlay for a tunnel's packets to `remote`; none where it is not resolved.
    #[inline]
    pub fn adjacency(&self, tunnel: &Tunnel, remote: IpAddr) -> Option<Adjacency> {
        match tunnel.remote == remote {
            true => self.egress(tunnel.id).adjacency,
            false => self.peers.get(&(tunnel.id, remote)).copied(),
        }
    }

    /// The outer destination of a unicast packet for `destination` that the kernel has routed into a tunnel.
    pub fn remote_of(&self, tunnel: &Tunnel, destination: IpAddr) -> Option<IpAddr> {
        let gateway = match self.routes.lookup(destination) {
            Some(NextHop::Tunnel { id, gateway, .. }) if id == tunnel.id => gateway,
            _ => None,
        };
        tunnel.remote_of(gateway, destination)
    }

    /// Where a packet for `destination` goes.
    pub fn resolve(&self, destination: IpAddr) -> Resolution {
        match self.routes.lookup(destination) {
            Some(NextHop::Connected { port, mtu }) => self.adjacent(port, destination, mtu),
            Some(NextHop::Via { port, gateway, mtu }) => self.adjacent(port, gateway, mtu),
            Some(NextHop::Tunnel { id, gateway, mtu }) => {
                let tunnel = self.tunnels.get(id);
                let remote = tunnel.and_then(|tunnel| tunnel.remote_of(gateway, destination));
                Resolution::Tunnel(IntoTunnel { id, remote, mtu })
            }
            Some(NextHop::Local) => Resolution::Local,
            Some(NextHop::Kernel) | None => Resolution::Kernel,
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
            port,
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
        let mut fib = Fib::new(vec![port("eth1")], [], routes);
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
