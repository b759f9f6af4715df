//! What would become of a packet: it is built, given to the steering program and to [`forward`] with records of its own, and
//! what they say is written down. Nothing is sent, counted or numbered.

mod packet;

use std::sync::Arc;

use super::report::{
    NextHopReport,
    trace::{Probe, TraceReport},
};
use packet::{build, decrement, described, framed};

use crate::{
    datapath::{
        DropReason, ForwardState, HandoverKind, PuntTo, TunnelRecord, Verdict, WorkerStats,
        forward, forward_handover, receiver,
    },
    fib::{Fib, IntoTunnel, OnPort, PortId, PortInfo, Resolution, ResolutionCache},
    packet::{Ipv4, Ipv6, MacAddr, PacketBuf, VecBuf, ethernet, flow},
    tunnel::{self, Payload, Tunnel, TunnelState},
};

/// What all headers of a tunnel and of Ethernet can take.
const HEADROOM: usize = 256;
/// What the kernel does not forward either.
const ENDS: &[&str] = &[
    "ttl",
    "ttl_expiring",
    "too_big",
    "forwarding_off",
    "local_delivery",
    "martian",
    "multicast",
];

/// Asks the steering program.
type Judge<'a> = dyn Fn(u32, &[u8]) -> Result<&'static str, String> + 'a;

/// What is looked at.
pub struct Scene<'a> {
    pub fib: &'a Fib,
    /// Copies: their counters and numbers are nobody's.
    pub records: Vec<Option<Arc<TunnelRecord>>>,
    pub devices: Vec<&'a str>,
    /// Those of them that face the inner networks.
    pub overlay: &'a [String],
    /// The steering program's answer to a frame on the device with this index.
    pub judge: &'a Judge<'a>,
}

/// Where the packet comes in.
enum Arrival<'a> {
    Device(&'a str),
    /// Out of this tunnel.
    Tunnel(&'a Tunnel),
}

/// Follows the packet. An error is one line: the question makes no sense here.
pub fn trace(probe: &Probe, scene: &Scene<'_>) -> Result<TraceReport, String> {
    let packet = build(probe)?;
    let (name, packet) = match arrival(probe, scene)? {
        Arrival::Device(name) => (name, packet),
        Arrival::Tunnel(tunnel) => return out_of(tunnel, &packet, scene),
    };
    let mut report = TraceReport {
        packet: described(&packet),
        from: name.to_owned(),
        ..TraceReport::default()
    };
    let mut state = state(scene);
    let hash = || flow::hash(&packet);
    let resolution = (state.resolutions).resolve(scene.fib, probe.destination, hash);
    if let Resolution::Tunnel(route) = resolution {
        let tunnel = scene.fib.tunnels().get(route.id);
        report.tunnel = tunnel.map(|tunnel| tunnel.name.to_string());
    }
    let Some((id, port)) = port(scene.fib, name) else {
        slow(&packet, resolution, scene, &mut report);
        return Ok(report);
    };
    let frame = framed(&packet, port);
    let steering = (scene.judge)(with_socket(scene.fib, port).ifindex, &frame)?;
    report.steering = Some(steering.to_owned());
    if !steering.starts_with("redirected") {
        report.reason = Some(steering.to_owned());
        slow(&packet, resolution, scene, &mut report);
        return Ok(report);
    }
    let mut buf = VecBuf::new(HEADROOM, &frame);
    let verdict = forward(&mut buf, id, scene.fib, &mut state);
    conclude(verdict, buf.data(), scene.fib, &mut report);
    if report.verdict == "kernel" {
        slow(&packet, resolution, scene, &mut report);
    }
    Ok(report)
}

/// A packet that the far end of a tunnel has encapsulated.
fn out_of(tunnel: &Tunnel, packet: &[u8], scene: &Scene<'_>) -> Result<TraceReport, String> {
    let name = &tunnel.name;
    if tunnel.mode.kind().payload == Payload::Ethernet {
        return Err(format!(
            "{name} carries frames: expected a tunnel of IP packets"
        ));
    }
    if tunnel.remote.is_unspecified() || tunnel.remote.is_multicast() {
        return Err(format!(
            "{name} has no remote of its own: expected a tunnel with one far end"
        ));
    }
    let far = Tunnel {
        local: tunnel.remote,
        remote: tunnel.local,
        ikey: tunnel.okey,
        okey: tunnel.ikey,
        ocsum: tunnel.icsum,
        oseq: tunnel.iseq,
        ..tunnel.clone()
    };
    let mut state = state(scene);
    let record = state.tunnels.get(tunnel.id.index()).cloned().flatten();
    let (_, expected) = record.map_or((0, 0), |record| record.state.sequences.now());
    let sequences = tunnel::Sequences::starting_at(expected, 0);
    let mut outer = VecBuf::new(HEADROOM, packet);
    tunnel::encapsulate(
        &far,
        far.remote,
        &mut outer,
        &TunnelState::new(0, 1, Arc::new(sequences)),
    )
    .map_err(|refusal| format!("{name} carries no such packet: {refusal:?}"))?;
    let egress = scene.fib.egress(tunnel.id).adjacency;
    let ports = scene.fib.ports();
    let port = egress
        .map(|adjacency| {
            let on = |vid| OnPort {
                port: adjacency.port,
                vid,
            };
            let vlan = adjacency.vlan.and_then(|vid| scene.fib.vlan(on(vid)));
            vlan.unwrap_or(adjacency.port)
        })
        .and_then(|port| ports.get(port.index()))
        .or_else(|| ports.iter().find(|port| port.underlay));
    let mut report = TraceReport {
        packet: described(outer.data()),
        from: port.map_or("the underlay", |port| &port.name).to_owned(),
        inner: Some(described(packet)),
        ..TraceReport::default()
    };
    let verdict = match port.and_then(|port| self::port(scene.fib, &port.name)) {
        Some((id, port)) => {
            let frame = framed(outer.data(), port);
            let steering = (scene.judge)(with_socket(scene.fib, port).ifindex, &frame)?;
            report.steering = Some(steering.to_owned());
            if steering.starts_with("redirected") {
                outer = VecBuf::new(HEADROOM, &frame);
                forward(&mut outer, id, scene.fib, &mut state)
            } else {
                report.reason = Some(steering.to_owned());
                forward_handover(
                    &mut outer,
                    HandoverKind::FromUnderlay,
                    scene.fib,
                    &mut state,
                )
            }
        }
        None => forward_handover(
            &mut outer,
            HandoverKind::FromUnderlay,
            scene.fib,
            &mut state,
        ),
    };
    let passed = report.reason.take();
    conclude(verdict, outer.data(), scene.fib, &mut report);
    if let (Some(reason), true) = (passed, report.verdict != "dropped") {
        // The slow path takes it out; the kernel goes on from the tunnel's device.
        report.leaves = None;
        report.next_hop = None;
        kernel(&reason, &mut report);
    }
    if report.verdict == "kernel" {
        report.meaning += &format!(", from {name}");
    }
    Ok(report)
}

fn state(scene: &Scene<'_>) -> ForwardState {
    ForwardState {
        stats: Arc::new(WorkerStats::default()),
        tunnels: scene.records.clone(),
        owns_sequences: true,
        resolutions: ResolutionCache::default(),
        trail: Default::default(),
    }
}

fn port<'f>(fib: &'f Fib, name: &str) -> Option<(PortId, &'f PortInfo)> {
    let mut all = (0..).map(PortId).zip(fib.ports());
    all.find(|(_, port)| *port.name == *name)
}

