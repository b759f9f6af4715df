//! Whether the far ends of tunnels answer their keepalives, and what follows from it: the carrier of a tunnel's device is
//! that answer, so that routing daemons and the kernel's own routes go by it.
//!
//! As on Cisco's routers a tunnel begins up, is down once so many keepalives in a row have remained unanswered, and up again
//! with the first answer.

use std::time::{Duration, Instant};

use super::{
    config::Keepalive, mirror::State, request::KernelRequest, router::Router, tunnels::TunnelEntry,
};

/// How often a tunnel whose device is down is looked at.
const DOWN_PAUSE: Duration = Duration::from_secs(1);

/// Looks at one tunnel's keepalives. What is sent is its turn alone, so a clock that stood still costs no tunnel its carrier.
#[derive(Debug)]
pub struct Watch {
    config: Option<Keepalive>,
    /// When the next one is to be sent.
    next: Instant,
    /// In a row, and without an answer up to now.
    unanswered: u8,
    /// Answers that have been seen, by their count.
    seen: u64,
    alive: bool,
    /// Of `alive`.
    since: Instant,
    /// The device's carrier was taken away, and the mirror has not seen it back.
    took_carrier: bool,
}

/// A tunnel's state has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// So many in a row remained unanswered.
    Lost(u8),
    /// It was down for so long.
    Back(Duration),
}

impl Watch {
    pub fn new(config: Option<Keepalive>, now: Instant) -> Self {
        Self {
            config,
            next: now,
            unanswered: 0,
            seen: 0,
            alive: true,
            since: now,
            took_carrier: false,
        }
    }

    /// The far end answers, or is not asked.
    pub fn alive(&self) -> bool {
        self.alive
    }

    /// How long that has been so.
    pub fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Other terms, or none: it begins anew, as if the tunnel were just made.
    pub fn alter(&mut self, config: Option<Keepalive>, now: Instant) {
        if config != self.config {
            self.config = config;
            self.restart(now);
        }
    }

    /// Begins anew.
    fn restart(&mut self, now: Instant) {
        if !self.alive {
            self.since = now;
        }
        self.alive = true;
        self.unanswered = 0;
        self.next = now;
    }

    /// When [`turn`](Self::turn) is due.
    fn due(&self) -> Option<Instant> {
        self.config.map(|_| self.next)
    }

    /// Takes note of the answers that have come, by their count since the beginning.
    fn hear(&mut self, answers: u64, now: Instant) -> Option<News> {
        if std::mem::replace(&mut self.seen, answers) == answers {
            return None;
        }
        self.unanswered = 0;
        if std::mem::replace(&mut self.alive, true) {
            return None;
        }
        let down = self.since(now);
        self.since = now;
        Some(News::Back(down))
    }

    /// Whether a keepalive is to be sent now, and what its predecessors' fate means.
    fn turn(&mut self, now: Instant) -> (bool, Option<News>) {
        let Some(config) = self.config.filter(|_| self.next <= now) else {
            return (false, None);
        };
        let lost = self.alive && self.unanswered >= config.retries;
        if lost {
            self.alive = false;
            self.since = now;
        }
        self.next = now + Duration::from_secs(config.interval.into());
        self.unanswered = self.unanswered.saturating_add(1);
        (true, lost.then_some(News::Lost(config.retries)))
    }

    /// The carrier that the device is to get, where the mirror has another one. Only what was taken is given back: an
    /// operator may have reasons of his own.
    fn carrier(&mut self, has_carrier: bool) -> Option<bool> {
        match (self.alive, has_carrier) {
            (false, _) => self.took_carrier = true,
            (true, true) => self.took_carrier = false,
            (true, false) => {}
        }
        (self.alive != has_carrier && self.took_carrier).then_some(self.alive)
    }
}

impl Router {
    /// When [`keepalives`](Self::keepalives) has something to do at the latest.
    pub(super) fn next_keepalive(&self) -> Option<Instant> {
        let due = |entry: &TunnelEntry| entry.keepalive.due();
        self.tunnels.iter().filter_map(due).min()
    }

    /// Sends what is due, and judges what has come back.
    pub(super) fn keepalives(&mut self, state: &State) -> Vec<KernelRequest> {
        let now = Instant::now();
        let mut changed = Vec::new();
        for (entry, status) in self.tunnels.iter_mut().zip(&self.statuses) {
            let answers = entry
                .record(0, self.threads)
                .state
                .counters
                .keepalives_received
                .get();
            let watch = &mut entry.keepalive;
            let back = watch.hear(answers, now);
            // A device that is down has no line that could be up: it is asked again when it is up.
            if !status.up {
                watch.restart(now);
                watch.next = now + DOWN_PAUSE;
                continue;
            }
            let (send, lost) = watch.turn(now);
            if send {
                self.slow.send_keepalive(entry.id);
            }
            if let Some(news) = lost.or(back) {
                report(&entry.config.name, news);
                watch.took_carrier |= !watch.alive;
                // Asked for whatever the mirror says: the kernel tells of a lost carrier up to a second later.
                changed.push(KernelRequest::SetCarrier(entry.device.clone(), watch.alive));
            }
        }
        if !changed.is_empty() {
            self.publish_tunnels(state);
        }
        changed
    }

