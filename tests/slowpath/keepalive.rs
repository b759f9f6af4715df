//! Keepalives in both directions, and what a tunnel without answers does with inner packets.

use super::*;

/// The packet that is to come back to the end at `to`.
fn bare(from: &str, to: &str, ttl: u8, gre: &str) -> String {
    format!("IP(src='{from}',dst='{to}',ttl={ttl},tos=0xc0,flags='DF',id=0,proto=47)/{gre}")
}

#[test]
fn keepalives_leave_come_back_and_are_sent_back() {
    Lab::run(|lab| {
        let silent = Tunnel {
            keepalive: true,
            alive: false,
            ..numbered_tunnel()
        };
        let mut router = Router::start(silent.clone(), None);
        let mut judge = lab.judge();
        let counters = |router: &Router| {
            let c = &router.record.state.counters;
            let keepalives = [
                &c.keepalives_sent,
                &c.keepalives_received,
                &c.keepalives_answered,
            ];
            keepalives.map(|counter| counter.get())
        };
        // Through the tunnel as any packet: key 42 and numbered; inside, what this side expects: key 7, a checksum.
        let ours = "GRE(proto=0,key_present=1,key=7,chksum_present=1)";
        for n in 0..2 {
            router.slow.send_keepalive(ID);
            judge.want(&format!(
                "IP(src='192.0.2.1',dst='192.0.2.2',id=id,flags='DF',ttl=33)\
                 /GRE(chksum_present=1,key_present=1,seqnum_present=1,key=42,sequence_number={n})/{}",
                bare("192.0.2.2", "192.0.2.1", 255, ours)
            ));
        }
        let answered = router.slow.answered();
        judge.send(&bare("192.0.2.2", "192.0.2.1", 254, ours));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let heard = async { tokio::time::timeout(PATIENCE, answered.notified()).await };
        runtime.block_on(heard).expect("nobody was told");
        assert_eq!(counters(&router), [2, 1, 0]);

        // The far end's: one TTL less, and the number that a raw socket gives to a packet without one.
        let theirs = "GRE(proto=0,key_present=1,key=42)";
        let around = "GRE(chksum_present=1,key_present=1,seqnum_present=1,key=7,sequence_number=1)";
        judge.send(&format!(
            "IP(src='192.0.2.2',dst='192.0.2.1')/{around}/{}",
            bare("192.0.2.1", "192.0.2.2", 255, theirs)
        ));
        let back = bare("192.0.2.1", "192.0.2.2", 254, theirs);
        judge.want(&back.replace("id=0", "id=id"));
        assert_eq!(counters(&router), [2, 1, 1]);
        assert_eq!(router.record.state.counters.rx_packets.get(), 1);
        assert_eq!(router.slow.stats().drops.total(), 0);

        // The kernel knows nothing of it yet: the device has its carrier.
        judge.send("IP(src='10.1.0.9',dst='10.2.0.9')/UDP(sport=1,dport=2)/b'inner'");
        router.dropped(DropReason::NoKeepalive, 1);
        assert_eq!(count(&router.record.drops, DropReason::NoKeepalive), 1);
        assert_eq!(router.record.state.counters.tx_packets.get(), 2);

        // Where none are sent none are heard.
        router.publish(numbered_tunnel(), None);
        judge.send(&bare("192.0.2.2", "192.0.2.1", 254, ours));
        router.dropped(DropReason::SequenceMissing, 1);
        router.publish(
            Tunnel {
                keepalive: false,
                iseq: false,
                ..silent
            },
            None,
        );
        judge.send(&bare("192.0.2.2", "192.0.2.1", 254, ours));
        router.dropped(DropReason::UnknownProtocol, 1);
        assert_eq!(counters(&router), [2, 1, 1]);
    });
}

#[test]
fn keepalives_that_workers_found_are_taken_as_well() {
    Lab::run(|lab| {
        let asking = Tunnel {
            keepalive: true,
            ..tunnel()
        };
        let router = Router::start(asking, None);
        let mut punts = router.punts();
        let mut judge = lab.judge();
        let mut punt = |packet: &str| {
            let (to, reason) = (PuntTo::Keepalive(ID), PuntReason::Keepalive);
            assert!(punts.push(&scapy(packet), to, reason, PortId(0)));
            punts.announce();
        };
        let counters = &router.record.state.counters;
        punt(&bare("192.0.2.2", "192.0.2.1", 254, "GRE(proto=0)"));
        eventually("the answer is counted", || {
            counters.keepalives_received.get() == 1
        });
        punt(&bare("192.0.2.1", "192.0.2.2", 255, "GRE(proto=0)"));
        judge.want(&bare("192.0.2.1", "192.0.2.2", 254, "GRE(proto=0)").replace("id=0", "id=id"));
        assert_eq!(counters.keepalives_answered.get(), 1);
        // The tunnel was another one when the worker saw it.
        punt(&bare("192.0.2.1", "192.0.2.3", 255, "GRE(proto=0)"));
        router.dropped(DropReason::UnknownProtocol, 1);
    });
}
