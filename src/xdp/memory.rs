//! A port in memory: the frames and the rings of a socket without the socket, for benchmarks. Tokens, descriptors and
//! bursts are those of [`XskPort`](super::XskPort); the kernel's end of the rings is the caller's.

use std::{cell::RefCell, io, mem, ptr::NonNull, rc::Rc};

use crate::{datapath::Port, packet::PacketBuf};

use super::{frame::Frame, umem::prefetch};

/// Bytes of a frame, and where a received packet begins in it (`XDP_PACKET_HEADROOM`).
const FRAME: usize = 2048;
const HEADROOM: usize = 256;
/// Places in each ring, and the descriptors that pass through them at a time.
const RING: usize = 2048;
const BATCH: usize = 64;

/// `struct xdp_desc`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Desc {
    address: u64,
    len: u32,
    options: u32,
}

/// A ring with one producer and one consumer.
struct Ring<T> {
    places: Box<[T; RING]>,
    produced: u32,
    consumed: u32,
}

impl<T: Copy + Default> Ring<T> {
    fn new() -> Self {
        Self {
            places: Box::new([T::default(); RING]),
            produced: 0,
            consumed: 0,
        }
    }

    #[inline]
    fn waiting(&self) -> usize {
        self.produced.wrapping_sub(self.consumed) as usize
    }

    #[inline]
    fn room(&self) -> usize {
        RING - self.waiting()
    }

    #[inline]
    fn push(&mut self, value: T) {
        self.places[self.produced as usize % RING] = value;
        self.produced = self.produced.wrapping_add(1);
    }

    #[inline]
    fn pop(&mut self) -> T {
        let value = self.places[self.consumed as usize % RING];
        self.consumed = self.consumed.wrapping_add(1);
        value
    }
}

/// The frames that the ports of one worker share, and those of them that are free.
struct Area {
    base: NonNull<u8>,
    free: Vec<u64>,
}

impl Area {
    /// The token for a frame that a descriptor speaks of.
    #[inline]
    fn claim(&self, desc: Desc) -> Frame {
        let headroom = desc.address as usize % FRAME;
        // SAFETY: descriptors are made from tokens of this area alone, or from its own count of frames, and each is in one ring
        // or list; taken out of there, it is the caller's. The memory is never freed.
        unsafe {
            let start = self.base.add(desc.address as usize);
            prefetch(start);
            Frame::new(start, headroom as u32, desc.len)
        }
    }

    /// The descriptor of a packet that is not empty, whose token is given up.
    #[inline]
    fn describe(&self, frame: Frame) -> Desc {
        let address = (frame.start().as_ptr() as usize) - (self.base.as_ptr() as usize);
        let len = frame.len();
        mem::forget(frame);
        Desc {
            address: address as u64,
            len,
            options: 0,
        }
    }

    /// Takes a frame back, whose token is given up.
    #[inline]
    fn put(&mut self, frame: Frame) {
        let chunk = (frame.chunk().as_ptr() as usize) - (self.base.as_ptr() as usize);
        mem::forget(frame);
        self.free.push(chunk as u64);
    }
}

/// One receive queue, and one to send.
pub struct RingPort {
    area: Rc<RefCell<Area>>,
    fill: Ring<u64>,
    rx: Ring<Desc>,
    tx: Ring<Desc>,
    completion: Ring<u64>,
}

impl RingPort {
    /// So many ports, which share `frames` frames. Their memory is never freed.
    pub fn share(ports: usize, frames: usize) -> Vec<Self> {
        let memory = Box::leak(vec![0u8; frames * FRAME].into_boxed_slice());
        let area = Rc::new(RefCell::new(Area {
            base: NonNull::from(memory).cast(),
            free: (0..frames).map(|n| (n * FRAME) as u64).collect(),
        }));
        let port = |_| Self {
            area: area.clone(),
            fill: Ring::new(),
            rx: Ring::new(),
            tx: Ring::new(),
            completion: Ring::new(),
        };
        (0..ports).map(port).collect()
    }

