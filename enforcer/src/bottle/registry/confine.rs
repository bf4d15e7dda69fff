//! Whether processes can be confined at all.
use super::Registry;
use crate::control::api::{self, Problem};
use crate::egress::packets;
use crate::settings::Egress;

impl Registry {
    /// Refuses to confine processes that could send past every hook; warns of what cannot be known. `run` keeps its
    /// command from it by itself.
    pub(super) fn check_confinement(
        &self,
        attach: &api::Attach,
        pids: &[u32],
    ) -> Result<Option<String>, Problem> {
        let mode = self.egress(attach)?;
        if mode == Egress::Open || attach.create || self.parts.kernel.refuses_packet_sockets() {
            return Ok(None);
        }
        let (name, mode) = (&attach.name, mode.as_str());
        match packets::holder(pids) {
            Some(holder) => Err(Problem::host(format!(
                "{name} cannot be confined (egress {mode}): {holder}, and this kernel has no hook on packet sockets"
            ))
            .with_hint("start it with enforcer run, or without the capability (docker run --cap-drop NET_RAW)")),
            None if pids.is_empty() => Ok(Some(format!(
                "{name} has no processes yet: one that comes with CAP_NET_RAW could send past egress {mode} by packet \
                 sockets, on which this kernel has no hook"
            ))),
            None => Ok(None),
        }
    }
}
