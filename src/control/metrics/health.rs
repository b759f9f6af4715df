//! Whether the router is alive, and whether it is ready.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::super::report::Problem;

/// The router's task says each second how it is; one that is silent for so long does not turn.
const SILENCE: Duration = Duration::from_secs(10);

/// What the router's task said last.
#[derive(Debug)]
pub struct Health(Mutex<Said>);

#[derive(Debug)]
struct Said {
    at: Instant,
    /// None before the router runs.
    problems: Option<Vec<Problem>>,
}

impl Default for Health {
    fn default() -> Self {
        Self(Mutex::new(Said {
            at: Instant::now(),
            problems: None,
        }))
    }
}

impl Health {
    pub fn say(&self, problems: Vec<Problem>) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *said = Said {
            at: Instant::now(),
            problems: Some(problems),
        };
    }

    /// Why the router is not alive; nothing where it is.
    pub fn ills(&self, now: Instant) -> Vec<String> {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hanging = said.problems.iter().flatten().filter(|p| p.hangs);
        let mut ills: Vec<String> = hanging.map(|p| p.what.clone()).collect();
        let silent = now.saturating_duration_since(said.at);
        // The start may take its time: devices by the thousand.
        if said.problems.is_some() && silent >= SILENCE {
            let seconds = silent.as_secs();
            ills.push(format!("the router's task has not turned for {seconds} s"));
        }
        ills
    }

    /// Why the router is not ready; nothing where it is.
    pub fn not_ready(&self, now: Instant) -> Vec<String> {
        let mut why = self.ills(now);
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &said.problems {
            None => why.push("starting".to_owned()),
            Some(problems) => {
                let waiting = problems.iter().filter(|p| !p.hangs);
                why.extend(waiting.map(|p| p.what.clone()));
            }
        }
        why
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(what: &str, hangs: bool) -> Problem {
        Problem {
            what: what.to_owned(),
            hangs,
        }
    }

    #[test]
    fn what_is_alive_and_what_is_ready() {
        let (health, now) = (Health::default(), Instant::now());
        assert_eq!(health.ills(now + 100 * SILENCE), [""; 0]);
        assert_eq!(health.not_ready(now), ["starting"]);
        health.say(Vec::new());
        assert_eq!(health.not_ready(now), [""; 0]);
        health.say(vec![problem("eth0 is gone", false)]);
        assert_eq!(health.ills(now), [""; 0]);
        assert_eq!(health.not_ready(now), ["eth0 is gone"]);
        health.say(vec![problem("worker 0 hangs", true)]);
        assert_eq!(health.ills(now), ["worker 0 hangs"]);
        assert_eq!(health.not_ready(now), ["worker 0 hangs"]);
    }

    #[test]
    fn a_task_that_does_not_turn_is_found_out() {
        let health = Health::default();
        health.say(Vec::new());
        let now = Instant::now();
        assert_eq!(health.ills(now + SILENCE / 2), [""; 0]);
        let ills = health.ills(now + SILENCE + Duration::from_secs(2));
        assert!(ills[0].starts_with("the router's task has not turned for 1"));
    }
}
