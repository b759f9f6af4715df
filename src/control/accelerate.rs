//! Which of the kernel's own tunnel devices get a fast path, and why the others do not (pure).
//!
//! A device is taken over only where its packets can be exactly what the kernel would have sent; everything about it that is not
//! understood is a reason to leave it alone. Nothing of the device is ever changed.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use super::{
    config::{Accelerate, Config, Mtu, TunnelConfig},
    mirror::{KernelTunnel, Link, State, TunnelKind},
};
use crate::tunnel::{Family, FlowLabel, Mode, Payload, Peers, Shim, Tos, Ttl};

/// Devices of these kinds are named when they are left alone, with `accelerate = true` too.
const KINDS: &[&str] = &[
    "gre",
    "ip6gre",
    "ipip",
    "sit",
    "ip6tnl",
    "gretap",
    "ip6gretap",
    "erspan",
    "ip6erspan",
    "vti",
    "vti6",
];
/// What the kernel's modules make by themselves, to catch packets of no other device.
const FALLBACKS: &[&str] = &[
    "gre0",
    "gretap0",
    "erspan0",
    "ip6gre0",
    "ip6gretap0",
    "tunl0",
    "sit0",
    "ip6tnl0",
    "ip_vti0",
    "ip6_vti0",
];

// linux/if_tunnel.h
const GRE_CSUM: u16 = 0x8000;
const GRE_KEY: u16 = 0x2000;
const GRE_SEQ: u16 = 0x1000;
const SIT_ISATAP: u32 = 1;
// linux/ip6_tunnel.h
const IGN_ENCAP_LIMIT: u32 = 0x1;
const USE_ORIG_TCLASS: u32 = 0x2;
const USE_ORIG_FLOWLABEL: u32 = 0x4;
const RCV_DSCP_COPY: u32 = 0x10;
const USE_ORIG_FWMARK: u32 = 0x20;
const ALLOW_LOCAL_REMOTE: u32 = 0x40;
/// What the kernel has found out about the addresses: `IP6_TNL_F_CAP_…`.
const CAPABILITIES: u32 = 0x7_0000;
const FLOW_LABEL: u32 = 0xf_ffff;

/// The kernel's 6rd prefix of a device that nobody has given one: 2002::/16, which is 6to4's.
const SIX_TO_FOUR_LEN: u16 = 16;
const IPPROTO_IPIP: u8 = 4;
const IPPROTO_IPV6: u8 = 41;

/// A tunnel device of the kernel's, and the tunnel that it is, or why it is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// 0 where there is no such device.
    pub ifindex: u32,
    pub name: Box<str>,
    /// As `ip -d link` has it; empty where there is no such device.
    pub kind: Box<str>,
    pub verdict: Result<TunnelConfig, String>,
}

/// The settings of the host that tunnels go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// net.ipv6.auto_flowlabels is not 0.
    pub flow_labels: bool,
}

