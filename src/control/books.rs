//! What workers have counted that have ended: the books go on when the fast path starts again.

use std::collections::BTreeMap;

use super::report::{PortReport, Reasons, WorkerReport};

/// By worker, the sum of all that have had its number.
#[derive(Debug, Default)]
pub struct Books(BTreeMap<u32, WorkerReport>);

impl Books {
    /// Takes in the last report of workers that have ended.
    pub fn close(&mut self, workers: Vec<WorkerReport>) {
        for worker in workers {
            match self.0.get_mut(&worker.id) {
                Some(sum) => add(sum, worker),
                None => drop(self.0.insert(worker.id, closed(worker))),
            }
        }
    }

    /// The sums.
    pub fn ended(&self) -> Vec<WorkerReport> {
        self.0.values().cloned().collect()
    }
}

/// Less what is only true of one that runs.
fn closed(mut worker: WorkerReport) -> WorkerReport {
    worker.frames.clear();
    for port in &mut worker.ports {
        port.mode = "ended".to_owned();
        port.why_not_zero_copy = None;
        port.busy_poll = None;
    }
    worker
}

/// Adds the counters of `worker` to `sum`.
pub fn add(sum: &mut WorkerReport, worker: WorkerReport) {
    sum.rx_packets += worker.rx_packets;
    sum.tx_packets += worker.tx_packets;
    sum.handed_over += worker.handed_over;
    sum.spread_out += worker.spread_out;
    sum.spread_in += worker.spread_in;
    sum.punted += worker.punted;
    sum.checksums_completed += worker.checksums_completed;
    sum.turns += worker.turns;
    sum.busy_turns += worker.busy_turns;
    sum.sleeps += worker.sleeps;
    sum.awake_seconds += worker.awake_seconds;
    sum.asleep_seconds += worker.asleep_seconds;
    sum.port_errors += worker.port_errors;
    add_reasons(&mut sum.punts, &worker.punts);
    add_reasons(&mut sum.drops, &worker.drops);
    for port in closed(worker).ports {
        let same = |p: &&mut PortReport| (&p.device, p.queue) == (&port.device, port.queue);
        match sum.ports.iter_mut().find(same) {
            Some(sum) => add_port(sum, &port),
            None => sum.ports.push(port),
        }
    }
}

fn add_port(sum: &mut PortReport, port: &PortReport) {
    sum.rx_packets += port.rx_packets;
    sum.tx_packets += port.tx_packets;
    sum.tx_ring_full += port.tx_ring_full;
    sum.rx_dropped += port.rx_dropped;
    sum.rx_ring_full += port.rx_ring_full;
    sum.fill_ring_empty += port.fill_ring_empty;
    sum.rx_invalid += port.rx_invalid;
    sum.tx_invalid += port.tx_invalid;
    sum.tx_ring_empty += port.tx_ring_empty;
}

/// Adds counts reason by reason.
pub fn add_reasons(sum: &mut Reasons, counts: &Reasons) {
    for (reason, n) in counts {
        *sum.entry(reason.clone()).or_default() += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(n: u64, device: &str) -> WorkerReport {
        WorkerReport {
            rx_packets: n,
            drops: Reasons::from([("not_ip".to_owned(), n)]),
            ports: vec![PortReport {
                device: device.to_owned(),
                rx_packets: n,
                rx_ring_full: 2 * n,
                ..PortReport::default()
            }],
            ..WorkerReport::default()
        }
    }

    #[test]
    fn workers_that_have_ended_still_count() {
        let mut books = Books::default();
        books.close(vec![worker(1, "eth0")]);
        books.close(vec![worker(10, "eth0")]);
        books.close(vec![worker(100, "eth1")]);
        let [ended] = &books.ended()[..] else {
            panic!("one number, one sum");
        };
        assert_eq!((ended.rx_packets, ended.drops["not_ip"]), (111, 111));
        let ports = ended.ports.iter();
        let ports: Vec<_> = ports
            .map(|p| (p.device.as_str(), p.rx_packets, p.rx_ring_full))
            .collect();
        assert_eq!(ports, [("eth0", 11, 22), ("eth1", 100, 200)]);
    }
}
