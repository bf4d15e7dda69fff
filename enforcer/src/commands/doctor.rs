//! `doctor`: whether this kernel and host can do it, one line a check, and the ways out that were tried.
use std::io;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use super::output::{Table, print, print_json};
use crate::cli::{Global, Json};
use crate::error::{Exit, Failure};
use crate::escape::{Escape, self_test};
use crate::kernel::probe::{Probe, probes};
use crate::state::StateDir;
use crate::text::scrub;

/// This program, also when its file has been replaced meanwhile.
const OURSELVES: &str = "/proc/self/exe";

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    /// Whether bottles can be guarded without it.
    required: bool,
    ok: bool,
    detail: String,
    /// What to do about it.
    hint: Option<String>,
}

/// `doctor --json`.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether every required check is well.
    ok: bool,
    checks: Vec<Check>,
    /// Every way out of a bottle that was tried; none when there could be no bottle.
    escapes: Vec<Escape>,
}

pub(super) fn run(global: &Global, json: Json) -> Result<ExitCode, Failure> {
    let (probes, tried) = {
        let _held = HeldSignals::hold().map_err(|error| Failure::io("hold signals back", &error))?;
        let probes = probes();
        let tried = can_guard(&probes).then(|| self_test(Path::new(OURSELVES)));
        (probes, tried)
    };
    let mut checks: Vec<Check> = probes.into_iter().map(from_probe).collect();
    let (check, escapes) = match tried {
        Some(Ok(escapes)) => (judged(&escapes), escapes),
        Some(Err(error)) => (escape_check(false, error.to_string()), Vec::new()),
        None => (escape_check(false, "not tried: something required is missing".to_owned()), Vec::new()),
    };
    checks.extend([check, state_directory(global), daemon(global)?]);
    let report = Report { ok: checks.iter().all(|check| check.ok || !check.required), checks, escapes };
    if json.json {
        print_json(&report)?;
    } else {
        print(&format!("{}{}", lines(&report.checks), escape_table(&report.escapes)))?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { Exit::Unsupported.into() })
}

/// Keeps what would end this process from doing so before everything that it made is removed.
struct HeldSignals {
    before: SigSet,
}

impl HeldSignals {
    fn hold() -> io::Result<Self> {
        let before = SigSet::thread_get_mask()?;
        SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT])
            .thread_block()?;
        Ok(Self { before })
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        if let Err(error) = self.before.thread_set_mask() {
            tracing::warn!(%error, "the signal mask stays changed");
        }
    }
}

fn can_guard(probes: &[Probe]) -> bool {
    probes.iter().all(|probe| probe.ok || !probe.required)
}

fn escape_check(ok: bool, detail: String) -> Check {
    Check { name: "escape self-test".to_owned(), required: true, ok, detail, hint: None }
}

fn judged(escapes: &[Escape]) -> Check {
    let tried = escapes.iter().filter(|escape| escape.tried).count();
    let broken: Vec<_> = escapes.iter().filter(|escape| escape.is_broken_promise()).collect();
    let beyond = escapes.iter().any(|escape| !escape.closed && !escape.promised);
    let detail = match broken.first() {
        Some(first) => {
            let (attempt, bottle) = (first.attempt, first.bottle.name());
            format!("{} of {tried} attempts got out; the first: {attempt}, bottle {bottle}", broken.len())
        }
        None if beyond => {
            format!("of {tried} attempts only those got out that no cgroup's hooks see: `open` in the table")
        }
        None => format!("none of {tried} attempts got out"),
    };
    escape_check(broken.is_empty(), detail)
}

/// One line a way out; what did not get out needs no more words.
fn escape_table(escapes: &[Escape]) -> String {
    if escapes.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["ESCAPE", "BY", "IN", "DETAIL"], []);
    for group in escapes_by_attempt(escapes) {
        let mut families: Vec<_> = group.iter().map(|escape| escape.family.name()).collect();
        families.dedup();
        let mark = mark(&group);
        table.row(&[mark.to_owned(), group[0].attempt.to_owned(), families.join(" "), detail(&group)]);
    }
    format!("\n{}", table.render())
}

/// The lines of the same attempt together, in the order in which they were first made, families together.
fn escapes_by_attempt(escapes: &[Escape]) -> Vec<Vec<&Escape>> {
    let mut groups: Vec<Vec<&Escape>> = Vec::new();
    for escape in escapes {
        match groups.iter_mut().find(|group| group[0].attempt == escape.attempt) {
            Some(group) => group.push(escape),
            None => groups.push(vec![escape]),
        }
    }
    for group in &mut groups {
        group.sort_by_key(|escape| escape.family.name());
    }
    groups
}

