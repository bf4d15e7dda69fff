//! The clients that people use, installed from their registries, in a bottle: what they are told and what it costs.
//!
//! `cargo xtask test --real-clients` installs them, says where (`ENFORCER_CLIENTS`) and runs these tests by name;
//! nothing here installs anything. Each test has a network of its own with nothing but `lo`.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]

mod answered;
mod client;
mod home;
mod host;
mod installed;
mod keys;
mod looping;
mod metered;
mod printed;
mod refusals;
mod refused;
mod scene;
mod screen;
mod signed;
mod terminal;
