//! Loads the programs and creates the maps. What remains are descriptors: the skeleton and libbpf's objects
//! do not outlive a function here.

use std::{
    collections::BTreeMap,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use libbpf_rs::{
    MapCore, MapFlags, MapHandle,
    skel::{OpenSkel, SkelBuilder},
};

use ipnet::IpNet;

use super::{
    abi::{self, PortEntry},
    error::{Result, SteerError},
    plan::{self, Table},
};

/// The generated skeleton of `bpf/steer.bpf.c`.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/steer.skel.rs"));
}
use skeleton::{OpenSteerSkel, SteerSkelBuilder};

/// How much the maps hold. They cannot grow later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Addresses and keys that packets of our tunnels can carry.
    pub tunnels: u32,
    /// Prefixes of each family. Memory is taken as they come.
    pub prefixes: u32,
    /// Next hops of these.
    pub hops: u32,
    /// Receive queues of all devices together.
    pub slots: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tunnels: 65_536,
            prefixes: 1 << 20,
            hops: 65_536,
            slots: 1024,
        }
    }
}

/// The raw sockets' filters, and the device entry that stands for these sockets.
#[derive(Debug)]
pub(super) struct Filters {
    pub v4: Program,
    pub v6: OwnedFd,
    /// Not a socket's: holds back what the kernel's own tunnel drivers say of our tunnels.
    pub quiet: OwnedFd,
}

#[derive(Debug)]
pub(super) struct SharedMaps {
    pub xsks: MapHandle,
    tables: [MapHandle; 4],
    prefixes4: MapHandle,
    prefixes6: MapHandle,
    hops: MapHandle,
}

/// A loaded program and its own map.
#[derive(Debug)]
pub(super) struct Program {
    pub fd: OwnedFd,
    ports: MapHandle,
    counters: MapHandle,
    /// By VLAN number; 0 is the device itself. What is not here is all zeroes.
    pub written: BTreeMap<u16, PortEntry>,
}

/// A count for each of [`abi::REASONS`], and one for the strangers.
pub(super) type Counts = [u64; abi::REASONS.len() + 1];

impl Program {
    /// What it has counted so far.
    pub(super) fn counts(&self) -> Result<Counts> {
        let mut counts = Counts::default();
        for (index, count) in counts.iter_mut().enumerate() {
            let key = (index as u32).to_ne_bytes();
            let values = self.counters.lookup_percpu(&key, MapFlags::ANY);
            let values = values.map_err(|source| SteerError::Map {
                what: "read the steering counters",
                source,
            })?;
            let of_cpu = |bytes: Vec<u8>| bytes.try_into().ok().map(u64::from_ne_bytes);
            *count = values.into_iter().flatten().filter_map(of_cpu).sum();
        }
        Ok(counts)
    }

    pub(super) fn written(&self, vlan: u16) -> PortEntry {
        self.written.get(&vlan).copied().unwrap_or_default()
    }

    pub(super) fn write(&mut self, vlan: u16, entry: PortEntry) -> Result<()> {
        if entry == self.written(vlan) {
            return Ok(());
        }
        self.ports
            .update(
                &u32::from(vlan).to_ne_bytes(),
                &entry.bytes(),
                MapFlags::ANY,
            )
            .map_err(|source| SteerError::Map {
                what: "tell the steering program about its device",
                source,
            })?;
        self.written.insert(vlan, entry);
        Ok(())
    }
}

impl SharedMaps {
    pub(super) fn perform(&self, step: &plan::Step) -> Result<()> {
        let map = &self.tables[step.table as usize];
        write(
            map,
            &step.key,
            step.value,
            "change the steering program's tunnels",
        )
    }

    pub(super) fn set_prefix(&self, (net, hop): plan::PrefixStep) -> Result<()> {
        let map = match net {
            IpNet::V4(_) => &self.prefixes4,
            IpNet::V6(_) => &self.prefixes6,
        };
        let what = "change the steering program's prefixes";
        write(map, &abi::prefix(net), hop, what)
    }

    pub(super) fn set_hop(&self, number: u32, mtu: u16) -> Result<()> {
        let what = "change the steering program's next hops";
        write(&self.hops, &number.to_ne_bytes(), Some(mtu.into()), what)
    }

    pub(super) fn read(&self, table: Table) -> Result<plan::Entries> {
        read(&self.tables[table as usize])
    }

    pub(super) fn read_prefixes(&self) -> Result<plan::PrefixTable> {
        let mut entries = read(&self.prefixes4)?;
        entries.append(&mut read(&self.prefixes6)?);
        let net = |(key, hop): (Vec<u8>, u32)| Some((abi::prefix_of(&key)?, hop));
        Ok(entries.into_iter().filter_map(net).collect())
    }

    pub(super) fn read_hop(&self, number: u32) -> Result<u32> {
        let key = number.to_ne_bytes();
        let value = self.hops.lookup(&key, MapFlags::ANY).map_err(reading)?;
        let bytes = value.and_then(|bytes| bytes.try_into().ok());
        Ok(bytes.map_or(0, u32::from_ne_bytes))
    }
}

fn write(map: &MapHandle, key: &[u8], value: Option<u32>, what: &'static str) -> Result<()> {
    match value {
        Some(value) => map.update(key, &value.to_ne_bytes(), MapFlags::ANY),
        None => map.delete(key),
    }
    .map_err(|source| SteerError::Map { what, source })
}

fn reading(source: libbpf_rs::Error) -> SteerError {
    SteerError::Map {
        what: "read the steering program's maps",
        source,
    }
}

