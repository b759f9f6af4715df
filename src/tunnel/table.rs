//! Which tunnel a packet belongs to.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use rustc_hash::FxBuildHasher;

use super::{Family, Mode, Payload, Shim, Tunnel, TunnelId};
use crate::packet::GreKey;

/// Packets that compete for the same tunnels: as the kernel, which has a table of its own for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// GRE with an IP packet, or something unknown, inside.
    Gre,
    /// GRE with an Ethernet frame inside.
    Tap,
    /// The same where the key is a virtual subnet and a flow: the lookup is by the subnet alone.
    Nvgre,
    /// The first two in UDP.
    GreInUdp,
    TapInUdp,
    /// IPv4 directly behind the outer header.
    Ipv4,
    /// IPv6 directly behind the outer header.
    Ipv6,
}

impl Class {
    /// The classes whose packets a tunnel takes.
    fn of(tunnel: &Tunnel) -> &'static [Class] {
        let kind = tunnel.mode.kind();
        match (kind.shim, kind.payload) {
            (Shim::Gre, Payload::Ethernet) if tunnel.udp.is_some() => &[Class::TapInUdp],
            (Shim::Gre, _) if tunnel.udp.is_some() => &[Class::GreInUdp],
            (Shim::Gre, Payload::Ethernet) if tunnel.nvgre => &[Class::Nvgre],
            (Shim::Gre, Payload::Ethernet) => &[Class::Tap],
            (Shim::Gre, _) => &[Class::Gre],
            (Shim::None, Payload::Ipv4) => &[Class::Ipv4],
            (Shim::None, Payload::Ipv6) => &[Class::Ipv6],
            (Shim::None, _) => &[Class::Ipv6, Class::Ipv4],
        }
    }
}

/// One family's addresses, and how a pair of them is kept: as numbers, which are quick to hash and to compare.
trait Address: Copy + Eq {
    type Pair: Copy + Eq + Hash;
    const ANY: Self;
    fn with(self, remote: Self) -> Self::Pair;
}

impl Address for Ipv4Addr {
    type Pair = u64;
    const ANY: Self = Ipv4Addr::UNSPECIFIED;
    #[inline]
    fn with(self, remote: Self) -> u64 {
        u64::from(self.to_bits()) << 32 | u64::from(remote.to_bits())
    }
}

impl Address for Ipv6Addr {
    type Pair = (u128, u128);
    const ANY: Self = Ipv6Addr::UNSPECIFIED;
    #[inline]
    fn with(self, remote: Self) -> (u128, u128) {
        (self.to_bits(), remote.to_bits())
    }
}

/// Class and key as one number; no key is not key 0.
#[inline]
fn tag(class: Class, key: Option<GreKey>) -> u64 {
    (class as u64) << 33 | key.map_or(0, |GreKey(key)| 1 << 32 | u64::from(key))
}

/// The tunnels over one family's underlay, by outer addresses as the receiver sees them (local is the packet's
/// destination), class and key. Those that share all of these are bound to different devices.
#[derive(Debug)]
struct Matches<A: Address> {
    ids: HashMap<(A::Pair, u64), Vec<TunnelId>, FxBuildHasher>,
    wildcards: bool,
    /// One of those is bound to a device.
    bound_wildcards: bool,
}

impl<A: Address> Default for Matches<A> {
    fn default() -> Self {
        Self {
            ids: HashMap::default(),
            wildcards: false,
            bound_wildcards: false,
        }
    }
}

impl<A: Address> Matches<A> {
    fn insert(&mut self, tunnel: &Tunnel, local: A, remote: A, is_group: bool) {
        // A multicast remote receives what is sent to the group, from anyone.
        let (local, remote) = if is_group {
            (remote, A::ANY)
        } else {
            (local, remote)
        };
        let any = local == A::ANY || remote == A::ANY;
        self.wildcards |= any;
        self.bound_wildcards |= any && tunnel.dev.is_some();
        for class in Class::of(tunnel) {
            let wanted = (local.with(remote), tag(*class, tunnel.ikey));
            self.ids.entry(wanted).or_default().push(tunnel.id);
        }
    }

