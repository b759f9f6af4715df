//! Sockets, slots, and plans that replace each other.

use std::{net::Ipv6Addr, os::fd::AsFd};

use greyhound::xdp::{Limits, Plan, PrefixAction, PrefixPlan, Steer, SteerError, TunnelClass};
use socket2::{Domain, Socket, Type};

use crate::{
    bench::*,
    family::{family, ip6},
    frames::*,
    host::{self, Namespace, ip},
};

#[test]
fn an_empty_slot_means_the_kernel() {
    let mut bench = Bench::new();
    bench.check(BOTH, vec![("socket", ours(0, 0), REDIRECTED_U)]);
    bench.steer.clear_socket(LO, 0).unwrap();
    bench.steer.clear_socket(LO, 0).unwrap();
    bench.check(
        BOTH,
        vec![
            ("cleared, underlay", ours(0, 0), "no_socket"),
            ("cleared, overlay", udp(INNER_B), "no_socket"),
        ],
    );
    bench.steer.set_socket(LO, 0, bench.socket.as_fd()).unwrap();
    bench.check(BOTH, vec![("again", ours(0, 0), REDIRECTED_U)]);
    // The kernel empties the slot of a socket that is gone.
    bench.socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).unwrap();
    eventually(|| bench.reason(&ours(0, 0)) == "no_socket");
    let beyond = bench.steer.set_socket(LO, 1, bench.socket.as_fd());
    assert!(matches!(
        beyond,
        Err(SteerError::NoQueue {
            queue: 1,
            queues: 1,
            ..
        })
    ));
    let nowhere = bench.steer.set_socket(2, 0, bench.socket.as_fd());
    assert!(matches!(
        nowhere,
        Err(SteerError::NotAttached { ifindex: 2 })
    ));
}

#[test]
fn slots_outlive_no_attachment() {
    let mut bench = Bench::new();
    bench.steer.apply(&plan(BOTH)).unwrap();
    bench.steer.detach(LO);
    assert!(bench.steer.judge(LO, &ours(0, 0)).is_err());
    bench.steer.attach(LO, "lo", how(1, true)).unwrap();
    // The plan holds for the new attachment, the old socket does not.
    assert_eq!(bench.reason(&ours(0, 0)), "no_socket");
    assert!(matches!(
        bench.steer.attach(LO, "lo", how(1, true)),
        Err(SteerError::AlreadyAttached { ifindex: LO })
    ));
}

#[test]
fn every_device_has_slots_of_its_own() {
    let mut bench = Bench::new();
    ip(&["link", "add", "near", "type", "veth", "peer", "name", "far"]);
    let (near, far) = (host::ifindex("near"), host::ifindex("far"));
    bench.steer.attach(near, "near", how(1, true)).unwrap();
    bench.steer.attach(far, "far", how(0, true)).unwrap();
    let mut plan = plan(BOTH);
    plan.ports = [LO, near, far].map(|ifindex| (ifindex, BOTH)).into();
    bench.steer.apply(&plan).unwrap();
    let redirects = |bench: &Bench| {
        [LO, near, far].map(|ifindex| bench.steer.judge(ifindex, &ours(0, 0)).unwrap())
    };
    assert_eq!(redirects(&bench), [true, false, false]);
    let socket = bench.socket.as_fd();
    bench.steer.set_socket(near, 0, socket).unwrap();
    bench.steer.clear_socket(LO, 0).unwrap();
    // The test's queue is 0: one more than a device without queues has.
    assert_eq!(redirects(&bench), [false, true, false]);
}

