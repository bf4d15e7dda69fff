//! What operators say of budgets, on its way to the core; and which budget stands behind a row of usage.
use std::collections::HashMap;
use std::time::Instant;

use super::Registry;
use crate::control::Controller as _;
use crate::control::api::{self, Problem};
use crate::core::{BudgetOrder, BudgetVerb, Message};
use crate::ledger::UsageRow;
use crate::settings;

impl Registry {
    /// The budget as it stands when the word counts; `None` when there is none any more.
    pub(super) async fn stated(
        &self,
        order: BudgetOrder,
        by: &str,
    ) -> Result<Option<api::BudgetRow>, Problem> {
        let received = Instant::now();
        if let BudgetVerb::Set(api::SetBudget { tokens, .. }) | BudgetVerb::Add(tokens) = order.verb {
            settings::check_tokens(tokens).map_err(|error| Problem::usage(error.to_string()))?;
        }
        let (scope, provider) = (order.scope.to_string(), order.provider.clone());
        self.ask(|reply| Message::StateBudget { order, by: by.into(), received, reply }).await?;
        let budgets = self.budgets().await?;
        Ok(budgets.into_iter().find(|row| (&row.scope, &row.provider) == (&scope, &provider)))
    }

    /// Says with each row of one bottle and one provider which budget the bottle feels first now.
    pub(super) async fn name_governing(&self, mut rows: Vec<UsageRow>) -> Result<Vec<UsageRow>, Problem> {
        let (bottles, _) = self.parts.core.ask(|reply| Message::View { reply }).await?;
        let budgets: HashMap<_, _> =
            bottles.into_iter().map(|bottle| (bottle.attachment.name, bottle.budget)).collect();
        for row in &mut rows {
            let (Some(bottle), Some(provider)) = (&row.bottle, &row.provider) else { continue };
            let budget = budgets.get(bottle).and_then(|budgets| budgets.get(provider));
            row.governs = budget.map(|budget| format!("{}:{}", budget.scope, budget.owner));
        }
        Ok(rows)
    }
}
