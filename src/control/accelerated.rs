//! The kernel's own tunnel devices that have a fast path at the moment, and those that are left alone.

use std::{collections::HashSet, fs, time::Instant};

use super::{
    accelerate::{self, Found, Settings},
    compile::TunnelStatus,
    config::{Accelerate, Config},
    link_stats::{self, LinkStats},
    mirror::{Parts, State},
    netlink::Device,
    slots::Slots,
    tunnels::TunnelEntry,
};

/// Whether outer packets over IPv6 have a flow label that nobody has asked for.
const FLOW_LABELS: &str = "/proc/sys/net/ipv6/auto_flowlabels";

#[derive(Default)]
pub(super) struct Accelerated {
    pub entries: Vec<TunnelEntry>,
    /// In the order of the entries.
    pub statuses: Vec<TunnelStatus>,
    /// What is left alone, and why.
    pub left: Vec<Found>,
}

/// What of this host tunnels go by.
pub fn settings() -> Settings {
    let set = fs::read_to_string(FLOW_LABELS);
    Settings {
        flow_labels: set.map_or(true, |value| value.trim() != "0"),
    }
}

impl Accelerated {
    /// Follows devices and configuration. Whether there is something else to be compiled.
    pub fn follow(&mut self, state: &State, config: &Config, slots: &mut Slots) -> bool {
        let found = accelerate::find(state, config, settings());
        let mut changed = self.drop_those_not_in(&found, slots);
        let mut left = Vec::new();
        for found in found {
            match &found.verdict {
                Ok(_) => changed |= self.take(found, slots),
                Err(_) => left.push(found),
            }
        }
        for now in left.iter().filter(|now| !self.left.contains(now)) {
            if let Err(why) = &now.verdict {
                tracing::info!("{}: left to the kernel: {why}", now.name);
            }
        }
        self.left = left;
        changed
    }

    /// Whether a change of this kind may concern a device.
    pub fn concerns(&self, what: Parts, config: &Config) -> bool {
        let by_neighbours = || {
            self.entries
                .iter()
                .any(|e| e.config.remote.is_unspecified())
        };
        let on = config.router.accelerate != Accelerate::None;
        (on || !self.entries.is_empty())
            && (what.contains(Parts::LINKS) || what.contains(Parts::NEIGHBOURS) && by_neighbours())
    }

    fn drop_those_not_in(&mut self, found: &[Found], slots: &mut Slots) -> bool {
        let taken: HashSet<u32> = (found.iter())
            .filter(|found| found.verdict.is_ok())
            .map(|found| found.ifindex)
            .collect();
        let before = self.entries.len();
        self.entries.retain(|entry| {
            let stays = taken.contains(&entry.device.index);
            if !stays {
                slots.give_back(entry.id, Instant::now());
                tracing::info!("{}: no longer accelerated", entry.config.name);
            }
            stays
        });
        self.entries.len() < before
    }

    fn take(&mut self, found: Found, slots: &mut Slots) -> bool {
        let Ok(config) = found.verdict else {
            return false;
        };
        let device = Device {
            index: found.ifindex,
            name: found.name,
        };
        let mut entries = self.entries.iter_mut();
        match entries.find(|entry| entry.device.index == device.index) {
            Some(entry) if entry.config == config => false,
            Some(entry) => {
                let peers = entry.config.peers.clone();
                entry.config.peers = config.peers.clone();
                if entry.config != config {
                    tracing::info!("{}: changed; accelerated as it is now", device.name);
                } else if peers != config.peers {
                    tracing::debug!("{}: other neighbours", device.name);
                }
                entry.device = device;
                entry.alter(config);
                true
            }
            None => {
                let Device { name, .. } = &device;
                tracing::info!(
                    "{name}: the kernel's own {} device, accelerated",
                    found.kind
                );
                let id = slots.take(Instant::now());
                self.entries.push(TunnelEntry::new(id, config, device));
                true
            }
        }
    }

    /// What the kernel's devices have carried by themselves, in the order of entries and then of what is left alone.
    pub fn kernel_stats(&self) -> Vec<Option<LinkStats>> {
        let entries = self.entries.iter().map(|entry| entry.device.index);
        let left = self.left.iter().map(|found| found.ifindex);
        link_stats::of(entries.chain(left))
    }
}
