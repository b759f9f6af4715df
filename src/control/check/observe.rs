//! Looking at the host: /proc, /sys and what a socket tells. Netlink is in [`netlink`](super::netlink), programs that are
//! asked in [`programs`](super::programs). Nothing is changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};

use super::{
    host::{Card, Host, IpSettings, Link, Seen},
    netlink, programs, xfrm,
};
use crate::{
    control::{
        accelerate::{self, Found},
        accelerated::settings as settings_of_host,
        config::{Accelerate, Config, XdpMode},
        mirror::{Monitor, Options},
        placement::{self, cpu_list},
        report::Status,
        socket::{Client, Request},
    },
    tunnel::{Family, GRE_IN_UDP_PORT},
    xdp::{self, HugePages},
};

/// AF_XDP (linux/socket.h).
const AF_XDP: i32 = 44;
/// The kernel's drivers for the kinds of tunnel that there are here.
const TUNNEL_MODULES: &[&str] = &["ip_gre", "ip6_gre", "ipip", "sit", "ip6_tunnel"];

/// Everything that [`judge`](super::judge) wants to know.
pub(super) async fn host(config: &Config) -> Host {
    let mut tables = netlink::tables(config).await;
    if let Ok(links) = &mut tables.links {
        links.iter_mut().for_each(complete);
    }
    let mut host = Host {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        capabilities: capabilities(),
        memlock: getrlimit(Resource::Memlock).current,
        tun: tun(),
        af_xdp: af_xdp(),
        cpus: cpus(),
        kernel_tunnels: kernel_tunnels(),
        accelerated: accelerated(config).await,
        running: running(config),
        udp_ports: udp_ports(config),
        offloads: BTreeMap::new(),
        cards: BTreeMap::new(),
        nodes: placement::nodes(Path::new(placement::SYS)),
        huge_pages: fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| HugePages::of(&text)),
        connections: number("/proc/sys/net/netfilter/nf_conntrack_count"),
        sampler: fs::exists("/sys/module/psample").unwrap_or(false),
        settings: settings(config),
        chains: programs::chains(),
        legacy_tables: legacy_tables(),
        policies: xfrm::policies(),
        links: tables.links,
        addresses: tables.addresses,
        rules: tables.rules,
        qdiscs: tables.qdiscs,
        routes: tables.routes,
    };
    if config.router.xdp != XdpMode::Off {
        let sockets = host.sockets(&config.router);
        let physical = sockets.iter().filter(|link| link.kind.is_none());
        let names: Vec<String> = physical.map(|link| link.name.clone()).collect();
        let offloads = names
            .iter()
            .map(|name| (name.clone(), programs::offloads(name)));
        host.offloads = offloads.collect();
        let cards = names.iter().map(|name| (name.clone(), card(name)));
        host.cards = cards.collect();
    }
    host
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn card(name: &str) -> Card {
    let of_device = |file: &str| number(&format!("/sys/class/net/{name}/{file}"));
    Card {
        node: placement::node_of(Path::new(placement::SYS), name),
        ring: programs::ring(name),
        interrupts: interrupts(name),
        spreads_over: programs::queues_of_rss(name),
        sees_udp_ports: ["udp4", "udp6"].map(|kind| programs::hashes_ports(name, kind)),
        deferral: of_device("napi_defer_hard_irqs").zip(of_device("gro_flush_timeout")),
    }
}

/// A card's message interrupts, and where they go (Documentation/core-api/irq/irq-affinity.rst).
fn interrupts(name: &str) -> Vec<(u32, Vec<usize>)> {
    let entries = fs::read_dir(format!("/sys/class/net/{name}/device/msi_irqs"));
    let names = entries.into_iter().flatten();
    let numbers = names.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut all: Vec<(u32, Vec<usize>)> = numbers
        .filter_map(|irq: u32| {
            let list = format!("/proc/irq/{irq}/effective_affinity_list");
            Some((irq, cpu_list(fs::read_to_string(list).ok()?.trim())?))
        })
        .collect();
    all.sort_unstable();
    all
}

fn capabilities() -> Seen<u64> {
    let status = fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| "no CapEff line in /proc/self/status".to_owned())
}

fn tun() -> Seen<()> {
    let options = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    options.map(|_| ()).map_err(|e| e.to_string())
}

