//! The tunnels' devices: made or adopted, set up as configured, removed in the end.

use std::{cell::RefCell, sync::Arc};

use super::{
    config::{Config, Mtu, RouterConfig, TunnelConfig},
    mirror::State,
    netlink::{Device, Handle, RequestError},
    slowpath::{Tun, TunError},
};
use crate::{
    datapath::TunnelRecord,
    tunnel::{Sequences, TunnelId},
};

/// What an underlay carries when nothing better is known.
const ETHERNET_MTU: u32 = 1500;

/// Why a tunnel's device is not there.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("tunnel {0}")]
    Tun(#[from] TunError),
    #[error("tunnel {0}")]
    Request(#[from] RequestError),
    #[error("tunnel {0}: the device vanished while it was being set up")]
    Vanished(String),
}

/// A tunnel and what the router keeps about it.
pub struct TunnelEntry {
    pub id: TunnelId,
    pub config: TunnelConfig,
    pub device: Device,
    sequences: Arc<Sequences>,
    /// By thread: the slow path first, then the workers.
    records: RefCell<Vec<Arc<TunnelRecord>>>,
    /// The MTU that was last asked for.
    mtu: Option<u16>,
}

impl TunnelEntry {
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
        self.config = config;
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
pub fn auto_mtu(state: &State, config: &TunnelConfig, underlay: &[String]) -> u16 {
    let mtu = underlay_mtu(state, config, underlay).unwrap_or(ETHERNET_MTU);
    u16::try_from(mtu.saturating_sub(config.overhead().into())).unwrap_or(u16::MAX)
}

/// What the underlay carries for a tunnel, in bytes.
fn underlay_mtu(state: &State, config: &TunnelConfig, underlay: &[String]) -> Option<u32> {
    let devices = || underlay.iter().filter_map(|name| state.link_by_name(name));
    let narrowest = || devices().map(|link| link.mtu).min();
    let way = |remote| {
        let found = state.lookup(remote)?;
        let hop = found.hops.iter().find(|hop| !hop.dead)?;
        let device = devices().find(|link| link.index == hop.oif)?;
        let metric = found.route.mtu;
        Some(metric.map_or(device.mtu, |metric| metric.min(device.mtu)))
    };
    if config.remote.is_multicast() {
        let device = state.link_by_name(config.dev.as_deref()?);
        return device.map(|link| link.mtu).or_else(narrowest);
    }
    if config.remote.is_unspecified() {
        let peers = config.peers.remotes().iter();
        return peers.filter_map(|p| way(*p)).chain(narrowest()).min();
    }
    way(config.remote).or_else(narrowest)
}

/// Makes or adopts every tunnel's device and sets it up. When one fails, those that were made are removed again.
pub async fn create(
    config: &Config,
    state: &State,
    handle: &Handle,
) -> Result<Vec<(TunnelEntry, Tun)>, TunnelError> {
    let mut made = Vec::new();
    for (slot, tunnel) in config.tunnels.iter().enumerate() {
        match create_one(TunnelId(slot as u32), tunnel, &config.router, state, handle).await {
            Ok(entry) => made.push(entry),
            Err(why) => {
                for (entry, tun) in &made {
                    if !tun.adopted() {
                        remove(&entry.device, handle).await;
                    }
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
    let tun = Tun::open(&tunnel.name, router.persist)?;
    let device =
        (handle.device(&tunnel.name)?).ok_or_else(|| TunnelError::Vanished(tunnel.name.clone()))?;
    let mut entry = TunnelEntry {
        id,
        config: tunnel.clone(),
        device,
        sequences: Arc::default(),
        records: RefCell::default(),
        mtu: None,
    };
    match set_up(&mut entry, &router.underlay, state, handle).await {
        Ok(()) => {
            let how = if tun.adopted() { "adopted" } else { "created" };
            tracing::info!("tunnel {}: device {how}", tunnel.name);
            Ok((entry, tun))
        }
        Err(why) => {
            if !tun.adopted() {
                remove(&entry.device, handle).await;
            }
            Err(why.into())
        }
    }
}

async fn set_up(
    entry: &mut TunnelEntry,
    underlay: &[String],
    state: &State,
    handle: &Handle,
) -> Result<(), RequestError> {
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

/// Removes a tunnel's device, and with it its addresses and routes.
pub async fn remove(device: &Device, handle: &Handle) {
    if let Err(why) = handle.delete_link(device).await {
        tracing::warn!("{why}");
    }
}
