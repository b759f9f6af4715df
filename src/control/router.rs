//! The running router: one task that keeps fast path, slow path and tunnel devices in step with the kernel.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};

use super::{
    compile::{Compiled, TunnelDevice, TunnelStatus, compile},
    config::{Config, RouterConfig, XdpMode},
    fastpath::{self, FastPath, FoundDevice},
    mirror::{MirrorError, Monitor, Nud, Options, State},
    netlink::{Device, Handle},
    report::{MirrorReport, Statistics, Status},
    slowpath::{ServiceTun, SlowPath, SlowPathError, SlowSnapshot, Tun, TunError},
    socket::{ControlSocket, SocketError, serve},
    statistics,
    tunnels::{self, TunnelEntry, TunnelError},
};
use crate::{
    tunnel::Family,
    xdp::{Limits, Steer, SteerError},
};

/// How many routers can share a network namespace: each has a service device of its own, greyhound0 and so on.
const SERVICE_DEVICES: u32 = 64;
/// How often heartbeats are looked at and neighbours refreshed.
const TICK: Duration = Duration::from_secs(1);

/// How long the start waits for the mirror to show the tunnels' devices.
const SETTLE: Duration = Duration::from_secs(2);

/// Why the router did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error(transparent)]
    Slow(#[from] SlowPathError),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error(transparent)]
    Fast(#[from] fastpath::FastPathError),
    #[error(transparent)]
    Steer(#[from] SteerError),
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
    #[error("router.{list} names {device:?}: there is no such device; see `ip link`")]
    NoDevice { list: &'static str, device: String },
}

impl RunError {
    fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| RunError::Io { what, source }
    }
}

/// Runs the router in the foreground until SIGTERM or SIGINT; `path` is where the configuration came from.
pub fn run(config: Config, path: &Path) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::io("cannot start the control task"))?;
    runtime.block_on(run_until_told(config, path))
}

async fn run_until_told(config: Config, path: &Path) -> Result<(), RunError> {
    let signals = RunError::io("cannot listen to signals");
    let mut terminate = signal(SignalKind::terminate()).map_err(&signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(&signals)?;
    let socket = ControlSocket::bind(&config.router.control)?;
    let mut monitor = Monitor::open(Options::default()).await?;
    let handle = Handle::open().map_err(RunError::io("cannot open a netlink socket"))?;

    find_devices(&config.router, monitor.state())?;
    let made = tunnels::create(&config, monitor.state(), &handle).await?;
    let new: Vec<Device> = (made.iter().filter(|(_, tun)| !tun.adopted()))
        .map(|(entry, _)| entry.device.clone())
        .collect();
    settle(&mut monitor, &made).await;
    let router = match Router::start(config, path, monitor.state(), made) {
        Ok(router) => RefCell::new(router),
        Err(why) => {
            for device in &new {
                tunnels::remove(device, &handle).await;
            }
            return Err(why);
        }
    };
    tracing::info!("ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = serve(&socket, |request| router.borrow().statistics().answer(&request)) => {}
        () = follow(&router, &mut monitor, &handle) => {}
    }
    tracing::info!("stopping");
    let stopped = router.into_inner().stop();
    for entry in &stopped {
        tunnels::remove(&entry.device, &handle).await;
    }
    Ok(())
}

/// Waits until the mirror knows the tunnels' devices: what the kernel routes into them from the first moment on (router
/// solicitations, multicast reports) shall find its tunnel.
async fn settle(monitor: &mut Monitor, made: &[(TunnelEntry, Tun)]) {
    let known = |state: &State, (entry, _): &(TunnelEntry, Tun)| {
        let link = state.link(entry.device.index);
        link.is_some_and(|link| link.up)
    };
    let all_known = async {
        while !made.iter().all(|tunnel| known(monitor.state(), tunnel)) {
            monitor.changed().await;
        }
    };
    // Somebody may have set one down already; the mirror will say so in time.
    let _ = tokio::time::timeout(SETTLE, all_known).await;
}

/// Keeps the router in step with the kernel, for ever.
async fn follow(router: &RefCell<Router>, monitor: &mut Monitor, handle: &Handle) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let changed = tokio::select! {
            _ = monitor.changed() => true,
            _ = tick.tick() => false,
        };
        let requests = {
            let mut router = router.borrow_mut();
            router.mirror = mirror_report(monitor);
            match changed {
                true => router.follow(monitor.state()),
                false => router.heartbeat(monitor.state()),
            }
        };
        for request in requests {
            request.carry_out(handle).await;
        }
    }
}

fn mirror_report(monitor: &Monitor) -> MirrorReport {
    let (state, seen) = (monitor.state(), monitor.statistics());
    MirrorReport {
        age_ms: u64::try_from(seen.age.as_millis()).unwrap_or(u64::MAX),
        routes: (state.main_v4().len() + state.main_v6().len()) as u64,
        neighbours: state.neighbours().count() as u64,
        dumps: seen.resyncs,
    }
}

/// Something to ask of the kernel.
enum KernelRequest {
    SetMtu(Device, u16),
    Refresh(Device, std::net::IpAddr),
}

