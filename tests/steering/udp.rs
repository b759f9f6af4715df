//! GRE in UDP: what is a tunnel's, and every other UDP packet, which is the kernel's.

use greyhound::xdp::{Plan, PortPlan, TunnelClass, TunnelMatch};

use crate::{
    bench::*,
    family::{family, ip6},
    frames::*,
};

/// On top of the family's plan: GRE in UDP between the same addresses, without a key and with key 7, over both families.
fn plan_in_udp(port: PortPlan) -> Plan {
    let class = |zero_checksum| TunnelClass::GreInUdp { zero_checksum };
    let keyed = |tunnel: TunnelMatch| TunnelMatch {
        key: Some(7),
        ..tunnel
    };
    let mut plan = family(port);
    plan.tunnels.extend([
        bare(class(false), LOCAL, REMOTE),
        keyed(bare(class(false), LOCAL, REMOTE)),
        bare(class(false), ip6(LOCAL6), ip6(REMOTE6)),
        keyed(bare(class(true), ip6(LOCAL6), ip6(REMOTE6))),
    ]);
    plan
}

fn ours4(flags: u16, key: u32) -> Vec<u8> {
    ipv4(REMOTE, LOCAL, 17, &in_udp(&gre_payload(flags, key)))
}

fn in_udp6(flags: u16, key: u32) -> Vec<u8> {
    outer6(17, &in_udp(&gre_payload(flags, key)))
}

fn limited(payload: &[u8]) -> Vec<u8> {
    outer6(60, &[&limit(17)[..], payload].concat())
}

#[test]
#[rustfmt::skip]
fn over_ipv4() {
    let far = std::net::Ipv4Addr::new(198, 51, 100, 1);
    let to = |port| ipv4(REMOTE, LOCAL, 17, &udp_packet(port, &gre_payload(0, 0)));
    let of = |src, dst| ipv4(src, dst, 17, &in_udp(&gre_payload(0, 0)));
    let options = edit(ipv4(REMOTE, LOCAL, 17, &[&[1; 4][..], &in_udp(&gre_payload(0, 0))].concat()), |ip| ip[0] = 0x46);
    // From the IP header on: UDP's length at 24, its checksum at 26, GRE at 28.
    Bench::new().check_plan(&plan_in_udp(UNDERLAY), vec![
        ("no key", ours4(0, 0), REDIRECTED_U),
        ("key", ours4(0x2000, 7), REDIRECTED_U),
        ("key, checksum, sequence", ours4(0xb000, 7), REDIRECTED_U),
        ("reserved bits 6 to 12", ours4(0x03f8, 0), REDIRECTED_U),
        ("with a UDP checksum", spoil(ours4(0, 0), |ip| ip[26] = 1), REDIRECTED_U),
        ("any source port", spoil(ours4(0, 0), |ip| ip[20..22].fill(0)), REDIRECTED_U),
        ("GRE by itself still", ours(0x2000, 42), REDIRECTED_U),
        ("padded frame", [ours4(0, 0), vec![0xff; 9]].concat(), REDIRECTED_U),
        ("outer TTL 1", edit(ours4(0, 0), |ip| ip[8] = 1), REDIRECTED_U),
        ("wrong key", ours4(0x2000, 8), "unknown_tunnel"),
        ("the key of plain GRE", ours4(0x2000, 42), "unknown_tunnel"),
        ("key 0 is not no key", ours4(0x2000, 0), "unknown_tunnel"),
        ("plain GRE with the key of this", ours(0x2000, 7), "unknown_tunnel"),
        ("not our address", of(REMOTE, far), "unknown_tunnel"),
        ("not our peer", of(far, LOCAL), "unknown_tunnel"),
        ("peer of plain GRE", of(std::net::Ipv4Addr::new(192, 0, 2, 3), LOCAL), "unknown_tunnel"),
        ("ends swapped", of(LOCAL, REMOTE), "unknown_tunnel"),
        ("from 0.0.0.0", of(ANY, LOCAL), "unknown_tunnel"),
        ("version 1", ours4(0x2001, 7), "gre_version"),
        ("routing", ours4(0x4000, 0), "gre_flags"),
        ("bit 4", ours4(0x0800, 0), "gre_flags"),
        ("bit 5", ours4(0x0400, 0), "gre_flags"),
        ("port 4753", to(4753), "not_tunnel"),
        ("port 4755, DTLS", to(4755), "not_tunnel"),
        ("port 4754 the other way round", to(0x9212), "not_tunnel"),
        ("VXLAN", to(4789), "not_tunnel"),
        ("from port 4754", spoil(to(53), |ip| ip[20..22].copy_from_slice(&4754u16.to_be_bytes())), "not_tunnel"),
        ("UDP header cut", edit(ours4(0, 0), |ip| ip[3] = 27), "not_tunnel"),
        ("ports alone", edit(ours4(0, 0), |ip| ip[3] = 24), "not_tunnel"),
        ("no GRE", ipv4(REMOTE, LOCAL, 17, &in_udp(&[])), "bad_header"),
        ("GRE header cut", ipv4(REMOTE, LOCAL, 17, &in_udp(&[0, 0, 8])), "bad_header"),
        ("GRE header alone", ipv4(REMOTE, LOCAL, 17, &in_udp(&[0, 0, 8, 0])), REDIRECTED_U),
        ("key outside the datagram", ipv4(REMOTE, LOCAL, 17, &in_udp(&[0x20, 0, 8, 0, 0, 0, 0])), "bad_header"),
        ("UDP length one less", spoil(ours4(0, 0), |ip| ip[25] -= 1), "bad_header"),
        ("UDP length one more", spoil(ours4(0, 0), |ip| ip[25] += 1), "bad_header"),
        ("UDP length 0", spoil(ours4(0, 0), |ip| ip[25] = 0), "bad_header"),
        ("UDP length 7", spoil(ours4(0, 0), |ip| ip[25] = 7), "bad_header"),
        ("UDP length beyond the frame", spoil(ours4(0, 0), |ip| ip[24] = 0xff), "bad_header"),
        ("length beyond frame", edit(ours4(0, 0), |ip| ip[3] += 1), "bad_header"),
        ("bad checksum", spoil(ours4(0, 0), |ip| ip[10] ^= 1), "bad_checksum"),
        ("first fragment", edit(ours4(0, 0), |ip| ip[6] = 0x20), "fragment"),
        ("last fragment", edit(ours4(0, 0), |ip| ip[7] = 1), "fragment"),
        ("options", options, "ip_options"),
        ("other MAC", ether(OTHER_MAC, 0x0800, &ours4(0, 0)[14..]), "other_mac"),
        ("802.1Q", ether(MAC, 0x8100, &[&[0, 42, 8, 0], &ours4(0, 0)[14..]].concat()), "vlan_tag"),
    ]);
    Bench::new().check_plan(&family(UNDERLAY), vec![("no tunnel in UDP", ours4(0, 0), "unknown_tunnel")]);
}

