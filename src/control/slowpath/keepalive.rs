//! Keepalives on their way out, and those that came: counted per tunnel, judged by the control task.

use super::{
    send::{SendError, Way},
    thread::{Engine, HEADROOM, find},
};
use crate::{
    datapath::{DropReason, TunnelRecord},
    packet::{PacketBuf, VecBuf, ipv4, ipv6},
    tunnel::{Tunnel, TunnelId, keepalive},
};

impl Engine {
    /// Sends one of the tunnel's keepalives, carrier or not: it does not come from the tunnel's device.
    pub(super) fn send_keepalive(&mut self, id: TunnelId, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, id) else {
            return;
        };
        let written = buf.refill(HEADROOM, |room| {
            let room = room.first_chunk_mut().ok_or(())?;
            keepalive::write(tunnel, room).ok_or(())
        });
        if written.is_ok() {
            record.state.counters.keepalives_sent.add(1);
            self.stats.keepalives_sent.add(1);
            self.carry(id, tunnel.remote, buf);
        }
    }

    /// One of the tunnel's own has come back.
    pub(super) fn hear_answer(&self, tunnel: &Tunnel, record: &TunnelRecord) {
        record.state.counters.keepalives_received.add(1);
        self.stats.keepalives_heard.add(1);
        // One that is waited for is told at once; else it is enough that it was counted.
        if !tunnel.alive {
            self.answered.notify_one();
        }
    }

    /// The far end's, as it came out of the tunnel: back to where it comes from.
    pub(super) fn send_back(&mut self, id: TunnelId, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, id) else {
            return self.stats.drops.count(DropReason::UnknownTunnel);
        };
        let len = buf.data().len() as u64;
        match tunnel.remote.is_ipv6() {
            true => ipv6::decrement_hop_limit(buf.data_mut()),
            false => ipv4::decrement_ttl(buf.data_mut()),
        };
        let way = Way {
            path: (tunnel.remote, tunnel.dev),
            mtu: None,
            must_pass: false,
        };
        match self.sender.send(buf.data_mut(), way) {
            Ok(_) => {
                let counters = &record.state.counters;
                counters.keepalives_answered.add(1);
                counters.rx_packets.add(1);
                counters.rx_bytes.add(len);
                self.stats.out_of_tunnels.add(1);
            }
            Err(SendError::TooBig(_)) => self.drop_in(record, DropReason::OuterTooBig),
            Err(SendError::Refused) => self.drop_in(record, DropReason::SlowPathRefused),
        }
    }

    /// What a worker took for a keepalive.
    pub(super) fn take_keepalive(&mut self, id: TunnelId, buf: &mut VecBuf) {
        let Some((tunnel, record)) = find(&self.snapshot, id) else {
            return self.stats.drops.count(DropReason::UnknownTunnel);
        };
        if keepalive::is_answer(tunnel, buf.data()) {
            self.hear_answer(tunnel, record);
        } else if keepalive::is_request(tunnel, buf.data()) {
            self.send_back(id, buf);
        } else {
            // The tunnel has changed in between.
            self.drop_in(record, DropReason::UnknownProtocol);
        }
    }
}
