//! What packets that leave must be, told by etherparse and by the textbook, not by the code under test.

use std::net::IpAddr;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};
use greyhound::tunnel::{Family, Payload, Shim, Tos, Ttl, Tunnel};

/// An IP header as etherparse reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    pub v6: bool,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub tos: u8,
    pub ttl: u8,
    pub dont_fragment: bool,
    pub protocol: u8,
    /// Bytes of the header, IPv4 options included.
    pub header_len: usize,
    /// Header and payload.
    pub total_len: usize,
    pub checksum_ok: bool,
}

impl Ip {
    /// Reads a header that must be there.
    pub fn read(packet: &[u8]) -> Ip {
        if packet[0] >> 4 == 6 {
            let ip = Ipv6HeaderSlice::from_slice(packet).expect("an IPv6 header");
            return Ip {
                v6: true,
                source: ip.source_addr().into(),
                destination: ip.destination_addr().into(),
                tos: ip.traffic_class(),
                ttl: ip.hop_limit(),
                dont_fragment: false,
                protocol: ip.next_header().0,
                header_len: 40,
                total_len: 40 + usize::from(ip.payload_length()),
                checksum_ok: true,
            };
        }
        let ip = Ipv4HeaderSlice::from_slice(packet).expect("an IPv4 header");
        Ip {
            v6: false,
            source: ip.source_addr().into(),
            destination: ip.destination_addr().into(),
            tos: packet[1],
            ttl: ip.ttl(),
            dont_fragment: ip.dont_fragment(),
            protocol: ip.protocol().0,
            header_len: ip.slice().len(),
            total_len: usize::from(ip.total_len()),
            checksum_ok: sums_up(ip.slice()),
        }
    }

    /// Reads a packet that must be whole, with nothing behind it.
    pub fn whole(packet: &[u8]) -> Ip {
        let ip = Ip::read(packet);
        assert_eq!(ip.total_len, packet.len(), "length");
        ip
    }
}

/// The sum of RFC 1071 over a piece that contains its own checksum is all ones.
pub fn sums_up(bytes: &[u8]) -> bool {
    let sum: u64 = bytes
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    sum != 0 && sum % 0xffff == 0
}

/// The TTL and TOS byte that `tunnel` gives a packet like this one, and whether DF is set.
fn wanted(tunnel: &Tunnel, inner: &Ip) -> (u8, u8, bool) {
    let ttl = match tunnel.ttl {
        Ttl::Inherit => inner.ttl,
        Ttl::Fixed(ttl) => ttl,
    };
    let dscp = match tunnel.tos {
        Tos::Inherit => inner.tos,
        Tos::Fixed(tos) => tos,
    };
    let df = match tunnel.mode.kind().underlay {
        Family::V4 => tunnel.pmtudisc || (inner.dont_fragment && !tunnel.ignore_df),
        Family::V6 => false,
    };
    (ttl, dscp & 0xfc | inner.tos & 3, df)
}

