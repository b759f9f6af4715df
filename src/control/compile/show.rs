//! The table in use, explained: where each route leads, and why not on the fast path.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use super::{Compiler, Input, Scene, ends::word, routes::alive};
use crate::{
    control::{
        mirror::{Best, Hop, RouteKind},
        report::routes::{HopReport, RoutePage, RouteReport},
    },
    fib::NextHop,
    tunnel::TunnelId,
};

/// Which routes to show.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query {
    /// Those within this prefix, and the one that contains it.
    pub within: Option<IpNet>,
    /// Those behind this one.
    pub after: Option<IpNet>,
    pub limit: usize,
}

type Rooms = HashMap<(TunnelId, IpAddr), u16>;

impl Compiler {
    /// The routes in force.
    pub fn show(&self, input: Input<'_>, query: Query) -> RoutePage {
        let scene = input.scene();
        let rooms = scene.rooms(&self.ends.statuses);
        let mut nets = self.nets(query);
        let more = nets.len() > query.limit;
        nets.truncate(query.limit);
        let routes = nets.iter().map(|net| self.route(&scene, &rooms, *net));
        RoutePage {
            routes: routes.collect(),
            more,
        }
    }

    /// The prefixes to show, and one more where there is one.
    fn nets(&self, query: Query) -> Vec<IpNet> {
        let table = &self.routes.table;
        let (mut v4, mut v6) = (true, true);
        let (mut after4, mut after6) = (None, None);
        match query.after {
            Some(IpNet::V4(net)) => after4 = Some(net),
            Some(IpNet::V6(net)) => (after6, v4) = (Some(net), false),
            None => {}
        }
        let (mut within4, mut within6) = (None, None);
        match query.within.map(|net| net.trunc()) {
            Some(IpNet::V4(net)) => (within4, v6) = (Some(net), false),
            Some(IpNet::V6(net)) => (within6, v4) = (Some(net), false),
            None => {}
        }
        let mut nets: Vec<IpNet> = Vec::new();
        if query.after.is_none() {
            let above = within4.and_then(|net| table.v4().parent(net));
            nets.extend(above.map(|(net, _)| IpNet::V4(net)));
            let above = within6.and_then(|net| table.v6().parent(net));
            nets.extend(above.map(|(net, _)| IpNet::V6(net)));
        }
        let all4 = table.v4().range(after4, within4).filter(|_| v4);
        let all6 = table.v6().range(after6, within6).filter(|_| v6);
        let all = all4.map(|(net, _)| IpNet::V4(net));
        let all = all.chain(all6.map(|(net, _)| IpNet::V6(net)));
        nets.extend(all.take(query.limit + 1));
        nets
    }

    fn route(&self, scene: &Scene<'_>, rooms: &Rooms, net: IpNet) -> RouteReport {
        let mut report = RouteReport {
            prefix: net.to_string(),
            path: "slow".to_owned(),
            ..RouteReport::default()
        };
        let Some(best) = scene.best(net) else {
            report.why = Some("it is about to go".to_owned());
            return report;
        };
        let hops = alive(scene.state.hops(best.route));
        report.kind = kind_word(best.route.kind);
        report.hops = hops
            .iter()
            .map(|hop| scene.hop(hop, best.route.mtu))
            .collect();
        if let Some(why) = scene.kernels(&best, &hops) {
            report.why = Some(why);
            return report;
        }
        let whys: Vec<Option<String>> = hops
            .iter()
            .map(|hop| self.slow(scene, rooms, hop, best.route.mtu))
            .collect();
        if whys.iter().any(Option::is_none) {
            report.path = "fast".to_owned();
        }
        let whys: Vec<String> = whys.into_iter().flatten().collect();
        report.why = (!whys.is_empty()).then(|| whys.join(", "));
        report
    }

    /// Why a hop that workers could take is not taken by them.
    fn slow(
        &self,
        scene: &Scene<'_>,
        rooms: &Rooms,
        hop: &Hop,
        mtu: Option<u32>,
    ) -> Option<String> {
        match scene.single(hop, mtu) {
            NextHop::Tunnel { id, gateway, .. } => {
                if scene.room(rooms, (id, gateway)).is_some() {
                    return None;
                }
                self.tunnel_not_ready(scene, id, gateway)
            }
            NextHop::Via { gateway, .. } => {
                let entry = scene.state.neighbour(hop.oif, gateway);
                let known = entry.is_some_and(|entry| entry.mac.is_some());
                (!known).then(|| unresolved(gateway, &scene.name(hop.oif)))
            }
            _ => None,
        }
    }

