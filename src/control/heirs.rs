//! Tunnel devices that a router inherits in a takeover: those that its own configuration has, and those that it has not.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use ipnet::IpNet;

use super::{
    config::Config,
    mirror::State,
    netlink::{Device, Handle},
    router::Router,
    run::KernelRequest,
    slowpath::Tun,
    tunnels::{self, TunnelEntry, TunnelError},
};

#[derive(Default)]
pub(super) struct Heirs {
    /// By name, the devices of tunnels that are configured here too.
    handed: BTreeMap<String, OwnedFd>,
    /// Devices of tunnels that are not. They are held until the end, so that they keep their carrier.
    orphans: Vec<(Device, OwnedFd)>,
    /// Routes of orphans that a tunnel here has: they move to it in the end, and at no moment is there none.
    moving: Vec<(String, IpNet)>,
}

impl Heirs {
    pub async fn of(all: BTreeMap<String, OwnedFd>, config: &Config, handle: &Handle) -> Self {
        let mut heirs = Self::default();
        for (name, descriptor) in all {
            let is_wanted = config.tunnels.iter().any(|tunnel| tunnel.name == name);
            match handle.device(&name) {
                _ if is_wanted => drop(heirs.handed.insert(name, descriptor)),
                Ok(Some(device)) => heirs.orphans.push((device, descriptor)),
                // It is gone.
                _ => {}
            }
        }
        for (orphan, _) in &heirs.orphans {
            for tunnel in &config.tunnels {
                for route in &tunnel.routes {
                    if handle.has_route(orphan, *route).await {
                        heirs.moving.push((tunnel.name.clone(), *route));
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
        let mut now = config.clone();
        for tunnel in &mut now.tunnels {
            let stays = |route: &IpNet| self.moving.contains(&(tunnel.name.clone(), *route));
            let routes = std::mem::take(&mut tunnel.routes);
            tunnel.routes = routes.into_iter().filter(|route| !stays(route)).collect();
        }
        let handed = std::mem::take(&mut self.handed);
        let mut made = tunnels::create(&now, state, handle, handed).await?;
        for ((entry, _), tunnel) in made.iter_mut().zip(&config.tunnels) {
            entry.config = tunnel.clone();
        }
        Ok(made)
    }

    /// What moves the routes, once the router carries.
    pub fn settled(&self, router: &Router) -> Vec<KernelRequest> {
        let moved = self.moving.iter().filter_map(|(name, route)| {
            let mut entries = router.tunnels.iter();
            let entry = entries.find(|entry| entry.config.name == *name)?;
            Some(KernelRequest::ReplaceRoute(entry.device.clone(), *route))
        });
        moved.collect()
    }

    /// Removes the devices that nobody has any more.
    pub async fn end(self, handle: &Handle) {
        for (device, _) in self.orphans {
            tracing::info!("tunnel {}: removed", device.name);
            tunnels::remove(&device, handle).await;
        }
    }
}
