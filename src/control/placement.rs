//! Where hardware sits: the memory nodes of the machine, and which of them a device is attached to.

use std::{collections::BTreeMap, fs, path::Path};

/// The kernel's view of the machine.
pub const SYS: &str = "/sys";

/// The node that a device is attached to; none where the machine has one only, or the device is no hardware.
pub fn node_of(sys: &Path, device: &str) -> Option<u32> {
    let path = sys.join("class/net").join(device).join("device/numa_node");
    // -1 where the machine has one node.
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The nodes with their CPUs.
pub fn nodes(sys: &Path) -> BTreeMap<u32, Vec<usize>> {
    let entries = fs::read_dir(sys.join("devices/system/node"));
    let entries = entries.into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let numbers = names.filter_map(|name| name.strip_prefix("node")?.parse().ok());
    numbers
        .filter_map(|node: u32| {
            let list = sys.join(format!("devices/system/node/node{node}/cpulist"));
            Some((node, cpu_list(fs::read_to_string(list).ok()?.trim())?))
        })
        .collect()
}

/// The kernel's way to write a set of CPUs: `0-3,8`.
pub fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

/// CPUs for workers, the best first: those of the node that most of the devices are attached to; among equals from the last
/// one down, because interrupts tend to the first.
pub fn order(sys: &Path, mut cpus: Vec<usize>, devices: &[&str]) -> Vec<usize> {
    let nodes = nodes(sys);
    let attached = |node: &u32| {
        let here = devices
            .iter()
            .filter(|device| node_of(sys, device) == Some(*node));
        here.count()
    };
    let home = nodes
        .keys()
        .max_by_key(|node| (attached(node), u32::MAX - **node));
    let near = home
        .filter(|node| attached(node) > 0)
        .map(|node| &nodes[node]);
    let is_near = |cpu: &usize| near.is_some_and(|near| near.contains(cpu));
    cpus.sort_unstable_by_key(|cpu| std::cmp::Reverse((is_near(cpu), *cpu)));
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A machine of two nodes; which one each device is attached to.
    fn machine(devices: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("greyhound-sys-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("devices/system/node/node0/cpulist", "0-1,4\n");
        write("devices/system/node/node1/cpulist", "2-3,5\n");
        write("devices/system/node/online", "0-1\n");
        for (device, node) in devices {
            write(&format!("class/net/{device}/device/numa_node"), node);
        }
        root
    }

    #[test]
    fn workers_go_where_most_devices_are() {
        let root = machine(&[("a0", "0\n"), ("b1", "1\n"), ("c1", "1\n"), ("d", "-1\n")]);
        let order = |devices: &[&str]| order(&root, (0..6).collect(), devices);
        assert_eq!(order(&["b1", "a0", "c1"]), [5, 3, 2, 4, 1, 0]);
        assert_eq!(order(&["a0"]), [4, 1, 0, 5, 3, 2]);
        // As many here as there: the first node.
        assert_eq!(order(&["b1", "a0"]), [4, 1, 0, 5, 3, 2]);
        for nowhere in ["d", "veth0"] {
            assert_eq!(order(&[nowhere]), [5, 4, 3, 2, 1, 0]);
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn lists_of_cpus_are_read_and_broken_ones_are_not() {
        assert_eq!(cpu_list("0-1,4"), Some(vec![0, 1, 4]));
        assert_eq!(cpu_list("0-x"), None);
        assert_eq!(cpu_list(""), None);
    }
}
