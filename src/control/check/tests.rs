//! Judging hosts that never were.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    Finding, Report, Severity,
    host::{Card, Chain, Host, IpSettings, Link, Offloads, Policy, RouteTo},
    judge,
};
use crate::{
    control::{
        config::Config,
        mirror::{Rule, Vlan},
    },
    tunnel::Family,
    xdp::HugePages,
};

const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn config(router: &str, tunnel: &str) -> Config {
    let text = format!(
        "[router]\nunderlay = [\"eth0\"]\noverlay = [\"eth1\"]\n{router}\n[[tunnel]]\nname = \"gre1\"\nmode = \"gre\"\n\
         local = \"192.0.2.1\"\nremote = \"{REMOTE}\"\n{tunnel}\n"
    );
    Config::parse(&text, "test.toml").unwrap()
}

/// A host that is fit for `config("", "")`: two network cards of one queue each.
pub(super) fn host() -> Host {
    let card = |index: u32, name: &str| Link {
        index,
        name: name.to_owned(),
        mtu: 1500,
        up: true,
        carrier: true,
        multicast: true,
        ethernet: true,
        queues: (1, 1),
        ..Link::default()
    };
    let forwards = IpSettings {
        forwarding_v4: Some(1),
        forwarding_v6: Some(1),
        rp_filter: Some(0),
    };
    let settings = ["all", "eth0", "eth1"].map(|name| (name.to_owned(), forwards));
    let offloads = ["eth0", "eth1"].map(|name| (name.to_owned(), Ok(Offloads::default())));
    Host {
        kernel: "6.1.0-30-amd64".to_owned(),
        capabilities: Ok(u64::MAX),
        memlock: Some(64 << 10),
        tun: Ok(()),
        af_xdp: Ok(()),
        cpus: Ok(vec![0, 1]),
        kernel_tunnels: Vec::new(),
        accelerated: Ok(Vec::new()),
        running: None,
        udp_ports: Vec::new(),
        links: Ok(vec![card(2, "eth0"), card(3, "eth1")]),
        addresses: Ok(vec![(2, "192.0.2.1/24".parse().unwrap())]),
        rules: Ok(Vec::new()),
        qdiscs: Ok(vec![(2, "mq".to_owned()), (3, "fq_codel".to_owned())]),
        routes: BTreeMap::new(),
        settings: BTreeMap::from(settings),
        offloads: BTreeMap::from(offloads),
        cards: BTreeMap::new(),
        nodes: BTreeMap::from([(0, vec![0, 1])]),
        huge_pages: None,
        connections: None,
        sampler: false,
        chains: Ok(Vec::new()),
        legacy_tables: Vec::new(),
        policies: Ok(Vec::new()),
    }
}

/// By eth0, on the link.
const ROUTE: RouteTo = RouteTo {
    device: 2,
    gateway: None,
    prefix_len: 24,
    local: false,
    mtu: None,
};

impl Host {
    /// The route from gre1 to an outer address.
    fn route(&mut self, remote: impl Into<IpAddr>, route: Result<RouteTo, &str>) {
        let key = ("gre1".to_owned(), remote.into());
        self.routes.insert(key, route.map_err(str::to_owned));
    }

    pub(super) fn change(&mut self, name: &str, change: impl Fn(&mut Link)) {
        let links = self.links.as_mut().unwrap();
        change(links.iter_mut().find(|link| link.name == name).unwrap());
    }

    pub(super) fn veth_with_peer(&mut self, name: &str, peer_tx: u32) {
        self.change(name, |link| {
            link.kind = Some("veth".to_owned());
            link.lower = Some(9);
        });
        self.links.as_mut().unwrap().push(Link {
            index: 9,
            name: "peer".to_owned(),
            queues: (1, peer_tx),
            ..Link::default()
        });
    }
}

/// The findings that are not in order, as `severity subject check: found | mend`.
pub(super) fn complaints(config: &Config, host: &Host) -> Vec<String> {
    let mut host = host.clone();
    // What a test does not say is on the link.
    for tunnel in &config.tunnels {
        for remote in tunnel.remotes() {
            let key = (tunnel.name.clone(), *remote);
            host.routes.entry(key).or_insert(Ok(ROUTE));
        }
    }
    let bad = |finding: &Finding| finding.severity != Severity::Ok;
    let line = |finding: Finding| {
        let Finding {
            severity,
            check,
            subject,
            found,
            mend,
        } = finding;
        let mend = mend.unwrap_or_default();
        format!("{} {subject} {check}: {found} | {mend}", severity.as_str())
    };
    judge(config, &host)
        .into_iter()
        .filter(bad)
        .map(line)
        .collect()
}

/// What one change to the fit host leads to; every complaint, in order.
#[track_caller]
fn one_change(change: impl Fn(&mut Host), expected: &[&str]) {
    with_config("", "", change, expected);
}

#[track_caller]
fn with_config(router: &str, tunnel: &str, change: impl Fn(&mut Host), expected: &[&str]) {
    let mut host = host();
    change(&mut host);
    assert_eq!(complaints(&config(router, tunnel), &host), expected);
}

#[test]
fn a_fit_host_has_nothing_to_mend() {
    one_change(|_| {}, &[]);
    with_config("xdp = \"off\"", "mtu = 1476", |_| {}, &[]);
}

#[test]
fn privileges_and_kernel() {
    one_change(
        |host| host.capabilities = Ok(1 << 13),
        &[
            "fail host capabilities: missing: CAP_NET_ADMIN (devices, addresses and routes), \
             CAP_BPF (the steering program), CAP_PERFMON (the steering program's packet pointers) | run as root, or: \
             setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock+ep \"$(command -v greyhound)\"",
            "fail host memlock: at most 64 KiB may be locked, and CAP_IPC_LOCK is missing: 1 worker locks 25600 KiB for \
             packets | ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)",
        ],
    );
    // All but CAP_IPC_LOCK.
    let unlocked = |host: &mut Host| host.capabilities = Ok(!(1 << 14));
    one_change(
        |host| {
            unlocked(host);
            host.memlock = Some(25600 << 10);
        },
        &[],
    );
    one_change(
        |host| {
            unlocked(host);
            host.memlock = Some(50 << 20);
            for name in ["eth0", "eth1"] {
                host.change(name, |link| link.queues = (2, 2));
            }
            // The widest of them says how large the buffers of all are.
            host.change("eth1", |link| link.mtu = 3000);
        },
        &[
            "fail host memlock: at most 51200 KiB may be locked, and CAP_IPC_LOCK is missing: 2 workers lock 102400 KiB \
             for packets | ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)",
        ],
    );
    one_change(
        |host| host.kernel = "5.4.0-1-generic".to_owned(),
        &["fail host kernel: Linux 5.4.0-1-generic is older than 5.15 | boot Linux 5.15 or later"],
    );
    one_change(
        |host| host.tun = Err("No such file or directory".to_owned()),
        &[
            "fail host tun: /dev/net/tun: No such file or directory | modprobe tun; in a container: pass /dev/net/tun \
           into it",
        ],
    );
    with_config(
        "workers = [0, 4]",
        "",
        |host| {
            host.change("eth0", |link| link.queues = (2, 2));
            host.change("eth1", |link| link.queues = (2, 2));
        },
        &[
            "fail host workers: workers names CPUs that are not online: 4 | choose from: lscpu --online --extended",
        ],
    );
}

