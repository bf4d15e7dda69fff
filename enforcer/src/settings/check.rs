//! Turns the file as written into [`Settings`]: refuses what has no effect in this version, checks what serde
//! cannot, and merges the providers. Every refusal has its place.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use meter_proxy::egress::{EgressRule, RuleError};
use meter_proxy::protocol::{Dialect, Provider};

use super::figures::WeightsEntry;
use super::file::{
    AgentEntry, BottleEntry, Budget as BudgetEntries, DialectWord, DlpMode, File, GateWord, Lease,
    ProviderEntry, SnapshotEntry, SnapshotWord, nearest,
};
use super::values::{Span, check_cidr, check_host, check_name, check_upstream, hosts_overlap};
use super::yaml::{Fault, Places};
use super::{
    AgentSettings, BottleSettings, Budget, Budgets, Gate, MAX_PORTS, MAX_RESOLVERS, MAX_RULES, Settings,
    Snapshot, Window, built_in_providers,
};
use crate::budget::weights::Weights;
use crate::hooks::Occasion;
use crate::hooks::words::{PLACEHOLDERS, unknown_placeholder};

/// Shortest retention: a month's window, and the day that is not over yet.
const MIN_RETENTION: Duration = Duration::from_hours(32 * 24);

/// Shortest lease: ten times what separates two heartbeats.
const MIN_LEASE: Duration = Duration::from_secs(1);

const DIALECTS: &str = "a dialect is anthropic, openai, openai-chat, gemini or bedrock";

/// The settings that the file asks for.
pub(super) fn settings(file: File, places: &Places, cgroup_mount: Option<&Path>) -> Result<Settings, Fault> {
    refuse_unsupported(&file, places)?;
    let default = Settings::default();
    let providers = providers(file.providers.unwrap_or_default(), places)?;
    let window = file.window.unwrap_or(default.window);
    let check = Check { places, providers, cgroup_mount, window };
    let settings = Settings {
        window,
        scope_rule: file.scope_rule.unwrap_or(default.scope_rule),
        reopen: file.reopen.unwrap_or(default.reopen),
        warn_at: check.percentages(file.warn_at.unwrap_or_default())?,
        weights: check.weights(file.weights.unwrap_or_default())?,
        budget: check.budgets(file.budget, &["budget"])?,
        shutdown: file.shutdown.unwrap_or(default.shutdown),
        hooks: check.hooks(file.hooks.unwrap_or_default())?,
        retention: check.retention(file.retention, default.retention)?,
        bottles: check.bottles(file.bottles.unwrap_or_default())?,
        agents: check.agents(file.agents.unwrap_or_default())?,
        gate: match file.gate {
            Some(GateWord::Off) => Gate::Off,
            _ => default.gate,
        },
        midstream: file.midstream.unwrap_or(default.midstream),
        cut: file.cut.unwrap_or(default.cut),
        hold: file.hold.map_or(default.hold, |hold| hold.0),
        lease: check.lease(file.lease, default.lease)?,
        unattached: file.unattached.unwrap_or(default.unattached),
        egress: file.egress.unwrap_or(default.egress),
        allow: check.rules(file.allow.unwrap_or_default())?,
        resolvers: check.resolvers(file.resolvers.unwrap_or_default())?,
        allow_private: check.ranges(file.allow_private.unwrap_or_default())?,
        listen: match file.listen {
            Some(listen) => check.listen(&listen)?,
            None => default.listen,
        },
        extra_roots: file
            .tls
            .and_then(|tls| tls.extra_roots)
            .map(|path| check.extra_roots(&path))
            .transpose()?,
        providers: check.providers,
    };
    Ok(settings)
}

/// Refuses each value that the schema knows and that would do nothing yet.
fn refuse_unsupported(file: &File, places: &Places) -> Result<(), Fault> {
    let unsupported: [(bool, &[&str], &str); 2] = [
        (file.gate == Some(GateWord::Exact), &["gate"], "estimate or off"),
        (
            file.dlp.as_ref().and_then(|dlp| dlp.mode).is_some_and(|mode| mode != DlpMode::Off),
            &["dlp", "mode"],
            "off",
        ),
    ];
    for (refused, path, supported) in unsupported {
        if refused {
            return Err(not_yet(places, path, supported));
        }
    }
    Ok(())
}

