//! The process and the kernel: privileges, version, drivers.

use rustix::thread::CapabilitySet;

use super::{
    Finding,
    host::{Host, Seen},
};
use crate::{
    control::{
        config::{Config, Workers, XdpMode},
        privileges,
    },
    tunnel::{Family, GRE_IN_UDP_PORT, Mode},
    xdp,
};

// linux/capability.h
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_IPC_LOCK: u32 = 14;

/// The oldest kernel that this is tested on (Debian 12 has 6.1, Ubuntu 22.04 has 5.15).
const OLDEST_KERNEL: (u32, u32) = (5, 15);

const RUN_AS_ROOT: &str = "run as root, or: setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock+ep \"$(command -v greyhound)\"";

pub(super) fn judge(config: &Config, host: &Host) -> Vec<Finding> {
    let mut findings = vec![capabilities(config, host), kernel(host), tun(host)];
    if config.router.xdp != XdpMode::Off {
        findings.push(af_xdp(host));
        findings.extend(memlock(config, host));
    }
    findings.extend(cpus(config, host));
    findings.extend(kernel_tunnels(config, host));
    findings.extend(udp_ports(host));
    findings.extend(host.running.map(|pid| {
        let control = config.router.control.display();
        Finding::ok(
            "running",
            "host",
            format!("a greyhound (pid {pid}) answers on {control}"),
        )
    }));
    findings
}

fn has(host: &Host, capability: u32) -> bool {
    host.capabilities
        .as_ref()
        .is_ok_and(|set| set >> capability & 1 == 1)
}

fn capabilities(config: &Config, host: &Host) -> Finding {
    let held = match &host.capabilities {
        Ok(held) => CapabilitySet::from_bits_retain(*held),
        Err(why) => {
            return Finding::warn("capabilities", "host", format!("could not look: {why}"));
        }
    };
    let missing = privileges::missing(held, config.needs_bpf());
    if missing.is_empty() {
        return Finding::ok("capabilities", "host", "all that are needed");
    }
    let found = format!("missing: {}", missing.join(", "));
    Finding::fail("capabilities", "host", found).mend(RUN_AS_ROOT)
}

fn kernel(host: &Host) -> Finding {
    let release = format!("Linux {}", host.kernel);
    match host.kernel_version() {
        Some(version) if version < OLDEST_KERNEL => {
            let (major, minor) = OLDEST_KERNEL;
            Finding::fail(
                "kernel",
                "host",
                format!("{release} is older than {major}.{minor}"),
            )
            .mend(format!("boot Linux {major}.{minor} or later"))
        }
        Some(_) => Finding::ok("kernel", "host", release),
        None => Finding::warn(
            "kernel",
            "host",
            format!("{release}: no version that can be read"),
        ),
    }
}

fn tun(host: &Host) -> Finding {
    match &host.tun {
        Ok(()) => Finding::ok("tun", "host", "/dev/net/tun opens"),
        Err(why) => {
            let mend = match has(host, CAP_NET_ADMIN) {
                true => "modprobe tun; in a container: pass /dev/net/tun into it",
                false => RUN_AS_ROOT,
            };
            Finding::fail("tun", "host", format!("/dev/net/tun: {why}")).mend(mend)
        }
    }
}

fn af_xdp(host: &Host) -> Finding {
    match &host.af_xdp {
        Ok(()) => Finding::ok("af_xdp", "host", "a socket opens"),
        Err(why) => {
            let mend = match has(host, CAP_NET_RAW) {
                true => "use a kernel with CONFIG_XDP_SOCKETS=y, or set xdp = \"off\"",
                false => RUN_AS_ROOT,
            };
            Finding::fail("af_xdp", "host", format!("socket(AF_XDP): {why}")).mend(mend)
        }
    }
}

