//! One worker's frames: the UMEM, the free list that its ports share, and the ledger.

use std::{
    cell::RefCell,
    error::Error,
    fs, io,
    num::NonZeroU32,
    ptr::NonNull,
    rc::{Rc, Weak},
};

use xsk_rs::{
    FrameDesc, Umem,
    config::{FrameSize, QueueSize, UmemConfig},
    umem::UmemCreateError,
};

use super::{address::AddressSlot, frame::Frame, open::PortError, runs::Runs};

/// Bytes that XDP keeps free in front of every received packet (`XDP_PACKET_HEADROOM`). Encapsulation grows
/// into them, so a tunnel header costs no room for data.
const XDP_HEADROOM: u32 = 256;
/// What a frame carries beyond the device's MTU: Ethernet header, two VLAN tags, and the frame check sequence
/// that some drivers count in.
const LINK_OVERHEAD: u32 = 14 + 2 * 4 + 4;
/// The frame sizes to choose from, in bytes: powers of two, and one page at most (an aligned UMEM).
const SMALL: u32 = 2048;
const LARGE: u32 = 4096;
/// Frames that one packet may take: what the kernel sends in one go (MAX_SKB_FRAGS).
const MOST_FRAMES: u32 = 17;

/// What a frame of so many bytes can receive.
const fn room(frame_size: u32) -> u32 {
    frame_size - XDP_HEADROOM
}

/// The largest device MTU that drivers take natively where each packet has one buffer: a page, less the room in front of
/// the packet and the kernel's own behind it (`struct skb_shared_info`). Drivers differ by a few bytes; this suits all.
pub const SINGLE_BUFFER_MTU: u32 = 3498;

/// The largest device MTU that works.
pub const LARGEST_MTU: u32 = MOST_FRAMES * room(LARGE) - LINK_OVERHEAD;

/// The longest frame, in bytes, that a device with this MTU delivers in several buffers; none where each has one.
pub(super) fn longest_in_pieces(mtu: u32) -> Option<u32> {
    (mtu > SINGLE_BUFFER_MTU).then_some(mtu + LINK_OVERHEAD)
}

/// How the packets of a worker's devices lie in its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes of a frame.
    pub frame_size: u32,
    /// Frames of a run, which holds the largest packet; 1 where each packet has one frame, and there are no runs.
    pub run: u32,
}

impl Layout {
    /// The smallest that holds what devices of these MTUs deliver; otherwise the place of an MTU that is too large.
    pub fn of(mtus: impl Iterator<Item = u32>) -> Result<Layout, usize> {
        let mut layout = Layout {
            frame_size: SMALL,
            run: 1,
        };
        for (at, mtu) in mtus.enumerate() {
            if mtu > LARGEST_MTU {
                return Err(at);
            }
            if mtu + LINK_OVERHEAD > room(SMALL) {
                layout.frame_size = LARGE;
            }
            if let Some(longest) = longest_in_pieces(mtu) {
                let run = (XDP_HEADROOM + longest).div_ceil(LARGE).max(2);
                layout.run = layout.run.max(run);
            }
        }
        Ok(layout)
    }

    /// Whether packets come and go in several frames each.
    pub fn in_pieces(self) -> bool {
        self.run > 1
    }
}

/// Where one worker's frames are, at this moment. A frame is in exactly one place, so the places always add
/// up to `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ledger {
    /// All frames of the UMEM.
    pub total: usize,
    /// On the free list.
    pub free: usize,
    /// With the kernel for reception: in a fill ring, in the device, or received and not yet taken from an RX ring.
    pub receiving: usize,
    /// In the worker's hands.
    pub worker: usize,
    /// With the kernel for transmission: in a TX ring, in the device, or sent and not yet taken from a completion ring.
    pub transmitting: usize,
}

impl Ledger {
    /// Whether no frame is missing and none is in two places.
    pub fn balances(&self) -> bool {
        self.free + self.receiving + self.worker + self.transmitting == self.total
    }
}

/// A handle on one worker's frames.
pub struct Memory(pub(super) Shared);

