//! The running router: fast path, slow path and tunnel devices, kept in step with the kernel.
//!
//! Nothing here waits: each call looks at the mirror, puts what follows from it in force, and says what is to be asked of the
//! kernel.

mod fast;
mod show;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use self::fast::Refused;
use super::{
    accelerated::Accelerated,
    books::Books,
    capture::Captures,
    claim::Claims,
    compile::{Compiled, Compiler, Input, TunnelDevice, TunnelStatus},
    config::{Config, TunnelConfig, XdpMode},
    fastpath::{self, FastPath},
    handover,
    mirror::{Nud, Parts, State, Touched},
    netlink::Device,
    ports::{self, Found, FoundDevice},
    report::MirrorReport,
    request::KernelRequest,
    run::RunError,
    slots::Slots,
    slowpath::{ServiceTun, SlowPath, SlowPathError, SlowSnapshot, Tun, TunError},
    takeover::Taken,
    tunnels::{TunnelEntry, TunnelError},
    wires,
};
use crate::{
    fib::{Fib, Mark, is_marked},
    xdp::{Limits, Plan, PrefixPlan, Steer},
};

/// How many routers can share a network namespace: each has a service device of its own, greyhound0 and so on.
const SERVICE_DEVICES: u32 = 64;
/// Neighbours that are refreshed in one tick, at the most.
const REFRESHES: usize = 256;

/// Everything that runs.
pub(super) struct Router {
    pub(super) config: Config,
    /// Tunnels that are not the file's, and the words that made them.
    pub(super) commanded: BTreeMap<String, Vec<String>>,
    path: PathBuf,
    started: Instant,
    pub(super) tunnels: Vec<TunnelEntry>,
    pub(super) slots: Slots,
    pub(super) statuses: Vec<TunnelStatus>,
    /// The kernel's own tunnels.
    pub(super) accelerated: Accelerated,
    /// Threads that keep records: the slow path and the workers.
    pub(super) threads: u32,
    pub(super) slow: SlowPath,
    /// The slow path can hand packets back to the kernel.
    has_service: bool,
    /// Why the kernel's own drivers answer for our tunnels, while they do.
    pub(super) not_quiet: Option<String>,
    /// The kernel has policy rules of somebody else's, which the fast path does not know.
    foreign_rules: bool,
    /// None where BPF is not to be had and not needed (`xdp = "off"`).
    pub(super) steer: Option<Steer>,
    pub(super) fast: Option<FastPath>,
    pub(super) books: Books,
    /// The devices that the fast path runs on, or was last refused on.
    pub(super) devices: Vec<FoundDevice>,
    /// Configured devices that the fast path leaves to the kernel, and why.
    left: Vec<(String, String)>,
    /// Why and when the fast path was refused, while it is.
    refused: Option<Refused>,
    /// The device that the fast path waits for, in words.
    missing: Option<String>,
    /// Names of the devices that outer packets leave by.
    outgoing: BTreeMap<u32, Box<str>>,
    compiler: Compiler,
    /// What the compiler has not been told of the mirror's changes.
    touched: Touched,
    pub(super) mirror: MirrorReport,
    pub(super) claims: Claims,
    /// The table in force.
    fib: Arc<Fib>,
    pub(super) captures: Captures,
}

