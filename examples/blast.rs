//! A traffic source for measurements: UDP packets of many flows, plain or in GRE, out of one end of a veth pair.
//!
//! ```text
//! blast DEVICE --to-mac MAC --src 10.0.1.2 --dst 10.0.2.2 --flows 256 --seconds 10 --cpu 0
//! blast DEVICE --to-mac MAC --src … --dst … --gre 192.0.2.1,192.0.2.2 --key 42
//! ```
//!
//! The packets are made by an XDP program that the kernel runs on live frames (`BPF_PROG_RUN`), so the source
//! costs little beside what it feeds. The device's peer must run XDP in its driver, or have GRO on. Prints one
//! line: `sent N seconds S pps N`.

mod support;

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use support::{generator, index_of, pin};

#[derive(Parser)]
struct Args {
    /// The device to send out of.
    device: String,
    /// Length of the plain Ethernet frame in bytes, without its check sequence; in GRE it grows by the headers.
    #[arg(long, default_value_t = 64)]
    size: usize,
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

/// All headers of a packet, and the length of the whole frame.
fn headers(args: &Args) -> anyhow::Result<(Vec<u8>, usize)> {
    let least = ETHERNET_LEN + IPV4_LEN + UDP_LEN;
    anyhow::ensure!(
        (least..=1514).contains(&args.size),
        "--size: {least} to 1514"
    );
    anyhow::ensure!(matches!(args.gre.len(), 0 | 2), "--gre: SOURCE,DESTINATION");
    let udp_len = args.size - ETHERNET_LEN - IPV4_LEN;
    let mut gre = Vec::new();
    if args.gre.len() == 2 {
        let flags: u16 = if args.key.is_some() { 0x2000 } else { 0 };
        gre.extend(flags.to_be_bytes());
        gre.extend([0x08, 0x00]);
        gre.extend(args.key.map(u32::to_be_bytes).into_iter().flatten());
    }
    let mut bytes = Vec::new();
    bytes.extend(mac(&args.to_mac)?);
    bytes.extend(mac(&args.from_mac)?);
    bytes.extend([0x08, 0x00]);
    if let [src, dst] = args.gre[..] {
        let payload = gre.len() + IPV4_LEN + udp_len;
        bytes.extend(ipv4(src, dst, PROTOCOL_GRE, payload));
        bytes.extend(&gre);
    }
    bytes.extend(ipv4(args.src, args.dst, PROTOCOL_UDP, udp_len));
    bytes.extend(1024u16.to_be_bytes());
    bytes.extend(9u16.to_be_bytes());
    bytes.extend((udp_len as u16).to_be_bytes());
    // No checksum (RFC 768): the source port changes.
    bytes.extend([0, 0]);
    let frame_len = bytes.len() + udp_len - UDP_LEN;
    Ok((bytes, frame_len))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (header, frame_len) = headers(&args)?;
    let port_at = header.len() - UDP_LEN;
    let ifindex = index_of(&args.device)?;
    let program = generator(&header, port_at, args.flows, ifindex, frame_len)?;
    pin(args.cpu)?;
    let mut frame = header;
    frame.resize(frame_len, 0);
    let start = Instant::now();
    let limit = Duration::from_secs_f64(args.seconds);
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut sent = 0;
    // The first calls are short, so that a slow receiver does not stretch the time by much.
    let mut call = PER_CALL / 16;
    while left > 0 && start.elapsed() < limit {
        let n = call.min(left);
        program.run_live(&frame, n as i32)?;
        sent += n;
        left -= n;
        call = PER_CALL.min(call * 2);
    }
    let elapsed = start.elapsed().as_secs_f64();
    println!(
        "sent {sent} seconds {elapsed:.2} pps {:.0}",
        sent as f64 / elapsed
    );
    Ok(())
}
