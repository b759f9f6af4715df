//! What shall run instead of what runs, and the difference between the two (pure).
//!
//! A reload, `tunnel add` and `tunnel del` are the same thing: each says what is wanted, as a whole. What is put in force is
//! the difference, by [`apply`](super::apply); what is the same on both sides is not touched.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::config::{Config, ConfigError, RouterConfig, TunnelConfig};
use crate::tunnel::{Payload, TunnelId};

/// Why something wanted cannot be; one line. Nothing has been touched.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("no tunnel {name:?}: there are {}", known.join(", "))]
    NoTunnel { name: String, known: Vec<String> },
    #[error(
        "router.{0} cannot be changed while the router runs: restart it, or put the old value back"
    )]
    Fixed(&'static str),
    #[error(
        "tunnel {name:?}: mode {from} to {to} needs another kind of device: remove the tunnel first (greyhound tunnel del {name})"
    )]
    OtherDevice {
        name: String,
        from: &'static str,
        to: &'static str,
    },
    #[error(
        "tunnel {0:?}: its bridge cannot be changed while it runs: remove the tunnel first (greyhound tunnel del {0})"
    )]
    OtherBridge(String),
}

/// A configuration that is to be in force: the file's, and what was added by words since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub config: Config,
    /// Tunnels that are not in the file, with the words that made them.
    pub commanded: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    /// As the file says.
    pub fn of(config: Config) -> Self {
        Self {
            config,
            commanded: BTreeMap::new(),
        }
    }

    /// The file's contents as they are now, and the tunnels that were added by words, unless the file has taken them over.
    pub fn reloaded(&self, file: &Path) -> Result<Self, ChangeError> {
        let mut wanted = Wanted::of(Config::load(file)?);
        for (name, words) in &self.commanded {
            if !wanted.config.tunnels.iter().any(|t| t.name == *name) {
                wanted.add(name, words)?;
            }
        }
        Ok(wanted)
    }

    pub fn with(&self, name: &str, words: &[String]) -> Result<Self, ChangeError> {
        let mut wanted = self.clone();
        wanted.add(name, words)?;
        Ok(wanted)
    }

    fn add(&mut self, name: &str, words: &[String]) -> Result<(), ConfigError> {
        self.config.add_tunnel(name, words)?;
        self.commanded.insert(name.to_owned(), words.to_vec());
        Ok(())
    }

    /// Without a tunnel. One of the file's comes back with the next reload.
    pub fn without(&self, name: &str) -> Result<Self, ChangeError> {
        let mut wanted = self.clone();
        wanted.commanded.remove(name);
        wanted.config.tunnels.retain(|tunnel| tunnel.name != name);
        match wanted.config.tunnels.len() < self.config.tunnels.len() {
            true => Ok(wanted),
            false => Err(ChangeError::NoTunnel {
                name: name.to_owned(),
                known: names(&self.config),
            }),
        }
    }
}

/// Some names, for a message.
fn names(config: &Config) -> Vec<String> {
    const NAMES: usize = 8;
    let all = config.tunnels.iter().map(|t| t.name.clone());
    let mut names: Vec<String> = all.take(NAMES).collect();
    if config.tunnels.len() > NAMES {
        names.push("…".to_owned());
    }
    if names.is_empty() {
        names.push("none".to_owned());
    }
    names
}

/// What has to be done. Tunnels are the same when their names are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub removed: Vec<TunnelId>,
    pub added: Vec<TunnelConfig>,
    pub altered: Vec<(TunnelId, TunnelConfig)>,
    /// The fast path has to end and start again: its devices, CPUs or mode are others.
    pub fast_path: bool,
    pub done: Done,
}

/// What was done, as the answer to whoever asked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<Altered>,
    /// Tunnels that are as they were.
    pub unchanged: usize,
    /// Keys of `[router]` that have another value.
    pub router: Vec<String>,
}

/// A tunnel that goes on under new terms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Altered {
    pub name: String,
    /// The keys that have another value.
    pub keys: Vec<String>,
}

impl fmt::Display for Done {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changed: Vec<String> = (self.changed.iter())
            .map(|altered| format!("{} ({})", altered.name, altered.keys.join(", ")))
            .collect();
        let parts = [
            ("added", &self.added),
            ("removed", &self.removed),
            ("changed", &changed),
            ("router", &self.router),
        ];
        for (word, names) in parts.into_iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, "{word} {}; ", names.join(", "))?;
        }
        write!(f, "unchanged {}", self.unchanged)
    }
}

impl Change {
    pub fn is_empty(&self) -> bool {
        let tunnels = self.removed.len() + self.added.len() + self.altered.len();
        tunnels == 0 && !self.fast_path
    }
}

