//! What the steering program shall know, and the way there from what it knows now.
//!
//! Pure: a [`Plan`] becomes [`Tables`] of raw keys and values, and the difference of two tables becomes an ordered
//! list of [`Step`]s. The order is chosen so that after every single step a packet is redirected only
//! if the old plan or the new one redirects it: what passes to the kernel meanwhile is slower, never wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::abi;
use crate::packet::Vid;

/// Everything that the steering program decides by. The default steers nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// By interface index. A device that is not attached (yet) may stand here, and VLAN devices, which never are.
    pub ports: BTreeMap<u32, PortPlan>,
    pub tunnels: BTreeSet<TunnelMatch>,
    /// The router's own addresses: where a tunnel without local address receives. Without wildcard tunnels they are not needed.
    pub addresses: BTreeSet<IpAddr>,
    /// By number: the largest inner packet that the hop takes, in bytes; 0, or a number beyond the end, leaves all to the
    /// kernel.
    pub hops: Vec<u16>,
    pub prefixes: PrefixPlan,
}

/// Routes into tunnels, and the more specific routes (and own addresses) beneath them. Host bits are zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrefixPlan {
    /// These and no others.
    All(BTreeMap<IpNet, PrefixAction>),
    /// These change, or go; others stay.
    Changes(BTreeMap<IpNet, Option<PrefixAction>>),
}

impl Default for PrefixPlan {
    fn default() -> Self {
        Self::All(BTreeMap::new())
    }
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
    /// All frames of up to so many bytes go into one tunnel; 0 while that is not ready. There is no other role beside this.
    pub wire: Option<u32>,
    /// A VLAN device: its frames come in by another device, tagged.
    pub vlan: Option<OnDevice>,
}

/// Where a VLAN device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnDevice {
    /// The interface index of the device that the program is attached to.
    pub ifindex: u32,
    /// The VLAN's number.
    pub vid: Vid,
}

/// What the outer header says is behind it, over either family's underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelClass {
    /// Protocol 47.
    Gre,
    /// The same with frames inside and a virtual subnet as the key (RFC 7637).
    Nvgre,
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
            TunnelClass::Gre | TunnelClass::Nvgre => 47,
            TunnelClass::GreInUdp { .. } => 17,
            TunnelClass::Ipv4 => 4,
            TunnelClass::Ipv6 => 41,
        }
    }
}

/// A tunnel as its packets name it on receipt. One whose addresses are of two families, or that has a key and is not GRE,
/// has no packets: nothing is steered for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelMatch {
    pub class: TunnelClass,
    /// Outer destination, an address or a group; `0.0.0.0` or `::` is any of that family in [`Plan::addresses`].
    pub local: IpAddr,
    /// Outer source; `0.0.0.0` or `::` is any.
    pub remote: IpAddr,
    /// No key is not key 0.
    pub key: Option<u32>,
    /// Whether its packets are steered, and not only let through to the raw socket. Frames and packets are not told apart
    /// here: where one of two tunnels with the same addresses and key is steered, both are.
    pub fast: bool,
    /// Whether the slow path's socket gets what is not steered. The kernel's own tunnels need none.
    pub socket: bool,
}

impl TunnelMatch {
    fn is_possible(&self) -> bool {
        self.local.is_ipv4() == self.remote.is_ipv4()
            && match self.class {
                TunnelClass::Gre | TunnelClass::GreInUdp { .. } => true,
                TunnelClass::Nvgre => self.key.is_some(),
                TunnelClass::Ipv4 | TunnelClass::Ipv6 => self.key.is_none(),
            }
    }

    fn key(&self) -> abi::Key {
        match (self.class, self.key) {
            (_, None) => abi::Key::None,
            (TunnelClass::Nvgre, Some(subnet)) => abi::Key::Subnet(subnet),
            (_, Some(key)) => abi::Key::Whole(key),
        }
    }

