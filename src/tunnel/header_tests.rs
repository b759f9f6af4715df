//! What the outer header takes from the inner one and gives back (ecn-1, ecn-2, tos-1, v6-3): every kind, every pairing of
//! families, by tables. etherparse says what the checksums have to be.

use std::{net::IpAddr, sync::Arc};

use super::*;
use crate::packet::{Ipv4, Ipv6, PacketBuf, VecBuf, ethernet, ipv4, ipv6, protocol};

/// The four values of ECN, as RFC 6040 orders them in its figure 4.
const NOT_ECT: u8 = 0;
const ECT0: u8 = 2;
const ECT1: u8 = 1;
const CE: u8 = 3;
const ECN: [u8; 4] = [NOT_ECT, ECT0, ECT1, CE];

/// DSCP AF11 and EF, as they stand in the byte.
const AF11: u8 = 0x28;
const EF: u8 = 0xb8;

/// Every kind, in UDP too where it is GRE.
fn tunnels() -> Vec<Tunnel> {
    let mut tunnels = Vec::new();
    for mode in Mode::ALL {
        let end = |n: u16| match mode.kind().underlay {
            Family::V6 => IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, n]),
            Family::V4 => IpAddr::from([192, 0, 2, n as u8]),
        };
        let bare = Tunnel::new(mode, end(1), end(2));
        if mode.kind().shim == Shim::Gre {
            let udp = Some(UdpEncap {
                source_port: None,
                checksum: true,
            });
            tunnels.push(Tunnel {
                udp,
                ..bare.clone()
            });
        }
        tunnels.push(bare);
    }
    tunnels
}

/// What is in an inner packet.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Inside {
    V4,
    V6,
    /// In a frame: no IP at all.
    Arp,
}

/// What a tunnel carries, as it enters it.
fn carried(tunnel: &Tunnel) -> &'static [Inside] {
    match tunnel.mode.kind().payload {
        Payload::Ip => &[Inside::V4, Inside::V6],
        Payload::Ipv4 => &[Inside::V4],
        Payload::Ipv6 => &[Inside::V6],
        Payload::Ethernet => &[Inside::V4, Inside::V6, Inside::Arp],
    }
}

#[derive(Debug, Clone, Copy)]
struct Fields {
    inside: Inside,
    tos: u8,
    ttl: u8,
    flow_label: u32,
}

const FIELDS: Fields = Fields {
    inside: Inside::V4,
    tos: 0,
    ttl: 33,
    flow_label: 0,
};

/// An inner packet, in a frame where the tunnel carries frames, by etherparse.
fn inner(tunnel: &Tunnel, fields: Fields) -> Vec<u8> {
    use etherparse::{IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder};
    let ip = match fields.inside {
        Inside::Arp => {
            return [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 6], &[0; 28]].concat();
        }
        Inside::V4 => IpHeaders::Ipv4(
            Ipv4Header {
                dscp: (fields.tos >> 2).try_into().unwrap(),
                ecn: (fields.tos & 3).try_into().unwrap(),
                time_to_live: fields.ttl,
                source: [10, 1, 0, 2],
                destination: [10, 2, 0, 2],
                ..Default::default()
            },
            Default::default(),
        ),
        Inside::V6 => IpHeaders::Ipv6(
            Ipv6Header {
                traffic_class: fields.tos,
                flow_label: fields.flow_label.try_into().unwrap(),
                hop_limit: fields.ttl,
                source: [0xfd; 16],
                destination: [0xfe; 16],
                ..Default::default()
            },
            Default::default(),
        ),
    };
    let mut out = Vec::new();
    let builder = PacketBuilder::ip(ip).udp(1000, 2000);
    builder.write(&mut out, b"payload").unwrap();
    match tunnel.mode.kind().payload {
        Payload::Ethernet => {
            let kind = if fields.inside == Inside::V4 {
                [8, 0]
            } else {
                [0x86, 0xdd]
            };
            [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..], &kind, &out].concat()
        }
        _ => out,
    }
}

fn state() -> TunnelState {
    TunnelState::new(0, 1, Arc::default())
}