impl Router {
    pub(super) fn start(
        config: Config,
        path: &Path,
        state: &State,
        made: Vec<(TunnelEntry, Tun)>,
        claims: Claims,
        mut taken: Option<&mut Taken>,
    ) -> Result<Self, RunError> {
        let Found { devices, left } = ports::find(&config.router, state)?;
        let off = config.router.xdp == XdpMode::Off;
        let steer = match Steer::load(Limits::default()) {
            Ok(steer) => Some(steer),
            Err(why) if off => {
                tracing::warn!("the raw socket sees all GRE packets, not only ours: {why}");
                None
            }
            Err(why) => return Err(why.into()),
        };
        let mut service = handover::service(taken.as_deref_mut());
        if service.is_none() && !off {
            service = Some(open_service_device().map_err(TunnelError::from)?);
        }
        let slow = SlowPath::start(service)?;
        let threads = 1 + devices.first().map_or(0, |d| fastpath::queues(&d.name));
        let mut router = Self {
            commanded: BTreeMap::new(),
            path: path.to_owned(),
            started: Instant::now(),
            tunnels: Vec::new(),
            slots: Slots::after(config.tunnels.len()),
            statuses: Vec::new(),
            accelerated: Accelerated::default(),
            threads,
            slow,
            has_service: !off,
            foreign_rules: false,
            not_quiet: None,
            steer,
            fast: None,
            books: Books::default(),
            devices,
            left: Vec::new(),
            refused: None,
            missing: None,
            outgoing: BTreeMap::new(),
            compiler: Compiler::default(),
            touched: Touched::all(),
            mirror: MirrorReport::default(),
            claims,
            fib: Arc::default(),
            captures: Captures::default(),
            config,
        };
        let (entries, tuns): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        router.tunnels = entries;
        let mut handed = Vec::new();
        if let Some(taken) = &mut taken {
            router.commanded = taken.state.commanded.clone();
            handed = router.take_receivers(taken)?;
            router.take_links(taken);
        }
        router.hear(&router.config.tunnels.clone())?;
        router.follow_accelerated(state, Parts::ALL);
        if !off {
            router.leave_out(left);
            router.start_fast_path()?;
        }
        if let Some(taken) = taken {
            // Everything else is ready: what comes until the next two lines are through waits in devices and sockets.
            let numbers = taken.begin()?;
            router.take_numbers(&numbers);
        }
        // It reads when it has both a tunnel and the tunnel's device: what has one of them only would be dropped.
        let slow = RunError::io("prepare the slow path");
        router.slow.pause().map_err(slow)?;
        router.publish(state);
        // Until now the other router's tables judged what they hear: ours were empty.
        for socket in &handed {
            filter_by(router.steer.as_ref())(socket.as_fd());
        }
        router.keep_quiet(state);
        for (entry, tun) in router.tunnels.iter().zip(tuns) {
            router.slow.add_tun(entry.id, tun);
        }
        router.slow.resume();
        Ok(router)
    }

    /// Where the configuration came from.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Says once why devices are left to the kernel.
    fn leave_out(&mut self, left: Vec<(String, String)>) {
        for (name, why) in left.iter().filter(|one| !self.left.contains(one)) {
            tracing::warn!("{name}: left to the kernel: {why}");
        }
        self.left = left;
    }

    /// Opens the slow path's sockets for these tunnels, before anything is in force.
    pub(super) fn hear(&mut self, tunnels: &[TunnelConfig]) -> Result<(), SlowPathError> {
        let tunnels = tunnels.iter().map(|t| (t.mode, t.udp.is_some()));
        let filter = filter_by(self.steer.as_ref());
        Ok(self.slow.open(tunnels, &filter)?)
    }

    /// Compiles the mirror and puts the result in force everywhere.
    pub(super) fn publish(&mut self, state: &State) {
        self.publish_news(state, Parts::ALL);
    }

    /// As [`publish`](Self::publish), where no more than tunnels have changed.
    pub(super) fn publish_tunnels(&mut self, state: &State) {
        self.publish_news(state, Parts::LINKS);
    }

