//! The wire format of every kind, judged by what a real Linux kernel put on the wire (tests/golden).
//!
//! Every outer packet that the kernel sent is decapsulated and encapsulated again by a tunnel configured alike: the
//! result must be the kernel's packet, but for the identification. Every outer packet that the kernel received is
//! given to our decapsulation: we must accept and deliver what the kernel delivered, and nothing else. Where ours differs
//! on purpose, the difference is named in `own_way`.

use std::{fs, net::IpAddr, path::Path, sync::Arc};

use greyhound::{
    packet::{Gre, GreKey, Ipv4, Ipv6, PacketBuf, VecBuf, ipv4, ipv6, protocol},
    tunnel::{
        Family, Mode, Outer, Payload, Refusal, Sequences, Shim, Tos, Ttl, Tunnel, TunnelId,
        TunnelState, TunnelTable, decapsulate, encapsulate,
    },
};

#[path = "golden/icmp.rs"]
mod icmp;

const KERNEL_OUTER: [u8; 6] = [0x52, 0x54, 0, 0x4b, 0x50, 0x10];
const KERNEL_INNER: [u8; 6] = [0x52, 0x54, 0, 0x4b, 0x50, 0x11];

struct Frame {
    time: (u32, u32),
    outer_side: bool,
    bytes: Vec<u8>,
}

impl Frame {
    fn is_kernels(&self) -> bool {
        self.bytes[6..12] == KERNEL_OUTER || self.bytes[6..12] == KERNEL_INNER
    }

    fn ip(&self) -> &[u8] {
        &self.bytes[14..]
    }
}

/// The frames of a classic little-endian pcap file.
fn read(path: &Path, outer_side: bool) -> Vec<Frame> {
    let file = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    assert_eq!(u32_at(0), 0xa1b2_c3d4, "{}", path.display());
    let mut frames = Vec::new();
    let mut at = 24;
    while at < file.len() {
        let len = u32_at(at + 8) as usize;
        frames.push(Frame {
            time: (u32_at(at), u32_at(at + 4)),
            outer_side,
            bytes: file[at + 16..at + 16 + len].to_vec(),
        });
        at += 16 + len;
    }
    frames
}

/// Both sides of a case, in the order of events.
fn case(name: &str) -> Vec<Frame> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut frames = read(&dir.join(format!("{name}.pcap")), true);
    frames.extend(read(&dir.join(format!("{name}.inner.pcap")), false));
    frames.sort_by_key(|f| f.time);
    frames
}

/// A tunnel of a kind with the kernel's defaults.
fn tunnel(mode: Mode) -> Tunnel {
    let v6 = mode.kind().underlay == Family::V6;
    let end = |n: u8| match v6 {
        true => IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, n.into()]),
        false => IpAddr::from([10, 9, 0, n]),
    };
    Tunnel::new(mode, end(1), end(2))
}

