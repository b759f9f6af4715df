//! Whose packet an ICMP error is about.
//!
//! An error quotes the beginning of the packet that it is about. It is believed only if a tunnel could have sent that packet
//! (RFC 5508 section 7 calls for no less, and `gre_err` in net/ipv4/ip_gre.c does no more): by its addresses, its protocol and
//! all of its GRE header.

use std::net::IpAddr;

use super::{Family, GRE_IN_UDP_PORT, Payload, Shim, Tunnel, UdpEncap, outer};
use crate::packet::{EtherType, GreHeader, Ipv6, gre, ipv4, ipv6, protocol, udp};

/// How much of a packet is quoted at least behind its IP header (RFC 792).
const QUOTED: usize = 8;

/// The beginning of an outer packet, as an error quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted<'a> {
    local: IpAddr,
    /// Where the packet was on its way to.
    pub remote: IpAddr,
    /// The whole packet's length in bytes.
    pub len: usize,
    protocol: u8,
    /// Over IPv6: the destination options in front of it are an encapsulation limit.
    has_limit: bool,
    body: &'a [u8],
}

impl<'a> Quoted<'a> {
    /// Reads a packet that is not all there; none where it could not be one of a tunnel's.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::ipv4(bytes),
            6 => Self::ipv6(bytes),
            _ => None,
        }
    }

    fn ipv4(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = bytes.split_first_chunk::<{ ipv4::HEADER_LEN }>()?;
        let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let address = |at: usize| -> [u8; 4] { std::array::from_fn(|n| header[at + n]) };
        // We send no options. Of a packet that left in fragments the first one has what can be told.
        if header[0] != 0x45 || field(6) & 0x1fff != 0 || body.len() < QUOTED {
            return None;
        }
        Some(Self {
            local: address(12).into(),
            remote: address(16).into(),
            len: field(2).into(),
            protocol: header[9],
            has_limit: false,
            body,
        })
    }

    fn ipv6(bytes: &'a [u8]) -> Option<Self> {
        let fixed = bytes.first_chunk::<{ ipv6::HEADER_LEN }>()?;
        // The length is the whole packet's: for the parser it is that of what is quoted.
        let mut short = *fixed;
        short[4..6].fill(0);
        let ip = Ipv6::parse(&short).ok()?;
        let (local, remote) = (ip.source().into(), ip.destination().into());
        let mut protocol = ip.next_header();
        let mut body = &bytes[ipv6::HEADER_LEN..];
        let has_limit = protocol == protocol::DESTINATION_OPTIONS;
        if has_limit {
            let (option, rest) = body.split_first_chunk::<{ outer::LIMIT_OPTION_LEN }>()?;
            let [next, 0, 4, 1, _, 1, 1, 0] = *option else {
                return None;
            };
            (protocol, body) = (next, rest);
        }
        if protocol == protocol::FRAGMENT {
            let ([next, _, high, low, ..], rest) = body.split_first_chunk::<8>()?;
            if u16::from_be_bytes([*high, *low]) & !7 != 0 {
                return None;
            }
            (protocol, body) = (*next, rest);
        }
        if body.len() < QUOTED {
            return None;
        }
        Some(Self {
            local,
            remote,
            len: ipv6::HEADER_LEN + usize::from(u16::from_be_bytes([fixed[4], fixed[5]])),
            protocol,
            has_limit,
            body,
        })
    }

    /// Whether `tunnel` could have sent it. Of a tunnel without a remote, or with a group for one, only the caller knows
    /// whether [`remote`](Self::remote) is one of its peers.
    pub fn is_of(&self, tunnel: &Tunnel) -> bool {
        let kind = tunnel.mode.kind();
        let any_remote = tunnel.remote.is_unspecified();
        let ends = (tunnel.local.is_unspecified() || tunnel.local == self.local)
            && (any_remote && tunnel.remote.is_ipv4() == self.remote.is_ipv4()
                || tunnel.remote == self.remote);
        let limit = kind.underlay == Family::V6 && tunnel.encaplimit.is_some();
        if !ends || self.has_limit != limit {
            return false;
        }
        match (kind.shim, self.protocol) {
            (Shim::Gre, protocol::GRE) if tunnel.udp.is_none() => header_is_of(tunnel, self.body),
            (Shim::Gre, protocol::UDP) => (tunnel.udp.as_ref())
                .and_then(|udp| behind_udp(udp, self.body))
                .is_some_and(|body| header_is_of(tunnel, body)),
            (Shim::None, protocol::IPIP) => kind.payload != Payload::Ipv6,
            (Shim::None, protocol::IPV6) => kind.payload != Payload::Ipv4,
            _ => false,
        }
    }
}

/// What follows the UDP header, where that is one of ours: from the port that is fixed, or from one of those that flows
/// are spread over.
fn behind_udp<'a>(udp: &UdpEncap, body: &'a [u8]) -> Option<&'a [u8]> {
    let (header, rest) = body.split_first_chunk::<{ udp::HEADER_LEN }>()?;
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let from = match udp.source_port {
        Some(fixed) => port(0) == fixed,
        None => port(0) >= outer::ENTROPY_PORTS.0,
    };
    (from && port(2) == GRE_IN_UDP_PORT).then_some(rest)
}

