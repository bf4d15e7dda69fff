//! Wires threads and tasks.
use std::path::PathBuf;

use crate::error::{Exit, Failure};

/// How the daemon is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// State directory; the default of the user it runs as without it.
    pub state_dir: Option<PathBuf>,
    /// The control socket.
    pub socket: PathBuf,
    /// Settings file; `STATE_DIR/settings.yml`, if there is one, without it.
    pub settings: Option<PathBuf>,
}

/// Runs until it is told to stop.
///
/// # Errors
/// What keeps it from running.
pub fn run(options: Options) -> Result<(), Failure> {
    let Options { socket, .. } = options;
    Err(Failure::new(Exit::Failed, format!("no daemon for {} in this build", socket.display())))
}
