//! `env`: prints what a container needs to trust and reach the meter.
use super::output::print;
use crate::cli::{Env, Global};
use crate::control::env::{render, render_config};
use crate::error::{Exit, Failure};

pub(super) fn run(global: &Global, env: &Env) -> Result<(), Failure> {
    let control = super::connect(global)?;
    let environment = control.wait(control.client().environment(&env.name))?;
    let lines = render(&environment.variables, env.shell)
        .ok_or_else(|| Failure::new(Exit::Failed, "a value has no form in an env file; take --shell sh"))?;
    print(&format!("{lines}{}", render_config(&environment.config)))
}
