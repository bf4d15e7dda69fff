//! The settings file: what it may say, its defaults, and one placed error for anything else.
//!
//! Pure but for [`Settings::load`], which reads one file and where cgroups are mounted. `yaml` refuses what is no plain YAML and knows where
//! each key stands, `file` is the schema as written (`figures` its budgets and weights), `check` turns it into [`Settings`], `values` reads tokens,
//! durations, hosts and the like. Nothing here acts on a setting.
mod check;
mod diff;
mod figures;
mod file;
mod values;
mod warnings;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use meter_proxy::egress::EgressMode as Egress;
use meter_proxy::egress::EgressRule;
use meter_proxy::protocol::{Dialect, Provider};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use diff::changes;
pub use values::{NameError, TokensError, check_name, check_tokens, is_dns_name, parse_tokens};
use yaml::Fault;

use crate::bottle::cgroup;
use crate::budget::weights::Weights;
pub use crate::budget::window::Window;
pub use crate::budget::{Budget, ScopeRule};
use crate::hooks::Occasion;
pub use crate::kernel::Face;

/// Longest settings file that is read, bytes.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Most rules in `allow`: they travel to the meter in one message with the rest of its configuration.
pub const MAX_RULES: usize = 128;
/// Most different ports in `allow`: what one entry of the kernel's list holds, whatever covers it.
pub const MAX_PORTS: usize = enforcer_ebpf::ALLOW_PORTS;
/// Most servers in `resolvers`.
pub const MAX_RESOLVERS: usize = 8;

/// The settings as they stand, and word of their changes.
pub type Live = watch::Receiver<Arc<Settings>>;

/// Budgets by provider.
pub type Budgets = BTreeMap<String, Budget>;

/// What the operator wants. Every value in it has its effect in this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Budgets of the host, by provider.
    pub budget: Budgets,
    /// What a crossed budget does.
    pub shutdown: Policy,
    /// When a budget starts anew that does not say it itself.
    pub window: Window,
    /// Which of several budgets binds.
    pub scope_rule: ScopeRule,
    /// Whether a bottle that a budget cut opens when its window begins anew.
    pub reopen: Reopen,
    /// Percentages of a budget that are warned of, once in each window; ascending, 1 to 100.
    pub warn_at: Vec<u8>,
    /// What a token of each class counts for.
    pub weights: Weights,
    /// How a request's reservation is found.
    pub gate: Gate,
    /// Whether a running stream is cut when its count crosses.
    pub midstream: bool,
    /// What a budget cut looks like to the agent.
    pub cut: Face,
    /// How long an exchange of a silently cut bottle is kept before upstream is closed.
    pub hold: Duration,
    /// How long the controller may be silent before bottles lose their way out; `None`: for ever.
    pub lease: Option<Duration>,
    /// What becomes of a peer that belongs to no bottle.
    pub unattached: Unattached,
    /// CIDRs in private, loopback and metadata ranges that client-chosen names may resolve to.
    pub allow_private: Vec<String>,
    /// Where the meter listens; port 0 means any.
    pub listen: SocketAddr,
    /// What a bottle may reach unless its own settings say otherwise.
    pub egress: Egress,
    /// What bottles in mode `allowlist` may reach beside their providers; at most [`MAX_RULES`].
    pub allow: Vec<EgressRule>,
    /// DNS servers (at port 53) that confined bottles and the controller ask; the host's when there are none.
    pub resolvers: Vec<IpAddr>,
    /// Built-in providers and the file's, by name; no host belongs to two of them.
    pub providers: Vec<Provider>,
    /// PEM file of certificates trusted towards upstreams, beside the system's; absolute.
    pub extra_roots: Option<PathBuf>,
    /// Settings of bottles by name; each `extends` names another of them, without a circle.
    pub bottles: BTreeMap<String, BottleSettings>,
    /// Settings of agents by name.
    pub agents: BTreeMap<String, AgentSettings>,
    /// What is called at each occasion: program and arguments, as written; never empty.
    pub hooks: BTreeMap<Occasion, Vec<String>>,
    /// How long single exchanges are kept before they are rolled up by day.
    pub retention: Duration,
}

/// Settings of one bottle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BottleSettings {
    /// Its parent.
    pub extends: Option<String>,
    /// Its budgets, by provider.
    pub budget: Budgets,
    /// Its policy, instead of [`Settings::shutdown`].
    pub shutdown: Option<Policy>,
    /// What it may reach, instead of [`Settings::egress`].
    pub egress: Option<Egress>,
    /// The cgroup that is attached under its name as soon as it is there: absolute, without `.` and `..`, below the
    /// cgroup v2 mount; no other bottle's.
    pub cgroup: Option<PathBuf>,
    /// What is taken of it once its processes stand still, and before they are ended; without it they are not ended.
    pub snapshot: Option<Snapshot>,
}