#[test]
#[rustfmt::skip]
fn over_ipv6() {
    let far = "2001:db8:ffff::9";
    let to = |port| outer6(17, &udp_packet(port, &gre_payload(0, 0)));
    let of = |src, dst| ipv6(src, dst, 17, &in_udp(&gre_payload(0, 0)));
    let plain = || in_udp(&gre_payload(0, 0));
    let behind = |kind: u8, header: &[u8]| outer6(kind, &[header, &plain()[..]].concat());
    // From the IP header on: UDP's length at 44, GRE at 48; behind a limit eight later.
    Bench::new().check_plan(&plan_in_udp(UNDERLAY), vec![
        ("no key", in_udp6(0, 0), REDIRECTED_U),
        ("key", in_udp6(0x2000, 7), REDIRECTED_U),
        ("key, checksum, sequence", in_udp6(0xb000, 7), REDIRECTED_U),
        ("behind a limit", limited(&plain()), REDIRECTED_U),
        ("keyed behind a limit", limited(&in_udp(&gre_payload(0xa000, 7))), REDIRECTED_U),
        ("limit 0", spoil(limited(&plain()), |ip| ip[44] = 0), REDIRECTED_U),
        ("with a UDP checksum", spoil(in_udp6(0, 0), |ip| ip[46] = 1), REDIRECTED_U),
        ("GRE by itself still", ours6(0, 0), REDIRECTED_U),
        ("padded frame", [in_udp6(0, 0), vec![0xff; 9]].concat(), REDIRECTED_U),
        ("hop limit 1", spoil(in_udp6(0, 0), |ip| ip[7] = 1), REDIRECTED_U),
        ("traffic class and flow label", spoil(in_udp6(0, 0), |ip| ip[..4].copy_from_slice(&[0x6f, 0xff, 1, 2])), REDIRECTED_U),
        ("wrong key", in_udp6(0x2000, 8), "unknown_tunnel"),
        ("the key of plain GRE", in_udp6(0x2000, 42), "unknown_tunnel"),
        ("wrong key behind a limit", limited(&in_udp(&gre_payload(0x2000, 8))), "unknown_tunnel"),
        ("plain GRE with the key of this", ours6(0x2000, 7), "unknown_tunnel"),
        ("not our address", of(REMOTE6, far), "unknown_tunnel"),
        ("not our peer", of(far, LOCAL6), "unknown_tunnel"),
        ("from ::", of("::", LOCAL6), "unknown_tunnel"),
        ("version 1", in_udp6(0x2001, 7), "gre_version"),
        ("routing", in_udp6(0x4000, 0), "gre_flags"),
        ("port 4755", to(4755), "not_tunnel"),
        ("port 53", to(53), "not_tunnel"),
        ("port 4755 behind a limit", limited(&udp_packet(4755, &gre_payload(0, 0))), "not_tunnel"),
        ("UDP header cut", spoil(in_udp6(0, 0), |ip| ip[5] = 7), "not_tunnel"),
        ("UDP header cut behind a limit", spoil(limited(&plain()), |ip| ip[5] = 15), "not_tunnel"),
        ("no GRE", outer6(17, &in_udp(&[])), "bad_header"),
        ("GRE header cut", outer6(17, &in_udp(&[0, 0, 8])), "bad_header"),
        ("key outside the datagram", outer6(17, &in_udp(&[0x20, 0, 8, 0, 0, 0, 0])), "bad_header"),
        ("UDP length one less", spoil(in_udp6(0, 0), |ip| ip[45] -= 1), "bad_header"),
        ("UDP length one more", spoil(in_udp6(0, 0), |ip| ip[45] += 1), "bad_header"),
        ("UDP length 0, a jumbogram's", spoil(in_udp6(0, 0), |ip| ip[45] = 0), "bad_header"),
        ("UDP length one less behind a limit", spoil(limited(&plain()), |ip| ip[53] -= 1), "bad_header"),
        ("hop-by-hop", behind(0, &limit(17)), "ip_options"),
        ("routing header", behind(43, &[17, 0, 4, 0, 0, 0, 0, 0]), "ip_options"),
        ("fragment header", behind(44, &[17, 0, 0, 0, 0, 0, 0, 1]), "fragment"),
        ("limit of two bytes", behind(60, &[17, 0, 4, 2, 4, 4, 1, 0]), "ip_options"),
        ("other MAC", ether(OTHER_MAC, 0x86dd, &in_udp6(0, 0)[14..]), "other_mac"),
        ("802.1Q", ether(MAC, 0x8100, &[&[0, 42, 0x86, 0xdd], &in_udp6(0, 0)[14..]].concat()), "vlan_tag"),
    ]);
    Bench::new().check_plan(&family(UNDERLAY), vec![("no tunnel in UDP", in_udp6(0, 0), "unknown_tunnel")]);
}

