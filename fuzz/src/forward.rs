//! One packet through the whole forwarding decision.

use std::{net::IpAddr, sync::Arc};

use greyhound::{
    datapath::{
        DropReason, ForwardState, HandoverKind, PuntTo, Verdict, forward as decide,
        forward_handover,
    },
    fib::PortId,
    packet::{PacketBuf, VecBuf},
    tunnel::{self, Outer, Sequences, Tunnel, TunnelState},
};

use super::{
    Input,
    bed::{self, Bed, HOST, PEER, UNDERLAY},
    event::{Door, Event},
    judge::{self, Ip},
};

/// The input: switches, then an event.
///
/// A packet that is punted before it is decapsulated is as it came; one that is transmitted is a right frame for a
/// neighbour, with the packet in it that came, forwarded once; and the tunnels' counters say what happened.
pub fn forward(bytes: &[u8]) {
    let mut input = Input(bytes);
    let switches = input.byte();
    let event = Event::read(&mut input, usize::MAX);
    let headroom = match switches & 2 {
        0 => 256,
        _ => usize::from(switches >> 2),
    };
    let bed = Bed::get();
    let mut state = bed.state(switches & 1 == 0);
    let mut buf = VecBuf::new(headroom, &event.bytes);
    let verdict = match event.door {
        Door::Port(port) => decide(&mut buf, port, &bed.fib, &mut state),
        Door::Handover(kind) => forward_handover(&mut buf, kind, &bed.fib, &mut state),
    };
    let counted = counted(&state, verdict);
    match verdict {
        Verdict::Transmit(port) => {
            let packet = frame(port, buf.data());
            match counted {
                Some((id, true)) => sent(&event, bed.tunnel(id), packet),
                Some((id, false)) => came_out(&event, bed.tunnel(id), packet),
                None => panic!("transmitted, and no tunnel has counted it"),
            }
        }
        Verdict::Punt(_, PuntTo::Service | PuntTo::Owner(_)) => {
            assert_eq!(buf.data(), event.packet(), "punted, and changed");
        }
        Verdict::Punt(_, PuntTo::Tunnel(id)) => {
            let tunnel = bed.tunnel(id.0 as u8);
            let inner = taken_out(tunnel, event.packet());
            assert_eq!(buf.data(), altered(&event, tunnel, &inner, buf.data()));
        }
        Verdict::Punt(_, PuntTo::Underlay(id)) => {
            let tunnel = bed.tunnel(id.0 as u8);
            let inner = &buf.data()[tunnel.overhead()..];
            judge::outer(tunnel, remote(buf.data()), buf.data(), inner, 0);
            assert_eq!(inner, &event.packet()[..inner.len()]);
        }
        Verdict::Drop(_) => {}
    }
}

/// Which tunnel has counted the packet, and whether as sent into it. What was transmitted was counted once, what was
/// punted not yet, and a drop at most once, under its reason.
fn counted(state: &ForwardState, verdict: Verdict) -> Option<(u8, bool)> {
    let mut found = None;
    let mut count = |id: usize, sent: bool, packets: u64| {
        if packets > 0 {
            assert!(packets == 1 && found.is_none(), "counted twice");
            found = Some((id as u8, sent));
        }
    };
    let mut drops: Vec<DropReason> = Vec::new();
    for (id, record) in state.tunnels.iter().flatten().enumerate() {
        count(id, true, record.state.counters.tx_packets.get());
        count(id, false, record.state.counters.rx_packets.get());
        let counts = record.drops.iter().filter(|(_, n)| *n > 0);
        drops.extend(counts.flat_map(|(reason, n)| (0..n).map(move |_| reason)));
    }
    match verdict {
        Verdict::Transmit(_) => assert!(drops.is_empty()),
        Verdict::Punt(..) => assert!(found.is_none() && drops.is_empty()),
        Verdict::Drop(reason) => {
            assert!(
                found.is_none() && (drops.is_empty() || drops == [reason]),
                "{drops:?}"
            );
        }
    }
    found
}

