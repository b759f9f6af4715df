//! gre1 has no remote, or a group; gre2 is as ever.

use super::*;

/// gre1 with these peers. 192.0.2.2 is on the link and known there, 192.0.2.3 not yet, 198.51.100.1 behind a gateway, and
/// 203.0.113.1 nowhere.
fn net(peers: &[(&str, &str)]) -> Net {
    let mut table = crate::tunnel::Peers::default();
    for (inner, outer) in peers {
        table.insert(inner.parse().unwrap(), outer.parse().unwrap());
    }
    let mut net = Net::new();
    net.configs[0] = TunnelConfig {
        peers: Arc::new(table),
        ..tunnel("gre1", "0.0.0.0")
    };
    net.configs[1].ikey = Some(1);
    net
}

const PEERS: &[(&str, &str)] = &[
    ("172.16.0.2/32", "192.0.2.2"),
    ("172.16.0.3/32", "192.0.2.3"),
    ("172.16.1.0/24", "192.0.2.2"),
    ("172.16.0.9/32", "203.0.113.1"),
];

fn peers(net: &Net) -> Vec<String> {
    let compiled = net.compile();
    let peers = compiled.tunnels[0].peers.iter().flatten();
    peers
        .map(|peer| format!("{} {}", peer.remote, peer.word()))
        .collect()
}

/// Where a packet for this address goes: its outer destination, and whether the worker can send there.
fn outward(net: &Net, destination: &str) -> (String, bool) {
    let fib = net.compile().fib;
    let Resolution::Tunnel(route) = fib.resolve(destination.parse().unwrap()) else {
        panic!("{destination} does not route into a tunnel");
    };
    let tunnel = fib.tunnels().get(route.id).unwrap();
    match route.remote {
        Some(remote) => (remote.to_string(), fib.adjacency(tunnel, remote).is_some()),
        None => ("none".to_owned(), false),
    }
}

#[test]
fn each_peer_has_a_state_of_its_own() {
    let mut net = net(PEERS);
    let compiled = net.compile();
    assert_eq!(compiled.tunnels[0].word(), "up");
    assert_eq!(compiled.tunnels[0].outer, None);
    assert_eq!(compiled.tunnels[0].outers().count(), 2);
    assert_eq!(
        peers(&net),
        [
            "192.0.2.2 up",
            "192.0.2.3 unresolved",
            "203.0.113.1 no-route"
        ]
    );
    // A gateway of a route is one more; one that the table knows is not.
    net.route("10.3.0.0/16", route_by(GRE1, Some("198.51.100.1")));
    net.route("10.4.0.0/16", route_by(GRE1, Some("198.51.100.1")));
    net.route("10.5.0.0/16", route_by(GRE1, Some("172.16.0.2")));
    let all = peers(&net);
    assert_eq!((all.len(), &*all[3]), (4, "198.51.100.1 up"));
    // Other tunnels have none.
    assert_eq!(net.compile().tunnels[1].peers, None);
    net.link(Link {
        mac: None,
        up: false,
        ..link(GRE1, "gre1", ROOM.into())
    });
    assert_eq!(net.compile().tunnels[0].word(), "down");
}

#[test]
fn the_route_and_the_peers_say_the_outer_destination() {
    let mut net = net(PEERS);
    net.route("172.16.0.0/16", route_by(GRE1, None));
    net.route("10.3.0.0/16", route_by(GRE1, Some("198.51.100.1")));
    net.route("10.5.0.0/16", route_by(GRE1, Some("172.16.0.2")));
    for (destination, remote, ready) in [
        ("172.16.0.2", "192.0.2.2", true),
        ("172.16.0.3", "192.0.2.3", false),
        ("172.16.1.77", "192.0.2.2", true),
        ("172.16.0.9", "203.0.113.1", false),
        ("172.16.0.4", "none", false),
        ("10.3.0.1", "198.51.100.1", true),
        ("10.5.0.1", "192.0.2.2", true),
    ] {
        let expected = (remote.to_owned(), ready);
        assert_eq!(outward(&net, destination), expected, "{destination}");
    }
    net.neighbour(ETH0, "192.0.2.3", Nud::Reachable);
    let compiled = net.compile();
    assert_eq!(compiled.tunnels[0].peers.as_ref().unwrap()[1].word(), "up");
}

#[test]
fn steered_is_what_can_be_sent() {
    let mut net = net(PEERS);
    let room = |mtu| Leads::Tunnel { mtu };
    net.route("10.3.0.0/16", route_by(GRE1, Some("198.51.100.1")));
    net.route("10.4.0.0/16", route_by(GRE1, Some("192.0.2.3")));
    net.route("10.5.0.0/16", route_by(GRE1, Some("172.16.0.2")));
    net.route("172.16.0.0/16", route_by(GRE1, None));
    let wanted = planned(&[
        ("10.3.0.0/16", FIRST),
        ("10.5.0.0/16", FIRST),
        ("172.16.0.0/16", FIRST),
    ]);
    assert_eq!(net.plan4(), wanted);
    // A peer on a narrow way narrows its own routes alone; on the link the widest counts.
    let narrow = Route {
        mtu: Some(1300),
        ..route_by(ETH0, Some("192.0.2.254"))
    };
    net.route("198.51.100.1/32", narrow);
    let wanted = planned(&[
        ("10.3.0.0/16", room(1276)),
        ("10.5.0.0/16", FIRST),
        ("172.16.0.0/16", FIRST),
    ]);
    assert_eq!(net.plan4(), wanted);
    // No peer can be sent to.
    net.neighbour(ETH0, "192.0.2.2", Nud::Failed);
    net.state
        .apply(Event::DelNeighbour(ETH0, "192.0.2.2".parse().unwrap()));
    let wanted = planned(&[("10.3.0.0/16", room(1276))]);
    assert_eq!(net.plan4(), wanted);
}

