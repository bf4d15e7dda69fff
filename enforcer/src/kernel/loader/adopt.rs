//! Taking over what an earlier controller pinned: each bottle as it is, or with this build's programs behind its links.
//!
//! No verdict is changed here: it stays what the table says, and nothing passes or is refused meanwhile.
use std::io;
use std::os::fd::AsFd as _;

use super::super::families;
use super::super::hooks::HOOKS;
use super::super::maps::lock;
use super::super::{KernelError, Pinned, sys};
use super::{Loader, check_slot};
use crate::bottle::cgroup::Hierarchy;

impl Loader {
    /// Takes over every pinned guard.
    pub(super) fn adopt(&self) -> Result<Vec<Pinned>, KernelError> {
        let mut adopted: Vec<Pinned> = Vec::new();
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
            let is_whole = hooks == HOOKS.len() && self.table.is_live(slot);
            let cgroup_id = match self.current_cgroup(&name)? {
                Some(cgroup_id) if is_whole => cgroup_id,
                _ => self.renew_hooks(&name, slot)?,
            };
            // the kernel takes the links off a removed cgroup some time later; where that cannot be told, it is what
            // they say
            let is_removed = |hierarchy: &Hierarchy| hierarchy.has_lost(cgroup_id).is_ok_and(|lost| lost);
            let is_removed = hierarchy.as_ref().is_some_and(is_removed);
            let cgroup_id = if is_removed { 0 } else { cgroup_id };
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

    /// The cgroup of a bottle whose first hook runs this controller's program, and with it every hook: the programs are
    /// not told to be a build's before all links run them, and a bottle is attached with those of one build. 0: the
    /// cgroup is gone.
    fn current_cgroup(&self, name: &str) -> Result<Option<u64>, KernelError> {
        let Some((hook, program)) = self.programs.each().next() else { return Ok(None) };
        let path = self.pins.link(name, hook.pin);
        let info = sys::open_pin(&path).and_then(|link| sys::link_info(link.as_fd()));
        let info = info.map_err(|error| KernelError::Pins { path, what: error.to_string() })?;
        Ok((info.program_id == program.id).then_some(info.cgroup_id))
    }

    /// Runs this controller's programs behind all links of a bottle; its verdict stays what the table says. A controller
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
