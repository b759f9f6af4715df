//! What would become of a packet, as data and as text: `greyhound trace`.

use std::{
    fmt::{self, Write},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use super::{NextHopReport, routes, routes::RouteReport};

/// The packet that is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The device that it comes in by; a tunnel: it comes out of that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Of IP; without one an echo request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    pub sport: u16,
    pub dport: u16,
    /// IP header and all, in bytes.
    pub size: u16,
    pub ttl: u8,
    pub tos: u8,
    /// IPv4: don't fragment.
    pub df: bool,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceReport {
    /// As it comes in; out of a tunnel: with its outer header.
    pub packet: PacketReport,
    pub from: String,
    /// The steering program's answer; none where there is no fast path.
    pub steering: Option<String>,
    /// The longest match of the table in use.
    pub route: Option<RouteReport>,
    /// The tunnel that it goes into.
    pub tunnel: Option<String>,
    /// The packet inside, where it came out of a tunnel.
    pub inner: Option<PacketReport>,
    /// As it leaves; none where nothing leaves, or only the kernel knows.
    pub leaves: Option<PacketReport>,
    pub next_hop: Option<NextHopReport>,
    /// `sent`, `kernel` (which forwards, answers or delivers) or `dropped`.
    pub verdict: String,
    /// `fast` or `slow`.
    pub path: String,
    /// The counter that such a packet raises, where it is not sent on the fast path.
    pub reason: Option<String>,
    /// What that means.
    pub meaning: String,
}

/// A packet's headers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PacketReport {
    pub source: String,
    pub destination: String,
    pub protocol: u8,
    pub bytes: u32,
    /// The hop limit over IPv6.
    pub ttl: u8,
    /// The traffic class over IPv6.
    pub tos: u8,
    pub df: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
}

/// What `--protocol` takes, and how protocols are shown.
pub const PROTOCOLS: &[(&str, u8)] = &[
    ("icmp", 1),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("icmpv6", 58),
    ("ospf", 89),
];

impl fmt::Display for PacketReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}  ", self.source, self.destination)?;
        match PROTOCOLS
            .iter()
            .find(|(_, number)| *number == self.protocol)
        {
            Some((name, _)) => f.write_str(name)?,
            None => write!(f, "protocol {}", self.protocol)?,
        }
        if let (Some(sport), Some(dport)) = (self.sport, self.dport) {
            write!(f, " {sport} > {dport}")?;
        }
        write!(f, "  {} bytes ttl {}", self.bytes, self.ttl)?;
        if self.tos != 0 {
            write!(f, " tos {:#x}", self.tos)?;
        }
        if self.df {
            f.write_str(" df")?;
        }
        if let Some(key) = self.key {
            write!(f, " key {key}")?;
        }
        if let Some(sequence) = self.sequence {
            write!(f, " seq {sequence}")?;
        }
        Ok(())
    }
}

/// One line for each step.
pub fn text(report: &TraceReport) -> String {
    let mut text = format!("{}  from {}\n", report.packet, report.from);
    let mut line = |name: &str, words: &str| {
        let _ = writeln!(text, "    {name:<9}{words}");
    };
    if let Some(steering) = &report.steering {
        line("steering", steering);
    }
    if let Some(inner) = &report.inner {
        line("inside", &inner.to_string());
    }
    if let Some(route) = &report.route {
        line("route", routes::line(route).trim_end());
    }
    if let Some(tunnel) = &report.tunnel {
        line("tunnel", tunnel);
    }
    if let Some(leaves) = &report.leaves {
        line("leaves", &leaves.to_string());
    }
    if let Some(hop) = &report.next_hop {
        let mut words = format!("dev {}", hop.device);
        if !hop.via.is_empty() {
            words = format!("via {} {words}", hop.via);
        }
        if let Some(lladdr) = &hop.lladdr {
            let _ = write!(words, " lladdr {lladdr}");
        }
        line("next hop", &words);
    }
    let reason = report.reason.as_ref();
    let reason = reason.map_or(String::new(), |reason| format!(" ({reason})"));
    let words = format!("{}{reason}: {}", report.verdict, report.meaning);
    line(&report.path, &words);
    text
}