#[test]
fn apply_changes_only_what_differs() {
    let mut bench = Bench::new();
    let steer = &mut bench.steer;
    let first = plan(BOTH);
    let counts = |steer: &mut Steer, plan: &Plan| {
        let changes = steer.apply(plan).unwrap();
        assert!(steer.verify().unwrap(), "the maps are not what was applied");
        (changes.added, changes.changed, changes.removed)
    };
    // One port, three tunnels of two peers, eight prefixes and five; two hops.
    assert_eq!(counts(steer, &first), (1 + 3 + 2 + 8 + 5, 2, 0));
    assert_eq!(counts(steer, &first), (0, 0, 0));
    let mut second = first.clone();
    let prefixes = prefixes(&mut second);
    prefixes.insert("10.0.2.0/24".parse().unwrap(), PrefixAction::Hop(2));
    prefixes.insert("10.9.0.0/16".parse().unwrap(), PrefixAction::Kernel);
    prefixes.remove(&"fe80::/10".parse().unwrap());
    second.tunnels.remove(&tunnel(LOCAL, REMOTE, None));
    second.ports.insert(LO, OVERLAY);
    assert_eq!(counts(steer, &second), (1, 2, 2));
    let nothing = Plan::default();
    assert_eq!(counts(steer, &nothing), (0, 2, 1 + 2 + 2 + 9 + 4));
    assert_eq!(counts(steer, &second), (18, 2, 0));
    // Prefixes that are not named stay, and one hop is many prefixes' way.
    let third = Plan {
        hops: vec![0, 1300, 1400],
        prefixes: PrefixPlan::Changes(
            [
                ("10.9.0.0/16", None),
                ("10.0.2.0/24", Some(PrefixAction::Hop(1))),
                ("10.7.0.0/16", None),
            ]
            .map(|(net, action)| (net.parse().unwrap(), action))
            .into(),
        ),
        ..second
    };
    assert_eq!(counts(steer, &third), (0, 2, 1));
    bench.steer.apply(&third).unwrap();
    let fits = |bench: &Bench, length| bench.reason(&sized4(length));
    assert_eq!(fits(&bench, 1300), REDIRECTED_O);
    assert_eq!(fits(&bench, 1301), "too_big");
}

#[test]
fn apply_changes_only_what_differs_of_the_whole_family() {
    let mut bench = Bench::new();
    let steer = &mut bench.steer;
    let counts = |steer: &mut Steer, plan: &Plan| {
        let changes = steer.apply(plan).unwrap();
        assert!(steer.verify().unwrap(), "the maps are not what was applied");
        (changes.added, changes.changed, changes.removed)
    };
    let (before, first) = (plan(BOTH), family(BOTH));
    counts(steer, &before);
    // Over IPv4 two tunnels of two peers; over IPv6 five of four, because a peer counts once for GRE with and without a key.
    assert_eq!(counts(steer, &first), (2 + 2 + 5 + 4, 0, 0));
    assert_eq!(counts(steer, &first), (0, 0, 0));
    let mut second = first.clone();
    let [local, remote] = [ip6(LOCAL6), ip6(REMOTE6)];
    // The peer stays, for the key.
    second.tunnels.remove(&tunnel(local, remote, None));
    assert_eq!(counts(steer, &second), (0, 0, 1));
    second
        .tunnels
        .remove(&bare(TunnelClass::Ipv4, local, remote));
    assert_eq!(counts(steer, &second), (0, 0, 2));
    second
        .tunnels
        .insert(bare(TunnelClass::Ipv4, local, Ipv6Addr::UNSPECIFIED));
    assert_eq!(counts(steer, &second), (2, 0, 0));
    let over_both = bare(TunnelClass::Gre, LOCAL, remote);
    second.tunnels.insert(over_both);
    assert_eq!(counts(steer, &second), (0, 0, 0));
    assert_eq!(counts(steer, &before), (0, 0, 4 + 4 + 4));
}

#[test]
fn a_plan_beyond_the_limits_is_refused_whole() {
    let _namespace = Namespace::enter("limits");
    let mut steer = Steer::load(Limits {
        tunnels: 2,
        prefixes: 16,
        hops: 3,
        slots: 1,
    })
    .unwrap();
    let error = steer.apply(&plan(BOTH)).unwrap_err();
    assert!(
        matches!(
            error,
            SteerError::TooMany {
                wanted: 3,
                limit: 2,
                ..
            }
        ),
        "{error}"
    );
    assert!(steer.verify().unwrap());
    let error = steer.attach(LO, "lo", how(2, true)).unwrap_err();
    assert!(
        matches!(
            error,
            SteerError::NoSlots {
                wanted: 2,
                limit: 1,
                ..
            }
        ),
        "{error}"
    );
    // As many as fit can be exchanged for as many others.
    let nets = |third: u8| (0..16).map(move |n| format!("10.{third}.{n}.0/24").parse().unwrap());
    for third in 1..3 {
        let these = nets(third).map(|net| (net, PrefixAction::Kernel)).collect();
        steer
            .apply(&Plan {
                prefixes: PrefixPlan::All(these),
                ..Plan::default()
            })
            .unwrap();
        assert!(steer.verify().unwrap());
    }
}
