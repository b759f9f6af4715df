//! The tunnels' devices: made or adopted, set up as configured, removed in the end.

use std::{cell::RefCell, collections::BTreeMap, os::fd::OwnedFd, sync::Arc, time::Instant};

use super::{
    config::{Config, Mtu, RouterConfig, TunnelConfig},
    keepalive::Watch,
    mirror::{Link, State},
    netlink::{Device, Handle, RequestError, SettingError},
    path_mtu::{PathMtus, Unreachable},
    report::human::mtu_sum,
    slowpath::{Tun, TunError, TunKind},
    wires,
};
use crate::{
    datapath::TunnelRecord,
    tunnel::{Payload, Sequences, TunnelId},
    xdp::{Wire, WireError},
};

/// The smallest MTU that a link with IPv6 may have (RFC 8200 section 5).
const IPV6_MTU: u16 = 1280;
/// What an underlay carries when nothing better is known.
const ETHERNET_MTU: u32 = 1500;

/// Why a tunnel's device is not there.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("tunnel {0}")]
    Tun(#[from] TunError),
    #[error("tunnel {0}")]
    Request(#[from] RequestError),
    #[error(
        "tunnel {name}: mtu = {mtu} is above the underlay's: {sum}; expected no more than that, or \"auto\""
    )]
    Mtu { name: String, mtu: u16, sum: String },
    #[error("tunnel {0}: the device vanished while it was being set up")]
    Vanished(String),
    #[error("bridge: there is no device {0:?}; see `ip link`")]
    NoBridge(String),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// A tunnel and what the router keeps about it.
pub struct TunnelEntry {
    pub id: TunnelId,
    pub config: TunnelConfig,
    pub device: Device,
    /// To the device that the tunnel is bridged with.
    pub wire: Option<Wire>,
    pub(super) sequences: Arc<Sequences>,
    /// By thread: the slow path first, then the workers.
    records: RefCell<Vec<Arc<TunnelRecord>>>,
    /// What its keepalives say of the far end.
    pub keepalive: Watch,
    /// The MTU that was last asked for.
    mtu: Option<u16>,
    /// What routers said of the ways to the other ends.
    pub paths: PathMtus,
    pub unreachable: Option<Unreachable>,
}

impl TunnelEntry {
    /// A tunnel whose device is there and that nothing has been done with.
    pub fn new(id: TunnelId, config: TunnelConfig, device: Device) -> Self {
        Self {
            id,
            keepalive: Watch::new(config.keepalive, Instant::now()),
            config,
            device,
            wire: None,
            sequences: Arc::default(),
            records: RefCell::default(),
            mtu: None,
            paths: PathMtus::default(),
            unreachable: None,
        }
    }

    /// The record of thread number `thread` of about `threads`: 0 is the slow path, n + 1 is worker n.
    pub fn record(&self, thread: u32, threads: u32) -> Arc<TunnelRecord> {
        let mut records = self.records.borrow_mut();
        while records.len() <= thread as usize {
            let record = TunnelRecord::new(records.len() as u32, threads, self.sequences.clone());
            records.push(Arc::new(record));
        }
        records[thread as usize].clone()
    }

    /// The tunnel goes on under other terms; its device, counters and numbers stay.
    pub fn alter(&mut self, config: TunnelConfig) {
        self.keepalive.alter(config.keepalive, Instant::now());
        self.config = config;
    }

    /// Packets that have come out of the tunnel, on both paths.
    pub fn received(&self) -> u64 {
        let all = self.records.borrow();
        let counters = all.iter().map(|record| &record.state.counters);
        counters.map(|counters| counters.rx_packets.get()).sum()
    }

    /// Every record that there is, the slow path's first.
    pub fn records(&self) -> Vec<Arc<TunnelRecord>> {
        self.records.borrow().clone()
    }