/// Checks every field of a packet that `tunnel` sends to `remote` around `inner`, which is an IP packet or a frame. `sequence` is the
/// number that it has to carry, where the tunnel counts.
pub fn outer(tunnel: &Tunnel, remote: IpAddr, packet: &[u8], inner: &[u8], sequence: u32) {
    let ip = Ip::whole(packet);
    assert!(ip.checksum_ok, "outer header checksum");
    assert_eq!((ip.source, ip.destination), (tunnel.local, remote));
    let at = match tunnel.mode.kind().underlay {
        Family::V4 => {
            assert_eq!((ip.v6, ip.header_len), (false, 20));
            assert_ne!(packet[4..6], [0, 0], "identification");
            assert_eq!(packet[6] & 0x3f | packet[7], 0, "a fragment");
            20
        }
        Family::V6 => {
            assert!(ip.v6);
            assert_ne!(
                u32::from_be_bytes([0, packet[1] & 15, packet[2], packet[3]]),
                0
            );
            40
        }
    };
    let (protocol, at) = match ip.v6 && ip.protocol == 60 {
        true => {
            let limit = packet[at + 4];
            assert_eq!(packet[at + 1..at + 8], [0, 4, 1, limit, 1, 1, 0]);
            // Another than the configured one comes from the packet inside, which then has extension headers.
            assert!(
                tunnel.encaplimit == Some(limit) || extended(tunnel, inner),
                "limit {limit}"
            );
            (packet[at], at + 8)
        }
        false => {
            assert!(!ip.v6 || tunnel.encaplimit.is_none(), "no limit");
            (ip.protocol, at)
        }
    };
    let kind = tunnel.mode.kind();
    if kind.payload != Payload::Ethernet {
        let inside = Ip::whole(inner);
        let got = (ip.ttl, ip.tos, ip.dont_fragment);
        assert_eq!(got, wanted(tunnel, &inside), "TTL, TOS, DF");
        if kind.shim == Shim::None {
            assert_eq!(protocol, if inside.v6 { 41 } else { 4 });
        }
    }
    let at = match kind.shim {
        Shim::Gre => {
            let at = match tunnel.udp {
                Some(_) => at + udp(tunnel, protocol, &ip, &packet[at..]),
                None => {
                    assert_eq!(protocol, 47);
                    at
                }
            };
            at + gre(tunnel, &packet[at..], inner, sequence)
        }
        Shim::None => at,
    };
    assert_eq!(at, tunnel.inner_at(packet), "overhead");
    assert_eq!(&packet[at..], inner, "what is inside");
}

/// Whether a packet is IPv6 with extension headers, or a frame around one.
fn extended(tunnel: &Tunnel, inner: &[u8]) -> bool {
    let packet = match tunnel.mode.kind().payload {
        Payload::Ethernet => &inner[14..],
        _ => inner,
    };
    matches!(packet, [first, .., ] if first >> 4 == 6)
        && matches!(packet.get(6), Some(0 | 43 | 44 | 51 | 60))
}

/// Checks the UDP header in front of GRE (RFC 8086 section 3.1); returns its length.
fn udp(tunnel: &Tunnel, protocol: u8, ip: &Ip, bytes: &[u8]) -> usize {
    let options = tunnel.udp.expect("GRE in UDP");
    let field = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    assert_eq!(
        (protocol, field(2), field(4)),
        (17, 4754, bytes.len() as u16)
    );
    match options.source_port {
        Some(port) => assert_eq!(field(0), port),
        None => assert!(field(0) >= 49152, "source port"),
    }
    assert_eq!(field(6) != 0, options.checksum, "UDP checksum");
    if options.checksum {
        let ends = [ip.source, ip.destination].map(|address| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        });
        let mut covered = ends.concat();
        covered.extend([0, 17]);
        covered.extend(field(4).to_be_bytes());
        covered.extend(bytes);
        assert!(sums_up(&covered), "UDP checksum");
    }
    8
}

/// Checks a GRE header and the sum over it and its payload; returns its length.
fn gre(tunnel: &Tunnel, bytes: &[u8], inner: &[u8], sequence: u32) -> usize {
    let flag = |set: bool, bit: u16| if set { bit } else { 0 };
    let flags = flag(tunnel.ocsum, 0x8000)
        | flag(tunnel.okey.is_some(), 0x2000)
        | flag(tunnel.oseq, 0x1000);
    assert_eq!(bytes[..2], flags.to_be_bytes(), "GRE flags");
    let protocol: u16 = match (tunnel.mode.kind().payload, inner[0] >> 4) {
        (Payload::Ethernet, _) => 0x6558,
        (_, 6) => 0x86dd,
        _ => 0x0800,
    };
    assert_eq!(bytes[2..4], protocol.to_be_bytes(), "GRE protocol");
    let mut at = 4;
    if tunnel.ocsum {
        assert!(sums_up(bytes), "GRE checksum");
        assert_eq!(bytes[6..8], [0, 0], "Reserved1");
        at += 4;
    }
    if let Some(key) = tunnel.okey {
        // A virtual subnet's identifier has 24 bits; the last eight are the flow's.
        match tunnel.nvgre {
            true => assert_eq!(bytes[at..at + 3], key.0.to_be_bytes()[1..], "VSID"),
            false => assert_eq!(bytes[at..at + 4], key.0.to_be_bytes(), "key"),
        }
        at += 4;
    }
    if tunnel.oseq {
        assert_eq!(bytes[at..at + 4], sequence.to_be_bytes(), "sequence number");
        at += 4;
    }
    at
}