/// Every device that the configuration means, by its name.
pub fn find(state: &State, config: &Config, settings: Settings) -> Vec<Found> {
    let accelerate = &config.router.accelerate;
    if *accelerate == Accelerate::None {
        return Vec::new();
    }
    let meant = |link: &&Link| match accelerate {
        Accelerate::All => {
            let kind = link.kind.as_deref().unwrap_or_default();
            KINDS.contains(&kind) && !FALLBACKS.contains(&&*link.name)
        }
        named => named.includes(&link.name),
    };
    let found = |link: &Link| Found {
        ifindex: link.index,
        name: link.name.clone(),
        kind: link.kind.clone().unwrap_or_default(),
        verdict: judge(link, state, config, settings),
    };
    let mut all: Vec<Found> = state.links().filter(meant).map(found).collect();
    if let Accelerate::Named(names) = accelerate {
        let absent = names
            .iter()
            .filter(|name| state.link_by_name(name).is_none());
        all.extend(absent.map(|name| Found {
            ifindex: 0,
            name: name.as_str().into(),
            kind: "".into(),
            verdict: Err("there is no such device".to_owned()),
        }));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn judge(
    link: &Link,
    state: &State,
    config: &Config,
    settings: Settings,
) -> Result<TunnelConfig, String> {
    let kind = link.kind.as_deref().unwrap_or("a physical device");
    let Some(device) = &link.tunnel else {
        return Err(match kind {
            "gretap" | "ip6gretap" | "erspan" | "ip6erspan" => {
                format!("{kind}: it carries Ethernet frames")
            }
            kind => format!("{kind}: only gre, ip6gre, ipip, sit and ip6tnl are taken over"),
        });
    };
    if FALLBACKS.contains(&&*link.name) {
        return Err("the kernel's own fallback device".to_owned());
    }
    if let Some(master) = link.master {
        let name = state
            .link(master)
            .map_or("another device", |link| &link.name);
        return Err(format!("it belongs to {name}"));
    }
    if link.link_elsewhere {
        return Err("its underlay is in another network namespace".to_owned());
    }
    refuse_options(device)?;
    let mut tunnel = tunnel(link, device, settings)?;
    tunnel.dev = bound_to(device, state, config)?;
    if tunnel.remote.is_unspecified() {
        tunnel.peers = Arc::new(neighbours(link, &tunnel, state));
    }
    match config
        .tunnels
        .iter()
        .find(|other| have_same_packets(&tunnel, other))
    {
        Some(other) => Err(format!(
            "its packets are those of [[tunnel]] {}",
            other.name
        )),
        None => Ok(tunnel),
    }
}

/// Options that have no meaning here at all.
fn refuse_options(t: &KernelTunnel) -> Result<(), String> {
    let refused = [
        (t.external, "external: each packet brings its own addresses"),
        (t.encap != 0, "encap: it is in UDP"),
        (t.fwmark != 0, "fwmark: packets are routed by their mark"),
        (
            (t.iflags | t.oflags) & GRE_SEQ != 0,
            "seq: the kernel has the sequence numbers",
        ),
        (
            (t.iflags | t.oflags) & !(GRE_CSUM | GRE_KEY | GRE_SEQ) != 0,
            "GRE flags that are not known",
        ),
    ];
    if let Some((_, why)) = refused.iter().find(|(is, _)| *is) {
        return Err((*why).to_owned());
    }
    match t.unknown {
        Some(number) => Err(format!("option {number} of the kernel is not known")),
        None => Ok(()),
    }
}

fn mode(t: &KernelTunnel) -> Result<Mode, String> {
    let other = |kind: &str| Err(format!("{kind} for protocol {}", t.protocol));
    match (t.kind, t.protocol) {
        (TunnelKind::Gre, _) => Ok(Mode::Gre),
        (TunnelKind::Ip6gre, _) => Ok(Mode::Ip6gre),
        (TunnelKind::Ipip, 0 | IPPROTO_IPIP) => Ok(Mode::Ipip),
        (TunnelKind::Sit, 0) => Ok(Mode::Sit),
        (TunnelKind::Sit, IPPROTO_IPV6) => Ok(Mode::Sit6),
        (TunnelKind::Ip6tnl, 0) => Ok(Mode::Ip6tnl),
        (TunnelKind::Ip6tnl, IPPROTO_IPV6) => Ok(Mode::Ip6ip6),
        (TunnelKind::Ip6tnl, IPPROTO_IPIP) => Ok(Mode::Ipip6),
        (TunnelKind::Ipip, _) => other("ipip"),
        (TunnelKind::Sit, _) => other("sit"),
        (TunnelKind::Ip6tnl, _) => other("ip6tnl"),
    }
}

/// The tunnel by its own options.
fn tunnel(link: &Link, t: &KernelTunnel, settings: Settings) -> Result<TunnelConfig, String> {
    let mode = mode(t)?;
    let family = mode.kind().underlay;
    let (local, remote) = ends(t, family)?;
    let key = |flags: u16, key: u32| (flags & GRE_KEY != 0).then_some(key);
    let ttl = match t.ttl {
        0 => Ttl::Inherit,
        ttl => Ttl::Fixed(ttl),
    };
    let gre = TunnelConfig {
        name: link.name.to_string(),
        mode,
        local,
        remote,
        peers: Peers::none(),
        ikey: key(t.iflags, t.ikey),
        okey: key(t.oflags, t.okey),
        icsum: t.iflags & GRE_CSUM != 0,
        ocsum: t.oflags & GRE_CSUM != 0,
        iseq: false,
        oseq: false,
        nvgre: false,
        ttl,
        // The kernel takes any odd value for "inherit" (`ip_tunnel_xmit`).
        tos: match t.tos & 1 {
            0 => Tos::Fixed(t.tos),
            _ => Tos::Inherit,
        },
        copy_dscp: false,
        flow_label: FlowLabel::Hash,
        encaplimit: None,
        udp: None,
        pmtudisc: t.pmtudisc,
        ignore_df: t.ignore_df,
        mtu: Mtu::Auto,
        clamp_mss: false,
        keepalive: None,
        dev: None,
        address: Vec::new(),
        routes: Vec::new(),
        bridge: None,
        kernels: true,
    };
    match family {
        Family::V4 if t.kind == TunnelKind::Sit => over_v4_sit(t, gre),
        Family::V4 => Ok(gre),
        Family::V6 => over_v6(t, gre, settings),
    }
}

fn over_v4_sit(t: &KernelTunnel, tunnel: TunnelConfig) -> Result<TunnelConfig, String> {
    if t.flags & SIT_ISATAP != 0 {
        return Err("isatap".to_owned());
    }
    if t.six_rd_prefix_len
        .is_some_and(|len| len != SIX_TO_FOUR_LEN)
    {
        return Err("6rd: remotes are in the packets' addresses".to_owned());
    }
    Ok(tunnel)
}

fn over_v6(
    t: &KernelTunnel,
    tunnel: TunnelConfig,
    settings: Settings,
) -> Result<TunnelConfig, String> {
    const KNOWN: u32 = IGN_ENCAP_LIMIT
        | USE_ORIG_TCLASS
        | USE_ORIG_FLOWLABEL
        | RCV_DSCP_COPY
        | ALLOW_LOCAL_REMOTE
        | CAPABILITIES;
    let has = |flag| t.flags & flag != 0;
    if has(USE_ORIG_FWMARK) {
        return Err("fwmark inherit: packets are routed by their mark".to_owned());
    }
    if t.flags & !KNOWN != 0 {
        return Err(format!("flags {:#x} are not known", t.flags & !KNOWN));
    }
    let flow_label = match (has(USE_ORIG_FLOWLABEL), t.flowinfo & FLOW_LABEL) {
        (true, _) if !settings.flow_labels => {
            return Err("flowlabel inherit with net.ipv6.auto_flowlabels = 0".to_owned());
        }
        (true, _) => FlowLabel::Inherit,
        (false, 0) if settings.flow_labels => FlowLabel::Hash,
        (false, label) => FlowLabel::Fixed(label),
    };
    Ok(TunnelConfig {
        tos: match has(USE_ORIG_TCLASS) {
            true => Tos::Inherit,
            false => Tos::Fixed((t.flowinfo >> 20) as u8),
        },
        copy_dscp: has(RCV_DSCP_COPY),
        flow_label,
        encaplimit: (!has(IGN_ENCAP_LIMIT)).then_some(t.encap_limit),
        pmtudisc: true,
        ..tunnel
    })
}

/// The outer addresses. Without a remote the neighbours of a gre device say where packets go.
fn ends(t: &KernelTunnel, family: Family) -> Result<(IpAddr, IpAddr), String> {
    let any = match family {
        Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let local = t.local.unwrap_or(any);
    let remote = t.remote.unwrap_or(any);
    let is_link_local =
        |address: IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if local.is_ipv4() != any.is_ipv4() || remote.is_ipv4() != any.is_ipv4() {
        return Err("its addresses are of another family".to_owned());
    }
    if local.is_unspecified() {
        return Err("no local address: the kernel chooses one for each packet".to_owned());
    }
    if remote.is_multicast() {
        return Err("its remote is a multicast group".to_owned());
    }
    if local.is_multicast() || is_link_local(local) || is_link_local(remote) {
        return Err("link-local or multicast outer addresses".to_owned());
    }
    match (remote.is_unspecified(), t.kind) {
        (false, _) | (true, TunnelKind::Gre) => Ok((local, remote)),
        (true, TunnelKind::Sit) => Err("no remote: 6to4, 6rd or isatap".to_owned()),
        (true, _) => Err("no remote".to_owned()),
    }
}

/// The underlay device that the tunnel is bound to.
fn bound_to(t: &KernelTunnel, state: &State, config: &Config) -> Result<Option<String>, String> {
    if t.link == 0 {
        return Ok(None);
    }
    let name = state.link(t.link).map(|link| link.name.to_string());
    let name = name.ok_or("the device that it is bound to is not there")?;
    match config.router.underlay.contains(&name) {
        true => Ok(Some(name)),
        false => Err(format!(
            "it is bound to {name}, which is no underlay device"
        )),
    }
}

/// The outer addresses that stand for link addresses on a device without a remote (`ip neigh`; `ipgre_header`). Those that the kernel
/// makes up for want of better, with the device's own address, lead nowhere.
fn neighbours(link: &Link, tunnel: &TunnelConfig, state: &State) -> Peers {
    let mut peers = Peers::closed();
    for (inner, neighbour) in state.neighbours_of(link.index) {
        let Some(outer) = neighbour
            .outer
            .filter(|outer| outer.is_ipv4() == tunnel.local.is_ipv4())
        else {
            continue;
        };
        let is_unicast = !outer.is_unspecified() && !outer.is_multicast();
        if is_unicast && outer != tunnel.local && !inner.is_multicast() {
            peers.insert(inner.into(), outer);
        }
    }
    peers
}

/// Whether received packets could be either's.
fn have_same_packets(kernels: &TunnelConfig, other: &TunnelConfig) -> bool {
    let (a, b) = (kernels.mode.kind(), other.mode.kind());
    let ends = |t: &TunnelConfig| (t.local, t.remote, t.ikey);
    let shim = a.shim == b.shim && other.udp.is_none() && b.payload != Payload::Ethernet;
    let payload = a.shim == Shim::Gre
        || a.payload == b.payload
        || [a.payload, b.payload].contains(&Payload::Ip);
    shim && payload && ends(kernels) == ends(other)
}

#[cfg(test)]
#[path = "accelerate_tests.rs"]
mod tests;
