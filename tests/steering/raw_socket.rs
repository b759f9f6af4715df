//! The filters of the raw sockets, with packets that travel the loopback device.

use std::{net::Ipv4Addr, os::fd::AsFd};

use greyhound::xdp::{Limits, Steer, TunnelClass, TunnelMatch};
use socket2::Socket;

use crate::{
    bench::{UNDERLAY, bare, plan, tunnel},
    family::{family, ip6},
    frames::*,
    host::{self, Namespace, ip},
};

#[test]
#[rustfmt::skip]
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
        ("malformed, from a peer", ours(0x6000, 43), true),
        ("malformed, from a stranger", gre(far, LOCAL, 0x4000, 0), false),
        ("cut within GRE, from a peer", cut(ours(0, 0), 22), true),
        ("cut within the key, from a peer", cut(ours(0x2000, 42), 26), true),
        ("cut within GRE, from a stranger", cut(gre(far, LOCAL, 0, 0), 22), false),
    ];
    // The kernel fills in the identification and the checksum of what a raw socket sends.
    deliver(&sender, &receiver, &cases, (&ours(0x1000, 0), 26, 12));
    // PPTP is nobody's tunnel, and nobody's mistake.
    let strangers = cases.iter().filter(|(name, _, ours)| !ours && *name != "PPTP");
    assert_eq!(steer.strangers().unwrap(), strangers.count() as u64);
    drop(namespace);
}

#[test]
#[rustfmt::skip]
fn the_raw_sockets_of_protocols_4_and_41_get_only_our_tunnels() {
    let namespace = Namespace::enter("raw-bare");
    core_affinity::set_for_current(core_affinity::get_core_ids().unwrap()[0]);
    ip(&["link", "set", "lo", "up"]);
    let other = Ipv4Addr::new(192, 0, 2, 9);
    let far = Ipv4Addr::new(198, 51, 100, 1);
    for address in [LOCAL, other] {
        ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
    }
    let sender = host::raw_socket(libc::IPPROTO_RAW);
    for (class, protocol) in [(TunnelClass::Ipv4, 4), (TunnelClass::Ipv6, 41)] {
        let mut steer = Steer::load(Limits::default()).unwrap();
        let mut plan = plan(UNDERLAY);
        plan.tunnels.extend([bare(class, LOCAL, REMOTE), bare(class, other, ANY)]);
        steer.apply(&plan).unwrap();
        let receiver = host::raw_socket(protocol.into());
        steer.filter_raw_socket(receiver.as_fd()).unwrap();
        let third = Ipv4Addr::new(192, 0, 2, 3);
        let of = |src, dst, payload: &[u8]| ipv4(src, dst, protocol, payload);
        let cases = [
            ("ours", of(REMOTE, LOCAL, &inner(protocol)), true),
            ("unknown peer", of(far, LOCAL, &inner(protocol)), false),
            ("peer of a GRE tunnel", of(third, LOCAL, &inner(protocol)), false),
            ("any remote", of(far, other, &inner(protocol)), true),
            ("malformed, from a peer", of(REMOTE, LOCAL, &[0; 8]), true),
            ("malformed, from a stranger", of(far, LOCAL, &[0; 8]), false),
        ];
        let last = of(REMOTE, LOCAL, &[&inner(protocol)[..], &[7]].concat());
        deliver(&sender, &receiver, &cases, (&last, 26, 12));
    }
    drop(namespace);
}

