//! What a service manager is told (sd_notify(3)): ready, reloading, stopping, alive. Without one nothing is.

use std::time::{Duration, Instant};

use sd_notify::{NotifyState, notify, watchdog_enabled};

/// The way to the service manager.
pub struct Service {
    /// How often it wants to hear that we live, if it does.
    watchdog: Option<Duration>,
    last: Instant,
    status: String,
}

impl Service {
    /// Finds out whether there is one, from the environment.
    pub fn find() -> Self {
        Self {
            // Half of what it waits for, as sd_watchdog_enabled(3) asks.
            watchdog: watchdog_enabled().map(|limit| limit / 2),
            last: Instant::now(),
            status: String::new(),
        }
    }

    pub fn ready(&mut self) {
        tell(&[NotifyState::Ready]);
        self.alive();
    }

    /// A reload begins; [`ready`](Self::ready) says that it is over.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// The router's task goes round: the watchdog may rest. To be called more often than once a second at the most.
    pub fn alive(&mut self) {
        let now = Instant::now();
        if self.watchdog.is_some_and(|every| now >= self.last + every) {
            self.last = now;
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// One line for `systemctl status`, where it is another than before.
    pub fn status(&mut self, line: String) {
        if line != self.status {
            tell(&[NotifyState::Status(&line)]);
            self.status = line;
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    // A manager that does not listen is no reason to stop routing.
    if let Err(why) = notify(states) {
        tracing::debug!("the service manager does not hear: {why}");
    }
}
