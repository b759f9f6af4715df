//! Tunnels of every class over both families' underlay.

use std::net::{Ipv4Addr, Ipv6Addr};

use greyhound::xdp::{Plan, PortPlan, TunnelClass, TunnelClass::*, TunnelMatch};

use crate::{bench::*, frames::*};

/// On top of the shared plan: 4 and 41 between the same addresses, and over IPv6 all classes, GRE with and without key.
pub fn family(port: PortPlan) -> Plan {
    let mut plan = plan(port);
    plan.tunnels.extend([
        bare(Ipv4, LOCAL, REMOTE),
        bare(Ipv6, LOCAL, REMOTE),
        bare(Ipv4, ip6(LOCAL6), ip6(REMOTE6)),
        bare(Ipv6, ip6(LOCAL6), ip6(REMOTE6)),
        tunnel(ip6(LOCAL6), ip6(REMOTE6), None),
        tunnel(ip6(LOCAL6), ip6(REMOTE6), Some(42)),
        tunnel(ip6(LOCAL6), ip6("2001:db8:ffff::3"), Some(0)),
    ]);
    plan
}

pub fn ip6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

#[test]
#[rustfmt::skip]
fn bare_packets_over_ipv4() {
    let far = Ipv4Addr::new(198, 51, 100, 1);
    let mut bench = Bench::new();
    for (protocol, wrong_version, cut) in [(4, 0x65, 39), (41, 0x45, 59)] {
        let good = || ipv4(REMOTE, LOCAL, protocol, &inner(protocol));
        let ends = |src, dst| ipv4(src, dst, protocol, &inner(protocol));
        let tagged = |tpid: u16| ether(MAC, tpid, &[&[0, 42, 8, 0], &good()[14..]].concat());
        let options = edit(ipv4(REMOTE, LOCAL, protocol, &[&[1; 4][..], &inner(protocol)].concat()), |ip| ip[0] = 0x46);
        bench.check_plan(&family(UNDERLAY), vec![
            ("ours", good(), REDIRECTED_U),
            ("padded frame", [good(), vec![0xff; 12]].concat(), REDIRECTED_U),
            ("outer TTL 1", edit(good(), |ip| ip[8] = 1), REDIRECTED_U),
            ("DF", edit(good(), |ip| ip[6] = 0x40), REDIRECTED_U),
            ("inner header alone", edit(good(), |ip| ip[3] = cut + 1), REDIRECTED_U),
            ("inner header cut", edit(good(), |ip| ip[3] = cut), "bad_header"),
            ("first inner byte alone", edit(good(), |ip| ip[3] = 21), "bad_header"),
            ("no inner packet", edit(good(), |ip| ip[3] = 20), "bad_header"),
            ("other version inside", spoil(good(), |ip| ip[20] = wrong_version), "bad_header"),
            ("version 0 inside", spoil(good(), |ip| ip[20] = 0x05), "bad_header"),
            ("not our address", ends(REMOTE, far), "unknown_tunnel"),
            ("not our peer", ends(far, LOCAL), "unknown_tunnel"),
            ("another tunnel's peer", ends(Ipv4Addr::new(192, 0, 2, 3), LOCAL), "unknown_tunnel"),
            ("ends swapped", ends(LOCAL, REMOTE), "unknown_tunnel"),
            ("from 0.0.0.0", ends(ANY, LOCAL), "unknown_tunnel"),
            ("first fragment", edit(good(), |ip| ip[6] = 0x20), "fragment"),
            ("last fragment", edit(good(), |ip| ip[7] = 1), "fragment"),
            ("options", options, "ip_options"),
            ("bad checksum", spoil(good(), |ip| ip[10] ^= 1), "bad_checksum"),
            ("length beyond frame", edit(good(), |ip| ip[3] += 1), "bad_header"),
            ("other MAC", ether(OTHER_MAC, 0x0800, &good()[14..]), "other_mac"),
            ("802.1Q", tagged(0x8100), "vlan_tag"),
            ("802.1ad", tagged(0x88a8), "vlan_tag"),
        ]);
        let only_gre = plan(UNDERLAY);
        bench.check_plan(&only_gre, vec![("only GRE is ours", good(), "unknown_tunnel")]);
    }
    let four = |byte| spoil(ipv4(REMOTE, LOCAL, 4, &inner(4)), |ip| ip[20] = byte);
    bench.check_plan(&family(UNDERLAY), vec![
        ("inner IHL 4", four(0x44), "bad_header"),
        ("inner IHL 0", four(0x40), "bad_header"),
        ("inner options within", four(0x47), REDIRECTED_U),
        ("inner options beyond", four(0x48), "bad_header"),
        ("GRE still", ours(0x2000, 42), REDIRECTED_U),
        ("UDP", ipv4(REMOTE, LOCAL, 17, &inner(4)), "not_tunnel"),
        ("SCTP", ipv4(REMOTE, LOCAL, 132, &inner(4)), "not_tunnel"),
        ("MPLS in IP", ipv4(REMOTE, LOCAL, 137, &inner(4)), "not_tunnel"),
        ("EtherIP", ipv4(REMOTE, LOCAL, 97, &inner(4)), "not_tunnel"),
    ]);
}

