//! A small router: eth0 faces the underlay, eth1 the inner network, gre1 and gre2 are tunnels.

mod ends;
mod incremental;
mod multipath;
mod show;
mod wire;

use proptest::prelude::*;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::*;
use crate::tunnel::Mode;
use crate::{
    control::{
        config::Mtu,
        mirror::{
            Address, Event, Hop, Insertion, Link, Neighbour, NetConfChange, Nud, Route, RouteEvent,
            RouteKind, Rule, Table, Vlan,
        },
        path_mtu::Rules,
    },
    fib::{Forwards, Mark, OnPort, PortId, Resolution},
    packet::{MacAddr, Vid},
    tunnel::{FlowLabel, Tos, Ttl},
    xdp::{OnDevice, PrefixAction, PrefixPlan},
};

const ETH0: u32 = 2;
const ETH1: u32 = 3;
const GRE1: u32 = 11;
const GRE2: u32 = 12;
const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
/// 1500 less the outer IP header and the shortest GRE header.
const ROOM: u16 = 1476;
const FIRST: Leads = Leads::Tunnel { mtu: ROOM };
const KERNEL: Leads = Leads::Kernel;

/// What the steering program does with packets for a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leads {
    /// It takes those of up to so many bytes.
    Tunnel {
        mtu: u16,
    },
    Kernel,
}

/// A plan's prefixes, less those that do what a shorter one does.
fn leads(plan: &Plan) -> BTreeMap<IpNet, Leads> {
    let PrefixPlan::All(prefixes) = &plan.prefixes else {
        panic!("only a first plan tells all");
    };
    let mut leads: BTreeMap<IpNet, Leads> = BTreeMap::new();
    for (net, action) in prefixes {
        let mtu = match action {
            PrefixAction::Hop(n) => plan.hops.get(*n as usize).copied().unwrap_or(0),
            PrefixAction::Kernel => 0,
        };
        let this = match mtu {
            0 => Leads::Kernel,
            mtu => Leads::Tunnel { mtu },
        };
        let above = leads.iter().filter(|(above, _)| above.contains(net));
        let above = above.max_by_key(|(above, _)| above.prefix_len());
        if above.map_or(Leads::Kernel, |(_, leads)| *leads) != this {
            leads.insert(*net, this);
        }
    }
    leads
}

fn v4(plan: &Plan) -> BTreeMap<Ipv4Net, Leads> {
    let all = leads(plan).into_iter();
    all.filter_map(|(net, leads)| match net {
        IpNet::V4(net) => Some((net, leads)),
        IpNet::V6(_) => None,
    })
    .collect()
}

fn v6(plan: &Plan) -> BTreeMap<Ipv6Net, Leads> {
    let all = leads(plan).into_iter();
    all.filter_map(|(net, leads)| match net {
        IpNet::V4(_) => None,
        IpNet::V6(net) => Some((net, leads)),
    })
    .collect()
}

fn link(index: u32, name: &str, mtu: u32) -> Link {
    Link {
        index,
        name: name.into(),
        mac: Some(MacAddr([2, 0, 0, 0, 0, index as u8])),
        mtu,
        up: true,
        carrier: true,
        running: true,
        rx_queues: 1,
        tx_queues: 1,
        ..Link::default()
    }
}

fn route_by(oif: u32, gateway: Option<&str>) -> Route {
    Route {
        kind: RouteKind::Unicast,
        metric: 0,
        tos: 0,
        protocol: 3,
        scope: 0,
        mtu: None,
        prefsrc: None,
        source: None,
        nexthop_id: None,
        hops: vec![Hop {
            oif,
            gateway: gateway.map(|ip| ip.parse().unwrap()),
            weight: 1,
            encap: false,
            dead: false,
            linkdown: false,
            onlink: false,
        }],
    }
}

/// The state with a handful of configuration, and shorthand for more.
struct Net {
    state: State,
    configs: Vec<TunnelConfig>,
    devices: Vec<Device>,
    /// Tunnels whose keepalives nobody answers.
    dead: Vec<u32>,
    /// Of both tunnels.
    paths: PathMtus,
}

impl Net {
    /// Both tunnels are ready: gre1 to 198.51.100.1 behind a gateway, gre2 to 192.0.2.2 on the link.
    fn new() -> Self {
        let device = |name: &str, ifindex, underlay| Device {
            name: name.into(),
            ifindex,
            underlay,
            overlay: !underlay,
            sees_tags: false,
            vlan: None,
        };
        let mut net = Self {
            state: State::default(),
            configs: vec![tunnel("gre1", "198.51.100.1"), tunnel("gre2", "192.0.2.2")],
            devices: vec![device("eth0", ETH0, true), device("eth1", ETH1, false)],
            dead: Vec::new(),
            paths: PathMtus::default(),
        };
        net.link(link(ETH0, "eth0", 1500));
        net.link(link(ETH1, "eth1", 1500));
        for (index, name) in [(GRE1, "gre1"), (GRE2, "gre2")] {
            net.link(Link {
                mac: None,
                ..link(index, name, ROOM.into())
            });
        }
        for v6 in [false, true] {
            for ifindex in [-1, ETH0 as i32, ETH1 as i32, GRE1 as i32, GRE2 as i32] {
                net.forwarding(v6, ifindex, true);
            }
        }
        net.address(ETH0, "192.0.2.1");
        net.address(ETH1, "10.1.0.1");
        net.route("192.0.2.0/24", route_by(ETH0, None));
        net.route("198.51.100.0/24", route_by(ETH0, Some("192.0.2.254")));
        net.neighbour(ETH0, "192.0.2.254", Nud::Reachable);
        net.neighbour(ETH0, "192.0.2.2", Nud::Reachable);
        net
    }

