//! Frames that come in several buffers each, as devices with a large MTU deliver them.

use greyhound::xdp::Plan;

use crate::{bench::*, frames::*};

/// A tunnel packet of `length` bytes.
fn large(length: usize) -> Vec<u8> {
    let payload = vec![7; length - 24];
    ipv4(REMOTE, LOCAL, 47, &[&[0, 0, 8, 0][..], &payload].concat())
}

/// The plan with an overlay route into a tunnel of 8976 bytes.
fn wide(port: greyhound::xdp::PortPlan) -> Plan {
    Plan {
        hops: vec![0, 8976, 1400],
        ..plan(port)
    }
}

#[test]
fn tunnel_packets_in_several_buffers() {
    let cut = {
        let mut frame = large(9000);
        frame.pop();
        frame
    };
    let padded = |length| [large(length), vec![0; 26 - 14]].concat();
    Bench::of_mtu(9000).check_plan(
        &wide(UNDERLAY),
        vec![
            ("one buffer", large(1500), REDIRECTED_U),
            ("the end of one", large(3506), REDIRECTED_U),
            ("a byte in a second", large(3507), REDIRECTED_U),
            ("three", large(9000), REDIRECTED_U),
            ("padded", padded(9000), REDIRECTED_U),
            ("more than the device takes", padded(9001), "too_big"),
            ("a sender's own segments", large(40_000), "too_big"),
            ("length beyond frame", cut, "bad_header"),
            (
                "wrong key",
                edit(large(9000), |ip| ip[20] = 0x20),
                "unknown_tunnel",
            ),
        ],
    );
}

#[test]
fn inner_packets_in_several_buffers() {
    let cut = |mut frame: Vec<u8>| {
        frame.pop();
        frame
    };
    Bench::of_mtu(9000).check_plan(
        &wide(OVERLAY),
        vec![
            ("one buffer", sized4(1476), REDIRECTED_O),
            ("three", sized4(8976), REDIRECTED_O),
            ("larger than the tunnel's", sized4(8977), "too_big"),
            ("three of IPv6", sized6(8976), REDIRECTED_O),
            ("IPv6 larger than the tunnel's", sized6(8977), "too_big"),
            ("length beyond frame", cut(sized4(8976)), "bad_header"),
            ("IPv6 length beyond frame", cut(sized6(8976)), "bad_header"),
        ],
    );
}