fn wrapped(tunnel: &Tunnel, packet: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut buf = VecBuf::new(128, packet);
    let made = encapsulate(tunnel, tunnel.remote, &mut buf, &state());
    if made.is_err() {
        assert_eq!(buf.data(), packet, "a refused packet was changed");
    }
    made.map(|()| buf.data().to_vec())
}

fn received(tunnel: &Tunnel, outer: &[u8]) -> Result<Vec<u8>, Refusal> {
    let table = TunnelTable::new([tunnel.clone()]);
    let parsed = Outer::parse(outer, &table, None)?;
    let mut buf = VecBuf::new(0, outer);
    let got = decapsulate(tunnel, &parsed, &mut buf, &state());
    if got.is_err() {
        assert_eq!(buf.data(), outer, "a refused packet was changed");
    }
    got.map(|()| buf.data().to_vec())
}

/// TOS and TTL of an IP packet, or their namesakes.
fn tos_and_ttl(packet: &[u8]) -> (u8, u8) {
    match packet[0] >> 4 {
        6 => {
            let ip = Ipv6::parse(packet).unwrap();
            (ip.traffic_class(), ip.hop_limit())
        }
        _ => {
            let ip = Ipv4::parse(packet).unwrap();
            assert!(ip.has_valid_checksum());
            (ip.tos(), ip.ttl())
        }
    }
}

fn with_tos(mut packet: Vec<u8>, tos: u8) -> Vec<u8> {
    match packet[0] >> 4 {
        6 => ipv6::set_traffic_class(&mut packet, tos),
        _ => ipv4::set_tos(&mut packet, tos),
    }
    packet
}

/// Nothing but the TOS may differ between what went in and what came out, and the checksums are etherparse's.
fn assert_same_but_tos(got: &[u8], sent: &[u8], tos: u8, at: &str) {
    use etherparse::{NetSlice, SlicedPacket};
    assert_eq!(tos_and_ttl(got).0, tos, "{at}");
    let back = with_tos(got.to_vec(), tos_and_ttl(sent).0);
    let sliced = SlicedPacket::from_ip(got).unwrap();
    if let Some(NetSlice::Ipv4(ip)) = sliced.net {
        let header = ip.header().to_header();
        assert_eq!(
            header.header_checksum,
            header.calc_header_checksum(),
            "{at}"
        );
    }
    assert_eq!(back, sent, "{at}");
}

#[test]
fn ecn_1_tos_1_outward_every_kind_and_pairing() {
    let mut rows = 0;
    for base in tunnels() {
        for &inside in carried(&base) {
            for inner_ecn in ECN {
                for tos in [
                    Tos::Inherit,
                    Tos::Fixed(0),
                    Tos::Fixed(EF),
                    Tos::Fixed(0xff),
                ] {
                    for ttl in [Ttl::Inherit, Ttl::Fixed(1), Ttl::Fixed(255)] {
                        let tunnel = Tunnel {
                            tos,
                            ttl,
                            ..base.clone()
                        };
                        let fields = Fields {
                            inside,
                            tos: AF11 | inner_ecn,
                            ..FIELDS
                        };
                        let at = format!("{:?} {fields:?} {tos:?} {ttl:?}", tunnel.mode);
                        let outer = wrapped(&tunnel, &inner(&tunnel, fields)).unwrap();
                        // A frame without IP in it has no such fields.
                        let (inner_tos, inner_ttl) = match inside {
                            Inside::Arp => (0, 64),
                            _ => (fields.tos, fields.ttl),
                        };
                        let dscp = match tos {
                            Tos::Inherit => inner_tos,
                            Tos::Fixed(tos) => tos,
                        };
                        let expected = (
                            dscp & 0xfc | inner_tos & 3,
                            match ttl {
                                Ttl::Inherit => inner_ttl,
                                Ttl::Fixed(ttl) => ttl,
                            },
                        );
                        assert_eq!(tos_and_ttl(&outer), expected, "{at}");
                        rows += 1;
                    }
                }
            }
        }
    }
    // Eight kinds, those of GRE once more in UDP, with what they carry: twenty-five pairings.
    assert_eq!(rows, 25 * 4 * 4 * 3);
}

/// Where the IP packet begins in what the tunnel carries.
fn link_header(tunnel: &Tunnel) -> usize {
    match tunnel.mode.kind().payload {
        Payload::Ethernet => 14,
        _ => 0,
    }
}

