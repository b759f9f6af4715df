//! The configuration file, from text to values that make sense together.
//!
//! Parsing is a plain function of the text: no system call, no look at the host (that is [`check`](super::check)'s job).
//! Nothing is ignored: a key that this version does not know, or knows only by name, is refused. Every refusal is one
//! line that says where, what was found and what would be accepted, and comes before anything is touched.

mod encap;
mod ends;
mod frames;
mod inside;
mod keepalive;
pub mod keys;
mod neighbours;
mod reader;
mod router;
mod rules;
mod tunnel;
mod words;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use thiserror::Error;

use crate::{
    packet::{GreKey, gre},
    tunnel::{
        self as family, Family, FlowLabel, Mode, Overhead, Peers, Tos, Ttl, Tunnel, TunnelId,
        UdpEncap,
    },
};

use neighbours::Known;
use reader::{Section, Source};

/// Where `greyhound` looks for its configuration when it is not told.
pub const DEFAULT_CONFIG: &str = "/etc/greyhound/greyhound.toml";
/// Where the running router answers when the configuration does not say.
pub const DEFAULT_CONTROL: &str = "/run/greyhound/control.sock";

/// A whole configuration, checked for everything that can be checked without a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub router: RouterConfig,
    /// In the file's order; names are unique.
    pub tunnels: Vec<TunnelConfig>,
}

/// The `[router]` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// Devices that carry tunnel traffic; never empty.
    pub underlay: Vec<String>,
    /// Devices that face the inner networks; empty only with [`XdpMode::Off`].
    pub overlay: Vec<String>,
    pub workers: Workers,
    pub xdp: XdpMode,
    /// The control socket's path.
    pub control: PathBuf,
    /// Tunnel devices survive a crash.
    pub persist: bool,
    /// Tunnel devices of the kernel's whose packets are taken over.
    pub accelerate: Accelerate,
    /// Where monitoring systems are answered, if they are.
    pub metrics: Option<SocketAddr>,
    /// Whether flows that come by one queue are spread over the workers.
    pub spread: Spread,
    /// Workers poll their devices and never sleep.
    pub busy_poll: bool,
}

/// Whether the worker that receives a tunnel packet leaves its flow to others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Spread {
    /// While tunnel packets come by one queue alone.
    #[default]
    Auto,
    On,
    Off,
}

/// Which of the kernel's own tunnel devices get a fast path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Accelerate {
    #[default]
    None,
    /// All that can be done alike.
    All,
    /// Those of these names; not empty, no name twice.
    Named(Vec<String>),
}

impl Accelerate {
    /// Whether the device of this name is meant.
    pub fn includes(&self, name: &str) -> bool {
        match self {
            Accelerate::None => false,
            Accelerate::All => true,
            Accelerate::Named(names) => names.iter().any(|other| other == name),
        }
    }
}

/// Which CPUs the workers run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workers {
    Auto,
    /// One worker per CPU, in this order; not empty, no CPU twice.
    Cpus(Vec<usize>),
}

/// How packets are taken from the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// Zero-copy, then copy, then generic.
    Auto,
    ZeroCopy,
    Copy,
    Generic,
    /// The slow path alone.
    Off,
}

/// A tunnel device's MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtu {
    /// The underlay's MTU less the overhead.
    Auto,
    Fixed(u16),
}

/// How a tunnel's far end is asked whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Seconds from one keepalive to the next, 1..=32767.
    pub interval: u16,
    /// How many in a row remain unanswered before the tunnel is down, 1..=255.
    pub retries: u8,
}

/// One `[[tunnel]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelConfig {
    /// A valid interface name, 1 to 15 bytes.
    pub name: String,
    pub mode: Mode,
    /// Unicast, of the family that the mode wants.
    pub local: IpAddr,
    /// As `local`, and another; or a multicast group; or unspecified, when peers and routes say where packets go.
    pub remote: IpAddr,
    /// None beside a remote.
    pub peers: Arc<Peers>,
    /// Keys, checksums and sequence numbers: none but with the GRE kinds.
    pub ikey: Option<u32>,
    pub okey: Option<u32>,
    pub icsum: bool,
    pub ocsum: bool,
    pub iseq: bool,
    pub oseq: bool,
    /// Over Ethernet kinds: the keys, which are the same, are a virtual subnet identifier.
    pub nvgre: bool,
    /// The hop limit over IPv6.
    pub ttl: Ttl,
    /// The traffic class over IPv6.
    pub tos: Tos,
    /// Over IPv6 alone, as iproute2 has it: received packets get the outer DSCP.
    pub copy_dscp: bool,
    /// Over IPv4 without meaning.
    pub flow_label: FlowLabel,
    /// None over IPv4.
    pub encaplimit: Option<u8>,
    /// With the GRE kinds alone.
    pub udp: Option<UdpEncap>,
    /// Over IPv4 alone: IPv6 routers do not fragment.
    pub pmtudisc: bool,
    pub ignore_df: bool,
    pub mtu: Mtu,
    /// Passing TCP connections are held to what the tunnel carries.
    pub clamp_mss: bool,
    /// None but with `gre` and `ip6gre`.
    pub keepalive: Option<Keepalive>,
    /// The underlay device that the tunnel is bound to. A tunnel to a group has one.
    pub dev: Option<String>,
    /// Put on the device: interface address and prefix length.
    pub address: Vec<IpNet>,
    /// Installed through the device; no host bits set.
    pub routes: Vec<IpNet>,
    /// Of Ethernet kinds: the overlay device whose frames go into the tunnel, and nowhere else.
    pub bridge: Option<String>,
    /// A device of the kernel's own, which no configuration file names.
    pub kernels: bool,
}