#[test]
fn devices_must_be_there_and_up() {
    one_change(
        |host| {
            host.links
                .as_mut()
                .unwrap()
                .retain(|link| link.name != "eth1")
        },
        &["fail eth1 device: there is no such device | name a device that exists: ip -brief link"],
    );
    one_change(
        |host| host.change("eth1", |link| link.up = false),
        &["fail eth1 device: is down | ip link set eth1 up"],
    );
    one_change(
        |host| host.change("eth1", |link| link.ethernet = false),
        &[
            "fail eth1 kind: is no Ethernet device: AF_XDP carries Ethernet frames | name an Ethernet device, or set \
           xdp = \"off\"",
        ],
    );
    with_config(
        "xdp = \"off\"",
        "",
        |host| host.change("eth1", |link| link.ethernet = false),
        &[],
    );
}

#[test]
fn a_foreign_xdp_program_is_named_and_our_own_is_not_foreign() {
    let program = |host: &mut Host| {
        host.change("eth0", |link| {
            link.xdp = Some((42, Some("xdp_dispatcher".to_owned())))
        });
    };
    one_change(
        program,
        &[
            "fail eth0 xdp: runs XDP program 42 (xdp_dispatcher) of somebody else | ip link set eth0 xdp off   (busy: \
           its owner holds it; see bpftool link)",
        ],
    );
    one_change(
        |host| {
            program(host);
            host.running = Some(7);
        },
        &[
            "fail eth0 xdp: runs XDP program 42 (xdp_dispatcher) of somebody else | ip link set eth0 xdp off   (busy: \
           its owner holds it; see bpftool link)",
        ],
    );
    for name in [Some("greyhound_steer".to_owned()), None] {
        one_change(
            |host| {
                host.change("eth0", |link| link.xdp = Some((42, name.clone())));
                host.running = Some(7);
            },
            &[],
        );
    }
}

#[test]
fn what_one_queue_gets_is_named_with_what_mends_it() {
    let two = |host: &mut Host| {
        host.change("eth0", |link| link.queues = (2, 2));
        host.change("eth1", |link| link.queues = (2, 2));
    };
    let card = |host: &mut Host, card: Card| {
        two(host);
        host.cards.insert("eth0".to_owned(), card);
    };
    with_config("", "", two, &[]);
    with_config(
        "spread = false",
        "",
        two,
        &[
            "warn eth0 spread: tunnel packets have no ports: those between two ends come by one queue, and spread = \
             false leaves them to one worker | spread = \"auto\", or encap = \"gre-in-udp\" at both ends",
        ],
    );
    with_config(
        "spread = true",
        "",
        |_| {},
        &[
            "warn eth0 spread: one queue, and so one worker: there is no other to spread flows over | ethtool -L eth0 \
             combined N, the same on every device",
        ],
    );
    let blind = Card {
        spreads_over: Some(1),
        sees_udp_ports: [Some(false), Some(false)],
        ..Card::default()
    };
    let rss = "warn eth0 rss: RSS spreads over 1 of 2 queues: the other workers get nothing | ethtool -X eth0 equal 2";
    with_config("", "", |host| card(host, blind.clone()), &[rss]);
    with_config(
        "spread = false",
        "encap = \"gre-in-udp\"",
        |host| card(host, blind.clone()),
        &[
            rss,
            "warn eth0 rss: does not look at UDP ports when it chooses a queue: GRE in UDP between two ends comes by one | \
             ethtool -N eth0 rx-flow-hash udp4 sdfn",
        ],
    );
    let seeing = Card {
        spreads_over: Some(2),
        sees_udp_ports: [Some(true), None],
        ..Card::default()
    };
    with_config(
        "",
        "encap = \"gre-in-udp\"",
        |host| card(host, seeing.clone()),
        &[],
    );
}

#[test]
fn busy_polling_wants_interrupts_deferred() {
    let deferral = |host: &mut Host, deferral| {
        let card = Card {
            deferral,
            ..Card::default()
        };
        host.cards.insert("eth0".to_owned(), card);
    };
    let line = "warn eth0 busy_poll: interrupts are not deferred: they do the polling's work beside it | echo 2 > \
                /sys/class/net/eth0/napi_defer_hard_irqs; echo 200000 > /sys/class/net/eth0/gro_flush_timeout";
    with_config(
        "busy_poll = true",
        "",
        |host| deferral(host, Some((0, 200_000))),
        &[line],
    );
    with_config(
        "busy_poll = true",
        "",
        |host| deferral(host, Some((2, 200_000))),
        &[],
    );
    with_config("busy_poll = true", "", |host| deferral(host, None), &[]);
    with_config("", "", |host| deferral(host, Some((0, 0))), &[]);
}

#[test]
fn queues_must_be_equal() {
    one_change(
        |host| host.change("eth0", |link| link.queues = (4, 4)),
        &[
            "fail eth0 queues: 4 receive, 4 transmit: every device needs the same number, one per worker | ethtool -L \
           eth0 combined 1",
        ],
    );
    one_change(
        |host| {
            host.change("eth0", |link| link.queues = (2, 2));
            host.change("eth1", |link| link.queues = (2, 1));
        },
        &[
            "fail eth0 queues: 2 receive, 2 transmit: every device needs the same number, one per worker | ethtool -L \
             eth0 combined 1",
            "fail eth1 queues: 2 receive, 1 transmit: every device needs the same number, one per worker | ethtool -L \
             eth1 combined 1",
        ],
    );
    with_config(
        "workers = [0, 1]",
        "",
        |_| {},
        &[
            "warn host workers: 2 CPUs for 1 queues: some CPUs have nothing to do | name 1 CPUs, or: ethtool -L DEVICE \
           combined 2 on every device",
        ],
    );
    with_config(
        "xdp = \"off\"",
        "",
        |host| host.change("eth0", |link| link.queues = (4, 4)),
        &[],
    );
}

