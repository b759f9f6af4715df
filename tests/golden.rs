//! The wire format of gre, judged by what a real Linux kernel put on the wire (tests/golden).
//!
//! Every outer packet that the kernel sent is decapsulated and encapsulated again by a tunnel configured alike: the
//! result must be the kernel's packet, but for the identification. Every outer packet that the kernel received is
//! given to our decapsulation: we must accept and deliver what the kernel delivered, and nothing else. Where ours differs
//! on purpose, the difference is named in `own_way`.

use std::{fs, net::Ipv4Addr, path::Path, sync::Arc};

use greyhound::{
    packet::{GreKey, Ipv4, PacketBuf, VecBuf, ipv4, ipv6, protocol},
    tunnel::{
        Mode, Outer, Refusal, Sequences, Tos, Ttl, Tunnel, TunnelId, TunnelState, TunnelTable,
        decapsulate, encapsulate,
    },
};

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

fn tunnel() -> Tunnel {
    Tunnel {
        id: TunnelId(0),
        name: "T".into(),
        mode: Mode::Gre,
        local: Ipv4Addr::new(10, 9, 0, 1),
        remote: Ipv4Addr::new(10, 9, 0, 2),
        ikey: None,
        okey: None,
        icsum: false,
        ocsum: false,
        iseq: false,
        oseq: false,
        ttl: Ttl::Inherit,
        tos: Tos::Fixed(0),
        pmtudisc: true,
        ignore_df: false,
        dev: None,
        mtu: 1476,
        up: true,
    }
}

/// The tunnels of the cases, as golden/README.md lists them.
fn cases() -> Vec<(&'static str, Tunnel)> {
    let keyed = |key| Tunnel {
        ikey: Some(GreKey(key)),
        okey: Some(GreKey(key)),
        ..tunnel()
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
    let ttl64 = Tunnel {
        ttl: Ttl::Fixed(64),
        ..tunnel()
    };
    let tos = |tos| Tunnel { tos, ..tunnel() };
    let ignore_df = Tunnel {
        ignore_df: true,
        ..nopmtudisc(tunnel())
    };
    vec![
        ("gre", tunnel()),
        ("gre-key", keyed(0x1122_3344)),
        ("gre-csum", csum(tunnel())),
        ("gre-seq", seq(tunnel())),
        ("gre-key-csum-seq", csum(seq(keyed(42)))),
        ("gre-seq-window", seq(keyed(42))),
        ("gre-ttl64", ttl64.clone()),
        ("gre-tos-inherit", tos(Tos::Inherit)),
        ("gre-tos-b8", tos(Tos::Fixed(0xb8))),
        ("gre-ttl64-nopmtudisc", nopmtudisc(ttl64)),
        ("gre-nopmtudisc", nopmtudisc(tunnel())),
        ("gre-nopmtudisc-ignore-df", ignore_df),
        ("gre-nopmtudisc-mtu1500", nopmtudisc(tunnel())),
    ]
}

fn swapped(t: &Tunnel) -> Tunnel {
    Tunnel {
        local: t.remote,
        remote: t.local,
        ..t.clone()
    }
}

fn unwrap(t: &Tunnel, state: &TunnelState, outer: &[u8]) -> Result<Vec<u8>, Refusal> {
    let table = TunnelTable::new([t.clone()]);
    let mut buf = VecBuf::new(0, outer);
    let parsed = Outer::parse(buf.data(), &table, None)?;
    decapsulate(t, &parsed, &mut buf, state)?;
    Ok(buf.data().to_vec())
}

/// The outer packet with everything blanked that is free: identification, and with it the header checksum.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let ip = Ipv4::parse(packet).unwrap();
    assert!(ip.has_valid_checksum());
    assert_ne!(ip.identification(), 0);
    let mut bytes = packet[..ip.total_len()].to_vec();
    bytes[4..6].fill(0);
    bytes[10..12].fill(0);
    bytes
}

fn inner_ecn(inner: &[u8]) -> u8 {
    if inner[0] >> 4 == 6 {
        inner[1] >> 4 & 3
    } else {
        inner[1] & 3
    }
}

