//! A sink for measurements: counts what a device receives and drops it in XDP.
//!
//! ```text
//! count DEVICE --seconds 10 [--pid PID]
//! ```
//!
//! Prints one line: `packets N bytes N seconds S pps N`. Packets before the first and after the last second do
//! not count, so it can be started before the source and end before it. With `--pid`, also what the process used
//! of the CPU in that time: ` user_ns N system_ns N`.

mod support;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::Context;
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
    /// The process whose CPU time is measured meanwhile.
    #[arg(long)]
    pid: Option<u32>,
}

/// `/proc/PID/stat` counts in `USER_HZ`, which is 100 on every architecture (proc(5)).
const NS_PER_TICK: u64 = 10_000_000;

/// User and system time of a process with all its threads, in nanoseconds.
fn cpu_times(pid: u32) -> anyhow::Result<(u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, the name in parentheses, may hold anything; utime and stime are the 14th and 15th.
    let rest = stat
        .rsplit_once(") ")
        .context("no name in /proc/PID/stat")?
        .1;
    let mut times = rest.split(' ').skip(11).map(str::parse::<u64>);
    let mut next = || anyhow::Ok(times.next().context("/proc/PID/stat ends early")?? * NS_PER_TICK);
    Ok((next()?, next()?))
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
    let cpu = || args.pid.map(cpu_times).transpose();
    let (start, cpu_before) = (Instant::now(), cpu()?);
    let (packets, bytes) = sink.counts()?;
    thread::sleep(Duration::from_secs_f64(args.seconds));
    let (elapsed, cpu_after) = (start.elapsed().as_secs_f64(), cpu()?);
    let (packets, bytes) = {
        let now = sink.counts()?;
        (now.0 - packets, now.1 - bytes)
    };
    print!(
        "packets {packets} bytes {bytes} seconds {elapsed:.2} pps {:.0}",
        packets as f64 / elapsed
    );
    if let (Some(before), Some(after)) = (cpu_before, cpu_after) {
        print!(
            " user_ns {} system_ns {}",
            after.0 - before.0,
            after.1 - before.1
        );
    }
    println!();
    Ok(())
}
