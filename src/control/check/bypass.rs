//! What the kernel would do to forwarded packets, and the fast path goes past: netfilter, tc, policy routing.

use std::collections::{BTreeSet, HashSet};

use super::{
    Finding,
    host::{Chain, Host, Link, Policy},
};
use crate::{
    control::{
        config::{Accelerate, Config, TunnelConfig, XdpMode},
        mirror::{Rule, State, TunnelKind},
        rules::{Concern, Ours, concern},
    },
    packet::protocol,
    tunnel::{Family, GRE_IN_UDP_PORT, Payload, Shim},
};

/// Queueing disciplines that only queue: the kernel's defaults, and those that keep packets as they are.
const PLAIN_QDISCS: &[&str] = &[
    "noqueue",
    "mq",
    "pfifo_fast",
    "fq_codel",
    "fq",
    "pfifo",
    "bfifo",
    "noop",
];
/// Where a forwarded packet passes.
const FORWARD_HOOKS: &[&str] = &["prerouting", "forward", "postrouting", "ingress", "egress"];

const SLOW_PATH_KEEPS: &str = "keep it from tunnels that need it with xdp = \"off\"";

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    let mut findings = input(config, host);
    findings.push(ipsec(config, host));
    if config.router.xdp == XdpMode::Off {
        return findings;
    }
    findings.push(netfilter(config, host));
    findings.extend(legacy(host));
    let devices = devices(config, host);
    let links = devices.iter().filter_map(|name| host.link(name));
    findings.extend(links.filter_map(|link| tc(config, host, link)));
    findings.extend(rules(config, host));
    findings.extend(watchers(host));
    findings
}

/// Every device whose packets the fast path takes, or sends by.
fn devices<'a>(config: &'a Config, host: &'a Host) -> Vec<&'a str> {
    let mut devices = config.router.devices();
    for link in host.sockets(&config.router) {
        if !devices.contains(&link.name.as_str()) {
            devices.push(&link.name);
        }
    }
    devices
}

fn netfilter(config: &Config, host: &Host) -> Finding {
    let chains = match &host.chains {
        Ok(chains) => chains,
        Err(why) => {
            let found = format!("could not look: {why}");
            let mend = "apt install nftables, and run as root";
            return Finding::warn("netfilter", "host", found).mend(mend);
        }
    };
    let devices = devices(config, host);
    let ours = |chain: &&Chain| {
        let on_our_device = chain
            .device
            .as_deref()
            .is_none_or(|device| devices.contains(&device));
        let works = chain.rules > 0 || chain.drops_by_default;
        let forwards = FORWARD_HOOKS.contains(&chain.hook.as_str());
        forwards && works && on_our_device && !matches!(chain.family.as_str(), "bridge" | "arp")
    };
    let passed: Vec<String> = chains.iter().filter(ours).map(describe).collect();
    if passed.is_empty() {
        return Finding::ok("netfilter", "host", "no rules on the forward path");
    }
    let found = format!("the fast path goes past {}", passed.join(", "));
    let mend = format!("nft list ruleset; {SLOW_PATH_KEEPS}");
    Finding::warn("netfilter", "host", found).mend(mend)
}

fn describe(chain: &Chain) -> String {
    let Chain {
        family,
        table,
        name,
        hook,
        rules,
        ..
    } = chain;
    let policy = if chain.drops_by_default {
        ", policy drop"
    } else {
        ""
    };
    let hook = if hook == name {
        String::new()
    } else {
        format!(" ({hook})")
    };
    let plural = if *rules == 1 { "rule" } else { "rules" };
    format!("{family} {table} {name}{hook}: {rules} {plural}{policy}")
}

/// Fragments and other exceptions come in by a raw socket, behind the input hook; GRE in UDP by a UDP socket.
fn input(config: &Config, host: &Host) -> Vec<Finding> {
    let chains = host.chains.as_deref().unwrap_or_default().iter();
    let closed = chains.filter(|chain| chain.hook == "input" && chain.drops_by_default);
    let finding = |chain: &Chain| {
        let Chain {
            family,
            table,
            name,
            ..
        } = chain;
        let (protocols, in_udp) = protocols(config, family);
        let numbers: Vec<String> = protocols.iter().map(u8::to_string).collect();
        let numbers = numbers.join(", ");
        // `meta l4proto` looks behind IPv6 extension headers, among them the encapsulation limit's.
        let mut needs = Vec::new();
        if !protocols.is_empty() {
            let rule = format!("meta l4proto {{ {numbers} }}");
            needs.push((format!("IP protocol {numbers}"), rule));
        }
        if in_udp {
            let rule = format!("udp dport {GRE_IN_UDP_PORT}");
            needs.push((format!("UDP port {GRE_IN_UDP_PORT}"), rule));
        }
        let (what, rules): (Vec<_>, Vec<_>) = needs.into_iter().unzip();
        let found = format!(
            "{family} {table} {name} drops by default: the slow path needs {} accepted there",
            what.join(" and ")
        );
        let insert = |rule| format!("nft insert rule {family} {table} {name} {rule} accept");
        let mend: Vec<String> = rules.into_iter().map(insert).collect();
        let mend = mend.join("; ");
        (!what.is_empty()).then(|| Finding::warn("input", "host", found).mend(mend))
    };
    closed.filter_map(finding).collect()
}

