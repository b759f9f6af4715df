//! The tunnels' devices: made or adopted, set up as configured, removed in the end.

use std::{cell::RefCell, os::fd::OwnedFd, sync::Arc, time::Instant};

use super::{
    config::{Mtu, RouterConfig, TunnelConfig},
    keepalive::Watch,
    mirror::{Link, State},
    netlink::{Device, Handle, RequestError, SettingError},
    path_mtu::{PathMtus, Unreachable},
    removal::remove,
    report::human::mtu_sum,
    request::KernelRequest,
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
/// Devices are opened by so many threads, each of which has so many to open; at the most, and at the least.
const OPENERS: usize = 4;
const OPENED_AT_ONCE: usize = 64;

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

/// A tunnel that is to have its device.
pub struct Wanted {
    pub id: TunnelId,
    pub config: TunnelConfig,
    /// The device, where another process hands it over.
    pub handed: Option<OwnedFd>,
}

/// Makes or adopts the tunnels' devices and sets them up. When one fails, those that were made are removed again.
pub async fn create(
    wanted: Vec<Wanted>,
    router: &RouterConfig,
    state: &State,
    handle: &Handle,
) -> Result<Vec<(TunnelEntry, Tun)>, TunnelError> {
    for tunnel in &wanted {
        refuse_mtu(state, &tunnel.config, &router.underlay)?;
    }
    let mut made = Vec::with_capacity(wanted.len());
    let mut outcome = Ok(());
    for (opened, (id, config)) in open_all(wanted, router.persist) {
        match opened {
            Ok((tun, device)) => made.push((TunnelEntry::new(id, config, device), tun)),
            Err(why) => outcome = outcome.and(Err(why)),
        }
    }
    if outcome.is_ok() {
        outcome = set_up(&mut made, &router.underlay, state, handle).await;
    }
    match outcome {
        Ok(()) => Ok(made),
        Err(why) => {
            take_back(made, handle).await;
            Err(why)
        }
    }
}

type Opened = Result<(Tun, Device), TunnelError>;

/// Opens every device, several at a time: most of what the kernel does for a new one, it does outside its routing lock.
fn open_all(wanted: Vec<Wanted>, persist: bool) -> Vec<(Opened, (TunnelId, TunnelConfig))> {
    let threads = wanted.len().div_ceil(OPENED_AT_ONCE).clamp(1, OPENERS);
    let mut rest = wanted.into_iter();
    let share = rest.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let mut opening = Vec::new();
        for _ in 0..threads {
            let mine: Vec<Wanted> = rest.by_ref().take(share).collect();
            let open = move || -> Vec<_> {
                let one = |wanted: Wanted| {
                    let opened = open(&wanted.config, wanted.handed, persist);
                    (opened, (wanted.id, wanted.config))
                };
                mine.into_iter().map(one).collect()
            };
            opening.push(scope.spawn(open));
        }
        let joined = opening.into_iter().map(|thread| thread.join());
        joined
            .flat_map(|opened| opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn open(tunnel: &TunnelConfig, handed: Option<OwnedFd>, persist: bool) -> Opened {
    let kind = match tunnel.mode.kind().payload {
        Payload::Ethernet => TunKind::Tap,
        _ => TunKind::Tun,
    };
    let tun = match handed {
        Some(device) => Tun::handed(&tunnel.name, device),
        None => Tun::open(&tunnel.name, kind, persist)?,
    };
    let device = Device {
        index: tun.index()?,
        name: tunnel.name.as_str().into(),
    };
    let how = if tun.adopted() { "adopted" } else { "created" };
    tracing::info!("tunnel {}: device {how}", tunnel.name);
    Ok((tun, device))
}

/// What the configuration says of each device. The MTUs come before any device is up, and what needs a device that is up
/// comes last: the kernel goes through its routes for every change of a device.
async fn set_up(
    made: &mut [(TunnelEntry, Tun)],
    underlay: &[String],
    state: &State,
    handle: &Handle,
) -> Result<(), TunnelError> {
    let (mut sizes, mut addresses) = (Vec::new(), Vec::new());
    let (mut ups, mut routes) = (Vec::new(), Vec::new());
    for (entry, tun) in made {
        // Nothing can be left on a device that is new, or that carries no frames.
        let has_frames = entry.config.mode.kind().payload == Payload::Ethernet;
        if has_frames && (tun.adopted() || entry.config.bridge.is_some()) {
            entry.wire = wires::lay(&entry.config, &entry.device, handle)?;
        }
        let mtu = entry.new_mtu(state, underlay);
        let (config, device) = (&entry.config, &entry.device);
        sizes.extend(mtu.map(|mtu| KernelRequest::SetMtu(device.clone(), mtu.into())));
        let all = config.address.iter();
        addresses.extend(all.map(|net| KernelRequest::AddAddress(device.clone(), *net)));
        ups.push(KernelRequest::SetUp(device.clone(), true));
        let all = config.routes.iter();
        routes.extend(all.map(|net| KernelRequest::AddRoute(device.clone(), *net)));
    }
    for requests in [sizes, addresses, ups, routes] {
        for outcome in handle.all(&requests).await {
            outcome?;
        }
    }
    Ok(())
}

/// Undoes what was done for tunnels that will not run. Devices that were adopted stay.
pub async fn take_back(made: Vec<(TunnelEntry, Tun)>, handle: &Handle) {
    let mut new = Vec::new();
    for (entry, tun) in made {
        if !tun.adopted() {
            new.push(entry.device.clone());
        }
        // Where there was a wire before, somebody counts on it.
        if entry.wire.as_ref().is_some_and(|wire| !wire.adopted()) {
            unwire(entry, handle).await;
        }
    }
    remove(&new, handle).await;
}

/// Removes everything that was made for tunnels.
pub async fn end(entries: Vec<TunnelEntry>, handle: &Handle) {
    let devices: Vec<Device> = entries.iter().map(|entry| entry.device.clone()).collect();
    for entry in entries {
        unwire(entry, handle).await;
    }
    remove(&devices, handle).await;
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
