//! A numbered flow for measurements of what gets lost: sends at a steady rate, or hears what arrives.
//!
//! ```text
//! flow DEVICE --hear --seconds 12
//! flow DEVICE --rate 100000 --seconds 10 --to-mac MAC --src 10.1.0.2 --dst 10.2.0.2 [--gre SOURCE,DESTINATION]
//! ```
//!
//! Each packet carries its number and when it was sent. The source prints `sent N pause_ms N`: its own longest pause between
//! two packets, which no router is to blame for. The listener prints `heard N lost N in_a_row N reordered N gap_ms N`: how many
//! of those up to the last one did not come, how many of them in a row, and the longest time without a packet.

use std::{
    io,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

#[derive(Parser)]
struct Args {
    device: String,
    #[arg(long)]
    hear: bool,
    /// Packets per second.
    #[arg(long, default_value_t = 100_000)]
    rate: u64,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    #[arg(long, default_value = "ff:ff:ff:ff:ff:ff")]
    to_mac: String,
    #[arg(long, default_value = "10.1.0.2")]
    src: Ipv4Addr,
    #[arg(long, default_value = "10.2.0.2")]
    dst: Ipv4Addr,
    /// Outer source and destination: wraps the packets in GRE.
    #[arg(long, value_delimiter = ',', num_args = 1)]
    gre: Vec<Ipv4Addr>,
}

const MARK: [u8; 8] = *b"greyflow";
const ETH_P_ALL: u16 = 3;
/// Bytes for what arrives while nobody reads.
const BUFFER: usize = 256 << 20;

/// A packet socket on one device.
fn open(device: &str) -> anyhow::Result<Socket> {
    let socket = Socket::new(
        Domain::PACKET,
        Type::RAW,
        Some(Protocol::from(i32::from(ETH_P_ALL.to_be()))),
    )?;
    let index = rustix::net::netdevice::name_to_index(&socket, device)
        .with_context(|| device.to_owned())?;
    // struct sockaddr_ll: family, protocol, index (packet(7)).
    let mut bytes = [0u8; 20];
    bytes[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&ETH_P_ALL.to_be_bytes());
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    socket.bind(&link_address(&bytes))?;
    Ok(socket)
}

#[allow(
    unsafe_code,
    reason = "socket2 knows no constructor for packet addresses"
)]
fn link_address(bytes: &[u8; 20]) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a sockaddr_ll is 20 plain bytes and fits any sockaddr_storage.
    unsafe {
        let to = std::ptr::from_mut(&mut storage).cast::<u8>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        SockAddr::new(storage, bytes.len() as u32)
    }
}

fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: usize) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + payload as u16).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(src.octets());
    header.extend(dst.octets());
    let words = header.chunks_exact(2);
    let mut sum: u32 = words
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    header
}

fn frame(args: &Args) -> anyhow::Result<Vec<u8>> {
    let octet = |text: &str| u8::from_str_radix(text, 16);
    let to: Vec<u8> = args
        .to_mac
        .split(':')
        .map(octet)
        .collect::<Result<_, _>>()?;
    let mut bytes = to;
    bytes.extend([2, 0, 0, 0, 0, 0x99, 8, 0]);
    let payload = MARK.len() + 8;
    if let [src, dst] = args.gre[..] {
        bytes.extend(ipv4(src, dst, 47, 4 + 20 + 8 + payload));
        bytes.extend([0, 0, 8, 0]);
    }
    bytes.extend(ipv4(args.src, args.dst, 17, 8 + payload));
    for word in [1024u16, 9, 8 + payload as u16, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(MARK);
    bytes.extend([0; 8]);
    Ok(bytes)
}

fn send(args: &Args) -> anyhow::Result<()> {
    let socket = open(&args.device)?;
    let mut frame = frame(args)?;
    let at = frame.len() - 8;
    let (start, mut number, mut last, mut pause) =
        (Instant::now(), 0u64, Instant::now(), Duration::ZERO);
    while start.elapsed().as_secs_f64() < args.seconds {
        let due = (start.elapsed().as_secs_f64() * args.rate as f64) as u64;
        // What it has missed in a pause of its own follows at once.
        for _ in 0..due.saturating_sub(number) {
            frame[at..].copy_from_slice(&number.to_be_bytes());
            match socket.send(&frame) {
                Ok(_) => number += 1,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let now = Instant::now();
        pause = pause.max(now - last);
        last = now;
    }
    println!("sent {number} pause_ms {:.1}", pause.as_secs_f64() * 1e3);
    Ok(())
}

fn hear(args: &Args) -> anyhow::Result<()> {
    let socket = open(&args.device)?;
    set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut seen: Vec<bool> = Vec::new();
    let (mut reordered, mut last, mut gap) = (0u64, None::<Instant>, Duration::ZERO);
    let start = Instant::now();
    let mut buffer = [0u8; 2048];
    while start.elapsed().as_secs_f64() < args.seconds {
        let len = match io::Read::read(&mut &socket, &mut buffer) {
            Ok(len) => len,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e.into()),
        };
        let Some(at) = buffer[..len].windows(MARK.len()).position(|w| w == MARK) else {
            continue;
        };
        let Some(number) = buffer[at + MARK.len()..len].first_chunk::<8>() else {
            continue;
        };
        let number = u64::from_be_bytes(*number) as usize;
        match number < seen.len() {
            true => reordered += 1,
            false => seen.resize(number + 1, false),
        }
        seen[number] = true;
        let now = Instant::now();
        gap = gap.max(last.map_or(Duration::ZERO, |last| now - last));
        last = Some(now);
    }
    let lost = seen.iter().filter(|seen| !**seen).count();
    let in_a_row = seen
        .split(|seen| *seen)
        .map(<[bool]>::len)
        .max()
        .unwrap_or(0);
    println!(
        "heard {} lost {lost} in_a_row {in_a_row} reordered {reordered} gap_ms {:.1}",
        seen.len() - lost,
        gap.as_secs_f64() * 1e3
    );
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.hear {
        true => hear(&args),
        false => send(&args),
    }
}
