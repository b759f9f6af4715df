//! Where ordinary packets come out: plain GRE over IPv4 with IPv4 inside.

use std::net::{IpAddr, Ipv4Addr};

use super::{Family, Payload, Shim, Tunnel, TunnelId, TunnelTable, table::Class};
use crate::packet::GreKey;

/// The tunnel that an ordinary packet comes out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    pub tunnel: TunnelId,
    /// TCP connections are held to what the tunnel carries.
    pub clamps: bool,
}

/// A place of the table: empty where `door` is none.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// The packet's source and destination.
    ends: u64,
    /// Its key, and whether it has one.
    key: u64,
    door: Option<Door>,
}

/// The tunnels whose packets need no more than this to be known, by outer addresses and key. It answers as
/// [`TunnelTable::lookup`] does, or not at all.
#[derive(Debug, Default)]
pub struct Doors {
    /// A power of two; at most half of them are taken, or there are none.
    places: Box<[Place]>,
}

#[inline(always)]
fn ends((source, destination): (u32, u32)) -> u64 {
    u64::from(source) << 32 | u64::from(destination)
}

#[inline(always)]
fn number(key: Option<u32>) -> u64 {
    key.map_or(0, |key| 1 << 32 | u64::from(key))
}

#[inline(always)]
fn hash(ends: u64, key: u64) -> usize {
    // As in the routes' cache: the upper bits of the product depend on all below.
    let mixed = (ends ^ key.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as usize
}

/// Whether ordinary packets come out of a tunnel with nothing more to look at; `forwards`: and go on.
fn is_plain(tunnel: &Tunnel, forwards: bool) -> bool {
    let kind = tunnel.mode.kind();
    let plain = kind.underlay == Family::V4
        && kind.shim == Shim::Gre
        && matches!(kind.payload, Payload::Ip | Payload::Ipv4);
    let checks = tunnel.icsum || tunnel.iseq || tunnel.nvgre || tunnel.udp.is_some();
    plain && forwards && tunnel.up && !checks && !tunnel.copy_dscp && !tunnel.kernels
}

impl Doors {
    /// Those of `table`. `forwards` says whether what comes out of a tunnel is forwarded.
    pub fn new(table: &TunnelTable, forwards: impl Fn(TunnelId) -> bool) -> Self {
        let plain = table.iter().filter(|t| is_plain(t, forwards(t.id)));
        let known: Vec<_> = plain
            .filter_map(|tunnel| match (tunnel.local, tunnel.remote) {
                (IpAddr::V4(local), IpAddr::V4(remote)) => Some((tunnel, local, remote)),
                _ => None,
            })
            .filter(|(tunnel, local, remote)| {
                let wanted = ((*local).into(), (*remote).into());
                let by_any =
                    |device| table.lookup(Class::Gre, wanted.0, wanted.1, tunnel.ikey, device);
                let special = |a: &Ipv4Addr| a.is_unspecified() || a.is_multicast();
                !special(local)
                    && !special(remote)
                    && table.is_alone(tunnel)
                    && by_any(None) == Some(tunnel)
            })
            .collect();
        if known.is_empty() {
            return Self::default();
        }
        let size = (2 * known.len()).next_power_of_two();
        let mut places = vec![Place::default(); size].into_boxed_slice();
        for (tunnel, local, remote) in known {
            let ends = ends((remote.to_bits(), local.to_bits()));
            let key = number(tunnel.ikey.map(|GreKey(key)| key));
            let mut at = hash(ends, key) & (size - 1);
            while places[at].door.is_some() {
                at = (at + 1) & (size - 1);
            }
            places[at] = Place {
                ends,
                key,
                door: Some(Door {
                    tunnel: tunnel.id,
                    clamps: tunnel.clamp_mss.is_some(),
                }),
            };
        }
        Self { places }
    }

    /// The tunnel of a GRE packet from and to these addresses, with this key.
    #[inline(always)]
    pub fn find(&self, addresses: (u32, u32), key: Option<u32>) -> Option<Door> {
        let (ends, key) = (ends(addresses), number(key));
        let mut at = hash(ends, key);
        loop {
            let place = self.places.get(at & self.places.len().wrapping_sub(1))?;
            let door = place.door?;
            if place.ends == ends && place.key == key {
                return Some(door);
            }
            at += 1;
        }
    }
}