/// How a frozen bottle is kept, so that its processes may be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// By this program, with arguments as written.
    Program(Vec<String>),
    /// By the engine of the container that it was attached by: an image of its file system.
    Engine,
}

/// Settings of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentSettings {
    /// Its budgets, by provider.
    pub budget: Budgets,
}

/// Makes an enum of words: as the settings write them, and back.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// The word used in settings and in JSON.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// What the word means; `None`: nothing.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                [$(Self::$variant),+].into_iter().find(|known| known.as_str() == word)
            }
        }
    };
}

words! {
    /// What a verdict does beyond dropping packets.
    #[derive(Default)]
    Policy {
        /// Nothing: packets are dropped.
        #[default]
        Cutoff = "cutoff",
        /// The processes are frozen.
        Freeze = "freeze",
        /// The processes are killed.
        Kill = "kill",
    }
}

words! {
    /// Whether a bottle that a budget cut opens by itself when its window begins anew.
    Reopen {
        /// It does.
        Auto = "auto",
        /// An operator restores it.
        Manual = "manual",
    }
}

words! {
    /// How a request's reservation is found.
    Gate {
        /// Nothing is reserved.
        Off = "off",
        /// By a local estimate.
        Estimate = "estimate",
    }
}

words! {
    /// What becomes of a peer that belongs to no bottle.
    Unattached {
        /// It is refused.
        Refuse = "refuse",
        /// It is metered as the bottle `host`.
        Meter = "meter",
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            budget: Budgets::new(),
            shutdown: Policy::Cutoff,
            window: Window::Total,
            scope_rule: ScopeRule::Nearest,
            reopen: Reopen::Auto,
            warn_at: Vec::new(),
            weights: Weights::default(),
            gate: Gate::Estimate,
            midstream: true,
            cut: Face::Answered,
            hold: Duration::from_secs(60),
            lease: Some(Duration::from_secs(10)),
            unattached: Unattached::Refuse,
            allow_private: Vec::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7080)),
            egress: Egress::Open,
            allow: Vec::new(),
            resolvers: Vec::new(),
            providers: built_in_providers(),
            extra_roots: None,
            bottles: BTreeMap::new(),
            agents: BTreeMap::new(),
            hooks: BTreeMap::new(),
            retention: Duration::from_hours(400 * 24),
        }
    }
}

/// Google's own API, Vertex AI without a region, and what Gemini CLI asks with a Google login. Regions of Vertex AI are
/// no label of their own, so each has to be named.
const GEMINI_HOSTS: [&str; 3] =
    ["generativelanguage.googleapis.com", "aiplatform.googleapis.com", "cloudcode-pa.googleapis.com"];
/// Bedrock's runtime as AWS's SDKs name it, in each public partition: by IPv4, by either protocol, and with FIPS.
const BEDROCK_HOSTS: [&str; 12] = [
    "bedrock-runtime.*.amazonaws.com",
    "bedrock-runtime-fips.*.amazonaws.com",
    "bedrock-runtime.*.api.aws",
    "bedrock-runtime-fips.*.api.aws",
    "bedrock-runtime.*.amazonaws.eu",
    "bedrock-runtime-fips.*.amazonaws.eu",
    "bedrock-runtime.*.api.amazonwebservices.eu",
    "bedrock-runtime-fips.*.api.amazonwebservices.eu",
    "bedrock-runtime.*.amazonaws.com.cn",
    "bedrock-runtime-fips.*.amazonaws.com.cn",
    "bedrock-runtime.*.api.amazonwebservices.com.cn",
    "bedrock-runtime-fips.*.api.amazonwebservices.com.cn",
];

fn built_in_providers() -> Vec<Provider> {
    let provider = |name: &str, dialect, hosts: &[&str]| Provider {
        name: name.to_owned(),
        dialect,
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        upstream: None,
        include_usage: true,
    };
    vec![
        provider("claude", Dialect::Anthropic, &["api.anthropic.com"]),
        provider("codex", Dialect::Openai, &["api.openai.com", "chatgpt.com"]),
        provider("gemini", Dialect::Gemini, &GEMINI_HOSTS),
        provider("bedrock", Dialect::Bedrock, &BEDROCK_HOSTS),
    ]
}

