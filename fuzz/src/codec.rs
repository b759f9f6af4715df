//! Into a tunnel and out of it, without a router around.

use std::{net::IpAddr, sync::Arc};

use greyhound::{
    packet::{PacketBuf, ParseError, VecBuf},
    tunnel::{self, Outer, Quoted, Refusal, Sequences, Tunnel, TunnelState},
};

use super::{Input, bed::Bed, judge};

/// Sequence numbers around which something may go wrong.
fn number(choice: u8) -> u32 {
    match choice % 4 {
        0 => 0,
        1 => u32::MAX,
        2 => 100,
        _ => 0x8000_0000,
    }
}

/// The tunnel's remote, or some peer.
fn remote_of(tunnel: &Tunnel) -> IpAddr {
    let peer = tunnel.peers.remotes().first();
    let own = (!tunnel.remote.is_unspecified()).then_some(tunnel.remote);
    own.or(peer.copied()).expect("a remote or a peer")
}

fn state(tx: u32, rx: u32) -> TunnelState {
    TunnelState::new(0, 1, Arc::new(Sequences::starting_at(tx, rx)))
}

/// The input: a tunnel, the room in front of the packet, the number that is next, and the packet.
///
/// A packet that is refused is as it was, and no number was taken. One that is accepted has the outer headers that its
/// tunnel wants, and the far end gets out what went in, or refuses it for what was wrong with it before.
pub fn encapsulate(bytes: &[u8]) {
    let mut input = Input(bytes);
    let tunnel = Bed::get().tunnel(input.byte());
    let headroom = usize::from(input.byte()) % 128;
    let next = number(input.byte());
    let packet = input.rest();

    let mut buf = VecBuf::new(headroom, packet);
    let near = state(next, 0);
    let remote = remote_of(tunnel);
    if tunnel::encapsulate(tunnel, remote, &mut buf, &near).is_err() {
        assert_eq!((buf.data(), buf.headroom()), (packet, headroom), "changed");
        assert_eq!(near.sequences.next(), next, "a number was taken");
        return;
    }
    let inner_len = buf.data().len() - tunnel.inner_at(buf.data());
    judge::outer(tunnel, remote, buf.data(), &packet[..inner_len], next);
    let quoted = Quoted::parse(buf.data()).expect("an error about it is understood");
    assert!(
        quoted.remote == remote && quoted.is_of(tunnel),
        "an error about it is believed"
    );
    assert_eq!(
        near.sequences.next(),
        next.wrapping_add(u32::from(tunnel.oseq))
    );

    let far = Tunnel {
        local: remote,
        up: true,
        ..tunnel.far_end()
    };
    match received(&far, &state(0, next), buf.data()) {
        Ok(back) => assert_eq!(back, &packet[..inner_len], "there and back"),
        Err(Refusal::Inner(ParseError::HeaderChecksum) | Refusal::InnerMartian) => {}
        Err(refusal) => panic!("the far end refuses what we sent: {refusal:?}"),
    }
}

/// Takes an outer packet out of `tunnel`, which is the only one there is.
fn received(tunnel: &Tunnel, state: &TunnelState, packet: &[u8]) -> Result<Vec<u8>, Refusal> {
    let table = tunnel::TunnelTable::new([tunnel.clone()]);
    let mut buf = VecBuf::new(0, packet);
    let outer = Outer::parse(packet, &table, None)?;
    tunnel::decapsulate(tunnel, &outer, &mut buf, state)?;
    Ok(buf.data().to_vec())
}

/// The input: the number that is expected, and an outer packet, to the router with all tunnels.
///
/// A packet that is refused is as it was, and its number was not taken. What comes out is a whole packet of the tunnel's;
/// put into the tunnel again by its far end, and taken out once more, it is the same.
pub fn decapsulate(bytes: &[u8]) {
    let mut input = Input(bytes);
    let expected = number(input.byte());
    let packet = input.rest();
    let tunnels = &Bed::get().near;
    let Ok(outer) = Outer::parse(packet, tunnels, Some(10)) else {
        return;
    };
    let tunnel = tunnels.get(outer.tunnel).expect("a tunnel that was found");
    let header = judge::Ip::read(packet);
    let one = !tunnel.remote.is_unspecified() && !tunnel.remote.is_multicast();
    assert!(!one || header.source == tunnel.remote, "from a stranger");
    let ours = [tunnel.local, tunnel.remote].contains(&header.destination);
    assert!(ours, "to a stranger");
    assert!(tunnel.up && header.checksum_ok && header.total_len <= packet.len());

    let mut buf = VecBuf::new(0, packet);
    let near = state(0, expected);
    if tunnel::decapsulate(tunnel, &outer, &mut buf, &near).is_err() {
        assert_eq!((buf.data(), buf.headroom()), (packet, 0), "changed");
        let probes = [expected, expected.wrapping_sub(1)];
        let fresh = Sequences::starting_at(0, expected);
        for n in probes {
            assert_eq!(
                near.sequences.acceptable(n),
                fresh.acceptable(n),
                "a number was taken"
            );
        }
        return;
    }
    let at = buf.headroom();
    let was = &packet[at..at + buf.data().len()];
    assert!(
        at + was.len() <= header.total_len,
        "bytes from behind the outer packet"
    );
    judge::inner(tunnel, buf.data(), was, header.tos);
    if one {
        again(tunnel, buf.data());
    }
}

/// An inner packet into the tunnel at its far end, and out of it again.
fn again(tunnel: &Tunnel, inner: &[u8]) {
    let far = tunnel.far_end();
    let mut buf = VecBuf::new(128, inner);
    match tunnel::encapsulate(&far, far.remote, &mut buf, &state(0, 0)) {
        Ok(()) => assert_eq!(
            received(tunnel, &state(0, 0), buf.data()).as_deref(),
            Ok(inner)
        ),
        // It may have been in the tunnel before, or say that it goes into no further one, or be that long already.
        Err(Refusal::Recursion | Refusal::NoRoom | Refusal::EncapLimit) => {}
        Err(refusal) => panic!("what came out does not go in: {refusal:?}"),
    }
}
