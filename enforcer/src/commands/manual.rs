//! `completions` and `man`: the command line written down for shells and for readers.
use std::path::Path;

use clap::CommandFactory;

use super::output::print;
use crate::cli::Cli;
use crate::error::{Exit, Failure};

pub(super) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "enforcer", &mut script);
    let script = String::from_utf8(script).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    print(&script)
}

pub(super) fn pages(directory: &Path) -> Result<(), Failure> {
    clap_mangen::generate_to(Cli::command(), directory)
        .map_err(|error| Failure::io(directory.display(), &error))
}
