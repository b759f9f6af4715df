//! Tunnels of frames, with a wire to a device and without.

use super::*;
use crate::xdp::TunnelClass;

/// 1500 less 20, 4 and the inner frame's header.
const TAP_MTU: u32 = 1462;
/// What is left beside the headers in front of the frame.
const FRAME: u32 = 1476;

/// The first tunnel carries frames, to and from eth1 where `bridge` says so.
fn net(bridge: bool) -> Net {
    let mut net = Net::new();
    net.configs[0].mode = Mode::Gretap;
    net.configs[0].bridge = bridge.then(|| "eth1".to_owned());
    net.link(link(GRE1, "gre1", TAP_MTU));
    net.devices[1].sees_tags = true;
    net
}

fn wire(net: &Net) -> Option<u32> {
    let plan = net.compile().plan.ports[&ETH1];
    assert!(!(plan.overlay && plan.wire.is_some()));
    plan.wire
}

#[test]
fn a_wires_port_and_its_tunnel_know_each_other() {
    let net = net(true);
    let compiled = net.compile();
    assert_eq!(wire(&net), Some(FRAME));
    let port = |n| compiled.fib.port(PortId(n)).unwrap().wire;
    assert_eq!((port(0), port(1)), (None, Some(TunnelId(0))));
    assert_eq!(compiled.fib.egress(TunnelId(0)).wire, Some(PortId(1)));
    assert_eq!(compiled.fib.egress(TunnelId(1)).wire, None);
    let mtu = |id| compiled.fib.tunnels().get(TunnelId(id)).unwrap().wire;
    assert_eq!((mtu(0), mtu(1)), (Some(1500), None));
    assert!(compiled.plan.tunnels.iter().all(|t| t.fast));
}

#[test]
fn a_wire_takes_what_the_way_carries_and_the_device_with_tags_on_top() {
    let mut net = net(true);
    net.link(link(GRE1, "gre1", 1000));
    assert_eq!(wire(&net), Some(1000 + 14 + 8));
    net.link(link(GRE1, "gre1", 1500));
    assert_eq!(wire(&net), Some(FRAME));
    net.learn("198.51.100.1", 1400);
    assert_eq!(wire(&net), Some(1400 - 24));
}

#[test]
fn a_wire_takes_nothing_while_frames_could_be_lost_or_spoilt() {
    let spoil: [fn(&mut Net); 6] = [
        |net| net.devices[1].sees_tags = false,
        |net| net.neighbour(ETH0, "192.0.2.254", Nud::Failed),
        |net| {
            net.link(Link {
                up: false,
                ..link(GRE1, "gre1", TAP_MTU)
            })
        },
        |net| {
            net.link(Link {
                up: false,
                ..link(ETH1, "eth1", 1500)
            })
        },
        |net| {
            net.link(Link {
                master: Some(40),
                ..link(ETH1, "eth1", 1500)
            })
        },
        |net| {
            net.state.apply(Event::NewRule(Rule {
                v6: false,
                priority: 100,
                table: 100,
                plain: false,
                ..Rule::default()
            }));
        },
    ];
    for spoil in spoil {
        let mut net = net(true);
        spoil(&mut net);
        assert_eq!(wire(&net), Some(0));
    }
}

#[test]
fn without_carrier_nothing_is_sent_out_of_a_wire() {
    let mut net = net(true);
    net.link(Link {
        carrier: false,
        ..link(ETH1, "eth1", 1500)
    });
    assert_eq!(net.compile().fib.egress(TunnelId(0)).wire, None);
}

#[test]
fn a_neighbour_that_comes_back_sets_a_wire_going_again() {
    let mut net = net(true);
    let mut compiler = Compiler::default();
    let mut compile = |net: &mut Net, what| {
        let touched = net.state.take_touched();
        let compiled = net.compile_by(&mut compiler, what, &touched);
        compiled.plan.ports[&ETH1].wire
    };
    assert_eq!(compile(&mut net, Parts::ALL), Some(FRAME));
    net.neighbour(ETH0, "192.0.2.254", Nud::Failed);
    assert_eq!(compile(&mut net, Parts::NEIGHBOURS), Some(0));
    net.neighbour(ETH0, "192.0.2.254", Nud::Reachable);
    assert_eq!(compile(&mut net, Parts::NEIGHBOURS), Some(FRAME));
}

#[test]
fn without_a_wire_frames_are_the_kernels() {
    let mut net = net(false);
    net.route("10.2.0.0/16", route_by(GRE1, Some("10.9.0.2")));
    let compiled = net.compile();
    assert!(leads(&compiled.plan).is_empty());
    assert_eq!(net.resolve("10.2.0.1"), Resolution::Kernel);
    let fast = |t: &crate::xdp::TunnelMatch| (t.remote, t.fast);
    let fast: Vec<_> = compiled.plan.tunnels.iter().map(fast).collect();
    let [first, second] = [&net.configs[0], &net.configs[1]].map(|config| config.remote);
    let mut expected = vec![(first, false), (second, true)];
    expected.sort();
    assert_eq!(fast, expected);
    assert_eq!(wire(&net), None);
    assert!(compiled.plan.ports[&ETH1].overlay);
}

#[test]
fn nvgre_1_a_virtual_subnet_is_a_class_of_its_own() {
    let mut net = net(true);
    net.configs[0].nvgre = true;
    (net.configs[0].ikey, net.configs[0].okey) = (Some(5000), Some(5000));
    let plan = net.compile().plan;
    let subnet = |t: &&crate::xdp::TunnelMatch| t.class == TunnelClass::Nvgre;
    let found: Vec<_> = plan.tunnels.iter().filter(subnet).collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].key, Some(5000));
}
