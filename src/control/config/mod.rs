//! The configuration file, from text to values that make sense together.
//!
//! Parsing is a plain function of the text: no system call, no look at the host (that is [`check`](super::check)'s job).
//! Nothing is ignored: a key that this version does not know, or knows only by name, is refused. Every refusal is one
//! line that says where, what was found and what would be accepted, and comes before anything is touched.

mod reader;
mod router;
mod rules;
mod tunnel;

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use thiserror::Error;

use crate::tunnel::{Mode, Tos, Ttl};

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

/// One `[[tunnel]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelConfig {
    /// A valid interface name, 1 to 15 bytes.
    pub name: String,
    pub mode: Mode,
    pub local: Ipv4Addr,
    pub remote: Ipv4Addr,
    pub ikey: Option<u32>,
    pub okey: Option<u32>,
    pub icsum: bool,
    pub ocsum: bool,
    pub iseq: bool,
    pub oseq: bool,
    pub ttl: Ttl,
    pub tos: Tos,
    pub pmtudisc: bool,
    pub ignore_df: bool,
    pub mtu: Mtu,
    /// The underlay device that the tunnel is bound to.
    pub dev: Option<String>,
    /// Put on the device: interface address and prefix length.
    pub address: Vec<IpNet>,
    /// Installed through the device; no host bits set.
    pub routes: Vec<IpNet>,
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
        let mut tunnels = Vec::new();
        for section in root.tables("tunnel")? {
            let tunnel = tunnel::parse(&section)?;
            rules::tunnel_alone(&section, &tunnel)?;
            rules::tunnel_on_router(&section, &tunnel, &router)?;
            for (_, other) in &tunnels {
                rules::tunnel_beside(&section, &tunnel, other)?;
            }
            tunnels.push((section, tunnel));
        }
        Ok(Config {
            router,
            tunnels: tunnels.into_iter().map(|(_, tunnel)| tunnel).collect(),
        })
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
    /// Bytes that encapsulation adds: the outer IPv4 header, the GRE header and its options (RFC 2784, 2890).
    pub fn overhead(&self) -> u16 {
        let options = [self.okey.is_some(), self.ocsum, self.oseq];
        24 + 4 * options.into_iter().filter(|on| *on).count() as u16
    }
}