    /// The MTU that the configuration asks for now, if it is another one than was asked for last: an operator's own setting
    /// stays until the underlay or the configuration changes.
    pub fn new_mtu(&mut self, state: &State, underlay: &[String]) -> Option<u16> {
        let wanted = match self.config.mtu {
            Mtu::Fixed(mtu) => mtu,
            Mtu::Auto => auto_mtu(state, &self.config, underlay),
        };
        let before = self.mtu.replace(wanted);
        (before != Some(wanted)).then_some(wanted)
    }
}

/// The MTU of the way to the remote less the overhead; without a way, that of the narrowest underlay device (mtu-1). Of a
/// tunnel without a remote: the narrowest of the ways to its peers and of the underlay devices.
///
/// A device for IPv6 has no less than IPv6 needs (v6-2): as the kernel's sit and ip6gre, whatever the underlay.
pub fn auto_mtu(state: &State, config: &TunnelConfig, underlay: &[String]) -> u16 {
    let mtu = underlay_mtu(state, config, underlay).map_or(ETHERNET_MTU, |(mtu, _)| mtu);
    let room = u16::try_from(mtu.saturating_sub(config.overhead().into())).unwrap_or(u16::MAX);
    match config.mode.kind().payload {
        Payload::Ip | Payload::Ipv6 => room.max(IPV6_MTU),
        Payload::Ipv4 | Payload::Ethernet => room,
    }
}

/// What the underlay carries for a tunnel, in bytes, and what that is the MTU of.
fn underlay_mtu(
    state: &State,
    config: &TunnelConfig,
    underlay: &[String],
) -> Option<(u32, String)> {
    let devices = || underlay.iter().filter_map(|name| state.link_by_name(name));
    let of_device = |link: &Link| (link.mtu, link.name.to_string());
    let narrowest = || devices().min_by_key(|link| link.mtu).map(of_device);
    let way = |remote| {
        let found = state.lookup(remote)?;
        let hop = found.hops.iter().find(|hop| !hop.dead)?;
        let device = devices().find(|link| link.index == hop.oif)?;
        match found.route.mtu.filter(|metric| *metric < device.mtu) {
            Some(metric) => Some((metric, format!("the route by {}", device.name))),
            None => Some(of_device(device)),
        }
    };
    if config.remote.is_multicast() {
        let device = state.link_by_name(config.dev.as_deref()?);
        return device.map(of_device).or_else(narrowest);
    }
    if config.remote.is_unspecified() {
        let peers = config.peers.remotes().iter();
        let ways = peers.filter_map(|p| way(*p)).chain(narrowest());
        return ways.min_by_key(|(mtu, _)| *mtu);
    }
    way(config.remote).or_else(narrowest)
}

/// Refuses an MTU that the underlay does not carry, where outer packets must not be cut.
pub fn refuse_mtu(
    state: &State,
    config: &TunnelConfig,
    underlay: &[String],
) -> Result<(), TunnelError> {
    let (Mtu::Fixed(mtu), Some((carried, of))) =
        (config.mtu, underlay_mtu(state, config, underlay))
    else {
        return Ok(());
    };
    let fits = u32::from(mtu) + u32::from(config.overhead()) <= carried;
    // Of several ways one may be narrower: those who send larger packets by it are told.
    if fits || !config.sends_whole() || config.remote.is_unspecified() {
        return Ok(());
    }
    Err(TunnelError::Mtu {
        name: config.name.clone(),
        mtu,
        sum: mtu_sum(carried, &of, config.headers().parts()),
    })
}

