//! What the fuzzer runs: one function per target, which takes any bytes and panics when something is not as it must be.
//!
//! `scripts/fuzz.sh` runs them under libFuzzer; `tests/fuzz_replay.rs` includes this file and runs them over the captures
//! of tests/golden and over everything that the fuzzer ever found (`fuzz/found`).

mod bed;
mod codec;
mod config;
mod event;
mod forward;
mod judge;
pub mod seeds;
mod worker;

pub use codec::{decapsulate, encapsulate};
pub use config::config;
pub use forward::forward;
pub use worker::worker;

/// Takes any bytes; panics when something is not as it must be.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 5] = [
    ("encapsulate", encapsulate),
    ("decapsulate", decapsulate),
    ("forward", forward),
    ("worker", worker),
    ("config", config),
];

/// The bytes of an input, taken from the front; a byte that is not there is 0.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// At most `n` bytes.
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }
}
