//! The meter's process, and the refusal lane's: privileges dropped, then the library's life of either.
//!
//! The controller starts them with their socket as standard input; nobody else has a use for them.
#![forbid(unsafe_code)]
use std::convert::Infallible;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use tokio::runtime;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// The metering proxy of Enforcer. Started by the controller, with its socket as standard input.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What to be.
    #[arg(value_enum, default_value_t = Role::Meter)]
    role: Role,
    /// User to become; not root.
    #[arg(long)]
    uid: u32,
    /// Group to become; not root's.
    #[arg(long)]
    gid: u32,
    /// How much to log; ENFORCER_LOG, which can say it of each part, goes before it.
    #[arg(long, value_name = "LEVEL", default_value_t = LevelFilter::INFO)]
    log: LevelFilter,
}

/// Which process this is.
#[derive(Clone, Copy, ValueEnum)]
enum Role {
    /// Meters what passes.
    Meter,
    /// Tells those who are cut why, and passes nothing.
    Lane,
}

fn main() -> ExitCode {
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("meter-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// So much of our own; of what we are made of errors alone: a library warns of frames, so that a client could fill the
/// log, and its trace holds what passes, keys included.
fn own_words(level: LevelFilter) -> EnvFilter {
    EnvFilter::new(format!("error,meter_proxy={level}"))
}

/// Drops privileges, then serves until the controller is gone.
fn run() -> anyhow::Result<Infallible> {
    let arguments = Arguments::parse();
    meter_proxy::privileges::drop_to(arguments.uid, arguments.gid)?;
    let descriptors = meter_proxy::privileges::raise_descriptor_limit()?;
    let level = EnvFilter::try_from_env("ENFORCER_LOG").unwrap_or_else(|_| own_words(arguments.log));
    tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr).with_ansi(false).init();
    tracing::info!(uid = arguments.uid, gid = arguments.gid, descriptors, "privileges are dropped");
    let socket = std::io::stdin().as_fd().try_clone_to_owned().context("standard input is no socket")?;
    match arguments.role {
        Role::Meter => {
            let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
            let ended = runtime.block_on(meter_proxy::run(socket));
            // Tasks under way are not waited for: the controller estimates what they leave.
            runtime.shutdown_background();
            ended.context("the meter ends")
        }
        Role::Lane => {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(meter_proxy::lane::run(socket)).context("the lane ends")
        }
    }
}
