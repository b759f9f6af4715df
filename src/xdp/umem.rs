//! One worker's frames: the UMEM, the free list that its ports share, and the ledger.

use std::{
    cell::RefCell,
    error::Error,
    io,
    num::NonZeroU32,
    ptr::NonNull,
    rc::{Rc, Weak},
};

use xsk_rs::{
    FrameDesc, Umem,
    config::{FrameSize, QueueSize, UmemConfig},
    umem::UmemCreateError,
};

use super::{address::AddressSlot, frame::Frame, open::PortError};

/// Bytes that XDP keeps free in front of every received packet (`XDP_PACKET_HEADROOM`). Encapsulation grows
/// into them, so a tunnel header costs no room for data.
const XDP_HEADROOM: u32 = 256;
/// What a frame carries beyond the device's MTU: Ethernet header, two VLAN tags, and the frame check sequence
/// that some drivers count in.
const LINK_OVERHEAD: u32 = 14 + 2 * 4 + 4;
/// The frame sizes to choose from, in bytes: powers of two, and one page at most (an aligned UMEM).
const FRAME_SIZES: [u32; 2] = [2048, 4096];

/// The largest device MTU that a frame of `frame_size` bytes can receive.
const fn largest_mtu(frame_size: u32) -> u32 {
    frame_size - XDP_HEADROOM - LINK_OVERHEAD
}

/// The largest device MTU that any frame can receive.
pub const LARGEST_MTU: u32 = largest_mtu(FRAME_SIZES[FRAME_SIZES.len() - 1]);

/// The smallest frame size, in bytes, that receives what a device with this MTU delivers; otherwise the largest
/// MTU that works.
pub(super) fn frame_size_for(mtu: u32) -> Result<u32, u32> {
    FRAME_SIZES
        .into_iter()
        .find(|&size| mtu <= largest_mtu(size))
        .ok_or(LARGEST_MTU)
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
            free: pool.free.len(),
            receiving: pool.receiving,
            worker: pool.lent,
            transmitting: pool.transmitting,
        }
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
    frame_size: usize,
    slot: AddressSlot,
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
    fn offset(&self, start: NonNull<u8>) -> usize {
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
    pub area: Area,
    umem: Umem,
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
    /// `frame_size` bytes, with fill and completion rings of `ring_size` entries.
    pub fn new(frames: u32, frame_size: u32, ring_size: u32) -> Result<Self, PortError> {
        let refused = |reason: String| PortError::Memory {
            frames,
            frame_size,
            reason,
        };
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(frame_size).map_err(|e| refused(e.to_string()))?)
            .fill_queue_size(QueueSize::new(ring_size).map_err(|e| refused(e.to_string()))?)
            .comp_queue_size(QueueSize::new(ring_size).map_err(|e| refused(e.to_string()))?)
            .build()
            .map_err(|e| refused(e.to_string()))?;
        let count = NonZeroU32::new(frames).ok_or_else(|| refused("no frames".into()))?;
        let slot = AddressSlot::locate().ok_or(PortError::AddressHidden)?;
        let (umem, free) = Umem::new(config, count, false).map_err(|e| refused(explain(&e)))?;
        let first = FrameDesc::default();
        // SAFETY: no socket exists yet, so this thread owns every frame; the borrow ends here.
        let base = NonNull::from(unsafe { umem.data(&first) }.contents()).cast::<u8>();
        Ok(Self {
            area: Area {
                base,
                bytes: frames as usize * frame_size as usize,
                frame_size: frame_size as usize,
                slot,
            },
            total: free.len(),
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
        self.free.push(desc);
        self.lent -= 1;
    }

    /// A free frame with an empty packet at its very end: all of it is headroom.
    pub fn take(&mut self) -> Option<Frame> {
        let mut desc = self.free.pop()?;
        let chunk = desc.addr() & !(self.area.frame_size - 1);
        self.area.slot.set(&mut desc, chunk);
        self.lent += 1;
        // SAFETY: the frame was free and is now this token's alone; its end is at most the mapping's end.
        unsafe {
            let end = self.area.base.add(chunk + self.area.frame_size);
            Some(Frame::new(end, self.area.frame_size as u32, 0))
        }
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
    fn ordinary_mtus_take_half_a_page_and_jumbo_is_refused_with_the_largest_that_works() {
        assert_eq!(frame_size_for(1500), Ok(2048));
        assert_eq!(frame_size_for(1766), Ok(2048));
        assert_eq!(frame_size_for(1767), Ok(4096));
        assert_eq!(frame_size_for(3814), Ok(4096));
        assert_eq!(frame_size_for(3815), Err(3814));
        assert_eq!(frame_size_for(9000), Err(3814));
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