/// Why a configuration was refused; one line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    #[error("{file}: cannot read the configuration: {reason}")]
    Unreadable { file: String, reason: String },
    #[error("{file}:{line}: {message}")]
    Refused {
        file: String,
        /// Counted from 1.
        line: usize,
        message: String,
    },
    /// What a verb of the command line said about a tunnel.
    #[error("{0}")]
    Words(String),
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let file = path.display().to_string();
        match fs::read_to_string(path) {
            Ok(text) => Config::parse(&text, &file),
            Err(e) => Err(ConfigError::Unreadable {
                file,
                reason: e.to_string(),
            }),
        }
    }

    /// Checks the text of a configuration; `file` is its name for messages.
    pub fn parse(text: &str, file: &str) -> Result<Config, ConfigError> {
        let source = Source { file, text };
        let document = source.parse()?;
        let root = Section::root(&source, document.get_ref());
        root.only(&["router", "tunnel"], &[])?;
        let router = router::parse(&root.table("router")?)?;
        let mut tunnels: Vec<TunnelConfig> = Vec::new();
        let mut known = Known::default();
        for section in root.tables("tunnel")? {
            let tunnel = one_tunnel(&section, &router)?;
            for place in known.beside(&tunnel) {
                rules::tunnel_beside(&section, &tunnel, &tunnels[place])?;
            }
            known.add(&tunnel);
            tunnels.push(tunnel);
        }
        tunnels.shrink_to_fit();
        Ok(Config { router, tunnels })
    }

    #[cfg(test)]
    fn parse_comparing_each(text: &str, file: &str) -> Result<Config, ConfigError> {
        let source = Source { file, text };
        let document = source.parse()?;
        let root = Section::root(&source, document.get_ref());
        let router = router::parse(&root.table("router")?)?;
        let mut tunnels: Vec<TunnelConfig> = Vec::new();
        for section in root.tables("tunnel")? {
            let tunnel = one_tunnel(&section, &router)?;
            for other in &tunnels {
                rules::tunnel_beside(&section, &tunnel, other)?;
            }
            tunnels.push(tunnel);
        }
        Ok(Config { router, tunnels })
    }

    /// Adds a tunnel in the words of `ip tunnel add`, by the rules that the file's tunnels obey.
    pub fn add_tunnel(&mut self, name: &str, words: &[String]) -> Result<(), ConfigError> {
        let text = words::to_toml(name, words).map_err(ConfigError::Words)?;
        let source = Source {
            file: "",
            text: &text,
        };
        let parsed = source.parse().and_then(|document| {
            let root = Section::root(&source, document.get_ref());
            let sections = root.tables("tunnel")?;
            let section = sections.first().ok_or_else(|| root.error("no tunnel"))?;
            let tunnel = one_tunnel(section, &self.router)?;
            for other in &self.tunnels {
                rules::tunnel_beside(section, &tunnel, other)?;
            }
            Ok(tunnel)
        });
        match parsed {
            Ok(tunnel) => self.tunnels.push(tunnel),
            // There is no file, and the line is none that anybody wrote.
            Err(ConfigError::Refused { message, .. }) => return Err(ConfigError::Words(message)),
            Err(other) => return Err(other),
        }
        Ok(())
    }
}

/// A tunnel that obeys every rule for itself.
fn one_tunnel(section: &Section<'_>, router: &RouterConfig) -> Result<TunnelConfig, ConfigError> {
    let mut tunnel = tunnel::parse(section)?;
    rules::tunnel_alone(section, &tunnel)?;
    rules::group_device(section, &mut tunnel, router)?;
    rules::tunnel_on_router(section, &tunnel, router)?;
    Ok(tunnel)
}

impl Config {
    /// Whether it takes BPF programs, and the right to load them.
    pub fn needs_bpf(&self) -> bool {
        self.router.xdp != XdpMode::Off || self.tunnels.iter().any(|t| t.bridge.is_some())
    }
}

impl RouterConfig {
    /// Every device that the router takes packets from, once, underlay first.
    pub fn devices(&self) -> Vec<&str> {
        let mut devices: Vec<&str> = Vec::new();
        for device in self.underlay.iter().chain(&self.overlay) {
            if !devices.contains(&device.as_str()) {
                devices.push(device);
            }
        }
        devices
    }
}

