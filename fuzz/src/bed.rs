//! The router that packets are given to: tunnels of every kind with every option, ports of every role, routes and
//! neighbours. Addresses are those of tests/golden, so that its frames mean something here.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, LazyLock},
};

use greyhound::{
    datapath::{ForwardState, TunnelRecord},
    fib::{
        Adjacency, Egress, Fib, Forwards, NextHop, PortId, PortInfo, ResolutionCache, RouteTable,
    },
    packet::{GreKey, MacAddr},
    tunnel::{
        Family, FlowLabel, Mode, Payload, Peers, Sequences, Shim, Tos, Ttl, Tunnel, TunnelId,
        TunnelTable, UdpEncap,
    },
};

/// Ports by role: underlay, overlay, both, and an overlay that is particular in every way.
pub const UNDERLAY: PortId = PortId(0);
pub const OVERLAY: PortId = PortId(1);
pub const BOTH: PortId = PortId(2);
pub const ODD: PortId = PortId(3);
/// The other end of a tunnel's wire.
pub const WIRE: PortId = PortId(4);
pub const PORTS: usize = 5;

/// The tunnel on that wire; the other Ethernet tunnels have devices of their own.
fn is_wired(tunnel: &Tunnel) -> bool {
    tunnel.mode == Mode::Gretap && tunnel.remote == end(Family::V4, 2)
}

/// The next hop on the underlay, and the hosts behind the overlay ports.
pub const PEER: MacAddr = MacAddr([2, 0, 0, 0, 2, 2]);
pub const HOST: MacAddr = MacAddr([2, 0, 0, 0, 1, 2]);

/// What a tunnel is given beside its kind's defaults; named as the captures are.
type Variant = (&'static str, fn(Tunnel) -> Tunnel);

fn keyed(tunnel: Tunnel) -> Tunnel {
    let key = Some(GreKey(0x1122_3344));
    Tunnel {
        ikey: key,
        okey: key,
        keepalive: true,
        ..tunnel
    }
}

fn summed(tunnel: Tunnel) -> Tunnel {
    Tunnel {
        icsum: true,
        ocsum: true,
        ..tunnel
    }
}

fn numbered(tunnel: Tunnel) -> Tunnel {
    Tunnel {
        iseq: true,
        oseq: true,
        ..tunnel
    }
}

fn one_way(tunnel: Tunnel) -> Tunnel {
    Tunnel {
        ikey: Some(GreKey(1)),
        okey: Some(GreKey(2)),
        ocsum: true,
        iseq: true,
        ..tunnel
    }
}

fn in_udp(tunnel: Tunnel, source_port: Option<u16>) -> Tunnel {
    let checksum = source_port.is_some() || tunnel.local.is_ipv6();
    Tunnel {
        udp: Some(UdpEncap {
            source_port,
            checksum,
        }),
        ..tunnel
    }
}

/// What any kind has.
const COMMON: [Variant; 5] = [
    ("", |t| t),
    ("nopmtudisc", |t| Tunnel {
        pmtudisc: false,
        ttl: Ttl::Fixed(64),
        ..t
    }),
    ("nopmtudisc-ignore-df", |t| Tunnel {
        pmtudisc: false,
        ignore_df: true,
        ttl: Ttl::Inherit,
        encaplimit: None,
        flow_label: FlowLabel::Inherit,
        ..t
    }),
    ("tos-inherit", |t| Tunnel {
        tos: Tos::Inherit,
        ttl: Ttl::Fixed(255),
        flow_label: FlowLabel::Fixed(0xf_ffff),
        ..t
    }),
    ("clamp", |t| Tunnel {
        clamp_mss: Some(1000),
        ..t
    }),
];

/// What the kinds with a GRE header have besides.
const GRE: [Variant; 8] = [
    ("key", keyed),
    ("csum", summed),
    ("seq", numbered),
    ("key-csum-seq", |t| keyed(summed(numbered(t)))),
    ("tos-b8", |t| Tunnel {
        tos: Tos::Fixed(0xb8),
        ..summed(t)
    }),
    ("one-way", one_way),
    ("udp", |t| in_udp(t, None)),
    ("udp-fixed", |t| in_udp(keyed(summed(t)), Some(4754))),
];

fn end(family: Family, n: usize) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 9, 0, n as u8]),
        Family::V6 => IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, n as u16]),
    }
}