/// The way from what runs to what is wanted.
pub fn difference(
    router: &RouterConfig,
    running: &[(TunnelId, &TunnelConfig)],
    wanted: &Config,
) -> Result<Change, ChangeError> {
    let mut change = router_difference(router, &wanted.router)?;
    let mut before: HashMap<&str, (TunnelId, &TunnelConfig)> = running
        .iter()
        .map(|(id, config)| (config.name.as_str(), (*id, *config)))
        .collect();
    for config in &wanted.tunnels {
        let Some((id, old)) = before.remove(config.name.as_str()) else {
            change.done.added.push(config.name.clone());
            change.added.push(config.clone());
            continue;
        };
        let keys = differing_keys(old, config);
        if keys.is_empty() {
            change.done.unchanged += 1;
            continue;
        }
        if is_frames(old) != is_frames(config) {
            return Err(ChangeError::OtherDevice {
                name: config.name.clone(),
                from: old.mode.as_str(),
                to: config.mode.as_str(),
            });
        }
        if old.bridge != config.bridge {
            return Err(ChangeError::OtherBridge(config.name.clone()));
        }
        change.done.changed.push(Altered {
            name: config.name.clone(),
            keys: keys.into_iter().map(str::to_owned).collect(),
        });
        change.altered.push((id, config.clone()));
    }
    // In the order in which they run.
    for (id, config) in running {
        if before.contains_key(config.name.as_str()) {
            change.done.removed.push(config.name.clone());
            change.removed.push(*id);
        }
    }
    Ok(change)
}

/// Whether the tunnel's device is one for Ethernet frames.
fn is_frames(config: &TunnelConfig) -> bool {
    config.mode.kind().payload == Payload::Ethernet
}

fn router_difference(old: &RouterConfig, new: &RouterConfig) -> Result<Change, ChangeError> {
    // Exhaustive, so that no key that comes later is forgotten.
    let RouterConfig {
        underlay,
        overlay,
        workers,
        xdp,
        control,
        persist,
        accelerate,
        metrics,
        spread,
        busy_poll,
    } = old;
    for (key, same) in [
        ("control", *control == new.control),
        ("persist", *persist == new.persist),
        ("metrics", *metrics == new.metrics),
    ] {
        if !same {
            return Err(ChangeError::Fixed(key));
        }
    }
    let mut keys: Vec<String> = [
        ("underlay", *underlay == new.underlay),
        ("overlay", *overlay == new.overlay),
        ("workers", *workers == new.workers),
        ("xdp", *xdp == new.xdp),
        ("spread", *spread == new.spread),
        ("busy_poll", *busy_poll == new.busy_poll),
    ]
    .into_iter()
    .filter(|(_, same)| !same)
    .map(|(key, _)| key.to_owned())
    .collect();
    let mut change = Change {
        fast_path: !keys.is_empty(),
        ..Change::default()
    };
    // The kernel's tunnels are looked for anew whenever something has changed.
    if *accelerate != new.accelerate {
        keys.push("accelerate".to_owned());
    }
    change.done.router = keys;
    Ok(change)
}

