//! Frames over a wire: as they are, or not at all (tap-1, nvgre-1).

use super::*;

/// A bed whose overlay port is at the other end of the first tunnel's wire, and the far end of that tunnel.
fn wired(mode: Mode) -> (Bed, Tunnel) {
    let (mut bed, far) = bed_of(mode);
    let (tunnel, egress) = &mut bed.tunnels[0];
    tunnel.wire = Some(1500);
    egress.wire = Some(OVERLAY);
    bed.ports[1].wire = Some(TunnelId(0));
    (bed, far)
}

fn subnet(mode: Mode, vsid: u32) -> (Bed, Tunnel) {
    let (mut bed, far) = wired(mode);
    let key = Some(GreKey(vsid));
    let nvgre = |tunnel: Tunnel| Tunnel {
        nvgre: true,
        ikey: key,
        okey: key,
        ..tunnel
    };
    bed.tunnels[0].0 = nvgre(bed.tunnels[0].0.clone());
    (bed, nvgre(far))
}

/// Of any length, with any type, from a stranger to a stranger.
fn frame(kind: u16, payload: &[u8]) -> Vec<u8> {
    let addresses = [[2, 0, 0, 0, 0, 0xa].as_slice(), &[2, 0, 0, 0, 0, 0xb]].concat();
    [&addresses[..], &kind.to_be_bytes(), payload].concat()
}

fn to(destination: [u8; 6], mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&destination);
    frame
}

/// `tags` VLAN tags in front of an IPv4 packet of so many bytes.
fn tagged(tags: usize, len: usize) -> Vec<u8> {
    let tag = [0x81, 0, 0x20, 7];
    let mut payload: Vec<u8> = [tag].repeat(tags).concat();
    payload.drain(..payload.len().min(2));
    payload.extend(if tags > 0 { &[8, 0][..] } else { &[] });
    payload.extend(ipv4(INSIDE, OUTSIDE, 1, len - 28));
    frame(if tags > 0 { 0x8100 } else { 0x0800 }, &payload)
}

fn strange_frames() -> Vec<Vec<u8>> {
    let broadcast = [0xff; 6];
    vec![
        // A TTL that would expire, options, a fragment, a wrong checksum: nobody looks.
        tagged(0, 28),
        tagged(1, 60),
        tagged(2, 60),
        tagged(3, 60),
        to(broadcast, frame(0x0806, &[0; 28])),
        to([1, 0x80, 0xc2, 0, 0, 0], frame(38, &[0x42; 46])),
        to([1, 0x80, 0xc2, 0, 0, 0xe], frame(0x88cc, &[2; 60])),
        frame(0x86dd, &ipv6("fe80::1", "ff02::1", 255, 8)),
        frame(0x0800, &[0x45; 30]),
        frame(0x0800, &[]),
        frame(0xffff, &[7; 1000]),
    ]
}

impl Bed {
    /// As [`Bed::run`], with the room that a received frame has.
    fn carry(&mut self, frame: &[u8], from: PortId) -> (Verdict, Vec<u8>) {
        let fib = self.fib();
        let mut buf = VecBuf::new(256, frame);
        let verdict = forward(&mut buf, from, &fib, &mut self.state);
        (verdict, buf.data().to_vec())
    }
}

/// What the far end finds in a frame that has left by the underlay.
fn taken_out(far: &Tunnel, frame: &[u8]) -> Vec<u8> {
    let table = tunnel::TunnelTable::new([far.clone()]);
    let mut buf = VecBuf::new(0, &frame[ethernet::HEADER_LEN..]);
    let outer = Outer::parse(buf.data(), &table, None).unwrap();
    let state = TunnelState::new(0, 1, Arc::default());
    tunnel::decapsulate(far, &outer, &mut buf, &state).unwrap();
    buf.data().to_vec()
}

/// The frame by which the far end sends `inner`.
fn sent_by(far: &Tunnel, inner: &[u8]) -> Vec<u8> {
    let mut buf = VecBuf::new(256, inner);
    let state = TunnelState::new(0, 1, Arc::default());
    tunnel::encapsulate(far, far.remote, &mut buf, &state).unwrap();
    framed(mac(UNDERLAY), buf.data())
}

