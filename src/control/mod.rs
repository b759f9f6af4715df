//! (stub)

pub mod check;
pub mod config;
pub mod report;
pub mod socket;

use std::path::Path;

/// Runs the router (stub).
pub fn run(_config: config::Config, _path: &Path) -> anyhow::Result<()> {
    anyhow::bail!("the router is not built yet")
}
