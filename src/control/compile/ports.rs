//! The devices that workers have sockets on: what the workers and the steering program have to know of them.

use super::{Device, Scene, TunnelDevice, TunnelStatus, clamp};
use crate::{
    control::mirror::Link,
    fib::{Forwards, PortId, PortInfo},
    xdp::{OnDevice, PortPlan},
};

impl Scene<'_> {
    pub(super) fn port(&self, ifindex: u32) -> Option<PortId> {
        let at = self.devices.iter().position(|d| d.ifindex == ifindex)?;
        u16::try_from(at).ok().map(PortId)
    }

    pub(super) fn forwards(&self, ifindex: u32) -> Forwards {
        Forwards {
            v4: self.state.forwards4(ifindex),
            v6: self.state.forwards6(ifindex),
        }
    }

    pub(super) fn ports(&self) -> Vec<PortInfo> {
        let info = |device: &Device| {
            let link = self.state.link(device.ifindex);
            PortInfo {
                name: device.name.as_str().into(),
                ifindex: device.ifindex,
                mac: link.and_then(|link| link.mac).unwrap_or_default(),
                mtu: link.map_or(0, |link| clamp(link.mtu)),
                underlay: device.underlay,
                overlay: device.overlay,
                forwards: self.forwards(device.ifindex),
                partial_checksums: self.is_veth(self.beneath(device).ifindex),
                wire: self.wired(device).map(|(_, t)| t.id),
                vlan: device.vlan,
            }
        };
        self.devices.iter().map(info).collect()
    }

    /// The device that has the sockets.
    fn beneath<'a>(&'a self, device: &'a Device) -> &'a Device {
        device
            .vlan
            .map_or(device, |on| &self.devices[on.port.index()])
    }

    fn is_veth(&self, ifindex: u32) -> bool {
        let kind = self
            .state
            .link(ifindex)
            .and_then(|link| link.kind.as_deref());
        kind == Some("veth")
    }

    /// The tunnel at the other end of a device's wire.
    fn wired(&self, device: &Device) -> Option<(usize, &TunnelDevice<'_>)> {
        let mut tunnels = self.tunnels.iter().enumerate();
        tunnels.find(|(_, t)| t.config.bridge.as_deref() == Some(&device.name))
    }

    /// The largest frame that each wire takes at the moment, by its device.
    pub(super) fn wires(&self, statuses: &[TunnelStatus]) -> Vec<(u32, u32)> {
        let takes = |device: &Device| {
            let (n, tunnel) = self.wired(device)?;
            let link = self.state.link(device.ifindex)?;
            // A tag that cannot be seen would be lost.
            let fit = link.up && link.master.is_none() && device.sees_tags;
            let fit = fit && self.gets_its_frames(device);
            let largest = match fit {
                true => self.largest_frame(tunnel, &statuses[n]),
                false => 0,
            };
            Some((device.ifindex, largest))
        };
        self.devices.iter().filter_map(takes).collect()
    }

    /// The largest frame that a tunnel takes and sends on without another, in bytes; 0 while it is not ready. Two VLAN tags
    /// may be in it beyond the MTU; what has none and is too large all the same is dropped behind.
    fn largest_frame(&self, tunnel: &TunnelDevice<'_>, status: &TunnelStatus) -> u32 {
        const HEADER_AND_TAGS: u32 = 14 + 2 * 4;
        let Some(outer) = self.adjacency(status.outer).filter(|_| status.up) else {
            return 0;
        };
        let room = usize::from(outer.mtu).saturating_sub(tunnel.config.headers().total());
        (u32::from(status.mtu) + HEADER_AND_TAGS).min(room as u32)
    }

    /// Whether frames with the tag of a VLAN device come to it: the one beneath is up, and not the end of a wire, which
    /// takes them all.
    fn gets_its_frames(&self, device: &Device) -> bool {
        let beneath = self.beneath(device);
        let link = self.state.link(beneath.ifindex);
        let wired = self.wired(beneath).is_some();
        device.vlan.is_none() || link.is_some_and(|link| link.up) && !wired
    }

    /// Whether packets get anywhere by a device, and by the one beneath it.
    pub(super) fn sends(&self, ifindex: u32) -> bool {
        let sends = |ifindex| self.state.link(ifindex).is_some_and(can_send);
        let port = self.port(ifindex).map(|port| &self.devices[port.index()]);
        sends(ifindex) && port.is_none_or(|device| sends(self.beneath(device).ifindex))
    }

    /// A device whose frames the kernel would not simply route gets no role: it is down, enslaved to a bridge or bond, or
    /// carries VLAN devices whose tags the steering program cannot see; and no device has one where policy rules decide.
    pub(super) fn port_plan(&self, device: &Device) -> PortPlan {
        let Some(link) = self.state.link(device.ifindex) else {
            return PortPlan::default();
        };
        let vlans = || {
            let above = |l: &Link| l.vlan.is_some() && l.link == Some(link.index);
            self.state.links().any(above)
        };
        let fit = link.up
            && link.master.is_none()
            && (device.sees_tags || device.vlan.is_none() && !vlans())
            && self.gets_its_frames(device)
            && !self.rules.all;
        let forwards = self.forwards(device.ifindex);
        let wired = self.wired(device).is_some();
        PortPlan {
            mac: link.mac.unwrap_or_default().0,
            underlay: device.underlay && fit && link.mac.is_some(),
            overlay: device.overlay && fit && link.mac.is_some() && !wired,
            // What it takes follows from the tunnel.
            wire: wired.then_some(0),
            forward4: forwards.v4,
            forward6: forwards.v6,
            partial_checksums: self.is_veth(self.beneath(device).ifindex),
            vlan: device.vlan.map(|on| OnDevice {
                ifindex: self.beneath(device).ifindex,
                vid: on.vid,
            }),
        }
    }
}

/// Whether packets get anywhere by a device. Without carrier the kernel keeps the route, drops what it sends and answers
/// the sender when the neighbour stays silent; a permanent neighbour entry outlives the carrier.
fn can_send(link: &Link) -> bool {
    link.up && link.carrier
}
