//! Statistics as data: the types behind `greyhound stats --json` and `greyhound tunnel show --json`.
//!
//! The field names are a contract: scripts and dashboards rely on them. Fields may be added, none renamed. The router
//! fills these structures; [`human`] turns them into text.

pub mod glance;
pub mod human;
pub mod routes;
pub mod trace;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::config::TunnelConfig;
use super::socket::{Request, Response};
use crate::tunnel::{Family, FlowLabel, Tos, Ttl};
use glance::Glance;

/// Packets by reason; reasons with nothing to say may be absent.
pub type Reasons = BTreeMap<String, u64>;

/// Everything that the router counts, as of one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Statistics {
    pub tunnels: Vec<TunnelReport>,
    pub workers: Vec<WorkerReport>,
    /// Flows that come by one queue are spread over the workers at the moment.
    pub spread: bool,
    /// What workers counted that have ended, because a device was lost or the configuration changed: the sum by number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<WorkerReport>,
    /// Packets dropped, whatever the tunnel and the thread.
    pub drops: Reasons,
    /// What the slow path did, beside the tunnels' own counters.
    pub slow_path: SlowPathReport,
    /// The steering program's verdicts, per device and for `all`: what it left to the kernel, and why.
    pub xdp: BTreeMap<String, Reasons>,
    pub mirror: MirrorReport,
    pub router: Status,
}

/// Packets, and the inner bytes of those.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

/// Packets that took one of the two paths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathShare {
    pub rx_packets: u64,
    pub tx_packets: u64,
    /// Inner bytes of those.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// One tunnel: what it is, how it is, and what it carried.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TunnelReport {
    pub name: String,
    pub mode: String,
    pub local: String,
    /// An address, a group, or `any` where peers and routes say it.
    pub remote: String,
    /// The device is the kernel's own: `slow` is what that has counted.
    pub accelerated: bool,
    /// Why a device of the kernel's that was named has no fast path: it is then no more than its name, its kind (`mode`) and what it
    /// has counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_to_kernel: Option<String>,
    /// `kernel` where that is left to it, else `up`, `down`, `no-route` (the remote cannot be reached), `no-keepalive` (it does not answer) or `unresolved` (its next
    /// hop has no link address yet). Without a remote: `up` or `down`, as the device.
    pub state: String,
    /// The tunnel device's MTU, in bytes; 0 when there is no device.
    pub mtu: u32,
    /// The MTU of the way to the remote, or the narrowest to a peer, in bytes; 0 as long as there is none.
    pub underlay_mtu: u32,
    /// Whose MTU that is: `device`, or `route` where that has one of its own and it is smaller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub underlay_mtu_from: Option<String>,
    /// What encapsulation adds, outermost header first.
    pub overhead: Vec<HeaderReport>,
    pub ikey: Option<u32>,
    pub okey: Option<u32>,
    pub icsum: bool,
    pub ocsum: bool,
    pub iseq: bool,
    pub oseq: bool,
    /// The hop limit over IPv6.
    pub ttl: ByteOrInherit,
    /// The traffic class over IPv6.
    pub tos: ByteOrInherit,
    /// Over IPv6 alone: `inherit` where received packets get the outer DSCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dscp: Option<String>,
    /// Over IPv6 alone: a number, `hash` or `inherit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flowlabel: Option<NumberOrWord>,
    /// Over IPv6 alone: a number or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encaplimit: Option<NumberOrWord>,
    /// `gre-in-udp`, and then its source port, a number or `auto`, and whether a UDP checksum is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encap: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encap_sport: Option<NumberOrWord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encap_csum: Option<bool>,
    /// Over IPv6 without meaning.
    pub pmtudisc: bool,
    pub ignore_df: bool,
    /// Passing TCP connections are held to what the tunnel carries.
    pub clamp_mss: bool,
    pub dev: Option<String>,
    /// The device whose frames go into the tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The key is a virtual subnet identifier.
    pub nvgre: bool,
    /// Where the outer packets go, as far as it is known.
    pub next_hop: Option<NextHopReport>,
    /// The other ends of a tunnel without a remote.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerReport>,
    /// With `gre` and `ip6gre` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<KeepaliveReport>,
    /// Came out of the tunnel (decapsulated), on both paths.
    pub rx: Traffic,
    /// Went into the tunnel, on both paths.
    pub tx: Traffic,
    pub fast: PathShare,
    pub slow: PathShare,
    /// TCP SYNs whose maximum segment size was lowered (`clamp_mss`).
    pub mss_clamped: u64,
    pub drops: Reasons,
    /// ICMP errors about outer packets.
    pub errors: ErrorsReport,
    /// Ways that are narrower than the underlay's MTU, as routers on them said.
    pub path_mtu: Vec<PathMtuReport>,
    /// The last word that a remote cannot be reached, while it is believed.
    pub unreachable: Option<UnreachableReport>,
}