#[test]
fn tap_1_every_frame_goes_both_ways_as_it_is() {
    for mode in [Mode::Gretap, Mode::Ip6gretap] {
        let (mut bed, far) = wired(mode);
        let frames = strange_frames();
        for frame in &frames {
            let (verdict, sent) = bed.carry(frame, OVERLAY);
            assert_eq!(verdict, Verdict::Transmit(UNDERLAY));
            assert_eq!(taken_out(&far, &sent), *frame);

            let (verdict, came) = bed.carry(&sent_by(&far, frame), UNDERLAY);
            assert_eq!((verdict, came), (Verdict::Transmit(OVERLAY), frame.clone()));
        }
        let counters = &bed.record(0).state.counters;
        let (packets, bytes) = (frames.len() as u64, frames.concat().len() as u64);
        assert_eq!(
            (counters.tx_packets.get(), counters.tx_bytes.get()),
            (packets, bytes)
        );
        assert_eq!(
            (counters.rx_packets.get(), counters.rx_bytes.get()),
            (packets, bytes)
        );
    }
}

#[test]
fn the_mtu_counts_neither_the_frames_header_nor_its_tags() {
    let (mut bed, _) = wired(Mode::Gretap);
    bed.tunnels[0].1.adjacency.as_mut().unwrap().mtu = 1600;
    let mtu = usize::from(bed.tunnels[0].0.mtu);
    for tags in 0..3 {
        let (verdict, _) = bed.carry(&tagged(tags, mtu), OVERLAY);
        assert_eq!(verdict, Verdict::Transmit(UNDERLAY), "{tags} tags");
        let (verdict, _) = bed.carry(&tagged(tags, mtu + 1), OVERLAY);
        assert_eq!(
            verdict,
            Verdict::Drop(DropReason::FrameTooBig),
            "{tags} tags"
        );
    }
    // A third tag is payload.
    let (verdict, _) = bed.carry(&tagged(3, mtu), OVERLAY);
    assert_eq!(verdict, Verdict::Drop(DropReason::FrameTooBig));
    assert_eq!(bed.record(0).drops.total(), 4);
}

#[test]
fn the_slow_path_sees_to_frames_that_do_not_fit_the_way() {
    let (mut bed, _) = wired(Mode::Gretap);
    let mtu = usize::from(bed.tunnels[0].0.mtu);
    let frame = tagged(1, mtu);
    let (verdict, came) = bed.carry(&frame, OVERLAY);
    assert_eq!(
        verdict,
        Verdict::Punt(PuntReason::TooBig, PuntTo::Into(TunnelId(0)))
    );
    assert_eq!(came, frame, "as it was");
}

#[test]
fn frames_are_punted_while_the_worker_cannot_send_them() {
    let frame = tagged(1, 60);
    let into = |reason| Verdict::Punt(reason, PuntTo::Into(TunnelId(0)));
    let (mut bed, _) = wired(Mode::Gretap);
    bed.tunnels[0].1.adjacency = None;
    assert_eq!(
        bed.carry(&frame, OVERLAY),
        (into(PuntReason::TunnelNotReady), frame.clone())
    );

    let (mut bed, _) = wired(Mode::Gretap);
    bed.tunnels[0].0.oseq = true;
    bed.state.owns_sequences = false;
    assert_eq!(
        bed.carry(&frame, OVERLAY),
        (into(PuntReason::SequenceOwner), frame.clone())
    );

    let (mut bed, _) = wired(Mode::Gretap);
    bed.tunnels[0].0.up = false;
    assert_eq!(
        bed.carry(&frame, OVERLAY).0,
        Verdict::Drop(DropReason::TunnelDown)
    );
}

#[test]
fn what_comes_out_goes_into_the_tunnels_device_where_the_wire_does_not_take_it() {
    let frame = tagged(1, 60);
    let tap = |reason| Verdict::Punt(reason, PuntTo::Tunnel(TunnelId(0)));
    let (mut bed, far) = wired(Mode::Gretap);
    let sent = sent_by(&far, &frame);
    bed.tunnels[0].1.wire = None;
    assert_eq!(
        bed.carry(&sent, UNDERLAY),
        (tap(PuntReason::TunnelNotReady), frame.clone())
    );
    bed.tunnels[0].0.wire = None;
    assert_eq!(
        bed.carry(&sent, UNDERLAY),
        (tap(PuntReason::NotPlain), frame.clone())
    );
    assert_eq!(
        bed.record(0).state.counters.rx_packets.get(),
        0,
        "counted when delivered"
    );

    let (mut bed, _) = wired(Mode::Gretap);
    bed.tunnels[0].0.wire = Some(59);
    assert_eq!(
        bed.carry(&sent, UNDERLAY).0,
        Verdict::Drop(DropReason::FrameTooBig)
    );
    assert_eq!(bed.record(0).drops.total(), 1);
}

