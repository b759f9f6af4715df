//! udp-1: GRE in UDP, judged by etherparse.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice, UdpSlice};
use proptest::prelude::*;

use super::*;
use crate::packet::{Checksum, Ipv6, PacketBuf, VecBuf, protocol};

const IN_UDP: UdpEncap = UdpEncap {
    source_port: None,
    checksum: true,
};

/// A tunnel in UDP over one family or the other.
fn tunnel(v6: bool, udp: UdpEncap) -> Tunnel {
    let end = |n: u16| match v6 {
        true => IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, n]),
        false => IpAddr::from([192, 0, 2, n as u8]),
    };
    let mode = if v6 { Mode::Ip6gre } else { Mode::Gre };
    Tunnel {
        udp: Some(udp),
        ..Tunnel::new(mode, end(1), end(2))
    }
}

fn without_checksum(v6: bool) -> Tunnel {
    let udp = UdpEncap {
        checksum: false,
        ..IN_UDP
    };
    tunnel(v6, udp)
}

fn packet(v6: bool, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let builder = match v6 {
        true => PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64),
        false => PacketBuilder::ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64),
    };
    let builder = builder.udp(ports.0, ports.1);
    builder.write(&mut out, payload).unwrap();
    out
}

fn state() -> TunnelState {
    TunnelState::new(0, 1, Arc::default())
}

fn wrapped(tunnel: &Tunnel, packet: &[u8]) -> Vec<u8> {
    let mut buf = VecBuf::new(128, packet);
    encapsulate(tunnel, tunnel.remote, &mut buf, &state()).unwrap();
    buf.data().to_vec()
}

fn received(tunnel: &Tunnel, outer: &[u8]) -> Result<Vec<u8>, Refusal> {
    let table = TunnelTable::new([tunnel.clone()]);
    let parsed = Outer::parse(outer, &table, None)?;
    let mut buf = VecBuf::new(0, outer);
    decapsulate(tunnel, &parsed, &mut buf, &state()).map(|()| buf.data().to_vec())
}

/// Where the UDP header begins.
fn udp_at(outer: &[u8]) -> usize {
    match outer[0] >> 4 {
        6 => Ipv6::parse(outer).unwrap().upper_layer().unwrap().at,
        _ => 20,
    }
}

fn udp_of(outer: &[u8]) -> UdpSlice<'_> {
    let sliced = SlicedPacket::from_ip(outer).unwrap();
    match sliced.transport {
        Some(TransportSlice::Udp(udp)) => udp,
        other => panic!("no UDP: {other:?}"),
    }
}

/// The checksum that etherparse would have sent.
fn right_checksum(outer: &[u8]) -> u16 {
    let sliced = SlicedPacket::from_ip(outer).unwrap();
    let udp = udp_of(outer);
    let header = udp.to_header();
    let sum = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload())
        }
        Some(NetSlice::Ipv6(ip)) => {
            header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload())
        }
        _ => panic!("no IP"),
    };
    sum.unwrap()
}

