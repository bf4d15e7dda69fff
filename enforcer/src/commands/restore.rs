//! `restore`: lets a cut bottle go on.
use super::output::print;
use crate::cli::{Global, Restore};
use crate::control::api;
use crate::error::Failure;

pub(super) fn run(global: &Global, restore: &Restore) -> Result<(), Failure> {
    let add = super::tokens_by_provider("--add", &restore.add)?;
    let request = api::Restore { add, force: restore.force };
    let control = super::connect(global)?;
    let bottle = control.wait(control.client().restore(&restore.name, &request))?;
    print(&format!("{}: {}\n", restore.name, bottle.state.as_str()))
}