/// Whether a GRE header is there, whole, and is one that the tunnel writes.
fn header_is_of(tunnel: &Tunnel, body: &[u8]) -> bool {
    let len = gre::header_len(tunnel.okey.is_some(), tunnel.ocsum, tunnel.oseq);
    let Some(quoted @ [_, _, high, low, ..]) = body.get(..len) else {
        return false;
    };
    let ether_type = EtherType(u16::from_be_bytes([*high, *low]));
    let carried = match tunnel.mode.kind().payload {
        Payload::Ethernet => ether_type == EtherType::TRANSPARENT_ETHERNET,
        Payload::Ipv4 => ether_type == EtherType::IPV4,
        Payload::Ipv6 => ether_type == EtherType::IPV6,
        Payload::Ip => matches!(ether_type, EtherType::IPV4 | EtherType::IPV6),
    };
    // What the tunnel would have written; checksum and number differ from packet to packet.
    let mut ours = [0; gre::MAX_HEADER_LEN];
    let header = GreHeader {
        protocol: ether_type,
        checksum: tunnel.ocsum,
        key: tunnel.key_of(0),
        sequence: tunnel.oseq.then_some(0),
    };
    header.emit(&mut ours[..len]);
    let key_at = gre::header_len(false, tunnel.ocsum, false);
    let key = match tunnel.okey {
        // The last byte is the flow's.
        Some(_) if tunnel.nvgre => key_at..key_at + 3,
        Some(_) => key_at..key_at + 4,
        None => 0..0,
    };
    carried && quoted[..4] == ours[..4] && quoted[key.clone()] == ours[key]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        packet::{GreKey, PacketBuf, VecBuf},
        tunnel::{Mode, TunnelState, encapsulate},
    };
    use etherparse::PacketBuilder;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn inner(v6: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let builder = match v6 {
            true => PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64),
            false => PacketBuilder::ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64),
        };
        builder.udp(1, 2).write(&mut out, &[0; 100]).unwrap();
        out
    }

    fn made(mode: Mode, key: Option<u32>, csum: bool, seq: bool) -> Tunnel {
        let ends: (IpAddr, IpAddr) = match mode.kind().underlay {
            Family::V4 => ([192, 0, 2, 1].into(), [192, 0, 2, 2].into()),
            Family::V6 => (
                "2001:db8::1".parse().unwrap(),
                "2001:db8::2".parse().unwrap(),
            ),
        };
        Tunnel {
            okey: key.map(GreKey),
            // Only what is sent counts.
            ikey: Some(GreKey(99)),
            ocsum: csum,
            oseq: seq,
            ..Tunnel::new(mode, ends.0, ends.1)
        }
    }

    /// Every kind of tunnel, and a packet that it sent.
    fn all() -> Vec<(Tunnel, Vec<u8>)> {
        let mut sent = Vec::new();
        let mut add = |tunnel: Tunnel| {
            for v6 in [false, true] {
                let mut inner = inner(v6);
                if tunnel.mode.kind().payload == Payload::Ethernet {
                    inner = [&[2; 12][..], &[0x99, 0x99], &inner].concat();
                }
                let mut buf = VecBuf::new(80, &inner);
                let state = TunnelState::new(0, 1, Arc::default());
                if encapsulate(&tunnel, tunnel.remote, &mut buf, &state).is_ok() {
                    sent.push((tunnel.clone(), buf.data().to_vec()));
                }
            }
        };
        for mode in Mode::ALL {
            let gre = mode.kind().shim == Shim::Gre;
            for (key, csum, seq) in [
                (None, false, false),
                (Some(7), false, false),
                (Some(8), false, false),
                (None, true, false),
                (None, false, true),
                (Some(7), true, true),
            ] {
                if gre || (key, csum, seq) == (None, false, false) {
                    let tunnel = made(mode, key, csum, seq);
                    if gre {
                        add(Tunnel {
                            udp: Some(UdpEncap {
                                source_port: key.map(|_| 4000),
                                checksum: csum,
                            }),
                            ..tunnel.clone()
                        });
                    }
                    let unlimited = Tunnel {
                        encaplimit: None,
                        ..tunnel.clone()
                    };
                    if tunnel != unlimited {
                        add(unlimited);
                    }
                    add(tunnel);
                }
            }
        }
        sent
    }

    #[test]
    fn a_packet_is_told_to_be_its_own_tunnels_and_no_other_ones() {
        let all = all();
        for (tunnel, packet) in &all {
            let quoted = Quoted::parse(packet).unwrap();
            assert_eq!((quoted.remote, quoted.len), (tunnel.remote, packet.len()));
            for (other, _) in &all {
                // sit sends what ipip sends: nobody can tell.
                let pair = [tunnel.mode, other.mode];
                let alike = pair.contains(&Mode::Sit) && pair.contains(&Mode::Ipip);
                if !alike {
                    assert_eq!(quoted.is_of(other), tunnel == other, "{tunnel:?} {other:?}");
                }
            }
        }
    }

    #[test]
    fn every_header_has_to_be_quoted_whole() {
        for (tunnel, packet) in all() {
            let needed = match tunnel.mode.kind().shim {
                Shim::Gre => tunnel.headers().total(),
                Shim::None => tunnel.headers().udp_at() + QUOTED,
            };
            // Eight bytes behind the IP header even where the GRE header has four.
            let needed = needed.max(tunnel.headers().udp_at() + QUOTED);
            for len in 0..packet.len() {
                let quoted = Quoted::parse(&packet[..len]);
                let found = quoted.is_some_and(|quoted| quoted.is_of(&tunnel));
                assert_eq!(found, len >= needed, "{len} {tunnel:?}");
            }
        }
    }

    #[test]
    fn nothing_that_tells_may_be_another() {
        for (tunnel, packet) in all() {
            let v6 = tunnel.local.is_ipv6();
            let ip: Vec<usize> = match v6 {
                // Version, next header, addresses.
                true => [0, 6].into_iter().chain(8..40).collect(),
                // Version and length, offset, protocol, addresses.
                false => [0, 7, 9].into_iter().chain(12..20).collect(),
            };
            let at = tunnel.headers().udp_at();
            let mut telling = ip;
            if tunnel.mode.kind().shim == Shim::Gre {
                let mut at = at;
                if let Some(udp) = tunnel.udp {
                    let fixed = udp.source_port.map_or(0..0, |_| at..at + 2);
                    telling.extend(fixed.chain(at + 2..at + 4));
                    at += udp::HEADER_LEN;
                }
                telling.extend(at..at + 4);
                if tunnel.okey.is_some() {
                    let key = at + gre::header_len(false, tunnel.ocsum, false);
                    telling.extend(key..key + 4);
                }
            }
            for at in telling {
                // The lower half of an IPv6 header's first byte belongs to the traffic class.
                let bits: &[u8] = if at == 0 { &[0x40] } else { &[1, 2, 0x40] };
                for bit in bits {
                    let mut forged = packet.clone();
                    forged[at] ^= bit;
                    let quoted = Quoted::parse(&forged);
                    assert!(
                        !quoted.is_some_and(|quoted| quoted.is_of(&tunnel)),
                        "byte {at} {tunnel:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn first_fragments_tell_and_others_do_not() {
        let tunnel = made(Mode::Gre, None, false, false);
        let (_, packet) = all().into_iter().find(|(t, _)| *t == tunnel).unwrap();
        let mut fragment = packet.clone();
        fragment[6] = 0x20;
        assert!(Quoted::parse(&fragment).unwrap().is_of(&tunnel));
        fragment[7] = 1;
        assert_eq!(Quoted::parse(&fragment), None);

        let tunnel = made(Mode::Ip6gre, None, false, false);
        let (_, packet) = all().into_iter().find(|(t, _)| *t == tunnel).unwrap();
        for (low, first) in [(1, true), (9, false)] {
            let header = [47, 0, 0, low, 0, 0, 0, 5];
            let mut fragment = [&packet[..48], &header, &packet[48..]].concat();
            fragment[40] = 44;
            let quoted = Quoted::parse(&fragment);
            assert_eq!(quoted.is_some_and(|q| q.is_of(&tunnel)), first);
        }
    }

    #[test]
    fn nvgre_1_of_a_virtual_subnet_the_flow_does_not_matter() {
        let tunnel = |vsid| Tunnel {
            nvgre: true,
            ..made(Mode::Gretap, Some(vsid), false, false)
        };
        let mut buf = VecBuf::new(80, &[&[2; 12][..], &[8, 0], &inner(false)].concat());
        let state = TunnelState::new(0, 1, Arc::default());
        let sender = tunnel(5000);
        encapsulate(&sender, sender.remote, &mut buf, &state).unwrap();
        let mut packet = buf.data().to_vec();
        for flow in [packet[27], 0, 0xff] {
            packet[27] = flow;
            let quoted = Quoted::parse(&packet).unwrap();
            assert!(quoted.is_of(&sender) && !quoted.is_of(&tunnel(5001)));
        }
    }

    #[test]
    fn a_tunnel_with_any_local_or_any_remote_has_them_all() {
        let (tunnel, packet) = all().swap_remove(0);
        let quoted = Quoted::parse(&packet).unwrap();
        let any = IpAddr::from([0, 0, 0, 0]);
        let (local, remote) = (tunnel.local, tunnel.remote);
        for (local, remote, is) in [
            (any, remote, true),
            (local, any, true),
            (any, local, false),
            (local, "::".parse().unwrap(), false),
        ] {
            let tunnel = Tunnel {
                local,
                remote,
                ..tunnel.clone()
            };
            assert_eq!(quoted.is_of(&tunnel), is, "{local} {remote}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), first in 0x40u8..0x70) {
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            if let Some(quoted) = Quoted::parse(&bytes) {
                quoted.is_of(&made(Mode::Gre, Some(7), true, true));
                quoted.is_of(&made(Mode::Ip6gre, Some(7), true, true));
            }
        }
    }
}
