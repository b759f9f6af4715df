//! The steering program's owner: loads it, attaches it to devices, keeps its maps in step with the plan.
//!
//! A program is loaded once per device, because one that asks the device for VLAN tags is bound to it; all of them share
//! their maps, except for the one that describes the device. Kernel objects are held by their descriptors
//! alone: when the process dies, links, programs and maps go with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use libbpf_rs::{MapCore, MapFlags};

use super::{
    abi::{self, PortEntry},
    attach,
    error::{Result, SteerError},
    load::{Counts, Filters, Limits, Program, SharedMaps, load_shared, load_steering},
    metadata,
    plan::{self, Changes, Plan, PrefixStep, PrefixTable, Table, Tables},
    said::expecting,
    umem::longest_in_pieces,
};

/// `XDP_REDIRECT` of `enum xdp_action`.
const XDP_REDIRECT: u32 = 4;

/// What an attachment came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// In the driver; otherwise generic, behind the kernel's own buffers.
    pub native: bool,
    /// VLAN tags that the device keeps beside the frame are seen. Where they are not, the device must leave
    /// them in the frame ([`TagsInFrame`](super::TagsInFrame)), or nothing may be steered that could carry one.
    pub sees_tags: bool,
}

/// How the program is attached to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// Receive queues.
    pub queues: u32,
    /// Behind the kernel's buffers instead of in the driver.
    pub generic: bool,
    /// The device's MTU in bytes. Frames of a large one come in several buffers each.
    pub mtu: u32,
}

/// The steering program, its attachments and its maps.
#[derive(Debug)]
pub struct Steer {
    limits: Limits,
    maps: SharedMaps,
    filters: Filters,
    devices: BTreeMap<u32, Device>,
    /// Devices on which another process has attached its program, and handed it over: its hold, and whether generic.
    handed: BTreeMap<u32, (OwnedFd, bool)>,
    /// Devices by which no driver of the kernel's answers for our tunnels.
    quiet: BTreeMap<u32, attach::Link>,
    plan: Plan,
    /// What the shared maps hold: written only here, after the kernel has agreed.
    tables: Tables,
    prefixes: PrefixTable,
    hops: Vec<u16>,
    /// What the programs of devices counted that are detached by now, by the devices' names.
    past: BTreeMap<String, Counts>,
}

