//! A worker's thread: pinned, asleep when there is nothing to do, stopped in order.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    time::{ClockId, clock_gettime},
};

use super::wake::Waker;
use crate::{
    datapath::{
        Handover, Links, Mate, Mates, PuntQueue, Snapshot, Spent, TAPS, Worker, WorkerStats,
        capture::Tap,
    },
    xdp::{BusyPoll, Memory, Mode, PortSet, XskPort, XskStatistics},
};

/// Empty turns before a worker goes to sleep: enough to bridge the gaps of a busy link, too few to be seen in `top`.
const IDLE_TURNS: u32 = 128;
/// Turns between two looks at where the frames are.
const LEDGER_TURNS: u32 = 4096;
/// How long a worker sleeps while the kernel has frames to send, and otherwise.
const NAP: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};
const SLEEP: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// How long an ending worker waits for its last frames to be sent.
const DRAIN: Duration = Duration::from_millis(200);
/// A worker that stands still for so long hangs; on a busy machine a thread may wait for its CPU almost as long.
const HANG: Duration = Duration::from_secs(3);
/// How long a worker's end is waited for: one that hangs must not keep the router from ending.
const FAREWELL: Duration = Duration::from_secs(5);
/// Turns that an ending worker makes at the most: enough for several full rings.
const LAST_TURNS: u32 = 1024;
/// Places in the queues between a worker and the control room.
const SNAPSHOTS: usize = 16;
const HANDOVERS: usize = 1024;
const SPENT: usize = 2 * (SNAPSHOTS + HANDOVERS);

/// Where a worker's frames were when it last looked.
#[derive(Debug, Default)]
pub struct FrameGauges([AtomicU64; 5]);

/// What the gauges count, in their order. The first is the sum of the others.
const PLACES: [&str; 5] = ["total", "free", "receiving", "worker", "transmitting"];

impl FrameGauges {
    fn note(&self, memory: &Memory) {
        let l = memory.ledger();
        let counts = [l.total, l.free, l.receiving, l.worker, l.transmitting];
        for (gauge, n) in self.0.iter().zip(counts) {
            gauge.store(n as u64, Relaxed);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        PLACES
            .into_iter()
            .zip(self.0.iter().map(|g| g.load(Relaxed)))
    }
}

/// One of a worker's sockets, seen from outside. Holding it keeps the socket open.
#[derive(Debug)]
pub struct SocketHandle {
    pub device: String,
    pub queue: u32,
    pub mode: Mode,
    pub why_not_zero_copy: Option<String>,
    fd: OwnedFd,
}

impl SocketHandle {
    fn of(port: &XskPort) -> io::Result<Self> {
        Ok(Self {
            device: port.spec().device.clone(),
            queue: port.spec().queue,
            mode: port.mode(),
            why_not_zero_copy: port.why_not_zero_copy().map(str::to_owned),
            fd: port.fd().try_clone_to_owned()?,
        })
    }

    pub fn statistics(&self) -> io::Result<XskStatistics> {
        XskStatistics::of(self.fd.as_fd())
    }

    /// What the socket says of its busy polling, if it is on.
    pub fn busy_poll(&self) -> Option<BusyPoll> {
        BusyPoll::of(&self.fd)
    }
}

impl AsFd for SocketHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A running worker. Dropping it stops the thread, after its last frames are sent or a fraction of a second. A thread
/// that hangs is left behind.
pub struct WorkerHandle {
    pub id: u32,
    pub cpu: usize,
    pub stats: Arc<WorkerStats>,
    pub frames: Arc<FrameGauges>,
    pub sockets: Vec<SocketHandle>,
    pub handovers: Sender<Handover>,
    pub taps: Sender<Tap>,
    pub waker: Waker,
    /// The worker as its mates see it, where it has any.
    pub mate: Option<Arc<Mate>>,
    /// It polls its devices: it goes round even where its books say that it sleeps.
    polls: bool,
    snapshots: Sender<Snapshot>,
    spent: Receiver<Spent>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// The turns that were seen last, and when they were new.
    seen: (u64, Instant),
}

impl WorkerHandle {
    /// Starts worker `id` on `cpu` over `ports`, to be woken by `waker`, or never to sleep where it polls. The first worker owns
    /// the sequence numbers.
    pub fn start(
        (id, cpu): (u32, usize),
        ports: PortSet,
        punts: PuntQueue,
        (waker, mates, polls): (Waker, Option<Mates>, bool),
    ) -> io::Result<Self> {
        let sockets: Vec<_> = ports
            .ports()
            .iter()
            .map(SocketHandle::of)
            .collect::<io::Result<_>>()?;
        let (snapshots, snapshot_rx) = bounded(SNAPSHOTS);
        let (handovers, handover_rx) = bounded(HANDOVERS);
        let (taps, tap_rx) = bounded(TAPS);
        let (spent_tx, spent) = bounded(SPENT);
        let links = Links {
            snapshots: snapshot_rx,
            handovers: handover_rx,
            taps: tap_rx,
            spent: spent_tx,
            punts,
        };
        let mate = mates.as_ref().map(|mates| mates.me().clone());
        let stats = Arc::new(WorkerStats::with_ports(sockets.len()));
        let frames = Arc::<FrameGauges>::default();
        let stop = Arc::<AtomicBool>::default();
        let thread = Thread {
            waker: waker.clone(),
            polls,
            stop: stop.clone(),
            stats: stats.clone(),
            frames: frames.clone(),
        };
        let body = move || {
            if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
                tracing::warn!("worker {id}: cannot be pinned to CPU {cpu}; it runs anywhere");
            }
            let make = |ports, stats| {
                let worker = Worker::new(ports, links, id == 0, stats);
                match mates {
                    Some(mates) => worker.with_mates(mates),
                    None => worker,
                }
            };
            thread.run(ports, make);
        };
        let thread = std::thread::Builder::new()
            .name(format!("greyhound-{id}"))
            .spawn(body)?;
        Ok(Self {
            id,
            cpu,
            stats,
            frames,
            sockets,
            handovers,
            taps,
            waker,
            mate,
            polls,
            snapshots,
            spent,
            stop,
            thread: Some(thread),
            seen: (0, Instant::now()),
        })
    }