    fn tunnel_not_ready(
        &self,
        scene: &Scene<'_>,
        id: TunnelId,
        gateway: Option<IpAddr>,
    ) -> Option<String> {
        let at = scene.tunnels.iter().position(|t| t.id == id)?;
        let (config, status) = (scene.tunnels[at].config, self.ends.statuses.get(at)?);
        let name = &config.name;
        if !status.up {
            return Some(format!("{name} is down"));
        }
        let Some(remote) = scene.remote(id, gateway) else {
            return Some(format!("{name} has no peer for it"));
        };
        let peers = status.peers.iter().flatten();
        let outer = match peers.clone().find(|peer| peer.remote == remote) {
            Some(peer) => peer.outer,
            None => status.outer,
        };
        Some(match (word(outer.as_ref()), outer) {
            ("unresolved", Some(outer)) => unresolved(outer.neighbour, &scene.name(outer.ifindex)),
            (_, Some(outer)) if outer.kernel_only => {
                format!("only the kernel can follow the route to {remote}")
            }
            (_, Some(outer)) => format!(
                "{} is no underlay device of the fast path, or has no carrier",
                scene.name(outer.ifindex)
            ),
            (_, None) if remote.is_unspecified() => format!("{name} has no peer that is ready"),
            (_, None) => format!("no route to {remote}"),
        })
    }
}

fn unresolved(neighbour: IpAddr, device: &str) -> String {
    format!("{neighbour} on {device} has no link address yet")
}

/// The word of iproute2 for what becomes of packets.
fn kind_word(kind: RouteKind) -> String {
    match kind {
        RouteKind::Other(n) => n.to_string(),
        known => format!("{known:?}").to_lowercase(),
    }
}

impl Scene<'_> {
    /// The mirror's route for a prefix of the table in force.
    fn best(&self, net: IpNet) -> Option<Best<'_>> {
        let state = self.state;
        match net {
            IpNet::V4(net) => (state.local_v4().best(net)).or_else(|| state.main_v4().best(net)),
            IpNet::V6(net) => (state.local_v6().best(net)).or_else(|| state.main_v6().best(net)),
        }
    }

    fn name(&self, ifindex: u32) -> String {
        let link = self.state.link(ifindex);
        link.map_or_else(|| ifindex.to_string(), |link| link.name.to_string())
    }

    fn hop(&self, hop: &Hop, mtu: Option<u32>) -> HopReport {
        HopReport {
            device: match hop.oif {
                0 => String::new(),
                oif => self.name(oif),
            },
            tunnel: self.by_ifindex.contains_key(&hop.oif),
            via: hop.gateway.map(|ip| ip.to_string()),
            mtu: self.mtu(mtu, hop.oif).into(),
            weight: hop.weight.into(),
        }
    }

    /// Why only the kernel can follow a route.
    fn kernels(&self, best: &Best<'_>, hops: &[Hop]) -> Option<String> {
        let route = best.route;
        if self.rules.all {
            return Some("policy rules decide; see `ip rule`".to_owned());
        }
        if route.kind != RouteKind::Unicast {
            return Some("the kernel's".to_owned());
        }
        if best.conditional {
            return Some("other routes of the prefix depend on TOS or source".to_owned());
        }
        if hops.is_empty() {
            return Some(match route.nexthop_id {
                Some(id) => format!("nexthop object {id} has no plain hops"),
                None => "no hop is alive".to_owned(),
            });
        }
        let odd = hops
            .iter()
            .find(|hop| self.single(hop, route.mtu) == NextHop::Kernel)?;
        let device = self.name(odd.oif);
        Some(if odd.encap {
            format!("the kernel encapsulates on {device}")
        } else if self.port(odd.oif).is_none() {
            format!("{device} is no device of the fast path")
        } else {
            format!("{device} has no carrier")
        })
    }
}
