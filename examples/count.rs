//! A sink for measurements: counts what a device receives and drops it in XDP.
//!
//! ```text
//! count DEVICE [--stamp-at OFFSET]
//! ```
//!
//! Each line on its input is answered with one line: `packets N bytes N ns N`, all since it was started, the time
//! read beside the counters. It ends with its input. With `--stamp-at`, where the packets have the time at which
//! `blast --stamp` sent them, it closes with how long they were under way: `p50 N p99 N p999 N max N`, in
//! nanoseconds.

mod support;

use std::{io, time::Instant};

use anyhow::Context;
use clap::Parser;
use support::{index_of, pin, sink::Sink};

#[derive(Parser)]
struct Args {
    /// The device whose packets are counted.
    device: String,
    /// Where in the frame the time of sending stands.
    #[arg(long)]
    stamp_at: Option<usize>,
    /// Attach generically instead of in the driver.
    #[arg(long)]
    generic: bool,
    #[arg(long)]
    cpu: Option<usize>,
}

const SHARES: [f64; 4] = [0.5, 0.99, 0.999, 1.0];

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    pin(args.cpu)?;
    let sink = Sink::load(args.stamp_at)?;
    let _link = sink
        .program
        .attach(index_of(&args.device)?, !args.generic)
        .with_context(|| args.device.clone())?;
    let start = Instant::now();
    for line in io::stdin().lines() {
        line?;
        let (packets, bytes) = sink.counts()?;
        println!(
            "packets {packets} bytes {bytes} ns {}",
            start.elapsed().as_nanos()
        );
    }
    if args.stamp_at.is_some() {
        if let [p50, p99, p999, max] = sink.delays(&SHARES)?[..] {
            println!("p50 {p50} p99 {p99} p999 {p999} max {max}");
        }
    }
    Ok(())
}
