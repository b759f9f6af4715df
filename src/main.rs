//! The `greyhound` command.

use std::process::ExitCode;

use greyhound::cli::{Cli, act};

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(usage) => {
            // Help and version come this way too, with their own status and to stdout.
            let _ = usage.print();
            return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2));
        }
    };
    act::act(cli).unwrap_or_else(|e| {
        // Every error's own words name its cause already.
        eprintln!("greyhound: {e}");
        ExitCode::FAILURE
    })
}