    fn link(&mut self, link: Link) {
        self.state.apply(Event::NewLink(link));
    }

    fn address(&mut self, ifindex: u32, ip: &str) {
        let ip: IpAddr = ip.parse().unwrap();
        self.state.apply(Event::NewAddress(Address {
            ifindex,
            ip,
            prefix_len: 24,
            peer: None,
        }));
        self.local(IpNet::from(ip), RouteKind::Local, ifindex);
    }

    fn local(&mut self, prefix: IpNet, kind: RouteKind, ifindex: u32) {
        let route = Route {
            kind,
            ..route_by(ifindex, None)
        };
        self.add(prefix, Table::Local, route);
    }

    fn route(&mut self, prefix: &str, route: Route) {
        self.add(prefix.parse().unwrap(), Table::Main, route);
    }

    fn add(&mut self, prefix: IpNet, table: Table, route: Route) {
        self.state.apply(Event::Route(RouteEvent {
            prefix,
            table,
            route,
            added: Some(Insertion::Append),
        }));
    }

    fn neighbour(&mut self, ifindex: u32, ip: &str, nud: Nud) {
        let neighbour = Neighbour {
            mac: Some(GATEWAY_MAC),
            outer: None,
            nud,
        };
        let ip = ip.parse().unwrap();
        (self.state).apply(Event::NewNeighbour(ifindex, ip, neighbour));
    }

    fn forwarding(&mut self, v6: bool, ifindex: i32, on: bool) {
        self.state.apply(Event::NetConf {
            v6,
            ifindex,
            change: NetConfChange {
                forwarding: Some(on),
                ignore_linkdown: None,
            },
        });
    }

    /// A router on the way says how much it carries.
    fn learn(&mut self, remote: &str, said: u16) {
        let rules = Rules {
            lifetime: Duration::from_secs(600),
            min: 552,
        };
        let remote = remote.parse().unwrap();
        let way = (1500, (ETH0, remote));
        let now = Instant::now();
        self.paths.learn(remote, said.into(), way, rules, now);
    }

    fn compile(&self) -> Compiled {
        self.compile_by(&mut Compiler::default(), Parts::ALL, &Touched::all())
    }

    fn tunnels(&self) -> Vec<TunnelDevice<'_>> {
        let indices = [GRE1, GRE2];
        (self.configs.iter().zip(indices).enumerate())
            .map(|(slot, (config, ifindex))| TunnelDevice {
                id: TunnelId(slot as u32),
                config,
                ifindex,
                alive: !self.dead.contains(&ifindex),
                paths: &self.paths,
            })
            .collect()
    }

    fn compile_by(&self, compiler: &mut Compiler, what: Parts, touched: &Touched) -> Compiled {
        let tunnels = self.tunnels();
        compiler.compile(Input {
            state: &self.state,
            devices: &self.devices,
            tunnels: &tunnels,
            what,
            touched,
        })
    }

    /// What the steering program does with IPv4 prefixes, in order.
    fn plan4(&self) -> Vec<(String, Leads)> {
        let plan = v4(&self.compile().plan).into_iter();
        plan.map(|(net, leads)| (net.to_string(), leads)).collect()
    }

    fn is_ready(&self, id: u32) -> bool {
        self.compile().fib.egress(TunnelId(id)).adjacency.is_some()
    }

    fn resolve(&self, ip: &str) -> Resolution {
        self.compile().fib.resolve(ip.parse().unwrap())
    }
}

fn tunnel(name: &str, remote: &str) -> TunnelConfig {
    TunnelConfig {
        kernels: false,
        name: name.into(),
        mode: Mode::Gre,
        local: Ipv4Addr::new(192, 0, 2, 1).into(),
        remote: remote.parse().unwrap(),
        peers: Arc::default(),
        ikey: None,
        okey: None,
        nvgre: false,
        icsum: false,
        ocsum: false,
        iseq: false,
        oseq: false,
        ttl: Ttl::Inherit,
        tos: Tos::Fixed(0),
        copy_dscp: false,
        flow_label: FlowLabel::Hash,
        encaplimit: None,
        udp: None,
        pmtudisc: true,
        ignore_df: false,
        mtu: Mtu::Auto,
        clamp_mss: false,
        keepalive: None,
        dev: None,
        address: Vec::new(),
        routes: Vec::new(),
        bridge: None,
    }
}

fn planned(entries: &[(&str, Leads)]) -> Vec<(String, Leads)> {
    entries.iter().map(|(p, a)| ((*p).to_owned(), *a)).collect()
}

fn remotes(plan: &Plan) -> Vec<IpAddr> {
    plan.tunnels.iter().map(|t| t.remote).collect()
}

