//! Tunnel devices that a router inherits in a takeover: those that its own configuration has, and those that it has not.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    os::fd::OwnedFd,
};

use ipnet::IpNet;

use super::{
    config::Config,
    mirror::State,
    netlink::{Device, Handle, KnownRoutes},
    removal::remove,
    request::KernelRequest,
    router::Router,
    slowpath::Tun,
    tunnels::{self, TunnelEntry, TunnelError},
};
use crate::tunnel::TunnelId;

#[derive(Default)]
pub(super) struct Heirs {
    /// By name, the devices of tunnels that are configured here too.
    handed: BTreeMap<String, OwnedFd>,
    /// Devices of tunnels that are not. They are held until the end, so that they keep their carrier.
    orphans: Vec<(Device, OwnedFd)>,
    /// Routes of orphans that a tunnel here has: they move to it in the end, and at no moment is there none.
    moving: BTreeSet<(String, IpNet)>,
}

impl Heirs {
    pub async fn of(all: BTreeMap<String, OwnedFd>, config: &Config, handle: &Handle) -> Self {
        let mut heirs = Self::default();
        let names: HashSet<&str> = config.tunnels.iter().map(|t| t.name.as_str()).collect();
        for (name, descriptor) in all {
            let is_wanted = names.contains(name.as_str());
            match handle.device(&name) {
                _ if is_wanted => drop(heirs.handed.insert(name, descriptor)),
                Ok(Some(device)) => heirs.orphans.push((device, descriptor)),
                // It is gone.
                _ => {}
            }
        }
        let mut known = KnownRoutes::default();
        for (orphan, _) in &heirs.orphans {
            for tunnel in &config.tunnels {
                for route in &tunnel.routes {
                    if known.has(handle, orphan, *route).await {
                        heirs.moving.insert((tunnel.name.clone(), *route));
                    }
                }
            }
        }
        heirs
    }

    /// Every tunnel of the configuration, inherited, made or adopted.
    pub async fn create(
        &mut self,
        config: &Config,
        state: &State,
        handle: &Handle,
    ) -> Result<Vec<(TunnelEntry, Tun)>, TunnelError> {
        let mut handed = std::mem::take(&mut self.handed);
        let slots = (0..).map(TunnelId).zip(&config.tunnels);
        let wanted = slots.map(|(id, tunnel)| {
            let mut bare = tunnel.clone();
            let stays = |route: &IpNet| self.moving.contains(&(tunnel.name.clone(), *route));
            bare.routes.retain(|route| !stays(route));
            let handed = handed.remove(&tunnel.name);
            tunnels::Wanted {
                id,
                config: bare,
                handed,
            }
        });
        let wanted = wanted.collect();
        let mut made = tunnels::create(wanted, &config.router, state, handle).await?;
        for ((entry, _), tunnel) in made.iter_mut().zip(&config.tunnels) {
            entry.config = tunnel.clone();
        }
        Ok(made)
    }

    /// What moves the routes, once the router carries.
    pub fn settled(&self, router: &Router) -> Vec<KernelRequest> {
        let entries = router.tunnels.iter();
        let devices: HashMap<&str, &Device> = entries
            .map(|entry| (entry.config.name.as_str(), &entry.device))
            .collect();
        let moved = self.moving.iter().filter_map(|(name, route)| {
            let device = *devices.get(name.as_str())?;
            Some(KernelRequest::ReplaceRoute(device.clone(), *route))
        });
        moved.collect()
    }

    /// Removes the devices that nobody has any more.
    pub async fn end(self, handle: &Handle) {
        let devices: Vec<Device> = self
            .orphans
            .iter()
            .map(|(device, _)| device.clone())
            .collect();
        for device in &devices {
            tracing::info!("tunnel {}: removed", device.name);
        }
        remove(&devices, handle).await;
    }
}