/// Frames by reason, every reason of [`abi::REASONS`] with its count.
pub type ReasonCounts = Vec<(&'static str, u64)>;

/// An attached device.
#[derive(Debug)]
struct Device {
    name: String,
    program: Program,
    link: attach::Link,
    slots: Range<u32>,
    mtu: u32,
}

impl Steer {
    /// Creates the maps and loads the raw sockets' filters; nothing is steered yet.
    pub fn load(limits: Limits) -> Result<Steer> {
        let (maps, filters) = load_shared(limits).map_err(SteerError::Load)?;
        Ok(Steer {
            limits,
            maps,
            filters,
            devices: BTreeMap::new(),
            handed: BTreeMap::new(),
            quiet: BTreeMap::new(),
            plan: Plan::default(),
            tables: Tables::default(),
            prefixes: PrefixTable::new(),
            hops: Vec::new(),
            past: BTreeMap::new(),
        })
    }

    /// Attaches the program to a device of this network namespace, natively or generic as is asked; never by itself the one
    /// for the other. From then on the plan holds for it.
    pub fn attach(&mut self, ifindex: u32, name: &str, wanted: Attachment) -> Result<Attached> {
        let Attachment {
            queues,
            generic,
            mtu,
        } = wanted;
        if self.devices.contains_key(&ifindex) {
            return Err(SteerError::AlreadyAttached { ifindex });
        }
        let slots = self.free_slots(name, queues)?;
        let (handed, generic) = match self.handed.remove(&ifindex) {
            Some((link, generic)) => (Some(link), generic),
            None => (None, generic),
        };
        let (mut program, sees_tags) = self.load_for(ifindex, generic, mtu)?;
        for (vlan, entry) in self.plan.port_entries(ifindex) {
            program.write(
                vlan,
                PortEntry {
                    first_slot: slots.start,
                    queues,
                    ..entry
                },
            )?;
        }
        let link = match handed {
            Some(link) => attach::relink(link, program.fd.as_fd()),
            None => attach::link(program.fd.as_fd(), ifindex, generic),
        };
        let link = link.map_err(|source| SteerError::attaching(source, ifindex, name, generic))?;
        let device = Device {
            name: name.to_owned(),
            program,
            link,
            slots,
            mtu,
        };
        self.devices.insert(ifindex, device);
        Ok(Attached {
            native: !generic,
            sees_tags,
        })
    }

    /// By these devices, and no others, the kernel's own tunnel drivers do not say "port unreachable" about packets of tunnels
    /// that a socket hears (Linux 6.6). Those that cannot be had are tried again with the next call.
    pub fn keep_quiet(&mut self, devices: &BTreeSet<u32>) -> io::Result<()> {
        self.quiet.retain(|ifindex, _| devices.contains(ifindex));
        for ifindex in devices {
            if !self.quiet.contains_key(ifindex) {
                let link = attach::link_egress(self.filters.quiet.as_fd(), *ifindex)?;
                self.quiet.insert(*ifindex, link);
            }
        }
        Ok(())
    }

    /// The next [`attach`](Self::attach) of this device takes over another process's hold on it, in the mode that that one
    /// had, instead of a new one.
    pub fn hand(&mut self, ifindex: u32, link: OwnedFd, generic: bool) {
        self.handed.insert(ifindex, (link, generic));
    }

    /// The holds on devices, by interface index: for another process to take over.
    pub fn holds(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.devices
            .iter()
            .map(|(ifindex, device)| (*ifindex, device.link.fd()))
    }

    /// Leaves the devices to the process that has taken them over.
    pub fn leave(self) {
        for device in self.devices.into_values() {
            device.link.leave();
        }
    }

    /// Detaches the program from a device, if it is attached, and forgets the device's sockets.
    pub fn detach(&mut self, ifindex: u32) {
        if let Some(device) = self.devices.remove(&ifindex) {
            drop(device.link);
            match device.program.counts() {
                Ok(counts) => add(self.past.entry(device.name).or_default(), counts),
                Err(why) => tracing::warn!("{}: {why}", device.name),
            }
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
        let steps = plan::prefix_steps(&self.prefixes, &plan.prefixes);
        self.check_limits(&wanted, plan.hops.len(), &steps)?;
        let mut changes = Changes::default();
        // Devices take roles away first and get new ones last.
        for (ifindex, program) in self.programs() {
            let new = plan.port_entries(ifindex);
            let vlans: Vec<u16> = program.written.keys().copied().collect();
            for vlan in vlans {
                let new = new.get(&vlan).copied().unwrap_or_default();
                let old = program.written(vlan);
                let entry = PortEntry {
                    mac: new.mac,
                    flags: old.flags & new.flags | new.flags & abi::PORT_PARTIAL_CHECKSUMS,
                    largest: old.largest.min(new.largest),
                    ..old
                };
                program.write(vlan, entry)?;
            }
        }
        for step in plan::removals_of(&self.tables, &wanted) {
            self.maps.perform(&step)?;
            self.tables.note(step, &mut changes);
        }
        changes.count_hops(&self.hops, &plan.hops);
        self.set_hops(&plan::lower(&self.hops, &plan.hops))?;
        for step in steps {
            self.maps.set_prefix(step)?;
            self.note_prefix(step, &mut changes);
        }
        self.set_hops(&plan.hops)?;
        for step in plan::additions_of(&self.tables, &wanted) {
            self.maps.perform(&step)?;
            self.tables.note(step, &mut changes);
        }
        for (ifindex, program) in self.programs() {
            // All entries of an attachment have the same slots.
            let PortEntry {
                first_slot, queues, ..
            } = program.written(0);
            for (vlan, entry) in plan.port_entries(ifindex) {
                let entry = PortEntry {
                    first_slot,
                    queues,
                    ..entry
                };
                program.write(vlan, entry)?;
            }
        }
        changes.count_ports(&self.plan, plan);
        self.plan = Plan {
            ports: plan.ports.clone(),
            tunnels: plan.tunnels.clone(),
            addresses: plan.addresses.clone(),
            ..Plan::default()
        };
        Ok(changes)
    }

    fn note_prefix(&mut self, (net, hop): PrefixStep, changes: &mut Changes) {
        match hop {
            Some(hop) => match self.prefixes.insert(net, hop) {
                Some(_) => changes.changed += 1,
                None => changes.added += 1,
            },
            None => {
                self.prefixes.remove(&net);
                changes.removed += 1;
            }
        }
    }

    /// Hops beyond the end are the kernel's.
    fn set_hops(&mut self, wanted: &[u16]) -> Result<()> {
        for number in 0..wanted.len().max(self.hops.len()) {
            let mtu = wanted.get(number).copied().unwrap_or(0);
            if self.hops.get(number).copied().unwrap_or(0) == mtu {
                continue;
            }
            self.maps.set_hop(number as u32, mtu)?;
            if number >= self.hops.len() {
                self.hops.resize(number + 1, 0);
            }
            self.hops[number] = mtu;
        }
        Ok(())
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

    /// How many frames each reason has redirected or passed, by device, since [`load`](Self::load); of those too that are
    /// detached by now.
    pub fn counters_by_device(&self) -> Result<BTreeMap<String, ReasonCounts>> {
        let mut all = self.past.clone();
        for device in self.devices.values() {
            let counts = all.entry(device.name.clone()).or_default();
            add(counts, device.program.counts()?);
        }
        let named = |counts| abi::REASONS.into_iter().zip(counts).collect();
        Ok(all.into_iter().map(|(d, c)| (d, named(c))).collect())
    }

    /// What the program would say of a frame on an attached device, and counts nowhere: it is loaded once more, with the
    /// same maps and counters of its own. None for a device that is not attached. A frame that the program of
    /// the device could not get is refused.
    pub fn trace(&self, ifindex: u32, frame: &[u8]) -> Result<Option<&'static str>> {
        let Some(device) = self.devices.get(&ifindex) else {
            return Ok(None);
        };
        let (mut program, _) = self.load_for(ifindex, true, device.mtu)?;
        for (vlan, entry) in &device.program.written {
            program.write(*vlan, *entry)?;
        }
        attach::run(program.fd.as_fd(), frame).map_err(|source| SteerError::System {
            what: "run the steering program over a frame",
            source,
        })?;
        let counts = program.counts()?;
        let counted = abi::REASONS.into_iter().zip(counts);
        Ok(counted
            .filter(|(_, n)| *n > 0)
            .map(|(reason, _)| reason)
            .next())
    }

    /// The same on all devices together.
    pub fn counters(&self) -> Result<ReasonCounts> {
        let mut sum: ReasonCounts = abi::REASONS.into_iter().map(|name| (name, 0)).collect();
        for counts in self.counters_by_device()?.into_values() {
            for (sum, (_, n)) in sum.iter_mut().zip(counts) {
                sum.1 += n;
            }
        }
        Ok(sum)
    }

    /// How many packets for this host the [filtered](Self::filter_raw_socket) sockets did not get, because no tunnel has
    /// their addresses and their key.
    pub fn strangers(&self) -> Result<u64> {
        Ok(self.filters.v4.counts()?[abi::STRANGERS as usize])
    }

    /// Lets a raw socket, of either family and for protocol 4, 41 or 47, receive only packets of the plan's tunnels, and malformed
    /// ones of their peers. What is queued on it already stays.
    pub fn filter_raw_socket(&self, socket: BorrowedFd) -> Result<()> {
        let filtered = attach::is_ipv6(socket).and_then(|ipv6| {
            let program = match ipv6 {
                true => self.filters.v6.as_fd(),
                false => self.filters.v4.fd.as_fd(),
            };
            attach::filter(socket, program)
        });
        filtered.map_err(|source| SteerError::System {
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
        for (number, mtu) in self.hops.iter().enumerate() {
            if self.maps.read_hop(number as u32)? != u32::from(*mtu) {
                return Ok(false);
            }
        }
        Ok(found == self.tables && self.maps.read_prefixes()? == self.prefixes)
    }

    fn programs(&mut self) -> impl Iterator<Item = (u32, &mut Program)> {
        // No device has index 0: it stands for the raw sockets.
        let devices = self.devices.iter_mut();
        let devices = devices.map(|(ifindex, device)| (*ifindex, &mut device.program));
        devices.chain([(0, &mut self.filters.v4)])
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
    fn load_for(&self, ifindex: u32, generic: bool, mtu: u32) -> Result<(Program, bool)> {
        let longest = longest_in_pieces(mtu);
        if !generic && metadata::reads_vlan_tag(ifindex) {
            match expecting(|| load_steering(&self.maps, Some(ifindex), longest)) {
                Ok(program) => return Ok((program, true)),
                Err(error) => {
                    tracing::debug!("device {ifindex}: no program that asks for tags: {error:#}");
                }
            }
        }
        let program = load_steering(&self.maps, None, longest).map_err(SteerError::Load)?;
        Ok((program, false))
    }

    fn check_limits(&self, wanted: &Tables, hops: usize, steps: &[PrefixStep]) -> Result<()> {
        let most = self.prefixes.len() + steps.len();
        let prefixes = |v4: bool| {
            if most <= self.limits.prefixes as usize {
                return most;
            }
            let now = self.prefixes.keys();
            let now = now.filter(|net| net.addr().is_ipv4() == v4).count();
            let change = |(net, hop): &PrefixStep| {
                isize::from(hop.is_some()) - isize::from(self.prefixes.contains_key(net))
            };
            let steps = steps.iter().filter(|(net, _)| net.addr().is_ipv4() == v4);
            now.saturating_add_signed(steps.map(change).sum())
        };
        let limits = [
            (
                wanted.get(Table::Tunnels4).len(),
                "tunnel keys",
                self.limits.tunnels,
            ),
            (
                wanted.get(Table::Tunnels6).len(),
                "IPv6 tunnel keys",
                self.limits.tunnels,
            ),
            (prefixes(true), "IPv4 prefixes", self.limits.prefixes),
            (prefixes(false), "IPv6 prefixes", self.limits.prefixes),
            (hops, "next hops", self.limits.hops),
        ];
        for (wanted, what, limit) in limits {
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

fn add(sum: &mut Counts, counts: Counts) {
    for (sum, n) in sum.iter_mut().zip(counts) {
        *sum += n;
    }
}
