//! The filter of the raw socket, with packets that travel the loopback device.

use std::{net::Ipv4Addr, os::fd::AsFd};

use greyhound::xdp::{Limits, Steer};

use crate::{
    bench::{UNDERLAY, plan, tunnel},
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
