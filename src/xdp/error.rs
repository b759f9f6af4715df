//! Why steering could not be changed.

use std::io;

use super::attach;

pub(super) type Result<T> = std::result::Result<T, SteerError>;

/// Why steering could not be changed. What was in force before still is, except where
/// [`apply`](super::Steer::apply) stopped half-way: the next one goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    #[error(
        "cannot load the steering program: {0:#} (it needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and a kernel with BTF)"
    )]
    Load(#[source] libbpf_rs::Error),
    #[error(
        "another XDP program (id {program}) is attached to {device}: see `bpftool prog show id {program}`, and detach it or use xdp = \"off\""
    )]
    Busy { device: String, program: u32 },
    #[error("cannot attach the steering program to {device} ({mode} XDP): {source}{hint}")]
    Attach {
        device: String,
        mode: &'static str,
        hint: &'static str,
        source: io::Error,
    },
    #[error("device {ifindex} is already attached")]
    AlreadyAttached { ifindex: u32 },
    #[error("device {ifindex} is not attached")]
    NotAttached { ifindex: u32 },
    #[error(
        "no room for the {wanted} receive queues of {device} (all devices together have {limit})"
    )]
    NoSlots {
        device: String,
        wanted: u32,
        limit: u32,
    },
    #[error("device {ifindex} has {queues} receive queues, there is no queue {queue}")]
    NoQueue {
        ifindex: u32,
        queue: u32,
        queues: u32,
    },
    #[error("{wanted} {what} are more than the {limit} that the steering program can hold")]
    TooMany {
        what: &'static str,
        wanted: usize,
        limit: u32,
    },
    #[error("cannot {what}: {source}")]
    Map {
        what: &'static str,
        source: libbpf_rs::Error,
    },
    #[error("cannot {what}: {source}")]
    System {
        what: &'static str,
        source: io::Error,
    },
}

impl SteerError {
    /// What the kernel's refusal to attach most likely means.
    pub(super) fn attaching(
        source: io::Error,
        ifindex: u32,
        name: &str,
        generic: bool,
    ) -> SteerError {
        let device = name.to_owned();
        if source.raw_os_error() == Some(libc::EBUSY) {
            // One of ours is another router on this device: name it as well.
            let programs = attach::programs(ifindex).ok();
            let program = programs.and_then(|mut ids| ids.next()).unwrap_or(0);
            return SteerError::Busy { device, program };
        }
        let hint = match source.raw_os_error() {
            Some(libc::EINVAL) => ": the device may be gone, or its driver refuses this MTU",
            _ if generic => "",
            Some(libc::EOPNOTSUPP) => ": the driver has no native XDP, or not with this MTU",
            Some(libc::ENOSPC) => {
                ": a veth needs as many receive queues as its peer has transmit queues (`ethtool -L PEER tx 1`)"
            }
            Some(libc::ERANGE) => ": its MTU, or a veth's peer's, is too large for native XDP",
            _ => "",
        };
        let mode = if generic { "generic" } else { "native" };
        SteerError::Attach {
            device,
            mode,
            hint,
            source,
        }
    }
}
