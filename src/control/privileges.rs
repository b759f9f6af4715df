//! What the router may do, and no more than that.
//!
//! It runs as root, or as anybody with the capabilities below (capabilities(7)). Everything else is given up before the
//! first thread starts, for good: threads inherit it, and so would whatever took over a thread.

use std::io;

use rustix::thread::{
    CapabilitySet, capabilities, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
};

/// A capability, its name, and what the router does with it.
type Needed = (CapabilitySet, &'static str, &'static str);

const ALWAYS: &[Needed] = &[
    (
        CapabilitySet::NET_ADMIN,
        "CAP_NET_ADMIN",
        "devices, addresses and routes",
    ),
    (CapabilitySet::NET_RAW, "CAP_NET_RAW", "raw sockets"),
];
const FOR_BPF: &[Needed] = &[
    (CapabilitySet::BPF, "CAP_BPF", "the steering program"),
    (
        CapabilitySet::PERFMON,
        "CAP_PERFMON",
        "the steering program's packet pointers",
    ),
];
/// Kept where they are there: locked packet buffers beyond the limit, and reading the configuration again wherever it lies.
const OF_USE: CapabilitySet = CapabilitySet::IPC_LOCK.union(CapabilitySet::DAC_READ_SEARCH);

/// Why the router cannot run with what it may do; one line.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error(
        "missing {}; run as root, or: setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock+ep FILE",
        .0.join(", ")
    )]
    Missing(Vec<String>),
    #[error("cannot {what} capabilities: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

/// Gives up everything that the router does not need. Must come before any other thread starts.
pub fn reduce(needs_bpf: bool) -> Result<(), PrivilegeError> {
    let io = |what| {
        move |e: rustix::io::Errno| PrivilegeError::Io {
            what,
            source: e.into(),
        }
    };
    let mut sets = capabilities(None).map_err(io("read"))?;
    let missing = missing(sets.effective, needs_bpf);
    if !missing.is_empty() {
        return Err(PrivilegeError::Missing(missing));
    }
    let kept = sets.permitted & kept();
    (sets.effective, sets.permitted) = (kept, kept);
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets).map_err(io("give up"))?;
    // Nothing is executed from here; whatever would be gets nothing.
    clear_ambient_capability_set().map_err(io("give up ambient"))?;
    set_no_new_privs(true).map_err(io("renounce new"))
}

/// What is missing of what the router needs, each with its use.
pub(super) fn missing(held: CapabilitySet, needs_bpf: bool) -> Vec<String> {
    let for_bpf = if needs_bpf { FOR_BPF } else { &[] };
    let needed = ALWAYS.iter().chain(for_bpf);
    // What came before them had both (Linux 5.8).
    let is_held = |set: CapabilitySet| {
        let bpf = CapabilitySet::BPF | CapabilitySet::PERFMON;
        held.contains(set) || (bpf.contains(set) && held.contains(CapabilitySet::SYS_ADMIN))
    };
    let absent = needed.filter(|(set, ..)| !is_held(*set));
    absent
        .map(|(_, name, why)| format!("{name} ({why})"))
        .collect()
}

fn kept() -> CapabilitySet {
    let needed = ALWAYS.iter().chain(FOR_BPF);
    needed.fold(OF_USE, |all, (set, ..)| all | *set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_capability_is_named_with_its_use() {
        let all = kept();
        assert!(missing(all, true).is_empty());
        assert!(missing(CapabilitySet::all(), true).is_empty());
        let old = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::SYS_ADMIN;
        assert!(missing(old, true).is_empty());
        let few = all - CapabilitySet::BPF - CapabilitySet::NET_RAW;
        assert_eq!(
            missing(few, true),
            [
                "CAP_NET_RAW (raw sockets)",
                "CAP_BPF (the steering program)"
            ]
        );
        assert_eq!(missing(few, false), ["CAP_NET_RAW (raw sockets)"]);
    }
}
