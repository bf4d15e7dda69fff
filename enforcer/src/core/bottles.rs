//! The attached bottles, found by slot, by name, by attachment and by where their cgroups are: each without a look at
//! the others, however many there are. Decides nothing.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::Bottle;
use crate::ledger::AttachmentId;

/// Attached bottles by slot. What they are found by does not change while they are in here.
#[derive(Default)]
pub(super) struct Bottles {
    slots: BTreeMap<u32, Bottle>,
    names: HashMap<String, u32>,
    attachments: HashMap<AttachmentId, u32>,
    /// A path may be in use twice: by a bottle whose cgroup is gone, and by the one that was made anew there.
    cgroups: BTreeSet<(PathBuf, u32)>,
}

impl Bottles {
    pub(super) fn insert(&mut self, slot: u32, bottle: Bottle) {
        self.remove(slot);
        let attachment = &bottle.attachment;
        self.names.insert(attachment.name.clone(), slot);
        self.attachments.insert(attachment.id, slot);
        self.cgroups.insert((PathBuf::from(&attachment.cgroup), slot));
        self.slots.insert(slot, bottle);
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Bottle> {
        let bottle = self.slots.remove(&slot)?;
        let attachment = &bottle.attachment;
        self.names.remove(&attachment.name);
        self.attachments.remove(&attachment.id);
        self.cgroups.remove(&(PathBuf::from(&attachment.cgroup), slot));
        Some(bottle)
    }

    pub(super) fn get(&self, slot: &u32) -> Option<&Bottle> {
        self.slots.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: &u32) -> Option<&mut Bottle> {
        self.slots.get_mut(slot)
    }

    pub(super) fn contains_key(&self, slot: &u32) -> bool {
        self.slots.contains_key(slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&u32, &Bottle)> {
        self.slots.iter()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &u32> {
        self.slots.keys()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Bottle> {
        self.slots.values()
    }

    /// The slot of the bottle of this name.
    pub(super) fn named(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    /// The slot of this attachment.
    pub(super) fn of_attachment(&self, id: AttachmentId) -> Option<u32> {
        self.attachments.get(&id).copied()
    }

    /// The bottles whose cgroup is this one or holds it, innermost first.
    pub(super) fn around<'a>(&'a self, cgroup: &'a Path) -> impl Iterator<Item = &'a Bottle> {
        cgroup.ancestors().flat_map(|level| self.at(level)).filter_map(|slot| self.slots.get(&slot))
    }

    /// Slots of the bottles whose cgroup is this one or in it.
    pub(super) fn below(&self, cgroup: &Path) -> Vec<u32> {
        let from = self.cgroups.range((cgroup.to_owned(), 0)..);
        let mut slots: Vec<u32> =
            from.take_while(|(path, _)| path.starts_with(cgroup)).map(|(_, slot)| *slot).collect();
        slots.sort_unstable();
        slots
    }

    fn at<'a>(&'a self, cgroup: &'a Path) -> impl Iterator<Item = u32> + 'a {
        let from = self.cgroups.range((cgroup.to_owned(), 0)..);
        from.take_while(move |(path, _)| path == cgroup).map(|(_, slot)| *slot)
    }
}
