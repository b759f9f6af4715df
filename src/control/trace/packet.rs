//! The packet that is asked about: built, framed, and read again.

use std::net::IpAddr;

use crate::{
    control::report::trace::{PacketReport, Probe},
    fib::PortInfo,
    packet::{
        EtherType, Gre, Ipv4, Ipv4Header, Ipv6, Ipv6Header, MacAddr, PacketBuf, Udp, VecBuf,
        ethernet, ipv4, ipv6, protocol,
    },
    tunnel,
};

/// The locally administered address of whoever sends the packet.
const STRANGER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// An IP packet as it was asked for.
pub(super) fn build(probe: &Probe) -> Result<Vec<u8>, String> {
    let is_v4 = probe.source.is_ipv4();
    let number = match (probe.protocol, is_v4) {
        (Some(number), _) => number,
        (None, true) => protocol::ICMP,
        (None, false) => protocol::ICMPV6,
    };
    let header = if is_v4 {
        ipv4::HEADER_LEN
    } else {
        ipv6::HEADER_LEN
    };
    let mut upper = vec![0u8; usize::from(probe.size).saturating_sub(header)];
    let length = (upper.len() as u16).to_be_bytes();
    let fields: &[(usize, [u8; 2])] = &match number {
        protocol::TCP | protocol::UDP => [
            (0, probe.sport.to_be_bytes()),
            (2, probe.dport.to_be_bytes()),
            (
                4,
                if number == protocol::UDP {
                    length
                } else {
                    [0; 2]
                },
            ),
            // TCP: a header of 20 bytes that acknowledges.
            (
                12,
                if number == protocol::TCP {
                    [0x50, 0x10]
                } else {
                    [0; 2]
                },
            ),
        ],
        _ => [(0, [if is_v4 { 8 } else { 128 }, 0]); 4],
    };
    let needed = match number {
        protocol::TCP => 20,
        _ => 8,
    };
    if upper.len() < needed {
        return Err(format!(
            "size {}: expected {} at the least",
            probe.size,
            header + needed
        ));
    }
    for (at, bytes) in fields {
        if let Some(place) = upper.get_mut(*at..*at + 2).filter(|_| *at < needed) {
            place.copy_from_slice(bytes);
        }
    }
    match (probe.source, probe.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut out = [0; ipv4::HEADER_LEN];
            Ipv4Header {
                tos: probe.tos,
                total_len: probe.size,
                identification: 1,
                dont_fragment: probe.df,
                ttl: probe.ttl,
                protocol: number,
                source,
                destination,
            }
            .emit(&mut out);
            Ok([&out[..], &upper].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut out = [0; ipv6::HEADER_LEN];
            Ipv6Header {
                traffic_class: probe.tos,
                flow_label: 0,
                payload_len: upper.len() as u16,
                next_header: number,
                hop_limit: probe.ttl,
                source,
                destination,
            }
            .emit(&mut out);
            Ok([&out[..], &upper].concat())
        }
        (source, destination) => Err(format!(
            "{source} and {destination}: expected two addresses of one family"
        )),
    }
}

/// Behind the Ethernet header of a stranger.
pub(super) fn framed(packet: &[u8], port: &PortInfo) -> Vec<u8> {
    let mut frame = vec![0; ethernet::HEADER_LEN + packet.len()];
    let ether_type = match packet.first().map(|byte| byte >> 4) {
        Some(6) => EtherType::IPV6,
        _ => EtherType::IPV4,
    };
    ethernet::write(&mut frame, port.mac, STRANGER, ether_type);
    frame[ethernet::HEADER_LEN..].copy_from_slice(packet);
    let mut frame = VecBuf::new(ethernet::TAG_LEN, &frame);
    if let Some(on) = port.vlan {
        // There is room for it.
        let _ = ethernet::push_tag(&mut frame, on.vid);
    }
    frame.data().to_vec()
}

/// As a router does.
pub(super) fn decrement(packet: &mut [u8]) {
    match packet.first().map(|byte| byte >> 4) {
        Some(6) => ipv6::decrement_hop_limit(packet),
        _ => ipv4::decrement_ttl(packet),
    };
}

/// What its headers say, GRE's included, in UDP too.
pub(super) fn described(packet: &[u8]) -> PacketReport {
    let mut report = PacketReport {
        bytes: packet.len() as u32,
        ..PacketReport::default()
    };
    let (number, payload) = if let Ok(ip) = Ipv4::parse(packet) {
        report.source = ip.source().to_string();
        report.destination = ip.destination().to_string();
        (report.ttl, report.tos, report.df) = (ip.ttl(), ip.tos(), ip.dont_fragment());
        (ip.protocol(), ip.payload())
    } else if let Ok(ip) = Ipv6::parse(packet) {
        report.source = ip.source().to_string();
        report.destination = ip.destination().to_string();
        (report.ttl, report.tos) = (ip.hop_limit(), ip.traffic_class());
        match ip.upper_layer() {
            Ok(upper) => (upper.protocol, packet.get(upper.at..).unwrap_or_default()),
            Err(_) => (ip.next_header(), ip.payload()),
        }
    } else {
        return report;
    };
    report.protocol = number;
    let gre = match number {
        protocol::GRE => payload,
        protocol::TCP | protocol::UDP => {
            let word = |at: usize| {
                Some(u16::from_be_bytes(
                    payload.get(at..at + 2)?.try_into().ok()?,
                ))
            };
            (report.sport, report.dport) = (word(0), word(2));
            match Udp::parse(payload) {
                Ok(udp)
                    if number == protocol::UDP
                        && udp.destination_port() == tunnel::GRE_IN_UDP_PORT =>
                {
                    &payload[8..]
                }
                _ => &[],
            }
        }
        _ => &[],
    };
    if let Ok(gre) = Gre::parse(gre) {
        (report.key, report.sequence) = (gre.key().map(|key| key.0), gre.sequence());
    }
    report
}