#[test]
fn what_the_kernel_sent_is_what_we_send() {
    let mut compared = 0;
    for (name, t) in cases() {
        let far = swapped(&t);
        let receiver = TunnelState::new(0, 1, Arc::default());
        let mut sender = TunnelState::new(0, 1, Arc::default());
        for frame in case(name) {
            let ours = frame.outer_side && frame.is_kernels();
            let Ok(ip) = Ipv4::parse(frame.ip()) else {
                continue;
            };
            // Outer fragments are the slow path's, and ICMP errors to strangers the kernel's.
            if !ours || ip.protocol() != protocol::GRE || ip.is_fragment() {
                continue;
            }
            // A keepalive that was sent to it ready-made: forwarded as it was, not encapsulated.
            if ip.payload()[2..4] == [0, 0] {
                continue;
            }
            // What the kernel sends must be acceptable to us, decapsulated as if no congestion was met …
            let mut arriving = frame.ip().to_vec();
            ipv4::set_tos(&mut arriving, 0);
            let inner = unwrap(&far, &receiver, &arriving)
                .unwrap_or_else(|e| panic!("{name} {:?}: {e:?}", frame.time));
            // … and what we make of the same inner packet must be what the kernel made.
            let mut buf = VecBuf::new(64, &inner);
            if t.oseq {
                let sequence = ip.payload()[ip.payload().len() - inner.len() - 4..][..4]
                    .try_into()
                    .unwrap();
                sender.sequences = Sequences::starting_at(u32::from_be_bytes(sequence), 0).into();
            }
            encapsulate(&t, &mut buf, &sender).unwrap();
            let mut expected = comparable(frame.ip());
            if inner_ecn(&inner) == 3 {
                // ecn-1: the kernel sends ECT(0) for an inner CE, ours follows RFC 6040 and sends CE.
                assert_eq!(expected[1] & 3, 2, "{name} {:?}", frame.time);
                expected[1] |= 3;
            }
            assert_eq!(comparable(buf.data()), expected, "{name} {:?}", frame.time);
            compared += 1;
        }
    }
    assert!(compared > 300, "only {compared} packets compared");
}

/// Packets that we treat otherwise than the kernel, each for a reason: the whole list.
fn own_way(outer: &[u8]) -> Option<&'static str> {
    let ip = Ipv4::parse(outer).ok()?;
    let gre = ip.payload();
    let (flags, kind) = (gre.first()?, gre.get(2..4)?);
    if flags & 0x0c != 0 {
        return Some("gre-2: bits 4 and 5 are refused (RFC 2784), where the kernel takes them");
    }
    if gre.get(1)? & 0xf8 != 0 {
        return Some("gre-2: bits 8 to 12 are ignored (RFC 2784), where the kernel refuses them");
    }
    if kind == [0x88, 0x3e] {
        return Some("gre-6: WCCP is an unknown payload to us, where the kernel takes it as IPv4");
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

#[test]
fn what_the_kernel_received_is_what_we_receive() {
    let (mut delivered, mut refused, mut own) = (0, 0, 0);
    for (name, t) in cases() {
        let state = TunnelState::new(0, 1, Arc::default());
        let frames = case(name);
        for (i, frame) in frames.iter().enumerate() {
            let Ok(ip) = Ipv4::parse(frame.ip()) else {
                continue;
            };
            let arrives = frame.outer_side && !frame.is_kernels();
            if !arrives || ip.protocol() != protocol::GRE || ip.is_fragment() {
                continue;
            }
            let got = unwrap(&t, &state, frame.ip());
            if own_way(frame.ip()).is_some() {
                own += 1;
                continue;
            }
            let kernels = frames[i + 1..]
                .first()
                .filter(|next| !next.outer_side && next.is_kernels());
            let at = format!("{name} {:?}", frame.time);
            match (kernels, got) {
                (Some(next), Ok(mut inner)) => {
                    if inner[0] >> 4 == 6 {
                        ipv6::decrement_hop_limit(&mut inner);
                    } else {
                        ipv4::decrement_ttl(&mut inner);
                    }
                    assert_eq!(&next.ip()[..inner.len()], inner, "{at}");
                    delivered += 1;
                }
                (Some(_), Err(refusal)) => panic!("{at}: delivered by the kernel, {refusal:?}"),
                (None, Ok(inner)) => {
                    assert!(!is_forwarded(&inner), "{at}: accepted, the kernel did not");
                }
                (None, Err(_)) => refused += 1,
            }
        }
    }
    assert!(
        delivered > 100 && refused > 50 && own > 6,
        "{delivered} delivered, {refused} refused, {own} our own way"
    );
}
