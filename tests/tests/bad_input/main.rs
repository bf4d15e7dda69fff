//! Bad input, tried for real: one clear error, the right exit code, and nothing half-attached.
//!
//! The built binaries are asked as a clumsy or hostile user would. What works is not tested here.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
mod attach;
mod control;
mod cuts;
mod ledger;
mod listener;
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
    /// `enforcer-…`: what its pins, its cgroups and its public directory would be called.
    instance: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("enforcer-bad-").tempdir().unwrap();
        let state = dir.path().join("state");
        fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
        // the certificate is not there yet; the refusal tells where it would be
        let no_certificate =
            process::run(enforcer().arg("--state-dir").arg(state).args(["ca", "path"]), SOON);
        let (_, path) = no_certificate.stderr.split_once("/run/").expect("a path below /run");
        let instance = path.split('/').next().unwrap().to_owned();
        assert!(instance.starts_with("enforcer-"), "{no_certificate:?}");
        let place = Self { dir, instance };
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

    /// Starts the daemon, which must refuse and leave nothing.
    #[track_caller]
    fn assert_refuses(&self, code: i32, words: &str) {
        assert_refused(&process::run(&mut self.daemon(), SOON), code, words);
        self.assert_no_traces();
    }

    /// Holds a daemon that did not start to having left no socket, no pin and no cgroup.
    #[track_caller]
    fn assert_no_traces(&self) {
        for trace in [self.state().join("control.sock"), self.pins(), self.cgroup()] {
            assert!(!trace.exists(), "{} stays", trace.display());
        }
    }

    fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.instance)
    }

    fn cgroup(&self) -> PathBuf {
        support::cgroup::mount_point().join(&self.instance)
    }
}

impl Drop for Place {
    /// The public directory of a daemon that got that far, and all of one that should not have.
    fn drop(&mut self) {
        drop(fs::remove_dir_all(Path::new("/run").join(&self.instance)));
        if let Err(error) = support::cgroup::remove(&self.cgroup()) {
            eprintln!("{} stays: {error}", self.cgroup().display());
        }
        if self.pins().exists() {
            let mut unpin = enforcer();
            unpin.arg("--state-dir").arg(self.state()).args(["daemon", "--unpin-all"]);
            drop(process::try_run(&mut unpin, SOON));
        }
    }
}
