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
    let mut findings: Vec<Finding> = links.iter().filter_map(|link| veth(host, link)).collect();
    let wanted = wanted(config, &links);
    for link in links {
        let (rx, tx) = link.queues;
        let found = format!("{rx} receive, {tx} transmit");
        if (rx, tx.min(rx)) == (wanted, wanted) {
            findings.push(Finding::ok("queues", &link.name, found));
        } else {
            let found = format!(
                "{found}: {wanted} of each are needed, as many as workers and as on every device"
            );
            findings
                .push(Finding::fail("queues", &link.name, found).mend(set_queues(link, wanted)));
        }
    }
    findings
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

fn set_queues(link: &Link, wanted: u32) -> String {
    match link.is("veth") {
        true => format!("ethtool -L {} rx {wanted} tx {wanted}", link.name),
        false => format!("ethtool -L {} combined {wanted}", link.name),
    }
}

/// The kernel's veth_xdp_set(): native XDP needs as many receive queues as the peer has transmit queues.
fn veth(host: &Host, link: &Link) -> Option<Finding> {
    if !link.is("veth") {
        return None;
    }
    let rx = link.queues.0;
    let Some(peer) = link.lower.and_then(|index| host.link_by_index(index)) else {
        let found = format!(
            "the peer is in another namespace: native XDP needs it to have at most {rx} transmit queues"
        );
        return Some(Finding::ok("veth", &link.name, found));
    };
    let tx = peer.queues.1;
    let peer = &peer.name;
    if tx <= rx {
        return Some(Finding::ok(
            "veth",
            &link.name,
            format!("peer {peer} has {tx} transmit queues"),
        ));
    }
    let found = format!(
        "peer {peer} has {tx} transmit queues, more than the {rx} receive queues here: no native XDP"
    );
    Some(Finding::fail("veth", &link.name, found).mend(format!("ethtool -L {peer} tx {rx}")))
}
