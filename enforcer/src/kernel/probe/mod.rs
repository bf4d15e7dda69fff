//! What `doctor` reports: whether this host can guard a bottle, each feature probed by doing it.
//!
//! The trial has pins and a cgroup of its own, named after this process, and removes them. It compares no
//! version numbers and touches no bottle.
mod cgroups;
mod host;
mod inside;
mod lsm;
mod sockets;
mod trial;

use std::io;

use super::KernelError;
use super::throwaway::{Throwaway, ThrowawayError};
use crate::bottle::cgroup::CgroupError;
use trial::Trial;

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The feature.
    pub name: &'static str,
    /// Whether it works here.
    pub ok: bool,
    /// Whether nothing can be guarded without it.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What to do when it does not work.
    pub hint: Option<String>,
}

/// Why a probe failed.
struct Failure {
    what: String,
    hint: Option<String>,
}

type Outcome = Result<String, Failure>;

/// A feature and how it is tried.
struct Feature<T: ?Sized> {
    name: &'static str,
    required: bool,
    attempt: fn(&T) -> Outcome,
}

const fn required<T: ?Sized>(name: &'static str, attempt: fn(&T) -> Outcome) -> Feature<T> {
    Feature { name, required: true, attempt }
}

const fn optional<T: ?Sized>(name: &'static str, attempt: fn(&T) -> Outcome) -> Feature<T> {
    Feature { name, required: false, attempt }
}

impl<T: ?Sized> Feature<T> {
    fn probe(&self, on: &T) -> Probe {
        self.report((self.attempt)(on))
    }

    fn report(&self, outcome: Outcome) -> Probe {
        let (ok, detail, hint) = match outcome {
            Ok(detail) => (true, detail, None),
            Err(Failure { what, hint }) => (false, what, hint),
        };
        Probe { name: self.name, ok, required: self.required, detail, hint }
    }
}

/// What needs no bottle.
const HOST: [Feature<()>; 10] = [
    required("root", |()| host::privileges()),
    required("cgroup v2", |()| host::cgroup_mount()),
    required("bpffs", |()| host::bpffs()),
    optional("BTF", |()| host::btf()),
    optional("JIT", |()| host::jit()),
    optional("kernel lockdown", |()| host::lockdown()),
    required("mmapable arrays", |()| host::mmapable_arrays()),
    required("prefix tries", |()| host::prefix_tries()),
    required("network namespaces", |()| host::namespaces()),
    required("system call filter", |()| host::filter()),
];

const LOAD: Feature<()> = required("programs", |()| Ok(String::new()));

/// What needs one; `attach` is the first, and without it the others say nothing.
const TRIAL: [Feature<Trial>; 13] = [
    required("attach", Trial::attach),
    required("cut", Trial::cut),
    required("lease", Trial::lease),
    required("events", Trial::events),
    required("identity", Trial::identity),
    required("redirect", Trial::redirect),
    required("refusals", Trial::refusals),
    required("takeover", Trial::takeover),
    optional("freeze", |trial| cgroups::freeze(trial.cgroup())),
    optional("kill", |trial| cgroups::kill(trial.cgroup())),
    optional("socket lists", sockets::lists),
    optional("aborting sockets", |_| sockets::aborts()),
    optional("LSM", |trial| lsm::fires(trial.cgroup())),
];

/// Probes every feature, in the order in which they build on each other.
#[must_use]
pub fn probes() -> Vec<Probe> {
    let mut probes: Vec<Probe> = HOST.iter().map(|feature| feature.probe(&())).collect();
    match Throwaway::make() {
        Ok(bottle) => {
            probes.push(LOAD.report(Ok("every program and map is accepted and pinned".to_owned())));
            probes.extend(trials(bottle));
        }
        Err(error) => {
            probes.push(LOAD.report(Err(error.into())));
            probes.extend(TRIAL.iter().map(|feature| feature.report(not_tried(LOAD.name))));
        }
    }
    probes
}

/// The probes that need a bottle, on a throwaway one.
fn trials(bottle: Throwaway) -> Vec<Probe> {
    let [attach, others @ ..] = &TRIAL;
    let trial = match Trial::start(bottle) {
        Ok(trial) => trial,
        Err(failure) => {
            let rest = others.iter().map(|feature| feature.report(not_tried(attach.name)));
            return std::iter::once(attach.report(Err(failure))).chain(rest).collect();
        }
    };
    let attached = attach.probe(&trial);
    let is_attached = attached.ok;
    let rest = others.iter().map(|feature| {
        if is_attached { feature.probe(&trial) } else { feature.report(not_tried(attach.name)) }
    });
    std::iter::once(attached).chain(rest).collect()
}

fn not_tried(after: &str) -> Outcome {
    Err(failure(format!("not tried: {after} failed")))
}

fn failure(what: impl Into<String>) -> Failure {
    Failure { what: what.into(), hint: None }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        failure(error.to_string())
    }
}

impl From<CgroupError> for Failure {
    fn from(error: CgroupError) -> Self {
        failure(error.to_string())
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Unsupported { what, hint } => Self { what, hint: Some(hint) },
            other => failure(other.to_string()),
        }
    }
}

impl From<ThrowawayError> for Failure {
    fn from(error: ThrowawayError) -> Self {
        match error {
            ThrowawayError::Cgroup(error) => error.into(),
            ThrowawayError::Kernel(error) => error.into(),
        }
    }
}