/// Every kind with every variant, in their slots. Variants differ by their remote address.
fn tunnels() -> Vec<(String, Tunnel)> {
    let mut all = Vec::new();
    for mode in Mode::ALL {
        let kind = mode.kind();
        let more = match kind.shim {
            Shim::Gre => &GRE[..],
            _ => &[],
        };
        for (n, (variant, change)) in COMMON.iter().chain(more).enumerate() {
            let tunnel = Tunnel::new(mode, end(kind.underlay, 1), end(kind.underlay, 2 + n));
            let tunnel = Tunnel {
                id: TunnelId(all.len() as u32),
                ..change(tunnel)
            };
            let name = format!("{}-{variant}", mode.as_str());
            all.push((name.trim_end_matches('-').to_owned(), tunnel));
        }
    }
    let v4 = |n| Tunnel::new(Mode::Gre, end(Family::V4, 1), end(Family::V4, n));
    let mut special = |name: &str, tunnel: Tunnel| {
        let id = TunnelId(all.len() as u32);
        all.push((name.to_owned(), Tunnel { id, ..tunnel }));
    };
    special(
        "down",
        Tunnel {
            up: false,
            ..v4(200)
        },
    );
    special("unresolved", v4(UNRESOLVED));
    special("gre-peers", many(Mode::Gre, Ipv4Addr::UNSPECIFIED));
    special("ip6gre-peers", many(Mode::Ip6gre, Ipv6Addr::UNSPECIFIED));
    for (name, mode) in [("nvgre", Mode::Gretap), ("ip6-nvgre", Mode::Ip6gretap)] {
        special(name, nvgre(mode));
    }
    special("sit-peers", many(Mode::Sit, Ipv4Addr::UNSPECIFIED));
    special("gre-group", many(Mode::Gre, Ipv4Addr::new(239, 1, 1, 1)));
    special("ip6gre-group", many(Mode::Ip6gre, GROUP6));
    all
}

const UNRESOLVED: usize = 201;
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 1);

/// A tunnel that receives from anyone, with two peers: the lower and the upper half of each network behind it.
fn many(mode: Mode, remote: impl Into<IpAddr>) -> Tunnel {
    let underlay = mode.kind().underlay;
    let mut peers = Peers::default();
    for (net, n) in [("10.0.0.0/8", 100), ("10.2.0.0/16", 101), ("fd00::/8", 101)] {
        peers.insert(net.parse().expect("a prefix"), end(underlay, n));
    }
    let key = (mode.kind().shim == Shim::Gre).then_some(GreKey(77));
    Tunnel {
        ikey: key,
        okey: key,
        peers: Arc::new(peers),
        ..Tunnel::new(mode, end(underlay, 1), remote)
    }
}

/// A virtual subnet's frames (RFC 7637).
fn nvgre(mode: Mode) -> Tunnel {
    let underlay = mode.kind().underlay;
    let vsid = Some(GreKey(0x0012_3456));
    Tunnel {
        ikey: vsid,
        okey: vsid,
        nvgre: true,
        ..Tunnel::new(mode, end(underlay, 1), end(underlay, 210))
    }
}

/// The router, and what its tunnels are called.
pub struct Bed {
    pub fib: Arc<Fib>,
    pub names: Vec<String>,
    /// The tunnels without a router around them, and as their other ends have them.
    pub near: TunnelTable,
    pub far: TunnelTable,
}

static BED: LazyLock<Bed> = LazyLock::new(Bed::new);

impl Bed {
    pub fn get() -> &'static Bed {
        &BED
    }

    fn new() -> Bed {
        let (names, tunnels): (Vec<_>, Vec<_>) = tunnels().into_iter().unzip();
        let near = TunnelTable::new(tunnels.clone());
        let far = TunnelTable::new(tunnels.iter().map(Tunnel::far_end));
        let routes = routes(&tunnels);
        let adjacency = Adjacency {
            vlan: None,
            mark: Default::default(),
            port: UNDERLAY,
            destination: PEER,
            source: mac(UNDERLAY),
            mtu: 1500,
        };
        let with_egress = tunnels.iter().map(|tunnel| {
            let egress = Egress {
                adjacency: (tunnel.remote != end(Family::V4, UNRESOLVED)).then_some(adjacency),
                forwards: Forwards { v4: true, v6: true },
                wire: is_wired(tunnel).then_some(WIRE),
            };
            let wire = is_wired(tunnel).then_some(1500);
            let tunnel = tunnel.clone();
            (Tunnel { wire, ..tunnel }, egress)
        });
        let wired = tunnels.iter().find(|tunnel| is_wired(tunnel));
        let mut fib = Fib::new(ports(wired.map(|t| t.id)), with_egress, &routes);
        // The other peer is not resolved.
        let first = |tunnel: &Tunnel| (tunnel.id, end(tunnel.mode.kind().underlay, 101));
        fib.set_peers(tunnels.iter().map(|tunnel| (first(tunnel), adjacency)));
        for (port, net) in [(OVERLAY, 1), (BOTH, 3), (ODD, 4)] {
            fib.add_neighbour(port, IpAddr::from([10, net, 0, 2]), HOST);
            fib.add_neighbour(port, v6_host(u16::from(net)), HOST);
        }
        let own = ["10.1.0.1", "10.9.0.1", "fd01::1", "fd09::1"];
        fib.set_own(own.map(|own| own.parse().expect("an address")));
        Bed {
            fib: Arc::new(fib),
            names,
            near,
            far,
        }
    }

    /// The number of the tunnel whose name `case` begins with, the longest name of several.
    pub fn number_of(&self, case: &str) -> Option<u8> {
        let named = self
            .names
            .iter()
            .zip(0..)
            .filter(|(name, _)| case.starts_with(*name));
        named
            .max_by_key(|(name, _)| name.len())
            .map(|(_, number)| number)
    }

    /// The tunnel with this number, of which any is one.
    pub fn tunnel(&self, number: u8) -> &Tunnel {
        let id = TunnelId(u32::from(number) % self.names.len() as u32);
        self.near.get(id).expect("slots have no gaps")
    }

    /// Fresh records for all tunnels.
    pub fn records(&self) -> Vec<Option<Arc<TunnelRecord>>> {
        let record = || TunnelRecord::new(0, 1, Arc::new(Sequences::default()));
        self.names
            .iter()
            .map(|_| Some(Arc::new(record())))
            .collect()
    }

    /// A thread's state before its first packet.
    pub fn state(&self, owns_sequences: bool) -> ForwardState {
        ForwardState {
            trail: Default::default(),
            stats: Arc::default(),
            tunnels: self.records(),
            owns_sequences,
            resolutions: ResolutionCache::default(),
        }
    }
}

