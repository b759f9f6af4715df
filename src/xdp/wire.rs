//! A wire between two devices: what comes in by the one leaves by the other, and the kernel's stack sees none of it.
//!
//! The slow path of a bridged tunnel. A tc program at each end redirects every frame to the other device; the kernel segments
//! what it had merged, sums what was left open and puts VLAN tags back into the frame where a device cannot. Filters outlive
//! the process, which is wanted: frames of a tenant are dropped at the tunnel device without carrier, and not forwarded.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use libbpf_rs::{
    TC_INGRESS, TcHook, TcHookBuilder,
    skel::{OpenSkel, SkelBuilder},
};

use super::{attach, promiscuous::Promiscuous, said::expecting};

/// The generated skeleton of `bpf/wire.bpf.c`.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/wire.skel.rs"));
}
use skeleton::WireSkelBuilder;

/// In front of everybody else's filters, which would see, and could keep, frames of the wire.
const PRIORITY: u32 = 1;
/// "greh": the filter that has this handle is ours. Asking for its program's name would take CAP_SYS_ADMIN.
const HANDLE: u32 = 0x6772_6568;

/// Why there is no wire.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("bridge needs BPF, which cannot be loaded: {0}")]
    Load(io::Error),
    #[error(
        "{device}: bridge needs tc filters on it (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF): {source}"
    )]
    Filter { device: String, source: io::Error },
    #[error(
        "{0}: somebody else's tc filter has priority {PRIORITY}, which bridge needs; see: tc filter show dev {0} ingress pref {PRIORITY}"
    )]
    Taken(String),
    #[error("{device}: cannot be made promiscuous: {source}")]
    Promiscuous { device: String, source: io::Error },
}

/// A device, for the kernel and for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireEnd {
    pub ifindex: u32,
    pub name: String,
}

/// Between an overlay device and a tunnel's. Dropping it leaves the filters where they are, as the death of the process does:
/// only [`remove`](Self::remove) lets the kernel have the frames.
#[derive(Debug)]
pub struct Wire {
    outside: End,
    inside: End,
    /// There was no clsact qdisc on the outside device before.
    made_qdisc: bool,
    /// There was a filter of ours there before.
    adopted: bool,
    _promiscuous: Promiscuous,
}

/// The filter on one of the two devices.
#[derive(Debug)]
struct End {
    device: WireEnd,
    hook: TcHook,
    /// The hook goes by the descriptor's number.
    _program: OwnedFd,
    id: u32,
}

impl Wire {
    /// Connects an overlay device with a tunnel's. What an earlier process has left there is taken over.
    pub fn attach(outside: WireEnd, inside: WireEnd) -> Result<Wire, WireError> {
        let promiscuous = Promiscuous::keep(outside.ifindex);
        let promiscuous = promiscuous.map_err(|source| WireError::Promiscuous {
            device: outside.name.clone(),
            source,
        })?;
        // What comes out of the tunnel must not get into the kernel before anything goes in.
        let (inside, _) = End::attach(inside, outside.ifindex)?;
        let adopted = leftover(outside.ifindex).is_some();
        let (outside, made_qdisc) = End::attach(outside, inside.device.ifindex)?;
        Ok(Wire {
            outside,
            inside,
            made_qdisc: made_qdisc || adopted,
            adopted,
            _promiscuous: promiscuous,
        })
    }

    pub fn outside(&self) -> &WireEnd {
        &self.outside.device
    }

    /// Whether the outside device's clsact qdisc is there for the wire.
    pub fn made_qdisc(&self) -> bool {
        self.made_qdisc
    }

    /// Whether there was a wire from the outside device before: of this router, of one that it takes over from, or of one that
    /// has crashed.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Leaves the outside device's frames to the kernel again. The tunnel device's end goes with that device.
    pub fn remove(mut self) {
        // Another wire may have taken the place.
        if !self.outside.is_there() {
            return;
        }
        if let Err(error) = self.outside.hook.detach() {
            let name = &self.outside.device.name;
            tracing::warn!("{name}: cannot remove the tc filter: {error}");
        }
    }

    /// Puts back what somebody has removed. True when there was something to put back.
    pub fn mend(&mut self) -> Result<bool, WireError> {
        let mut mended = false;
        for end in [&mut self.inside, &mut self.outside] {
            if !end.is_there() {
                end.put()?;
                mended = true;
            }
        }
        Ok(mended)
    }

    /// Whether an earlier process has left its filter on a device.
    pub fn is_left(ifindex: u32) -> bool {
        leftover(ifindex).is_some()
    }

    /// Removes the filter that an earlier process has left on a device without a wire. True when there was one.
    pub fn remove_leftover(ifindex: u32) -> io::Result<bool> {
        let Some(mut hook) = leftover(ifindex) else {
            return Ok(false);
        };
        hook.detach().map_err(io::Error::other)?;
        Ok(true)
    }
}

impl End {
    /// The filter that redirects to the device with index `other_end`, and whether a qdisc was made for it.
    fn attach(device: WireEnd, other_end: u32) -> Result<(End, bool), WireError> {
        let program = load(other_end).map_err(|e| WireError::Load(io::Error::other(e)))?;
        let mut builder = TcHookBuilder::new(program.as_fd());
        builder
            .ifindex(device.ifindex as i32)
            .handle(HANDLE)
            .priority(PRIORITY)
            .replace(true);
        let mut end = End {
            hook: builder.hook(TC_INGRESS),
            device,
            _program: program,
            id: 0,
        };
        let made_qdisc = end.put()?;
        Ok((end, made_qdisc))
    }

    fn is_there(&mut self) -> bool {
        self.hook.query().ok() == Some(self.id)
    }

    fn put(&mut self) -> Result<bool, WireError> {
        let failed = |source| WireError::Filter {
            device: self.device.name.clone(),
            source,
        };
        let made = attach::make_clsact(self.device.ifindex).map_err(&failed)?;
        let attached = self.hook.attach().and_then(|mut hook| hook.query());
        self.id = attached.map_err(|error| match error.kind() {
            // "Specified filter kind does not match existing one" (net/sched/cls_api.c).
            libbpf_rs::ErrorKind::InvalidInput => WireError::Taken(self.device.name.clone()),
            _ => failed(io::Error::other(error)),
        })?;
        Ok(made)
    }
}

/// The filter of ours on a device.
fn leftover(ifindex: u32) -> Option<TcHook> {
    // Querying and detaching take no program.
    let mut hook = TcHook::new(io::stderr().as_fd());
    hook.ifindex(ifindex as i32)
        .handle(HANDLE)
        .priority(PRIORITY)
        .attach_point(TC_INGRESS);
    // Where there is no clsact there is none.
    expecting(|| hook.query()).ok().map(|_| hook)
}

fn load(other_end: u32) -> libbpf_rs::Result<OwnedFd> {
    let mut storage = MaybeUninit::uninit();
    let mut open = WireSkelBuilder::default().open(&mut storage)?;
    if let Some(data) = open.maps.rodata_data.as_mut() {
        data.other_end = other_end;
    }
    let loaded = open.load()?;
    let program = loaded.progs.greyhound_wire.as_fd();
    program.try_clone_to_owned().map_err(libbpf_rs::Error::from)
}
