//! The steering program against a table of frames, its maps against the plan, and VLAN tags against real devices.
//!
//! Needs root. Every test makes its own network namespace and enters it with its own thread only.

// Entering a namespace, packet sockets and small BPF programs made by hand are system calls without a safe wrapper.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use greyhound::xdp::{
    Attached, Limits, Plan, PortPlan, PrefixAction, Steer, SteerError, TagsInFrame, TunnelMatch,
};
use socket2::{Domain, Socket, Type};

#[path = "steering/host.rs"]
mod host;
use host::{Namespace, ip, no_op_xdp, packet_socket, push_tag_on_egress};

const LO: u32 = 1;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const INNER_A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);
const INNER_B: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);

fn v6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

fn ether(dst: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &OTHER_MAC, &ethertype.to_be_bytes(), payload].concat()
}

/// An IPv4 frame with this protocol and payload, TTL 64.
fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(OTHER_MAC, MAC).ipv4(src.octets(), dst.octets(), 64);
    let mut frame = Vec::new();
    builder.write(&mut frame, protocol.into(), payload).unwrap();
    frame
}

fn ipv6(src: &str, dst: &str, next_header: u8, payload: &[u8]) -> Vec<u8> {
    const NO_NEXT_HEADER: u8 = 59;
    let builder = PacketBuilder::ethernet2(OTHER_MAC, MAC).ipv6(v6(src), v6(dst), 64);
    let mut frame = Vec::new();
    // The builder refuses extension headers that it has not built itself.
    builder
        .write(&mut frame, NO_NEXT_HEADER.into(), payload)
        .unwrap();
    spoil(frame, |ip| ip[6] = next_header)
}

/// The frame with its IPv4 header changed and the header checksum made right again.
fn edit(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut frame[14..]);
    frame[24..26].fill(0);
    let words = frame[14..34].chunks_exact(2);
    let sum: u32 = words.map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The frame with its bytes behind the Ethernet header changed, and nothing made right.
fn spoil(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut frame[14..]);
    frame
}

/// A GRE packet: flags, then checksum, key and sequence number as the flags say, then a little IPv4.
fn gre(src: Ipv4Addr, dst: Ipv4Addr, flags: u16, key: u32) -> Vec<u8> {
    let mut payload = [flags.to_be_bytes(), [8, 0]].concat();
    for (bit, word) in [(0x8000, 0xaaaa_0000), (0x2000, key), (0x1000, 7)] {
        if flags & bit != 0 {
            payload.extend(u32::to_be_bytes(word));
        }
    }
    payload.extend(&ipv4(INNER_B, INNER_A, 17, &[0; 8])[14..]);
    ipv4(src, dst, 47, &payload)
}

fn ours(flags: u16, key: u32) -> Vec<u8> {
    gre(REMOTE, LOCAL, flags, key)
}

fn udp(dst: Ipv4Addr) -> Vec<u8> {
    ipv4(INNER_A, dst, 17, &[0; 16])
}

fn udp6(dst: &str) -> Vec<u8> {
    ipv6("2001:db8:1::5", dst, 17, &[0; 16])
}

/// A frame whose IP packet has exactly this length.
fn sized4(length: usize) -> Vec<u8> {
    ipv4(INNER_A, INNER_B, 17, &vec![0; length - 20])
}

fn sized6(length: usize) -> Vec<u8> {
    let payload = vec![0; length - 40];
    ipv6("2001:db8:1::5", "2001:db8:2::5", 17, &payload)
}

fn tunnel(local: Ipv4Addr, remote: Ipv4Addr, key: Option<u32>) -> TunnelMatch {
    TunnelMatch { local, remote, key }
}