#[test]
#[rustfmt::skip]
fn bare_packets_over_ipv6() {
    let mut bench = Bench::new();
    for (protocol, wrong_version, header) in [(4u8, 0x65, 20u8), (41, 0x45, 40)] {
        let good = || outer6(protocol, &inner(protocol));
        let ends = |src, dst| ipv6(src, dst, protocol, &inner(protocol));
        let limited = || outer6(60, &[&limit(protocol), &inner(protocol)[..]].concat());
        let tagged = |tpid: u16| ether(MAC, tpid, &[&[0, 42, 0x86, 0xdd], &good()[14..]].concat());
        bench.check_plan(&family(UNDERLAY), vec![
            ("ours", good(), REDIRECTED_U),
            ("behind a limit", limited(), REDIRECTED_U),
            ("limit 0", spoil(limited(), |ip| ip[44] = 0), REDIRECTED_U),
            ("padded frame", [good(), vec![0xff; 12]].concat(), REDIRECTED_U),
            ("traffic class and flow label", spoil(good(), |ip| ip[..4].copy_from_slice(&[0x6f, 0xff, 1, 2])), REDIRECTED_U),
            ("hop limit 1", spoil(good(), |ip| ip[7] = 1), REDIRECTED_U),
            ("hop limit 0", spoil(good(), |ip| ip[7] = 0), REDIRECTED_U),
            ("inner header alone", spoil(good(), |ip| ip[5] = header), REDIRECTED_U),
            ("inner header cut", spoil(good(), |ip| ip[5] = header - 1), "bad_header"),
            ("no inner packet", spoil(good(), |ip| ip[5] = 0), "bad_header"),
            ("inner header alone behind a limit", spoil(limited(), |ip| ip[5] = header + 8), REDIRECTED_U),
            ("inner header cut behind a limit", spoil(limited(), |ip| ip[5] = header + 7), "bad_header"),
            ("nothing behind the limit", spoil(limited(), |ip| ip[5] = 8), "bad_header"),
            ("limit cut", spoil(limited(), |ip| ip[5] = 7), "bad_header"),
            ("other version inside", spoil(good(), |ip| ip[40] = wrong_version), "bad_header"),
            ("other version behind a limit", spoil(limited(), |ip| ip[48] = wrong_version), "bad_header"),
            ("not our address", ends(REMOTE6, "2001:db8:ffff::9"), "unknown_tunnel"),
            ("not our peer", ends("2001:db8:ffff::9", LOCAL6), "unknown_tunnel"),
            ("another tunnel's peer", ends("2001:db8:ffff::3", LOCAL6), "unknown_tunnel"),
            ("ends swapped", ends(LOCAL6, REMOTE6), "unknown_tunnel"),
            ("from ::", ends("::", LOCAL6), "unknown_tunnel"),
            ("last word of the address", spoil(good(), |ip| ip[39] ^= 0x80), "unknown_tunnel"),
            ("first word of the address", spoil(good(), |ip| ip[8] ^= 0x80), "unknown_tunnel"),
            ("length beyond frame", spoil(good(), |ip| ip[5] += 1), "bad_header"),
            ("length far beyond", spoil(good(), |ip| ip[4] = 0xff), "bad_header"),
            ("outer version 4", spoil(good(), |ip| ip[0] = 0x45), "bad_header"),
            ("other MAC", ether(OTHER_MAC, 0x86dd, &good()[14..]), "other_mac"),
            ("802.1Q", tagged(0x8100), "vlan_tag"),
            ("802.1ad", tagged(0x88a8), "vlan_tag"),
        ]);
        bench.check_plan(&plan(UNDERLAY), vec![("only IPv4 is ours", good(), "unknown_tunnel")]);
    }
}

