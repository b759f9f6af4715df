//! The underlay and overlay devices: there, up, and of a kind that XDP runs on.

use super::{
    Finding,
    host::{Host, Link, Offloads},
};
use crate::{
    control::config::{Config, TunnelConfig, XdpMode},
    xdp::{LARGEST_MTU, SINGLE_BUFFER_MTU},
};

/// The kernel from which on AF_XDP takes packets in several buffers (XDP_USE_SG).
const IN_PIECES: (u32, u32) = (6, 6);
/// The kernel that lets an XDP program read a tag that the device took off the frame (bpf_xdp_metadata_rx_vlan_tag).
pub(super) const READS_TAGS: (u32, u32) = (6, 8);
/// The virtual kinds whose drivers run XDP themselves; all others have it done for them after the fact (generic).
const NATIVE_KINDS: &[&str] = &["veth"];

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    if let Err(why) = &host.links {
        return vec![Finding::fail(
            "device",
            "host",
            format!("cannot read the devices: {why}"),
        )];
    }
    let mut findings = Vec::new();
    let sockets = match config.router.xdp {
        XdpMode::Off => Vec::new(),
        _ => host.sockets(&config.router),
    };
    let mut beneath = sockets.clone();
    for name in config.router.devices() {
        let Some(link) = host.link(name) else {
            let mend = "name a device that exists: ip -brief link";
            findings.push(Finding::fail("device", name, "there is no such device").mend(mend));
            continue;
        };
        findings.push(state(link));
        if config.router.xdp == XdpMode::Off {
            continue;
        }
        beneath.retain(|socket| socket.index != link.index);
        if let Some(why) = host.why_slow(link) {
            findings.push(left(link, &why));
            continue;
        }
        findings.extend(master(host, link));
        match link.is("vlan") {
            true => findings.extend(vlan(config, host, link)),
            false => findings.extend(socket(config, host, link)),
        }
    }
    for link in beneath {
        findings.push(state(link));
        findings.extend(socket(config, host, link));
    }
    findings
}

/// A device that frames are to be taken from.
fn socket(config: &Config, host: &Host, link: &Link) -> Vec<Finding> {
    let xdp = config.router.xdp;
    let mut findings = Vec::from_iter(kind(xdp, link));
    findings.extend(program(host, link));
    findings.extend(jumbo(xdp, host, link));
    findings.extend(vlans(config, host, link));
    findings.extend(offloads(xdp, host, link));
    findings
}

fn left(link: &Link, why: &str) -> Finding {
    let found = format!("left to the kernel: {why}");
    let (name, vlan) = (&link.name, link.vlan.unwrap_or_default());
    let mend = match (vlan.marks, link.vlan.is_some() && !vlan.reorders) {
        (true, _) => format!("ip link set {name} type vlan egress-qos-map PRIORITY:0"),
        (_, true) => format!("ip link set {name} type vlan reorder_hdr on"),
        _ => "name a device whose frames are its own: hardware, a veth, a VLAN (802.1Q) on one"
            .to_owned(),
    };
    Finding::warn("kind", name, found).mend(mend)
}

/// A VLAN device's frames come by the device beneath.
fn vlan(config: &Config, host: &Host, link: &Link) -> Option<Finding> {
    let (vlan, beneath) = (link.vlan?, host.beneath(link)?);
    let name = &link.name;
    let wired = |tunnel: &&TunnelConfig| tunnel.bridge.as_ref() == Some(&beneath.name);
    if let Some(tunnel) = config.tunnels.iter().find(wired) {
        let found = format!(
            "gets no frames: all those of {} go into tunnel {}",
            beneath.name, tunnel.name
        );
        let mend = format!("bridge = a device beside {name}, or another device for it");
        return Some(Finding::fail("vlan", name, found).mend(mend));
    }
    if let Some(why) = hides_tags(config, host, beneath) {
        let found = format!("left to the kernel: {why} {}", beneath.name);
        return Some(Finding::warn("vlan", name, found).mend(SHOW_TAGS));
    }
    let found = format!("VLAN {} of {}", vlan.id, beneath.name);
    Some(Finding::ok("vlan", name, found))
}