impl Memory {
    /// Where the frames are now.
    pub fn ledger(&self) -> Ledger {
        let pool = self.0.borrow();
        Ledger {
            total: pool.total,
            free: pool.free.len() + pool.runs.free() * pool.runs.frames,
            receiving: pool.receiving,
            worker: pool.lent,
            transmitting: pool.transmitting,
        }
    }

    /// Whether the frames are in huge pages.
    pub fn in_huge_pages(&self) -> bool {
        self.0.borrow().huge
    }

    /// The size of a frame in bytes.
    pub fn frame_size(&self) -> usize {
        self.0.borrow().area.frame_size
    }
}

pub(super) type Shared = Rc<RefCell<Pool>>;

/// Has the processor fetch the headers of a packet, which another core or the device has just written, while the
/// rest of the burst is claimed: two cache lines, the second for what lies behind a tunnel's headers.
#[inline]
pub(super) fn prefetch(start: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = start.as_ptr().cast::<i8>().cast_const();
        // SAFETY: a hint: it reads nothing that the program sees, and no address makes it fault.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(start);
            _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(64));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = start;
}

/// What a port needs to know to turn descriptors into frames and back.
#[derive(Clone, Copy)]
pub(super) struct Area {
    base: NonNull<u8>,
    bytes: usize,
    pub frame_size: usize,
    pub slot: AddressSlot,
}

impl Area {
    /// Makes the token for a frame that `desc` describes.
    ///
    /// # Safety
    ///
    /// `desc` comes from this UMEM, and its frame has just passed from the kernel, or from the free list, to
    /// the caller, who gives up the descriptor.
    #[inline]
    pub unsafe fn claim(&self, desc: &FrameDesc) -> Frame {
        let headroom = desc.addr() & (self.frame_size - 1);
        // SAFETY: the address lies inside the mapping, and the caller owns the frame around it.
        unsafe {
            let start = self.base.add(desc.addr());
            prefetch(start);
            Frame::new(start, headroom as u32, desc.lengths().data() as u32)
        }
    }

    /// A frame's beginning as an offset from the UMEM's start. Panics for a frame of another UMEM: the kernel
    /// must never be given an address that is not the token's own.
    #[inline]
    pub fn offset(&self, start: NonNull<u8>) -> usize {
        let offset = (start.as_ptr() as usize).wrapping_sub(self.base.as_ptr() as usize);
        assert!(offset < self.bytes, "a frame of another worker's memory");
        offset
    }

    /// Gives up the token for a descriptor of the packet, to be sent. The packet is not empty.
    #[inline]
    pub fn describe(&self, umem: &Umem, frame: Frame, desc: &mut FrameDesc) {
        self.slot.set(desc, self.offset(frame.start()));
        // SAFETY: the token is still here, so the worker owns the frame and nothing else refers to its bytes.
        // The cursor writes the length in the descriptor and leaves the bytes alone.
        unsafe { umem.data_mut(desc) }
            .cursor()
            .set_pos(frame.len() as usize);
        std::mem::forget(frame);
    }

    /// A byte of the UMEM.
    ///
    /// # Safety
    ///
    /// The offset is that of a frame's byte, or of the end of the last one.
    #[inline]
    pub unsafe fn at(&self, offset: usize) -> NonNull<u8> {
        // SAFETY: the caller says that it lies inside the mapping, or at its end.
        unsafe { self.base.add(offset) }
    }

    /// A descriptor for the frame that begins at `chunk`, with no packet in it.
    #[inline]
    fn retire(&self, chunk: NonNull<u8>) -> FrameDesc {
        let mut desc = FrameDesc::default();
        self.slot.set(&mut desc, self.offset(chunk));
        desc
    }
}

/// The frames of one worker.
///
/// The free list holds descriptors: the last ones freed, still in the cache, are the first to go out again. In
/// aligned mode the kernel masks an address to its frame, so descriptors come back as they are.
pub(super) struct Pool {
    pub free: Vec<FrameDesc>,
    pub runs: Runs,
    pub area: Area,
    umem: Umem,
    huge: bool,
    total: usize,
    /// Frames that live as tokens.
    pub lent: usize,
    /// Frames given to any fill ring and not yet received.
    pub receiving: usize,
    /// Frames given to any TX ring and not yet completed.
    pub transmitting: usize,
}