#[test]
#[rustfmt::skip]
fn gre_over_ipv6() {
    let far = "2001:db8:ffff::9";
    let third = "2001:db8:ffff::3";
    let mut bench = Bench::new();
    bench.check_plan(&family(UNDERLAY), vec![
        ("no key", ours6(0, 0), REDIRECTED_U),
        ("key", ours6(0x2000, 42), REDIRECTED_U),
        ("key 0", gre6(third, LOCAL6, 0x2000, 0), REDIRECTED_U),
        ("checksum", ours6(0x8000, 0), REDIRECTED_U),
        ("sequence", ours6(0x1000, 0), REDIRECTED_U),
        ("key, checksum, sequence", ours6(0xb000, 42), REDIRECTED_U),
        ("reserved bits 6 to 12", ours6(0x03f8, 0), REDIRECTED_U),
        ("GRE header alone", spoil(ours6(0, 0), |ip| ip[5] = 4), REDIRECTED_U),
        ("behind a limit", outer6(60, &[&limit(47), &gre_payload(0xa000, 42)[..]].concat()), REDIRECTED_U),
        ("wrong key behind a limit", outer6(60, &[&limit(47), &gre_payload(0xa000, 43)[..]].concat()), "unknown_tunnel"),
        ("wrong key", ours6(0x2000, 43), "unknown_tunnel"),
        ("key 0 is not no key", ours6(0x2000, 0), "unknown_tunnel"),
        ("no key is not key 0", gre6(third, LOCAL6, 0, 0), "unknown_tunnel"),
        ("wrong key behind a checksum", ours6(0xa000, 43), "unknown_tunnel"),
        ("not our address", gre6(REMOTE6, far, 0, 0), "unknown_tunnel"),
        ("not our peer", gre6(far, LOCAL6, 0, 0), "unknown_tunnel"),
        ("PPTP", ours6(0x2001, 42), "gre_version"),
        ("version 7", ours6(0x0007, 0), "gre_version"),
        ("routing", ours6(0x4000, 0), "gre_flags"),
        ("bit 4", ours6(0x0800, 0), "gre_flags"),
        ("bit 5", ours6(0x0400, 0), "gre_flags"),
        ("GRE header cut", spoil(ours6(0, 0), |ip| ip[5] = 3), "bad_header"),
        ("key outside the packet", spoil(ours6(0x2000, 42), |ip| ip[5] = 7), "bad_header"),
        ("sequence outside", spoil(ours6(0xb000, 42), |ip| ip[5] = 15), "bad_header"),
    ]);
}

