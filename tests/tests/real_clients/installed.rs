//! Where the clients lie that `cargo xtask test --real-clients` installed.
use std::path::PathBuf;

/// The variable that names their directory.
const VARIABLE: &str = "ENFORCER_CLIENTS";

/// Their directory.
pub fn directory() -> PathBuf {
    let directory = std::env::var_os(VARIABLE);
    directory.map(PathBuf::from).expect("run this through `cargo xtask test --real-clients`")
}

/// A program that npm installed.
pub fn node_program(name: &str) -> PathBuf {
    directory().join("node/node_modules/.bin").join(name)
}

/// The interpreter in whose environment pip installed.
pub fn python() -> PathBuf {
    directory().join("python/bin/python")
}