impl Pool {
    /// Maps and registers nothing yet (the first socket does), but allocates all of it: `frames` frames of
    /// the layout's size, and `runs` runs, with fill and completion rings of `ring_size` entries.
    pub fn new(
        (frames, runs): (u32, u32),
        layout: Layout,
        ring_size: u32,
    ) -> Result<Self, PortError> {
        let frame_size = layout.frame_size;
        let needed = frames + runs * layout.run;
        let refused = |reason: String| PortError::Memory {
            frames: needed,
            frame_size,
            reason,
        };
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(frame_size).map_err(|e| refused(e.to_string()))?)
            .fill_queue_size(QueueSize::new(ring_size).map_err(|e| refused(e.to_string()))?)
            .comp_queue_size(QueueSize::new(ring_size).map_err(|e| refused(e.to_string()))?)
            .build()
            .map_err(|e| refused(e.to_string()))?;
        let count = NonZeroU32::new(needed).ok_or_else(|| refused("no frames".into()))?;
        let slot = AddressSlot::locate().ok_or(PortError::AddressHidden)?;
        let in_huge =
            in_huge_pages(count, frame_size).and_then(|n| Umem::new(config, n, true).ok());
        let huge = in_huge.is_some();
        let (umem, mut free) = match in_huge {
            Some(made) => made,
            None => Umem::new(config, count, false).map_err(|e| refused(explain(&e)))?,
        };
        let first = FrameDesc::default();
        // SAFETY: no socket exists yet, so this thread owns every frame; the borrow ends here.
        let base = NonNull::from(unsafe { umem.data(&first) }.contents()).cast::<u8>();
        let total = free.len();
        free.truncate(total - (runs * layout.run) as usize);
        let frame_size = frame_size as usize;
        Ok(Self {
            area: Area {
                base,
                bytes: total * frame_size,
                frame_size,
                slot,
            },
            runs: Runs::new(
                free.len() * frame_size,
                runs,
                layout.run as usize,
                frame_size,
            ),
            huge,
            total,
            free,
            umem,
            lent: 0,
            receiving: 0,
            transmitting: 0,
        })
    }

    /// The UMEM, for binding sockets to it.
    pub fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Takes a token's frame back to the free list.
    #[inline]
    pub fn put(&mut self, frame: Frame) {
        self.put_chunk(frame.chunk());
        std::mem::forget(frame);
    }

    #[inline]
    fn put_chunk(&mut self, chunk: NonNull<u8>) {
        let desc = self.area.retire(chunk);
        match self.runs.of(desc.addr()) {
            None => {
                self.free.push(desc);
                self.lent -= 1;
            }
            Some(run) => {
                self.runs.put(run);
                self.lent -= self.runs.frames;
            }
        }
    }

    /// A free frame, or a run where a packet of `len` bytes needs one, with an empty packet at its very end: all of it is
    /// headroom.
    pub fn take(&mut self, len: usize) -> Option<Frame> {
        let frame_size = self.area.frame_size;
        let (chunk, frames) =
            match len + XDP_HEADROOM as usize > frame_size && self.runs.count() > 0 {
                true => (self.runs.take()?, self.runs.frames),
                false => (self.free.pop()?.addr() & !(frame_size - 1), 1),
            };
        self.lent += frames;
        let size = frames * frame_size;
        // SAFETY: the frames were free and are now this token's alone; their end is at most the mapping's end.
        unsafe { Some(Frame::new(self.area.at(chunk + size), size as u32, 0)) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Tokens that outlive their ports must keep their memory. It happens to nobody who recycles what he
        // received; the price then is a mapping, and a device queue, held until the process ends.
        if self.lent > 0 {
            std::mem::forget(self.umem.clone());
        }
    }
}

/// How many frames, at least so many, fill huge pages to the last byte (munmap(2) asks for that); none where the kernel has
/// none to give.
fn in_huge_pages(frames: NonZeroU32, frame_size: u32) -> Option<NonZeroU32> {
    let huge = HugePages::of(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let bytes = u64::from(frames.get()) * u64::from(frame_size);
    let pages = bytes.div_ceil(huge.bytes);
    let frames = pages * huge.bytes / u64::from(frame_size);
    let enough = huge.free >= pages;
    NonZeroU32::new(u32::try_from(frames).ok().filter(|_| enough)?)
}

/// The huge pages that were set aside on this host (`vm.nr_hugepages`), of the size that a mapping gets unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePages {
    /// Bytes of one.
    pub bytes: u64,
    pub total: u64,
    /// Neither in use nor promised to anybody.
    pub free: u64,
}

