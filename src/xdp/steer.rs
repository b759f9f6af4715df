//! The steering program's owner: loads it, attaches it to devices, keeps its maps in step with the plan.
//!
//! A program is loaded once per device, because one that asks the device for VLAN tags is bound to it; all of them share
//! their maps, except for the one that describes the device. Kernel objects are held by their descriptors
//! alone: when the process dies, links, programs and maps go with it.

use std::{
    collections::BTreeMap,
    io,
    mem::MaybeUninit,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use libbpf_rs::{
    MapCore, MapFlags, MapHandle,
    skel::{OpenSkel, SkelBuilder},
};

use super::{
    abi::{self, PortEntry},
    attach, metadata,
    plan::{self, Changes, Plan, Table, Tables},
};

/// The generated skeleton of `bpf/steer.bpf.c`.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/steer.skel.rs"));
}
use skeleton::{OpenSteerSkel, SteerSkelBuilder};

/// `XDP_REDIRECT` of `enum xdp_action`.
const XDP_REDIRECT: u32 = 4;

/// How much the maps hold. They cannot grow later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Addresses and keys that packets of our tunnels can carry.
    pub tunnels: u32,
    /// Prefixes of each family. Memory is taken as they come.
    pub prefixes: u32,
    /// Receive queues of all devices together.
    pub slots: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tunnels: 65_536,
            prefixes: 1 << 20,
            slots: 1024,
        }
    }
}

/// What an attachment came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// In the driver; otherwise generic, behind the kernel's own buffers.
    pub native: bool,
    /// VLAN tags that the device keeps beside the frame are seen. Where they are not, the device must leave
    /// them in the frame ([`TagsInFrame`](super::TagsInFrame)), or nothing may be steered that could carry one.
    pub sees_tags: bool,
}

/// Why steering could not be changed. What was in force before still is, except where `apply` stopped half-way: the
/// next `apply` goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    #[error(
        "cannot load the steering program: {0:#} (it needs CAP_BPF and CAP_NET_ADMIN, and a kernel with BTF)"
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

type Result<T> = std::result::Result<T, SteerError>;

/// The steering program, its attachments and its maps.
#[derive(Debug)]
pub struct Steer {
    limits: Limits,
    maps: SharedMaps,
    /// The raw socket's filter, and the device entry that stands for the raw socket.
    filter: Program,
    devices: BTreeMap<u32, Device>,
    plan: Plan,
    /// What the shared maps hold: written only here, after the kernel has agreed.
    tables: Tables,
}

#[derive(Debug)]
struct SharedMaps {
    xsks: MapHandle,
    counters: MapHandle,
    tables: [MapHandle; 4],
}

/// A loaded program and its own map.
#[derive(Debug)]
struct Program {
    fd: OwnedFd,
    port: MapHandle,
    written: PortEntry,
}

/// An attached device.
#[derive(Debug)]
struct Device {
    program: Program,
    link: attach::Link,
    slots: Range<u32>,
}

impl Steer {
    /// Creates the maps and loads the raw socket's filter; nothing is steered yet.
    pub fn load(limits: Limits) -> Result<Steer> {
        let (maps, filter) = load_shared(limits).map_err(SteerError::Load)?;
        Ok(Steer {
            limits,
            maps,
            filter,
            devices: BTreeMap::new(),
            plan: Plan::default(),
            tables: Tables::default(),
        })
    }

    /// Attaches the program to a device of this network namespace with `queues` receive queues, natively or (`generic`)
    /// behind the kernel's buffers; never by itself the one for the other. From then on the plan holds for it.
    pub fn attach(
        &mut self,
        ifindex: u32,
        name: &str,
        queues: u32,
        generic: bool,
    ) -> Result<Attached> {
        if self.devices.contains_key(&ifindex) {
            return Err(SteerError::AlreadyAttached { ifindex });
        }
        let slots = self.free_slots(name, queues)?;
        let (mut program, sees_tags) = self.load_for(ifindex, generic)?;
        program.write(PortEntry {
            first_slot: slots.start,
            queues,
            ..self.plan.port_entry(ifindex)
        })?;
        let link = attach::link(program.fd.as_fd(), ifindex, generic)
            .map_err(|source| attach_error(source, ifindex, name, generic))?;
        let device = Device {
            program,
            link,
            slots,
        };
        self.devices.insert(ifindex, device);
        Ok(Attached {
            native: !generic,
            sees_tags,
        })
    }

