//! Which tunnel a packet belongs to.

use std::{collections::HashMap, net::Ipv4Addr};

use rustc_hash::FxBuildHasher;

use super::{Tunnel, TunnelId};
use crate::packet::GreKey;

/// Outer addresses as the receiver sees them (local is the packet's destination), and the key; as two numbers, which
/// are quick to hash and to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Match {
    addresses: u64,
    key: u64,
}

impl Match {
    #[inline]
    fn new(local: Ipv4Addr, remote: Ipv4Addr, key: Option<GreKey>) -> Self {
        Self {
            addresses: u64::from(local.to_bits()) << 32 | u64::from(remote.to_bits()),
            // No key is none of the 2^32 (gre-4).
            key: key.map_or(u64::MAX, |key| u64::from(key.0)),
        }
    }
}

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// All tunnels of a snapshot, found by slot or by outer addresses and key.
#[derive(Debug, Default)]
pub struct TunnelTable {
    tunnels: Vec<Option<Tunnel>>,
    /// Tunnels that are up. Several may share addresses and key, bound to different devices.
    matches: HashMap<Match, Vec<TunnelId>, FxBuildHasher>,
    wildcards: bool,
}

impl TunnelTable {
    /// A table of these tunnels. Slots that are not named stay empty.
    pub fn new(tunnels: impl IntoIterator<Item = Tunnel>) -> Self {
        let mut table = Self::default();
        for tunnel in tunnels {
            let slot = tunnel.id.index();
            if table.tunnels.len() <= slot {
                table.tunnels.resize_with(slot + 1, || None);
            }
            if tunnel.up {
                // A multicast remote receives what is sent to the group, from anyone.
                let (local, remote) = if tunnel.remote.is_multicast() {
                    (tunnel.remote, ANY)
                } else {
                    (tunnel.local, tunnel.remote)
                };
                table.wildcards |= local == ANY || remote == ANY;
                let key = Match::new(local, remote, tunnel.ikey);
                table.matches.entry(key).or_default().push(tunnel.id);
            }
            table.tunnels[slot] = Some(tunnel);
        }
        table
    }

    /// The tunnel in a slot.
    #[inline]
    pub fn get(&self, id: TunnelId) -> Option<&Tunnel> {
        self.tunnels.get(id.index())?.as_ref()
    }

    /// Every tunnel, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Tunnel> {
        self.tunnels.iter().flatten()
    }

    /// How many slots there are, empty ones included.
    pub fn slots(&self) -> usize {
        self.tunnels.len()
    }

    /// The tunnel of a received packet, in the order of Linux's `ip_tunnel_lookup` (net/ipv4/ip_tunnel.c): both
    /// addresses; remote alone; local alone, or a group; neither. At each step a tunnel that is bound to `device` is
    /// taken at once; any other is kept until all steps are done. Tunnels that are down do not count.
    #[inline]
    pub fn lookup(
        &self,
        local: Ipv4Addr,
        remote: Ipv4Addr,
        key: Option<GreKey>,
        device: Option<u32>,
    ) -> Option<&Tunnel> {
        let mut candidate = None;
        let steps = [(local, remote), (ANY, remote), (local, ANY), (ANY, ANY)];
        let steps = if self.wildcards {
            &steps[..]
        } else {
            &steps[..1]
        };
        for &(local, remote) in steps {
            let Some(ids) = self.matches.get(&Match::new(local, remote, key)) else {
                continue;
            };
            for tunnel in ids.iter().filter_map(|id| self.get(*id)) {
                if tunnel.dev.is_some() && tunnel.dev == device {
                    return Some(tunnel);
                }
                candidate = candidate.or(Some(tunnel));
            }
        }
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::tests::tunnel;
    use proptest::prelude::*;

    fn made(
        id: u32,
        local: u8,
        remote: u8,
        key: Option<u32>,
        dev: Option<u32>,
        up: bool,
    ) -> Tunnel {
        let address = |n: u8| {
            if n == 0 {
                ANY
            } else {
                Ipv4Addr::new(10, 0, 0, n)
            }
        };
        Tunnel {
            id: TunnelId(id),
            local: address(local),
            remote: address(remote),
            ikey: key.map(GreKey),
            dev,
            up,
            ..tunnel()
        }
    }

    /// `ip_tunnel_lookup` written as the kernel has it: four passes over a list.
    fn linear(
        list: &[Tunnel],
        packet: (Ipv4Addr, Ipv4Addr, Option<GreKey>),
        device: Option<u32>,
    ) -> Option<&Tunnel> {
        let mut candidate = None;
        for (local, remote) in [
            (packet.0, packet.1),
            (ANY, packet.1),
            (packet.0, ANY),
            (ANY, ANY),
        ] {
            for t in list {
                if t.up && (t.local, t.remote, t.ikey) == (local, remote, packet.2) {
                    if t.dev.is_some() && t.dev == device {
                        return Some(t);
                    }
                    candidate = candidate.or(Some(t));
                }
            }
        }
        candidate
    }

    proptest! {
        #[test]
        fn gre_11_lookup_is_linuxs_order(
            specs in proptest::collection::vec((0u8..3, 0u8..3, proptest::option::of(0u32..2), proptest::option::of(1u32..3), any::<bool>()), 0..12),
            packet in (1u8..3, 1u8..3, proptest::option::of(0u32..2), 1u32..4),
        ) {
            let list: Vec<Tunnel> = specs.iter().enumerate()
                .map(|(i, &(l, r, k, d, up))| made(i as u32, l, r, k, d, up)).collect();
            let table = TunnelTable::new(list.clone());
            let (l, r, key, dev) = packet;
            let wanted = (Ipv4Addr::new(10, 0, 0, l), Ipv4Addr::new(10, 0, 0, r), key.map(GreKey));
            prop_assert_eq!(
                table.lookup(wanted.0, wanted.1, wanted.2, Some(dev)),
                linear(&list, wanted, Some(dev))
            );
        }
    }

    #[test]
    fn gre_4_no_key_is_not_key_zero() {
        let table = TunnelTable::new([
            made(0, 1, 2, None, None, true),
            made(1, 1, 2, Some(0), None, true),
        ]);
        let (l, r) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let id = |key| table.lookup(l, r, key, None).map(|t| t.id.0);
        assert_eq!(id(None), Some(0));
        assert_eq!(id(Some(GreKey(0))), Some(1));
        assert_eq!(id(Some(GreKey(1))), None);
    }
}