#[test]
fn checksums_that_a_veth_left_open_are_finished_behind_tags_on_both_ports() {
    for tags in 0..3 {
        let finished = tagged(tags, 60);
        let mut open = finished.clone();
        let at = open.len() - 60;
        let pseudo = crate::packet::Checksum::new()
            .add_bytes(&open[at + 12..at + 20])
            .add_u16(17)
            .add_u16(40);
        open[at + 26..at + 28].copy_from_slice(&pseudo.fold().to_be_bytes());
        assert_ne!(open, finished);
        for veth in [false, true] {
            let (mut bed, far) = wired(Mode::Gretap);
            bed.ports
                .iter_mut()
                .for_each(|port| port.partial_checksums = veth);
            let expected = if veth { &finished } else { &open };
            let (_, sent) = bed.carry(&open, OVERLAY);
            assert_eq!(taken_out(&far, &sent), *expected);
            let (_, came) = bed.carry(&sent_by(&far, &open), UNDERLAY);
            assert_eq!(came, *expected);
            assert_eq!(
                bed.state.stats.checksums_completed.get(),
                2 * u64::from(veth)
            );
        }
    }
}

#[test]
fn nvgre_1_the_key_is_a_subnet_and_a_flow() {
    for mode in [Mode::Gretap, Mode::Ip6gretap] {
        let (mut bed, far) = subnet(mode, 5000);
        let key_of = |sent: &[u8]| {
            let shim = sent.len() - (14 + 60) - 8;
            assert_eq!(sent[shim..shim + 4], [0x20, 0, 0x65, 0x58]);
            u32::from_be_bytes(sent[shim + 4..shim + 8].try_into().unwrap())
        };
        let mut flows = std::collections::HashSet::new();
        for host in 0..64 {
            let inner = frame(0x0800, &ipv4([10, 1, 0, host], OUTSIDE, 64, 32));
            let (verdict, sent) = bed.carry(&inner, OVERLAY);
            assert_eq!(verdict, Verdict::Transmit(UNDERLAY));
            let key = key_of(&sent);
            assert_eq!(key >> 8, 5000);
            flows.insert(key & 0xff);
            let (_, again) = bed.carry(&inner, OVERLAY);
            assert_eq!(key_of(&again), key, "a flow keeps its number");
            assert_eq!(taken_out(&far, &sent), inner);
        }
        assert!(flows.len() > 32, "{} flows of 64 hosts", flows.len());
    }
}

#[test]
fn nvgre_1_any_flow_of_the_subnet_is_received_and_no_other_subnet() {
    let (mut bed, far) = subnet(Mode::Gretap, 5000);
    let inner = frame(0x0800, &ipv4(INSIDE, OUTSIDE, 64, 32));
    let with_key = |key: u32| {
        let plain = Tunnel {
            nvgre: false,
            okey: Some(GreKey(key)),
            ..far.clone()
        };
        sent_by(&plain, &inner)
    };
    for flow in [0, 1, 0xff] {
        let (verdict, came) = bed.carry(&with_key(5000 << 8 | flow), UNDERLAY);
        assert_eq!((verdict, came), (Verdict::Transmit(OVERLAY), inner.clone()));
    }
    for key in [4999 << 8, 5001 << 8, 5000] {
        let (verdict, _) = bed.carry(&with_key(key), UNDERLAY);
        assert_eq!(verdict, service(PuntReason::UnknownTunnel), "{key:#x}");
    }
    // Another tunnel, which has the whole of such a key, has its packets.
    bed.tunnels[1].0 = Tunnel {
        id: TunnelId(1),
        nvgre: false,
        ikey: Some(GreKey(5000 << 8)),
        ..bed.tunnels[0].0.clone()
    };
    bed.tunnels[1].1.wire = None;
    let (verdict, _) = bed.carry(&with_key(5000 << 8), UNDERLAY);
    let other = Verdict::Punt(PuntReason::TunnelNotReady, PuntTo::Tunnel(TunnelId(1)));
    assert_eq!(verdict, other);
}

#[test]
fn nvgre_1_carries_no_vlan_tags() {
    let (mut bed, far) = subnet(Mode::Gretap, 5000);
    let plain = Tunnel {
        nvgre: false,
        okey: Some(GreKey(5000 << 8)),
        ..far
    };
    for kind in [0x8100, 0x88a8] {
        let inner = frame(kind, &[0; 46]);
        let refused = Verdict::Drop(DropReason::InnerTagged);
        assert_eq!(bed.carry(&inner, OVERLAY).0, refused);
        assert_eq!(bed.carry(&sent_by(&plain, &inner), UNDERLAY).0, refused);
    }
    assert_eq!(bed.record(0).drops.total(), 4);
}
