//! Development tasks. Parses the command and hands it to its file; builds and runs before any eBPF tool exists.
mod bench;
mod ci;
mod clients;
mod demo;
#[allow(dead_code, reason = "the build script of `enforcer` uses the other half of this file")]
mod ebpf;
mod fuzz;
mod peers;
mod setup;
mod tally;
mod test;
mod vm;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of Enforcer")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find, or as root on Debian and Ubuntu install, what the build and the tests need
    Setup,
    /// Set up, build, and watch a real process lose its network in the middle of a stream
    Demo(demo::Options),
    /// Set up, build and run every test
    Test(test::Options),
    /// Measure one part and print its figures
    Bench(bench::Options),
    /// Set up, build the fuzz targets and run them
    Fuzz(fuzz::Options),
    /// What continuous integration runs: formatting, lints, a short round of fuzzing, then the tests
    Ci,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::run(),
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Ci => ci::run(),
    }
}
