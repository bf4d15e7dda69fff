//! `cargo xtask ci`: what a change must pass. The tests come last, so that their summary ends the output.
use anyhow::{Context as _, Result};

use crate::{fuzz, setup, test};

/// Checks formatting and lints, runs each fuzz target for a short while, then the test command of the README as written
/// there.
///
/// # Errors
/// At the first check that fails.
pub fn run() -> Result<()> {
    setup::run()?;
    test::cargo(&["fmt", "--all", "--check"])?;
    test::cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    fuzz_targets()?;
    fuzz::run(&fuzz::Options::smoke())?;
    test::cargo(&["xtask", "test"])
}

/// The fuzz targets are a workspace of their own. What they depend on is checked where the others did so already.
fn fuzz_targets() -> Result<()> {
    let root = setup::workspace()?;
    let root = root.to_str().context("the path of the workspace is not UTF-8")?;
    let (manifest, target) = (format!("{root}/tests/fuzz/Cargo.toml"), format!("{root}/target"));
    test::cargo(&["fmt", "--manifest-path", &manifest, "--check"])?;
    let place = ["clippy", "--manifest-path", &manifest, "--target-dir", &target];
    test::cargo(&[&place[..], &["--all-targets", "--", "-D", "warnings"]].concat())
}