fn read(map: &MapHandle) -> Result<plan::Entries> {
    let mut entries = plan::Entries::new();
    for key in map.keys() {
        let value = map.lookup(&key, MapFlags::ANY).map_err(reading)?;
        if let Some(Ok(bytes)) = value.map(<[u8; 4]>::try_from) {
            entries.insert(key, u32::from_ne_bytes(bytes));
        }
    }
    Ok(entries)
}

pub(super) fn load_shared(limits: Limits) -> libbpf_rs::Result<(SharedMaps, Filters)> {
    let mut storage = MaybeUninit::uninit();
    let mut open = SteerSkelBuilder::default().open(&mut storage)?;
    open.maps.xsks.set_max_entries(limits.slots)?;
    open.maps.tunnels4.set_max_entries(limits.tunnels)?;
    open.maps.tunnels6.set_max_entries(limits.tunnels)?;
    open.maps.peers4.set_max_entries(limits.tunnels)?;
    open.maps.peers6.set_max_entries(limits.tunnels)?;
    // New prefixes are written before old ones are removed.
    let prefixes = limits.prefixes.saturating_mul(2);
    open.maps.prefixes4.set_max_entries(prefixes)?;
    open.maps.prefixes6.set_max_entries(prefixes)?;
    open.maps.hops.set_max_entries(limits.hops)?;
    open.progs.greyhound_steer.set_autoload(false);
    open.progs.greyhound_tags.set_autoload(false);
    let loaded = open.load()?;
    let maps = SharedMaps {
        xsks: MapHandle::try_from(&loaded.maps.xsks)?,
        tables: [
            MapHandle::try_from(&loaded.maps.tunnels4)?,
            MapHandle::try_from(&loaded.maps.tunnels6)?,
            MapHandle::try_from(&loaded.maps.peers4)?,
            MapHandle::try_from(&loaded.maps.peers6)?,
        ],
        prefixes4: MapHandle::try_from(&loaded.maps.prefixes4)?,
        prefixes6: MapHandle::try_from(&loaded.maps.prefixes6)?,
        hops: MapHandle::try_from(&loaded.maps.hops)?,
    };
    // Both read the same entry.
    let filters = Filters {
        v4: Program {
            fd: owned(loaded.progs.greyhound_raw.as_fd())?,
            ports: MapHandle::try_from(&loaded.maps.ports)?,
            counters: MapHandle::try_from(&loaded.maps.counters)?,
            written: BTreeMap::new(),
        },
        v6: owned(loaded.progs.greyhound_raw6.as_fd())?,
        quiet: owned(loaded.progs.greyhound_quiet.as_fd())?,
    };
    Ok((maps, filters))
}

/// The kernel may give the program frames in several buffers (linux/bpf.h).
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// Loads the steering program with the shared maps; with `bound_to`, the one that asks that device for tags, and with
/// `longest`, one that takes frames of up to so many bytes in several buffers.
pub(super) fn load_steering(
    maps: &SharedMaps,
    bound_to: Option<u32>,
    longest: Option<u32>,
) -> libbpf_rs::Result<Program> {
    let mut storage = MaybeUninit::uninit();
    let mut open: OpenSteerSkel = SteerSkelBuilder::default().open(&mut storage)?;
    open.maps.ports.set_max_entries(abi::VLANS)?;
    open.maps.xsks.reuse_fd(maps.xsks.as_fd())?;
    let [tunnels4, tunnels6, peers4, peers6] = &maps.tables;
    open.maps.tunnels4.reuse_fd(tunnels4.as_fd())?;
    open.maps.tunnels6.reuse_fd(tunnels6.as_fd())?;
    open.maps.peers4.reuse_fd(peers4.as_fd())?;
    open.maps.peers6.reuse_fd(peers6.as_fd())?;
    open.maps.prefixes4.reuse_fd(maps.prefixes4.as_fd())?;
    open.maps.prefixes6.reuse_fd(maps.prefixes6.as_fd())?;
    open.maps.hops.reuse_fd(maps.hops.as_fd())?;
    open.progs.greyhound_raw.set_autoload(false);
    open.progs.greyhound_raw6.set_autoload(false);
    open.progs.greyhound_quiet.set_autoload(false);
    open.progs.greyhound_steer.set_autoload(bound_to.is_none());
    open.progs.greyhound_tags.set_autoload(bound_to.is_some());
    let flags = match longest {
        Some(longest) => {
            if let Some(constants) = &mut open.maps.rodata_data {
                constants.longest = longest;
            }
            BPF_F_XDP_HAS_FRAGS
        }
        None => 0,
    };
    open.progs.greyhound_steer.set_flags(flags);
    if let Some(ifindex) = bound_to {
        let program = &mut open.progs.greyhound_tags;
        program.set_ifindex(ifindex);
        program.set_flags(libbpf_rs::libbpf_sys::BPF_F_XDP_DEV_BOUND_ONLY | flags);
    }
    let loaded = open.load()?;
    let program = match bound_to {
        Some(_) => loaded.progs.greyhound_tags.as_fd(),
        None => loaded.progs.greyhound_steer.as_fd(),
    };
    Ok(Program {
        fd: owned(program)?,
        ports: MapHandle::try_from(&loaded.maps.ports)?,
        counters: MapHandle::try_from(&loaded.maps.counters)?,
        written: BTreeMap::new(),
    })
}

fn owned(fd: BorrowedFd) -> libbpf_rs::Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(libbpf_rs::Error::from)
}