    /// As [`publish`](Self::publish), where no more than this may have changed.
    pub(super) fn publish_news(&mut self, state: &State, what: Parts) {
        // Not all of the router: other parts of it change meanwhile.
        let kernels = &self.accelerated.entries;
        let entries = || self.tunnels.iter().chain(kernels);
        let devices = tunnel_devices(entries());
        let ports = self.fast.as_ref().map_or(&[][..], |fast| fast.devices());
        let Compiled {
            fib,
            plan,
            mut tunnels,
        } = self.compiler.compile(Input {
            state,
            devices: ports,
            tunnels: &devices,
            what,
            touched: &std::mem::take(&mut self.touched),
        });
        let decide = self.compiler.rules().all;
        if self.foreign_rules != decide {
            self.foreign_rules = decide;
            match decide {
                true => tracing::warn!(
                    "policy rules: the kernel forwards everything while they are there; see `ip rule`"
                ),
                false => tracing::info!("no policy rules any more: the fast path carries again"),
            }
        }
        let of_kernels = tunnels.split_off(self.tunnels.len());
        log_words(state, &self.tunnels, &tunnels, &self.statuses);
        log_words(state, kernels, &of_kernels, &self.accelerated.statuses);
        let outer = tunnels.iter().chain(&of_kernels);
        let outer = outer.flat_map(TunnelStatus::outers);
        self.outgoing = outer
            .filter_map(|outer| Some((outer.ifindex, state.link(outer.ifindex)?.name.clone())))
            .collect();
        let fib = Arc::new(fib);
        self.fib = fib.clone();
        let slots = entries().map(|t| t.id.index() + 1).max();
        let records = |thread: u32| {
            let mut by_slot = vec![None; slots.unwrap_or(0)];
            for tunnel in entries() {
                by_slot[tunnel.id.index()] = Some(tunnel.record(thread, self.threads));
            }
            by_slot
        };
        // The workers learn of a tunnel before packets are handed or steered to them.
        if let Some(fast) = &mut self.fast {
            fast.publish(&fib, |worker| records(worker + 1));
        }
        let snapshot = SlowSnapshot {
            fib: fib.clone(),
            records: records(0),
            paths: self.paths(&tunnels),
            owner: self.fast.as_ref().and_then(FastPath::owner),
        };
        let heard = self.slow.publish(snapshot, &filter_by(self.steer.as_ref()));
        if let Err(why) = heard {
            tracing::error!("tunnels receive nothing: {why}");
        }
        if let Some(steer) = &mut self.steer {
            match steer.apply(&plan) {
                Ok(changes) => tracing::debug!(?changes, "steering changed"),
                Err(why) => {
                    tracing::error!("inner traffic goes through the kernel: {why}");
                    // The plan in force may be older than the workers' routes: better none.
                    let bare = Plan {
                        prefixes: PrefixPlan::default(),
                        ..plan
                    };
                    self.compiler.retell_prefixes();
                    if let Err(why) = steer.apply(&bare) {
                        tracing::error!("{why}");
                    }
                }
            }
        }
        self.statuses = tunnels;
        self.accelerated.statuses = of_kernels;
        if self.captures.any() {
            self.captures.set_names(self.names());
        }
        if self.forget_paths() {
            self.publish_news(state, Parts::LINKS);
        }
    }

    /// Every tunnel: the configured ones, and then the kernel's own.
    fn entries(&self) -> impl Iterator<Item = &TunnelEntry> {
        self.tunnels.iter().chain(&self.accelerated.entries)
    }

    /// The same of their states.
    fn all_statuses(&self) -> impl Iterator<Item = &TunnelStatus> {
        self.statuses.iter().chain(&self.accelerated.statuses)
    }

    /// Looks which of the kernel's tunnels there are. What has to be compiled for it, besides `what`.
    fn follow_accelerated(&mut self, state: &State, what: Parts) -> Parts {
        if !self.accelerated.concerns(what, &self.config) {
            return what;
        }
        match (self.accelerated).follow(state, &self.config, &mut self.slots) {
            true => what | Parts::LINKS,
            false => what,
        }
    }