#[test]
fn a_veth_needs_as_many_receive_queues_as_its_peer_transmits_on() {
    one_change(|host| host.veth_with_peer("eth1", 1), &[]);
    one_change(
        |host| host.veth_with_peer("eth1", 2),
        &[
            "warn eth1 veth: its peer peer has 2 transmit queues, more than the 1 that receive here: XDP will be generic, \
           which is slow | ethtool -L peer tx 1",
        ],
    );
    with_config(
        "xdp = \"copy\"",
        "",
        |host| host.veth_with_peer("eth1", 2),
        &[
            "fail eth1 veth: its peer peer has 2 transmit queues, more than the 1 that receive here: no native XDP | \
           ethtool -L peer tx 1",
        ],
    );
    with_config(
        "xdp = \"generic\"",
        "",
        |host| host.veth_with_peer("eth1", 2),
        &[],
    );
    with_config(
        "xdp = \"zero-copy\"",
        "",
        |host| host.veth_with_peer("eth1", 1),
        &["fail eth1 kind: veth has no zero-copy | set xdp = \"auto\""],
    );
}

/// Router on a stick: VLANs 100 and 7 of a veth.
fn stick() -> (Config, Host) {
    let text = "[router]\nunderlay = [\"eth0.100\"]\noverlay = [\"eth0.7\"]\n[[tunnel]]\nname = \"gre1\"\nmode = \"gre\"\n\
                local = \"192.0.2.1\"\nremote = \"192.0.2.2\"\n";
    let mut host = host();
    host.kernel = "6.12.0".to_owned();
    host.change("eth0", |link| link.kind = Some("veth".to_owned()));
    let on = IpSettings {
        forwarding_v4: Some(1),
        forwarding_v6: Some(1),
        rp_filter: Some(0),
    };
    for (index, id) in [(10, 100), (11, 7)] {
        let name = format!("eth0.{id}");
        host.settings.insert(name.clone(), on);
        let beneath = host.link("eth0").unwrap().clone();
        host.links.as_mut().unwrap().push(Link {
            index,
            name,
            kind: Some("vlan".to_owned()),
            lower: Some(2),
            vlan: Some(Vlan {
                id,
                reorders: true,
                ..Vlan::default()
            }),
            ..beneath
        });
    }
    host.route(
        REMOTE,
        Ok(RouteTo {
            device: 10,
            ..ROUTE
        }),
    );
    (Config::parse(text, "test.toml").unwrap(), host)
}

#[test]
fn vlan_devices_are_looked_at_with_the_one_beneath() {
    type Change = fn(&mut Host);
    let cases: &[(Change, &[&str])] = &[
        (|_| (), &[]),
        (
            |host| {
                host.change("eth0", |link| {
                    link.xdp = Some((7, Some("somebody".to_owned())))
                })
            },
            &[
                "fail eth0 xdp: runs XDP program 7 (somebody) of somebody else | \
               ip link set eth0 xdp off   (busy: its owner holds it; see bpftool link)",
            ],
        ),
        (
            |host| host.change("eth0", |link| link.up = false),
            &["fail eth0 device: is down | ip link set eth0 up"],
        ),
        (
            |host| host.qdiscs.as_mut().unwrap().push((2, "htb".to_owned())),
            &["warn eth0 tc: the fast path goes past tc: htb | \
               tc qdisc show dev eth0; tc filter show dev eth0 ingress"],
        ),
        (
            |host| host.kernel = "6.1.0".to_owned(),
            &[
                "warn eth0.100 vlan: left to the kernel: before Linux 6.8 tags cannot be seen on eth0 | \
                 use Linux 6.8 or later, and not xdp = \"generic\"",
                "warn eth0.7 vlan: left to the kernel: before Linux 6.8 tags cannot be seen on eth0 | \
                 use Linux 6.8 or later, and not xdp = \"generic\"",
            ],
        ),
        (
            |host| host.change("eth0.7", |link| link.vlan.as_mut().unwrap().marks = true),
            &[
                "warn eth0.7 kind: left to the kernel: priorities are sent by a map (egress-qos-map) | \
               ip link set eth0.7 type vlan egress-qos-map PRIORITY:0",
            ],
        ),
        (
            |host| {
                host.change("eth0.7", |link| {
                    link.vlan.as_mut().unwrap().reorders = false
                })
            },
            &[
                "warn eth0.7 kind: left to the kernel: tags are left in its frames (reorder_hdr off) | \
               ip link set eth0.7 type vlan reorder_hdr on",
            ],
        ),
        (
            |host| host.change("eth0", |link| link.kind = Some("bond".to_owned())),
            &[
                "warn eth0.100 kind: left to the kernel: it is on eth0: frames of a bond come by other devices | \
                 name a device whose frames are its own: hardware, a veth, a VLAN (802.1Q) on one",
                "warn eth0.7 kind: left to the kernel: it is on eth0: frames of a bond come by other devices | \
                 name a device whose frames are its own: hardware, a veth, a VLAN (802.1Q) on one",
            ],
        ),
    ];
    for (change, expected) in cases {
        let (config, mut host) = stick();
        change(&mut host);
        assert_eq!(complaints(&config, &host), *expected);
    }
    // A device that is the end of a wire has no frames for its VLAN devices.
    let (mut config, host) = stick();
    config.router.overlay.push("eth0".to_owned());
    config.tunnels[0].bridge = Some("eth0".to_owned());
    let found = complaints(&config, &host);
    let word = "gets no frames: all those of eth0 go into tunnel gre1";
    assert_eq!(
        found.iter().filter(|line| line.contains(word)).count(),
        2,
        "{found:?}"
    );
}

