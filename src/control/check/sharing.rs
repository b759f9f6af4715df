//! How packets come from a card to the workers: over which queues, and polled or not.

use super::{
    Finding,
    host::{Card, Host, Link},
};
use crate::{
    control::config::{Config, Spread, XdpMode},
    tunnel::Family,
};

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    if config.router.xdp == XdpMode::Off {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let links = host.sockets(&config.router);
    for link in &links {
        let card = host.cards.get(&link.name);
        if link.queues.0 > 1 {
            findings.extend(card.and_then(|card| indirection(link, card)));
        }
        if config.router.busy_poll {
            findings.extend(card.and_then(|card| deferral(&link.name, card)));
        }
    }
    for link in links.iter().filter(|link| is_underlay(config, host, link)) {
        findings.extend(one_queue(config, link));
        let card = host.cards.get(&link.name).filter(|_| link.queues.0 > 1);
        findings.extend(card.and_then(|card| ports(config, &link.name, card)));
    }
    findings
}

/// Whether tunnel packets come by it, to itself or to a VLAN device on it.
fn is_underlay(config: &Config, host: &Host, link: &Link) -> bool {
    let mut underlay = config.router.underlay.iter();
    underlay.any(|name| {
        let above = host.link(name).filter(|above| above.is("vlan"));
        *name == link.name || above.is_some_and(|above| above.lower == Some(link.index))
    })
}

/// A card that spreads over some of its queues leaves the workers of the others idle.
fn indirection(link: &Link, card: &Card) -> Option<Finding> {
    let (name, queues) = (&link.name, link.queues.0);
    let used = card.spreads_over?;
    if used >= queues {
        let found = format!("RSS spreads over {used} of {queues} queues");
        return Some(Finding::ok("rss", name, found));
    }
    let found =
        format!("RSS spreads over {used} of {queues} queues: the other workers get nothing");
    Some(Finding::warn("rss", name, found).mend(format!("ethtool -X {name} equal {queues}")))
}

/// Between two ends, packets without ports all come by one queue.
fn one_queue(config: &Config, link: &Link) -> Option<Finding> {
    let portless = config.tunnels.iter().filter(|tunnel| tunnel.udp.is_none());
    let (name, queues) = (&link.name, link.queues.0);
    match (config.router.spread, queues) {
        (Spread::On, 1) => {
            let found = "one queue, and so one worker: there is no other to spread flows over";
            let mend = format!("ethtool -L {name} combined N, the same on every device");
            Some(Finding::warn("spread", name, found).mend(mend))
        }
        (_, 1) => None,
        (Spread::Off, _) if portless.count() > 0 => {
            let found = "tunnel packets have no ports: those between two ends come by one queue, \
                         and spread = false leaves them to one worker";
            let mend = r#"spread = "auto", or encap = "gre-in-udp" at both ends"#;
            Some(Finding::warn("spread", name, found).mend(mend))
        }
        _ => None,
    }
}

/// GRE in UDP has ports to tell flows by; many cards do not look at them unless told.
fn ports(config: &Config, name: &str, card: &Card) -> Option<Finding> {
    let in_udp = |family| {
        let mut tunnels = config.tunnels.iter();
        tunnels.any(|tunnel| tunnel.udp.is_some() && tunnel.mode.kind().underlay == family)
    };
    let blind = |family, sees: Option<bool>| in_udp(family) && sees == Some(false);
    let word = match card.sees_udp_ports {
        [v4, _] if blind(Family::V4, v4) => "udp4",
        [_, v6] if blind(Family::V6, v6) => "udp6",
        _ => return None,
    };
    let found = "does not look at UDP ports when it chooses a queue: GRE in UDP between two ends comes by one";
    let mend = format!("ethtool -N {name} rx-flow-hash {word} sdfn");
    Some(Finding::warn("rss", name, found).mend(mend))
}

/// Without deferral the interrupt comes all the same, and does the polling's work beside it
/// (Documentation/networking/napi.rst, "IRQ mitigation").
fn deferral(name: &str, card: &Card) -> Option<Finding> {
    let (hard_irqs, flush) = card.deferral?;
    if hard_irqs > 0 && flush > 0 {
        let found = format!("interrupts deferred {hard_irqs} times, for {flush} ns each");
        return Some(Finding::ok("busy_poll", name, found));
    }
    let found = "interrupts are not deferred: they do the polling's work beside it";
    let device = format!("/sys/class/net/{name}");
    let mend =
        format!("echo 2 > {device}/napi_defer_hard_irqs; echo 200000 > {device}/gro_flush_timeout");
    Some(Finding::warn("busy_poll", name, found).mend(mend))
}
