//! What each bottle used in all, by name and provider, for showing: raw by class, weighed when it is looked at.
use std::collections::{BTreeMap, HashMap};

use meter_proxy::tokens::{Provenance, Tokens};

use crate::budget::weights::Weights;
use crate::control::api;
use crate::ledger::{Settlement, Sum};

/// Settled figures by bottle's name and provider.
#[derive(Default)]
pub(super) struct UsedByBottles(HashMap<String, BTreeMap<String, Used>>);

#[derive(Clone, Copy, Default)]
struct Used {
    tokens: Tokens,
    /// The part that is not `reported`.
    estimated: Tokens,
    flows: u64,
}

impl UsedByBottles {
    /// Adds one settled exchange.
    pub(super) fn charge(&mut self, bottle: &str, provider: &str, settlement: &Settlement) {
        let is_reported = settlement.provenance == Provenance::Reported;
        let estimated = if is_reported { Tokens::default() } else { settlement.tokens };
        self.add(bottle, provider, &settlement.tokens, &estimated, 1);
    }

    /// Takes over what the ledger has settled.
    pub(super) fn load(&mut self, bottle: &str, sum: &Sum) {
        self.add(bottle, &sum.provider, &sum.tokens, &sum.estimated, sum.flows);
    }

    fn add(&mut self, bottle: &str, provider: &str, tokens: &Tokens, estimated: &Tokens, flows: u64) {
        let used = self.0.entry(bottle.to_owned()).or_default().entry(provider.to_owned()).or_default();
        used.tokens = used.tokens.saturating_add(tokens);
        used.estimated = used.estimated.saturating_add(estimated);
        used.flows = used.flows.saturating_add(flows);
    }

    /// What a bottle used, by provider.
    pub(super) fn of(&self, bottle: &str, weights: &Weights) -> BTreeMap<String, api::Usage> {
        let used = self.0.get(bottle).into_iter().flatten();
        used.map(|(provider, used)| (provider.clone(), used.shown(weights))).collect()
    }
}

impl Used {
    fn shown(&self, weights: &Weights) -> api::Usage {
        let Tokens { input, cache_write, cache_read, output, reasoning } = self.tokens;
        api::Usage {
            input,
            cache_write,
            cache_read,
            output,
            reasoning,
            total: weights.total(&self.tokens),
            estimated: weights.total(&self.estimated),
            flows: self.flows,
        }
    }
}
