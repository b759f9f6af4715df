//! The few BPF system calls that libbpf-rs does not wrap.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use libbpf_rs::libbpf_sys as sys;

/// All our programs' names begin so; nobody else's do.
pub(super) const PROGRAM_NAMES: &str = "greyhound_";

/// A program's hold on a device. Dropping it detaches the program; so does the death of the process, unless another one
/// has the descriptor too.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
    /// Another process goes on with it.
    left: bool,
}

impl Link {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Leaves the device to the process that has the descriptor too.
    pub fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if !self.left {
            // Closing would do, were it not for a child process between fork and exec, which still holds a copy.
            // SAFETY: takes the number of a descriptor that we own until after this call.
            let _ = unsafe { sys::bpf_link_detach(self.fd.as_raw_fd()) };
        }
    }
}

/// Puts a program in the place of the one that another process has attached by this link: at no moment is there none.
pub(super) fn relink(fd: OwnedFd, program: BorrowedFd) -> io::Result<Link> {
    // SAFETY: takes the numbers of two descriptors that are open during the call; no options.
    let updated =
        unsafe { sys::bpf_link_update(fd.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) };
    check(updated)?;
    Ok(Link { fd, left: false })
}

/// Attaches an XDP program to a device, natively or generic.
pub(super) fn link(program: BorrowedFd, ifindex: u32, generic: bool) -> io::Result<Link> {
    let options = sys::bpf_link_create_opts {
        sz: mem::size_of::<sys::bpf_link_create_opts>() as sys::size_t,
        flags: match generic {
            true => sys::XDP_FLAGS_SKB_MODE,
            false => sys::XDP_FLAGS_DRV_MODE,
        },
        ..Default::default()
    };
    // SAFETY: `options` outlives the call, which only reads it, and states its own size. No frame is involved.
    let fd = unsafe {
        sys::bpf_link_create(program.as_raw_fd(), ifindex as i32, sys::BPF_XDP, &options)
    };
    let fd = check(fd)?;
    // SAFETY: the kernel has just opened this descriptor for us and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(Link { fd, left: false })
}

/// Attaches a tc program to the way out of a device, behind others that are there (Linux 6.6).
pub(super) fn link_egress(program: BorrowedFd, ifindex: u32) -> io::Result<Link> {
    let options = sys::bpf_link_create_opts {
        sz: mem::size_of::<sys::bpf_link_create_opts>() as sys::size_t,
        ..Default::default()
    };
    let kind = sys::BPF_TCX_EGRESS;
    // SAFETY: `options` outlives the call, which only reads it, and states its own size. No frame is involved.
    let fd = unsafe { sys::bpf_link_create(program.as_raw_fd(), ifindex as i32, kind, &options) };
    let fd = check(fd)?;
    // SAFETY: the kernel has just opened this descriptor for us and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(Link { fd, left: false })
}

/// The id of an XDP program on this device that is not one of ours.
pub(super) fn foreign_program(ifindex: u32) -> io::Result<Option<u32>> {
    for id in programs(ifindex)? {
        if !is_ours(id)? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// The ids of the XDP programs on this device, in whatever mode they are attached.
pub(super) fn programs(ifindex: u32) -> io::Result<impl Iterator<Item = u32>> {
    let query = query(ifindex)?;
    let attached = [
        query.prog_id,
        query.drv_prog_id,
        query.skb_prog_id,
        query.hw_prog_id,
    ];
    Ok(attached.into_iter().filter(|id| *id != 0))
}

/// Frames in several buffers reach an XDP program (linux/netdev.h).
const NETDEV_XDP_ACT_RX_SG: u64 = 1 << 5;

/// Whether a device's driver gives an XDP program frames that take several buffers; none where the kernel does not say
/// (before Linux 6.3), or the driver offers XDP nothing.
pub fn takes_pieces(ifindex: u32) -> Option<bool> {
    let features = query(ifindex).ok()?.feature_flags;
    (features != 0).then_some(features & NETDEV_XDP_ACT_RX_SG != 0)
}

/// Frames that the driver takes and gives for one packet in zero-copy mode; 0 where the kernel does not say.
pub(super) fn zero_copy_pieces(ifindex: u32) -> u32 {
    query(ifindex).map_or(0, |answer| answer.xdp_zc_max_segs)
}

/// What the kernel says of XDP on a device.
fn query(ifindex: u32) -> io::Result<sys::bpf_xdp_query_opts> {
    let mut query = sys::bpf_xdp_query_opts {
        sz: mem::size_of::<sys::bpf_xdp_query_opts>() as sys::size_t,
        ..Default::default()
    };
    // SAFETY: `query` outlives the call and states its own size.
    check(unsafe { sys::bpf_xdp_query(ifindex as i32, 0, &mut query) })?;
    Ok(query)
}

fn is_ours(id: u32) -> io::Result<bool> {
    // SAFETY: takes a number and returns a descriptor or an error.
    let fd = match check(unsafe { sys::bpf_prog_get_fd_by_id(id) }) {
        // Detached since the query.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        fd => fd?,
    };
    // SAFETY: the kernel has just opened this descriptor for us and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = sys::bpf_prog_info::default();
    let mut length = mem::size_of_val(&info) as u32;
    // SAFETY: `info` is zeroed (so it asks for no further buffers), outlives the call, and `length` is its size.
    check(unsafe { sys::bpf_prog_get_info_by_fd(fd.as_raw_fd(), &mut info, &mut length) })?;
    let name: Vec<u8> = info.name.iter().map(|c| *c as u8).collect();
    Ok(name.starts_with(PROGRAM_NAMES.as_bytes()))
}

/// Makes the qdisc that tc programs of a device are attached to. False where there is one already.
pub(super) fn make_clsact(ifindex: u32) -> io::Result<bool> {
    let mut hook = sys::bpf_tc_hook {
        sz: mem::size_of::<sys::bpf_tc_hook>() as sys::size_t,
        ifindex: ifindex as i32,
        attach_point: sys::BPF_TC_INGRESS,
        ..Default::default()
    };
    // SAFETY: `hook` outlives the call, which only reads it, and states its own size.
    match check(unsafe { sys::bpf_tc_hook_create(&mut hook) }) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|_| true),
    }
}

/// Runs an XDP program over a frame (at least 14 bytes) and returns its verdict.
pub(super) fn run(program: BorrowedFd, frame: &[u8]) -> io::Result<u32> {
    let mut options = sys::bpf_test_run_opts {
        sz: mem::size_of::<sys::bpf_test_run_opts>() as sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        ..Default::default()
    };
    // SAFETY: `frame` and `options` outlive the call; the kernel copies the frame and returns no bytes.
    check(unsafe { sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) })?;
    Ok(options.retval)
}

/// Puts a BPF filter on a socket.
pub(super) fn filter(socket: BorrowedFd, program: BorrowedFd) -> io::Result<()> {
    let fd = program.as_raw_fd();
    // SAFETY: the option's value is one int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_BPF,
            (&raw const fd).cast(),
            mem::size_of_val(&fd) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a socket is of the IPv6 family.
pub(super) fn is_ipv6(socket: BorrowedFd) -> io::Result<bool> {
    let mut domain: libc::c_int = 0;
    let mut length = mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option's value is one int, which like its length outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut domain).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(domain == libc::AF_INET6),
        _ => Err(io::Error::last_os_error()),
    }
}

/// libbpf returns a negative errno.
fn check(result: i32) -> io::Result<i32> {
    match result {
        0.. => Ok(result),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
