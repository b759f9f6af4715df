//! What the router's counters add up to.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{
    accelerated::Accelerated,
    books::add_reasons,
    compile::{OuterHop, PeerStatus, TunnelStatus},
    fastpath::FastPath,
    report::{
        BusyPollReport, ErrorsReport, IcmpReport, NextHopReport, PathMtuReport, PathShare,
        PeerReport, PortReport, Reasons, SlowPathReport, Traffic, TunnelReport, UnreachableReport,
        WorkerReport,
    },
    slowpath::SlowStats,
    tunnels::TunnelEntry,
    worker_thread::{SocketHandle, WorkerHandle, monotonic},
};
use crate::{
    datapath::{DropCounts, DropReason, ErrorCounts, PortStats, PuntCounts},
    tunnel::Peers,
};

fn drops(into: &mut Reasons, counts: &DropCounts) {
    for (reason, n) in counts.iter().filter(|(_, n)| *n > 0) {
        *into.entry(reason.as_str().to_owned()).or_default() += n;
    }
}

fn punts(counts: &PuntCounts) -> Reasons {
    let counted = counts.iter().filter(|(_, n)| *n > 0);
    counted
        .map(|(reason, n)| (reason.as_str().to_owned(), n))
        .collect()
}

/// One tunnel's report. `devices` names the underlay devices by interface index.
pub fn tunnel(
    entry: &TunnelEntry,
    status: Option<&TunnelStatus>,
    devices: &BTreeMap<u32, Box<str>>,
    now: Instant,
) -> TunnelReport {
    let mut report = TunnelReport::from(&entry.config);
    if let Some(status) = status {
        report.state = status.word().to_owned();
        report.mtu = status.mtu.into();
        let narrowest = status.outers().min_by_key(|outer| outer.route_mtu);
        report.underlay_mtu = narrowest.map_or(0, |outer| outer.route_mtu.into());
        report.underlay_mtu_from = narrowest.map(|outer| match outer.has_metric {
            true => "route".to_owned(),
            false => "device".to_owned(),
        });
        report.next_hop = status.outer.map(|outer| next_hop(outer, devices));
        report.peers = peers(&entry.config.peers, status, devices);
    }
    if let (Some(report), Some(_)) = (&mut report.keepalive, entry.config.keepalive) {
        let word = if entry.keepalive.alive() {
            "up"
        } else {
            "down"
        };
        report.state = word.to_owned();
        report.seconds = entry.keepalive.since(Instant::now()).as_secs();
    }
    for (thread, record) in entry.records().iter().enumerate() {
        let c = &record.state.counters;
        if let Some(report) = &mut report.keepalive {
            report.sent += c.keepalives_sent.get();
            report.received += c.keepalives_received.get();
            report.answered += c.keepalives_answered.get();
        }
        let (rx, tx) = (c.rx_packets.get(), c.tx_packets.get());
        let (rx_bytes, tx_bytes) = (c.rx_bytes.get(), c.tx_bytes.get());
        add(&mut report.rx, rx, rx_bytes);
        add(&mut report.tx, tx, tx_bytes);
        let share: &mut PathShare = match thread {
            0 => &mut report.slow,
            _ => &mut report.fast,
        };
        share.rx_packets += rx;
        share.tx_packets += tx;
        share.rx_bytes += rx_bytes;
        share.tx_bytes += tx_bytes;
        report.mss_clamped += c.mss_clamped.get();
        drops(&mut report.drops, &record.drops);
        errors(&mut report.errors, &record.errors);
    }
    let left = |(remote, mtu, left): (IpAddr, u16, Duration)| PathMtuReport {
        remote: remote.to_string(),
        mtu: mtu.into(),
        expires_seconds: left.as_secs(),
    };
    report.path_mtu = entry.paths.iter(now).map(left).collect();
    let unreachable = entry.unreachable;
    let unreachable = unreachable.filter(|said| said.holds(entry.received(), now));
    report.unreachable = unreachable.map(|said| UnreachableReport {
        remote: said.remote.to_string(),
        from: said.from.to_string(),
        code: said.code,
        reason: said.word().to_owned(),
        seconds_ago: now.saturating_duration_since(said.at).as_secs(),
    });
    report
}