/// Why a settings file is not taken; one line each.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read, or must not be trusted.
    #[error("{}: {what}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: String,
    },
    /// Something in it is wrong.
    #[error("{}:{place}: {what}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: Option<String>,
    },
}

impl SettingsError {
    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Unreadable { hint, .. } => Some(hint),
            Self::Wrong { hint, .. } => hint.as_deref(),
        }
    }
}

/// Where something stands in the file; both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl Settings {
    /// Reads the file that the operator named.
    ///
    /// # Errors
    /// When it is missing or not to be trusted, and see [`Settings::parse`].
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        Ok(Self::load_with_text(path, true)?.0)
    }

    /// Reads the file at its default place; where there is none, everything has its default.
    ///
    /// # Errors
    /// When it is not to be trusted, and see [`Settings::parse`].
    pub fn load_default(path: &Path) -> Result<Self, SettingsError> {
        Ok(Self::load_with_text(path, false)?.0)
    }

    /// Reads a file, which must be there or not, and gives its text beside: what changed is told by it.
    ///
    /// # Errors
    /// See [`Settings::load`] and [`Settings::load_default`].
    pub fn load_with_text(path: &Path, must_exist: bool) -> Result<(Self, String), SettingsError> {
        match read(path)? {
            Some(text) => Ok((Self::parse_for(&text, path, cgroup::mount().ok().as_deref())?, text)),
            None if must_exist => {
                Err(unreadable(path, "there is no such file", "name an existing file with --settings"))
            }
            None => Ok((Self::default(), String::new())),
        }
    }

    /// The cgroup that a bottle of this name is attached to whenever it is there.
    #[must_use]
    pub fn awaited_cgroup(&self, bottle: &str) -> Option<&Path> {
        self.bottles.get(bottle)?.cgroup.as_deref()
    }

    /// Takes a whole file or nothing of it. `path` is for the words of errors.
    ///
    /// # Errors
    /// One placed error for the first thing that is wrong: no plain YAML, an unknown key, a value of another
    /// type, one that has no effect in this version, or one that does not fit the rest.
    pub fn parse(text: &str, path: &Path) -> Result<Self, SettingsError> {
        Self::parse_for(text, path, None)
    }

    /// As [`Settings::parse`], for a host whose cgroup v2 file system is mounted there.
    fn parse_for(text: &str, path: &Path, cgroup_mount: Option<&Path>) -> Result<Self, SettingsError> {
        let settings = || {
            let places = yaml::places(text)?;
            if places.is_empty() {
                return Ok(Self::default());
            }
            file::check_keys(&places)?;
            check::settings(file::read(text)?, &places, cgroup_mount)
        };
        settings().map_err(|Fault { place, what, hint }| SettingsError::Wrong {
            path: path.to_owned(),
            place,
            what: printable(&what),
            hint: hint.as_deref().map(printable),
        })
    }
}

/// One line that a terminal shows as it is, whatever the file holds between its quotes.
fn printable(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The file's text; `None` when there is no file. Whoever can write the settings can raise their own budget,
/// so a file that others than root and this process's user can write is refused, and so is a link.
fn read(path: &Path) -> Result<Option<String>, SettingsError> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return Err(unreadable(path, "it is a symbolic link", "name the file itself"));
        }
        Err(error) => return Err(unreadable(path, &error.to_string(), "make it readable")),
    };
    let about = file.metadata().map_err(|error| unreadable(path, &error.to_string(), "make it readable"))?;
    check_trust(path, &about)?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| unreadable(path, &error.to_string(), "settings are a text in UTF-8"))?;
    Ok(Some(text))
}

fn check_trust(path: &Path, about: &Metadata) -> Result<(), SettingsError> {
    if !about.is_file() {
        return Err(unreadable(path, "it is not a file", "name a file"));
    }
    if about.len() > MAX_FILE_BYTES {
        let what = format!("it has {} bytes, at most {MAX_FILE_BYTES} are read", about.len());
        return Err(unreadable(path, &what, "keep it short"));
    }
    let uid = about.uid();
    if uid != 0 && uid != Uid::effective().as_raw() {
        let what = format!("it belongs to uid {uid}, who could raise their own budget");
        return Err(unreadable(path, &what, "chown it to root"));
    }
    if about.mode() & 0o022 != 0 {
        return Err(unreadable(path, "others than its owner can write it", "chmod go-w it"));
    }
    Ok(())
}

fn unreadable(path: &Path, what: &str, hint: &str) -> SettingsError {
    SettingsError::Unreadable { path: path.to_owned(), what: what.to_owned(), hint: hint.to_owned() }
}
