//! The fast path as one thing that is there or not: the steering program on the devices, and a worker per receive queue.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::AsFd,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    compile::Device,
    config::{RouterConfig, Spread, Workers, XdpMode},
    placement,
    ports::FoundDevice,
    report::WorkerReport,
    slowpath::{Owner, SlowPath},
    spread::Spreading,
    statistics,
    wake::Waker,
    worker_thread::WorkerHandle,
};
use crate::{
    datapath::{Mates, Snapshot, TunnelRecord, mates, punt_queue},
    fib::{Fib, OnPort, PortId},
    xdp::{
        Attachment, PortError, PortSet, PortSpec, RingOptions, Steer, SteerError, TagsInFrame,
        Want, open_ports,
    },
};

/// Packets that wait for the slow path, per worker.
const PUNTS: usize = 1024;
/// The largest packet that can be punted, in bytes, is a device's MTU and what headers it may have got by then.
const PUNT_HEADERS: usize = 256;

/// What a frame has beyond its device's MTU, in bytes: Ethernet header and two VLAN tags.
const FRAME_OVERHEAD: u32 = 14 + 2 * 4;

/// Why there is no fast path.
#[derive(Debug, thiserror::Error)]
pub enum FastPathError {
    #[error(transparent)]
    Steer(#[from] SteerError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("cannot start a worker: {0}")]
    Thread(io::Error),
    #[error(
        "{device} has {found} receive queues and {other} has {wanted}: every port needs the same number, one per worker; \
         mend it with: ethtool -L {device} combined {wanted}  (or rx {wanted} tx {wanted})"
    )]
    UnequalQueues {
        device: String,
        found: u32,
        other: String,
        wanted: u32,
    },
}

/// The running fast path. The [`Steer`] that it works with outlives it: it also filters the slow path's raw socket.
pub struct FastPath {
    workers: Vec<WorkerHandle>,
    devices: Vec<Device>,
    /// By device: attached generically.
    generic: BTreeMap<u32, bool>,
    /// Workers whose slots are empty because they hang.
    hung: Vec<bool>,
    /// A worker did not take the last snapshot.
    behind: bool,
    spreading: Spreading,
    #[allow(
        dead_code,
        reason = "held, not used: dropping it restores the devices' VLAN offload"
    )]
    tags: Vec<TagsInFrame>,
}

/// What is left of a fast path whose devices another process is to take over.
pub struct Released {
    /// By device: attached generically.
    pub generic: BTreeMap<u32, bool>,
    pub tags: Vec<TagsInFrame>,
    /// The workers' last reports.
    pub ended: Vec<WorkerReport>,
}

/// How long workers may take to carry what they had.
const QUIET: Duration = Duration::from_secs(1);

/// Receive queues in use, as sysfs shows them; at least 1.
pub fn queues(device: &str) -> u32 {
    let entries = fs::read_dir(format!("/sys/class/net/{device}/queues"));
    let is_rx = |e: &fs::DirEntry| e.file_name().to_string_lossy().starts_with("rx-");
    let count = entries.map(|all| all.flatten().filter(is_rx).count());
    count.map_or(1, |n| n.max(1) as u32)
}

/// The devices that get sockets.
fn with_sockets(found: &[FoundDevice]) -> impl Iterator<Item = &FoundDevice> {
    found.iter().filter(|device| device.vlan.is_none())
}

/// The one number of queues that all devices have.
fn common_queues(found: &[FoundDevice]) -> Result<u32, FastPathError> {
    let Some(first) = with_sockets(found).next() else {
        return Ok(1);
    };
    let wanted = queues(&first.name);
    for device in with_sockets(found) {
        let found = queues(&device.name);
        if found != wanted {
            // The device with more queues is the one that can be told to have fewer.
            let (more, less) = if found > wanted {
                (device, first)
            } else {
                (first, device)
            };
            return Err(FastPathError::UnequalQueues {
                device: more.name.clone(),
                found: found.max(wanted),
                other: less.name.clone(),
                wanted: found.min(wanted),
            });
        }
    }
    Ok(wanted)
}

/// The CPU of each worker: as configured, or near the devices.
fn cpus(workers: &Workers, queues: u32, found: &[FoundDevice]) -> Vec<usize> {
    let pool: Vec<usize> = match workers {
        Workers::Cpus(cpus) => cpus.clone(),
        Workers::Auto => {
            let ids = core_affinity::get_core_ids().unwrap_or_default();
            let ids = ids.into_iter().map(|core| core.id).collect();
            let devices: Vec<&str> = with_sockets(found).map(|d| d.name.as_str()).collect();
            placement::order(Path::new(placement::SYS), ids, &devices)
        }
    };
    (0..queues as usize)
        .map(|n| pool.get(n % pool.len().max(1)).copied().unwrap_or(0))
        .collect()
}

