//! Opening one worker's ports: the frames, the sockets, and the mode that all of them get.

use std::{
    cell::RefCell,
    error::Error,
    ffi::{CStr, CString},
    io,
    os::fd::AsRawFd,
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use xsk_rs::{
    Socket,
    config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig},
    socket::SocketCreateError,
};

use super::{
    attach,
    port::{Rings, XskPort},
    umem::{self, LARGEST_MTU, Layout, Memory, Pool, SINGLE_BUFFER_MTU, Shared},
};

/// A device queue to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// The device's name.
    pub device: String,
    /// The receive and transmit queue's number.
    pub queue: u32,
    /// The device's MTU in bytes.
    pub mtu: u32,
}

/// Which mode to ask for. Whether the XDP program is attached natively or generically is decided elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Zero-copy where every port has it, else copy.
    Auto,
    /// Zero-copy or nothing.
    ZeroCopy,
    /// Copy.
    Copy,
}

/// The mode of a worker's ports. They all have the same one: sockets that share a UMEM inherit the first one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The device reads and writes the frames itself.
    ZeroCopy,
    /// The kernel copies between the device's buffers and the frames.
    Copy,
}

impl Mode {
    /// The word that stands in configuration and statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::ZeroCopy => "zero-copy",
            Mode::Copy => "copy",
        }
    }
}

/// How large the rings are.
#[derive(Debug, Clone, Copy)]
pub struct RingOptions {
    /// Entries of each of a port's four rings: a power of two, at least 64.
    pub ring_size: u32,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { ring_size: 2048 }
    }
}

impl RingOptions {
    /// Frames that the worker may hold for each port, beyond those that the rings account for.
    const IN_HAND: u32 = 4 * 64;

    /// Enough frames for every fill ring, every RX ring and every TX ring with its completions to be full while
    /// the worker has its hands full.
    fn frames(self, ports: usize) -> u32 {
        ports as u32 * (3 * self.ring_size + Self::IN_HAND)
    }

    /// Enough runs for every TX ring to be full of them while the worker has its hands full.
    fn runs(self, ports: usize, layout: Layout) -> u32 {
        match layout.in_pieces() {
            true => ports as u32 * (self.ring_size / layout.run + Self::IN_HAND / 4) + 64,
            false => 0,
        }
    }
}

/// Bytes that one worker locks for its packets, with a port on each device of these MTUs; none where one of them does
/// not work.
pub fn locked_bytes(mtus: &[u32]) -> Option<u64> {
    let layout = Layout::of(mtus.iter().copied()).ok()?;
    let rings = RingOptions::default();
    let frames = rings.frames(mtus.len()) + rings.runs(mtus.len(), layout) * layout.run;
    Some(u64::from(frames) * u64::from(layout.frame_size))
}

/// Why ports could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error(
        "{device}: MTU {mtu} is more than AF_XDP carries; {largest} is the largest that works: `ip link set {device} mtu {largest}`"
    )]
    MtuTooLarge {
        device: String,
        mtu: u32,
        largest: u32,
    },
    #[error("ring size {0} will not do: a power of two, at least 64, is needed")]
    RingSize(u32),
    #[error(
        "this version of xsk-rs keeps packet addresses where they cannot be set: build with the version that Cargo.lock names"
    )]
    AddressHidden,
    #[error("cannot set up {frames} frames of {frame_size} bytes: {reason}")]
    Memory {
        frames: u32,
        frame_size: u32,
        reason: String,
    },
    #[error("{device} queue {queue}: no busy polling: {option}: {source}{hint}")]
    BusyPoll {
        device: String,
        queue: u32,
        option: &'static str,
        source: io::Error,
        hint: &'static str,
    },
    #[error("{device} queue {queue}: no AF_XDP socket in {mode} mode: {source}{hint}", mode = .mode.as_str())]
    Bind {
        device: String,
        queue: u32,
        mode: Mode,
        source: io::Error,
        hint: String,
    },
}

/// One worker's ports and memory, fresh: nothing has been received, and every frame is free or with the kernel.
///
/// It is opened where the configuration is and moves whole into the worker's thread, where
/// [`into_parts`](Self::into_parts) takes it apart; the parts stay there.
pub struct PortSet {
    pub(super) ports: Vec<XskPort>,
    memory: Memory,
}

