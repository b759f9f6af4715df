//! What the steering program shall know, and the way there from what it knows now.
//!
//! Pure: a [`Plan`] becomes [`Tables`] of raw keys and values, and the difference of two tables becomes an ordered
//! list of [`Step`]s. The order is chosen so that after every single step a packet is redirected only
//! if the old plan or the new one redirects it: what passes to the kernel meanwhile is slower, never wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::{Ipv4Net, Ipv6Net};

use super::abi;

/// Everything that the steering program decides by. The default steers nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// By interface index. A device that is not attached (yet) may stand here.
    pub ports: BTreeMap<u32, PortPlan>,
    pub tunnels: BTreeSet<TunnelMatch>,
    /// The router's own addresses: where a tunnel with local `0.0.0.0` receives. Without wildcard tunnels they are not needed.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Routes into tunnels, and the more specific routes (and own addresses) beneath them.
    pub v4: BTreeMap<Ipv4Net, PrefixAction>,
    pub v6: BTreeMap<Ipv6Net, PrefixAction>,
}

/// One device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortPlan {
    /// Frames to any other address are the kernel's.
    pub mac: [u8; 6],
    /// Carries tunnel packets.
    pub underlay: bool,
    /// Faces the inner networks.
    pub overlay: bool,
    /// The kernel forwards IPv4 that comes in by this device.
    pub forward4: bool,
    /// The kernel forwards IPv6 that comes in by this device.
    pub forward6: bool,
    /// A veth, whose senders may leave transport checksums unfinished.
    pub partial_checksums: bool,
}

/// A tunnel as its packets name it on receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelMatch {
    /// Outer destination; `0.0.0.0` is any of [`Plan::addresses`].
    pub local: Ipv4Addr,
    /// Outer source; `0.0.0.0` is any.
    pub remote: Ipv4Addr,
    /// No key is not key 0.
    pub key: Option<u32>,
}

/// Where a prefix leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixAction {
    /// Into a tunnel that is ready. `mtu` is the largest inner packet in bytes; 0 lets none through.
    Tunnel { mtu: u16 },
    /// Anywhere else: the kernel forwards or delivers.
    Kernel,
}

impl PrefixAction {
    fn value(self) -> u32 {
        match self {
            PrefixAction::Tunnel { mtu } => mtu.into(),
            PrefixAction::Kernel => KERNEL,
        }
    }
}

const KERNEL: u32 = 0;
const PRESENT: u32 = 1;

/// How many entries [`Steer::apply`](super::Steer::apply) wrote and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: usize,
    pub changed: usize,
    pub removed: usize,
}

impl Changes {
    pub(super) fn count_ports(&mut self, old: &Plan, new: &Plan) {
        for (ifindex, port) in &new.ports {
            match old.ports.get(ifindex) {
                None => self.added += 1,
                Some(before) if before != port => self.changed += 1,
                Some(_) => (),
            }
        }
        let gone = |ifindex: &&u32| !new.ports.contains_key(ifindex);
        self.removed += old.ports.keys().filter(gone).count();
    }
}

/// The maps that all attachments share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    Tunnels,
    Peers,
    Prefixes4,
    Prefixes6,
}

impl Table {
    pub(super) const ALL: [Table; 4] = [
        Table::Tunnels,
        Table::Peers,
        Table::Prefixes4,
        Table::Prefixes6,
    ];
}

/// A map's content: raw keys and values, as they stand in the kernel.
pub(super) type Entries = BTreeMap<Vec<u8>, u32>;

/// The content of every shared map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tables([Entries; 4]);

impl Tables {
    pub(super) fn get(&self, table: Table) -> &Entries {
        &self.0[table as usize]
    }

    pub(super) fn get_mut(&mut self, table: Table) -> &mut Entries {
        &mut self.0[table as usize]
    }

    /// Writes the step down, and how it counts.
    pub(super) fn note(&mut self, step: Step, changes: &mut Changes) {
        let entries = self.get_mut(step.table);
        match step.value {
            Some(value) => match entries.insert(step.key, value) {
                Some(_) => changes.changed += 1,
                None => changes.added += 1,
            },
            None => {
                entries.remove(&step.key);
                changes.removed += 1;
            }
        }
    }
}

/// One write to one map: a new value for a key, or none to remove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub table: Table,
    pub key: Vec<u8>,
    pub value: Option<u32>,
}

impl Plan {
    /// Whether some tunnel takes packets from any source.
    fn any_remote(&self) -> bool {
        self.tunnels.iter().any(|t| t.remote.is_unspecified())
    }

    /// The plan as the maps shall hold it.
    pub(super) fn tables(&self) -> Tables {
        let mut tables = Tables::default();
        for tunnel in &self.tunnels {
            // The program cannot tell an own address from a passing packet's destination.
            let locals = match tunnel.local.is_unspecified() {
                true => self.addresses.clone(),
                false => [tunnel.local].into(),
            };
            for local in &locals {
                let key = abi::tunnel(*local, tunnel.remote, tunnel.key);
                tables.get_mut(Table::Tunnels).insert(key, PRESENT);
                let key = abi::peer(*local, tunnel.remote);
                tables.get_mut(Table::Peers).insert(key, PRESENT);
            }
        }
        for (net, action) in &self.v4 {
            let key = abi::prefix4(net.network(), net.prefix_len());
            tables.get_mut(Table::Prefixes4).insert(key, action.value());
        }
        for (net, action) in &self.v6 {
            let key = abi::prefix6(net.network(), net.prefix_len());
            tables.get_mut(Table::Prefixes6).insert(key, action.value());
        }
        tables
    }

