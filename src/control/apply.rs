//! Puts a [`Change`](super::change::Change) in force: whole, or not at all.
//!
//! What can fail comes first, and each step of it can be undone: new devices, addresses and routes, a fast path on other
//! devices. Then everything changes at once for packets, by one publication. What is no longer wanted goes last.

use std::{cell::RefCell, collections::HashSet, time::Instant};

use ipnet::IpNet;

use super::{
    change::{Change, ChangeError, Done, Wanted, difference},
    mirror::Monitor,
    netlink::{Device, Handle, RequestError},
    router::Router,
    run::{KernelRequest, RunError, settle},
    slowpath::{SlowPathError, Tun},
    tunnels::{self, TunnelEntry, TunnelError},
    wires,
};
use crate::tunnel::TunnelId;

/// Why a change was not made; everything is as before.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error("tunnel {0}")]
    Request(#[from] RequestError),
    #[error(transparent)]
    FastPath(#[from] RunError),
    #[error(transparent)]
    Slow(#[from] SlowPathError),
}

/// What has been done towards a change and can be taken back.
#[derive(Default)]
struct Prepared {
    made: Vec<(TunnelEntry, Tun)>,
    undo: Vec<KernelRequest>,
}

impl Prepared {
    async fn take_back(self, router: &RefCell<Router>, handle: &Handle) {
        for request in self.undo.into_iter().rev() {
            request.carry_out(handle).await;
        }
        for (entry, tun) in self.made {
            router.borrow_mut().give_slot_back(entry.id);
            tunnels::take_back(entry, &tun, handle).await;
        }
        router.borrow_mut().mend_wires();
    }
}

/// Makes what runs into what is wanted, and says what that took.
pub async fn apply(
    router: &RefCell<Router>,
    monitor: &mut Monitor,
    handle: &Handle,
    wanted: Wanted,
) -> Result<Done, ApplyError> {
    let change = router.borrow().difference(&wanted)?;
    if change.is_empty() {
        router.borrow_mut().adopt(wanted);
        return Ok(change.done);
    }
    let mut prepared = Prepared::default();
    if let Err(why) = prepare(router, monitor, handle, (&wanted, &change), &mut prepared).await {
        prepared.take_back(router, handle).await;
        return Err(why);
    }
    settle(monitor, &prepared.made).await;
    if change.fast_path {
        let new = wanted.config.router.clone();
        let restarted = router.borrow_mut().replace_fast_path(new, monitor.state());
        if let Err(why) = restarted {
            prepared.take_back(router, handle).await;
            return Err(why.into());
        }
    }
    let state = monitor.state();
    let cleared = wires::clear(&wanted.config, state, &[]);
    let left = router
        .borrow_mut()
        .commit(wanted, &change, prepared.made, state);
    for request in left.requests.into_iter().chain(cleared) {
        request.carry_out(handle).await;
    }
    for entry in left.tunnels {
        tunnels::end(entry, handle).await;
    }
    Ok(change.done)
}

async fn prepare(
    router: &RefCell<Router>,
    monitor: &Monitor,
    handle: &Handle,
    (wanted, change): (&Wanted, &Change),
    prepared: &mut Prepared,
) -> Result<(), ApplyError> {
    let altered = change.altered.iter().map(|(_, config)| config);
    let heard: Vec<_> = change.added.iter().chain(altered).cloned().collect();
    router.borrow_mut().hear(&heard)?;
    let moving = Moving::of(router.borrow().tunnels(), change);
    let state = monitor.state();
    for config in &change.added {
        let id = router.borrow_mut().take_slot();
        let mut bare = config.clone();
        bare.routes.retain(|route| moving.device(route).is_none());
        let made = tunnels::create_one(id, &bare, &wanted.config.router, state, handle).await;
        let (mut entry, tun) = match made {
            Ok(made) => made,
            Err(why) => {
                router.borrow_mut().give_slot_back(id);
                return Err(why.into());
            }
        };
        let device = entry.device.clone();
        entry.config = config.clone();
        prepared.made.push((entry, tun));
        for route in &config.routes {
            moving.replace(handle, &device, *route, prepared).await?;
        }
    }
    for (id, config) in &change.altered {
        tunnels::refuse_mtu(state, config, &wanted.config.router.underlay)?;
        let Some((device, addresses, routes)) = router.borrow().terms(*id) else {
            continue;
        };
        for address in config.address.iter().filter(|a| !addresses.contains(a)) {
            let undo = KernelRequest::DeleteAddress(device.clone(), *address);
            handle.add_address(&device, *address).await?;
            prepared.undo.push(undo);
        }
        for route in config.routes.iter().filter(|r| !routes.contains(r)) {
            if moving.device(route).is_some() {
                moving.replace(handle, &device, *route, prepared).await?;
                continue;
            }
            handle.add_route(&device, *route).await?;
            let undo = KernelRequest::DeleteRoute(device.clone(), *route);
            prepared.undo.push(undo);
        }
    }
    Ok(())
}

/// Routes that leave one tunnel for another within the same change.
struct Moving(Vec<(IpNet, Device)>);

impl Moving {
    fn of(running: &[TunnelEntry], change: &Change) -> Self {
        let altered = |id: TunnelId| change.altered.iter().find(|(other, _)| *other == id);
        let mut leaving = Vec::new();
        for entry in running {
            let stays = |route: &&IpNet| match altered(entry.id) {
                Some((_, config)) => config.routes.contains(route),
                None => !change.removed.contains(&entry.id),
            };
            let routes = entry.config.routes.iter().filter(|route| !stays(route));
            leaving.extend(routes.map(|route| (*route, entry.device.clone())));
        }
        let arriving: HashSet<IpNet> = (change.added.iter())
            .chain(change.altered.iter().map(|(_, config)| config))
            .flat_map(|config| config.routes.iter().copied())
            .collect();
        leaving.retain(|(route, _)| arriving.contains(route));
        Self(leaving)
    }

    /// The device that the route leaves.
    fn device(&self, route: &IpNet) -> Option<&Device> {
        let found = self.0.iter().find(|(moving, _)| moving == route);
        found.map(|(_, device)| device)
    }

    /// Moves a route to its new device; one that does not move is left alone.
    async fn replace(
        &self,
        handle: &Handle,
        to: &Device,
        route: IpNet,
        prepared: &mut Prepared,
    ) -> Result<(), RequestError> {
        let Some(from) = self.device(&route) else {
            return Ok(());
        };
        handle.replace_route(to, route).await?;
        let undo = KernelRequest::ReplaceRoute(from.clone(), route);
        prepared.undo.push(undo);
        Ok(())
    }
}

/// What is left to do once a change is in force.
#[derive(Default)]
pub(super) struct Left {
    pub requests: Vec<KernelRequest>,
    /// Tunnels that are no more, with their devices.
    pub tunnels: Vec<TunnelEntry>,
}

impl Router {
    fn difference(&self, wanted: &Wanted) -> Result<Change, ChangeError> {
        let running: Vec<_> = (self.tunnels.iter())
            .map(|entry| (entry.id, &entry.config))
            .collect();
        difference(&self.config.router, &running, &wanted.config)
    }

    /// What runs, as something that could be wanted.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            config: self.config.clone(),
            commanded: self.commanded.clone(),
        }
    }

    fn adopt(&mut self, wanted: Wanted) {
        self.config = wanted.config;
        self.commanded = wanted.commanded;
    }

    fn tunnels(&self) -> &[TunnelEntry] {
        &self.tunnels
    }

    fn take_slot(&mut self) -> TunnelId {
        self.slots.take(Instant::now())
    }

    fn give_slot_back(&mut self, id: TunnelId) {
        self.slots.give_back(id, Instant::now());
    }

    /// A tunnel's device, and the addresses and routes that the configuration put there.
    fn terms(&self, id: TunnelId) -> Option<(Device, Vec<IpNet>, Vec<IpNet>)> {
        let entry = self.tunnels.iter().find(|entry| entry.id == id)?;
        let config = &entry.config;
        Some((
            entry.device.clone(),
            config.address.clone(),
            config.routes.clone(),
        ))
    }

    /// Puts the change in force for packets.
    fn commit(
        &mut self,
        wanted: Wanted,
        change: &Change,
        made: Vec<(TunnelEntry, Tun)>,
        state: &super::mirror::State,
    ) -> Left {
        let mut left = Left::default();
        for id in &change.removed {
            left.tunnels.extend(self.forget(*id));
        }
        for (id, config) in &change.altered {
            if let Some(entry) = self.tunnels.iter_mut().find(|entry| entry.id == *id) {
                left.requests.extend(leftovers(entry, config, change));
                entry.alter(config.clone());
                tracing::info!("tunnel {}: changed", config.name);
            }
        }
        let mut tuns = Vec::new();
        for (entry, tun) in made {
            tuns.push((entry.id, tun));
            self.tunnels.push(entry);
        }
        self.adopt(wanted);
        self.publish(state);
        self.keep_quiet(state);
        for (id, tun) in tuns {
            self.slow.add_tun(id, tun);
        }
        let mtus = self.new_mtus(state);
        left.requests.extend(mtus);
        left
    }

    /// A tunnel is no more.
    fn forget(&mut self, id: TunnelId) -> Option<TunnelEntry> {
        let at = self.tunnels.iter().position(|entry| entry.id == id)?;
        let entry = self.tunnels.remove(at);
        if at < self.statuses.len() {
            self.statuses.remove(at);
        }
        self.slow.remove_tun(id);
        self.give_slot_back(id);
        tracing::info!("tunnel {}: removed", entry.config.name);
        Some(entry)
    }
}