/// The reports of the kernel's own tunnels: what their devices have counted is the slow path's share.
pub fn kernels(
    accelerated: &Accelerated,
    devices: &BTreeMap<u32, Box<str>>,
    now: Instant,
) -> Vec<TunnelReport> {
    let mut reports = Vec::new();
    let statuses = accelerated.statuses.iter().map(Some);
    let statuses = statuses.chain(std::iter::repeat(None));
    for (entry, status) in accelerated.entries.iter().zip(statuses) {
        reports.push(TunnelReport {
            accelerated: true,
            keepalive: None,
            ..tunnel(entry, status, devices, now)
        });
    }
    for found in &accelerated.left {
        reports.push(TunnelReport {
            name: found.name.to_string(),
            mode: found.kind.to_string(),
            state: "kernel".to_owned(),
            left_to_kernel: found.verdict.as_ref().err().cloned(),
            ..TunnelReport::default()
        });
    }
    for (report, counted) in reports.iter_mut().zip(accelerated.kernel_stats()) {
        let counted = counted.unwrap_or_default();
        add(&mut report.rx, counted.rx_packets, counted.rx_bytes);
        add(&mut report.tx, counted.tx_packets, counted.tx_bytes);
        report.slow.rx_packets += counted.rx_packets;
        report.slow.tx_packets += counted.tx_packets;
        report.slow.rx_bytes += counted.rx_bytes;
        report.slow.tx_bytes += counted.tx_bytes;
    }
    reports
}

fn errors(into: &mut ErrorsReport, counts: &ErrorCounts) {
    into.too_big += counts.too_big.get();
    into.unreachable += counts.unreachable.get();
    into.time_exceeded += counts.time_exceeded.get();
    into.parameter_problem += counts.parameter_problem.get();
}

fn next_hop(outer: OuterHop, devices: &BTreeMap<u32, Box<str>>) -> NextHopReport {
    NextHopReport {
        device: devices
            .get(&outer.ifindex)
            .map_or_else(String::new, ToString::to_string),
        via: outer.neighbour.to_string(),
        lladdr: outer.mac.map(|mac| mac.to_string()),
    }
}

/// The peers of the table, and behind them those that only routes name.
fn peers(
    table: &Peers,
    status: &TunnelStatus,
    devices: &BTreeMap<u32, Box<str>>,
) -> Vec<PeerReport> {
    let known: HashMap<IpAddr, &PeerStatus> = (status.peers.iter().flatten())
        .map(|peer| (peer.remote, peer))
        .collect();
    let report = |address: Option<IpNet>, peer: &PeerStatus| PeerReport {
        address: address.map(|net| match net.prefix_len() == net.max_prefix_len() {
            true => net.addr().to_string(),
            false => net.to_string(),
        }),
        remote: peer.remote.to_string(),
        state: peer.word().to_owned(),
        next_hop: peer.outer.map(|outer| next_hop(outer, devices)),
    };
    let listed =
        (table.iter()).filter_map(|(net, remote)| Some(report(Some(net), known.get(&remote)?)));
    let by_route = status.peers.iter().flatten().skip(table.remotes().len());
    listed
        .chain(by_route.map(|peer| report(None, peer)))
        .collect()
}

fn add(traffic: &mut Traffic, packets: u64, bytes: u64) {
    traffic.packets += packets;
    traffic.bytes += bytes;
}

