//! Which metrics there are, and how the statistics become their samples.

use std::collections::BTreeMap;

use super::{
    super::{
        books,
        report::{PortReport, Reasons, SlowPathReport, Statistics, TunnelReport, WorkerReport},
    },
    exposition::{Exposition, Family, Format, Kind},
};

/// What lasts from one answer to the next.
#[derive(Debug, Default)]
pub struct Memory {
    /// Drops that are no tunnel's, by reason. They are a difference of counters that are not read at one moment, and a
    /// counter must not go back.
    unattributed: Reasons,
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        kind: Kind::Counter,
        unit: None,
        help,
    }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family {
        kind: Kind::Gauge,
        ..counter(name, help)
    }
}

const fn of(unit: &'static str, family: Family) -> Family {
    Family {
        unit: Some(unit),
        ..family
    }
}

/// A family and how its samples are found.
type Row<R> = (Family, fn(&R, &mut Samples<'_>));

/// Takes the samples of one family, each behind the labels of what they are about.
struct Samples<'o> {
    out: &'o mut Exposition,
    about: Vec<(&'static str, String)>,
}

impl Samples<'_> {
    fn put(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let about = self
            .about
            .iter()
            .map(|(name, value)| (*name, value.as_str()));
        let all: Vec<(&str, &str)> = about.chain(labels.iter().copied()).collect();
        self.out.sample(&all, value);
    }

    fn put_reasons(&mut self, reasons: &Reasons) {
        for (reason, n) in reasons {
            self.put(&[("reason", reason)], n);
        }
    }
}

fn write_rows<R>(
    out: &mut Exposition,
    table: &[Row<R>],
    things: &[R],
    about: impl Fn(&R) -> Vec<(&'static str, String)>,
) {
    let about: Vec<_> = things.iter().map(about).collect();
    for (family, samples) in table {
        out.begin(family);
        for (thing, about) in things.iter().zip(&about) {
            let mut into = Samples {
                out,
                about: about.clone(),
            };
            samples(thing, &mut into);
        }
    }
}

const DROPS: Family = counter(
    "greyhound_drops",
    "Packets discarded, by reason; those that are no tunnel's have an empty tunnel.",
);

const ROUTER: &[Row<Statistics>] = &[
    (
        gauge("greyhound_build_info", "The version that runs; always 1."),
        |s, to| to.put(&[("version", &s.router.version)], 1),
    ),
    (
        of(
            "seconds",
            gauge("greyhound_uptime_seconds", "How long the router has run."),
        ),
        |s, to| to.put(&[], s.router.uptime_seconds),
    ),
    (
        gauge(
            "greyhound_ready",
            "1 where the router is as it was configured to be: what /readyz says.",
        ),
        |s, to| to.put(&[], u8::from(s.router.problems.is_empty())),
    ),
    (
        counter(
            "greyhound_steering_frames",
            "Frames that the XDP program redirected or passed to the kernel, by device and reason.",
        ),
        |s, to| {
            for (device, reasons) in s.xdp.iter().filter(|(device, _)| *device != "all") {
                for (reason, n) in reasons {
                    to.put(&[("device", device), ("reason", reason)], n);
                }
            }
        },
    ),
    (
        of(
            "seconds",
            gauge(
                "greyhound_mirror_age_seconds",
                "Since the mirror of the kernel's tables was last known to be right.",
            ),
        ),
        |s, to| to.put(&[], s.mirror.age_ms as f64 / 1e3),
    ),
    (
        gauge(
            "greyhound_mirror_entries",
            "What the mirror of the kernel's tables holds, by table.",
        ),
        |s, to| {
            let m = &s.mirror;
            for (table, n) in [
                ("links", m.links),
                ("addresses", m.addresses),
                ("routes", m.routes),
                ("neighbours", m.neighbours),
                ("nexthops", m.nexthops),
            ] {
                to.put(&[("table", table)], n);
            }
        },
    ),
    (
        counter(
            "greyhound_mirror_messages",
            "Messages of the kernel that the mirror took.",
        ),
        |s, to| to.put(&[], s.mirror.messages),
    ),
    (
        counter(
            "greyhound_mirror_overruns",
            "Times that messages of the kernel were lost for want of room; the tables are then read anew.",
        ),
        |s, to| to.put(&[], s.mirror.overruns),
    ),
    (
        counter(
            "greyhound_mirror_undecodable",
            "Messages of the kernel that could not be understood.",
        ),
        |s, to| to.put(&[], s.mirror.undecodable),
    ),
];

const TUNNELS: &[Row<TunnelReport>] = &[
    (
        gauge("greyhound_tunnel_info", "What a tunnel is; always 1."),
        |t, to| {
            to.put(
                &[
                    ("mode", &t.mode),
                    ("local", &t.local),
                    ("remote", &t.remote),
                ],
                1,
            )
        },
    ),
    (
        gauge("greyhound_tunnel_up", "1 where the tunnel's state is up."),
        // What is left to the kernel is in no state of ours.
        |t, to| {
            if t.left_to_kernel.is_none() {
                to.put(&[], u8::from(t.state == "up"));
            }
        },
    ),
    (
        counter(
            "greyhound_tunnel_packets",
            "Packets that came out of a tunnel (rx) and went into it (tx), by path.",
        ),
        |t, to| {
            to.put(&[("direction", "rx"), ("path", "fast")], t.fast.rx_packets);
            to.put(&[("direction", "rx"), ("path", "slow")], t.slow.rx_packets);
            to.put(&[("direction", "tx"), ("path", "fast")], t.fast.tx_packets);
            to.put(&[("direction", "tx"), ("path", "slow")], t.slow.tx_packets);
        },
    ),
    (
        of(
            "bytes",
            counter("greyhound_tunnel_bytes", "Inner bytes of these packets."),
        ),
        |t, to| {
            to.put(&[("direction", "rx"), ("path", "fast")], t.fast.rx_bytes);
            to.put(&[("direction", "rx"), ("path", "slow")], t.slow.rx_bytes);
            to.put(&[("direction", "tx"), ("path", "fast")], t.fast.tx_bytes);
            to.put(&[("direction", "tx"), ("path", "slow")], t.slow.tx_bytes);
        },
    ),
    (
        of(
            "bytes",
            gauge(
                "greyhound_tunnel_mtu_bytes",
                "The tunnel device's MTU; 0 without a device.",
            ),
        ),
        |t, to| to.put(&[], t.mtu),
    ),
    (
        of(
            "bytes",
            gauge(
                "greyhound_tunnel_path_mtu_bytes",
                "The largest outer packet on a way that is narrower than the underlay, as a router on it said.",
            ),
        ),
        |t, to| {
            for path in &t.path_mtu {
                to.put(&[("remote", &path.remote)], path.mtu);
            }
        },
    ),
    (
        counter(
            "greyhound_tunnel_icmp_errors",
            "ICMP errors about a tunnel's outer packets, by kind.",
        ),
        |t, to| {
            let e = &t.errors;
            for (kind, n) in [
                ("too_big", e.too_big),
                ("unreachable", e.unreachable),
                ("time_exceeded", e.time_exceeded),
                ("parameter_problem", e.parameter_problem),
            ] {
                to.put(&[("kind", kind)], n);
            }
        },
    ),
    (
        gauge(
            "greyhound_tunnel_keepalive_up",
            "1 where the far end answers its keepalives; only of tunnels that send some.",
        ),
        |t, to| match t.keepalive.as_ref().map(|k| k.state.as_str()) {
            Some("off") | None => {}
            Some(state) => to.put(&[], u8::from(state == "up")),
        },
    ),
    (
        counter(
            "greyhound_tunnel_keepalives",
            "Keepalives sent, those of them that came back, and the far end's that were sent back.",
        ),
        |t, to| {
            if let Some(k) = &t.keepalive {
                to.put(&[("kind", "sent")], k.sent);
                to.put(&[("kind", "received")], k.received);
                to.put(&[("kind", "answered")], k.answered);
            }
        },
    ),
    (
        counter(
            "greyhound_tunnel_mss_clamped",
            "TCP SYNs whose maximum segment size was lowered.",
        ),
        |t, to| to.put(&[], t.mss_clamped),
    ),
];

const WORKERS: &[Row<WorkerReport>] = &[
    (
        counter(
            "greyhound_worker_packets",
            "Frames that a worker received (rx) and that transmit rings took from it (tx).",
        ),
        |w, to| {
            to.put(&[("direction", "rx")], w.rx_packets);
            to.put(&[("direction", "tx")], w.tx_packets);
        },
    ),
    (
        counter(
            "greyhound_worker_handed_over",
            "Packets that the slow path passed to a worker, because it owns the sequence numbers.",
        ),
        |w, to| to.put(&[], w.handed_over),
    ),
    (
        counter(
            "greyhound_worker_spread",
            "Frames that a worker passed to other workers because of the flow inside (out), and that others passed to it (in).",
        ),
        |w, to| {
            to.put(&[("direction", "out")], w.spread_out);
            to.put(&[("direction", "in")], w.spread_in);
        },
    ),
    (
        counter(
            "greyhound_worker_punts",
            "Packets that a worker passed to the slow path, by reason.",
        ),
        |w, to| to.put_reasons(&w.punts),
    ),
    (
        counter(
            "greyhound_worker_drops",
            "Packets that a worker discarded, by reason; they are among greyhound_drops.",
        ),
        |w, to| to.put_reasons(&w.drops),
    ),
    (
        of(
            "seconds",
            counter(
                "greyhound_worker_busy_seconds",
                "Time that a worker was awake.",
            ),
        ),
        |w, to| to.put(&[], w.awake_seconds),
    ),
    (
        of(
            "seconds",
            counter(
                "greyhound_worker_idle_seconds",
                "Time that a worker slept for want of packets.",
            ),
        ),
        |w, to| to.put(&[], w.asleep_seconds),
    ),
    (
        counter(
            "greyhound_worker_turns",
            "Times round a worker's loop, by whether there was a packet.",
        ),
        |w, to| {
            to.put(&[("packets", "some")], w.busy_turns);
            to.put(&[("packets", "none")], w.turns.saturating_sub(w.busy_turns));
        },
    ),
    (
        counter(
            "greyhound_worker_checksums_completed",
            "TCP and UDP checksums that a veth had left open and a worker finished.",
        ),
        |w, to| to.put(&[], w.checksums_completed),
    ),
    (
        gauge("greyhound_worker_frames", "Where a worker's frames are."),
        |w, to| {
            for (place, n) in w.frames.iter().filter(|(place, _)| *place != "total") {
                to.put(&[("place", place)], n);
            }
        },
    ),
    (
        counter(
            "greyhound_worker_port_errors",
            "Times that a worker found a device down or gone.",
        ),
        |w, to| to.put(&[], w.port_errors),
    ),
];

/// A socket, and its worker's number.
type Port = (u32, PortReport);

const PORTS: &[Row<Port>] = &[
    (
        gauge(
            "greyhound_port_info",
            "How a queue's AF_XDP socket runs: zero-copy, copy, generic, down or ended; always 1.",
        ),
        |(_, p), to| to.put(&[("mode", &p.mode)], 1),
    ),
    (
        counter(
            "greyhound_port_packets",
            "Frames that a worker received on a queue (rx) and that its transmit ring took (tx).",
        ),
        |(_, p), to| {
            to.put(&[("direction", "rx")], p.rx_packets);
            to.put(&[("direction", "tx")], p.tx_packets);
        },
    ),
    (
        counter(
            "greyhound_port_tx_ring_full",
            "Frames that the transmit ring did not take: the device does not keep up.",
        ),
        |(_, p), to| to.put(&[], p.tx_ring_full),
    ),
    (
        counter(
            "greyhound_port_rx_dropped",
            "Frames lost for want of a buffer, or longer than one (XDP_STATISTICS rx_dropped).",
        ),
        |(_, p), to| to.put(&[], p.rx_dropped),
    ),
    (
        counter(
            "greyhound_port_rx_ring_full",
            "Frames lost because the worker did not take them in time (XDP_STATISTICS rx_ring_full).",
        ),
        |(_, p), to| to.put(&[], p.rx_ring_full),
    ),
    (
        counter(
            "greyhound_port_fill_ring_empty",
            "Times that the kernel found no buffer (XDP_STATISTICS rx_fill_ring_empty_descs).",
        ),
        |(_, p), to| to.put(&[], p.fill_ring_empty),
    ),
    (
        counter(
            "greyhound_port_rx_invalid",
            "Descriptors for receiving that the kernel refused (XDP_STATISTICS rx_invalid_descs).",
        ),
        |(_, p), to| to.put(&[], p.rx_invalid),
    ),
    (
        counter(
            "greyhound_port_tx_invalid",
            "Descriptors for sending that the kernel refused (XDP_STATISTICS tx_invalid_descs).",
        ),
        |(_, p), to| to.put(&[], p.tx_invalid),
    ),
    (
        counter(
            "greyhound_port_tx_ring_empty",
            "Times that the kernel found nothing to send (XDP_STATISTICS tx_ring_empty_descs).",
        ),
        |(_, p), to| to.put(&[], p.tx_ring_empty),
    ),
];

const SLOW_PATH: &[Row<SlowPathReport>] = &[
    (
        counter(
            "greyhound_slow_path_received",
            "Packets that came to the slow path, or were made there, by where from.",
        ),
        |s, to| {
            let punts = s.punts.values().sum();
            for (from, n) in [
                ("devices", s.from_devices),
                ("network", s.from_network),
                ("workers", punts),
                ("copies", s.copies),
                ("keepalives", s.keepalives_sent),
            ] {
                to.put(&[("from", from)], n);
            }
        },
    ),
    (
        counter(
            "greyhound_slow_path_sent",
            "Packets that the slow path carried, by where to; what it did not carry is among greyhound_slow_path_drops.",
        ),
        |s, to| {
            for (way, n) in [
                ("tunnels", s.into_tunnels),
                ("devices", s.out_of_tunnels),
                ("workers", s.handed_over),
                ("kernel", s.returned),
                ("keepalives", s.keepalives_received),
            ] {
                to.put(&[("to", way)], n);
            }
        },
    ),
    (
        counter(
            "greyhound_slow_path_punts",
            "Packets that came from workers, by reason.",
        ),
        |s, to| to.put_reasons(&s.punts),
    ),
    (
        counter(
            "greyhound_slow_path_drops",
            "Packets that the slow path discarded, by reason; they are among greyhound_drops.",
        ),
        |s, to| to.put_reasons(&s.drops),
    ),
    (
        counter(
            "greyhound_slow_path_filtered",
            "Packets of the tunnels' protocols for this host that have no tunnel here.",
        ),
        |s, to| to.put_reasons(&s.filtered),
    ),
    (
        counter(
            "greyhound_slow_path_fragmented",
            "Packets that were cut: outer ones, or inner ones before.",
        ),
        |s, to| {
            to.put(&[("packet", "outer")], s.fragmented);
            to.put(&[("packet", "inner")], s.inner_fragmented);
        },
    ),
    (
        counter(
            "greyhound_slow_path_checksums_completed",
            "TCP and UDP checksums that a veth had left open and the slow path finished.",
        ),
        |s, to| to.put(&[], s.checksums_completed),
    ),
    (
        counter(
            "greyhound_slow_path_icmp",
            "ICMP as the slow path hears and says it: errors that are about nothing of ours, and senders of packets that were too big.",
        ),
        |s, to| {
            let icmp = s.icmp;
            for (kind, n) in [
                ("ignored", icmp.ignored),
                ("answered", icmp.answered),
                ("not_answered", icmp.not_answered),
                ("rate_limited", icmp.rate_limited),
            ] {
                to.put(&[("kind", kind)], n);
            }
        },
    ),
];

/// Every family that there is.
pub fn all() -> impl Iterator<Item = Family> {
    let router = ROUTER.iter().map(|row| row.0);
    let tunnels = TUNNELS.iter().map(|row| row.0);
    let workers = WORKERS.iter().map(|row| row.0);
    let ports = PORTS.iter().map(|row| row.0);
    let slow = SLOW_PATH.iter().map(|row| row.0);
    router
        .chain([DROPS])
        .chain(tunnels)
        .chain(workers)
        .chain(ports)
        .chain(slow)
}

/// The statistics as a monitoring system reads them.
pub fn write(statistics: &Statistics, format: Format, memory: &mut Memory) -> String {
    let mut out = Exposition::new(format);
    write_rows(&mut out, ROUTER, std::slice::from_ref(statistics), |_| {
        Vec::new()
    });
    drops(statistics, memory, &mut out);
    write_rows(&mut out, TUNNELS, &statistics.tunnels, |t| {
        vec![("tunnel", t.name.clone())]
    });
    let workers = workers(statistics);
    write_rows(&mut out, WORKERS, &workers, |w| {
        vec![("worker", w.id.to_string())]
    });
    let ports = workers.into_iter().flat_map(|w| {
        let id = w.id;
        w.ports.into_iter().map(move |port| (id, port))
    });
    write_rows(
        &mut out,
        PORTS,
        &ports.collect::<Vec<_>>(),
        |(worker, p)| {
            vec![
                ("device", p.device.clone()),
                ("queue", p.queue.to_string()),
                ("worker", worker.to_string()),
            ]
        },
    );
    let slow = std::slice::from_ref(&statistics.slow_path);
    write_rows(&mut out, SLOW_PATH, slow, |_| Vec::new());
    out.finish()
}

/// Those that run with what earlier ones of their number counted: a counter goes on.
fn workers(statistics: &Statistics) -> Vec<WorkerReport> {
    let mut by_id: BTreeMap<u32, WorkerReport> = BTreeMap::new();
    for worker in statistics.workers.iter().chain(&statistics.ended) {
        match by_id.get_mut(&worker.id) {
            Some(sum) => books::add(sum, worker.clone()),
            None => drop(by_id.insert(worker.id, worker.clone())),
        }
    }
    by_id.into_values().collect()
}

fn drops(statistics: &Statistics, memory: &mut Memory, out: &mut Exposition) {
    let mut of_tunnels = Reasons::new();
    for tunnel in &statistics.tunnels {
        books::add_reasons(&mut of_tunnels, &tunnel.drops);
    }
    out.begin(&DROPS);
    for reason in crate::datapath::DropReason::ALL {
        let reason = reason.as_str();
        let all = statistics.drops.get(reason).copied().unwrap_or_default();
        let theirs = of_tunnels.get(reason).copied().unwrap_or_default();
        let nobodys = memory.unattributed.entry(reason.to_owned()).or_default();
        *nobodys = (*nobodys).max(all.saturating_sub(theirs));
        out.sample(&[("tunnel", ""), ("reason", reason)], *nobodys);
    }
    for tunnel in &statistics.tunnels {
        for (reason, n) in &tunnel.drops {
            out.sample(&[("tunnel", &tunnel.name), ("reason", reason)], n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics() -> Statistics {
        Statistics {
            tunnels: vec![TunnelReport {
                name: "gre1".to_owned(),
                drops: Reasons::from([("sequence_old".to_owned(), 3)]),
                ..TunnelReport::default()
            }],
            drops: Reasons::from([("sequence_old".to_owned(), 5), ("not_ip".to_owned(), 1)]),
            workers: vec![WorkerReport {
                rx_packets: 7,
                ..WorkerReport::default()
            }],
            ended: vec![WorkerReport {
                rx_packets: 100,
                ..WorkerReport::default()
            }],
            ..Statistics::default()
        }
    }

    #[test]
    fn every_drop_is_one_tunnels_or_nobodys_and_no_counter_goes_back() {
        let (mut memory, mut now) = (Memory::default(), statistics());
        let text = write(&now, Format::Text, &mut memory);
        for line in [
            "greyhound_drops_total{tunnel=\"gre1\",reason=\"sequence_old\"} 3",
            "greyhound_drops_total{tunnel=\"\",reason=\"sequence_old\"} 2",
            "greyhound_drops_total{tunnel=\"\",reason=\"not_ip\"} 1",
            "greyhound_worker_packets_total{worker=\"0\",direction=\"rx\"} 107",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        // The tunnel's counter was read a moment later.
        now.tunnels[0].drops.insert("sequence_old".to_owned(), 4);
        let text = write(&now, Format::Text, &mut memory);
        assert!(text.contains("{tunnel=\"\",reason=\"sequence_old\"} 2\n"));
    }

    #[test]
    fn names_follow_the_conventions() {
        let mut seen = std::collections::BTreeSet::new();
        for family in all() {
            let name = family.name;
            assert!(seen.insert(name), "{name} stands twice");
            assert!(
                name.starts_with("greyhound_") && !name.ends_with("_total"),
                "{name}"
            );
            let ends_with_unit = ["_seconds", "_bytes"].iter().find(|u| name.ends_with(*u));
            assert_eq!(ends_with_unit.map(|u| &u[1..]), family.unit, "{name}");
            assert!(family.help.ends_with('.'), "{name}");
        }
    }
}