/// A frame without what congestion on the way may change of an IP packet directly in it: TOS, and the header checksum with it.
fn without_mark(frame: &[u8]) -> Vec<u8> {
    let marked: &[usize] = match frame.get(12..14) {
        Some([0x08, 0x00]) => &[15, 24, 25],
        Some([0x86, 0xdd]) => &[14, 15],
        _ => &[],
    };
    let mut frame = frame.to_vec();
    for at in marked {
        if let Some(byte) = frame.get_mut(*at) {
            *byte = 0;
        }
    }
    frame
}

/// Checks a packet that came out of `tunnel`: whole, of a family that the tunnel carries, and the bytes that it was in the
/// outer packet, but for what RFC 6040 makes of its ECN bits.
pub fn inner(tunnel: &Tunnel, packet: &[u8], was: &[u8], outer_tos: u8) {
    if tunnel.mode.kind().payload == Payload::Ethernet {
        assert!(packet.len() >= 14);
        assert_eq!(without_mark(packet), without_mark(was));
        return;
    }
    let ip = Ip::whole(packet);
    assert!(ip.checksum_ok, "inner header checksum");
    match tunnel.mode.kind().payload {
        Payload::Ipv4 => assert!(!ip.v6),
        Payload::Ipv6 => assert!(ip.v6),
        _ => {}
    }
    let before = Ip::read(was);
    let ecn = match (before.tos & 3, outer_tos & 3) {
        (0, 3) => panic!("congestion was experienced, and nobody is told"),
        (0, _) => 0,
        (_, 3) => 3,
        (2, 1) => 1,
        (inner, _) => inner,
    };
    let mut expected = was.to_vec();
    let tos = before.tos & 0xfc | ecn;
    if ip.v6 {
        expected[0] = 0x60 | tos >> 4;
        expected[1] = tos << 4 | was[1] & 15;
    } else {
        expected[1] = tos;
        expected[10..12].copy_from_slice(&packet[10..12]);
    }
    assert_eq!(packet, expected);
}

/// The packet as a router has to forward it: TTL or hop limit less one, and the header checksum with it. A checksum that
/// was wrong stays wrong.
pub fn forwarded(packet: &[u8], got: &[u8]) {
    let (before, after) = (Ip::read(packet), Ip::read(got));
    assert_eq!(after.ttl, before.ttl - 1, "TTL");
    assert_eq!(after.checksum_ok, before.checksum_ok, "header checksum");
    let mut expected = packet.to_vec();
    if before.v6 {
        expected[7] = after.ttl;
    } else {
        expected[8] = after.ttl;
        expected[10..12].copy_from_slice(&got[10..12]);
    }
    assert_eq!(got, expected, "what is forwarded");
}

/// Whether the TCP or UDP checksum of a packet is right: pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) and
/// segment add up.
pub fn transport_ok(packet: &[u8]) -> bool {
    let ip = Ip::whole(packet);
    let segment = &packet[ip.header_len..];
    let mut covered = match ip.v6 {
        true => packet[8..40].to_vec(),
        false => packet[12..20].to_vec(),
    };
    covered.extend([0, ip.protocol]);
    covered.extend((segment.len() as u16).to_be_bytes());
    covered.extend(segment);
    sums_up(&covered)
}
