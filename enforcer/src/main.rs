//! The command line of Enforcer: parse, run, say how it ended.
use std::process::ExitCode;

use clap::Parser;
use enforcer::{cli::Cli, commands};

fn main() -> ExitCode {
    commands::run(Cli::parse()).unwrap_or_else(|failure| {
        failure.print();
        failure.exit.into()
    })
}