/// Tunnels without a key and with keys 0 (on another address) and 42; 10.0.2.0/24 and 2001:db8:2::/48 lead into one.
fn plan(port: PortPlan) -> Plan {
    let into = |mtu| PrefixAction::Tunnel { mtu };
    Plan {
        ports: [(LO, port)].into(),
        tunnels: [
            tunnel(LOCAL, REMOTE, None),
            tunnel(LOCAL, REMOTE, Some(42)),
            tunnel(LOCAL, Ipv4Addr::new(192, 0, 2, 3), Some(0)),
        ]
        .into(),
        v4: [
            ("10.0.2.0/24", into(1476)),
            ("10.0.2.128/25", PrefixAction::Kernel),
            ("10.0.2.192/26", into(1400)),
            ("10.0.0.0/14", into(1476)),
            ("0.0.0.0/0", PrefixAction::Kernel),
            ("224.0.0.0/3", into(1476)),
            ("169.254.0.0/16", into(1476)),
            ("127.0.0.0/8", into(1476)),
        ]
        .map(|(net, action)| (net.parse().unwrap(), action))
        .into(),
        v6: [
            ("2001:db8:2::/48", into(1476)),
            ("2001:db8:2:1::/64", PrefixAction::Kernel),
            ("fe80::/10", into(1476)),
            ("ff00::/8", into(1476)),
            ("::/64", into(1476)),
        ]
        .map(|(net, action)| (net.parse().unwrap(), action))
        .into(),
        ..Plan::default()
    }
}

const UNDERLAY: PortPlan = PortPlan {
    mac: MAC,
    underlay: true,
    overlay: false,
    forward4: true,
    forward6: true,
    partial_checksums: false,
};
const OVERLAY: PortPlan = PortPlan {
    underlay: false,
    overlay: true,
    ..UNDERLAY
};
const BOTH: PortPlan = PortPlan {
    overlay: true,
    ..UNDERLAY
};

/// A steering program on the namespace's loopback device, with a socket that is never bound: enough to see a redirect.
struct Bench {
    steer: Steer,
    socket: Socket,
    _namespace: Namespace,
}

impl Bench {
    fn new() -> Bench {
        let namespace = Namespace::enter("bench");
        let mut steer = Steer::load(Limits::default()).unwrap();
        let attached = steer.attach(LO, "lo", 1, true).unwrap();
        assert_eq!(
            attached,
            Attached {
                native: false,
                sees_tags: false
            }
        );
        let socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).unwrap();
        steer.set_socket(LO, 0, socket.as_fd()).unwrap();
        Bench {
            steer,
            socket,
            _namespace: namespace,
        }
    }

    /// The one reason under which the program counts this frame; panics unless the verdict fits to it.
    fn reason(&self, frame: &[u8]) -> &'static str {
        let before = counters(&self.steer);
        let redirected = self.steer.judge(LO, frame).unwrap();
        let after = counters(&self.steer);
        let counted: Vec<_> = after
            .into_iter()
            .filter(|(name, count)| before[name] != *count)
            .collect();
        let [(name, count)] = counted[..] else {
            panic!("not counted under exactly one reason: {counted:?}");
        };
        assert_eq!(count, before[name] + 1);
        assert_eq!(redirected, name.starts_with("redirected_"), "{name}");
        name
    }

    fn check(&mut self, port: PortPlan, cases: Vec<(&str, Vec<u8>, &str)>) {
        self.check_plan(&plan(port), cases);
    }

    fn check_plan(&mut self, plan: &Plan, cases: Vec<(&str, Vec<u8>, &str)>) {
        self.steer.apply(plan).unwrap();
        let wrong: Vec<_> = cases
            .into_iter()
            .map(|(what, frame, expected)| (what, expected, self.reason(&frame)))
            .filter(|(_, expected, got)| expected != got)
            .collect();
        assert!(wrong.is_empty(), "(case, expected, got): {wrong:#?}");
    }
}

/// Waits for what the kernel does after the last copy of a descriptor is closed: another test's child process may hold one
/// until it executes its program.
fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "it never came true");
        std::thread::yield_now();
    }
}

fn counters(steer: &Steer) -> BTreeMap<&'static str, u64> {
    steer.counters().unwrap().into_iter().collect()
}

const REDIRECTED_U: &str = "redirected_underlay";
const REDIRECTED_O: &str = "redirected_overlay";

