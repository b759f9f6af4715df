//! A traffic source for measurements: UDP packets of many flows, plain or in GRE, out of one end of a veth pair.
//!
//! ```text
//! blast DEVICE --to-mac MAC --src 10.0.1.2 --dst 10.0.2.2 --flows 256 --seconds 10 --cpu 0
//! blast DEVICE --to-mac MAC --src … --dst … --gre 192.0.2.1,192.0.2.2 --key 42
//! ```
//!
//! The packets are made by an XDP program that the kernel runs on live frames (`BPF_PROG_RUN`), so the source
//! costs little beside what it feeds. The device's peer must run XDP in its driver, or have GRO on. Prints one
//! line: `sent N seconds S pps N`; what the device refused is in it, and in `ethtool -S` as `xdp_xmit_errors`.
//!
//! With `--rate` the program sends when the clock says so and drops the frame otherwise: the spacing is that of
//! the kernel's clock, the CPU is busy all the time.

mod support;

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use support::{
    generator::{Generator, Pattern, Shape},
    index_of, pin,
};

#[derive(Parser)]
struct Args {
    /// The device to send out of.
    device: String,
    /// Length of the plain Ethernet frame in bytes, without its check sequence; in GRE it grows by the headers.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Instead of one size, seven of 64 bytes for four of 576 and one of 1400, in random order.
    #[arg(long, conflicts_with = "size")]
    imix: bool,
    /// How many flows: they differ in their UDP source port.
    #[arg(long, default_value_t = 256)]
    flows: u16,
    #[arg(long)]
    to_mac: String,
    #[arg(long, default_value = "02:00:00:00:00:99")]
    from_mac: String,
    #[arg(long)]
    src: Ipv4Addr,
    #[arg(long)]
    dst: Ipv4Addr,
    /// Outer source and destination: wraps the packets in GRE.
    #[arg(long, value_delimiter = ',', num_args = 1)]
    gre: Vec<Ipv4Addr>,
    /// The GRE key.
    #[arg(long)]
    key: Option<u32>,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// At most this many packets.
    #[arg(long)]
    count: Option<u64>,
    /// So many packets a second, evenly spaced, instead of as many as go.
    #[arg(long, conflicts_with = "count")]
    rate: Option<u32>,
    /// Send the packets of --count one by one, so many milliseconds apart.
    #[arg(long, requires = "count")]
    gap: Option<u64>,
    /// Put the time of sending into the first eight bytes of the UDP payload.
    #[arg(long)]
    stamp: bool,
    #[arg(long)]
    cpu: Option<usize>,
}

const UDP_LEN: usize = 8;
const IPV4_LEN: usize = 20;
const ETHERNET_LEN: usize = 14;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_GRE: u8 = 47;

/// One call of the kernel's generator ends in a wait for a grace period: it should be worth it.
const PER_CALL: u64 = 1 << 20;
/// A paced program sends few of the frames that it runs on; those of one batch leave together, so it is short.
const PACED_BATCH: u32 = 4;

/// IMIX: frame lengths and how many of each.
const IMIX: [(usize, i32); 3] = [(1400, 1), (576, 4), (64, 7)];

fn mac(text: &str) -> anyhow::Result<[u8; 6]> {
    let octets: Vec<u8> = text
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("{text}: not a MAC address"))?;
    octets
        .try_into()
        .map_err(|_| anyhow::anyhow!("{text}: not a MAC address"))
}

