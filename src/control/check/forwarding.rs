//! Whether the kernel forwards: what it does not, the fast path does not either.

use super::{
    Finding,
    host::{Host, IpSettings},
};
use crate::control::config::Config;

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    let prefixes = || {
        config
            .tunnels
            .iter()
            .flat_map(|t| t.address.iter().chain(&t.routes))
    };
    let v6 = prefixes().any(|prefix| prefix.addr().is_ipv6());
    let v4 = !v6 || prefixes().any(|prefix| prefix.addr().is_ipv4());
    let mut findings = Vec::new();
    // Over wires nothing is forwarded.
    if !config.tunnels.is_empty() && config.tunnels.iter().all(|t| t.bridge.is_some()) {
        return findings;
    }
    for (family, wanted) in [("ipv4", v4), ("ipv6", v6)] {
        findings.extend(forwarding(config, host, family, wanted));
    }
    findings.extend(reverse_path(config, host));
    findings
}

/// `wanted`: the configuration names addresses or routes of this family.
fn forwarding(config: &Config, host: &Host, family: &str, wanted: bool) -> Vec<Finding> {
    let of = |settings: &IpSettings| match family {
        "ipv4" => settings.forwarding_v4,
        _ => settings.forwarding_v6,
    };
    // Packets come in by the overlay devices, and out of the tunnels by the tunnel devices, if these exist already.
    let routed = config.tunnels.iter().filter(|t| t.bridge.is_none());
    let is_wire = |name: &&String| {
        config
            .tunnels
            .iter()
            .any(|t| t.bridge.as_ref() == Some(*name))
    };
    let overlay = config.router.overlay.iter().filter(|name| !is_wire(name));
    let devices = overlay.chain(routed.map(|tunnel| &tunnel.name));
    let mut off = Vec::new();
    for name in std::iter::once("all").chain(devices.map(String::as_str)) {
        if host.settings.get(name).and_then(of) == Some(0) {
            off.push(name);
        }
    }
    let subject = "host";
    if off.is_empty() {
        return match host.settings.get("all").and_then(of) {
            Some(_) => vec![Finding::ok(
                "forwarding",
                subject,
                format!("{family} is on"),
            )],
            None if wanted => vec![Finding::fail(
                "forwarding",
                subject,
                format!("the kernel has no {family}"),
            )],
            None => Vec::new(),
        };
    }
    let found = format!("{family} is off on {}", off.join(", "));
    // The switch for all sets each device's too, but a device's own does not set the one for all.
    let mend = match (off.contains(&"all"), family) {
        (true, "ipv4") => "sysctl -w net.ipv4.ip_forward=1".to_owned(),
        (true, _) => "sysctl -w net.ipv6.conf.all.forwarding=1".to_owned(),
        (false, _) => {
            let keys = off
                .iter()
                .map(|name| format!("net.{family}.conf.{}.forwarding=1", sysctl_name(name)));
            format!("sysctl -w {}", keys.collect::<Vec<_>>().join(" "))
        }
    };
    match wanted {
        true => vec![Finding::fail("forwarding", subject, found).mend(mend)],
        false => vec![Finding::warn("forwarding", subject, found).mend(mend)],
    }
}

/// A dot in a device's name is a slash in a sysctl key (sysctl(8)).
fn sysctl_name(device: &str) -> String {
    device.replace('.', "/")
}

/// Strict filtering (RFC 3704) drops slow-path packets whose way back is another; the fast path does not look.
fn reverse_path(config: &Config, host: &Host) -> Option<Finding> {
    const STRICT: u32 = 1;
    let filter = |name: &str| {
        host.settings
            .get(name)
            .and_then(|settings| settings.rp_filter)
    };
    // The kernel takes the larger of the device's value and the one for all; 2 is loose.
    let all = filter("all").unwrap_or(0);
    let tunnels = config.tunnels.iter().map(|tunnel| tunnel.name.as_str());
    let devices = config.router.devices().into_iter().chain(tunnels);
    let strict: Vec<&str> = devices
        .filter(|name| filter(name).is_some_and(|own| own.max(all) == STRICT))
        .collect();
    if strict.is_empty() {
        return (all != STRICT).then(|| Finding::ok("rp_filter", "host", "not strict"));
    }
    let found = format!(
        "strict on {}: drops slow-path packets whose way back is another; the fast path does not look",
        strict.join(", ")
    );
    Some(Finding::warn("rp_filter", "host", found).mend("sysctl -w net.ipv4.conf.all.rp_filter=2"))
}