#[test]
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
            (
                "outer TTL 1",
                edit(ours(0, 0), |ip| ip[8] = 1),
                REDIRECTED_U,
            ),
            ("DF", edit(ours(0, 0), |ip| ip[6] = 0x40), REDIRECTED_U),
            ("wrong key", ours(0x2000, 43), "unknown_tunnel"),
            ("key 0 is not no key", ours(0x2000, 0), "unknown_tunnel"),
            (
                "no key is not key 0",
                gre(third, LOCAL, 0, 0),
                "unknown_tunnel",
            ),
            (
                "wrong key behind a checksum",
                ours(0xa000, 43),
                "unknown_tunnel",
            ),
            (
                "key in network order",
                ours(0x2000, 42 << 24),
                "unknown_tunnel",
            ),
            ("not our address", gre(REMOTE, far, 0, 0), "unknown_tunnel"),
            ("not our peer", gre(far, LOCAL, 0, 0), "unknown_tunnel"),
            ("ends swapped", gre(LOCAL, REMOTE, 0, 0), "unknown_tunnel"),
            ("PPTP", ours(0x2001, 42), "gre_version"),
            ("version 7", ours(0x0007, 0), "gre_version"),
            ("routing", ours(0x4000, 0), "gre_flags"),
            ("bit 4", ours(0x0800, 0), "gre_flags"),
            ("bit 5", ours(0x0400, 0), "gre_flags"),
            ("options", options, "ip_options"),
            (
                "first fragment",
                edit(ours(0, 0), |ip| ip[6] = 0x20),
                "fragment",
            ),
            (
                "last fragment",
                edit(ours(0, 0), |ip| ip[7] = 1),
                "fragment",
            ),
            (
                "far fragment",
                edit(ours(0, 0), |ip| ip[6] = 0x1f),
                "fragment",
            ),
            (
                "checksum off by one",
                spoil(ours(0, 0), |ip| ip[11] ^= 1),
                "bad_checksum",
            ),
            (
                "checksum zero",
                spoil(ours(0, 0), |ip| ip[10..12].fill(0)),
                "bad_checksum",
            ),
            (
                "version 6",
                edit(ours(0, 0), |ip| ip[0] = 0x65),
                "bad_header",
            ),
            (
                "version 5",
                edit(ours(0, 0), |ip| ip[0] = 0x55),
                "bad_header",
            ),
            ("IHL 4", edit(ours(0, 0), |ip| ip[0] = 0x44), "bad_header"),
            (
                "total length 19",
                edit(ours(0, 0), |ip| ip[3] = 19),
                "bad_header",
            ),
            (
                "total length 0",
                edit(ours(0, 0), |ip| ip[3] = 0),
                "bad_header",
            ),
            (
                "length beyond frame",
                edit(ours(0, 0), |ip| ip[3] += 1),
                "bad_header",
            ),
            (
                "length far beyond",
                edit(ours(0, 0), |ip| ip[2] = 0xff),
                "bad_header",
            ),
            (
                "total length 23",
                edit(ours(0, 0), |ip| ip[3] = 23),
                "bad_header",
            ),
            (
                "GRE header alone",
                edit(ours(0, 0), |ip| ip[3] = 24),
                REDIRECTED_U,
            ),
            (
                "key outside the packet",
                edit(ours(0x2000, 42), |ip| ip[3] = 27),
                "bad_header",
            ),
            (
                "sequence outside",
                edit(ours(0xb000, 42), |ip| ip[3] = 35),
                "bad_header",
            ),
            ("not GRE", ipv4(REMOTE, LOCAL, 17, &[0; 8]), "not_gre"),
            ("IPv6", udp6("2001:db8:2::5"), "not_gre"),
            ("ARP", ether([0xff; 6], 0x0806, &[0; 28]), "not_ip"),
            ("802.3 length", ether(MAC, 46, &[0; 46]), "not_ip"),
            (
                "other MAC",
                ether(OTHER_MAC, 0x0800, &ours(0, 0)[14..]),
                "other_mac",
            ),
            ("first MAC byte", spoil_mac(ours(0, 0), 0), "other_mac"),
            ("last MAC byte", spoil_mac(ours(0, 0), 5), "other_mac"),
            (
                "broadcast",
                ether([0xff; 6], 0x0800, &ours(0, 0)[14..]),
                "other_mac",
            ),
            ("802.1Q", tagged(0x8100), "vlan_tag"),
            ("802.1ad", tagged(0x88a8), "vlan_tag"),
            (
                "QinQ",
                tagged(0x88a8)[..14]
                    .iter()
                    .chain(&tagged(0x8100)[12..])
                    .copied()
                    .collect(),
                "vlan_tag",
            ),
        ],
    );
}

fn spoil_mac(mut frame: Vec<u8>, byte: usize) -> Vec<u8> {
    frame[byte] ^= 0x10;
    frame
}

