//! The ceiling to measure against: the least that an AF_XDP program can do with a packet.
//!
//! ```text
//! bare_forward IN OUT --from-mac MAC --to-mac MAC --cpu 1 --seconds 10
//! ```
//!
//! Receives on queue 0 of one device, rewrites the two MAC addresses, sends out of another; copy mode, one
//! thread. It stands on xsk-rs alone and shares nothing with the router but the tiny XDP program's loader.
//! Prints one line: `forwarded N seconds S pps N`, the rate between the first and the last packet.

#![allow(unsafe_code)]

mod support;

use std::{
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use support::{RedirectAll, index_of, pin};
use xsk_rs::{
    CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem,
    config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig},
};

#[derive(Parser)]
struct Args {
    /// The device to receive from.
    from: String,
    /// The device to send out of.
    to: String,
    #[arg(long, default_value = "02:00:00:00:00:98")]
    from_mac: String,
    #[arg(long, default_value = "02:00:00:00:00:99")]
    to_mac: String,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    #[arg(long)]
    cpu: Option<usize>,
}

const BURST: usize = 64;
const RING: u32 = 2048;

struct Port {
    tx: TxQueue,
    rx: RxQueue,
    fill: FillQueue,
    completion: CompQueue,
}

fn open(device: &str, umem: &Umem) -> anyhow::Result<Port> {
    let ring = QueueSize::new(RING)?;
    let config = SocketConfig::builder()
        .rx_queue_size(ring)
        .tx_queue_size(ring)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    let name: Interface = device.parse()?;
    // SAFETY: the library loads no program.
    let (tx, rx, rings) =
        unsafe { Socket::new(config, umem, &name, 0) }.with_context(|| device.to_owned())?;
    let (fill, completion) = rings.context("the queue is in use")?;
    Ok(Port {
        tx,
        rx,
        fill,
        completion,
    })
}

/// Sends everything that waits: one call moves 32 packets.
fn kick(tx: &mut TxQueue) -> anyhow::Result<()> {
    for _ in 0..2 * RING / 32 {
        if tx.nb_free_exact() == RING {
            break;
        }
        tx.wakeup()?;
    }
    Ok(())
}

fn mac(text: &str) -> anyhow::Result<[u8; 6]> {
    let octets: Result<Vec<u8>, _> = text
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16))
        .collect();
    octets?
        .try_into()
        .map_err(|_| anyhow::anyhow!("{text}: not a MAC address"))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    pin(args.cpu)?;
    let mut addresses = [0u8; 12];
    addresses[..6].copy_from_slice(&mac(&args.to_mac)?);
    addresses[6..].copy_from_slice(&mac(&args.from_mac)?);
    let config = UmemConfig::builder()
        .frame_size(FrameSize::new(2048)?)
        .fill_queue_size(QueueSize::new(RING)?)
        .comp_queue_size(QueueSize::new(RING)?)
        .build()?;
    let frames = (4 * RING).try_into()?;
    let (umem, mut free) = Umem::new(config, frames, false)?;
    let (mut from, mut to) = (open(&args.from, &umem)?, open(&args.to, &umem)?);
    let keep = free.len() - RING as usize;
    // SAFETY: the frames are this UMEM's and free; now they are the kernel's.
    unsafe { from.fill.produce(&free[keep..]) };
    free.truncate(keep);
    let steer = RedirectAll::load(1)?;
    steer.steer(0, from.rx.fd().as_raw_fd())?;
    let _link = steer.program.attach(index_of(&args.from)?, true)?;

    let mut burst = [FrameDesc::default(); BURST];
    let (mut forwarded, mut first, mut last) = (0u64, None, Instant::now());
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    loop {
        // SAFETY: completed frames were the kernel's and are now free.
        let done = unsafe { to.completion.consume(&mut burst) };
        free.extend_from_slice(&burst[..done]);
        let give = from.fill.nb_free_exact().min(free.len() as u32) as usize;
        let keep = free.len() - give;
        // SAFETY: free frames become the kernel's; the ring has room for all of them.
        unsafe { from.fill.produce(&free[keep..]) };
        free.truncate(keep);
        // SAFETY: received frames were the kernel's and are now ours.
        let n = unsafe { from.rx.consume(&mut burst) };
        if n == 0 {
            if Instant::now() >= end {
                break;
            }
            from.rx.poll(10)?;
            continue;
        }
        for desc in &mut burst[..n] {
            // SAFETY: the frame is ours between the rings.
            let mut data = unsafe { umem.data_mut(desc) };
            data.contents_mut()[..12].copy_from_slice(&addresses);
        }
        // SAFETY: the frames are ours and become the kernel's; what the ring does not take stays ours.
        let sent = unsafe { to.tx.produce(&burst[..n]) };
        free.extend_from_slice(&burst[sent..n]);
        kick(&mut to.tx)?;
        forwarded += sent as u64;
        last = Instant::now();
        first.get_or_insert(last);
        if last >= end {
            break;
        }
    }
    let elapsed = first.map_or(0.0, |first| (last - first).as_secs_f64());
    println!(
        "forwarded {forwarded} seconds {elapsed:.2} pps {:.0}",
        forwarded as f64 / elapsed.max(1e-9)
    );
    Ok(())
}
