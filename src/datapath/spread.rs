//! Flows that come by one queue, spread over the workers: a bounded ring from every worker to every other.
//!
//! A parcel is a frame's copy. Parcels are made once and go round: out by the ring, back when the frame is in the other
//! worker's memory. So nothing is allocated or shared, and a worker that stands still costs its mates no more than a ring.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering, fence},
};

use rtrb::{Consumer, Producer, RingBuffer};

use super::{Wake, worker::BURST};
use crate::fib::PortId;

/// Frames that one worker may have waiting for another.
pub const RING: usize = 512;
/// Frames that one worker may have waiting for all others together.
const PARCELS: usize = 2 * RING;
/// Spreads hashes anew: the low bits of the same hash choose among several ways (2^32 divided by the golden ratio).
const SPREAD: u32 = 0x9e37_79b9;

/// A copy of a frame on its way to another worker.
struct Parcel {
    /// The socket that it was received on.
    socket: PortId,
    len: usize,
    bytes: Box<[u8]>,
}

/// A worker as the others see it.
pub struct Mate {
    asleep: AtomicBool,
    hangs: AtomicBool,
    waker: Box<dyn Wake + Sync>,
}

impl Mate {
    /// Whether it sleeps, and has been given nothing since it lay down.
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    /// A worker that hangs is given nothing: who has its flows keeps them.
    pub fn set_hangs(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::Relaxed);
    }
}

/// The way to one other worker.
struct Towards {
    mate: Arc<Mate>,
    ring: Producer<Parcel>,
    returned: Consumer<Parcel>,
    /// What goes into the ring at the end of the burst, and at least so many places are free there.
    staged: Vec<Parcel>,
    room: usize,
}

/// The way from one other worker.
struct From {
    ring: Consumer<Parcel>,
    back: Producer<Parcel>,
}

/// One worker's ends of all the rings.
pub struct Mates {
    me: Arc<Mate>,
    on: Arc<AtomicBool>,
    /// By the number of the worker; none to itself.
    towards: Vec<Option<Towards>>,
    from: Vec<From>,
    /// The one that was used last is taken first: it is still in the cache.
    free: Vec<Parcel>,
}

/// The rings between workers, one of which each of `wakers` wakes, for frames of at most `frame_len` bytes. They are used
/// while `on` is set.
pub fn mates(
    wakers: Vec<Box<dyn Wake + Sync>>,
    frame_len: usize,
    on: &Arc<AtomicBool>,
) -> Vec<Mates> {
    let mate = |waker| {
        Arc::new(Mate {
            asleep: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            waker,
        })
    };
    let all: Vec<Arc<Mate>> = wakers.into_iter().map(mate).collect();
    let parcel = |_| Parcel {
        socket: PortId(0),
        len: 0,
        bytes: vec![0; frame_len].into_boxed_slice(),
    };
    let of = |number| Mates {
        me: Arc::clone(&all[number]),
        on: Arc::clone(on),
        towards: Vec::with_capacity(all.len()),
        from: Vec::with_capacity(all.len()),
        free: (0..PARCELS).map(parcel).collect(),
    };
    let mut ends: Vec<Mates> = (0..all.len()).map(of).collect();
    for sender in 0..all.len() {
        for (receiver, mate) in all.iter().enumerate() {
            if sender == receiver {
                ends[sender].towards.push(None);
                continue;
            }
            let (ring, incoming) = RingBuffer::new(RING);
            // Every parcel there is may be on its way back.
            let (back, returned) = RingBuffer::new(PARCELS);
            ends[sender].towards.push(Some(Towards {
                mate: Arc::clone(mate),
                ring,
                returned,
                staged: Vec::with_capacity(BURST),
                room: 0,
            }));
            ends[receiver].from.push(From {
                ring: incoming,
                back,
            });
        }
    }
    ends
}

impl Mates {
    /// This worker as the others see it.
    pub fn me(&self) -> &Arc<Mate> {
        &self.me
    }