/// Addresses and routes that a tunnel no longer has.
fn leftovers(
    entry: &TunnelEntry,
    new: &super::config::TunnelConfig,
    change: &Change,
) -> Vec<KernelRequest> {
    let (old, device) = (&entry.config, &entry.device);
    let mut requests = Vec::new();
    let elsewhere = |route: &IpNet| {
        let others = change
            .added
            .iter()
            .chain(change.altered.iter().map(|(_, c)| c));
        others.flat_map(|config| &config.routes).any(|r| r == route)
    };
    for route in old.routes.iter().filter(|r| !new.routes.contains(r)) {
        if !elsewhere(route) {
            requests.push(KernelRequest::DeleteRoute(device.clone(), *route));
        }
    }
    for address in old.address.iter().filter(|a| !new.address.contains(a)) {
        requests.push(KernelRequest::DeleteAddress(device.clone(), *address));
    }
    if !requests.is_empty() {
        // With a primary address the kernel removes the others of its subnet, and with those the routes that need them.
        let addresses = new.address.iter();
        requests.extend(addresses.map(|a| KernelRequest::AddAddress(device.clone(), *a)));
        let routes = new.routes.iter();
        requests.extend(routes.map(|r| KernelRequest::AddRoute(device.clone(), *r)));
    }
    requests
}
