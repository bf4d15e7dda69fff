//! `thaw`: lets the processes of a frozen bottle go on.
use super::output::{print, say};
use crate::cli::{Global, Thaw};
use crate::control::api;
use crate::error::Failure;

pub(super) fn run(global: &Global, thaw: &Thaw) -> Result<(), Failure> {
    let control = super::connect(global)?;
    let bottle = control.wait(control.client().thaw(&thaw.name))?;
    if let (api::State::Cut, Some(cause)) = (bottle.state, &bottle.cause) {
        say(&format!("its processes go on without a network ({cause}); enforcer restore opens it"));
    }
    print(&format!("{}: {}\n", thaw.name, bottle.state.as_str()))
}