/// The kernel counts what all workers lock, for the user, and refuses what goes beyond (net/xdp/xdp_umem.c).
fn memlock(config: &Config, host: &Host) -> Option<Finding> {
    let limit = host.memlock.filter(|_| !has(host, CAP_IPC_LOCK))?;
    let links = host.sockets(&config.router);
    let workers = links.first()?.queues.0;
    let mtus: Vec<u32> = links.iter().map(|link| link.mtu).collect();
    let needed = xdp::locked_bytes(&mtus)? * u64::from(workers);
    if limit >= needed {
        return None;
    }
    let found = format!(
        "at most {} KiB may be locked, and CAP_IPC_LOCK is missing: {workers} {} {} KiB for packets",
        limit >> 10,
        if workers == 1 {
            "worker locks"
        } else {
            "workers lock"
        },
        needed >> 10
    );
    let mend = "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)";
    Some(Finding::fail("memlock", "host", found).mend(mend))
}

fn cpus(config: &Config, host: &Host) -> Vec<Finding> {
    let (Workers::Cpus(wanted), Ok(online)) = (&config.router.workers, &host.cpus) else {
        return Vec::new();
    };
    let absent: Vec<String> = wanted
        .iter()
        .filter(|cpu| !online.contains(cpu))
        .map(usize::to_string)
        .collect();
    if absent.is_empty() {
        return vec![Finding::ok(
            "workers",
            "host",
            format!("{} CPUs, all online", wanted.len()),
        )];
    }
    let found = format!(
        "workers names CPUs that are not online: {}",
        absent.join(", ")
    );
    vec![Finding::fail("workers", "host", found).mend("choose from: lscpu --online --extended")]
}

/// The kernel's drivers for the kinds that are configured, where they are loaded.
fn kernel_tunnels(config: &Config, host: &Host) -> Vec<Finding> {
    let of = |name: &str| -> &'static [Mode] {
        match name {
            "ip_gre" => &[Mode::Gre, Mode::Gretap],
            "ip6_gre" => &[Mode::Ip6gre, Mode::Ip6gretap],
            "ipip" => &[Mode::Ipip],
            "sit" => &[Mode::Sit],
            "ip6_tunnel" => &[Mode::Ip6ip6, Mode::Ipip6],
            _ => &[],
        }
    };
    let mut modules: Vec<_> = host.kernel_tunnels.iter().collect();
    modules.retain(|name| {
        // In UDP the packets come to our socket alone.
        let mut bare = config.tunnels.iter().filter(|t| t.udp.is_none());
        bare.any(|tunnel| of(name).contains(&tunnel.mode))
    });
    // BPF links of tc programs (`Steer::keep_quiet`).
    let quiet = host
        .kernel_version()
        .is_some_and(|version| version >= (6, 6));
    let finding = |name: &String| match quiet {
        true => {
            let found = format!(
                "the kernel's {name} is loaded: what it says of our tunnels' packets is held back"
            );
            Finding::ok("module", "host", found)
        }
        false => {
            let found = format!(
                "the kernel's {name} is loaded: before Linux 6.6 it answers tunnel packets on the slow path with ICMP unreachable"
            );
            Finding::warn("module", "host", found).mend(format!("modprobe -r {name}"))
        }
    };
    modules.into_iter().map(finding).collect()
}

/// GRE's UDP port, which is ours alone. A running router has it.
fn udp_ports(host: &Host) -> Vec<Finding> {
    let finding = |(family, seen): &(Family, Seen<()>)| {
        let port = format!("UDP port {GRE_IN_UDP_PORT} over {}", family.as_str());
        match (seen, host.running) {
            (Ok(()), _) => Finding::ok("port", "host", format!("{port} is free")),
            (Err(_), Some(_)) => Finding::ok("port", "host", format!("{port} is in use")),
            (Err(why), None) => {
                Finding::fail("port", "host", format!("{port} is not to be had: {why}")).mend(
                    format!("ss -uanp sport = :{GRE_IN_UDP_PORT}; the kernel's: ip fou show"),
                )
            }
        }
    };
    host.udp_ports.iter().map(finding).collect()
}