#[test]
#[rustfmt::skip]
fn extension_headers_over_ipv6() {
    let behind = |kind: u8, header: &[u8]| outer6(kind, &[header, &inner(4)[..]].concat());
    let options = |bytes: [u8; 8]| behind(60, &bytes);
    let twice = [limit(60), limit(4)].concat();
    Bench::new().check_plan(&family(UNDERLAY), vec![
        ("hop-by-hop", behind(0, &limit(4)), "ip_options"),
        ("hop-by-hop, router alert", behind(0, &[4, 0, 5, 2, 0, 0, 1, 0]), "ip_options"),
        ("routing header", behind(43, &[4, 0, 4, 0, 0, 0, 0, 0]), "ip_options"),
        ("fragment header", behind(44, &[4, 0, 0, 0, 0, 0, 0, 1]), "fragment"),
        ("authentication header", behind(51, &[4, 1, 0, 0, 0, 0, 0, 1]), "not_tunnel"),
        ("ESP", behind(50, &[0; 8]), "not_tunnel"),
        ("no next header", behind(59, &[]), "not_tunnel"),
        ("mobility", behind(135, &[4, 0, 0, 0, 0, 0, 0, 0]), "not_tunnel"),
        ("UDP", behind(17, &[0; 8]), "not_tunnel"),
        ("ICMPv6", behind(58, &[0; 8]), "not_tunnel"),
        ("a limit", options(limit(4)), REDIRECTED_U),
        ("two of them", behind(60, &twice), "ip_options"),
        ("limit, then hop-by-hop", options(limit(0)), "ip_options"),
        ("limit, then fragment", options(limit(44)), "ip_options"),
        ("limit, then UDP to another port", options(limit(17)), "not_tunnel"),
        ("limit, then nothing", options(limit(59)), "ip_options"),
        ("padding without a limit", options([4, 0, 1, 4, 0, 0, 0, 0]), "ip_options"),
        ("Pad1 only", options([4, 0, 0, 0, 0, 0, 0, 0]), "ip_options"),
        ("limit behind padding", options([4, 0, 1, 1, 0, 4, 1, 4]), "ip_options"),
        ("limit and Pad1", options([4, 0, 4, 1, 4, 0, 0, 0]), "ip_options"),
        ("limit of two bytes", options([4, 0, 4, 2, 4, 4, 1, 0]), "ip_options"),
        ("padding that is not zero", options([4, 0, 4, 1, 4, 1, 1, 7]), "ip_options"),
        ("padding too long", options([4, 0, 4, 1, 4, 1, 2, 0]), "ip_options"),
        ("another option", options([4, 0, 0xc9, 1, 4, 1, 1, 0]), "ip_options"),
        ("options of 16 bytes", behind(60, &[4, 1, 4, 1, 4, 1, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "ip_options"),
    ]);
}

#[test]
#[rustfmt::skip]
fn tunnels_on_a_device_that_is_also_overlay() {
    let between = |protocol: u8| ipv4(INNER_A, INNER_B, protocol, &inner(protocol));
    let between6 = |protocol: u8| ipv6("2001:db8:1::5", "2001:db8:2::5", protocol, &inner(protocol));
    let mut bench = Bench::new();
    bench.check_plan(&family(BOTH), vec![
        ("ours", ipv4(REMOTE, LOCAL, 4, &inner(4)), REDIRECTED_U),
        ("ours over IPv6", outer6(41, &inner(41)), REDIRECTED_U),
        ("IPIP between inner hosts", between(4), REDIRECTED_O),
        ("IPv6 in IPv4 between inner hosts", between(41), REDIRECTED_O),
        ("IPv4 in IPv6 between inner hosts", between6(4), REDIRECTED_O),
        ("malformed between inner hosts", ipv6("2001:db8:1::5", "2001:db8:2::5", 41, &[0; 8]), REDIRECTED_O),
        ("options between inner hosts", ipv6("2001:db8:1::5", "2001:db8:2::5", 60, &limit(4)), "ip_options"),
        ("unknown, to nowhere", ipv6("2001:db8:ffff::9", LOCAL6, 4, &inner(4)), "unknown_tunnel"),
        ("UDP to nowhere", ipv6(REMOTE6, LOCAL6, 17, &[0; 16]), "no_route"),
    ]);
    let veth = PortPlan { partial_checksums: true, ..BOTH };
    bench.check_plan(&family(veth), vec![
        ("ours", ipv4(REMOTE, LOCAL, 41, &inner(41)), REDIRECTED_U),
        ("ours over IPv6", outer6(4, &inner(4)), REDIRECTED_U),
        ("IPIP between inner hosts", between(4), "partial_checksum"),
        ("IPv6 in IPv4 between inner hosts", between(41), "partial_checksum"),
        ("IPv4 in IPv6 between inner hosts", between6(4), "partial_checksum"),
        ("IPv6 in IPv6 between inner hosts", between6(41), "partial_checksum"),
        ("GRE in IPv6 between inner hosts", gre6("2001:db8:1::5", "2001:db8:2::5", 0, 0), "partial_checksum"),
    ]);
    bench.check_plan(&family(OVERLAY), vec![
        ("not an underlay", ipv4(REMOTE, LOCAL, 4, &inner(4)), "kernel_route"),
        ("not an underlay, IPv6", outer6(41, &inner(41)), "no_route"),
    ]);
    let no_forwarding = PortPlan { forward4: false, forward6: false, ..BOTH };
    bench.check_plan(&family(no_forwarding), vec![
        ("ours without forwarding", outer6(4, &inner(4)), REDIRECTED_U),
        ("others without forwarding", between6(4), "forwarding_off"),
    ]);
}

#[test]
fn whatever_is_cut_off_a_tunnels_packet_goes_to_the_kernel() {
    let mut bench = Bench::new();
    for port in [UNDERLAY, BOTH] {
        bench.steer.apply(&family(port)).unwrap();
        for frame in [
            ipv4(REMOTE, LOCAL, 4, &inner(4)),
            ipv4(REMOTE, LOCAL, 41, &inner(41)),
            ours6(0xb000, 42),
            outer6(4, &inner(4)),
            outer6(60, &[&limit(41), &inner(41)[..]].concat()),
        ] {
            for length in 14..frame.len() {
                assert_eq!(bench.reason(&frame[..length]), "bad_header", "{length}");
            }
            assert_eq!(bench.reason(&frame), REDIRECTED_U);
        }
    }
}

#[test]
fn a_class_is_not_another_one() {
    let mut bench = Bench::new();
    let classes = [(Gre, 47), (Ipv4, 4), (Ipv6, 41)];
    for (configured, own) in classes {
        for v6 in [false, true] {
            let tunnel = match v6 {
                false => bare(configured, LOCAL, REMOTE),
                true => bare(configured, ip6(LOCAL6), ip6(REMOTE6)),
            };
            bench.steer.apply(&only(&[tunnel])).unwrap();
            for (_, protocol) in classes {
                let expected = |there: bool| match there && protocol == own {
                    true => REDIRECTED_U,
                    false => "unknown_tunnel",
                };
                let over4 = ipv4(REMOTE, LOCAL, protocol, &inner(protocol));
                assert_eq!(bench.reason(&over4), expected(!v6), "{protocol}");
                let over6 = outer6(protocol, &inner(protocol));
                assert_eq!(bench.reason(&over6), expected(v6), "{protocol}");
            }
        }
    }
}

fn only(tunnels: &[TunnelMatch]) -> Plan {
    Plan {
        ports: [(LO, UNDERLAY)].into(),
        tunnels: tunnels.iter().copied().collect(),
        addresses: [
            LOCAL.into(),
            ip6(LOCAL6).into(),
            ip6("2001:db8:ffff::8").into(),
        ]
        .into(),
        ..Plan::default()
    }
}

#[test]
#[rustfmt::skip]
fn wildcards_of_every_class() {
    let (far, far4) = ("2001:db8:ffff::9", Ipv4Addr::new(198, 51, 100, 1));
    let any = Ipv6Addr::UNSPECIFIED;
    let mut bench = Bench::new();
    for (class, protocol) in [(TunnelClass::Gre, 47), (Ipv4, 4), (Ipv6, 41)] {
        let six = |src, dst| ipv6(src, dst, protocol, &inner(protocol));
        let four = |src| ipv4(src, LOCAL, protocol, &inner(protocol));
        bench.check_plan(&only(&[bare(class, ip6(LOCAL6), any)]), vec![
            ("any remote", six(far, LOCAL6), REDIRECTED_U),
            ("any remote, other local", six(far, "2001:db8:ffff::8"), "unknown_tunnel"),
            ("not from ::", six("::", LOCAL6), "unknown_tunnel"),
            ("not from loopback", six("::1", LOCAL6), "unknown_tunnel"),
            ("not from multicast", six("ff02::1", LOCAL6), "unknown_tunnel"),
            ("not from link-local", six("fe80::1", LOCAL6), "unknown_tunnel"),
            ("not over IPv4", four(far4), "unknown_tunnel"),
        ]);
        bench.check_plan(&only(&[bare(class, any, ip6(REMOTE6))]), vec![
            ("any local", six(REMOTE6, LOCAL6), REDIRECTED_U),
            ("any local, second address", six(REMOTE6, "2001:db8:ffff::8"), REDIRECTED_U),
            ("any local is not anybody's", six(REMOTE6, far), "unknown_tunnel"),
            ("any local, other remote", six(far, LOCAL6), "unknown_tunnel"),
        ]);
        bench.check_plan(&only(&[bare(class, LOCAL, ANY)]), vec![
            ("any remote over IPv4", four(far4), REDIRECTED_U),
            ("not from a martian", four(Ipv4Addr::LOCALHOST), "unknown_tunnel"),
            ("not over IPv6", six(far, LOCAL6), "unknown_tunnel"),
        ]);
    }
}
