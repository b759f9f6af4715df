//! Tunnels whose device is the kernel's own: as the kernel does it, or the kernel itself.

use super::*;
use crate::tunnel::Peers;

fn bed() -> Bed {
    let mut bed = Bed::new();
    bed.tunnels[0].0.kernels = true;
    bed
}

fn came_out(bed: &Bed) -> u64 {
    bed.record(0).state.counters.rx_packets.get()
}

#[test]
fn plain_packets_go_both_ways() {
    let mut bed = bed();
    let (verdict, _) = bed.run(&outbound(OUTSIDE, 64, 8), OVERLAY);
    assert_eq!(verdict, Verdict::Transmit(UNDERLAY));
    bed.routes = Bed::new().routes;
    let inner = ipv4(OUTSIDE, INSIDE, 64, 8);
    let (verdict, frame) = bed.run(&inbound(&inner, false), UNDERLAY);
    assert_eq!(verdict, Verdict::Transmit(OVERLAY));
    assert_eq!(frame[14 + 8], 63);
    assert_eq!(came_out(&bed), 1);
}

#[test]
fn whatever_else_comes_out_of_it_goes_back_whole() {
    let to = |destination, ttl| inbound(&ipv4(OUTSIDE, destination, ttl, 8), false);
    let good = to(INSIDE, 64);
    let with = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    let mut congested = with(15, 3);
    let checksum = crate::packet::checksum::Checksum::new();
    congested[24..26].fill(0);
    let checksum = checksum.add_bytes(&congested[14..34]).finish();
    congested[24..26].copy_from_slice(&checksum.to_be_bytes());
    let cases = [
        ("ttl 1", to(INSIDE, 1), PuntReason::TtlExpiring),
        (
            "the router itself",
            to([10, 1, 0, 1], 64),
            PuntReason::LocalDelivery,
        ),
        (
            "unknown neighbour",
            to([10, 1, 0, 77], 64),
            PuntReason::Unresolved,
        ),
        ("no route", to([198, 51, 100, 1], 64), PuntReason::NoRoute),
        (
            "back to where it came from",
            to([10, 2, 0, 9], 64),
            PuntReason::NotPlain,
        ),
        ("multicast", to([224, 0, 0, 5], 64), PuntReason::NotPlain),
        (
            "from ourselves",
            inbound(&ipv4([10, 1, 0, 1], INSIDE, 64, 8), false),
            PuntReason::LocalDelivery,
        ),
        ("bits 8 to 12", with(35, 0x80), PuntReason::NotPlain),
        ("unknown payload", with(36, 0x99), PuntReason::NotPlain),
        ("inner version", with(38, 0x55), PuntReason::NotPlain),
        ("inner length", with(41, 0xff), PuntReason::NotPlain),
        ("inner checksum", with(48, 0xff), PuntReason::NotPlain),
        (
            "congestion that cannot be told",
            congested,
            PuntReason::NotPlain,
        ),
    ];
    for (name, frame, reason) in cases {
        let mut bed = bed();
        let reason = match name {
            "from ourselves" => {
                // Without own addresses in the bed's table it is plain.
                let mut fib = bed.fib();
                fib.set_own([IpAddr::from([10, 1, 0, 1])]);
                let mut buf = VecBuf::new(64, &frame);
                let verdict = forward(&mut buf, UNDERLAY, &fib, &mut bed.state);
                assert_eq!(verdict, service(PuntReason::NotPlain));
                assert_eq!(buf.data(), &frame[14..]);
                continue;
            }
            _ => reason,
        };
        let (verdict, after) = bed.run(&frame, UNDERLAY);
        assert_eq!(verdict, service(reason), "{name}");
        assert_eq!(after, &frame[14..], "{name}: changed");
        assert_eq!(came_out(&bed), 0, "{name}");
        assert_eq!(
            bed.record(0).drops.iter().map(|(_, n)| n).sum::<u64>(),
            0,
            "{name}"
        );
    }
}

#[test]
fn what_the_next_tunnel_does_not_take_goes_back_whole() {
    let frame = inbound(&ipv4(OUTSIDE, [10, 3, 0, 1], 64, 8), false);
    // Numbers are another thread's.
    let mut numbered = bed();
    numbered.state.owns_sequences = false;
    let (verdict, after) = numbered.run(&frame, UNDERLAY);
    assert_eq!(verdict, service(PuntReason::SequenceOwner));
    assert_eq!(after, &frame[14..]);
    let mut onward = bed();
    let (verdict, _) = onward.run(&frame, UNDERLAY);
    assert_eq!(verdict, Verdict::Transmit(UNDERLAY));
    assert_eq!(came_out(&onward), 1);
}

