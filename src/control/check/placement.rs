//! Where hardware sits: memory nodes, interrupts and receive rings.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Finding,
    host::{Card, Host},
};
use crate::{
    control::config::{Config, Workers, XdpMode},
    xdp,
};

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    if config.router.xdp == XdpMode::Off {
        return Vec::new();
    }
    let mut findings = Vec::from_iter(huge_pages(config, host));
    for (name, card) in &host.cards {
        findings.extend(node(config, &host.nodes, name, card));
        findings.extend(interrupts(host, name, card));
        findings.extend(ring(name, card));
    }
    findings
}

/// A worker on another node fetches every packet over the link between the nodes.
fn node(
    config: &Config,
    nodes: &BTreeMap<u32, Vec<usize>>,
    name: &str,
    card: &Card,
) -> Option<Finding> {
    let node = card.node.filter(|_| nodes.len() > 1)?;
    let near = nodes.get(&node)?;
    let mend = format!("workers = {near:?}, or some of these");
    let Workers::Cpus(cpus) = &config.router.workers else {
        let found = format!("node {node}; workers = \"auto\" prefers the node of most devices");
        return Some(Finding::ok("numa", name, found));
    };
    let far: Vec<usize> = (cpus.iter().copied())
        .filter(|cpu| !near.contains(cpu))
        .collect();
    match far[..] {
        [] => Some(Finding::ok(
            "numa",
            name,
            format!("node {node}, as the workers"),
        )),
        _ => {
            let found =
                format!("its memory is on node {node}, workers run on CPUs {far:?} elsewhere");
            Some(Finding::warn("numa", name, found).mend(mend))
        }
    }
}

/// Packet memory is in huge pages where enough of them are free; they are for whoever comes first.
fn huge_pages(config: &Config, host: &Host) -> Option<Finding> {
    let huge = host.huge_pages?;
    let links = host.sockets(&config.router);
    let workers = u64::from(links.first()?.queues.0);
    let mtus: Vec<u32> = links.iter().map(|link| link.mtu).collect();
    let needed = workers * xdp::locked_bytes(&mtus)?.div_ceil(huge.bytes);
    let (size, free) = (huge.bytes >> 10, huge.free);
    let found = match (host.running, huge.total) {
        (_, 0) => format!(
            "none set aside; packet memory would take {needed} pages of {size} KiB (vm.nr_hugepages)"
        ),
        (Some(_), total) => {
            format!("{free} of {total} free, beside what the running greyhound has")
        }
        (None, total) => format!(
            "{free} of {total} free; packet memory takes {needed} pages of {size} KiB, or small pages"
        ),
    };
    Some(Finding::ok("hugepages", "host", found))
}

/// The kernel's share of a packet's way is done where the card's interrupts go: all on one CPU, or on another node, it is
/// the bottleneck before the workers are.
fn interrupts(host: &Host, name: &str, card: &Card) -> Option<Finding> {
    let cpus: BTreeSet<usize> = (card.interrupts.iter())
        .flat_map(|(_, cpus)| cpus.iter().copied())
        .collect();
    let (count, first) = (card.interrupts.len(), card.interrupts.first()?.0);
    let spread = "stop irqbalance, then for each";
    let near = card.node.and_then(|node| host.nodes.get(&node));
    let far = near.filter(|near| cpus.iter().any(|cpu| !near.contains(cpu)));
    let found = format!("{count} interrupts on CPUs {cpus:?}");
    let mend = |to: &str| format!("{spread}: echo {to} > /proc/irq/{first}/smp_affinity_list");
    Some(match (far, cpus.len()) {
        (Some(near), _) if host.nodes.len() > 1 => {
            let found = format!("{found}, and its memory is near CPUs {near:?}");
            Finding::warn("irq", name, found).mend(mend("one of these"))
        }
        (_, 1) if count > 1 && host.cpus.as_ref().is_ok_and(|all| all.len() > 1) => {
            let found = format!("all its {count} interrupts are on CPU {cpus:?}");
            Finding::warn("irq", name, found).mend(mend("another CPU"))
        }
        _ => Finding::ok("irq", name, found),
    })
}

/// What a worker does not fetch in time is lost: a ring holds what comes in meanwhile.
fn ring(name: &str, card: &Card) -> Option<Finding> {
    let (now, most) = card.ring?;
    let found = format!("receive ring of {now}, at most {most}");
    match now < most.min(1024) {
        false => Some(Finding::ok("ring", name, found)),
        true => {
            let mend = format!("ethtool -G {name} rx {}", most.min(4096));
            Some(Finding::warn("ring", name, found).mend(mend))
        }
    }
}