/// The tunnels of the cases, as golden/README.md lists them. What the kernel calls `ip6tnl mode any` is two kinds to us.
fn cases() -> Vec<(&'static str, Vec<Tunnel>)> {
    let keyed = |mode, key| Tunnel {
        ikey: Some(GreKey(key)),
        okey: Some(GreKey(key)),
        ..tunnel(mode)
    };
    let csum = |t: Tunnel| Tunnel {
        icsum: true,
        ocsum: true,
        ..t
    };
    let seq = |t: Tunnel| Tunnel {
        iseq: true,
        oseq: true,
        ..t
    };
    let nopmtudisc = |t: Tunnel| Tunnel {
        pmtudisc: false,
        ..t
    };
    let ttl64 = |t: Tunnel| Tunnel {
        ttl: Ttl::Fixed(64),
        ..t
    };
    let tos = |t: Tunnel, tos| Tunnel { tos, ..t };
    let unlimited = |t: Tunnel| Tunnel {
        encaplimit: None,
        ..t
    };
    let all = |t| csum(seq(t));
    let gre = || tunnel(Mode::Gre);
    let ignore_df = Tunnel {
        ignore_df: true,
        ..nopmtudisc(gre())
    };
    let ip6tnl = |f: &dyn Fn(Tunnel) -> Tunnel| {
        let kinds = [Mode::Ip6ip6, Mode::Ipip6];
        kinds.into_iter().map(|mode| f(tunnel(mode))).collect()
    };
    vec![
        ("gre", vec![gre()]),
        ("gre-key", vec![keyed(Mode::Gre, 0x1122_3344)]),
        ("gre-csum", vec![csum(gre())]),
        ("gre-seq", vec![seq(gre())]),
        ("gre-key-csum-seq", vec![all(keyed(Mode::Gre, 42))]),
        ("gre-seq-window", vec![seq(keyed(Mode::Gre, 42))]),
        ("gre-ttl64", vec![ttl64(gre())]),
        ("gre-tos-inherit", vec![tos(gre(), Tos::Inherit)]),
        ("gre-tos-b8", vec![tos(gre(), Tos::Fixed(0xb8))]),
        ("gre-ttl64-nopmtudisc", vec![nopmtudisc(ttl64(gre()))]),
        ("gre-nopmtudisc", vec![nopmtudisc(gre())]),
        ("gre-nopmtudisc-ignore-df", vec![ignore_df]),
        ("gre-nopmtudisc-mtu1500", vec![nopmtudisc(gre())]),
        ("gretap", vec![tunnel(Mode::Gretap)]),
        ("gretap-key-csum-seq", vec![all(keyed(Mode::Gretap, 42))]),
        ("gretap-routed", vec![tunnel(Mode::Gretap)]),
        (
            "gretap-ttl64-tos-inherit",
            vec![tos(ttl64(tunnel(Mode::Gretap)), Tos::Inherit)],
        ),
        ("ipip", vec![tunnel(Mode::Ipip)]),
        (
            "ipip-ttl64-tos-inherit",
            vec![tos(ttl64(tunnel(Mode::Ipip)), Tos::Inherit)],
        ),
        ("sit", vec![tunnel(Mode::Sit)]),
        ("sit-nopmtudisc", vec![nopmtudisc(tunnel(Mode::Sit))]),
        ("ip6gre", vec![tunnel(Mode::Ip6gre)]),
        (
            "ip6gre-encaplimit-none",
            vec![unlimited(tunnel(Mode::Ip6gre))],
        ),
        (
            "ip6gre-key-csum-seq",
            vec![unlimited(all(keyed(Mode::Ip6gre, 42)))],
        ),
        ("ip6gretap", vec![unlimited(tunnel(Mode::Ip6gretap))]),
        ("ip6tnl", ip6tnl(&|t| t)),
        ("ip6tnl-encaplimit-none", ip6tnl(&unlimited)),
    ]
}

/// Takes an outer packet out of whichever tunnel it belongs to.
fn unwrap(tunnels: &[Tunnel], state: &TunnelState, outer: &[u8]) -> Result<Vec<u8>, Refusal> {
    let numbered = |(n, t): (usize, &Tunnel)| Tunnel {
        id: TunnelId(n as u32),
        ..t.clone()
    };
    let table = TunnelTable::new(tunnels.iter().enumerate().map(numbered));
    let mut buf = VecBuf::new(0, outer);
    let parsed = Outer::parse(buf.data(), &table, None)?;
    let tunnel = &tunnels[parsed.tunnel.index()];
    decapsulate(tunnel, &parsed, &mut buf, state)?;
    Ok(buf.data().to_vec())
}

/// The outer header's protocol and where its payload begins; none for fragments and what is no IP packet.
fn upper(packet: &[u8]) -> Option<(u8, usize)> {
    match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4::parse(packet).ok()?;
            (!ip.is_fragment()).then(|| (ip.protocol(), ip.header_len()))
        }
        _ => {
            let upper = Ipv6::parse(packet).ok()?.upper_layer().ok()?;
            (!upper.is_fragment).then_some((upper.protocol, upper.at))
        }
    }
}

/// Whether it is a packet of this tunnel by its protocol: not an ICMP error, not neighbour discovery, not a keepalive that
/// was sent ready-made and forwarded as it was.
fn is_tunnel_packet(t: &Tunnel, packet: &[u8]) -> bool {
    match (t.mode.kind().shim, upper(packet)) {
        (Shim::Gre, Some((protocol::GRE, at))) => packet.get(at + 2..at + 4) != Some(&[0, 0]),
        (Shim::None, Some((protocol::IPIP | protocol::IPV6, _))) => true,
        _ => false,
    }
}

