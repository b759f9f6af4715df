//! Captures of fast-path packets: who wants which, and the thread that writes them to whoever asked.
//!
//! Workers copy what is wanted into bounded queues ([`crate::datapath::capture`]) and never wait. A thread per capture writes
//! pcapng into the connection that asked for it; a slow reader costs packets of the capture, never of the router.

mod pcapng;

use std::{
    collections::HashMap,
    io,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crossbeam_channel::Sender;
use rustix::net::{RecvFlags, recv};
use serde::{Deserialize, Serialize};

use self::pcapng::Writer;
use crate::{
    datapath::{
        DropReason, TAPS,
        capture::{Choice, Clock, Direction, Tap, TapSource, tap},
        filter::{Filter, Instruction},
    },
    tunnel::TunnelId,
};

/// Packets that wait for the capture's thread: some milliseconds of a full link.
const QUEUE: usize = 2048;
/// The most that is kept of a packet, in bytes: what fits a frame.
pub const SNAPLEN: u32 = 4096;
/// How soon it is noticed that whoever captures has gone, and how late a packet may be written.
const LOOK: Duration = Duration::from_millis(100);

/// What a client wants to see.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// `in` (out of a tunnel) or `out` (into one).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// A drop reason, or `any`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop: Option<String>,
    /// Classic BPF over Ethernet frames, as tcpdump compiles it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<Instruction>,
    /// Bytes kept of each packet; all of them without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
    /// One packet of so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<u32>,
    /// It ends after so many packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Wanted {
    /// What workers go by, or why it cannot be: one line.
    fn choice(&self, names: &Names) -> Result<Choice, String> {
        let tunnel = self.tunnel.as_ref().map(|name| {
            let found = names.tunnels.iter().find(|(_, n)| *n == name);
            found
                .map(|(id, _)| *id)
                .ok_or_else(|| format!("no tunnel {name:?}; see `greyhound tunnel show`"))
        });
        let direction = self.direction.as_deref().map(|word| match word {
            "in" => Ok(Direction::Received),
            "out" => Ok(Direction::Sent),
            _ => Err(format!("direction {word:?}: expected in or out")),
        });
        let drops = self.drop.as_deref().map(|word| match word {
            "any" => Ok(None),
            _ => {
                let found = DropReason::ALL.iter().find(|r| r.as_str() == word);
                let unknown = || {
                    let all: Vec<_> = DropReason::ALL.iter().map(|r| r.as_str()).collect();
                    format!(
                        "no drop reason {word:?}: expected any, or one of {}",
                        all.join(" ")
                    )
                };
                found.map(|reason| Some(*reason)).ok_or_else(unknown)
            }
        });
        let filter = match &self.filter[..] {
            [] => None,
            program => Some(Filter::new(program).map_err(|why| why.to_string())?),
        };
        Ok(Choice {
            tunnel: tunnel.transpose()?,
            direction: direction.transpose()?,
            drops: drops.transpose()?,
            filter,
        })
    }
}

/// What numbers are called.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub tunnels: HashMap<TunnelId, String>,
    /// The devices of the ports, in their order.
    pub ports: Vec<String>,
}

/// All captures of the router.
#[derive(Debug, Default)]
pub(super) struct Captures(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    workers: Vec<Sender<Tap>>,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    tap: Tap,
    shared: Weak<Shared>,
}

/// What the router tells a capture's thread.
#[derive(Debug)]
struct Shared {
    names: Mutex<Arc<Names>>,
}

#[derive(Debug)]
struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos() as u64)
    }
}

/// Nothing that is done under these locks can fail half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn forget_ended(&mut self) {
        self.running
            .retain(|capture| capture.shared.strong_count() > 0);
    }
}

fn give(tap: &Tap, workers: &[Sender<Tap>]) {
    for (id, worker) in workers.iter().enumerate() {
        // A worker that does not take it hangs.
        let _ = worker.try_send(tap.of(id as u32));
    }
}