impl KernelRequest {
    async fn carry_out(self, handle: &Handle) {
        let result = match &self {
            KernelRequest::SetMtu(device, mtu) => handle.set_mtu(device, (*mtu).into()).await,
            KernelRequest::Refresh(device, ip) => handle.use_neighbour(device, *ip).await,
        };
        if let Err(why) = result {
            tracing::warn!("{why}");
        }
    }
}

struct Router {
    config: Config,
    path: PathBuf,
    started: Instant,
    tunnels: Vec<TunnelEntry>,
    statuses: Vec<TunnelStatus>,
    /// Threads that keep records: the slow path and the workers.
    threads: u32,
    slow: SlowPath,
    /// None where BPF is not to be had and not needed (`xdp = "off"`).
    steer: Option<Steer>,
    fast: Option<FastPath>,
    /// The devices that the fast path runs on, or was last refused on.
    devices: Vec<FoundDevice>,
    state: State,
    mirror: MirrorReport,
}

impl Router {
    fn start(
        config: Config,
        path: &Path,
        state: &State,
        made: Vec<(TunnelEntry, Tun)>,
    ) -> Result<Self, RunError> {
        let devices = find_devices(&config.router, state)?;
        let off = config.router.xdp == XdpMode::Off;
        let steer = match Steer::load(Limits::default()) {
            Ok(steer) => Some(steer),
            Err(why) if off => {
                tracing::warn!("the raw socket sees all GRE packets, not only ours: {why}");
                None
            }
            Err(why) => return Err(why.into()),
        };
        let service = (!off).then(open_service_device).transpose();
        let service = service.map_err(TunnelError::from)?;
        let slow = SlowPath::start(service)?;
        let threads = 1 + devices.first().map_or(0, |d| fastpath::queues(&d.name));
        let mut router = Self {
            path: path.to_owned(),
            started: Instant::now(),
            tunnels: Vec::new(),
            statuses: Vec::new(),
            threads,
            slow,
            steer,
            fast: None,
            devices,
            state: state.clone(),
            mirror: MirrorReport::default(),
            config,
        };
        let (entries, tuns): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        router.tunnels = entries;
        if !off {
            router.start_fast_path()?;
        }
        router.publish(state);
        for (entry, tun) in router.tunnels.iter().zip(tuns) {
            router.slow.add_tun(entry.id, tun);
        }
        Ok(router)
    }

    fn start_fast_path(&mut self) -> Result<(), fastpath::FastPathError> {
        if let Some(steer) = &mut self.steer {
            self.fast = Some(FastPath::start(
                &self.config.router,
                &self.devices,
                &self.slow,
                steer,
            )?);
        }
        Ok(())
    }