/// One worker's report.
pub fn worker(worker: &WorkerHandle, path: &FastPath) -> WorkerReport {
    let stats = &worker.stats;
    let (awake, asleep) = stats.awake_and_asleep(monotonic());
    let mut report = WorkerReport {
        id: worker.id,
        cpu: worker.cpu as u32,
        rx_packets: stats.rx_packets.get(),
        tx_packets: stats.tx_packets.get(),
        handed_over: stats.handed_over.get(),
        spread_out: stats.spread_out.get(),
        spread_in: stats.spread_in.get(),
        punted: stats.punts.total(),
        punts: punts(&stats.punts),
        checksums_completed: stats.checksums_completed.get(),
        turns: stats.turns.get(),
        busy_turns: stats.busy_turns.get(),
        sleeps: stats.sleeps.get(),
        awake_seconds: awake as f64 / 1e9,
        asleep_seconds: asleep as f64 / 1e9,
        port_errors: stats.port_errors.get(),
        frames: worker
            .frames
            .iter()
            .map(|(place, n)| (place.to_owned(), n))
            .collect(),
        ports: worker
            .sockets
            .iter()
            .zip(&stats.ports)
            .map(|(socket, counted)| port(socket, counted, path))
            .collect(),
        ..WorkerReport::default()
    };
    drops(&mut report.drops, &stats.drops);
    report
}

fn port(socket: &SocketHandle, counted: &PortStats, path: &FastPath) -> PortReport {
    let generic = path.is_generic(&socket.device);
    let (mode, kernel) = match socket.statistics() {
        Ok(kernel) if generic => ("generic", kernel),
        Ok(kernel) => (socket.mode.as_str(), kernel),
        Err(_) => ("down", Default::default()),
    };
    PortReport {
        device: socket.device.clone(),
        queue: socket.queue,
        mode: mode.to_owned(),
        why_not_zero_copy: socket.why_not_zero_copy.clone(),
        busy_poll: socket.busy_poll().map(|poll| BusyPollReport {
            microseconds: poll.microseconds,
            budget: poll.budget,
            napi: poll.napi,
        }),
        rx_packets: counted.rx_packets.get(),
        tx_packets: counted.tx_packets.get(),
        tx_ring_full: counted.tx_dropped.get(),
        rx_dropped: kernel.rx_dropped,
        rx_ring_full: kernel.rx_ring_full,
        fill_ring_empty: kernel.rx_fill_ring_empty_descs,
        rx_invalid: kernel.rx_invalid_descs,
        tx_invalid: kernel.tx_invalid_descs,
        tx_ring_empty: kernel.tx_ring_empty_descs,
    }
}

/// The slow path's report.
pub fn slow_path(stats: &SlowStats) -> SlowPathReport {
    let mut report = SlowPathReport {
        from_devices: stats.from_devices.get(),
        from_network: stats.from_network.get(),
        punts: punts(&stats.punted),
        copies: stats.copies.get(),
        keepalives_sent: stats.keepalives_sent.get(),
        keepalives_received: stats.keepalives_heard.get(),
        into_tunnels: stats.into_tunnels.get(),
        out_of_tunnels: stats.out_of_tunnels.get(),
        handed_over: stats.handed_over.get(),
        returned: stats.returned.get(),
        checksums_completed: stats.checksums_completed.get(),
        fragmented: stats.fragmented.get(),
        inner_fragmented: stats.inner_fragmented.get(),
        icmp: IcmpReport {
            ignored: stats.icmp.ignored.get(),
            answered: stats.icmp.answered.get(),
            not_answered: stats.icmp.not_answered.get(),
            rate_limited: stats.icmp.rate_limited.get(),
        },
        ..SlowPathReport::default()
    };
    drops(&mut report.drops, &stats.drops);
    report
}

/// What the sockets' filters kept away.
pub fn filtered(strangers: u64) -> Reasons {
    let word = DropReason::UnknownTunnel.as_str().to_owned();
    BTreeMap::from([(word, strangers)])
}

/// Every drop of workers and slow path together.
pub fn all_drops<'r>(
    workers: impl Iterator<Item = &'r WorkerReport>,
    slow: &SlowPathReport,
) -> Reasons {
    let mut total = slow.drops.clone();
    for worker in workers {
        add_reasons(&mut total, &worker.drops);
    }
    total
}
