//! Brings the kernel's messages to the mirror, and says when it changed.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    MirrorError,
    parts::Parts,
    socket::{Received, RouteSocket},
    state::State,
    sync::{Statistics, Sync},
    touched::Touched,
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

/// Datagrams taken in before other tasks get a turn.
const BATCH: usize = 64;
/// How often the socket is looked at when the kernel says nothing.
const TICK: Duration = Duration::from_secs(1);
/// A dump without any progress for so long is given up, and the socket with it. The kernel may hold its routing lock for
/// seconds, while it removes hundreds of devices.
const DUMP_PATIENCE: Duration = Duration::from_secs(30);
/// How long the first complete dump may take. On a busy machine that had just lost a router with 10,000 devices the kernel
/// was seen not to answer for a minute.
const START_PATIENCE: Duration = Duration::from_secs(300);

/// The mirror, live. It moves only while [`Monitor::changed`] is awaited. A request for a dump is answered, in part,
/// before the system call returns, and may wait there for the kernel's routing lock.
pub struct Monitor {
    options: Options,
    socket: RouteSocket,
    buffer: Vec<u8>,
    sync: Sync,
    /// The socket has been found empty since it was last read.
    drained: bool,
    pending: Parts,
    pending_since: Instant,
    reported_at: Instant,
    confirmed_at: Instant,
}

impl Monitor {
    /// Subscribes in the calling thread's network namespace, before the first dump so that nothing is missed, and
    /// returns once everything has been read; what has to be read again is reported as a change. Needs a tokio runtime with I/O and time enabled.
    pub async fn open(options: Options) -> Result<Self, MirrorError> {
        let socket = RouteSocket::open(options.receive_buffer).map_err(MirrorError::Socket)?;
        let now = Instant::now();
        let mut monitor = Self {
            options,
            sync: Sync::new(socket.port),
            socket,
            buffer: RouteSocket::buffer(),
            drained: false,
            pending: Parts::NONE,
            pending_since: now,
            reported_at: now,
            confirmed_at: now,
        };
        // Not until nothing is to be read again: while thousands of links lose their carrier that would take its time.
        while !monitor.sync.is_complete() {
            if now.elapsed() > START_PATIENCE {
                let error = monitor.sync.last_error.take();
                return Err(MirrorError::Dump {
                    what: monitor.sync.missing().first().unwrap_or_default().name(),
                    error: error.unwrap_or_else(|| io::ErrorKind::TimedOut.into()),
                });
            }
            monitor.turn().await;
        }
        monitor.pending = Parts::NONE;
        Ok(monitor)
    }

    /// The mirror as of the last turn.
    pub fn state(&self) -> &State {
        &self.sync.state
    }

    /// The prefixes and neighbours that have changed since the last call, whether or not that has been reported.
    pub fn take_touched(&mut self) -> Touched {
        self.sync.state.take_touched()
    }

    pub fn statistics(&self) -> Statistics {
        Statistics {
            in_sync: self.sync.in_sync(),
            age: self.confirmed_at.elapsed(),
            ..self.sync.statistics
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

    /// Takes in what the kernel has said up to now: a change that it has acknowledged before this call is then known here.
    /// [`changed`](Self::changed) reports it all the same.
    pub async fn catch_up(&mut self) {
        loop {
            match self.socket.receive(&mut self.buffer) {
                Ok(Received::Nothing) if self.sync.in_sync() => return self.confirm(),
                Ok(Received::Nothing) => self.turn().await,
                received => self.drain(received),
            }
        }
    }

    fn report(&mut self, now: Instant) -> Option<Change> {
        let gathered = self.drained || now >= self.pending_since + self.options.gather;
        if self.pending.is_empty() || !gathered || now < self.report_at() {
            return None;
        }
        self.reported_at = now;
        self.sync.statistics.generation += 1;
        Some(Change {
            generation: self.sync.statistics.generation,
            what: std::mem::take(&mut self.pending),
        })
    }

    fn report_at(&self) -> Instant {
        self.reported_at + self.options.gather
    }

    /// Waits for something to do, and does some of it.
    async fn turn(&mut self) {
        self.start_dump();
        match self.socket.receive(&mut self.buffer) {
            Ok(Received::Nothing) => {
                self.confirm();
                let deadline = self.deadline();
                let received = self.socket.wait(&mut self.buffer);
                if let Ok(received) = tokio::time::timeout_at(deadline.into(), received).await {
                    self.drain(received);
                }
            }
            received => {
                self.drain(received);
                tokio::task::yield_now().await;
            }
        }
        if self.sync.is_stuck(DUMP_PATIENCE) {
            self.reopen(io::ErrorKind::TimedOut.into());
        }
    }

    fn deadline(&self) -> Instant {
        let mut deadline = Instant::now() + TICK;
        if !self.pending.is_empty() {
            deadline = deadline.min(self.report_at());
        }
        if let Some(at) = self.sync.next_dump_at() {
            deadline = deadline.min(at);
        }
        deadline
    }

    /// Takes in what was received, and what else is waiting.
    fn drain(&mut self, mut received: io::Result<Received>) {
        self.drained = false;
        for taken in 1.. {
            match received {
                Ok(Received::Datagram) => self.sync.datagram(&self.buffer),
                Ok(Received::Nothing) => return self.confirm(),
                Ok(Received::Overrun) => self.sync.overrun(),
                Err(error) => return self.reopen(error),
            }
            self.note_changes();
            self.start_dump();
            if taken == BATCH {
                return;
            }
            received = self.socket.receive(&mut self.buffer);
        }
    }

    fn note_changes(&mut self) {
        if self.pending.is_empty() {
            self.pending_since = Instant::now();
        }
        self.pending |= self.sync.take_changed();
    }

    /// Nothing is waiting to be received: what is known is the kernel's latest word.
    fn confirm(&mut self) {
        self.drained = true;
        self.sync.drained();
        if self.sync.in_sync() {
            self.confirmed_at = Instant::now();
        }
    }

    fn start_dump(&mut self) {
        if let Some(part) = self.sync.next_dump(Instant::now()) {
            match self.socket.request_dump(part) {
                Ok(sequence) => self.sync.started(part, sequence),
                Err(error) => self.sync.refused(error),
            }
        }
    }

    /// The socket is of no use any more.
    fn reopen(&mut self, error: io::Error) {
        self.sync.last_error = Some(error);
        match RouteSocket::open(self.options.receive_buffer) {
            Ok(socket) => {
                self.socket = socket;
                self.sync.reopened(self.socket.port);
            }
            Err(error) => self.sync.refused(error),
        }
    }
}
