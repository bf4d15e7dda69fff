//! `cargo xtask demo`: sets up, builds, and runs the demo of the `tests` crate against its mock provider.
use anyhow::{Result, ensure};
use clap::Args;

use crate::{setup, test};

/// What the demo is told.
#[derive(Args, Debug)]
pub struct Options {
    /// Arguments of the demo itself; `-- --help` lists them
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs the demo.
///
/// # Errors
/// Without root, and when the set-up, the build or the demo fails.
pub fn run(options: &Options) -> Result<()> {
    ensure!(
        setup::is_root()?,
        "the demo attaches eBPF programs to a cgroup: run it as root (sudo -E env \"PATH=$PATH\" cargo xtask demo)"
    );
    setup::run()?;
    test::cargo(&["build", "--quiet", "--workspace"])?;
    let mut command = vec!["run", "--quiet", "--package", "enforcer-tests", "--bin", "demo", "--"];
    command.extend(options.arguments.iter().map(String::as_str));
    test::cargo(&command)
}
