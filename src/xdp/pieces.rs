//! Packets in several frames each (`XDP_USE_SG`): put together when they come, sent in pieces as they lie.

use xsk_rs::FrameDesc;

use super::{
    frame::Frame,
    port::{BATCH, XskPort},
    umem::Pool,
};

/// A further frame of the same packet follows (linux/if_xdp.h).
const XDP_PKT_CONTD: u32 = 1 << 0;

impl XskPort {
    /// Takes at most `n` frames from the RX ring, and appends the packets that end in them to `burst`. How many these were;
    /// none where no frame could be taken, because there would be no run for a packet in several.
    pub(super) fn receive_pieces(&mut self, burst: &mut Vec<Frame>, n: usize) -> Option<usize> {
        // A packet that needs a run has two frames at least; what has begun may need one.
        let runs = self.pool.borrow().runs.free();
        let n = n.min((2 * runs).saturating_sub(1)).min(BATCH);
        if n == 0 {
            return None;
        }
        // SAFETY: descriptors of this UMEM; their frames were the kernel's and are now the worker's.
        let n = unsafe { self.rings.rx.consume(&mut self.batch[..n]) };
        let mut pool = self.pool.borrow_mut();
        pool.receiving -= n;
        self.receiving -= n;
        pool.lent += n;
        let before = burst.len();
        for desc in &self.batch[..n] {
            if desc.options() == 0 && self.pieces.is_empty() {
                // SAFETY: the frame has just passed from the RX ring to the worker, and the descriptor is overwritten
                // before it is used again.
                burst.push(unsafe { self.area.claim(desc) });
                continue;
            }
            self.pieces.push(*desc);
            if desc.options() & XDP_PKT_CONTD == 0 {
                burst.extend(pool.join(&self.pieces));
                self.pieces.clear();
            }
        }
        Some(burst.len() - before)
    }

    /// Gives as many packets of `burst` to the kernel as `room` frames of the TX ring hold whole. Returns how many.
    pub(super) fn transmit_pieces(&mut self, burst: &mut Vec<Frame>, room: usize) -> usize {
        let room = self.room(BATCH.max(room)).min(BATCH);
        let pool = &mut *self.pool.borrow_mut();
        let (mut packets, mut frames) = (0, 0);
        for frame in burst.iter() {
            let next = frames + pool.frames_of(frame);
            if next > room {
                break;
            }
            (packets, frames) = (packets + 1, next);
        }
        let mut described = 0;
        for frame in burst.drain(..packets) {
            if frame.len() == 0 {
                // The kernel would skip the descriptor, and the frame would never complete.
                frames -= pool.frames_of(&frame);
                pool.put(frame);
                self.counters.empty += 1;
                continue;
            }
            described += pool.describe_pieces(frame, &self.umem, &mut self.batch[described..]);
        }
        // SAFETY: the tokens have just been given up for these descriptors, so the frames become the kernel's. The ring
        // has room for all of them, so that no packet is cut.
        let sent = unsafe { self.rings.tx.produce(&self.batch[..described]) };
        debug_assert_eq!(sent, described, "the ring had room");
        pool.lent -= frames;
        pool.transmitting += frames;
        self.transmitting += frames;
        packets
    }

    /// Takes back the first `n` frames of the batch, which were sent.
    pub(super) fn take_back(&mut self, n: usize) {
        let mut pool = self.pool.borrow_mut();
        let frames: usize = self.batch[..n]
            .iter()
            .map(|desc| pool.come_back(desc))
            .sum();
        pool.transmitting -= frames;
        self.transmitting -= frames;
    }
}

impl Pool {
    /// How many frames a token stands for.
    fn frames_of(&self, frame: &Frame) -> usize {
        match self.runs.of(self.area.offset(frame.chunk())) {
            Some(_) => self.runs.frames,
            None => 1,
        }
    }

    /// Puts a packet together from its pieces, whose frames are the worker's: behind the first one where there is room, else
    /// in a run. What is longer than a run, which steering leaves to the kernel, is cut off there, and its own length gives
    /// it away. None where no run is free.
    fn join(&mut self, pieces: &[FrameDesc]) -> Option<Frame> {
        let (head, rest) = pieces.split_first()?;
        let frame_size = self.area.frame_size;
        let len = |desc: &FrameDesc| desc.lengths().data();
        let total: usize = pieces.iter().map(len).sum();
        let at = head.addr() & (frame_size - 1);
        if at + total <= frame_size {
            self.copy(rest, head.addr() + len(head), total - len(head));
            self.release(rest);
            // SAFETY: the head's frame is the worker's, the packet lies in it, and its descriptor is given up.
            return Some(unsafe { Frame::new(self.area.at(head.addr()), at as u32, total as u32) });
        }
        let Some(run) = self.runs.take() else {
            self.release(pieces);
            return None;
        };
        let total = total.min(self.runs.frames * frame_size - at);
        self.lent += self.runs.frames;
        self.copy(pieces, run + at, total);
        self.release(pieces);
        // SAFETY: the run was free and is now this token's alone; the packet was just written into it.
        Some(unsafe { Frame::new(self.area.at(run + at), at as u32, total as u32) })
    }

    /// Copies the pieces one after another to `to`, `room` bytes at the most.
    fn copy(&self, pieces: &[FrameDesc], mut to: usize, mut room: usize) {
        for desc in pieces {
            let n = desc.lengths().data().min(room);
            // SAFETY: all of these frames are the worker's, and nobody else has a reference into them: each piece lies
            // in its own, the target behind the first piece or in a run that was free, and the caller counted the room.
            unsafe {
                self.area
                    .at(desc.addr())
                    .copy_to_nonoverlapping(self.area.at(to), n)
            };
            (to, room) = (to + n, room - n);
        }
    }

    /// Frames of pieces, which the worker has done with, are free.
    fn release(&mut self, pieces: &[FrameDesc]) {
        self.free.extend_from_slice(pieces);
        self.lent -= pieces.len();
    }

    /// Gives up the token for descriptors, one per frame that the packet lies in, and returns how many. The packet is not
    /// empty.
    fn describe_pieces(
        &mut self,
        frame: Frame,
        umem: &xsk_rs::Umem,
        descs: &mut [FrameDesc],
    ) -> usize {
        let mut at = self.area.offset(frame.start());
        let run = self.runs.of(at);
        let frame_size = self.area.frame_size;
        let (mut left, mut n) = (frame.len() as usize, 0);
        while left > 0 {
            let len = left.min(frame_size - (at & (frame_size - 1)));
            left -= len;
            let desc = &mut descs[n];
            self.area.slot.set(desc, at);
            desc.set_options(if left > 0 { XDP_PKT_CONTD } else { 0 });
            // SAFETY: the token is still here, so the worker owns the frames and nothing else refers to their bytes. The
            // cursor writes the length in the descriptor and leaves the bytes alone.
            unsafe { umem.data_mut(desc) }.cursor().set_pos(len);
            (at, n) = (at + len, n + 1);
        }
        if let Some(run) = run {
            self.runs.depart(run, n);
        }
        std::mem::forget(frame);
        n
    }

    /// Takes back a frame that was sent; how many are free again: all of a run with its last piece.
    fn come_back(&mut self, desc: &FrameDesc) -> usize {
        match self.runs.of(desc.addr()) {
            None => {
                self.free.push(*desc);
                1
            }
            Some(run) if self.runs.arrive(run) => self.runs.frames,
            Some(_) => 0,
        }
    }
}

impl Drop for XskPort {
    /// What has come of a packet whose end never will.
    fn drop(&mut self) {
        self.pool.borrow_mut().release(&self.pieces);
    }
}