    /// Hands over a snapshot; false when the worker has not taken the last ones yet.
    pub fn publish(&self, snapshot: Snapshot) -> bool {
        let sent = self.snapshots.try_send(snapshot).is_ok();
        crate::datapath::Wake::wake(&self.waker);
        sent
    }

    /// Frees what the worker is done with.
    pub fn collect_spent(&self) {
        while self.spent.try_recv().is_ok() {}
    }

    /// Whether the worker has carried everything that was given to it: it sleeps, and nothing waits for it.
    pub fn is_idle(&self) -> bool {
        let unasked = self.mate.as_ref().is_none_or(|mate| mate.is_asleep());
        self.handovers.is_empty() && self.stats.is_asleep() && unasked
    }

    /// Whether the worker has not gone round for [`HANG`], and does not sleep.
    pub fn hangs(&mut self) -> bool {
        let turns = self.stats.turns.get();
        if turns != self.seen.0 || (self.stats.is_asleep() && !self.polls) {
            self.seen = (turns, Instant::now());
        }
        self.seen.1.elapsed() >= HANG
    }
}

impl WorkerHandle {
    /// Has the thread end, in its own time: when its mates give it nothing any more.
    pub fn begin_to_end(&self) {
        self.stop.store(true, Relaxed);
        crate::datapath::Wake::wake(&self.waker);
    }

    /// Ends the thread; from then on the counters stand still.
    pub fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.begin_to_end();
        if !join(thread, FAREWELL) {
            tracing::error!("worker {} hangs and is left behind", self.id);
        }
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.end();
    }
}

/// Nanoseconds by the clock that workers count their sleep by.
pub fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Waits for a thread's end, at the most for `limit`. Whether it has ended.
fn join(thread: JoinHandle<()>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = thread.join();
    true
}

/// What the thread itself holds.
struct Thread {
    waker: Waker,
    polls: bool,
    stop: Arc<AtomicBool>,
    stats: Arc<WorkerStats>,
    frames: Arc<FrameGauges>,
}

impl Thread {
    fn run(
        self,
        ports: PortSet,
        make: impl FnOnce(Vec<XskPort>, Arc<WorkerStats>) -> Worker<XskPort>,
    ) {
        let (ports, memory) = ports.into_parts();
        let mut worker = make(ports, self.stats.clone());
        let (mut idle, mut since_ledger) = (0, 0);
        self.frames.note(&memory);
        self.stats.begin(monotonic());
        while !self.stop.load(Relaxed) {
            since_ledger += 1;
            if since_ledger >= LEDGER_TURNS {
                since_ledger = 0;
                self.frames.note(&memory);
            }
            if worker.turn() > 0 {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle >= IDLE_TURNS {
                idle = 0;
                self.frames.note(&memory);
                self.rest(&mut worker);
            }
        }
        worker.part();
        Self::finish(&mut worker);
        for mut port in worker.into_ports() {
            port.drain(DRAIN);
        }
        self.stats.end(monotonic());
    }

    /// What was received before the sockets were taken out of the steering is still delivered, and what mates give until they
    /// end too. The bounds are for a device that goes on receiving, and for a mate that hangs.
    fn finish(worker: &mut Worker<XskPort>) {
        let deadline = Instant::now() + DRAIN;
        let mut turns = 0;
        while turns < LAST_TURNS {
            let alone = worker.is_alone() || Instant::now() >= deadline;
            match worker.turn() {
                0 if alone => break,
                0 => std::thread::yield_now(),
                _ => turns += 1,
            }
        }
    }

    /// Sleeps until there is something to do, unless there is already. A worker that polls goes round meanwhile: to the books it
    /// sleeps all the same, so that they tell how busy it is.
    fn rest(&self, worker: &mut Worker<XskPort>) {
        if !worker.lie_down() {
            return;
        }
        self.stats.fall_asleep(monotonic());
        match self.polls {
            true => while worker.turn() == 0 && !self.stop.load(Relaxed) {},
            false => self.sleep(worker.ports()),
        }
        self.stats.wake_up(monotonic());
        self.waker.clear();
        worker.rise();
    }

    /// Sleeps until a packet comes, or somebody wakes the worker.
    fn sleep(&self, ports: &[XskPort]) {
        let sending = ports.iter().any(|port| port.transmitting() > 0);
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(ports.len() + 1);
        fds.push(PollFd::new(&self.waker, PollFlags::IN));
        fds.extend(
            ports
                .iter()
                .map(|port| PollFd::from_borrowed_fd(port.fd(), PollFlags::IN)),
        );
        let _ = poll(&mut fds, Some(if sending { &NAP } else { &SLEEP }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_hangs_is_left_behind() {
        let (release, held) = bounded::<()>(0);
        let hanging = std::thread::spawn(move || assert!(held.recv().is_err()));
        assert!(!join(hanging, Duration::from_millis(1)));
        drop(release);
        assert!(join(std::thread::spawn(|| ()), FAREWELL));
    }
}
