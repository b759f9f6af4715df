//! The parts of the mirror, each dumped by one request.

/// A set of parts: what changed, or what has to be read anew.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts(u16);

impl Parts {
    pub const NONE: Parts = Parts(0);
    pub const LINKS: Parts = Parts(1);
    pub const ADDRESSES: Parts = Parts(1 << 1);
    pub const RULES: Parts = Parts(1 << 2);
    /// The per-device settings of IPv4, forwarding among them.
    pub const NETCONF4: Parts = Parts(1 << 3);
    pub const NETCONF6: Parts = Parts(1 << 4);
    pub const NEIGHBOURS: Parts = Parts(1 << 5);
    /// Nexthop objects, which routes refer to.
    pub const NEXTHOPS: Parts = Parts(1 << 6);
    pub const ROUTES4: Parts = Parts(1 << 7);
    pub const ROUTES6: Parts = Parts(1 << 8);

    pub const ROUTES: Parts = Parts(Self::ROUTES4.0 | Self::ROUTES6.0);
    pub const NETCONF: Parts = Parts(Self::NETCONF4.0 | Self::NETCONF6.0);
    pub const ALL: Parts = Parts((1 << 9) - 1);

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn contains(self, all: Parts) -> bool {
        self.0 & all.0 == all.0
    }

    pub fn intersects(self, any: Parts) -> bool {
        self.0 & any.0 != 0
    }

    pub fn without(self, parts: Parts) -> Parts {
        Parts(self.0 & !parts.0)
    }

    /// The first single part of the set, in the order in which parts are dumped: links come first.
    pub fn first(self) -> Option<Parts> {
        (self.0 != 0).then(|| Parts(1 << self.0.trailing_zeros()))
    }

    /// The word for a single part.
    pub fn name(self) -> &'static str {
        match self {
            Parts::LINKS => "links",
            Parts::ADDRESSES => "addresses",
            Parts::RULES => "policy rules",
            Parts::NETCONF4 => "IPv4 device settings",
            Parts::NETCONF6 => "IPv6 device settings",
            Parts::NEIGHBOURS => "neighbours",
            Parts::NEXTHOPS => "nexthop objects",
            Parts::ROUTES4 => "IPv4 routes",
            Parts::ROUTES6 => "IPv6 routes",
            Parts::NONE => "nothing",
            _ => "several parts",
        }
    }
}

impl std::ops::BitOr for Parts {
    type Output = Parts;
    fn bitor(self, other: Parts) -> Parts {
        Parts(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for Parts {
    fn bitor_assign(&mut self, other: Parts) {
        self.0 |= other.0;
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut list = f.debug_set();
        let mut rest = *self;
        while let Some(part) = rest.first() {
            list.entry(&format_args!("{}", part.name()));
            rest = rest.without(part);
        }
        list.finish()
    }
}
