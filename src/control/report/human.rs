//! Statistics for people, in the manner of `ip -s tunnel show` and `ip -s link`: terse, aligned, plain words.

use std::fmt::Write;

use super::{
    ByteOrInherit, KeepaliveReport, NextHopReport, NumberOrWord, PathShare, PeerReport, PortReport,
    Reasons, SlowPathReport, Statistics, TunnelReport, WorkerReport,
};
use crate::tunnel::{Family, Mode};

/// `greyhound tunnel show`.
pub fn tunnels(tunnels: &[TunnelReport]) -> String {
    if tunnels.is_empty() {
        return "no tunnels\n".to_owned();
    }
    let mut text: String = tunnels.iter().map(tunnel).collect();
    if tunnels.iter().any(|t| t.fast != PathShare::default()) {
        text += "(`ip -s link` and tcpdump on these devices see the slow column alone)\n";
    }
    text
}

/// `greyhound stats`.
pub fn statistics(statistics: &Statistics) -> String {
    let mut text = tunnel_table(&statistics.tunnels);
    if !statistics.workers.is_empty() {
        text.push('\n');
        text += &worker_table(&statistics.workers);
        text.push('\n');
        text += &port_table(&statistics.workers);
        text.extend(statistics.workers.iter().flat_map(why_not_zero_copy));
        text.extend(statistics.workers.iter().flat_map(busy_polling));
    }
    let (icmp, slow) = (icmp(statistics), slow_path(&statistics.slow_path));
    let mut reasons = vec![
        ("drops".to_owned(), &statistics.drops),
        ("slow path".to_owned(), &slow),
        ("slow path punts".to_owned(), &statistics.slow_path.punts),
        ("slow path drops".to_owned(), &statistics.slow_path.drops),
        (
            "slow path filtered".to_owned(),
            &statistics.slow_path.filtered,
        ),
        ("slow path icmp".to_owned(), &icmp),
    ];
    let by_device = statistics.xdp.len() > 1;
    for (device, counters) in &statistics.xdp {
        // Their sum says nothing that they do not.
        if by_device && device == "all" {
            continue;
        }
        reasons.push((format!("steering on {device}"), counters));
    }
    let mut gap = "\n";
    for (what, counters) in reasons {
        if let Some(list) = nonzero(counters) {
            let _ = writeln!(text, "{gap}{what}: {list}");
            gap = "";
        }
    }
    text
}

/// What came to the slow path, and what became of it.
fn slow_path(slow: &SlowPathReport) -> Reasons {
    let named = [
        ("from_devices", slow.from_devices),
        ("from_network", slow.from_network),
        ("copies", slow.copies),
        ("into_tunnels", slow.into_tunnels),
        ("out_of_tunnels", slow.out_of_tunnels),
        ("handed_over", slow.handed_over),
        ("returned", slow.returned),
    ];
    let named = named.into_iter();
    named.map(|(name, n)| (name.to_owned(), n)).collect()
}

fn tunnel(t: &TunnelReport) -> String {
    if let Some(why) = &t.left_to_kernel {
        let kind = Some(t.mode.as_str()).filter(|kind| !kind.is_empty());
        let kind = kind.unwrap_or("no device");
        return format!("{}: {kind}  left to the kernel: {why}\n", t.name);
    }
    let mut text = format!("{}: {}\n", t.name, options(t).join("  "));
    let _ = writeln!(text, "    {}", state(t));
    for p in &t.peers {
        let _ = writeln!(text, "    {}", peer(p));
    }
    text.extend(t.keepalive.as_ref().and_then(keepalive));
    if t.underlay_mtu != 0 {
        let headers = t.overhead.iter().map(|h| (h.header.as_str(), h.bytes));
        let of = underlay(t);
        let _ = writeln!(text, "    mtu {}", mtu_sum(t.underlay_mtu, &of, headers));
    }
    for path in &t.path_mtu {
        let headers = t.overhead.iter().map(|h| (h.header.as_str(), h.bytes));
        let of = format!("the path to {}", path.remote);
        let sum = mtu_sum(path.mtu, &of, headers);
        let _ = writeln!(text, "    path mtu {sum}, for {} s", path.expires_seconds);
    }
    if let Some(said) = &t.unreachable {
        let (remote, reason, from, ago) =
            (&said.remote, &said.reason, &said.from, said.seconds_ago);
        let _ = writeln!(
            text,
            "    unreachable {remote} ({reason}), said {from} {ago} s ago"
        );
    }
    let fast = [t.fast.rx_packets, t.fast.tx_packets];
    let slow = [t.slow.rx_packets, t.slow.tx_packets];
    for (i, (direction, traffic)) in [("RX", t.rx), ("TX", t.tx)].into_iter().enumerate() {
        let _ = writeln!(
            text,
            "    {direction}:{:>17} {:>12} {:>12} {:>12} {:>7}",
            "bytes", "packets", "fast", "slow", "share"
        );
        let _ = writeln!(
            text,
            "       {:>17} {:>12} {:>12} {:>12} {:>7}",
            traffic.bytes,
            traffic.packets,
            fast[i],
            slow[i],
            share(fast[i], slow[i])
        );
    }
    if let Some(drops) = nonzero(&t.drops) {
        let _ = writeln!(text, "    drops: {drops}");
    }
    if let Some(errors) = nonzero(&errors(t)) {
        let _ = writeln!(text, "    errors: {errors}");
    }
    text
}