#[test]
#[rustfmt::skip]
fn the_ipv6_raw_sockets_get_only_our_tunnels() {
    let namespace = Namespace::enter("raw6");
    core_affinity::set_for_current(core_affinity::get_core_ids().unwrap()[0]);
    ip(&["link", "set", "lo", "up"]);
    let (far, other) = ("2001:db8:ffff::9", "2001:db8:ffff::8");
    for address in [LOCAL6, other] {
        ip(&["addr", "add", &format!("{address}/128"), "dev", "lo", "nodad"]);
    }
    let mut steer = Steer::load(Limits::default()).unwrap();
    let any = std::net::Ipv6Addr::UNSPECIFIED;
    let mut plan = family(UNDERLAY);
    let slow = TunnelMatch { fast: false, ..tunnel(ip6(LOCAL6), ip6(REMOTE6), Some(9)) };
    let subnet = TunnelMatch { class: TunnelClass::Nvgre, ..tunnel(ip6(LOCAL6), ip6(REMOTE6), Some(5000)) };
    // Of the kernel's own: one beside ours, and one with a peer of its own.
    let kernels = |remote: &str, key| TunnelMatch { socket: false, ..tunnel(ip6(LOCAL6), ip6(remote), key) };
    plan.tunnels.extend([kernels(REMOTE6, Some(11)), kernels("2001:db8:ffff::4", None)]);
    plan.tunnels.extend([bare(TunnelClass::Ipv4, ip6(other), any), tunnel(ip6(other), any, Some(7)), slow, subnet]);
    steer.apply(&plan).unwrap();
    let sender = host::raw_socket6(libc::IPPROTO_RAW);
    let third = "2001:db8:ffff::3";

    let receiver = host::raw_socket6(47);
    steer.filter_raw_socket(receiver.as_fd()).unwrap();
    let cases = [
        ("no key", ours6(0, 0), true),
        ("key", ours6(0x2000, 42), true),
        ("key of a tunnel that is not steered", ours6(0x2000, 9), true),
        ("key of a tunnel of the kernel's", ours6(0x2000, 11), false),
        ("malformed, from a peer of the kernel's", gre6("2001:db8:ffff::4", LOCAL6, 0x4000, 0), false),
        ("virtual subnet", spoil(ours6(0x2000, 5000 << 8 | 3), |ip| ip[42..44].copy_from_slice(&[0x65, 0x58])), true),
        ("its number, and no frame", ours6(0x2000, 5000 << 8 | 3), false),
        ("another subnet", spoil(ours6(0x2000, 5001 << 8), |ip| ip[42..44].copy_from_slice(&[0x65, 0x58])), false),
        ("key behind a checksum", ours6(0xa000, 42), true),
        ("wrong key", ours6(0x2000, 43), false),
        ("wrong key behind a checksum", ours6(0xa000, 43), false),
        ("unknown peer", gre6(far, LOCAL6, 0, 0), false),
        ("unknown local", gre6(REMOTE6, other, 0, 0), false),
        ("no key for a keyed tunnel", gre6(third, LOCAL6, 0, 0), false),
        ("any remote", gre6(far, other, 0x2000, 7), true),
        ("any remote, from link-local", gre6("fe80::9", other, 0x2000, 7), true),
        ("any remote, wrong key", gre6(far, other, 0x2000, 8), false),
        ("PPTP", ours6(0x2001, 42), false),
        ("malformed, from a peer", ours6(0x6000, 43), true),
        ("malformed, from a stranger", gre6(far, LOCAL6, 0x4000, 0), false),
        ("cut within GRE, from a peer", ipv6(REMOTE6, LOCAL6, 47, &[0; 2]), true),
        ("cut within the key, from a peer", ipv6(REMOTE6, LOCAL6, 47, &[0x20, 0, 8, 0, 0, 0]), true),
        ("cut within GRE, from a stranger", ipv6(far, LOCAL6, 47, &[0; 2]), false),
    ];
    deliver(&sender, &receiver, &cases, (&ours6(0x1000, 0), 54, 0));
    let limited = |key| outer6(60, &[&limit(47)[..], &gre_payload(0x2000, key)].concat());
    let twice = outer6(60, &[&limit(60)[..], &limit(47), &gre_payload(0x2000, 42)].concat());
    let wrong = [("wrong key behind a limit", limited(43), false)];
    deliver(&sender, &receiver, &wrong, (&ours6(0x1000, 0), 54, 0));
    deliver(&sender, &receiver, &[("behind a limit", limited(42), true)], (&limited(42), 62, 0));
    deliver(&sender, &receiver, &[("behind two headers", twice.clone(), true)], (&twice, 70, 0));

    for protocol in [4, 41] {
        let receiver = host::raw_socket6(protocol.into());
        steer.filter_raw_socket(receiver.as_fd()).unwrap();
        let of = |src, dst, payload: &[u8]| ipv6(src, dst, protocol, payload);
        let cases = [
            ("ours", of(REMOTE6, LOCAL6, &inner(protocol)), true),
            ("unknown peer", of(far, LOCAL6, &inner(protocol)), false),
            ("peer of a GRE tunnel", of(third, LOCAL6, &inner(protocol)), false),
            ("any remote, for one class", of(far, other, &inner(protocol)), protocol == 4),
            ("malformed, from a peer", of(REMOTE6, LOCAL6, &[0; 8]), true),
            ("malformed, from a stranger", of(far, LOCAL6, &[0; 8]), false),
        ];
        let last = of(REMOTE6, LOCAL6, &[&inner(protocol)[..], &[7]].concat());
        deliver(&sender, &receiver, &cases, (&last, 54, 0));
    }
    drop(namespace);
}