    /// Once a second: what somebody or something else has changed is put right.
    pub(super) fn carriers(&mut self, state: &State) -> Vec<KernelRequest> {
        let mut requests = Vec::new();
        for entry in &mut self.tunnels {
            let link = state.link(entry.device.index).filter(|link| link.up);
            let wanted = link.and_then(|link| entry.keepalive.carrier(link.carrier));
            let request = |on| KernelRequest::SetCarrier(entry.device.clone(), on);
            requests.extend(wanted.map(request));
        }
        requests
    }
}

fn report(name: &str, news: News) {
    match news {
        News::Lost(n) => {
            tracing::warn!("tunnel {name}: {n} keepalives in a row unanswered: carrier off");
        }
        News::Back(down) => {
            let seconds = down.as_secs();
            tracing::info!("tunnel {name}: keepalive answered after {seconds} s: carrier on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Keepalive = Keepalive {
        interval: 10,
        retries: 3,
    };

    struct Bed {
        watch: Watch,
        start: Instant,
    }

    impl Bed {
        fn new(config: Option<Keepalive>) -> Self {
            let start = Instant::now();
            Self {
                watch: Watch::new(config, start),
                start,
            }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn turn(&mut self, seconds: u64) -> (bool, Option<News>) {
            self.watch.turn(self.at(seconds))
        }

        fn hear(&mut self, answers: u64, seconds: u64) -> Option<News> {
            self.watch.hear(answers, self.at(seconds))
        }
    }

    #[test]
    fn it_begins_up_and_is_down_after_so_many_in_a_row() {
        let mut bed = Bed::new(Some(CONFIG));
        assert_eq!(bed.watch.due(), Some(bed.start));
        for second in [0, 10, 20] {
            assert_eq!(bed.turn(second), (true, None));
            assert_eq!(bed.turn(second + 9), (false, None));
            assert_eq!(bed.watch.due(), Some(bed.at(second + 10)));
        }
        assert!(bed.watch.alive());
        assert_eq!(bed.turn(30), (true, Some(News::Lost(3))));
        assert!(!bed.watch.alive());
        // It goes on asking, and says no more than once that it was in vain.
        assert_eq!(bed.turn(40), (true, None));
        assert_eq!(bed.watch.since(bed.at(40)), Duration::from_secs(10));
    }

    #[test]
    fn one_answer_is_enough() {
        let mut bed = Bed::new(Some(CONFIG));
        for (answers, second) in [(1, 0), (2, 30), (3, 60)] {
            for more in [0, 10, 20] {
                assert_eq!(bed.turn(second + more), (true, None));
            }
            assert_eq!(bed.hear(answers, second + 29), None);
        }
        for second in [90, 100, 110] {
            assert_eq!(bed.turn(second), (true, None));
        }
        assert_eq!(bed.turn(120), (true, Some(News::Lost(3))));
        assert_eq!(bed.hear(3, 121), None);
        let back = Some(News::Back(Duration::from_secs(2)));
        assert_eq!(bed.hear(4, 122), back);
        assert!(bed.watch.alive());
        assert_eq!(bed.watch.since(bed.at(125)), Duration::from_secs(3));
        assert_eq!(bed.turn(130), (true, None));
    }

    #[test]
    fn a_clock_that_stood_still_costs_no_carrier() {
        let mut bed = Bed::new(Some(CONFIG));
        assert_eq!(bed.turn(0), (true, None));
        assert_eq!(bed.turn(1000), (true, None));
        assert_eq!(bed.turn(1001), (false, None));
        assert_eq!(bed.turn(1010), (true, None));
        assert_eq!(bed.turn(1020), (true, Some(News::Lost(3))));
    }

    #[test]
    fn other_terms_begin_anew_and_the_same_do_not() {
        let mut bed = Bed::new(None);
        assert_eq!((bed.turn(5), bed.watch.due()), ((false, None), None));
        let start = bed.start;
        bed.watch.alter(
            Some(Keepalive {
                retries: 1,
                ..CONFIG
            }),
            start,
        );
        assert_eq!(bed.turn(0), (true, None));
        assert_eq!(bed.turn(10), (true, Some(News::Lost(1))));
        let now = bed.at(11);
        bed.watch.alter(bed.watch.config, now);
        assert!(!bed.watch.alive());
        bed.watch.alter(None, now);
        assert!(bed.watch.alive());
        assert_eq!(bed.turn(20), (false, None));
    }

    #[test]
    fn only_a_carrier_that_was_taken_is_given_back() {
        let mut watch = Bed::new(Some(CONFIG)).watch;
        assert_eq!((watch.carrier(true), watch.carrier(false)), (None, None));
        watch.alive = false;
        assert_eq!(watch.carrier(true), Some(false));
        assert_eq!(watch.carrier(false), None);
        watch.alive = true;
        assert_eq!(watch.carrier(false), Some(true));
        assert_eq!(watch.carrier(true), None);
        assert_eq!(watch.carrier(false), None);
    }
}