/// ICMP errors about the tunnel's packets.
fn errors(t: &TunnelReport) -> Reasons {
    let named = [
        ("too_big", t.errors.too_big),
        ("unreachable", t.errors.unreachable),
        ("time_exceeded", t.errors.time_exceeded),
        ("parameter_problem", t.errors.parameter_problem),
    ];
    let named = named.into_iter();
    named.map(|(name, n)| (name.to_owned(), n)).collect()
}

/// ICMP on the slow path.
fn icmp(statistics: &Statistics) -> Reasons {
    let icmp = statistics.slow_path.icmp;
    let named = [
        ("ignored", icmp.ignored),
        ("answered", icmp.answered),
        ("not_answered", icmp.not_answered),
        ("rate_limited", icmp.rate_limited),
    ];
    let named = named.into_iter();
    named.map(|(name, n)| (name.to_owned(), n)).collect()
}

/// The first line of a tunnel, in iproute2's words; what is the default goes unsaid, as there.
fn options(t: &TunnelReport) -> Vec<String> {
    let mode = Mode::from_report(&t.mode);
    let is_v6 = mode.is_some_and(|mode| mode.kind().underlay == Family::V6);
    let (ttl, tos) = if is_v6 {
        ("hoplimit", "tclass")
    } else {
        ("ttl", "tos")
    };
    let mut words = vec![
        mode.map_or_else(|| t.mode.clone(), |mode| protocols(mode).to_owned()),
        format!("remote {}", t.remote),
        format!("local {}", t.local),
    ];
    words.extend(t.dev.as_ref().map(|dev| format!("dev {dev}")));
    words.extend(t.bridge.as_ref().map(|name| format!("bridge {name}")));
    words.extend(match &t.encaplimit {
        Some(NumberOrWord::Number(n)) => Some(format!("encaplimit {n}")),
        Some(NumberOrWord::Word(word)) => Some(format!("encaplimit {word}")),
        None => None,
    });
    words.push(match t.ttl {
        ByteOrInherit::Inherit => format!("{ttl} inherit"),
        ByteOrInherit::Fixed(n) => format!("{ttl} {n}"),
    });
    match t.tos {
        ByteOrInherit::Inherit => words.push(format!("{tos} inherit")),
        ByteOrInherit::Fixed(0) => {}
        ByteOrInherit::Fixed(n) => words.push(format!("{tos} {n:#04x}")),
    }
    words.extend(t.dscp.as_ref().map(|dscp| format!("dscp {dscp}")));
    words.extend(match &t.flowlabel {
        Some(NumberOrWord::Number(n)) => Some(format!("flowlabel {n:#07x}")),
        Some(NumberOrWord::Word(word)) if word != "hash" => Some(format!("flowlabel {word}")),
        _ => None,
    });
    words.extend(encap(t, is_v6));
    words.extend(t.nvgre.then(|| "nvgre".to_owned()));
    match (t.ikey, t.okey) {
        (Some(ikey), Some(okey)) if ikey == okey => words.push(format!("key {ikey}")),
        (ikey, okey) => {
            words.extend(ikey.map(|key| format!("ikey {key}")));
            words.extend(okey.map(|key| format!("okey {key}")));
        }
    }
    let flags = [
        (t.icsum && t.ocsum, "csum"),
        (t.icsum && !t.ocsum, "icsum"),
        (t.ocsum && !t.icsum, "ocsum"),
        (t.iseq && t.oseq, "seq"),
        (t.iseq && !t.oseq, "iseq"),
        (t.oseq && !t.iseq, "oseq"),
    ];
    let flags: Vec<&str> = flags
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, word)| *word)
        .collect();
    if !flags.is_empty() {
        words.push(flags.join(" "));
    }
    if !t.pmtudisc && !is_v6 {
        words.push("nopmtudisc".to_owned());
    }
    if t.ignore_df {
        words.push("ignore-df".to_owned());
    }
    if t.clamp_mss {
        words.push("clamp_mss".to_owned());
    }
    if t.accelerated {
        words.push("accelerated".to_owned());
    }
    if t.mtu != 0 {
        words.push(format!("mtu {}", t.mtu));
    }
    words
}

