//! The kernel's own tunnels that are to get a fast path, and those that do not.

use super::{Finding, host::Host};

pub(super) fn judge(host: &Host) -> Vec<Finding> {
    let found = match &host.accelerated {
        Ok(found) => found,
        Err(why) => {
            let found = format!("could not look: {why}");
            return vec![Finding::warn("accelerate", "host", found)];
        }
    };
    let finding = |device: &crate::control::accelerate::Found| {
        let (name, kind) = (&*device.name, &device.kind);
        match &device.verdict {
            Ok(tunnel) => {
                let remote = match tunnel.remote.is_unspecified() {
                    true => "its neighbours".to_owned(),
                    false => tunnel.remote.to_string(),
                };
                let found = format!("the kernel's {kind} from {} to {remote}", tunnel.local);
                Finding::ok("accelerate", name, found)
            }
            Err(why) => Finding::warn("accelerate", name, format!("left to the kernel: {why}")),
        }
    };
    found.iter().map(finding).collect()
}
