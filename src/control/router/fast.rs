//! The fast path comes and goes: with its devices, with the configuration, and again after a refusal.

use std::time::{Duration, Instant};

use super::{Router, open_service_device};
use crate::{
    control::{
        config::{RouterConfig, XdpMode},
        fastpath::{self, FastPath},
        mirror::State,
        ports::{self, Found},
        run::RunError,
        tunnels::TunnelError,
    },
    xdp::{Limits, Steer},
};

/// How soon a fast path that was refused is tried again, at first and at last: attaching a program may reset a device.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// A fast path that did not come up.
pub(super) struct Refused {
    pub(super) why: String,
    pub(super) again: Instant,
    wait: Duration,
}

impl Refused {
    /// The refusal that follows `before`, each time waiting twice as long.
    fn after(before: Option<Refused>, why: String, now: Instant) -> Self {
        let wait = before.map_or(RETRY, |before| (before.wait * 2).min(RETRY_MAX));
        Self {
            why,
            again: now + wait,
            wait,
        }
    }
}

impl Router {
    /// There is none where all devices are left to the kernel.
    pub(super) fn start_fast_path(&mut self) -> Result<(), fastpath::FastPathError> {
        if self.devices.is_empty() {
            return Ok(());
        }
        if let Some(steer) = &mut self.steer {
            self.fast = Some(FastPath::start(
                &self.config.router,
                &self.devices,
                &self.slow,
                steer,
            )?);
        }
        let workers = self.fast.iter().flat_map(FastPath::workers);
        (self.captures).set_workers(workers.map(|worker| worker.taps.clone()).collect());
        Ok(())
    }

    /// Ends the fast path when a device of it is gone or another one, and starts it again when all are there.
    pub(super) fn follow_devices(&mut self, state: &State) {
        let found = ports::find(&self.config.router, state).and_then(|found| {
            self.claims
                .set(&ports::claimed(&self.config.router, &found))?;
            Ok(found)
        });
        let Found { devices, left } = match found {
            Ok(found) => found,
            Err(why) => {
                self.missing = Some(why.to_string());
                if self.fast.is_some() {
                    tracing::warn!("fast path off: {why}");
                }
                self.stop_fast_path();
                self.refused = None;
                self.devices.clear();
                return;
            }
        };
        self.missing = None;
        self.leave_out(left);
        if devices != self.devices {
            self.stop_fast_path();
            self.devices = devices;
            self.refused = None;
            // The new workers must know what they forward by before anything is steered to them, and until then the
            // slow path numbers the packets.
            self.publish(state);
            self.restart_fast_path();
        }
    }

    /// Ends the fast path and starts it as another configuration says. The slow path carries meanwhile. When the new one
    /// does not come up the old one is there again.
    pub(in crate::control) fn replace_fast_path(
        &mut self,
        new: RouterConfig,
        state: &State,
    ) -> Result<(), RunError> {
        let found = ports::find(&new, state)?;
        if new.xdp != XdpMode::Off {
            self.prepare_fast_path()?;
        }
        let held: Vec<String> = self
            .claims
            .held()
            .map(|(name, _)| name.to_owned())
            .collect();
        self.claims.set(&ports::claimed(&new, &found))?;
        let old = std::mem::replace(&mut self.config.router, new);
        let devices = std::mem::replace(&mut self.devices, found.devices);
        self.stop_fast_path();
        // The new workers must know what they forward by before anything is steered to them.
        self.publish(state);
        self.refused = None;
        if self.config.router.xdp == XdpMode::Off {
            return Ok(());
        }
        self.leave_out(found.left);
        let Err(why) = self.start_fast_path() else {
            return Ok(());
        };
        self.config.router = old;
        self.devices = devices;
        let held: Vec<&str> = held.iter().map(String::as_str).collect();
        self.claims.set(&held)?;
        if self.config.router.xdp != XdpMode::Off {
            self.restart_fast_path();
        }
        self.publish(state);
        Err(why.into())
    }

    /// What a fast path takes and a router without one may lack: the steering program, and a device to hand packets back by.
    fn prepare_fast_path(&mut self) -> Result<(), RunError> {
        if self.steer.is_none() {
            self.steer = Some(Steer::load(Limits::default())?);
            self.compiler.retell_prefixes();
        }
        if !self.has_service {
            let service = open_service_device().map_err(TunnelError::from)?;
            self.slow.set_service(service);
            self.has_service = true;
        }
        Ok(())
    }

    /// Whether it is on now.
    pub(in crate::control) fn restart_fast_path(&mut self) -> bool {
        let before = self.refused.take();
        let Err(why) = self.start_fast_path() else {
            if self.fast.is_some() {
                tracing::info!("fast path on again");
            }
            return true;
        };
        let why = why.to_string();
        if before.as_ref().map(|before| &before.why) != Some(&why) {
            tracing::error!("fast path off: {why}");
        }
        self.refused = Some(Refused::after(before, why, Instant::now()));
        false
    }

    pub(super) fn stop_fast_path(&mut self) {
        if let (Some(fast), Some(steer)) = (self.fast.take(), &mut self.steer) {
            self.books.close(fast.stop(&self.slow, steer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_fast_path_is_tried_again_ever_more_rarely() {
        let now = Instant::now();
        let mut refused = None;
        let waits: Vec<u64> = (0..9)
            .map(|_| {
                let next = Refused::after(refused.take(), String::new(), now);
                assert_eq!(next.again, now + next.wait);
                refused.insert(next).wait.as_secs()
            })
            .collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 300]);
    }
}
