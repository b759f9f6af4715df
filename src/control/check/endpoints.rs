//! Each tunnel: its addresses, the way to its other end, its MTU, its name.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Finding,
    host::{Host, RouteTo},
};
use crate::{
    control::{
        config::{Config, Mtu, TunnelConfig, XdpMode},
        report::human::mtu_sum,
    },
    tunnel::Payload,
};

/// The smallest MTU that a link with IPv6 may have (RFC 8200 section 5).
const IPV6_MTU: u32 = 1280;

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    for tunnel in &config.tunnels {
        findings.extend(name(host, tunnel));
        findings.extend(local(config, host, tunnel));
        findings.extend(bound(config, host, tunnel));
        findings.extend(payload(tunnel));
        match host.routes.get(&tunnel.name) {
            None => {}
            Some(Err(why)) => findings.push(unreachable(config, tunnel, why)),
            Some(Ok(route)) => {
                findings.push(remote(config, host, tunnel, route));
                findings.extend(mtu(host, tunnel, route));
            }
        }
    }
    findings
}

fn name(host: &Host, tunnel: &TunnelConfig) -> Option<Finding> {
    let link = host.link(&tunnel.name)?;
    if link.is("tun") && !link.ethernet {
        let found = match host.running {
            Some(_) => "its TUN device is there",
            None => "its TUN device is there and will be adopted",
        };
        return Some(Finding::ok("name", &tunnel.name, found));
    }
    let kind = link.kind.as_deref().unwrap_or("hardware");
    let found = format!("a device of this name exists and is no TUN device ({kind})");
    let mend = format!("ip link delete {}, or choose another name", tunnel.name);
    Some(Finding::fail("name", &tunnel.name, found).mend(mend))
}

fn local(config: &Config, host: &Host, tunnel: &TunnelConfig) -> Option<Finding> {
    let addresses = host.addresses.as_ref().ok()?;
    let local = tunnel.local;
    // A link-local address is one per link: it must be on the link that the tunnel is bound to.
    let bound = match local {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => tunnel.dev.as_deref(),
        _ => None,
    };
    let here = |(index, address): &&(u32, IpNet)| {
        address.addr() == local && bound.is_none_or(|dev| host.name_of(*index) == dev)
    };
    match addresses.iter().find(here) {
        Some((index, _)) => {
            let found = format!("{local} is on {}", host.name_of(*index));
            Some(Finding::ok("local", &tunnel.name, found))
        }
        None => {
            let device = bound.unwrap_or(&config.router.underlay[0]);
            let mend = format!("ip address add {local}/PREFIX dev {device}");
            let found = match bound {
                Some(dev) => format!("{local} is not on {dev}"),
                None => format!("{local} is on no device"),
            };
            Some(Finding::fail("local", &tunnel.name, found).mend(mend))
        }
    }
}

fn bound(config: &Config, host: &Host, tunnel: &TunnelConfig) -> Option<Finding> {
    let device = tunnel.dev.as_ref()?;
    if host.links.is_ok() && host.link(device).is_none() {
        let found = format!("dev {device}: there is no such device");
        return Some(Finding::fail("dev", &tunnel.name, found).mend("ip -brief link"));
    }
    off_the_underlay(config, device).then(|| {
        let found = format!("dev {device} is not an underlay device: slow path only");
        Finding::warn("dev", &tunnel.name, found).mend(format!("add {device:?} to underlay"))
    })
}

fn off_the_underlay(config: &Config, device: &str) -> bool {
    config.router.xdp != XdpMode::Off && !config.router.underlay.iter().any(|name| name == device)
}

fn unreachable(config: &Config, tunnel: &TunnelConfig, why: &str) -> Finding {
    let remote = tunnel.remote;
    let device = &config.router.underlay[0];
    Finding::fail(
        "remote",
        &tunnel.name,
        format!("no route to {remote}: {why}"),
    )
    .mend(format!("ip route add {remote} via GATEWAY dev {device}"))
}

