//! The devices that the fast path runs on, and why others are left to the kernel.
//!
//! A VLAN device has no socket of its own: its frames come and go by the device beneath it, with its tag.

use super::{
    config::RouterConfig,
    mirror::{Link, State, Vlan},
    run::RunError,
};
use crate::{packet::Vid, xdp::OnDevice};

/// Kinds that get frames from devices of their own, with tags that a program on them cannot see any more: a tagged frame
/// would be taken for an untagged one. A bond's sockets do not get what its ports receive, either.
const STACKED: &[&str] = &[
    "bond", "bridge", "hsr", "ipvlan", "ipvtap", "macvlan", "macvtap", "team",
];

/// A device as it is found when the fast path starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDevice {
    pub name: String,
    pub ifindex: u32,
    pub mtu: u32,
    pub underlay: bool,
    pub overlay: bool,
    /// A VLAN device: where it is.
    pub vlan: Option<OnDevice>,
}

/// The devices to run on, those with sockets first; VLAN devices follow the ones that they are on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub devices: Vec<FoundDevice>,
    /// Configured devices that are left to the kernel, and why.
    pub left: Vec<(String, String)>,
}

/// What decides whether the fast path can have a device.
#[derive(Debug, Clone, Copy)]
pub struct Nature<'a> {
    pub kind: Option<&'a str>,
    pub vlan: Option<Vlan>,
    /// The device beneath, by name and kind, if it is in this namespace.
    pub beneath: Option<(&'a str, Option<&'a str>)>,
}

impl Nature<'_> {
    /// Why the fast path leaves the device to the kernel.
    pub fn why_slow(&self) -> Option<String> {
        let kind = self.kind.unwrap_or_default();
        if STACKED.contains(&kind) {
            return Some(format!("frames of a {kind} come by other devices"));
        }
        if kind != "vlan" {
            return None;
        }
        let vlan = self.vlan.unwrap_or_default();
        let Some((name, beneath)) = self.beneath else {
            return Some("the device beneath is in another namespace".to_owned());
        };
        let beneath = beneath.unwrap_or_default();
        if beneath == "vlan" {
            return Some(format!("stacked VLANs (on {name}) are tagged twice (QinQ)"));
        }
        if STACKED.contains(&beneath) {
            return Some(format!(
                "it is on {name}: frames of a {beneath} come by other devices"
            ));
        }
        if vlan.provider {
            return Some("its tags are a provider's (802.1ad)".to_owned());
        }
        if Vid::new(vlan.id).is_none() {
            return Some(format!("VLAN {} is none: 1 to 4094", vlan.id));
        }
        if vlan.marks {
            return Some("priorities are sent by a map (egress-qos-map)".to_owned());
        }
        if !vlan.reorders {
            return Some("tags are left in its frames (reorder_hdr off)".to_owned());
        }
        None
    }
}

fn why_slow(link: &Link, state: &State) -> Option<String> {
    let beneath = link.link.filter(|_| !link.link_elsewhere);
    let beneath = beneath.and_then(|index| state.link(index));
    Nature {
        kind: link.kind.as_deref(),
        vlan: link.vlan,
        beneath: beneath.map(|link| (&*link.name, link.kind.as_deref())),
    }
    .why_slow()
}

/// The configured devices, as they are now.
pub(super) fn find(config: &RouterConfig, state: &State) -> Result<Found, RunError> {
    let mut found = Found::default();
    let mut vlans = Vec::new();
    for name in config.devices() {
        let listed = |list: &[String]| list.iter().any(|device| device == name);
        let (underlay, overlay) = (listed(&config.underlay), listed(&config.overlay));
        let link = state.link_by_name(name).ok_or_else(|| RunError::NoDevice {
            list: if underlay { "underlay" } else { "overlay" },
            device: name.to_owned(),
        })?;
        if let Some(why) = why_slow(link, state) {
            found.left.push((name.to_owned(), why));
            continue;
        }
        let vlan = on(link);
        let device = FoundDevice {
            underlay,
            overlay,
            vlan,
            ..found_device(link)
        };
        match vlan {
            None => found.devices.push(device),
            Some(_) => vlans.push(device),
        }
    }
    for vlan in vlans.iter().filter_map(|vlan| vlan.vlan) {
        let known = found.devices.iter().any(|d| d.ifindex == vlan.ifindex);
        let beneath = state.link(vlan.ifindex).filter(|_| !known);
        found.devices.extend(beneath.map(found_device));
    }
    found.devices.extend(vlans);
    Ok(found)
}

fn on(link: &Link) -> Option<OnDevice> {
    Some(OnDevice {
        ifindex: link.link?,
        vid: Vid::new(link.vlan?.id)?,
    })
}

/// A device that has no role.
fn found_device(link: &Link) -> FoundDevice {
    FoundDevice {
        name: link.name.to_string(),
        ifindex: link.index,
        mtu: link.mtu,
        underlay: false,
        overlay: false,
        vlan: None,
    }
}

/// The devices that no other router may have: those configured, and those that the fast path runs on.
pub(super) fn claimed<'a>(config: &'a RouterConfig, found: &'a Found) -> Vec<&'a str> {
    let mut names = config.devices();
    for device in &found.devices {
        if !names.contains(&device.name.as_str()) {
            names.push(&device.name);
        }
    }
    names
}

#[cfg(test)]
#[path = "ports_tests.rs"]
mod tests;