#[test]
fn beneath_a_default_route_into_a_tunnel_stands_what_leads_elsewhere_and_nothing_redundant() {
    let mut net = Net::new();
    net.route("0.0.0.0/0", route_by(GRE1, None));
    net.route("10.1.0.0/16", route_by(ETH1, None));
    // Says what the one above it says already.
    net.route("10.1.2.0/24", route_by(ETH1, Some("10.1.0.9")));
    net.route("10.1.3.0/24", route_by(GRE1, None));
    net.route("10.7.0.0/16", route_by(GRE1, None));
    let wanted = planned(&[
        ("0.0.0.0/0", FIRST),
        ("10.1.0.0/16", KERNEL),
        ("10.1.3.0/24", FIRST),
        ("192.0.2.0/24", KERNEL),
        ("198.51.100.0/24", KERNEL),
    ]);
    assert_eq!(net.plan4(), wanted);
}

#[test]
fn own_addresses_and_broadcasts_beneath_a_tunnel_prefix_are_the_kernels() {
    let mut net = Net::new();
    net.route("10.1.0.0/16", route_by(GRE1, None));
    net.local("10.1.0.255/32".parse().unwrap(), RouteKind::Broadcast, ETH1);
    let wanted = planned(&[
        ("10.1.0.0/16", FIRST),
        ("10.1.0.1/32", KERNEL),
        ("10.1.0.255/32", KERNEL),
    ]);
    assert_eq!(net.plan4(), wanted);
    assert_eq!(net.resolve("10.1.0.1"), Resolution::Local);
    assert_eq!(net.resolve("10.1.0.255"), Resolution::Kernel);
}

#[test]
fn a_wide_local_prefix_hides_what_the_main_table_has_beneath_it() {
    let mut net = Net::new();
    net.local("10.5.0.0/16".parse().unwrap(), RouteKind::Local, ETH1);
    net.route("10.5.1.0/24", route_by(GRE1, None));
    assert_eq!(net.plan4(), []);
    assert_eq!(net.resolve("10.5.1.1"), Resolution::Local);
}

#[test]
fn the_prefix_of_an_unresolved_tunnel_is_the_kernels_beneath_that_of_a_ready_one() {
    let mut net = Net::new();
    net.route("10.0.0.0/8", route_by(GRE1, None));
    net.route("10.2.0.0/16", route_by(GRE2, None));
    let both = planned(&[("10.0.0.0/8", FIRST), ("10.1.0.1/32", KERNEL)]);
    assert_eq!(net.plan4(), both);
    net.neighbour(ETH0, "192.0.2.2", Nud::Failed);
    let first = planned(&[
        ("10.0.0.0/8", FIRST),
        ("10.1.0.1/32", KERNEL),
        ("10.2.0.0/16", KERNEL),
    ]);
    assert_eq!(net.plan4(), first);
    assert_eq!(net.compile().tunnels[1].word(), "unresolved");
    // What arrives from the remote is welcome all the same.
    assert_eq!(net.compile().plan.tunnels.len(), 2);
}

#[test]
fn into_a_tunnel_whose_far_end_is_silent_nothing_is_sent() {
    let mut net = Net::new();
    net.route("10.0.0.0/8", route_by(GRE1, None));
    net.route("10.2.0.0/16", route_by(GRE2, None));
    net.dead = vec![GRE2];
    let wanted = planned(&[
        ("10.0.0.0/8", FIRST),
        ("10.1.0.1/32", KERNEL),
        ("10.2.0.0/16", KERNEL),
    ]);
    assert_eq!(net.plan4(), wanted);
    assert!(net.is_ready(0) && !net.is_ready(1));
    let Compiled { fib, tunnels, plan } = net.compile();
    assert_eq!(
        (tunnels[0].word(), tunnels[1].word()),
        ("up", "no-keepalive")
    );
    let alive = |id| fib.tunnels().get(TunnelId(id)).map(|t| t.alive);
    assert_eq!((alive(0), alive(1)), (Some(true), Some(false)));
    // Its keepalives come back, and the far end's are answered.
    assert_eq!(plan.tunnels.len(), 2);
}

#[test]
fn where_the_kernel_sends_nothing_for_want_of_a_carrier_the_workers_do_not_either() {
    // The kernel keeps the route, unless it is told to ignore such; then it says that the hop is dead.
    for (dead, tunnel, plan) in [(false, 0, &[][..]), (true, 1, &[("10.2.0.0/16", FIRST)])] {
        let mut net = Net::new();
        let mut hop = route_by(GRE1, None);
        (hop.hops[0].linkdown, hop.hops[0].dead) = (true, dead);
        net.route("10.2.0.0/16", hop);
        let spare = Route {
            metric: 10,
            ..route_by(GRE2, None)
        };
        net.route("10.2.0.0/16", spare);
        net.link(Link {
            mac: None,
            carrier: false,
            ..link(GRE1, "gre1", ROOM.into())
        });
        assert_eq!(net.plan4(), planned(plan));
        assert!(!net.is_ready(0));
        let resolved = net.resolve("10.2.0.1");
        let by = |id| matches!(resolved, Resolution::Tunnel(into) if into.id == TunnelId(id));
        assert!(by(tunnel), "{resolved:?}");
    }
}