#[test]
fn what_does_not_get_in_goes_back_as_it_came() {
    // The tunnel's own outer packet, and one larger than it takes.
    let own = PacketBuilder::ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
    let mut round = Vec::new();
    own.write(
        &mut round,
        etherparse::ip_number::GRE,
        &[0, 0, 8, 0, 0x45, 0, 0, 0],
    )
    .unwrap();
    let mut bed = bed();
    bed.routes.insert(
        "192.0.2.2/32".parse().unwrap(),
        NextHop::Tunnel {
            id: TunnelId(0),
            gateway: None,
            mtu: 1476,
        },
    );
    let frame = framed(mac(OVERLAY), &round);
    let (verdict, after) = bed.run(&frame, OVERLAY);
    assert_eq!(verdict, service(PuntReason::NotPlain));
    assert_eq!(after, round);
    let (verdict, after) = self::bed().run(&outbound(OUTSIDE, 64, 1449), OVERLAY);
    assert_eq!(verdict, service(PuntReason::TooBig));
    assert_eq!(after[8], 64);
    // What a kind does not carry.
    let (mut bed, _) = bed_of(Mode::Ipip);
    bed.tunnels[0].0.kernels = true;
    let six = framed(mac(OVERLAY), &ipv6("fd01::2", "fd02::2", 64, 8));
    assert_eq!(bed.verdict(&six, OVERLAY), service(PuntReason::NotPlain));
    // From the other end itself (`ip6_tnl_addr_conflict`).
    let (mut bed, _) = bed_of(Mode::Ip6tnl);
    bed.tunnels[0].0.kernels = true;
    let mirrored = framed(mac(OVERLAY), &ipv6("fd09::2", "fd02::2", 64, 8));
    assert_eq!(
        bed.verdict(&mirrored, OVERLAY),
        service(PuntReason::NotPlain)
    );
}

#[test]
fn a_next_hop_that_is_no_neighbour_is_asked_for_by_the_kernel() {
    let mut bed = bed();
    let any = Ipv4Addr::UNSPECIFIED.into();
    (bed.tunnels[0].0.remote, bed.tunnels[0].0.peers) = (any, Arc::new(Peers::closed()));
    let verdict = bed.verdict(&outbound(OUTSIDE, 64, 8), OVERLAY);
    assert_eq!(verdict, service(PuntReason::TunnelNotReady));
}

#[test]
fn both_families_go_by_an_ip6tnl_device_and_six_alone_by_sit() {
    for (mode, carried) in [(Mode::Ip6tnl, [true, true]), (Mode::Sit6, [false, true])] {
        for (packet, carried) in [
            ipv4(INSIDE, OUTSIDE, 64, 8),
            ipv6("fd01::2", "fd02::2", 64, 8),
        ]
        .iter()
        .zip(carried)
        {
            let (mut bed, _) = bed_of(mode);
            bed.tunnels[0].0.kernels = true;
            let verdict = bed.verdict(&framed(mac(OVERLAY), packet), OVERLAY);
            let expected = match carried {
                true => Verdict::Transmit(UNDERLAY),
                false => service(PuntReason::NotPlain),
            };
            assert_eq!(verdict, expected, "{mode:?}");
        }
    }
}

#[test]
fn congestion_marks_outside_are_the_kernels() {
    let marks = |mode: Mode, tos: crate::tunnel::Tos| -> Vec<u8> {
        let mark = |ecn: u8| {
            let (mut bed, _) = bed_of(mode);
            bed.tunnels[0].0.kernels = true;
            bed.tunnels[0].0.tos = tos;
            let mut packet = ipv4(INSIDE, OUTSIDE, 64, 8);
            crate::packet::ipv4::set_tos(&mut packet, 0xb8 | ecn);
            let (_, frame) = bed.run(&framed(mac(OVERLAY), &packet), OVERLAY);
            match mode.kind().underlay {
                Family::V4 => frame[15],
                Family::V6 => frame[14] << 4 | frame[15] >> 4,
            }
        };
        (0..4).map(mark).collect()
    };
    use crate::tunnel::Tos::{Fixed, Inherit};
    assert_eq!(marks(Mode::Gre, Fixed(0)), [0, 1, 2, 2]);
    assert_eq!(marks(Mode::Gre, Inherit), [0xb8, 0xb9, 0xba, 0xba]);
    assert_eq!(marks(Mode::Ip6tnl, Fixed(0x20)), [0x20, 0x21, 0x22, 0x22]);
    assert_eq!(marks(Mode::Ip6gre, Fixed(0)), [0; 4]);
    assert_eq!(marks(Mode::Ip6gre, Inherit), [0xb8, 0xb9, 0xba, 0xbb]);
}
