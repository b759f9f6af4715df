//! Ports at the end of a wire, where every frame is the tunnel's; and tunnels of frames on the underlay.

use greyhound::xdp::{Plan, PortPlan, TunnelClass, TunnelMatch};

use crate::{
    bench::*,
    family::{family, ip6},
    frames::*,
};

const WIRE: PortPlan = PortPlan {
    underlay: false,
    forward4: false,
    forward6: false,
    wire: Some(1484),
    ..UNDERLAY
};

/// Tags with these types, then what stands behind the Ethernet header, under its type.
fn tagged(types: &[u16], frame: &[u8]) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    for kind in types {
        out.extend(kind.to_be_bytes());
        out.extend([0x20, 7]);
    }
    out.extend(&frame[12..]);
    out
}

#[test]
#[rustfmt::skip]
fn whatever_fits_goes_into_the_tunnel() {
    let sized = |len: usize| ether(OTHER_MAC, 0x88b5, &vec![7; len - 14]);
    let edge = edit(udp(INNER_B), |ip| ip[8] = 1);
    Bench::new().check(WIRE, vec![
        ("IPv4 to us", udp(INNER_B), REDIRECTED_O),
        ("IPv4 to another station", ether(OTHER_MAC, 0x0800, &udp(INNER_B)[14..]), REDIRECTED_O),
        ("IPv4 without a route", udp([11, 0, 0, 1].into()), REDIRECTED_O),
        ("TTL 1", edge, REDIRECTED_O),
        ("multicast", udp([224, 0, 0, 5].into()), REDIRECTED_O),
        ("loopback", udp([127, 0, 0, 1].into()), REDIRECTED_O),
        ("bad checksum", spoil(udp(INNER_B), |ip| ip[10] ^= 1), REDIRECTED_O),
        ("bad header", ether(MAC, 0x0800, &[0x4f; 20]), REDIRECTED_O),
        ("fragment", edit(udp(INNER_B), |ip| ip[6] = 0x20), REDIRECTED_O),
        ("a tunnel's packet", ours(0, 0), REDIRECTED_O),
        ("IPv6", udp6("2001:db8:2::5"), REDIRECTED_O),
        ("IPv6 link-local", udp6("fe80::1"), REDIRECTED_O),
        ("ARP to all", ether([0xff; 6], 0x0806, &[0; 28]), REDIRECTED_O),
        ("STP", ether([1, 0x80, 0xc2, 0, 0, 0], 38, &[0x42; 46]), REDIRECTED_O),
        ("LLDP", ether([1, 0x80, 0xc2, 0, 0, 0xe], 0x88cc, &[2; 60]), REDIRECTED_O),
        ("LACP", ether([1, 0x80, 0xc2, 0, 0, 2], 0x8809, &[1; 110]), REDIRECTED_O),
        ("MPLS", ether(MAC, 0x8847, &[0; 60]), REDIRECTED_O),
        ("802.1Q", tagged(&[0x8100], &udp(INNER_B)), REDIRECTED_O),
        ("QinQ", tagged(&[0x88a8, 0x8100], &udp(INNER_B)), REDIRECTED_O),
        ("three tags", tagged(&[0x8100; 3], &udp(INNER_B)), REDIRECTED_O),
        ("a tag and no more", ether(MAC, 0x8100, &[0, 7]), REDIRECTED_O),
        ("a header and no more", ether(MAC, 0x0800, &[]), REDIRECTED_O),
        ("as large as it may be", sized(1484), REDIRECTED_O),
        ("one byte more", sized(1485), "too_big"),
    ]);
    let not_ready = PortPlan { wire: Some(0), ..WIRE };
    Bench::new().check(not_ready, vec![
        ("IPv4", udp(INNER_B), "kernel_route"),
        ("ARP", ether([0xff; 6], 0x0806, &[0; 28]), "kernel_route"),
    ]);
}