/// Where it comes in: as asked; else where packets from its source are to be expected.
fn arrival<'s>(probe: &Probe, scene: &'s Scene<'_>) -> Result<Arrival<'s>, String> {
    let tunnel = |name: &str| {
        scene
            .fib
            .tunnels()
            .iter()
            .find(|tunnel| *tunnel.name == *name)
    };
    if let Some(name) = &probe.from {
        let device = scene.devices.iter().find(|device| *device == name);
        return match (tunnel(name), device) {
            (Some(tunnel), _) => Ok(Arrival::Tunnel(tunnel)),
            (None, Some(device)) => Ok(Arrival::Device(device)),
            (None, None) => Err(format!(
                "{name} is none of the router's devices: expected {} or a tunnel",
                scene.devices.join(", ")
            )),
        };
    }
    let mut resolutions = ResolutionCache::default();
    match resolutions.resolve(scene.fib, probe.source, || 0) {
        Resolution::Tunnel(IntoTunnel { id, .. }) => {
            let tunnel = scene.fib.tunnels().get(id);
            return tunnel
                .map(Arrival::Tunnel)
                .ok_or_else(|| "the tunnel is gone".to_owned());
        }
        Resolution::Adjacent(adjacency) => {
            if let Some(port) = scene.fib.port(adjacency.port) {
                return Ok(Arrival::Device(&port.name));
            }
        }
        _ => {}
    }
    match scene.overlay {
        [only] => Ok(Arrival::Device(only)),
        _ => Err(format!(
            "the router does not know where {} is: expected --from and one of {}, or a tunnel",
            probe.source,
            scene.devices.join(", ")
        )),
    }
}

/// The port whose socket a port's frames come by: itself, or the one beneath a VLAN device.
fn with_socket<'a>(fib: &'a Fib, port: &'a PortInfo) -> &'a PortInfo {
    let beneath = port.vlan.and_then(|on| fib.port(on.port));
    beneath.unwrap_or(port)
}

