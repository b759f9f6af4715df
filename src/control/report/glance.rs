//! The statistics at a glance: what a live view asks for each second, small enough for ten thousand tunnels.

use serde::{Deserialize, Serialize};

use super::{Reasons, Statistics, Status, Traffic, TunnelReport, WorkerReport};

/// What `greyhound top` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Glance {
    pub tunnels: Vec<TunnelGlance>,
    pub workers: Vec<WorkerReport>,
    /// Packets dropped, whatever the tunnel and the thread.
    pub drops: Reasons,
    pub router: Status,
}

/// The numbers of one tunnel that change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TunnelGlance {
    pub name: String,
    pub state: String,
    pub rx: Traffic,
    pub tx: Traffic,
    /// Of the packets of both directions, those of the fast path.
    pub fast_packets: u64,
    /// Whatever the reason.
    pub drops: u64,
    /// The device's, in bytes.
    pub mtu: u32,
    /// The largest outer packet on the narrowest way, in bytes, where a router said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u32>,
    /// `up` or `down`; none where none are sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<String>,
}

impl From<TunnelReport> for TunnelGlance {
    fn from(tunnel: TunnelReport) -> Self {
        let keepalive = tunnel.keepalive.map(|keepalive| keepalive.state);
        Self {
            name: tunnel.name,
            state: tunnel.state,
            rx: tunnel.rx,
            tx: tunnel.tx,
            fast_packets: tunnel.fast.rx_packets + tunnel.fast.tx_packets,
            drops: tunnel.drops.values().sum(),
            mtu: tunnel.mtu,
            path_mtu: tunnel.path_mtu.iter().map(|path| path.mtu).min(),
            keepalive: keepalive.filter(|state| state != "off"),
        }
    }
}

impl From<Statistics> for Glance {
    fn from(statistics: Statistics) -> Self {
        let tunnels = statistics.tunnels.into_iter();
        Self {
            tunnels: tunnels.map(TunnelGlance::from).collect(),
            workers: statistics.workers,
            drops: statistics.drops,
            router: statistics.router,
        }
    }
}
