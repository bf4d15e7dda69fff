//! Whether processes can be confined at all. `run` keeps its command from what would get past by itself.
use super::Registry;
use crate::bottle::sockets;
use crate::control::api::{self, Problem};
use crate::egress::packets;
use crate::ledger::Attachment;
use crate::settings::Egress;

/// What is known of a bottle's processes before it is one.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// What the operator should know.
    pub(super) warnings: Vec<String>,
    /// Whether one of them rules over a network that leads out. To such a bottle the lane's address would be a way out
    /// (by rules at a device, below the hooks), so its cuts are silent ones.
    pub(super) mute: bool,
}

impl Registry {
    /// Judges the processes that are there already. One that `run` starts has no capability to be judged.
    pub(super) fn judge(&self, attach: &api::Attach, pids: &[u32]) -> Result<Judged, Problem> {
        if attach.create {
            return Ok(Judged::default());
        }
        let mut judged = Judged {
            warnings: self.check_confinement(attach, pids)?.into_iter().collect(),
            mute: packets::holder(pids, false).is_some(),
        };
        if judged.mute {
            judged
                .warnings
                .push("a cut of it is always silent, as it could misuse the refusal lane's address".into());
        }
        Ok(judged)
    }

    /// Refuses to confine processes that could send past every hook; warns of what cannot be known, and of those
    /// processes where nothing is confined.
    fn check_confinement(&self, attach: &api::Attach, pids: &[u32]) -> Result<Option<String>, Problem> {
        let mode = self.egress(attach)?;
        // in mode open nothing refuses packet sockets
        let packets = mode == Egress::Open || !self.parts.kernel.refuses_packet_sockets();
        let (name, holder) = (&attach.name, packets::holder(pids, packets));
        match (mode, holder) {
            (Egress::Open, None) => Ok(None),
            (Egress::Open, Some(holder)) => {
                Ok(Some(format!("{holder}: what it sends below the hooks on sockets is not metered")))
            }
            (mode, Some(holder)) => Err(Problem::host(format!(
                "{name} cannot be confined (egress {}): {holder}, below the hooks on sockets",
                mode.as_str()
            ))
            .with_hint(
                "start it with enforcer run, without the capability (docker run --cap-drop NET_RAW), or in a network \
                 with nothing but lo",
            )),
            (mode, None) if pids.is_empty() => Ok(Some(format!(
                "{name} has no processes yet: one that comes with CAP_NET_ADMIN{} over a network that leads out could \
                 send past egress {}",
                if packets { " or CAP_NET_RAW" } else { "" },
                mode.as_str()
            ))),
            (_, None) => Ok(None),
        }
    }
}

/// Refuses to confine a bottle whose processes hold what could send past every hook already.
pub(super) fn check_sockets(attachment: &Attachment, sockets: &sockets::Report) -> Result<(), Problem> {
    let past = sockets.past_every_hook().filter(|_| attachment.egress != Egress::Open);
    past.map_or(Ok(()), |past| {
        let (name, mode) = (&attachment.name, attachment.egress.as_str());
        Err(Problem::host(format!("{name} cannot be confined (egress {mode}): {past}"))
            .with_hint("start it with enforcer run, or attach it before its processes open sockets"))
    })
}