/// A frame that leaves by `port`: between the right stations, of the right type, not larger than the device takes.
/// Returns the packet in it.
pub fn frame(port: PortId, frame: &[u8]) -> &[u8] {
    let to = if port == UNDERLAY { PEER } else { HOST };
    assert_eq!(frame[..6], to.0, "destination");
    assert_eq!(frame[6..12], bed::mac(port).0, "source");
    let packet = &frame[14..];
    let ip = Ip::whole(packet);
    let ether_type: u16 = if ip.v6 { 0x86dd } else { 0x0800 };
    assert_eq!(frame[12..14], ether_type.to_be_bytes(), "type");
    let mtu = Bed::get().fib.port(port).expect("a port").mtu;
    assert!(
        packet.len() <= usize::from(mtu),
        "larger than the device's MTU"
    );
    packet
}

/// Where a packet goes.
fn remote(packet: &[u8]) -> IpAddr {
    Ip::whole(packet).destination
}

/// Checks what went into `tunnel`.
fn sent(event: &Event, tunnel: &Tunnel, packet: &[u8]) {
    let inner = &packet[tunnel.overhead()..];
    judge::outer(tunnel, remote(packet), packet, inner, 0);
    let came = &event.packet()[..inner.len()];
    match event.door {
        // The kernel has forwarded it already.
        Door::Handover(HandoverKind::IntoTunnel(..)) => assert_eq!(inner, came),
        _ => judge::forwarded(&altered(event, tunnel, came, inner), inner),
    }
}

/// Checks what came out of `tunnel` and goes on to a host.
fn came_out(event: &Event, tunnel: &Tunnel, packet: &[u8]) {
    let inner = taken_out(tunnel, event.packet());
    judge::forwarded(&altered(event, tunnel, &inner, packet), packet);
}

/// The packet in a tunnel packet that is known to be right.
fn taken_out(tunnel: &Tunnel, packet: &[u8]) -> Vec<u8> {
    let outer = Outer::parse(packet, &Bed::get().near, None).expect("a tunnel packet");
    assert_eq!(outer.tunnel, tunnel.id);
    let mut buf = VecBuf::new(0, packet);
    let state = TunnelState::new(0, 1, Arc::new(Sequences::default()));
    tunnel::decapsulate(tunnel, &outer, &mut buf, &state).expect("a packet in it");
    buf.data().to_vec()
}

/// Whether a transport checksum may have been finished on the way.
fn may_be_finished(event: &Event) -> bool {
    let (Door::Port(port) | Door::Handover(HandoverKind::FromOverlay(port))) = event.door else {
        return false;
    };
    let port = Bed::get().fib.port(port);
    port.is_some_and(|port| port.partial_checksums)
}

/// `came` with the changes that a TCP or UDP packet may have got on its way, taken from `got`: its checksum finished, its
/// maximum segment size lowered. A checksum that was right before, or was finished, has to be right.
fn altered(event: &Event, tunnel: &Tunnel, came: &[u8], got: &[u8]) -> Vec<u8> {
    let mut expected = came.to_vec();
    let (finished, clamped) = (may_be_finished(event), tunnel.clamp_mss.is_some());
    if came.len() != got.len() || !(finished || clamped) {
        return expected;
    }
    let ip = Ip::read(came);
    // The checksum, and with it a TCP header's options.
    let (from, to) = match ip.protocol {
        6 if clamped => (16, 60),
        6 => (16, 18),
        17 => (6, 8),
        // Extension headers, and behind them perhaps TCP.
        0 | 43 | 60 if ip.v6 && clamped => (0, came.len()),
        _ => return expected,
    };
    let part = ip.header_len + from..(ip.header_len + to).min(came.len());
    if came.get(part.clone()) != got.get(part.clone()) {
        let right = !matches!(ip.protocol, 6 | 17) || judge::transport_ok(got);
        // Only TCP's is mended where it was wrong before, and stays wrong.
        assert!(
            right || clamped && !judge::transport_ok(came),
            "a wrong checksum"
        );
        expected[part.clone()].copy_from_slice(&got[part]);
    }
    expected
}