#[test]
fn routes_that_ask_for_more_than_a_next_hop_are_the_kernels() {
    let plain = || route_by(GRE1, None);
    let mut encap = plain();
    encap.hops[0].encap = true;
    let tos = Route { tos: 4, ..plain() };
    let blackhole = Route {
        kind: RouteKind::Blackhole,
        hops: Vec::new(),
        ..plain()
    };
    let prohibit = Route {
        kind: RouteKind::Prohibit,
        ..plain()
    };
    for odd in [encap, tos, blackhole, prohibit] {
        let mut net = Net::new();
        net.route("10.0.0.0/8", plain());
        net.route("10.9.0.0/16", odd.clone());
        let wanted = planned(&[
            ("10.0.0.0/8", FIRST),
            ("10.1.0.1/32", KERNEL),
            ("10.9.0.0/16", KERNEL),
        ]);
        assert_eq!(net.plan4(), wanted, "{odd:?}");
        assert_eq!(net.resolve("10.9.0.1"), Resolution::Kernel, "{odd:?}");
    }
}

#[test]
fn a_route_for_one_tos_leaves_the_other_packets_of_its_prefix_to_the_kernel_too() {
    let mut net = Net::new();
    net.route("10.9.0.0/16", route_by(GRE1, None));
    net.route(
        "10.9.0.0/16",
        Route {
            tos: 4,
            ..route_by(ETH1, None)
        },
    );
    assert_eq!(net.plan4(), []);
}

#[test]
fn an_outer_route_that_only_the_kernel_can_follow_gives_no_egress() {
    let mut net = Net::new();
    let mut multipath = route_by(ETH0, Some("192.0.2.254"));
    multipath.hops.push(route_by(ETH1, None).hops[0]);
    net.route("198.51.100.1/32", multipath);
    assert!(!net.is_ready(0) && net.is_ready(1));
}

#[test]
fn an_mtu_metric_counts_for_inner_and_outer_routes() {
    let mut net = Net::new();
    let narrow = |mtu, oif, via| Route {
        mtu: Some(mtu),
        ..route_by(oif, via)
    };
    net.route("10.2.0.0/16", narrow(1300, GRE1, None));
    net.route("10.3.0.0/16", narrow(9000, GRE1, None));
    net.route("10.4.0.0/16", narrow(1280, ETH1, Some("10.1.0.9")));
    net.neighbour(ETH1, "10.1.0.9", Nud::Stale);
    let mtu_of =
        |net: &Net, prefix: &str| match v4(&net.compile().plan).get(&prefix.parse().unwrap()) {
            Some(Leads::Tunnel { mtu }) => *mtu,
            other => panic!("{prefix}: {other:?}"),
        };
    assert_eq!(mtu_of(&net, "10.2.0.0/16"), 1300);
    assert_eq!(mtu_of(&net, "10.3.0.0/16"), ROOM);
    net.route("10.5.0.0/16", narrow(9000, ETH1, Some("10.1.0.9")));
    for (destination, mtu) in [("10.4.0.1", 1280), ("10.5.0.1", 1500)] {
        let Resolution::Adjacent(adjacency) = net.resolve(destination) else {
            panic!("{destination}: not adjacent");
        };
        assert_eq!(adjacency.mtu, mtu);
    }
    net.configs[0].clamp_mss = true;
    let clamped =
        |net: &Net, id| (net.compile().fib.tunnels().get(TunnelId(id))).and_then(|t| t.clamp_mss);
    assert_eq!((clamped(&net, 0), clamped(&net, 1)), (Some(ROOM), None));
    // A narrow way to the remote makes less room than the tunnel's device says.
    net.route("198.51.100.1/32", narrow(1400, ETH0, Some("192.0.2.254")));
    assert_eq!(mtu_of(&net, "10.3.0.0/16"), 1376);
    assert_eq!(clamped(&net, 0), Some(1376));
    assert_eq!(mtu_of(&net, "10.2.0.0/16"), 1300);
    let outer = net.compile().tunnels[0].outer.unwrap();
    assert!(outer.has_metric && outer.route_mtu == 1400);
}

#[test]
fn mtu_3_a_learned_path_mtu_counts_as_a_narrower_route_would() {
    let mut net = Net::new();
    net.configs[0].clamp_mss = true;
    net.route("10.2.0.0/16", route_by(GRE1, None));
    net.learn("198.51.100.1", 1300);
    let compiled = net.compile();
    let steered = v4(&compiled.plan)[&"10.2.0.0/16".parse().unwrap()];
    assert_eq!(steered, Leads::Tunnel { mtu: 1276 });
    let outer = compiled.tunnels[0].outer.unwrap();
    assert_eq!((outer.mtu, outer.route_mtu), (1300, 1500));
    assert!(!outer.has_metric);
    let adjacency = compiled.fib.egress(TunnelId(0)).adjacency.unwrap();
    assert_eq!(adjacency.mtu, 1300);
    let tunnel = compiled.fib.tunnels().get(TunnelId(0)).unwrap();
    assert_eq!((tunnel.clamp_mss, tunnel.mtu), (Some(1276), ROOM));
    // It never makes a route wider.
    let narrow = Route {
        mtu: Some(1290),
        ..route_by(ETH0, Some("192.0.2.254"))
    };
    net.route("198.51.100.1/32", narrow);
    assert_eq!(net.compile().tunnels[0].outer.unwrap().mtu, 1290);
}

