//! Open files: every tunnel's device is one (RLIMIT_NOFILE in getrlimit(2)).

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Sockets, maps and whatever else the router has open.
const OTHERS: u64 = 256;

/// There may not be as many open files as tunnels need.
#[derive(Debug, thiserror::Error)]
#[error(
    "{tunnels} tunnels need {needed} open files and {allowed} are allowed; raise the limit: ulimit -n {needed}, or LimitNOFILE={needed} \
     in the service's unit"
)]
pub struct FilesError {
    tunnels: usize,
    needed: u64,
    allowed: u64,
}

/// Lets this process have as many open files as it may.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let most = fs::read_to_string("/proc/sys/fs/nr_open").ok();
    let most = most.and_then(|text| text.trim().parse().ok());
    let all = |n| Rlimit {
        current: n,
        maximum: n,
    };
    // More than the hard limit takes CAP_SYS_RESOURCE.
    if most.is_none_or(|most| setrlimit(Resource::Nofile, all(Some(most))).is_err()) {
        // Up to the hard limit anybody may go.
        let _ = setrlimit(Resource::Nofile, all(limit.maximum));
    }
}

/// Refuses more tunnels than there may be open files for.
pub fn enough_for(tunnels: usize) -> Result<(), FilesError> {
    let needed = tunnels as u64 + OTHERS;
    match getrlimit(Resource::Nofile).current {
        Some(allowed) if allowed < needed => Err(FilesError {
            tunnels,
            needed,
            allowed,
        }),
        _ => Ok(()),
    }
}
