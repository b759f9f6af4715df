//! The device at the other end of a tunnel's wire: its frames are the tunnel's, and nobody else's.

use super::{
    Finding,
    devices::READS_TAGS,
    host::{Host, Link},
};
use crate::control::config::{Config, Mtu, TunnelConfig, XdpMode};

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    for tunnel in &config.tunnels {
        let link = tunnel.bridge.as_ref().and_then(|name| host.link(name));
        let Some(link) = link else { continue };
        let mut bad = Vec::new();
        bad.extend(kind(link));
        bad.extend(master(host, link));
        bad.extend(addresses(host, link));
        bad.extend(tags(config, host, link));
        bad.extend(size(host, tunnel, link));
        if bad.is_empty() {
            let found = format!("all frames go into tunnel {}", tunnel.name);
            bad.push(Finding::ok("bridge", &link.name, found));
        }
        findings.extend(bad);
    }
    findings
}

fn kind(link: &Link) -> Option<Finding> {
    (!link.ethernet).then(|| {
        let found = "is no Ethernet device: there are no frames on it";
        Finding::fail("bridge", &link.name, found).mend("name an Ethernet device")
    })
}

/// A bridge or bond would get none of its frames.
fn master(host: &Host, link: &Link) -> Option<Finding> {
    let (name, master) = (&link.name, host.name_of(link.master?));
    let found = format!("is a port of {master}, which would not see its frames any more");
    Some(Finding::fail("bridge", name, found).mend(format!("ip link set {name} nomaster")))
}

/// Whoever answers to them is behind the tunnel now, or nobody.
fn addresses(host: &Host, link: &Link) -> Option<Finding> {
    let all = host.addresses.as_ref().ok()?.iter();
    let own = all.filter(|(index, _)| *index == link.index);
    let own: Vec<String> = own.map(|(_, address)| address.to_string()).collect();
    if own.is_empty() {
        return None;
    }
    let (name, list) = (&link.name, own.join(", "));
    let found =
        format!("has {list}: nobody reaches this host there, as all frames go into the tunnel");
    let mend =
        format!("sysctl -w net.ipv6.conf.{name}.disable_ipv6=1; ip address flush dev {name}");
    Some(Finding::warn("bridge", name, found).mend(mend))
}

fn tags(config: &Config, host: &Host, link: &Link) -> Option<Finding> {
    let beneath = host.beneath(link).filter(|_| link.is("vlan"));
    let blind = beneath.unwrap_or(link).is("veth") && host.kernel_version() < Some(READS_TAGS);
    (blind && config.router.xdp != XdpMode::Off).then(|| {
        let found =
            "before Linux 6.8 a veth hides VLAN tags from XDP: its frames go by the slow path";
        Finding::warn("bridge", &link.name, found)
            .mend("ethtool -K PEER txvlan off, or use Linux 6.8 or later")
    })
}

/// Nobody tells a host that its frames are too large: there is no router on the wire.
fn size(host: &Host, tunnel: &TunnelConfig, link: &Link) -> Option<Finding> {
    let overhead = u32::from(tunnel.overhead());
    let underlay = match tunnel.remotes().first() {
        Some(remote) => {
            let route = host.routes.get(&(tunnel.name.clone(), *remote))?;
            host.link_by_index(route.as_ref().ok()?.device)?
        }
        None => host.link(tunnel.dev.as_deref()?)?,
    };
    let mtu = match tunnel.mtu {
        Mtu::Auto => underlay.mtu.saturating_sub(overhead),
        Mtu::Fixed(mtu) => mtu.into(),
    };
    if link.mtu <= mtu {
        return None;
    }
    let found = format!(
        "has MTU {}, and tunnel {} carries {mtu}: larger frames are dropped",
        link.mtu, tunnel.name
    );
    let mend = format!(
        "set the MTU of all stations there, and of {}, to {mtu}; or carry {} all the way: ip link set {} mtu {}",
        link.name,
        link.mtu,
        underlay.name,
        link.mtu + overhead
    );
    Some(Finding::warn("bridge", &link.name, found).mend(mend))
}

#[cfg(test)]
#[path = "bridge_tests.rs"]
mod tests;
