//! `detach`: stops guarding a bottle.
use super::output::{print, say};
use crate::cli::{Detach, Global};
use crate::error::Failure;

pub(super) fn run(global: &Global, detach: &Detach) -> Result<(), Failure> {
    let control = super::connect(global)?;
    let detached = control.wait(control.client().detach(&detach.name, detach.force))?;
    detached.warnings.iter().for_each(|warning| say(warning));
    print(&format!("{}: detached\n", detach.name))
}
