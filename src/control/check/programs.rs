//! What other programs and the BPF subsystem say: nft, ethtool, loaded programs.

use std::{collections::BTreeSet, io, process::Command};

use libbpf_rs::query::ProgInfoIter;
use serde_json::Value;

use super::host::{Chain, Offloads, Seen};

/// The name of a loaded BPF program, where the kernel tells (it needs CAP_SYS_ADMIN).
pub(super) fn bpf_name(id: u32) -> Option<String> {
    let program = ProgInfoIter::default().find(|program| program.id == id)?;
    Some(program.name.to_string_lossy().into_owned())
}

/// The base chains of the nftables ruleset, iptables-nft's among them.
pub(super) fn chains() -> Seen<Vec<Chain>> {
    let ruleset = output("nft", &["-j", "list", "ruleset"])?;
    let ruleset =
        serde_json::from_str(&ruleset).map_err(|e| format!("nft -j list ruleset: {e}"))?;
    Ok(base_chains(&ruleset))
}

fn base_chains(ruleset: &Value) -> Vec<Chain> {
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let place = |object: &Value, name: &str| {
        (
            text(object, "family"),
            text(object, "table"),
            text(object, name),
        )
    };
    let mut chains = Vec::new();
    for chain in objects()
        .map(|object| &object["chain"])
        .filter(|chain| chain["hook"].is_string())
    {
        let at = place(chain, "name");
        let rules = objects().map(|object| &object["rule"]);
        let rules = rules
            .filter(|rule| rule.is_object() && place(rule, "chain") == at)
            .count();
        chains.push(Chain {
            hook: text(chain, "hook"),
            device: chain["dev"].as_str().map(str::to_owned),
            drops_by_default: chain["policy"] == "drop",
            rules,
            family: at.0,
            table: at.1,
            name: at.2,
        });
    }
    chains
}

/// The offloads of a device that matter to a router.
pub(super) fn offloads(device: &str) -> Seen<Offloads> {
    output("ethtool", &["-k", device]).map(|text| read_offloads(&text))
}

fn read_offloads(text: &str) -> Offloads {
    let feature = |name: &str| {
        let value = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
        let value = value.unwrap_or("off [fixed]");
        (value.starts_with("on"), value.ends_with("[fixed]"))
    };
    Offloads {
        rxvlan: feature("rx-vlan-offload"),
        lro: feature("large-receive-offload"),
        rx_gro_hw: feature("rx-gro-hw"),
        gro: feature("generic-receive-offload"),
    }
}

/// The descriptors of a device's receive rings, now and at the most; none where it does not say.
pub(super) fn ring(device: &str) -> Option<(u32, u32)> {
    read_ring(&output("ethtool", &["-g", device]).ok()?)
}

/// The maximum stands first.
fn read_ring(text: &str) -> Option<(u32, u32)> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("RX:"));
    let mut sizes = lines.map(|size| size.trim().parse().ok());
    let most = sizes.next()??;
    Some((sizes.next()??, most))
}

/// How many queues stand in a device's RSS indirection table; none where it has none.
pub(super) fn queues_of_rss(device: &str) -> Option<u32> {
    read_indirection(&output("ethtool", &["-x", device]).ok()?)
}

/// The lines of the table begin with the number of their first entry.
fn read_indirection(text: &str) -> Option<u32> {
    let table = text
        .lines()
        .skip(1)
        .take_while(|line| !line.starts_with("RSS"));
    let entries = table.filter_map(|line| line.split_once(':'));
    let entries = entries.flat_map(|(_, queues)| queues.split_whitespace());
    let queues: Option<BTreeSet<u32>> = entries.map(|queue| queue.parse().ok()).collect();
    Some(queues?.len() as u32).filter(|queues| *queues > 0)
}

/// Whether a device looks at ports when it chooses a queue for packets of `kind`; none where it does not say.
pub(super) fn hashes_ports(device: &str, kind: &str) -> Option<bool> {
    let said = output("ethtool", &["-n", device, "rx-flow-hash", kind]).ok()?;
    said.contains("Hash flow key")
        .then(|| said.contains("L4 bytes 0 & 1"))
}

fn output(program: &str, arguments: &[&str]) -> Seen<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("{program} is not installed"),
        _ => format!("{program}: {e}"),
    })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let why = stderr.lines().next().unwrap_or("it failed");
        return Err(format!("{program}: {why}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_read_as_ethtool_prints_them() {
        let text = "Ring parameters for eth0:\nPre-set maximums:\nRX:\t\t4096\nRX Mini:\tn/a\nTX:\t\t4096\n\
                    Current hardware settings:\nRX:\t\t256\nRX Mini:\tn/a\nTX:\t\t256\n";
        assert_eq!(read_ring(text), Some((256, 4096)));
        assert_eq!(read_ring(&text.replace("RX:\t\t4096", "RX:\t\tn/a")), None);
        assert_eq!(read_ring("netlink error: Operation not supported\n"), None);
    }

    #[test]
    fn the_indirection_table_is_read_as_ethtool_prints_it() {
        let text = "RX flow hash indirection table for eth0 with 4 RX ring(s):\n    0:      0     1     2     3     0     1\n    \
                    8:      0     1     2     3     0     1\nRSS hash key:\n6d:5a:56:da\nRSS hash function:\n    toeplitz: on\n";
        assert_eq!(read_indirection(text), Some(4));
        assert_eq!(read_indirection(&text.replace('3', "0")), Some(3));
        assert_eq!(
            read_indirection(
                "RX flow hash indirection table for eth0 with 1 RX ring(s):\nOperation not supported\n"
            ),
            None
        );
    }

    #[test]
    fn base_chains_come_with_the_number_of_their_rules() {
        let ruleset = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.9"}},
            {"table": {"family": "inet", "name": "filter"}},
            {"chain": {"family": "inet", "table": "filter", "name": "forward", "type": "filter", "hook": "forward",
                       "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "filter", "name": "helper"}},
            {"chain": {"family": "netdev", "table": "edge", "name": "in", "hook": "ingress", "dev": "eth0",
                       "policy": "accept"}},
            {"rule": {"family": "inet", "table": "filter", "chain": "forward", "expr": []}},
            {"rule": {"family": "inet", "table": "filter", "chain": "forward", "expr": []}},
            {"rule": {"family": "ip", "table": "filter", "chain": "forward", "expr": []}},
            {"rule": {"family": "inet", "table": "filter", "chain": "helper", "expr": []}},
        ]});
        let chains = base_chains(&ruleset);
        let seen: Vec<_> = chains
            .iter()
            .map(|c| {
                (
                    c.name.as_str(),
                    c.rules,
                    c.drops_by_default,
                    c.device.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [("forward", 2, true, None), ("in", 0, false, Some("eth0"))]
        );
    }

    #[test]
    fn offloads_are_read_in_ethtools_words() {
        let text = "Features for eth0:\nrx-checksumming: on\ngeneric-receive-offload: on\n\
                    large-receive-offload: off [fixed]\nrx-vlan-offload: on [fixed]\nrx-gro-hw: off\n";
        let offloads = read_offloads(text);
        assert_eq!(offloads.gro, (true, false));
        assert_eq!(offloads.lro, (false, true));
        assert_eq!(offloads.rxvlan, (true, true));
        assert_eq!(offloads.rx_gro_hw, (false, false));
    }
}
