//! `cargo xtask bench NAME`: runs one benchmark, built for release. Each prints its own figures.
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::{peers, setup, test};

/// Which benchmark to run.
#[derive(Args, Debug)]
pub struct Options {
    /// The part to measure
    name: Name,
}

/// The benchmarks there are.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// A verdict under four scopes and 10,000 bottles; a settlement to its cut while the disk is busy; a hundred
    /// processes frozen and killed (root)
    Budget,
    /// A cut: its store beside a spawned nft, by the command, by a budget; and taking over 1,000 bottles (root)
    Cut,
    /// Loading, attaching, adopting, a packet, a connection, a thousand bottles (root)
    Kernel,
    /// The meter beside nginx and mitmproxy: processor time, delay and memory of streamed answers (root)
    Meter,
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
            test::cargo(&["bench", "--package", "enforcer-tests", "--bench", "budget", "--bench", "policy"])
        }
        Name::Cut => {
            setup::for_tests()?;
            // the daemon and its meter, and the programs in the bottles
            test::cargo(&["build", "--release", "--workspace", "--bins"])?;
            test::cargo(&["bench", "--package", "enforcer", "--bench", "cut"])?;
            test::cargo(&["bench", "--package", "enforcer-tests", "--bench", "daemon"])
        }
        Name::Kernel => test::cargo(&["bench", "--package", "enforcer", "--bench", "kernel"]),
        Name::Meter => meter(),
    }
}

/// The figures beside those of others, which are fetched when they are not here.
fn meter() -> Result<()> {
    let peers = peers::ready()?;
    test::cargo(&["build", "--release", "--workspace", "--bins"])?;
    let mut bench = Command::new("cargo");
    bench.args(["bench", "--package", "enforcer-tests", "--bench", "meter"]);
    bench.env("ENFORCER_BENCH_NGINX", peers.nginx).env("ENFORCER_BENCH_MITMDUMP", peers.mitmdump);
    let status = bench.status().context("cannot start cargo bench")?;
    ensure!(status.success(), "the benchmark failed ({status})");
    Ok(())
}
