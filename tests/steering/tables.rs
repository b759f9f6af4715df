//! What becomes of each frame, and under which reason.

use std::net::Ipv4Addr;

use greyhound::xdp::{Plan, PortPlan};

use crate::{bench::*, frames::*};

#[test]
#[rustfmt::skip]
fn underlay_frames() {
    let padded = [ours(0, 0), vec![0xff; 12]].concat();
    let options = {
        let payload = [&[1u8; 4][..], &ours(0, 0)[34..]].concat();
        edit(ipv4(REMOTE, LOCAL, 47, &payload), |ip| ip[0] = 0x46)
    };
    let far = Ipv4Addr::new(198, 51, 100, 1);
    let third = Ipv4Addr::new(192, 0, 2, 3);
    let tagged = |tpid: u16| ether(MAC, tpid, &[&[0, 42, 8, 0], &ours(0, 0)[14..]].concat());
    Bench::new().check(
        UNDERLAY,
        vec![
            ("no key", ours(0, 0), REDIRECTED_U),
            ("key", ours(0x2000, 42), REDIRECTED_U),
            ("key 0", gre(third, LOCAL, 0x2000, 0), REDIRECTED_U),
            ("checksum", ours(0x8000, 0), REDIRECTED_U),
            ("sequence", ours(0x1000, 0), REDIRECTED_U),
            ("key and checksum", ours(0xa000, 42), REDIRECTED_U),
            ("key, checksum, sequence", ours(0xb000, 42), REDIRECTED_U),
            ("key and sequence", ours(0x3000, 42), REDIRECTED_U),
            ("reserved bits 6 to 12", ours(0x03f8, 0), REDIRECTED_U),
            ("padded frame", padded, REDIRECTED_U),
            ("outer TTL 1", edit(ours(0, 0), |ip| ip[8] = 1), REDIRECTED_U),
            ("DF", edit(ours(0, 0), |ip| ip[6] = 0x40), REDIRECTED_U),
            ("wrong key", ours(0x2000, 43), "unknown_tunnel"),
            ("key 0 is not no key", ours(0x2000, 0), "unknown_tunnel"),
            ("no key is not key 0", gre(third, LOCAL, 0, 0), "unknown_tunnel"),
            ("wrong key behind a checksum", ours(0xa000, 43), "unknown_tunnel"),
            ("key in network order", ours(0x2000, 42 << 24), "unknown_tunnel"),
            ("not our address", gre(REMOTE, far, 0, 0), "unknown_tunnel"),
            ("not our peer", gre(far, LOCAL, 0, 0), "unknown_tunnel"),
            ("ends swapped", gre(LOCAL, REMOTE, 0, 0), "unknown_tunnel"),
            ("PPTP", ours(0x2001, 42), "gre_version"),
            ("version 4", ours(0x0004, 0), "gre_version"),
            ("version 7", ours(0x0007, 0), "gre_version"),
            ("routing", ours(0x4000, 0), "gre_flags"),
            ("bit 4", ours(0x0800, 0), "gre_flags"),
            ("bit 5", ours(0x0400, 0), "gre_flags"),
            ("options", options, "ip_options"),
            ("first fragment", edit(ours(0, 0), |ip| ip[6] = 0x20), "fragment"),
            ("last fragment", edit(ours(0, 0), |ip| ip[7] = 1), "fragment"),
            ("far fragment", edit(ours(0, 0), |ip| ip[6] = 0x1f), "fragment"),
            ("checksum off by one", spoil(ours(0, 0), |ip| ip[11] ^= 1), "bad_checksum"),
            ("checksum zero", spoil(ours(0, 0), |ip| ip[10..12].fill(0)), "bad_checksum"),
            ("version 6", edit(ours(0, 0), |ip| ip[0] = 0x65), "bad_header"),
            ("version 5", edit(ours(0, 0), |ip| ip[0] = 0x55), "bad_header"),
            ("IHL 4", edit(ours(0, 0), |ip| ip[0] = 0x44), "bad_header"),
            ("total length 19", edit(ours(0, 0), |ip| ip[3] = 19), "bad_header"),
            ("total length 0", edit(ours(0, 0), |ip| ip[3] = 0), "bad_header"),
            ("length beyond frame", edit(ours(0, 0), |ip| ip[3] += 1), "bad_header"),
            ("length far beyond", edit(ours(0, 0), |ip| ip[2] = 0xff), "bad_header"),
            ("total length 23", edit(ours(0, 0), |ip| ip[3] = 23), "bad_header"),
            ("GRE header alone", edit(ours(0, 0), |ip| ip[3] = 24), REDIRECTED_U),
            ("key outside the packet", edit(ours(0x2000, 42), |ip| ip[3] = 27), "bad_header"),
            ("sequence outside", edit(ours(0xb000, 42), |ip| ip[3] = 35), "bad_header"),
            ("not GRE", ipv4(REMOTE, LOCAL, 17, &[0; 8]), "not_tunnel"),
            ("IPv6", udp6("2001:db8:2::5"), "not_tunnel"),
            ("ARP", ether([0xff; 6], 0x0806, &[0; 28]), "not_ip"),
            ("802.3 length", ether(MAC, 46, &[0; 46]), "not_ip"),
            ("other MAC", ether(OTHER_MAC, 0x0800, &ours(0, 0)[14..]), "other_mac"),
            ("first MAC byte", spoil_mac(ours(0, 0), 0), "other_mac"),
            ("last MAC byte", spoil_mac(ours(0, 0), 5), "other_mac"),
            ("broadcast", ether([0xff; 6], 0x0800, &ours(0, 0)[14..]), "other_mac"),
            ("802.1Q", tagged(0x8100), "vlan_tag"),
            ("802.1ad", tagged(0x88a8), "vlan_tag"),
            ("QinQ", tagged(0x88a8)[..14] .iter().chain(&tagged(0x8100)[12..]).copied().collect(), "vlan_tag"),
        ],
    );
}

