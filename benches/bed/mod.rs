//! A router in memory: tunnels, routes, flows, and a worker between two ports. Nothing in it is random from run to run.

use std::{collections::HashSet, net::Ipv4Addr, sync::Arc};

use crossbeam_channel::{Sender, bounded};
use greyhound::{
    datapath::{
        BURST, ForwardState, Links, Port, PuntSource, Snapshot, TunnelRecord, Verdict, Wake,
        Worker, WorkerStats, forward, punt_queue,
    },
    fib::{
        Adjacency, Egress, Fib, Forwards, NextHop, PortId, PortInfo, ResolutionCache, RouteTable,
    },
    packet::{Checksum, MacAddr},
    tunnel::{Mode, Tunnel, TunnelId},
    xdp::{Frame, RingPort},
};
use ipnet::Ipv4Net;

pub const UNDERLAY: PortId = PortId(0);
pub const OVERLAY: PortId = PortId(1);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GATEWAYS: usize = 200;
/// Packets that arrive between two looks at the worker.
pub const ARRIVING: usize = 4 * BURST;
const FRAMES: usize = 8192;

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the overlay into a tunnel.
    Encapsulate,
    /// Out of a tunnel, to a gateway on the overlay.
    Decapsulate,
    /// Out of one tunnel, into another.
    Across,
}

/// What is measured: the way, how many tunnels, routes and flows there are, and the bytes of an inner packet's frame.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub way: Way,
    pub tunnels: usize,
    pub routes: usize,
    pub flows: usize,
    pub bytes: usize,
}

impl Case {
    /// The ports that packets come in by and leave by.
    pub fn ports(&self) -> (PortId, PortId) {
        match self.way {
            Way::Encapsulate => (OVERLAY, UNDERLAY),
            Way::Decapsulate => (UNDERLAY, OVERLAY),
            Way::Across => (UNDERLAY, UNDERLAY),
        }
    }
}

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n
    }
}

/// One flow: the tunnel that it comes out of, and its addresses and source port inside.
#[derive(Clone, Copy)]
struct Flow {
    tunnel: u32,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    port: u16,
}

fn remote(tunnel: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + tunnel as u32)
}

fn is_ordinary(net: Ipv4Net) -> bool {
    let special = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "192.0.2.0/24",
        "198.18.0.0/15",
        "224.0.0.0/3",
    ];
    let special = special.map(|net| net.parse::<Ipv4Net>().expect("a network"));
    !special
        .iter()
        .any(|other| other.contains(&net) || net.contains(other))
}

/// Prefixes as a large table has them: all over the address space, six in ten of them /24.
fn prefixes(n: usize, random: &mut Random) -> Vec<Ipv4Net> {
    if n == 1 {
        return vec!["10.2.0.0/16".parse().expect("a network")];
    }
    let (mut all, mut seen) = (Vec::with_capacity(n), HashSet::new());
    while all.len() < n {
        let dice = random.next() >> 8;
        let len = match dice % 100 {
            0..60 => 24,
            60..72 => 22,
            72..80 => 23,
            80..88 => 20,
            88..95 => 19,
            95..97 => 16,
            _ => 12 + (dice >> 8) as u8 % 21,
        };
        let address = Ipv4Addr::from((random.next() >> 16) as u32);
        let net = Ipv4Net::new(address, len).expect("a length").trunc();
        if is_ordinary(net) && seen.insert(net) {
            all.push(net);
        }
    }
    all
}

fn port(index: u32, name: &str) -> PortInfo {
    PortInfo {
        name: name.into(),
        ifindex: index,
        mac: MAC,
        mtu: 1500,
        underlay: name == "eth0",
        overlay: name == "eth1",
        forwards: Forwards { v4: true, v6: true },
        partial_checksums: false,
        wire: None,
        vlan: None,
    }
}

fn gateway(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 1)) + n as u32)
}

