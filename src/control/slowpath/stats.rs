//! What the slow path counts: written by its thread alone, read by the control room at any time.

use crate::{
    datapath::{DropCounts, PuntCounts},
    tunnel::Counter,
};

/// The slow path's books. What a tunnel carried is in its [`TunnelRecord`](crate::datapath::TunnelRecord) alone; what one
/// lost is there and in [`drops`](Self::drops).
///
/// Every packet that came ([`from_devices`](Self::from_devices), [`from_network`](Self::from_network),
/// [`punted`](Self::punted)) or was made here ([`copies`](Self::copies), [`keepalives_sent`](Self::keepalives_sent)) is in
/// exactly one place: [`into_tunnels`](Self::into_tunnels), [`out_of_tunnels`](Self::out_of_tunnels),
/// [`keepalives_heard`](Self::keepalives_heard), [`handed_over`](Self::handed_over), [`returned`](Self::returned) or
/// [`drops`](Self::drops).
#[derive(Debug, Default)]
pub struct SlowStats {
    /// Every drop, those of unknown tunnels included.
    pub drops: DropCounts,
    /// Packets that the kernel routed into tunnel devices.
    pub from_devices: Counter,
    /// Packets that the kernel delivered to raw and UDP sockets.
    pub from_network: Counter,
    /// What workers passed here, by their reasons.
    pub punted: PuntCounts,
    /// Beyond the first, the packets that one became: for several peers, or in pieces.
    pub copies: Counter,
    /// Keepalives that were written here.
    pub keepalives_sent: Counter,
    /// Those that came back.
    pub keepalives_heard: Counter,
    /// Packets that left encapsulated.
    pub into_tunnels: Counter,
    /// Packets that went into tunnel devices, and the far ends' keepalives that were sent back.
    pub out_of_tunnels: Counter,
    /// Passed on to the worker that owns the sequence numbers.
    pub handed_over: Counter,
    /// Handed back to the kernel through the service device.
    pub returned: Counter,
    /// TCP and UDP checksums that a veth had left unfinished.
    pub checksums_completed: Counter,
    /// Outer packets that left in fragments.
    pub fragmented: Counter,
    /// Inner packets that were cut before they were encapsulated.
    pub inner_fragmented: Counter,
    pub icmp: IcmpStats,
}

/// What was heard and said by ICMP.
#[derive(Debug, Default)]
pub struct IcmpStats {
    /// Errors received that are about nothing that a tunnel could have sent.
    pub ignored: Counter,
    /// Senders that were told of a packet that was too big.
    pub answered: Counter,
    /// Packets that were too big and whose senders may not be told, or could not be reached.
    pub not_answered: Counter,
    /// The same, whose senders had been told often enough.
    pub rate_limited: Counter,
}