fn filled<T>(list: Option<&Vec<T>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

fn not_yet(places: &Places, path: &[&str], supported: &str) -> Fault {
    let key = path.join(".");
    Fault::new(places.value(path), format!("this value of {key} is not yet supported in this version"))
        .hint(format!("supported is {supported}"))
}

/// Built-in providers with the file's over them.
fn providers(entries: BTreeMap<String, ProviderEntry>, places: &Places) -> Result<Vec<Provider>, Fault> {
    let mut providers = built_in_providers();
    for (name, entry) in entries {
        check_name(&name).map_err(|error| {
            Fault::new(places.key(&["providers", &name]), format!("provider {name:?}: {error}"))
        })?;
        match providers.iter_mut().find(|provider| provider.name == name) {
            Some(built_in) => override_provider(built_in, entry, places)?,
            None => providers.push(new_provider(name, entry, places)?),
        }
    }
    refuse_shared_hosts(&providers, places)?;
    Ok(providers)
}

fn new_provider(name: String, entry: ProviderEntry, places: &Places) -> Result<Provider, Fault> {
    let at = places.key(&["providers", &name]);
    let Some(word) = entry.dialect else {
        return Err(Fault::new(at, format!("provider {name:?} has no dialect")).hint(DIALECTS));
    };
    if !filled(entry.hosts.as_ref()) && entry.upstream.is_none() {
        return Err(Fault::new(at, format!("provider {name:?} has neither hosts nor an upstream")));
    }
    let dialect = dialect(word);
    let mut provider = Provider { name, dialect, hosts: Vec::new(), upstream: None, include_usage: true };
    override_provider(&mut provider, entry, places)?;
    Ok(provider)
}

fn dialect(word: DialectWord) -> Dialect {
    match word {
        DialectWord::Anthropic => Dialect::Anthropic,
        DialectWord::Openai => Dialect::Openai,
        DialectWord::OpenaiChat => Dialect::OpenaiChat,
        DialectWord::Gemini => Dialect::Gemini,
        DialectWord::Bedrock => Dialect::Bedrock,
    }
}

fn override_provider(provider: &mut Provider, entry: ProviderEntry, places: &Places) -> Result<(), Fault> {
    let name = provider.name.clone();
    if let Some(word) = entry.dialect {
        provider.dialect = dialect(word);
    }
    if let Some(hosts) = entry.hosts {
        for (index, host) in hosts.iter().enumerate() {
            let at = places.value(&["providers", &name, "hosts", &index.to_string()]);
            check_host(host).map_err(|what| Fault::new(at, what))?;
        }
        provider.hosts = hosts;
    }
    if let Some(upstream) = entry.upstream {
        let at = places.value(&["providers", &name, "upstream"]);
        check_upstream(&upstream)
            .map_err(|what| Fault::new(at, what).hint("write it as https://host[:port][/path]"))?;
        provider.upstream = Some(upstream);
    }
    provider.include_usage = entry.include_usage.unwrap_or(provider.include_usage);
    Ok(())
}

fn refuse_shared_hosts(providers: &[Provider], places: &Places) -> Result<(), Fault> {
    let claims: Vec<(&Provider, usize, &str)> = providers
        .iter()
        .flat_map(|provider| {
            provider.hosts.iter().enumerate().map(move |(i, host)| (provider, i, host.as_str()))
        })
        .collect();
    for (later, &(second, index, host)) in claims.iter().enumerate() {
        for &(first, _, claimed) in &claims[..later] {
            if hosts_overlap(claimed, host) {
                let at = places.value(&["providers", &second.name, "hosts", &index.to_string()]);
                let what = if first.name == second.name {
                    format!("provider {:?} lists {host:?} twice ({claimed:?} covers it)", first.name)
                } else {
                    format!("host {host:?} belongs to provider {:?} already ({claimed:?})", first.name)
                };
                return Err(Fault::new(at, what).hint("a metered host has one provider"));
            }
        }
    }
    Ok(())
}

/// What the checks of names and budgets look things up in.
struct Check<'a> {
    places: &'a Places,
    providers: Vec<Provider>,
    /// Where the host has its cgroup v2 file system; `None`: it is not known.
    cgroup_mount: Option<&'a Path>,
    /// Of budgets that do not say theirs.
    window: Window,
}