    /// The map entry of a device (or of none, for the raw socket), less what only its attachment knows.
    pub(super) fn port_entry(&self, ifindex: u32) -> abi::PortEntry {
        let port = self.ports.get(&ifindex).copied().unwrap_or_default();
        let flags = [
            (port.underlay, abi::PORT_UNDERLAY),
            (port.overlay, abi::PORT_OVERLAY),
            (port.forward4, abi::PORT_FORWARD4),
            (port.forward6, abi::PORT_FORWARD6),
            (port.partial_checksums, abi::PORT_PARTIAL_CHECKSUMS),
            (self.any_remote(), abi::PORT_ANY_REMOTE),
        ];
        abi::PortEntry {
            mac: port.mac,
            flags: flags.iter().filter(|f| f.0).map(|f| f.1).sum(),
            ..Default::default()
        }
    }
}

/// The way from `now` to `wanted`.
///
/// Tunnels are only a yes or no: removed first, added last. Of prefixes, those that lead to the kernel are written first,
/// then those that lead into tunnels; then old tunnel prefixes are removed, and last the old kernel prefixes, which until
/// then kept packets beneath them from a tunnel prefix above. So a longest match that finds a tunnel is always the
/// longest match of the old plan or of the new one.
pub(super) fn steps(now: &Tables, wanted: &Tables) -> Vec<Step> {
    let mut steps = Vec::new();
    for table in [Table::Tunnels, Table::Peers] {
        steps.extend(removals(now, wanted, table, |_| true));
    }
    for table in [Table::Prefixes4, Table::Prefixes6] {
        steps.extend(writes(now, wanted, table, |value| value == KERNEL));
        steps.extend(writes(now, wanted, table, |value| value != KERNEL));
        steps.extend(removals(now, wanted, table, |value| value != KERNEL));
        steps.extend(removals(now, wanted, table, |value| value == KERNEL));
    }
    for table in [Table::Peers, Table::Tunnels] {
        steps.extend(writes(now, wanted, table, |_| true));
    }
    steps
}

fn writes<'a>(
    now: &'a Tables,
    wanted: &'a Tables,
    table: Table,
    which: impl Fn(u32) -> bool + 'a,
) -> impl Iterator<Item = Step> + 'a {
    let now = now.get(table);
    let new = move |(key, value): &(&Vec<u8>, &u32)| which(**value) && now.get(*key) != Some(value);
    let wanted = wanted.get(table).iter().filter(new);
    wanted.map(move |(key, value)| Step {
        table,
        key: key.clone(),
        value: Some(*value),
    })
}

fn removals<'a>(
    now: &'a Tables,
    wanted: &'a Tables,
    table: Table,
    which: impl Fn(u32) -> bool + 'a,
) -> impl Iterator<Item = Step> + 'a {
    let wanted = wanted.get(table);
    let old = move |(key, value): &(&Vec<u8>, &u32)| which(**value) && !wanted.contains_key(*key);
    now.get(table).iter().filter(old).map(move |(key, _)| Step {
        table,
        key: key.clone(),
        value: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A few nested prefixes of few addresses, so that they get in each other's way.
    fn prefixes() -> impl Strategy<Value = BTreeMap<Ipv4Net, PrefixAction>> {
        let net = (0u32..16, 28u8..=32).prop_map(|(host, length)| {
            Ipv4Net::new((0x0a00_0000 | host).into(), length)
                .unwrap()
                .trunc()
        });
        let action = prop_oneof![
            Just(PrefixAction::Kernel),
            (1400u16..1403).prop_map(|mtu| PrefixAction::Tunnel { mtu }),
        ];
        proptest::collection::btree_map(net, action, 0..12)
    }

    fn plan(v4: BTreeMap<Ipv4Net, PrefixAction>) -> Plan {
        Plan {
            v4,
            ..Plan::default()
        }
    }

    /// Longest match by linear scan.
    fn into_tunnel(tables: &Tables, address: u32) -> bool {
        let covers = |key: &[u8]| {
            let length = u32::from_ne_bytes(key[..4].try_into().unwrap());
            let net = u32::from_be_bytes(key[4..].try_into().unwrap());
            let same = (net ^ address).leading_zeros() >= length;
            same.then_some(length)
        };
        let entries = tables.get(Table::Prefixes4).iter();
        let longest = entries.filter_map(|(key, value)| Some((covers(key)?, *value)));
        longest.max().is_some_and(|(_, value)| value != KERNEL)
    }

    proptest! {
        #[test]
        fn no_step_redirects_what_neither_plan_redirects(old in prefixes(), new in prefixes()) {
            let (old, new) = (plan(old).tables(), plan(new).tables());
            let mut now = old.clone();
            let mut changes = Changes::default();
            for step in steps(&old, &new) {
                now.note(step, &mut changes);
                for address in 0x0a00_0000..0x0a00_0010 {
                    let right = into_tunnel(&old, address) || into_tunnel(&new, address);
                    prop_assert!(right || !into_tunnel(&now, address));
                }
            }
            prop_assert_eq!(&now, &new);
            prop_assert!(steps(&now, &new).is_empty());
        }
    }

    #[test]
    fn a_wildcard_local_means_each_of_our_addresses() {
        let any = Ipv4Addr::UNSPECIFIED;
        let [a, b, remote] = [1, 2, 3].map(|n| Ipv4Addr::new(192, 0, 2, n));
        let tunnel = |local| TunnelMatch {
            local,
            remote,
            key: None,
        };
        let with = |locals: &[Ipv4Addr]| Plan {
            tunnels: locals.iter().copied().map(tunnel).collect(),
            addresses: [a, b].into(),
            ..Plan::default()
        };
        assert_eq!(with(&[any]).tables(), with(&[a, b]).tables());
        assert_ne!(with(&[any]).tables(), with(&[a]).tables());
    }
}