#[test]
#[rustfmt::skip]
fn overlay_frames_of_ipv4() {
    let to = |text: &str| udp(text.parse().unwrap());
    let from = |text: &str| ipv4(text.parse().unwrap(), INNER_B, 17, &[0; 16]);
    let options = edit(ipv4(INNER_A, INNER_B, 17, &[1; 16]), |ip| ip[0] = 0x46);
    Bench::new().check(
        OVERLAY,
        vec![
            ("plain", udp(INNER_B), REDIRECTED_O),
            ("padded", [udp(INNER_B), vec![0; 20]].concat(), REDIRECTED_O),
            ("DF", edit(udp(INNER_B), |ip| ip[6] = 0x40), REDIRECTED_O),
            ("TTL 2", edit(udp(INNER_B), |ip| ip[8] = 2), REDIRECTED_O),
            ("TTL 1", edit(udp(INNER_B), |ip| ip[8] = 1), "ttl"),
            ("TTL 0", edit(udp(INNER_B), |ip| ip[8] = 0), "ttl"),
            ("MTU exactly", sized4(1476), REDIRECTED_O),
            ("MTU and one", sized4(1477), "too_big"),
            ("padding does not count", [sized4(1476), vec![0; 9]].concat(), REDIRECTED_O),
            ("less specific tunnel", to("10.0.3.1"), REDIRECTED_O),
            ("more specific kernel route", to("10.0.2.129"), "kernel_route"),
            ("tunnel beneath it", to("10.0.2.193"), REDIRECTED_O),
            ("its default route", to("11.0.0.1"), "kernel_route"),
            ("options", options, "ip_options"),
            ("fragment", edit(udp(INNER_B), |ip| ip[6] = 0x20), "fragment"),
            ("bad checksum", spoil(udp(INNER_B), |ip| ip[10] ^= 0x80), "bad_checksum"),
            ("multicast", to("224.0.0.5"), "multicast"),
            ("multicast, high", to("239.255.255.255"), "multicast"),
            ("broadcast", to("255.255.255.255"), "martian"),
            ("class E", to("240.0.0.1"), "martian"),
            ("to loopback", to("127.0.0.1"), "martian"),
            ("to link-local", to("169.254.1.1"), "martian"),
            ("to 0.0.0.0", to("0.0.0.0"), "martian"),
            ("from 0.0.0.0", from("0.0.0.0"), "martian"),
            ("from loopback", from("127.0.0.1"), "martian"),
            ("from multicast", from("224.0.0.1"), "martian"),
            ("from broadcast", from("255.255.255.255"), "martian"),
            ("from link-local", from("169.254.9.9"), "martian"),
            ("not quite link-local", from("169.253.9.9"), REDIRECTED_O),
            ("total length 19", edit(udp(INNER_B), |ip| ip[3] = 19), "bad_header"),
            ("length beyond frame", edit(udp(INNER_B), |ip| ip[3] += 1), "bad_header"),
            ("GRE passing through", gre(INNER_A, INNER_B, 0, 0), REDIRECTED_O),
            ("SCTP where checksums are whole", ipv4(INNER_A, INNER_B, 132, &[0; 16]), REDIRECTED_O),
            ("a tunnel's packet", ours(0, 0), "kernel_route"),
            ("other MAC", ether(OTHER_MAC, 0x0800, &udp(INNER_B)[14..]), "other_mac"),
            ("tagged", ether(MAC, 0x8100, &[&[0, 42, 8, 0], &udp(INNER_B)[14..]].concat()), "vlan_tag"),
            ("IPv6 as IPv4", ether(MAC, 0x0800, &udp6("2001:db8:2::5")[14..]), "bad_header"),
        ],
    );
}