/// Makes or adopts every tunnel's device and sets it up. When one fails, those that were made are removed again.
pub async fn create(
    config: &Config,
    state: &State,
    handle: &Handle,
    mut handed: BTreeMap<String, OwnedFd>,
) -> Result<Vec<(TunnelEntry, Tun)>, TunnelError> {
    let mut made = Vec::new();
    for (slot, tunnel) in config.tunnels.iter().enumerate() {
        let id = TunnelId(slot as u32);
        let created = match handed.remove(&tunnel.name) {
            Some(device) => {
                let tun = Tun::handed(&tunnel.name, device);
                create_with(id, tun, tunnel, &config.router, (state, handle)).await
            }
            None => create_one(id, tunnel, &config.router, state, handle).await,
        };
        match created {
            Ok(entry) => made.push(entry),
            Err(why) => {
                for (entry, tun) in made {
                    take_back(entry, &tun, handle).await;
                }
                return Err(why);
            }
        }
    }
    Ok(made)
}

/// Makes or adopts the device of one tunnel and sets it up; a device that was made is removed again when that fails.
pub async fn create_one(
    id: TunnelId,
    tunnel: &TunnelConfig,
    router: &RouterConfig,
    state: &State,
    handle: &Handle,
) -> Result<(TunnelEntry, Tun), TunnelError> {
    refuse_mtu(state, tunnel, &router.underlay)?;
    let kind = match tunnel.mode.kind().payload {
        Payload::Ethernet => TunKind::Tap,
        _ => TunKind::Tun,
    };
    let tun = Tun::open(&tunnel.name, kind, router.persist)?;
    create_with(id, tun, tunnel, router, (state, handle)).await
}

async fn create_with(
    id: TunnelId,
    tun: Tun,
    tunnel: &TunnelConfig,
    router: &RouterConfig,
    (state, handle): (&State, &Handle),
) -> Result<(TunnelEntry, Tun), TunnelError> {
    let device =
        (handle.device(&tunnel.name)?).ok_or_else(|| TunnelError::Vanished(tunnel.name.clone()))?;
    let mut entry = TunnelEntry::new(id, tunnel.clone(), device);
    match set_up(&mut entry, &router.underlay, state, handle).await {
        Ok(()) => {
            let how = if tun.adopted() { "adopted" } else { "created" };
            tracing::info!("tunnel {}: device {how}", tunnel.name);
            Ok((entry, tun))
        }
        Err(why) => {
            take_back(entry, &tun, handle).await;
            Err(why)
        }
    }
}

async fn set_up(
    entry: &mut TunnelEntry,
    underlay: &[String],
    state: &State,
    handle: &Handle,
) -> Result<(), TunnelError> {
    entry.wire = wires::lay(&entry.config, &entry.device, handle)?;
    if let Some(mtu) = entry.new_mtu(state, underlay) {
        handle.set_mtu(&entry.device, mtu.into()).await?;
    }
    for address in &entry.config.address {
        handle.add_address(&entry.device, *address).await?;
    }
    handle.set_up(&entry.device, true).await?;
    for route in &entry.config.routes {
        handle.add_route(&entry.device, *route).await?;
    }
    Ok(())
}

/// Undoes what was done for a tunnel that will not run. A device that was adopted stays.
pub async fn take_back(entry: TunnelEntry, tun: &Tun, handle: &Handle) {
    let device = entry.device.clone();
    // Where there was a wire before, somebody counts on it.
    if entry.wire.as_ref().is_some_and(|wire| !wire.adopted()) {
        unwire(entry, handle).await;
    }
    if !tun.adopted() {
        remove(&device, handle).await;
    }
}

/// Removes everything that was made for a tunnel.
pub async fn end(entry: TunnelEntry, handle: &Handle) {
    let device = entry.device.clone();
    unwire(entry, handle).await;
    remove(&device, handle).await;
}

async fn unwire(mut entry: TunnelEntry, handle: &Handle) {
    let qdisc = wires::qdisc(&entry);
    if let Some(wire) = entry.wire.take() {
        wire.remove();
    }
    if let Some(device) = qdisc {
        wires::remove_qdisc(&device, handle).await;
    }
}

/// Removes a tunnel's device, and with it its addresses and routes.
pub async fn remove(device: &Device, handle: &Handle) {
    if let Err(why) = handle.delete_link(device).await {
        tracing::warn!("{why}");
    }
}