#[test]
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
            (
                "padding does not count",
                [sized4(1476), vec![0; 9]].concat(),
                REDIRECTED_O,
            ),
            ("less specific tunnel", to("10.0.3.1"), REDIRECTED_O),
            (
                "more specific kernel route",
                to("10.0.2.129"),
                "kernel_route",
            ),
            ("tunnel beneath it", to("10.0.2.193"), REDIRECTED_O),
            ("its default route", to("11.0.0.1"), "kernel_route"),
            ("options", options, "ip_options"),
            (
                "fragment",
                edit(udp(INNER_B), |ip| ip[6] = 0x20),
                "fragment",
            ),
            (
                "bad checksum",
                spoil(udp(INNER_B), |ip| ip[10] ^= 0x80),
                "bad_checksum",
            ),
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
            (
                "length beyond frame",
                edit(udp(INNER_B), |ip| ip[3] += 1),
                "bad_header",
            ),
            (
                "GRE passing through",
                gre(INNER_A, INNER_B, 0, 0),
                REDIRECTED_O,
            ),
            (
                "SCTP where checksums are whole",
                ipv4(INNER_A, INNER_B, 132, &[0; 16]),
                REDIRECTED_O,
            ),
            ("a tunnel's packet", ours(0, 0), "kernel_route"),
            (
                "other MAC",
                ether(OTHER_MAC, 0x0800, &udp(INNER_B)[14..]),
                "other_mac",
            ),
            (
                "tagged",
                ether(MAC, 0x8100, &[&[0, 42, 8, 0], &udp(INNER_B)[14..]].concat()),
                "vlan_tag",
            ),
            (
                "IPv6 as IPv4",
                ether(MAC, 0x0800, &udp6("2001:db8:2::5")[14..]),
                "bad_header",
            ),
        ],
    );
}

