//! `daemon`: runs the controller in the foreground, or takes everything pinned away.
use tracing::level_filters::LevelFilter;

use super::output::print;
use crate::cli::{Daemon, Global, LogFormat};
use crate::daemon::{self, Options};
use crate::error::{Exit, Failure};
use crate::kernel::loader;
use crate::state::StateDir;

pub(super) fn run(global: &Global, daemon: &Daemon) -> Result<(), Failure> {
    log_to_stderr(global);
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(Exit::Refused, "the daemon needs root: it loads programs into the kernel")
            .hint("sudo enforcer daemon"));
    }
    if daemon.unpin_all {
        return unpin_all(global);
    }
    daemon::run(Options {
        state_dir: global.state_dir.clone(),
        socket: super::socket(global),
        settings: global.settings.clone(),
        log: level(global),
    })
}

fn level(global: &Global) -> LevelFilter {
    match global.verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

fn log_to_stderr(global: &Global) {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false);
    let log = log.with_max_level(level(global));
    match global.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn unpin_all(global: &Global) -> Result<(), Failure> {
    let state = StateDir::open(global.state_dir.as_deref())?;
    // a daemon that lives would go on guarding by its own handles, and believe its pins are there
    let lock = state.lock()?;
    let bottles = loader::unpin_all(state.instance())?;
    drop(lock);
    print(&format!("{bottles} bottles unpinned\n"))
}
