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
    /// A verdict under four scopes and 10,000 bottles; a settlement to its cut while the disk is busy (root)
    Budget,
    /// A cut: its store beside a spawned nft, by the command, by a budget; and taking over 1,000 bottles (root)
    Cut,
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
        Name::Budget => {
            setup::for_tests()?;
            test::cargo(&["build", "--release", "--workspace", "--bins"])?;
            test::cargo(&["bench", "--package", "enforcer", "--bench", "budget"])?;
            test::cargo(&["bench", "--package", "enforcer-tests", "--bench", "budget"])
        }
        Name::Cut => {
            setup::for_tests()?;
            // the daemon and its meter, and the programs in the bottles
            test::cargo(&["build", "--release", "--workspace", "--bins"])?;
            test::cargo(&["bench", "--package", "enforcer", "--bench", "cut"])?;
            test::cargo(&["bench", "--package", "enforcer-tests", "--bench", "daemon"])
        }
        Name::Kernel => test::cargo(&["bench", "--package", "enforcer", "--bench", "kernel"]),
    }
}