/// The outer protocols of the tunnels whose packets a chain of this nftables family sees, and whether GRE in UDP is among
/// them.
fn protocols(config: &Config, family: &str) -> (BTreeSet<u8>, bool) {
    let seen = |tunnel: &&TunnelConfig| match tunnel.mode.kind().underlay {
        Family::V4 => matches!(family, "inet" | "ip"),
        Family::V6 => matches!(family, "inet" | "ip6"),
    };
    let tunnels = || config.tunnels.iter().filter(seen);
    let bare = tunnels().filter(|tunnel| tunnel.udp.is_none());
    let protocols = bare.flat_map(outer_protocols).copied().collect();
    (protocols, tunnels().any(|tunnel| tunnel.udp.is_some()))
}

/// What a tunnel's outer headers name as the protocol behind them.
fn outer_protocols(tunnel: &TunnelConfig) -> &'static [u8] {
    let kind = tunnel.mode.kind();
    match (kind.shim, kind.payload) {
        (Shim::Gre, _) if tunnel.udp.is_some() => &[protocol::UDP],
        (Shim::Gre, _) => &[protocol::GRE],
        (Shim::None, Payload::Ipv4) => &[protocol::IPIP],
        (Shim::None, Payload::Ipv6) => &[protocol::IPV6],
        (Shim::None, _) => &[protocol::IPIP, protocol::IPV6],
    }
}

fn legacy(host: &Host) -> Option<Finding> {
    if host.legacy_tables.is_empty() {
        return None;
    }
    let found = format!(
        "the fast path goes past old iptables: {}",
        host.legacy_tables.join(", ")
    );
    let mend = format!("iptables-legacy-save; ip6tables-legacy-save; {SLOW_PATH_KEEPS}");
    Some(Finding::warn("netfilter", "host", found).mend(mend))
}

/// Policies that packets are to obey and do not: on the fast path all of them, and on the slow path those that name the
/// protocol of a packet that leaves by a raw socket.
fn ipsec(config: &Config, host: &Host) -> Finding {
    let policies = match &host.policies {
        Err(why) => return Finding::warn("ipsec", "host", format!("could not look: {why}")),
        Ok(policies) => policies,
    };
    let off = config.router.xdp == XdpMode::Off;
    let passed = |policy: &Policy| {
        let tunnel = tunnel_of(config, policy);
        let goes_past = match off {
            true => policy.direction == "out" && policy.protocol != 0 && tunnel.is_some(),
            // What comes in for this host itself is left to the kernel.
            false => policy.direction != "in" || tunnel.is_some(),
        };
        let tunnel = tunnel.map_or(String::new(), |t| format!(" (tunnel {})", t.name));
        goes_past.then(|| in_words(policy) + &tunnel)
    };
    let passed: Vec<String> = policies.iter().filter_map(passed).collect();
    match (passed.is_empty(), off) {
        (true, _) => Finding::ok("ipsec", "host", "no policies that packets would go past"),
        (false, true) => {
            let found = format!(
                "outer packets leave by a raw socket, past policies that name their protocol: {}",
                passed.join("; ")
            );
            Finding::warn("ipsec", "host", found).mend("name the addresses alone: ip xfrm policy")
        }
        (false, false) => {
            let found = format!("the fast path goes past, in clear: {}", passed.join("; "));
            let mend = format!("ip xfrm policy; {SLOW_PATH_KEEPS}");
            Finding::warn("ipsec", "host", found).mend(mend)
        }
    }
}

/// The tunnel whose outer packets a policy is about.
fn tunnel_of<'c>(config: &'c Config, policy: &Policy) -> Option<&'c TunnelConfig> {
    let about = |tunnel: &&TunnelConfig| {
        let (from, to) = match policy.direction {
            "in" => (policy.destination, policy.source),
            _ => (policy.source, policy.destination),
        };
        let remotes = tunnel.remotes();
        let protocol = outer_protocols(tunnel).contains(&policy.protocol);
        from.contains(&tunnel.local)
            && remotes.iter().any(|remote| to.contains(remote))
            && (policy.protocol == 0 || protocol)
    };
    config.tunnels.iter().find(about)
}

fn in_words(policy: &Policy) -> String {
    let Policy {
        direction,
        source,
        destination,
        ..
    } = policy;
    let protocol = match policy.protocol {
        0 => String::new(),
        n => format!(" proto {n}"),
    };
    let blocks = if policy.blocks { " block" } else { "" };
    format!("{direction} {source} to {destination}{protocol}{blocks}")
}