    /// The kernel's state has changed.
    pub(super) fn follow(
        &mut self,
        state: &State,
        what: Parts,
        touched: Touched,
    ) -> Vec<KernelRequest> {
        self.touched.merge(touched);
        if self.config.router.xdp != XdpMode::Off {
            self.follow_devices(state);
        }
        for entry in &mut self.tunnels {
            wires::follow(entry, state);
        }
        let was_up: Vec<bool> = self.statuses.iter().map(|status| status.up).collect();
        let what = self.follow_accelerated(state, what);
        self.publish_news(state, what);
        if what.contains(Parts::LINKS) {
            self.keep_quiet(state);
        }
        let mut requests = self.restore(&was_up);
        requests.extend(self.new_mtus(state));
        requests
    }

    /// Device MTUs that follow from the underlay and the headers, and are not set yet.
    pub(super) fn new_mtus(&mut self, state: &State) -> Vec<KernelRequest> {
        let underlay = self.config.router.underlay.clone();
        let mtu = |entry: &mut TunnelEntry| {
            let mtu = entry.new_mtu(state, &underlay)?;
            let name = &entry.config.name;
            tracing::info!("tunnel {name}: MTU {mtu}");
            Some(KernelRequest::SetMtu(entry.device.clone(), mtu.into()))
        };
        self.tunnels.iter_mut().filter_map(mtu).collect()
    }

    /// A device that was set down has lost its routes, and its IPv6 addresses: once it is up again it gets back those that
    /// the configuration says.
    fn restore(&self, was_up: &[bool]) -> Vec<KernelRequest> {
        let mut requests = Vec::new();
        for ((entry, now), was_up) in self.tunnels.iter().zip(&self.statuses).zip(was_up) {
            if !now.up || *was_up {
                continue;
            }
            let (device, config) = (&entry.device, &entry.config);
            let addresses = config.address.iter();
            requests.extend(addresses.map(|a| KernelRequest::AddAddress(device.clone(), *a)));
            let routes = config.routes.iter();
            requests.extend(routes.map(|r| KernelRequest::AddRoute(device.clone(), *r)));
        }
        requests
    }

    /// Once a second.
    pub(super) fn heartbeat(&mut self, state: &State) -> Vec<KernelRequest> {
        let mut outdated = false;
        if let (Some(fast), Some(steer)) = (&mut self.fast, &mut self.steer) {
            outdated = fast.heartbeat(steer) || fast.is_behind();
        }
        self.look_at_spread();
        let due = |refused: &Refused| refused.again <= Instant::now();
        if self.refused.as_ref().is_some_and(due) {
            outdated |= self.restart_fast_path();
        }
        if outdated {
            self.publish(state);
        } else if self.forget_paths() {
            self.publish_news(state, Parts::LINKS);
        }
        self.mend_wires();
        self.keep_quiet(state);
        let mut requests = self.neighbours_in_use(state);
        requests.extend(self.carriers(state));
        requests
    }

    fn look_at_spread(&mut self) {
        let Some(fast) = &mut self.fast else { return };
        let entries = || self.tunnels.iter().chain(&self.accelerated.entries);
        let received = |workers: usize| {
            let mut received = vec![0; workers];
            for entry in entries() {
                // The first record is the slow path's.
                for (sum, record) in received.iter_mut().zip(entry.records().iter().skip(1)) {
                    *sum += record.state.counters.rx_packets.get();
                }
            }
            received
        };
        fast.look_at_spread(received, entries().any(|entry| entry.config.oseq));
    }

    pub(super) fn mend_wires(&mut self) {
        self.tunnels.iter_mut().for_each(wires::mend);
    }