// SAFETY: ports and memory share frames and counters without locks, so they must not part while they can still
// change threads. A set owns every one of the shared references, lends neither them nor a frame, and cannot be
// made again from its parts.
unsafe impl Send for PortSet {}

impl PortSet {
    /// The ports, in the order of their specifications.
    pub fn ports(&self) -> &[XskPort] {
        &self.ports
    }

    /// Whether the frames are in huge pages.
    pub fn in_huge_pages(&self) -> bool {
        self.memory.in_huge_pages()
    }

    /// Takes the set apart, in the thread that will work with it.
    pub fn into_parts(self) -> (Vec<XskPort>, Memory) {
        umem::adopt(&self.memory.0);
        (self.ports, self.memory)
    }
}

/// Opens all ports of one worker on one UMEM, in one mode, and hands the kernel frames to receive into. No
/// packet arrives before the XDP program and the XSKMAP lead it here.
///
/// A queue that is still being released by a predecessor is waited for, for a second at most.
pub fn open_ports(
    specs: &[PortSpec],
    want: Want,
    options: RingOptions,
) -> Result<PortSet, PortError> {
    let ring_size = options.ring_size;
    if !ring_size.is_power_of_two() || ring_size < 64 {
        return Err(PortError::RingSize(ring_size));
    }
    let first = match want {
        Want::Auto | Want::ZeroCopy => Mode::ZeroCopy,
        Want::Copy => Mode::Copy,
    };
    match open_patiently(specs, first, options) {
        Err(refused @ PortError::Bind { .. }) if want == Want::Auto => {
            let why: Arc<str> = refused.to_string().into();
            let mut set = open_patiently(specs, Mode::Copy, options)?;
            for port in &mut set.ports {
                port.why_not_zero_copy = Some(Arc::clone(&why));
            }
            Ok(set)
        }
        other => other,
    }
}

/// The kernel releases a queue some time after its socket was closed, and answers EBUSY until then.
const RELEASE_TRIES: u32 = 20;
const RELEASE_PAUSE: Duration = Duration::from_millis(50);

fn open_patiently(
    specs: &[PortSpec],
    mode: Mode,
    options: RingOptions,
) -> Result<PortSet, PortError> {
    let mut tries = 1;
    loop {
        match open_in_mode(specs, mode, options) {
            Err(PortError::Bind { source, .. })
                if source.raw_os_error() == Some(libc::EBUSY) && tries < RELEASE_TRIES =>
            {
                tries += 1;
                thread::sleep(RELEASE_PAUSE);
            }
            other => return other,
        }
    }
}

/// One attempt, from nothing: after a failed bind neither the UMEM nor its first socket can be trusted.
fn open_in_mode(
    specs: &[PortSpec],
    mode: Mode,
    options: RingOptions,
) -> Result<PortSet, PortError> {
    let layout = Layout::of(specs.iter().map(|spec| spec.mtu));
    let layout = layout.map_err(|at| PortError::MtuTooLarge {
        device: specs[at].device.clone(),
        mtu: specs[at].mtu,
        largest: LARGEST_MTU,
    })?;
    let counts = (
        options.frames(specs.len()),
        options.runs(specs.len(), layout),
    );
    let pool = Pool::new(counts, layout, options.ring_size)?;
    let pool = Rc::new(RefCell::new(pool));
    let mut ports = Vec::with_capacity(specs.len());
    for spec in specs {
        let mut port = bind(spec, (mode, layout), options.ring_size, &pool)?;
        port.replenish();
        ports.push(port);
    }
    Ok(PortSet {
        ports,
        memory: Memory(pool),
    })
}

