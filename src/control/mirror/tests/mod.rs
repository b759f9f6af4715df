//! The mirror against messages that somebody else's code encodes (netlink-packet-route).

mod sync;

use std::net::IpAddr;

use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE, NetlinkMessage},
    packet_route::{
        AddressFamily, RouteNetlinkMessage as Message,
        link::{LinkAttribute, LinkFlags, LinkMessage},
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteFlags, RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
    },
};

use super::{Effect, Nud, Parts, State, Table, decode};

const PORT: u32 = 4242;
const ETH: u32 = 3;
const OTHER: u32 = 4;

fn datagram(message: Message, flags: u16, sequence: u32) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.header.port_number = if sequence == 0 { 0 } else { PORT };
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Tells the state a notification.
fn tell(state: &mut State, message: Message, flags: u16) -> Effect {
    let bytes = datagram(message, flags, 0);
    let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
    match decode::decode(kind, Some(flags), &bytes[16..]).unwrap() {
        Some(event) => state.apply(event),
        None => Effect::default(),
    }
}

fn link(index: u32, name: &str, up: bool) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    if up {
        link.header.flags = LinkFlags::Up | LinkFlags::LowerUp | LinkFlags::Running;
    }
    link.attributes.push(LinkAttribute::IfName(name.into()));
    link.attributes.push(LinkAttribute::Mtu(1500));
    link.attributes
        .push(LinkAttribute::Address(vec![2, 0, 0, 0, 0, index as u8]));
    link
}

fn route(prefix: &str, via: &str, metric: u32) -> RouteMessage {
    let prefix: ipnet::IpNet = prefix.parse().unwrap();
    let mut route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .unwrap()
        .output_interface(ETH)
        .priority(metric);
    if !via.is_empty() {
        route = route.gateway(via.parse().unwrap()).unwrap();
    }
    route.build()
}

fn add(state: &mut State, route: RouteMessage, flags: u16) -> Effect {
    tell(state, Message::NewRoute(route), flags)
}

/// The last parts of the gateways of a prefix's routes, in order.
fn order(state: &State, prefix: &str) -> Vec<u8> {
    let last = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    let gateways = |routes: &[std::sync::Arc<super::Route>]| {
        let hops = routes.iter().flat_map(|route| &route.hops);
        hops.map(|hop| hop.gateway.map_or(0, last)).collect()
    };
    match prefix.parse().unwrap() {
        ipnet::IpNet::V4(prefix) => gateways(state.main_v4().routes(prefix)),
        ipnet::IpNet::V6(prefix) => gateways(state.main_v6().routes(prefix)),
    }
}

fn gateway(state: &State, destination: &str) -> Option<String> {
    let found = state.lookup(destination.parse().unwrap())?;
    found.route.hops[0].gateway.map(|ip| ip.to_string())
}

#[test]
fn ipv4_routes_of_one_prefix_stand_in_the_kernels_order() {
    let mut state = State::default();
    let prefix = "10.1.0.0/16";
    add(&mut state, route(prefix, "10.0.0.1", 10), NLM_F_CREATE);
    add(&mut state, route(prefix, "10.0.0.2", 5), NLM_F_CREATE);
    assert_eq!(order(&state, prefix), [2, 1]);
    add(
        &mut state,
        route(prefix, "10.0.0.3", 5),
        NLM_F_CREATE | NLM_F_APPEND,
    );
    add(&mut state, route(prefix, "10.0.0.4", 5), NLM_F_CREATE);
    assert_eq!(order(&state, prefix), [4, 2, 3, 1]);
    add(&mut state, route(prefix, "10.0.0.5", 5), NLM_F_REPLACE);
    assert_eq!(order(&state, prefix), [5, 2, 3, 1]);
    let effect = tell(
        &mut state,
        Message::DelRoute(route(prefix, "10.0.0.2", 5)),
        0,
    );
    assert_eq!(
        (effect.changed, effect.doubt),
        (Parts::ROUTES4, Parts::NONE)
    );
    assert_eq!(order(&state, prefix), [5, 3, 1]);
    // One that is not known, while others of its metric are: something was missed.
    let effect = tell(
        &mut state,
        Message::DelRoute(route(prefix, "10.0.0.9", 5)),
        0,
    );
    assert_eq!(effect.doubt, Parts::ROUTES4);
}

