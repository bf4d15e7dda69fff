//! Bottles as `status` shows them: the core's figures with packets and processes. For reading, not for deciding.
use std::path::Path;

use super::{Registry, blocking};
use crate::audit::Processes;
use crate::bottle::cgroup;
use crate::control::api::{self, Problem};
use crate::core::{BottleModel, Message};
use crate::kernel::Kernel;

impl Registry {
    /// Every bottle by name, and why nothing opens although the meter serves.
    ///
    /// # Errors
    /// When the controller is stopping.
    pub async fn bottles(&self) -> Result<(Vec<api::Bottle>, Option<String>), Problem> {
        let (models, closed) = self.parts.core.ask(|reply| Message::View { reply }).await?;
        let kernel = self.parts.kernel.clone();
        let show_all = move || models.into_iter().map(|model| show(kernel.as_ref(), model)).collect();
        Ok((blocking(show_all).await?, closed))
    }

    /// One bottle; no other is looked at.
    pub(super) async fn find(&self, name: &str) -> Result<Option<api::Bottle>, Problem> {
        let name = name.to_owned();
        let Some(model) = self.parts.core.ask(|reply| Message::ViewOne { name, reply }).await? else {
            return Ok(None);
        };
        let kernel = self.parts.kernel.clone();
        blocking(move || Some(show(kernel.as_ref(), model))).await
    }

    /// Name and cgroup id of every attached bottle.
    ///
    /// # Errors
    /// When the controller is stopping.
    pub(in crate::bottle) async fn attached(&self) -> Result<Vec<(String, u64)>, Problem> {
        Ok(self.parts.core.ask(|reply| Message::List { reply }).await?)
    }
}

/// One bottle as `status` shows it.
fn show(kernel: &dyn Kernel, model: BottleModel) -> api::Bottle {
    let BottleModel { attachment, cause, face, processes: held, usage, budget, chain } = model;
    let processes = cgroup::count(Path::new(&attachment.cgroup), attachment.cgroup_id);
    let state = match (held, processes, &cause) {
        (Processes::Killed, ..) => api::State::Killed,
        (_, None, _) => api::State::Gone,
        (Processes::Frozen, Some(_), _) => api::State::Frozen,
        (Processes::Running, Some(_), Some(_)) => api::State::Cut,
        (Processes::Running, Some(_), None) => api::State::Open,
    };
    let packets = kernel.counters(attachment.slot).unwrap_or_else(|error| {
        tracing::warn!(bottle = attachment.name, %error, "packets cannot be read");
        enforcer_ebpf::Counters::default()
    });
    api::Bottle {
        name: attachment.name,
        agent: attachment.agent,
        parent: attachment.parent,
        cgroup: attachment.cgroup,
        pids: processes.unwrap_or(0),
        state,
        face,
        cause,
        policy: attachment.policy.as_str().into(),
        egress: attachment.egress.as_str().into(),
        usage,
        budget,
        chain,
        kernel: api::Packets {
            passed_packets: packets.passed_packets,
            passed_bytes: packets.passed_bytes,
            dropped_packets: packets.dropped_packets,
            dropped_bytes: packets.dropped_bytes,
        },
    }
}