#[test]
fn gre_8_an_outer_route_into_a_tunnel_gives_no_egress() {
    for into in [GRE1, GRE2] {
        let mut net = Net::new();
        net.route("10.2.0.0/16", route_by(GRE1, None));
        assert!(net.is_ready(0));
        net.route("198.51.100.1/32", route_by(into, None));
        assert!(!net.is_ready(0) && net.is_ready(1));
        let compiled = net.compile();
        assert_eq!(compiled.tunnels[0].word(), "no-route");
        let inner = "10.2.0.0/16".parse().unwrap();
        assert!(!v4(&compiled.plan).contains_key(&inner));
    }
}

#[test]
fn a_remote_that_is_our_own_or_has_no_route_gives_no_egress() {
    let mut net = Net::new();
    net.configs[0].remote = Ipv4Addr::new(10, 1, 0, 1).into();
    net.configs[1].remote = Ipv4Addr::new(203, 0, 113, 1).into();
    let words = net
        .compile()
        .tunnels
        .iter()
        .map(|t| t.word())
        .collect::<Vec<_>>();
    assert_eq!(words, ["no-route"; 2]);
    assert!(!net.is_ready(0) && !net.is_ready(1));
}

#[test]
fn a_device_that_is_down_has_no_role_and_nothing_leaves_by_it() {
    let mut net = Net::new();
    net.route("10.2.0.0/16", route_by(GRE1, None));
    // IPv6 routes stay until the kernel says more.
    net.route("2001:db8:9::/48", route_by(ETH1, Some("2001:db8::9")));
    net.neighbour(ETH1, "2001:db8::9", Nud::Reachable);
    assert!(matches!(
        net.resolve("2001:db8:9::1"),
        Resolution::Adjacent(_)
    ));
    for (index, name) in [(ETH0, "eth0"), (ETH1, "eth1")] {
        net.link(Link {
            up: false,
            ..link(index, name, 1500)
        });
    }
    net.route("198.51.100.0/24", route_by(ETH0, Some("192.0.2.254")));
    let compiled = net.compile();
    assert!(!compiled.plan.ports[&ETH0].underlay && !compiled.plan.ports[&ETH1].overlay);
    assert!(v4(&compiled.plan).is_empty());
    assert!(!net.is_ready(0));
    assert_eq!(net.resolve("2001:db8:9::1"), Resolution::Kernel);
}

#[test]
fn without_carrier_the_kernel_answers_even_where_a_neighbour_is_permanent() {
    let mut net = Net::new();
    net.route("10.2.0.0/16", route_by(GRE1, None));
    net.route("10.4.0.0/16", route_by(ETH1, Some("10.1.0.9")));
    net.neighbour(ETH0, "192.0.2.254", Nud::Permanent);
    net.neighbour(ETH1, "10.1.0.9", Nud::Permanent);
    assert!(net.is_ready(0));
    assert!(matches!(net.resolve("10.4.0.1"), Resolution::Adjacent(_)));
    for (index, name) in [(ETH0, "eth0"), (ETH1, "eth1")] {
        net.link(Link {
            carrier: false,
            running: false,
            ..link(index, name, 1500)
        });
    }
    assert!(!net.is_ready(0));
    assert!(v4(&net.compile().plan).is_empty());
    assert_eq!(net.resolve("10.4.0.1"), Resolution::Kernel);
}

#[test]
fn a_device_in_a_bridge_has_no_role() {
    let mut net = Net::new();
    let ports = net.compile().plan.ports;
    assert!(ports[&ETH0].underlay && !ports[&ETH0].overlay);
    assert!(ports[&ETH1].overlay && !ports[&ETH1].underlay);
    assert_eq!(ports[&ETH1].mac, [2, 0, 0, 0, 0, ETH1 as u8]);
    net.link(Link {
        master: Some(40),
        ..link(ETH1, "eth1", 1500)
    });
    let ports = net.compile().plan.ports;
    assert!(ports[&ETH0].underlay && !ports[&ETH1].overlay);
}

#[test]
fn a_vlan_device_above_takes_the_role_where_tags_are_not_seen() {
    let mut net = Net::new();
    net.link(Link {
        link: Some(ETH1),
        vlan: Some(Vlan {
            id: 7,
            ..Vlan::default()
        }),
        ..link(20, "eth1.7", 1500)
    });
    let overlay = |net: &Net| net.compile().plan.ports[&ETH1].overlay;
    assert!(!overlay(&net));
    assert!(net.compile().plan.ports[&ETH0].underlay);
    net.devices[1].sees_tags = true;
    assert!(overlay(&net));
}

/// Router on a stick: eth0 with VLANs 100, the underlay, and 7, the overlay.
fn stick() -> Net {
    const BLUE: u32 = 20;
    const RED: u32 = 21;
    let mut net = Net::new();
    let vlan = |index, name: &str, id| Link {
        kind: Some("vlan".into()),
        link: Some(ETH0),
        vlan: Some(Vlan {
            id,
            reorders: true,
            ..Vlan::default()
        }),
        ..link(index, name, 1400)
    };
    net.link(vlan(BLUE, "eth0.100", 100));
    net.link(vlan(RED, "eth0.7", 7));
    let device = |name: &str, ifindex, underlay, id| Device {
        name: name.into(),
        ifindex,
        underlay,
        overlay: !underlay,
        sees_tags: true,
        vlan: Some(OnPort {
            port: PortId(0),
            vid: Vid::new(id).unwrap(),
        }),
    };
    net.devices = vec![
        Device {
            underlay: false,
            vlan: None,
            sees_tags: true,
            ..net.devices[0].clone()
        },
        device("eth0.100", BLUE, true, 100),
        device("eth0.7", RED, false, 7),
    ];
    net.forwarding(false, RED as i32, true);
    net.route("198.51.100.0/24", route_by(BLUE, Some("192.0.2.254")));
    net.neighbour(BLUE, "192.0.2.254", Nud::Reachable);
    net.route("10.1.0.0/24", route_by(RED, None));
    net.neighbour(RED, "10.1.0.9", Nud::Reachable);
    net.state
        .apply(Event::DelNeighbour(ETH0, "192.0.2.254".parse().unwrap()));
    net
}

