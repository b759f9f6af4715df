//! A frame of the UMEM, as the worker holds it.

use std::ptr::NonNull;

use crate::packet::{NoRoom, PacketBuf};

use super::umem;

/// The token for one frame: whoever has it owns the frame's memory. It can neither be copied nor made up, so a
/// frame is never in two places, and it stays in the thread that received it.
///
/// Give it back with `Port::recycle` or `Port::tx_burst`. One that is dropped instead finds its own way back
/// to the free frames, slowly: that is for panics and early returns, not for the packet path.
#[derive(Debug)]
pub struct Frame {
    start: NonNull<u8>,
    headroom: u32,
    len: u32,
}

impl Frame {
    /// Makes the token for a frame whose packet of `len` bytes stands at `start`, `headroom` bytes behind the
    /// beginning of the frame.
    ///
    /// # Safety
    ///
    /// The caller owns the frame, hands it over to the token, and keeps no other way to its memory. The frame
    /// reaches from `start - headroom` to at least `start + len`, and stays mapped as long as the token lives.
    #[inline]
    pub(super) unsafe fn new(start: NonNull<u8>, headroom: u32, len: u32) -> Self {
        Self {
            start,
            headroom,
            len,
        }
    }

    /// Where the packet starts.
    #[inline]
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The packet's length in bytes.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Where the frame itself begins. Unlike the packet's start, this is always an address inside the frame:
    /// an empty packet may stand at the very end.
    #[inline]
    pub(super) fn chunk(&self) -> NonNull<u8> {
        // SAFETY: `headroom` is the distance from the beginning of the frame, which this token owns.
        unsafe { self.start.sub(self.headroom as usize) }
    }
}

impl Drop for Frame {
    #[cold]
    fn drop(&mut self) {
        umem::reclaim(self.chunk());
    }
}

impl PacketBuf for Frame {
    #[inline]
    fn data(&self) -> &[u8] {
        // SAFETY: the worker owns the frame while this token lives, the packet lies inside the frame, and
        // the borrow of the token keeps the bytes from being changed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }

    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`; the exclusive borrow of the token makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len as usize) }
    }

    #[inline]
    fn headroom(&self) -> usize {
        self.headroom as usize
    }

    #[inline]
    fn prepend(&mut self, n: usize) -> Result<&mut [u8], NoRoom> {
        if n > self.headroom as usize {
            return Err(NoRoom);
        }
        // SAFETY: the worker owns the frame, and at least `n` bytes of it lie in front of the packet.
        self.start = unsafe { self.start.sub(n) };
        self.headroom -= n as u32;
        self.len += n as u32;
        Ok(self.data_mut())
    }

    #[inline]
    fn trim_front(&mut self, n: usize) -> Result<(), NoRoom> {
        if n > self.len as usize {
            return Err(NoRoom);
        }
        // SAFETY: the worker owns the frame, and the packet is at least `n` bytes long.
        self.start = unsafe { self.start.add(n) };
        self.headroom += n as u32;
        self.len -= n as u32;
        Ok(())
    }

    #[inline]
    fn truncate(&mut self, len: usize) -> Result<(), NoRoom> {
        if len > self.len as usize {
            return Err(NoRoom);
        }
        self.len = len as u32;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token for memory that the test owns and outlives it.
    fn frame(memory: &mut [u8], headroom: usize, len: usize) -> Frame {
        assert!(headroom + len <= memory.len());
        let chunk = NonNull::from(memory).cast::<u8>();
        // SAFETY: the test owns `memory`, does not touch it while the token lives, and the bounds were checked.
        unsafe { Frame::new(chunk.add(headroom), headroom as u32, len as u32) }
    }

    #[test]
    fn a_header_is_pushed_and_pulled_in_place() {
        let mut memory = *b"........payload.";
        let mut f = frame(&mut memory, 8, 7);
        f.prepend(3).unwrap()[..3].copy_from_slice(b"abc");
        assert_eq!((f.data(), f.headroom()), (&b"abcpayload"[..], 5));
        f.trim_front(5).unwrap();
        assert_eq!((f.data(), f.headroom()), (&b"yload"[..], 10));
        f.truncate(2).unwrap();
        assert_eq!(f.data(), b"yl");
        assert_eq!(f.chunk().as_ptr().cast_const(), memory.as_ptr());
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut memory = [7u8; 16];
        let mut f = frame(&mut memory, 4, 8);
        assert_eq!(f.prepend(5).err(), Some(NoRoom));
        assert_eq!(f.trim_front(9), Err(NoRoom));
        assert_eq!(f.truncate(9), Err(NoRoom));
        assert_eq!((f.data(), f.headroom()), (&[7u8; 8][..], 4));
    }

    #[test]
    fn a_token_is_as_small_as_a_slice() {
        assert_eq!(size_of::<Frame>(), size_of::<&[u8]>());
    }
}