#[test]
#[rustfmt::skip]
fn overlay_frames_of_ipv6() {
    let from = |text: &str| ipv6(text, "2001:db8:2::5", 17, &[0; 16]);
    let with = |next_header| ipv6("2001:db8:1::5", "2001:db8:2::5", next_header, &[0; 16]);
    let hop_limit = |n| spoil(udp6("2001:db8:2::5"), |ip| ip[7] = n);
    let length = |n| spoil(udp6("2001:db8:2::5"), |ip| ip[5] = n);
    Bench::new().check(
        OVERLAY,
        vec![
            ("plain", udp6("2001:db8:2::5"), REDIRECTED_O),
            ("padded", [udp6("2001:db8:2::5"), vec![0; 20]].concat(), REDIRECTED_O),
            ("traffic class and flow label", spoil(udp6("2001:db8:2::5"), |ip| { ip[..4].copy_from_slice(&[0x6f, 0xff, 1, 2]) }), REDIRECTED_O),
            ("hop limit 2", hop_limit(2), REDIRECTED_O),
            ("hop limit 1", hop_limit(1), "ttl"),
            ("hop limit 0", hop_limit(0), "ttl"),
            ("MTU exactly", sized6(1476), REDIRECTED_O),
            ("MTU and one", sized6(1477), "too_big"),
            ("no payload", length(0), REDIRECTED_O),
            ("length beyond frame", length(17), "bad_header"),
            ("length far beyond", spoil(udp6("2001:db8:2::5"), |ip| ip[4] = 0xff), "bad_header"),
            ("version 4", spoil(udp6("2001:db8:2::5"), |ip| ip[0] = 0x45), "bad_header"),
            ("hop-by-hop", with(0), "ip_options"),
            ("routing header", with(43), "ip_options"),
            ("destination options", with(60), "ip_options"),
            ("fragment header", with(44), "fragment"),
            ("ESP", with(50), REDIRECTED_O),
            ("no next header", with(59), REDIRECTED_O),
            ("more specific kernel route", udp6("2001:db8:2:1::5"), "kernel_route"),
            ("no route", udp6("2001:db8:3::5"), "no_route"),
            ("multicast", udp6("ff02::1"), "multicast"),
            ("to link-local", udp6("fe80::1"), "martian"),
            ("to loopback", udp6("::1"), "martian"),
            ("from unspecified", from("::"), "martian"),
            ("from loopback", from("::1"), "martian"),
            ("from link-local", from("fe80::2"), "martian"),
            ("from link-local, upper end", from("febf::2"), "martian"),
            ("from multicast", from("ff05::2"), "martian"),
            ("from IPv4-mapped", from("::ffff:10.0.0.1"), "martian"),
            ("unique local", from("fd00::2"), REDIRECTED_O),
            ("IPv4 as IPv6", ether(MAC, 0x86dd, &sized4(100)[14..]), "bad_header"),
        ],
    );
}

#[test]
fn whatever_is_cut_off_goes_to_the_kernel() {
    let mut bench = Bench::new();
    for (port, frame) in [
        (UNDERLAY, ours(0xb000, 42)),
        (BOTH, ours(0x2000, 42)),
        (OVERLAY, udp(INNER_B)),
        (OVERLAY, udp6("2001:db8:2::5")),
    ] {
        bench.steer.apply(&plan(port)).unwrap();
        for length in 14..frame.len() {
            assert_eq!(bench.reason(&frame[..length]), "bad_header", "{length}");
        }
        assert!(bench.reason(&frame).starts_with("redirected_"));
    }
}

#[test]
#[rustfmt::skip]
fn one_device_may_be_underlay_and_overlay() {
    Bench::new().check(
        BOTH,
        vec![
            ("ours", ours(0, 0), REDIRECTED_U),
            ("into a tunnel", udp(INNER_B), REDIRECTED_O),
            ("into a tunnel, IPv6", udp6("2001:db8:2::5"), REDIRECTED_O),
            ("PPTP between inner hosts", gre(INNER_A, INNER_B, 0x2001, 1), REDIRECTED_O),
            ("GRE between inner hosts", gre(INNER_A, INNER_B, 0, 0), REDIRECTED_O),
            ("unknown key for us", ours(0x2000, 43), "kernel_route"),
            ("neither", udp(Ipv4Addr::new(11, 0, 0, 1)), "kernel_route"),
            ("no IPv6 route", udp6("2001:db8:3::5"), "no_route"),
        ],
    );
    let mut no_default = plan(BOTH);
    prefixes(&mut no_default).remove(&"0.0.0.0/0".parse().unwrap());
    Bench::new().check_plan(
        &no_default,
        vec![
            ("unknown key for us", ours(0x2000, 43), "unknown_tunnel"),
            ("PPTP for us", ours(0x2001, 43), "gre_version"),
            ("neither", udp(Ipv4Addr::new(11, 0, 0, 1)), "no_route"),
        ],
    );
}