    /// What the map says of it.
    fn flags(&self) -> u32 {
        let zero_checksum = TunnelClass::GreInUdp {
            zero_checksum: true,
        };
        let flags = [
            (true, abi::TUNNEL_KNOWN),
            (self.class == zero_checksum, abi::TUNNEL_ZERO_CHECKSUM),
            (self.fast, abi::TUNNEL_FAST),
            (self.socket, abi::TUNNEL_SOCKET),
        ];
        flags.iter().filter(|f| f.0).map(|f| f.1).sum()
    }
}

/// Where a prefix leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixAction {
    /// Into a tunnel, by the hop of this number in [`Plan::hops`]; not 0.
    Hop(u32),
    /// Anywhere else: the kernel forwards or delivers.
    Kernel,
}

impl PrefixAction {
    fn value(self) -> u32 {
        match self {
            PrefixAction::Hop(number) => number,
            PrefixAction::Kernel => KERNEL,
        }
    }
}

pub(super) const KERNEL: u32 = 0;
const PRESENT: u32 = 1;

/// How many entries [`Steer::apply`](super::Steer::apply) wrote and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: usize,
    pub changed: usize,
    pub removed: usize,
}

impl Changes {
    pub(super) fn count_hops(&mut self, old: &[u16], new: &[u16]) {
        let of = |hops: &[u16], at: usize| hops.get(at).copied().unwrap_or(0);
        let all = 0..old.len().max(new.len());
        self.changed += all.filter(|at| of(old, *at) != of(new, *at)).count();
    }

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
}

impl Table {
    pub(super) const ALL: [Table; 4] = [
        Table::Tunnels4,
        Table::Tunnels6,
        Table::Peers4,
        Table::Peers6,
    ];
}

/// A map's content: raw keys and values, as they stand in the kernel.
pub(super) type Entries = BTreeMap<Vec<u8>, u32>;

/// The content of the shared maps of tunnels.
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
    fn possible(&self) -> impl Iterator<Item = &TunnelMatch> {
        self.tunnels.iter().filter(|t| t.is_possible())
    }

    /// Whether some tunnel over this family takes packets from any source.
    fn any_remote(&self, ipv4: bool) -> bool {
        self.possible()
            .any(|t| t.remote.is_unspecified() && t.remote.is_ipv4() == ipv4)
    }

    fn has_subnets(&self) -> bool {
        self.possible().any(|t| t.class == TunnelClass::Nvgre)
    }

    /// Whether some tunnel receives what is sent to a group.
    fn groups(&self) -> bool {
        self.possible().any(|t| t.local.is_multicast())
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
                let key = abi::tunnel(local, tunnel.remote, protocol, tunnel.key());
                *tables.get_mut(tunnels).entry(key).or_default() |= tunnel.flags();
                if tunnel.socket {
                    let key = abi::peer(local, tunnel.remote, protocol);
                    tables.get_mut(peers).insert(key, PRESENT);
                }
            }
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

    /// The map entries of an attached device (or of none, for the raw socket) by VLAN number, less what only its attachment
    /// knows. That of the device itself is always there.
    pub(super) fn port_entries(&self, ifindex: u32) -> BTreeMap<u16, abi::PortEntry> {
        let own = self.ports.get(&ifindex).filter(|port| port.vlan.is_none());
        let own = own.copied().unwrap_or_default();
        let on = |port: &PortPlan| {
            let on = port.vlan.filter(|on| on.ifindex == ifindex)?;
            Some((on.vid.get(), self.port_entry(port)))
        };
        let mut entries: BTreeMap<_, _> = self.ports.values().filter_map(on).collect();
        entries.insert(0, self.port_entry(&own));
        entries
    }

    fn port_entry(&self, port: &PortPlan) -> abi::PortEntry {
        let flags = [
            (port.underlay, abi::PORT_UNDERLAY),
            (port.overlay, abi::PORT_OVERLAY),
            (port.forward4, abi::PORT_FORWARD4),
            (port.forward6, abi::PORT_FORWARD6),
            (port.partial_checksums, abi::PORT_PARTIAL_CHECKSUMS),
            (self.any_remote(true), abi::PORT_ANY_REMOTE),
            (self.any_remote(false), abi::PORT_ANY_REMOTE6),
            (port.wire.is_some(), abi::PORT_WIRE),
            (self.has_subnets(), abi::PORT_NVGRE),
            (self.groups(), abi::PORT_GROUPS),
        ];
        abi::PortEntry {
            mac: port.mac,
            largest: port.wire.unwrap_or(0),
            flags: flags.iter().filter(|f| f.0).map(|f| f.1).sum(),
            ..Default::default()
        }
    }
}

