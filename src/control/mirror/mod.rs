//! The mirror of what the kernel forwards by: links, addresses, routes, neighbours, forwarding switches, policy rules.
//!
//! [`State`] is plain data and knows no I/O: it takes [`Event`]s and says what changed and what can no longer be
//! trusted. [`Monitor`] owns the netlink socket: it subscribes before it dumps, keeps the state live, and reads a part
//! anew after an overrun or any doubt. Nobody else reads kernel state, and nothing here changes it.
//!
//! Attributes are decoded here rather than by a general parser: a mirror needs few of them, and an attribute of a newer
//! kernel that a strict parser refuses must not cost us a link.

mod apply;
mod attribute;
mod decode;
mod decode_link;
mod decode_nexthop;
mod decode_route;
mod decode_tunnel;
mod event;
mod model;
mod monitor;
mod nexthop;
mod parts;
mod route;
mod socket;
mod state;
mod sync;
mod table;
mod touched;

pub use apply::Effect;
pub use decode::rule as read_rule;
pub use event::{Event, NetConfChange, RouteEvent};
pub use model::{Address, KernelTunnel, Link, Neighbour, NetConf, Nud, Rule, TunnelKind, Vlan};
pub use monitor::{Change, Monitor, Options};
pub use nexthop::Nexthop;
pub use parts::Parts;
pub use route::{Hop, Insertion, Route, RouteKind, Table};
pub use state::{Lookup, State};
pub use sync::Statistics;
pub use table::{Best, Prefix, RouteTable};
pub use touched::Touched;

/// Why the mirror could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("cannot open a netlink socket to mirror the kernel's routes: {0}")]
    Socket(std::io::Error),
    #[error("the kernel did not answer a dump of its {what}: {error}")]
    Dump {
        what: &'static str,
        error: std::io::Error,
    },
}

#[cfg(test)]
mod tests;