#[test]
fn overlay_frames_of_ipv6() {
    let from = |text: &str| ipv6(text, "2001:db8:2::5", 17, &[0; 16]);
    let with = |next_header| ipv6("2001:db8:1::5", "2001:db8:2::5", next_header, &[0; 16]);
    let hop_limit = |n| spoil(udp6("2001:db8:2::5"), |ip| ip[7] = n);
    let length = |n| spoil(udp6("2001:db8:2::5"), |ip| ip[5] = n);
    Bench::new().check(
        OVERLAY,
        vec![
            ("plain", udp6("2001:db8:2::5"), REDIRECTED_O),
            (
                "padded",
                [udp6("2001:db8:2::5"), vec![0; 20]].concat(),
                REDIRECTED_O,
            ),
            (
                "traffic class and flow label",
                spoil(udp6("2001:db8:2::5"), |ip| {
                    ip[..4].copy_from_slice(&[0x6f, 0xff, 1, 2])
                }),
                REDIRECTED_O,
            ),
            ("hop limit 2", hop_limit(2), REDIRECTED_O),
            ("hop limit 1", hop_limit(1), "ttl"),
            ("hop limit 0", hop_limit(0), "ttl"),
            ("MTU exactly", sized6(1476), REDIRECTED_O),
            ("MTU and one", sized6(1477), "too_big"),
            ("no payload", length(0), REDIRECTED_O),
            ("length beyond frame", length(17), "bad_header"),
            (
                "length far beyond",
                spoil(udp6("2001:db8:2::5"), |ip| ip[4] = 0xff),
                "bad_header",
            ),
            (
                "version 4",
                spoil(udp6("2001:db8:2::5"), |ip| ip[0] = 0x45),
                "bad_header",
            ),
            ("hop-by-hop", with(0), "ip_options"),
            ("routing header", with(43), "ip_options"),
            ("destination options", with(60), "ip_options"),
            ("fragment header", with(44), "fragment"),
            ("ESP", with(50), REDIRECTED_O),
            ("no next header", with(59), REDIRECTED_O),
            (
                "more specific kernel route",
                udp6("2001:db8:2:1::5"),
                "kernel_route",
            ),
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
            (
                "IPv4 as IPv6",
                ether(MAC, 0x86dd, &sized4(100)[14..]),
                "bad_header",
            ),
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
fn one_device_may_be_underlay_and_overlay() {
    Bench::new().check(
        BOTH,
        vec![
            ("ours", ours(0, 0), REDIRECTED_U),
            ("into a tunnel", udp(INNER_B), REDIRECTED_O),
            ("into a tunnel, IPv6", udp6("2001:db8:2::5"), REDIRECTED_O),
            (
                "PPTP between inner hosts",
                gre(INNER_A, INNER_B, 0x2001, 1),
                REDIRECTED_O,
            ),
            (
                "GRE between inner hosts",
                gre(INNER_A, INNER_B, 0, 0),
                REDIRECTED_O,
            ),
            ("unknown key for us", ours(0x2000, 43), "kernel_route"),
            ("neither", udp(Ipv4Addr::new(11, 0, 0, 1)), "kernel_route"),
            ("no IPv6 route", udp6("2001:db8:3::5"), "no_route"),
        ],
    );
    let mut no_default = plan(BOTH);
    no_default.v4.remove(&"0.0.0.0/0".parse().unwrap());
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
            (
                "DCCP to nowhere",
                ipv4(INNER_A, Ipv4Addr::new(11, 0, 0, 1), 33, &[0; 16]),
                "kernel_route",
            ),
        ],
    );
}

#[test]
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
fn wildcard_tunnels() {
    let far = Ipv4Addr::new(198, 51, 100, 1);
    let other = Ipv4Addr::new(192, 0, 2, 9);
    let mut plan = Plan {
        ports: [(LO, UNDERLAY)].into(),
        tunnels: [tunnel(LOCAL, ANY, Some(1)), tunnel(ANY, REMOTE, Some(2))].into(),
        addresses: [LOCAL, other].into(),
        ..Plan::default()
    };
    let keyed = |src, dst, key| gre(src, dst, 0x2000, key);
    let mut bench = Bench::new();
    bench.check_plan(
        &plan,
        vec![
            ("any remote", keyed(far, LOCAL, 1), REDIRECTED_U),
            (
                "any remote, other local",
                keyed(far, other, 1),
                "unknown_tunnel",
            ),
            (
                "any remote, no key",
                gre(far, LOCAL, 0, 0),
                "unknown_tunnel",
            ),
            (
                "any remote, not from a martian",
                keyed(Ipv4Addr::LOCALHOST, LOCAL, 1),
                "unknown_tunnel",
            ),
            (
                "any remote, not from 0.0.0.0",
                keyed(ANY, LOCAL, 1),
                "unknown_tunnel",
            ),
            ("any local", keyed(REMOTE, LOCAL, 2), REDIRECTED_U),
            (
                "any local, second address",
                keyed(REMOTE, other, 2),
                REDIRECTED_U,
            ),
            (
                "any local is not anybody's",
                keyed(REMOTE, far, 2),
                "unknown_tunnel",
            ),
            (
                "any local, other remote",
                keyed(far, LOCAL, 2),
                "unknown_tunnel",
            ),
        ],
    );
    plan.tunnels = [tunnel(ANY, ANY, None)].into();
    bench.check_plan(
        &plan,
        vec![
            ("any at all", gre(far, other, 0, 0), REDIRECTED_U),
            ("any at all, keyed", keyed(far, other, 1), "unknown_tunnel"),
            (
                "any at all, passing by",
                gre(far, REMOTE, 0, 0),
                "unknown_tunnel",
            ),
        ],
    );
    plan.tunnels = [tunnel(LOCAL, REMOTE, None)].into();
    bench.check_plan(
        &plan,
        vec![("no more", gre(far, LOCAL, 0, 0), "unknown_tunnel")],
    );
}

#[test]
fn an_empty_slot_means_the_kernel() {
    let mut bench = Bench::new();
    bench.check(BOTH, vec![("socket", ours(0, 0), REDIRECTED_U)]);
    bench.steer.clear_socket(LO, 0).unwrap();
    bench.steer.clear_socket(LO, 0).unwrap();
    bench.check(
        BOTH,
        vec![
            ("cleared, underlay", ours(0, 0), "no_socket"),
            ("cleared, overlay", udp(INNER_B), "no_socket"),
        ],
    );
    bench.steer.set_socket(LO, 0, bench.socket.as_fd()).unwrap();
    bench.check(BOTH, vec![("again", ours(0, 0), REDIRECTED_U)]);
    // The kernel empties the slot of a socket that is gone.
    bench.socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).unwrap();
    eventually(|| bench.reason(&ours(0, 0)) == "no_socket");
    let beyond = bench.steer.set_socket(LO, 1, bench.socket.as_fd());
    assert!(matches!(
        beyond,
        Err(SteerError::NoQueue {
            queue: 1,
            queues: 1,
            ..
        })
    ));
    let nowhere = bench.steer.set_socket(2, 0, bench.socket.as_fd());
    assert!(matches!(
        nowhere,
        Err(SteerError::NotAttached { ifindex: 2 })
    ));
}

