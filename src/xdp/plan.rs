//! What the steering program shall know, and the way there from what it knows now.
//!
//! Pure: a [`Plan`] becomes [`Tables`] of raw keys and values, and the difference of two tables becomes an ordered
//! list of [`Step`]s. The order is chosen so that after every single step a packet is redirected only
//! if the old plan or the new one redirects it: what passes to the kernel meanwhile is slower, never wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::{Ipv4Net, Ipv6Net};

use super::abi;

/// Everything that the steering program decides by. The default steers nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// By interface index. A device that is not attached (yet) may stand here.
    pub ports: BTreeMap<u32, PortPlan>,
    pub tunnels: BTreeSet<TunnelMatch>,
    /// The router's own addresses: where a tunnel without local address receives. Without wildcard tunnels they are not needed.
    pub addresses: BTreeSet<IpAddr>,
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

/// What the outer header says is behind it, over either family's underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelClass {
    /// Protocol 47.
    Gre,
    /// GRE in UDP, to port 4754. Over IPv6 the kernel's socket asks for a UDP checksum, but not for this one.
    GreInUdp { zero_checksum: bool },
    /// An IPv4 packet: protocol 4.
    Ipv4,
    /// An IPv6 packet: protocol 41.
    Ipv6,
}

impl TunnelClass {
    fn protocol(self) -> u8 {
        match self {
            TunnelClass::Gre => 47,
            TunnelClass::GreInUdp { .. } => 17,
            TunnelClass::Ipv4 => 4,
            TunnelClass::Ipv6 => 41,
        }
    }

    fn has_key(self) -> bool {
        matches!(self, TunnelClass::Gre | TunnelClass::GreInUdp { .. })
    }

    /// What the map says of a tunnel of this class.
    fn flags(self) -> u32 {
        match self {
            TunnelClass::GreInUdp {
                zero_checksum: true,
            } => abi::TUNNEL_KNOWN | abi::TUNNEL_ZERO_CHECKSUM,
            _ => abi::TUNNEL_KNOWN,
        }
    }
}

/// A tunnel as its packets name it on receipt. One whose addresses are of two families, or that has a key and is not GRE,
/// has no packets: nothing is steered for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelMatch {
    pub class: TunnelClass,
    /// Outer destination; `0.0.0.0` or `::` is any of that family in [`Plan::addresses`].
    pub local: IpAddr,
    /// Outer source; `0.0.0.0` or `::` is any.
    pub remote: IpAddr,
    /// No key is not key 0.
    pub key: Option<u32>,
}

impl TunnelMatch {
    fn is_possible(&self) -> bool {
        self.local.is_ipv4() == self.remote.is_ipv4()
            && (self.class.has_key() || self.key.is_none())
    }
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
    Tunnels4,
    Tunnels6,
    Peers4,
    Peers6,
    Prefixes4,
    Prefixes6,
}

impl Table {
    pub(super) const ALL: [Table; 6] = [
        Table::Tunnels4,
        Table::Tunnels6,
        Table::Peers4,
        Table::Peers6,
        Table::Prefixes4,
        Table::Prefixes6,
    ];
}

/// A map's content: raw keys and values, as they stand in the kernel.
pub(super) type Entries = BTreeMap<Vec<u8>, u32>;