/// GRE in UDP, in the words of `ip -d link show`.
fn encap(t: &TunnelReport, is_v6: bool) -> Vec<String> {
    let Some(encap) = &t.encap else {
        return Vec::new();
    };
    let mut words = vec![format!("encap {encap}")];
    if let Some(NumberOrWord::Number(port)) = t.encap_sport {
        words.push(format!("encap-sport {port}"));
    }
    match (is_v6, t.encap_csum) {
        (false, Some(true)) => words.push("encap-csum".to_owned()),
        (true, Some(false)) => words.push("noencap-csum6".to_owned()),
        _ => {}
    }
    words
}

/// What is inside and what is outside, as `ip tunnel show` and `ip -6 tunnel show` name the kinds.
fn protocols(mode: Mode) -> &'static str {
    match mode {
        Mode::Gre => "gre/ip",
        Mode::Gretap => "gretap/ip",
        Mode::Ip6gre => "gre/ipv6",
        Mode::Ip6gretap => "gretap/ipv6",
        Mode::Ipip => "ip/ip",
        Mode::Sit | Mode::Sit6 => "ipv6/ip",
        Mode::Ip6tnl => "any/ipv6",
        Mode::Ip6ip6 => "ipv6/ipv6",
        Mode::Ipip6 => "ip/ipv6",
    }
}

/// What of the underlay's MTU is left for inner packets: `1476 = 1500 of eth0 - 20 IPv4 - 4 GRE`.
pub fn mtu_sum<'h>(
    underlay: u32,
    of: &str,
    headers: impl Iterator<Item = (&'h str, usize)>,
) -> String {
    let mut sum = format!("{underlay} of {of}");
    let mut room = underlay as usize;
    for (header, bytes) in headers {
        let _ = write!(sum, " - {bytes} {header}");
        room = room.saturating_sub(bytes);
    }
    format!("{room} = {sum}")
}

/// What the underlay's MTU is the MTU of.
fn underlay(t: &TunnelReport) -> String {
    let device = match &t.next_hop {
        Some(hop) => hop.device.as_str(),
        None => "the underlay",
    };
    match t.underlay_mtu_from.as_deref() {
        Some("route") => format!("the route by {device}"),
        _ => device.to_owned(),
    }
}

fn state(t: &TunnelReport) -> String {
    format!("state {}{}", t.state, way(t.next_hop.as_ref()))
}

fn peer(p: &PeerReport) -> String {
    let address = p.address.as_deref().unwrap_or("by route");
    let way = way(p.next_hop.as_ref());
    format!("peer {address}  remote {}  {}{way}", p.remote, p.state)
}

fn way(next_hop: Option<&NextHopReport>) -> String {
    let Some(hop) = next_hop else {
        return String::new();
    };
    let mut text = format!("  via {} dev {}", hop.via, hop.device);
    if let Some(lladdr) = &hop.lladdr {
        let _ = write!(text, " lladdr {lladdr}");
    }
    text
}

/// Unsaid where there are none in either direction.
fn keepalive(k: &KeepaliveReport) -> Option<String> {
    let mut text = format!("    keepalive {}", k.state);
    match (k.interval, k.retries) {
        (Some(interval), Some(retries)) => {
            let _ = write!(
                text,
                " {} s  interval {interval} retries {retries}",
                k.seconds
            );
            let _ = write!(text, "  sent {} received {}", k.sent, k.received);
        }
        _ if k.answered == 0 => return None,
        _ => {}
    }
    Some(text + &format!(" answered {}\n", k.answered))
}

fn tunnel_table(tunnels: &[TunnelReport]) -> String {
    let head = [
        "tunnel",
        "state",
        "rx packets",
        "rx bytes",
        "tx packets",
        "tx bytes",
        "fast",
        "drops",
    ];
    let rows = tunnels.iter().map(|t| {
        let PathShare {
            rx_packets,
            tx_packets,
            ..
        } = t.fast;
        let slow = t.slow.rx_packets.saturating_add(t.slow.tx_packets);
        vec![
            t.name.clone(),
            t.state.clone(),
            t.rx.packets.to_string(),
            t.rx.bytes.to_string(),
            t.tx.packets.to_string(),
            t.tx.bytes.to_string(),
            share(rx_packets.saturating_add(tx_packets), slow),
            total(&t.drops).to_string(),
        ]
    });
    table(&head, 2, rows.collect())
}