#[test]
fn the_lowest_metric_wins_unless_its_hop_is_dead() {
    let mut state = State::default();
    add(
        &mut state,
        route("10.1.0.0/16", "10.0.0.1", 10),
        NLM_F_CREATE,
    );
    add(
        &mut state,
        route("10.1.0.0/16", "10.0.0.2", 5),
        NLM_F_CREATE,
    );
    add(&mut state, route("10.0.0.0/8", "10.0.0.3", 0), NLM_F_CREATE);
    assert_eq!(gateway(&state, "10.1.2.3").as_deref(), Some("10.0.0.2"));
    // Without carrier alone the kernel goes on using it.
    let mut linkdown = route("10.1.0.0/16", "10.0.0.2", 5);
    linkdown.header.flags = RouteFlags::Linkdown;
    add(&mut state, linkdown.clone(), NLM_F_REPLACE);
    assert_eq!(gateway(&state, "10.1.2.3").as_deref(), Some("10.0.0.2"));
    linkdown.header.flags |= RouteFlags::Dead;
    add(&mut state, linkdown, NLM_F_REPLACE);
    assert_eq!(gateway(&state, "10.1.2.3").as_deref(), Some("10.0.0.1"));
    // A prefix with nothing but dead routes does not hide a shorter one.
    tell(
        &mut state,
        Message::DelRoute(route("10.1.0.0/16", "10.0.0.1", 10)),
        0,
    );
    assert_eq!(gateway(&state, "10.1.2.3").as_deref(), Some("10.0.0.3"));
    assert_eq!(state.main_routes_v4().count(), 1);
}

#[test]
fn routes_for_one_tos_are_named_as_conditional() {
    let mut state = State::default();
    let mut special = route("10.1.0.0/16", "10.0.0.1", 0);
    special.header.tos = 0x10;
    add(&mut state, special, NLM_F_CREATE);
    add(
        &mut state,
        route("10.1.0.0/16", "10.0.0.2", 0),
        NLM_F_CREATE,
    );
    let found = state.lookup("10.1.0.1".parse().unwrap()).unwrap();
    assert!(found.conditional);
    assert_eq!(gateway(&state, "10.1.0.1").as_deref(), Some("10.0.0.2"));
}

#[test]
fn the_local_table_is_asked_first() {
    let mut state = State::default();
    add(
        &mut state,
        route("10.1.0.5/32", "10.0.0.1", 0),
        NLM_F_CREATE,
    );
    let mut local = route("10.1.0.0/24", "", 0);
    local.header.table = 255;
    local.header.kind = RouteType::Local;
    local.header.scope = RouteScope::Host;
    add(&mut state, local, NLM_F_CREATE);
    let found = state.lookup("10.1.0.5".parse().unwrap()).unwrap();
    assert_eq!(found.table, Table::Local);
    assert_eq!(found.prefix, "10.1.0.0/24".parse().unwrap());
}

#[test]
fn a_link_that_goes_down_takes_its_ipv4_routes_along() {
    let mut state = State::default();
    tell(&mut state, Message::NewLink(link(ETH, "eth0", true)), 0);
    add(
        &mut state,
        route("10.1.0.0/16", "10.0.0.1", 0),
        NLM_F_CREATE,
    );
    let mut elsewhere = route("10.2.0.0/16", "10.9.0.1", 0);
    elsewhere
        .attributes
        .retain(|a| !format!("{a:?}").starts_with("Oif"));
    elsewhere
        .attributes
        .push(rtnetlink::packet_route::route::RouteAttribute::Oif(OTHER));
    add(&mut state, elsewhere, NLM_F_CREATE);
    let mut own = route("10.0.0.9/32", "", 0);
    own.header.table = 255;
    own.header.kind = RouteType::Local;
    add(&mut state, own, NLM_F_CREATE);

    let effect = tell(&mut state, Message::NewLink(link(ETH, "eth0", false)), 0);
    assert!(effect.changed.contains(Parts::LINKS | Parts::ROUTES4));
    assert!(effect.doubt.contains(Parts::ROUTES4));
    assert_eq!(gateway(&state, "10.1.0.1"), None);
    assert_eq!(gateway(&state, "10.2.0.1").as_deref(), Some("10.9.0.1"));
    assert!(
        state.lookup("10.0.0.9".parse().unwrap()).is_some(),
        "its own address stays"
    );

    tell(&mut state, Message::DelLink(link(ETH, "eth0", false)), 0);
    assert!(state.lookup("10.0.0.9".parse().unwrap()).is_none());
    assert!(state.link(ETH).is_none() && state.link_by_name("eth0").is_none());
}

#[test]
fn a_renamed_link_is_found_by_its_new_name_only() {
    let mut state = State::default();
    tell(&mut state, Message::NewLink(link(ETH, "eth0", true)), 0);
    tell(&mut state, Message::NewLink(link(OTHER, "tmp", true)), 0);
    tell(&mut state, Message::NewLink(link(ETH, "wan", true)), 0);
    let effect = tell(&mut state, Message::NewLink(link(OTHER, "eth0", true)), 0);
    assert_eq!(effect.changed, Parts::LINKS);
    let index = |name: &str| state.link_by_name(name).map(|link| link.index);
    assert_eq!(
        (index("wan"), index("eth0"), index("tmp")),
        (Some(ETH), Some(OTHER), None)
    );
}