#[test]
fn vlan_devices_are_ports_by_the_socket_of_the_one_beneath() {
    let mut net = stick();
    // A later route of the same prefix replaces none: the one by eth0 goes.
    net.state.apply(Event::Route(RouteEvent {
        prefix: "198.51.100.0/24".parse().unwrap(),
        table: Table::Main,
        route: route_by(ETH0, Some("192.0.2.254")),
        added: None,
    }));
    let compiled = net.compile();
    let adjacency = |number, mac: u8, neighbour: &str| Adjacency {
        port: PortId(0),
        vlan: Vid::new(number),
        mark: Mark::of(mac.into(), neighbour.parse().unwrap()),
        destination: GATEWAY_MAC,
        source: MacAddr([2, 0, 0, 0, 0, mac]),
        mtu: 1400,
    };
    let out = compiled.fib.egress(TunnelId(0)).adjacency;
    assert_eq!(out, Some(adjacency(100, 20, "192.0.2.254")));
    let inside = compiled.fib.resolve("10.1.0.9".parse().unwrap());
    assert_eq!(inside, Resolution::Adjacent(adjacency(7, 21, "10.1.0.9")));
    let on = |number| {
        Some(OnDevice {
            ifindex: ETH0,
            vid: Vid::new(number).unwrap(),
        })
    };
    let ports = &compiled.plan.ports;
    assert!(ports[&20].underlay && !ports[&20].overlay && ports[&20].vlan == on(100));
    assert!(ports[&21].overlay && ports[&21].forward4 && ports[&21].vlan == on(7));
    assert!(!ports[&ETH0].underlay && !ports[&ETH0].overlay);
    assert_eq!(ports[&21].mac, [2, 0, 0, 0, 0, 21]);
}

#[test]
fn a_vlan_device_has_no_role_where_its_frames_do_not_come() {
    type Change = fn(&mut Net);
    let changes: [(&str, Change); 5] = [
        ("nothing", |_| ()),
        ("tags are not seen", |net| {
            for device in &mut net.devices {
                device.sees_tags = false;
            }
        }),
        ("the one beneath is down", |net| {
            net.link(Link {
                up: false,
                ..link(ETH0, "eth0", 1500)
            })
        }),
        ("in a bridge", |net| {
            let vlan = net.state.link(21).unwrap().clone();
            net.link(Link {
                master: Some(40),
                ..vlan
            })
        }),
        ("the one beneath is a wire's end", |net| {
            net.configs[1].mode = Mode::Gretap;
            net.configs[1].bridge = Some("eth0".into());
        }),
    ];
    for (name, change) in changes {
        let mut net = stick();
        change(&mut net);
        let role = net.compile().plan.ports[&21].overlay;
        assert_eq!(role, name == "nothing", "{name}");
    }
    // Where the one beneath cannot send, neither can it, whatever it says of itself (loose_binding).
    let mut net = stick();
    net.link(Link {
        carrier: false,
        ..link(ETH0, "eth0", 1500)
    });
    assert_eq!(net.resolve("10.1.0.9"), Resolution::Kernel);
    // A bridge above the one beneath does not get what the VLAN device gets.
    net.link(Link {
        master: Some(40),
        ..link(ETH0, "eth0", 1500)
    });
    assert!(net.compile().plan.ports[&21].overlay);
}

#[test]
fn with_somebodys_policy_rules_nothing_is_steered_and_nothing_routed() {
    let mut net = Net::new();
    net.route("10.2.0.0/16", route_by(GRE1, None));
    net.state.apply(Event::NewRule(Rule {
        v6: false,
        priority: 100,
        table: 100,
        plain: false,
        ..Rule::default()
    }));
    let compiled = net.compile();
    let far = "10.2.0.1".parse().unwrap();
    assert_eq!(compiled.fib.resolve(far), Resolution::Kernel);
    assert!(leads(&compiled.plan).is_empty());
    assert!(!net.is_ready(0));
    let ports = &compiled.plan.ports;
    assert!(!ports[&ETH0].underlay && !ports[&ETH1].overlay);
    // The raw socket's filter goes by the same table.
    assert_eq!(compiled.plan.tunnels.len(), 2);
}