proptest! {
    #[test]
    fn udp_1_what_goes_in_comes_out(
        v6: bool, inner_v6: bool, checksum: bool, limit in proptest::option::of(any::<u8>()),
        source_port in proptest::option::of(1u16..), options: (Option<u32>, bool, bool),
        payload in proptest::collection::vec(any::<u8>(), 0..64), padding in 0usize..9,
    ) {
        let tunnel = Tunnel {
            ikey: options.0.map(GreKey), okey: options.0.map(GreKey),
            icsum: options.1, ocsum: options.1, iseq: options.2, oseq: options.2,
            encaplimit: limit.filter(|_| v6),
            ..tunnel(v6, UdpEncap { source_port, checksum })
        };
        let inner = packet(inner_v6, (1, 2), &payload);
        let mut outer = wrapped(&tunnel, &inner);
        prop_assert_eq!(outer.len(), inner.len() + tunnel.overhead());
        let udp = udp_of(&outer);
        prop_assert_eq!(udp.destination_port(), 4754);
        prop_assert_eq!(usize::from(udp.length()), outer.len() - udp_at(&outer));
        prop_assert_eq!(udp.checksum(), if checksum { right_checksum(&outer) } else { 0 });
        if let Some(port) = source_port {
            prop_assert_eq!(udp.source_port(), port);
        }
        outer.resize(outer.len() + padding, 0x55);
        prop_assert_eq!(received(&tunnel.far_end(), &outer), Ok(inner));
    }

    #[test]
    fn udp_1_any_datagram_is_survived(
        v6: bool, limited: bool, bytes in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut tunnel = tunnel(v6, IN_UDP);
        tunnel.encaplimit = tunnel.encaplimit.filter(|_| limited);
        let outer = wrapped(&tunnel, &packet(false, (1, 2), b""));
        let at = udp_at(&outer);
        let mut outer = [&outer[..at + 8], &bytes].concat();
        let (ip_at, ip_len) = if v6 { (4, outer.len() - 40) } else { (2, outer.len()) };
        for (at, len) in [(ip_at, ip_len), (at + 4, outer.len() - at)] {
            outer[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
        }
        let _ = received(&tunnel.far_end(), &with_right_checksums(outer));
    }
}

/// Both outer checksums as they have to be.
fn with_right_checksums(mut outer: Vec<u8>) -> Vec<u8> {
    if outer[0] >> 4 == 4 {
        outer[10..12].fill(0);
        let sum = Checksum::new().add_bytes(&outer[..20]).finish();
        outer[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let at = udp_at(&outer);
    let sum = right_checksum(&outer);
    outer[at + 6..at + 8].copy_from_slice(&sum.to_be_bytes());
    outer
}

#[test]
fn udp_1_a_flow_has_one_source_port_and_many_flows_have_many() {
    for v6 in [false, true] {
        for inner_v6 in [false, true] {
            let tunnel = tunnel(v6, IN_UDP);
            let port = |ports, payload: &[u8]| {
                udp_of(&wrapped(&tunnel, &packet(inner_v6, ports, payload))).source_port()
            };
            assert_eq!(port((1, 53), b"a"), port((1, 53), b"another"));
            let ports: HashSet<u16> = (0..1000).map(|n| port((n, 53), b"")).collect();
            // A thousand balls into 16384 boxes: 970 are hit on average, with a standard deviation of 5.
            assert!(ports.len() > 930, "{}", ports.len());
            assert!(ports.iter().all(|port| *port >= 49_152), "{ports:?}");
        }
    }
}

#[test]
fn udp_1_a_fixed_port_is_every_flows() {
    for v6 in [false, true] {
        let fixed = UdpEncap {
            source_port: Some(4754),
            ..IN_UDP
        };
        let tunnel = tunnel(v6, fixed);
        for n in 0..100 {
            let outer = wrapped(&tunnel, &packet(false, (n, 53), b""));
            assert_eq!(udp_of(&outer).source_port(), 4754);
        }
    }
}

/// RFC 6438 and RFC 8086 section 3.2.1: both tell the same flows apart, and neither is the other.
#[test]
fn the_flow_label_and_the_source_port_come_from_one_hash() {
    let (in_udp, bare) = (
        tunnel(true, IN_UDP),
        Tunnel {
            udp: None,
            ..tunnel(true, IN_UDP)
        },
    );
    let label = |outer: &[u8]| Ipv6::parse(outer).unwrap().flow_label();
    let mut seen = HashSet::new();
    for n in 0..1000 {
        let inner = packet(n % 2 == 0, (n, 53), b"first");
        let outer = wrapped(&in_udp, &inner);
        let same_flow = packet(n % 2 == 0, (n, 53), b"second");
        assert_eq!(label(&outer), label(&wrapped(&bare, &inner)));
        assert_eq!(label(&outer), label(&wrapped(&in_udp, &same_flow)));
        let hash = crate::packet::flow::hash(&inner);
        let port = udp_of(&outer).source_port();
        assert_eq!(label(&outer), (hash & 0xf_ffff).max(1));
        assert_eq!(u32::from(port), 0xc000 | hash >> 18);
        seen.insert((label(&outer), port));
    }
    assert!(seen.len() > 998);
}

#[test]
fn udp_1_checksums_must_be_right_and_over_ipv6_be_there() {
    let inner = packet(false, (1, 2), b"payload");
    for v6 in [false, true] {
        let (with, without) = (tunnel(v6, IN_UDP), without_checksum(v6));
        let (good, zero) = (wrapped(&with, &inner), wrapped(&without, &inner));
        let mut wrong = good.clone();
        *wrong.last_mut().unwrap() ^= 1;
        let mut moved = good.clone();
        moved[udp_at(&good) + 1] ^= 1;
        for receiver in [&with, &without] {
            let receiver = receiver.far_end();
            assert_eq!(received(&receiver, &good).as_ref(), Ok(&inner));
            for bad in [&wrong, &moved] {
                assert_eq!(received(&receiver, bad), Err(Refusal::UdpChecksum));
            }
        }
        let asked_for = received(&with.far_end(), &zero);
        let expected = match v6 {
            true => Err(Refusal::UdpChecksum),
            false => Ok(inner.clone()),
        };
        assert_eq!(asked_for, expected);
        assert_eq!(received(&without.far_end(), &zero).as_ref(), Ok(&inner));
    }
}

#[test]
fn udp_1_lengths_that_lie_are_refused_and_what_follows_the_datagram_is_cut() {
    let inner = packet(false, (1, 2), b"payload");
    for v6 in [false, true] {
        let tunnel = without_checksum(v6);
        let outer = wrapped(&tunnel, &inner);
        let at = udp_at(&outer);
        let with_length = |len: usize| {
            let mut outer = outer.clone();
            outer[at + 4..at + 6].copy_from_slice(&(len as u16).to_be_bytes());
            received(&tunnel.far_end(), &outer)
        };
        let whole = outer.len() - at;
        assert_eq!(with_length(whole), Ok(inner.clone()));
        for lie in [0, 7, whole + 1, 0xffff] {
            assert_eq!(with_length(lie), Err(Refusal::UdpLength), "{lie}");
        }
        assert_eq!(
            with_length(8),
            Err(Refusal::Gre(ParseError::Truncated)),
            "no GRE"
        );
        assert_eq!(
            with_length(whole - 1),
            Err(Refusal::Inner(ParseError::TotalLength))
        );
        let mut longer = wrapped(&tunnel, &packet(false, (1, 2), b"payload++"));
        // The IP packet ends two bytes behind the datagram.
        longer[at + 12..].fill(0);
        longer[at + 12..at + 12 + inner.len()].copy_from_slice(&inner);
        longer[at + 4..at + 6].copy_from_slice(&(whole as u16).to_be_bytes());
        assert_eq!(received(&tunnel.far_end(), &longer).as_ref(), Ok(&inner));
    }
}

#[test]
fn udp_1_is_a_class_of_its_own() {
    let inner = packet(false, (1, 2), b"x");
    for v6 in [false, true] {
        let in_udp = tunnel(v6, IN_UDP);
        let bare = Tunnel {
            udp: None,
            ..in_udp.clone()
        };
        for (sent, configured) in [(&in_udp, &bare), (&bare, &in_udp)] {
            let unknown = received(&configured.far_end(), &wrapped(sent, &inner));
            assert_eq!(unknown, Err(Refusal::UnknownTunnel));
        }
        // Side by side, and each takes its own.
        let (first, second) = (
            bare.far_end(),
            Tunnel {
                id: TunnelId(1),
                ..in_udp.far_end()
            },
        );
        let table = TunnelTable::new([first, second]);
        let found = |sent| Outer::parse(&wrapped(sent, &inner), &table, None).unwrap();
        assert_eq!(found(&bare).tunnel, TunnelId(0));
        assert_eq!(found(&in_udp).tunnel, TunnelId(1));
        // To any other port it is nobody's, whatever it looks like.
        let mut other = wrapped(&without_checksum(v6), &inner);
        let at = udp_at(&other);
        for port in [4753u16, 4755, 53, 0] {
            other[at + 2..at + 4].copy_from_slice(&port.to_be_bytes());
            other[at + 4..at + 6].fill(0);
            let nobodys = received(&in_udp.far_end(), &other);
            assert_eq!(nobodys, Err(Refusal::UnknownTunnel));
        }
    }
}

#[test]
fn gre_8_a_packet_does_not_go_round_in_udp() {
    let mode = |t: &Tunnel| if t.udp.is_some() { "in UDP" } else { "bare" };
    for v6 in [false, true] {
        let in_udp = tunnel(v6, IN_UDP);
        let bare = Tunnel {
            udp: None,
            ..in_udp.clone()
        };
        for first in [&in_udp, &bare] {
            let once = wrapped(first, &packet(false, (1, 2), b"x"));
            for second in [&in_udp, &bare] {
                let mut again = VecBuf::new(128, &once);
                let entered = encapsulate(second, second.remote, &mut again, &state());
                let expected = match first.udp == second.udp {
                    true => Err(Refusal::Recursion),
                    false => Ok(()),
                };
                let which = (mode(first), mode(second));
                assert_eq!(entered, expected, "{which:?}");
                if expected.is_ok() {
                    // Back in the first one it would go round through both.
                    let round = encapsulate(first, first.remote, &mut again, &state());
                    assert_eq!(round, Err(Refusal::Recursion), "{which:?}");
                }
            }
        }
    }
}

/// What a kernel leaves to the device: `udp_set_csum` and `lco_csum`.
#[test]
fn what_a_sender_behind_a_veth_left_open_is_finished_from_the_inside_out() {
    for v6 in [false, true] {
        let tunnel = tunnel(v6, IN_UDP);
        for inner_v6 in [false, true] {
            let finished = packet(inner_v6, (1, 2), b"payload");
            let outer = wrapped(&tunnel, &finished);
            let at = udp_at(&outer);
            let pseudo = |ip: &[u8], len| {
                let addresses = super::outer::addresses(ip);
                Checksum::pseudo_header(addresses, protocol::UDP, len).fold()
            };
            // The inner sum alone is open: the outer one is that of the packet when it will be finished.
            let inside = outer.len() - finished.len();
            let field = inside + udp_at(&finished) + 6;
            let open = pseudo(&finished, finished.len() - udp_at(&finished));
            let mut inner_open = outer.clone();
            inner_open[field..field + 2].copy_from_slice(&open.to_be_bytes());
            // The outer sum alone is open.
            let mut outer_open = outer.clone();
            let sum = pseudo(&outer, outer.len() - at);
            outer_open[at + 6..at + 8].copy_from_slice(&sum.to_be_bytes());
            let table = TunnelTable::new([tunnel.far_end()]);
            for open in [inner_open, outer_open] {
                let refused = received(&tunnel.far_end(), &open);
                assert_eq!(refused, Err(Refusal::UdpChecksum));
                let mut packet = open.clone();
                let parsed = Outer::parse(&packet, &table, None).unwrap();
                assert!(parsed.complete_checksums(&mut packet));
                assert_eq!(packet, outer);
                assert!(!parsed.complete_checksums(&mut packet));
            }
        }
    }
}