#[test]
fn slots_outlive_no_attachment() {
    let mut bench = Bench::new();
    bench.steer.apply(&plan(BOTH)).unwrap();
    bench.steer.detach(LO);
    assert!(bench.steer.judge(LO, &ours(0, 0)).is_err());
    bench.steer.attach(LO, "lo", 1, true).unwrap();
    // The plan holds for the new attachment, the old socket does not.
    assert_eq!(bench.reason(&ours(0, 0)), "no_socket");
    assert!(matches!(
        bench.steer.attach(LO, "lo", 1, true),
        Err(SteerError::AlreadyAttached { ifindex: LO })
    ));
}

#[test]
fn apply_changes_only_what_differs() {
    let mut bench = Bench::new();
    let steer = &mut bench.steer;
    let first = plan(BOTH);
    let counts = |steer: &mut Steer, plan: &Plan| {
        let changes = steer.apply(plan).unwrap();
        assert!(steer.verify().unwrap(), "the maps are not what was applied");
        (changes.added, changes.changed, changes.removed)
    };
    // One port, three tunnels of two peers, eight prefixes and five.
    assert_eq!(counts(steer, &first), (1 + 3 + 2 + 8 + 5, 0, 0));
    assert_eq!(counts(steer, &first), (0, 0, 0));
    let mut second = first.clone();
    second.v4.insert(
        "10.0.2.0/24".parse().unwrap(),
        PrefixAction::Tunnel { mtu: 1472 },
    );
    second
        .v4
        .insert("10.9.0.0/16".parse().unwrap(), PrefixAction::Kernel);
    second.v6.remove(&"fe80::/10".parse().unwrap());
    second.tunnels.remove(&tunnel(LOCAL, REMOTE, None));
    second.ports.insert(LO, OVERLAY);
    assert_eq!(counts(steer, &second), (1, 2, 2));
    assert_eq!(counts(steer, &Plan::default()), (0, 0, 1 + 2 + 2 + 9 + 4));
    assert_eq!(counts(steer, &second), (18, 0, 0));
}

#[test]
fn a_plan_beyond_the_limits_is_refused_whole() {
    let _namespace = Namespace::enter("limits");
    let mut steer = Steer::load(Limits {
        tunnels: 2,
        prefixes: 16,
        slots: 1,
    })
    .unwrap();
    let error = steer.apply(&plan(BOTH)).unwrap_err();
    assert!(
        matches!(
            error,
            SteerError::TooMany {
                wanted: 3,
                limit: 2,
                ..
            }
        ),
        "{error}"
    );
    assert!(steer.verify().unwrap());
    let error = steer.attach(LO, "lo", 2, true).unwrap_err();
    assert!(
        matches!(
            error,
            SteerError::NoSlots {
                wanted: 2,
                limit: 1,
                ..
            }
        ),
        "{error}"
    );
    // As many as fit can be exchanged for as many others.
    let nets = |third: u8| (0..16).map(move |n| format!("10.{third}.{n}.0/24").parse().unwrap());
    for third in 1..3 {
        let v4 = nets(third).map(|net| (net, PrefixAction::Kernel)).collect();
        steer
            .apply(&Plan {
                v4,
                ..Plan::default()
            })
            .unwrap();
        assert!(steer.verify().unwrap());
    }
}

