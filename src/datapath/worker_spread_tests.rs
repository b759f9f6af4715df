//! Several workers, and flows that come by one queue.

use super::*;
use crate::{
    datapath::{Mate, mates},
    packet::VecBuf,
    tunnel::{TunnelState, encapsulate},
};
use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

/// Room for a frame in a ring; those of the tests are no larger.
const FRAME: usize = 256;

#[derive(Clone, Default)]
struct Bell(Arc<AtomicUsize>);
impl Wake for Bell {
    fn wake(&self) {
        self.0.fetch_add(1, SeqCst);
    }
}

struct Team {
    beds: Vec<Bed>,
    bells: Vec<Bell>,
    mates: Vec<Arc<Mate>>,
    on: Arc<AtomicBool>,
}

impl Team {
    /// Workers who know the way from the tunnel to a host on port 1. What they forward is theirs until they turn again.
    fn new(workers: usize) -> Self {
        let on = Arc::new(AtomicBool::new(true));
        let bells: Vec<Bell> = (0..workers).map(|_| Bell::default()).collect();
        let wakers = bells.iter().cloned();
        let ends = mates(wakers.map(|bell| Box::new(bell) as _).collect(), FRAME, &on);
        let seen = ends.iter().map(|end| Arc::clone(end.me())).collect();
        let mut beds = Vec::new();
        for end in ends {
            let mut bed = Bed::new(64, 4);
            bed.worker = bed.worker.with_mates(end);
            bed.publish_back();
            bed.worker.turn();
            beds.push(bed);
        }
        Self {
            beds,
            bells,
            mates: seen,
            on,
        }
    }

    fn receive(&mut self, worker: usize, frames: impl IntoIterator<Item = Vec<u8>>) {
        let port = &mut self.beds[worker].worker.ports[0];
        port.wire_in.extend(frames);
    }

    /// Until nobody has anything to do.
    fn run(&mut self) {
        while self
            .beds
            .iter_mut()
            .map(|bed| bed.worker.turn())
            .sum::<usize>()
            > 0
        {}
    }

    /// What each worker has sent to the host.
    fn sent(&mut self) -> Vec<Vec<Vec<u8>>> {
        let take = |bed: &mut Bed| {
            bed.worker.ports[1].service().unwrap();
            mem::take(&mut bed.worker.ports[1].wire_out)
        };
        self.beds.iter_mut().map(take).collect()
    }

    fn spread_full(&self, worker: usize) -> u64 {
        let mut drops = self.beds[worker].stats.drops.iter();
        drops
            .find(|(why, _)| *why == DropReason::SpreadFull)
            .unwrap()
            .1
    }

    fn balances(&self) -> bool {
        let whole = self
            .beds
            .iter()
            .all(|bed| bed.frames() == FRAMES && bed.books_balance());
        let sum = |n: fn(&WorkerStats) -> &Counter| -> u64 {
            self.beds.iter().map(|bed| n(&bed.stats).get()).sum()
        };
        whole && sum(|s| &s.spread_out) == sum(|s| &s.spread_in)
    }
}

impl Bed {
    /// The table of the other tests, and a route from the tunnel to port 1.
    fn publish_back(&self) {
        let mut routes = RouteTable::default();
        let connected = NextHop::Connected {
            port: PortId(1),
            mtu: 1500,
        };
        routes.insert("10.1.0.0/24".parse().unwrap(), connected);
        let old = fib();
        let ports = (0..2)
            .filter_map(|n| old.port(PortId(n)).cloned())
            .collect();
        let egress = old.egress(TunnelId(0));
        let mut fib = Fib::new(ports, [(tunnel(), egress)], &routes);
        fib.add_neighbour(PortId(1), [10, 1, 0, 2].into(), mac(8));
        let snapshot = Snapshot {
            fib: Arc::new(fib),
            tunnels: vec![Some(Arc::new(TunnelRecord::new(0, 1, Arc::default())))],
        };
        self.snapshots.try_send(snapshot).unwrap();
    }
}

/// Packet number `n` of a flow, from the tunnel's far end.
fn numbered(flow: u16, n: u32) -> Vec<u8> {
    let mut inner = Vec::new();
    PacketBuilder::ipv4([10, 2, 0, 2], [10, 1, 0, 2], 64)
        .udp(flow, 9)
        .write(&mut inner, &n.to_be_bytes())
        .unwrap();
    let far = tunnel().far_end();
    let mut packet = VecBuf::new(64, &inner);
    let state = TunnelState::new(0, 1, Arc::default());
    encapsulate(&far, far.remote, &mut packet, &state).unwrap();
    let mut frame = [mac(0).0, mac(9).0].concat();
    frame.extend([8, 0]);
    frame.extend(packet.data());
    frame
}

/// Flow and number of a packet that has come out.
fn told(frame: &[u8]) -> (u16, u32) {
    let flow = u16::from_be_bytes([frame[34], frame[35]]);
    (flow, u32::from_be_bytes(frame[42..46].try_into().unwrap()))
}