#[test]
#[rustfmt::skip]
fn the_udp_sockets_get_only_our_tunnels() {
    let namespace = Namespace::enter("udp");
    core_affinity::set_for_current(core_affinity::get_core_ids().unwrap()[0]);
    ip(&["link", "set", "lo", "up"]);
    ip(&["addr", "add", &format!("{LOCAL}/32"), "dev", "lo"]);
    ip(&["addr", "add", &format!("{LOCAL6}/128"), "dev", "lo", "nodad"]);
    let class = |zero_checksum| TunnelClass::GreInUdp { zero_checksum };
    let keyed = |key, tunnel: TunnelMatch| TunnelMatch { key: Some(key), ..tunnel };
    let mut plan = family(UNDERLAY);
    plan.tunnels.extend([
        keyed(7, bare(class(false), LOCAL, REMOTE)),
        keyed(7, bare(class(false), ip6(LOCAL6), ip6(REMOTE6))),
        keyed(9, bare(class(true), ip6(LOCAL6), ip6(REMOTE6))),
    ]);
    let mut steer = Steer::load(Limits::default()).unwrap();
    steer.apply(&plan).unwrap();
    let payload = |key| gre_payload(0xa000, key);

    let sender = host::raw_socket(libc::IPPROTO_RAW);
    let receiver = host::udp_socket(ANY.into());
    steer.filter_raw_socket(receiver.as_fd()).unwrap();
    let far = Ipv4Addr::new(198, 51, 100, 1);
    let of = |src, payload: &[u8]| ipv4(src, LOCAL, 17, &in_udp(payload));
    let options = edit(ipv4(REMOTE, LOCAL, 17, &[&[1; 4][..], &in_udp(&payload(8))].concat()), |ip| ip[0] = 0x46);
    let cases = [
        ("ours", of(REMOTE, &payload(7)), true),
        ("wrong key", of(REMOTE, &payload(8)), false),
        ("wrong key behind options", options, false),
        ("the key of plain GRE", of(REMOTE, &payload(42)), false),
        ("no key", of(REMOTE, &gre_payload(0, 0)), false),
        ("unknown peer", of(far, &payload(7)), false),
        ("peer of plain GRE", of(Ipv4Addr::new(192, 0, 2, 3), &gre_payload(0x2000, 0)), false),
        ("malformed, from a peer", of(REMOTE, &[0x40, 0, 8, 0]), true),
        ("cut within GRE, from a peer", of(REMOTE, &[0, 0]), true),
        ("malformed, from a stranger", of(far, &[0x40, 0, 8, 0]), false),
    ];
    let last = of(REMOTE, &gre_payload(0x3000, 7));
    deliver(&sender, &receiver, &cases, (&last, 42, 0));

    let sender = host::raw_socket6(libc::IPPROTO_RAW);
    let receiver = host::udp_socket(std::net::Ipv6Addr::UNSPECIFIED.into());
    host::allow_no_checksum(&receiver);
    steer.filter_raw_socket(receiver.as_fd()).unwrap();
    let of = |src, payload: &[u8]| in_udp6(src, LOCAL6, payload);
    let without = |payload: &[u8]| spoil(of(REMOTE6, payload), |ip| ip[46..48].fill(0));
    let cases = [
        ("ours", of(REMOTE6, &payload(7)), true),
        ("without a checksum", without(&payload(7)), false),
        ("without one where it may be", without(&payload(9)), true),
        ("with one where none needs to be", of(REMOTE6, &payload(9)), true),
        ("wrong key", of(REMOTE6, &payload(8)), false),
        ("wrong key without a checksum", without(&payload(8)), false),
        ("unknown peer", of("2001:db8:ffff::9", &payload(7)), false),
        ("malformed, from a peer", of(REMOTE6, &[0x40, 0, 8, 0]), true),
        ("malformed, from a stranger", of("2001:db8:ffff::9", &[0x40, 0, 8, 0]), false),
    ];
    let last = of(REMOTE6, &gre_payload(0x3000, 7));
    deliver(&sender, &receiver, &cases, (&last, 62, 0));
    let behind = |payload: &[u8]| outer6(60, &[&limit(17)[..], &of(REMOTE6, payload)[54..]].concat());
    let wrong = [("wrong key behind a limit", behind(&payload(8)), false)];
    deliver(&sender, &receiver, &wrong, (&last, 62, 0));
    deliver(&sender, &receiver, &[("behind a limit", behind(&payload(7)), true)], (&behind(&gre_payload(0x3000, 7)), 70, 0));
    drop(namespace);
}

/// Sends each frame's packet and then the last one, which is always delivered. What is received is compared from the second offset on
/// with what stands behind the first one in the frame.
fn deliver(
    sender: &Socket,
    receiver: &Socket,
    cases: &[(&str, Vec<u8>, bool)],
    (last, sent, received): (&[u8], usize, usize),
) {
    for (what, frame, delivered) in cases {
        host::send_raw(sender, &frame[14..]);
        host::send_raw(sender, &last[14..]);
        let mut got = host::receive(receiver);
        if *delivered {
            assert_eq!(got[received..], frame[sent..], "{what}");
            got = host::receive(receiver);
        }
        assert_eq!(got[received..], last[sent..], "{what} ({delivered})");
    }
}
