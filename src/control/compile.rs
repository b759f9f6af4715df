//! From the mirror of the kernel to what the workers and the steering program decide by.
//!
//! A plain function of its inputs: no I/O, no clock. What it cannot express exactly as the kernel would do it, it leaves
//! to the kernel.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    config::TunnelConfig,
    mirror::{Best, Link, Lookup, Route, RouteKind, State, Table},
};
use crate::{
    fib::{Adjacency, Egress, Fib, Forwards, NextHop, PortId, PortInfo, RouteTable},
    packet::MacAddr,
    tunnel::{Payload, Shim, Tunnel, TunnelId},
    xdp::{Plan, PortPlan, PrefixAction, TunnelClass, TunnelMatch},
};

/// A device that workers have sockets on; its place in the list is its [`PortId`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub ifindex: u32,
    pub underlay: bool,
    pub overlay: bool,
    /// The steering program sees VLAN tags that the device keeps beside the frame.
    pub sees_tags: bool,
}

/// A configured tunnel and its device in the kernel.
#[derive(Debug, Clone, Copy)]
pub struct TunnelDevice<'a> {
    pub id: TunnelId,
    pub config: &'a TunnelConfig,
    pub ifindex: u32,
}

/// Where a tunnel's outer packets go, as far as the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterHop {
    pub ifindex: u32,
    /// The gateway, or the remote itself where it is on the link.
    pub neighbour: IpAddr,
    pub mac: Option<MacAddr>,
    /// Largest outer packet, in bytes.
    pub mtu: u16,
    /// The route is one that only the kernel can follow (multipath, policy, encapsulation).
    pub kernel_only: bool,
}

/// A tunnel's state at the moment of compilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelStatus {
    /// The tunnel device is there and administratively up.
    pub up: bool,
    /// The tunnel device's MTU; 0 when there is no device.
    pub mtu: u16,
    /// None: the remote cannot be reached.
    pub outer: Option<OuterHop>,
}

impl TunnelStatus {
    /// The word for it in the statistics.
    pub fn word(&self) -> &'static str {
        match (self.up, &self.outer) {
            (false, _) => "down",
            (true, None) => "no-route",
            (true, Some(outer)) if outer.mac.is_none() => "unresolved",
            (true, Some(_)) => "up",
        }
    }
}

/// What a compilation yields.
#[derive(Debug)]
pub struct Compiled {
    pub fib: Fib,
    pub plan: Plan,
    /// In the order of the tunnels given.
    pub tunnels: Vec<TunnelStatus>,
}

/// Compiles the mirror for these devices and tunnels. `known` is the last table's routes, where nothing but neighbours
/// has changed since.
pub fn compile(
    state: &State,
    devices: &[Device],
    tunnels: &[TunnelDevice<'_>],
    known: Option<Arc<RouteTable>>,
) -> Compiled {
    let scene = Scene {
        state,
        devices,
        tunnels,
        by_ifindex: tunnels.iter().map(|t| (t.ifindex, *t)).collect(),
    };
    let statuses: Vec<TunnelStatus> = tunnels.iter().map(|t| scene.status(t)).collect();
    let routes = known.unwrap_or_else(|| Arc::new(scene.routes()));
    let plan = scene.plan(&statuses, &routes);
    let entries = tunnels
        .iter()
        .zip(&statuses)
        .map(|(t, status)| (scene.tunnel(t, status), scene.egress(t, status)));
    let mut fib = Fib::new(scene.ports(), entries, routes);
    for address in state.addresses() {
        fib.add_own(address.ip);
    }
    for (&(ifindex, ip), neighbour) in state.neighbours() {
        if let (Some(port), Some(mac), true) =
            (scene.port(ifindex), neighbour.mac, neighbour.nud.usable())
        {
            fib.add_neighbour(port, ip, mac);
        }
    }
    Compiled {
        fib,
        plan,
        tunnels: statuses,
    }
}

/// The inputs, with an index.
struct Scene<'a> {
    state: &'a State,
    devices: &'a [Device],
    tunnels: &'a [TunnelDevice<'a>],
    by_ifindex: HashMap<u32, TunnelDevice<'a>>,
}

