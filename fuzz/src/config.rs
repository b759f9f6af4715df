//! Any text as a configuration file.

use std::{collections::HashSet, sync::Arc};

use greyhound::{
    control::config::{Config, ConfigError},
    packet::VecBuf,
    tunnel::{Payload, Tunnel, TunnelId, TunnelState, TunnelTable, encapsulate},
};

/// The input: a text.
///
/// A refusal is one printable line about a line that exists. What is accepted makes tunnels that carry packets, and of
/// which no two are the same.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Config::parse(text, "fuzz.toml") {
        Ok(config) => accepted(&config),
        Err(error) => {
            let message = error.to_string();
            assert!(!message.chars().any(char::is_control), "{message:?}");
            let ConfigError::Refused { line, .. } = error else {
                panic!("{message}");
            };
            // The end of the text is behind its last newline.
            assert!((1..=text.lines().count() + 1).contains(&line), "{message}");
        }
    }
}

fn accepted(config: &Config) {
    assert!(!config.router.underlay.is_empty());
    let tunnels: Vec<Tunnel> = config
        .tunnels
        .iter()
        .zip(0..)
        .map(|(tunnel, id)| tunnel.tunnel(TunnelId(id), None, 1400, true))
        .collect();
    let names: HashSet<_> = tunnels.iter().map(|t| &t.name).collect();
    assert_eq!(names.len(), tunnels.len(), "two tunnels of one name");
    for tunnel in &tunnels {
        assert!((1..=15).contains(&tunnel.name.len()));
        carries(tunnel);
    }
    TunnelTable::new(tunnels);
}

/// A packet of the tunnel's kind goes in.
fn carries(tunnel: &Tunnel) {
    let mut packet = vec![0; 64];
    match tunnel.mode.kind().payload {
        Payload::Ip | Payload::Ipv4 => packet[..4].copy_from_slice(&[0x45, 0, 0, 64]),
        Payload::Ipv6 => packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 24, 59, 64]),
        Payload::Ethernet => {}
    }
    let mut buf = VecBuf::new(128, &packet);
    let state = TunnelState::new(0, 1, Arc::default());
    let remote = match tunnel.remote.is_unspecified() {
        false => Some(tunnel.remote),
        true => tunnel.peers.remotes().first().copied(),
    };
    // Without either, it is the gateways of routes that say where packets go.
    if let Some(remote) = remote {
        encapsulate(tunnel, remote, &mut buf, &state).expect("a packet of the tunnel's kind");
    }
}
