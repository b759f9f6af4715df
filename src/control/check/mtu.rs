//! Whether a tunnel's MTU fits the underlay, with its arithmetic.

use std::net::IpAddr;

use super::{
    Finding,
    host::{Link, RouteTo},
};
use crate::{
    control::{
        config::{Mtu, TunnelConfig},
        report::human::mtu_sum,
    },
    tunnel::Payload,
};

/// The smallest MTU that a link with IPv6 may have (RFC 8200 section 5).
const IPV6_MTU: u32 = 1280;

/// A way of a tunnel's outer packets.
pub(super) struct Way<'h> {
    device: &'h Link,
    /// The route's own MTU, where it is below the device's, and where the route leads to.
    metric: Option<(u32, IpAddr)>,
}

impl<'h> Way<'h> {
    pub fn by(device: &'h Link) -> Self {
        Self {
            device,
            metric: None,
        }
    }

    pub fn of(route: &RouteTo, device: &'h Link, remote: IpAddr) -> Self {
        let narrower = route.mtu.filter(|metric| *metric < device.mtu);
        Self {
            device,
            metric: narrower.map(|metric| (metric, remote)),
        }
    }

    pub fn mtu(&self) -> u32 {
        self.metric.map_or(self.device.mtu, |(metric, _)| metric)
    }

    /// What is to be done for the way to carry `mtu` bytes.
    fn widen(&self, mtu: u32) -> String {
        match self.metric {
            Some((_, remote)) => format!("ip route change {remote} … mtu {mtu}"),
            None => format!("ip link set {} mtu {mtu}", self.device.name),
        }
    }

    /// What the tunnel's headers leave of it, in words.
    fn sum(&self, tunnel: &TunnelConfig) -> String {
        let name = &self.device.name;
        let of = match self.metric {
            Some(_) => format!("the route by {name}"),
            None => name.clone(),
        };
        mtu_sum(self.mtu(), &of, tunnel.headers().parts())
    }
}

/// Whether the device is one that IPv6 has to find room on.
fn carries_ipv6(tunnel: &TunnelConfig) -> bool {
    matches!(tunnel.mode.kind().payload, Payload::Ip | Payload::Ipv6)
}

/// Judges the MTU of a tunnel whose narrowest way this is.
pub(super) fn judge(tunnel: &TunnelConfig, way: &Way<'_>) -> Finding {
    let overhead = u32::from(tunnel.overhead());
    let room = way.mtu().saturating_sub(overhead);
    let (name, sum) = (&tunnel.name, way.sum(tunnel));
    match tunnel.mtu {
        Mtu::Auto if room < IPV6_MTU && carries_ipv6(tunnel) => {
            let found = format!(
                "{IPV6_MTU}, which IPv6 needs, so larger packets than the underlay carries leave in fragments: {sum}"
            );
            Finding::warn("mtu", name, found).mend(way.widen(IPV6_MTU + overhead))
        }
        Mtu::Auto => Finding::ok("mtu", name, sum),
        Mtu::Fixed(mtu) if u32::from(mtu) > room => {
            let wider = way.widen(u32::from(mtu) + overhead);
            let mend = format!("set mtu = {room} or \"auto\", or: {wider}");
            let above = format!("{mtu} is above the underlay's");
            match (tunnel.sends_whole(), tunnel.remote.is_unspecified()) {
                (true, false) => Finding::fail("mtu", name, format!("{above}: {sum}")),
                // One of several ways: those who send larger packets by it are told.
                (true, true) => Finding::warn("mtu", name, format!("{above}: {sum}")),
                (false, _) => {
                    let found = format!("{above}, so larger packets leave in fragments: {sum}");
                    Finding::warn("mtu", name, found)
                }
            }
            .mend(mend)
        }
        Mtu::Fixed(mtu) => Finding::ok("mtu", name, format!("{mtu} of {sum}")),
    }
}