/// What makes tags visible on a veth. The peer's `txvlan off` does too, and cannot be seen from here.
const SHOW_TAGS: &str = "use Linux 6.8 or later, and not xdp = \"generic\"";

/// Why VLAN tags on a device cannot be seen, up to its name.
fn hides_tags(config: &Config, host: &Host, link: &Link) -> Option<&'static str> {
    let fixed = host.offloads.get(&link.name);
    if fixed.is_some_and(|seen| seen.as_ref().is_ok_and(|o| o.rxvlan == (true, true))) {
        return Some("tags are taken off by");
    }
    match link.is("veth") {
        false => None,
        true if host.kernel_version() < Some(READS_TAGS) => {
            Some("before Linux 6.8 tags cannot be seen on")
        }
        true if config.router.xdp == XdpMode::Generic => {
            Some("in generic mode tags cannot be seen on")
        }
        true => None,
    }
}

fn state(link: &Link) -> Finding {
    let name = &link.name;
    if !link.up {
        return Finding::fail("device", name, "is down").mend(format!("ip link set {name} up"));
    }
    let kind = link.kind.as_deref().unwrap_or("hardware");
    if !link.carrier {
        let mend = "look at the cable, or at the veth's other end: ip link";
        return Finding::warn("device", name, format!("{kind}, up, no carrier")).mend(mend);
    }
    Finding::ok("device", name, format!("{kind}, up, MTU {}", link.mtu))
}

fn kind(xdp: XdpMode, link: &Link) -> Option<Finding> {
    let name = &link.name;
    if !link.ethernet {
        let found = "is no Ethernet device: AF_XDP carries Ethernet frames";
        return Some(
            Finding::fail("kind", name, found)
                .mend("name an Ethernet device, or set xdp = \"off\""),
        );
    }
    let kind = link.kind.as_deref()?;
    if xdp == XdpMode::ZeroCopy {
        let found = format!("{kind} has no zero-copy");
        return Some(Finding::fail("kind", name, found).mend("set xdp = \"auto\""));
    }
    if xdp == XdpMode::Generic || NATIVE_KINDS.contains(&kind) {
        return None;
    }
    let found = format!("{kind} runs XDP in generic mode only, which is slow");
    Some(Finding::warn("kind", name, found).mend("name the hardware device beneath it"))
}

fn master(host: &Host, link: &Link) -> Option<Finding> {
    let index = link.master?;
    let master = host.name_of(index);
    let kind = host
        .link_by_index(index)
        .and_then(|master| master.kind.as_deref());
    let kind = kind.unwrap_or("unknown");
    if kind == "vrf" {
        let found = format!("is in VRF {master}: only the main table's routes are followed");
        return Some(
            Finding::warn("master", &link.name, found)
                .mend(format!("ip link set {} nomaster", link.name)),
        );
    }
    let found = format!("is a port of {master} ({kind}), which owns its addresses and its packets");
    Some(Finding::fail("master", &link.name, found).mend(format!(
        "name {master}, or: ip link set {} nomaster",
        link.name
    )))
}

fn program(host: &Host, link: &Link) -> Option<Finding> {
    let (id, program) = link.xdp.as_ref()?;
    // Without the right to ask for the name, the running router is believed.
    let ours = program
        .as_ref()
        .is_none_or(|name| name.starts_with("greyhound"));
    let name = program
        .as_ref()
        .map_or(String::new(), |name| format!(" ({name})"));
    let found = format!("runs XDP program {id}{name}");
    if ours && host.running.is_some() {
        return Some(Finding::ok(
            "xdp",
            &link.name,
            format!("{found} of the running greyhound"),
        ));
    }
    let mend = format!(
        "ip link set {} xdp off   (busy: its owner holds it; see bpftool link)",
        link.name
    );
    Some(Finding::fail("xdp", &link.name, format!("{found} of somebody else")).mend(mend))
}

