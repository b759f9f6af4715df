//! Keeps a [`State`] live.
//!
//! Subscription comes before the first dump, so that nothing is missed. While a part is dumped, what is told about it
//! goes into the state in use and is kept as well, to be said again to the dumped part before that takes the old one's
//! place: a dump may be older than a notification that overtook it, and saying things twice, in order, is harmless.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    MirrorError,
    decode::{self, Event},
    parts::Parts,
    socket::{Received, RouteSocket},
    state::State,
};

/// How a monitor listens.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The socket's receive buffer in bytes: room for notifications while the mirror is busy.
    pub receive_buffer: usize,
    /// Changes within this time of the last report are gathered into the next one.
    pub gather: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            receive_buffer: 16 << 20,
            gather: Duration::from_millis(5),
        }
    }
}

/// What changed since the last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Rises with every report.
    pub generation: u64,
    pub what: Parts,
}

/// Counts since the start, and how fresh the mirror is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Messages of the kernel, dumped ones included.
    pub messages: u64,
    /// Dumps of a part that were finished.
    pub dumps: u64,
    /// Dumps that the kernel said were not of one moment, and that were repeated.
    pub interrupted: u64,
    /// Times that everything had to be read anew.
    pub resyncs: u64,
    /// Times that notifications were lost for want of room.
    pub overruns: u64,
    /// Messages that could not be understood.
    pub undecodable: u64,
    pub generation: u64,
    /// Nothing is waiting to be read anew.
    pub in_sync: bool,
    /// Time since the mirror was last known to be the kernel's latest word.
    pub age: Duration,
}

/// A dump in progress.
#[derive(Debug)]
struct Dump {
    part: Parts,
    sequence: u32,
    fresh: State,
    held: Vec<Event>,
    interrupted: bool,
    progress: Instant,
}

/// Notifications about a part that are kept while it is dumped; beyond that the dump is repeated.
const MAX_HELD: usize = 1 << 18;
/// Datagrams taken in before other tasks get a turn.
const BATCH: usize = 64;
/// How often the socket is looked at when the kernel says nothing.
const TICK: Duration = Duration::from_secs(1);
/// A dump without any progress for so long is given up, and the socket with it. The kernel may hold its routing lock for
/// seconds, while it removes hundreds of devices.
const DUMP_PATIENCE: Duration = Duration::from_secs(30);
/// How long the first complete dump may take.
const START_PATIENCE: Duration = Duration::from_secs(60);

const NLMSG_HEADER: usize = 16;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// The mirror, live. It moves only while [`Monitor::changed`] is awaited.
pub struct Monitor {
    options: Options,
    socket: RouteSocket,
    buffer: Vec<u8>,
    state: State,
    dump: Option<Dump>,
    wanted: Parts,
    /// Consecutive troubles, and until when the next dump waits because of them.
    trouble: u32,
    retry_at: Instant,
    last_error: Option<io::Error>,
    /// The socket has been found empty since it was last read.
    drained: bool,
    pending: Parts,
    pending_since: Instant,
    reported_at: Instant,
    confirmed_at: Instant,
    statistics: Statistics,
}

impl Monitor {
    /// Subscribes in the calling thread's network namespace and returns once everything has been read. Needs a tokio runtime
    /// with I/O and time enabled.
    pub async fn open(options: Options) -> Result<Self, MirrorError> {
        let socket = RouteSocket::open(options.receive_buffer).map_err(MirrorError::Socket)?;
        let now = Instant::now();
        let mut monitor = Self {
            options,
            socket,
            buffer: RouteSocket::buffer(),
            state: State::default(),
            dump: None,
            wanted: Parts::ALL,
            trouble: 0,
            retry_at: now,
            last_error: None,
            drained: false,
            pending: Parts::NONE,
            pending_since: now,
            reported_at: now,
            confirmed_at: now,
            statistics: Statistics::default(),
        };
        while !monitor.in_sync() {
            let part = monitor
                .dump
                .as_ref()
                .map_or(monitor.wanted, |dump| dump.part);
            if now.elapsed() > START_PATIENCE {
                return Err(MirrorError::Dump {
                    what: part.first().unwrap_or_default().name(),
                    error: (monitor.last_error.take())
                        .unwrap_or_else(|| io::ErrorKind::TimedOut.into()),
                });
            }
            monitor.turn().await;
        }
        monitor.pending = Parts::NONE;
        Ok(monitor)
    }