impl XdpMode {
    /// The word in the configuration file.
    pub fn as_str(self) -> &'static str {
        match self {
            XdpMode::Auto => "auto",
            XdpMode::ZeroCopy => "zero-copy",
            XdpMode::Copy => "copy",
            XdpMode::Generic => "generic",
            XdpMode::Off => "off",
        }
    }
}

impl TunnelConfig {
    /// The unicast addresses outside that the configuration names: the remote, or each peer's once.
    pub fn remotes(&self) -> &[IpAddr] {
        match self.remote {
            group if group.is_multicast() => &[],
            any if any.is_unspecified() => self.peers.remotes(),
            _ => std::slice::from_ref(&self.remote),
        }
    }

    /// Bytes by which the tunnel device's MTU is smaller than the underlay's: what encapsulation adds, and the header of an
    /// inner frame.
    pub fn overhead(&self) -> u16 {
        let headers = self.headers();
        // At most 40 + 8 + 8 + 16 + 14.
        (headers.total() + headers.ethernet) as u16
    }

    /// The same header by header.
    pub fn headers(&self) -> Overhead {
        let gre = gre::header_len(self.okey.is_some(), self.ocsum, self.oseq);
        family::overhead(self.mode, self.encaplimit, self.udp.is_some(), gre)
    }

    /// Whether outer packets are not to be cut on their way, whatever is inside.
    pub fn sends_whole(&self) -> bool {
        self.mode.kind().underlay == Family::V6 || self.pmtudisc
    }

    /// The tunnel as packets see it: in slot `id`, bound to the device with index `dev`, with its own device's MTU and
    /// administrative state.
    pub fn tunnel(&self, id: TunnelId, dev: Option<u32>, mtu: u16, up: bool) -> Tunnel {
        Tunnel {
            id,
            name: self.name.as_str().into(),
            mode: self.mode,
            local: self.local,
            remote: self.remote,
            peers: self.peers.clone(),
            ikey: self.ikey.map(GreKey),
            okey: self.okey.map(GreKey),
            nvgre: self.nvgre,
            icsum: self.icsum,
            ocsum: self.ocsum,
            iseq: self.iseq,
            oseq: self.oseq,
            ttl: self.ttl,
            tos: self.tos,
            copy_dscp: self.copy_dscp,
            pmtudisc: self.pmtudisc,
            ignore_df: self.ignore_df,
            flow_label: self.flow_label,
            encaplimit: self.encaplimit,
            udp: self.udp,
            dev,
            mtu,
            clamp_mss: self.clamp_mss.then_some(mtu),
            wire: None,
            kernels: self.kernels,
            up,
            keepalive: self.keepalive.is_some(),
            alive: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an underlay of 1500 leaves for inner packets, as Linux sets the devices' MTU.
    #[test]
    fn mtu_1() {
        for (mode, options, mtu) in [
            ("ipip", "", 1480),
            ("sit", "", 1480),
            ("gre", "", 1476),
            ("gre", "key = 1", 1472),
            ("gre", "csum = true", 1472),
            ("gre", "key = 1\ncsum = true", 1468),
            ("gre", "key = 1\ncsum = true\nseq = true", 1464),
            // What is only expected costs nothing.
            ("gre", "ikey = 1\nicsum = true\niseq = true", 1476),
            ("ip6gre", "", 1448),
            ("ip6gre", "key = 1", 1444),
            ("ip6gre", "encaplimit = \"none\"", 1456),
            ("ip6ip6", "", 1452),
            ("ipip6", "", 1452),
            ("ip6ip6", "encaplimit = \"none\"", 1460),
            ("ipip6", "encaplimit = \"none\"", 1460),
            ("gretap", "", 1462),
            ("gretap", "key = 1\ncsum = true\nseq = true", 1450),
            ("gretap", "key = 4096\nnvgre = true", 1458),
            ("ip6gretap", "", 1434),
            ("ip6gretap", "encaplimit = \"none\"", 1442),
            // A UDP header takes eight bytes (RFC 8086).
            ("gre", "encap = \"gre-in-udp\"", 1468),
            (
                "gre",
                "encap = \"gre-in-udp\"\nkey = 1\ncsum = true\nseq = true",
                1456,
            ),
            ("ip6gre", "encap = \"gre-in-udp\"", 1440),
            (
                "ip6gre",
                "encap = \"gre-in-udp\"\nencaplimit = \"none\"",
                1448,
            ),
        ] {
            let (local, remote) = match mode {
                "gre" | "gretap" | "ipip" | "sit" => ("192.0.2.1", "192.0.2.2"),
                _ => ("2001:db8::1", "2001:db8::2"),
            };
            let text = format!(
                "[router]\nunderlay = [\"eth0\"]\noverlay = [\"eth1\"]\n[[tunnel]]\nname = \"t\"\nmode = \"{mode}\"\n\
                 local = \"{local}\"\nremote = \"{remote}\"\n{options}\n"
            );
            let config = Config::parse(&text, "test.toml").unwrap();
            assert_eq!(1500 - config.tunnels[0].overhead(), mtu, "{mode} {options}");
        }
    }
}
