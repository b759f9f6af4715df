//! What the mirror holds, besides routes.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::packet::MacAddr;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub nud: Nud,
}

/// A device's settings, or those of all devices, for one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetConf {
    pub forwarding: bool,
    /// Routes by a device without carrier count as dead.
    pub ignore_linkdown: bool,
}

/// A policy rule, as far as it takes to know whether it is one of the kernel's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    pub v6: bool,
    pub priority: u32,
    pub table: u32,
    /// It looks up its table for every packet, and does nothing else.
    pub plain: bool,
}

/// A prefix in the words of the standard library's addresses: host bits are cut off, an impossible length refused.
pub(super) fn prefix(address: IpAddr, len: u8) -> Option<IpNet> {
    IpNet::new(address, len).ok().map(|net| net.trunc())
}