    /// The mirror as of the last turn.
    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn statistics(&self) -> Statistics {
        Statistics {
            in_sync: self.in_sync(),
            age: self.confirmed_at.elapsed(),
            ..self.statistics
        }
    }

    /// Waits for the state to change: at once after a quiet time, else the gathering time after the last report.
    /// May be dropped at any point without losing anything.
    pub async fn changed(&mut self) -> Change {
        loop {
            if let Some(change) = self.report(Instant::now()) {
                return change;
            }
            self.turn().await;
        }
    }

    fn in_sync(&self) -> bool {
        self.wanted.is_empty() && self.dump.is_none()
    }

    fn report(&mut self, now: Instant) -> Option<Change> {
        let gathered = self.drained || now >= self.pending_since + self.options.gather;
        if self.pending.is_empty() || !gathered || now < self.report_at() {
            return None;
        }
        self.reported_at = now;
        self.statistics.generation += 1;
        Some(Change {
            generation: self.statistics.generation,
            what: std::mem::take(&mut self.pending),
        })
    }

    fn report_at(&self) -> Instant {
        self.reported_at + self.options.gather
    }

    /// Waits for something to do, and does some of it.
    async fn turn(&mut self) {
        self.start_dump();
        let deadline = self.deadline();
        let received = self.socket.wait(&mut self.buffer);
        match tokio::time::timeout_at(deadline.into(), received).await {
            Ok(received) => self.drain(received),
            // Nothing came: what was known is still so.
            Err(_) => self.confirm(),
        }
        let stuck = |dump: &Dump| dump.progress.elapsed() > DUMP_PATIENCE;
        if self.dump.as_ref().is_some_and(stuck) {
            self.reopen(io::ErrorKind::TimedOut.into());
        }
    }

    fn deadline(&self) -> Instant {
        let mut deadline = Instant::now() + TICK;
        if !self.pending.is_empty() {
            deadline = deadline.min(self.report_at());
        }
        if !self.wanted.is_empty() && self.dump.is_none() {
            deadline = deadline.min(self.retry_at);
        }
        deadline
    }

    /// Takes in what was received, and what else is waiting.
    fn drain(&mut self, mut received: io::Result<Received>) {
        self.drained = false;
        for taken in 1.. {
            match received {
                Ok(Received::Datagram) => {
                    let buffer = std::mem::take(&mut self.buffer);
                    self.datagram(&buffer);
                    self.buffer = buffer;
                }
                Ok(Received::Nothing) => return self.confirm(),
                Ok(Received::Overrun) => self.overrun(),
                Err(error) => return self.reopen(error),
            }
            self.start_dump();
            if taken == BATCH {
                return;
            }
            received = self.socket.receive(&mut self.buffer);
        }
    }

    fn confirm(&mut self) {
        self.drained = true;
        if self.in_sync() {
            self.confirmed_at = Instant::now();
            self.trouble = 0;
        }
    }

    fn overrun(&mut self) {
        self.statistics.overruns += 1;
        self.resync();
    }

    /// Everything has to be read anew. A dump in progress is let run to its end, because the socket can do only one
    /// at a time.
    fn resync(&mut self) {
        self.statistics.resyncs += 1;
        self.wanted = Parts::ALL;
        self.in_trouble();
    }

    /// Puts the next dump off: by 10 ms, then twice as long each time until all is well, at most 1 s.
    fn in_trouble(&mut self) {
        let wait = Duration::from_millis(10) * (1 << self.trouble.min(7));
        self.retry_at = Instant::now() + wait.min(Duration::from_secs(1));
        self.trouble += 1;
    }

    fn reopen(&mut self, error: io::Error) {
        self.last_error = Some(error);
        match RouteSocket::open(self.options.receive_buffer) {
            Ok(socket) => {
                self.socket = socket;
                self.dump = None;
            }
            Err(error) => self.last_error = Some(error),
        }
        self.resync();
    }

    fn start_dump(&mut self) {
        let now = Instant::now();
        let Some(part) = self.wanted.first() else {
            return;
        };
        if self.dump.is_some() || now < self.retry_at {
            return;
        }
        match self.socket.request_dump(part) {
            Ok(sequence) => {
                self.wanted = self.wanted.without(part);
                self.dump = Some(Dump {
                    part,
                    sequence,
                    fresh: State::default(),
                    held: Vec::new(),
                    interrupted: false,
                    progress: now,
                });
            }
            Err(error) => {
                self.last_error = Some(error);
                self.in_trouble();
            }
        }
    }