/// The Internet checksum of an IPv4 header (RFC 1071).
fn checksum(header: &[u8]) -> [u8; 2] {
    let mut sum: u32 = header
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload_len: usize) -> Vec<u8> {
    let total = (IPV4_LEN + payload_len) as u16;
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(src.octets());
    header.extend(dst.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    header
}

/// The headers of a packet, and the length of its whole frame; in `size` there is no GRE yet.
fn shape(args: &Args, size: usize, weight: i32) -> anyhow::Result<Shape> {
    let least = ETHERNET_LEN + IPV4_LEN + UDP_LEN + if args.stamp { 8 } else { 0 };
    anyhow::ensure!((least..=1514).contains(&size), "--size: {least} to 1514");
    anyhow::ensure!(matches!(args.gre.len(), 0 | 2), "--gre: SOURCE,DESTINATION");
    let udp_len = size - ETHERNET_LEN - IPV4_LEN;
    let mut gre = Vec::new();
    if args.gre.len() == 2 {
        let flags: u16 = if args.key.is_some() { 0x2000 } else { 0 };
        gre.extend(flags.to_be_bytes());
        gre.extend([0x08, 0x00]);
        gre.extend(args.key.map(u32::to_be_bytes).into_iter().flatten());
    }
    let mut header = Vec::new();
    header.extend(mac(&args.to_mac)?);
    header.extend(mac(&args.from_mac)?);
    header.extend([0x08, 0x00]);
    if let [src, dst] = args.gre[..] {
        let payload = gre.len() + IPV4_LEN + udp_len;
        header.extend(ipv4(src, dst, PROTOCOL_GRE, payload));
        header.extend(&gre);
    }
    header.extend(ipv4(args.src, args.dst, PROTOCOL_UDP, udp_len));
    header.extend(1024u16.to_be_bytes());
    header.extend(9u16.to_be_bytes());
    header.extend((udp_len as u16).to_be_bytes());
    // No checksum (RFC 768): the source port changes.
    header.extend([0, 0]);
    let len = header.len() + udp_len - UDP_LEN;
    Ok(Shape {
        header,
        len,
        weight,
    })
}

fn pattern(args: &Args) -> anyhow::Result<Pattern> {
    let sizes = if args.imix {
        IMIX.to_vec()
    } else {
        vec![(args.size, 1)]
    };
    let shapes = sizes
        .into_iter()
        .map(|(size, weight)| shape(args, size, weight))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let payload_at = shapes[0].header.len();
    anyhow::ensure!(args.rate != Some(0), "--rate: at least 1");
    Ok(Pattern {
        shapes,
        port_at: payload_at - UDP_LEN,
        flows: args.flows,
        ifindex: index_of(&args.device)?,
        interval_ns: args.rate.map(|rate| 1_000_000_000 / rate),
        stamp_at: args.stamp.then_some(payload_at),
    })
}

/// Sends, and says how many packets.
fn send(args: &Args, generator: &Generator, frame: &[u8]) -> anyhow::Result<u64> {
    let start = Instant::now();
    let limit = Duration::from_secs_f64(args.seconds);
    let mut left = args.count.unwrap_or(u64::MAX);
    let batch = args.rate.map_or(0, |_| PACED_BATCH);
    let mut sent = 0;
    // The first calls are short, so that a slow receiver does not stretch the time by much.
    let mut call = PER_CALL / 16;
    if args.rate.is_some() {
        call = PER_CALL;
    }
    while left > 0 && start.elapsed() < limit {
        let n = if args.gap.is_some() {
            1
        } else {
            call.min(left)
        };
        generator.program.run_live(frame, n as i32, batch)?;
        sent += n;
        left -= n;
        call = PER_CALL.min(call * 2);
        if let Some(gap) = args.gap {
            thread::sleep(Duration::from_millis(gap));
        }
    }
    Ok(if args.rate.is_some() {
        generator.sent()?
    } else {
        sent
    })
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let pattern = pattern(&args)?;
    let generator = Generator::load(&pattern)?;
    pin(args.cpu)?;
    let mut frame = pattern.shapes[0].header.clone();
    frame.resize(pattern.shapes[0].len, 0);
    let start = Instant::now();
    let sent = send(&args, &generator, &frame)?;
    let elapsed = start.elapsed().as_secs_f64();
    println!(
        "sent {sent} seconds {elapsed:.2} pps {:.0}",
        sent as f64 / elapsed
    );
    Ok(())
}
