//! Queues: one worker serves the same queue number of every device, so all devices need as many.

use super::{
    Finding,
    host::{Host, Link},
};
use crate::control::config::{Config, Workers, XdpMode};

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    if config.router.xdp == XdpMode::Off {
        return Vec::new();
    }
    let devices = config.router.devices();
    let links: Vec<&Link> = devices.iter().filter_map(|name| host.link(name)).collect();
    let wanted = wanted(config, &links);
    let mut findings = Vec::new();
    for link in links {
        findings.push(count(link, wanted));
        if link.is("veth") {
            findings.push(peer(host, link, wanted));
        }
    }
    findings
}

fn count(link: &Link, wanted: u32) -> Finding {
    let (rx, tx) = link.queues;
    let found = format!("{rx} receive, {tx} transmit");
    if rx == wanted && tx >= wanted {
        return Finding::ok("queues", &link.name, found);
    }
    let found =
        format!("{found}: {wanted} of each are needed, as many as workers and as on every device");
    let mend = match link.is("veth") {
        true => format!("ethtool -L {} rx {wanted} tx {wanted}", link.name),
        false => format!("ethtool -L {} combined {wanted}", link.name),
    };
    Finding::fail("queues", &link.name, found).mend(mend)
}

/// As many as the workers that are configured, else the smallest number that a device has.
fn wanted(config: &Config, links: &[&Link]) -> u32 {
    match &config.router.workers {
        Workers::Cpus(cpus) => cpus.len() as u32,
        Workers::Auto => {
            let counts = links.iter().map(|link| link.queues.0.min(link.queues.1));
            counts.min().unwrap_or(1).max(1)
        }
    }
}

/// The kernel's veth_xdp_set(): native XDP needs as many receive queues as the peer has transmit queues.
fn peer(host: &Host, link: &Link, wanted: u32) -> Finding {
    let Some(peer) = link.lower.and_then(|index| host.link_by_index(index)) else {
        let found = format!(
            "the peer is in another namespace; native XDP takes {wanted} or fewer of its transmit queues"
        );
        return Finding::ok("veth", &link.name, found);
    };
    let tx = peer.queues.1;
    let peer = &peer.name;
    if tx <= wanted {
        return Finding::ok("veth", &link.name, format!("peer {peer} transmits on {tx}"));
    }
    let found =
        format!("peer {peer} transmits on {tx} queues, and {wanted} receive here: no native XDP");
    Finding::fail("veth", &link.name, found).mend(format!("ethtool -L {peer} tx {wanted}"))
}
