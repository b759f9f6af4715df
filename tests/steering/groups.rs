//! Tunnels to multicast groups: frames for many, of which only a tunnel's are taken.

use std::net::Ipv4Addr;

use greyhound::xdp::{Plan, PortPlan, PrefixAction, PrefixPlan, TunnelClass};

use crate::{
    bench::{Bench, LO, REDIRECTED_O, REDIRECTED_U, UNDERLAY, bare, tunnel},
    family::ip6,
    frames::*,
};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 129, 1, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(239, 1, 1, 1);
const GROUP6: &str = "ff05::4242";
/// Of both groups of IPv4: 23 bits tell them apart no more.
const TO_GROUP: [u8; 6] = [0x01, 0x00, 0x5e, 0x01, 0x01, 0x01];
const TO_GROUP6: [u8; 6] = [0x33, 0x33, 0, 0, 0x42, 0x42];
const TO_ALL: [u8; 6] = [0xff; 6];

/// The frame with another link address as its destination.
fn to(mac: [u8; 6], mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac);
    frame
}

fn plan(roles: PortPlan) -> Plan {
    Plan {
        ports: [(LO, roles)].into(),
        tunnels: [
            tunnel(GROUP, ANY, None),
            tunnel(GROUP, ANY, Some(7)),
            bare(TunnelClass::Ipv6, ip6(GROUP6), ip6("::")),
            tunnel(LOCAL, REMOTE, None),
            bare(TunnelClass::Ipv6, ip6(LOCAL6), ip6("2001:db8:ffff::9")),
        ]
        .into(),
        hops: vec![0, 1476],
        prefixes: PrefixPlan::All([("10.0.2.0/24".parse().unwrap(), PrefixAction::Hop(1))].into()),
        ..Plan::default()
    }
}

#[test]
#[rustfmt::skip]
fn mcast_1_groups() {
    let far = Ipv4Addr::new(198, 51, 100, 1);
    let six = |dst| ipv6("2001:db8:ffff::9", dst, 41, &inner(41));
    let mut bench = Bench::new();
    bench.check_plan(&plan(UNDERLAY), vec![
        ("from any member", to(TO_GROUP, gre(far, GROUP, 0, 0)), REDIRECTED_U),
        ("from any member, keyed", to(TO_GROUP, gre(far, GROUP, 0x2000, 7)), REDIRECTED_U),
        ("in a frame for all", to(TO_ALL, gre(far, GROUP, 0, 0)), REDIRECTED_U),
        ("in a frame for us", gre(far, GROUP, 0, 0), REDIRECTED_U),
        ("IPv6 in IPv6", to(TO_GROUP6, six(GROUP6)), REDIRECTED_U),
        ("wrong key", to(TO_GROUP, gre(far, GROUP, 0x2000, 8)), "other_mac"),
        ("another group with the same link address", to(TO_GROUP, gre(far, OTHER, 0, 0)), "other_mac"),
        ("another group of IPv6", to(TO_GROUP6, six("ff02::4242")), "other_mac"),
        ("from a martian", to(TO_GROUP, gre(Ipv4Addr::LOCALHOST, GROUP, 0, 0)), "other_mac"),
        ("no tunnel's protocol", to(TO_GROUP, ipv4(far, GROUP, 17, &[0; 16])), "other_mac"),
        ("to our address, in a frame for many", to(TO_GROUP, ours(0, 0)), "other_mac"),
        ("to our address of IPv6, in a frame for many", to(TO_GROUP6, six(LOCAL6)), "other_mac"),
        ("a fragment", to(TO_GROUP, edit(gre(far, GROUP, 0, 0), |ip| ip[6] = 0x20)), "other_mac"),
        ("cut", to(TO_GROUP, gre(far, GROUP, 0, 0)[..30].to_vec()), "other_mac"),
        ("for another station", to(OTHER_MAC, gre(far, GROUP, 0, 0)), "other_mac"),
        ("to our address, for us", ours(0, 0), REDIRECTED_U),
        ("to our address of IPv6, for us", six(LOCAL6), REDIRECTED_U),
    ]);
}

#[test]
#[rustfmt::skip]
fn frames_for_many_are_never_the_overlays() {
    let both = PortPlan { overlay: true, forward4: true, ..UNDERLAY };
    let routed = ipv4(INNER_A, INNER_B, 17, &[0; 16]);
    let mut bench = Bench::new();
    bench.check_plan(&plan(both), vec![
        ("routed", routed.clone(), REDIRECTED_O),
        ("routed, in a frame for all", to(TO_ALL, routed), "other_mac"),
        ("the group's", to(TO_GROUP, gre(INNER_A, GROUP, 0, 0)), REDIRECTED_U),
        ("another group's", to(TO_GROUP, ipv4(INNER_A, OTHER, 17, &[0; 16])), "other_mac"),
    ]);
}

#[test]
#[rustfmt::skip]
fn without_a_group_frames_for_many_are_not_looked_into() {
    let mut plan = plan(UNDERLAY);
    plan.tunnels = [tunnel(LOCAL, ANY, None)].into();
    let mut bench = Bench::new();
    bench.check_plan(&plan, vec![
        ("the group's", to(TO_GROUP, gre(REMOTE, GROUP, 0, 0)), "other_mac"),
        ("the group's, for us", gre(REMOTE, GROUP, 0, 0), "unknown_tunnel"),
        ("cut", to(TO_GROUP, vec![0; 14]), "not_ip"),
    ]);
}