/// The kernel's own rules of IPv4, and one more of priority 100.
fn own_and(change: impl FnOnce(&mut Rule)) -> Vec<Rule> {
    let own = [(0, 255), (32766, 254), (32767, 253)].map(|(priority, table)| Rule {
        priority,
        table,
        plain: true,
        ..Rule::default()
    });
    let mut more = Rule {
        priority: 100,
        table: 7,
        ..Rule::default()
    };
    change(&mut more);
    own.into_iter().chain([more]).collect()
}

#[test]
fn each_policy_rule_is_named_with_what_it_does() {
    let device = |name: &str| Some(name.into());
    let found = |rules: Vec<Rule>| {
        let mut host = host();
        host.rules = Ok(rules);
        let all = judge(&config("", ""), &host).into_iter();
        let lines = all
            .filter(|finding| finding.check == "rules")
            .map(|finding| format!("{} {}", finding.severity.as_str(), finding.found));
        lines.collect::<Vec<_>>().join("; ")
    };
    assert_eq!(
        found(own_and(|rule| rule.iif = device("eth1"))),
        "warn 100: iif eth1 table 7: switches the fast path off"
    );
    assert_eq!(
        found(own_and(|rule| rule.iif = device("gre1"))),
        "warn 100: iif gre1 table 7: switches the fast path off"
    );
    assert_eq!(
        found(own_and(|rule| rule.iif = device("eth7"))),
        "ok 100: iif eth7 table 7: concerns no packet of the fast path"
    );
    assert_eq!(
        found(own_and(|rule| rule.l3mdev = true)),
        "ok 100: l3mdev: concerns no packet of the fast path"
    );
    let from = |net: &str| own_and(|rule| rule.from = Some(net.parse().unwrap()));
    assert_eq!(
        found(from("192.0.2.1/32")),
        "warn 100: from 192.0.2.1/32 table 7: sends by the slow path: gre1"
    );
    assert_eq!(
        found(from("10.0.0.0/8")),
        "warn 100: from 10.0.0.0/8 table 7: switches the fast path off"
    );
    let gone = own_and(|rule| rule.iif = device("eth7"));
    assert!(
        found(gone[1..].to_vec())
            .ends_with("warn one of the kernel's own rules is gone: the fast path is off")
    );
}

#[test]
fn a_vlan_over_a_veth_hides_tags_before_linux_6_8() {
    let vlan = |host: &mut Host| {
        host.veth_with_peer("eth1", 1);
        host.links.as_mut().unwrap().push(Link {
            index: 10,
            name: "eth1.5".to_owned(),
            kind: Some("vlan".to_owned()),
            lower: Some(3),
            ..Link::default()
        });
    };
    one_change(
        vlan,
        &[
            "warn eth1 vlan: carries eth1.5: before Linux 6.8 a veth hides tags from XDP, so nothing is steered here | \
           ethtool -K PEER txvlan off, or use Linux 6.8 or later",
        ],
    );
    one_change(
        |host| {
            vlan(host);
            host.kernel = "6.10.1".to_owned();
        },
        &[],
    );
}

#[test]
fn offloads_that_merge_packets_are_named() {
    let offloads = Offloads {
        lro: (true, false),
        gro: (true, false),
        rxvlan: (true, true),
        ..Offloads::default()
    };
    one_change(
        |host| drop(host.offloads.insert("eth0".to_owned(), Ok(offloads))),
        &[
            "warn eth0 offload: takes VLAN tags off received frames and cannot be told not to: tags are lost to XDP | \
             keep tagged traffic off this device",
            "warn eth0 offload: lro is on: merged packets are too large to steer | ethtool -K eth0 lro off",
        ],
    );
    one_change(
        |host| {
            drop(host.offloads.insert(
                "eth0".to_owned(),
                Err("ethtool is not installed".to_owned()),
            ))
        },
        &["warn eth0 offload: could not look: ethtool is not installed | apt install ethtool"],
    );
}

#[test]
fn endpoints_must_be_ours_and_within_reach() {
    one_change(
        |host| host.addresses = Ok(Vec::new()),
        &["fail gre1 local: 192.0.2.1 is on no device | ip address add 192.0.2.1/PREFIX dev eth0"],
    );
    one_change(
        |host| host.route(REMOTE, Err("Network is unreachable")),
        &[
            "fail gre1 remote: no route to 192.0.2.2: Network is unreachable | ip route add 192.0.2.2 via GATEWAY dev \
           eth0",
        ],
    );
    let by = |device: u32| {
        move |host: &mut Host| {
            let route = RouteTo { device, ..ROUTE };
            host.route(REMOTE, Ok(route));
        }
    };
    one_change(
        by(3),
        &[
            "warn gre1 remote: 192.0.2.2 is reached by eth1, which is not an underlay device: slow path only | add \
           \"eth1\" to underlay",
        ],
    );
    one_change(
        |host| {
            let local = true;
            host.route(REMOTE, Ok(RouteTo { local, ..ROUTE }));
        },
        &[
            "fail gre1 remote: 192.0.2.2 is an address of this host | set remote to the other end's address",
        ],
    );
}

#[test]
fn a_tunnel_must_not_swallow_its_own_outer_packets() {
    with_config(
        "",
        "routes = [\"192.0.2.0/24\"]",
        |_| {},
        &[
            "fail gre1 remote: route 192.0.2.0/24 will lead 192.0.2.2 into tunnel gre1 | ip route add 192.0.2.2 via \
           GATEWAY dev eth0",
        ],
    );
    with_config("", "routes = [\"192.0.0.0/16\"]", |_| {}, &[]);
}

#[test]
fn the_tunnel_mtu_must_fit_the_underlay() {
    with_config(
        "",
        "mtu = 1477",
        |_| {},
        &[
            "fail gre1 mtu: 1477 is above the underlay's: 1476 = 1500 of eth0 - 20 IPv4 - 4 GRE | set mtu = 1476 or \"auto\", or: ip \
             link set eth0 mtu 1501",
        ],
    );
    // The kernel takes it where the outer packet may be cut, and so do we.
    with_config(
        "",
        "mtu = 1500\npmtudisc = false",
        |_| {},
        &[
            "warn gre1 mtu: 1500 is above the underlay's, so larger packets leave in fragments: 1476 = 1500 of eth0 - 20 IPv4 - 4 GRE | \
             set mtu = 1476 or \"auto\", or: ip link set eth0 mtu 1524",
        ],
    );
    let narrow_route = |host: &mut Host| {
        let mtu = Some(1400);
        host.route(REMOTE, Ok(RouteTo { mtu, ..ROUTE }));
    };
    with_config(
        "",
        "mtu = 1400",
        narrow_route,
        &[
            "fail gre1 mtu: 1400 is above the underlay's: 1376 = 1400 of the route by eth0 - 20 IPv4 - 4 GRE | set mtu = 1376 or \"auto\", \
             or: ip route change 192.0.2.2 … mtu 1424",
        ],
    );
    with_config("", "", narrow_route, &[]);
}