#[test]
fn it_receives_from_anybody() {
    let plan = net(PEERS).compile().plan;
    assert_eq!(remotes(&plan)[0], IpAddr::from([0, 0, 0, 0]));
}

#[test]
fn with_policy_rules_the_slow_path_still_knows_the_gateways() {
    let mut net = net(PEERS);
    net.route("10.3.0.0/16", route_by(GRE1, Some("198.51.100.1")));
    net.state.apply(Event::NewRule(Rule {
        v6: false,
        priority: 100,
        table: 100,
        plain: false,
        ..Rule::default()
    }));
    let fib = net.compile().fib;
    let inside = "10.3.0.1".parse().unwrap();
    assert_eq!(fib.resolve(inside), Resolution::Kernel);
    let tunnel = fib.tunnels().get(TunnelId(0)).unwrap();
    let remote = fib.remote_of(tunnel, inside);
    assert_eq!(remote, Some("198.51.100.1".parse().unwrap()));
    assert_eq!(fib.adjacency(tunnel, remote.unwrap()), None);
}

#[test]
fn gre_8_a_peer_behind_a_tunnel_or_here_is_none() {
    let mut net = net(PEERS);
    net.route("192.0.2.2/32", route_by(GRE2, None));
    net.address(ETH0, "192.0.2.3");
    assert_eq!(
        peers(&net)[..2],
        ["192.0.2.2 no-route", "192.0.2.3 no-route"]
    );
}

#[test]
fn mcast_1_a_group_is_sent_to_by_its_device_whatever_the_routes_say() {
    let mut net = Net::new();
    net.configs[0] = TunnelConfig {
        dev: Some("eth0".into()),
        ..tunnel("gre1", "239.1.1.1")
    };
    net.route("10.2.0.0/16", route_by(GRE1, None));
    net.route("239.0.0.0/8", route_by(ETH1, None));
    let compiled = net.compile();
    assert_eq!(compiled.tunnels[0].word(), "up");
    let group: IpAddr = "239.1.1.1".parse().unwrap();
    let adjacency = Adjacency {
        vlan: None,
        mark: Mark::of(ETH0, group),
        port: PortId(0),
        destination: MacAddr([1, 0, 0x5e, 1, 1, 1]),
        source: MacAddr([2, 0, 0, 0, 0, ETH0 as u8]),
        mtu: 1500,
    };
    let tunnel = compiled.fib.tunnels().get(TunnelId(0)).unwrap();
    assert_eq!(compiled.fib.adjacency(tunnel, group), Some(adjacency));
    assert_eq!(net.plan4(), planned(&[("10.2.0.0/16", FIRST)]));
    let matched = compiled.plan.tunnels.iter().find(|t| t.local == group);
    assert!(matched.is_some_and(|t| t.remote.is_unspecified()));
    // Without its device nothing leaves, by another one neither.
    for (state, change) in [
        (
            "no-route",
            Event::NewLink(Link {
                up: false,
                ..link(ETH0, "eth0", 1500)
            }),
        ),
        ("no-route", Event::DelLink(ETH0)),
    ] {
        net.state.apply(change);
        let compiled = net.compile();
        assert_eq!(compiled.tunnels[0].word(), state);
        assert!(!net.is_ready(0));
    }
    let dev = net.compile().fib.tunnels().get(TunnelId(0)).unwrap().dev;
    assert_eq!(dev, Some(0));
}

#[test]
fn mtu_1_auto_is_the_narrowest_of_the_ways() {
    let underlay = ["eth0".to_owned()];
    let auto = |net: &Net| {
        let config = &net.configs[0];
        crate::control::tunnels::auto_mtu(&net.state, config, &underlay)
    };
    let mut many = net(PEERS);
    assert_eq!(auto(&many), 1476);
    let narrow = Route {
        mtu: Some(1400),
        ..route_by(ETH0, None)
    };
    many.route("192.0.2.3/32", narrow);
    assert_eq!(auto(&many), 1376);
    // No peer is known: the device counts.
    let mut none = net(&[]);
    none.link(link(ETH0, "eth0", 1450));
    assert_eq!(auto(&none), 1426);
    let mut group = Net::new();
    group.configs[0] = TunnelConfig {
        dev: Some("eth0".into()),
        ..tunnel("gre1", "239.1.1.1")
    };
    assert_eq!(auto(&group), 1476);
    group.link(link(ETH0, "eth0", 9000));
    assert_eq!(auto(&group), 8976);
}
