//! The flow inside a tunnel packet, found without its tunnel.

use super::{GRE_IN_UDP_PORT, outer::Shell};
use crate::packet::{EtherType, Gre, flow, protocol, udp};

/// The hash of the flow inside a tunnel packet, which begins with its outer IP header. None for what is no tunnel packet, for
/// keepalives, and where there is a sequence number: such packets are told by their order, whatever flow they belong to.
#[inline]
pub fn flow_inside(packet: &[u8]) -> Option<u32> {
    let shell = Shell::parse(packet).ok()?;
    let body = packet.get(shell.header_len..shell.end)?;
    match shell.protocol {
        protocol::GRE => flow_in_gre(body),
        protocol::UDP if body.get(2..4)? == GRE_IN_UDP_PORT.to_be_bytes() => {
            flow_in_gre(body.get(udp::HEADER_LEN..)?)
        }
        protocol::IPIP | protocol::IPV6 => Some(flow::hash(body)),
        _ => None,
    }
}

#[inline]
fn flow_in_gre(body: &[u8]) -> Option<u32> {
    let gre = Gre::parse(body).ok()?;
    match gre.protocol() {
        _ if gre.sequence().is_some() => None,
        EtherType::IPV4 | EtherType::IPV6 => Some(flow::hash(gre.payload())),
        EtherType::TRANSPARENT_ETHERNET => Some(flow::hash_frame(gre.payload())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        packet::{GreKey, PacketBuf, VecBuf},
        tunnel::{Mode, Tunnel, TunnelState, UdpEncap, encapsulate},
    };
    use etherparse::PacketBuilder;
    use std::{net::IpAddr, sync::Arc};

    fn inner(frame: bool, port: u16) -> Vec<u8> {
        let mut out = Vec::new();
        let address = (|n| [10, n, 0, 2], |n| [2, 0, 0, 0, 0, n]);
        let builder = match frame {
            true => PacketBuilder::ethernet2(address.1(1), address.1(2)).ipv4(
                address.0(1),
                address.0(2),
                64,
            ),
            false => PacketBuilder::ipv4(address.0(1), address.0(2), 64),
        };
        builder.udp(port, 53).write(&mut out, b"inside").unwrap();
        out
    }

    fn outside(tunnel: &Tunnel, inner: &[u8]) -> Vec<u8> {
        let mut packet = VecBuf::new(128, inner);
        let state = TunnelState::new(0, 1, Arc::default());
        encapsulate(tunnel, tunnel.remote, &mut packet, &state).unwrap();
        packet.data().to_vec()
    }

    fn tunnel(mode: Mode) -> Tunnel {
        let ends: [IpAddr; 2] = match mode {
            Mode::Ip6gre | Mode::Ip6gretap | Mode::Ip6ip6 | Mode::Ipip6 => {
                ["fd00::1".parse().unwrap(), "fd00::2".parse().unwrap()]
            }
            _ => [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()],
        };
        Tunnel::new(mode, ends[0], ends[1])
    }

    #[test]
    fn the_flow_inside_every_kind_is_the_inner_packets() {
        let plain = [
            Mode::Gre,
            Mode::Gretap,
            Mode::Ip6gre,
            Mode::Ip6gretap,
            Mode::Ipip,
            Mode::Ipip6,
        ];
        let mut tunnels: Vec<Tunnel> = plain.into_iter().map(tunnel).collect();
        for mode in [Mode::Gre, Mode::Gretap, Mode::Ip6gre] {
            let udp = UdpEncap {
                source_port: Some(5),
                checksum: true,
            };
            tunnels.push(Tunnel {
                udp: Some(udp),
                okey: Some(GreKey(7)),
                ocsum: true,
                ..tunnel(mode)
            });
        }
        for tunnel in tunnels {
            let framed = matches!(tunnel.mode, Mode::Gretap | Mode::Ip6gretap);
            for port in [1, 2] {
                let packet = inner(framed, port);
                let expected = flow::hash(&packet[if framed { 14 } else { 0 }..]);
                let found = flow_inside(&outside(&tunnel, &packet));
                assert_eq!(found, Some(expected), "{:?}", tunnel.mode);
            }
        }
    }

    #[test]
    fn what_goes_by_its_order_and_what_is_no_tunnel_packet_has_none() {
        let numbered = Tunnel {
            oseq: true,
            ..tunnel(Mode::Gre)
        };
        assert_eq!(flow_inside(&outside(&numbered, &inner(false, 1))), None);
        let mut keepalive = outside(&tunnel(Mode::Gre), &inner(false, 1));
        keepalive[22..24].copy_from_slice(&[0, 0]);
        assert_eq!(flow_inside(&keepalive), None);
        assert_eq!(flow_inside(&inner(false, 1)), None);
        let whole = outside(&tunnel(Mode::Gre), &inner(false, 1));
        for len in 0..24 {
            assert_eq!(flow_inside(&whole[..len]), None);
        }
    }
}
