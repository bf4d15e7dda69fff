//! `kill`: cuts a bottle and kills every process in it, after a question.
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use super::output::print;
use crate::cli::{Global, Kill};
use crate::control::api;
use crate::control::client::Blocking;
use crate::error::{Exit, Failure};

pub(super) fn run(global: &Global, kill: &Kill) -> Result<(), Failure> {
    let control = super::connect(global)?;
    if !kill.yes && !confirmed(&control, &kill.name)? {
        return Err(Failure::new(Exit::Refused, "nothing was done"));
    }
    let reason = api::Reason { reason: kill.reason.clone() };
    let bottle = control.wait(control.client().kill(&kill.name, &reason))?;
    print(&format!("{}: {}\n", kill.name, bottle.state.as_str()))
}

/// Whether somebody at the terminal says yes.
fn confirmed(control: &Blocking, name: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Refused, "kill asks first, and there is no terminal to ask at")
            .hint(format!("enforcer kill {name} --yes")));
    }
    let bottle = control.wait(control.client().bottle(name))?;
    let mut stderr = io::stderr();
    write!(stderr, "kill {name} with its {} processes, for good? [y/N] ", bottle.pids)
        .and_then(|()| stderr.flush())
        .map_err(|error| Failure::io("stderr", &error))?;
    let mut said = String::new();
    io::stdin().lock().read_line(&mut said).map_err(|error| Failure::io("stdin", &error))?;
    Ok(matches!(said.trim(), "y" | "Y" | "yes"))
}