#[test]
fn the_raw_socket_gets_only_our_tunnels() {
    let namespace = Namespace::enter("raw");
    // One CPU: what is sent on loopback first arrives first.
    core_affinity::set_for_current(core_affinity::get_core_ids().unwrap()[0]);
    ip(&["link", "set", "lo", "up"]);
    for address in [LOCAL, Ipv4Addr::new(192, 0, 2, 9)] {
        ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
    }
    let mut steer = Steer::load(Limits::default()).unwrap();
    let mut with_wildcard = plan(UNDERLAY);
    let far = Ipv4Addr::new(198, 51, 100, 1);
    let other = Ipv4Addr::new(192, 0, 2, 9);
    with_wildcard.tunnels.insert(tunnel(other, ANY, Some(7)));
    steer.apply(&with_wildcard).unwrap();
    let receiver = host::raw_socket(47);
    steer.filter_raw_socket(receiver.as_fd()).unwrap();
    let sender = host::raw_socket(libc::IPPROTO_RAW);
    let options = {
        let payload = [&[1u8; 4][..], &ours(0x2000, 42)[34..]].concat();
        edit(ipv4(REMOTE, LOCAL, 47, &payload), |ip| ip[0] = 0x46)
    };
    let options_wrong_key = spoil(options.clone(), |ip| ip[31] = 43);
    let cut = |frame: Vec<u8>, length: u8| {
        let frame = edit(frame, |ip| ip[3] = length);
        frame[..14 + usize::from(length)].to_vec()
    };
    let cases = [
        ("no key", ours(0, 0), true),
        ("key", ours(0x2000, 42), true),
        ("key behind a checksum", ours(0xa000, 42), true),
        ("wrong key", ours(0x2000, 43), false),
        ("wrong key behind a checksum", ours(0xa000, 43), false),
        ("options", options, true),
        ("options, wrong key", options_wrong_key, false),
        ("unknown peer", gre(far, LOCAL, 0, 0), false),
        ("unknown local", gre(REMOTE, other, 0, 0), false),
        ("any remote", gre(far, other, 0x2000, 7), true),
        ("any remote, wrong key", gre(far, other, 0x2000, 8), false),
        ("PPTP", ours(0x2001, 42), false),
        ("malformed, from a peer", ours(0x4000, 0), true),
        (
            "malformed, from a stranger",
            gre(far, LOCAL, 0x4000, 0),
            false,
        ),
        ("cut within GRE, from a peer", cut(ours(0, 0), 22), true),
        (
            "cut within the key, from a peer",
            cut(ours(0x2000, 42), 26),
            true,
        ),
        (
            "cut within GRE, from a stranger",
            cut(gre(far, LOCAL, 0, 0), 22),
            false,
        ),
    ];
    let last = ours(0x1000, 0);
    for (what, frame, delivered) in cases {
        host::send_raw(&sender, &frame[14..]);
        host::send_raw(&sender, &last[14..]);
        let mut got = host::receive(&receiver);
        // The kernel fills in the identification and the checksum of what a raw socket sends.
        if delivered {
            assert_eq!(got[12..], frame[26..], "{what}");
            got = host::receive(&receiver);
        }
        assert_eq!(got[12..], last[26..], "{what} (delivered: {})", !delivered);
    }
    drop(namespace);
}

/// A veth pair in a namespace of its own, the program on the near end and packets sent by the far end.
struct Pair {
    steer: Steer,
    attached: Attached,
    near: u32,
    far: u32,
    mac: [u8; 6],
    sent: u64,
    _socket: Socket,
    _namespace: Namespace,
}