    /// Detaches the program from a device, if it is attached, and forgets the device's sockets.
    pub fn detach(&mut self, ifindex: u32) {
        if let Some(device) = self.devices.remove(&ifindex) {
            drop(device.link);
            for slot in device.slots {
                // An empty slot is what we want.
                let _ = self.maps.xsks.delete(&slot.to_ne_bytes());
            }
        }
    }

    /// Brings the maps to `plan`, by difference: what is right already is not touched, and at no moment is a packet
    /// redirected that neither the old plan nor the new one redirects.
    pub fn apply(&mut self, plan: &Plan) -> Result<Changes> {
        let wanted = plan.tables();
        self.check_limits(&wanted)?;
        let mut changes = Changes::default();
        // Devices take roles away first and get new ones last.
        for (ifindex, program) in self.programs() {
            let new = plan.port_entry(ifindex);
            let old = program.written;
            program.write(PortEntry {
                mac: new.mac,
                flags: old.flags & new.flags | new.flags & abi::PORT_PARTIAL_CHECKSUMS,
                ..old
            })?;
        }
        for step in plan::steps(&self.tables, &wanted) {
            self.maps.perform(&step)?;
            self.tables.note(step, &mut changes);
        }
        for (ifindex, program) in self.programs() {
            let old = program.written;
            program.write(PortEntry {
                first_slot: old.first_slot,
                queues: old.queues,
                ..plan.port_entry(ifindex)
            })?;
        }
        changes.count_ports(&self.plan, plan);
        self.plan.clone_from(plan);
        Ok(changes)
    }