fn remote(config: &Config, host: &Host, tunnel: &TunnelConfig, route: &RouteTo) -> Finding {
    let remote = tunnel.remote;
    let device = host.name_of(route.device);
    let more_specific = format!(
        "ip route add {remote} via GATEWAY dev {}",
        config.router.underlay[0]
    );
    if route.local {
        let found = format!("{remote} is an address of this host");
        return Finding::fail("remote", &tunnel.name, found)
            .mend("set remote to the other end's address");
    }
    if let Some(other) = config.tunnels.iter().find(|other| other.name == device) {
        let found = format!("the route to {remote} leads into tunnel {}", other.name);
        return Finding::fail("remote", &tunnel.name, found).mend(more_specific);
    }
    // What is configured will be installed, and wins where its prefix is as long as today's.
    let routes = config
        .tunnels
        .iter()
        .flat_map(|other| other.routes.iter().map(move |route| (other, route)));
    let mut shadows = routes
        .filter(|(_, prefix)| prefix.contains(&remote) && prefix.prefix_len() >= route.prefix_len);
    if let Some((other, prefix)) = shadows.next() {
        let found = format!(
            "route {prefix} will lead {remote} into tunnel {}",
            other.name
        );
        return Finding::fail("remote", &tunnel.name, found).mend(more_specific);
    }
    let via = route
        .gateway
        .map_or(String::new(), |gateway| format!(" via {gateway}"));
    if off_the_underlay(config, &device) {
        let found = format!(
            "{remote}{via} is reached by {device}, which is not an underlay device: slow path only"
        );
        return Finding::warn("remote", &tunnel.name, found)
            .mend(format!("add {device:?} to underlay"));
    }
    Finding::ok(
        "remote",
        &tunnel.name,
        format!("{remote} is reached{via} by {device}"),
    )
}

/// What is configured on the device, of a family that the kind does not carry.
fn payload(tunnel: &TunnelConfig) -> Option<Finding> {
    let (carried, is_stranger): (_, fn(&IpNet) -> bool) = match tunnel.mode.kind().payload {
        Payload::Ipv4 => ("IPv4", |prefix| prefix.addr().is_ipv6()),
        Payload::Ipv6 => ("IPv6", |prefix| prefix.addr().is_ipv4()),
        Payload::Ip | Payload::Ethernet => return None,
    };
    let mut prefixes = tunnel.address.iter().chain(&tunnel.routes);
    let stranger = prefixes.find(|prefix| is_stranger(prefix))?;
    let mode = tunnel.mode.as_str();
    let found = format!("{mode} carries {carried} alone: {stranger} leads nowhere");
    Some(Finding::warn("payload", &tunnel.name, found).mend("choose another mode, such as gre"))
}

fn mtu(host: &Host, tunnel: &TunnelConfig, route: &RouteTo) -> Option<Finding> {
    let underlay = host.link_by_index(route.device)?;
    let overhead = u32::from(tunnel.overhead());
    let room = underlay.mtu.saturating_sub(overhead);
    let mtu = match tunnel.mtu {
        Mtu::Auto => room,
        Mtu::Fixed(mtu) => u32::from(mtu),
    };
    let name = &underlay.name;
    let sum = mtu_sum(underlay.mtu, tunnel.headers().parts());
    let sum = format!("{name} has {sum}");
    if mtu > room {
        let found = format!("{mtu} is too large: {sum}");
        let larger = mtu.saturating_add(overhead);
        let mend = format!("set mtu = {room} or \"auto\", or: ip link set {name} mtu {larger}");
        return Some(Finding::warn("mtu", &tunnel.name, found).mend(mend));
    }
    let mend = format!("ip link set {name} mtu {}", IPV6_MTU + overhead);
    let mut prefixes = tunnel.address.iter().chain(&tunnel.routes);
    if mtu < IPV6_MTU && prefixes.any(|prefix| prefix.addr().is_ipv6()) {
        let found = format!("{mtu} is too small for IPv6, which needs {IPV6_MTU}: {sum}");
        return Some(Finding::fail("mtu", &tunnel.name, found).mend(mend));
    }
    if room < IPV6_MTU && tunnel.mode.kind().payload != Payload::Ipv4 {
        let found = format!("leaves less than {IPV6_MTU}, so it carries no IPv6: {sum}");
        return Some(Finding::warn("mtu", &tunnel.name, found).mend(mend));
    }
    Some(Finding::ok("mtu", &tunnel.name, format!("{mtu}: {sum}")))
}