#[test]
fn policy_rules_that_concern_others_leave_the_fast_path_alone() {
    let rule = |change: fn(&mut Rule)| {
        let mut rule = Rule {
            priority: 100,
            table: 100,
            ..Rule::default()
        };
        change(&mut rule);
        rule
    };
    let with = |rules: &[Rule], change: fn(&mut Net)| {
        let mut net = Net::new();
        net.route("10.2.0.0/16", route_by(GRE1, None));
        net.configs[1].local = Ipv4Addr::new(192, 0, 2, 7).into();
        net.address(ETH0, "192.0.2.7");
        for (priority, table) in [(0, 255), (32766, 254), (32767, 253)] {
            net.state.apply(Event::NewRule(Rule {
                priority,
                table,
                plain: true,
                ..Rule::default()
            }));
        }
        for rule in rules {
            net.state.apply(Event::NewRule(rule.clone()));
        }
        change(&mut net);
        let compiled = net.compile();
        let steered = compiled.plan.ports[&ETH1].overlay;
        let resolved = compiled.fib.resolve("10.2.0.1".parse().unwrap());
        assert_eq!(steered, resolved != Resolution::Kernel);
        (steered, net.is_ready(0), net.is_ready(1))
    };
    let nothing: fn(&mut Net) = |_| ();
    let elsewhere = rule(|r| r.iif = Some("eth7".into()));
    assert_eq!(with(&[], nothing), (true, true, true));
    assert_eq!(
        with(std::slice::from_ref(&elsewhere), nothing),
        (true, true, true)
    );
    let ours = rule(|r| r.iif = Some("eth1".into()));
    assert_eq!(
        with(&[elsewhere.clone(), ours], nothing),
        (false, false, false)
    );
    // What leaves from an address is the kernel's; what comes for its tunnels goes fast all the same.
    let from = rule(|r| r.from = Some("192.0.2.7/32".parse().unwrap()));
    assert_eq!(with(&[from], nothing), (true, true, false));
    let somebody = rule(|r| r.from = Some("10.1.0.0/24".parse().unwrap()));
    assert_eq!(with(&[somebody], nothing), (false, false, false));
    let vrfs = rule(|r| r.l3mdev = true);
    assert_eq!(
        with(std::slice::from_ref(&vrfs), nothing),
        (true, true, true)
    );
    let in_vrf = with(&[vrfs], |net| {
        net.link(Link {
            kind: Some("vrf".into()),
            ..link(40, "red", 1500)
        });
        net.link(Link {
            mac: None,
            master: Some(40),
            ..link(GRE2, "gre2", ROOM.into())
        });
    });
    assert_eq!(in_vrf, (false, false, false));
}

#[test]
fn a_tunnel_receives_where_its_local_address_is_ours() {
    let mut net = Net::new();
    net.configs[0].local = Ipv4Addr::new(192, 0, 2, 77).into();
    assert_eq!(remotes(&net.compile().plan), [net.configs[1].remote]);
    // A local route makes a whole prefix ours, without any address.
    net.local("192.0.2.64/26".parse().unwrap(), RouteKind::Local, 1);
    assert_eq!(net.compile().plan.tunnels.len(), 2);
}

#[test]
fn a_tunnel_that_is_down_takes_no_packets() {
    let mut net = Net::new();
    net.route("2001:db8:1::/48", route_by(GRE1, None));
    assert_eq!(v6(&net.compile().plan).len(), 1);
    net.link(Link {
        mac: None,
        up: false,
        ..link(GRE1, "gre1", ROOM.into())
    });
    let compiled = net.compile();
    assert_eq!(compiled.tunnels[0].word(), "down");
    assert_eq!(remotes(&compiled.plan), [net.configs[1].remote]);
    assert!(v6(&compiled.plan).is_empty());
    let up = |id| compiled.fib.tunnels().get(TunnelId(id)).unwrap().up;
    assert!(!up(0) && up(1));
    net.state.apply(Event::DelLink(GRE1));
    assert_eq!(net.compile().tunnels[0].word(), "down");
}

#[test]
fn a_tunnel_bound_to_another_device_than_its_route_is_the_kernels() {
    let mut net = Net::new();
    net.configs[0].dev = Some("eth0".into());
    assert!(net.is_ready(0));
    let bound = |net: &Net| net.compile().fib.tunnels().get(TunnelId(0)).unwrap().dev;
    assert_eq!(bound(&net), Some(ETH0));
    for other in ["eth1", "nowhere"] {
        net.configs[0].dev = Some(other.into());
        assert!(!net.is_ready(0), "{other}");
    }
}

#[test]
fn outer_packets_leave_by_underlay_devices_only() {
    let mut net = Net::new();
    net.route("198.51.100.1/32", route_by(ETH1, None));
    net.neighbour(ETH1, "198.51.100.1", Nud::Reachable);
    assert!(!net.is_ready(0));
    net.devices[1].underlay = true;
    assert!(net.is_ready(0));
}

#[test]
fn forwarding_switches_reach_the_plan_and_the_table() {
    let mut net = Net::new();
    net.forwarding(false, ETH1 as i32, false);
    net.forwarding(false, GRE2 as i32, false);
    let compiled = net.compile();
    let (eth0, eth1) = (compiled.plan.ports[&ETH0], compiled.plan.ports[&ETH1]);
    assert!(eth0.forward4 && eth0.forward6 && !eth1.forward4 && eth1.forward6);
    let (off, on) = (
        Forwards {
            v4: false,
            v6: true,
        },
        Forwards { v4: true, v6: true },
    );
    assert_eq!(compiled.fib.port(PortId(1)).unwrap().forwards, off);
    assert_eq!(compiled.fib.egress(TunnelId(0)).forwards, on);
    assert_eq!(compiled.fib.egress(TunnelId(1)).forwards, off);
    net.forwarding(true, -1, false);
    assert!(!net.compile().plan.ports[&ETH0].forward6);
}