    /// The kernel's part: a packet arrives, which `write` writes into a frame from the fill ring; it returns the length.
    /// Panics where there is no frame.
    pub fn arrive(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        assert!(self.fill.waiting() > 0, "no frame to receive into");
        let chunk = self.fill.pop() as usize / FRAME * FRAME;
        // SAFETY: the frame was in the fill ring, so that no token is there for it.
        let frame = unsafe {
            let start = self.area.borrow().base.add(chunk + HEADROOM);
            std::slice::from_raw_parts_mut(start.as_ptr(), FRAME - HEADROOM)
        };
        let len = write(frame).min(FRAME - HEADROOM);
        self.rx.push(Desc {
            address: (chunk + HEADROOM) as u64,
            len: len as u32,
            options: 0,
        });
    }

    /// The kernel's part: all that waits in the transmit ring is sent. Returns how many packets.
    pub fn send(&mut self) -> usize {
        let n = self.tx.waiting().min(self.completion.room());
        for _ in 0..n {
            self.completion.push(self.tx.pop().address);
        }
        n
    }
}

impl Port for RingPort {
    type Buf = Frame;

    fn service(&mut self) -> io::Result<()> {
        let area = &mut *self.area.borrow_mut();
        for _ in 0..self.completion.waiting() {
            area.free.push(self.completion.pop());
        }
        for _ in 0..self.fill.room() {
            let Some(address) = area.free.pop() else {
                break;
            };
            self.fill.push(address);
        }
        Ok(())
    }

    fn rx_burst(&mut self, burst: &mut Vec<Frame>, max: usize) -> usize {
        let n = self.rx.waiting().min(max).min(BATCH);
        let area = self.area.borrow();
        for _ in 0..n {
            burst.push(area.claim(self.rx.pop()));
        }
        n
    }

    fn tx_burst(&mut self, burst: &mut Vec<Frame>) -> usize {
        let n = self.tx.room().min(burst.len());
        let area = self.area.borrow();
        for frame in burst.drain(..n) {
            self.tx.push(area.describe(frame));
        }
        n
    }

    fn recycle(&mut self, burst: &mut Vec<Frame>) {
        let area = &mut *self.area.borrow_mut();
        for frame in burst.drain(..) {
            area.put(frame);
        }
    }

    fn take(&mut self, _len: usize) -> Option<Frame> {
        let area = &mut *self.area.borrow_mut();
        let chunk = area.free.pop()? / FRAME as u64 * FRAME as u64;
        let mut frame = area.claim(Desc {
            address: chunk,
            len: FRAME as u32,
            options: 0,
        });
        frame.trim_front(FRAME).ok()?;
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_round() {
        let mut ports = RingPort::share(2, 8);
        let mut burst = Vec::new();
        for round in 0..20 {
            ports[0].service().unwrap();
            for n in 0..5 {
                ports[0].arrive(|frame| {
                    frame[..2].copy_from_slice(&[round, n]);
                    2
                });
            }
            assert_eq!(ports[0].rx_burst(&mut burst, 4), 4);
            assert_eq!(ports[0].rx_burst(&mut burst, 4), 1);
            for (frame, n) in burst.iter_mut().zip(0..) {
                assert_eq!(
                    (frame.data(), frame.headroom()),
                    (&[round, n][..], HEADROOM)
                );
                frame.prepend(4).unwrap();
            }
            assert_eq!(ports[1].tx_burst(&mut burst), 5);
            assert_eq!(ports[1].send(), 5);
            ports[1].service().unwrap();
            let mut back = std::mem::take(&mut ports[1].area.borrow_mut().free);
            ports[0].area.borrow_mut().free.append(&mut back);
            while ports[1].fill.waiting() > 0 {
                let address = ports[1].fill.pop();
                ports[0].area.borrow_mut().free.push(address);
            }
            let taken = ports[0].take(0).unwrap();
            assert_eq!((taken.data().len(), taken.headroom()), (0, FRAME));
            burst.push(taken);
            ports[0].recycle(&mut burst);
        }
    }
}