#[test]
#[rustfmt::skip]
fn what_only_the_kernel_can_finish_stays_with_it() {
    let of = |protocol| ipv4(INNER_A, INNER_B, protocol, &[0; 16]);
    let of6 = |protocol| ipv6("2001:db8:1::5", "2001:db8:2::5", protocol, &[0; 16]);
    let veth = PortPlan { partial_checksums: true, ..WIRE };
    Bench::new().check(veth, vec![
        ("TCP", of(6), REDIRECTED_O),
        ("UDP", of(17), REDIRECTED_O),
        ("ICMP", of(1), REDIRECTED_O),
        ("TCP over IPv6", of6(6), REDIRECTED_O),
        ("ICMPv6", of6(58), REDIRECTED_O),
        ("TCP behind a tag", tagged(&[0x8100], &of(6)), REDIRECTED_O),
        ("UDP over IPv6 behind two", tagged(&[0x88a8, 0x8100], &of6(17)), REDIRECTED_O),
        ("ARP", ether([0xff; 6], 0x0806, &[0; 28]), REDIRECTED_O),
        ("ARP behind a tag", tagged(&[0x8100], &ether([0xff; 6], 0x0806, &[0; 28])), REDIRECTED_O),
        ("SCTP", of(132), "partial_checksum"),
        ("SCTP over IPv6", of6(132), "partial_checksum"),
        ("SCTP behind a tag", tagged(&[0x8100], &of(132)), "partial_checksum"),
        ("a fragment of SCTP, which is finished", edit(of(132), |ip| ip[6] = 0x20), REDIRECTED_O),
        ("its last fragment", edit(of(132), |ip| ip[7] = 9), REDIRECTED_O),
        ("a fragment over IPv6", of6(44), REDIRECTED_O),
        ("extension headers", of6(0), "partial_checksum"),
        ("GRE", of(47), "partial_checksum"),
        ("behind three tags", tagged(&[0x8100; 3], &of(6)), "partial_checksum"),
        ("IPv4 header cut", ether(MAC, 0x0800, &[0x45; 19]), "partial_checksum"),
        ("IPv6 header cut", ether(MAC, 0x86dd, &[0x60; 39]), "partial_checksum"),
        ("tag cut", ether(MAC, 0x8100, &[0, 7, 8]), "partial_checksum"),
        ("LLDP", ether([1, 0x80, 0xc2, 0, 0, 0xe], 0x88cc, &[2; 60]), "partial_checksum"),
        ("MPLS", ether(MAC, 0x8847, &[0; 60]), "partial_checksum"),
        ("too large", ether(MAC, 0x0806, &[0; 1471]), "too_big"),
    ]);
}

#[test]
fn a_wire_is_no_other_role_and_goes_with_its_tunnel() {
    let mut bench = Bench::new();
    let frame = ether([0xff; 6], 0x0806, &[0; 28]);
    for (port, expected) in [
        (WIRE, REDIRECTED_O),
        (PortPlan { wire: None, ..WIRE }, "port_off"),
        (OVERLAY, "not_ip"),
        (WIRE, REDIRECTED_O),
    ] {
        bench.check(port, vec![("ARP", frame.clone(), expected)]);
    }
    let small = PortPlan {
        wire: Some(40),
        ..WIRE
    };
    bench.check(small, vec![("now too large", frame, "too_big")]);
}

/// GRE with a payload of this type.
fn typed(kind: u16, flags: u16, key: u32) -> Vec<u8> {
    let mut payload = gre_payload(flags, key);
    payload[2..4].copy_from_slice(&kind.to_be_bytes());
    payload
}

fn frames4(flags: u16, key: u32) -> Vec<u8> {
    ipv4(REMOTE, LOCAL, 47, &typed(0x6558, flags, key))
}

fn frames6(flags: u16, key: u32) -> Vec<u8> {
    outer6(47, &typed(0x6558, flags, key))
}

/// On top of the family's plan: virtual subnets 5000 and, from anybody to a second address, 6000; over IPv6 5000.
fn plan_of_subnets(port: PortPlan) -> Plan {
    let subnet = |vsid, tunnel: TunnelMatch| TunnelMatch {
        class: TunnelClass::Nvgre,
        key: Some(vsid),
        ..tunnel
    };
    let second = std::net::Ipv4Addr::new(192, 0, 2, 9);
    let mut plan = family(port);
    plan.tunnels.extend([
        subnet(5000, tunnel(LOCAL, REMOTE, None)),
        subnet(6000, tunnel(second, ANY, None)),
        subnet(5000, tunnel(ip6(LOCAL6), ip6(REMOTE6), None)),
    ]);
    plan
}