#[test]
fn an_underlay_too_narrow_for_ipv6_is_named() {
    let narrow = |host: &mut Host| host.change("eth0", |link| link.mtu = 1303);
    one_change(
        narrow,
        &[
            "warn gre1 mtu: 1280, which IPv6 needs, so larger packets than the underlay carries leave in fragments: 1279 = 1303 of eth0 - \
             20 IPv4 - 4 GRE | ip link set eth0 mtu 1304",
        ],
    );
    one_change(|host| host.change("eth0", |link| link.mtu = 1304), &[]);
    let ipip = kind("ipip", "192.0.2.1", "192.0.2.2", "");
    let mut host = host();
    narrow(&mut host);
    assert_eq!(complaints(&ipip, &host), [""; 0]);
}

/// One tunnel `gre1` of another kind.
fn kind(mode: &str, local: &str, remote: &str, tunnel: &str) -> Config {
    let text = format!(
        "[router]\nunderlay = [\"eth0\"]\noverlay = [\"eth1\"]\n[[tunnel]]\nname = \"gre1\"\nmode = \"{mode}\"\n\
         local = \"{local}\"\nremote = \"{remote}\"\n{tunnel}\n"
    );
    Config::parse(&text, "test.toml").unwrap()
}

#[test]
fn endpoints_over_ipv6_are_looked_at_as_well() {
    let mut host = host();
    let global = kind("ip6gre", "2001:db8::1", "2001:db8::2", "mtu = 1449");
    assert_eq!(
        complaints(&global, &host),
        [
            "fail gre1 local: 2001:db8::1 is on no device | ip address add 2001:db8::1/PREFIX dev eth0",
            "fail gre1 mtu: 1449 is above the underlay's: 1448 = 1500 of eth0 - 40 IPv6 - 8 limit - 4 GRE | set mtu = 1448 or \"auto\", \
             or: ip link set eth0 mtu 1501",
        ]
    );
    // The same link-local address may be on another link: that is another address.
    let scoped = kind("ip6ip6", "fe80::1", "fe80::2", "dev = \"eth0\"");
    host.addresses = Ok(vec![(3, "fe80::1/64".parse().unwrap())]);
    assert_eq!(
        complaints(&scoped, &host),
        ["fail gre1 local: fe80::1 is not on eth0 | ip address add fe80::1/PREFIX dev eth0"]
    );
    host.addresses = Ok(vec![(2, "fe80::1/64".parse().unwrap())]);
    assert_eq!(complaints(&scoped, &host), [""; 0]);
    let swallows = kind(
        "ip6gre",
        "fe80::1",
        "2001:db8::2",
        "dev = \"eth0\"\nroutes = [\"2001:db8::/64\"]",
    );
    assert_eq!(
        complaints(&swallows, &host),
        [
            "fail gre1 remote: route 2001:db8::/64 will lead 2001:db8::2 into tunnel gre1 | ip route add 2001:db8::2 \
             via GATEWAY dev eth0"
        ]
    );
}

/// gre1 without a remote, or with a group, and what is said of it that is in order.
fn without_remote(lines: &str) -> Config {
    let text = format!(
        "[router]\nunderlay = [\"eth0\"]\noverlay = [\"eth1\"]\n[[tunnel]]\nname = \"gre1\"\nmode = \"gre\"\n\
         local = \"192.0.2.1\"\n{lines}\n"
    );
    Config::parse(&text, "test.toml").unwrap()
}

fn said(config: &Config, host: &Host, check: &str) -> Vec<String> {
    let findings = judge(config, host).into_iter();
    let ours = findings.filter(|f| f.check == check && f.severity == Severity::Ok);
    ours.map(|finding| finding.found).collect()
}

#[test]
fn each_peer_must_be_within_reach() {
    let peer = |inner: &str, outer: &str| {
        format!("[[tunnel.peer]]\naddress = \"{inner}\"\nremote = \"{outer}\"\n")
    };
    let peers = [
        peer("172.16.0.3", "192.0.2.3"),
        peer("10.0.3.0/24", "192.0.2.3"),
        peer("172.16.0.4", "192.0.2.4"),
    ];
    let config = without_remote(&format!("routes = [\"192.0.2.4/31\"]\n{}", peers.concat()));
    let mut host = host();
    let swallowed = "fail gre1 peer: route 192.0.2.4/31 will lead 192.0.2.4 into tunnel gre1 | ip route add 192.0.2.4 \
                     via GATEWAY dev eth0";
    assert_eq!(complaints(&config, &host), [swallowed]);
    host.route([192, 0, 2, 3], Ok(ROUTE));
    assert_eq!(
        said(&config, &host, "peer"),
        ["192.0.2.3 is reached by eth0"]
    );
    host.route([192, 0, 2, 3], Err("Network is unreachable"));
    let unreachable = "fail gre1 peer: no route to 192.0.2.3: Network is unreachable | ip route add 192.0.2.3 via \
                       GATEWAY dev eth0";
    assert_eq!(complaints(&config, &host), [unreachable, swallowed]);
}

#[test]
fn the_narrowest_way_to_a_peer_is_the_tunnels_mtu() {
    let peer = "[[tunnel.peer]]\naddress = \"172.16.0.3\"\nremote = \"192.0.2.3\"\n";
    let other = "[[tunnel.peer]]\naddress = \"172.16.0.4\"\nremote = \"192.0.2.4\"\n";
    let config = without_remote(&format!("mtu = 1476\n{peer}{other}"));
    let mut host = host();
    host.route([192, 0, 2, 4], Ok(RouteTo { device: 3, ..ROUTE }));
    host.change("eth1", |link| link.mtu = 1400);
    let found = complaints(&config, &host);
    let narrow =
        "warn gre1 mtu: 1476 is above the underlay's: 1376 = 1400 of eth1 - 20 IPv4 - 4 GRE | ";
    assert!(
        found.iter().any(|line| line.starts_with(narrow)),
        "{found:?}"
    );
}

