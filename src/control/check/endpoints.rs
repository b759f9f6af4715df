//! Each tunnel: its addresses, the way to its other end, its MTU, its name.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Finding,
    host::{Host, Link, RouteTo},
    mtu::{self, Way},
};
use crate::{
    control::config::{Config, TunnelConfig, XdpMode},
    tunnel::Payload,
};

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    for tunnel in &config.tunnels {
        findings.extend(name(host, tunnel));
        findings.extend(local(config, host, tunnel));
        findings.extend(bound(config, host, tunnel));
        findings.extend(payload(tunnel));
        findings.extend(numbers(tunnel));
        findings.extend(ways(config, host, tunnel));
    }
    findings
}

/// The ways to the other ends, and the MTU that the narrowest of them leaves.
fn ways(config: &Config, host: &Host, tunnel: &TunnelConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut all = Vec::new();
    for address in tunnel.remotes() {
        let end = End {
            tunnel,
            address: *address,
        };
        match host.routes.get(&(tunnel.name.clone(), *address)) {
            None => {}
            Some(Err(why)) => findings.push(unreachable(config, end, why)),
            Some(Ok(route)) => {
                findings.push(reached(config, host, end, route));
                let device = host.link_by_index(route.device);
                all.extend(device.map(|device| Way::of(route, device, *address)));
            }
        }
    }
    if tunnel.remote.is_unspecified() && tunnel.remotes().is_empty() {
        let found = "none is configured: packets go where the route's next hop is an outer address";
        findings.push(Finding::ok("peer", &tunnel.name, found));
    }
    if tunnel.remote.is_multicast() {
        let device = tunnel.dev.as_deref().and_then(|dev| host.link(dev));
        findings.extend(device.map(|device| group(tunnel, device)));
        all.extend(device.map(Way::by));
    }
    let narrowest = all.iter().min_by_key(|way| way.mtu());
    findings.extend(narrowest.map(|way| mtu::judge(tunnel, way)));
    findings
}

/// One of the addresses that a tunnel sends to.
#[derive(Clone, Copy)]
struct End<'a> {
    tunnel: &'a TunnelConfig,
    address: IpAddr,
}

impl End<'_> {
    /// What findings call it.
    fn word(self) -> &'static str {
        match self.tunnel.remote.is_unspecified() {
            true => "peer",
            false => "remote",
        }
    }
}

/// Whether the group can be joined, and sent to.
fn group(tunnel: &TunnelConfig, device: &Link) -> Finding {
    let (group, name) = (tunnel.remote, &device.name);
    if !device.multicast {
        let found = format!("{group}: {name} carries no multicast");
        let mend = format!("ip link set {name} multicast on");
        return Finding::fail("group", &tunnel.name, found).mend(mend);
    }
    let found = format!("{group} is joined on {name}");
    Finding::ok("group", &tunnel.name, found)
}

/// Senders that know nothing of each other, and one window for all their numbers.
fn numbers(tunnel: &TunnelConfig) -> Option<Finding> {
    let many = tunnel.remote.is_unspecified() || tunnel.remote.is_multicast();
    (tunnel.iseq && many).then(|| {
        let found = "sequence numbers of several senders: who counts behind the others is dropped";
        Finding::warn("seq", &tunnel.name, found).mend("set iseq = false")
    })
}

fn name(host: &Host, tunnel: &TunnelConfig) -> Option<Finding> {
    let link = host.link(&tunnel.name)?;
    let frames = tunnel.mode.kind().payload == Payload::Ethernet;
    let word = |ethernet| if ethernet { "TAP" } else { "TUN" };
    let wanted = word(frames);
    if link.is("tun") && link.ethernet == frames {
        let found = match host.running {
            Some(_) => format!("its {wanted} device is there"),
            None => format!("its {wanted} device is there and will be adopted"),
        };
        return Some(Finding::ok("name", &tunnel.name, found));
    }
    let kind = match (link.is("tun"), link.kind.as_deref()) {
        (true, _) => word(link.ethernet),
        (_, kind) => kind.unwrap_or("hardware"),
    };
    let found = format!("a device of this name exists and is no {wanted} device ({kind})");
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

fn unreachable(config: &Config, end: End<'_>, why: &str) -> Finding {
    let remote = end.address;
    let device = &config.router.underlay[0];
    let found = format!("no route to {remote}: {why}");
    Finding::fail(end.word(), &end.tunnel.name, found)
        .mend(format!("ip route add {remote} via GATEWAY dev {device}"))
}

fn reached(config: &Config, host: &Host, end: End<'_>, route: &RouteTo) -> Finding {
    let (remote, tunnel) = (end.address, end.tunnel);
    let device = host.name_of(route.device);
    let more_specific = format!(
        "ip route add {remote} via GATEWAY dev {}",
        config.router.underlay[0]
    );
    if route.local {
        let found = format!("{remote} is an address of this host");
        return Finding::fail(end.word(), &tunnel.name, found)
            .mend("set remote to the other end's address");
    }
    if let Some(other) = config.tunnels.iter().find(|other| other.name == device) {
        let found = format!("the route to {remote} leads into tunnel {}", other.name);
        return Finding::fail(end.word(), &tunnel.name, found).mend(more_specific);
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
        return Finding::fail(end.word(), &tunnel.name, found).mend(more_specific);
    }
    let via = route
        .gateway
        .map_or(String::new(), |gateway| format!(" via {gateway}"));
    if off_the_underlay(config, &device) {
        let found = format!(
            "{remote}{via} is reached by {device}, which is not an underlay device: slow path only"
        );
        return Finding::warn(end.word(), &tunnel.name, found)
            .mend(format!("add {device:?} to underlay"));
    }
    Finding::ok(
        end.word(),
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