/// A verdict in words, and what leaves.
fn conclude(verdict: Verdict, data: &[u8], fib: &Fib, report: &mut TraceReport) {
    match verdict {
        Verdict::Transmit(id) => {
            let mut data = VecBuf::new(0, data);
            let port = fib.port(receiver(data.data(), id, fib));
            if port.is_some_and(|port| port.vlan.is_some()) {
                // It was put on a moment ago.
                let _ = ethernet::pop_tag(&mut data);
            }
            let port = port.map_or("", |port| &port.name);
            report.verdict = "sent".to_owned();
            report.path = "fast".to_owned();
            report.meaning = format!("by {port}");
            if let Some((header, packet)) = data.data().split_at_checked(ethernet::HEADER_LEN) {
                report.leaves = Some(described(packet));
                let mac = header[..6].try_into().map(|mac| MacAddr(mac).to_string());
                report.next_hop = Some(NextHopReport {
                    device: port.to_owned(),
                    via: String::new(),
                    lladdr: mac.ok(),
                });
            }
        }
        Verdict::Punt(reason, to) => {
            kernel(reason.as_str(), report);
            if let PuntTo::Underlay(_) = to {
                report.leaves = Some(described(data));
            }
        }
        Verdict::Drop(reason) => {
            report.verdict = "dropped".to_owned();
            report.path = "fast".to_owned();
            report.reason = Some(reason.as_str().to_owned());
            report.meaning = "nobody gets it".to_owned();
        }
    }
}

fn kernel(reason: &str, report: &mut TraceReport) {
    report.verdict = "kernel".to_owned();
    report.path = "slow".to_owned();
    report.meaning = meaning(reason).to_owned();
    report.reason = Some(reason.to_owned());
}

/// What the kernel does for such a reason, in a few words.
fn meaning(reason: &str) -> &'static str {
    match reason {
        "ttl" | "ttl_expiring" => "it answers that the packet's time is up",
        "too_big" => "it cuts the packet, or tells its sender that it is too big",
        "local_delivery" => "the packet is for this router itself",
        "unresolved" => "it asks for the next hop's link address first",
        "no_route" | "kernel_route" | "not_tunnel" => "it forwards or answers by its own routes",
        "forwarding_off" => "forwarding is off here: it drops the packet",
        _ => "it carries the packet",
    }
}

/// What becomes of a packet that the kernel forwards: into a tunnel's device, and out of it again.
fn slow(packet: &[u8], resolution: Resolution, scene: &Scene<'_>, report: &mut TraceReport) {
    let time_is_up = match packet.first().map(|byte| byte >> 4) {
        Some(6) => Ipv6::parse(packet).is_ok_and(|ip| ip.hop_limit() <= 1),
        _ => Ipv4::parse(packet).is_ok_and(|ip| ip.ttl() <= 1),
    };
    let own = match resolution {
        _ if time_is_up => Some("ttl"),
        Resolution::Tunnel(route) if packet.len() > usize::from(route.mtu) => Some("too_big"),
        Resolution::Local => Some("local_delivery"),
        Resolution::Tunnel(_) => None,
        _ => Some("no_route"),
    };
    let known = report.reason.clone();
    kernel(known.as_deref().or(own).unwrap_or("no_fast_path"), report);
    if own == Some("local_delivery") {
        report.meaning = meaning("local_delivery").to_owned();
    }
    let (None, Resolution::Tunnel(route)) = (own, resolution) else {
        return;
    };
    if known.is_some_and(|reason| ENDS.contains(&&*reason)) {
        return;
    }
    let (Some(tunnel), Some(record)) = (
        scene.fib.tunnels().get(route.id),
        scene.records.get(route.id.index()).cloned().flatten(),
    ) else {
        return;
    };
    if !tunnel.up {
        report.verdict = "dropped".to_owned();
        report.reason = Some(DropReason::TunnelDown.as_str().to_owned());
        report.meaning = format!("{} is down", tunnel.name);
        return;
    }
    let mut buf = VecBuf::new(HEADROOM, packet);
    decrement(buf.data_mut());
    let remote = route.remote.unwrap_or(tunnel.remote);
    match tunnel::encapsulate(tunnel, remote, &mut buf, &record.state) {
        Ok(()) => {
            report.leaves = Some(described(buf.data()));
            report.verdict = "sent".to_owned();
            report.meaning = format!("through the kernel and {}", tunnel.name);
        }
        Err(refusal) => {
            report.verdict = "dropped".to_owned();
            report.reason = Some(DropReason::from(refusal).as_str().to_owned());
            report.meaning = format!("{} does not carry it", tunnel.name);
        }
    }
}