#[test]
fn without_peers_the_routes_name_them() {
    let config = without_remote("");
    assert_eq!(complaints(&config, &host()), [""; 0]);
    assert_eq!(
        said(&config, &host(), "peer"),
        ["none is configured: packets go where the route's next hop is an outer address"]
    );
}

#[test]
fn mcast_1_a_group_must_be_joinable() {
    let config = without_remote("remote = \"239.1.1.1\"");
    let mut host = host();
    assert_eq!(complaints(&config, &host), [""; 0]);
    assert_eq!(
        said(&config, &host, "group"),
        ["239.1.1.1 is joined on eth0"]
    );
    host.change("eth0", |link| link.multicast = false);
    assert_eq!(
        complaints(&config, &host),
        ["fail gre1 group: 239.1.1.1: eth0 carries no multicast | ip link set eth0 multicast on"]
    );
    let elsewhere = without_remote("remote = \"239.1.1.1\"\ndev = \"eth7\"");
    let lines = complaints(&elsewhere, &host);
    assert_eq!(
        lines,
        ["fail gre1 dev: dev eth7: there is no such device | ip -brief link"]
    );
}

#[test]
fn sequence_numbers_of_several_senders_are_worth_a_word() {
    let line = "warn gre1 seq: sequence numbers of several senders: who counts behind the others is dropped | set \
                iseq = false";
    for lines in ["seq = true", "remote = \"239.1.1.1\"\niseq = true"] {
        assert_eq!(complaints(&without_remote(lines), &host()), [line]);
    }
    assert_eq!(complaints(&without_remote("oseq = true"), &host()), [""; 0]);
}

#[test]
fn a_kind_carries_what_it_is_made_for() {
    let ipip = kind(
        "ipip",
        "192.0.2.1",
        "192.0.2.2",
        "routes = [\"10.0.2.0/24\", \"2001:db8::/32\"]",
    );
    assert_eq!(
        complaints(&ipip, &host()),
        [
            "warn gre1 payload: ipip carries IPv4 alone: 2001:db8::/32 leads nowhere | choose another mode, such as gre"
        ]
    );
}

#[test]
fn the_kernels_own_driver_is_named_where_its_kind_is_configured() {
    one_change(
        |host| host.kernel_tunnels = vec!["sit".to_owned(), "ip_gre".to_owned()],
        &[
            "warn host module: the kernel's ip_gre is loaded: before Linux 6.6 it answers tunnel packets on the slow path with \
             ICMP unreachable | modprobe -r ip_gre",
        ],
    );
    let newer = |host: &mut Host| {
        host.kernel_tunnels = vec!["ip_gre".to_owned()];
        host.kernel = "6.12.1".to_owned();
    };
    one_change(newer, &[]);
}

#[test]
fn the_kernels_tunnels_are_named_and_why_they_are_left_to_it() {
    let found = |name: &str, verdict: Result<&str, &str>| crate::control::accelerate::Found {
        ifindex: 9,
        name: name.into(),
        kind: "gre".into(),
        verdict: match verdict {
            Ok(tunnel) => Ok(config("", tunnel).tunnels.remove(0)),
            Err(why) => Err(why.to_owned()),
        },
    };
    one_change(
        |host| host.accelerated = Ok(vec![found("gre5", Ok("")), found("gre6", Err("seq: why"))]),
        &["warn gre6 accelerate: left to the kernel: seq: why | "],
    );
    let mut host = host();
    host.accelerated = Ok(vec![found("gre5", Ok(""))]);
    let text = Report::new(judge(&config("", ""), &host)).to_string();
    assert!(
        text.contains("the kernel's gre from 192.0.2.1 to 192.0.2.2"),
        "{text}"
    );
    one_change(
        |host| host.accelerated = Err("netlink: no".to_owned()),
        &["warn host accelerate: could not look: netlink: no | "],
    );
}

#[test]
fn gres_udp_port_is_ours_alone() {
    let in_udp = "encap = \"gre-in-udp\"";
    let taken = |host: &mut Host| {
        host.udp_ports = vec![(Family::V4, Ok(())), (Family::V6, Err("in use".to_owned()))];
    };
    with_config(
        "",
        in_udp,
        taken,
        &[
            "fail host port: UDP port 4754 over IPv6 is not to be had: in use | ss -uanp sport = :4754; the kernel's: ip fou \
           show",
        ],
    );
    // By the router that runs already.
    let running = |host: &mut Host| {
        taken(host);
        host.running = Some(1);
    };
    with_config("", in_udp, running, &[]);
    // The kernel's driver gets no packet of a tunnel in UDP.
    let ip_gre = |host: &mut Host| host.kernel_tunnels = vec!["ip_gre".to_owned()];
    with_config("", in_udp, ip_gre, &[]);
}

#[test]
fn a_tunnels_name_may_be_taken_by_its_own_tun_device_only() {
    let taken = |kind: &'static str| {
        move |host: &mut Host| {
            host.links.as_mut().unwrap().push(Link {
                index: 11,
                name: "gre1".to_owned(),
                kind: Some(kind.to_owned()),
                ..Link::default()
            });
        }
    };
    one_change(taken("tun"), &[]);
    one_change(
        taken("gre"),
        &[
            "fail gre1 name: a device of this name exists and is no TUN device (gre) | ip link delete gre1, or choose \
           another name",
        ],
    );
}

#[test]
fn the_kernel_must_forward_what_is_configured() {
    let off = |host: &mut Host| {
        for name in ["all", "eth1"] {
            let settings = host.settings.get_mut(name).unwrap();
            (settings.forwarding_v4, settings.forwarding_v6) = (Some(0), Some(0));
        }
    };
    one_change(
        off,
        &[
            "fail host forwarding: ipv4 is off on all, eth1 | sysctl -w net.ipv4.ip_forward=1",
            "warn host forwarding: ipv6 is off on all, eth1 | sysctl -w net.ipv6.conf.all.forwarding=1",
        ],
    );
    with_config(
        "",
        "address = [\"fd00::1/64\"]",
        |host| host.settings.get_mut("eth1").unwrap().forwarding_v6 = Some(0),
        &["fail host forwarding: ipv6 is off on eth1 | sysctl -w net.ipv6.conf.eth1.forwarding=1"],
    );
}

