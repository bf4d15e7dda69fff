//! `freeze`: cuts a bottle and has its processes stand still.
use super::output::print;
use crate::cli::{Freeze, Global};
use crate::control::api;
use crate::error::Failure;

pub(super) fn run(global: &Global, freeze: &Freeze) -> Result<(), Failure> {
    let reason = api::Reason { reason: freeze.reason.clone() };
    let control = super::connect(global)?;
    let bottle = control.wait(control.client().freeze(&freeze.name, &reason))?;
    print(&format!("{}: {}\n", freeze.name, bottle.state.as_str()))
}
