//! The router's one task: start, follow the kernel, answer, stop.

use std::{
    cell::RefCell,
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};

use super::{
    apply::apply,
    capture::Wanted,
    change::ChangeError,
    claim::{ClaimError, Claims},
    config::Config,
    fastpath, files,
    heard::Reports,
    heirs::Heirs,
    log,
    metrics::{Endpoint, Listener, MetricsError},
    mirror::{MirrorError, Monitor, Options, Parts, State},
    netlink::{Device, Handle},
    ports,
    privileges::{self, PrivilegeError},
    removal::remove,
    report::MirrorReport,
    request,
    router::Router,
    service::Service,
    slowpath::{OuterError, SlowPathError, Tun},
    socket::{ControlSocket, Request, Response, SocketError, serve},
    takeover::{Taken, TakeoverError},
    tunnels::{self, TunnelEntry, TunnelError},
    wires,
};
use crate::xdp::{SteerError, listen_to_libbpf};

/// How often heartbeats are looked at and neighbours refreshed.
const TICK: Duration = Duration::from_secs(1);
/// Changes that may wait for the one at hand.
const ORDERS: usize = 8;
/// How long the start waits for the mirror to show the tunnels' devices.
const SETTLE: Duration = Duration::from_secs(2);

/// Why the router did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    #[error(transparent)]
    Files(#[from] files::FilesError),
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
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
    pub(super) fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| RunError::Io { what, source }
    }
}

/// Runs the router in the foreground until SIGTERM or SIGINT, or until another process takes over; `path` is where the
/// configuration came from. With `takeover` it goes on where the router that answers on the control socket is.
pub fn run(config: Config, path: &Path, takeover: bool) -> Result<(), RunError> {
    listen_to_libbpf();
    files::raise();
    files::enough_for(config.tunnels.len())?;
    // An address that the other router has comes along from it.
    let bound = config.router.metrics.map(Listener::bind).transpose();
    let listener = match bound {
        Err(MetricsError::Listen { source, .. })
            if takeover && source.kind() == io::ErrorKind::AddrInUse =>
        {
            None
        }
        bound => bound?,
    };
    privileges::reduce(config.needs_bpf())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::io("cannot start the control task"))?;
    runtime.block_on(run_until_told(config, path, takeover, listener))
}

