//! The mirror against a real kernel, in network namespaces of its own. Needs root; without it these tests fail and
//! say so.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Write,
    os::fd::AsFd,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use greyhound::control::{
    mirror::{Monitor, Nud, Options, Parts, Prefix, RouteTable, State},
    netlink::{self, Family, Handle},
    request::KernelRequest::*,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const DEADLINE: Duration = Duration::from_secs(20);

/// A network namespace that goes away with its owner.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gh-mirror-{}-{number}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self(name);
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs lines of `ip` in the namespace.
    fn ip(&self, lines: &str) {
        let mut child = Command::new("ip")
            .args(["-n", &self.0, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip (iproute2) can be started");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(lines.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "ip refused: {errors}\nin:\n{lines}"
        );
    }

    /// Runs `ip -force`: some lines may fail.
    fn ip_force(&self, lines: &str) {
        let mut child = Command::new("ip")
            .args(["-n", &self.0, "-force", "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(lines.as_bytes())
            .unwrap();
        child.wait().unwrap();
    }

    fn json(&self, arguments: &str) -> serde_json::Value {
        let output = Command::new("ip")
            .args(["-n", &self.0, "-j"])
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "ip {arguments}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| serde_json::json!([]))
    }

    /// Runs a test in a thread that has moved into the namespace.
    fn within<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send) {
        let path = format!("/run/netns/{}", self.0);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(path).unwrap();
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(test());
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(command: &mut Command) {
    let status = command.status().expect("iproute2 is installed");
    assert!(
        status.success(),
        "{command:?} failed; these tests need root"
    );
}

fn options() -> Options {
    Options {
        receive_buffer: 4 << 20,
        ..Options::default()
    }
}

/// What two mirrors of one kernel must agree on. Neighbour states that pass without a message count as one.
fn picture(state: &State) -> BTreeSet<String> {
    let mut picture = BTreeSet::new();
    for link in state.links() {
        let (v4, v6) = (state.forwards4(link.index), state.forwards6(link.index));
        picture.insert(format!("{link:?} forwards {v4} {v6}"));
    }
    picture.extend(state.addresses().map(|address| format!("{address:?}")));
    for ((device, ip), entry) in state.neighbours().filter(|(_, n)| n.nud != Nud::NoArp) {
        let fixed = entry.nud == Nud::Permanent;
        picture.insert(format!("neighbour {device} {ip} {:?} {fixed}", entry.mac));
    }
    picture.insert(format!("foreign rules: {}", state.foreign_rules()));
    picture.insert(format!("nexthop objects: {}", state.nexthops()));
    routes("main", state, state.main_v4(), &mut picture);
    routes("main", state, state.main_v6(), &mut picture);
    routes("local", state, state.local_v4(), &mut picture);
    routes("local", state, state.local_v6(), &mut picture);
    picture
}

fn routes<P: Prefix + std::fmt::Debug>(
    name: &str,
    state: &State,
    table: &RouteTable<P>,
    picture: &mut BTreeSet<String>,
) {
    for (prefix, routes) in table.all() {
        for (place, route) in routes.iter().enumerate() {
            // The hops are the route's own, or its nexthop object's.
            let hops = state.hops(route);
            picture.insert(format!("{name} {prefix:?} #{place} {route:?} {hops:?}"));
        }
    }
}

/// Lets the mirror run until it equals a fresh dump.
async fn settle(monitor: &mut Monitor) {
    let start = Instant::now();
    loop {
        let fresh = Monitor::open(options()).await.unwrap();
        let (ours, theirs) = (picture(monitor.state()), picture(fresh.state()));
        if ours == theirs {
            return;
        }
        assert!(
            start.elapsed() < DEADLINE,
            "still different:\nonly in the mirror: {:#?}\nonly in a fresh dump: {:#?}\n{:?}",
            ours.difference(&theirs).collect::<Vec<_>>(),
            theirs.difference(&ours).collect::<Vec<_>>(),
            monitor.statistics(),
        );
        let _ = tokio::time::timeout(Duration::from_millis(20), monitor.changed()).await;
    }
}

/// Lets the mirror run until `condition` holds.
async fn until(monitor: &mut Monitor, what: &str, condition: impl Fn(&State) -> bool) {
    let start = Instant::now();
    while !condition(monitor.state()) {
        assert!(start.elapsed() < DEADLINE, "never came true: {what}");
        let _ = tokio::time::timeout(Duration::from_millis(100), monitor.changed()).await;
    }
}

const SCRIPT: &[&str] = &[
    "link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up",
    "addr add 10.0.0.1/24 dev v0\naddr add 10.0.0.9/24 dev v0\naddr add 2001:db8::1/64 dev v0 nodad",
    "route add 10.1.0.0/16 via 10.0.0.2\nroute add 10.1.0.0/16 via 10.0.0.3 metric 50",
    "route replace 10.1.0.0/16 via 10.0.0.4\nroute append 10.1.0.0/16 via 10.0.0.5",
    "route prepend 10.1.0.0/16 via 10.0.0.6\nroute add 10.1.0.0/16 tos 0x10 via 10.0.0.7",
    "route change 10.1.0.0/16 via 10.0.0.8",
    "route add 10.2.0.0/16 nexthop via 10.0.0.2 weight 2 nexthop via 10.0.0.3",
    "route add blackhole 10.3.0.0/16\nroute add unreachable 10.4.0.0/16\nroute add prohibit 10.5.0.0/16\nroute add throw 10.6.0.0/16",
    "route add 10.7.0.0/16 via inet6 2001:db8::2 dev v0 mtu 1400",
    "route add 10.8.0.0/16 via 192.0.2.1 dev v0 onlink src 10.0.0.9",
    "route add 2001:db8:1::/48 via 2001:db8::2\nroute append 2001:db8:1::/48 via 2001:db8::3",
    "route append 2001:db8:1::/48 via 2001:db8::4\nroute del 2001:db8:1::/48 via 2001:db8::3",
    "route replace 2001:db8:1::/48 via 2001:db8::5\nroute add 2001:db8:1::/48 dev v0 metric 2000",
    "route add 2001:db8:2::/48 nexthop via 2001:db8::2 weight 3 nexthop via 2001:db8::3",
    "route add unreachable 2001:db8:3::/48\nroute add 2001:db8:4::/48 via 2001:db8::2 mtu 1300",
    "neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev v0 nud permanent\nneigh add 10.0.0.3 lladdr 02:00:00:00:00:03 dev v0 nud reachable",
    "neigh replace 10.0.0.3 lladdr 02:00:00:00:00:33 dev v0 nud stale\nneigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev v0",
    "neigh add proxy 10.0.0.77 dev v0\nneigh del 10.0.0.2 dev v0",
    "link set v0 mtu 1400",
    // Routes that prefer a source go silently with it.
    "addr del 10.0.0.9/24 dev v0",
    // The peer goes down: no carrier.
    "link set v1 down",
    "link set v1 up",
    // The IPv4 routes of a device that goes down go silently.
    "link set v0 down",
    "link set v0 up",
    "route add 10.9.0.0/16 via 10.0.0.2",
    // With the last address all routes of the device go.
    "addr flush dev v0",
    "link set v0 name renamed\naddr add 10.0.0.1 dev renamed peer 10.0.1.1/32",
    "rule add fwmark 1 table 100\nrule add from 10.0.0.0/8 lookup main pref 10",
    "rule del fwmark 1\nrule del pref 10",
    "tuntap add t0 mode tun\nlink set t0 up\naddr add 172.16.0.1/30 dev t0\nroute add 10.20.0.0/16 dev t0",
    "nexthop add id 7 dev renamed\nroute add 10.21.0.0/16 nhid 7\nnexthop add id 8 via fe80::1 dev renamed\nroute add 2001:db8:21::/48 nhid 8",
    "nexthop replace id 7 blackhole\nnexthop replace id 8 via fe80::2 dev renamed",
    "nexthop replace id 7 dev v1\nnexthop add id 9 via 10.0.1.1 dev renamed\nnexthop add id 10 group 7,3/9,1\nroute add 10.22.0.0/16 nhid 10",
    "nexthop replace id 10 group 9\nnexthop replace id 9 via 10.0.1.1 dev renamed onlink",
    "nexthop del id 9",
    "route add 10.23.0.0/16 nhid 7",
    // The objects of a device that goes down go silently, and their routes with them.
    "link set v1 down",
    "link set v1 up",
    "nexthop flush",
    "link add link renamed name m0 type veth peer name m1\nlink set m0 up\nlink set m1 up",
    "route del blackhole 10.3.0.0/16\nroute del unreachable 10.4.0.0/16\nroute del prohibit 10.5.0.0/16",
    "route del throw 10.6.0.0/16\nroute del unreachable 2001:db8:3::/48",
    "link del m0\nlink del t0\nlink del renamed",
];

#[test]
fn after_every_step_of_a_script_the_mirror_equals_a_fresh_dump() {
    let namespace = Namespace::new();
    namespace.within(|| async {
        let mut monitor = Monitor::open(options()).await.unwrap();
        for step in SCRIPT {
            println!("{step}");
            namespace.ip(step);
            settle(&mut monitor).await;
        }
        assert_eq!(monitor.statistics().undecodable, 0);
        assert_eq!(monitor.statistics().overruns, 0);
    });
}

#[test]
fn a_whole_script_at_once_ends_in_equality() {
    let namespace = Namespace::new();
    namespace.within(|| async {
        let mut monitor = Monitor::open(options()).await.unwrap();
        for _ in 0..3 {
            namespace.ip(&SCRIPT.join("\n"));
            settle(&mut monitor).await;
        }
    });
}

/// A small generator, so that a failure can be repeated from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// One line of `ip` at random. Many are refused by the kernel; that is part of it.
fn random_line(random: &mut Random) -> String {
    let device = ["v0", "v1", "v2", "v3"][random.below(4) as usize];
    let (n, m) = (random.below(4), random.below(4));
    let verb = ["add", "append", "replace", "del", "prepend", "change"][random.below(6) as usize];
    let metric = ["", " metric 5", " metric 9"][random.below(3) as usize];
    match random.below(20) {
        16 => format!("nexthop replace id {} via 10.{m}.0.77 dev {device}", n + 1),
        17 => format!("nexthop del id {}", n + 1),
        18 => format!("nexthop replace id 9 group {}/{},{}", n + 1, m + 1, m + 2),
        19 => format!(
            "route {verb} 10.22{n}.0.0/16 nhid {}",
            [1, 2, 9, 9][m as usize]
        ),
        0 => format!("link set {device} up"),
        1 => format!("link set {device} down"),
        2 => format!("addr add 10.{n}.0.{m}/24 dev {device}"),
        3 => format!("addr del 10.{n}.0.{m}/24 dev {device}"),
        4 => format!("addr add 2001:db8:{n}::{m}/64 dev {device} nodad"),
        5 => format!("addr del 2001:db8:{n}::{m}/64 dev {device}"),
        6..=8 => format!("route {verb} 10.20{n}.0.0/16 via 10.{m}.0.77{metric}"),
        9 => format!("route {verb} 10.20{n}.0.0/16 dev {device}{metric}"),
        10 => format!("route {verb} 2001:db8:f{n}::/48 via 2001:db8:{m}::77{metric}"),
        11 => format!("route {verb} 2001:db8:f{n}::/48 dev {device}{metric}"),
        12 => format!("neigh {verb} 10.{n}.0.77 lladdr 02:00:00:00:00:0{m} dev {device}"),
        13 => format!("neigh del 2001:db8:{n}::77 dev {device}"),
        14 => format!("link set {device} mtu {}", 1300 + 100 * n),
        _ => format!(
            "route replace 10.21{n}.0.0/16 nexthop via 10.{n}.0.77 nexthop via 10.{m}.0.78 weight 4"
        ),
    }
}

#[test]
fn random_churn_ends_in_equality() {
    for seed in 1..=6 {
        let namespace = Namespace::new();
        namespace.ip("link add v0 type veth peer name v1\nlink add v2 type veth peer name v3");
        namespace.within(|| async {
            let mut monitor = Monitor::open(options()).await.unwrap();
            let mut random = Random(seed);
            println!("seed {seed}");
            for _ in 0..6 {
                let lines: Vec<String> = (0..60).map(|_| random_line(&mut random)).collect();
                namespace.ip_force(&lines.join("\n"));
                settle(&mut monitor).await;
            }
        });
    }
}

#[test]
fn an_overrun_is_noticed_and_mended() {
    let namespace = Namespace::new();
    namespace.ip("link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up\naddr add 10.0.0.1/8 dev v0");
    namespace.within(|| async {
        let small = Options {
            receive_buffer: 4096,
            ..Options::default()
        };
        let mut monitor = Monitor::open(small).await.unwrap();
        for round in 0..3 {
            // The monitor does not run meanwhile, so its receive buffer cannot hold all this.
            let verb = if round == 1 { "del" } else { "add" };
            let lines: Vec<String> = (0..2000)
                .map(|n| {
                    format!(
                        "route {verb} 172.{}.{}.0/24 via 10.0.0.2",
                        n / 250 + 16,
                        n % 250
                    )
                })
                .collect();
            namespace.ip(&lines.join("\n"));
            settle(&mut monitor).await;
            let statistics = monitor.statistics();
            assert!(statistics.overruns > round, "{statistics:?}");
            assert!(statistics.resyncs > round, "{statistics:?}");
        }
    });
}

#[test]
fn forwarding_switches_are_followed() {
    let namespace = Namespace::new();
    namespace.ip("link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up");
    namespace.within(|| async {
        for key in ["all", "v0", "v1"] {
            netlink::write_setting(Family::V4, key, "forwarding", "0").unwrap();
            netlink::write_setting(Family::V6, key, "forwarding", "0").unwrap();
        }
        let mut monitor = Monitor::open(options()).await.unwrap();
        let a = monitor.state().link_by_name("v0").unwrap().index;
        let b = monitor.state().link_by_name("v1").unwrap().index;
        assert!(!monitor.state().forwards4(a) && !monitor.state().forwards6(a));

        netlink::write_setting(Family::V4, "v0", "forwarding", "1").unwrap();
        assert_eq!(
            netlink::read_setting(Family::V4, "v0", "forwarding").unwrap(),
            "1"
        );
        until(&mut monitor, "a forwards IPv4, b does not", |s| {
            s.forwards4(a) && !s.forwards4(b)
        })
        .await;
        netlink::write_setting(Family::V4, "all", "forwarding", "1").unwrap();
        until(&mut monitor, "all forward IPv4", |s| s.forwards4(b)).await;
        netlink::write_setting(Family::V6, "v0", "forwarding", "1").unwrap();
        netlink::write_setting(Family::V6, "all", "forwarding", "1").unwrap();
        until(&mut monitor, "all forward IPv6", |s| s.forwards6(b)).await;
        netlink::write_setting(Family::V6, "all", "forwarding", "0").unwrap();
        until(&mut monitor, "none forwards IPv6", |s| !s.forwards6(a)).await;
        // A device that comes later begins with the default, which "all" has set.
        namespace.ip("link add v2 type veth peer name v3");
        until(&mut monitor, "a new device forwards IPv4", |s| {
            s.link_by_name("v2").is_some_and(|c| s.forwards4(c.index))
        })
        .await;
        settle(&mut monitor).await;
    });
}

#[test]
fn the_mirror_agrees_with_iproute2() {
    let namespace = Namespace::new();
    namespace.ip(&SCRIPT[..18].join("\n"));
    namespace.within(|| async {
        let monitor = Monitor::open(options()).await.unwrap();
        let state = monitor.state();
        let a = state.link_by_name("v0").unwrap();
        let link = &namespace.json("-d link show dev v0")[0];
        assert_eq!(link["ifindex"], a.index);
        assert_eq!(link["address"], a.mac.unwrap().to_string());
        assert_eq!(link["mtu"], a.mtu);
        assert_eq!(link["linkinfo"]["info_kind"], a.kind.as_deref().unwrap());
        assert_eq!(link["num_rx_queues"], a.rx_queues);

        for destination in ["10.1.2.3", "10.7.1.1", "10.8.0.1", "10.0.0.55"] {
            let theirs = &namespace.json(&format!("route get fibmatch {destination}"))[0];
            let ours = state.lookup(destination.parse().unwrap()).unwrap();
            let prefix = ours.prefix.to_string();
            let word = theirs["dst"].as_str().unwrap();
            assert_eq!(word, prefix, "{destination}");
            let gateway = ours.route.hops[0].gateway.map(|g| g.to_string());
            let theirs = theirs["gateway"]
                .as_str()
                .or(theirs["via"]["host"].as_str());
            assert_eq!(theirs, gateway.as_deref(), "{destination}");
        }
        for destination in ["2001:db8:1::9", "2001:db8:4::1", "2001:db8::77"] {
            let theirs = &namespace.json(&format!("-6 route get fibmatch {destination}"))[0];
            let ours = state.lookup(destination.parse().unwrap()).unwrap();
            assert_eq!(theirs["dst"], ours.prefix.to_string());
            let gateway = ours.route.hops[0].gateway.map(|g| g.to_string());
            assert_eq!(theirs["gateway"].as_str(), gateway.as_deref());
            assert_eq!(theirs["metric"], ours.route.metric);
        }
        let count = |arguments| namespace.json(arguments).as_array().unwrap().len();
        let routes = |n: usize| n;
        let ours: usize = state
            .main_v4()
            .all()
            .map(|(_, list)| routes(list.len()))
            .sum();
        assert_eq!(count("route show table main"), ours);
        let ours: usize = state.local_v4().all().map(|(_, list)| list.len()).sum();
        assert_eq!(count("route show table local"), ours);
        let ours: usize = state.local_v6().all().map(|(_, list)| list.len()).sum();
        assert_eq!(count("-6 route show table local"), ours);
    });
}

#[test]
fn requests_are_idempotent_and_their_errors_one_clear_line() {
    let namespace = Namespace::new();
    namespace.ip("tuntap add t0 mode tun");
    namespace.within(|| async {
        let mut monitor = Monitor::open(options()).await.unwrap();
        let handle = Handle::open().unwrap();
        assert_eq!(handle.device("nothing").unwrap(), None);
        let device = handle.device("t0").unwrap().unwrap();
        let (v4, v6) = ("10.2.0.0/24".parse().unwrap(), "2001:db8:2::/64".parse().unwrap());
        let error = handle.one(AddRoute(device.clone(), v4)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot add the route 10.2.0.0/24 on device t0: Network is down (os error 100); set the device up first"
        );
        for _ in 0..2 {
            handle.one(SetMtu(device.clone(), 1472)).await.unwrap();
            handle.one(SetUp(device.clone(), true)).await.unwrap();
            handle.one(AddAddress(device.clone(), "172.16.0.1/30".parse().unwrap())).await.unwrap();
            handle.one(AddAddress(device.clone(), "2001:db8::1/64".parse().unwrap())).await.unwrap();
            handle.one(AddRoute(device.clone(), v4)).await.unwrap();
            handle.one(AddRoute(device.clone(), v6)).await.unwrap();
        }
        until(&mut monitor, "everything is there", |state| {
            state.link(device.index).is_some_and(|link| link.up && link.mtu == 1472)
                && state.addresses_of(device.index).count() >= 2
                && ["10.2.0.9", "2001:db8:2::9"].iter().all(|to| {
                    let found = state.lookup(to.parse().unwrap());
                    found.is_some_and(|l| l.route.hops[0].oif == device.index)
                })
        })
        .await;
        settle(&mut monitor).await;
        // Somebody else's route of the same prefix is left alone.
        for prefix in ["10.7.0.0/24", "2001:db8:7::/64"] {
            namespace.ip(&format!("route add {prefix} dev lo"));
            let error = handle.one(AddRoute(device.clone(), prefix.parse().unwrap())).await.unwrap_err();
            let end = "File exists (os error 17); another route of that prefix is there, see `ip route`";
            assert_eq!(error.to_string(), format!("cannot add the route {prefix} on device t0: {end}"));
        }
        handle.one(SetUp(device.clone(), false)).await.unwrap();
        handle.one(DeleteLink(device.clone())).await.unwrap();
        handle.one(DeleteLink(device.clone())).await.unwrap();
        assert_eq!(handle.device("t0").unwrap(), None);
        until(&mut monitor, "the link is gone", |s| s.link_by_name("t0").is_none()).await;
        let error = handle.one(SetUp(device.clone(), true)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot set the link up on device t0: No such device (os error 19)"
        );
    });
}

#[test]
fn a_neighbour_in_use_is_resolved_by_the_kernel() {
    let (near, far) = (Namespace::new(), Namespace::new());
    near.ip(&format!(
        "link add v0 type veth peer name v1 netns {}",
        far.0
    ));
    near.ip("link set v0 up\naddr add 10.0.0.1/24 dev v0\naddr add 2001:db8::1/64 dev v0 nodad");
    far.ip("link set v1 up\naddr add 10.0.0.2/24 dev v1\naddr add 2001:db8::2/64 dev v1 nodad");
    near.within(|| async {
        let mut monitor = Monitor::open(options()).await.unwrap();
        let handle = Handle::open().unwrap();
        let device = handle.device("v0").unwrap().unwrap();
        until(&mut monitor, "the link runs", |s| {
            s.link(device.index).is_some_and(|link| link.running)
        })
        .await;
        let mac = far.json("link show dev v1")[0]["address"].clone();
        for ip in ["10.0.0.2", "2001:db8::2"] {
            let ip = ip.parse().unwrap();
            assert!(monitor.state().neighbour(device.index, ip).is_none());
            // Twice: an entry that exists is no error.
            handle.one(Refresh(device.clone(), ip)).await.unwrap();
            handle.one(Refresh(device.clone(), ip)).await.unwrap();
            until(&mut monitor, "the neighbour is resolved", |state| {
                let entry = state.neighbour(device.index, ip);
                entry.is_some_and(|n| mac == n.mac.unwrap().to_string())
            })
            .await;
        }
        // Nobody there: never usable.
        let nobody = "10.0.0.3".parse().unwrap();
        handle.one(Refresh(device.clone(), nobody)).await.unwrap();
        until(&mut monitor, "the attempt has failed", |state| {
            let entry = state.neighbour_entry(device.index, nobody);
            entry.is_some_and(|n| n.nud == Nud::Failed)
        })
        .await;
        assert!(monitor.state().neighbour(device.index, nobody).is_none());
    });
}

#[test]
fn changes_are_reported_once_and_by_name() {
    let namespace = Namespace::new();
    namespace.ip("link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up\naddr add 10.0.0.1/24 dev v0");
    namespace.within(|| async {
        let mut monitor = Monitor::open(options()).await.unwrap();
        settle(&mut monitor).await;
        namespace.ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev v0");
        let mut before = 0;
        loop {
            let change = tokio::time::timeout(DEADLINE, monitor.changed())
                .await
                .unwrap();
            assert!(change.generation > before, "generations rise");
            before = change.generation;
            assert!(!change.what.is_empty());
            if change.what.contains(Parts::NEIGHBOURS) {
                break;
            }
        }
        let statistics = monitor.statistics();
        assert!(statistics.in_sync && statistics.age < DEADLINE);
    });
}

#[test]
fn route_changes_are_followed_without_reading_anything_anew() {
    let namespace = Namespace::new();
    namespace.within(|| async {
        namespace.ip(SCRIPT[0]);
        namespace.ip(SCRIPT[1]);
        let mut monitor = Monitor::open(options()).await.unwrap();
        settle(&mut monitor).await;
        let before = monitor.statistics();
        for step in &SCRIPT[2..18] {
            namespace.ip(step);
            settle(&mut monitor).await;
        }
        let after = monitor.statistics();
        assert_eq!((after.dumps, after.resyncs), (before.dumps, 0), "{after:?}");
    });
}