impl Pair {
    fn new(generic: bool) -> Pair {
        let namespace = Namespace::enter("veth");
        ip(&[
            "link",
            "add",
            "near",
            "numtxqueues",
            "1",
            "numrxqueues",
            "1",
            "type",
            "veth",
            "peer",
            "name",
            "far",
            "numtxqueues",
            "1",
            "numrxqueues",
            "1",
        ]);
        for device in ["near", "far"] {
            // Without IPv6 the kernel itself sends nothing on these devices.
            let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
            std::fs::write(path, "1").unwrap();
            ip(&["link", "set", device, "up"]);
        }
        let (near, far) = (host::ifindex("near"), host::ifindex("far"));
        let mac = host::mac("near");
        let mut steer = Steer::load(Limits::default()).unwrap();
        let port = PortPlan { mac, ..BOTH };
        let mut plan = plan(port);
        plan.ports = [(near, port)].into();
        steer.apply(&plan).unwrap();
        let attached = steer.attach(near, "near", 1, generic).unwrap();
        let socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).unwrap();
        steer.set_socket(near, 0, socket.as_fd()).unwrap();
        Pair {
            steer,
            attached,
            near,
            far,
            mac,
            sent: 0,
            _socket: socket,
            _namespace: namespace,
        }
    }

    /// Sends a frame from the far end and returns the reason under which the near end counts it.
    fn reason(&mut self, mut frame: Vec<u8>) -> &'static str {
        frame[..6].copy_from_slice(&self.mac);
        let before = counters(&self.steer);
        host::send_frame(self.far, &frame);
        self.sent += 1;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let after = counters(&self.steer);
            if after.values().sum::<u64>() == self.sent {
                let new = after.iter().find(|(name, count)| before[*name] != **count);
                return new.unwrap().0;
            }
            assert!(Instant::now() < deadline, "the frame never came: {after:?}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn tags_in_the_frame_and_beside_it_are_never_lost() {
    let mut pair = Pair::new(false);
    assert!(pair.attached.native);
    assert!(
        pair.attached.sees_tags,
        "this kernel cannot tell tags beside the frame (Linux 6.8 is needed)"
    );
    assert_eq!(pair.reason(ours(0, 0)), REDIRECTED_U);
    assert_eq!(pair.reason(udp(INNER_B)), REDIRECTED_O);
    let in_frame = ether(MAC, 0x8100, &[&[0, 42, 8, 0], &ours(0, 0)[14..]].concat());
    assert_eq!(pair.reason(in_frame), "vlan_tag");

    let listener = packet_socket(pair.near);
    push_tag_on_egress(pair.far);
    for txvlan in ["on", "off", "on"] {
        host::run("ethtool", &["-K", "far", "txvlan", txvlan]);
        for frame in [ours(0, 0), udp(INNER_B), udp6("2001:db8:2::5")] {
            let payload = frame[14..].to_vec();
            assert_eq!(pair.reason(frame), "vlan_tag", "txvlan {txvlan}");
            // And the kernel gets it, tag and all: as a tagged frame it is stripped again for a packet socket.
            let (tag, got) = host::receive_tagged(&listener);
            assert_eq!(tag, Some(42));
            assert_eq!(got[14..], payload);
        }
    }
}

#[test]
fn a_program_that_sees_no_tags_says_so() {
    let mut pair = Pair::new(true);
    assert_eq!(
        pair.attached,
        Attached {
            native: false,
            sees_tags: false
        }
    );
    push_tag_on_egress(pair.far);
    // This is what the flag warns of.
    host::run("ethtool", &["-K", "far", "txvlan", "on"]);
    assert_eq!(pair.reason(udp(INNER_B)), REDIRECTED_O);
    host::run("ethtool", &["-K", "far", "txvlan", "off"]);
    assert_eq!(pair.reason(udp(INNER_B)), "vlan_tag");
}

#[test]
fn stripping_is_switched_off_and_on_again() {
    let pair = Pair::new(true);
    let state = || host::run("ethtool", &["-k", "near"]);
    let on = |text: &str| text.contains("rx-vlan-offload: on");
    assert!(on(&state()) && TagsInFrame::stripped_by("near").unwrap());
    let kept = TagsInFrame::keep("near").unwrap();
    assert!(!on(&state()) && !TagsInFrame::stripped_by("near").unwrap());
    let nothing_to_do = TagsInFrame::keep("near").unwrap();
    drop(nothing_to_do);
    assert!(!on(&state()));
    drop(kept);
    assert!(on(&state()));
    assert!(TagsInFrame::stripped_by("absent").is_err());
    drop(pair);
}

#[test]
fn other_programs_are_named_and_ours_goes_with_us() {
    let pair = Pair::new(false);
    let near = pair.near;
    assert_eq!(Steer::foreign_program(near).unwrap(), None);
    let mut second = Steer::load(Limits::default()).unwrap();
    let error = second.attach(near, "near", 1, false).unwrap_err();
    assert!(
        matches!(&error, SteerError::Busy { device, program } if device == "near" && *program > 0)
    );

    let Pair {
        steer,
        _socket,
        _namespace,
        ..
    } = pair;
    drop(steer);
    let other = no_op_xdp(near);
    let id = Steer::foreign_program(near).unwrap().unwrap();
    let error = second.attach(near, "near", 1, false).unwrap_err();
    assert!(matches!(error, SteerError::Busy { program, .. } if program == id));
    assert!(error.to_string().contains(&format!("id {id}")), "{error}");
    drop(other);
    eventually(|| Steer::foreign_program(near).unwrap().is_none());
    second.attach(near, "near", 1, false).unwrap();
    // A device without native XDP says so.
    let error = second.attach(LO, "lo", 1, false).unwrap_err();
    assert!(error.to_string().contains("no native XDP"), "{error}");
}