/// ICMP errors about a tunnel's outer packets, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorsReport {
    pub too_big: u64,
    pub unreachable: u64,
    pub time_exceeded: u64,
    pub parameter_problem: u64,
}

/// What was learned of the way to an outer address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathMtuReport {
    pub remote: String,
    /// The largest outer packet, in bytes.
    pub mtu: u32,
    pub expires_seconds: u64,
}

/// Who said, and when, that an outer address cannot be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnreachableReport {
    pub remote: String,
    pub from: String,
    /// The code of the ICMP message.
    pub code: u8,
    /// The same in words.
    pub reason: String,
    pub seconds_ago: u64,
}

/// One header that encapsulation adds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeaderReport {
    /// `IPv4`, `IPv6`, `limit` (the encapsulation limit's destination options), `UDP` or `GRE`.
    pub header: String,
    pub bytes: usize,
}

/// Keepalives, ours and the far end's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeepaliveReport {
    /// `up`, `down`, or `off` where none are sent.
    pub state: String,
    /// How long that has been so; 0 with `off`.
    pub seconds: u64,
    /// Seconds from one to the next; none where none are sent.
    pub interval: Option<u16>,
    /// How many in a row remain unanswered before the tunnel is down.
    pub retries: Option<u8>,
    pub sent: u64,
    /// Of those sent, the ones that came back.
    pub received: u64,
    /// Of the far end's, the ones that were sent back to it.
    pub answered: u64,
}

/// One of the other ends of a tunnel without a remote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerReport {
    /// The inner prefix in the peer table; none where a route's gateway is the remote.
    pub address: Option<String>,
    pub remote: String,
    /// `up`, `no-route` or `unresolved`, as a tunnel's.
    pub state: String,
    pub next_hop: Option<NextHopReport>,
}

/// A next hop, as the kernel knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NextHopReport {
    pub device: String,
    /// The gateway, or the remote itself where it is on the link.
    pub via: String,
    /// The link address; none as long as it is not resolved.
    pub lladdr: Option<String>,
}

/// One worker thread.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerReport {
    pub id: u32,
    pub cpu: u32,
    pub rx_packets: u64,
    pub tx_packets: u64,
    /// Packets that the slow path handed over, because this worker owns the sequence numbers.
    pub handed_over: u64,
    /// Received frames that went to other workers, because their flows are theirs, and that came from others so.
    pub spread_out: u64,
    pub spread_in: u64,
    pub punted: u64,
    /// The same by reason.
    pub punts: Reasons,
    pub drops: Reasons,
    /// Unfinished TCP and UDP checksums that were completed.
    pub checksums_completed: u64,
    /// Times round its loop, those in which there was a packet, and times that it went to sleep.
    pub turns: u64,
    pub busy_turns: u64,
    pub sleeps: u64,
    /// How long it was awake, and how long it slept for want of packets. The first as a share of both is its load.
    pub awake_seconds: f64,
    pub asleep_seconds: f64,
    /// Times that a device was found down or gone.
    pub port_errors: u64,
    /// Where this worker's frames are at the moment (free, fill, rx, tx …); their sum never changes.
    pub frames: Reasons,
    pub ports: Vec<PortReport>,
}

/// One AF_XDP socket. The counters are the kernel's (XDP_STATISTICS), but for the first three.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortReport {
    pub device: String,
    pub queue: u32,
    /// `zero-copy`, `copy`, `generic` or `down`.
    pub mode: String,
    /// What the kernel said to zero-copy, where it was tried and refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not_zero_copy: Option<String>,
    /// How the worker polls the device, where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_poll: Option<BusyPollReport>,
    /// Frames that the worker received here.
    pub rx_packets: u64,
    /// Frames that the transmit ring took, and those that it did not take (`tx_ring_full` among the worker's drops).
    pub tx_packets: u64,
    pub tx_ring_full: u64,
    /// Lost for want of a buffer, or longer than one (`rx_dropped`).
    pub rx_dropped: u64,
    /// Lost because the worker did not keep up (`rx_ring_full`).
    pub rx_ring_full: u64,
    /// Times that the kernel found no buffer (`rx_fill_ring_empty_descs`).
    pub fill_ring_empty: u64,
    /// Descriptors that the kernel refused (`rx_invalid_descs`, `tx_invalid_descs`): a defect.
    pub rx_invalid: u64,
    pub tx_invalid: u64,
    /// Times that the kernel looked for something to send and found nothing (`tx_ring_empty_descs`).
    pub tx_ring_empty: u64,
}

