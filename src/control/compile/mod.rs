//! From the mirror of the kernel to what the workers and the steering program decide by.
//!
//! A plain function of its inputs: no I/O, no clock. What it cannot express exactly as the kernel would do it, it leaves
//! to the kernel. A [`Compiler`] remembers what it has compiled, so that a change costs by its own size; the result is what a
//! new one would give.

mod ends;
mod ports;
mod prefixes;
mod routes;
mod show;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

pub use ends::{OuterHop, PeerStatus, TunnelStatus};
pub use show::Query;

use super::{
    config::TunnelConfig,
    mirror::{Link, Parts, State, Touched},
    path_mtu::PathMtus,
    rules::{Ours, Rules},
};
use crate::{
    fib::{Adjacency, Egress, Fib, OnPort},
    tunnel::{Tunnel, TunnelId},
    xdp::Plan,
};
use prefixes::PrefixChanges;
use routes::RouteCompiler;

/// A device that workers have sockets on, or a VLAN device on one; its place in the list is its
/// [`PortId`](crate::fib::PortId).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub ifindex: u32,
    pub underlay: bool,
    pub overlay: bool,
    /// The steering program sees VLAN tags that the device keeps beside the frame.
    pub sees_tags: bool,
    /// A VLAN device: where it is. That one stands before it.
    pub vlan: Option<OnPort>,
}

/// A configured tunnel and its device in the kernel.
#[derive(Debug, Clone, Copy)]
pub struct TunnelDevice<'a> {
    pub id: TunnelId,
    pub config: &'a TunnelConfig,
    pub ifindex: u32,
    /// The far end answers keepalives, or is not asked.
    pub alive: bool,
    /// What routers said of the ways to its other ends.
    pub paths: &'a PathMtus,
}

/// What there is to compile: all of it, and what is new since the last time.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    pub state: &'a State,
    pub devices: &'a [Device],
    pub tunnels: &'a [TunnelDevice<'a>],
    /// What may have changed of the state; of devices and tunnels, anything but the devices themselves is told by
    /// [`Parts::LINKS`].
    pub what: Parts,
    /// The prefixes and neighbours that may have changed.
    pub touched: &'a Touched,
}

impl<'a> Input<'a> {
    /// What the administrator's policy rules mean to what there is.
    fn rules(&self) -> Rules {
        let state = self.state;
        if !state.foreign_rules() {
            return Rules::default();
        }
        let tunnels = self.tunnels.iter().map(|tunnel| tunnel.ifindex);
        let all = self.devices.iter().map(|d| d.ifindex).chain(tunnels);
        let links: Vec<_> = all.filter_map(|ifindex| state.link(ifindex)).collect();
        let master = |link: &&Link| link.master.and_then(|master| state.link(master));
        let is_vrf = |master: &Link| master.kind.as_deref() == Some("vrf");
        let ours = Ours {
            in_vrf: links.iter().filter_map(master).any(is_vrf),
            devices: links.iter().map(|link| &*link.name).collect(),
            addresses: state.addresses().map(|a| a.ip).collect(),
        };
        Rules::of(state.rules_of_others(), state.lacks_own_rules(), &ours)
    }

    fn scene(&self) -> Scene<'a> {
        let tunnels = self.tunnels.iter();
        Scene {
            rules: self.rules(),
            state: self.state,
            devices: self.devices,
            tunnels: self.tunnels,
            by_ifindex: tunnels.clone().map(|t| (t.ifindex, *t)).collect(),
            by_id: tunnels.map(|t| (t.id, *t)).collect(),
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

/// Compiles the mirror again and again.
#[derive(Debug, Default)]
pub struct Compiler {
    routes: RouteCompiler,
    fib: Fib,
    devices: Vec<Device>,
    ends: Ends,
    rules: Rules,
    /// The last plan, less its prefixes.
    plan: Plan,
    /// The steering program has to be told all prefixes.
    retell: bool,
}

/// What follows from tunnels, their routes and their neighbours.
#[derive(Debug, Default)]
struct Ends {
    statuses: Vec<TunnelStatus>,
    entries: Vec<(Tunnel, Egress)>,
    peers: Vec<((TunnelId, IpAddr), Adjacency)>,
    /// Every outer address, here and there.
    addresses: BTreeSet<IpAddr>,
    /// The neighbours that outer packets go to.
    neighbours: BTreeSet<(u32, IpAddr)>,
}

/// The inputs, with indexes.
struct Scene<'a> {
    rules: Rules,
    state: &'a State,
    devices: &'a [Device],
    tunnels: &'a [TunnelDevice<'a>],
    by_ifindex: HashMap<u32, TunnelDevice<'a>>,
    by_id: HashMap<TunnelId, TunnelDevice<'a>>,
}

