//! What is allowed and yet may not be meant: budgets that together exceed the global one. Refuses nothing.
use super::{Budget, ScopeRule, Settings};

impl Settings {
    /// What the operator should read before relying on the settings, one line each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        if self.scope_rule != ScopeRule::Nearest {
            return Vec::new();
        }
        self.budget.iter().filter_map(|(provider, global)| self.beyond_global(provider, *global)).collect()
    }

    /// Under `nearest` a budget that overrides the global one is not held back by it.
    fn beyond_global(&self, provider: &str, global: Budget) -> Option<String> {
        let overrides = self.overrides(provider);
        if overrides.is_empty() {
            return None;
        }
        let named: Vec<String> =
            overrides.iter().map(|(whose, budget)| format!("{whose} {}", words(*budget))).collect();
        let sum = overrides.iter().fold(global.tokens, |sum, (_, budget)| sum.saturating_add(budget.tokens));
        let all = std::iter::once(global).chain(overrides.iter().map(|(_, budget)| *budget));
        let reach = match all.clone().all(|budget| budget.window == global.window) {
            true => format!("up to {} can be used", words(Budget { tokens: sum, ..global })),
            false => "their windows differ, so there is no sum to it".to_owned(),
        };
        Some(format!(
            "{provider}: the global budget of {} does not hold back those that override it ({}): {reach}; \
             scope_rule: ceiling holds all of them under the global one",
            words(global),
            named.join(", "),
        ))
    }

    fn overrides(&self, provider: &str) -> Vec<(String, Budget)> {
        let bottles = self.bottles.iter().map(|(name, bottle)| (format!("bottle:{name}"), &bottle.budget));
        let agents = self.agents.iter().map(|(name, agent)| (format!("agent:{name}"), &agent.budget));
        let all = bottles.chain(agents);
        all.filter_map(|(whose, budgets)| Some((whose, *budgets.get(provider)?))).collect()
    }
}

fn words(budget: Budget) -> String {
    format!("{} tokens {}", budget.tokens, budget.window.as_str())
}
