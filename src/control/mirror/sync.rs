//! Keeps a [`State`] in step with the kernel's datagrams: what to dump, when, and how dump and notifications meet.
//!
//! While a part is dumped, what is told about it goes into the state in use and is kept as well, to be said again to the
//! dumped part before that takes the old one's place: a dump may be older than a notification that overtook it, and saying
//! things twice, in order, is harmless.
//!
//! No I/O happens here: [`super::Monitor`] sends the requests and brings the datagrams.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{decode, event::Event, parts::Parts, state::State};

/// Counts since the start, and how fresh the mirror is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Messages of the kernel, dumped ones included.
    pub messages: u64,
    /// Dumps of a part that were finished.
    pub dumps: u64,
    /// Dumps that were not of one moment, and were repeated.
    pub interrupted: u64,
    /// Times that everything had to be read anew.
    pub resyncs: u64,
    /// Times that notifications were lost for want of room.
    pub overruns: u64,
    /// Messages that could not be understood.
    pub undecodable: u64,
    /// Reports of changes.
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
    began: Instant,
    progress: Instant,
}

/// Notifications about a part that are kept while it is dumped; beyond that the dump is repeated.
const MAX_HELD: usize = 1 << 18;

const HEADER: usize = 16;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// A state, and what it takes to trust it.
#[derive(Debug)]
pub struct Sync {
    pub state: State,
    pub statistics: Statistics,
    /// What went wrong last.
    pub last_error: Option<io::Error>,
    /// Our socket's address: replies carry it, notifications do not.
    port: u32,
    dump: Option<Dump>,
    wanted: Parts,
    /// What has been read at least once.
    read: Parts,
    changed: Parts,
    /// Notifications are lost until all that waits has been received (NETLINK_S_CONGESTED in net/netlink/af_netlink.c). What
    /// waits is older than what was lost, and must not be said again to a dump that is younger.
    congested: bool,
    /// Consecutive troubles, and until when the next dump waits because of them.
    trouble: u32,
    retry_at: Instant,
    /// When routes may be read again: a large table is not read over and over while links flap.
    routes_at: Instant,
}

/// How many times as long as the last reading of routes took the next one waits.
const ROUTES_REST: u32 = 4;

impl Sync {
    /// An empty state that wants everything.
    pub fn new(port: u32) -> Self {
        Self {
            state: State::default(),
            statistics: Statistics::default(),
            last_error: None,
            port,
            dump: None,
            wanted: Parts::ALL,
            read: Parts::NONE,
            changed: Parts::NONE,
            congested: false,
            trouble: 0,
            retry_at: Instant::now(),
            routes_at: Instant::now(),
        }
    }

    /// Nothing is being dumped or waits for it.
    pub fn in_sync(&self) -> bool {
        self.wanted.is_empty() && self.dump.is_none()
    }

    /// Everything has been read, though some of it may have to be read again.
    pub fn is_complete(&self) -> bool {
        Parts::ALL.without(self.read).is_empty()
    }

    /// What is being dumped, or waits for it.
    pub fn missing(&self) -> Parts {
        self.wanted | self.dump.as_ref().map_or(Parts::NONE, |dump| dump.part)
    }

    /// When the next dump may be asked for; none while there is nothing to ask for.
    pub fn next_dump_at(&self) -> Option<Instant> {
        let ready = self.dump.is_none() && !self.congested;
        let part = self.wanted.first().filter(|_| ready)?;
        Some(match Parts::ROUTES.contains(part) {
            true => self.retry_at.max(self.routes_at),
            false => self.retry_at,
        })
    }

    /// The part to ask for now.
    pub fn next_dump(&self, now: Instant) -> Option<Parts> {
        let due = self.next_dump_at().is_some_and(|at| now >= at);
        self.wanted.first().filter(|_| due)
    }

    /// The dump was asked for.
    pub fn started(&mut self, part: Parts, sequence: u32) {
        self.wanted = self.wanted.without(part);
        self.dump = Some(Dump {
            part,
            sequence,
            fresh: State::default(),
            held: Vec::new(),
            interrupted: false,
            began: Instant::now(),
            progress: Instant::now(),
        });
    }

    /// The dump could not be asked for.
    pub fn refused(&mut self, error: io::Error) {
        self.last_error = Some(error);
        self.in_trouble();
    }

    /// A dump has not moved for so long.
    pub fn is_stuck(&self, patience: Duration) -> bool {
        (self.dump.as_ref()).is_some_and(|dump| dump.progress.elapsed() > patience)
    }

    /// Nothing more is waiting to be received.
    pub fn drained(&mut self) {
        self.congested = false;
        if self.in_sync() {
            self.trouble = 0;
        }
    }

    /// Notifications were lost.
    pub fn overrun(&mut self) {
        self.statistics.overruns += 1;
        self.congested = true;
        self.resync();
    }

    /// There is a new socket, which has been told nothing so far.
    pub fn reopened(&mut self, port: u32) {
        self.port = port;
        self.dump = None;
        self.congested = false;
        self.resync();
    }

    /// What has changed since the last call.
    pub fn take_changed(&mut self) -> Parts {
        std::mem::take(&mut self.changed)
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

    /// Takes in one datagram, which may hold many messages.
    pub fn datagram(&mut self, mut bytes: &[u8]) {
        while let Some(header) = bytes.first_chunk::<HEADER>() {
            let word = |at: usize| {
                u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
            let len = word(0) as usize;
            let Some(payload) = bytes.get(HEADER..len) else {
                break;
            };
            self.statistics.messages += 1;
            let is_reply = word(12) == self.port
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
        if Parts::ROUTES.contains(part) {
            self.routes_at = Instant::now() + dump.began.elapsed() * ROUTES_REST;
        }
        let unsupported = [libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::ENOENT].contains(&-code);
        if code != 0 && !unsupported {
            self.last_error = Some(io::Error::from_raw_os_error(-code));
            self.wanted |= part;
            return self.in_trouble();
        }
        self.statistics.dumps += 1;
        self.read |= part;
        for event in dump.held.drain(..) {
            let effect = dump.fresh.apply(event);
            self.wanted |= effect.doubt;
        }
        if self.state.take_part(part, dump.fresh) {
            self.changed |= part;
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
        self.changed |= effect.changed;
        self.want(effect.doubt);
        if let Some(dump) = &self.dump {
            // Routes that the dump has listed may have gone with the link, address or nexthop object, without a word.
            let devices = Parts::LINKS | Parts::ADDRESSES | Parts::NEXTHOPS;
            if Parts::ROUTES.contains(dump.part) && effect.changed.intersects(devices) {
                self.want(dump.part);
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
}