fn fib(case: &Case, prefixes: &[Ipv4Net]) -> Fib {
    let adjacency = Adjacency {
        vlan: None,
        mark: Default::default(),
        port: UNDERLAY,
        destination: PEER,
        source: MAC,
        mtu: 1600,
    };
    let egress = Egress {
        adjacency: Some(adjacency),
        forwards: Forwards { v4: true, v6: true },
        wire: None,
    };
    let tunnels = (0..=case.tunnels).map(|n| {
        let tunnel = Tunnel {
            id: TunnelId(n as u32),
            ..Tunnel::new(Mode::Gre, LOCAL, remote(n))
        };
        (tunnel, egress)
    });
    let mut routes = RouteTable::default();
    let hops: Vec<_> = match case.way {
        Way::Decapsulate => (0..GATEWAYS)
            .map(|n| NextHop::Via {
                port: OVERLAY,
                gateway: gateway(n).into(),
                mtu: 1500,
            })
            .collect(),
        _ => (0..case.tunnels)
            .map(|n| NextHop::Tunnel {
                id: TunnelId(n as u32 + 1),
                gateway: None,
                mtu: 1476,
            })
            .collect(),
    };
    let hops: Vec<_> = hops.into_iter().map(|hop| routes.add_hop(hop)).collect();
    for (n, prefix) in prefixes.iter().enumerate() {
        routes.set((*prefix).into(), hops[n % hops.len()]);
    }
    let mut fib = Fib::new(vec![port(2, "eth0"), port(3, "eth1")], tunnels, &routes);
    for n in 0..GATEWAYS {
        fib.add_neighbour(OVERLAY, gateway(n).into(), PEER);
    }
    fib.set_own([LOCAL.into(), Ipv4Addr::new(10, 1, 255, 254).into()]);
    fib
}

fn flows(case: &Case, prefixes: &[Ipv4Net], random: &mut Random) -> Vec<Flow> {
    let flow = |_| {
        let net = prefixes[random.below(prefixes.len())];
        let host = random.next() as u32 & u32::from(net.hostmask());
        Flow {
            tunnel: random.below(case.tunnels) as u32,
            source: Ipv4Addr::from(0x0a64_0000 | random.next() as u32 & 0xffff),
            destination: Ipv4Addr::from(u32::from(net.network()) | host),
            port: random.next() as u16,
        }
    };
    (0..case.flows).map(flow).collect()
}

