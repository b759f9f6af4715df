//! How long the forwarding decision takes, without a kernel: nanoseconds per 64-byte packet through `forward()`.
//!
//! ```text
//! cargo bench --bench forward [-- encapsulate|decapsulate]
//! ```
//!
//! Each packet is written anew before it is forwarded; what that alone takes is measured too and taken off. The
//! number is the best of many rounds: what the code takes where nothing disturbs it.

use std::{hint::black_box, net::Ipv4Addr, sync::Arc, time::Instant};

use etherparse::PacketBuilder;
use greyhound::{
    datapath::{BURST, ForwardState, TunnelRecord, Verdict, forward},
    fib::{
        Adjacency, Egress, Fib, Forwards, NextHop, PortId, PortInfo, ResolutionCache, RouteTable,
    },
    packet::{MacAddr, NoRoom, PacketBuf},
    tunnel::{Mode, Tunnel, TunnelId},
};

const UNDERLAY: PortId = PortId(0);
const OVERLAY: PortId = PortId(1);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// Inner hosts: each burst goes to as many different ones.
const HOSTS: usize = 256;
const ROUNDS: usize = 200;
const BURSTS: usize = 200;
const HEADROOM: usize = 64;
const FRAME: usize = 256;

/// A frame as AF_XDP has it: memory that is somewhere else, a start and a length.
struct Buf<'a> {
    bytes: &'a mut [u8; FRAME],
    start: usize,
    len: usize,
}

impl PacketBuf for Buf<'_> {
    #[inline]
    fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
    #[inline]
    fn headroom(&self) -> usize {
        self.start
    }
    #[inline]
    fn prepend(&mut self, n: usize) -> Result<&mut [u8], NoRoom> {
        self.start = self.start.checked_sub(n).ok_or(NoRoom)?;
        self.len += n;
        Ok(self.data_mut())
    }
    #[inline]
    fn trim_front(&mut self, n: usize) -> Result<(), NoRoom> {
        self.len = self.len.checked_sub(n).ok_or(NoRoom)?;
        self.start += n;
        Ok(())
    }
    #[inline]
    fn truncate(&mut self, len: usize) -> Result<(), NoRoom> {
        if len > self.len {
            return Err(NoRoom);
        }
        self.len = len;
        Ok(())
    }
}

fn tunnel() -> Tunnel {
    Tunnel::new(Mode::Gre, [192, 0, 2, 1], [192, 0, 2, 2])
}

fn far(host: usize) -> [u8; 4] {
    [10, 2, (host >> 8) as u8, host as u8]
}

fn near(host: usize) -> [u8; 4] {
    [10, 1, (host >> 8) as u8, host as u8]
}

/// A router with one tunnel, neighbours, and `others` more routes: /24 networks all over the address space.
fn fib(others: u32) -> Fib {
    let forwards = Forwards { v4: true, v6: true };
    let port = |index, name: &str| PortInfo {
        name: name.into(),
        ifindex: index,
        mac: MAC,
        mtu: 1500,
        underlay: name == "eth0",
        overlay: name == "eth1",
        forwards,
        partial_checksums: true,
        wire: None,
        vlan: None,
    };
    let adjacency = Some(Adjacency {
        vlan: None,
        mark: Default::default(),
        port: UNDERLAY,
        destination: PEER,
        source: MAC,
        mtu: 1500,
    });
    let mut routes = RouteTable::default();
    for i in 0..others {
        let network = Ipv4Addr::from((16 << 24) + (i << 8));
        routes.insert(
            format!("{network}/24").parse().expect("a network"),
            NextHop::Kernel,
        );
    }
    let near_hop = NextHop::Connected {
        port: OVERLAY,
        mtu: 1500,
    };
    let far_hop = NextHop::Tunnel {
        id: TunnelId(0),
        gateway: None,
        mtu: 1476,
    };
    let local = NextHop::Local;
    for (prefix, hop) in [
        ("10.1.0.0/16", near_hop),
        ("10.1.255.254/32", local.clone()),
        ("192.0.2.0/24", NextHop::Kernel),
        ("192.0.2.1/32", local),
        ("10.2.0.0/16", far_hop),
    ] {
        routes.insert(prefix.parse().expect("a network"), hop);
    }
    let egress = Egress {
        adjacency,
        forwards,
        wire: None,
    };
    let mut fib = Fib::new(
        vec![port(2, "eth0"), port(3, "eth1")],
        [(tunnel(), egress)],
        &routes,
    );
    for host in 0..HOSTS {
        fib.add_neighbour(OVERLAY, Ipv4Addr::from(near(host)).into(), PEER);
    }
    fib
}