fn clamp(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

impl Scene<'_> {
    fn port(&self, ifindex: u32) -> Option<PortId> {
        let at = self.devices.iter().position(|d| d.ifindex == ifindex)?;
        u16::try_from(at).ok().map(PortId)
    }

    fn forwards(&self, ifindex: u32) -> Forwards {
        Forwards {
            v4: self.state.forwards4(ifindex),
            v6: self.state.forwards6(ifindex),
        }
    }

    /// The MTU of packets that leave by a route.
    fn mtu(&self, route: &Route, oif: u32) -> u16 {
        let device = self.state.link(oif).map_or(0, |link| link.mtu);
        clamp(route.mtu.map_or(device, |metric| metric.min(device)))
    }

    fn status(&self, tunnel: &TunnelDevice<'_>) -> TunnelStatus {
        let link = self.state.link(tunnel.ifindex);
        TunnelStatus {
            up: link.is_some_and(|link| link.up),
            mtu: link.map_or(0, |link| clamp(link.mtu)),
            outer: self.outer_hop(tunnel.config),
        }
    }

    /// Where the kernel sends the outer packets. A route into one of our tunnels is none: the packet would go round
    /// (gre-8).
    fn outer_hop(&self, config: &TunnelConfig) -> Option<OuterHop> {
        let found = self.state.lookup(config.remote)?;
        let route = found.route;
        if found.table == Table::Local || route.kind != RouteKind::Unicast {
            return None;
        }
        let hop = route.hops.iter().find(|hop| !hop.dead)?;
        let bound = config
            .dev
            .as_deref()
            .and_then(|dev| self.state.link_by_name(dev));
        let elsewhere = config.dev.is_some() && bound.map(|link| link.index) != Some(hop.oif);
        if self.by_ifindex.contains_key(&hop.oif) {
            return None;
        }
        let neighbour = hop.gateway.unwrap_or(config.remote);
        Some(OuterHop {
            ifindex: hop.oif,
            neighbour,
            mac: self.state.neighbour(hop.oif, neighbour).and_then(|n| n.mac),
            mtu: self.mtu(route, hop.oif),
            kernel_only: self.is_kernels(&found) || elsewhere,
        })
    }

    /// Whether following a route takes more than its next hop.
    fn is_kernels(&self, found: &Lookup<'_>) -> bool {
        found.conditional || is_kernels(found.route) || self.state.foreign_rules()
    }

    fn tunnel(&self, t: &TunnelDevice<'_>, status: &TunnelStatus) -> Tunnel {
        let dev = (t.config.dev.as_deref()).and_then(|dev| self.state.link_by_name(dev));
        let dev = dev.map(|link| link.index);
        let tunnel = t.config.tunnel(t.id, dev, status.mtu, status.up);
        let room = |mtu: u16| match status.outer {
            Some(outer) => mtu.min(outer.mtu.saturating_sub(t.config.overhead())),
            None => mtu,
        };
        Tunnel {
            clamp_mss: tunnel.clamp_mss.map(room),
            ..tunnel
        }
    }

    fn egress(&self, t: &TunnelDevice<'_>, status: &TunnelStatus) -> Egress {
        let adjacency = status
            .outer
            .filter(|outer| !outer.kernel_only)
            .and_then(|outer| {
                let port = self.port(outer.ifindex)?;
                let device = &self.devices[port.index()];
                let link = self.state.link(outer.ifindex)?;
                (device.underlay && can_send(link)).then_some(Adjacency {
                    port,
                    destination: outer.mac?,
                    source: link.mac?,
                    mtu: outer.mtu,
                })
            });
        Egress {
            adjacency,
            forwards: self.forwards(t.ifindex),
        }
    }

    fn ports(&self) -> Vec<PortInfo> {
        let info = |device: &Device| {
            let link = self.state.link(device.ifindex);
            PortInfo {
                name: device.name.as_str().into(),
                ifindex: device.ifindex,
                mac: link.and_then(|link| link.mac).unwrap_or_default(),
                mtu: link.map_or(0, |link| clamp(link.mtu)),
                underlay: device.underlay,
                overlay: device.overlay,
                forwards: self.forwards(device.ifindex),
                partial_checksums: self.is_veth(device.ifindex),
            }
        };
        self.devices.iter().map(info).collect()
    }

    fn is_veth(&self, ifindex: u32) -> bool {
        let kind = self
            .state
            .link(ifindex)
            .and_then(|link| link.kind.as_deref());
        kind == Some("veth")
    }

    /// The kernel's routes, merged into one longest-prefix match. The kernel asks the local table first, so a route of
    /// the main table beneath a prefix of the local one is never reached.
    fn routes(&self) -> RouteTable {
        let mut table = RouteTable::default();
        // With policy rules the main table does not decide alone.
        if self.state.foreign_rules() {
            return table;
        }
        let local: Vec<(IpNet, Best<'_>)> = (self.state.local_v4().iter())
            .map(|(net, best)| (IpNet::V4(net), best))
            .chain(
                self.state
                    .local_v6()
                    .iter()
                    .map(|(net, best)| (IpNet::V6(net), best)),
            )
            .collect();
        let wide: Vec<IpNet> = (local.iter().map(|(net, _)| *net))
            .filter(|net| net.prefix_len() < net.max_prefix_len())
            .collect();
        let main = (self.state.main_routes_v4())
            .map(|(net, best)| (IpNet::V4(net), best))
            .chain(
                self.state
                    .main_routes_v6()
                    .map(|(net, best)| (IpNet::V6(net), best)),
            );
        for (net, best) in main {
            if !wide.iter().any(|local| local.contains(&net)) {
                table.insert(net, self.next_hop(&best));
            }
        }
        for (net, best) in local {
            let hop = match best.route.kind {
                RouteKind::Local => NextHop::Local,
                _ => NextHop::Kernel,
            };
            table.insert(net, hop);
        }
        table
    }

    fn next_hop(&self, best: &Best<'_>) -> NextHop {
        let route = best.route;
        let [hop] = &route.hops[..] else {
            return NextHop::Kernel;
        };
        if best.conditional || is_kernels(route) || route.kind != RouteKind::Unicast || hop.dead {
            return NextHop::Kernel;
        }
        let mtu = self.mtu(route, hop.oif);
        if let Some(tunnel) = self.by_ifindex.get(&hop.oif) {
            return NextHop::Tunnel {
                id: tunnel.id,
                gateway: hop.gateway,
                mtu,
            };
        }
        let sends = self.state.link(hop.oif).is_some_and(can_send);
        match (self.port(hop.oif).filter(|_| sends), hop.gateway) {
            (Some(port), None) => NextHop::Connected { port, mtu },
            (Some(port), Some(gateway)) => NextHop::Via { port, gateway, mtu },
            (None, _) => NextHop::Kernel,
        }
    }

    fn plan(&self, statuses: &[TunnelStatus], routes: &RouteTable) -> Plan {
        let mut plan = Plan {
            ports: self
                .devices
                .iter()
                .map(|d| (d.ifindex, self.port_plan(d)))
                .collect(),
            addresses: self.state.addresses().map(|a| a.ip).collect(),
            ..Plan::default()
        };
        let own = |local: IpAddr| {
            local.is_unspecified() || plan.addresses.contains(&local) || self.delivers(local)
        };
        plan.tunnels = (self.tunnels.iter().zip(statuses))
            .filter(|(t, status)| status.up && own(t.config.local))
            .flat_map(|(t, _)| matches(t.config))
            .collect();
        let ready: HashMap<TunnelId, u16> = (self.tunnels.iter().zip(statuses))
            .filter_map(|(t, status)| {
                let outer = self.egress(t, status).adjacency.filter(|_| status.up)?;
                Some((t.id, outer.mtu.saturating_sub(t.config.overhead())))
            })
            .collect();
        let (v4, v6) = prefixes(routes, &ready);
        (plan.v4, plan.v6) = (v4, v6);
        plan
    }

    /// A local route makes a whole prefix the router's own, without any address (AnyIP).
    fn delivers(&self, address: IpAddr) -> bool {
        let found = self.state.lookup(address);
        found.is_some_and(|f| f.table == Table::Local && f.route.kind == RouteKind::Local)
    }

    /// A device whose frames the kernel would not simply route gets no role: it is down, enslaved to a bridge or bond, or
    /// carries VLAN devices whose tags the steering program cannot see; and no device has one where policy rules decide.
    fn port_plan(&self, device: &Device) -> PortPlan {
        let Some(link) = self.state.link(device.ifindex) else {
            return PortPlan::default();
        };
        let vlans = || {
            let above = |l: &Link| l.vlan.is_some() && l.link == Some(link.index);
            self.state.links().any(above)
        };
        let fit = link.up
            && link.master.is_none()
            && (device.sees_tags || !vlans())
            && !self.state.foreign_rules();
        let forwards = self.forwards(device.ifindex);
        PortPlan {
            mac: link.mac.unwrap_or_default().0,
            underlay: device.underlay && fit && link.mac.is_some(),
            overlay: device.overlay && fit && link.mac.is_some(),
            forward4: forwards.v4,
            forward6: forwards.v6,
            partial_checksums: self.is_veth(device.ifindex),
        }
    }
}

/// Whether packets get anywhere by a device. Without carrier the kernel keeps the route, drops what it sends and answers
/// the sender when the neighbour stays silent; a permanent neighbour entry outlives the carrier.
fn can_send(link: &Link) -> bool {
    link.up && link.carrier
}

/// How a tunnel's packets name it on receipt: once for every outer protocol that it takes.
fn matches(config: &TunnelConfig) -> impl Iterator<Item = TunnelMatch> + '_ {
    let kind = config.mode.kind();
    let classes = match (kind.shim, config.udp, kind.payload) {
        (Shim::Gre, Some(udp), _) => [
            Some(TunnelClass::GreInUdp {
                zero_checksum: !udp.checksum,
            }),
            None,
        ],
        (Shim::Gre, None, _) => [Some(TunnelClass::Gre), None],
        (Shim::None, _, Payload::Ipv4) => [Some(TunnelClass::Ipv4), None],
        (Shim::None, _, Payload::Ipv6) => [Some(TunnelClass::Ipv6), None],
        (Shim::None, ..) => [Some(TunnelClass::Ipv4), Some(TunnelClass::Ipv6)],
    };
    classes.into_iter().flatten().map(|class| TunnelMatch {
        class,
        local: config.local,
        remote: config.remote,
        key: config.ikey,
    })
}

