//! One packet through the whole forwarding decision.

use std::sync::Arc;

use greyhound::{
    datapath::{
        DropReason, ForwardState, HandoverKind, PuntTo, Verdict, forward as decide,
        forward_handover,
    },
    fib::PortId,
    packet::{PacketBuf, VecBuf},
    tunnel::{self, Outer, Payload, Sequences, Tunnel, TunnelState, keepalive},
};

use super::{
    Input,
    bed::{self, Bed, HOST, PEER, UNDERLAY, WIRE},
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
    let ways = counted(&state, verdict);
    match verdict {
        Verdict::Transmit(port) => transmitted(&event, ways, frame(port, buf.data())),
        // The outer UDP checksum of such a packet may have been finished.
        Verdict::Punt(_, PuntTo::Owner(_)) if may_be_finished(&event) => {
            assert_eq!(buf.data().len(), event.packet().len());
        }
        Verdict::Punt(_, PuntTo::Service | PuntTo::Owner(_) | PuntTo::Into(_)) => {
            assert_eq!(buf.data(), event.packet(), "punted, and changed");
        }
        Verdict::Punt(_, PuntTo::Tunnel(id)) => {
            let tunnel = bed.tunnel(id.0 as u8);
            let inner = taken_out(tunnel, event.packet());
            if is_tap(tunnel) {
                return assert_eq!(buf.data(), inner, "a frame, and changed");
            }
            let clamped = tunnel.clamp_mss.is_some();
            assert_eq!(buf.data(), altered(&event, clamped, &inner, buf.data()));
        }
        Verdict::Punt(_, PuntTo::Underlay(id)) => {
            let inner = sent(bed.tunnel(id.0 as u8), buf.data());
            assert_eq!(inner, &event.packet()[..inner.len()]);
        }
        Verdict::Punt(_, PuntTo::Keepalive(id)) => {
            let tunnel = bed.tunnel(id.0 as u8);
            match keepalive::is_answer(tunnel, event.packet()) {
                true => assert_eq!(buf.data(), event.packet(), "an answer, and changed"),
                false => {
                    let inner = taken_out(tunnel, event.packet());
                    assert!(keepalive::is_request(tunnel, &inner));
                    assert_eq!(buf.data(), inner);
                }
            }
        }
        Verdict::Drop(_) => {}
    }
}

/// The tunnels that have counted a packet.
#[derive(Default)]
struct Ways {
    out_of: Option<&'static Tunnel>,
    into: Option<&'static Tunnel>,
}

/// Which tunnels have counted the packet: at most one as come out, at most one as gone in. What was punted is not counted
/// yet, and a drop at most once, under its reason.
fn counted(state: &ForwardState, verdict: Verdict) -> Ways {
    let mut ways = Ways::default();
    let mut drops: Vec<DropReason> = Vec::new();
    for (record, id) in state.tunnels.iter().flatten().zip(0..) {
        let counters = &record.state.counters;
        for (way, packets) in [
            (&mut ways.into, counters.tx_packets.get()),
            (&mut ways.out_of, counters.rx_packets.get()),
        ] {
            if packets > 0 {
                let before = way.replace(Bed::get().tunnel(id));
                assert!(packets == 1 && before.is_none(), "counted twice");
            }
        }
        let counts = record.drops.iter().filter(|(_, n)| *n > 0);
        drops.extend(counts.flat_map(|(reason, n)| (0..n).map(move |_| reason)));
    }
    let sent = ways.into.is_some();
    match verdict {
        Verdict::Transmit(_) => assert!(drops.is_empty()),
        Verdict::Punt(..) => assert!(!sent && ways.out_of.is_none() && drops.is_empty()),
        Verdict::Drop(reason) => assert!(!sent && (drops.is_empty() || drops == [reason])),
    }
    ways
}

/// A frame that leaves by `port`: between the right stations, of the right type, not larger than the device takes.
/// Returns the packet in it.
pub fn frame(port: PortId, frame: &[u8]) -> &[u8] {
    if port == WIRE {
        // Whatever came, it goes on as it came.
        return frame;
    }
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

/// Checks a packet that has left: out of a tunnel, into one, or both, and forwarded once.
fn transmitted(event: &Event, ways: Ways, packet: &[u8]) {
    let came = match ways.out_of {
        Some(tunnel) => taken_out(tunnel, event.packet()),
        None => event.packet().to_vec(),
    };
    let got = match ways.into {
        Some(tunnel) => sent(tunnel, packet),
        None => packet,
    };
    // What it was padded with stays behind.
    let came = &came[..got.len()];
    let tunnels = [ways.out_of, ways.into];
    assert!(
        tunnels.iter().any(Option::is_some),
        "no tunnel has counted it"
    );
    let clamped = tunnels.iter().flatten().any(|t| t.clamp_mss.is_some());
    match event.door {
        _ if tunnels.iter().flatten().any(|tunnel| is_tap(tunnel)) => assert_eq!(got, came),
        // The kernel has forwarded it already.
        Door::Handover(HandoverKind::IntoTunnel(..)) => assert_eq!(got, came),
        _ => judge::forwarded(&altered(event, clamped, came, got), got),
    }
}

/// Checks a packet that `tunnel` has sent; returns what is inside.
fn sent<'p>(tunnel: &Tunnel, packet: &'p [u8]) -> &'p [u8] {
    let inner = &packet[tunnel.inner_at(packet)..];
    judge::outer(tunnel, Ip::whole(packet).destination, packet, inner, 0);
    inner
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

/// Whether the tunnel carries frames, which nobody changes.
fn is_tap(tunnel: &Tunnel) -> bool {
    tunnel.mode.kind().payload == Payload::Ethernet
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
/// maximum segment size lowered (`clamped`). A checksum that was right before, or was finished, has to be right.
fn altered(event: &Event, clamped: bool, came: &[u8], got: &[u8]) -> Vec<u8> {
    let mut expected = came.to_vec();
    if came.len() != got.len() || !(may_be_finished(event) || clamped) {
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