#[test]
fn strict_reverse_path_filtering_is_what_the_larger_value_says() {
    one_change(
        |host| host.settings.get_mut("all").unwrap().rp_filter = Some(1),
        &[
            "warn host rp_filter: strict on eth0, eth1: drops slow-path packets whose way back is another; the fast \
           path does not look | sysctl -w net.ipv4.conf.all.rp_filter=2",
        ],
    );
    one_change(
        |host| {
            host.settings.get_mut("all").unwrap().rp_filter = Some(2);
            host.settings.get_mut("eth0").unwrap().rp_filter = Some(1);
        },
        &[],
    );
}

#[test]
fn what_the_fast_path_goes_past_is_named() {
    let chain = |hook: &str, rules: usize, drops_by_default: bool| Chain {
        family: "inet".to_owned(),
        table: "filter".to_owned(),
        name: hook.to_owned(),
        hook: hook.to_owned(),
        device: None,
        drops_by_default,
        rules,
    };
    one_change(
        |host| {
            host.chains = Ok(vec![
                chain("forward", 1, true),
                chain("output", 3, true),
                chain("postrouting", 0, false),
            ])
        },
        &[
            "warn host netfilter: the fast path goes past inet filter forward: 1 rule, policy drop | nft list ruleset; \
           keep it from tunnels that need it with xdp = \"off\"",
        ],
    );
    one_change(
        |host| host.chains = Ok(vec![chain("input", 2, true)]),
        &[
            "warn host input: inet filter input drops by default: the slow path needs IP protocol 47 accepted there | \
           nft insert rule inet filter input meta l4proto { 47 } accept",
        ],
    );
    let mut closed = host();
    closed.chains = Ok(vec![chain("input", 2, true)]);
    assert_eq!(
        complaints(&kind("sit", "192.0.2.1", "192.0.2.2", ""), &closed),
        [
            "warn host input: inet filter input drops by default: the slow path needs IP protocol 4, 41 accepted there \
             | nft insert rule inet filter input meta l4proto { 4, 41 } accept",
        ],
    );
    let in_udp = "encap = \"gre-in-udp\"";
    let mut tunnels = kind("gre", "192.0.2.1", "192.0.2.2", in_udp);
    assert_eq!(
        complaints(&tunnels, &closed),
        [
            "warn host input: inet filter input drops by default: the slow path needs UDP port 4754 accepted there | nft \
             insert rule inet filter input udp dport 4754 accept",
        ],
    );
    let plain = kind("gre", "192.0.2.1", "192.0.2.2", "").tunnels;
    tunnels.tunnels.extend(plain);
    assert_eq!(
        complaints(&tunnels, &closed),
        [
            "warn host input: inet filter input drops by default: the slow path needs IP protocol 47 and UDP port 4754 \
             accepted there | nft insert rule inet filter input meta l4proto { 47 } accept; nft insert rule inet filter \
             input udp dport 4754 accept",
        ],
    );
    one_change(
        |host| host.chains = Err("nft is not installed".to_owned()),
        &[
            "warn host netfilter: could not look: nft is not installed | apt install nftables, and run as root",
        ],
    );
    one_change(
        |host| {
            host.qdiscs
                .as_mut()
                .unwrap()
                .extend([(3, "clsact".to_owned()), (7, "htb".to_owned())])
        },
        &[
            "warn eth1 tc: the fast path goes past tc: clsact | tc qdisc show dev eth1; tc filter show dev eth1 ingress",
        ],
    );
    one_change(
        |host| host.rules = Ok(own_and(|rule| rule.table = 7)),
        &[
            "warn host rules: 100: table 7: switches the fast path off | ip rule; \
           ip -6 rule",
        ],
    );
}

#[test]
fn the_table_is_aligned_and_ends_with_the_verdict() {
    let report = Report::new(vec![
        Finding::ok("tun", "host", "opens"),
        Finding::fail("device", "eth0", "is down").mend("ip link set eth0 up"),
    ]);
    assert_eq!(
        report.to_string(),
        "ok    host  tun     opens\n\
         fail  eth0  device  is down\n      ip link set eth0 up\n\
         not fit: 1 failed, 0 to look at, 1 in order\n"
    );
}

#[test]
fn packets_in_several_buffers_need_kernel_and_driver() {
    let smaller = "ip link set eth1 mtu 3498, or set xdp = \"off\"";
    let takes = "eth1 mtu: MTU 3499 takes several buffers per packet, and";
    for (mtu, kernel, driver, complaint) in [
        (3498, "6.1.0", None, None),
        (3499, "6.6.0", Some(true), None),
        (
            3499,
            "6.5.0",
            Some(true),
            Some(format!("fail {takes} AF_XDP takes these from Linux 6.6 on | {smaller}")),
        ),
        (
            3499,
            "6.6.0",
            Some(false),
            Some(format!(
                "warn {takes} the driver gives XDP one only: generic XDP is left | {smaller}"
            )),
        ),
        (
            3499,
            "6.6.0",
            None,
            Some(format!(
                "warn {takes} whether the driver gives XDP all is not known | {smaller}"
            )),
        ),
        (65_254, "6.6.0", Some(true), None),
        (
            65_255,
            "6.6.0",
            Some(true),
            Some(
                "fail eth1 mtu: MTU 65255 is more than AF_XDP carries; 65254 is the largest that works | ip link set eth1 \
                 mtu 65254, or set xdp = \"off\""
                    .into(),
            ),
        ),
    ] {
        let expected: Vec<&str> = complaint.as_deref().into_iter().collect();
        let change = |host: &mut Host| {
            host.kernel = kernel.into();
            host.change("eth1", |link| {
                link.mtu = mtu;
                link.in_pieces = driver;
            });
        };
        one_change(change, &expected);
    }
    let jumbo = |host: &mut Host| host.change("eth1", |link| link.mtu = 9000);
    with_config("xdp = \"off\"", "", jumbo, &[]);
}

fn policy(direction: &'static str, ends: [&str; 2], protocol: u8) -> Policy {
    let [source, destination] = ends.map(|net| net.parse().unwrap());
    Policy {
        direction,
        source,
        destination,
        protocol,
        blocks: false,
    }
}