impl HugePages {
    /// What /proc/meminfo says; none where the kernel has no huge pages.
    pub fn of(meminfo: &str) -> Option<HugePages> {
        let field = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let promised = field("HugePages_Rsvd:")?;
        Some(HugePages {
            bytes: field("Hugepagesize:")? << 10,
            total: field("HugePages_Total:")?,
            free: field("HugePages_Free:")?.saturating_sub(promised),
        })
    }
}

/// What the kernel has against the memory, in one line.
fn explain(error: &UmemCreateError) -> String {
    let source = error.source();
    let errno = source
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error);
    match (errno, source) {
        (Some(libc::ENOBUFS), _) => {
            "it exceeds the memlock limit: raise that (`ulimit -l unlimited`) or grant CAP_IPC_LOCK"
                .into()
        }
        (_, Some(source)) => format!("{error}: {source}"),
        (_, None) => error.to_string(),
    }
}

thread_local! {
    /// The pools of this thread, for tokens that were dropped.
    static POOLS: RefCell<Vec<Weak<RefCell<Pool>>>> = const { RefCell::new(Vec::new()) };
}

/// Lets dropped tokens of this thread find their way back to `pool`.
pub(super) fn adopt(pool: &Shared) {
    POOLS.with_borrow_mut(|pools| {
        pools.retain(|known| known.strong_count() > 0);
        pools.push(Rc::downgrade(pool));
    });
}

/// Takes back the frame of a token that was dropped.
#[cold]
pub(super) fn reclaim(chunk: NonNull<u8>) {
    // Without a thread, or without a pool, there is nowhere to go back to, and nothing to do.
    let _ = POOLS.try_with(|pools| {
        for pool in pools.borrow().iter().filter_map(Weak::upgrade) {
            if let Ok(mut pool) = pool.try_borrow_mut() {
                let offset =
                    (chunk.as_ptr() as usize).wrapping_sub(pool.area.base.as_ptr() as usize);
                if offset < pool.area.bytes {
                    pool.put_chunk(chunk);
                    return;
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_mtus_take_half_a_page_and_large_ones_several() {
        let layout = |mtus: &[u32]| Layout::of(mtus.iter().copied()).map(|l| (l.frame_size, l.run));
        assert_eq!(layout(&[1500]), Ok((2048, 1)));
        assert_eq!(layout(&[1766]), Ok((2048, 1)));
        assert_eq!(layout(&[1500, 1767]), Ok((4096, 1)));
        assert_eq!(layout(&[3498]), Ok((4096, 1)));
        assert_eq!(layout(&[3499]), Ok((4096, 2)));
        assert_eq!(layout(&[9000, 1500]), Ok((4096, 3)));
        assert_eq!(layout(&[65_254]), Ok((4096, 16)));
        assert_eq!(layout(&[1500, 65_255]), Err(1));
    }

    #[test]
    fn huge_pages_that_are_promised_are_not_free() {
        let meminfo = "MemTotal: 1 kB\nHugePages_Total:      20\nHugePages_Free:       18\n\
                       HugePages_Rsvd:        3\nHugepagesize:       2048 kB\n";
        let seen = HugePages {
            bytes: 2 << 20,
            total: 20,
            free: 15,
        };
        assert_eq!(HugePages::of(meminfo), Some(seen));
        assert_eq!(HugePages::of("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_ledger_notices_a_missing_frame_and_a_double_one() {
        let ledger = Ledger {
            total: 10,
            free: 3,
            receiving: 4,
            worker: 1,
            transmitting: 2,
        };
        assert!(ledger.balances());
        assert!(!Ledger { free: 2, ..ledger }.balances());
        assert!(
            !Ledger {
                worker: 2,
                ..ledger
            }
            .balances()
        );
    }
}
