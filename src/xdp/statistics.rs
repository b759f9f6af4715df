//! The kernel's counters for an AF_XDP socket, for whoever holds its descriptor.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::XskStatistics;

impl XskStatistics {
    /// Asks the kernel (`getsockopt(SOL_XDP, XDP_STATISTICS)`). One system call.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a struct of integers, for which all bytes zero is a value.
        let mut raw: libc::xdp_statistics = unsafe { mem::zeroed() };
        let mut len = mem::size_of_val(&raw) as libc::socklen_t;
        // SAFETY: the descriptor is borrowed and so open; the kernel writes at most `len` bytes into `raw`, which this
        // function owns. No frame is involved.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_XDP,
                libc::XDP_STATISTICS,
                (&raw mut raw).cast(),
                &mut len,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            rx_dropped: raw.rx_dropped,
            rx_invalid_descs: raw.rx_invalid_descs,
            tx_invalid_descs: raw.tx_invalid_descs,
            rx_ring_full: raw.rx_ring_full,
            rx_fill_ring_empty_descs: raw.rx_fill_ring_empty_descs,
            tx_ring_empty_descs: raw.tx_ring_empty_descs,
        })
    }
}
