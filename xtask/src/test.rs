//! `cargo xtask test`: sets up, builds the binaries that the tests start, and runs every test.
//!
//! Tests with `root_` in their name (at its beginning, by custom) load programs or make cgroups: without root
//! they are left out, and named as skipped, never counted as passed.
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::tally::Tally;
use crate::watch::Watch;
use crate::{clients, setup, vm};

/// Marks a test that needs root.
pub const ROOT: &str = "root_";

/// The tests end within this time after the build, or are killed.
const LIMIT: Duration = Duration::from_secs(8 * 60);
/// The same with the long rounds.
const FULL_LIMIT: Duration = Duration::from_secs(3 * 60 * 60);

/// What to run.
#[derive(Args, Debug)]
pub struct Options {
    /// Run the long rounds too (sets ENFORCER_TEST_FULL=1 for the tests)
    #[arg(long)]
    full: bool,
    /// Run the kernel plane's root tests on Debian's newest kernel of this series (6.1) in qemu instead: emulated,
    /// so neither KVM nor root is needed (root installs what is missing), x86-64 only, about ten minutes.
    /// The machine's console is kept in target/vm
    #[arg(long, value_name = "SERIES", conflicts_with = "full")]
    kernel: Option<String>,
    /// Install Claude Code, Codex, gemini-cli, the Python and Node SDKs and curl into target/clients, and run them
    /// instead: as root, from their registries, but in a network with nothing but lo
    #[arg(long, conflicts_with_all = ["full", "kernel"])]
    real_clients: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Runs the tests; the runner's summary lines, and their sum in one, are the last thing printed.
///
/// # Errors
/// When the set-up, the build or a test fails.
pub fn run(options: &Options) -> Result<()> {
    setup::run()?;
    if let Some(series) = &options.kernel {
        return vm::run(series, options.filter.as_deref());
    }
    if options.real_clients {
        return clients::run(options.filter.as_deref());
    }
    setup::for_tests()?;
    // the end-to-end tests start these binaries: `cargo test` alone would not build another package's
    cargo(&["build", "--workspace"])?;
    cargo(&["test", "--workspace", "--no-run", "--quiet"])?;
    let root = setup::is_root()?;
    let skipped = if root { 0 } else { report_skipped()? };
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--workspace", "--no-fail-fast"]);
    cargo.arg("--").args(options.filter.as_deref());
    if !root {
        cargo.args(["--skip", ROOT]);
    }
    if options.full {
        cargo.env("ENFORCER_TEST_FULL", "1");
    }
    tallied(cargo, if options.full { FULL_LIMIT } else { LIMIT }, skipped)
}

/// Runs a `cargo test` whose lines are printed and counted; the sum, with `skipped` tests that were not started, is the
/// last thing printed.
///
/// # Errors
/// When a test fails, none is run, or they do not end within `limit`.
pub fn tallied(mut cargo: Command, limit: Duration, skipped: usize) -> Result<()> {
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let watch = Watch::start(child.id(), limit);
    let mut tally = Tally::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read the output of cargo test")?;
        println!("{line}");
        tally.add(&line);
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    ensure!(watch.end(), "the tests did not end within {} minutes and were killed", limit.as_secs() / 60);
    println!("{}", tally.summary(skipped));
    ensure!(status.success(), "tests failed ({status})");
    ensure!(tally.passed > 0, "no test was run");
    Ok(())
}

/// Names the tests that this user cannot run, and counts them.
fn report_skipped() -> Result<usize> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--workspace", "--quiet", "--", "--list", "--format", "terse"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo test")?;
    ensure!(output.status.success(), "listing the tests failed ({})", output.status);
    let listing = String::from_utf8_lossy(&output.stdout);
    let names = root_tests(&listing);
    for name in &names {
        println!("skipped, needs root: {name}");
    }
    Ok(names.len())
}

/// The tests of a listing (`path::to::name: test` lines) that `--skip root_` leaves out.
fn root_tests(listing: &str) -> BTreeSet<&str> {
    let names = listing.lines().filter_map(|line| line.strip_suffix(": test"));
    names.filter(|name| name.contains(ROOT)).collect()
}

/// Runs cargo with these arguments.
///
/// # Errors
/// When it cannot be started or fails.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    let status = Command::new("cargo").args(arguments).status().context("cannot start cargo")?;
    ensure!(status.success(), "`cargo {}` failed ({status})", arguments.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::root_tests;

    #[test]
    fn tests_that_need_superuser_are_listed_and_benchmarks_are_not() {
        let listing = "a::root_drops: test\nb::plain: test\nroot_top: test\nroot_bench: benchmark\n2 tests\n";
        assert_eq!(root_tests(listing).into_iter().collect::<Vec<_>>(), ["a::root_drops", "root_top"]);
    }
}