/// Writes an IPv4 header; the packet has `len` bytes.
fn write_ip(out: &mut [u8], len: usize, protocol: u8, (source, destination): (Ipv4Addr, Ipv4Addr)) {
    out[..12].copy_from_slice(&[
        0x45,
        0,
        (len >> 8) as u8,
        len as u8,
        0,
        1,
        0x40,
        0,
        64,
        protocol,
        0,
        0,
    ]);
    out[12..16].copy_from_slice(&source.octets());
    out[16..20].copy_from_slice(&destination.octets());
    let checksum = Checksum::new().add_bytes(&out[..20]).finish();
    out[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// Writes the frame of a packet of `flow`, and returns its length.
fn write(case: &Case, flow: &Flow, out: &mut [u8]) -> usize {
    out[..6].copy_from_slice(&MAC.0);
    out[6..12].copy_from_slice(&PEER.0);
    out[12..14].copy_from_slice(&[8, 0]);
    let len = case.bytes - 14;
    let at = match case.way {
        Way::Encapsulate => 14,
        _ => {
            let ends = (remote(flow.tunnel as usize), LOCAL);
            write_ip(&mut out[14..], len + 24, 47, ends);
            out[34..38].copy_from_slice(&[0, 0, 8, 0]);
            38
        }
    };
    write_ip(&mut out[at..], len, 17, (flow.source, flow.destination));
    let (udp, len_udp) = (at + 20, len - 20);
    out[udp..udp + 2].copy_from_slice(&flow.port.to_be_bytes());
    out[udp + 2..udp + 8].copy_from_slice(&[0, 9, (len_udp >> 8) as u8, len_udp as u8, 0, 0]);
    at + len
}

struct Silent;

impl Wake for Silent {
    fn wake(&self) {}
}

/// A worker between its ports, and the flows that arrive.
pub struct Bed {
    case: Case,
    flows: Vec<Flow>,
    next: usize,
    fib: Arc<Fib>,
    worker: Worker<RingPort>,
    /// Its own, for packets that go through `forward()` alone.
    state: ForwardState,
    bufs: Vec<Frame>,
    _snapshots: Sender<Snapshot>,
    _punts: PuntSource,
}

impl Bed {
    pub fn new(case: Case) -> Self {
        let mut random = Random(88_172_645_463_325_252);
        let prefixes = prefixes(case.routes.max(case.tunnels), &mut random);
        let mut flows = flows(&case, &prefixes, &mut random);
        let fib = fib(&case, &prefixes);
        let tunnel_of = |fib: &Fib, to: Ipv4Addr| match fib.resolve(to.into()) {
            greyhound::fib::Resolution::Tunnel(route) => route.id.0,
            _ => 0,
        };
        for flow in flows.iter_mut() {
            // Back into its own tunnel no packet goes.
            if flow.tunnel == tunnel_of(&fib, flow.destination) {
                flow.tunnel = flow.tunnel.saturating_sub(1);
            }
        }
        let fib = Arc::new(fib);
        let records: Vec<_> = (0..=case.tunnels)
            .map(|_| Some(Arc::new(TunnelRecord::new(0, 1, Arc::default()))))
            .collect();
        let (snapshots, snapshot_rx) = bounded(1);
        let (punts, punted) = punt_queue(64, 2048, Box::new(Silent));
        let links = Links {
            snapshots: snapshot_rx,
            handovers: bounded(1).1,
            taps: bounded(1).1,
            spent: bounded(1).0,
            punts,
        };
        let snapshot = Snapshot {
            fib: fib.clone(),
            tunnels: records.clone(),
        };
        snapshots.try_send(snapshot).expect("room for a snapshot");
        let ports = RingPort::share(2, FRAMES);
        let stats = Arc::new(WorkerStats::with_ports(2));
        let mut worker = Worker::new(ports, links, true, stats);
        worker.turn();
        Self {
            case,
            flows,
            next: 0,
            fib,
            worker,
            state: ForwardState {
                trail: Default::default(),
                stats: Arc::default(),
                tunnels: records,
                owns_sequences: true,
                resolutions: ResolutionCache::default(),
            },
            bufs: Vec::with_capacity(ARRIVING),
            _snapshots: snapshots,
            _punts: punted,
        }
    }

    /// [`ARRIVING`] packets arrive, one of each flow in turn.
    pub fn arrive(&mut self) {
        let port = &mut self.worker.ports_mut()[self.case.ports().0.index()];
        for _ in 0..ARRIVING {
            let flow = &self.flows[self.next];
            self.next = (self.next + 1) % self.flows.len();
            port.arrive(|out| write(&self.case, flow, out));
        }
    }

    /// The worker goes round until all of them are sent.
    #[inline(never)]
    pub fn turns(&mut self) {
        for _ in 0..ARRIVING / BURST {
            self.worker.turn();
        }
    }

    /// The kernel takes them from the transmit ring.
    pub fn leave(&mut self) {
        let sent = self.worker.ports_mut()[self.case.ports().1.index()].send();
        assert_eq!(sent, ARRIVING, "{:?}", self.case);
        self.worker.turn();
    }

    /// Takes those that arrived out of the receive ring, for [`Bed::forward`].
    pub fn receive(&mut self) {
        let port = &mut self.worker.ports_mut()[self.case.ports().0.index()];
        while port.rx_burst(&mut self.bufs, BURST) > 0 {}
    }

    /// `forward()` alone, of each packet that was received.
    #[inline(never)]
    pub fn forward(&mut self) {
        let (from, to) = self.case.ports();
        for packet in &mut self.bufs {
            let verdict = forward(packet, from, &self.fib, &mut self.state);
            assert_eq!(verdict, Verdict::Transmit(to));
        }
    }

    /// Gives their frames back.
    pub fn recycle(&mut self) {
        self.worker.ports_mut()[0].recycle(&mut self.bufs);
        self.worker.turn();
    }
}