/// A device whose packets need not fit one buffer each.
fn jumbo(xdp: XdpMode, host: &Host, link: &Link) -> Option<Finding> {
    let (name, mtu) = (&link.name, link.mtu);
    if mtu <= SINGLE_BUFFER_MTU {
        return None;
    }
    let smaller = |mtu| format!("ip link set {name} mtu {mtu}, or set xdp = \"off\"");
    if mtu > LARGEST_MTU {
        let found = format!(
            "MTU {mtu} is more than AF_XDP carries; {LARGEST_MTU} is the largest that works"
        );
        return Some(Finding::fail("mtu", name, found).mend(smaller(LARGEST_MTU)));
    }
    let pieces = format!("MTU {mtu} takes several buffers per packet");
    if host
        .kernel_version()
        .is_some_and(|version| version < IN_PIECES)
    {
        let found = format!("{pieces}, and AF_XDP takes these from Linux 6.6 on");
        return Some(Finding::fail("mtu", name, found).mend(smaller(SINGLE_BUFFER_MTU)));
    }
    Some(match link.in_pieces {
        _ if xdp == XdpMode::Generic => Finding::ok(
            "mtu",
            name,
            format!("{pieces}, and generic XDP puts them together"),
        ),
        Some(true) => Finding::ok(
            "mtu",
            name,
            format!("{pieces}, and the driver gives XDP all"),
        ),
        Some(false) => {
            let found = format!("{pieces}, and the driver gives XDP one only: generic XDP is left");
            Finding::warn("mtu", name, found).mend(smaller(SINGLE_BUFFER_MTU))
        }
        None => {
            let found = format!("{pieces}, and whether the driver gives XDP all is not known");
            Finding::warn("mtu", name, found).mend(smaller(SINGLE_BUFFER_MTU))
        }
    })
}

/// VLAN devices above a port that are no ports: their frames belong to the kernel, so their tags must be seen.
fn vlans(config: &Config, host: &Host, link: &Link) -> Option<Finding> {
    let links = host.links.as_ref().ok()?.iter();
    let ports = config.router.devices();
    let above = links.filter(|other| other.is("vlan") && other.lower == Some(link.index));
    let above = above.filter(|other| !ports.contains(&other.name.as_str()));
    let above: Vec<&str> = above.map(|vlan| vlan.name.as_str()).collect();
    if above.is_empty() {
        return None;
    }
    let found = format!("carries {}", above.join(", "));
    let blind = link.is("veth") && host.kernel_version() < Some(READS_TAGS);
    if !blind {
        return Some(Finding::ok(
            "vlan",
            &link.name,
            format!("{found}: tagged frames go to the kernel"),
        ));
    }
    let found =
        format!("{found}: before Linux 6.8 a veth hides tags from XDP, so nothing is steered here");
    Some(
        Finding::warn("vlan", &link.name, found)
            .mend("ethtool -K PEER txvlan off, or use Linux 6.8 or later"),
    )
}

fn offloads(xdp: XdpMode, host: &Host, link: &Link) -> Vec<Finding> {
    let name = &link.name;
    let offloads = match host.offloads.get(name) {
        None => return Vec::new(),
        Some(Ok(offloads)) => *offloads,
        Some(Err(why)) => {
            let found = format!("could not look: {why}");
            return vec![Finding::warn("offload", name, found).mend("apt install ethtool")];
        }
    };
    let Offloads {
        rxvlan,
        lro,
        rx_gro_hw,
        gro,
    } = offloads;
    let mut findings = Vec::new();
    if rxvlan == (true, true) {
        let found =
            "takes VLAN tags off received frames and cannot be told not to: tags are lost to XDP";
        findings.push(
            Finding::warn("offload", name, found).mend("keep tagged traffic off this device"),
        );
    }
    let generic = xdp == XdpMode::Generic;
    for ((on, fixed), word, matters) in [
        (lro, "lro", true),
        (rx_gro_hw, "rx-gro-hw", true),
        (gro, "gro", generic),
    ] {
        if on && matters {
            let found = format!(
                "{word} is on{}: merged packets are too large to steer",
                if fixed { ", fixed" } else { "" }
            );
            findings.push(
                Finding::warn("offload", name, found).mend(format!("ethtool -K {name} {word} off")),
            );
        }
    }
    findings
}
