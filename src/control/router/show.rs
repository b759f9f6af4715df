//! What the router says of itself: its statistics, its table, what would become of a packet, and what is wrong.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use ipnet::IpNet;

use super::{Router, tunnel_devices};
use crate::{
    control::{
        books::add_reasons,
        capture::Names,
        compile::{Input, Query},
        config::XdpMode,
        fastpath::FastPath,
        mirror::{Parts, State, Touched},
        report::{
            Problem, Reasons, Statistics, Status,
            routes::RoutePage,
            trace::{Probe, TraceReport},
        },
        statistics, trace,
    },
    datapath::TunnelRecord,
    tunnel::Sequences,
    xdp::Steer,
};

/// Routes in one answer: what is put together in some milliseconds.
const PAGE: usize = 4096;

impl Router {
    /// What the numbers in workers' hands are called.
    pub(in crate::control) fn names(&self) -> Names {
        let tunnels = self.entries();
        let ports = self.fast.iter().flat_map(FastPath::devices);
        Names {
            tunnels: tunnels.map(|t| (t.id, t.config.name.clone())).collect(),
            ports: ports.map(|device| device.name.clone()).collect(),
        }
    }

    /// Why the router is not as it was configured to be.
    pub(in crate::control) fn problems(&self) -> Vec<Problem> {
        let problem = |what, hangs| Problem { what, hangs };
        if self.config.router.xdp == XdpMode::Off {
            return Vec::new();
        }
        let Some(fast) = &self.fast else {
            let refused = self.refused.as_ref().map(|refused| refused.why.clone());
            let why = self.missing.clone().or(refused);
            let why = why.unwrap_or_else(|| "it starts".to_owned());
            return vec![problem(format!("fast path off: {why}"), false)];
        };
        let hung = fast.hung();
        hung.map(|id| problem(format!("worker {id} hangs"), true))
            .collect()
    }

    /// One line on how it is.
    pub(in crate::control) fn summary(&self) -> String {
        let up = self.all_statuses().filter(|status| status.word() == "up");
        let (up, all) = (up.count(), self.entries().count());
        let path = match &self.fast {
            Some(fast) => format!("fast path on, {} worker(s)", fast.workers().len()),
            None => "fast path off".to_owned(),
        };
        format!("{up} of {all} tunnels up; {path}")
    }

    /// A page of the table in force: routes within a prefix, behind another one.
    pub(in crate::control) fn routes(
        &self,
        state: &State,
        within: Option<IpNet>,
        after: Option<IpNet>,
    ) -> RoutePage {
        let input = Input {
            state,
            devices: self.fast.as_ref().map_or(&[][..], |fast| fast.devices()),
            tunnels: &tunnel_devices(self.entries()),
            what: Parts::NONE,
            touched: &Touched::default(),
        };
        let query = Query {
            within,
            after,
            limit: PAGE,
        };
        self.compiler.show(input, query)
    }

    /// What would become of a packet. Nothing is counted or numbered.
    pub(in crate::control) fn trace(
        &self,
        state: &State,
        probe: &Probe,
    ) -> Result<TraceReport, String> {
        let slots = self.entries().map(|t| t.id.index() + 1).max();
        let mut records = vec![None; slots.unwrap_or(0)];
        for tunnel in self.entries() {
            let (tx, rx) = tunnel.sequences.now();
            let numbers = Arc::new(Sequences::starting_at(tx, rx));
            records[tunnel.id.index()] = Some(Arc::new(TunnelRecord::new(0, 1, numbers)));
        }
        let router = &self.config.router;
        let scene = trace::Scene {
            fib: &self.fib,
            records,
            devices: router.devices(),
            overlay: &router.overlay,
            judge: &|ifindex, frame| {
                let judged = self.steer.as_ref().map(|steer| steer.trace(ifindex, frame));
                let judged = judged.transpose().map_err(|why| why.to_string())?;
                Ok(judged.flatten().unwrap_or("not_attached"))
            },
        };
        let mut report = trace::trace(probe, &scene)?;
        let within = IpNet::from(probe.destination);
        report.route = self.routes(state, Some(within), None).routes.pop();
        let mut all = self.entries().zip(self.all_statuses());
        let into = all.find(|(entry, _)| Some(&entry.config.name) == report.tunnel.as_ref());
        if let (Some((entry, status)), Some(_)) = (into, &report.leaves) {
            let status = Some(status);
            let tunnel = statistics::tunnel(entry, status, &self.outgoing, Instant::now());
            report.next_hop = tunnel.next_hop.or(report.next_hop);
        }
        Ok(report)
    }

    pub(in crate::control) fn statistics(&self) -> Statistics {
        let fast = self.fast.as_ref();
        let workers: Vec<_> = fast.map_or(Vec::new(), |fast| {
            let all = fast.workers().iter();
            all.map(|worker| statistics::worker(worker, fast)).collect()
        });
        let ended = self.books.ended();
        let mut slow_path = statistics::slow_path(&self.slow.stats());
        let strangers = self.steer.as_ref().and_then(|s| s.strangers().ok());
        slow_path.filtered = statistics::filtered(strangers.unwrap_or_default());
        let now = Instant::now();
        let tunnels = self.tunnels.iter().enumerate();
        let tunnels = tunnels
            .map(|(n, entry)| statistics::tunnel(entry, self.statuses.get(n), &self.outgoing, now));
        let kernels = statistics::kernels(&self.accelerated, &self.outgoing, now);
        Statistics {
            tunnels: tunnels.chain(kernels).collect(),
            drops: statistics::all_drops(workers.iter().chain(&ended), &slow_path),
            workers,
            spread: fast.is_some_and(FastPath::is_spreading),
            ended,
            slow_path,
            xdp: self.steering_counters(),
            mirror: self.mirror.clone(),
            router: Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_seconds: self.started.elapsed().as_secs(),
                config: self.path.clone(),
                problems: self.problems(),
            },
        }
    }

    fn steering_counters(&self) -> BTreeMap<String, Reasons> {
        let counted = self.steer.as_ref().map(Steer::counters_by_device);
        let counted = counted.and_then(Result::ok).unwrap_or_default();
        let mut reports = BTreeMap::new();
        for (device, counts) in counted {
            let counts: Reasons = (counts.into_iter())
                .map(|(reason, n)| (reason.to_owned(), n))
                .collect();
            add_reasons(reports.entry("all".to_owned()).or_default(), &counts);
            reports.insert(device, counts);
        }
        reports
    }
}
