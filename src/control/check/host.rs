//! What was seen of this host: plain data, so that judging it can be tested without one.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::{
    control::{
        accelerate::Found,
        config::RouterConfig,
        mirror::{Rule, Vlan},
        ports::Nature,
    },
    tunnel::Family,
    xdp::HugePages,
};

/// An observation that may have been impossible, and then says why.
pub(super) type Seen<T> = Result<T, String>;

/// This host at one moment.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// Kernel release, as uname(2) has it.
    pub kernel: String,
    /// Effective capabilities, one bit each.
    pub capabilities: Seen<u64>,
    /// RLIMIT_MEMLOCK in bytes; none when unlimited.
    pub memlock: Option<u64>,
    /// The TUN driver can be opened.
    pub tun: Seen<()>,
    /// The kernel has AF_XDP.
    pub af_xdp: Seen<()>,
    /// CPUs that are online.
    pub cpus: Seen<Vec<usize>>,
    /// The kernel's own tunnel drivers that are loaded, by the module's name.
    pub kernel_tunnels: Vec<String>,
    /// The kernel's own tunnels that the configuration means.
    pub accelerated: Seen<Vec<Found>>,
    /// A greyhound that answers on the configured control path.
    pub running: Option<u32>,
    /// Whether GRE's UDP port is free, for each family that needs it.
    pub udp_ports: Vec<(Family, Seen<()>)>,
    pub links: Seen<Vec<Link>>,
    /// Addresses with the index of their device.
    pub addresses: Seen<Vec<(u32, IpNet)>>,
    /// All policy rules, the kernel's own too.
    pub rules: Seen<Vec<Rule>>,
    /// Queueing disciplines: device index and kind.
    pub qdiscs: Seen<Vec<(u32, String)>>,
    /// The kernel's route to each outer address that a tunnel sends to, by the tunnel's name and the address.
    pub routes: BTreeMap<(String, IpAddr), Seen<RouteTo>>,
    /// IP settings by device name; `all` among them.
    pub settings: BTreeMap<String, IpSettings>,
    /// Offloads of physical devices, in ethtool's words.
    pub offloads: BTreeMap<String, Seen<Offloads>>,
    /// Physical devices of the fast path, where they sit.
    pub cards: BTreeMap<String, Card>,
    /// The CPUs of each memory node.
    pub nodes: BTreeMap<u32, Vec<usize>>,
    /// Huge pages that were set aside; none where the kernel has none.
    pub huge_pages: Option<HugePages>,
    /// Connections that this network namespace tracks; none without connection tracking.
    pub connections: Option<u64>,
    /// The kernel's packet sampler is loaded, which sFlow agents use.
    pub sampler: bool,
    /// Base chains of the nftables ruleset.
    pub chains: Seen<Vec<Chain>>,
    /// Tables of the old iptables that are in use.
    pub legacy_tables: Vec<String>,
    /// IPsec policies.
    pub policies: Seen<Vec<Policy>>,
}

/// A network device.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub up: bool,
    pub carrier: bool,
    /// It carries multicast (IFF_MULTICAST).
    pub multicast: bool,
    pub ethernet: bool,
    /// The kind of a virtual device (`veth`, `tun`, `vlan` …); none for hardware.
    pub kind: Option<String>,
    /// The bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// The device beneath it, or a veth's peer, when that lies in this namespace.
    pub lower: Option<u32>,
    /// Of a VLAN device.
    pub vlan: Option<Vlan>,
    /// An XDP program that runs on it: id, and name where the kernel tells.
    pub xdp: Option<(u32, Option<String>)>,
    /// Receive and transmit queues in use.
    pub queues: (u32, u32),
    /// Its driver gives XDP packets in several buffers; none where the kernel does not say.
    pub in_pieces: Option<bool>,
}

