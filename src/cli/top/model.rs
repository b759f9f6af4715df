//! What the router said, second by second, and what follows from it: rates, shares, histories.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use crate::control::report::{
    PortReport, Reasons, Status, WorkerReport,
    glance::{Glance, TunnelGlance},
};

/// Samples of a history.
pub const HISTORY: usize = 120;

/// Of one tunnel, each per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    pub rx_bits: f64,
    pub tx_bits: f64,
    pub packets: f64,
    pub drops: f64,
    /// The fast path's share of the packets; none without packets.
    pub fast: Option<f64>,
}

#[derive(Debug, Default)]
pub struct Tunnel {
    pub now: TunnelGlance,
    pub rates: Rates,
    /// Bits per second, the latest last.
    pub rx: VecDeque<u64>,
    pub tx: VecDeque<u64>,
}

#[derive(Debug)]
pub struct Worker {
    pub now: WorkerReport,
    /// The share of the time that it was awake.
    pub busy: Option<f64>,
    pub rx: f64,
    pub tx: f64,
    pub punts: f64,
    pub drops: f64,
}

#[derive(Debug)]
pub struct Port {
    pub now: PortReport,
    pub rx: f64,
    pub tx: f64,
    /// Frames lost in front of the worker, and those that the transmit ring did not take.
    pub lost: f64,
    pub ring_full: f64,
}

#[derive(Debug)]
pub struct Drop {
    pub reason: String,
    pub total: u64,
    pub rate: f64,
}

#[derive(Debug, Default)]
pub struct Model {
    /// In the router's order.
    pub tunnels: Vec<Tunnel>,
    pub workers: Vec<Worker>,
    pub ports: Vec<Port>,
    /// Reasons that ever counted something, those that do so now first.
    pub drops: Vec<Drop>,
    pub router: Status,
    counted: Reasons,
    /// When the numbers are from; none before the first.
    pub at: Option<Instant>,
    /// Why there are no new ones.
    pub lost: Option<String>,
}

impl Model {
    pub fn lose(&mut self, why: String) {
        self.lost = Some(why);
    }

    /// Takes in what the router said at `at`.
    pub fn take(&mut self, glance: Glance, at: Instant) {
        if self.router.pid != glance.router.pid {
            // Another router's counters begin elsewhere.
            *self = Self::default();
        }
        let seconds = self
            .at
            .map(|before| at.duration_since(before).as_secs_f64());
        let per = Per(seconds.filter(|s| *s > 0.0));
        self.take_tunnels(glance.tunnels, per);
        self.take_ports(&glance.workers, per);
        self.take_workers(glance.workers, per);
        self.take_drops(glance.drops, per);
        self.router = glance.router;
        self.at = Some(at);
        self.lost = None;
    }

    fn take_tunnels(&mut self, tunnels: Vec<TunnelGlance>, per: Per) {
        let before = std::mem::take(&mut self.tunnels).into_iter();
        let mut before: HashMap<String, Tunnel> = before
            .map(|tunnel| (tunnel.now.name.clone(), tunnel))
            .collect();
        self.tunnels = (tunnels.into_iter())
            .map(|now| match before.remove(&now.name) {
                Some(tunnel) => tunnel.goes_on(now, per),
                None => Tunnel {
                    now,
                    ..Tunnel::default()
                },
            })
            .collect();
    }

    fn take_workers(&mut self, workers: Vec<WorkerReport>, per: Per) {
        let mut before: HashMap<u32, WorkerReport> = std::mem::take(&mut self.workers)
            .into_iter()
            .map(|worker| (worker.now.id, worker.now))
            .collect();
        self.workers = (workers.into_iter())
            .map(|now| {
                let was = before.remove(&now.id);
                let was = was.as_ref().unwrap_or(&now);
                let drops = |w: &WorkerReport| w.drops.values().sum();
                let awake = now.awake_seconds - was.awake_seconds;
                let all = awake + now.asleep_seconds - was.asleep_seconds;
                Worker {
                    busy: (all > 0.0).then(|| (awake / all).clamp(0.0, 1.0)),
                    rx: per.second(was.rx_packets, now.rx_packets),
                    tx: per.second(was.tx_packets, now.tx_packets),
                    punts: per.second(was.punted, now.punted),
                    drops: per.second(drops(was), drops(&now)),
                    now,
                }
            })
            .collect();
    }

    fn take_ports(&mut self, workers: &[WorkerReport], per: Per) {
        let before = std::mem::take(&mut self.ports);
        let all = workers.iter().flat_map(|w| &w.ports);
        self.ports = all
            .map(|now| {
                let same = |p: &&Port| (&p.now.device, p.now.queue) == (&now.device, now.queue);
                let was = before.iter().find(same).map_or(now, |port| &port.now);
                let lost = |p: &PortReport| p.rx_dropped + p.rx_ring_full;
                Port {
                    rx: per.second(was.rx_packets, now.rx_packets),
                    tx: per.second(was.tx_packets, now.tx_packets),
                    lost: per.second(lost(was), lost(now)),
                    ring_full: per.second(was.tx_ring_full, now.tx_ring_full),
                    now: now.clone(),
                }
            })
            .collect();
    }

    fn take_drops(&mut self, drops: Reasons, per: Per) {
        let first = self.at.is_none();
        self.drops = (drops.iter().filter(|(_, total)| **total > 0))
            .map(|(reason, total)| {
                let was = self.counted.get(reason).copied();
                // What was dropped before anybody looked was not dropped now.
                let was = was.unwrap_or(if first { *total } else { 0 });
                Drop {
                    reason: reason.clone(),
                    total: *total,
                    rate: per.second(was, *total),
                }
            })
            .collect();
        (self.drops).sort_by(|a, b| (b.rate.total_cmp(&a.rate)).then(b.total.cmp(&a.total)));
        self.counted = drops;
    }

