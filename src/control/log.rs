//! The log: text or JSON on stderr, and never so much of one kind that it hides the rest.
//!
//! A line is a change of state: what, and why. Some change thousands of times, a link that flaps or ten thousand tunnels at
//! the start; so each place in the code may write [`BURST`] lines at once and [`RATE`] a second after that, and who is left
//! out is counted and named once it is over.

use std::{
    collections::HashMap,
    fmt::Write,
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer,
    layer::{Context, Filter, SubscriberExt},
    util::SubscriberInitExt,
};

/// Lines that one place may write at once.
const BURST: f64 = 500.0;
/// Lines a second that it may write after that.
const RATE: f64 = 20.0;
/// Bytes of a line that stands for those that are left out.
const SAMPLE: usize = 200;

static LIMIT: Limit = Limit(Mutex::new(None));

/// Begins to log. `filter` says what: a level, or tracing's directives.
pub fn start(json: bool, filter: EnvFilter) {
    let log = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    match json {
        false => registry.with(log.with_filter(&LIMIT)).init(),
        true => registry
            .with(log.json().flatten_event(true).with_filter(&LIMIT))
            .init(),
    }
}

/// Says what has been left out since the last time. Each second, by the router's task.
pub fn say_what_was_left_out() {
    for (lines, sample) in LIMIT.take_left_out() {
        tracing::warn!("{lines} lines left out like this one: {sample}");
    }
}

/// What each place in the code may still write.
#[derive(Debug)]
struct Limit(Mutex<Option<HashMap<Identifier, Place>>>);

#[derive(Debug)]
struct Place {
    left: f64,
    since: Instant,
    left_out: u64,
    /// The first line of those.
    sample: String,
}

impl Place {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
            left_out: 0,
            sample: String::new(),
        }
    }

    /// Whether a line may be written.
    fn pass(&mut self, now: Instant) -> bool {
        let earned = RATE * now.saturating_duration_since(self.since).as_secs_f64();
        (self.left, self.since) = ((self.left + earned).min(BURST), now);
        let passes = self.left >= 1.0;
        self.left -= if passes { 1.0 } else { 0.0 };
        passes
    }
}

impl Limit {
    fn passes(&self, event: &Event<'_>) -> bool {
        // Who asks for more than that wants all of it.
        if *event.metadata().level() > Level::INFO {
            return true;
        }
        let now = Instant::now();
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let places = places.get_or_insert_default();
        let place = (places.entry(event.metadata().callsite())).or_insert_with(|| Place::new(now));
        if place.pass(now) {
            return true;
        }
        if place.left_out == 0 {
            event.record(&mut Sample(&mut place.sample));
        }
        place.left_out += 1;
        false
    }

    fn take_left_out(&self) -> Vec<(u64, String)> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let places = places.iter_mut().flat_map(HashMap::values_mut);
        let silenced = places.filter(|place| place.left_out > 0);
        silenced
            .map(|place| {
                let lines = std::mem::take(&mut place.left_out);
                (lines, std::mem::take(&mut place.sample))
            })
            .collect()
    }
}

impl<S: Subscriber> Filter<S> for &'static Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.passes(event)
    }
}

/// A line's text, cut to what is enough to know it by.
struct Sample<'s>(&'s mut String);

impl Visit for Sample<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
            while self.0.len() > SAMPLE {
                self.0.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut place = Place::new(start);
        let pass = |place: &mut Place, at, n| (0..n).filter(|_| place.pass(at)).count();
        assert_eq!(pass(&mut place, start, 2 * BURST as usize), BURST as usize);
        let later = start + Duration::from_secs(2);
        assert_eq!(pass(&mut place, later, 1000), 2 * RATE as usize);
        let much_later = later + Duration::from_secs(3600);
        assert_eq!(pass(&mut place, much_later, 10_000), BURST as usize);
    }

    #[test]
    fn what_is_left_out_is_counted_with_a_sample() {
        static LIMIT: Limit = Limit(Mutex::new(None));
        let log = tracing_subscriber::fmt::layer().with_writer(io::sink);
        let registry = tracing_subscriber::registry().with(log.with_filter(&LIMIT));
        tracing::subscriber::with_default(registry, || {
            for n in 0..700 {
                tracing::info!("tunnel gre{n}: up");
            }
            tracing::info!("ready");
        });
        let [(lines, sample)] = &LIMIT.take_left_out()[..] else {
            panic!("one place has written too much");
        };
        // A slow machine earns a line or two meanwhile.
        assert!((150..=200).contains(lines), "{lines}");
        assert_eq!(sample, "tunnel gre500: up");
        assert!(LIMIT.take_left_out().is_empty());
    }
}