fn tc(config: &Config, host: &Host, link: &Link) -> Option<Finding> {
    let name = &link.name;
    let qdiscs = match &host.qdiscs {
        Ok(qdiscs) => qdiscs,
        Err(why) => return Some(Finding::warn("tc", name, format!("could not look: {why}"))),
    };
    let kinds = qdiscs
        .iter()
        .filter(|(index, _)| *index == link.index)
        .map(|(_, kind)| kind.as_str());
    let mut passed: Vec<&str> = kinds.filter(|kind| !PLAIN_QDISCS.contains(kind)).collect();
    passed.sort_unstable();
    passed.dedup();
    // The running router's own wire.
    if host.running.is_some()
        && config
            .tunnels
            .iter()
            .any(|t| t.bridge.as_ref() == Some(name))
    {
        passed.retain(|kind| *kind != "clsact");
    }
    if passed.is_empty() {
        return Some(Finding::ok("tc", name, "no filters, no shaping"));
    }
    let found = format!("the fast path goes past tc: {}", passed.join(", "));
    Some(Finding::warn("tc", name, found).mend(format!(
        "tc qdisc show dev {name}; tc filter show dev {name} ingress"
    )))
}

/// Connections that are tracked, and a sampler that is loaded: neither knows the fast path's packets.
fn watchers(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(n) = host.connections.filter(|n| *n > 0) {
        let found =
            format!("{n} connections are tracked; those of the fast path will not be among them");
        findings.push(Finding::warn("conntrack", "host", found).mend("conntrack -L"));
    }
    if host.sampler {
        let found = "the kernel's packet sampler (psample) is loaded: sFlow and the like miss the fast path's packets";
        let mend = "sample on the next device along the way, or set xdp = \"off\"";
        findings.push(Finding::warn("sampler", "host", found).mend(mend));
    }
    findings
}

/// Each rule beside the kernel's own, and what it is to the fast path.
fn rules(config: &Config, host: &Host) -> Vec<Finding> {
    let rules = match &host.rules {
        Ok(rules) => rules,
        Err(why) => {
            return vec![Finding::warn(
                "rules",
                "host",
                format!("could not look: {why}"),
            )];
        }
    };
    let state = State::of_rules(rules.iter().cloned());
    if !state.foreign_rules() {
        return vec![Finding::ok("rules", "host", "no policy routing")];
    }
    let ours = ours(config, host);
    let judged = |rule: &Rule| {
        let (fine, meaning) = match concern(rule, &ours) {
            Concern::None => (true, "concerns no packet of the fast path".to_owned()),
            Concern::All => (false, "switches the fast path off".to_owned()),
            Concern::Outer(local) => {
                let of = |tunnel: &&TunnelConfig| tunnel.local == local;
                let tunnels = config.tunnels.iter().filter(of);
                let tunnels: Vec<&str> = tunnels.map(|tunnel| tunnel.name.as_str()).collect();
                match tunnels.is_empty() {
                    true => (true, format!("concerns no tunnel: none is from {local}")),
                    false => {
                        let tunnels = tunnels.join(", ");
                        (false, format!("sends by the slow path: {tunnels}"))
                    }
                }
            }
        };
        let found = format!("{rule}: {meaning}");
        match fine {
            true => Finding::ok("rules", "host", found),
            false => rule_warning(found),
        }
    };
    let mut findings: Vec<Finding> = state.rules_of_others().map(judged).collect();
    if state.lacks_own_rules() {
        let found = "one of the kernel's own rules is gone: the fast path is off";
        findings.push(rule_warning(found.to_owned()));
    }
    findings
}

fn rule_warning(found: String) -> Finding {
    Finding::warn("rules", "host", found).mend("ip rule; ip -6 rule")
}

/// What of this host packets of the fast path have to do with.
fn ours<'a>(config: &'a Config, host: &'a Host) -> Ours<'a> {
    let mut devices: HashSet<&str> = devices(config, host).into_iter().collect();
    devices.extend(config.tunnels.iter().map(|tunnel| tunnel.name.as_str()));
    let links = || host.links.as_deref().unwrap_or_default().iter();
    if config.router.accelerate != Accelerate::None {
        let tunnels = links().filter(|link| {
            let kind = link.kind.as_deref().unwrap_or_default();
            TunnelKind::from_word(kind).is_some()
        });
        devices.extend(tunnels.map(|link| link.name.as_str()));
    }
    let in_vrf = |link: &Link| {
        let master = link.master.and_then(|index| host.link_by_index(index));
        devices.contains(link.name.as_str()) && master.is_some_and(|master| master.is("vrf"))
    };
    let addresses = host.addresses.as_deref().unwrap_or_default().iter();
    Ours {
        in_vrf: links().any(in_vrf),
        addresses: addresses.map(|(_, net)| net.addr()).collect(),
        devices,
    }
}
