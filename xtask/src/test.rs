//! `cargo xtask test`: sets up, builds the binaries that the tests start, and runs every test.
//!
//! Tests with `root_` in their name (at its beginning, by custom) load programs or make cgroups: without root
//! they are left out, and named as skipped, never counted as passed.
use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::setup;

/// Marks a test that needs root.
const ROOT: &str = "root_";

/// What to run.
#[derive(Args, Debug)]
pub struct Options {
    /// Run the long rounds too (sets ENFORCER_TEST_FULL=1 for the tests)
    #[arg(long)]
    full: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Runs the tests; the runner's own summary lines are the last thing printed.
///
/// # Errors
/// When the set-up, the build or a test fails.
pub fn run(options: &Options) -> Result<()> {
    setup::run()?;
    // the end-to-end tests start these binaries: `cargo test` alone would not build another package's
    cargo(&["build", "--workspace"])?;
    let root = setup::is_root()?;
    if !root {
        report_skipped()?;
    }
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--workspace", "--no-fail-fast"]);
    cargo.arg("--").args(options.filter.as_deref());
    if !root {
        cargo.args(["--skip", ROOT]);
    }
    if options.full {
        cargo.env("ENFORCER_TEST_FULL", "1");
    }
    let status = cargo.status().context("cannot start cargo test")?;
    ensure!(status.success(), "tests failed ({status})");
    Ok(())
}

/// Names the tests that this user cannot run.
fn report_skipped() -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--workspace", "--quiet", "--", "--list", "--format", "terse"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo test")?;
    ensure!(output.status.success(), "listing the tests failed ({})", output.status);
    for name in root_tests(&String::from_utf8_lossy(&output.stdout)) {
        println!("skipped, needs root: {name}");
    }
    Ok(())
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
