//! The wires of bridged tunnels: laid when a tunnel starts, kept in place while it runs, taken up when it ends.

use std::io;

use super::{
    claim::Claims,
    config::{Config, TunnelConfig},
    mirror::State,
    netlink::{Device, Family, Handle, SettingError, write_setting},
    request::KernelRequest,
    tunnels::{TunnelEntry, TunnelError},
};
use crate::xdp::{Wire, WireEnd};

impl From<&Device> for WireEnd {
    fn from(device: &Device) -> Self {
        WireEnd {
            ifindex: device.index,
            name: device.name.to_string(),
        }
    }
}

/// The wire between a tunnel's device, which is not up yet, and the one that the configuration names; none where it names
/// none, and then there is none left from before.
pub fn lay(
    tunnel: &TunnelConfig,
    device: &Device,
    handle: &Handle,
) -> Result<Option<Wire>, TunnelError> {
    let Some(bridge) = &tunnel.bridge else {
        if Wire::remove_leftover(device.index).unwrap_or(false) {
            own_messages(device, true)?;
        }
        return Ok(None);
    };
    let outside = handle.device(bridge)?;
    let outside = outside.ok_or_else(|| TunnelError::NoBridge(bridge.clone()))?;
    own_messages(device, false)?;
    let wire = Wire::attach((&outside).into(), device.into())?;
    tracing::info!("tunnel {}: frames from and to {bridge}", tunnel.name);
    Ok(Some(wire))
}

/// Whether the kernel sends IPv6 messages of its own out of the device: over a wire they would be a stranger's.
fn own_messages(device: &Device, on: bool) -> Result<(), SettingError> {
    let off = if on { "0" } else { "1" };
    match write_setting(Family::V6, &device.name, "disable_ipv6", off) {
        // A kernel without IPv6 has none.
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// What an earlier process has left on devices that are at the end of no wire now would swallow their frames. Those of
/// `mine` are this router's, as the configuration's are; all others only if no other router has them.
pub fn clear(config: &Config, state: &State, mine: &[String]) -> Vec<KernelRequest> {
    let is_bridge = |name: &str| {
        config
            .tunnels
            .iter()
            .any(|t| t.bridge.as_deref() == Some(name))
    };
    let is_mine = |name: &str| {
        let configured = config.router.devices().contains(&name);
        configured || mine.iter().any(|mine| mine == name)
    };
    let mut requests = Vec::new();
    for link in state.links() {
        let name = &*link.name;
        // A tunnel device's end goes with the device.
        let is_tunnel = link.kind.as_deref() == Some("tun");
        if is_tunnel || is_bridge(name) || !Wire::is_left(link.index) {
            continue;
        }
        if !is_mine(name) && Claims::default().set(&[name]).is_err() {
            continue;
        }
        match Wire::remove_leftover(link.index) {
            Ok(true) => {
                tracing::info!("{name}: a tunnel's tc filter was left there; removed");
                requests.push(KernelRequest::RemoveClsact(Device {
                    index: link.index,
                    name: name.into(),
                }));
            }
            Ok(false) => {}
            Err(why) => tracing::warn!("{name}: a tunnel's tc filter was left there: {why}"),
        }
    }
    requests
}

/// The device that a tunnel's wire leads to may have gone, and come back as another one.
pub fn follow(entry: &mut TunnelEntry, state: &State) {
    let Some(bridge) = &entry.config.bridge else {
        return;
    };
    let link = state.link_by_name(bridge);
    let now = entry.wire.as_ref().map(|wire| wire.outside().ifindex);
    if now == link.map(|link| link.index) {
        return;
    }
    entry.wire = None;
    let Some(link) = link else {
        return tracing::warn!("tunnel {}: {bridge} is gone", entry.config.name);
    };
    let outside = WireEnd {
        ifindex: link.index,
        name: bridge.clone(),
    };
    match Wire::attach(outside, (&entry.device).into()) {
        Ok(wire) => {
            tracing::info!(
                "tunnel {}: frames from and to {bridge} again",
                entry.config.name
            );
            entry.wire = Some(wire);
        }
        Err(why) => tracing::error!("tunnel {}: {why}", entry.config.name),
    }
}

/// Once a second: somebody may have taken the filters away, and the kernel would have the frames.
pub fn mend(entry: &mut TunnelEntry) {
    match entry.wire.as_mut().map(Wire::mend) {
        Some(Ok(true)) => tracing::error!(
            "tunnel {}: its tc filters had been removed; put back",
            entry.config.name
        ),
        Some(Err(why)) => tracing::error!("tunnel {}: {why}", entry.config.name),
        _ => {}
    }
}

/// The device whose frames the kernel gets again if the router does not start.
pub fn fresh(entry: &TunnelEntry) -> Option<Device> {
    let wire = entry.wire.as_ref().filter(|wire| !wire.adopted())?;
    Some(Device {
        index: wire.outside().ifindex,
        name: wire.outside().name.as_str().into(),
    })
}

/// The qdisc that has to go with a tunnel's wire.
pub fn qdisc(entry: &TunnelEntry) -> Option<Device> {
    let wire = entry.wire.as_ref().filter(|wire| wire.made_qdisc())?;
    Some(Device {
        index: wire.outside().ifindex,
        name: wire.outside().name.as_str().into(),
    })
}

/// Removes it, unless others have filters there.
pub async fn remove_qdisc(device: &Device, handle: &Handle) {
    if let Err(why) = handle.remove_clsact(device).await {
        tracing::warn!("{why}");
    }
}

/// The router does not start after all: what was laid new is taken up.
pub async fn take_up(fresh: &[Device], handle: &Handle) {
    for device in fresh {
        if let Err(why) = Wire::remove_leftover(device.index) {
            tracing::warn!("{}: cannot remove the tc filter: {why}", device.name);
        }
        remove_qdisc(device, handle).await;
    }
}