    /// All tunnels together.
    pub fn sum(&self) -> Rates {
        let mut sum = Rates::default();
        let mut fast = 0.0;
        for Tunnel { rates, .. } in &self.tunnels {
            sum.rx_bits += rates.rx_bits;
            sum.tx_bits += rates.tx_bits;
            sum.packets += rates.packets;
            fast += rates.fast.unwrap_or_default() * rates.packets;
        }
        sum.drops = self.drops.iter().map(|drop| drop.rate).sum();
        sum.fast = (sum.packets > 0.0).then(|| fast / sum.packets);
        sum
    }

    pub fn tunnel(&self, name: &str) -> Option<&Tunnel> {
        self.tunnels.iter().find(|tunnel| tunnel.now.name == name)
    }
}

impl Tunnel {
    fn goes_on(mut self, now: TunnelGlance, per: Per) -> Self {
        let was = &self.now;
        let packets = |t: &TunnelGlance| t.rx.packets + t.tx.packets;
        let rates = Rates {
            rx_bits: 8.0 * per.second(was.rx.bytes, now.rx.bytes),
            tx_bits: 8.0 * per.second(was.tx.bytes, now.tx.bytes),
            packets: per.second(packets(was), packets(&now)),
            drops: per.second(was.drops, now.drops),
            fast: None,
        };
        let fast = per.second(was.fast_packets, now.fast_packets);
        let moving = rates.packets > 0.0;
        self.rates = Rates {
            fast: moving.then(|| (fast / rates.packets).min(1.0)),
            ..rates
        };
        for (history, bits) in [(&mut self.rx, rates.rx_bits), (&mut self.tx, rates.tx_bits)] {
            if history.len() == HISTORY {
                history.pop_front();
            }
            history.push_back(bits as u64);
        }
        self.now = now;
        self
    }
}

/// Between two looks; nothing before the second.
#[derive(Debug, Clone, Copy)]
struct Per(Option<f64>);

impl Per {
    /// A counter that has begun anew counts from there.
    fn second(self, was: u64, now: u64) -> f64 {
        self.0
            .map_or(0.0, |seconds| now.saturating_sub(was) as f64 / seconds)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::control::report::Traffic;
    use std::time::Duration;

    pub fn glance(pid: u32, n: u64) -> Glance {
        let traffic = |packets, bytes| Traffic { packets, bytes };
        let tunnel = |name: &str, n: u64| TunnelGlance {
            name: name.to_owned(),
            state: "up".to_owned(),
            rx: traffic(n, 125 * n),
            tx: traffic(n, 250 * n),
            fast_packets: n,
            drops: n / 10,
            mtu: 1476,
            ..TunnelGlance::default()
        };
        Glance {
            tunnels: vec![tunnel("gre1", 1000 * n), tunnel("gre2", 10 * n)],
            workers: vec![WorkerReport {
                rx_packets: 2000 * n,
                awake_seconds: 0.25 * n as f64,
                asleep_seconds: 0.75 * n as f64,
                ports: vec![PortReport {
                    device: "eth0".to_owned(),
                    mode: "copy".to_owned(),
                    rx_ring_full: 6 * n,
                    ..PortReport::default()
                }],
                ..WorkerReport::default()
            }],
            drops: Reasons::from([
                ("not_ip".to_owned(), 500),
                ("sequence_old".to_owned(), 101 * n),
            ]),
            router: Status {
                pid,
                ..Status::default()
            },
        }
    }

    #[test]
    fn rates_are_differences_over_the_time_between() {
        let (mut model, start) = (Model::default(), Instant::now());
        model.take(glance(1, 1), start);
        assert_eq!(model.sum(), Rates::default());
        model.take(glance(1, 3), start + Duration::from_secs(2));
        let gre1 = &model.tunnels[0];
        let expected = Rates {
            rx_bits: 1e6,
            tx_bits: 2e6,
            packets: 2000.0,
            drops: 100.0,
            fast: Some(0.5),
        };
        assert_eq!(gre1.rates, expected);
        assert_eq!(
            (gre1.rx.back(), gre1.tx.back()),
            (Some(&1_000_000), Some(&2_000_000))
        );
        assert_eq!(model.workers[0].busy, Some(0.25));
        assert_eq!((model.workers[0].rx, model.ports[0].lost), (2000.0, 6.0));
        let drops: Vec<_> = model
            .drops
            .iter()
            .map(|d| (&d.reason[..], d.rate))
            .collect();
        assert_eq!(drops, [("sequence_old", 101.0), ("not_ip", 0.0)]);
        assert_eq!(model.sum().drops, 101.0);
    }

    #[test]
    fn another_router_begins_anew() {
        let (mut model, start) = (Model::default(), Instant::now());
        model.take(glance(1, 5), start);
        model.take(glance(1, 6), start + Duration::from_secs(1));
        model.lose("gone".to_owned());
        model.take(glance(2, 9), start + Duration::from_secs(2));
        assert_eq!(
            (model.sum(), model.lost.as_deref()),
            (Rates::default(), None)
        );
        // The same tunnel that comes back within one router counts from there.
        model.take(glance(2, 1), start + Duration::from_secs(3));
        assert_eq!(model.tunnels[0].rates.packets, 0.0);
    }

    #[test]
    fn a_history_is_bounded() {
        let (mut model, start) = (Model::default(), Instant::now());
        for n in 0..2 * HISTORY as u64 {
            model.take(glance(1, n), start + Duration::from_secs(n));
        }
        assert_eq!(model.tunnels[0].rx.len(), HISTORY);
    }
}