#[test]
#[rustfmt::skip]
fn nvgre_1_virtual_subnets() {
    let second = std::net::Ipv4Addr::new(192, 0, 2, 9);
    let far = std::net::Ipv4Addr::new(198, 51, 100, 1);
    let key = |vsid: u32, flow: u32| vsid << 8 | flow;
    let to = |src, vsid| ipv4(src, second, 47, &typed(0x6558, 0x2000, key(vsid, 9)));
    let cases = vec![
        ("no flow", frames4(0x2000, key(5000, 0)), REDIRECTED_U),
        ("flow 1", frames4(0x2000, key(5000, 1)), REDIRECTED_U),
        ("flow 255", frames4(0x2000, key(5000, 255)), REDIRECTED_U),
        ("with a sequence number", frames4(0x3000, key(5000, 1)), REDIRECTED_U),
        ("the next subnet", frames4(0x2000, key(5001, 0)), "unknown_tunnel"),
        ("the one before", frames4(0x2000, key(4999, 255)), "unknown_tunnel"),
        ("the number as a key", frames4(0x2000, 5000), "unknown_tunnel"),
        ("no key", frames4(0, 0), REDIRECTED_U),
        ("a packet, no frame", ours(0x2000, key(5000, 1)), "unknown_tunnel"),
        ("a plain key still", ours(0x2000, 42), REDIRECTED_U),
        ("a frame with a plain key", frames4(0x2000, 42), REDIRECTED_U),
        ("from anybody", to(far, 6000), REDIRECTED_U),
        ("from anybody, another subnet", to(far, 5000), "unknown_tunnel"),
        ("from nobody", to(ANY, 6000), "unknown_tunnel"),
        ("over IPv6", frames6(0x2000, key(5000, 77)), REDIRECTED_U),
        ("over IPv6, another subnet", frames6(0x2000, key(5001, 77)), "unknown_tunnel"),
        ("over IPv6, a packet", ours6(0x2000, key(5000, 77)), "unknown_tunnel"),
        ("behind a limit", outer6(60, &[&limit(47)[..], &typed(0x6558, 0x2000, key(5000, 3))].concat()), REDIRECTED_U),
        ("in UDP", ipv4(REMOTE, LOCAL, 17, &in_udp(&typed(0x6558, 0x2000, key(5000, 0)))), "unknown_tunnel"),
        ("key cut", ipv4(REMOTE, LOCAL, 47, &[0x20, 0, 0x65, 0x58, 0, 0, 0]), "bad_header"),
    ];
    Bench::new().check_plan(&plan_of_subnets(UNDERLAY), cases);
    // Without such tunnels nobody looks twice.
    Bench::new().check_plan(&family(UNDERLAY), vec![
        ("IPv4", frames4(0x2000, key(5000, 0)), "unknown_tunnel"),
        ("IPv6", frames6(0x2000, key(5000, 0)), "unknown_tunnel"),
    ]);
}

#[test]
#[rustfmt::skip]
fn tunnels_of_frames_without_a_wire_are_the_kernels() {
    let slow = |tunnel: TunnelMatch| TunnelMatch { fast: false, ..tunnel };
    let mut plan = family(UNDERLAY);
    plan.tunnels.extend([
        slow(tunnel(LOCAL, REMOTE, Some(7))),
        slow(tunnel(ip6(LOCAL6), ip6(REMOTE6), Some(7))),
        // One of two with the same key is steered, and so are both.
        slow(tunnel(LOCAL, REMOTE, Some(42))),
    ]);
    Bench::new().check_plan(&plan, vec![
        ("its frame", frames4(0x2000, 7), "kernel_tunnel"),
        ("its frame over IPv6", frames6(0x2000, 7), "kernel_tunnel"),
        ("shared key", frames4(0x2000, 42), REDIRECTED_U),
        ("another key", frames4(0x2000, 8), "unknown_tunnel"),
    ]);
}
