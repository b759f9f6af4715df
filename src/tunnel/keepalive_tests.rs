use std::sync::Arc;

use super::*;
use crate::{
    packet::{Checksum, GreKey, PacketBuf, VecBuf},
    tunnel::{Mode, Outer, TunnelState, TunnelTable, decapsulate, encapsulate},
};
use proptest::prelude::*;

fn near(mode: Mode) -> Tunnel {
    let (local, remote): (IpAddr, IpAddr) = match mode {
        Mode::Ip6gre => ("fd09::1".parse().unwrap(), "fd09::2".parse().unwrap()),
        _ => ([192, 0, 2, 1].into(), [192, 0, 2, 2].into()),
    };
    Tunnel {
        keepalive: true,
        ..Tunnel::new(mode, local, remote)
    }
}

fn any_tunnel() -> impl Strategy<Value = Tunnel> {
    let options = any::<(Option<u32>, Option<u32>, bool, bool, bool, bool)>();
    (any::<bool>(), options).prop_map(|(v6, (ikey, okey, icsum, ocsum, iseq, oseq))| Tunnel {
        ikey: ikey.map(GreKey),
        okey: okey.map(GreKey),
        icsum,
        ocsum,
        iseq,
        oseq,
        ..near(if v6 { Mode::Ip6gre } else { Mode::Gre })
    })
}

fn to_come_back(tunnel: &Tunnel) -> Vec<u8> {
    let mut out = [0xaa; MAX_LEN];
    let len = write(tunnel, &mut out).unwrap();
    out[..len].to_vec()
}

/// Takes one off TTL or hop limit, as the router that sends it back does.
fn forwarded(mut packet: Vec<u8>) -> Vec<u8> {
    let done = match packet[0] >> 4 {
        6 => ipv6::decrement_hop_limit(&mut packet),
        _ => ipv4::decrement_ttl(&mut packet),
    };
    assert!(done);
    packet
}

fn mended(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let sum = Checksum::new().add_bytes(&packet[..20]).finish();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

proptest! {
    #[test]
    fn what_is_sent_is_a_request_there_and_an_answer_here(tunnel in any_tunnel(), padding in 0usize..20) {
        let inside = to_come_back(&tunnel);
        let state = TunnelState::new(0, 1, Arc::default());
        let mut buf = VecBuf::new(64, &inside);
        encapsulate(&tunnel, tunnel.remote, &mut buf, &state).unwrap();

        let far = tunnel.far_end();
        let table = TunnelTable::new([far.clone()]);
        let outer = Outer::parse(buf.data(), &table, None).unwrap();
        prop_assert!(outer.payload() != PROTOCOL && !is_answer(&far, buf.data()));
        decapsulate(&far, &outer, &mut buf, &TunnelState::new(0, 1, Arc::default())).unwrap();
        prop_assert_eq!(buf.data(), &inside);
        prop_assert!(is_request(&far, buf.data()) && !is_request(&tunnel, buf.data()));

        let mut answer = forwarded(inside);
        prop_assert!(!is_answer(&far, &answer));
        answer.resize(answer.len() + padding, 0);
        prop_assert!(is_answer(&tunnel, &answer));
        // It belongs to the tunnel by its key, like any packet.
        let found = Outer::parse(&answer, &TunnelTable::new([tunnel.clone()]), None).unwrap();
        prop_assert_eq!(found.payload(), PROTOCOL);
        let silent = Tunnel { keepalive: false, ..tunnel };
        prop_assert!(!is_answer(&silent, &answer));
    }

    /// Whatever else a packet may be, with one bit changed in a place that matters it is neither.
    #[test]
    fn one_bit_off_is_not_one(tunnel in any_tunnel(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let good = to_come_back(&tunnel);
        let at = at.index(good.len());
        let mut bad = good.clone();
        bad[at] ^= 1 << bit;
        let bad = mended(bad);
        let v4 = good[0] >> 4 == 4;
        let gre = if v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
        // TOS, identification, DF and TTL; traffic class, flow label and hop limit; the checksum was mended.
        let free = match (v4, at) {
            (true, 1 | 4 | 5 | 8 | 10 | 11) => true,
            (true, 6) => bit >= 6,
            (false, 1..=3 | 7) => true,
            (false, 0) => bit < 4,
            // RFC 2784 section 2.3: ignored on receipt. Without a checksum nothing notices.
            _ => !tunnel.icsum && (at == gre && bit < 2 || at == gre + 1 && bit >= 3),
        };
        prop_assert_eq!(is_answer(&tunnel, &bad), free, "byte {} bit {}", at, bit);
        // To whom it answers a key, a checksum or a number inside means nothing.
        let far = tunnel.far_end();
        if is_request(&far, &bad) {
            prop_assert!(free || at >= gre);
        }
    }

    #[test]
    fn other_bytes_are_not_one(tunnel in any_tunnel(), bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        prop_assert!(!is_answer(&tunnel, &bytes) && !is_request(&tunnel, &bytes));
    }
}

#[test]
fn only_the_way_back_to_the_far_end_is_taken() {
    let far = near(Mode::Gre);
    let good = to_come_back(&far.far_end());
    assert!(is_request(&far, &good));
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        is_request(&far, &mended(bytes))
    };
    for (what, at, value) in [
        ("from another address", 15, 3),
        ("to another address", 19, 3),
        ("at the end of its life", 8, 1),
        ("a fragment", 6, 0x20),
        ("not GRE", 9, 17),
        ("an IPv4 packet inside", 22, 0x08),
        ("of version 1", 21, 1),
    ] {
        assert!(!with(at, value), "{what}");
    }
    let mut options = good.clone();
    options[0] = 0x46;
    options[3] += 4;
    options.splice(20..20, [1, 1, 1, 1]);
    assert!(!is_request(&far, &options));
}

#[test]
fn only_tunnels_that_carry_ip_in_gre_between_two_ends_know_them() {
    let far = near(Mode::Gre);
    let good = to_come_back(&far.far_end());
    for mode in [Mode::Gretap, Mode::Ipip, Mode::Sit] {
        assert!(!is_request(
            &Tunnel {
                mode,
                ..far.clone()
            },
            &good
        ));
    }
    // Nor may a wildcard or a group be what the packet is sent to.
    for remote in [[0, 0, 0, 0], [239, 1, 1, 1]] {
        let wide = Tunnel {
            remote: remote.into(),
            ..far.clone()
        };
        assert!(!is_request(&wide, &to_come_back(&wide.far_end())));
    }
}
