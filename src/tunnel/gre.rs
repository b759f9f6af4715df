//! GRE over IPv4 (RFC 2784, RFC 2890).

use super::{Refusal, Tunnel, TunnelId, TunnelState, TunnelTable};
use crate::packet::PacketBuf;

/// A received tunnel packet's outer headers, parsed and matched to a tunnel; the packet is still whole.
#[derive(Debug, Clone, Copy)]
pub struct Outer {
    pub tunnel: TunnelId,
}

impl Outer {
    /// Parses an outer packet (it begins with the IPv4 header) and finds its tunnel. `device` is the interface index
    /// that it came in by, where known.
    pub fn parse(
        _packet: &[u8],
        _tunnels: &TunnelTable,
        _device: Option<u32>,
    ) -> Result<Outer, Refusal> {
        todo!()
    }
}

/// Turns an inner IP packet into an outer one, in place. The packet begins with its IP header before and after.
pub fn encapsulate<B: PacketBuf>(
    _tunnel: &Tunnel,
    _packet: &mut B,
    _state: &TunnelState,
) -> Result<(), Refusal> {
    todo!()
}

/// Turns an outer packet, whose headers are `outer`, into the inner IP packet, in place; trailing bytes beyond the
/// inner length are cut off.
pub fn decapsulate<B: PacketBuf>(
    _tunnel: &Tunnel,
    _outer: &Outer,
    _packet: &mut B,
    _state: &TunnelState,
) -> Result<(), Refusal> {
    todo!()
}