/// Where the kernel would send a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RouteTo {
    /// Index of the egress device.
    pub device: u32,
    pub gateway: Option<IpAddr>,
    /// Length of the prefix that matched.
    pub prefix_len: u8,
    /// The address is this host's own.
    pub local: bool,
    /// The route's own MTU, where it has one.
    pub mtu: Option<u32>,
}

/// Per-device settings under /proc/sys/net; none where there is no such file.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct IpSettings {
    pub forwarding_v4: Option<u32>,
    pub forwarding_v6: Option<u32>,
    pub rp_filter: Option<u32>,
}

/// What `ethtool -k` says, as far as it matters here; (on, fixed).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Offloads {
    pub rxvlan: (bool, bool),
    pub lro: (bool, bool),
    pub rx_gro_hw: (bool, bool),
    pub gro: (bool, bool),
}

/// Hardware.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Card {
    /// Its memory node; none where the machine has one only.
    pub node: Option<u32>,
    /// Descriptors of each receive ring, now and at the most.
    pub ring: Option<(u32, u32)>,
    /// Its interrupts, each with the CPUs that get it.
    pub interrupts: Vec<(u32, Vec<usize>)>,
    /// So many queues stand in its RSS indirection table.
    pub spreads_over: Option<u32>,
    /// It looks at the ports of UDP over IPv4, and over IPv6, when it chooses a queue.
    pub sees_udp_ports: [Option<bool>; 2],
    /// `napi_defer_hard_irqs`, and `gro_flush_timeout` in nanoseconds.
    pub deferral: Option<(u64, u64)>,
}

/// A base chain of nftables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub family: String,
    pub table: String,
    pub name: String,
    pub hook: String,
    /// The device of a netdev chain.
    pub device: Option<String>,
    pub drops_by_default: bool,
    pub rules: usize,
}

/// An IPsec policy, in the words of `ip xfrm policy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    /// `in`, `out` or `fwd`.
    pub direction: &'static str,
    pub source: IpNet,
    pub destination: IpNet,
    /// 0 means any.
    pub protocol: u8,
    /// Such packets are dropped.
    pub blocks: bool,
}

impl Host {
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links
            .as_ref()
            .ok()?
            .iter()
            .find(|link| link.name == name)
    }

    pub fn link_by_index(&self, index: u32) -> Option<&Link> {
        self.links
            .as_ref()
            .ok()?
            .iter()
            .find(|link| link.index == index)
    }

    /// The name of the device with this index.
    pub fn name_of(&self, index: u32) -> String {
        match self.link_by_index(index) {
            Some(link) => link.name.clone(),
            None => format!("device {index}"),
        }
    }

    /// The device beneath another one.
    pub fn beneath(&self, link: &Link) -> Option<&Link> {
        self.link_by_index(link.lower?)
    }

    /// Why the fast path leaves a device to the kernel.
    pub fn why_slow(&self, link: &Link) -> Option<String> {
        let beneath = self.beneath(link);
        Nature {
            kind: link.kind.as_deref(),
            vlan: link.vlan,
            beneath: beneath.map(|link| (link.name.as_str(), link.kind.as_deref())),
        }
        .why_slow()
    }

    /// The devices that the fast path would have sockets on, once each: those configured, less what it leaves to the kernel,
    /// and those beneath VLAN devices.
    pub fn sockets(&self, config: &RouterConfig) -> Vec<&Link> {
        let mut sockets: Vec<&Link> = Vec::new();
        let devices = config.devices();
        let links = || devices.iter().filter_map(|name| self.link(name));
        let (vlans, others): (Vec<_>, Vec<_>) = links()
            .filter(|link| self.why_slow(link).is_none())
            .partition(|link| link.is("vlan"));
        let beneath = vlans.into_iter().filter_map(|link| self.beneath(link));
        for link in others.into_iter().chain(beneath) {
            if !sockets.iter().any(|known| known.index == link.index) {
                sockets.push(link);
            }
        }
        sockets
    }

    /// Kernel version, as far as it can be read.
    pub fn kernel_version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.kernel.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

impl Link {
    pub fn is(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }
}
