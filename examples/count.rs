//! A sink for measurements: counts what a device receives and drops it in XDP.
//!
//! ```text
//! count DEVICE --seconds 10
//! ```
//!
//! Prints one line: `packets N bytes N seconds S pps N`. Packets before the first and after the last second do
//! not count, so it can be started before the source and end before it.

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use support::{Sink, index_of};

#[derive(Parser)]
struct Args {
    /// The device whose packets are counted.
    device: String,
    /// How long to count.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How long to wait for the first packet.
    #[arg(long, default_value_t = 10.0)]
    patience: f64,
    /// How long packets must have flowed before counting begins.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Attach generically instead of in the driver.
    #[arg(long)]
    generic: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let sink = Sink::load()?;
    let _link = sink
        .program
        .attach(index_of(&args.device)?, !args.generic)?;
    let deadline = Instant::now() + Duration::from_secs_f64(args.patience);
    while sink.counts()?.0 == 0 {
        anyhow::ensure!(Instant::now() < deadline, "no packet on {}", args.device);
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_secs_f64(args.warmup));
    let start = Instant::now();
    let (packets, bytes) = sink.counts()?;
    thread::sleep(Duration::from_secs_f64(args.seconds));
    let elapsed = start.elapsed().as_secs_f64();
    let (packets, bytes) = {
        let now = sink.counts()?;
        (now.0 - packets, now.1 - bytes)
    };
    println!(
        "packets {packets} bytes {bytes} seconds {elapsed:.2} pps {:.0}",
        packets as f64 / elapsed
    );
    Ok(())
}
