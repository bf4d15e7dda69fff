//! `doctor`: whether this kernel and host can do it, one line a check.
use std::process::ExitCode;

use serde::Serialize;

use super::output::{print, print_json};
use crate::cli::{Global, Json};
use crate::control::client::ClientError;
use crate::error::{Exit, Failure};
use crate::kernel::probe::{Probe, probes};
use crate::state::StateDir;
use crate::text::scrub;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    /// Whether bottles can be guarded without it.
    required: bool,
    ok: bool,
    detail: String,
}

/// `doctor --json`.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether every required check is well.
    ok: bool,
    checks: Vec<Check>,
}

pub(super) fn run(global: &Global, json: Json) -> Result<ExitCode, Failure> {
    let mut checks: Vec<Check> = probes().into_iter().map(from_probe).collect();
    checks.push(state_directory(global));
    checks.push(daemon(global)?);
    let report = Report { ok: checks.iter().all(|check| check.ok || !check.required), checks };
    if json.json {
        print_json(&report)?;
    } else {
        print(&lines(&report.checks))?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { Exit::Unsupported.into() })
}

fn from_probe(probe: Probe) -> Check {
    Check { name: probe.name.to_owned(), required: probe.required, ok: probe.ok, detail: probe.detail }
}

fn state_directory(global: &Global) -> Check {
    let (ok, detail) = match StateDir::open(global.state_dir.as_deref()) {
        Ok(state) => (true, state.path().display().to_string()),
        Err(error) => (false, format!("{error} ({})", error.hint())),
    };
    Check { name: "state directory".to_owned(), required: true, ok, detail }
}

/// Not required: `run` starts a daemon when none answers.
fn daemon(global: &Global) -> Result<Check, Failure> {
    let control = super::connect(global)?;
    let (ok, detail) = match control.wait(control.client().status()) {
        Ok(status) => (true, format!("pid {}, meter {}", status.daemon.pid, status.daemon.meter.state)),
        Err(error @ ClientError::NoDaemon(_)) => (false, error.to_string()),
        Err(error) => (false, Failure::from(error).message),
    };
    Ok(Check { name: "daemon".to_owned(), required: false, ok, detail })
}

fn lines(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let line = |check: &Check| {
        let mark = match (check.ok, check.required) {
            (true, _) => "ok  ",
            (false, true) => "FAIL",
            (false, false) => "no  ",
        };
        format!("{mark}  {:<width$}  {}\n", scrub(&check.name), scrub(&check.detail))
    };
    checks.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_and_what_is_only_missing_look_different() {
        let check = |name: &str, required, ok| Check { name: name.into(), required, ok, detail: "d".into() };
        assert_eq!(
            lines(&[check("a", true, true), check("long", true, false), check("b", false, false)]),
            "ok    a     d\nFAIL  long  d\nno    b     d\n"
        );
    }
}
