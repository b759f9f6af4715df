//! The slow path: tunnels by way of the kernel.
//!
//! Its one job is to carry what the fast path does not, and with `xdp = "off"` everything. What the kernel routes into a
//! tunnel's TUN device is encapsulated and leaves by a raw socket; what a raw socket receives is decapsulated and enters the
//! tunnel's TUN device; what workers punt goes where they say. The codecs are those of the fast path.
//!
//! It runs in one thread, which owns every socket and device here. That thread never blocks but in its poll, takes a bounded
//! burst from each source in turn, and never logs per packet: a packet is carried, handed on, or dropped for a counted reason.
//! Raw sockets come and go with the tunnels that need them; whoever publishes tunnels sees each of them first, to filter it.
//! It knows no configuration: tunnels come as snapshots, devices and queues as commands.

mod answers;
mod fragment;
mod fragment6;
mod groups;
mod icmp;
mod keepalive;
mod next_hop;
mod raw;
mod send;
mod stats;
mod thread;
mod too_big;
mod tun;
mod udp;

pub use super::wake::Waker;
pub use fragment::{FragmentError, Fragments, fragments};
pub use icmp::OuterError;
pub use raw::RawError;
pub use stats::{IcmpStats, SlowStats};
pub use too_big::Path;
pub use tun::{ServiceTun, Tun, TunError, TunKind};

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::{Sender, bounded, unbounded};
use tokio::sync::{Notify, mpsc};

use groups::Groups;
use raw::{Hears, Receiver};

use crate::{
    datapath::{Handover, PuntSource, TunnelRecord, Wake},
    fib::Fib,
    tunnel::{Mode, TunnelId},
};

/// How long the thread may take to answer: it never blocks.
const ANSWER: Duration = Duration::from_secs(5);
/// Errors about outer packets that wait for somebody to look at them. What they say comes again.
const REPORTS: usize = 256;