    /// Marks parts to be read anew. Links are read before routes: the kernel tells of a link before it deals with the
    /// link's routes, under one lock (RTNL), and a dump of links waits for that lock where one of routes does not.
    fn want(&mut self, parts: Parts) {
        self.wanted |= parts;
        if parts.intersects(Parts::ROUTES) {
            self.wanted |= Parts::LINKS;
        }
    }

    fn note(&mut self, changed: Parts) {
        if self.pending.is_empty() {
            self.pending_since = Instant::now();
        }
        self.pending |= changed;
    }

    fn datagram(&mut self, mut bytes: &[u8]) {
        while let Some(header) = bytes.first_chunk::<NLMSG_HEADER>() {
            let word = |at: usize| {
                u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
            let len = word(0) as usize;
            let Some(payload) = bytes.get(NLMSG_HEADER..len) else {
                break;
            };
            self.statistics.messages += 1;
            let is_reply = word(12) == self.socket.port
                && (self.dump.as_ref()).is_some_and(|dump| dump.sequence == word(8));
            let (kind, flags) = (half(4), half(6));
            if is_reply {
                self.reply(kind, flags, payload);
            } else {
                self.notification(kind, flags, payload);
            }
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        if !bytes.is_empty() {
            self.statistics.undecodable += 1;
            self.resync();
        }
    }

    fn reply(&mut self, kind: u16, flags: u16, payload: &[u8]) {
        let Some(dump) = &mut self.dump else { return };
        dump.progress = Instant::now();
        dump.interrupted |= flags & NLM_F_DUMP_INTR != 0;
        match kind {
            NLMSG_DONE | NLMSG_ERROR => {
                let code = payload.first_chunk().copied().map_or(0, i32::from_ne_bytes);
                self.finish_dump(code);
            }
            _ => match decode::decode(kind, None, payload) {
                Ok(Some(event)) if event.part() == dump.part => {
                    dump.fresh.apply(event);
                }
                Ok(_) => {}
                // To ask again would give the same again.
                Err(_) => self.statistics.undecodable += 1,
            },
        }
    }

    /// `code` is 0 or a negative error number.
    fn finish_dump(&mut self, code: i32) {
        let Some(mut dump) = self.dump.take() else {
            return;
        };
        let part = dump.part;
        let unsupported = [libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::ENOENT].contains(&-code);
        if code != 0 && !unsupported {
            self.last_error = Some(io::Error::from_raw_os_error(-code));
            self.wanted |= part;
            return self.in_trouble();
        }
        self.statistics.dumps += 1;
        for event in dump.held.drain(..) {
            let effect = dump.fresh.apply(event);
            self.wanted |= effect.doubt;
        }
        if self.state.part_differs(part, &dump.fresh) {
            self.state.take_part(part, dump.fresh);
            self.note(part);
        }
        if dump.interrupted {
            self.statistics.interrupted += 1;
            self.wanted |= part;
            self.in_trouble();
        }
    }

    fn notification(&mut self, kind: u16, flags: u16, payload: &[u8]) {
        match kind {
            NLMSG_NOOP | NLMSG_ERROR | NLMSG_DONE => return,
            NLMSG_OVERRUN => return self.overrun(),
            _ => {}
        }
        match decode::decode(kind, Some(flags), payload) {
            Ok(Some(event)) => self.event(event),
            Ok(None) => {}
            Err(_) => {
                self.statistics.undecodable += 1;
                self.resync();
            }
        }
    }

    fn event(&mut self, event: Event) {
        let part = event.part();
        if let Some(dump) = self.dump.as_mut().filter(|dump| dump.part == part) {
            if dump.held.len() < MAX_HELD {
                dump.held.push(event.clone());
            } else {
                dump.interrupted = true;
            }
        }
        let effect = self.state.apply(event);
        self.note(effect.changed);
        self.want(effect.doubt);
        if let Some(dump) = &self.dump {
            // Routes that the dump has listed may have gone with the link or address, without a word.
            let devices = Parts::LINKS | Parts::ADDRESSES;
            if Parts::ROUTES.contains(dump.part) && effect.changed.intersects(devices) {
                self.want(dump.part);
            }
        }
    }
}