/// The content of every shared map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tables([Entries; 6]);

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
    fn possible(&self) -> impl Iterator<Item = &TunnelMatch> {
        self.tunnels.iter().filter(|t| t.is_possible())
    }

    /// Whether some tunnel over this family takes packets from any source.
    fn any_remote(&self, ipv4: bool) -> bool {
        self.possible()
            .any(|t| t.remote.is_unspecified() && t.remote.is_ipv4() == ipv4)
    }

    /// The plan as the maps shall hold it.
    pub(super) fn tables(&self) -> Tables {
        let mut tables = Tables::default();
        for tunnel in self.possible() {
            let (tunnels, peers) = match tunnel.local {
                IpAddr::V4(_) => (Table::Tunnels4, Table::Peers4),
                IpAddr::V6(_) => (Table::Tunnels6, Table::Peers6),
            };
            let protocol = tunnel.class.protocol();
            for local in self.locals(tunnel) {
                let key = abi::tunnel(local, tunnel.remote, protocol, tunnel.key);
                tables.get_mut(tunnels).insert(key, tunnel.class.flags());
                let key = abi::peer(local, tunnel.remote, protocol);
                tables.get_mut(peers).insert(key, PRESENT);
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

    /// Where the tunnel receives. The program cannot tell an own address from a passing packet's destination.
    fn locals(&self, tunnel: &TunnelMatch) -> Vec<IpAddr> {
        if !tunnel.local.is_unspecified() {
            return vec![tunnel.local];
        }
        let own = self.addresses.iter();
        let own = own.filter(|own| own.is_ipv4() == tunnel.local.is_ipv4());
        own.copied().collect()
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
            (self.any_remote(true), abi::PORT_ANY_REMOTE),
            (self.any_remote(false), abi::PORT_ANY_REMOTE6),
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
    for table in [
        Table::Tunnels4,
        Table::Tunnels6,
        Table::Peers4,
        Table::Peers6,
    ] {
        steps.extend(removals(now, wanted, table, |_| true));
    }
    for table in [Table::Prefixes4, Table::Prefixes6] {
        steps.extend(writes(now, wanted, table, |value| value == KERNEL));
        steps.extend(writes(now, wanted, table, |value| value != KERNEL));
        steps.extend(removals(now, wanted, table, |value| value != KERNEL));
        steps.extend(removals(now, wanted, table, |value| value == KERNEL));
    }
    for table in [
        Table::Peers4,
        Table::Peers6,
        Table::Tunnels4,
        Table::Tunnels6,
    ] {
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

    fn of(class: TunnelClass, local: &str, remote: &str, key: Option<u32>) -> TunnelMatch {
        TunnelMatch {
            class,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            key,
        }
    }

    fn with(tunnels: &[TunnelMatch]) -> Plan {
        let addresses = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"];
        Plan {
            tunnels: tunnels.iter().copied().collect(),
            addresses: addresses.map(|a| a.parse().unwrap()).into(),
            ..Plan::default()
        }
    }

    #[test]
    fn a_wildcard_local_means_each_of_our_addresses_of_its_family() {
        for (any, one, two, remote) in [
            ("0.0.0.0", "192.0.2.1", "192.0.2.2", "192.0.2.3"),
            ("::", "2001:db8::1", "2001:db8::2", "2001:db8::3"),
        ] {
            let locals = |locals: &[&str]| {
                let of = |local: &&str| of(TunnelClass::Ipv4, local, remote, None);
                with(&locals.iter().map(of).collect::<Vec<_>>()).tables()
            };
            assert_eq!(locals(&[any]), locals(&[one, two]));
            assert_ne!(locals(&[any]), locals(&[one]));
        }
    }

    #[test]
    fn a_tunnel_that_cannot_be_steers_nothing() {
        use TunnelClass::{Gre, Ipv4, Ipv6};
        for tunnel in [
            of(Gre, "192.0.2.1", "2001:db8::3", None),
            of(Ipv6, "::", "192.0.2.3", None),
            of(Ipv4, "0.0.0.0", "::", None),
            of(Ipv4, "192.0.2.1", "192.0.2.3", Some(0)),
            of(Ipv6, "2001:db8::1", "::", Some(1)),
        ] {
            let plan = with(&[tunnel]);
            assert_eq!(plan.tables(), Tables::default(), "{tunnel:?}");
            assert_eq!(plan.port_entry(0), abi::PortEntry::default());
        }
    }

    #[test]
    fn a_second_lookup_is_asked_for_only_where_a_tunnel_of_that_family_needs_it() {
        let flags = |local, remote| {
            let tunnel = of(TunnelClass::Gre, local, remote, None);
            with(&[tunnel]).port_entry(0).flags
        };
        assert_eq!(flags("192.0.2.1", "192.0.2.3"), 0);
        assert_eq!(flags("192.0.2.1", "0.0.0.0"), abi::PORT_ANY_REMOTE);
        assert_eq!(flags("2001:db8::1", "2001:db8::3"), 0);
        assert_eq!(flags("2001:db8::1", "::"), abi::PORT_ANY_REMOTE6);
    }
}