/// Where prefixes lead, as it stands in the kernel's maps: the numbers of hops.
pub(super) type PrefixTable = BTreeMap<IpNet, u32>;

/// A change of one prefix: another hop, or none to remove it.
pub(super) type PrefixStep = (IpNet, Option<u32>);

/// The way to other prefixes, of those that differ.
///
/// What is new is written first, longer prefixes before shorter ones, and then what is old removed, the other way round. So
/// a longest match is always that of the old plan or of the new one. Hops have the lower MTU of the two plans meanwhile.
pub(super) fn prefix_steps(now: &PrefixTable, plan: &PrefixPlan) -> Vec<PrefixStep> {
    let mut steps: Vec<PrefixStep> = match plan {
        PrefixPlan::All(wanted) => {
            let gone = now.keys().filter(|net| !wanted.contains_key(net));
            let gone = gone.map(|net| (*net, None));
            let wanted = wanted
                .iter()
                .map(|(net, action)| (*net, Some(action.value())));
            wanted.chain(gone).collect()
        }
        PrefixPlan::Changes(changes) => {
            let change = |(net, action): (&IpNet, &Option<PrefixAction>)| {
                (*net, action.map(PrefixAction::value))
            };
            changes.iter().map(change).collect()
        }
    };
    steps.retain(|(net, value)| now.get(net) != value.as_ref());
    steps.sort_by_key(|(net, value)| {
        let length = i16::from(net.prefix_len());
        match value {
            Some(_) => (0, -length),
            None => (1, length),
        }
    });
    steps
}

/// The lower MTU of two plans for each hop.
pub(super) fn lower(a: &[u16], b: &[u16]) -> Vec<u16> {
    a.iter().zip(b).map(|(a, b)| *a.min(b)).collect()
}

/// The way from `now` to `wanted`: tunnels are only a yes or no, removed first and added last.
pub(super) fn removals_of(now: &Tables, wanted: &Tables) -> Vec<Step> {
    let tables = [
        Table::Tunnels4,
        Table::Tunnels6,
        Table::Peers4,
        Table::Peers6,
    ];
    let steps = tables.into_iter();
    steps
        .flat_map(|table| removals(now, wanted, table))
        .collect()
}

/// See [`removals_of`].
pub(super) fn additions_of(now: &Tables, wanted: &Tables) -> Vec<Step> {
    let tables = [
        Table::Peers4,
        Table::Peers6,
        Table::Tunnels4,
        Table::Tunnels6,
    ];
    let steps = tables.into_iter();
    steps.flat_map(|table| writes(now, wanted, table)).collect()
}

