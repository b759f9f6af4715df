use crate::{
    packet::{Checksum, GreKey, Ipv4, Ipv6, PacketBuf, ParseError, VecBuf},
    tunnel::{tests::tunnel, *},
};
use etherparse::PacketBuilder;
use proptest::prelude::*;
use std::sync::Arc;

/// The inner packet's IP fields that reach the outer header.
#[derive(Debug, Clone, Copy)]
struct Fields {
    v6: bool,
    tos: u8,
    ttl: u8,
    df: bool,
}

fn inner(fields: Fields, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let builder = if fields.v6 {
        PacketBuilder::ip(etherparse::IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                traffic_class: fields.tos,
                hop_limit: fields.ttl,
                source: [0xfd; 16],
                destination: [0xfe; 16],
                ..Default::default()
            },
            Default::default(),
        ))
    } else {
        PacketBuilder::ip(etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header {
                dscp: (fields.tos >> 2).try_into().unwrap(),
                ecn: (fields.tos & 3).try_into().unwrap(),
                time_to_live: fields.ttl,
                dont_fragment: fields.df,
                source: [10, 1, 0, 2],
                destination: [10, 2, 0, 2],
                ..Default::default()
            },
            Default::default(),
        ))
    };
    builder.udp(1000, 2000).write(&mut out, payload).unwrap();
    out
}

const PLAIN: Fields = Fields {
    v6: false,
    tos: 0,
    ttl: 63,
    df: false,
};

fn state() -> TunnelState {
    TunnelState::new(0, 1, Arc::default())
}

fn wrapped(tunnel: &Tunnel, packet: &[u8]) -> VecBuf {
    let mut buf = VecBuf::new(64, packet);
    encapsulate(tunnel, tunnel.remote, &mut buf, &state()).unwrap();
    buf
}

/// Receives a whole outer packet on `tunnel`.
fn receive(tunnel: &Tunnel, state: &TunnelState, outer: &[u8]) -> Result<Vec<u8>, Refusal> {
    let table = TunnelTable::new([tunnel.clone()]);
    let parsed = Outer::parse(outer, &table, None)?;
    let mut buf = VecBuf::new(0, outer);
    let result = decapsulate(tunnel, &parsed, &mut buf, state);
    if result.is_err() {
        assert_eq!(buf.data(), outer, "a refused packet was changed");
    }
    result.map(|()| buf.data().to_vec())
}