#[test]
#[rustfmt::skip]
fn a_tunnel_without_remote() {
    let class = TunnelClass::GreInUdp { zero_checksum: false };
    let mut plan = family(UNDERLAY);
    plan.tunnels.extend([bare(class, LOCAL, ANY), bare(class, ip6(LOCAL6), std::net::Ipv6Addr::UNSPECIFIED)]);
    let far = std::net::Ipv4Addr::new(198, 51, 100, 1);
    let plain = in_udp(&gre_payload(0, 0));
    Bench::new().check_plan(&plan, vec![
        ("from anyone", ipv4(far, LOCAL, 17, &plain), REDIRECTED_U),
        ("from anyone, IPv6", ipv6("2001:db8:ffff::9", LOCAL6, 17, &plain), REDIRECTED_U),
        ("not plain GRE", gre(far, LOCAL, 0, 0), "unknown_tunnel"),
        ("not from a martian", ipv4(std::net::Ipv4Addr::LOCALHOST, LOCAL, 17, &plain), "unknown_tunnel"),
        ("not from link-local", ipv6("fe80::9", LOCAL6, 17, &plain), "unknown_tunnel"),
        ("no key", ipv4(far, LOCAL, 17, &in_udp(&gre_payload(0x2000, 0))), "unknown_tunnel"),
    ]);
}

#[test]
#[rustfmt::skip]
fn on_a_device_that_is_also_overlay() {
    let plain = in_udp(&gre_payload(0, 0));
    let veth = PortPlan { partial_checksums: true, ..BOTH };
    for port in [BOTH, veth] {
        Bench::new().check_plan(&plan_in_udp(port), vec![
            ("ours", ours4(0, 0), REDIRECTED_U),
            ("ours over IPv6", in_udp6(0, 0), REDIRECTED_U),
            ("between inner hosts", ipv4(INNER_A, INNER_B, 17, &plain), REDIRECTED_O),
            ("between inner hosts, IPv6", ipv6("2001:db8:1::5", "2001:db8:2::5", 17, &plain), REDIRECTED_O),
            ("malformed between inner hosts", ipv4(INNER_A, INNER_B, 17, &in_udp(&[0x40])), REDIRECTED_O),
            ("other UDP into a tunnel", udp(INNER_B), REDIRECTED_O),
            ("wrong key for us", ours4(0x2000, 8), "kernel_route"),
            ("other UDP for us", ipv4(REMOTE, LOCAL, 17, &udp_packet(53, &[])), "kernel_route"),
        ]);
    }
    Bench::new().check_plan(&plan_in_udp(OVERLAY), vec![
        ("not an underlay", ours4(0, 0), "kernel_route"),
        ("not an underlay, IPv6", in_udp6(0, 0), "no_route"),
    ]);
}

#[test]
fn whatever_is_cut_off_goes_to_the_kernel() {
    let mut bench = Bench::new();
    for port in [UNDERLAY, BOTH] {
        bench.steer.apply(&plan_in_udp(port)).unwrap();
        for frame in [
            ours4(0xb000, 7),
            in_udp6(0xb000, 7),
            limited(&in_udp(&gre_payload(0x2000, 7))),
        ] {
            for length in 14..frame.len() {
                assert_eq!(bench.reason(&frame[..length]), "bad_header", "{length}");
            }
            assert_eq!(bench.reason(&frame), REDIRECTED_U);
        }
    }
}
