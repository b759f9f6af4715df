//! A port in memory: what the tests, the fuzzer and the benchmarks put in place of a device.

use std::{cell::RefCell, collections::VecDeque, io, rc::Rc};

use super::Port;
use crate::packet::{NoRoom, PacketBuf};

/// Bytes of a frame.
pub const FRAME_LEN: usize = 2048;
/// Where received packets begin in their frame.
pub const HEADROOM: usize = 256;

/// A frame of a [`Pool`]. It is not cloneable: there is one token per frame.
#[derive(Debug)]
pub struct MemoryBuf {
    bytes: Box<[u8; FRAME_LEN]>,
    start: usize,
    end: usize,
}

impl PacketBuf for MemoryBuf {
    fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn data_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    fn headroom(&self) -> usize {
        self.start
    }

    fn prepend(&mut self, n: usize) -> Result<&mut [u8], NoRoom> {
        self.start = self.start.checked_sub(n).ok_or(NoRoom)?;
        Ok(&mut self.bytes[self.start..self.end])
    }

    fn trim_front(&mut self, n: usize) -> Result<(), NoRoom> {
        if n > self.end - self.start {
            return Err(NoRoom);
        }
        self.start += n;
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<(), NoRoom> {
        if len > self.end - self.start {
            return Err(NoRoom);
        }
        self.end = self.start + len;
        Ok(())
    }
}

/// The free frames that ports of one worker share.
pub type Pool = Rc<RefCell<Vec<MemoryBuf>>>;

/// A pool of `frames` free frames.
pub fn pool(frames: usize) -> Pool {
    let frame = || MemoryBuf {
        bytes: Box::new([0; FRAME_LEN]),
        start: HEADROOM,
        end: HEADROOM,
    };
    Rc::new(RefCell::new((0..frames).map(|_| frame()).collect()))
}

/// A device queue whose wire is two vectors.
#[derive(Debug)]
pub struct MemoryPort {
    pool: Pool,
    /// Frames that wait to be received.
    pub wire_in: VecDeque<Vec<u8>>,
    /// Frames that were sent and completed.
    pub wire_out: Vec<Vec<u8>>,
    ring: VecDeque<MemoryBuf>,
    /// Places in the transmit ring.
    pub ring_len: usize,
    /// How many frames a call of `service` completes.
    pub completes: usize,
    /// The error that `service` returns, as a device that is down would.
    pub broken: bool,
}

impl MemoryPort {
    pub fn new(pool: &Pool, ring_len: usize) -> Self {
        Self {
            pool: pool.clone(),
            wire_in: VecDeque::new(),
            wire_out: Vec::new(),
            ring: VecDeque::new(),
            ring_len,
            completes: usize::MAX,
            broken: false,
        }
    }

    /// Frames in the transmit ring.
    pub fn in_ring(&self) -> usize {
        self.ring.len()
    }
}

impl Port for MemoryPort {
    type Buf = MemoryBuf;

    fn service(&mut self) -> io::Result<()> {
        let n = self.ring.len().min(self.completes);
        for frame in self.ring.drain(..n) {
            self.wire_out.push(frame.data().to_vec());
            self.pool.borrow_mut().push(frame);
        }
        if self.broken {
            return Err(io::ErrorKind::NetworkDown.into());
        }
        Ok(())
    }

    fn rx_burst(&mut self, burst: &mut Vec<MemoryBuf>, max: usize) -> usize {
        let mut n = 0;
        while n < max && !self.wire_in.is_empty() {
            let Some(mut frame) = self.pool.borrow_mut().pop() else {
                break;
            };
            let Some(bytes) = self.wire_in.pop_front() else {
                break;
            };
            let len = bytes.len().min(FRAME_LEN - HEADROOM);
            (frame.start, frame.end) = (HEADROOM, HEADROOM + len);
            frame.data_mut().copy_from_slice(&bytes[..len]);
            burst.push(frame);
            n += 1;
        }
        n
    }

    fn tx_burst(&mut self, burst: &mut Vec<MemoryBuf>) -> usize {
        let n = burst.len().min(self.ring_len - self.ring.len());
        self.ring.extend(burst.drain(..n));
        n
    }

    fn recycle(&mut self, burst: &mut Vec<MemoryBuf>) {
        self.pool.borrow_mut().append(burst);
    }

    fn take(&mut self, _len: usize) -> Option<MemoryBuf> {
        let mut frame = self.pool.borrow_mut().pop()?;
        (frame.start, frame.end) = (FRAME_LEN, FRAME_LEN);
        Some(frame)
    }
}