    #[inline]
    fn lookup<'t>(
        &self,
        (local, remote): (A, A),
        tag: u64,
        device: Option<u32>,
        get: impl Fn(TunnelId) -> Option<&'t Tunnel>,
    ) -> Option<&'t Tunnel> {
        let mut candidate = None;
        let steps = [
            (local, remote),
            (A::ANY, remote),
            (local, A::ANY),
            (A::ANY, A::ANY),
        ];
        let steps = if self.wildcards {
            &steps[..]
        } else {
            &steps[..1]
        };
        for &(local, remote) in steps {
            let Some(ids) = self.ids.get(&(local.with(remote), tag)) else {
                continue;
            };
            for tunnel in ids.iter().filter_map(|id| get(*id)) {
                if tunnel.dev.is_some() && tunnel.dev == device {
                    return Some(tunnel);
                }
                candidate = candidate.or(Some(tunnel));
            }
        }
        candidate
    }
}

/// All tunnels of a snapshot, found by slot or by outer addresses and key.
#[derive(Debug, Default)]
pub struct TunnelTable {
    tunnels: Vec<Option<Tunnel>>,
    v4: Matches<Ipv4Addr>,
    v6: Matches<Ipv6Addr>,
}

impl TunnelTable {
    /// A table of these tunnels. Slots that are not named stay empty; tunnels that are down, or whose addresses are not of
    /// their mode's family, receive nothing.
    pub fn new(tunnels: impl IntoIterator<Item = Tunnel>) -> Self {
        let mut table = Self::default();
        // A kind that is made for the payload is asked before one that takes it too (sit takes IPv4), as the
        // priorities of the kernel's tunnel4 handlers have it; otherwise the first is asked first.
        let mut tunnels: Vec<Tunnel> = tunnels.into_iter().collect();
        tunnels.sort_by_key(|tunnel| tunnel.mode == Mode::Sit);
        for tunnel in tunnels {
            let slot = tunnel.id.index();
            if table.tunnels.len() <= slot {
                table.tunnels.resize_with(slot + 1, || None);
            }
            if tunnel.up {
                let group = tunnel.remote.is_multicast();
                match (tunnel.mode.kind().underlay, tunnel.local, tunnel.remote) {
                    (Family::V4, IpAddr::V4(l), IpAddr::V4(r)) => {
                        table.v4.insert(&tunnel, l, r, group);
                    }
                    (Family::V6, IpAddr::V6(l), IpAddr::V6(r)) => {
                        table.v6.insert(&tunnel, l, r, group);
                    }
                    _ => {}
                }
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

    /// Whether packets between the tunnel's addresses with its key can be no other tunnel's, whatever device they come by.
    pub fn is_alone(&self, tunnel: &Tunnel) -> bool {
        let (IpAddr::V4(local), IpAddr::V4(remote)) = (tunnel.local, tunnel.remote) else {
            return false;
        };
        let same = |class: &Class| (local.with(remote), tag(*class, tunnel.ikey));
        let mut same = Class::of(tunnel).iter().map(same);
        let alone = |wanted| {
            self.v4
                .ids
                .get(&wanted)
                .is_some_and(|ids| ids[..] == [tunnel.id])
        };
        !self.v4.bound_wildcards && same.all(alone)
    }

    /// Every tunnel, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Tunnel> {
        self.tunnels.iter().flatten()
    }

    /// The tunnel of a received packet, in the order of Linux's `ip_tunnel_lookup` (net/ipv4/ip_tunnel.c): both
    /// addresses; remote alone; local alone, or a group; neither. At each step a tunnel that is bound to `device` is
    /// taken at once; any other is kept until all steps are done. Tunnels that are down do not count.
    #[inline]
    pub fn lookup(
        &self,
        class: Class,
        local: IpAddr,
        remote: IpAddr,
        key: Option<GreKey>,
        device: Option<u32>,
    ) -> Option<&Tunnel> {
        let get = |id| self.get(id);
        match (local, remote) {
            (IpAddr::V4(l), IpAddr::V4(r)) => self.v4.lookup((l, r), tag(class, key), device, get),
            (IpAddr::V6(l), IpAddr::V6(r)) => self.v6.lookup((l, r), tag(class, key), device, get),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::UdpEncap;
    use proptest::prelude::*;

    fn address(v6: bool, n: u8) -> IpAddr {
        match (v6, n) {
            (false, 0) => Ipv4Addr::UNSPECIFIED.into(),
            (false, n) => Ipv4Addr::new(10, 0, 0, n).into(),
            (true, 0) => Ipv6Addr::UNSPECIFIED.into(),
            (true, n) => Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, n.into()]).into(),
        }
    }

    /// A tunnel between numbered addresses; number 0 is any.
    fn made(id: u32, mode: Mode, ends: (u8, u8), key: Option<u32>) -> Tunnel {
        let v6 = mode.kind().underlay == Family::V6;
        Tunnel {
            id: TunnelId(id),
            ikey: key.map(GreKey),
            ..Tunnel::new(mode, address(v6, ends.0), address(v6, ends.1))
        }
    }

    type Wanted = (Class, IpAddr, IpAddr, Option<GreKey>);

    /// `ip_tunnel_lookup` written as the kernel has it: four passes over a list.
    fn linear(list: &[Tunnel], wanted: Wanted, device: Option<u32>) -> Option<&Tunnel> {
        let (class, local, remote, key) = wanted;
        let any = address(local.is_ipv6(), 0);
        let mut candidate = None;
        for ends in [(local, remote), (any, remote), (local, any), (any, any)] {
            for t in list {
                let ours = t.up && Class::of(t).contains(&class);
                if ours && (t.local, t.remote, t.ikey) == (ends.0, ends.1, key) {
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
            modes in proptest::sample::select(vec![[Mode::Gre, Mode::Gretap, Mode::Ipip], [Mode::Ip6gre, Mode::Ip6gretap, Mode::Ip6ip6]]),
            specs in proptest::collection::vec((0usize..3, (0u8..3, 0u8..3), proptest::option::of(0u32..2), proptest::option::of(1u32..3), any::<bool>(), any::<bool>()), 0..12),
            class in proptest::sample::select(vec![Class::Gre, Class::Tap, Class::GreInUdp, Class::TapInUdp, Class::Ipv4, Class::Ipv6]),
            packet in (1u8..3, 1u8..3, proptest::option::of(0u32..2), 1u32..4),
        ) {
            let list: Vec<Tunnel> = specs.iter().enumerate()
                .map(|(i, &(mode, ends, key, dev, up, in_udp))| {
                    let udp = (in_udp && mode < 2).then_some(UdpEncap { source_port: None, checksum: true });
                    Tunnel { dev, up, udp, ..made(i as u32, modes[mode], ends, key) }
                }).collect();
            let table = TunnelTable::new(list.clone());
            let (l, r, key, dev) = packet;
            let v6 = modes[0].kind().underlay == Family::V6;
            let wanted = (class, address(v6, l), address(v6, r), key.map(GreKey));
            prop_assert_eq!(
                table.lookup(wanted.0, wanted.1, wanted.2, wanted.3, Some(dev)),
                linear(&list, wanted, Some(dev))
            );
        }
    }

    #[test]
    fn gre_4_no_key_is_not_key_zero() {
        for mode in [Mode::Gre, Mode::Ip6gre] {
            let v6 = mode == Mode::Ip6gre;
            let table =
                TunnelTable::new([made(0, mode, (1, 2), None), made(1, mode, (1, 2), Some(0))]);
            let id = |key| {
                let found = table.lookup(Class::Gre, address(v6, 1), address(v6, 2), key, None);
                found.map(|t| t.id.0)
            };
            assert_eq!(id(None), Some(0));
            assert_eq!(id(Some(GreKey(0))), Some(1));
            assert_eq!(id(Some(GreKey(1))), None);
        }
    }

    #[test]
    fn sit_takes_ipv4_only_where_no_ipip_is() {
        let (sit, ipip) = (
            made(0, Mode::Sit, (1, 2), None),
            made(1, Mode::Ipip, (1, 2), None),
        );
        let id = |list: &[Tunnel], class| {
            let table = TunnelTable::new(list.to_vec());
            let found = table.lookup(class, address(false, 1), address(false, 2), None, None);
            found.map(|t| t.id.0)
        };
        assert_eq!(id(std::slice::from_ref(&sit), Class::Ipv4), Some(0));
        for both in [[sit.clone(), ipip.clone()], [ipip, sit]] {
            assert_eq!(id(&both, Class::Ipv4), Some(1));
            assert_eq!(id(&both, Class::Ipv6), Some(0));
        }
    }
}
