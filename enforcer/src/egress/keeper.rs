//! Writes what confined bottles may reach before they open, and keeps the addresses of names fresh while there are any.
//!
//! A name is looked up when the first bottle needs it, and again when its time to live is over. One without an address
//! opens nothing, which is said once, until it has one. Not here: what a rule means (`merge`), and how long an address
//! counts (`names`).
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use meter_proxy::egress::{EgressRule, Target};
use meter_proxy::hosts::Range;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::merge::{Opening, merge};
use super::names::{Known, may_open};
use super::resolve::{Found, Resolver};
use crate::kernel::{Allowed, Kernel, KernelError};
use crate::ledger::Attachment;
use crate::settings::Egress;

/// Longest that an attach waits for names that were never looked up.
const FIRST_LOOK: Duration = Duration::from_secs(4);
/// How often the host's list of DNS servers is looked at, where the settings name none.
const HOST_CHECK: Duration = Duration::from_secs(10);
/// What could not be written is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);
/// Why a name that was found opens nothing.
const NOT_BY_NAME: &str = "it leads to loopback or link-local addresses only, which no name opens";

/// A bottle that does not reach everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confined {
    /// Its slot.
    pub slot: u32,
    /// Its name, for words.
    pub name: String,
    /// What it may reach.
    pub mode: Egress,
}

/// See the module's head.
pub struct Keeper {
    kernel: Arc<dyn Kernel>,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    rules: Arc<[EgressRule]>,
    /// The settings' DNS servers; empty for the host's.
    servers: Vec<IpAddr>,
    bottles: BTreeMap<u32, Confined>,
    names: BTreeMap<String, Known>,
    resolver: Arc<Resolver>,
    /// What every bottle's entries were last written by; `None` when that differs, or is not known.
    written: Option<Reachable>,
    /// Slots whose entries could not all be written.
    unwritten: BTreeSet<u32>,
}

/// A bottle whose list could not be written.
struct Unwritten {
    /// Which, and why.
    words: String,
    /// It could be when it was last tried.
    is_news: bool,
}

/// What the entries of bottles depend on: the rules, the DNS servers, and the addresses of names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reachable {
    rules: Arc<[EgressRule]>,
    servers: Vec<IpAddr>,
    names: BTreeMap<String, Vec<IpAddr>>,
}

impl From<&Attachment> for Confined {
    fn from(attachment: &Attachment) -> Self {
        Self { slot: attachment.slot, name: attachment.name.clone(), mode: attachment.egress }
    }
}

impl State {
    fn reachable(&self, now: Instant) -> Reachable {
        let addresses = |(name, known): (&String, &Known)| (name.clone(), known.addresses(now).collect());
        Reachable {
            rules: self.rules.clone(),
            servers: self.resolver.servers().to_vec(),
            names: self.names.iter().map(addresses).collect(),
        }
    }
}

impl Keeper {
    /// Knows no bottle yet. `servers`: those of the settings, empty for the host's.
    #[must_use]
    pub fn new(kernel: Arc<dyn Kernel>, rules: Vec<EgressRule>, servers: Vec<IpAddr>) -> Self {
        let resolver = Arc::new(Resolver::new(&servers));
        let state = Mutex::new(State {
            rules: rules.into(),
            servers,
            bottles: BTreeMap::new(),
            names: BTreeMap::new(),
            resolver,
            written: None,
            unwritten: BTreeSet::new(),
        });
        Self { kernel, state, changed: Notify::new() }
    }

    /// Has other rules and servers hold for every bottle, from when this returns; names are looked up soon after.
    ///
    /// # Errors
    /// When the list cannot be written for some bottle, in words; then what held before is to hold again, and what of it
    /// cannot be written is closed and tried again.
    pub fn replace(&self, rules: Vec<EgressRule>, servers: Vec<IpAddr>) -> Result<(), String> {
        let before = self.exchange(rules.into(), servers);
        let failures = self.write_all();
        if failures.is_empty() {
            self.changed.notify_one();
            return Ok(());
        }
        self.exchange(before.0, before.1);
        let mut words: Vec<String> = failures.into_iter().map(|failure| failure.words).collect();
        words
            .extend(self.write_all().into_iter().map(|failure| format!("and back again: {}", failure.words)));
        // what cannot be written back either is tried again until it is
        self.changed.notify_one();
        Err(words.join("; "))
    }