#[test]
fn a_port_that_leaves_its_bridge_lives_on() {
    let mut state = State::default();
    tell(&mut state, Message::NewLink(link(ETH, "eth0", true)), 0);
    let mut port = link(ETH, "eth0", true);
    port.header.interface_family = AddressFamily::Bridge;
    tell(&mut state, Message::DelLink(port), 0);
    assert!(state.link(ETH).is_some());
}

#[test]
fn ipv6_hops_come_and_go_one_by_one() {
    let mut state = State::default();
    let prefix = "2001:db8:1::/48";
    let one = |via: &str| route(prefix, via, 1024);
    add(&mut state, one("fe80::1"), NLM_F_CREATE);
    // The kernel tells an appended hop together with those that were there.
    let mut both = route(prefix, "", 1024);
    both.attributes
        .retain(|a| !format!("{a:?}").starts_with("Oif"));
    let hop = |via: &str| {
        rtnetlink::RouteNextHopBuilder::new_ipv6()
            .interface(ETH)
            .via(via.parse().unwrap())
            .unwrap()
            .build()
    };
    let hops = vec![hop("fe80::2"), hop("fe80::1")];
    both.attributes
        .push(rtnetlink::packet_route::route::RouteAttribute::MultiPath(
            hops,
        ));
    add(&mut state, both, NLM_F_CREATE | NLM_F_APPEND);
    assert_eq!(order(&state, prefix), [1, 2]);
    assert_eq!(state.main_v6().routes(prefix.parse().unwrap()).len(), 1);
    let effect = tell(&mut state, Message::DelRoute(one("fe80::1")), 0);
    assert_eq!(
        (order(&state, prefix), effect.doubt),
        (vec![2], Parts::NONE)
    );
    add(&mut state, one("fe80::3"), NLM_F_REPLACE);
    assert_eq!(order(&state, prefix), [3]);
    tell(&mut state, Message::DelRoute(one("fe80::3")), 0);
    assert!(state.main_v6().is_empty());
}

#[test]
fn cloned_routes_and_those_of_other_tables_are_ignored() {
    let mut state = State::default();
    let mut cloned = route("10.1.0.0/16", "10.0.0.1", 0);
    cloned.header.flags = RouteFlags::Cloned;
    add(&mut state, cloned, NLM_F_CREATE);
    let mut foreign = route("10.1.0.0/16", "10.0.0.1", 0);
    foreign.header.table = 100;
    add(&mut state, foreign, NLM_F_CREATE);
    assert_eq!(state, State::default());
}

#[test]
fn a_neighbour_of_a_tunnel_has_an_address_of_the_underlays() {
    let mut state = State::default();
    let mut tell_of = |lladdr: &[u8]| {
        let mut message = neighbour(NeighbourState::Permanent, NeighbourFlags::empty(), 1);
        message.attributes[1] = NeighbourAttribute::LinkLayerAddress(lladdr.to_vec());
        tell(&mut state, Message::NewNeighbour(message), 0).changed
    };
    assert_eq!(tell_of(&[198, 51, 100, 3]), Parts::NEIGHBOURS);
    assert_eq!(tell_of(&[198, 51, 100, 3]), Parts::NONE);
    // Another end, and nothing else about it.
    assert_eq!(tell_of(&[198, 51, 100, 4]), Parts::NEIGHBOURS);
    let of_device: Vec<_> = state
        .neighbours_of(ETH)
        .map(|(_, n)| (n.mac, n.outer))
        .collect();
    assert_eq!(of_device, [(None, Some([198, 51, 100, 4].into()))]);
    assert_eq!(state.neighbours_of(OTHER).count(), 0);
}

#[test]
fn a_gre_device_that_was_changed_is_looked_at_again() {
    let mut state = State::default();
    let mut gre = link(OTHER, "gre1", true);
    let kind = rtnetlink::packet_route::link::InfoKind::GreTun;
    let info = rtnetlink::packet_route::link::LinkInfo::Kind(kind);
    gre.attributes.push(LinkAttribute::LinkInfo(vec![info]));
    let new = tell(&mut state, Message::NewLink(gre.clone()), 0);
    let again = tell(&mut state, Message::NewLink(gre), 0);
    assert_eq!((new.doubt, again.doubt), (Parts::NONE, Parts::LINKS));
    assert_eq!(again.changed, Parts::NONE);
}