fn af_xdp() -> Seen<()> {
    let socket = Socket::new(Domain::from(AF_XDP), Type::RAW, None);
    socket.map(|_| ()).map_err(|e| e.to_string())
}

fn cpus() -> Seen<Vec<usize>> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").map_err(|e| e.to_string())?;
    cpu_list(text.trim()).ok_or_else(|| format!("cannot read {text:?} as a list of CPUs"))
}

fn kernel_tunnels() -> Vec<String> {
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let names = modules.lines().filter_map(|line| line.split(' ').next());
    names
        .filter(|name| TUNNEL_MODULES.contains(name))
        .map(str::to_owned)
        .collect()
}

/// As the router itself will find them.
async fn accelerated(config: &Config) -> Seen<Vec<Found>> {
    if config.router.accelerate == Accelerate::None {
        return Ok(Vec::new());
    }
    let monitor = Monitor::open(Options::default()).await;
    let monitor = monitor.map_err(|e| e.to_string())?;
    Ok(accelerate::find(
        monitor.state(),
        config,
        settings_of_host(),
    ))
}

fn running(config: &Config) -> Option<u32> {
    let mut client = Client::connect(&config.router.control).ok()?;
    let status: Status = client.ask(&Request::Status {}).ok()?;
    Some(status.pid)
}

/// Asks for the port and gives it back at once: nobody else can say for sure whether it is to be had.
fn udp_ports(config: &Config) -> Vec<(Family, Seen<()>)> {
    let needs = |family: &Family| {
        let mut tunnels = config.tunnels.iter();
        tunnels.any(|tunnel| tunnel.udp.is_some() && tunnel.mode.kind().underlay == *family)
    };
    let any = |family| match family {
        Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let ask = |family| {
        let socket = Socket::new(
            Domain::for_address((any(family), 0).into()),
            Type::DGRAM,
            None,
        )?;
        if family == Family::V6 {
            socket.set_only_v6(true)?;
        }
        socket.bind(&SocketAddr::new(any(family), GRE_IN_UDP_PORT).into())
    };
    let families = [Family::V4, Family::V6].into_iter().filter(needs);
    let seen = families.map(|family| (family, ask(family).map_err(|e| e.to_string())));
    seen.collect()
}

fn settings(config: &Config) -> BTreeMap<String, IpSettings> {
    let tunnels = config.tunnels.iter().map(|tunnel| tunnel.name.as_str());
    let mut names: BTreeSet<&str> = config.router.devices().into_iter().chain(tunnels).collect();
    names.insert("all");
    let read = |path: String| fs::read_to_string(path).ok()?.trim().parse().ok();
    let of = |name: &str| IpSettings {
        forwarding_v4: read(format!("/proc/sys/net/ipv4/conf/{name}/forwarding")),
        forwarding_v6: read(format!("/proc/sys/net/ipv6/conf/{name}/forwarding")),
        rp_filter: read(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")),
    };
    names
        .into_iter()
        .map(|name| (name.to_owned(), of(name)))
        .collect()
}

fn legacy_tables() -> Vec<String> {
    let mut tables = Vec::new();
    for (file, family) in [("ip_tables_names", "IPv4"), ("ip6_tables_names", "IPv6")] {
        let names = fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default();
        tables.extend(names.lines().map(|table| format!("{family} {table}")));
    }
    tables
}

/// Adds what netlink does not tell: how many queues are in use (it tells how many there could be), the name of the XDP
/// program, and what the driver offers to one.
fn complete(link: &mut Link) {
    if let Some((id, name)) = &mut link.xdp {
        *name = programs::bpf_name(*id);
    }
    link.in_pieces = xdp::takes_pieces(link.index);
    let device = format!("/sys/class/net/{}", link.name);
    // /sys may be another namespace's: believe it only where it means the same device.
    let index = fs::read_to_string(format!("{device}/ifindex")).unwrap_or_default();
    if index.trim() != link.index.to_string() {
        return;
    }
    let Ok(entries) = fs::read_dir(format!("{device}/queues")) else {
        return;
    };
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    let count = |prefix: &[u8]| {
        let of_kind = names
            .iter()
            .filter(|name| name.as_encoded_bytes().starts_with(prefix));
        of_kind.count() as u32
    };
    link.queues = (count(b"rx-"), count(b"tx-"));
}