fn writes<'a>(
    now: &'a Tables,
    wanted: &'a Tables,
    table: Table,
) -> impl Iterator<Item = Step> + 'a {
    let now = now.get(table);
    let new = move |(key, value): &(&Vec<u8>, &u32)| now.get(*key) != Some(value);
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
) -> impl Iterator<Item = Step> + 'a {
    let wanted = wanted.get(table);
    let old = move |(key, _): &(&Vec<u8>, &u32)| !wanted.contains_key(*key);
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

    /// A few nested prefixes of few addresses, so that they get in each other's way, and a few hops.
    fn prefixes() -> impl Strategy<Value = (BTreeMap<IpNet, PrefixAction>, Vec<u16>)> {
        let net = (0u32..16, 28u8..=32).prop_map(|(host, length)| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 | host);
            IpNet::new(address.into(), length).unwrap().trunc()
        });
        let action = prop_oneof![
            Just(PrefixAction::Kernel),
            (1u32..5).prop_map(PrefixAction::Hop),
        ];
        let nets = proptest::collection::btree_map(net, action, 0..12);
        (nets, proptest::collection::vec(0u16..3, 0..5))
    }

    /// The largest packet that is redirected: longest match by linear scan.
    fn room(now: &PrefixTable, hops: &[u16], address: u32) -> u16 {
        let address = IpAddr::from(std::net::Ipv4Addr::from(address));
        let around = now.iter().filter(|(net, _)| net.contains(&address));
        let longest = around.max_by_key(|(net, _)| net.prefix_len());
        let hop = longest.map_or(KERNEL, |(_, hop)| *hop);
        if hop == KERNEL {
            return 0;
        }
        hops.get(hop as usize).copied().unwrap_or(0)
    }

    fn table(nets: &BTreeMap<IpNet, PrefixAction>) -> PrefixTable {
        nets.iter()
            .map(|(net, action)| (*net, action.value()))
            .collect()
    }

    proptest! {
        #[test]
        fn no_step_redirects_what_neither_plan_redirects(
            (old, old_hops) in prefixes(),
            (new, new_hops) in prefixes(),
            by_changes: bool,
        ) {
            let (before, after) = (table(&old), table(&new));
            let plan = match by_changes {
                true => {
                    let gone = old.keys().map(|net| (*net, None));
                    PrefixPlan::Changes(gone.chain(new.iter().map(|(net, a)| (*net, Some(*a)))).collect())
                }
                false => PrefixPlan::All(new),
            };
            let mut now = before.clone();
            let meanwhile = lower(&old_hops, &new_hops);
            for (net, value) in prefix_steps(&before, &plan) {
                let was = match value {
                    Some(value) => now.insert(net, value),
                    None => now.remove(&net),
                };
                prop_assert!(was != value, "a step without effect");
                for address in 0x0a00_0000..0x0a00_0010 {
                    let right = room(&before, &old_hops, address).max(room(&after, &new_hops, address));
                    prop_assert!(room(&now, &meanwhile, address) <= right);
                }
            }
            prop_assert_eq!(&now, &after);
            prop_assert!(prefix_steps(&now, &plan).is_empty());
        }
    }

    fn of(class: TunnelClass, local: &str, remote: &str, key: Option<u32>) -> TunnelMatch {
        TunnelMatch {
            class,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            key,
            fast: true,
            socket: true,
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
            assert_eq!(
                plan.port_entries(0),
                [(0, abi::PortEntry::default())].into()
            );
        }
    }

    #[test]
    fn a_second_lookup_is_asked_for_only_where_a_tunnel_of_that_family_needs_it() {
        let flags = |local, remote| {
            let tunnel = of(TunnelClass::Gre, local, remote, None);
            with(&[tunnel]).port_entries(0)[&0].flags
        };
        assert_eq!(flags("192.0.2.1", "192.0.2.3"), 0);
        assert_eq!(flags("192.0.2.1", "0.0.0.0"), abi::PORT_ANY_REMOTE);
        assert_eq!(flags("2001:db8::1", "2001:db8::3"), 0);
        assert_eq!(flags("2001:db8::1", "::"), abi::PORT_ANY_REMOTE6);
        // Frames for many are looked into only where a tunnel has a group.
        let group = abi::PORT_ANY_REMOTE | abi::PORT_GROUPS;
        assert_eq!(flags("239.1.1.1", "0.0.0.0"), group);
        let group = abi::PORT_ANY_REMOTE6 | abi::PORT_GROUPS;
        assert_eq!(flags("ff05::1", "::"), group);
    }
}
