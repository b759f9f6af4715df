//! Into the tunnel.

use std::net::IpAddr;

use super::{Refusal, Shim, Tunnel, TunnelState, inner::Inner, outer};
use crate::packet::{GreHeader, PacketBuf, ParseError};

/// Turns an inner packet into an outer one to `remote`, in place. The packet begins with its IP header (an Ethernet tunnel's with its
/// Ethernet header) and afterwards with the outer IP header; bytes behind an inner IP packet, which a frame was padded
/// with, are cut off (gre-9).
#[inline]
pub fn encapsulate<B: PacketBuf>(
    tunnel: &Tunnel,
    remote: IpAddr,
    packet: &mut B,
    state: &TunnelState,
) -> Result<(), Refusal> {
    let mut inner = Inner::parse(packet.data(), tunnel, remote)?;
    if remote.is_unspecified() {
        return Err(Refusal::NoRemote);
    }
    inner.limit = inner.outer_limit(tunnel)?;
    let headers = tunnel.headers_with(inner.limit);
    let overhead = headers.total();
    if overhead + inner.len > usize::from(u16::MAX) || packet.headroom() < overhead {
        return Err(Refusal::NoRoom);
    }
    if tunnel.shows_flow() {
        inner.hash = inner.flow_hash(packet.data());
    }
    // Both were checked above; nothing is changed before this point.
    packet
        .truncate(inner.len)
        .map_err(|_| Refusal::Inner(ParseError::TotalLength))?;
    let out = packet.prepend(overhead).map_err(|_| Refusal::NoRoom)?;
    if tunnel.mode.kind().shim == Shim::Gre {
        let header = GreHeader {
            protocol: inner.ether_type,
            checksum: tunnel.ocsum,
            key: tunnel.key_of(inner.hash),
            sequence: tunnel.oseq.then(|| state.sequences.next()),
        };
        header.emit(&mut out[headers.shim_at()..]);
    }
    outer::emit(tunnel, remote, out, &inner, state)
}