#[test]
fn ipv6_prefixes_are_planned_like_those_of_ipv4() {
    let mut net = Net::new();
    net.address(ETH1, "2001:db8:1::1");
    net.route("::/0", route_by(GRE1, None));
    net.route("2001:db8:1::/64", route_by(ETH1, None));
    net.route("2001:db8:2::/64", route_by(GRE1, None));
    // Hidden by the wider one, which is the kernel's as well.
    net.local("ff00::/8".parse().unwrap(), RouteKind::Multicast, ETH1);
    let plan = net.compile().plan;
    let nets = super::tests::v6(&plan).into_iter();
    let v6: Vec<_> = nets.map(|(net, leads)| (net.to_string(), leads)).collect();
    let wanted = planned(&[
        ("::/0", FIRST),
        ("2001:db8:1::/64", KERNEL),
        ("ff00::/8", KERNEL),
    ]);
    assert_eq!(v6, wanted);
    assert!(v4(&plan).is_empty());
}

#[test]
fn only_usable_neighbours_of_our_devices_are_sent_to() {
    let mut net = Net::new();
    net.route("10.1.0.0/24", route_by(ETH1, None));
    let states = [
        (Nud::Reachable, true),
        (Nud::Stale, true),
        (Nud::Permanent, true),
        (Nud::Incomplete, false),
        (Nud::Failed, false),
        (Nud::None, false),
    ];
    for (nud, usable) in states {
        net.neighbour(ETH1, "10.1.0.9", nud);
        let adjacent = Resolution::Adjacent(Adjacency {
            vlan: None,
            mark: Mark::of(ETH1, "10.1.0.9".parse().unwrap()),
            port: PortId(1),
            destination: GATEWAY_MAC,
            source: MacAddr([2, 0, 0, 0, 0, ETH1 as u8]),
            mtu: 1500,
        });
        let wanted = if usable {
            adjacent
        } else {
            Resolution::Unresolved
        };
        assert_eq!(net.resolve("10.1.0.9"), wanted, "{nud:?}");
    }
    // The same address behind another device is another neighbour.
    net.neighbour(ETH0, "10.1.0.9", Nud::Reachable);
    assert_eq!(net.resolve("10.1.0.9"), Resolution::Unresolved);
}

#[test]
fn the_egress_is_the_gateways_link_address() {
    let net = Net::new();
    let adjacency = Adjacency {
        vlan: None,
        mark: Mark::of(ETH0, "192.0.2.254".parse().unwrap()),
        port: PortId(0),
        destination: GATEWAY_MAC,
        source: MacAddr([2, 0, 0, 0, 0, ETH0 as u8]),
        mtu: 1500,
    };
    assert_eq!(
        net.compile().fib.egress(TunnelId(0)).adjacency,
        Some(adjacency)
    );
    let outer = net.compile().tunnels[0].outer.unwrap();
    assert_eq!(outer.neighbour, IpAddr::from([192, 0, 2, 254]));
}

/// Where a made-up route leads.
#[derive(Debug, Clone, Copy)]
enum Way {
    Ready,
    Unresolved,
    Elsewhere,
}

proptest! {
    #[test]
    fn steered_is_what_the_longest_route_leads_into_a_ready_tunnel(
        routes in proptest::collection::btree_map(
            (0u32..32, 26u8..=32).prop_map(|(host, len)| {
                Ipv4Net::new((0x0a40_0000 | host).into(), len).unwrap().trunc()
            }),
            (prop_oneof![Just(Way::Ready), Just(Way::Unresolved), Just(Way::Elsewhere)], 1400u16..1403),
            0..16,
        ),
        default: bool,
    ) {
        let mut net = Net::new();
        net.neighbour(ETH0, "192.0.2.2", Nud::Failed);
        let mut routes: Vec<_> = routes.into_iter().collect();
        if default {
            routes.push(("0.0.0.0/0".parse().unwrap(), (Way::Ready, 1400)));
        }
        for (prefix, (way, mtu)) in &routes {
            let oif = match way {
                Way::Ready => GRE1,
                Way::Unresolved => GRE2,
                Way::Elsewhere => ETH1,
            };
            let route = Route { mtu: Some((*mtu).into()), ..route_by(oif, None) };
            net.add(IpNet::V4(*prefix), Table::Main, route);
        }
        let plan = v4(&net.compile().plan);
        for host in 0..32u32 {
            let ip = Ipv4Addr::from(0x0a40_0000 | host);
            let planned = plan.iter().filter(|(net, _)| net.contains(&ip)).max_by_key(|(net, _)| net.prefix_len());
            let steered = match planned {
                Some((_, Leads::Tunnel { mtu })) => Some(*mtu),
                _ => None,
            };
            let longest = routes.iter().filter(|(net, _)| net.contains(&ip)).max_by_key(|(net, _)| net.prefix_len());
            let wanted = match longest {
                Some((_, (Way::Ready, mtu))) => Some(*mtu),
                _ => None,
            };
            prop_assert_eq!(steered, wanted, "{}", ip);
        }
    }
}
