//! The devices that workers have sockets on: what the workers and the steering program have to know of them.

use super::{Device, Scene, clamp};
use crate::{
    control::mirror::Link,
    fib::{Forwards, PortId, PortInfo},
    xdp::PortPlan,
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
                partial_checksums: self.is_veth(device.ifindex),
            }
        };
        self.devices.iter().map(info).collect()
    }

    fn is_veth(&self, ifindex: u32) -> bool {
        let kind = self
            .state
            .link(ifindex)
            .and_then(|link| link.kind.as_deref());
        kind == Some("veth")
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
            && (device.sees_tags || !vlans())
            && !self.state.foreign_rules();
        let forwards = self.forwards(device.ifindex);
        PortPlan {
            mac: link.mac.unwrap_or_default().0,
            underlay: device.underlay && fit && link.mac.is_some(),
            overlay: device.overlay && fit && link.mac.is_some(),
            forward4: forwards.v4,
            forward6: forwards.v6,
            partial_checksums: self.is_veth(device.ifindex),
        }
    }
}

/// Whether packets get anywhere by a device. Without carrier the kernel keeps the route, drops what it sends and answers
/// the sender when the neighbour stays silent; a permanent neighbour entry outlives the carrier.
pub(super) fn can_send(link: &Link) -> bool {
    link.up && link.carrier
}