    /// The kernel does not see that next hops are in use. It is told of those that packets went to since the last time:
    /// then it asks a neighbour again when its time is over, as for packets of its own, and the entry does not grow stale.
    /// Nobody keeps the others.
    fn neighbours_in_use(&self, state: &State) -> Vec<KernelRequest> {
        let ports = self.fast.as_ref().map_or(&[][..], |fast| fast.devices());
        let used = self.fast.as_ref().map_or(Vec::new(), FastPath::take_used);
        let of = |nud: Nud| {
            let in_use = state.neighbours().filter(move |(_, n)| n.nud == nud);
            in_use
                .map(|(key, _)| *key)
                .filter(|(ifindex, ip)| is_marked(&used, Mark::of(*ifindex, *ip)))
                .filter(|(ifindex, _)| ports.iter().any(|port| port.ifindex == *ifindex))
        };
        let both = of(Nud::Stale).chain(of(Nud::Reachable));
        let mut wanted: BTreeSet<_> = both.take(REFRESHES).collect();
        let several = self.compiler.gateways_of_several(state);
        let unknown = several.filter(|(ifindex, ip)| {
            let ours = ports.iter().any(|port| port.ifindex == *ifindex);
            ours && state.neighbour(*ifindex, *ip).is_none()
        });
        wanted.extend(unknown.take(REFRESHES));
        let outers = self.all_statuses().flat_map(TunnelStatus::outers);
        for outer in outers.filter(|outer| !outer.neighbour.is_multicast()) {
            // A tunnel is ready before its first packet.
            if outer.mac.is_none() {
                wanted.insert((outer.ifindex, outer.neighbour));
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
        wanted.into_iter().filter_map(request).collect()
    }

    /// Leaves everything to the kernel and ends the workers. The tunnels' devices are still there, and open in the slow path,
    /// which does nothing any more: closing those that are not persistent would remove them one by one.
    pub(super) fn stop(mut self) -> (Vec<TunnelEntry>, SlowPath) {
        self.stop_fast_path();
        if let Err(why) = self.slow.pause() {
            tracing::warn!("{why}");
        }
        (self.tunnels, self.slow)
    }
}

/// One line for each tunnel that is in another state than before.
fn log_words(
    state: &State,
    entries: &[TunnelEntry],
    now: &[TunnelStatus],
    before: &[TunnelStatus],
) {
    let before = before.iter().map(|status| Some(status.word()));
    let before = before.chain(std::iter::repeat(None));
    for ((entry, now), before) in entries.iter().zip(now).zip(before) {
        if before != Some(now.word()) {
            let (name, word, why) = (&entry.config.name, now.word(), why(state, entry, now));
            match word {
                "up" | "unresolved" => tracing::info!("tunnel {name}: {word}{why}"),
                _ => tracing::warn!("tunnel {name}: {word}{why}"),
            }
        }
    }
}

/// Why a tunnel is in the state that it is in, behind the word for it.
fn why(state: &State, entry: &TunnelEntry, now: &TunnelStatus) -> String {
    let remote = entry.config.remote;
    match (now.word(), now.outer) {
        ("down", _) if now.mtu == 0 => "; its device is gone".to_owned(),
        ("down", _) => "; its device was set down".to_owned(),
        ("no-keepalive", _) => format!("; {remote} does not answer"),
        ("no-route", _) => {
            format!("; no way to {remote} by an underlay device: `ip route get {remote}`")
        }
        (word, Some(outer)) => {
            let device = state.link(outer.ifindex).map_or("?", |link| &*link.name);
            let via = outer.neighbour;
            match word {
                "up" => format!("; via {via} dev {device}"),
                _ => format!("; the link address of {via} on {device} is not known yet"),
            }
        }
        _ => String::new(),
    }
}

fn tunnel_devices<'e>(tunnels: impl Iterator<Item = &'e TunnelEntry>) -> Vec<TunnelDevice<'e>> {
    let mut devices = Vec::new();
    for tunnel in tunnels {
        devices.push(TunnelDevice {
            id: tunnel.id,
            config: &tunnel.config,
            ifindex: tunnel.device.index,
            alive: tunnel.keepalive.alive(),
            paths: &tunnel.paths,
        });
    }
    devices
}

/// Attaches the steering program's filter to a socket.
fn filter_by(steer: Option<&Steer>) -> impl Fn(BorrowedFd<'_>) + '_ {
    move |socket| {
        if let Some(Err(why)) = steer.map(|steer| steer.filter_raw_socket(socket)) {
            tracing::error!("a socket sees more than our tunnels' packets: {why}");
        }
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
