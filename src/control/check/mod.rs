//! `greyhound check`: is this host fit for this configuration?
//!
//! [`examine`] first observes the host (netlink, /proc, /sys; nothing is changed), then judges what it saw: judging is a
//! plain function of the configuration and the observation, one file per group of findings.

mod accelerate;
mod bridge;
mod bypass;
mod devices;
mod endpoints;
mod forwarding;
mod host;
mod mtu;
mod netlink;
mod observe;
mod placement;
mod programs;
mod queues;
mod sharing;
mod system;
#[cfg(test)]
mod tests;
mod xfrm;

use std::fmt;

use serde::Serialize;

use super::config::{Config, ConfigError};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    /// The router runs, but not as one might expect.
    Warn,
    /// The router does not run, or does not forward.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// What kind of thing, a stable word: `capabilities`, `queues`, `forwarding` …
    pub check: &'static str,
    /// The device or the tunnel; `host` otherwise.
    pub subject: String,
    /// What was found: the evidence.
    pub found: String,
    /// The command, or the change, that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// All findings and what they amount to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing failed.
    pub fit: bool,
    pub findings: Vec<Finding>,
}

impl Finding {
    pub fn ok(check: &'static str, subject: impl Into<String>, found: impl Into<String>) -> Self {
        Finding {
            severity: Severity::Ok,
            check,
            subject: subject.into(),
            found: found.into(),
            mend: None,
        }
    }

    pub fn warn(check: &'static str, subject: impl Into<String>, found: impl Into<String>) -> Self {
        Finding {
            severity: Severity::Warn,
            ..Finding::ok(check, subject, found)
        }
    }

    pub fn fail(check: &'static str, subject: impl Into<String>, found: impl Into<String>) -> Self {
        Finding {
            severity: Severity::Fail,
            ..Finding::ok(check, subject, found)
        }
    }

    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

impl Report {
    pub fn new(findings: Vec<Finding>) -> Report {
        Report {
            fit: findings.iter().all(|f| f.severity != Severity::Fail),
            findings,
        }
    }

    fn count(&self, severity: Severity) -> usize {
        self.findings
            .iter()
            .filter(|f| f.severity == severity)
            .count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |of: fn(&Finding) -> &str| {
            let widths = self
                .findings
                .iter()
                .map(|finding| of(finding).chars().count());
            widths.max().unwrap_or(0)
        };
        let subject = width(|finding| &finding.subject);
        let check = width(|finding| finding.check);
        for finding in &self.findings {
            let Finding { found, mend, .. } = finding;
            let severity = finding.severity.as_str();
            let (name, kind) = (&finding.subject, finding.check);
            writeln!(
                f,
                "{severity:<4}  {name:<subject$}  {kind:<check$}  {found}"
            )?;
            if let Some(mend) = mend {
                writeln!(f, "      {mend}")?;
            }
        }
        let (warn, fail) = (self.count(Severity::Warn), self.count(Severity::Fail));
        let verdict = if self.fit { "fit" } else { "not fit" };
        let ok = self.count(Severity::Ok);
        writeln!(
            f,
            "{verdict}: {fail} failed, {warn} to look at, {ok} in order"
        )
    }
}

impl Severity {
    /// The word in JSON and in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Warn => "warn",
            Severity::Fail => "fail",
        }
    }
}

/// The one finding about a configuration that was refused.
pub fn refused(error: &ConfigError) -> Finding {
    Finding::fail("configuration", "host", error.to_string())
}

/// Looks at everything that matters to this configuration.
pub async fn examine(config: &Config) -> Vec<Finding> {
    crate::xdp::listen_to_libbpf();
    judge(config, &observe::host(config).await)
}

fn judge(config: &Config, host: &host::Host) -> Vec<Finding> {
    let tunnels = config.tunnels.len();
    let valid = format!(
        "valid, {tunnels} {}",
        if tunnels == 1 { "tunnel" } else { "tunnels" }
    );
    let mut findings = vec![Finding::ok("configuration", "host", valid)];
    findings.extend(system::judge(config, host));
    findings.extend(devices::judge(config, host));
    findings.extend(bridge::judge(config, host));
    findings.extend(queues::judge(config, host));
    findings.extend(sharing::judge(config, host));
    findings.extend(placement::judge(config, host));
    findings.extend(endpoints::judge(config, host));
    findings.extend(accelerate::judge(host));
    findings.extend(forwarding::judge(config, host));
    findings.extend(bypass::judge(config, host));
    findings
}
