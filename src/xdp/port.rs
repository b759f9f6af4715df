//! A device queue as the datapath sees it: one AF_XDP socket with its four rings.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::net::{RecvFlags, SendFlags};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue, Umem};

use crate::datapath::Port;

use super::{
    frame::Frame,
    kick::{self, Kick, KickCounters},
    open::{Mode, PortSpec},
    umem::{Area, Shared},
};

/// How many descriptors pass through the rings at a time.
pub(super) const BATCH: usize = 64;

/// One receive queue of one device.
///
/// It shares frames with the other ports of its worker and stays in that worker's thread. The fill ring is kept
/// full, and a packet is received only when its replacement is there. At most `2 * ring_size` frames are with the
/// kernel for reception and `ring_size` for transmission, so that no port can starve another.
pub struct XskPort {
    pub(super) rings: Rings,
    pub(super) spec: PortSpec,
    pub(super) mode: Mode,
    pub(super) why_not_zero_copy: Option<Arc<str>>,
    pub(super) ring_size: usize,
    pub(super) area: Area,
    pub(super) umem: Umem,
    pub(super) pool: Shared,
    /// Frames of this port that are with the kernel for reception, and for transmission.
    pub(super) receiving: usize,
    pub(super) transmitting: usize,
    /// The last `rx_burst` found nothing.
    idle: bool,
    /// An idle port polls its device.
    pub(super) polls: bool,
    pub(super) counters: KickCounters,
    pub(super) batch: Box<[FrameDesc; BATCH]>,
    /// Packets may come and go in several frames each; what that takes is in `pieces.rs`.
    pub(super) in_pieces: bool,
    /// The pieces so far of a packet whose last one has not come yet.
    pub(super) pieces: Vec<FrameDesc>,
}

/// The four rings of one socket.
pub(super) struct Rings {
    pub tx: TxQueue,
    pub rx: RxQueue,
    pub fill: FillQueue,
    pub completion: CompQueue,
}

/// What the kernel counts for one AF_XDP socket (`XDP_STATISTICS`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XskStatistics {
    /// Received packets dropped for reasons other than those below, such as no frame or a frame too small.
    pub rx_dropped: u64,
    /// Received packets dropped because a fill ring entry was invalid.
    pub rx_invalid_descs: u64,
    /// Packets not sent because their TX ring entry was invalid.
    pub tx_invalid_descs: u64,
    /// Received packets dropped because the RX ring was full.
    pub rx_ring_full: u64,
    /// How often the fill ring was found empty.
    pub rx_fill_ring_empty_descs: u64,
    /// How often the TX ring was found empty.
    pub tx_ring_empty_descs: u64,
}

impl XskPort {
    pub(super) fn new(
        rings: Rings,
        spec: PortSpec,
        mode: Mode,
        ring_size: u32,
        pool: &Shared,
    ) -> Self {
        let (area, umem) = {
            let pool = pool.borrow();
            (pool.area, pool.umem().clone())
        };
        Self {
            rings,
            spec,
            mode,
            why_not_zero_copy: None,
            ring_size: ring_size as usize,
            area,
            umem,
            pool: Rc::clone(pool),
            receiving: 0,
            transmitting: 0,
            idle: true,
            polls: false,
            counters: KickCounters::default(),
            batch: Box::new([FrameDesc::default(); BATCH]),
            in_pieces: false,
            pieces: Vec::with_capacity(BATCH),
        }
    }