    /// Workers beside this one.
    pub(super) fn others(&self) -> usize {
        self.from.len()
    }

    /// Whether flows are spread at the moment.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// The other worker that a flow with this hash belongs to; none: this one's. It depends on the number of workers alone,
    /// and never on their load, so that the order within a flow is kept.
    #[inline]
    pub(super) fn owner(&self, flow: u32) -> Option<usize> {
        let all = self.towards.len() as u64;
        let owner = (u64::from(flow.wrapping_mul(SPREAD)) * all) >> 32;
        let towards = self.towards.get(owner as usize)?.as_ref()?;
        let hangs = towards.mate.hangs.load(Ordering::Relaxed);
        (!hangs).then_some(owner as usize)
    }

    /// Copies a frame that `socket` received into the ring of worker `to`, with the next [`flush`](Self::flush). False when that
    /// one has fallen behind, and the frame is not carried.
    #[inline]
    pub(super) fn send(&mut self, to: usize, frame: &[u8], socket: PortId) -> bool {
        let Some(Some(towards)) = self.towards.get_mut(to) else {
            return false;
        };
        if towards.staged.len() >= towards.room {
            towards.room = towards.ring.slots().min(BURST);
            if towards.staged.len() >= towards.room {
                return false;
            }
        }
        let Some(mut parcel) = self.free.pop() else {
            return false;
        };
        let Some(room) = parcel.bytes.get_mut(..frame.len()) else {
            self.free.push(parcel);
            return false;
        };
        room.copy_from_slice(frame);
        (parcel.socket, parcel.len) = (socket, frame.len());
        towards.staged.push(parcel);
        true
    }

    /// Puts what was sent into the rings, and wakes those who sleep.
    pub(super) fn flush(&mut self) {
        for towards in self.towards.iter_mut().flatten() {
            if !towards.staged.is_empty() {
                if let Ok(places) = towards.ring.write_chunk_uninit(towards.staged.len()) {
                    places.fill_from_iter(towards.staged.drain(..));
                }
                towards.room = 0;
                // Pairs with the one in `lie_down`: either this one sees the mate asleep, or that one sees the ring.
                fence(Ordering::SeqCst);
                if towards.mate.is_asleep() && towards.mate.asleep.swap(false, Ordering::SeqCst) {
                    towards.mate.waker.wake();
                }
            }
            if let Ok(returned) = towards.returned.read_chunk(towards.returned.slots()) {
                self.free.extend(returned);
            }
        }
    }

    /// Whether frames wait for this worker.
    #[inline]
    pub(super) fn is_waited_for(&self) -> bool {
        self.from.iter().any(|from| !from.ring.is_empty())
    }

    /// Hands the frames that wait to `take`, at most a burst from each of the others. Returns how many.
    pub(super) fn drain(&mut self, mut take: impl FnMut(PortId, &[u8])) -> usize {
        let mut taken = 0;
        for from in &mut self.from {
            let waiting = from.ring.slots().min(BURST);
            let Ok(parcels) = from.ring.read_chunk(waiting) else {
                continue;
            };
            for parcel in parcels {
                take(parcel.socket, &parcel.bytes[..parcel.len]);
                // There is room for every parcel.
                let _ = from.back.push(parcel);
                taken += 1;
            }
        }
        taken
    }

    /// Says that this worker is about to sleep; false when something waits for it, so that it must not.
    pub(super) fn lie_down(&self) -> bool {
        self.me.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let may = !self.is_waited_for();
        if !may {
            self.rise();
        }
        may
    }

    /// Says that this worker is awake.
    pub(super) fn rise(&self) {
        self.me.asleep.store(false, Ordering::SeqCst);
    }

    /// Gives the others nothing any more, from now on and for good.
    pub(super) fn part(&mut self) {
        self.flush();
        self.towards.clear();
    }

    /// Whether none of the others can send anything any more.
    pub(super) fn is_alone(&self) -> bool {
        self.from.iter().all(|from| from.ring.is_abandoned())
    }
}
