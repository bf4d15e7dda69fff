//! `detach`: stops guarding a bottle.
use super::output::print;
use crate::cli::{Detach, Global};
use crate::error::Failure;

pub(super) fn run(global: &Global, detach: &Detach) -> Result<(), Failure> {
    let control = super::connect(global)?;
    control.wait(control.client().detach(&detach.name, detach.force))?;
    print(&format!("{}: detached\n", detach.name))
}