impl Captures {
    /// These are the workers now, in the order of their numbers.
    pub fn set_workers(&self, workers: Vec<Sender<Tap>>) {
        let mut inner = lock(&self.0);
        inner.forget_ended();
        for capture in &inner.running {
            give(&capture.tap, &workers);
        }
        inner.workers = workers;
    }

    /// Whether anybody captures; forgets those who are done.
    pub fn any(&self) -> bool {
        let mut inner = lock(&self.0);
        inner.forget_ended();
        !inner.running.is_empty()
    }

    /// Names may have changed.
    pub fn set_names(&self, names: Names) {
        let names = Arc::new(names);
        for capture in &lock(&self.0).running {
            if let Some(shared) = capture.shared.upgrade() {
                *lock(&shared.names) = names.clone();
            }
        }
    }

    /// Whether this capture can begin; else why not.
    pub fn allows(&self, wanted: &Wanted, names: &Names) -> Result<(), String> {
        let mut inner = lock(&self.0);
        inner.forget_ended();
        if inner.workers.is_empty() {
            let why = "there is no fast path: tcpdump sees everything on the tunnels' devices";
            return Err(why.to_owned());
        }
        if inner.running.len() >= TAPS {
            return Err(format!("{TAPS} captures are running already"));
        }
        wanted.choice(names).map(drop)
    }

    /// Begins a capture that was allowed: from now on `stream` carries pcapng.
    pub fn begin(&self, wanted: &Wanted, names: Names, stream: UnixStream) -> Result<(), String> {
        self.allows(wanted, &names)?;
        let choice = wanted.choice(&names)?;
        let snaplen = wanted.snaplen.unwrap_or(SNAPLEN).clamp(1, SNAPLEN);
        let size = (QUEUE, snaplen as usize);
        let every = wanted.sample.unwrap_or(1);
        let (tap, source) = tap(choice, every, size, Arc::new(WallClock));
        let shared = Arc::new(Shared {
            names: Mutex::new(Arc::new(names)),
        });
        let mut inner = lock(&self.0);
        give(&tap, &inner.workers);
        inner.running.push(Running {
            tap,
            shared: Arc::downgrade(&shared),
        });
        drop(inner);
        let left = wanted.count.unwrap_or(u64::MAX);
        let body = move || {
            // A client that has gone is how captures end.
            let _ = write(&stream, &source, &shared, (snaplen, left));
        };
        let thread = std::thread::Builder::new().name("greyhound-pcap".to_owned());
        thread.spawn(body).map_err(|e| format!("capture: {e}"))?;
        Ok(())
    }
}

/// Writes packets until enough are written, or the client has gone.
fn write(
    stream: &UnixStream,
    source: &TapSource,
    shared: &Shared,
    (snaplen, mut left): (u32, u64),
) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut writer = Writer::new(io::BufWriter::with_capacity(1 << 16, stream), snaplen)?;
    writer.flush()?;
    let mut flushed = Instant::now();
    // What waits in the queue when the client has had enough was captured before.
    let mut patience = LOOK;
    while left > 0 {
        let names = lock(&shared.names).clone();
        let shed = source.shed();
        match source.next(patience, |shot| writer.packet(shot, &names, shed)) {
            Some(written) => {
                written?;
                left -= 1;
            }
            None if patience.is_zero() => break,
            None => writer.flush()?,
        }
        if flushed.elapsed() >= LOOK && !patience.is_zero() {
            writer.flush()?;
            flushed = Instant::now();
            if is_over(stream) {
                patience = Duration::ZERO;
                left = left.min(QUEUE as u64);
            }
        }
    }
    writer.end(WallClock.now(), source.shed())
}

/// Whether the client has said that it wants no more: it sends nothing else.
fn is_over(stream: &UnixStream) -> bool {
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    match recv(stream, &mut [0u8; 1][..], flags) {
        Ok(_) => true,
        Err(why) => why != rustix::io::Errno::AGAIN,
    }
}
