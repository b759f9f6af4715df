//! What the mirror holds, besides routes.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::packet::MacAddr;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    pub index: u32,
    pub name: Box<str>,
    /// The driver's kind as `ip -d link` prints it ("veth", "tun", "vlan" …); hardware has none.
    pub kind: Option<Box<str>>,
    /// None where the device's link addresses are not six bytes (a TUN device has none).
    pub mac: Option<MacAddr>,
    /// Bytes of the largest network-layer packet.
    pub mtu: u32,
    /// IFF_UP: administratively up.
    pub up: bool,
    /// IFF_LOWER_UP: up and with carrier.
    pub carrier: bool,
    /// IFF_RUNNING: operational (RFC 2863), which also wants 802.1X and the like to be content.
    pub running: bool,
    /// IFF_NOARP: the device resolves no neighbours.
    pub no_arp: bool,
    pub loopback: bool,
    /// The device beneath (VLAN, macvlan) or the peer (veth); in another namespace when `link_elsewhere`.
    pub link: Option<u32>,
    pub link_elsewhere: bool,
    /// The bridge, bond or VRF that this device belongs to.
    pub master: Option<u32>,
    /// Of a device of kind "vlan".
    pub vlan: Option<Vlan>,
    /// What a tunnel device of the kernel's does, where it is of a kind that is looked into.
    pub tunnel: Option<Box<KernelTunnel>>,
    /// Receive queues that the device was created with; `ethtool -l` knows how many are in use.
    pub rx_queues: u32,
    pub tx_queues: u32,
    /// The id of an attached XDP program. A program attached through a BPF link causes no message, so
    /// this is as old as the link's last change.
    pub xdp_program: Option<u32>,
}

/// What a VLAN device is told to do (ip-link(8), VLAN Type Support).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vlan {
    pub id: u16,
    /// Its tags are 802.1ad's, not 802.1Q's.
    pub provider: bool,
    /// The tag is taken out of received frames, and put into sent ones late (`reorder_hdr on`).
    pub reorders: bool,
    /// Packets are sent with priorities in the tag (`egress-qos-map`).
    pub marks: bool,
}

/// The kinds of the kernel's tunnel devices that are looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelKind {
    Gre,
    Ip6gre,
    Ipip,
    Sit,
    Ip6tnl,
}

impl TunnelKind {
    pub fn from_word(kind: &str) -> Option<Self> {
        Some(match kind {
            "gre" => Self::Gre,
            "ip6gre" => Self::Ip6gre,
            "ipip" => Self::Ipip,
            "sit" => Self::Sit,
            "ip6tnl" => Self::Ip6tnl,
            _ => return None,
        })
    }
}

/// A tunnel device of the kernel's, as it tells of it (`ip -d link show`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelTunnel {
    pub kind: TunnelKind,
    /// None where the device has none, as well as the unspecified address.
    pub local: Option<IpAddr>,
    pub remote: Option<IpAddr>,
    /// Interface index of the device that it is bound to, or 0.
    pub link: u32,
    /// GRE's flags as they stand in its header (0x8000 checksum, 0x2000 key, 0x1000 sequence number).
    pub iflags: u16,
    pub oflags: u16,
    pub ikey: u32,
    pub okey: u32,
    /// The hop limit over IPv6; 0 is inherit.
    pub ttl: u8,
    /// Over IPv4; 1 is inherit.
    pub tos: u8,
    pub pmtudisc: bool,
    pub ignore_df: bool,
    pub encap_limit: u8,
    /// Traffic class and flow label.
    pub flowinfo: u32,
    /// `IP6_TNL_F_…`, or sit's.
    pub flags: u32,
    /// The inner protocol of sit, ipip and ip6tnl; 0 is any.
    pub protocol: u8,
    /// `TUNNEL_ENCAP_…`; 0 is none.
    pub encap: u16,
    /// Packets bring their outer addresses with them (`external`).
    pub external: bool,
    pub fwmark: u32,
    pub six_rd_prefix_len: Option<u16>,
    /// The number of an attribute that is not known here.
    pub unknown: Option<u16>,
}

impl KernelTunnel {
    pub fn new(kind: TunnelKind) -> Self {
        Self {
            kind,
            local: None,
            remote: None,
            link: 0,
            iflags: 0,
            oflags: 0,
            ikey: 0,
            okey: 0,
            ttl: 0,
            tos: 0,
            pmtudisc: false,
            ignore_df: false,
            encap_limit: 0,
            flowinfo: 0,
            flags: 0,
            protocol: 0,
            encap: 0,
            external: false,
            fwmark: 0,
            six_rd_prefix_len: None,
            unknown: None,
        }
    }
}

/// An address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    pub ifindex: u32,
    pub ip: IpAddr,
    pub prefix_len: u8,
    /// The other end's address, where it is not `ip` itself (`ip addr add A peer B`).
    pub peer: Option<IpAddr>,
}

/// Neighbour unreachability detection states (RFC 4861 section 7.3.2, with Linux's additions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Nud {
    None,
    Incomplete,
    Reachable,
    Stale,
    Delay,
    Probe,
    Failed,
    NoArp,
    Permanent,
}

impl Nud {
    /// Packets may be sent to the neighbour's link address.
    pub fn usable(self) -> bool {
        !matches!(self, Nud::None | Nud::Incomplete | Nud::Failed)
    }

    /// The entry never expires: it needs no refreshing, and NTF_USE would take its permanence away.
    pub fn is_static(self) -> bool {
        matches!(self, Nud::NoArp | Nud::Permanent)
    }
}

/// A neighbour table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// None where the device has no six-byte link addresses, or the address is not known yet.
    pub mac: Option<MacAddr>,
    /// The link address where that is an address of IP, as a tunnel device without a remote has it.
    pub outer: Option<IpAddr>,
    pub nud: Nud,
}

/// A device's settings, or those of all devices, for one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetConf {
    pub forwarding: bool,
    /// Routes by a device without carrier count as dead.
    pub ignore_linkdown: bool,
}

/// A policy rule, as far as it takes to know whether it is one of the kernel's own, and which packets it cannot concern.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Rule {
    pub v6: bool,
    pub priority: u32,
    pub table: u32,
    /// It looks up its table for every packet, and does nothing else.
    pub plain: bool,
    /// It is for the packets that its selectors do not match (`not`).
    pub inverted: bool,
    pub iif: Option<Box<str>>,
    pub oif: Option<Box<str>>,
    pub from: Option<IpNet>,
    pub to: Option<IpNet>,
    /// It is for packets of VRFs.
    pub l3mdev: bool,
}

impl std::fmt::Display for Rule {
    /// As `ip rule` writes it, as far as it is known here.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = if self.v6 { "-6 " } else { "" };
        let not = if self.inverted { " not" } else { "" };
        write!(f, "{family}{}:{not}", self.priority)?;
        let nets = [("from", self.from), ("to", self.to)];
        for (word, net) in nets.iter().filter_map(|(word, net)| Some((word, (*net)?))) {
            write!(f, " {word} {net}")?;
        }
        for (word, device) in [("iif", &self.iif), ("oif", &self.oif)] {
            if let Some(device) = device {
                write!(f, " {word} {device}")?;
            }
        }
        match self.l3mdev {
            true => f.write_str(" l3mdev"),
            false => write!(f, " table {}", self.table),
        }
    }
}

/// A prefix in the words of the standard library's addresses: host bits are cut off, an impossible length refused.
pub(super) fn prefix(address: IpAddr, len: u8) -> Option<IpNet> {
    IpNet::new(address, len).ok().map(|net| net.trunc())
}
