//! What the core shows of its state: plain data, as `status` prints it.
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::{Bottle, Core, Stage};
use crate::audit::{Cause, Processes};
use crate::budget::{AccountId, Governing, Scope};
use crate::clock::rfc3339;
use crate::control::api;
use crate::kernel::Face;
use crate::ledger::Attachment;

/// One bottle as the core knows it; packets and processes are read elsewhere.
#[derive(Clone, Debug)]
pub struct BottleModel {
    /// As attached.
    pub attachment: Attachment,
    /// Why nothing of it passes: its own verdict, or that of a bottle whose cgroup holds it. `None`: open.
    pub cause: Option<Cause>,
    /// What it sees of that; `None`: open.
    pub face: Option<Face>,
    /// What stands decided for its processes by all the cuts that shut it.
    pub processes: Processes,
    /// Settled usage by provider.
    pub usage: BTreeMap<String, api::Usage>,
    /// The budget that is felt first, by provider.
    pub budget: BTreeMap<String, api::Budget>,
    /// Every scope that a provider's exchanges are charged to, nearest first; for one bottle alone.
    pub chain: BTreeMap<String, Vec<api::Link>>,
}

/// What all the cuts around a bottle make of it: the first of them, its own before others, and the most closed of each.
struct Shut {
    cause: Option<Cause>,
    face: Option<Face>,
    processes: Processes,
}

impl Core {
    pub(super) fn view(&mut self) -> Vec<BottleModel> {
        let cuts = self.cuts();
        let shut = |cgroup: &str| {
            let around: Vec<&Cause> =
                Path::new(cgroup).ancestors().filter_map(|level| cuts.get(level)).collect();
            let face = around.iter().map(|cause| cause.face).max();
            let processes = around.iter().map(|cause| cause.processes).max().unwrap_or_default();
            Shut { cause: around.first().map(|cause| (*cause).clone()), face, processes }
        };
        let slots: Vec<u32> = self.bottles.keys().copied().collect();
        let mut models: Vec<BottleModel> =
            slots.into_iter().filter_map(|slot| self.model(slot, |_, cgroup| shut(cgroup))).collect();
        models.sort_by(|a, b| a.attachment.name.cmp(&b.attachment.name));
        models
    }

    pub(super) fn view_one(&mut self, name: &str) -> Option<BottleModel> {
        let slot = self.slot_of(name)?;
        let model = self.model(slot, |core, _| Shut {
            cause: core.shut_by(slot).cloned(),
            face: core.face_of(slot),
            processes: core.processes_of(slot),
        })?;
        Some(BottleModel { chain: self.chains(slot), ..model })
    }

    pub(super) fn list(&self) -> Vec<(String, u64)> {
        let attached = self.attached_ones();
        attached.map(|attachment| (attachment.name.clone(), attachment.cgroup_id)).collect()
    }

    pub(super) fn holds(&self, cgroup: &Path) -> bool {
        self.attached_ones().any(|attachment| cgroup.starts_with(&attachment.cgroup))
    }

    fn attached_ones(&self) -> impl Iterator<Item = &Attachment> {
        let attached = self.bottles.values().filter(|bottle| bottle.stage != Stage::Attaching);
        attached.map(|bottle| &bottle.attachment)
    }

    /// Cuts by cgroup: to look every bottle up among all of them would take their number squared.
    fn cuts(&self) -> HashMap<PathBuf, Cause> {
        let cut = |bottle: &Bottle| Some((PathBuf::from(&bottle.attachment.cgroup), bottle.cause.clone()?));
        self.bottles.values().filter_map(cut).collect()
    }

    /// `shut` says by what a bottle with this cgroup is shut.
    fn model(&mut self, slot: u32, shut: impl Fn(&Self, &str) -> Shut) -> Option<BottleModel> {
        let budget = self
            .governing_accounts(slot)
            .into_iter()
            .map(|governing| {
                (self.accounts.provider(governing.account).to_owned(), self.budget_felt(governing))
            })
            .collect();
        let bottle = self.bottles.get(&slot).filter(|bottle| bottle.stage != Stage::Attaching)?;
        let Shut { cause, face, processes } = shut(self, &bottle.attachment.cgroup);
        Some(BottleModel {
            attachment: bottle.attachment.clone(),
            cause,
            face,
            processes,
            usage: self.usage.of(&bottle.attachment.name, self.accounts.weights()),
            budget,
            chain: BTreeMap::new(),
        })
    }

    fn budget_felt(&self, governing: Governing) -> api::Budget {
        let Governing { scope, account, why } = governing;
        let figures = self.accounts.figures(account);
        api::Budget {
            scope: scope.as_str().into(),
            owner: self.owner_name(account),
            window: figures.window().as_str().into(),
            limit: figures.limit().unwrap_or(0),
            used: figures.used,
            reserved: figures.reserved,
            remaining: figures.remaining().unwrap_or(0),
            until: self.window_end(account),
            why,
        }
    }

    /// When the account's window ends, as documents say it.
    pub(super) fn window_end(&self, account: AccountId) -> Option<String> {
        self.accounts.window_end(account).map(|end| rfc3339(end.start_ms()))
    }

    fn chains(&mut self, slot: u32) -> BTreeMap<String, Vec<api::Link>> {
        let chain = |core: &mut Self, provider: &String| {
            let path = core.path(slot, provider);
            let binding: Vec<AccountId> = core.accounts.binding(&path).map(|(_, account)| account).collect();
            let link = |(scope, account): &(Scope, AccountId)| {
                core.link(*scope, *account, binding.contains(account))
            };
            path.iter().map(link).collect::<Vec<_>>()
        };
        self.providers().into_iter().map(|provider| (provider.clone(), chain(self, &provider))).collect()
    }

    fn link(&self, scope: Scope, account: AccountId, binds: bool) -> api::Link {
        let figures = self.accounts.figures(account);
        api::Link {
            scope: scope.as_str().into(),
            owner: self.owner_name(account),
            window: figures.budget.map(|(budget, _)| budget.window.as_str().into()),
            limit: figures.limit(),
            used: figures.used,
            reserved: figures.reserved,
            remaining: figures.remaining(),
            until: self.window_end(account),
            binds,
        }
    }
}
