//! Which accounts an exchange is charged to, and whose they are: budgets meet bottles here.
use super::{Core, HOST_SLOT};
use crate::budget::{AccountId, Budget, Governing, Path, Scope};
use crate::ledger::{Attachment, AttachmentId, Owner};

impl Core {
    /// The accounts that an exchange of this slot and provider is charged to, nearest first.
    pub(super) fn path(&mut self, slot: u32, provider: &str) -> Path {
        let known = match self.bottles.get(&slot) {
            Some(bottle) => bottle.paths.get(provider),
            None => self.host_paths.get(provider),
        };
        if let Some(path) = known {
            return path.clone();
        }
        let owners = match self.bottles.get(&slot) {
            Some(bottle) => owners(&bottle.attachment, provider),
            None => vec![(Scope::Bottle, Owner::Bottle("host".into())), (Scope::Global, Owner::Global)],
        };
        let path: Path =
            owners.iter().map(|(scope, owner)| (*scope, self.account(owner, provider))).collect();
        match self.bottles.get_mut(&slot) {
            Some(bottle) => {
                bottle.paths.insert(provider.to_owned(), path.clone());
                for (_, account) in &path {
                    self.payers.entry(*account).or_default().insert(slot);
                }
            }
            None => {
                self.host_paths.insert(provider.to_owned(), path.clone());
            }
        }
        path
    }

    /// Makes the bottle known to every account that it can be charged to, whatever it has used yet.
    pub(super) fn open_accounts(&mut self, slot: u32) {
        for provider in self.providers() {
            self.path(slot, &provider);
        }
    }

    /// The bottle is gone: nothing that its accounts do concerns it.
    pub(super) fn close_accounts(&mut self, slot: u32, paths: impl IntoIterator<Item = Path>) {
        for (_, account) in paths.into_iter().flatten() {
            if let Some(payers) = self.payers.get_mut(&account)
                && payers.remove(&slot)
                && payers.is_empty()
            {
                self.payers.remove(&account);
            }
        }
    }

    /// Slots of the bottles that are charged to this account.
    pub(super) fn payers(&self, account: AccountId) -> Vec<u32> {
        self.payers.get(&account).into_iter().flatten().copied().collect()
    }

    /// The account of an owner, with its budget as the settings and the launch define it.
    pub(super) fn account(&mut self, owner: &Owner, provider: &str) -> AccountId {
        let id = self.accounts.id(owner, provider);
        let defined = self.defined_budget(owner, provider);
        self.accounts.define(id, defined);
        id
    }

    fn defined_budget(&self, owner: &Owner, provider: &str) -> Option<Budget> {
        match owner {
            Owner::Launch(attachment) => self.launch_budget(*attachment, provider),
            Owner::Agent(name) => self.settings.agents.get(name)?.budget.get(provider).copied(),
            Owner::Bottle(name) => self.settings.bottles.get(name)?.budget.get(provider).copied(),
            Owner::Global => self.settings.budget.get(provider).copied(),
        }
    }

    fn launch_budget(&self, attachment: AttachmentId, provider: &str) -> Option<Budget> {
        let slot = self.slot_of_attachment(attachment)?;
        let budgets = &self.bottles.get(&slot)?.attachment.launch_budget;
        let (_, tokens) = budgets.iter().find(|(of, _)| of == provider)?;
        Some(Budget { tokens: *tokens, window: self.settings.window })
    }

    /// Owners that the settings define budgets for, with the provider of each.
    pub(super) fn defined_owners(&self) -> Vec<(Owner, String)> {
        let settings = &self.settings;
        let global = std::iter::once((Owner::Global, &settings.budget));
        let bottles =
            settings.bottles.iter().map(|(name, bottle)| (Owner::Bottle(name.clone()), &bottle.budget));
        let agents = settings.agents.iter().map(|(name, agent)| (Owner::Agent(name.clone()), &agent.budget));
        let all = global.chain(bottles).chain(agents);
        all.flat_map(|(owner, budgets)| budgets.keys().map(move |provider| (owner.clone(), provider.clone())))
            .collect()
    }

    pub(super) fn providers(&self) -> Vec<String> {
        self.settings.providers.iter().map(|provider| provider.name.clone()).collect()
    }

    /// The path of every provider for this slot.
    pub(super) fn paths(&mut self, slot: u32) -> Vec<Path> {
        self.providers().iter().map(|provider| self.path(slot, provider)).collect()
    }

    /// The accounts whose budgets bind this slot, of every provider, nearest first.
    pub(super) fn binding_accounts(&mut self, slot: u32) -> Vec<(Scope, AccountId)> {
        let paths = self.paths(slot);
        paths.iter().flat_map(|path| self.accounts.binding(path).collect::<Vec<_>>()).collect()
    }

    /// A budget that binds this slot and is used up, if there is one.
    pub(super) fn used_up(&mut self, slot: u32) -> Option<(Scope, AccountId)> {
        let binding = self.binding_accounts(slot);
        binding.into_iter().find(|(_, account)| self.accounts.is_used_up(*account))
    }

    /// All budgets that bind this slot and are used up.
    pub(super) fn all_used_up(&mut self, slot: u32) -> Vec<AccountId> {
        let binding = self.binding_accounts(slot).into_iter().map(|(_, account)| account);
        binding.filter(|account| self.accounts.is_used_up(*account)).collect()
    }

    /// For every provider that has a budget here, the one that this slot feels first.
    pub(super) fn governing_accounts(&mut self, slot: u32) -> Vec<Governing> {
        let paths = self.paths(slot);
        paths.iter().filter_map(|path| self.accounts.governing(path)).collect()
    }

    pub(super) fn name_of(&self, slot: u32) -> String {
        match self.bottles.get(&slot) {
            Some(bottle) => bottle.attachment.name.clone(),
            None if slot == HOST_SLOT => "host".into(),
            None => "detached".into(),
        }
    }

    /// An account's owner as messages name it.
    pub(super) fn owner_name(&self, id: AccountId) -> String {
        match self.accounts.owner(id) {
            Owner::Launch(attachment) => {
                self.slot_of_attachment(*attachment).map_or_else(|| "gone".into(), |slot| self.name_of(slot))
            }
            Owner::Agent(name) | Owner::Bottle(name) => name.clone(),
            Owner::Global => "global".into(),
        }
    }
}

/// The owners whose accounts an attachment's exchanges with a provider are charged to, nearest first. A launch has one
/// where it has a budget: none can be stated for it later.
fn owners(attachment: &Attachment, provider: &str) -> Vec<(Scope, Owner)> {
    let launched = attachment.launch_budget.iter().any(|(of, _)| of == provider);
    let launch = launched.then_some((Scope::Launch, Owner::Launch(attachment.id)));
    let mut owners: Vec<(Scope, Owner)> = launch.into_iter().collect();
    owners.extend(attachment.agent.iter().map(|agent| (Scope::Agent, Owner::Agent(agent.clone()))));
    owners.push((Scope::Bottle, Owner::Bottle(attachment.name.clone())));
    owners.extend(attachment.ancestors.iter().map(|name| (Scope::Parent, Owner::Bottle(name.clone()))));
    owners.push((Scope::Global, Owner::Global));
    owners
}
