//! Puts a [`Change`](super::change::Change) in force: whole, or not at all.
//!
//! What can fail comes first, and each step of it can be undone: new devices, addresses and routes, a fast path on other
//! devices. Then everything changes at once for packets, by one publication. What is no longer wanted goes last.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    time::Instant,
};

use ipnet::IpNet;

use super::{
    change::{Change, ChangeError, Done, Wanted, difference},
    config::TunnelConfig,
    files::{self, FilesError},
    mirror::Monitor,
    netlink::{Device, Handle, RequestError},
    request::{self, KernelRequest},
    router::Router,
    run::{RunError, settle},
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
    Files(#[from] FilesError),
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
        let undo: Vec<_> = self.undo.into_iter().rev().collect();
        request::carry_out(&undo, handle).await;
        for (entry, _) in &self.made {
            router.borrow_mut().give_slot_back(entry.id);
        }
        tunnels::take_back(self.made, handle).await;
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
    files::enough_for(wanted.config.tunnels.len())?;
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
    request::carry_out(&left.requests, handle).await;
    request::carry_out(&cleared, handle).await;
    tunnels::end(left.tunnels, handle).await;
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
    let mut failed = None;
    let mut new = Vec::with_capacity(change.added.len());
    for config in &change.added {
        let mut bare = config.clone();
        bare.routes.retain(|route| !moving.is(route));
        new.push(tunnels::Wanted {
            id: router.borrow_mut().take_slot(),
            config: bare,
            handed: None,
        });
    }
    let slots: Vec<_> = new.iter().map(|tunnel| tunnel.id).collect();
    match tunnels::create(new, &wanted.config.router, state, handle).await {
        Ok(made) => prepared.made = made,
        Err(why) => {
            for id in slots {
                router.borrow_mut().give_slot_back(id);
            }
            return Err(why.into());
        }
    }
    let mut steps = Vec::new();
    for ((entry, _), config) in prepared.made.iter_mut().zip(&change.added) {
        entry.config = config.clone();
        let routes = config.routes.iter();
        steps.extend(routes.filter_map(|route| moving.step(&entry.device, *route)));
    }
    for (id, config) in &change.altered {
        tunnels::refuse_mtu(state, config, &wanted.config.router.underlay)?;
        if let Some(terms) = router.borrow().terms(*id) {
            steps.extend(new_terms(&terms, config, &moving));
        }
    }
    let (requests, undo): (Vec<_>, Vec<_>) = steps.into_iter().unzip();
    for (outcome, undo) in handle.all(&requests).await.into_iter().zip(undo) {
        match outcome {
            Ok(()) => prepared.undo.push(undo),
            Err(why) => failed = failed.or(Some(why)),
        }
    }
    failed.map_or(Ok(()), |why| Err(why.into()))
}

/// A request, and what undoes it.
type Step = (KernelRequest, KernelRequest);
/// A tunnel's device, and the addresses and routes that the configuration put there.
type Terms = (Device, Vec<IpNet>, Vec<IpNet>);

/// What a tunnel that goes on gets in addition.
fn new_terms(
    (device, addresses, routes): &Terms,
    config: &TunnelConfig,
    moving: &Moving,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for address in config.address.iter().filter(|a| !addresses.contains(a)) {
        steps.push((
            KernelRequest::AddAddress(device.clone(), *address),
            KernelRequest::DeleteAddress(device.clone(), *address),
        ));
    }
    for route in config.routes.iter().filter(|r| !routes.contains(r)) {
        steps.push(moving.step(device, *route).unwrap_or_else(|| {
            (
                KernelRequest::AddRoute(device.clone(), *route),
                KernelRequest::DeleteRoute(device.clone(), *route),
            )
        }));
    }
    steps
}

/// Routes that leave one tunnel for another within the same change, and the devices that they leave.
struct Moving(HashMap<IpNet, Device>);

impl Moving {
    fn of(running: &[TunnelEntry], change: &Change) -> Self {
        let altered: HashMap<TunnelId, _> = (change.altered.iter())
            .map(|(id, config)| (*id, config))
            .collect();
        let removed: HashSet<TunnelId> = change.removed.iter().copied().collect();
        let arriving: HashSet<IpNet> = (change.added.iter())
            .chain(change.altered.iter().map(|(_, config)| config))
            .flat_map(|config| config.routes.iter().copied())
            .collect();
        let mut leaving = HashMap::new();
        for entry in running {
            let stays = |route: &IpNet| match altered.get(&entry.id) {
                Some(config) => config.routes.contains(route),
                None => !removed.contains(&entry.id),
            };
            let routes = entry.config.routes.iter();
            let moving = routes.filter(|route| arriving.contains(route) && !stays(route));
            leaving.extend(moving.map(|route| (*route, entry.device.clone())));
        }
        Self(leaving)
    }

    fn is(&self, route: &IpNet) -> bool {
        self.0.contains_key(route)
    }

    /// Moves a route to its new device; one that does not move is left alone.
    fn step(&self, to: &Device, route: IpNet) -> Option<Step> {
        let from = self.0.get(&route)?;
        Some((
            KernelRequest::ReplaceRoute(to.clone(), route),
            KernelRequest::ReplaceRoute(from.clone(), route),
        ))
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

    fn terms(&self, id: TunnelId) -> Option<Terms> {
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
