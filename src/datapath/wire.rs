//! Frames between a tunnel and the device at the other end of its wire: they pass as they are, whatever is in them.

use super::{
    DropReason, PuntReason, PuntTo, Verdict,
    forward::{ForwardState, encapsulate},
    stats::TunnelRecord,
};
use crate::{
    fib::{Fib, PortInfo},
    packet::{PacketBuf, ethernet, transport},
    tunnel::{Tunnel, TunnelId},
};

/// A frame that came by such a device: into the tunnel.
#[inline]
pub(super) fn enter<B: PacketBuf>(
    frame: &mut B,
    (port, id): (&PortInfo, TunnelId),
    fib: &Fib,
    state: &mut ForwardState,
) -> Verdict {
    state.trail.goes_into(id);
    let to_slow_path = |reason| Verdict::Punt(reason, PuntTo::Into(id));
    let Some(tunnel) = fib.tunnels().get(id).filter(|tunnel| tunnel.up) else {
        return state.drop_in(id, DropReason::TunnelDown);
    };
    if !tunnel.fits(frame.data()) {
        return state.drop_in(id, DropReason::FrameTooBig);
    }
    let Some(adjacency) = fib.egress(id).adjacency else {
        return to_slow_path(PuntReason::TunnelNotReady);
    };
    let len = frame.data().len();
    if len + tunnel.overhead() > usize::from(adjacency.mtu) {
        return to_slow_path(PuntReason::TooBig);
    }
    if tunnel.oseq && !state.owns_sequences {
        return to_slow_path(PuntReason::SequenceOwner);
    }
    if port.partial_checksums && transport::complete_in_frame(frame.data_mut()) {
        state.stats.checksums_completed.add(1);
    }
    if let Some(record) = state.tunnel(id) {
        tunnel.clamp_mss(frame.data_mut(), &record.state.counters);
    }
    encapsulate(frame, tunnel, (tunnel.remote, &adjacency), len, state)
}

/// A frame that came out of the tunnel: to the device at the other end of its wire, or into the tunnel's own.
#[inline]
pub(super) fn leave<B: PacketBuf>(
    frame: &mut B,
    (tunnel, record): (&Tunnel, &TunnelRecord),
    fib: &Fib,
) -> Verdict {
    if !tunnel.fits_wire(frame.data()) {
        record.drops.count(DropReason::FrameTooBig);
        return Verdict::Drop(DropReason::FrameTooBig);
    }
    tunnel.clamp_mss(frame.data_mut(), &record.state.counters);
    let egress = fib.egress(tunnel.id).wire;
    match (egress.and_then(|port| fib.port(port)), tunnel.wire) {
        (Some(port), _) => {
            let len = frame.data().len() as u64;
            let to = match (port.vlan, egress) {
                (Some(on), _) if ethernet::push_tag(frame, on.vid).is_ok() => on.port,
                (None, Some(port)) => port,
                _ => return no_headroom(record),
            };
            record.state.counters.rx_packets.add(1);
            record.state.counters.rx_bytes.add(len);
            Verdict::Transmit(to)
        }
        // The slow path counts these for the tunnel when it delivers them.
        (None, Some(_)) => Verdict::Punt(PuntReason::TunnelNotReady, PuntTo::Tunnel(tunnel.id)),
        (None, None) => Verdict::Punt(PuntReason::NotPlain, PuntTo::Tunnel(tunnel.id)),
    }
}

#[inline]
fn no_headroom(record: &TunnelRecord) -> Verdict {
    record.drops.count(DropReason::NoHeadroom);
    Verdict::Drop(DropReason::NoHeadroom)
}