/// Whether a route asks for more than a next hop that we could take.
fn is_kernels(route: &Route) -> bool {
    route.is_multipath() || route.hops.iter().any(|hop| hop.encap)
}

type Prefixes = (
    BTreeMap<Ipv4Net, PrefixAction>,
    BTreeMap<Ipv6Net, PrefixAction>,
);

/// The routes into tunnels that are ready, and beneath them those that lead elsewhere: nothing that a longer or shorter
/// entry says already.
fn prefixes(routes: &RouteTable, ready: &HashMap<TunnelId, u16>) -> Prefixes {
    let (mut v4, mut v6) = Prefixes::default();
    // Entries that cover the prefix at hand, widest first; a parent always comes before its children.
    let mut above: Vec<(IpNet, PrefixAction)> = Vec::new();
    for (net, hop) in routes.iter() {
        let action = match hop {
            NextHop::Tunnel { id, mtu, .. } => match ready.get(&id) {
                Some(room) => PrefixAction::Tunnel {
                    mtu: mtu.min(*room),
                },
                None => PrefixAction::Kernel,
            },
            _ => PrefixAction::Kernel,
        };
        while above
            .last()
            .is_some_and(|(parent, _)| !parent.contains(&net))
        {
            above.pop();
        }
        let inherited = above
            .last()
            .map_or(PrefixAction::Kernel, |(_, action)| *action);
        if action == inherited {
            continue;
        }
        above.push((net, action));
        match net {
            IpNet::V4(net) => {
                v4.insert(net, action);
            }
            IpNet::V6(net) => {
                v6.insert(net, action);
            }
        }
    }
    (v4, v6)
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