/// The outer packet with everything blanked that is free: identification and header checksum, or the flow label.
fn comparable(packet: &[u8]) -> Vec<u8> {
    if packet[0] >> 4 == 6 {
        let ip = Ipv6::parse(packet).unwrap();
        assert_ne!(ip.flow_label(), 0);
        let mut bytes = packet[..ip.total_len()].to_vec();
        bytes[1] &= 0xf0;
        bytes[2..4].fill(0);
        return bytes;
    }
    let ip = Ipv4::parse(packet).unwrap();
    assert!(ip.has_valid_checksum());
    assert_ne!(ip.identification(), 0);
    let mut bytes = packet[..ip.total_len()].to_vec();
    bytes[4..6].fill(0);
    bytes[10..12].fill(0);
    bytes
}

/// The ECN bits that the inner packet gives to the outer one.
fn inner_ecn(t: &Tunnel, inner: &[u8]) -> u8 {
    let ip = match t.mode.kind().payload {
        Payload::Ethernet => match inner[12..14] {
            [0x08, 0x00] | [0x86, 0xdd] => &inner[14..],
            _ => return 0,
        },
        _ => inner,
    };
    match ip[0] >> 4 {
        6 => ip[1] >> 4 & 3,
        _ => ip[1] & 3,
    }
}

/// Makes an arriving packet as if no congestion had been met.
fn without_congestion(packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    match bytes[0] >> 4 {
        6 => ipv6::set_traffic_class(&mut bytes, 0),
        _ => ipv4::set_tos(&mut bytes, 0),
    }
    bytes
}

/// ecn-1: ours follows RFC 6040 and copies ECN always. The kernel sends ECT(0) for an inner CE, and nothing at all over
/// ip6gre and ip6gretap.
fn our_ecn(t: &Tunnel, expected: &mut [u8], ecn: u8, at: &str) {
    let v6 = expected[0] >> 4 == 6;
    let theirs = if v6 {
        expected[1] >> 4 & 3
    } else {
        expected[1] & 3
    };
    match (v6, t.mode.kind().shim) {
        (true, Shim::Gre) => assert_eq!(theirs, 0, "{at}"),
        _ if ecn == 3 => assert_eq!(theirs, 2, "{at}"),
        _ => assert_eq!(theirs, ecn, "{at}"),
    }
    match v6 {
        true => expected[1] = expected[1] & 0xcf | ecn << 4,
        false => expected[1] = expected[1] & 0xfc | ecn,
    }
}

#[test]
fn what_the_kernel_sent_is_what_we_send() {
    for (name, tunnels) in cases() {
        let far: Vec<Tunnel> = tunnels.iter().map(Tunnel::far_end).collect();
        let receiver = TunnelState::new(0, 1, Arc::default());
        let mut sender = TunnelState::new(0, 1, Arc::default());
        let mut compared = 0;
        for frame in case(name) {
            let at = format!("{name} {:?}", frame.time);
            let ours = frame.outer_side && frame.is_kernels();
            if !ours || !is_tunnel_packet(&tunnels[0], frame.ip()) {
                continue;
            }
            // What the kernel sends must be acceptable to us …
            let inner = unwrap(&far, &receiver, &without_congestion(frame.ip()))
                .unwrap_or_else(|e| panic!("{at}: {e:?}"));
            // … and what we make of the same inner packet must be what the kernel made.
            let v6 = inner[0] >> 4 == 6;
            let carries = |t: &&Tunnel| match t.mode.kind().payload {
                Payload::Ipv4 => !v6,
                Payload::Ipv6 => v6,
                _ => true,
            };
            let t = tunnels.iter().find(carries).unwrap();
            if let (true, Some((_, gre_at))) = (t.oseq, upper(frame.ip())) {
                let number = Gre::parse(&frame.ip()[gre_at..])
                    .unwrap()
                    .sequence()
                    .unwrap();
                sender.sequences = Sequences::starting_at(number, 0).into();
            }
            let mut buf = VecBuf::new(64, &inner);
            encapsulate(t, t.remote, &mut buf, &sender).unwrap();
            let mut expected = comparable(frame.ip());
            our_ecn(t, &mut expected, inner_ecn(t, &inner), &at);
            let mut made = comparable(buf.data());
            if t.mode.kind().shim == Shim::Gre && t.ocsum {
                // The checksum does not cover the outer header: both must be right, and so alike.
                assert!(
                    Gre::parse(&made[upper(&made).unwrap().1..])
                        .unwrap()
                        .has_valid_checksum()
                );
            }
            made.truncate(expected.len());
            assert_eq!(made, expected, "{at}");
            compared += 1;
        }
        assert!(compared >= 3, "{name}: only {compared} packets compared");
    }
}