async fn run_until_told(
    mut config: Config,
    path: &Path,
    takeover: bool,
    listener: Option<Listener>,
) -> Result<(), RunError> {
    let mut endpoint = listener.map(Listener::open).transpose()?;
    let signals = RunError::io("cannot listen to signals");
    let mut terminate = signal(SignalKind::terminate()).map_err(&signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(&signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(&signals)?;
    let bound = match takeover {
        true => None,
        false => Some(ControlSocket::bind(&config.router.control)?),
    };
    let mut monitor = Monitor::open(Options::default()).await?;
    let handle = Handle::open().map_err(RunError::io("cannot open a netlink socket"))?;
    ports::find(&config.router, monitor.state())?;

    // Late, when what can be known without it is known: from here on the other router carries by its slow path.
    let asked = takeover.then(|| Taken::ask(&config.router.control));
    let mut taken = asked.transpose()?;
    let mut socket = match (bound, &mut taken) {
        (Some(socket), _) => socket,
        (None, Some(taken)) => taken.control(&config.router.control)?,
        (None, None) => ControlSocket::bind(&config.router.control)?,
    };
    if let (Some(address), None) = (config.router.metrics, &endpoint) {
        let handed = taken.as_mut().and_then(|taken| taken.metrics.take());
        let listener = match handed {
            Some(socket) => Listener::handed(address, socket),
            None => Listener::bind(address),
        };
        endpoint = Some(listener?.open()?);
    }
    let mut claims = taken.as_mut().map_or_else(Claims::default, Taken::claims);
    let found = ports::find(&config.router, monitor.state())?;
    claims.set(&ports::claimed(&config.router, &found))?;
    let mut heirs = Heirs::default();
    if let Some(taken) = &mut taken {
        for (name, words) in &taken.state.commanded {
            if !config.tunnels.iter().any(|tunnel| tunnel.name == *name) {
                config.add_tunnel(name, words).map_err(ChangeError::from)?;
            }
        }
        heirs = Heirs::of(std::mem::take(&mut taken.tunnels), &config, &handle).await;
    }
    let made = heirs.create(&config, monitor.state(), &handle).await?;
    let new: Vec<Device> = (made.iter().filter(|(_, tun)| !tun.adopted()))
        .map(|(entry, _)| entry.device.clone())
        .collect();
    let fresh: Vec<Device> = (made.iter())
        .filter_map(|(entry, _)| wires::fresh(entry))
        .collect();
    settle(&mut monitor, &made).await;
    // What is there already is compiled at the start.
    let _ = monitor.take_touched();
    let state = monitor.state();
    let router = match Router::start(config, path, state, made, claims, taken.as_mut()) {
        Ok(router) => RefCell::new(router),
        Err(why) => {
            remove(&new, &handle).await;
            wires::take_up(&fresh, &handle).await;
            return Err(why);
        }
    };
    let mut inherited = Vec::new();
    if let Some(mut taken) = taken {
        inherited = std::mem::take(&mut taken.state.claims);
        taken.done()?;
        socket.own();
        let requests = heirs.settled(&router.borrow());
        request::carry_out(&requests, &handle).await;
        heirs.end(&handle).await;
        tracing::info!("taken over");
    }
    let cleared = wires::clear(&router.borrow().config, monitor.state(), &inherited);
    request::carry_out(&cleared, &handle).await;
    tracing::info!("ready");
    let mut service = Service::find();
    service.status(router.borrow().summary());
    service.ready();
    let mut reports = Reports::of(&mut router.borrow_mut());
    loop {
        let (orders, mut inbox) = mpsc::channel(ORDERS);
        let taker = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            taker = serve(
                &socket,
                |request| answer(&router, &orders, request),
                |wanted, stream| capture(&router.borrow(), &wanted, stream),
            ) => taker,
            () = attend(&mut endpoint, &router) => break,
            () = follow(&router, &mut monitor, &handle, (&mut inbox, &mut reports, &mut service)) => break,
            () = async {
                while hangup.recv().await.is_some() {
                    order(&orders, Request::Reload {}).await;
                }
            } => break,
        };
        let mut parted = None;
        // Whoever asks from now on is the other's.
        let door = endpoint.as_ref().inspect(|endpoint| endpoint.accept(false));
        let sockets = (&socket, door.map(AsFd::as_fd));
        let given = (router.borrow_mut()).give(sockets, taker, (&mut parted, monitor.state()));
        match given {
            Ok(()) => {
                tracing::info!("another process has taken over");
                router.into_inner().leave(parted);
                socket.leave();
                return Ok(());
            }
            Err(why) => {
                tracing::error!("nobody has taken over, and all goes on as before: {why}");
                router.borrow_mut().go_on(parted, monitor.state());
                endpoint.iter().for_each(|endpoint| endpoint.accept(true));
            }
        }
    }
    tracing::info!("stopping");
    service.stopping();
    let (stopped, slow) = router.into_inner().stop();
    tunnels::end(stopped, &handle).await;
    drop(slow);
    Ok(())
}

/// Answers monitoring systems, where that is wanted.
async fn attend(endpoint: &mut Option<Endpoint>, router: &RefCell<Router>) {
    match endpoint {
        Some(endpoint) => endpoint.attend(router).await,
        None => std::future::pending().await,
    }
}

/// Waits until the mirror knows the tunnels' devices: what the kernel routes into them from the first moment on (router
/// solicitations, multicast reports) shall find its tunnel.
pub(super) async fn settle(monitor: &mut Monitor, made: &[(TunnelEntry, Tun)]) {
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

/// A request that changes something or asks the mirror, and where its answer goes.
type Order = (Request, oneshot::Sender<Response>);

/// Answers at once what can be read, and leaves changes to the task that makes them, one after the other.
async fn answer(
    router: &RefCell<Router>,
    orders: &mpsc::Sender<Order>,
    request: Request,
) -> Response {
    // What stands in the mirror is for the task that has it.
    if let Request::Capture(wanted) = &request {
        let router = router.borrow();
        let allowed = router.captures.allows(wanted, &router.names());
        return allowed.map_or_else(Response::Error, |()| Response::ok(&()));
    }
    let is_order = request.changes() || request.asks_mirror();
    match is_order {
        true => order(orders, request).await,
        false => router.borrow().statistics().answer(&request),
    }
}

/// Begins a capture that the answer has allowed.
fn capture(router: &Router, wanted: &Wanted, stream: UnixStream) {
    match router.captures.begin(wanted, router.names(), stream) {
        Ok(()) => tracing::info!("capture: begun"),
        Err(why) => tracing::warn!("capture: {why}"),
    }
}

async fn order(orders: &mpsc::Sender<Order>, request: Request) -> Response {
    let (reply, answer) = oneshot::channel();
    let gone = || Response::Error("the router is stopping".to_owned());
    match orders.send((request, reply)).await {
        Ok(()) => answer.await.unwrap_or_else(|_| gone()),
        Err(_) => gone(),
    }
}

/// What was asked for by a verb or a signal.
async fn obey(
    router: &RefCell<Router>,
    monitor: &mut Monitor,
    handle: &Handle,
    request: &Request,
) -> Response {
    let wanted = {
        let router = router.borrow();
        let now = router.wanted();
        match request {
            Request::TunnelAdd { name, words } => now.with(name, words),
            Request::TunnelDel { name } => now.without(name),
            _ => now.reloaded(router.path()),
        }
    };
    let done = match wanted {
        Ok(wanted) => apply(router, monitor, handle, wanted).await,
        Err(why) => Err(why.into()),
    };
    match done {
        Ok(done) => {
            tracing::info!("{}: {done}", request.verb());
            Response::ok(&done)
        }
        Err(why) => {
            tracing::error!("{}: refused, nothing is changed: {why}", request.verb());
            Response::Error(why.to_string())
        }
    }
}

/// What the router's task wakes for.
enum News {
    /// The kernel's state has changed.
    Kernel(Parts),
    /// A second has passed.
    Second,
    /// Routers said something about outer packets.
    Errors(Vec<OuterError>),
    /// A keepalive is due, or one that was waited for has come back.
    Keepalives,
}

/// Keeps the router in step with the kernel, and makes the changes that are asked for, for ever.
async fn follow(
    router: &RefCell<Router>,
    monitor: &mut Monitor,
    handle: &Handle,
    (orders, reports, service): (&mut mpsc::Receiver<Order>, &mut Reports, &mut Service),
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let answered = router.borrow().slow.answered();
    loop {
        let mut reply = None;
        let due = router.borrow().next_keepalive();
        let news = tokio::select! {
            change = monitor.changed() => News::Kernel(change.what),
            _ = tick.tick() => News::Second,
            errors = reports.next() => News::Errors(errors),
            () = at(due) => News::Keepalives,
            () = answered.notified() => News::Keepalives,
            Some((request, asked)) = orders.recv() => {
                if let Request::RouteShow { within, after } = request {
                    let page = router.borrow().routes(monitor.state(), within, after);
                    // Whoever asked may have gone.
                    let _ = asked.send(Response::ok(&page));
                    continue;
                }
                if let Request::Trace { probe } = request {
                    let report = router.borrow().trace(monitor.state(), &probe);
                    let response = report.map_or_else(Response::Error, |report| Response::ok(&report));
                    let _ = asked.send(response);
                    continue;
                }
                if request == (Request::Takeover {}) {
                    // No change is under way, and none begins: this task is at its end.
                    let _ = asked.send(Response::ok(&()));
                    return std::future::pending().await;
                }
                service.reloading();
                reply = Some((asked, obey(router, monitor, handle, &request).await));
                // What was changed is known, and in force, before it is said to be.
                let _ = tokio::time::timeout(SETTLE, monitor.catch_up()).await;
                News::Kernel(Parts::ALL)
            }
        };
        let requests = {
            let mut router = router.borrow_mut();
            router.mirror = mirror_report(monitor);
            match news {
                News::Kernel(what) => {
                    let touched = monitor.take_touched();
                    router.follow(monitor.state(), what, touched)
                }
                News::Second => {
                    log::say_what_was_left_out();
                    router.heartbeat(monitor.state())
                }
                News::Errors(errors) => router.take_to_heart(monitor.state(), &errors),
                News::Keepalives => router.keepalives(monitor.state()),
            }
        };
        request::carry_out(&requests, handle).await;
        service.status(router.borrow().summary());
        service.alive();
        if let Some((asked, response)) = reply {
            service.ready();
            // Whoever asked may have gone.
            let _ = asked.send(response);
        }
    }
}

/// Waits for a moment; without one, for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

fn mirror_report(monitor: &Monitor) -> MirrorReport {
    let (state, seen) = (monitor.state(), monitor.statistics());
    MirrorReport {
        age_ms: u64::try_from(seen.age.as_millis()).unwrap_or(u64::MAX),
        links: state.links().count() as u64,
        addresses: state.addresses().count() as u64,
        routes: (state.main_v4().len() + state.main_v6().len()) as u64,
        neighbours: state.neighbours().count() as u64,
        nexthops: state.nexthops() as u64,
        dumps: seen.resyncs,
        parts_read: seen.dumps,
        messages: seen.messages,
        overruns: seen.overruns,
        undecodable: seen.undecodable,
    }
}