    /// The socket, for poll and for the XSKMAP.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open as long as the rings are, and `self` keeps them.
        unsafe { BorrowedFd::borrow_raw(self.rings.rx.fd().as_raw_fd()) }
    }

    /// The device and queue that this port stands for.
    pub fn spec(&self) -> &PortSpec {
        &self.spec
    }

    /// The mode that the kernel says it is in.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Why zero-copy was tried and is not in use.
    pub fn why_not_zero_copy(&self) -> Option<&str> {
        self.why_not_zero_copy.as_deref()
    }

    /// The kernel's counters for this socket. One system call.
    pub fn statistics(&self) -> io::Result<XskStatistics> {
        let kernel = self.rings.rx.fd().xdp_statistics()?;
        Ok(XskStatistics {
            rx_dropped: kernel.rx_dropped(),
            rx_invalid_descs: kernel.rx_invalid_descs(),
            tx_invalid_descs: kernel.tx_invalid_descs(),
            rx_ring_full: kernel.rx_ring_full(),
            rx_fill_ring_empty_descs: kernel.rx_fill_ring_empty_descs(),
            tx_ring_empty_descs: kernel.tx_ring_empty_descs(),
        })
    }

    /// What became of the calls that wake the transmitter.
    pub fn counters(&self) -> KickCounters {
        self.counters
    }

    /// Frames given to the kernel for transmission that have not come back. While there are any, `service`
    /// has something to do, and a worker should not sleep without a time limit.
    pub fn transmitting(&self) -> usize {
        self.transmitting
    }

    /// Services the port until everything is sent, the device is gone, or `limit` has passed: a reset may
    /// have swallowed completions for good. True when everything was sent.
    pub fn drain(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.transmitting > 0 {
            if self.service().is_err() || Instant::now() >= deadline {
                break;
            }
            if self.transmitting > 0 {
                thread::sleep(Duration::from_micros(100));
            }
        }
        self.transmitting == 0
    }

    /// Fills the fill ring. Returns how many packets may be received for it: as many as were replaced now when
    /// the free frames run out, else any number.
    pub(super) fn replenish(&mut self) -> usize {
        let pool = &mut *self.pool.borrow_mut();
        // A device with a deep ring of its own would go on taking frames until other ports had none.
        let allowed = 2 * self.ring_size - self.receiving;
        let owed = allowed.min(self.rings.fill.nb_free_exact() as usize);
        let keep = pool.free.len().saturating_sub(owed);
        // SAFETY: the free list owns these frames; they become the kernel's, and their descriptors leave the
        // list when the ring has taken them: all of them, because it was asked for its room.
        let given = unsafe { self.rings.fill.produce(&pool.free[keep..]) };
        pool.free.truncate(pool.free.len() - given);
        pool.receiving += given;
        self.receiving += given;
        if given == owed { usize::MAX } else { given }
    }

    /// Takes completed transmissions back to the free list.
    pub(super) fn reclaim(&mut self) {
        while self.transmitting > 0 {
            // SAFETY: descriptors of this UMEM; their frames were the kernel's and are now the free list's.
            let n = unsafe { self.rings.completion.consume(&mut self.batch[..]) };
            if n == 0 {
                break;
            }
            if self.in_pieces {
                self.take_back(n);
                continue;
            }
            let mut pool = self.pool.borrow_mut();
            pool.free.extend_from_slice(&self.batch[..n]);
            pool.transmitting -= n;
            self.transmitting -= n;
        }
    }

    /// Takes `n` packets, which the RX ring has, into `burst`.
    fn receive(&mut self, burst: &mut Vec<Frame>, n: usize) -> usize {
        // SAFETY: descriptors of this UMEM; their frames were the kernel's and are now the worker's.
        let n = unsafe { self.rings.rx.consume(&mut self.batch[..n]) };
        for desc in &self.batch[..n] {
            // SAFETY: the frame has just passed from the RX ring to the worker, and the descriptor is
            // overwritten before it is used again.
            burst.push(unsafe { self.area.claim(desc) });
        }
        let mut pool = self.pool.borrow_mut();
        pool.receiving -= n;
        self.receiving -= n;
        pool.lent += n;
        n
    }

    /// Gives the first `n` packets of `burst`, for which the TX ring has room, to the kernel.
    fn transmit(&mut self, burst: &mut Vec<Frame>, n: usize) {
        let mut pool = self.pool.borrow_mut();
        let mut described = 0;
        for frame in burst.drain(..n) {
            if frame.len() == 0 {
                // The kernel would skip the descriptor, and the frame would never complete.
                pool.put(frame);
                self.counters.empty += 1;
                continue;
            }
            self.area
                .describe(&self.umem, frame, &mut self.batch[described]);
            described += 1;
        }
        // SAFETY: the tokens have just been given up for these descriptors, so the frames become the
        // kernel's. Without room for all, the ring takes none, and they become the free list's.
        let sent = unsafe { self.rings.tx.produce(&self.batch[..described]) };
        pool.free.extend_from_slice(&self.batch[sent..described]);
        pool.lent -= described;
        pool.transmitting += sent;
        self.transmitting += sent;
    }

    /// How many packets the TX ring takes now, at most `wanted`.
    pub(super) fn room(&mut self, wanted: usize) -> usize {
        let wanted = wanted.min(self.ring_size - self.transmitting);
        (self.rings.tx.nb_free(wanted as u32) as usize).min(wanted)
    }

    /// Packets in the TX ring that the kernel has not looked at.
    fn waiting(&mut self) -> usize {
        self.ring_size - self.rings.tx.nb_free_exact() as usize
    }

    /// Wakes the transmitter until it has taken everything or makes no more progress. In copy mode it is this
    /// call that sends, 32 packets at a time on kernels before 6.17.
    fn kick(&mut self) -> io::Result<()> {
        let mut waiting = self.waiting();
        for _ in 0..kick::bound(self.ring_size) {
            if waiting == 0 || !self.rings.tx.needs_wakeup() {
                break;
            }
            self.counters.kicks += 1;
            let answer = rustix::net::send(self.fd(), &[], SendFlags::DONTWAIT).map(|_| ());
            let kick = kick::judge(answer, &mut self.counters)?;
            if self.mode == Mode::ZeroCopy {
                break;
            }
            // A full completion ring stops the transmitter as well.
            self.reclaim();
            let before = std::mem::replace(&mut waiting, self.waiting());
            if kick == Kick::Stop || (kick == Kick::Again && waiting == before) {
                break;
            }
        }
        Ok(())
    }

    /// Asks the kernel to look at the fill ring, or merely whether the device is still there.
    fn wake_receiver(&self) -> io::Result<()> {
        match rustix::net::recv(self.fd(), &mut [0u8; 0], RecvFlags::DONTWAIT) {
            Err(errno) if kick::is_link_event(errno) => Err(errno.into()),
            _ => Ok(()),
        }
    }
}