/// Called for every socket that is opened to receive.
pub type SocketFilter<'f> = &'f dyn Fn(BorrowedFd<'_>);

/// Why the slow path did not start.
#[derive(Debug, thiserror::Error)]
pub enum SlowPathError {
    #[error(transparent)]
    Raw(#[from] RawError),
    #[error("cannot start the slow path: {what}: {source}")]
    Start {
        what: &'static str,
        source: io::Error,
    },
}

impl SlowPathError {
    fn start(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| SlowPathError::Start { what, source }
    }
}

/// The worker that owns the sequence numbers.
pub struct Owner {
    /// Bounded; what does not fit is dropped and counted.
    pub queue: Sender<Handover>,
    pub waker: Box<dyn Wake>,
}

/// The tunnels as of now.
#[derive(Default)]
pub struct SlowSnapshot {
    pub fib: Arc<Fib>,
    /// By slot, as the tunnels. The slow path's own records: no other thread writes them, and every snapshot brings the
    /// same ones again.
    pub records: Vec<Option<Arc<TunnelRecord>>>,
    /// By tunnel and outer address; where there is none, what the kernel says when a packet is refused holds.
    pub paths: HashMap<(TunnelId, IpAddr), Path>,
    /// Where packets of tunnels with sequence numbers go; without, they are numbered and judged here.
    pub owner: Option<Owner>,
}

enum Command {
    /// The tunnels, and the sockets that they need and that are not open yet.
    Snapshot(SlowSnapshot, Vec<Receiver>),
    SetService(ServiceTun),
    AddTun(TunnelId, Tun),
    RemoveTun(TunnelId),
    Keepalive(TunnelId),
    AddPunts(u32, PuntSource),
    RemovePunts(u32),
    /// Tells what it reads from; the answer holds it too.
    Show(Sender<io::Result<Shown>>),
    /// Carries what has come, says so, and then nothing until it is told to go on.
    Pause(Sender<()>),
    Resume,
    Stop,
}

/// What the slow path reads from and writes to: for another process that is to go on with it.
#[derive(Default)]
pub struct Shown {
    pub tuns: Vec<(TunnelId, Arc<Tun>)>,
    /// Whether over IPv6, and the protocol that a socket hears.
    pub receivers: Vec<((bool, u8), OwnedFd)>,
    pub service: Option<(Box<str>, OwnedFd)>,
}

/// The running slow path. Dropping it stops the thread and closes its devices and sockets.
pub struct SlowPath {
    commands: Sender<Command>,
    waker: Waker,
    stats: Arc<SlowStats>,
    answered: Arc<Notify>,
    /// What the thread's sockets hear, and those that it will have with the next snapshot.
    hears: Vec<Hears>,
    /// Errors about outer packets, until somebody takes the queue.
    reports: Option<mpsc::Receiver<OuterError>>,
    groups: Groups,
    opened: Vec<Receiver>,
    thread: Option<JoinHandle<()>>,
}

impl SlowPath {
    /// Starts the thread, in the caller's network namespace. Without a service device, punts for it are dropped and counted.
    pub fn start(service: Option<ServiceTun>) -> Result<Self, SlowPathError> {
        let waker = Waker::new().map_err(SlowPathError::start("eventfd"))?;
        let stats = Arc::new(SlowStats::default());
        let answered = Arc::new(Notify::new());
        let (commands, inbox) = unbounded();
        let (told, reports) = mpsc::channel(REPORTS);
        let told = (told, answered.clone());
        let engine = thread::Engine::new(service, waker.clone(), stats.clone(), told)?;
        let thread = std::thread::Builder::new()
            .name("greyhound-slow".into())
            .spawn(move || engine.run(&inbox))
            .map_err(SlowPathError::start("thread"))?;
        Ok(Self {
            commands,
            waker,
            stats,
            answered,
            hears: Vec::new(),
            reports: Some(reports),
            groups: Groups::default(),
            opened: Vec::new(),
            thread: Some(thread),
        })
    }

    /// The queue of errors about outer packets: once.
    pub fn take_reports(&mut self) -> Option<mpsc::Receiver<OuterError>> {
        self.reports.take()
    }

    /// Wakes the slow path: for [`punt_queue`](crate::datapath::punt_queue).
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub fn stats(&self) -> Arc<SlowStats> {
        self.stats.clone()
    }

    /// Opens the sockets that these tunnels need and that are not open yet, in the caller's network namespace: what can be
    /// refused comes before anything is in force. They are listened to from the next snapshot on that needs them.
    ///
    /// `filter` sees every socket right after it was opened and before anything is received from it: the place to attach a
    /// socket filter. Over IPv4 what a raw socket hears begins with the IPv4 header, over IPv6 behind the IPv6 header and its
    /// extensions; what a UDP socket hears, with the UDP header.
    pub fn open(
        &mut self,
        tunnels: impl Iterator<Item = (Mode, bool)>,
        filter: SocketFilter<'_>,
    ) -> Result<(), RawError> {
        let mut outcome = Ok(());
        for hears in tunnels.flat_map(|(mode, in_udp)| Hears::of(mode, in_udp)) {
            if self.hears.contains(&hears) {
                continue;
            }
            match Receiver::open(hears) {
                Ok(receiver) => {
                    filter(receiver.as_fd());
                    self.opened.push(receiver);
                    self.hears.push(hears);
                }
                Err(e) => outcome = Err(e),
            }
        }
        outcome
    }

    /// Replaces the tunnels, opens and closes sockets as these need them, as [`open`](Self::open) does, and joins and leaves
    /// their groups. Tunnels are in
    /// force even if this fails: those without their socket receive nothing, and the next call tries again.
    pub fn publish(
        &mut self,
        snapshot: SlowSnapshot,
        filter: SocketFilter<'_>,
    ) -> Result<(), RawError> {
        let needed = Hears::needed(snapshot.fib.tunnels());
        self.hears.retain(|hears| needed.contains(hears));
        self.opened.retain(|r| needed.contains(&r.hears()));
        let tunnels = (snapshot.fib.tunnels().iter()).filter(|tunnel| !tunnel.kernels);
        let outcome = self.open(tunnels.map(|t| (t.mode, t.udp.is_some())), filter);
        let opened = std::mem::take(&mut self.opened);
        self.groups.follow(snapshot.fib.tunnels());
        self.command(Command::Snapshot(snapshot, opened));
        outcome
    }

    /// Descriptors of all that it reads from, while it goes on.
    pub fn show(&self) -> io::Result<Shown> {
        self.ask(Command::Show)?
    }

    /// Stops reading, in the middle of nothing: what comes from now on waits in the devices and sockets.
    pub fn pause(&self) -> io::Result<()> {
        self.ask(Command::Pause)
    }

    pub fn resume(&self) {
        self.command(Command::Resume);
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> io::Result<T> {
        let (reply, answer) = bounded(1);
        self.command(command(reply));
        let answer = answer.recv_timeout(ANSWER);
        answer.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the slow path does not answer"))
    }

    /// Sockets that another process has opened for tunnels, with what they have received and the filters that they have.
    pub fn take_receivers(&mut self, handed: impl Iterator<Item = ((bool, u8), OwnedFd)>) {
        for (pair, socket) in handed {
            let hears = Hears::from_pair(pair);
            let receiver = Receiver::handed(hears, socket);
            self.opened.push(receiver);
            self.hears.push(hears);
        }
    }

    /// Gives the slow path a service device; it had none.
    pub fn set_service(&self, service: ServiceTun) {
        self.command(Command::SetService(service));
    }

    /// Gives a tunnel its device. Takes the place of an earlier one.
    pub fn add_tun(&self, id: TunnelId, tun: Tun) {
        self.command(Command::AddTun(id, tun));
    }

    /// Closes a tunnel's device; a persistent one stays in the kernel.
    pub fn remove_tun(&self, id: TunnelId) {
        self.command(Command::RemoveTun(id));
    }

    /// Sends one of a tunnel's keepalives.
    pub fn send_keepalive(&self, id: TunnelId) {
        self.command(Command::Keepalive(id));
    }

    /// Told when a keepalive has come back to a tunnel that got no answers before.
    pub fn answered(&self) -> Arc<Notify> {
        self.answered.clone()
    }

    /// Listens to a worker's punt queue. Takes the place of that worker's earlier one.
    pub fn add_punts(&self, worker: u32, source: PuntSource) {
        self.command(Command::AddPunts(worker, source));
    }

    /// Carries what still waits in a worker's punt queue, and forgets it.
    pub fn remove_punts(&self, worker: u32) {
        self.command(Command::RemovePunts(worker));
    }

    fn command(&self, command: Command) {
        // Fails only if the thread is gone, and then there is nobody to tell.
        let _ = self.commands.send(command);
        self.waker.wake();
    }
}

impl Drop for SlowPath {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