/// A 64-byte frame from a near host to a far one.
fn plain(host: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(PEER.0, MAC.0)
        .ipv4(near(host), far(host), 64)
        .udp(1024 + host as u16, 9)
        .write(&mut frame, &[0; 22])
        .expect("a frame");
    frame
}

/// A 64-byte frame from a far host to a near one, in GRE.
fn tunnelled(host: usize) -> Vec<u8> {
    let mut inner = Vec::new();
    PacketBuilder::ipv4(far(host), near(host), 64)
        .udp(1024 + host as u16, 9)
        .write(&mut inner, &[0; 22])
        .expect("a packet");
    let mut gre = vec![0, 0, 8, 0];
    gre.extend(inner);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(PEER.0, MAC.0)
        .ipv4([192, 0, 2, 2], [192, 0, 2, 1], 64)
        .write(&mut frame, 47.into(), &gre)
        .expect("a frame");
    frame
}

/// The best of many rounds, in nanoseconds per packet.
fn best(mut burst: impl FnMut()) -> f64 {
    let round = |burst: &mut dyn FnMut()| {
        let start = Instant::now();
        for _ in 0..BURSTS {
            burst();
        }
        start.elapsed().as_nanos() as f64 / (BURSTS * BURST) as f64
    };
    (0..ROUNDS)
        .map(|_| round(&mut burst))
        .fold(f64::MAX, f64::min)
}

fn measure(frames: &[Vec<u8>], from: PortId, to: PortId, fib: &Fib) -> f64 {
    let mut state = ForwardState {
        trail: Default::default(),
        stats: Arc::default(),
        tunnels: vec![Some(Arc::new(TunnelRecord::new(0, 1, Arc::default())))],
        owns_sequences: true,
        resolutions: ResolutionCache::default(),
    };
    let mut memory = vec![[0u8; FRAME]; BURST];
    let mut at = 0;
    let mut once = |run: &mut dyn FnMut(&mut Buf<'_>)| {
        for bytes in &mut memory {
            let frame = &frames[at % frames.len()];
            at += 1;
            let len = frame.len();
            bytes[HEADROOM..HEADROOM + len].copy_from_slice(frame);
            run(&mut Buf {
                bytes,
                start: HEADROOM,
                len,
            });
        }
    };
    let nothing = best(|| {
        once(&mut |packet| {
            black_box(packet.data_mut());
        })
    });
    let all = best(|| {
        once(&mut |packet| {
            let verdict = forward(packet, from, fib, &mut state);
            assert_eq!(verdict, Verdict::Transmit(to));
        })
    });
    all - nothing
}

fn main() {
    let only = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    println!("{:<14}{:>10}{:>14}", "", "routes", "ns a packet");
    for others in [0, 100_000] {
        let fib = fib(others);
        let routes = others + 5;
        let frames = |make: fn(usize) -> Vec<u8>| (0..HOSTS).map(make).collect::<Vec<_>>();
        for (name, frames, from, to) in [
            ("encapsulate", frames(plain), OVERLAY, UNDERLAY),
            ("decapsulate", frames(tunnelled), UNDERLAY, OVERLAY),
        ] {
            if only.as_deref().is_none_or(|word| name.contains(word)) {
                println!(
                    "{name:<14}{routes:>10}{:>14.1}",
                    measure(&frames, from, to, &fib)
                );
            }
        }
    }
}
