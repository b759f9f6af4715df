//! Encapsulation limits that inner packets bring (v6-3).

use greyhound::{
    datapath::DropReason,
    tunnel::{Mode, Tunnel},
};

use super::{Lab, Router, outer, tunnel, tunnel_of};

/// An inner packet that may be encapsulated so often again.
fn limited(limit: u8, ttl: u8) -> String {
    format!(
        "IPv6(src='fd01::9',dst='fd02::9',hlim={ttl})/IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=4,optdata=bytes([{limit}])),\
         PadN(optdata=b'\\0')])/UDP(sport=1,dport=2)/b'limited'"
    )
}

#[test]
fn v6_3_the_limit_that_a_packet_brings_counts_down() {
    Lab::run(|lab| {
        let mut router = Router::start(tunnel(), None);
        router.enable_ipv6();
        let mut judge = lab.judge();
        for mode in [Mode::Ip6gre, Mode::Ip6ip6] {
            for encaplimit in [None, Some(4)] {
                router.publish(
                    Tunnel {
                        encaplimit,
                        ..tunnel_of(mode)
                    },
                    None,
                );
                judge.send(&limited(9, 64));
                let headers = outer(mode, true, true, true, "hlim=40,fl=0x12345");
                let eight = headers.replace("b'\\x04'", "b'\\x08'");
                assert_ne!(headers, eight);
                judge.want(&format!("{eight}/{}", limited(9, 63)));
            }
        }
        // Over IPv4 there is no such thing.
        for mode in [Mode::Gre, Mode::Sit] {
            router.publish(tunnel_of(mode), None);
            judge.send(&limited(0, 64));
            let headers = outer(mode, true, true, false, "ttl=40,id=id,flags='DF'");
            judge.want(&format!("{headers}/{}", limited(0, 63)));
        }
        let stats = router.slow.stats();
        assert_eq!(stats.drops.total(), 0, "{:?}", stats.drops);
    });
}

#[test]
fn v6_3_at_zero_the_sender_is_shown_the_byte() {
    Lab::run(|lab| {
        let mut router = Router::start(tunnel(), None);
        router.enable_ipv6();
        let mut judge = lab.judge();
        for mode in [Mode::Ip6gre, Mode::Ip6ip6] {
            router.publish(tunnel_of(mode), None);
            judge.send(&limited(0, 64));
            judge.want(&format!(
                "IPv6(src='fd00::1',dst='fd01::9',hlim=64,fl=label)/ICMPv6ParamProblem(ptr=44)/{}",
                limited(0, 63)
            ));
        }
        let stats = router.slow.stats();
        router.dropped(DropReason::EncapLimit, 2);
        assert_eq!(stats.icmp.answered.get(), 2);
    });
}