fn worker_table(workers: &[WorkerReport]) -> String {
    let mut head = vec![
        "worker",
        "cpu",
        "busy",
        "rx packets",
        "tx packets",
        "handed over",
        "punted",
        "drops",
        "checksums",
    ];
    let several = workers.len() > 1;
    if several {
        head.extend(["spread out", "spread in"]);
    }
    let rows = workers.iter().map(|w| {
        let mut row = vec![
            w.id.to_string(),
            w.cpu.to_string(),
            busy(w),
            w.rx_packets.to_string(),
            w.tx_packets.to_string(),
            w.handed_over.to_string(),
            w.punted.to_string(),
            total(&w.drops).to_string(),
            w.checksums_completed.to_string(),
        ];
        if several {
            row.extend([w.spread_out.to_string(), w.spread_in.to_string()]);
        }
        row
    });
    table(&head, 0, rows.collect())
}

/// The share of its time that a worker was awake, since it began.
fn busy(worker: &WorkerReport) -> String {
    let all = worker.awake_seconds + worker.asleep_seconds;
    match all > 0.0 {
        true => format!("{:.0}%", 100.0 * worker.awake_seconds / all),
        false => "-".to_owned(),
    }
}

fn port_table(workers: &[WorkerReport]) -> String {
    let head = [
        "device",
        "mode",
        "queue",
        "worker",
        "rx packets",
        "tx packets",
        "rx dropped",
        "rx ring full",
        "tx ring full",
        "fill ring empty",
        "invalid",
    ];
    let row = |w: &WorkerReport, p: &PortReport| {
        vec![
            p.device.clone(),
            p.mode.clone(),
            p.queue.to_string(),
            w.id.to_string(),
            p.rx_packets.to_string(),
            p.tx_packets.to_string(),
            p.rx_dropped.to_string(),
            p.rx_ring_full.to_string(),
            p.tx_ring_full.to_string(),
            p.fill_ring_empty.to_string(),
            p.rx_invalid.saturating_add(p.tx_invalid).to_string(),
        ]
    };
    let rows = workers
        .iter()
        .flat_map(|w| w.ports.iter().map(move |p| row(w, p)));
    table(&head, 2, rows.collect())
}

/// What the kernel said, once per worker: its ports all run in one mode, and mostly for one reason.
fn why_not_zero_copy(worker: &WorkerReport) -> Vec<String> {
    let mut reasons: Vec<&String> = worker
        .ports
        .iter()
        .filter_map(|port| port.why_not_zero_copy.as_ref())
        .collect();
    reasons.dedup();
    let line = |why| format!("worker {}: not zero-copy: {why}\n", worker.id);
    reasons.into_iter().map(line).collect()
}

/// Which device's NAPI each socket polls.
fn busy_polling(worker: &WorkerReport) -> Vec<String> {
    let line = |port: &PortReport| {
        let what = match port.busy_poll?.napi {
            0 => "but the kernel does not know the device's NAPI: only the rings are polled"
                .to_owned(),
            napi => format!("NAPI {napi}"),
        };
        let (id, device, queue) = (worker.id, &port.device, port.queue);
        Some(format!(
            "worker {id}: {device} queue {queue}: busy polling, {what}\n"
        ))
    };
    worker.ports.iter().filter_map(line).collect()
}

/// Aligned columns: the first `words` of them to the left, the numbers after them to the right.
fn table(head: &[&str], words: usize, mut rows: Vec<Vec<String>>) -> String {
    rows.insert(0, head.iter().map(|title| (*title).to_owned()).collect());
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                if column < words {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        let line = cells.collect::<Vec<_>>().join("  ");
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Reasons that counted something, the most frequent first.
fn nonzero(reasons: &Reasons) -> Option<String> {
    let mut counted: Vec<_> = reasons.iter().filter(|(_, count)| **count > 0).collect();
    counted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let words = counted
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"));
    (!counted.is_empty()).then(|| words.collect::<Vec<_>>().join("  "))
}

fn total(reasons: &Reasons) -> u64 {
    reasons
        .values()
        .fold(0, |sum, count| sum.saturating_add(*count))
}

/// The fast path's share. Rounded down, so that 100 % means every packet.
fn share(fast: u64, slow: u64) -> String {
    let all = u128::from(fast) + u128::from(slow);
    if all == 0 {
        return "-".to_owned();
    }
    let tenths = u128::from(fast) * 1000 / all;
    format!("{}.{}%", tenths / 10, tenths % 10)
}
