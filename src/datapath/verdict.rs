//! What becomes of a packet, and why.

use crate::{
    fib::PortId,
    packet::ParseError,
    tunnel::{Refusal, TunnelId},
};

/// What becomes of a packet: exactly one of these, always counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A finished Ethernet frame, its tag included, for this port, which has a socket.
    Transmit(PortId),
    /// For the kernel, or for the thread that owns the tunnel's sequence numbers.
    Punt(PuntReason, PuntTo),
    Drop(DropReason),
}

/// Where a punted packet goes. The buffer then begins with the IP header; in an Ethernet tunnel, an
/// inner packet begins with its Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PuntTo {
    /// A decapsulated packet, into its own tunnel's device.
    Tunnel(TunnelId),
    /// A frame from a wire, as it was received: to be encapsulated.
    Into(TunnelId),
    /// A packet as it was received (less its Ethernet header), into the service TUN device.
    Service,
    /// A finished outer packet, out of the raw socket.
    Underlay(TunnelId),
    /// A packet as it was received, for the thread that owns the tunnel's sequence numbers.
    Owner(TunnelId),
    /// One of the tunnel's keepalives that has come back, as it was received; or one of the far end's, decapsulated.
    Keepalive(TunnelId),
}

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every reason, in the order of its index.
            pub const ALL: &[$name] = &[$($name::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = $name::ALL.len();

            /// The counter's name, as it stands in JSON and in the documents.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }

            /// The counter's place in a table of all of them.
            #[inline]
            pub fn index(self) -> usize {
                self as usize
            }
        }
    };
}

reasons! {
    /// Why a packet left the fast path for the kernel.
    PuntReason {
        /// The frame is not one that the fast path carries (not IP, options, fragment, tag, other MAC …).
        NotPlain = "not_plain",
        /// No tunnel has these outer addresses and this key.
        UnknownTunnel = "unknown_tunnel",
        /// The mirror has no route, or one that only the kernel can follow.
        NoRoute = "no_route",
        /// The destination is the router itself.
        LocalDelivery = "local_delivery",
        /// The next hop's link address is not known yet.
        Unresolved = "unresolved",
        /// The TTL or hop limit would reach zero: the kernel answers.
        TtlExpiring = "ttl_expiring",
        /// Larger than the tunnel's or the egress device's MTU: the kernel answers or fragments.
        TooBig = "too_big",
        /// Forwarding is switched off on the device it came in by.
        ForwardingOff = "forwarding_off",
        /// Another thread owns the tunnel's sequence numbers.
        SequenceOwner = "sequence_owner",
        /// The outer next hop is not usable at this moment.
        TunnelNotReady = "tunnel_not_ready",
        /// A keepalive: ours, come back, or the far end's, to be sent back.
        Keepalive = "keepalive",
    }
}