impl Compiler {
    /// Takes in what is new, and gives what is in force from now on. The plan's prefixes are told as the difference from the
    /// last one.
    pub fn compile(&mut self, input: Input<'_>) -> Compiled {
        let scene = input.scene();
        let moved = self.devices != input.devices;
        if moved {
            self.devices = input.devices.to_vec();
        }
        let what = if moved { Parts::ALL } else { input.what };
        let routes_only = Parts::ROUTES | Parts::NEIGHBOURS;
        let mut changes = PrefixChanges::default();
        if std::mem::take(&mut self.retell) {
            changes.all();
        }
        let more = !what.without(routes_only).is_empty();
        if more {
            if self.routes.refresh(&scene) {
                changes.all();
            }
            self.fib.set_ports(scene.ports());
            self.fib.set_rules(scene.rules.all);
            self.rules = scene.rules.clone();
            self.fib.set_own(scene.state.addresses().map(|a| a.ip));
            let devices = scene.devices.iter();
            self.plan.ports = devices.map(|d| (d.ifindex, scene.port_plan(d))).collect();
            self.plan.addresses = scene.state.addresses().map(|a| a.ip).collect();
        }
        self.routes.follow(&scene, input.touched, &mut changes);
        self.fib.set_routes(self.routes.table.snapshot());
        let hops_changed = std::mem::take(&mut self.routes.hops_changed);
        if more || hops_changed || self.ends.are_touched(input.touched) {
            self.ends.follow(&scene, &self.routes, &mut self.fib);
            self.plan.tunnels = scene.matches(&self.ends.statuses);
            self.plan.hops = scene.hops(&self.routes.table, &self.ends.statuses);
            for (ifindex, largest) in scene.wires(&self.ends.statuses) {
                if let Some(port) = self.plan.ports.get_mut(&ifindex) {
                    port.wire = Some(largest);
                }
            }
        }
        self.neighbours(&scene, moved, input.touched);
        Compiled {
            fib: self.fib.clone(),
            plan: Plan {
                prefixes: changes.plan(&self.routes.table),
                ..self.plan.clone()
            },
            tunnels: self.ends.statuses.clone(),
        }
    }

    /// What policy rules mean to what was compiled last.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The next plan names all prefixes: the steering program does not have those that it was told.
    pub fn retell_prefixes(&mut self) {
        self.retell = true;
    }

    /// The gateways that workers choose among, as (device, address).
    pub fn gateways_of_several<'a>(
        &'a self,
        state: &'a State,
    ) -> impl Iterator<Item = (u32, IpAddr)> + 'a {
        self.routes.gateways_of_several(state)
    }

    fn neighbours(&mut self, scene: &Scene<'_>, moved: bool, touched: &Touched) {
        match touched.neighbours().filter(|_| !moved) {
            Some(keys) => keys.iter().for_each(|key| self.neighbour(scene, *key)),
            None => {
                self.fib.clear_neighbours();
                let all = scene.state.neighbours();
                all.for_each(|(key, _)| self.neighbour(scene, *key));
            }
        }
    }

    fn neighbour(&mut self, scene: &Scene<'_>, (ifindex, ip): (u32, IpAddr)) {
        let Some(port) = scene.port(ifindex) else {
            return;
        };
        match scene.state.neighbour(ifindex, ip).and_then(|n| n.mac) {
            Some(mac) => self.fib.add_neighbour(port, ip, mac),
            None => self.fib.remove_neighbour(port, ip),
        }
    }
}

impl Ends {
    /// Whether a route or neighbour that may have changed is one on the way to the other ends, or to ourselves.
    fn are_touched(&self, touched: &Touched) -> bool {
        let routes = touched.routes().is_none_or(|nets| {
            let covers = |net: &ipnet::IpNet| {
                let mut within = self.addresses.range(net.network()..=net.broadcast());
                within.next().is_some()
            };
            nets.iter().any(covers)
        });
        let neighbours = || {
            let touched = touched.neighbours();
            touched.is_none_or(|keys| keys.iter().any(|key| self.neighbours.contains(key)))
        };
        routes || neighbours()
    }

    fn follow(&mut self, scene: &Scene<'_>, routes: &RouteCompiler, fib: &mut Fib) {
        self.statuses = scene.statuses(routes.gateways());
        let both = || scene.tunnels.iter().zip(&self.statuses);
        let outers = self.statuses.iter().flat_map(TunnelStatus::outers);
        self.neighbours = outers
            .map(|outer| (outer.ifindex, outer.neighbour))
            .collect();
        let peers = |status: &TunnelStatus| -> Vec<IpAddr> {
            let peers = status.peers.iter().flatten();
            peers.map(|peer| peer.remote).collect()
        };
        let ends = both().flat_map(|(t, status)| {
            let own = [t.config.local, t.config.remote];
            own.into_iter().chain(peers(status))
        });
        self.addresses = ends.collect();
        let entries: Vec<_> = both()
            .map(|(t, status)| (scene.tunnel(t, status), scene.egress(t, status)))
            .collect();
        let peers: Vec<_> = both()
            .filter(|(_, status)| status.sends())
            .flat_map(|(t, status)| status.peers.iter().flatten().map(|peer| (t.id, *peer)))
            .filter_map(|(id, peer)| Some(((id, peer.remote), scene.adjacency(peer.outer)?)))
            .collect();
        if (&entries, &peers) != (&self.entries, &self.peers) {
            (self.entries, self.peers) = (entries, peers);
            fib.set_tunnels(self.entries.iter().cloned());
            fib.set_peers(self.peers.iter().copied());
        }
    }
}

fn clamp(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

impl Scene<'_> {
    /// The MTU of packets that leave by a device, by a route with this metric.
    fn mtu(&self, metric: Option<u32>, oif: u32) -> u16 {
        let device = self.state.link(oif).map_or(0, |link| link.mtu);
        clamp(metric.map_or(device, |metric| metric.min(device)))
    }
}

#[cfg(test)]
mod tests;