    /// Compiles the mirror and puts the result in force everywhere.
    fn publish(&mut self, state: &State) {
        let devices: Vec<TunnelDevice<'_>> = self
            .tunnels
            .iter()
            .map(|t| TunnelDevice {
                id: t.id,
                config: &t.config,
                ifindex: t.device.index,
            })
            .collect();
        let ports = self.fast.as_ref().map_or(&[][..], |fast| fast.devices());
        let Compiled { fib, plan, tunnels } = compile(state, ports, &devices);
        for (entry, (now, before)) in self.tunnels.iter().zip(
            tunnels.iter().zip(
                self.statuses
                    .iter()
                    .map(Some)
                    .chain(std::iter::repeat(None)),
            ),
        ) {
            if before.map(TunnelStatus::word) != Some(now.word()) {
                tracing::info!("tunnel {}: {}", entry.config.name, now.word());
            }
        }
        let fib = Arc::new(fib);
        let records = |thread: u32| -> Vec<_> {
            let all = self.tunnels.iter();
            all.map(|t| Some(t.record(thread, self.threads))).collect()
        };
        let snapshot = SlowSnapshot {
            table: fib.shared_tunnels(),
            records: records(0),
            owner: self.fast.as_ref().and_then(FastPath::owner),
        };
        let steer = self.steer.as_ref();
        let filter = |socket: BorrowedFd<'_>, family| {
            // Over IPv6 there is no filter yet.
            let steer = steer.filter(|_| family == Family::V4);
            if let Some(Err(why)) = steer.map(|steer| steer.filter_raw_socket(socket)) {
                tracing::error!("a raw socket sees more than our tunnels' packets: {why}");
            }
        };
        if let Err(why) = self.slow.publish(snapshot, &filter) {
            tracing::error!("tunnels receive nothing: {why}");
        }
        // The workers learn of a tunnel before packets are steered to it.
        if let Some(fast) = &mut self.fast {
            fast.publish(&fib, |worker| records(worker + 1));
        }
        if let Some(steer) = &mut self.steer {
            match steer.apply(&plan) {
                Ok(changes) => tracing::debug!(?changes, "steering changed"),
                Err(why) => tracing::error!("{why}"),
            }
        }
        self.statuses = tunnels;
        self.state = state.clone();
    }

    /// The kernel's state has changed.
    fn follow(&mut self, state: &State) -> Vec<KernelRequest> {
        if self.config.router.xdp != XdpMode::Off {
            self.follow_devices(state);
        }
        self.publish(state);
        let underlay = self.config.router.underlay.clone();
        let mtu = |entry: &mut TunnelEntry| {
            let mtu = entry.new_auto_mtu(state, &underlay)?;
            let name = &entry.config.name;
            tracing::info!("tunnel {name}: MTU {mtu}, as the underlay's has changed");
            Some(KernelRequest::SetMtu(entry.device.clone(), mtu))
        };
        self.tunnels.iter_mut().filter_map(mtu).collect()
    }

    /// Ends the fast path when a device of it is gone or another one, and starts it again when all are there.
    fn follow_devices(&mut self, state: &State) {
        let found = match find_devices(&self.config.router, state) {
            Ok(found) => found,
            Err(why) => {
                if self.fast.is_some() {
                    tracing::warn!("fast path off: {why}");
                }
                self.stop_fast_path();
                self.devices.clear();
                return;
            }
        };
        if found != self.devices {
            self.stop_fast_path();
            self.devices = found;
            match self.start_fast_path() {
                Ok(()) => tracing::info!("fast path on again"),
                Err(why) => tracing::error!("fast path off: {why}"),
            }
        }
    }

    fn stop_fast_path(&mut self) {
        if let (Some(fast), Some(steer)) = (self.fast.take(), &mut self.steer) {
            fast.stop(&self.slow, steer);
        }
    }

    /// Once a second.
    fn heartbeat(&mut self, state: &State) -> Vec<KernelRequest> {
        let mut behind = false;
        if let (Some(fast), Some(steer)) = (&mut self.fast, &mut self.steer) {
            fast.heartbeat(steer);
            behind = fast.is_behind();
        }
        if behind {
            self.publish(state);
        }
        self.stale_neighbours(state)
    }

    /// The kernel does not see that the tunnels' next hops are in use, and would let them go stale and expire.
    fn stale_neighbours(&self, state: &State) -> Vec<KernelRequest> {
        let mut stale = BTreeMap::new();
        for outer in self.statuses.iter().filter_map(|status| status.outer) {
            let entry = state.neighbour_entry(outer.ifindex, outer.neighbour);
            if entry.is_some_and(|neighbour| neighbour.nud == Nud::Stale) {
                stale.insert((outer.ifindex, outer.neighbour), ());
            }
        }
        let request = |(ifindex, ip): (u32, std::net::IpAddr)| {
            let name = state.link(ifindex)?.name.clone();
            let device = Device {
                index: ifindex,
                name,
            };
            Some(KernelRequest::Refresh(device, ip))
        };
        stale.into_keys().filter_map(request).collect()
    }

    fn statistics(&self) -> Statistics {
        let fast = self.fast.as_ref();
        let workers: Vec<_> = fast.map_or(Vec::new(), |fast| {
            let all = fast.workers().iter();
            all.map(|worker| statistics::worker(worker, fast)).collect()
        });
        let slow_path = statistics::slow_path(&self.slow.stats());
        let tunnels = self.tunnels.iter().enumerate();
        Statistics {
            tunnels: tunnels
                .map(|(n, entry)| statistics::tunnel(entry, self.statuses.get(n), &self.state))
                .collect(),
            drops: statistics::all_drops(&workers, &slow_path),
            workers,
            slow_path,
            xdp: self.steering_counters(),
            mirror: self.mirror.clone(),
            router: Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_seconds: self.started.elapsed().as_secs(),
                config: self.path.clone(),
            },
        }
    }

    fn steering_counters(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let Some(steer) = self.steer.as_ref().filter(|_| self.fast.is_some()) else {
            return BTreeMap::new();
        };
        let counters = steer.counters().unwrap_or_default().into_iter();
        let counters = counters.map(|(name, n)| (name.to_owned(), n)).collect();
        BTreeMap::from([("all".to_owned(), counters)])
    }

    /// Leaves everything to the kernel and ends the threads. The tunnels' devices are still there.
    fn stop(mut self) -> Vec<TunnelEntry> {
        self.stop_fast_path();
        self.tunnels
    }
}

/// The device through which received packets are handed back to the kernel, under the first free name.
fn open_service_device() -> Result<ServiceTun, TunError> {
    let mut n = 0;
    loop {
        match ServiceTun::open(&format!("greyhound{n}")) {
            Err(TunError::Taken(_)) if n < SERVICE_DEVICES => n += 1,
            other => return other,
        }
    }
}

/// The configured devices, as they are now.
fn find_devices(config: &RouterConfig, state: &State) -> Result<Vec<FoundDevice>, RunError> {
    let find = |name: &str| {
        let underlay = config.underlay.iter().any(|device| device == name);
        let overlay = config.overlay.iter().any(|device| device == name);
        let link = state.link_by_name(name).ok_or_else(|| RunError::NoDevice {
            list: if underlay { "underlay" } else { "overlay" },
            device: name.to_owned(),
        })?;
        Ok(FoundDevice {
            name: name.to_owned(),
            ifindex: link.index,
            mtu: link.mtu,
            underlay,
            overlay,
        })
    };
    config.devices().into_iter().map(find).collect()
}
