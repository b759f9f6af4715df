//! What the verbs do. Each returns the exit status: 0 done, 1 refused or failed.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    thread::sleep,
    time::Duration,
};

use anyhow::anyhow;
use ipnet::IpNet;
use serde::Serialize;

use super::{Ask, Cli, LogFormat, RouteVerb, TunnelVerb, Verb, top};
use crate::control::{
    self,
    change::Done,
    check,
    config::Config,
    report::{
        Statistics, TunnelReport, human,
        routes::{self, RoutePage},
        trace::{self, Probe, TraceReport},
    },
    socket::{Client, Request},
};

const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Cursor home and clear the screen (ECMA-48), as watch(1) does.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Does what was asked. A reader that went away (a closed pipe) is no failure.
pub fn act(cli: Cli) -> anyhow::Result<ExitCode> {
    let done = match cli.verb {
        Verb::Run {
            config,
            takeover,
            log_format,
            log_level,
        } => {
            start_logging(log_format, &log_level)?;
            control::run(Config::load(&config.path)?, &config.path, takeover).map_err(Into::into)
        }
        Verb::Check { config, json } => return closed_pipe_is_fine(check(&config.path, json)),
        Verb::Tunnel(TunnelVerb::Show { name, ask }) => tunnel_show(name, &ask),
        Verb::Tunnel(TunnelVerb::Add { name, words, ask }) => {
            change(&Request::TunnelAdd { name, words }, &ask)
        }
        Verb::Tunnel(TunnelVerb::Del { name, ask }) => change(&Request::TunnelDel { name }, &ask),
        Verb::Reload { ask } => change(&Request::Reload {}, &ask),
        Verb::Route(RouteVerb::Show { prefix, ask }) => route_show(prefix, &ask),
        Verb::Trace {
            source,
            destination,
            from,
            protocol,
            sport,
            dport,
            size,
            ttl,
            tos,
            df,
            ask,
        } => {
            let probe = Probe {
                source,
                destination,
                from,
                protocol,
                sport,
                dport,
                size,
                ttl,
                tos,
                df,
            };
            trace(probe, &ask)
        }
        Verb::Capture(options) => super::capture::capture(&options),
        Verb::Stats { name, watch, ask } => stats(name, watch, &ask),
        Verb::Top { socket } => return top::run(&socket),
    };
    closed_pipe_is_fine(done.map(|()| ExitCode::SUCCESS))
}

fn closed_pipe_is_fine(result: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    result.or_else(|e| match e.downcast_ref::<io::Error>() {
        Some(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        _ => Err(e),
    })
}

fn start_logging(format: LogFormat, level: &str) -> anyhow::Result<()> {
    control::log::start(format == LogFormat::Json, level.parse()?);
    Ok(())
}

fn check(path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let findings = match Config::load(path) {
        Ok(config) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| anyhow!("cannot start looking at the host: {e}"))?
            .block_on(check::examine(&config)),
        Err(e) => vec![check::refused(&e)],
    };
    let report = check::Report::new(findings);
    let fit = report.fit;
    match json {
        true => print_json(&report)?,
        false => print(&report.to_string())?,
    }
    Ok(if fit {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tunnel_show(name: Option<String>, ask: &Ask) -> anyhow::Result<()> {
    let mut client = Client::connect(&ask.socket)?;
    let tunnels: Vec<TunnelReport> = client.ask(&Request::TunnelShow { name })?;
    match ask.json {
        true => print_json(&tunnels),
        false => print(&human::tunnels(&tunnels)),
    }
}

/// Has something changed, and says what was done.
fn change(request: &Request, ask: &Ask) -> anyhow::Result<()> {
    let done: Done = Client::connect(&ask.socket)?.ask(request)?;
    match ask.json {
        true => print_json(&done),
        false => print(&format!("{done}\n")),
    }
}

/// Page by page: a table can be larger than an answer.
fn route_show(within: Option<IpNet>, ask: &Ask) -> anyhow::Result<()> {
    let mut client = Client::connect(&ask.socket)?;
    let mut after = None;
    let mut gap = "[\n";
    loop {
        let page: RoutePage = client.ask(&Request::RouteShow { within, after })?;
        for route in &page.routes {
            match ask.json {
                true => print(&format!("{gap}{}", serde_json::to_string(route)?))?,
                false => print(&routes::line(route))?,
            }
            gap = ",\n";
        }
        let last = page.routes.last().filter(|_| page.more);
        after = last.map(|route| route.prefix.parse()).transpose()?;
        if after.is_none() {
            break;
        }
    }
    match ask.json {
        true if gap == "[\n" => print("[]\n"),
        true => print("\n]\n"),
        false => Ok(()),
    }
}

fn trace(probe: Probe, ask: &Ask) -> anyhow::Result<()> {
    let report: TraceReport = Client::connect(&ask.socket)?.ask(&Request::Trace { probe })?;
    match ask.json {
        true => print_json(&report),
        false => print(&trace::text(&report)),
    }
}

fn stats(name: Option<String>, watch: bool, ask: &Ask) -> anyhow::Result<()> {
    let mut client = Client::connect(&ask.socket)?;
    let request = Request::Stats { name };
    loop {
        let statistics: Statistics = client.ask(&request)?;
        match (ask.json, watch) {
            (true, false) => print_json(&statistics)?,
            // One object per line, for whoever reads them one by one.
            (true, true) => print(&(serde_json::to_string(&statistics)? + "\n"))?,
            (false, _) => {
                let screen = watch && io::stdout().is_terminal();
                let clear = if screen { CLEAR } else { "" };
                let gap = if watch && !screen { "\n" } else { "" };
                print(&format!("{clear}{}{gap}", human::statistics(&statistics)))?;
            }
        }
        if !watch {
            return Ok(());
        }
        sleep(WATCH_INTERVAL);
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