/// Rewrites one byte of an outer packet and mends the outer header checksum.
fn with_byte(outer: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut bytes = outer.to_vec();
    bytes[at] = value;
    bytes[10..12].fill(0);
    let sum = Checksum::new().add_bytes(&bytes[..20]).finish();
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn any_tunnel() -> impl Strategy<Value = Tunnel> {
    let options = any::<(Option<u32>, Option<u32>, bool, bool, bool, bool)>();
    let header = any::<(Option<u8>, Option<u8>, bool, bool)>();
    (options, header).prop_map(
        |((ikey, okey, icsum, ocsum, iseq, oseq), (ttl, tos, pmtudisc, ignore_df))| Tunnel {
            ikey: ikey.map(GreKey),
            okey: okey.map(GreKey),
            icsum,
            ocsum,
            iseq,
            oseq,
            ttl: ttl.map_or(Ttl::Inherit, |ttl| Ttl::Fixed(ttl.max(1))),
            tos: tos.map_or(Tos::Inherit, Tos::Fixed),
            pmtudisc,
            ignore_df,
            ..tunnel()
        },
    )
}

fn any_fields() -> impl Strategy<Value = Fields> {
    any::<(bool, u8, u8, bool)>().prop_map(|(v6, tos, ttl, df)| Fields { v6, tos, ttl, df })
}

proptest! {
    #[test]
    fn encapsulate_then_decapsulate_is_the_identity(
        tunnel in any_tunnel(), fields in any_fields(),
        payload in proptest::collection::vec(any::<u8>(), 0..64), padding in 0usize..20,
    ) {
        let packet = inner(fields, &payload);
        let mut padded = packet.clone();
        padded.resize(packet.len() + padding, 0x55);
        let outer = wrapped(&tunnel, &padded);
        prop_assert_eq!(outer.data().len(), packet.len() + tunnel.overhead());
        let back = receive(&tunnel.far_end(), &state(), outer.data());
        prop_assert_eq!(back, Ok(packet));
    }

    #[test]
    fn the_outer_header_is_as_configured(tunnel in any_tunnel(), fields in any_fields()) {
        let outer = wrapped(&tunnel, &inner(fields, b"x"));
        let ip = Ipv4::parse(outer.data()).unwrap();
        prop_assert!(ip.has_valid_checksum() && ip.identification() != 0);
        prop_assert_eq!((IpAddr::V4(ip.source()), IpAddr::V4(ip.destination())), (tunnel.local, tunnel.remote));
        // ecn-1 and tos-1: DSCP inherited or fixed, ECN always from inside.
        let dscp = match tunnel.tos { Tos::Inherit => fields.tos, Tos::Fixed(tos) => tos };
        prop_assert_eq!(ip.tos(), dscp & 0xfc | fields.tos & 3);
        prop_assert_eq!(ip.ttl(), match tunnel.ttl { Ttl::Inherit => fields.ttl, Ttl::Fixed(ttl) => ttl });
        // golden/README: DF always with pmtudisc; else the inner one's, unless ignore-df.
        let df = tunnel.pmtudisc || (!tunnel.ignore_df && !fields.v6 && fields.df);
        prop_assert_eq!(ip.dont_fragment(), df);
    }

    #[test]
    fn any_bytes_are_survived(tunnel in any_tunnel(), bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = receive(&tunnel, &state(), &bytes);
        let _ = encapsulate(&tunnel, tunnel.remote, &mut VecBuf::new(64, &bytes), &state());
        // The same behind an outer header that is right.
        let mut outer = wrapped(&tunnel, &inner(PLAIN, b"")).data()[..20].to_vec();
        outer.extend_from_slice(&bytes);
        let len = (outer.len() as u16).to_be_bytes();
        let outer = with_byte(&with_byte(&outer, 2, len[0]), 3, len[1]);
        let _ = receive(&tunnel.far_end(), &state(), &outer);
    }
}

#[test]
fn gre_1_other_versions_are_refused() {
    let outer = wrapped(&tunnel(), &inner(PLAIN, b"x"));
    for version in 1..8 {
        let bytes = with_byte(outer.data(), 21, version);
        let got = receive(&tunnel().far_end(), &state(), &bytes);
        assert_eq!(got, Err(Refusal::Gre(ParseError::Version)));
    }
}

#[test]
fn gre_2_reserved_bits() {
    let outer = wrapped(&tunnel(), &inner(PLAIN, b"x"));
    // Bits 1, 4 and 5 of the first byte; bits 6 and 7 there, and 8 to 12 in the second, are ignored.
    for bit in [0x40, 0x08, 0x04] {
        let bytes = with_byte(outer.data(), 20, bit);
        let got = receive(&tunnel().far_end(), &state(), &bytes);
        assert_eq!(got, Err(Refusal::Gre(ParseError::GreFlags)));
    }
    for (at, bits) in [(20, 0x03), (21, 0xf8)] {
        let bytes = with_byte(outer.data(), at, bits);
        assert!(receive(&tunnel().far_end(), &state(), &bytes).is_ok());
    }
    assert_eq!(&outer.data()[20..22], [0, 0]);
}

#[test]
fn gre_3_checksums_must_be_there_and_right_or_not_be_there() {
    let with = Tunnel {
        ocsum: true,
        icsum: true,
        ..tunnel()
    };
    let outer = wrapped(&with, &inner(PLAIN, b"payload"));
    assert_eq!(&outer.data()[26..28], [0, 0], "Reserved1");
    assert!(receive(&with.far_end(), &state(), outer.data()).is_ok());
    let mut broken = outer.data().to_vec();
    *broken.last_mut().unwrap() ^= 1;
    assert_eq!(
        receive(&with.far_end(), &state(), &broken),
        Err(Refusal::Checksum)
    );
    assert_eq!(
        receive(&tunnel().far_end(), &state(), outer.data()),
        Err(Refusal::ChecksumPresence)
    );
    let without = wrapped(&tunnel(), &inner(PLAIN, b"payload"));
    assert_eq!(
        receive(&with.far_end(), &state(), without.data()),
        Err(Refusal::ChecksumPresence)
    );
}

#[test]
fn gre_4_keys_separate_tunnels() {
    let keyed = |key: Option<u32>| Tunnel {
        ikey: key.map(GreKey),
        okey: key.map(GreKey),
        ..tunnel()
    };
    for sent in [None, Some(0), Some(1)] {
        for expected in [None, Some(0), Some(1)] {
            let outer = wrapped(&keyed(sent), &inner(PLAIN, b"x"));
            let got = receive(&keyed(expected).far_end(), &state(), outer.data());
            if sent == expected {
                assert!(got.is_ok());
            } else {
                assert_eq!(got, Err(Refusal::UnknownTunnel));
            }
        }
    }
}

#[test]
fn gre_5_sequence_numbers() {
    let with = Tunnel {
        iseq: true,
        oseq: true,
        ..tunnel()
    };
    let (sender, receiver) = (state(), state());
    let mut packets = Vec::new();
    for n in 0..3u32 {
        let mut buf = VecBuf::new(64, &inner(PLAIN, b"x"));
        encapsulate(&with, with.remote, &mut buf, &sender).unwrap();
        assert_eq!(&buf.data()[24..28], n.to_be_bytes());
        packets.push(buf.data().to_vec());
    }
    assert!(receive(&with.far_end(), &receiver, &packets[1]).is_ok());
    for old in [0, 1] {
        let got = receive(&with.far_end(), &receiver, &packets[old]);
        assert_eq!(got, Err(Refusal::SequenceOld));
    }
    assert!(receive(&with.far_end(), &receiver, &packets[2]).is_ok());
    let none = wrapped(&tunnel(), &inner(PLAIN, b"x"));
    assert_eq!(
        receive(&with.far_end(), &receiver, none.data()),
        Err(Refusal::SequenceMissing)
    );
    // golden/README: a number where none is configured is accepted and not checked.
    for packet in [&packets[2], &packets[0]] {
        assert!(receive(&tunnel().far_end(), &receiver, packet).is_ok());
    }
}

#[test]
fn gre_6_unknown_protocols_are_refused() {
    let outer = wrapped(&tunnel(), &inner(PLAIN, b"x"));
    for (high, low) in [(0x08, 0x06), (0x65, 0x58), (0x88, 0x47), (0, 0)] {
        let bytes = with_byte(&with_byte(outer.data(), 22, high), 23, low);
        assert_eq!(
            receive(&tunnel().far_end(), &state(), &bytes),
            Err(Refusal::UnknownProtocol)
        );
    }
}

#[test]
fn gre_7_the_tunnel_itself_leaves_the_inner_ttl() {
    for v6 in [false, true] {
        let packet = inner(Fields { v6, ..PLAIN }, b"x");
        let outer = wrapped(&tunnel(), &packet);
        assert!(outer.data().ends_with(&packet));
    }
}

#[test]
fn gre_8_its_own_outer_packets_are_refused() {
    let tunnel = tunnel();
    let once = wrapped(&tunnel, &inner(PLAIN, b"x"));
    let mut again = VecBuf::new(64, once.data());
    assert_eq!(
        encapsulate(&tunnel, tunnel.remote, &mut again, &state()),
        Err(Refusal::Recursion)
    );
    assert_eq!(again.data(), once.data());
    // Another tunnel's packets are payload like any other.
    let other = Tunnel {
        remote: std::net::IpAddr::from([198, 51, 100, 1]),
        ..tunnel.clone()
    };
    assert!(encapsulate(&other, other.remote, &mut again, &state()).is_ok());
    // Back from there it would go round through both.
    assert_eq!(
        encapsulate(&tunnel, tunnel.remote, &mut again, &state()),
        Err(Refusal::Recursion)
    );
}

#[test]
fn gre_8_the_nesting_depth_is_bounded() {
    let tunnel = |n: usize| Tunnel {
        remote: std::net::IpAddr::from([198, 51, 100, n as u8]),
        ..tunnel()
    };
    let mut packet = VecBuf::new(512, &inner(PLAIN, b"x"));
    for n in 0..=crate::tunnel::inner::DEPTH {
        assert_eq!(
            encapsulate(&tunnel(n), tunnel(n).remote, &mut packet, &state()),
            Ok(()),
            "{n}"
        );
    }
    let last = tunnel(crate::tunnel::inner::DEPTH + 1);
    let deepest = encapsulate(&last, last.remote, &mut packet, &state());
    assert_eq!(deepest, Err(Refusal::Recursion));
}

#[test]
fn gre_9_lengths_that_lie_are_refused() {
    let packet = inner(PLAIN, b"payload");
    let outer = wrapped(&tunnel(), &packet);
    // The inner total length claims one byte more than there is; the inner checksum stays right.
    let mut long = outer.data().to_vec();
    long[27] += 1;
    let sum = crate::packet::checksum::update(
        u16::from_be_bytes([long[34], long[35]]),
        u16::from_be_bytes([long[26], long[27] - 1]),
        u16::from_be_bytes([long[26], long[27]]),
    );
    long[34..36].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(
        receive(&tunnel().far_end(), &state(), &long),
        Err(Refusal::Inner(ParseError::TotalLength))
    );
    let mut lying = VecBuf::new(64, &packet[..packet.len() - 1]);
    assert_eq!(
        encapsulate(&tunnel(), tunnel().remote, &mut lying, &state()),
        Err(Refusal::Inner(ParseError::TotalLength))
    );
}

#[test]
fn gre_10_outer_options_are_understood_and_fragments_refused() {
    let outer = wrapped(&tunnel(), &inner(PLAIN, b"x"));
    let mut options = outer.data()[..20].to_vec();
    options.extend_from_slice(&[1, 1, 1, 1]);
    options.extend_from_slice(&outer.data()[20..]);
    options[0] = 0x46;
    options[3] += 4;
    options[10..12].fill(0);
    let sum = Checksum::new().add_bytes(&options[..24]).finish();
    options[10..12].copy_from_slice(&sum.to_be_bytes());
    assert!(receive(&tunnel().far_end(), &state(), &options).is_ok());
    let fragment = with_byte(outer.data(), 6, 0x20);
    assert_eq!(
        receive(&tunnel().far_end(), &state(), &fragment),
        Err(Refusal::OuterFragment)
    );
}

#[test]
fn ecn_2_congestion_reaches_the_inner_packet_with_its_checksum() {
    for v6 in [false, true] {
        for ecn in 0..4u8 {
            let packet = inner(
                Fields {
                    v6,
                    tos: 0xb8 | ecn,
                    ..PLAIN
                },
                b"x",
            );
            let outer = wrapped(&tunnel(), &packet);
            let congested = with_byte(outer.data(), 1, 0x03);
            let got = receive(&tunnel().far_end(), &state(), &congested);
            if ecn == 0 {
                assert_eq!(got, Err(Refusal::EcnCongestion));
                continue;
            }
            let got = got.unwrap();
            let tos = if v6 {
                Ipv6::parse(&got).unwrap().traffic_class()
            } else {
                let ip = Ipv4::parse(&got).unwrap();
                assert!(ip.has_valid_checksum());
                ip.tos()
            };
            assert_eq!(tos, 0xbb);
        }
    }
}

#[test]
fn a_buffer_without_room_stays_as_it_was() {
    let packet = inner(PLAIN, b"x");
    let mut buf = VecBuf::new(23, &packet);
    assert_eq!(
        encapsulate(&tunnel(), tunnel().remote, &mut buf, &state()),
        Err(Refusal::NoRoom)
    );
    assert_eq!(buf.data(), packet);
}