    fn exchange(&self, rules: Arc<[EgressRule]>, servers: Vec<IpAddr>) -> (Arc<[EgressRule]>, Vec<IpAddr>) {
        let mut state = self.state();
        if state.servers != servers {
            state.resolver = Arc::new(Resolver::new(&servers));
        }
        (std::mem::replace(&mut state.rules, rules), std::mem::replace(&mut state.servers, servers))
    }

    /// Makes these the bottles that are confined, and writes what they may reach by these rules; what others could, in
    /// slots that an earlier call named, is taken away. What names open follows when they are looked up, which
    /// [`Self::keep_fresh`] does first.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn take_over(&self, bottles: impl IntoIterator<Item = Confined>) -> Result<(), KernelError> {
        let confined = bottles.into_iter().filter(|bottle| bottle.mode != Egress::Open);
        let confined: BTreeMap<u32, Confined> = confined.map(|bottle| (bottle.slot, bottle)).collect();
        let mut state = self.state();
        for gone in state.bottles.keys().filter(|slot| !confined.contains_key(slot)) {
            self.kernel.set_allowed(*gone, &[])?;
        }
        let reachable = state.reachable(Instant::now());
        for bottle in confined.values() {
            self.write(&reachable, bottle)?;
        }
        state.unwritten.clear();
        (state.bottles, state.written) = (confined, Some(reachable));
        Ok(())
    }

    /// Writes what a bottle may reach, before it opens; names that nobody needed before are looked up. Returns what
    /// opens nothing, one line each.
    ///
    /// # Errors
    /// When the list cannot be written; then nothing of the slot stays in it.
    pub async fn confine(self: &Arc<Self>, bottle: Confined) -> Result<Vec<String>, KernelError> {
        if bottle.mode == Egress::Open {
            // an earlier bottle of this slot may have ended without a detach
            return self.release(bottle.slot).map(|()| Vec::new());
        }
        if bottle.mode == Egress::Allowlist {
            let unasked = self.names(|known| known.is_none_or(|known| !known.was_asked()));
            if tokio::time::timeout(FIRST_LOOK, self.look_up(unasked)).await.is_err() {
                tracing::warn!("some names of rules are not looked up yet");
            }
        }
        let (slot, warnings) = (bottle.slot, self.warnings(&bottle));
        let mut state = self.state();
        let reachable = state.reachable(Instant::now());
        if let Err(error) = self.write(&reachable, &bottle) {
            drop(state);
            self.release(slot)?;
            return Err(error);
        }
        state.written = state.written.take().filter(|written| *written == reachable);
        state.bottles.insert(slot, bottle);
        drop(state);
        self.changed.notify_one();
        Ok(warnings)
    }

    /// Takes the entries of a slot away; one that has none is no error.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn release(&self, slot: u32) -> Result<(), KernelError> {
        let mut state = self.state();
        state.bottles.remove(&slot);
        state.unwritten.remove(&slot);
        self.kernel.set_allowed(slot, &[])
    }

    /// Looks names up as they come due, for as long as bottles need them; `tell` hears what the operator should.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken, tell: impl Fn(String)) {
        loop {
            self.look_up(self.due_names()).await.into_iter().for_each(&tell);
            let keeper = self.clone();
            match tokio::task::spawn_blocking(move || keeper.write_all()).await {
                Ok(failures) => {
                    failures
                        .into_iter()
                        .filter(|failure| failure.is_news)
                        .for_each(|failure| tell(failure.words));
                }
                Err(error) => tracing::error!(%error, "what bottles may reach was not written"),
            }
            let pause = self.pause();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.changed.notified() => {}
                () = async { match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                } } => self.follow_host(),
            }
        }
    }

    /// How long nothing is to be done; `None`: until a bottle comes.
    fn pause(&self) -> Option<Duration> {
        let now = Instant::now();
        let due = self.names(|_| true).into_iter().filter_map(|name| {
            let state = self.state();
            state.names.get(&name).map(|known| known.due(now))
        });
        let next = due.min().filter(|_| self.needs_names()).map(|due| due.saturating_duration_since(now));
        let state = self.state();
        let watch = state.servers.is_empty() && !state.bottles.is_empty();
        let owes = !state.unwritten.is_empty();
        next.into_iter().chain(watch.then_some(HOST_CHECK)).chain(owes.then_some(RETRY)).min()
    }

    fn needs_names(&self) -> bool {
        self.state().bottles.values().any(|bottle| bottle.mode == Egress::Allowlist)
    }

    fn due_names(&self) -> Vec<String> {
        if !self.needs_names() {
            return Vec::new();
        }
        let now = Instant::now();
        self.names(|known| known.is_none_or(|known| known.due(now) <= now))
    }

    /// The names in rules of which this holds, each once.
    fn names(&self, which: impl Fn(Option<&Known>) -> bool) -> Vec<String> {
        let state = self.state();
        let named = state.rules.iter().filter_map(|rule| match &rule.to {
            Target::Name(name) => Some(name),
            Target::Range(_) => None,
        });
        let mut names: Vec<String> = named.filter(|name| which(state.names.get(*name))).cloned().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Looks names up, all at once; what has changed about whether they open anything.
    async fn look_up(&self, names: Vec<String>) -> Vec<String> {
        let resolver = self.state().resolver.clone();
        let mut asked = JoinSet::new();
        for name in names {
            let resolver = resolver.clone();
            asked.spawn(async move {
                let answer = resolver.look_up(&name).await;
                (name, answer)
            });
        }
        let mut changes = Vec::new();
        while let Some(answered) = asked.join_next().await {
            match answered {
                Ok((name, answer)) => changes.extend(self.learn(name, answer)),
                Err(error) => tracing::error!(%error, "a name was not looked up"),
            }
        }
        changes
    }

    /// Remembers an answer; says so when the name begins or ceases to open anything.
    fn learn(&self, name: String, answer: Result<Found, String>) -> Option<String> {
        let now = Instant::now();
        let mut state = self.state();
        let known = state.names.entry(name.clone()).or_default();
        let (before, was_asked) = (known.addresses(now).next().is_some(), known.was_asked());
        let answer = answer.and_then(|mut found| {
            found.addresses.retain(|ip| may_open(*ip));
            if found.addresses.is_empty() { Err(NOT_BY_NAME.to_owned()) } else { Ok(found) }
        });
        match answer {
            Ok(found) => known.found(&found.addresses, found.ttl, now),
            Err(why) => known.failed(why, now),
        }
        match (before, known.addresses(now).next().is_some()) {
            (false, true) if was_asked => Some(format!("the rules for {name} let it through: it was found")),
            (true, false) => Some(format!(
                "the rules for {name} let nothing through any more: {}",
                known.trouble.as_deref().unwrap_or_default()
            )),
            _ => None,
        }
    }

    /// What opens nothing for a bottle.
    fn warnings(&self, bottle: &Confined) -> Vec<String> {
        let state = self.state();
        let mut warnings = Vec::new();
        if state.resolver.servers().is_empty() {
            warnings
                .push(format!("no DNS server is known, so {} reaches none: set `resolvers`", bottle.name));
        }
        if bottle.mode == Egress::Allowlist {
            let now = Instant::now();
            warnings.extend(state.rules.iter().filter_map(|rule| {
                let Target::Name(name) = &rule.to else { return None };
                let known = state.names.get(name);
                if known.is_some_and(|known| known.addresses(now).next().is_some()) {
                    return None;
                }
                let why =
                    known.and_then(|known| known.trouble.as_deref()).unwrap_or("DNS did not answer in time");
                Some(format!("rule {rule} lets nothing through until its name is found: {why}"))
            }));
        }
        warnings
    }

    /// Asks other servers when the host does, and lets bottles ask them.
    fn follow_host(&self) {
        let mut state = self.state();
        if !state.servers.is_empty() || state.resolver.is_current() {
            return;
        }
        let resolver = Arc::new(Resolver::new(&[]));
        tracing::info!(servers = ?resolver.servers(), "the host has other DNS servers now");
        state.resolver = resolver;
    }

    /// Writes what every bottle may reach now, where that has changed. What could not be written stays closed and is tried
    /// again.
    fn write_all(&self) -> Vec<Unwritten> {
        let mut state = self.state();
        let reachable = state.reachable(Instant::now());
        if state.written.as_ref() == Some(&reachable) && state.unwritten.is_empty() {
            return Vec::new();
        }
        let mut failures = Vec::new();
        let mut unwritten = BTreeSet::new();
        for bottle in state.bottles.values() {
            if let Err(error) = self.write(&reachable, bottle) {
                unwritten.insert(bottle.slot);
                let words = format!("what {} may reach could not all be written: {error}", bottle.name);
                failures.push(Unwritten { words, is_news: !state.unwritten.contains(&bottle.slot) });
            }
        }
        (state.written, state.unwritten) = (Some(reachable), unwritten);
        failures
    }

    fn write(&self, reachable: &Reachable, bottle: &Confined) -> Result<(), KernelError> {
        self.kernel.set_allowed(bottle.slot, &entries(reachable, bottle.mode))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a mode lets through: the DNS servers, and in mode `allowlist` what the rules say.
fn entries(reachable: &Reachable, mode: Egress) -> Vec<Allowed> {
    let servers = reachable.servers.iter().map(|ip| (Range::from(*ip), Opening::Dns));
    let rules = reachable.rules.iter().filter(|_| mode == Egress::Allowlist).flat_map(|rule| {
        let opening = rule.port.map_or(Opening::AnyPort, Opening::Port);
        let ranges: Vec<Range> = match &rule.to {
            Target::Range(range) => vec![*range],
            Target::Name(name) => {
                reachable.names.get(name).into_iter().flatten().copied().map(Range::from).collect()
            }
        };
        ranges.into_iter().map(move |range| (range, opening))
    });
    merge(servers.chain(rules))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::FakeKernel;

    fn confined(slot: u32, mode: Egress) -> Confined {
        Confined { slot, name: format!("b{slot}"), mode }
    }

    fn keeper(kernel: &Arc<FakeKernel>, rules: &[&str]) -> Arc<Keeper> {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Arc::new(Keeper::new(kernel.clone(), rules, vec!["192.0.2.53".parse().unwrap()]))
    }

    fn ranges(kernel: &FakeKernel, slot: u32) -> Vec<String> {
        kernel.allowed(slot).iter().map(|allowed| allowed.range.to_string()).collect()
    }

    #[tokio::test]
    async fn each_mode_has_its_entries_until_it_is_released() {
        let kernel = Arc::new(FakeKernel::new());
        let keeper = keeper(&kernel, &["10.0.0.0/8:5432"]);
        keeper.take_over([confined(1, Egress::Metered), confined(9, Egress::Open)]).unwrap();
        assert!(keeper.confine(confined(2, Egress::Allowlist)).await.unwrap().is_empty());
        assert!(keeper.confine(confined(3, Egress::Open)).await.unwrap().is_empty());
        assert_eq!(ranges(&kernel, 1), ["0.0.0.0/0", "192.0.2.53/32"]);
        assert_eq!(ranges(&kernel, 2), ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.53/32"]);
        assert!(kernel.allowed(3).is_empty() && kernel.allowed(9).is_empty());
        assert!(kernel.allowed(2)[2].ports.dns);
        keeper.release(2).unwrap();
        assert!(kernel.allowed(2).is_empty());
        assert!(keeper.write_all().is_empty());
        assert!(kernel.allowed(2).is_empty(), "what was released is not written again");
    }

    #[tokio::test]
    async fn what_is_taken_over_again_is_whole_and_nobody_else_s() {
        let kernel = Arc::new(FakeKernel::new());
        let keeper = keeper(&kernel, &["10.0.0.0/8:5432"]);
        keeper.take_over([1, 2, 3].map(|slot| confined(slot, Egress::Allowlist))).unwrap();
        // as the core leaves it: the first is gone, the second was attached anew, the third's rules are unknown
        kernel.set_allowed(2, &[]).unwrap();
        keeper.take_over([confined(2, Egress::Allowlist), confined(3, Egress::Metered)]).unwrap();
        for _ in 0..2 {
            assert!(kernel.allowed(1).is_empty());
            assert_eq!(ranges(&kernel, 2), ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.53/32"]);
            assert_eq!(ranges(&kernel, 3), ["0.0.0.0/0", "192.0.2.53/32"]);
            assert!(keeper.write_all().is_empty());
        }
    }

    #[tokio::test]
    async fn what_one_bottle_was_written_by_alone_is_written_for_all() {
        let kernel = Arc::new(FakeKernel::new());
        let keeper = keeper(&kernel, &["git.test:22"]);
        keeper.take_over([confined(1, Egress::Allowlist)]).unwrap();
        let found = Found { addresses: vec!["192.0.2.1".parse().unwrap()], ttl: Duration::from_secs(60) };
        keeper.learn("git.test".into(), Ok(found));
        keeper.confine(confined(2, Egress::Allowlist)).await.unwrap();
        assert_eq!(keeper.state().written, None);
        assert!(keeper.write_all().is_empty());
        assert_eq!(ranges(&kernel, 1), ranges(&kernel, 2));
        assert!(keeper.state().written.is_some());
    }

    #[tokio::test]
    async fn other_rules_hold_for_every_bottle_at_once() {
        let kernel = Arc::new(FakeKernel::new());
        let keeper = keeper(&kernel, &["10.0.0.0/8:5432"]);
        keeper.take_over([confined(1, Egress::Metered), confined(2, Egress::Allowlist)]).unwrap();
        keeper.replace(vec!["172.16.0.0/12".parse().unwrap()], vec!["192.0.2.54".parse().unwrap()]).unwrap();
        assert_eq!(ranges(&kernel, 1), ["0.0.0.0/0", "192.0.2.54/32"]);
        assert_eq!(ranges(&kernel, 2), ["0.0.0.0/0", "172.16.0.0/12", "192.0.2.54/32"]);
    }

    #[tokio::test]
    async fn rules_that_cannot_be_written_are_not_taken_and_those_before_are_written_until_they_stand() {
        let kernel = Arc::new(FakeKernel::new());
        let keeper = keeper(&kernel, &["10.0.0.0/8:5432"]);
        keeper.take_over([confined(1, Egress::Allowlist)]).unwrap();
        kernel.refuse_lists(true);
        let servers = vec!["192.0.2.54".parse().unwrap()];
        let why = keeper.replace(vec!["172.16.0.0/12".parse().unwrap()], servers).unwrap_err();
        assert!(why.starts_with("what b1 may reach could not all be written: "), "{why}");
        assert!(why.contains("; and back again: what b1 "), "{why}");
        let rules = vec!["172.16.0.0/12".parse().unwrap()];
        assert!(keeper.replace(rules, Vec::new()).is_err(), "what fails again fails");
        assert!(kernel.allowed(1).is_empty());
        let stop = CancellationToken::new();
        let fresh = tokio::spawn(keeper.clone().keep_fresh(stop.clone(), |_| {}));
        // the first look comes too early
        tokio::time::sleep(RETRY / 4).await;
        kernel.refuse_lists(false);
        let written = async {
            while ranges(&kernel, 1) != ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.53/32"] {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(RETRY * 3, written).await.unwrap();
        stop.cancel();
        fresh.await.unwrap();
    }

    #[tokio::test]
    async fn a_name_opens_what_was_found_and_only_that() {
        let kernel = Arc::new(FakeKernel::new());
        let keeper = keeper(&kernel, &["git.test:22", "db.test"]);
        let found = |ip: &str| {
            Ok(Found {
                addresses: vec![ip.parse().unwrap(), "127.0.0.1".parse().unwrap()],
                ttl: Duration::ZERO,
            })
        };
        assert_eq!(keeper.learn("git.test".into(), found("192.0.2.1")), None, "the first answer is no news");
        assert_eq!(keeper.learn("db.test".into(), Err("no such name".into())), None);
        let warnings = keeper.confine(confined(1, Egress::Allowlist)).await.unwrap();
        assert_eq!(warnings, ["rule db.test lets nothing through until its name is found: no such name"]);
        assert_eq!(ranges(&kernel, 1), ["0.0.0.0/0", "192.0.2.1/32", "192.0.2.53/32"]);

        assert!(keeper.learn("db.test".into(), found("192.0.2.2")).unwrap().contains("it was found"));
        assert_eq!(keeper.learn("git.test".into(), found("192.0.2.3")), None);
        assert!(keeper.write_all().is_empty());
        let both = ["0.0.0.0/0", "192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32", "192.0.2.53/32"];
        assert_eq!(ranges(&kernel, 1), both, "an old address lives on for a while");

        let loopback = Ok(Found { addresses: vec!["127.0.0.1".parse().unwrap()], ttl: Duration::ZERO });
        keeper.learn("evil.test".into(), loopback);
        assert_eq!(keeper.state().names["evil.test"].trouble.as_deref(), Some(NOT_BY_NAME));
    }
}
