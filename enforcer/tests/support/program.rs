//! The built program at another place, for tests in which others than root run it.
use std::path::{Path, PathBuf};
use std::process::Command;

/// Copies it into this directory. A process of its own writes it: what is open for writing here might still be so in a
/// process that another test starts at this moment, and could not be run.
pub fn copy_into(directory: &Path) -> PathBuf {
    let copy = directory.join("enforcer");
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_enforcer")).arg(&copy).status().unwrap();
    assert!(copied.success(), "{}: {copied}", copy.display());
    copy
}
