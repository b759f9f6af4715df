//! Where a packet goes next.
//!
//! A [`Fib`] is an immutable snapshot of what the kernel knows: ports, tunnels, routes and neighbours, compiled for
//! lookups. The control room builds it from its mirror of the kernel; workers only read it.

use std::net::IpAddr;

use crate::packet::MacAddr;

/// A port: the index of a device in the router's list of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
