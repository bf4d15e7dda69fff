//! Bad input, tried for real: one clear error, the right exit code, and nothing half-attached.
//!
//! The built binaries are asked as a clumsy or hostile user would. What works is not tested here.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
mod attach;
mod control;
mod ledger;
mod listener;
mod namespace;
mod settings;
mod start;
mod words;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::process::{self, Output};
use tempfile::TempDir;

/// Longest time that a refusal may take.
const SOON: Duration = Duration::from_secs(15);
/// Exit codes of the contract.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NO_DAEMON: i32 = 3;
const REFUSED: i32 = 4;
const UNSUPPORTED: i32 = 5;
/// `nobody` of Debian.
const NOBODY: u32 = 65534;

/// Holds an output to the form of every failure: nothing on stdout, one `enforcer:` line with these words, at most
/// one hint after it, no control character, and this exit code. What the log said before is not looked at.
#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &str) {
    let said = format!("{output:#?}");
    assert_eq!(output.code, Some(code), "{said}");
    assert_eq!(output.stdout, "", "{said}");
    let lines: Vec<_> = output.stderr.lines().collect();
    let first = lines.iter().position(|line| line.starts_with("enforcer: ")).expect(&said);
    assert!(lines[first].contains(words), "no {words:?} in {said}");
    let rest = &lines[first + 1..];
    assert!(rest.len() <= 1 && rest.iter().all(|line| line.starts_with("  hint: ")), "{said}");
    assert!(!output.stderr.chars().any(|c| c.is_control() && c != '\n'), "{said}");
}

/// The program itself, without the variables that name a daemon.
fn enforcer() -> Command {
    unnamed(process::built("enforcer"))
}

fn unnamed(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_remove("BOT_BOTTLE_HOME").env_remove("ENFORCER_SOCKET");
    command
}

/// Runs the program with these arguments to its end.
fn ask(arguments: &[&str]) -> Output {
    process::run(enforcer().args(arguments), SOON)
}

/// A state directory, mode 0700, of a daemon that is not to start.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("enforcer-bad-").tempdir().unwrap();
        fs::DirBuilder::new().mode(0o700).create(dir.path().join("state")).unwrap();
        let place = Self { dir };
        place.settings("listen: \"127.0.0.1:0\"\n");
        place
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn settings(&self, text: &str) {
        fs::write(self.state().join("settings.yml"), text).unwrap();
    }

    /// The daemon on this directory, to be started.
    fn daemon(&self) -> Command {
        let mut command = enforcer();
        command.arg("--state-dir").arg(self.state()).arg("daemon");
        command
    }

    /// Starts the daemon, which must refuse; then nothing of it may be left.
    #[track_caller]
    fn assert_refuses(&self, code: i32, words: &str) {
        let before = traces();
        assert_refused(&process::run(&mut self.daemon(), SOON), code, words);
        assert!(!self.state().join("control.sock").exists(), "a socket file stays");
        self.assert_no_traces(&before);
    }

    /// Of what is new since `before`, nothing may be this directory's: other tests run beside this one, so a trace
    /// that is another daemon's is told by a process or a bottle that is in use there.
    #[track_caller]
    fn assert_no_traces(&self, before: &[PathBuf]) {
        let Some(instance) = self.instance() else { return };
        let own = |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy() == instance);
        let left: Vec<_> = traces().into_iter().filter(|path| !before.contains(path)).collect();
        assert_eq!(left.iter().filter(own).collect::<Vec<_>>(), [] as [&PathBuf; 0]);
    }

    /// `enforcer-…`, as its pins and cgroups are called: the name of the directory that the certificate is in.
    fn instance(&self) -> Option<String> {
        let mut command = enforcer();
        let output = process::run(command.arg("--state-dir").arg(self.state()).args(["ca", "path"]), SOON);
        let said = output.stdout + &output.stderr;
        let at = said.find("/run/enforcer-")? + "/run/".len();
        Some(said[at..].split('/').next()?.to_owned())
    }
}

impl Drop for Place {
    /// The public directory of a daemon that got that far.
    fn drop(&mut self) {
        if let Some(instance) = self.instance() {
            drop(fs::remove_dir_all(Path::new("/run").join(instance)));
        }
    }
}

/// Pin directories and cgroups of every controller on this host.
fn traces() -> Vec<PathBuf> {
    let roots = [PathBuf::from("/sys/fs/bpf"), support::cgroup::mount_point()];
    let entries = roots.iter().flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/enforcer-")).collect()
}