/// What happened where something got out, and out of which bottles; or why nothing was tried.
fn detail(group: &[&Escape]) -> String {
    let mut bottles: Vec<_> =
        group.iter().filter(|escape| !escape.closed).map(|escape| escape.bottle).collect();
    bottles.sort_unstable();
    bottles.dedup();
    let names: Vec<_> = bottles.iter().map(|bottle| bottle.name()).collect();
    match group.iter().find(|escape| !escape.closed || !escape.tried) {
        Some(escape) if escape.tried => format!("{}: {}", names.join(", "), escape.detail),
        Some(escape) => escape.detail.clone(),
        None => String::new(),
    }
}

fn mark(group: &[&Escape]) -> &'static str {
    if group.iter().any(|escape| escape.is_broken_promise()) {
        "ESCAPED"
    } else if group.iter().any(|escape| !escape.closed) {
        "open"
    } else if group.iter().any(|escape| escape.tried) {
        "closed"
    } else {
        "n/a"
    }
}

fn from_probe(probe: Probe) -> Check {
    let name = probe.name.to_owned();
    Check { name, required: probe.required, ok: probe.ok, detail: probe.detail, hint: probe.hint }
}

fn state_directory(global: &Global) -> Check {
    let (ok, detail, hint) = match StateDir::open(global.state_dir.as_deref()) {
        Ok(state) => (true, state.path().display().to_string(), None),
        Err(error) => (false, error.to_string(), Some(error.hint().to_owned())),
    };
    Check { name: "state directory".to_owned(), required: true, ok, detail, hint }
}

/// Not required: `run` starts a daemon when none answers.
fn daemon(global: &Global) -> Result<Check, Failure> {
    let control = super::connect(global)?;
    let (ok, detail, hint) = match control.wait(control.client().status()) {
        Ok(status) => (true, format!("pid {}, meter {}", status.daemon.pid, status.daemon.meter.state), None),
        Err(error) => {
            let failure = Failure::from(error);
            (false, failure.message, failure.hint)
        }
    };
    Ok(Check { name: "daemon".to_owned(), required: false, ok, detail, hint })
}

fn lines(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let line = |check: &Check| {
        let mark = match (check.ok, check.required) {
            (true, _) => "ok  ",
            (false, true) => "FAIL",
            (false, false) => "no  ",
        };
        let hint = match &check.hint {
            Some(hint) if !check.ok => format!(" ({})", scrub(hint)),
            _ => String::new(),
        };
        format!("{mark}  {:<width$}  {}{hint}\n", scrub(&check.name), scrub(&check.detail))
    };
    checks.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escape::{Family, State};

    fn escape(attempt: &'static str, family: Family, bottle: State) -> Escape {
        let detail = "d".to_owned();
        Escape { attempt, family, bottle, closed: true, tried: true, promised: true, detail }
    }

    #[test]
    fn only_what_got_out_needs_words() {
        let beyond = Escape { closed: false, promised: false, ..escape("frame", Family::Packet, State::Cut) };
        let escapes = [
            escape("tcp", Family::Ip6, State::Open),
            escape("tcp", Family::Ip4, State::Open),
            beyond.clone(),
            Escape { closed: false, ..escape("udp", Family::Ip4, State::Open) },
            escape("tcp", Family::Ip4, State::Cut),
            Escape { closed: false, ..escape("udp", Family::Ip4, State::Cut) },
            Escape { tried: false, ..escape("sctp", Family::Ip4, State::Cut) },
        ];
        assert_eq!(
            escape_table(&escapes),
            "\nESCAPE   BY     IN       DETAIL\nclosed   tcp    ip4 ip6\nopen     frame  packet   cut: d\n\
             ESCAPED  udp    ip4      open, cut: d\nn/a      sctp   ip4      d\n"
        );
        assert_eq!(escape_table(&[]), "");
        let check = judged(&escapes);
        assert!(!check.ok && check.required);
        assert_eq!(check.detail, "2 of 6 attempts got out; the first: udp, bottle open");
        assert!(judged(&[beyond]).ok, "what is not promised breaks no promise");
        assert_eq!(judged(&escapes[..2]).detail, "none of 2 attempts got out");
    }

    #[test]
    fn what_fails_and_what_is_only_missing_look_different() {
        let check = |name: &str, required, ok| Check {
            name: name.into(),
            required,
            ok,
            detail: "d".into(),
            hint: Some("h".into()),
        };
        assert_eq!(
            lines(&[check("a", true, true), check("long", true, false), check("b", false, false)]),
            "ok    a     d\nFAIL  long  d (h)\nno    b     d (h)\n"
        );
    }
}
