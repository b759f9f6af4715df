//! What a change of the state concerned, down to single prefixes and neighbours.

use std::net::IpAddr;

use ipnet::IpNet;

/// Beyond so many it is as good to look at all.
const MANY: usize = 1 << 17;

/// Prefixes and neighbours of which something may be new. The same may be named more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    routes: Named<IpNet>,
    neighbours: Named<(u32, IpAddr)>,
}

/// Some of a kind, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Named<T> {
    These(Vec<T>),
    All,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl<T> Named<T> {
    fn extend(&mut self, more: impl IntoIterator<Item = T>) {
        if let Self::These(known) = self {
            known.extend(more);
            if known.len() > MANY {
                *self = Self::All;
            }
        }
    }

    fn merge(&mut self, other: Self) {
        match other {
            Self::These(more) => self.extend(more),
            Self::All => *self = Self::All,
        }
    }

    fn these(&self) -> Option<&[T]> {
        match self {
            Self::These(known) => Some(known),
            Self::All => None,
        }
    }
}

impl Touched {
    /// Everything.
    pub fn all() -> Self {
        Self {
            routes: Named::All,
            neighbours: Named::All,
        }
    }

    /// The prefixes; none: all.
    pub fn routes(&self) -> Option<&[IpNet]> {
        self.routes.these()
    }

    /// The neighbours as (device, address); none: all.
    pub fn neighbours(&self) -> Option<&[(u32, IpAddr)]> {
        self.neighbours.these()
    }

    pub fn add_routes(&mut self, more: impl IntoIterator<Item = IpNet>) {
        self.routes.extend(more);
    }

    pub fn add_neighbours(&mut self, more: impl IntoIterator<Item = (u32, IpAddr)>) {
        self.neighbours.extend(more);
    }

    /// What either of them names.
    pub fn merge(&mut self, other: Self) {
        self.routes.merge(other.routes);
        self.neighbours.merge(other.neighbours);
    }
}