/// RFC 6040, figure 4: rows by the inner header, columns by the outer one; none where the packet is dropped.
const INWARD: [[Option<u8>; 4]; 4] = [
    [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
    [Some(ECT0), Some(ECT0), Some(ECT1), Some(CE)],
    [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)],
    [Some(CE), Some(CE), Some(CE), Some(CE)],
];

#[test]
fn ecn_2_tos_1_inward_every_kind_and_pairing() {
    for base in tunnels() {
        let far = base.far_end();
        for &inside in carried(&base) {
            for (row, inner_ecn) in ECN.into_iter().enumerate() {
                for (column, outer_ecn) in ECN.into_iter().enumerate() {
                    let fields = Fields {
                        inside,
                        tos: AF11 | inner_ecn,
                        ..FIELDS
                    };
                    let at = format!("{:?} {fields:?} in {outer_ecn}", base.mode);
                    let sent = inner(&base, fields);
                    // The outer DSCP is the underlay's: it stays outside (RFC 2983 section 4, the pipe model).
                    let outer = with_tos(wrapped(&base, &sent).unwrap(), EF | outer_ecn);
                    let got = received(&far, &outer);
                    if matches!(inside, Inside::Arp) {
                        assert_eq!(got.as_ref(), Ok(&sent), "{at}");
                        continue;
                    }
                    // As the kernel, a packet directly in a frame is marked too.
                    let link = link_header(&base);
                    match INWARD[row][column] {
                        None => assert_eq!(got, Err(Refusal::EcnCongestion), "{at}"),
                        Some(ecn) => {
                            let got = got.unwrap();
                            assert_eq!(got[..link], sent[..link], "{at}");
                            assert_same_but_tos(&got[link..], &sent[link..], AF11 | ecn, &at);
                        }
                    }
                }
            }
        }
    }
}

/// RFC 2983's uniform model, as iproute2's `dscp inherit`: the inner DSCP becomes the outer one's, ECN apart from it.
#[test]
fn tos_1_the_outer_dscp_goes_inside_on_request() {
    for base in tunnels() {
        let far = Tunnel {
            copy_dscp: true,
            ..base.far_end()
        };
        for &inside in carried(&base) {
            for (inner_ecn, outer_ecn, expected) in [
                (ECT0, NOT_ECT, ECT0),
                (ECT0, CE, CE),
                (NOT_ECT, ECT1, NOT_ECT),
            ] {
                let fields = Fields {
                    inside,
                    tos: AF11 | inner_ecn,
                    ..FIELDS
                };
                let sent = inner(&base, fields);
                let outer = with_tos(wrapped(&base, &sent).unwrap(), EF | outer_ecn);
                let got = received(&far, &outer).unwrap();
                let at = format!("{:?} {fields:?} in {outer_ecn}", base.mode);
                if matches!(inside, Inside::Arp) {
                    assert_eq!(got, sent, "{at}");
                    continue;
                }
                let link = link_header(&base);
                let dscp = if link == 0 { EF } else { AF11 };
                assert_same_but_tos(&got[link..], &sent[link..], dscp | expected, &at);
            }
        }
    }
}

#[test]
fn v6_3_flow_labels_of_every_kind_over_ipv6() {
    let over_ipv6 = tunnels().into_iter().filter(|t| t.local.is_ipv6());
    for base in over_ipv6 {
        for &inside in carried(&base) {
            for inner_label in [0, 0x54321] {
                let fields = Fields {
                    inside,
                    flow_label: inner_label,
                    ..FIELDS
                };
                let packet = inner(&base, fields);
                let label = |flow_label| {
                    let tunnel = Tunnel {
                        flow_label,
                        ..base.clone()
                    };
                    let outer = wrapped(&tunnel, &packet).unwrap();
                    Ipv6::parse(&outer).unwrap().flow_label()
                };
                let at = format!("{:?} {fields:?}", base.mode);
                let hash = label(FlowLabel::Hash);
                assert_ne!(hash, 0, "{at}: no label (RFC 6437 section 2)");
                assert_eq!(label(FlowLabel::Fixed(0x12345)), 0x12345, "{at}");
                assert_eq!(label(FlowLabel::Fixed(0)), 0, "{at}");
                let inherited = match (inside, inner_label) {
                    (Inside::V6, 0x54321) => 0x54321,
                    _ => hash,
                };
                assert_eq!(label(FlowLabel::Inherit), inherited, "{at}");
            }
        }
    }
}