reasons! {
    /// Why a packet was discarded. The names are the counters' names.
    DropReason {
        /// The frame is for another station: flooded, or received in promiscuous mode.
        OtherMac = "other_mac",
        /// Not an IP packet: nothing that the service device could carry.
        NotIp = "not_ip",
        /// A tag that is no port's VLAN, or none where only tagged frames have a port.
        VlanTag = "vlan_tag",
        /// Forwarding was switched off on the device while the packet was on its way.
        ForwardingOff = "forwarding_off",
        OuterTruncated = "outer_truncated",
        OuterVersion = "outer_version",
        OuterHeaderLength = "outer_header_length",
        OuterTotalLength = "outer_total_length",
        OuterChecksum = "outer_checksum",
        /// From an address of this host, where any other sender would do.
        OuterMartian = "outer_martian",
        /// A fragment where only whole packets can come.
        OuterFragment = "outer_fragment",
        /// GRE in UDP whose UDP header is cut, or says a length that cannot be.
        UdpLength = "udp_length",
        /// Wrong, or missing where the tunnel wants one.
        UdpChecksum = "udp_checksum",
        GreTruncated = "gre_truncated",
        GreVersion = "gre_version",
        GreFlags = "gre_flags",
        InnerTruncated = "inner_truncated",
        InnerVersion = "inner_version",
        InnerHeaderLength = "inner_header_length",
        InnerTotalLength = "inner_total_length",
        InnerChecksum = "inner_checksum",
        /// A frame with a VLAN tag, which NVGRE does not carry.
        InnerTagged = "inner_tagged",
        /// A frame larger than the tunnel device's MTU allows, or the device's at the other end of its wire.
        FrameTooBig = "frame_too_big",
        /// From a source that no packet may come from.
        InnerMartian = "inner_martian",
        UnknownTunnel = "unknown_tunnel",
        UnknownProtocol = "unknown_protocol",
        GreChecksum = "gre_checksum",
        GreChecksumPresence = "gre_checksum_presence",
        SequenceMissing = "sequence_missing",
        SequenceOld = "sequence_old",
        /// The inner packet says that it may not be encapsulated again.
        EncapLimit = "encap_limit",
        EcnCongestion = "ecn_congestion",
        Recursion = "recursion",
        /// It came by a group, and is for another member of it.
        OtherMember = "other_member",
        NoHeadroom = "no_headroom",
        NoRemote = "no_remote",
        /// The transmit ring of the egress port stayed full.
        TxRingFull = "tx_ring_full",
        /// The queue to the slow path was full.
        PuntQueueFull = "punt_queue_full",
        /// The slow path's write or send was refused by the kernel.
        SlowPathRefused = "slow_path_refused",
        /// Larger than the underlay's MTU with DF set, on the slow path.
        OuterTooBig = "outer_too_big",
        /// The tunnel device is down.
        TunnelDown = "tunnel_down",
        /// The tunnel's far end does not answer its keepalives.
        NoKeepalive = "no_keepalive",
        /// A handed-over packet found no free frame.
        NoFrame = "no_frame",
        /// The ring to the worker that has the packet's flow was full.
        SpreadFull = "spread_full",
    }
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Outer(e) => match e {
                ParseError::Truncated => DropReason::OuterTruncated,
                ParseError::Version => DropReason::OuterVersion,
                ParseError::HeaderLength => DropReason::OuterHeaderLength,
                ParseError::TotalLength => DropReason::OuterTotalLength,
                ParseError::HeaderChecksum => DropReason::OuterChecksum,
                ParseError::GreFlags => DropReason::GreFlags,
            },
            Refusal::OuterFragment => DropReason::OuterFragment,
            Refusal::UdpLength => DropReason::UdpLength,
            Refusal::UdpChecksum => DropReason::UdpChecksum,
            Refusal::Gre(e) => match e {
                ParseError::Version => DropReason::GreVersion,
                ParseError::GreFlags => DropReason::GreFlags,
                _ => DropReason::GreTruncated,
            },
            Refusal::Inner(e) => match e {
                ParseError::Truncated | ParseError::GreFlags => DropReason::InnerTruncated,
                ParseError::Version => DropReason::InnerVersion,
                ParseError::HeaderLength => DropReason::InnerHeaderLength,
                ParseError::TotalLength => DropReason::InnerTotalLength,
                ParseError::HeaderChecksum => DropReason::InnerChecksum,
            },
            Refusal::UnknownTunnel => DropReason::UnknownTunnel,
            Refusal::UnknownProtocol => DropReason::UnknownProtocol,
            Refusal::InnerTagged => DropReason::InnerTagged,
            Refusal::InnerMartian => DropReason::InnerMartian,
            Refusal::Checksum => DropReason::GreChecksum,
            Refusal::ChecksumPresence => DropReason::GreChecksumPresence,
            Refusal::SequenceMissing => DropReason::SequenceMissing,
            Refusal::SequenceOld => DropReason::SequenceOld,
            Refusal::EncapLimit => DropReason::EncapLimit,
            Refusal::EcnCongestion => DropReason::EcnCongestion,
            Refusal::Recursion => DropReason::Recursion,
            Refusal::NoRoom => DropReason::NoHeadroom,
            Refusal::NoRemote => DropReason::NoRemote,
        }
    }
}