impl Check<'_> {
    fn budgets(&self, budget: Option<BudgetEntries>, path: &[&str]) -> Result<Budgets, Fault> {
        let mut budgets = Budgets::new();
        for (provider, entry) in budget.unwrap_or_default() {
            let path = [path, &[provider.as_str()]].concat();
            self.check_provider(&provider, &path)?;
            let window = entry.window.unwrap_or(self.window);
            budgets.insert(provider, Budget { tokens: entry.tokens.0, window });
        }
        Ok(budgets)
    }

    fn percentages(&self, written: Vec<u64>) -> Result<Vec<u8>, Fault> {
        let read = |(index, percent): (usize, u64)| {
            u8::try_from(percent).ok().filter(|percent| (1..=100).contains(percent)).ok_or_else(|| {
                let at = self.places.value(&["warn_at", &index.to_string()]);
                Fault::new(at, format!("{percent} is no percentage to warn at"))
                    .hint("1 to 100 are, as in [50, 80, 95]")
            })
        };
        let percentages: BTreeSet<u8> =
            written.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(percentages.into_iter().collect())
    }

    fn weights(&self, entry: WeightsEntry) -> Result<Weights, Fault> {
        let weights = Weights {
            input: entry.input.0,
            cache_write: entry.cache_write.0,
            cache_read: entry.cache_read.0,
            output: entry.output.0,
        };
        if weights.are_all_zero() {
            let at = self.places.value(&["weights"]);
            return Err(Fault::new(
                at,
                "no class of token weighs anything, so no budget would ever be used up",
            )
            .hint("give at least one class a weight above 0"));
        }
        Ok(weights)
    }

    fn check_provider(&self, provider: &str, path: &[&str]) -> Result<(), Fault> {
        let known: Vec<&str> = self.providers.iter().map(|provider| provider.name.as_str()).collect();
        if known.contains(&provider) {
            return Ok(());
        }
        Err(Fault::new(self.places.key(path), format!("no provider is called {provider:?}"))
            .hint(nearest(provider, &known)))
    }

    fn bottles(
        &self,
        entries: BTreeMap<String, BottleEntry>,
    ) -> Result<BTreeMap<String, BottleSettings>, Fault> {
        let mut bottles = BTreeMap::new();
        for (name, entry) in entries {
            let bottle = self.bottle(&name, entry)?;
            bottles.insert(name, bottle);
        }
        for name in bottles.keys() {
            self.check_ancestors(name, &bottles)?;
        }
        self.refuse_shared_cgroups(&bottles)?;
        Ok(bottles)
    }

    fn bottle(&self, name: &str, entry: BottleEntry) -> Result<BottleSettings, Fault> {
        self.check_owner("bottle", name, &["bottles", name])?;
        Ok(BottleSettings {
            extends: entry.extends,
            budget: self.budgets(entry.budget, &["bottles", name, "budget"])?,
            shutdown: entry.shutdown,
            egress: entry.egress,
            cgroup: entry.cgroup.map(|path| self.cgroup(name, &path)).transpose()?,
            snapshot: self.snapshot(name, entry.snapshot)?,
        })
    }

    fn snapshot(&self, bottle: &str, entry: Option<SnapshotEntry>) -> Result<Option<Snapshot>, Fault> {
        match entry {
            None => Ok(None),
            Some(SnapshotEntry::Word(SnapshotWord::Engine)) => Ok(Some(Snapshot::Engine)),
            Some(SnapshotEntry::Program(argv)) => {
                let argv = self.program(argv, &["bottles", bottle, "snapshot"])?;
                Ok((!argv.is_empty()).then_some(Snapshot::Program(argv)))
            }
        }
    }

    /// A path that can be waited for: one way to write it, and in the only place where cgroups are.
    fn cgroup(&self, bottle: &str, text: &str) -> Result<PathBuf, Fault> {
        let at = self.places.value(&["bottles", bottle, "cgroup"]);
        let fault = |what: &str| Fault::new(at, format!("{text:?} {what}"));
        let path = Path::new(text);
        if !path.is_absolute() || text.contains('\0') {
            return Err(fault("is not an absolute path"));
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(fault("goes up by \"..\"").hint("write the path as it is"));
        }
        if let Some(mount) = self.cgroup_mount
            && (!path.starts_with(mount) || path == mount)
        {
            let what = format!("is not below {}", mount.display());
            return Err(fault(&what).hint("cgroup v2 directories are there and nowhere else on this host"));
        }
        // leaves out what says nothing: "//", "/./", a slash at the end
        Ok(path.components().collect())
    }

    /// A cgroup is one bottle.
    fn refuse_shared_cgroups(&self, bottles: &BTreeMap<String, BottleSettings>) -> Result<(), Fault> {
        let mut owners = BTreeMap::new();
        for (name, bottle) in bottles {
            let Some(cgroup) = &bottle.cgroup else { continue };
            if let Some(first) = owners.insert(cgroup, name) {
                let at = self.places.value(&["bottles", name, "cgroup"]);
                let what = format!("{} is the cgroup of bottle {first:?} already", cgroup.display());
                return Err(Fault::new(at, what).hint("a cgroup is one bottle"));
            }
        }
        Ok(())
    }

    /// Walks up from a bottle: each parent must be there, and none may come twice.
    fn check_ancestors(&self, name: &str, bottles: &BTreeMap<String, BottleSettings>) -> Result<(), Fault> {
        let mut seen = BTreeSet::from([name]);
        let mut child = name;
        while let Some(parent) = bottles.get(child).and_then(|bottle| bottle.extends.as_deref()) {
            let at = self.places.value(&["bottles", child, "extends"]);
            if !bottles.contains_key(parent) {
                let known: Vec<&str> =
                    bottles.keys().map(String::as_str).filter(|&name| name != child).collect();
                return Err(
                    Fault::new(at, format!("no bottle is called {parent:?}")).hint(nearest(parent, &known))
                );
            }
            if !seen.insert(parent) {
                return Err(Fault::new(at, format!("bottle {parent:?} extends itself, by way of {child:?}"))
                    .hint("extends must not go in a circle"));
            }
            child = parent;
        }
        Ok(())
    }

    fn agents(
        &self,
        entries: BTreeMap<String, AgentEntry>,
    ) -> Result<BTreeMap<String, AgentSettings>, Fault> {
        let mut agents = BTreeMap::new();
        for (name, entry) in entries {
            self.check_owner("agent", &name, &["agents", &name])?;
            let budget = self.budgets(entry.budget, &["agents", &name, "budget"])?;
            agents.insert(name, AgentSettings { budget });
        }
        Ok(agents)
    }

    fn check_owner(&self, what: &str, name: &str, path: &[&str]) -> Result<(), Fault> {
        check_name(name)
            .map_err(|error| Fault::new(self.places.key(path), format!("{what} {name:?}: {error}")))
    }

    fn hooks(
        &self,
        hooks: BTreeMap<Occasion, Vec<String>>,
    ) -> Result<BTreeMap<Occasion, Vec<String>>, Fault> {
        let mut checked = BTreeMap::new();
        for (occasion, argv) in hooks {
            let argv = self.program(argv, &["hooks", occasion.as_str()])?;
            if !argv.is_empty() {
                checked.insert(occasion, argv);
            }
        }
        Ok(checked)
    }

    /// A program and its arguments, which no shell reads; whose file it is, is looked at whenever it is to be run.
    fn program(&self, argv: Vec<String>, path: &[&str]) -> Result<Vec<String>, Fault> {
        for (index, argument) in argv.iter().enumerate() {
            let at = self.places.value(&[path, &[index.to_string().as_str()]].concat());
            if let Some(name) = unknown_placeholder(argument) {
                return Err(Fault::new(
                    at,
                    format!("{argument:?} holds {{{name}}}, which stands for nothing"),
                )
                .hint(format!("placeholders are {{{}}}", PLACEHOLDERS.join("}, {"))));
            }
            if argument.contains('\0') {
                return Err(Fault::new(at, format!("{argument:?} holds a NUL")));
            }
            if index == 0 && !argument.starts_with('/') {
                return Err(Fault::new(at, format!("{argument:?} is not an absolute path"))
                    .hint("no shell and no PATH is asked: write the program's whole path"));
            }
        }
        Ok(argv)
    }

    fn retention(&self, retention: Option<Span>, default: Duration) -> Result<Duration, Fault> {
        match retention {
            None => Ok(default),
            Some(Span(span)) if span < MIN_RETENTION => {
                let what = "exchanges younger than the longest window would be rolled up";
                Err(Fault::new(self.places.value(&["retention"]), what)
                    .hint("32d is the least; 400d the default"))
            }
            Some(Span(span)) => Ok(span),
        }
    }

    fn ranges(&self, ranges: Vec<String>) -> Result<Vec<String>, Fault> {
        for (index, range) in ranges.iter().enumerate() {
            let at = self.places.value(&["allow_private", &index.to_string()]);
            check_cidr(range).map_err(|what| Fault::new(at, what))?;
        }
        Ok(ranges)
    }

    fn lease(&self, lease: Option<Lease>, default: Option<Duration>) -> Result<Option<Duration>, Fault> {
        match lease {
            None => Ok(default),
            Some(Lease::Off) => Ok(None),
            Some(Lease::For(span)) if span < MIN_LEASE => {
                let what =
                    format!("a lease shorter than {} s would cut healthy bottles", MIN_LEASE.as_secs());
                Err(Fault::new(self.places.value(&["lease"]), what).hint("10s is the default; off is none"))
            }
            Some(Lease::For(span)) => Ok(Some(span)),
        }
    }

    fn rules(&self, rules: Vec<String>) -> Result<Vec<EgressRule>, Fault> {
        let mut ports = BTreeSet::new();
        let read = |(index, rule): (usize, String)| {
            let at = self.places.value(&["allow", &index.to_string()]);
            if index == MAX_RULES {
                return Err(Fault::new(at, format!("more than {MAX_RULES} rules in allow"))
                    .hint("a range of addresses covers many hosts"));
            }
            let read: EgressRule = rule.parse().map_err(|error: RuleError| {
                Fault::new(at, format!("{rule:?} is no rule of allow: {error}")).hint(error.hint())
            })?;
            ports.extend(read.port);
            if ports.len() > MAX_PORTS {
                return Err(Fault::new(at, format!("more than {MAX_PORTS} different ports in allow"))
                    .hint("a rule without a port lets every port through"));
            }
            Ok(read)
        };
        rules.into_iter().enumerate().map(read).collect()
    }

    fn resolvers(&self, resolvers: Vec<String>) -> Result<Vec<IpAddr>, Fault> {
        let read = |(index, resolver): (usize, String)| {
            let fault = |what: String| {
                Fault::new(self.places.value(&["resolvers", &index.to_string()]), what).hint(
                    "resolvers are addresses of at most 8 DNS servers, asked at port 53: 10.0.0.53, fd00::53",
                )
            };
            if index == MAX_RESOLVERS {
                return Err(fault(format!("more than {MAX_RESOLVERS} resolvers")));
            }
            let address = resolver.parse().ok().map(|address: IpAddr| address.to_canonical());
            address
                .filter(|address| !address.is_unspecified() && !address.is_multicast())
                .ok_or_else(|| fault(format!("{resolver:?} is no address of a DNS server")))
        };
        resolvers.into_iter().enumerate().map(read).collect()
    }

    fn listen(&self, listen: &str) -> Result<std::net::SocketAddr, Fault> {
        let hint = "write it as \"127.0.0.1:7080\" or \"[::1]:7080\"";
        let fault =
            |what: &str| Fault::new(self.places.value(&["listen"]), format!("{listen:?} {what}")).hint(hint);
        let address: std::net::SocketAddr =
            listen.parse().map_err(|_| fault("is not an address with a port"))?;
        // the kernel knows a bottle's connection to the meter by its address
        if address.ip().is_unspecified() {
            return Err(fault("is every address of the host; bottles need one"));
        }
        Ok(address)
    }

    fn extra_roots(&self, path: &str) -> Result<PathBuf, Fault> {
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            let at = self.places.value(&["tls", "extra_roots"]);
            return Err(Fault::new(at, format!("{} is not an absolute path", path.display())));
        }
        Ok(path)
    }
}
