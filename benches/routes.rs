//! What many routes cost, without a kernel: from its messages to the workers' table, a lookup, and a change.
//!
//! ```text
//! cargo bench --bench routes
//! ```
//!
//! The prefixes are spread over the whole address space, with the lengths of an Internet table, and lead to 200 gateways.
//! Lookups are of random addresses within random routes. Memory is what the process has resident beyond what it began with.

use std::{
    fs,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use greyhound::control::{
    compile::{Compiler, Device, Input},
    mirror::{
        Event, Hop, Insertion, Link, Parts, Route, RouteEvent, RouteKind, State, Table, Touched,
    },
};
use ipnet::{IpNet, Ipv4Net};

const DEVICE: u32 = 2;
const GATEWAYS: u64 = 200;
const PROBES: usize = 1 << 20;
const CHANGES: usize = 2000;

/// xorshift64 (Marsaglia 2003): the same table each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A prefix as a large table has them: six in ten are /24.
fn prefix(random: &mut Random) -> Ipv4Net {
    let dice = random.next();
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
    Ipv4Net::new(address, len).expect("a length").trunc()
}

fn route(random: &mut Random) -> Route {
    let gateway = Ipv4Addr::from(0x0a01_0000 + (random.next() % GATEWAYS) as u32);
    Route {
        kind: RouteKind::Unicast,
        metric: 0,
        tos: 0,
        protocol: 12,
        scope: 0,
        mtu: None,
        prefsrc: None,
        source: None,
        nexthop_id: None,
        hops: vec![Hop {
            oif: DEVICE,
            gateway: Some(IpAddr::V4(gateway)),
            weight: 1,
            encap: false,
            dead: false,
            linkdown: false,
            onlink: false,
        }],
    }
}

fn add(prefix: Ipv4Net, route: Route) -> Event {
    Event::Route(RouteEvent {
        prefix: IpNet::V4(prefix),
        table: Table::Main,
        route,
        added: Some(Insertion::Replace),
    })
}

fn resident() -> f64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<f64>().ok());
    pages.expect("pages") * 4096.0 / 1e6
}

/// A router with one device.
fn router() -> (State, Vec<Device>) {
    let mut state = State::default();
    state.apply(Event::NewLink(Link {
        index: DEVICE,
        name: "eth1".into(),
        mac: Some(greyhound::packet::MacAddr([2, 0, 0, 0, 0, 1])),
        mtu: 1500,
        up: true,
        carrier: true,
        running: true,
        rx_queues: 1,
        tx_queues: 1,
        ..Link::default()
    }));
    let device = Device {
        name: "eth1".into(),
        ifindex: DEVICE,
        underlay: true,
        overlay: true,
        sees_tags: true,
        vlan: None,
    };
    (state, vec![device])
}

fn input<'a>(state: &'a State, devices: &'a [Device], touched: &'a Touched) -> Input<'a> {
    Input {
        state,
        devices,
        tunnels: &[],
        what: Parts::ROUTES4,
        touched,
    }
}

fn middle(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_nanos() as f64 / 1e3
}

fn measure(routes: usize) {
    let mut random = Random(88_172_645_463_325_252);
    let before = resident();
    let (mut state, devices) = router();
    let mut compiler = Compiler::default();
    let start = Instant::now();
    while state.main_v4().len() < routes {
        state.apply(add(prefix(&mut random), route(&mut random)));
    }
    let mirrored = start.elapsed();
    state.take_touched();
    let start = Instant::now();
    let mut fib = compiler
        .compile(input(&state, &devices, &Touched::all()))
        .fib;
    let compiled = start.elapsed();
    let memory = resident() - before;

    let nets: Vec<Ipv4Net> = state.main_routes_v4().map(|(net, _)| net).collect();
    let probe = |random: &mut Random| {
        let net = nets[random.next() as usize % nets.len()];
        let host = random.next() as u32 & u32::from(net.hostmask());
        IpAddr::V4(Ipv4Addr::from(u32::from(net.network()) | host))
    };
    let probes: Vec<IpAddr> = (0..PROBES).map(|_| probe(&mut random)).collect();
    let mut lookup = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        for probe in &probes {
            black_box(fib.routes().lookup(*probe));
        }
        lookup = lookup.min(start.elapsed().as_nanos() as f64 / PROBES as f64);
    }

    // Each change is published: the table before it is still in somebody's hands.
    let mut times = Vec::with_capacity(CHANGES);
    for _ in 0..CHANGES {
        let net = nets[random.next() as usize % nets.len()];
        let start = Instant::now();
        state.apply(add(net, route(&mut random)));
        let touched = state.take_touched();
        let next = compiler.compile(input(&state, &devices, &touched)).fib;
        times.push(start.elapsed());
        fib = next;
    }
    black_box(&fib);
    println!(
        "{routes:>9}{:>12.0}{:>12.0}{memory:>10.1}{lookup:>13.1}{:>13.1}",
        mirrored.as_secs_f64() * 1e3,
        compiled.as_secs_f64() * 1e3,
        middle(times)
    );
}

fn main() {
    println!(
        "{:>9}{:>12}{:>12}{:>10}{:>13}{:>13}",
        "routes", "mirror ms", "compile ms", "MB", "ns a lookup", "us a change"
    );
    for routes in [1, 1000, 100_000, 1_000_000] {
        measure(routes);
    }
}
