//! Which accounts an exchange is charged to, and whose they are: budgets meet bottles here.
use super::{Core, HOST_SLOT};
use crate::budget::{AccountId, Path, Scope};
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
            Some(bottle) => owners(&bottle.attachment),
            None => vec![(Scope::Bottle, Owner::Bottle("host".into())), (Scope::Global, Owner::Global)],
        };
        let path: Path =
            owners.iter().map(|(scope, owner)| (*scope, self.account(owner, provider))).collect();
        match self.bottles.get_mut(&slot) {
            Some(bottle) => bottle.paths.insert(provider.to_owned(), path.clone()),
            None => self.host_paths.insert(provider.to_owned(), path.clone()),
        };
        path
    }

    /// The account of an owner, with its budget as the settings, the launch and the operator define it.
    pub(super) fn account(&mut self, owner: &Owner, provider: &str) -> AccountId {
        let before = self.accounts.len();
        let id = self.accounts.id(owner, provider);
        if self.accounts.len() > before {
            let defined = self.defined_budget(owner, provider);
            self.accounts.define(id, defined);
            if let Some(added) = self.added.remove(&(owner.clone(), provider.to_owned())) {
                self.accounts.add_tokens(id, added);
            }
        }
        id
    }

    pub(super) fn defined_budget(&self, owner: &Owner, provider: &str) -> Option<u64> {
        match owner {
            Owner::Launch(attachment) => self.launch_budget(*attachment, provider),
            Owner::Agent(name) => self.settings.agents.get(name)?.budget.get(provider).copied(),
            Owner::Bottle(name) => self.settings.bottles.get(name)?.budget.get(provider).copied(),
            Owner::Global => self.settings.budget.get(provider).copied(),
        }
    }

    fn launch_budget(&self, attachment: AttachmentId, provider: &str) -> Option<u64> {
        let slot = self.slot_of_attachment(attachment)?;
        let budgets = &self.bottles.get(&slot)?.attachment.launch_budget;
        budgets.iter().find(|(of, _)| of == provider).map(|(_, tokens)| *tokens)
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

/// The owners whose accounts an attachment's exchanges are charged to, nearest first.
fn owners(attachment: &Attachment) -> Vec<(Scope, Owner)> {
    let mut owners = vec![(Scope::Launch, Owner::Launch(attachment.id))];
    owners.extend(attachment.agent.iter().map(|agent| (Scope::Agent, Owner::Agent(agent.clone()))));
    owners.push((Scope::Bottle, Owner::Bottle(attachment.name.clone())));
    owners.extend(attachment.ancestors.iter().map(|name| (Scope::Parent, Owner::Bottle(name.clone()))));
    owners.push((Scope::Global, Owner::Global));
    owners
}