/// The keys in which two configurations of a tunnel differ, in the file's words.
fn differing_keys(old: &TunnelConfig, new: &TunnelConfig) -> Vec<&'static str> {
    macro_rules! differing {
        ($($field:ident = $key:literal),* $(,)?) => {{
            // Exhaustive, so that no field that comes later is forgotten.
            let TunnelConfig { name: _, kernels: _, $($field),* } = old;
            [$(($key, *$field == new.$field)),*]
        }};
    }
    let compared = differing!(
        mode = "mode",
        local = "local",
        remote = "remote",
        peers = "peer",
        ikey = "ikey",
        okey = "okey",
        icsum = "icsum",
        ocsum = "ocsum",
        iseq = "iseq",
        oseq = "oseq",
        nvgre = "nvgre",
        ttl = "ttl",
        tos = "tos",
        copy_dscp = "dscp",
        flow_label = "flowlabel",
        encaplimit = "encaplimit",
        udp = "encap",
        pmtudisc = "pmtudisc",
        ignore_df = "ignore_df",
        mtu = "mtu",
        clamp_mss = "clamp_mss",
        keepalive = "keepalive",
        dev = "dev",
        address = "address",
        routes = "routes",
        bridge = "bridge",
    );
    let differ = compared.into_iter().filter(|(_, same)| !same);
    differ.map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: &str = "[router]\nunderlay = [\"eth0\"]\noverlay = [\"eth1\"]\n";

    fn config(tunnels: &str) -> Config {
        Config::parse(&format!("{ROUTER}{tunnels}"), "test.toml").unwrap()
    }

    fn tunnel(name: &str, rest: &str) -> String {
        format!(
            "[[tunnel]]\nname = \"{name}\"\nmode = \"gre\"\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.2\"\n{rest}\n"
        )
    }

    fn from_to(old: &Config, new: &Config) -> Result<Change, ChangeError> {
        let slots = (0..).map(TunnelId);
        let running: Vec<_> = slots.zip(&old.tunnels).collect();
        difference(&old.router, &running, new)
    }

    #[test]
    fn what_is_the_same_is_not_touched() {
        let old = config(&(tunnel("a", "key = 1") + &tunnel("b", "key = 2")));
        let change = from_to(&old, &old).unwrap();
        assert!(change.is_empty());
        assert_eq!(change.done.unchanged, 2);
        // Nor is it by another order.
        let turned = config(&(tunnel("b", "key = 2") + &tunnel("a", "key = 1")));
        assert!(from_to(&old, &turned).unwrap().is_empty());
    }

    #[test]
    fn each_tunnel_is_added_removed_altered_or_left_alone() {
        let old =
            config(&(tunnel("a", "key = 1") + &tunnel("b", "key = 2") + &tunnel("c", "key = 3")));
        let new =
            config(&(tunnel("b", "key = 4\nttl = 9") + &tunnel("c", "key = 3") + &tunnel("d", "")));
        let change = from_to(&old, &new).unwrap();
        assert_eq!(change.removed, [TunnelId(0)]);
        assert_eq!(change.altered, [(TunnelId(1), new.tunnels[0].clone())]);
        assert_eq!(change.added, [new.tunnels[2].clone()]);
        assert!(!change.fast_path && !change.is_empty());
        let done = change.done;
        assert_eq!(
            (&done.added[..], &done.removed[..]),
            (&["d".to_owned()][..], &["a".to_owned()][..])
        );
        assert_eq!(done.changed[0].keys, ["ikey", "okey", "ttl"]);
        assert_eq!(done.unchanged, 1);
    }

    #[test]
    fn other_devices_mean_another_fast_path() {
        let old = config("");
        let mut new = old.clone();
        new.router.overlay.push("eth2".to_owned());
        let change = from_to(&old, &new).unwrap();
        assert!(change.fast_path && !change.is_empty());
        assert_eq!(change.done.router, ["overlay"]);
        new.router.control = "/elsewhere".into();
        let refused = from_to(&old, &new).unwrap_err();
        assert_eq!(refused, ChangeError::Fixed("control"));
    }

    #[test]
    fn words_add_to_the_file_and_the_file_takes_over() {
        let words = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
        let file = Wanted::of(config(&tunnel("a", "key = 1")));
        let added = words("mode gre local 192.0.2.1 remote 192.0.2.2 key 7");
        let more = file.with("b", &added).unwrap();
        assert_eq!(more.config.tunnels[1].ikey, Some(7));
        assert_eq!(more.commanded["b"], added);
        // As in the file: no two with the same name, nor with the same addresses and key.
        for (name, line) in [
            ("a", "mode gre local 192.0.2.1 remote 192.0.2.9"),
            ("c", &added.join(" ")),
        ] {
            let refused = more.with(name, &words(line)).unwrap_err().to_string();
            assert!(
                refused.starts_with(&format!("tunnel {name:?}: ")),
                "{refused}"
            );
        }
        let dir =
            std::env::temp_dir().join(format!("greyhound-change-{}.toml", std::process::id()));
        let file_says = |tunnels: &str| {
            std::fs::write(&dir, format!("{ROUTER}{tunnels}")).unwrap();
            more.reloaded(&dir)
        };
        let kept = file_says(&tunnel("a", "key = 2")).unwrap();
        let summary: Vec<_> = kept
            .config
            .tunnels
            .iter()
            .map(|t| (&*t.name, t.ikey))
            .collect();
        assert_eq!(summary, [("a", Some(2)), ("b", Some(7))]);
        let taken = file_says(&tunnel("b", "key = 3")).unwrap();
        assert!(taken.commanded.is_empty() && taken.config.tunnels.len() == 1);
        let clash = file_says(&tunnel("z", "key = 7"));
        std::fs::remove_file(&dir).unwrap();
        assert!(clash.unwrap_err().to_string().starts_with("tunnel \"b\": "));
        let less = more.without("a").unwrap();
        assert_eq!(less.config.tunnels.len(), 1);
        let refused = less.without("a").unwrap_err().to_string();
        assert_eq!(refused, "no tunnel \"a\": there are b");
    }
}
