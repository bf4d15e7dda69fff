//! `cut`: drops every packet of bottles, now.
use super::output::print;
use crate::cli::{Cut, Global};
use crate::control::api;
use crate::control::client::{Blocking, ClientError};
use crate::error::Failure;
use crate::kernel::Face;

pub(super) fn run(global: &Global, cut: &Cut) -> Result<(), Failure> {
    let face = match (cut.silent, cut.answered) {
        (true, _) => Some(Face::Silent),
        (false, true) => Some(Face::Answered),
        (false, false) => None,
    };
    let request = api::Cut { reason: cut.reason.clone(), face, hard: cut.hard };
    let control = super::connect(global)?;
    if cut.all { cut_all(&control, &request) } else { cut_each(&control, &cut.names, &request) }
}

fn cut_all(control: &Blocking, request: &api::Cut) -> Result<(), Failure> {
    let bottles = control.wait(control.client().cut_all(request))?;
    bottles.iter().try_for_each(|bottle| print(&line(bottle)))
}

/// One that cannot be cut keeps none of the others open; the first refusal is the command's.
fn cut_each(control: &Blocking, names: &[String], request: &api::Cut) -> Result<(), Failure> {
    let mut first: Option<ClientError> = None;
    for name in names {
        match control.wait(control.client().cut(name, request)) {
            Ok(bottle) => print(&line(&bottle))?,
            Err(error) if first.is_none() => first = Some(error),
            Err(error) => Failure::from(error).print(),
        }
    }
    first.map_or(Ok(()), |error| Err(error.into()))
}

fn line(bottle: &api::Bottle) -> String {
    let face = bottle.face.map(|face| format!(" ({})", face.as_str())).unwrap_or_default();
    format!("{}: {}{face}\n", crate::text::scrub(&bottle.name), bottle.state.as_str())
}
