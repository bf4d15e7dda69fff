//! What the core shows of its state: plain data, as `status` prints it.
use std::collections::BTreeMap;

use super::{Core, Stage};
use crate::audit::Cause;
use crate::budget::{AccountId, Scope};
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
    /// Settled usage by provider.
    pub usage: BTreeMap<String, api::Usage>,
    /// Governing budget by provider.
    pub budget: BTreeMap<String, api::Budget>,
}

impl Core {
    pub(super) fn view(&mut self) -> Vec<BottleModel> {
        let slots: Vec<u32> = self.bottles.keys().copied().collect();
        let mut models: Vec<BottleModel> = slots.into_iter().filter_map(|slot| self.model(slot)).collect();
        models.sort_by(|a, b| a.attachment.name.cmp(&b.attachment.name));
        models
    }

    fn model(&mut self, slot: u32) -> Option<BottleModel> {
        let budget = self
            .governing_accounts(slot)
            .into_iter()
            .map(|(scope, account)| (self.accounts.provider(account).to_owned(), self.budget(scope, account)))
            .collect();
        let bottle = self.bottles.get(&slot).filter(|bottle| bottle.stage != Stage::Attaching)?;
        Some(BottleModel {
            attachment: bottle.attachment.clone(),
            cause: self.shut_by(slot).cloned(),
            face: self.face_of(slot),
            usage: self.usage.get(&bottle.attachment.name).cloned().unwrap_or_default(),
            budget,
        })
    }

    fn budget(&self, scope: Scope, account: AccountId) -> api::Budget {
        let figures = self.accounts.account(account);
        api::Budget {
            scope: scope.as_str().into(),
            owner: self.owner_name(account),
            window: "total".into(),
            limit: figures.limit().unwrap_or(0),
            used: figures.used(),
            reserved: figures.reserved(),
            remaining: figures.remaining().unwrap_or(0),
        }
    }
}