/// What an AF_XDP socket says of its busy polling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BusyPollReport {
    /// `SO_BUSY_POLL`.
    pub microseconds: u32,
    /// `SO_BUSY_POLL_BUDGET`: packets in one poll.
    pub budget: u32,
    /// The device's NAPI that is polled; 0 where the kernel does not know it, so that the device works as without.
    pub napi: u32,
}

/// What the slow path did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlowPathReport {
    /// Packets that the kernel routed into tunnel devices.
    pub from_devices: u64,
    /// Packets that the kernel delivered to raw and UDP sockets.
    pub from_network: u64,
    /// Packets that workers handed to the kernel, by reason.
    pub punts: Reasons,
    /// Beyond the first, the packets that one became: for several peers, or in pieces.
    pub copies: u64,
    pub keepalives_sent: u64,
    pub keepalives_received: u64,
    /// Packets that left encapsulated.
    pub into_tunnels: u64,
    /// Packets that went into tunnel devices, and far ends' keepalives that were sent back.
    pub out_of_tunnels: u64,
    /// Packets passed to the worker that owns the sequence numbers.
    pub handed_over: u64,
    /// Packets given back to the kernel through the service device.
    pub returned: u64,
    pub drops: Reasons,
    /// Unfinished TCP and UDP checksums that were completed.
    pub checksums_completed: u64,
    /// Outer packets that left in fragments.
    pub fragmented: u64,
    /// Inner packets that were cut before they were encapsulated.
    pub inner_fragmented: u64,
    /// Packets of the tunnels' protocols that came to this host, have no tunnel here, and were kept from the slow path.
    pub filtered: Reasons,
    pub icmp: IcmpReport,
}

/// ICMP as the slow path hears and says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IcmpReport {
    /// Errors about packets that no tunnel could have sent.
    pub ignored: u64,
    /// Senders that were told that a packet was too big.
    pub answered: u64,
    /// Packets that were too big and whose senders may not be told, or could not be.
    pub not_answered: u64,
    /// The same, whose senders had been told often enough.
    pub rate_limited: u64,
}

/// The mirror of the kernel's tables.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MirrorReport {
    /// Milliseconds since the mirror was last known to agree with the kernel.
    pub age_ms: u64,
    pub links: u64,
    pub addresses: u64,
    /// Prefixes of the main tables.
    pub routes: u64,
    pub neighbours: u64,
    pub nexthops: u64,
    /// Full dumps after an overrun or any doubt.
    pub dumps: u64,
    /// Parts that were read, at the start and ever since.
    pub parts_read: u64,
    /// Messages of the kernel, dumped ones included.
    pub messages: u64,
    /// Times that notifications were lost for want of room.
    pub overruns: u64,
    /// Messages that could not be understood.
    pub undecodable: u64,
}

/// Who answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub config: PathBuf,
    /// Why the router is not as it was configured to be; empty where it is.
    pub problems: Vec<Problem>,
}

/// Something that keeps the router from being as it was configured to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// One line.
    pub what: String,
    /// A part of the router does not turn: it wants a restart. Else it waits for somebody.
    pub hangs: bool,
}

/// A header byte that is fixed, or copied from the inner packet; in JSON a number or `"inherit"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ByteOrInherit {
    #[default]
    Inherit,
    Fixed(u8),
}

/// A setting that is a number, or a word that stands for how it is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NumberOrWord {
    Number(u32),
    Word(String),
}

impl From<FlowLabel> for NumberOrWord {
    fn from(label: FlowLabel) -> Self {
        match label {
            FlowLabel::Hash => NumberOrWord::Word("hash".to_owned()),
            FlowLabel::Inherit => NumberOrWord::Word("inherit".to_owned()),
            FlowLabel::Fixed(n) => NumberOrWord::Number(n),
        }
    }
}

impl From<Ttl> for ByteOrInherit {
    fn from(ttl: Ttl) -> Self {
        match ttl {
            Ttl::Inherit => ByteOrInherit::Inherit,
            Ttl::Fixed(n) => ByteOrInherit::Fixed(n),
        }
    }
}

impl From<Tos> for ByteOrInherit {
    fn from(tos: Tos) -> Self {
        match tos {
            Tos::Inherit => ByteOrInherit::Inherit,
            Tos::Fixed(n) => ByteOrInherit::Fixed(n),
        }
    }
}