/// Opens a worker's ports on its CPU: memory is had from the node of whoever touches it first.
fn open_on(cpu: usize, specs: &[PortSpec], want: Want) -> Result<PortSet, PortError> {
    let open = || {
        core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
        open_ports(specs, want, RingOptions::default())
    };
    thread::scope(|scope| match scope.spawn(open).join() {
        Ok(opened) => opened,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

impl FastPath {
    /// Attaches the program and starts the workers. The plan in force must not name the devices: they get their roles
    /// after the first [`publish`](Self::publish).
    pub fn start(
        config: &RouterConfig,
        found: &[FoundDevice],
        slow: &SlowPath,
        steer: &mut Steer,
    ) -> Result<Self, FastPathError> {
        let mut path = Self {
            workers: Vec::new(),
            devices: Vec::new(),
            generic: BTreeMap::new(),
            hung: Vec::new(),
            behind: false,
            spreading: Spreading::new(config.spread),
            tags: Vec::new(),
        };
        match path.bring_up(config, found, slow, steer) {
            Ok(()) => Ok(path),
            Err(why) => {
                path.stop(slow, steer);
                Err(why)
            }
        }
    }

    fn bring_up(
        &mut self,
        config: &RouterConfig,
        found: &[FoundDevice],
        slow: &SlowPath,
        steer: &mut Steer,
    ) -> Result<(), FastPathError> {
        let queues = common_queues(found)?;
        for device in with_sockets(found) {
            self.attach(device, config.xdp, queues, steer)?;
        }
        for device in found {
            self.note_vlan(device);
        }
        let cpus = cpus(&config.workers, queues, found);
        let wakers: io::Result<Vec<Waker>> = cpus.iter().map(|_| Waker::new()).collect();
        let wakers = wakers.map_err(FastPathError::Thread)?;
        let mut mates = self.mates(config.spread, &wakers, found).into_iter();
        for ((id, cpu), waker) in cpus.into_iter().enumerate().zip(wakers) {
            let way = (waker, mates.next());
            let how = (config.xdp, config.busy_poll);
            let worker = self.start_worker((id as u32, cpu), how, found, slow, way)?;
            for (device, socket) in self.devices.iter().zip(&worker.sockets) {
                steer.set_socket(device.ifindex, worker.id, socket.as_fd())?;
            }
            self.workers.push(worker);
            self.hung.push(false);
        }
        Ok(())
    }

    /// The rings between workers, where there are several and it was not refused.
    fn mates(&self, spread: Spread, wakers: &[Waker], found: &[FoundDevice]) -> Vec<Mates> {
        if wakers.len() < 2 || spread == Spread::Off {
            return Vec::new();
        }
        let largest = with_sockets(found).map(|device| device.mtu).max();
        let frame = (largest.unwrap_or_default() + FRAME_OVERHEAD) as usize;
        let wakers = wakers.iter().map(|waker| Box::new(waker.clone()) as _);
        mates(wakers.collect(), frame, self.spreading.switch())
    }

    fn attach(
        &mut self,
        device: &FoundDevice,
        mode: XdpMode,
        queues: u32,
        steer: &mut Steer,
    ) -> Result<(), FastPathError> {
        let (name, ifindex) = (device.name.as_str(), device.ifindex);
        let wanted = Attachment {
            queues,
            generic: mode == XdpMode::Generic,
            mtu: device.mtu,
        };
        let attached = match steer.attach(ifindex, name, wanted) {
            Err(why @ SteerError::Attach { .. }) if mode == XdpMode::Auto => {
                tracing::warn!("{name}: no native XDP ({why}); trying generic");
                let generic = Attachment {
                    generic: true,
                    ..wanted
                };
                steer.attach(ifindex, name, generic)?
            }
            other => other?,
        };
        let mut sees_tags = attached.sees_tags;
        if !sees_tags {
            sees_tags = match TagsInFrame::stripped_by(name) {
                Ok(false) => true,
                _ => match TagsInFrame::keep(name) {
                    Ok(kept) => {
                        tracing::info!("{name}: VLAN tags are left in the frame (rxvlan off)");
                        self.tags.push(kept);
                        true
                    }
                    Err(why) => {
                        tracing::warn!(
                            "{name}: VLAN tags cannot be seen ({why}); steered only while no VLAN device is on it"
                        );
                        false
                    }
                },
            };
        }
        let how = if attached.native { "native" } else { "generic" };
        tracing::info!("{name}: XDP attached ({how}), {queues} queue(s)");
        self.generic.insert(ifindex, !attached.native);
        self.devices.push(Device {
            name: device.name.clone(),
            ifindex,
            underlay: device.underlay,
            overlay: device.overlay,
            sees_tags,
            vlan: None,
        });
        Ok(())
    }

    /// A VLAN device has what the device beneath has.
    fn note_vlan(&mut self, device: &FoundDevice) {
        let Some(on) = device.vlan else { return };
        let beneath = self.devices.iter().position(|d| d.ifindex == on.ifindex);
        let Some(at) = beneath else { return };
        let (name, below) = (&device.name, &self.devices[at]);
        match below.sees_tags {
            true => tracing::info!("{name}: VLAN {} of {}", on.vid, below.name),
            false => tracing::warn!(
                "{name}: left to the kernel: VLAN tags on {} cannot be seen",
                below.name
            ),
        }
        self.devices.push(Device {
            name: device.name.clone(),
            ifindex: device.ifindex,
            underlay: device.underlay,
            overlay: device.overlay,
            sees_tags: below.sees_tags,
            vlan: Some(OnPort {
                port: PortId(at as u16),
                vid: on.vid,
            }),
        });
    }

    fn start_worker(
        &self,
        (id, cpu): (u32, usize),
        (mode, busy_poll): (XdpMode, bool),
        found: &[FoundDevice],
        slow: &SlowPath,
        (waker, mates): (Waker, Option<Mates>),
    ) -> Result<WorkerHandle, FastPathError> {
        let generic = self.generic.values().any(|generic| *generic);
        let want = match mode {
            XdpMode::ZeroCopy => Want::ZeroCopy,
            XdpMode::Auto if !generic => Want::Auto,
            _ => Want::Copy,
        };
        let specs: Vec<PortSpec> = with_sockets(found)
            .map(|device| PortSpec {
                device: device.name.clone(),
                queue: id,
                mtu: device.mtu,
            })
            .collect();
        let largest = specs.iter().map(|spec| spec.mtu as usize).max();
        let mut ports = open_on(cpu, &specs, want)?;
        if busy_poll {
            ports.prefer_busy_poll()?;
        }
        let pages = match ports.in_huge_pages() {
            true => ", huge pages",
            false => "",
        };
        let len = largest.unwrap_or(0) + PUNT_HEADERS;
        let (queue, source) = punt_queue(PUNTS, len, Box::new(slow.waker()));
        slow.add_punts(id, source);
        let way = (waker, mates, busy_poll);
        let worker = WorkerHandle::start((id, cpu), ports, queue, way);
        let worker = worker.map_err(FastPathError::Thread)?;
        let first = worker.sockets.first();
        let got = first.map_or("no", |socket| socket.mode.as_str());
        let why = first.and_then(|socket| socket.why_not_zero_copy.as_deref());
        match why {
            Some(why) => {
                tracing::info!("worker {id}: CPU {cpu}, {got} mode{pages}; not zero-copy: {why}")
            }
            None => tracing::info!("worker {id}: CPU {cpu}, {got} mode{pages}"),
        }
        Ok(worker)
    }

    /// The devices in the order of their ports: first those with sockets, in the order of each worker's sockets.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    pub fn workers(&self) -> &[WorkerHandle] {
        &self.workers
    }

    /// The numbers of workers that hang.
    pub fn hung(&self) -> impl Iterator<Item = u32> {
        let hung = self
            .workers
            .iter()
            .zip(&self.hung)
            .filter(|(_, hung)| **hung);
        hung.map(|(worker, _)| worker.id)
    }

    pub fn is_generic(&self, device: &str) -> bool {
        let known = self.devices.iter().find(|d| d.name == device);
        known.is_some_and(|d| self.generic.get(&d.ifindex) == Some(&true))
    }

    /// The marks of the neighbours that packets were sent to since the last call.
    pub fn take_used(&self) -> Vec<bool> {
        let mut used = Vec::new();
        for worker in &self.workers {
            let taken = worker.stats.used.take();
            used.resize(taken.len(), false);
            used.iter_mut()
                .zip(taken)
                .for_each(|(used, taken)| *used |= taken);
        }
        used
    }

    /// The way to the worker that owns the sequence numbers; none while it hangs, so that the slow path goes on with them.
    pub fn owner(&self) -> Option<Owner> {
        let hangs = self.hung.first() == Some(&true);
        let worker = self.workers.first().filter(|_| !hangs);
        worker.map(|worker| Owner {
            queue: worker.handovers.clone(),
            waker: Box::new(worker.waker.clone()),
        })
    }

    /// Puts a forwarding table in force. `records` gives each worker's tunnel records by slot.
    pub fn publish(
        &mut self,
        fib: &Arc<Fib>,
        records: impl Fn(u32) -> Vec<Option<Arc<TunnelRecord>>>,
    ) {
        self.behind = false;
        for worker in &self.workers {
            let snapshot = Snapshot {
                fib: fib.clone(),
                tunnels: records(worker.id),
            };
            self.behind |= !worker.publish(snapshot);
            worker.collect_spent();
        }
    }

    /// Whether a worker missed a snapshot and needs another.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Once a second: frees what workers are done with, and takes a worker that hangs out of the steering, so that the
    /// kernel carries its packets. True when a worker has begun or ceased to hang.
    pub fn heartbeat(&mut self, steer: &mut Steer) -> bool {
        let mut news = false;
        for (worker, hung) in self.workers.iter_mut().zip(&mut self.hung) {
            worker.collect_spent();
            let hangs = worker.hangs();
            if hangs == *hung {
                continue;
            }
            *hung = hangs;
            news = true;
            let id = worker.id;
            if let Some(mate) = &worker.mate {
                mate.set_hangs(hangs);
            }
            match hangs {
                true => tracing::error!("worker {id} hangs: its packets go through the kernel"),
                false => tracing::info!("worker {id} is back"),
            }
            for (device, socket) in self.devices.iter().zip(&worker.sockets) {
                let result = match hangs {
                    true => steer.clear_socket(device.ifindex, id),
                    false => steer.set_socket(device.ifindex, id, socket.as_fd()),
                };
                if let Err(why) = result {
                    tracing::error!("{}: {why}", device.name);
                }
            }
        }
        news
    }

    /// Leaves all packets to the kernel, lets the workers finish what they have, and ends them. Their last reports.
    pub fn stop(self, slow: &SlowPath, steer: &mut Steer) -> Vec<WorkerReport> {
        for device in &self.devices {
            steer.detach(device.ifindex);
        }
        self.end_workers(slow)
    }

    /// Leaves all packets to the kernel; the program stays attached, and passes everything.
    pub fn let_go(&self, steer: &mut Steer) {
        for device in &self.devices {
            for worker in &self.workers {
                if let Err(why) = steer.clear_socket(device.ifindex, worker.id) {
                    tracing::error!("{}: {why}", device.name);
                }
            }
        }
    }

    /// Waits until the workers have carried what they had, if nobody gives them more. Bounded.
    pub fn become_quiet(&self) {
        let deadline = Instant::now() + QUIET;
        // Twice: while the later ones were looked at, they may have given the earlier ones something.
        let mut quiet = 0;
        while quiet < 2 && Instant::now() < deadline {
            match self.workers.iter().all(WorkerHandle::is_idle) {
                true => quiet += 1,
                false => {
                    quiet = 0;
                    thread::sleep(Duration::from_micros(100));
                }
            }
        }
    }

    /// Whether flows that come by one queue are spread over the workers now.
    pub fn is_spreading(&self) -> bool {
        self.workers.len() > 1 && self.spreading.is_on()
    }

    /// Once a second: decides whether flows are spread, where that was left open. `received` says how many packets each
    /// of so many workers took out of tunnels, and `ordered` whether a tunnel sends sequence numbers.
    pub fn look_at_spread(&mut self, received: impl Fn(usize) -> Vec<u64>, ordered: bool) {
        let workers = self.workers.len();
        if workers < 2 || !self.spreading.is_open() {
            return;
        }
        let arrived = |(worker, received): (&WorkerHandle, u64)| {
            let (out, into) = (&worker.stats.spread_out, &worker.stats.spread_in);
            (received + out.get()).saturating_sub(into.get())
        };
        let arrived = self.workers.iter().zip(received(workers)).map(arrived);
        let Some(queue) = self.spreading.look(arrived.collect(), ordered) else {
            return;
        };
        match self.spreading.is_on() {
            true => tracing::info!(
                "tunnel packets come by queue {queue} alone: spread over {workers} workers by the flow inside"
            ),
            false => tracing::info!("tunnel packets are no longer spread over the workers"),
        }
    }

    /// Ends the workers. The program stays attached: for another process that takes the devices over.
    pub fn release(mut self, slow: &SlowPath) -> Released {
        let tags = std::mem::take(&mut self.tags);
        let generic = std::mem::take(&mut self.generic);
        let ended = self.end_workers(slow);
        Released {
            generic,
            tags,
            ended,
        }
    }

    fn end_workers(mut self, slow: &SlowPath) -> Vec<WorkerReport> {
        let mut reports = Vec::new();
        // All at once: each carries what the others still give it.
        self.workers.iter().for_each(WorkerHandle::begin_to_end);
        for mut worker in std::mem::take(&mut self.workers) {
            worker.end();
            reports.push(statistics::worker(&worker, &self));
            slow.remove_punts(worker.id);
        }
        reports
    }
}
