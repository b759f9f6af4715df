//! Queues: one worker serves the same queue number of every device, so all devices need as many.

use super::{
    Finding,
    host::{Host, Link},
};
use crate::control::config::{Config, Workers, XdpMode};

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    let xdp = config.router.xdp;
    if xdp == XdpMode::Off {
        return Vec::new();
    }
    let links = host.sockets(&config.router);
    let fewest = links.iter().map(|link| link.queues.0.min(link.queues.1));
    let wanted = fewest.min().unwrap_or(1).max(1);
    let mut findings = Vec::new();
    for link in links {
        findings.push(count(link, wanted));
        if link.is("veth") && xdp != XdpMode::Generic {
            findings.push(peer(xdp, host, link, wanted));
        }
    }
    findings.extend(workers(config, wanted));
    findings
}

fn count(link: &Link, wanted: u32) -> Finding {
    let (rx, tx) = link.queues;
    let found = format!("{rx} receive, {tx} transmit");
    if rx == wanted && tx >= wanted {
        return Finding::ok("queues", &link.name, found);
    }
    let found = format!("{found}: every device needs the same number, one per worker");
    Finding::fail("queues", &link.name, found).mend(set_queues(link, wanted))
}

fn set_queues(link: &Link, wanted: u32) -> String {
    match link.is("veth") {
        true => format!("ethtool -L {} rx {wanted} tx {wanted}", link.name),
        false => format!("ethtool -L {} combined {wanted}", link.name),
    }
}

/// The kernel's veth_xdp_set(): native XDP needs as many receive queues as the peer has transmit queues.
fn peer(xdp: XdpMode, host: &Host, link: &Link, wanted: u32) -> Finding {
    let Some(peer) = link.lower.and_then(|index| host.link_by_index(index)) else {
        let found =
            format!("its peer, in another namespace, may have {wanted} transmit queues at most");
        return Finding::ok("veth", &link.name, found);
    };
    let (name, tx) = (&peer.name, peer.queues.1);
    if tx <= wanted {
        return Finding::ok(
            "veth",
            &link.name,
            format!("transmit queues of its peer {name}: {tx}"),
        );
    }
    let found = format!(
        "its peer {name} has {tx} transmit queues, more than the {wanted} that receive here: "
    );
    let mend = format!("ethtool -L {name} tx {wanted}");
    match xdp {
        XdpMode::Auto => Finding::warn(
            "veth",
            &link.name,
            found + "XDP will be generic, which is slow",
        ),
        _ => Finding::fail("veth", &link.name, found + "no native XDP"),
    }
    .mend(mend)
}

/// The router takes a queue's CPU from the list in turn.
fn workers(config: &Config, queues: u32) -> Option<Finding> {
    let Workers::Cpus(cpus) = &config.router.workers else {
        return None;
    };
    let (cpus, queues) = (cpus.len(), queues as usize);
    let found = match cpus.cmp(&queues) {
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Less => "some CPUs serve several queues",
        std::cmp::Ordering::Greater => "some CPUs have nothing to do",
    };
    let found = format!("{cpus} CPUs for {queues} queues: {found}");
    let mend = format!("name {queues} CPUs, or: ethtool -L DEVICE combined {cpus} on every device");
    Some(Finding::warn("workers", "host", found).mend(mend))
}
