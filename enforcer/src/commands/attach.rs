//! `attach`: guards a cgroup that exists.
use std::path::Path;

use super::output::{print, say};
use crate::cli::{Attach, Global};
use crate::control::api;
use crate::error::{Exit, Failure};

pub(super) fn run(global: &Global, attach: &Attach) -> Result<(), Failure> {
    let request = request(attach)?;
    let control = super::connect(global)?;
    let attached = control.wait(control.client().attach(&request))?;
    attached.warnings.iter().for_each(|warning| say(warning));
    print(&format!("{}: attached to {}\n", attached.bottle.name, crate::text::scrub(&attached.bottle.cgroup)))
}

fn request(attach: &Attach) -> Result<api::Attach, Failure> {
    Ok(api::Attach {
        cgroup: attach.cgroup.as_deref().map(absolute).transpose()?,
        pid: attach.pid,
        docker: attach.docker.clone(),
        podman: attach.podman.clone(),
        unit: attach.unit.clone(),
        hard: attach.hard,
        ..super::attach_request(&attach.name, &attach.guarding)?
    })
}

/// The path as the daemon, which stands in another directory, has to be told it.
fn absolute(path: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(path).map_err(|error| Failure::io(path.display(), &error))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| Failure::new(Exit::Usage, format!("{} is not UTF-8", path.display())))
}
