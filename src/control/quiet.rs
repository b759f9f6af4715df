//! The kernel's own tunnel drivers beside our tunnels: what they say of packets that are not theirs is held back.
//!
//! A driver (ip_gre, ipip …) gets a copy of what the slow path's raw sockets receive, knows no such tunnel, and answers "port
//! unreachable" (`gre_rcv`, `tunnel4_rcv`, `tunnel6_rcv`).

use std::{collections::BTreeSet, path::Path};

use super::{mirror::State, router::Router};

/// One that is built in stands there too: each has a parameter.
const DRIVERS: &[&str] = &["ip_gre", "ip6_gre", "ipip", "sit", "ip6_tunnel"];

fn a_driver_is_loaded() -> bool {
    let is_there = |name: &&str| Path::new("/sys/module").join(name).exists();
    DRIVERS.iter().any(is_there)
}

impl Router {
    /// Follows drivers, tunnels and underlay devices.
    pub(super) fn keep_quiet(&mut self, state: &State) {
        let Some(steer) = &mut self.steer else { return };
        let raw = self
            .tunnels
            .iter()
            .any(|tunnel| tunnel.config.udp.is_none());
        let devices: BTreeSet<u32> = match raw && a_driver_is_loaded() {
            true => {
                let underlay = self.config.router.underlay.iter();
                let links = underlay.filter_map(|name| state.link_by_name(name));
                links.map(|link| link.index).collect()
            }
            false => BTreeSet::new(),
        };
        let why = steer.keep_quiet(&devices).err().map(|why| why.to_string());
        if let Some(why) = why
            .as_ref()
            .filter(|why| self.not_quiet.as_ref() != Some(*why))
        {
            tracing::warn!(
                "the kernel's own tunnel drivers answer packets on the slow path with ICMP unreachable, and cannot be kept from \
                 it: {why}; it takes Linux 6.6"
            );
        }
        self.not_quiet = why;
    }
}
