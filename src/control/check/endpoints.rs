//! Each tunnel: its addresses, the way to its other end, its MTU, its name.

use super::{
    Finding,
    host::{Host, RouteTo},
};
use crate::control::config::{Config, Mtu, TunnelConfig, XdpMode};

/// The smallest MTU that a link with IPv6 may have (RFC 8200 section 5).
const IPV6_MTU: u32 = 1280;

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    for tunnel in &config.tunnels {
        findings.extend(name(host, tunnel));
        findings.extend(local(config, host, tunnel));
        findings.extend(bound(config, host, tunnel));
        match host.routes.get(&tunnel.remote) {
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
    match addresses
        .iter()
        .find(|(_, address)| address.addr() == local)
    {
        Some((index, _)) => {
            let found = format!("{local} is on {}", host.name_of(*index));
            Some(Finding::ok("local", &tunnel.name, found))
        }
        None => {
            let device = &config.router.underlay[0];
            let mend = format!("ip address add {local}/PREFIX dev {device}");
            let found = format!("{local} is on no device");
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
    let mut shadows = routes.filter(|(_, prefix)| {
        prefix.contains(&std::net::IpAddr::V4(remote)) && prefix.prefix_len() >= route.prefix_len
    });
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

fn mtu(host: &Host, tunnel: &TunnelConfig, route: &RouteTo) -> Option<Finding> {
    let underlay = host.link_by_index(route.device)?;
    let overhead = u32::from(tunnel.overhead());
    let room = underlay.mtu.saturating_sub(overhead);
    let carries_ipv6 = tunnel
        .address
        .iter()
        .chain(&tunnel.routes)
        .any(|prefix| prefix.addr().is_ipv6());
    let mtu = match tunnel.mtu {
        Mtu::Auto => room,
        Mtu::Fixed(mtu) => u32::from(mtu),
    };
    let sum = format!(
        "{} of {} less {overhead} is {room}",
        underlay.mtu, underlay.name
    );
    if mtu > room {
        let found = format!("{mtu} is too large: {sum}");
        let larger = mtu.saturating_add(overhead);
        let mend = format!(
            "set mtu = {room} or \"auto\", or: ip link set {} mtu {larger}",
            underlay.name
        );
        return Some(Finding::warn("mtu", &tunnel.name, found).mend(mend));
    }
    if carries_ipv6 && mtu < IPV6_MTU {
        let found = format!("{mtu} is too small for IPv6, which needs {IPV6_MTU}");
        let mend = format!("ip link set {} mtu {}", underlay.name, IPV6_MTU + overhead);
        return Some(Finding::fail("mtu", &tunnel.name, found).mend(mend));
    }
    Some(Finding::ok("mtu", &tunnel.name, format!("{mtu}: {sum}")))
}