#[test]
#[rustfmt::skip]
fn senders_behind_a_veth() {
    let of = |protocol| ipv4(INNER_A, INNER_B, protocol, &[0; 16]);
    let of6 = |protocol| ipv6("2001:db8:1::5", "2001:db8:2::5", protocol, &[0; 16]);
    let veth = PortPlan {
        partial_checksums: true,
        ..OVERLAY
    };
    Bench::new().check(
        veth,
        vec![
            ("ICMP", of(1), REDIRECTED_O),
            ("TCP", of(6), REDIRECTED_O),
            ("UDP", of(17), REDIRECTED_O),
            ("SCTP", of(132), "partial_checksum"),
            ("GRE", of(47), "partial_checksum"),
            ("IPIP", of(4), "partial_checksum"),
            ("IPv6 in IPv4", of(41), "partial_checksum"),
            ("TCP over IPv6", of6(6), REDIRECTED_O),
            ("ICMPv6", of6(58), REDIRECTED_O),
            ("SCTP over IPv6", of6(132), "partial_checksum"),
            ("DCCP to nowhere", ipv4(INNER_A, Ipv4Addr::new(11, 0, 0, 1), 33, &[0; 16]), "kernel_route"),
        ],
    );
}

#[test]
#[rustfmt::skip]
fn forwarding_is_the_devices_own_switch() {
    let both = |forward4, forward6| PortPlan {
        forward4,
        forward6,
        ..BOTH
    };
    let mut bench = Bench::new();
    let (v4, v6) = (udp(INNER_B), udp6("2001:db8:2::5"));
    bench.check(
        both(false, true),
        vec![
            ("IPv4", v4.clone(), "forwarding_off"),
            ("IPv6", v6.clone(), REDIRECTED_O),
            ("tunnel packets are for us", ours(0, 0), REDIRECTED_U),
        ],
    );
    bench.check(
        both(true, false),
        vec![
            ("IPv4", v4.clone(), REDIRECTED_O),
            ("IPv6", v6, "forwarding_off"),
        ],
    );
    bench.check(
        PortPlan::default(),
        vec![("no role", v4.clone(), "port_off")],
    );
    bench.check_plan(&Plan::default(), vec![("no plan", v4, "port_off")]);
}

#[test]
#[rustfmt::skip]
fn wildcard_tunnels() {
    let far = Ipv4Addr::new(198, 51, 100, 1);
    let other = Ipv4Addr::new(192, 0, 2, 9);
    let mut plan = Plan {
        ports: [(LO, UNDERLAY)].into(),
        tunnels: [tunnel(LOCAL, ANY, Some(1)), tunnel(ANY, REMOTE, Some(2))].into(),
        addresses: [LOCAL.into(), other.into()].into(),
        ..Plan::default()
    };
    let keyed = |src, dst, key| gre(src, dst, 0x2000, key);
    let mut bench = Bench::new();
    bench.check_plan(
        &plan,
        vec![
            ("any remote", keyed(far, LOCAL, 1), REDIRECTED_U),
            ("any remote, other local", keyed(far, other, 1), "unknown_tunnel"),
            ("any remote, no key", gre(far, LOCAL, 0, 0), "unknown_tunnel"),
            ("any remote, not from a martian", keyed(Ipv4Addr::LOCALHOST, LOCAL, 1), "unknown_tunnel"),
            ("any remote, not from 0.0.0.0", keyed(ANY, LOCAL, 1), "unknown_tunnel"),
            ("any local", keyed(REMOTE, LOCAL, 2), REDIRECTED_U),
            ("any local, second address", keyed(REMOTE, other, 2), REDIRECTED_U),
            ("any local is not anybody's", keyed(REMOTE, far, 2), "unknown_tunnel"),
            ("any local, other remote", keyed(far, LOCAL, 2), "unknown_tunnel"),
        ],
    );
    plan.tunnels = [tunnel(ANY, ANY, None)].into();
    bench.check_plan(
        &plan,
        vec![
            ("any at all", gre(far, other, 0, 0), REDIRECTED_U),
            ("any at all, keyed", keyed(far, other, 1), "unknown_tunnel"),
            ("any at all, passing by", gre(far, REMOTE, 0, 0), "unknown_tunnel"),
        ],
    );
    plan.tunnels = [tunnel(LOCAL, REMOTE, None)].into();
    bench.check_plan(
        &plan,
        vec![("no more", gre(far, LOCAL, 0, 0), "unknown_tunnel")],
    );
}
