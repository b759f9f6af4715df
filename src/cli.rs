//! The command line: what can be typed, as types. The words follow iproute2. What the verbs do is in [`act`].

pub mod act;
mod capture;
mod top;

use std::{collections::HashSet, ffi::OsString, net::IpAddr, path::PathBuf};

use clap::{Args, Command, CommandFactory, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::control::{
    config::{DEFAULT_CONFIG, DEFAULT_CONTROL},
    report::trace::PROTOCOLS,
};

/// The version, the commit, and the versions of what is built in (`build.rs`).
pub const VERSION: &str = env!("GREYHOUND_VERSION");

/// A kernel-bypass tunnel router for Linux: GRE over AF_XDP
#[derive(Debug, Parser)]
#[command(
    name = "greyhound",
    version = VERSION,
    infer_subcommands = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the router in the foreground
    Run {
        #[command(flatten)]
        config: ConfigFile,
        /// Go on where the running router is, and end it: no packet is lost that its slow path can carry
        #[arg(long)]
        takeover: bool,
        /// How log lines are written to stderr
        #[arg(
            long,
            value_name = "text|json",
            value_enum,
            hide_possible_values = true,
            default_value_t = LogFormat::Text
        )]
        log_format: LogFormat,
        /// error, warn, info, debug or trace, or tracing's filter syntax
        #[arg(
            long,
            value_name = "LEVEL",
            env = "GREYHOUND_LOG",
            default_value = "info",
            value_parser = log_level
        )]
        log_level: String,
    },
    /// Validate the configuration and this host; exit 0 fit, 1 not
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Tunnels of the running router
    #[command(subcommand, infer_subcommands = true, arg_required_else_help = true)]
    Tunnel(TunnelVerb),
    /// Apply the changed configuration file, touching only what changed
    Reload {
        #[command(flatten)]
        ask: Ask,
    },
    /// The forwarding table of the running router
    #[command(subcommand, infer_subcommands = true, arg_required_else_help = true)]
    Route(RouteVerb),
    /// What would become of such a packet, and why; nothing is sent, counted or numbered
    Trace {
        /// Its source address
        source: IpAddr,
        /// Its destination address
        destination: IpAddr,
        /// The device that it comes in by; a tunnel: it is inside a packet that comes out of that one
        #[arg(long, value_name = "DEV")]
        from: Option<String>,
        /// icmp, tcp, udp …, or a number; by default an echo request
        #[arg(long, value_name = "NAME", value_parser = protocol)]
        protocol: Option<u8>,
        /// TCP's or UDP's source port
        #[arg(long, value_name = "PORT", default_value_t = 49152)]
        sport: u16,
        /// TCP's or UDP's destination port
        #[arg(long, value_name = "PORT", default_value_t = 33434)]
        dport: u16,
        /// The IP packet's length, in bytes
        #[arg(long, value_name = "BYTES", default_value_t = 84)]
        size: u16,
        /// Its TTL or hop limit
        #[arg(long, value_name = "N", default_value_t = 64)]
        ttl: u8,
        /// Its TOS or traffic class
        #[arg(long, value_name = "N", default_value_t = 0)]
        tos: u8,
        /// It may not be cut (IPv4)
        #[arg(long)]
        df: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Packets of the fast path, before and after, as pcapng or as lines
    Capture(capture::Options),
    /// Counters per tunnel, worker and drop reason
    Stats {
        /// One tunnel only
        name: Option<String>,
        /// Print again every second, until interrupted
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// A live view of tunnels, workers and drops; `?` shows its keys
    Top {
        /// The running router's control socket
        #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL)]
        socket: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum RouteVerb {
    /// Show routes like `ip route show`: where they lead, and whether on the fast path or why not
    Show {
        /// Those within this prefix or for this address, and the one that contains it
        #[arg(value_parser = prefix)]
        prefix: Option<IpNet>,
        #[command(flatten)]
        ask: Ask,
    },
}

#[derive(Debug, Subcommand)]
pub enum TunnelVerb {
    /// Show running tunnels, like `ip -s tunnel show`
    Show {
        /// One tunnel only
        name: Option<String>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Add a tunnel in the words of `ip tunnel add`; it lives until the router ends or it is removed
    Add {
        /// The device's name
        name: String,
        /// mode gre local A remote B [key K] [ttl T] [address NET] [route NET] …
        #[arg(required = true)]
        words: Vec<String>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Remove a tunnel and its device; one of the configuration file's comes back with the next reload
    Del {
        /// The device's name
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
}

#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration file
    #[arg(long = "config", value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub path: PathBuf,
}

/// What every verb needs that asks the running router.
#[derive(Debug, Args)]
pub struct Ask {
    /// The running router's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL)]
    pub socket: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl Cli {
    /// Parses the command line; options may stand before the verb or after it. Usage errors end the process with 2.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(options_last(args))
    }
}

/// A prefix, or an address, which is the prefix of its full length.
fn prefix(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let net = address.or_else(|_| text.parse::<IpNet>());
    net.map(|net| net.trunc())
        .map_err(|_| "expected a prefix like 10.0.0.0/8, or an address".to_owned())
}

fn protocol(text: &str) -> Result<u8, String> {
    let known = PROTOCOLS.iter().find(|(name, _)| *name == text);
    let number = known
        .map(|(_, number)| *number)
        .or_else(|| text.parse().ok());
    number.ok_or_else(|| {
        let names: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
        format!("expected {} or 0 to 255", names.join(", "))
    })
}

fn log_level(text: &str) -> Result<String, String> {
    let filter = text.parse::<tracing_subscriber::EnvFilter>();
    filter.map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// Moves options behind the words, so that each verb can own its options (and its help be exact) although they may stand
/// before it. A `--` ends this, as ever.
fn options_last(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let takes_value = options_with_value(&Cli::command());
    let mut args = args.into_iter().peekable();
    let (mut words, mut options) = (Vec::new(), Vec::new());
    words.extend(args.next());
    while let Some(arg) = args.next_if(|arg| arg != "--") {
        if !arg.as_encoded_bytes().starts_with(b"-") {
            words.push(arg);
            continue;
        }
        let wants_value = arg.to_str().is_some_and(|name| takes_value.contains(name));
        options.push(arg);
        if wants_value {
            options.extend(args.next());
        }
    }
    words.extend(options);
    words.extend(args);
    words
}

/// The options of all verbs that take their value from the next argument.
fn options_with_value(command: &Command) -> HashSet<String> {
    let own = command
        .get_arguments()
        .filter(|arg| arg.get_action().takes_values() && !arg.is_require_equals_set())
        .flat_map(|arg| {
            let long = arg.get_long().map(|name| format!("--{name}"));
            let short = arg.get_short().map(|name| format!("-{name}"));
            long.into_iter().chain(short)
        });
    let theirs = command.get_subcommands().flat_map(options_with_value);
    own.chain(theirs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reordered(line: &str) -> String {
        let args = line.split_whitespace().map(OsString::from);
        let joined = options_last(args).join(&OsString::from(" "));
        joined.into_string().unwrap()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_move_behind_the_verb_with_their_values() {
        for (typed, read) in [
            ("g --json tunnel show gre1", "g tunnel show gre1 --json"),
            (
                "g --socket /s --json stats gre1",
                "g stats gre1 --socket /s --json",
            ),
            ("g --socket=/s stats", "g stats --socket=/s"),
            ("g tunnel --json show", "g tunnel show --json"),
            ("g stats --json -- --watch", "g stats --json -- --watch"),
            (
                "g -c 5 capture -w - udp and --drop=ttl port 53",
                "g capture udp and port 53 -c 5 -w - --drop=ttl",
            ),
            ("g --version", "g --version"),
            ("g", "g"),
        ] {
            assert_eq!(reordered(typed), read);
        }
    }
}
