//! A change at a time gives what compiling all at once gives.

use super::*;
use crate::control::mirror::Nexthop;

/// Something that happens to the router.
#[derive(Debug, Clone)]
enum Happening {
    Route {
        prefix: IpNet,
        local: bool,
        route: Route,
        added: bool,
    },
    Neighbour(u32, &'static str, bool),
    Link(u32, bool),
    Rule(bool),
    Address(&'static str, bool),
    Nexthop(u32, Option<Nexthop>),
    Devices(bool),
    /// A router says what the path carries, or that is forgotten.
    PathMtu(Option<u16>),
}

fn prefix() -> impl Strategy<Value = IpNet> {
    let v4 = (0u32..64, 24u8..=32)
        .prop_map(|(a, len)| IpNet::new(Ipv4Addr::from(0x0a40_0000 | a).into(), len).unwrap());
    let v6 = (0u128..64, 120u8..=128).prop_map(|(a, len)| {
        IpNet::new(std::net::Ipv6Addr::from(0xfd << 120 | a).into(), len).unwrap()
    });
    let wide = prop_oneof![
        Just("0.0.0.0/0"),
        Just("10.0.0.0/8"),
        Just("10.64.0.0/16"),
        Just("::/0"),
        Just("198.51.100.0/24"),
        Just("198.51.100.1/32"),
        Just("192.0.2.0/24"),
        Just("203.0.113.1/32"),
    ];
    let wide = wide.prop_map(|net| net.parse::<IpNet>().unwrap());
    prop_oneof![3 => v4, 1 => v6, 2 => wide].prop_map(|net| net.trunc())
}

fn route() -> impl Strategy<Value = Route> {
    let single = (
        prop_oneof![Just(GRE1), Just(GRE2), Just(ETH0), Just(ETH1), Just(99)],
        prop_oneof![
            Just(None),
            Just(Some("192.0.2.254")),
            Just(Some("203.0.113.1"))
        ],
    );
    let single = single.prop_map(|(oif, gateway)| route_by(oif, gateway));
    let several = Just(Route {
        hops: vec![route_by(GRE1, None).hops[0], route_by(GRE2, None).hops[0]],
        ..route_by(0, None)
    });
    let kinds = prop_oneof![Just(RouteKind::Blackhole), Just(RouteKind::Unreachable)];
    let none = kinds.prop_map(|kind| Route {
        kind,
        hops: Vec::new(),
        ..route_by(0, None)
    });
    let object = (1u32..4).prop_map(|id| Route {
        nexthop_id: Some(id),
        hops: Vec::new(),
        ..route_by(0, None)
    });
    let any = prop_oneof![5 => single, 1 => several, 1 => none, 1 => object];
    (
        any,
        0u32..2,
        prop_oneof![3 => Just(None), 1 => Just(Some(1400))],
    )
        .prop_map(|(route, metric, mtu)| Route {
            metric,
            mtu,
            ..route
        })
}

fn happening() -> impl Strategy<Value = Happening> {
    let route = (
        prefix(),
        prop::bool::weighted(0.15),
        route(),
        prop::bool::weighted(0.7),
    )
        .prop_map(|(prefix, local, route, added)| Happening::Route {
            prefix,
            local,
            route: match local {
                true => Route {
                    kind: RouteKind::Local,
                    ..route_by(ETH1, None)
                },
                false => route,
            },
            added,
        });
    let neighbours = prop_oneof![
        Just((ETH0, "192.0.2.254")),
        Just((ETH0, "192.0.2.2")),
        Just((ETH1, "10.64.0.9")),
        Just((ETH0, "203.0.113.1")),
    ];
    let neighbour =
        (neighbours, any::<bool>()).prop_map(|((dev, ip), on)| Happening::Neighbour(dev, ip, on));
    let links = prop_oneof![Just(ETH0), Just(ETH1), Just(GRE1), Just(GRE2)];
    let link = (links, any::<bool>()).prop_map(|(link, up)| Happening::Link(link, up));
    let nexthop = (
        1u32..4,
        prop_oneof![
            Just(None),
            Just(Some(Nexthop::Hop(route_by(GRE1, None).hops[0]))),
            Just(Some(Nexthop::Hop(
                route_by(ETH1, Some("10.64.0.9")).hops[0]
            ))),
            Just(Some(Nexthop::Group(vec![(1, 1), (2, 2)]))),
        ],
    );
    let nexthop = nexthop.prop_map(|(id, object)| Happening::Nexthop(id, object));
    let addresses = prop_oneof![Just("10.64.0.7"), Just("192.0.2.1")];
    let address = (addresses, any::<bool>()).prop_map(|(ip, on)| Happening::Address(ip, on));
    prop_oneof![
        12 => route,
        3 => neighbour,
        2 => link,
        2 => nexthop,
        1 => address,
        1 => any::<bool>().prop_map(Happening::Rule),
        1 => any::<bool>().prop_map(Happening::Devices),
        1 => proptest::option::of(prop_oneof![Just(1300), Just(1400)]).prop_map(Happening::PathMtu),
    ]
}

/// Lets it happen; what changed.
fn happen(net: &mut Net, what: Happening) -> Parts {
    let event = match what {
        Happening::Route {
            prefix,
            local,
            route,
            added,
        } => Event::Route(RouteEvent {
            prefix,
            table: if local { Table::Local } else { Table::Main },
            route,
            added: added.then_some(Insertion::Replace),
        }),
        Happening::Neighbour(ifindex, ip, on) => {
            let nud = if on { Nud::Reachable } else { Nud::Failed };
            let neighbour = Neighbour {
                mac: Some(GATEWAY_MAC),
                outer: None,
                nud,
            };
            Event::NewNeighbour(ifindex, ip.parse().unwrap(), neighbour)
        }
        Happening::Link(index, up) => {
            let known = net.state.link(index).unwrap();
            Event::NewLink(Link {
                up,
                carrier: up,
                ..known.clone()
            })
        }
        Happening::Rule(true) => Event::NewRule(Rule {
            v6: false,
            priority: 7,
            table: 7,
            plain: false,
            ..Rule::default()
        }),
        Happening::Rule(false) => {
            net.state.take_part(Parts::RULES, State::default());
            return Parts::RULES;
        }
        Happening::Address(ip, on) => {
            let address = Address {
                ifindex: ETH1,
                ip: ip.parse().unwrap(),
                prefix_len: 24,
                peer: None,
            };
            if on {
                Event::NewAddress(address)
            } else {
                Event::DelAddress(address)
            }
        }
        Happening::Nexthop(id, Some(object)) => Event::NewNexthop(id, object),
        Happening::Nexthop(id, None) => Event::DelNexthop(id),
        Happening::PathMtu(said) => {
            match said {
                Some(said) => net.learn("198.51.100.1", said),
                None => net.paths = PathMtus::default(),
            }
            return Parts::LINKS;
        }
        Happening::Devices(both) => {
            let name = net.devices[0].clone();
            net.devices.truncate(1);
            net.devices.extend(both.then(|| Device {
                name: "eth1".into(),
                ifindex: ETH1,
                underlay: false,
                overlay: true,
                ..name
            }));
            return Parts::NONE;
        }
    };
    net.state.apply(event).changed
}

/// What the steering program holds after these plans.
#[derive(Default)]
struct Steered(BTreeMap<IpNet, PrefixAction>);

impl Steered {
    fn take(&mut self, plan: &Plan) {
        match &plan.prefixes {
            PrefixPlan::All(all) => self.0 = all.clone(),
            PrefixPlan::Changes(changes) => {
                for (net, action) in changes {
                    match action {
                        Some(action) => self.0.insert(*net, *action),
                        None => self.0.remove(net),
                    };
                }
            }
        }
    }

    /// By prefix: the largest packet that is taken; hops may be numbered in another way.
    fn rooms(&self, plan: &Plan) -> BTreeMap<IpNet, Option<u16>> {
        let room = |action: &PrefixAction| match action {
            PrefixAction::Hop(n) => Some(plan.hops.get(*n as usize).copied().unwrap_or(0)),
            PrefixAction::Kernel => None,
        };
        self.0
            .iter()
            .map(|(net, action)| (*net, room(action)))
            .collect()
    }
}

/// Where flows go, whatever the numbers of next hops.
fn outcomes(fib: &Fib) -> Vec<(IpAddr, Resolution)> {
    let v4 = (0..64u32).map(|a| IpAddr::from(Ipv4Addr::from(0x0a40_0000 | a)));
    let v6 = (0..64u128).map(|a| IpAddr::from(std::net::Ipv6Addr::from(0xfd << 120 | a)));
    let others = [
        "198.51.100.1",
        "198.51.100.9",
        "192.0.2.2",
        "203.0.113.1",
        "10.9.9.9",
    ];
    let others = others.map(|ip| ip.parse().unwrap());
    let follow = |ip: IpAddr| match fib.resolve(ip) {
        Resolution::Multipath(id) => fib.choose(id, ip, 0x1234_5678),
        resolution => resolution,
    };
    v4.chain(v6)
        .chain(others)
        .map(|ip| (ip, follow(ip)))
        .collect()
}

proptest! {
    #[test]
    fn a_change_at_a_time_gives_what_all_at_once_gives(
        happenings in proptest::collection::vec((happening(), prop::bool::weighted(0.7)), 1..40),
    ) {
        let mut net = Net::new();
        let mut compiler = Compiler::default();
        let mut steered = Steered::default();
        let first = net.compile_by(&mut compiler, Parts::ALL, &Touched::all());
        steered.take(&first.plan);
        net.state.take_touched();
        let mut what = Parts::NONE;
        for (happening, at_once) in happenings {
            let seen = format!("{happening:?}");
            what |= happen(&mut net, happening);
            if !at_once {
                continue;
            }
            let touched = net.state.take_touched();
            let now = net.compile_by(&mut compiler, std::mem::take(&mut what), &touched);
            steered.take(&now.plan);
            let all = net.compile();
            let mut wanted = Steered::default();
            wanted.take(&all.plan);
            prop_assert_eq!(steered.rooms(&now.plan), wanted.rooms(&all.plan), "{}", seen);
            prop_assert_eq!(outcomes(&now.fib), outcomes(&all.fib), "{}", seen);
            prop_assert_eq!(&now.tunnels, &all.tunnels, "{}", seen);
            prop_assert_eq!(&now.plan.tunnels, &all.plan.tunnels);
            prop_assert_eq!(&now.plan.ports, &all.plan.ports);
            prop_assert_eq!(&now.plan.addresses, &all.plan.addresses);
            prop_assert_eq!(now.fib.ports(), all.fib.ports());
            for id in [0, 1].map(TunnelId) {
                prop_assert_eq!(now.fib.egress(id), all.fib.egress(id));
                prop_assert_eq!(now.fib.tunnels().get(id), all.fib.tunnels().get(id));
            }
        }
    }
}