fn bind(
    spec: &PortSpec,
    (mode, layout): (Mode, Layout),
    ring_size: u32,
    pool: &Shared,
) -> Result<XskPort, PortError> {
    let refused = |source: io::Error| PortError::Bind {
        device: spec.device.clone(),
        queue: spec.queue,
        mode,
        hint: hint(&source, layout),
        source,
    };
    let name = CString::new(spec.device.as_str())
        .map_err(|_| refused(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let entries = QueueSize::new(ring_size).map_err(|_| PortError::RingSize(ring_size))?;
    let flag = match mode {
        Mode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
        Mode::Copy => BindFlags::XDP_COPY,
    };
    let pieces = match layout.in_pieces() {
        true => BindFlags::XDP_USE_SG,
        false => BindFlags::empty(),
    };
    let config = SocketConfig::builder()
        .rx_queue_size(entries)
        .tx_queue_size(entries)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(flag | pieces | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    if mode == Mode::ZeroCopy && layout.in_pieces() {
        // The kernel refuses one that takes a single frame; one that takes too few would drop silently.
        let most = attach::zero_copy_pieces(index_of(&name));
        if (1..=layout.run).contains(&most) {
            return Err(refused(io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
        }
    }
    let umem = pool.borrow().umem().clone();
    // SAFETY: no program is loaded by the library (INHIBIT_PROG_LOAD), which is what this call demands. All
    // frames belong to the free list.
    let bound = unsafe { Socket::new(config, &umem, &Interface::new(name), spec.queue) };
    let (tx, rx, rings) = bound.map_err(|e| refused(os_error(&e)))?;
    // A queue that was named twice has no rings of its own.
    let (fill, completion) =
        rings.ok_or_else(|| refused(io::Error::from_raw_os_error(libc::EBUSY)))?;
    let rings = Rings {
        tx,
        rx,
        fill,
        completion,
    };
    let got = mode_of(&rings).map_err(refused)?;
    raise_send_budget(&rings, ring_size);
    let mut port = XskPort::new(rings, spec.clone(), got, ring_size, pool);
    port.in_pieces = layout.in_pieces();
    Ok(port)
}

/// A device's index in this network namespace; 0 where there is none.
fn index_of(device: &CStr) -> u32 {
    // SAFETY: the name ends with a zero byte, and is only read. No frame is touched.
    unsafe { libc::if_nametoindex(device.as_ptr()) }
}

/// Asks the socket which mode it got.
fn mode_of(rings: &Rings) -> io::Result<Mode> {
    let mut options = libc::xdp_options { flags: 0 };
    let mut len = size_of::<libc::xdp_options>() as libc::socklen_t;
    // SAFETY: the socket is open, and the kernel writes at most `len` bytes into `options`. No frame is touched.
    let answer = unsafe {
        libc::getsockopt(
            rings.rx.fd().as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_OPTIONS,
            (&raw mut options).cast(),
            &raw mut len,
        )
    };
    match answer {
        0 if options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0 => Ok(Mode::ZeroCopy),
        0 => Ok(Mode::Copy),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17): how many packets one call sends in copy mode, instead of 32.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Lets one call send a whole ring where the kernel can; older ones refuse the option and are called more often.
fn raise_send_budget(rings: &Rings, ring_size: u32) {
    // SAFETY: the socket is open, and the kernel reads four bytes of `ring_size`. No frame is touched.
    let _ = unsafe {
        libc::setsockopt(
            rings.tx.fd().as_raw_fd(),
            libc::SOL_XDP,
            XDP_MAX_TX_SKB_BUDGET,
            (&raw const ring_size).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
}

/// What to do about a refused bind.
fn hint(source: &io::Error, layout: Layout) -> String {
    let hint = match source.raw_os_error() {
        Some(libc::EINVAL) if layout.in_pieces() => {
            return format!(
                "; is there such a queue (`ethtool -l`)? An MTU above {SINGLE_BUFFER_MTU} needs Linux 6.6"
            );
        }
        Some(libc::EBUSY) => "; another AF_XDP socket holds this queue (`ss --xdp -p` names it)",
        Some(libc::EINVAL) => "; is there such a queue (`ethtool -l`), and does the MTU fit?",
        Some(libc::EOPNOTSUPP) => "; the driver does not offer it",
        Some(libc::EPERM) => "; CAP_NET_RAW and CAP_NET_ADMIN are needed",
        Some(libc::ENOBUFS) => "; raise the memlock limit or grant CAP_IPC_LOCK",
        _ => "",
    };
    hint.into()
}

/// The operating system's error behind one of xsk-rs's.
fn os_error(error: &SocketCreateError) -> io::Error {
    let errno = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error);
    match errno {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error.to_string()),
    }
}