fn v6_host(net: u16) -> IpAddr {
    IpAddr::from([0xfd00 + net, 0, 0, 0, 0, 0, 0, 2])
}

/// An address behind tunnel `number`.
pub fn behind(number: u8, v6: bool) -> IpAddr {
    match v6 {
        false => IpAddr::from([10, 2, number, 2]),
        true => IpAddr::from([0xfd02, 0, 0, u16::from(number), 0, 0, 0, 2]),
    }
}

pub fn mac(port: PortId) -> MacAddr {
    // The kernel's in the captures.
    MacAddr([0x52, 0x54, 0, 0x4b, 0x50, 0x10 + port.0 as u8])
}

fn ports(wired: Option<TunnelId>) -> Vec<PortInfo> {
    let port = |id: PortId, underlay, overlay| PortInfo {
        name: format!("eth{}", id.0).into(),
        ifindex: 10 + u32::from(id.0),
        mac: mac(id),
        mtu: 1500,
        underlay,
        overlay,
        forwards: Forwards { v4: true, v6: true },
        partial_checksums: false,
        wire: None,
        vlan: None,
    };
    let odd = PortInfo {
        mtu: 600,
        forwards: Forwards {
            v4: true,
            v6: false,
        },
        partial_checksums: true,
        ..port(ODD, false, true)
    };
    vec![
        port(UNDERLAY, true, false),
        port(OVERLAY, false, true),
        PortInfo {
            partial_checksums: true,
            ..port(BOTH, true, true)
        },
        odd,
        PortInfo {
            wire: wired,
            ..port(WIRE, false, true)
        },
    ]
}

fn routes(tunnels: &[Tunnel]) -> RouteTable {
    let mut routes = RouteTable::default();
    let mut add = |prefix: &str, hop| routes.insert(prefix.parse().expect("a prefix"), hop);
    for (port, net, mtu) in [(OVERLAY, 1, 1500), (BOTH, 3, 1500), (ODD, 4, 600)] {
        let hop = NextHop::Connected { port, mtu };
        add(&format!("10.{net}.0.0/24"), hop.clone());
        add(&format!("fd0{net}::/64"), hop);
    }
    for own in ["10.1.0.1/32", "10.9.0.1/32", "fd01::1/128", "fd09::1/128"] {
        add(own, NextHop::Local);
    }
    let gateway = NextHop::Via {
        port: OVERLAY,
        gateway: IpAddr::from([10, 1, 0, 2]),
        mtu: 1400,
    };
    add("10.6.0.0/16", gateway);
    add("10.7.0.0/16", NextHop::Kernel);
    // Behind a tunnel of frames there are neighbours, not routes.
    let routed = |tunnel: &&Tunnel| tunnel.mode.kind().payload != Payload::Ethernet;
    for tunnel in tunnels.iter().filter(routed) {
        let number = tunnel.id.0 as u8;
        let hop = NextHop::Tunnel {
            id: tunnel.id,
            gateway: None,
            mtu: tunnel.mtu,
        };
        add(&format!("{}/24", behind(number, false)), hop.clone());
        add(&format!("{}/64", behind(number, true)), hop);
    }
    routes
}
