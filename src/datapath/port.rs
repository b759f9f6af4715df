//! What the datapath asks of a device queue.

use std::io;

use crate::packet::PacketBuf;

/// One device queue: receives and sends bursts.
///
/// Buffers are move-only tokens for frames. A frame is in exactly one place at any time: free, in the fill
/// ring, in a burst, in the transmit ring. Ports that share a memory area share its free frames, so that a buffer
/// received on one port can be sent or recycled on another port of the same worker.
pub trait Port {
    type Buf: PacketBuf;

    /// Housekeeping, once per turn: takes completed transmissions back, refills the fill ring, and wakes
    /// the kernel where it asked to be woken. Errors are link events (ENETDOWN, ENXIO …), never fatal to the worker.
    fn service(&mut self) -> io::Result<()>;

    /// Appends at most `max` received packets to `burst` and returns how many. Replacement frames are
    /// taken before packets are consumed.
    fn rx_burst(&mut self, burst: &mut Vec<Self::Buf>, max: usize) -> usize;

    /// Sends from the front of `burst`, in order; what the ring refuses stays in `burst`. Returns how many
    /// were taken.
    fn tx_burst(&mut self, burst: &mut Vec<Self::Buf>) -> usize;

    /// Gives buffers back to the free frames.
    fn recycle(&mut self, burst: &mut Vec<Self::Buf>);

    /// A free frame for a packet of `len` bytes, with an empty packet at its very end, so that `prepend` makes room and
    /// leaves headroom; none when all frames are in use.
    fn take(&mut self, len: usize) -> Option<Self::Buf>;
}
