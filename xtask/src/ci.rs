//! `cargo xtask ci`: what a change must pass. The tests come last, so that their summary ends the output.
use anyhow::Result;

use crate::{fuzz, setup, test};

/// The workspace that the fuzz targets have for themselves.
const FUZZ: [&str; 2] = ["--manifest-path", "tests/fuzz/Cargo.toml"];
const LINTS: [&str; 4] = ["--all-targets", "--", "-D", "warnings"];

/// Checks formatting and lints, runs each fuzz target for a short while, then the test command of the README as written
/// there.
///
/// # Errors
/// At the first check that fails.
pub fn run() -> Result<()> {
    setup::run()?;
    test::cargo(&["fmt", "--all", "--check"])?;
    test::cargo(&[&["fmt"], &FUZZ[..], &["--check"]].concat())?;
    test::cargo(&[&["clippy", "--workspace"], &LINTS[..]].concat())?;
    test::cargo(&[&["clippy"], &FUZZ[..], &LINTS].concat())?;
    fuzz::run(&fuzz::Options::smoke())?;
    test::cargo(&["xtask", "test"])
}