impl Serialize for ByteOrInherit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ByteOrInherit::Inherit => serializer.serialize_str("inherit"),
            ByteOrInherit::Fixed(n) => serializer.serialize_u8(*n),
        }
    }
}

impl<'de> Deserialize<'de> for ByteOrInherit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Fixed(u8),
            Word(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Fixed(n) => Ok(ByteOrInherit::Fixed(n)),
            Raw::Word(word) if word == "inherit" => Ok(ByteOrInherit::Inherit),
            Raw::Word(_) => Err(de::Error::custom("expected 0..255 or inherit")),
        }
    }
}

impl From<&TunnelConfig> for TunnelReport {
    /// What the configuration says; state, MTU, next hop and counters are the router's to fill in.
    fn from(tunnel: &TunnelConfig) -> Self {
        let header = |(header, bytes): (&str, usize)| HeaderReport {
            header: header.to_owned(),
            bytes,
        };
        let limit = match tunnel.encaplimit {
            Some(n) => NumberOrWord::Number(n.into()),
            None => NumberOrWord::Word("none".to_owned()),
        };
        let is_v6 = tunnel.mode.kind().underlay == Family::V6;
        TunnelReport {
            name: tunnel.name.clone(),
            mode: tunnel.mode.as_str().to_owned(),
            local: tunnel.local.to_string(),
            remote: match tunnel.remote.is_unspecified() {
                true => "any".to_owned(),
                false => tunnel.remote.to_string(),
            },
            state: "down".to_owned(),
            ikey: tunnel.ikey,
            okey: tunnel.okey,
            icsum: tunnel.icsum,
            ocsum: tunnel.ocsum,
            iseq: tunnel.iseq,
            oseq: tunnel.oseq,
            ttl: tunnel.ttl.into(),
            tos: tunnel.tos.into(),
            overhead: tunnel.headers().parts().map(header).collect(),
            dscp: tunnel.copy_dscp.then(|| "inherit".to_owned()),
            flowlabel: is_v6.then(|| tunnel.flow_label.into()),
            encaplimit: is_v6.then_some(limit),
            encap: tunnel.udp.map(|_| "gre-in-udp".to_owned()),
            encap_sport: tunnel.udp.map(|udp| match udp.source_port {
                Some(port) => NumberOrWord::Number(port.into()),
                None => NumberOrWord::Word("auto".to_owned()),
            }),
            encap_csum: tunnel.udp.map(|udp| udp.checksum),
            pmtudisc: tunnel.pmtudisc,
            ignore_df: tunnel.ignore_df,
            clamp_mss: tunnel.clamp_mss,
            dev: tunnel.dev.clone(),
            keepalive: tunnel
                .mode
                .kind()
                .has_keepalives()
                .then(|| KeepaliveReport {
                    state: "off".to_owned(),
                    interval: tunnel.keepalive.map(|k| k.interval),
                    retries: tunnel.keepalive.map(|k| k.retries),
                    ..KeepaliveReport::default()
                }),
            bridge: tunnel.bridge.clone(),
            nvgre: tunnel.nvgre,
            ..TunnelReport::default()
        }
    }
}

impl Statistics {
    /// The answer to a request on the control socket.
    pub fn answer(mut self, request: &Request) -> Response {
        let name = match request {
            Request::Stats { name } | Request::TunnelShow { name } => name.as_deref(),
            _ => None,
        };
        if let Some(name) = name {
            if !self.tunnels.iter().any(|tunnel| tunnel.name == name) {
                return Response::Error(self.no_such_tunnel(name));
            }
            self.tunnels.retain(|tunnel| tunnel.name == name);
        }
        match request {
            Request::Stats { .. } => Response::ok(&self),
            Request::TunnelShow { .. } => Response::ok(&self.tunnels),
            Request::Top {} => Response::ok(&Glance::from(self)),
            Request::Status {} => Response::ok(&self.router),
            other => Response::Error(format!("{}: not to be read", other.verb())),
        }
    }

    fn no_such_tunnel(&self, name: &str) -> String {
        /// More names than this help nobody.
        const NAMES: usize = 8;
        let mut names: Vec<&str> = self.tunnels.iter().map(|t| t.name.as_str()).collect();
        let more = names.len() > NAMES;
        names.truncate(NAMES);
        let dots = if more { ", …" } else { "" };
        match names.is_empty() {
            true => format!("no tunnel {name:?}: there are none"),
            false => format!("no tunnel {name:?}: there are {}{dots}", names.join(", ")),
        }
    }
}
