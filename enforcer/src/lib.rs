//! Enforcer's controller: decides from one ledger and cuts in the kernel. The binary is a thin shell over this.
pub mod audit;
pub mod bottle;
pub mod budget;
pub mod ca;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod control;
pub mod core;
pub mod daemon;
pub mod error;
pub mod kernel;
pub mod ledger;
pub mod meter;
pub mod settings;
pub mod state;
pub mod tui;
