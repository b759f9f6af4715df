//! Routes with several next hops.

use super::*;
use crate::{
    control::mirror::Nexthop,
    fib::{HopId, NextHop},
};

fn several(hops: &[(u32, Option<&str>, u16)]) -> Route {
    let hop = |(oif, gateway, weight): &(u32, Option<&str>, u16)| Hop {
        weight: *weight,
        ..route_by(*oif, *gateway).hops[0]
    };
    Route {
        hops: hops.iter().map(hop).collect(),
        ..route_by(0, None)
    }
}

/// How many of 1000 flows go into each of the two tunnels, to each of the two ports, and to the kernel.
fn shares(fib: &Fib, destination: &str) -> [u32; 5] {
    let destination = destination.parse().unwrap();
    let mut shares = [0; 5];
    for flow in 0..1000u32 {
        let flow = flow.wrapping_mul(0x9e37_79b9);
        let resolution = match fib.resolve(destination) {
            Resolution::Multipath(id) => fib.choose(id, destination, flow),
            resolution => resolution,
        };
        match resolution {
            Resolution::Tunnel(into) => shares[into.id.index()] += 1,
            Resolution::Adjacent(to) => shares[2 + to.port.index()] += 1,
            _ => shares[4] += 1,
        }
    }
    shares
}

fn near(shares: [u32; 5], wanted: [u32; 5]) -> bool {
    let near = |(n, wanted): (&u32, &u32)| n.abs_diff(*wanted) <= 60 && (*wanted > 0 || *n == 0);
    shares.iter().zip(&wanted).all(near)
}

#[test]
fn flows_spread_over_tunnels_by_weight_and_are_steered() {
    let mut net = Net::new();
    net.route("10.2.0.0/16", several(&[(GRE1, None, 3), (GRE2, None, 1)]));
    let fib = net.compile().fib;
    let found = shares(&fib, "10.2.0.1");
    assert!(near(found, [750, 250, 0, 0, 0]), "{found:?}");
    assert_eq!(found, shares(&fib, "10.2.0.1"), "a flow keeps its way");
    assert_eq!(net.plan4(), planned(&[("10.2.0.0/16", FIRST)]));
    // Where one tunnel is not ready, its flows alone are the kernel's; those of the other are steered.
    net.neighbour(ETH0, "192.0.2.2", Nud::Failed);
    assert_eq!(net.plan4(), planned(&[("10.2.0.0/16", FIRST)]));
    net.neighbour(ETH0, "192.0.2.254", Nud::Failed);
    assert_eq!(net.plan4(), []);
}

#[test]
fn a_dead_hop_leaves_its_flows_to_the_others() {
    let mut net = Net::new();
    let mut route = several(&[(GRE1, None, 1), (GRE2, None, 1)]);
    route.hops[0].linkdown = true;
    net.route("10.2.0.0/16", route.clone());
    assert!(near(
        shares(&net.compile().fib, "10.2.0.1"),
        [500, 500, 0, 0, 0]
    ));
    // As the kernel tells it with net.ipv4.conf.*.ignore_routes_with_linkdown.
    let mut net = Net::new();
    route.hops[0].dead = true;
    net.route("10.2.0.0/16", route);
    assert_eq!(shares(&net.compile().fib, "10.2.0.1"), [0, 1000, 0, 0, 0]);
}

#[test]
fn ports_share_flows_and_each_needs_its_neighbour() {
    let mut net = Net::new();
    let hops = [(ETH0, Some("192.0.2.254"), 1), (ETH1, Some("10.1.0.9"), 1)];
    net.route("10.1.0.0/24", route_by(ETH1, None));
    net.route("10.2.0.0/16", several(&hops));
    let found = shares(&net.compile().fib, "10.2.0.1");
    assert!(near(found, [0, 0, 500, 0, 500]), "{found:?}");
    net.neighbour(ETH1, "10.1.0.9", Nud::Reachable);
    let found = shares(&net.compile().fib, "10.2.0.1");
    assert!(near(found, [0, 0, 500, 500, 0]), "{found:?}");
    assert_eq!(net.plan4(), [], "nothing of it leads into a tunnel");
}

