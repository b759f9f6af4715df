//! The packet buffer: bytes with room in front of them.

/// There is not enough room for the operation; the buffer is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

/// A packet with room in front of it. Every operation leaves it unchanged on failure.
pub trait PacketBuf {
    /// The packet's bytes.
    fn data(&self) -> &[u8];

    /// The packet's bytes, to be changed in place.
    fn data_mut(&mut self) -> &mut [u8];

    /// How many bytes [`prepend`](Self::prepend) can still add.
    fn headroom(&self) -> usize;

    /// Grows the packet by `n` bytes at the front and returns all of it. The new bytes hold whatever
    /// was there before: the caller writes every one of them.
    fn prepend(&mut self, n: usize) -> Result<&mut [u8], NoRoom>;

    /// Takes `n` bytes off the front; they become headroom.
    fn trim_front(&mut self, n: usize) -> Result<(), NoRoom>;

    /// Cuts the packet to its first `len` bytes.
    fn truncate(&mut self, len: usize) -> Result<(), NoRoom>;
}

/// A packet buffer on the heap, for the slow path and for tests.
#[derive(Debug, Clone)]
pub struct VecBuf {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl VecBuf {
    /// A buffer of `headroom + capacity` bytes that holds an empty packet.
    pub fn with_capacity(headroom: usize, capacity: usize) -> Self {
        Self {
            bytes: vec![0; headroom + capacity],
            start: headroom,
            end: headroom,
        }
    }

    /// A buffer that holds `packet` behind `headroom` bytes.
    pub fn new(headroom: usize, packet: &[u8]) -> Self {
        let mut bytes = vec![0; headroom + packet.len()];
        bytes[headroom..].copy_from_slice(packet);
        let end = bytes.len();
        Self {
            bytes,
            start: headroom,
            end,
        }
    }

    /// Empties the buffer and lets `fill` write a new packet behind `headroom` bytes; `fill` returns
    /// how many bytes it wrote. For reading from a file descriptor without a new allocation.
    pub fn refill<E>(
        &mut self,
        headroom: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let headroom = headroom.min(self.bytes.len());
        self.start = headroom;
        self.end = headroom;
        let room = &mut self.bytes[headroom..];
        let most = room.len();
        let written = fill(room)?.min(most);
        self.end = headroom + written;
        Ok(written)
    }
}

impl PacketBuf for VecBuf {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepend_uses_headroom_and_fails_without_change() {
        let mut buf = VecBuf::new(4, b"abc");
        assert_eq!(buf.prepend(5).err(), Some(NoRoom));
        assert_eq!(buf.data(), b"abc");
        buf.prepend(4).unwrap()[..4].copy_from_slice(b"wxyz");
        assert_eq!((buf.data(), buf.headroom()), (&b"wxyzabc"[..], 0));
    }

    #[test]
    fn trim_and_truncate_refuse_more_than_there_is() {
        let mut buf = VecBuf::new(0, b"abcdef");
        assert_eq!(buf.trim_front(7), Err(NoRoom));
        assert_eq!(buf.truncate(7), Err(NoRoom));
        buf.trim_front(2).unwrap();
        buf.truncate(3).unwrap();
        assert_eq!((buf.data(), buf.headroom()), (&b"cde"[..], 2));
    }

    #[test]
    fn refill_replaces_the_packet() {
        let mut buf = VecBuf::with_capacity(8, 8);
        let n: Result<usize, ()> = buf.refill(8, |room| {
            room[..2].copy_from_slice(b"hi");
            Ok(2)
        });
        assert_eq!((n, buf.data(), buf.headroom()), (Ok(2), &b"hi"[..], 8));
    }
}
