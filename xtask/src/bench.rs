//! `cargo xtask bench NAME`: runs one benchmark, built for release. Each prints its own figures.
use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{setup, test};

/// Which benchmark to run.
#[derive(Args, Debug)]
pub struct Options {
    /// The part to measure
    name: Name,
}

/// The benchmarks there are.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// Loading, attaching, a packet, a connection and the flip of a verdict (root)
    Kernel,
}

/// Sets up and runs it.
///
/// # Errors
/// When the set-up, the build or the benchmark fails.
pub fn run(options: &Options) -> Result<()> {
    setup::run()?;
    match options.name {
        Name::Kernel => test::cargo(&["bench", "--package", "enforcer", "--bench", "kernel"]),
    }
}