    /// Hands the frames of a receive queue to an AF_XDP socket, which must be bound to just that queue.
    pub fn set_socket(&mut self, ifindex: u32, queue: u32, socket: BorrowedFd) -> Result<()> {
        let slot = self.slot(ifindex, queue)?;
        let fd = socket.as_raw_fd() as u32;
        self.maps
            .xsks
            .update(&slot.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
            .map_err(|source| SteerError::Map {
                what: "give a receive queue its AF_XDP socket",
                source,
            })
    }

    /// Leaves the frames of a receive queue to the kernel again.
    pub fn clear_socket(&mut self, ifindex: u32, queue: u32) -> Result<()> {
        let slot = self.slot(ifindex, queue)?;
        match self.maps.xsks.delete(&slot.to_ne_bytes()) {
            // The kernel empties the slot itself when the socket is closed.
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(SteerError::Map {
                what: "take a receive queue's AF_XDP socket away",
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// How many frames each reason has redirected or passed, on all devices since [`load`](Self::load).
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>> {
        let error = |source| SteerError::Map {
            what: "read the steering counters",
            source,
        };
        let mut counters = Vec::with_capacity(abi::REASONS.len());
        for (index, name) in abi::REASONS.into_iter().enumerate() {
            let key = (index as u32).to_ne_bytes();
            let values = self.maps.counters.lookup_percpu(&key, MapFlags::ANY);
            let sum = values.map_err(error)?.into_iter().flatten();
            let sum = sum.filter_map(|v| v.try_into().ok().map(u64::from_ne_bytes));
            counters.push((name, sum.sum()));
        }
        Ok(counters)
    }

    /// Lets a raw socket for protocol 47 receive only packets of the plan's tunnels, and malformed ones of their peers. What
    /// is queued on it already stays.
    pub fn filter_raw_socket(&self, socket: BorrowedFd) -> Result<()> {
        attach::filter(socket, self.filter.fd.as_fd()).map_err(|source| SteerError::System {
            what: "filter the raw socket",
            source,
        })
    }

    /// The id of an XDP program on this device that is not ours.
    pub fn foreign_program(ifindex: u32) -> Result<Option<u32>> {
        attach::foreign_program(ifindex).map_err(|source| SteerError::System {
            what: "ask for the device's XDP program",
            source,
        })
    }

    /// Whether the program attached to a device redirects this frame (at least 14 bytes). It counts like any other. The kernel refuses this
    /// for a program that asks its device for tags.
    pub fn judge(&self, ifindex: u32, frame: &[u8]) -> Result<bool> {
        let device = self
            .devices
            .get(&ifindex)
            .ok_or(SteerError::NotAttached { ifindex })?;
        let verdict = attach::run(device.program.fd.as_fd(), frame);
        let verdict = verdict.map_err(|source| SteerError::System {
            what: "run the steering program over a frame",
            source,
        })?;
        Ok(verdict == XDP_REDIRECT)
    }

    /// Whether the kernel's maps hold exactly what the last [`apply`](Self::apply) left there.
    pub fn verify(&self) -> Result<bool> {
        let mut found = Tables::default();
        for table in Table::ALL {
            *found.get_mut(table) = self.maps.read(table)?;
        }
        Ok(found == self.tables)
    }

    fn programs(&mut self) -> impl Iterator<Item = (u32, &mut Program)> {
        // No device has index 0: it stands for the raw socket.
        let devices = self.devices.iter_mut();
        let devices = devices.map(|(ifindex, device)| (*ifindex, &mut device.program));
        devices.chain([(0, &mut self.filter)])
    }

    fn slot(&self, ifindex: u32, queue: u32) -> Result<u32> {
        let device = self.devices.get(&ifindex);
        let slots = &device.ok_or(SteerError::NotAttached { ifindex })?.slots;
        match slots.start.checked_add(queue) {
            Some(slot) if slots.contains(&slot) => Ok(slot),
            _ => Err(SteerError::NoQueue {
                ifindex,
                queue,
                queues: slots.end - slots.start,
            }),
        }
    }

    /// The first gap of `queues` slots.
    fn free_slots(&self, name: &str, queues: u32) -> Result<Range<u32>> {
        let mut taken: Vec<_> = self.devices.values().map(|d| d.slots.clone()).collect();
        taken.sort_by_key(|slots| slots.start);
        let mut start = 0;
        for slots in taken {
            if slots.start - start >= queues {
                break;
            }
            start = slots.end;
        }
        if self.limits.slots - start < queues {
            return Err(SteerError::NoSlots {
                device: name.to_owned(),
                wanted: queues,
                limit: self.limits.slots,
            });
        }
        Ok(start..start + queues)
    }

    /// The program for a device, and whether it is the one that sees tags beside the frame.
    fn load_for(&self, ifindex: u32, generic: bool) -> Result<(Program, bool)> {
        if !generic && metadata::reads_vlan_tag(ifindex) {
            match load_steering(&self.maps, Some(ifindex)) {
                Ok(program) => return Ok((program, true)),
                Err(error) => {
                    tracing::debug!("device {ifindex}: no program that asks for tags: {error:#}");
                }
            }
        }
        let program = load_steering(&self.maps, None).map_err(SteerError::Load)?;
        Ok((program, false))
    }

    fn check_limits(&self, wanted: &Tables) -> Result<()> {
        let limits = [
            (Table::Tunnels, "tunnel keys", self.limits.tunnels),
            (Table::Prefixes4, "IPv4 prefixes", self.limits.prefixes),
            (Table::Prefixes6, "IPv6 prefixes", self.limits.prefixes),
        ];
        for (table, what, limit) in limits {
            let wanted = wanted.get(table).len();
            if wanted > limit as usize {
                return Err(SteerError::TooMany {
                    what,
                    wanted,
                    limit,
                });
            }
        }
        Ok(())
    }
}

impl Program {
    fn write(&mut self, entry: PortEntry) -> Result<()> {
        if entry == self.written {
            return Ok(());
        }
        self.port
            .update(&0u32.to_ne_bytes(), &entry.bytes(), MapFlags::ANY)
            .map_err(|source| SteerError::Map {
                what: "tell the steering program about its device",
                source,
            })?;
        self.written = entry;
        Ok(())
    }
}

impl SharedMaps {
    fn perform(&self, step: &plan::Step) -> Result<()> {
        let map = &self.tables[step.table as usize];
        match step.value {
            Some(value) => map.update(&step.key, &value.to_ne_bytes(), MapFlags::ANY),
            None => map.delete(&step.key),
        }
        .map_err(|source| SteerError::Map {
            what: match step.table {
                Table::Tunnels | Table::Peers => "change the steering program's tunnels",
                Table::Prefixes4 | Table::Prefixes6 => "change the steering program's prefixes",
            },
            source,
        })
    }

    fn read(&self, table: Table) -> Result<plan::Entries> {
        let map = &self.tables[table as usize];
        let mut entries = plan::Entries::new();
        for key in map.keys() {
            let value = map.lookup(&key, MapFlags::ANY);
            let value = value.map_err(|source| SteerError::Map {
                what: "read the steering program's maps",
                source,
            })?;
            if let Some(Ok(bytes)) = value.map(<[u8; 4]>::try_from) {
                entries.insert(key, u32::from_ne_bytes(bytes));
            }
        }
        Ok(entries)
    }
}

fn load_shared(limits: Limits) -> libbpf_rs::Result<(SharedMaps, Program)> {
    // libbpf writes to stderr otherwise, also where a failure is expected and handled.
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Debug, |_, line| {
        tracing::debug!(target: "libbpf", "{}", line.trim_end());
    })));
    let mut storage = MaybeUninit::uninit();
    let mut open = SteerSkelBuilder::default().open(&mut storage)?;
    open.maps.xsks.set_max_entries(limits.slots)?;
    open.maps.tunnels.set_max_entries(limits.tunnels)?;
    open.maps.peers.set_max_entries(limits.tunnels)?;
    // New prefixes are written before old ones are removed.
    let prefixes = limits.prefixes.saturating_mul(2);
    open.maps.prefixes4.set_max_entries(prefixes)?;
    open.maps.prefixes6.set_max_entries(prefixes)?;
    open.progs.greyhound_steer.set_autoload(false);
    open.progs.greyhound_tags.set_autoload(false);
    let loaded = open.load()?;
    let maps = SharedMaps {
        xsks: MapHandle::try_from(&loaded.maps.xsks)?,
        counters: MapHandle::try_from(&loaded.maps.counters)?,
        tables: [
            MapHandle::try_from(&loaded.maps.tunnels)?,
            MapHandle::try_from(&loaded.maps.peers)?,
            MapHandle::try_from(&loaded.maps.prefixes4)?,
            MapHandle::try_from(&loaded.maps.prefixes6)?,
        ],
    };
    let filter = Program {
        fd: owned(loaded.progs.greyhound_raw.as_fd())?,
        port: MapHandle::try_from(&loaded.maps.port)?,
        written: PortEntry::default(),
    };
    Ok((maps, filter))
}

/// Loads the steering program with the shared maps; with `bound_to`, the one that asks that device for tags.
fn load_steering(maps: &SharedMaps, bound_to: Option<u32>) -> libbpf_rs::Result<Program> {
    let mut storage = MaybeUninit::uninit();
    let mut open: OpenSteerSkel = SteerSkelBuilder::default().open(&mut storage)?;
    open.maps.xsks.reuse_fd(maps.xsks.as_fd())?;
    open.maps.counters.reuse_fd(maps.counters.as_fd())?;
    let [tunnels, peers, prefixes4, prefixes6] = &maps.tables;
    open.maps.tunnels.reuse_fd(tunnels.as_fd())?;
    open.maps.peers.reuse_fd(peers.as_fd())?;
    open.maps.prefixes4.reuse_fd(prefixes4.as_fd())?;
    open.maps.prefixes6.reuse_fd(prefixes6.as_fd())?;
    open.progs.greyhound_raw.set_autoload(false);
    open.progs.greyhound_steer.set_autoload(bound_to.is_none());
    open.progs.greyhound_tags.set_autoload(bound_to.is_some());
    if let Some(ifindex) = bound_to {
        let program = &mut open.progs.greyhound_tags;
        program.set_ifindex(ifindex);
        program.set_flags(libbpf_rs::libbpf_sys::BPF_F_XDP_DEV_BOUND_ONLY);
    }
    let loaded = open.load()?;
    let program = match bound_to {
        Some(_) => loaded.progs.greyhound_tags.as_fd(),
        None => loaded.progs.greyhound_steer.as_fd(),
    };
    Ok(Program {
        fd: owned(program)?,
        port: MapHandle::try_from(&loaded.maps.port)?,
        written: PortEntry::default(),
    })
}

fn owned(fd: BorrowedFd) -> libbpf_rs::Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(libbpf_rs::Error::from)
}

fn attach_error(source: io::Error, ifindex: u32, name: &str, generic: bool) -> SteerError {
    let device = name.to_owned();
    if source.raw_os_error() == Some(libc::EBUSY) {
        // One of ours is another router on this device: name it as well.
        let programs = attach::programs(ifindex).ok();
        let program = programs.and_then(|mut ids| ids.next()).unwrap_or(0);
        return SteerError::Busy { device, program };
    }
    let hint = match source.raw_os_error() {
        _ if generic => "",
        Some(libc::EOPNOTSUPP) => ": the driver has no native XDP, or not with this MTU",
        Some(libc::ENOSPC) => {
            ": a veth needs as many receive queues as its peer has transmit queues (`ethtool -L PEER tx 1`)"
        }
        Some(libc::ERANGE | libc::EINVAL) => ": the MTU may be too large for native XDP",
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
