//! The forwarding table as data and as text: `greyhound route show`.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// Some routes, in the order of their prefixes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoutePage {
    pub routes: Vec<RouteReport>,
    /// There are more behind the last one.
    pub more: bool,
}

/// One route of the table in use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteReport {
    pub prefix: String,
    /// What becomes of its packets: `unicast`, `local`, `broadcast`, `blackhole` and so on, as iproute2 has it.
    pub kind: String,
    /// `fast`, or `slow`: the kernel forwards.
    pub path: String,
    /// Why the path, or one of the hops, is slow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub hops: Vec<HopReport>,
}

/// Where a route leads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HopReport {
    pub device: String,
    /// The device is one of our tunnels.
    pub tunnel: bool,
    pub via: Option<String>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Its share of the flows, among several.
    pub weight: u32,
}

/// One line, and one for each hop where there are several, as `ip route show` has them.
pub fn line(route: &RouteReport) -> String {
    let mut text = match route.kind.as_str() {
        "unicast" => route.prefix.clone(),
        kind => format!("{kind} {}", route.prefix),
    };
    if let [hop] = &route.hops[..] {
        text += &words(hop);
    }
    let _ = write!(text, "  {}", route.path);
    if let Some(why) = &route.why {
        let _ = write!(text, ": {why}");
    }
    text.push('\n');
    if route.hops.len() > 1 {
        for hop in &route.hops {
            let _ = writeln!(text, "\tnexthop{} weight {}", words(hop), hop.weight);
        }
    }
    text
}

fn words(hop: &HopReport) -> String {
    let mut text = String::new();
    if let Some(via) = &hop.via {
        let _ = write!(text, " via {via}");
    }
    if !hop.device.is_empty() {
        let _ = write!(text, " dev {}", hop.device);
    }
    if hop.mtu > 0 {
        let _ = write!(text, " mtu {}", hop.mtu);
    }
    text
}
