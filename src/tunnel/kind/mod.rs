//! The kinds of tunnel. Each file says what is particular to its kind, with its tests beside it; what kinds have in
//! common is in [`encapsulate`](super::encapsulate) and [`decapsulate`](super::decapsulate), which go by these values.

mod gre;
mod gretap;
mod ip6gre;
mod ip6gretap;
mod ip6ip6;
mod ip6tnl;
mod ipip;
mod ipip6;
mod sit;

/// The kinds of tunnel, in iproute2's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    Gre,
    Gretap,
    Ip6gre,
    Ip6gretap,
    Ipip,
    Sit,
    Ip6ip6,
    Ipip6,
    /// As the kernel's sit devices carry IPv6 alone, and ip6tnl devices both families. Configured tunnels are not of these.
    Sit6,
    Ip6tnl,
}

/// The underlay's family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The protocol's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// What stands between the outer IP header and the inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shim {
    /// A GRE header.
    Gre,
    /// Nothing: the outer header's protocol says what is inside.
    None,
}

/// What a tunnel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    Ip,
    Ipv4,
    Ipv6,
    Ethernet,
}

/// What distinguishes one kind from the others.
#[derive(Debug)]
pub struct Kind {
    /// The word that iproute2 uses.
    pub word: &'static str,
    pub underlay: Family,
    pub shim: Shim,
    pub payload: Payload,
    /// IPv6 packets from these sources are not let out of the tunnel.
    pub is_martian: fn(std::net::Ipv6Addr) -> bool,
}

impl Kind {
    /// Whether keepalives can come back to such a tunnel: they are IP packets, and GRE.
    pub fn has_keepalives(&self) -> bool {
        self.shim == Shim::Gre && self.payload == Payload::Ip
    }
}

fn none_is_martian(_: std::net::Ipv6Addr) -> bool {
    false
}

impl Mode {
    /// Those that can be configured.
    pub const ALL: [Mode; 8] = [
        Mode::Gre,
        Mode::Gretap,
        Mode::Ip6gre,
        Mode::Ip6gretap,
        Mode::Ipip,
        Mode::Sit,
        Mode::Ip6ip6,
        Mode::Ipip6,
    ];

    #[inline]
    pub fn kind(self) -> &'static Kind {
        match self {
            Mode::Gre => &gre::KIND,
            Mode::Gretap => &gretap::KIND,
            Mode::Ip6gre => &ip6gre::KIND,
            Mode::Ip6gretap => &ip6gretap::KIND,
            Mode::Ipip => &ipip::KIND,
            Mode::Sit => &sit::KIND,
            Mode::Ip6ip6 => &ip6ip6::KIND,
            Mode::Ipip6 => &ipip6::KIND,
            Mode::Sit6 => &sit::KIND6,
            Mode::Ip6tnl => &ip6tnl::KIND,
        }
    }

    /// The word that iproute2 uses.
    pub fn as_str(self) -> &'static str {
        self.kind().word
    }

    /// The kind of a word that [`as_str`](Self::as_str) has given.
    pub fn from_report(word: &str) -> Option<Mode> {
        let more = [Mode::Ip6tnl].into_iter();
        Mode::ALL
            .into_iter()
            .chain(more)
            .find(|mode| mode.as_str() == word)
    }

    /// The kind of that word.
    pub fn from_word(word: &str) -> Option<Mode> {
        Mode::ALL.into_iter().find(|mode| mode.as_str() == word)
    }
}