/// Packets that we treat otherwise than the kernel, each for a reason: the whole list.
fn own_way(t: &Tunnel, outer: &[u8]) -> Option<&'static str> {
    let (protocol, at) = upper(outer)?;
    if t.mode.kind().shim == Shim::Gre && protocol == protocol::GRE {
        let gre = &outer[at..];
        if gre.first()? & 0x0c != 0 {
            return Some("gre-2: bits 4 and 5 are refused (RFC 2784), where the kernel takes them");
        }
        if gre.get(1)? & 0xf8 != 0 {
            return Some(
                "gre-2: bits 8 to 12 are ignored (RFC 2784), where the kernel refuses them",
            );
        }
    }
    None
}

/// Whether the kernel, given this inner packet, only forwards it: nothing for the router itself, TTL to spare.
fn is_forwarded(inner: &[u8]) -> bool {
    if inner[0] >> 4 == 6 {
        inner[7] > 1 && inner[24..40] == [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    } else {
        inner[8] > 1 && inner[16..20] == [10, 1, 0, 2]
    }
}

/// What a router does to a packet that it forwards.
fn forwarded(mut inner: Vec<u8>) -> Vec<u8> {
    match inner[0] >> 4 {
        6 => ipv6::decrement_hop_limit(&mut inner),
        _ => ipv4::decrement_ttl(&mut inner),
    };
    inner
}

#[test]
fn what_the_kernel_received_is_what_we_receive() {
    let (mut delivered, mut refused, mut own) = (0, 0, 0);
    for (name, tunnels) in cases() {
        let state = TunnelState::new(0, 1, Arc::default());
        let tap = tunnels[0].mode.kind().payload == Payload::Ethernet;
        let frames = case(name);
        for (i, frame) in frames.iter().enumerate() {
            let arrives = frame.outer_side && !frame.is_kernels();
            let at = format!("{name} {:?}", frame.time);
            if !arrives || upper(frame.ip()).is_none_or(|(p, _)| matches!(p, 1 | 58)) {
                continue;
            }
            let got = unwrap(&tunnels, &state, frame.ip());
            if own_way(&tunnels[0], frame.ip()).is_some() {
                own += 1;
                continue;
            }
            let next = frames.get(i + 1).filter(|next| !next.outer_side);
            // A bridged frame keeps its own source address; a routed one gets the kernel's.
            let kernels = next.filter(|next| tap || next.is_kernels());
            match (kernels, got) {
                (Some(next), Ok(inner)) if tap => {
                    // The kernel's own gretap device is routed in one of the cases.
                    if next.bytes[..inner.len().min(next.bytes.len())] == inner[..] {
                        delivered += 1;
                    }
                }
                (Some(next), Ok(inner)) => {
                    let inner = forwarded(inner);
                    assert_eq!(&next.ip()[..inner.len()], inner, "{at}");
                    delivered += 1;
                }
                (Some(_), Err(_)) if tap => refused += 1,
                (Some(_), Err(refusal)) => panic!("{at}: delivered by the kernel, {refusal:?}"),
                (None, Ok(inner)) => {
                    assert!(
                        tap || !is_forwarded(&inner),
                        "{at}: accepted, the kernel did not"
                    );
                }
                (None, Err(_)) => refused += 1,
            }
        }
    }
    assert!(
        delivered > 250 && refused > 100 && own >= 6,
        "{delivered} delivered, {refused} refused, {own} our own way"
    );
}