/// An IPv6 packet with an encapsulation limit of its own, in a frame where the tunnel carries frames.
fn limited(tunnel: &Tunnel, limit: u8) -> Vec<u8> {
    let fields = Fields {
        inside: Inside::V6,
        ..FIELDS
    };
    let mut packet = inner(tunnel, fields);
    let ip = match tunnel.mode.kind().payload {
        Payload::Ethernet => ethernet::HEADER_LEN,
        _ => 0,
    };
    let option = [protocol::UDP, 0, 4, 1, limit, 1, 1, 0];
    packet.splice(ip + 40..ip + 40, option);
    packet[ip + 5] += 8;
    packet[ip + 6] = protocol::DESTINATION_OPTIONS;
    packet
}

/// The limit that an outer packet says, and all of its first destination options.
fn outer_limit(outer: &[u8]) -> Option<u8> {
    let ip = Ipv6::parse(outer).unwrap();
    let at_once = ip.next_header() == protocol::DESTINATION_OPTIONS;
    let limit = ip.encapsulation_limit().filter(|_| at_once)?;
    assert_eq!(outer[41..44], [0, 4, 1]);
    assert_eq!(outer[45..48], [1, 1, 0]);
    Some(limit.value)
}

#[test]
fn v6_3_encapsulation_limits_count_down() {
    for base in tunnels() {
        if !carried(&base).contains(&Inside::V6) {
            continue;
        }
        let over_ipv6 = base.local.is_ipv6();
        for configured in [None, Some(0), Some(4), Some(255)] {
            let tunnel = Tunnel {
                encaplimit: configured.filter(|_| over_ipv6),
                ..base.clone()
            };
            for (own, expected) in [
                (Some(0), Err(Refusal::EncapLimit)),
                (Some(1), Ok(Some(0))),
                (Some(200), Ok(Some(199))),
                (None, Ok(configured)),
            ] {
                let at = format!("{:?}, {configured:?}, {own:?}", tunnel.mode);
                let packet = match own {
                    Some(limit) => limited(&tunnel, limit),
                    None => inner(
                        &tunnel,
                        Fields {
                            inside: Inside::V6,
                            ..FIELDS
                        },
                    ),
                };
                let outer = wrapped(&tunnel, &packet);
                if !over_ipv6 {
                    // RFC 2473 knows of tunnels over IPv6 alone.
                    let in_front = outer.unwrap().len() - packet.len();
                    assert_eq!(tunnel.overhead_of(&packet), in_front, "{at}");
                    continue;
                }
                let said = outer.as_ref().map(|outer| outer_limit(outer));
                assert_eq!(said.map_err(|e| *e), expected, "{at}");
                if let Ok(outer) = outer {
                    let in_front = outer.len() - packet.len();
                    assert_eq!(tunnel.overhead_of(&packet), in_front, "{at}");
                    assert_eq!(tunnel.inner_at(&outer), in_front, "{at}");
                    let back = received(&tunnel.far_end(), &outer);
                    assert_eq!(back.as_ref(), Ok(&packet), "{at}");
                }
            }
        }
    }
}

/// RFC 2473 section 4.1.1: however the tunnels lead into each other, the packet ends.
#[test]
fn v6_3_a_packet_is_encapsulated_as_often_as_its_first_tunnel_says() {
    let tunnel = |n: u16| {
        let end = |n: u16| IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, n]);
        Tunnel {
            encaplimit: Some(3),
            ..Tunnel::new(Mode::Ip6ip6, end(100), end(n))
        }
    };
    let fields = Fields {
        inside: Inside::V6,
        ..FIELDS
    };
    let mut packet = inner(&tunnel(1), fields);
    for n in 1..=4 {
        packet = wrapped(&tunnel(n), &packet).unwrap();
        assert_eq!(outer_limit(&packet), Some(4 - n as u8));
    }
    assert_eq!(wrapped(&tunnel(5), &packet), Err(Refusal::EncapLimit));
}
