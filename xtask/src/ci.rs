//! `cargo xtask ci`: what a change must pass. The tests come last, so that their summary ends the output.
use anyhow::Result;

use crate::{fuzz, setup, test};

/// Checks formatting and lints, fuzzes each target for a short while, then runs the test command of the README as written there.
///
/// # Errors
/// At the first check that fails.
pub fn run() -> Result<()> {
    setup::run()?;
    test::cargo(&["fmt", "--all", "--check"])?;
    test::cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    fuzz::run(&fuzz::Options::default())?;
    test::cargo(&["xtask", "test"])
}
