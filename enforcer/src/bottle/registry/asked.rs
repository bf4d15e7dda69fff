//! What is asked, by itself: words, names and numbers, and what the settings say where nothing is.
use std::collections::BTreeMap;

use super::Registry;
use crate::control::api::{self, Problem};
use crate::settings::{self, Egress, Policy};

impl Registry {
    pub(super) fn policy(&self, attach: &api::Attach) -> Result<Policy, Problem> {
        let settings = self.settings();
        let set = settings.bottles.get(&attach.name).and_then(|bottle| bottle.shutdown);
        match attach.policy.as_deref() {
            None => Ok(set.unwrap_or(settings.shutdown)),
            Some(word) => Policy::from_word(word).ok_or_else(|| {
                Problem::usage(format!("{word} is no policy")).with_hint("policies: cutoff, freeze, kill")
            }),
        }
    }

    pub(super) fn egress(&self, attach: &api::Attach) -> Result<Egress, Problem> {
        let settings = self.settings();
        let set = settings.bottles.get(&attach.name).and_then(|bottle| bottle.egress);
        match attach.egress.as_deref() {
            None => Ok(set.unwrap_or(settings.egress)),
            Some(word) => Egress::from_word(word).ok_or_else(|| {
                Problem::usage(format!("{word} is no egress mode"))
                    .with_hint("egress modes: open, allowlist, metered")
            }),
        }
    }
}

pub(super) fn check_names(attach: &api::Attach) -> Result<(), Problem> {
    let names = [Some(&attach.name), attach.agent.as_ref(), attach.parent.as_ref()];
    names
        .into_iter()
        .flatten()
        .try_for_each(|name| settings::check_name(name).map_err(|error| Problem::usage(error.to_string())))
}

pub(super) fn check_tokens(budget: &BTreeMap<String, u64>) -> Result<(), Problem> {
    budget.iter().try_for_each(|(provider, &tokens)| {
        settings::check_tokens(tokens).map_err(|error| Problem::usage(format!("{provider}: {error}")))
    })
}