#[test]
fn tunnels_and_ports_together_are_steered_by_the_kernel() {
    let mut net = Net::new();
    net.route(
        "10.2.0.0/16",
        several(&[(GRE1, None, 1), (ETH0, Some("192.0.2.254"), 1)]),
    );
    let found = shares(&net.compile().fib, "10.2.0.1");
    assert!(near(found, [500, 0, 500, 0, 0]), "{found:?}");
    assert_eq!(net.plan4(), []);
}

#[test]
fn where_one_hop_is_the_kernels_all_are() {
    let mut net = Net::new();
    net.link(link(99, "eth9", 1500));
    net.route("10.2.0.0/16", several(&[(GRE1, None, 1), (99, None, 1)]));
    let mut encapsulating = several(&[(GRE1, None, 1), (GRE2, None, 1)]);
    encapsulating.hops[1].encap = true;
    net.route("10.3.0.0/16", encapsulating);
    for destination in ["10.2.0.1", "10.3.0.1"] {
        assert_eq!(shares(&net.compile().fib, destination), [0, 0, 0, 0, 1000]);
    }
    assert_eq!(net.plan4(), []);
}

#[test]
fn a_nexthop_object_changes_for_all_its_routes_at_once() {
    let mut net = Net::new();
    let mut compiler = Compiler::default();
    let object = Route {
        nexthop_id: Some(9),
        hops: Vec::new(),
        ..route_by(0, None)
    };
    for third in 0..50 {
        net.route(&format!("10.{third}.0.0/16"), object.clone());
    }
    let shares = |fib: &Fib| shares(fib, "10.2.0.1");
    let compiled = net.compile_by(&mut compiler, Parts::ALL, &Touched::all());
    assert_eq!(
        shares(&compiled.fib),
        [0, 0, 0, 0, 1000],
        "it is not known yet"
    );
    net.state.take_touched();
    let hop = |oif| Nexthop::Hop(route_by(oif, None).hops[0]);
    for (id, object, wanted) in [
        (1, hop(GRE1), [0, 0, 0, 0, 1000]),
        (9, Nexthop::Group(vec![(1, 1), (2, 1)]), [1000, 0, 0, 0, 0]),
        (2, hop(GRE2), [500, 500, 0, 0, 0]),
        (9, Nexthop::Group(vec![(1, 3), (2, 1)]), [750, 250, 0, 0, 0]),
        (9, hop(GRE2), [0, 1000, 0, 0, 0]),
        (9, Nexthop::Other, [0, 0, 0, 0, 1000]),
    ] {
        let effect = net.state.apply(Event::NewNexthop(id, object));
        let touched = net.state.take_touched();
        assert_eq!(
            touched,
            Touched::default(),
            "no prefix needs to be looked at"
        );
        let compiled = net.compile_by(&mut compiler, effect.changed, &touched);
        let found = shares(&compiled.fib);
        assert!(near(found, wanted), "{id}: {found:?}");
    }
    // It takes its routes with it.
    net.state.apply(Event::DelNexthop(9));
    let touched = net.state.take_touched();
    let compiled = net.compile_by(&mut compiler, Parts::NEXTHOPS | Parts::ROUTES4, &touched);
    assert_eq!(shares(&compiled.fib), [0, 0, 0, 0, 1000]);
    let destination = "10.2.0.1".parse().unwrap();
    assert_eq!(compiled.fib.routes().lookup(destination), None);
}

#[test]
fn routers_choose_differently() {
    let mut net = Net::new();
    net.route("10.2.0.0/16", several(&[(GRE1, None, 1), (GRE2, None, 1)]));
    let chosen = |net: &Net| -> Vec<bool> {
        let fib = net.compile().fib;
        let destination = "10.2.0.1".parse().unwrap();
        let Resolution::Multipath(id) = fib.resolve(destination) else {
            panic!("one way");
        };
        let first = |flow: u32| fib.choose(id, destination, flow) == fib.choose(id, destination, 0);
        (0..64).map(|flow| first(flow << 26)).collect()
    };
    let here = chosen(&net);
    net.link(Link {
        mac: Some(MacAddr([2, 7, 7, 7, 7, 7])),
        ..link(ETH0, "eth0", 1500)
    });
    assert_ne!(here, chosen(&net));
    let kernel = net.compile().fib.routes().hop(HopId::KERNEL).clone();
    assert_eq!(kernel, NextHop::Kernel);
}