#[test]
fn ipsec_policies_that_packets_go_past_are_named() {
    let outer = ["192.0.2.1/32", "192.0.2.0/24"];
    let inner = ["10.1.0.0/16", "10.2.0.0/16"];
    let past = |list: &str| {
        format!(
            "warn host ipsec: the fast path goes past, in clear: {list} | ip xfrm policy; keep it from tunnels that need it \
             with xdp = \"off\""
        )
    };
    let cases = [
        (
            policy("out", outer, 0),
            past("out 192.0.2.1/32 to 192.0.2.0/24 (tunnel gre1)"),
            None,
        ),
        (
            policy("out", outer, 47),
            past("out 192.0.2.1/32 to 192.0.2.0/24 proto 47 (tunnel gre1)"),
            Some(
                "warn host ipsec: outer packets leave by a raw socket, past policies that name their protocol: \
                 out 192.0.2.1/32 to 192.0.2.0/24 proto 47 (tunnel gre1) | name the addresses alone: ip xfrm policy",
            ),
        ),
        // Of another protocol between the same ends; and of forwarded packets.
        (
            policy("out", outer, 6),
            past("out 192.0.2.1/32 to 192.0.2.0/24 proto 6"),
            None,
        ),
        (
            policy("fwd", inner, 0),
            past("fwd 10.1.0.0/16 to 10.2.0.0/16"),
            None,
        ),
        (
            policy("in", ["192.0.2.0/24", "192.0.2.1/32"], 0),
            past("in 192.0.2.0/24 to 192.0.2.1/32 (tunnel gre1)"),
            None,
        ),
    ];
    for (policy, complaint, off) in cases {
        let have = |host: &mut Host| host.policies = Ok(vec![policy.clone()]);
        one_change(have, &[&complaint]);
        let expected: Vec<&str> = off.into_iter().collect();
        with_config("xdp = \"off\"", "", have, &expected);
    }
    // What comes in for this host itself is the kernel's.
    let ssh = policy("in", ["0.0.0.0/0", "10.1.0.1/32"], 6);
    one_change(|host| host.policies = Ok(vec![ssh.clone()]), &[]);
    one_change(
        |host| host.policies = Err("Permission denied".to_owned()),
        &["warn host ipsec: could not look: Permission denied | "],
    );
}

#[test]
fn hardware_far_from_its_workers_is_named() {
    use super::host::Card;
    let card = |card: Card| {
        move |host: &mut Host| {
            host.nodes = BTreeMap::from([(0, vec![0]), (1, vec![1])]);
            host.cards.insert("eth0".to_owned(), card.clone());
        }
    };
    let near = |node| Card {
        node: Some(node),
        ring: Some((1024, 4096)),
        ..Card::default()
    };
    with_config("workers = [1]", "", card(near(1)), &[]);
    with_config(
        "workers = [1]",
        "",
        card(near(0)),
        &[
            "warn eth0 numa: its memory is on node 0, workers run on CPUs [1] elsewhere | workers = [0], or some of these",
        ],
    );
    with_config("", "", card(near(0)), &[]);
    with_config("xdp = \"off\"", "", card(near(0)), &[]);
}

#[test]
fn huge_pages_are_said_and_never_a_complaint() {
    let said = |total, free| {
        let mut host = host();
        host.huge_pages = Some(HugePages {
            bytes: 2 << 20,
            total,
            free,
        });
        let findings = super::placement::judge(&config("", ""), &host);
        let found = findings.into_iter().find(|f| f.check == "hugepages");
        found.map(|f| f.found)
    };
    // Two devices of 1500 bytes, one queue each: 12800 frames of 2048 bytes.
    assert_eq!(
        said(0, 0).as_deref(),
        Some("none set aside; packet memory would take 13 pages of 2048 KiB (vm.nr_hugepages)")
    );
    assert_eq!(
        said(20, 15).as_deref(),
        Some("15 of 20 free; packet memory takes 13 pages of 2048 KiB, or small pages")
    );
}

#[test]
fn interrupts_in_the_wrong_place_are_named() {
    use super::host::Card;
    let card = |node, interrupts: &[(u32, usize)]| {
        let interrupts = interrupts.iter().map(|(irq, cpu)| (*irq, vec![*cpu]));
        let card = Card {
            node,
            interrupts: interrupts.collect(),
            ..Card::default()
        };
        move |host: &mut Host| {
            host.nodes = BTreeMap::from([(0, vec![0]), (1, vec![1])]);
            host.cpus = Ok(vec![0, 1]);
            host.cards.insert("eth0".to_owned(), card.clone());
        }
    };
    let apart = "warn eth0 irq: 2 interrupts on CPUs {0, 1}, and its memory is near CPUs [1] | stop irqbalance, then for each: echo one of these > /proc/irq/30/smp_affinity_list";
    let both = [(30, 0), (31, 1)];
    with_config("workers = [1]", "", card(Some(1), &both), &[apart]);
    with_config("workers = [1]", "", card(None, &both), &[]);
    let one = "warn eth0 irq: all its 2 interrupts are on CPU {1} | stop irqbalance, then for each: echo another CPU > /proc/irq/30/smp_affinity_list";
    with_config("workers = [1]", "", card(None, &[(30, 1), (31, 1)]), &[one]);
    with_config("workers = [1]", "", card(None, &[(30, 1)]), &[]);
}

#[test]
fn short_receive_rings_are_named() {
    use super::host::Card;
    let ring = |now, most| {
        move |host: &mut Host| {
            let ring = Some((now, most));
            host.cards.insert(
                "eth0".to_owned(),
                Card {
                    ring,
                    ..Card::default()
                },
            );
        }
    };
    one_change(
        ring(256, 8192),
        &["warn eth0 ring: receive ring of 256, at most 8192 | ethtool -G eth0 rx 4096"],
    );
    one_change(
        ring(256, 512),
        &["warn eth0 ring: receive ring of 256, at most 512 | ethtool -G eth0 rx 512"],
    );
    one_change(ring(256, 256), &[]);
    one_change(ring(1024, 4096), &[]);
}

#[test]
fn who_watches_the_kernels_path_is_named() {
    let watched = |host: &mut Host| {
        host.connections = Some(7);
        host.sampler = true;
    };
    one_change(
        watched,
        &[
            "warn host conntrack: 7 connections are tracked; those of the fast path will not be among them | conntrack -L",
            "warn host sampler: the kernel's packet sampler (psample) is loaded: sFlow and the like miss the fast path's \
             packets | sample on the next device along the way, or set xdp = \"off\"",
        ],
    );
    one_change(|host| host.connections = Some(0), &[]);
    with_config("xdp = \"off\"", "", watched, &[]);
}