impl AsFd for XskPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

impl Port for XskPort {
    type Buf = Frame;

    fn service(&mut self) -> io::Result<()> {
        self.reclaim();
        self.replenish();
        let kicked = self.transmitting > 0;
        if kicked {
            self.kick()?;
        }
        // Nothing else would tell an idle port that its device went down or away. Where busy polling is preferred, it is
        // this call that polls.
        if self.rings.fill.needs_wakeup() || (self.idle && (self.polls || !kicked)) {
            self.wake_receiver()?;
        }
        Ok(())
    }

    fn rx_burst(&mut self, burst: &mut Vec<Frame>, max: usize) -> usize {
        let mut received = 0;
        while received < max {
            let wanted = (max - received).min(BATCH);
            let ready = (self.rings.rx.nb_avail(wanted as u32) as usize).min(wanted);
            if ready == 0 {
                break;
            }
            let replaced = self.replenish().min(ready);
            if self.in_pieces {
                match self.receive_pieces(burst, replaced) {
                    Some(packets) => received += packets,
                    None => break,
                }
                continue;
            }
            if replaced == 0 {
                break;
            }
            received += self.receive(burst, replaced);
        }
        self.idle = received == 0;
        received
    }

    fn tx_burst(&mut self, burst: &mut Vec<Frame>) -> usize {
        let mut sent = 0;
        while !burst.is_empty() {
            let wanted = burst.len().min(BATCH);
            let mut room = self.room(wanted);
            if room < wanted {
                self.reclaim();
                room = self.room(wanted);
            }
            if room == 0 {
                break;
            }
            if self.in_pieces {
                room = self.transmit_pieces(burst, room);
                sent += room;
                if room == 0 {
                    break;
                }
                continue;
            }
            self.transmit(burst, room);
            sent += room;
        }
        sent
    }

    fn recycle(&mut self, burst: &mut Vec<Frame>) {
        let mut pool = self.pool.borrow_mut();
        for frame in burst.drain(..) {
            pool.put(frame);
        }
    }

    fn take(&mut self, len: usize) -> Option<Frame> {
        self.pool.borrow_mut().take(len)
    }
}
