//! What the answers of the call that wakes the transmitter mean.

use std::io;

use rustix::io::Errno;

/// How often the transmitter was woken, and what it answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KickCounters {
    /// Calls made.
    pub kicks: u64,
    /// EAGAIN: the call's budget, the socket's send buffer, or the device's queue was full.
    pub again: u64,
    /// EBUSY: the device dropped a packet.
    pub busy: u64,
    /// ENOBUFS, ENOMEM: the kernel had no memory for a packet.
    pub no_buffers: u64,
    /// Empty packets, which the kernel would not complete: recycled, not sent.
    pub empty: u64,
}

/// What to do after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kick {
    /// Progress is certain, even where the ring does not show it yet.
    Moved,
    /// Worth another call if the ring shows progress.
    Again,
    /// Nothing will move before something else changes.
    Stop,
}

/// The most calls to make in a row for a ring of `ring_size` packets: twice what 32 packets a call need.
pub(super) fn bound(ring_size: usize) -> usize {
    2 * ring_size.div_ceil(32)
}

/// Whether an errno says that the link is down or the device gone.
pub(super) fn is_link_event(errno: Errno) -> bool {
    matches!(errno, Errno::NETDOWN | Errno::NXIO | Errno::NODEV)
}

/// Counts an answer and says how to go on; an error is a link event, or one that nobody foresaw.
pub(super) fn judge(answer: Result<(), Errno>, counters: &mut KickCounters) -> io::Result<Kick> {
    match answer {
        Ok(()) => Ok(Kick::Again),
        Err(Errno::INTR) => Ok(Kick::Moved),
        Err(Errno::AGAIN) => {
            counters.again += 1;
            Ok(Kick::Again)
        }
        Err(Errno::BUSY) => {
            // The dropped packet is done with, but the kernel does not publish that before the next one is.
            counters.busy += 1;
            Ok(Kick::Moved)
        }
        Err(Errno::NOBUFS | Errno::NOMEM) => {
            counters.no_buffers += 1;
            Ok(Kick::Stop)
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn congestion_is_counted_and_only_the_link_is_an_error() {
        let mut counters = KickCounters::default();
        let mut judge = |errno| judge(Err(errno), &mut counters).ok();
        assert_eq!(judge(Errno::AGAIN), Some(Kick::Again));
        assert_eq!(judge(Errno::BUSY), Some(Kick::Moved));
        assert_eq!(judge(Errno::NOBUFS), Some(Kick::Stop));
        assert_eq!(judge(Errno::NETDOWN), None);
        assert_eq!(judge(Errno::NXIO), None);
        assert_eq!(
            (counters.again, counters.busy, counters.no_buffers),
            (1, 1, 1)
        );
    }

    #[test]
    fn a_full_ring_drains_within_the_bound_at_32_packets_a_call() {
        for ring in [64, 2048, 4096] {
            assert!(bound(ring) * 32 >= ring);
        }
    }
}
