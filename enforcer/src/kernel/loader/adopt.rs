//! Taking over what an earlier controller pinned: each bottle as it is, or with this build's programs behind its links.
//!
//! No verdict is changed here: it stays what the table says, and nothing passes or is refused meanwhile.
use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::super::families;
use super::super::hooks::HOOKS;
use super::super::maps::lock;
use super::super::sys::{self, LinkInfo};
use super::super::{KernelError, Pinned};
use super::{Loader, check_slot};
use crate::bottle::cgroup::Hierarchy;

/// How long links of removed cgroups are waited for, of all bottles together.
const RELEASE: Duration = Duration::from_millis(200);

impl Loader {
    /// Takes over every pinned guard.
    pub(super) fn adopt(&self) -> Result<Vec<Pinned>, KernelError> {
        let mut adopted: Vec<Pinned> = Vec::new();
        let release_by = Instant::now() + RELEASE;
        let hierarchy = Hierarchy::open().ok();
        for name in self.pins.bottles()? {
            let wrong = |what: String| KernelError::Pins { path: self.pins.bottle(&name), what };
            let links = self.pins.links(&name)?;
            let hooks = HOOKS.iter().filter(|hook| links.iter().any(|link| link == hook.pin)).count();
            if self.is_unfinished(&name, hooks)? {
                // its storage too: it would govern for a moment whoever is attached there next
                self.remove_hooks(&name, &mut lock(&self.slots))?;
                continue;
            }
            let slot = self.pins.slot(&name)?;
            check_slot(slot)?;
            if let Some(other) = adopted.iter().find(|other| other.slot == slot) {
                return Err(wrong(format!("has slot {slot}, as has {}", other.name)));
            }
            let first = self.first_link(&name)?;
            let is_current =
                self.programs.each().next().is_some_and(|(_, egress)| egress.id == first.program_id);
            let cgroup_id = if is_current && hooks == HOOKS.len() && self.table.is_live(slot) {
                first.cgroup_id
            } else {
                self.renew_hooks(&name, slot)?
            };
            let cgroup_id = self.await_release(&name, cgroup_id, hierarchy.as_ref(), release_by)?;
            let (generation, cut) = (self.table.generation(slot), self.table.face(slot));
            adopted.push(Pinned { name, slot, generation, cgroup_id, cut, mute: self.table.is_mute(slot) });
        }
        Ok(adopted)
    }

    /// Whether a controller died while attaching or detaching this bottle: a hook is missing, and the slot is not
    /// in use. A hook missing from a slot in use is an error, found when it is opened.
    fn is_unfinished(&self, name: &str, hooks: usize) -> Result<bool, KernelError> {
        if hooks == 0 || hooks == HOOKS.len() {
            return Ok(hooks == 0);
        }
        let slot = self.pins.slot(name)?;
        check_slot(slot)?;
        Ok(!self.table.is_live(slot))
    }

    /// What the kernel says of a bottle's first link. If that runs this controller's program, and the bottle is in use,
    /// every hook does: programs are not told to be a build's before all links run them, and a bottle is attached with
    /// those of one build.
    fn first_link(&self, name: &str) -> Result<LinkInfo, KernelError> {
        let path = self.pins.link(name, HOOKS[0].pin);
        let info = sys::open_pin(&path).and_then(|link| sys::link_info(link.as_fd()));
        info.map_err(|error| KernelError::Pins { path, what: error.to_string() })
    }

    /// Waits until the kernel has taken the links off a removed cgroup, which it does some time later. Where sockets of
    /// it are left it does not: then it is still that cgroup that is guarded.
    fn await_release(
        &self,
        name: &str,
        mut cgroup_id: u64,
        hierarchy: Option<&Hierarchy>,
        until: Instant,
    ) -> Result<u64, KernelError> {
        // where it cannot be told whether it is removed, it is what the links say
        let is_removed = |id| id != 0 && hierarchy.is_some_and(|all| all.has_lost(id).is_ok_and(|lost| lost));
        while is_removed(cgroup_id) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
            cgroup_id = self.first_link(name)?.cgroup_id;
        }
        Ok(cgroup_id)
    }

    /// Runs this controller's programs behind all links of a bottle; its verdict stays what the table says. One
    /// that died while attaching or detaching it may have left hooks without their slot: they are given it. Returns
    /// the cgroup's id; 0: it is gone.
    fn renew_hooks(&self, name: &str, slot: u32) -> Result<u64, KernelError> {
        let mut cgroup_id = None;
        for (hook, program) in self.programs.each() {
            let path = self.pins.link(name, hook.pin);
            // the bottle may be older than the kernel's readiness for the optional hook
            if hook.pin == families::HOOK.pin && !path.exists() {
                continue;
            }
            let wrong = |error: io::Error| KernelError::Pins { path: path.clone(), what: error.to_string() };
            let link = sys::open_pin(&path).map_err(wrong)?;
            if cgroup_id.is_none() {
                // all of a bottle's links are made for one cgroup
                cgroup_id = Some(sys::link_info(link.as_fd()).map_err(wrong)?.cgroup_id);
            }
            match (sys::link_update(link.as_fd(), program.fd.as_fd()), cgroup_id) {
                // its cgroup is gone: nothing runs there any more
                (Err(error), _) if error.raw_os_error() == Some(libc::ENOLINK) => cgroup_id = Some(0),
                (Ok(()), Some(id)) if hook.slot => lock(&self.slots).assign(id, hook.attach_type, slot)?,
                (result, _) => result.map_err(wrong)?,
            }
        }
        Ok(cgroup_id.unwrap_or(0))
    }
}