fn neighbour(nud: NeighbourState, flags: NeighbourFlags, mac: u8) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = ETH;
    message.header.state = nud;
    message.header.flags = flags;
    let ip = NeighbourAddress::Inet("10.0.0.2".parse().unwrap());
    message.attributes.push(NeighbourAttribute::Destination(ip));
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(vec![
            2, 0, 0, 0, 0, mac,
        ]));
    message
}

#[test]
fn a_neighbour_is_usable_in_some_states_and_only_usability_is_news() {
    let mut state = State::default();
    let ip: IpAddr = "10.0.0.2".parse().unwrap();
    let mut say = |nud, mac| {
        let message = neighbour(nud, NeighbourFlags::empty(), mac);
        let effect = tell(&mut state, Message::NewNeighbour(message), 0);
        (
            state.neighbour(ETH, ip).is_some(),
            !effect.changed.is_empty(),
        )
    };
    assert_eq!(say(NeighbourState::Incomplete, 1), (false, false));
    assert_eq!(say(NeighbourState::Reachable, 1), (true, true));
    for nud in [
        NeighbourState::Stale,
        NeighbourState::Delay,
        NeighbourState::Probe,
    ] {
        assert_eq!(say(nud, 1), (true, false), "{nud:?}");
    }
    assert_eq!(
        say(NeighbourState::Reachable, 2),
        (true, true),
        "another link address"
    );
    assert_eq!(say(NeighbourState::Failed, 2), (false, true));
    assert_eq!(say(NeighbourState::Permanent, 2), (true, true));
    assert_eq!(state.neighbour(ETH, ip).unwrap().nud, Nud::Permanent);
    let gone = neighbour(NeighbourState::Permanent, NeighbourFlags::empty(), 2);
    tell(&mut state, Message::DelNeighbour(gone), 0);
    assert!(state.neighbour_entry(ETH, ip).is_none());
    let proxy = neighbour(NeighbourState::Permanent, NeighbourFlags::Proxy, 2);
    tell(&mut state, Message::NewNeighbour(proxy), 0);
    assert!(
        state.neighbour_entry(ETH, ip).is_none(),
        "a proxy entry is no neighbour"
    );
}

fn rule(priority: u32, table: u8) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    rule.header.table = table;
    rule.header.action = RuleAction::ToTable;
    if priority > 0 {
        rule.attributes.push(RuleAttribute::Priority(priority));
    }
    rule
}

#[test]
fn what_a_rule_selects_is_read() {
    let mut message = rule(100, 7);
    message.header.src_len = 24;
    message.header.dst_len = 32;
    message.attributes.extend([
        RuleAttribute::Source("10.1.2.3".parse().unwrap()),
        RuleAttribute::Destination("10.9.9.9".parse().unwrap()),
        RuleAttribute::Iifname("eth1".to_owned()),
        RuleAttribute::Oifname("eth2".to_owned()),
    ]);
    let mut state = State::default();
    tell(&mut state, Message::NewRule(message.clone()), 0);
    let shown = |state: &State| {
        let rules = state.rules_of_others().map(ToString::to_string);
        rules.collect::<Vec<_>>()
    };
    assert_eq!(
        shown(&state),
        ["100: from 10.1.2.0/24 to 10.9.9.9/32 iif eth1 oif eth2 table 7"]
    );
    // `not`
    message.header.flags = RuleFlags::Invert;
    let mut state = State::default();
    tell(&mut state, Message::NewRule(message), 0);
    assert_eq!(
        shown(&state),
        ["100: not from 10.1.2.0/24 to 10.9.9.9/32 iif eth1 oif eth2 table 7"]
    );
    let mut vrf = rule(1000, 0);
    vrf.attributes.push(RuleAttribute::L3MDev(true));
    let mut state = State::default();
    tell(&mut state, Message::NewRule(vrf), 0);
    assert_eq!(shown(&state), ["1000: l3mdev"]);
}

#[test]
fn rules_besides_the_kernels_own_are_foreign() {
    let mut state = State::default();
    for (priority, table) in [(0, 255), (32766, 254), (32767, 253)] {
        tell(&mut state, Message::NewRule(rule(priority, table)), 0);
    }
    assert!(!state.foreign_rules());
    let mut vrf = rule(1000, 0);
    vrf.attributes.push(RuleAttribute::L3MDev(true));
    let effect = tell(&mut state, Message::NewRule(vrf), 0);
    assert!(state.foreign_rules());
    assert_eq!(effect.doubt, Parts::RULES);

    let mut without_main = State::default();
    tell(&mut without_main, Message::NewRule(rule(0, 255)), 0);
    assert!(
        without_main.foreign_rules(),
        "one of the kernel's own is gone"
    );
}
