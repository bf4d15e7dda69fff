//! The schema of the settings file as it is written: every key by name and type, and the search for keys that
//! nobody knows. What a value means, and whether it has its effect yet, is `check`'s.
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::figures::{BUDGET_KEYS, BudgetEntry, WeightsEntry};
use super::values::Span;
use super::yaml::{Fault, Places, START};
use super::{Egress, Face, Place, Policy, Reopen, ScopeRule, Unattached, Window};
use crate::hooks::Occasion;

/// The whole file; what is absent is `None`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping of settings")]
pub(super) struct File {
    pub(super) budget: Option<Budget>,
    pub(super) shutdown: Option<Policy>,
    pub(super) window: Option<Window>,
    pub(super) scope_rule: Option<ScopeRule>,
    pub(super) gate: Option<GateWord>,
    pub(super) midstream: Option<bool>,
    pub(super) cut: Option<Face>,
    pub(super) hold: Option<Span>,
    pub(super) lease: Option<Lease>,
    pub(super) reopen: Option<Reopen>,
    pub(super) warn_at: Option<Vec<u64>>,
    pub(super) weights: Option<WeightsEntry>,
    pub(super) egress: Option<Egress>,
    pub(super) allow: Option<Vec<String>>,
    pub(super) unattached: Option<Unattached>,
    pub(super) allow_private: Option<Vec<String>>,
    pub(super) resolvers: Option<Vec<String>>,
    pub(super) retention: Option<Span>,
    pub(super) listen: Option<String>,
    pub(super) hooks: Option<BTreeMap<Occasion, Vec<String>>>,
    pub(super) providers: Option<BTreeMap<String, ProviderEntry>>,
    pub(super) tls: Option<Tls>,
    pub(super) bottles: Option<BTreeMap<String, BottleEntry>>,
    pub(super) agents: Option<BTreeMap<String, AgentEntry>>,
    pub(super) dlp: Option<Dlp>,
}

pub(super) const TOP_KEYS: &[&str] = &[
    "budget",
    "shutdown",
    "window",
    "scope_rule",
    "gate",
    "midstream",
    "cut",
    "hold",
    "lease",
    "reopen",
    "warn_at",
    "weights",
    "egress",
    "allow",
    "unattached",
    "allow_private",
    "resolvers",
    "retention",
    "listen",
    "hooks",
    "providers",
    "tls",
    "bottles",
    "agents",
    "dlp",
];

/// Budgets by provider.
pub(super) type Budget = BTreeMap<String, BudgetEntry>;

/// `providers: NAME:`; over a built-in one of that name, each key by itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping of a provider's settings")]
pub(super) struct ProviderEntry {
    pub(super) dialect: Option<DialectWord>,
    pub(super) hosts: Option<Vec<String>>,
    pub(super) upstream: Option<String>,
    pub(super) include_usage: Option<bool>,
}

const PROVIDER_KEYS: &[&str] = &["dialect", "hosts", "upstream", "include_usage"];

/// `bottles: NAME:`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping of a bottle's settings")]
pub(super) struct BottleEntry {
    pub(super) extends: Option<String>,
    pub(super) budget: Option<Budget>,
    pub(super) shutdown: Option<Policy>,
    pub(super) egress: Option<Egress>,
    pub(super) cgroup: Option<String>,
    pub(super) snapshot: Option<SnapshotEntry>,
}

/// `snapshot:` of a bottle: a program and its arguments, or a word.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a list of a program and its arguments, or the word engine")]
pub(super) enum SnapshotEntry {
    Program(Vec<String>),
    Word(SnapshotWord),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SnapshotWord {
    Engine,
}

const BOTTLE_KEYS: &[&str] = &["extends", "budget", "shutdown", "egress", "cgroup", "snapshot"];

/// `agents: NAME:`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping of an agent's settings")]
pub(super) struct AgentEntry {
    pub(super) budget: Option<Budget>,
}

const AGENT_KEYS: &[&str] = &["budget"];

/// `tls:`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping with extra_roots")]
pub(super) struct Tls {
    pub(super) extra_roots: Option<String>,
}

const TLS_KEYS: &[&str] = &["extra_roots"];

/// `dlp:`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping with mode")]
pub(super) struct Dlp {
    pub(super) mode: Option<DlpMode>,
}

const DLP_KEYS: &[&str] = &["mode"];
const WEIGHT_KEYS: &[&str] = &["input", "cache_write", "cache_read", "output"];
const HOOK_KEYS: &[&str] = &["warn", "cut", "freeze", "kill"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum GateWord {
    Off,
    Estimate,
    Exact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DlpMode {
    Off,
    Warn,
    Block,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum DialectWord {
    Anthropic,
    Openai,
    OpenaiChat,
    Gemini,
    Bedrock,
}

/// Reads the text by the schema.
pub(super) fn read(text: &str) -> Result<File, Fault> {
    serde_yaml::from_str(text).map_err(|error| {
        let message = error.to_string();
        let Some(location) = error.location() else {
            return Fault::new(START, message);
        };
        let place = Place { line: location.line(), column: location.column() };
        let suffix = format!(" at line {} column {}", place.line, place.column);
        Fault::new(place, message.strip_suffix(&suffix).unwrap_or(&message))
    })
}

/// The keys that the mapping at this path may have; `None` where they are names.
fn known_keys(path: &[String]) -> Option<&'static [&'static str]> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        [] => Some(TOP_KEYS),
        ["tls"] => Some(TLS_KEYS),
        ["dlp"] => Some(DLP_KEYS),
        ["weights"] => Some(WEIGHT_KEYS),
        ["budget", _] | ["bottles" | "agents", _, "budget", _] => Some(BUDGET_KEYS),
        ["hooks"] => Some(HOOK_KEYS),
        ["providers", _] => Some(PROVIDER_KEYS),
        ["bottles", _] => Some(BOTTLE_KEYS),
        ["agents", _] => Some(AGENT_KEYS),
        _ => None,
    }
}

/// Refuses the first key that the schema does not know.
pub(super) fn check_keys(places: &Places) -> Result<(), Fault> {
    for (path, place) in places.keys() {
        let Some((key, parents)) = path.split_last() else { continue };
        let Some(known) = known_keys(parents) else { continue };
        if !known.contains(&key.as_str()) {
            let fault = Fault::new(place, format!("unknown key {key:?}"));
            return Err(fault.hint(nearest(key, known)));
        }
    }
    Ok(())
}

/// A hint that names the known word most like this one, or all of them.
pub(super) fn nearest(word: &str, known: &[&str]) -> String {
    let likeness = |candidate: &&&str| strsim::jaro_winkler(word, candidate);
    if known.is_empty() {
        return "there is none".to_owned();
    }
    match known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))) {
        Some(best) if likeness(&best) > 0.75 => format!("did you mean {best:?}?"),
        _ => format!("known are {}", known.join(", ")),
    }
}

/// `10s` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    Off,
    For(Duration),
}

impl FromStr for Lease {
    type Err = <Span as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" { Ok(Self::Off) } else { text.parse().map(|Span(length)| Self::For(length)) }
    }
}

impl<'de> Deserialize<'de> for Lease {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor("a length of time such as 10s, or off", PhantomData))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor("a length of time with its unit, such as 60s", PhantomData))
    }
}

/// Reads a scalar by the type's own `FromStr`; the text is what is said to be expected.
struct TextVisitor<T>(&'static str, PhantomData<T>);

impl<T> Visitor<'_> for TextVisitor<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}
