//! `thaw`: lets the processes of a frozen bottle go on, and says what stays closed and what opens it.
use super::output::{print, say};
use crate::cli::{Global, Thaw};
use crate::control::api;
use crate::error::Failure;

pub(super) fn run(global: &Global, thaw: &Thaw) -> Result<(), Failure> {
    let control = super::connect(global)?;
    let bottle = control.wait(control.client().thaw(&thaw.name))?;
    if let Some(cause) = &bottle.cause {
        match bottle.state {
            api::State::Cut => say(&format!(
                "its processes go on without a network ({cause}); enforcer restore {} opens it, or says what that takes",
                thaw.name
            )),
            api::State::Frozen => say(&format!(
                "its own freeze is ended, but a bottle around it is frozen ({cause}): thaw that one too"
            )),
            api::State::Open | api::State::Killed | api::State::Gone => {}
        }
    }
    print(&format!("{}: {}\n", thaw.name, bottle.state.as_str()))
}