#[test]
fn flows_of_one_queue_are_carried_by_all_and_each_in_its_order() {
    for workers in [2, 3, 5] {
        let mut team = Team::new(workers);
        for n in 0..6 {
            team.receive(0, (0..40).map(|flow| numbered(flow, n)));
            // A worker that is late does not change who carries what.
            team.beds[0].worker.turn();
            if n % 2 == 0 {
                team.run();
            }
        }
        team.run();
        let sent = team.sent();
        let mut last: HashMap<u16, (usize, u32)> = HashMap::new();
        for (worker, frames) in sent.iter().enumerate() {
            assert!(
                frames.len() > 6,
                "worker {worker} of {workers}: {}",
                frames.len()
            );
            for (flow, n) in frames.iter().map(|frame| told(frame)) {
                let next = last
                    .insert(flow, (worker, n))
                    .map_or((worker, 0), |(w, n)| (w, n + 1));
                assert_eq!(next, (worker, n), "flow {flow} by worker and number");
            }
        }
        assert!(last.len() == 40 && last.values().all(|(_, n)| *n == 5));
        assert!(team.balances());
    }
}

#[test]
fn a_full_ring_sheds_what_is_for_it_and_nothing_else() {
    let mut team = Team::new(2);
    let mut offered = 0;
    while team.spread_full(0) == 0 {
        team.receive(0, (0..64).map(|flow| numbered(flow, 0)));
        offered += 64;
        team.beds[0].worker.turn();
        assert!(offered < 64 * 64, "a ring without end");
    }
    let shed = team.spread_full(0);
    team.run();
    let [own, others] = &team.sent()[..] else {
        panic!("two workers")
    };
    assert_eq!(own.len() as u64 + others.len() as u64 + shed, offered);
    assert_eq!(others.len(), crate::datapath::spread::RING);
    assert!(team.balances());
    // What made room goes on.
    team.receive(0, (0..64).map(|flow| numbered(flow, 0)));
    team.run();
    assert_eq!(team.spread_full(0), shed);
    assert_eq!(team.sent().iter().map(Vec::len).sum::<usize>(), 64);
}

#[test]
fn what_is_switched_off_or_is_no_tunnel_packet_stays() {
    let mut team = Team::new(2);
    let stays = |team: &mut Team| {
        team.run();
        team.balances() && team.beds[0].stats.spread_out.get() == 0
    };
    team.on.store(false, SeqCst);
    team.receive(0, (0..64).map(|flow| numbered(flow, 0)));
    assert!(stays(&mut team));
    assert_eq!(team.sent()[0].len(), 64);
    team.on.store(true, SeqCst);
    // An overlay's packets were spread by their own headers, tunnel packets among them too.
    let wire_in = &mut team.beds[0].worker.ports[1].wire_in;
    wire_in.extend((0..64).map(|_| packet(0)));
    wire_in.extend((0..64).map(|flow| numbered(flow, 0)));
    team.receive(0, [packet(1), vec![0; 14], vec![]]);
    // With a sequence number.
    let mut ordered = numbered(1, 0);
    ordered[34] |= 0x10;
    team.receive(0, [ordered]);
    assert!(stays(&mut team));
}

#[test]
fn who_sleeps_is_woken_once_and_who_is_given_something_does_not_sleep() {
    let mut team = Team::new(2);
    assert!(team.beds[1].worker.lie_down() && team.mates[1].is_asleep());
    for n in 0..3 {
        team.receive(0, (0..64).map(|flow| numbered(flow, n)));
        team.beds[0].worker.turn();
    }
    assert_eq!(team.bells[1].0.load(SeqCst), 1);
    assert!(!team.mates[1].is_asleep(), "it has something to do");
    team.beds[1].worker.rise();
    assert!(!team.beds[1].worker.lie_down() && !team.mates[1].is_asleep());
    team.run();
    assert!(team.beds[1].worker.lie_down());
    assert_eq!(team.bells[0].0.load(SeqCst), 0);
}

#[test]
fn who_hangs_gets_nothing() {
    let mut team = Team::new(2);
    team.mates[1].set_hangs(true);
    team.receive(0, (0..64).map(|flow| numbered(flow, 0)));
    team.run();
    assert_eq!(team.sent()[0].len(), 64);
    team.mates[1].set_hangs(false);
    team.receive(0, (0..64).map(|flow| numbered(flow, 0)));
    team.run();
    assert!(!team.sent()[1].is_empty());
}

#[test]
fn who_ends_carries_what_it_was_given_before() {
    let mut team = Team::new(2);
    team.receive(0, (0..64).map(|flow| numbered(flow, 0)));
    team.beds[0].worker.turn();
    assert!(!team.beds[1].worker.is_alone());
    for bed in &mut team.beds {
        bed.worker.part();
    }
    assert!(team.beds[1].worker.is_alone());
    // What comes after is carried by who has it.
    team.receive(0, (0..64).map(|flow| numbered(flow, 1)));
    team.run();
    assert_eq!(team.sent().iter().map(Vec::len).sum::<usize>(), 128);
    assert!(team.balances());
}

#[test]
fn a_frame_too_large_for_a_ring_is_counted() {
    let mut team = Team::new(2);
    for flow in 0..64 {
        let mut frame = numbered(flow, 0);
        frame.resize(FRAME + 1, 0);
        team.receive(0, [frame]);
    }
    team.run();
    assert!(team.spread_full(0) > 10 && team.balances());
    assert_eq!(team.sent()[0].len() as u64 + team.spread_full(0), 64);
}
