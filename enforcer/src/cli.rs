//! What may stand on the command line, and what a value must look like. Acts on nothing.
//!
//! Commands and options of the contract that this version lacks are parsed here and refused in `commands`, so
//! that a script learns "not yet" and not "unknown".
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp, civil};

use crate::control::api::BudgetScope;
use crate::control::env::Shell;
use crate::escape::sender::Order;
use crate::ledger::{GroupBy, UnixMs};
use crate::settings::{self, Window, check_name, parse_tokens};

/// The brake for coding agents: meters what providers report, and cuts in the kernel.
#[derive(Debug, Parser)]
#[command(name = "enforcer", version, max_term_width = 100)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Ledger, CA key and settings; root-owned. Default: ~/.bot-bottle of the daemon's user
    #[arg(long, global = true, env = "BOT_BOTTLE_HOME", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The control socket. Default: STATE_DIR/control.sock with --state-dir, else /run/enforcer/control.sock
    #[arg(long, global = true, env = "ENFORCER_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The settings file. Default: STATE_DIR/settings.yml
    #[arg(long, global = true, value_name = "FILE")]
    pub settings: Option<PathBuf>,
    /// Log more; twice for still more, with everything that the kernel programs drop
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// How logs are written to stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller in the foreground
    Daemon(Daemon),
    /// Make a bottle, launch a command in it as the invoking user, and wait
    Run(Run),
    /// Guard a cgroup that exists
    ///
    /// Whether one of its processes rules over a network that leads out (CAP_NET_ADMIN) is judged now and not again: a
    /// cut of such a bottle is always silent, since what answers it could be misused as a way out. Attach it when those
    /// processes are there; for one that comes later with that capability, cut it silently, or have all budgets cut so
    /// (`cut: silent` in the settings).
    Attach(Attach),
    /// Stop guarding a bottle
    Detach(Detach),
    /// Show the daemon and its bottles
    Status(Status),
    /// Drop every packet of a bottle, now
    Cut(Cut),
    /// Let a cut bottle go on
    Restore(Restore),
    /// Cut a bottle and freeze its processes: memory stays, and a thaw within `hold` lets streams go on
    Freeze(Freeze),
    /// Let the processes of a frozen bottle go on, and open what the freeze cut
    ///
    /// What a budget or another order has cut stays cut, and the command says what opens it.
    Thaw(Thaw),
    /// Cut a bottle and kill every process in it, for good
    Kill(Kill),
    /// Show and change budgets
    #[command(subcommand)]
    Budget(Budget),
    /// Show what was used
    Usage(Usage),
    /// Show what was done, by whom and why
    Audit(Audit),
    /// Show the dashboard
    Top(Top),
    /// Print what a container needs to trust and reach the meter
    ///
    /// Variables, and comments with what is for one client alone. Three ways lead to the meter: a base URL (the
    /// gateway), HTTPS_PROXY, and neither, for the kernel redirects a bottle's connections; by the last two a client
    /// has to trust the certificate as well. Clients of Bedrock sign the host that they ask, so they come by
    /// HTTPS_PROXY or are redirected; at the gateway no signature holds, and an API key of Bedrock's is needed.
    Env(Env),
    /// The certificate authority that bottles trust
    #[command(subcommand)]
    Ca(Ca),
    /// Say whether this kernel and host can do it, and try to get out of a bottle in every way there is
    Doctor(Json),
    /// The settings file
    #[command(subcommand)]
    Settings(Settings),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a directory
    Man {
        /// The directory; it must exist
        dir: PathBuf,
    },
    /// What `doctor` starts inside the bottle of its self-test: not for people, and without effect elsewhere
    #[command(hide = true)]
    ProbeSender(Order),
    /// What the daemon starts to make the refusal lane's sockets: not for people, and without effect elsewhere
    #[command(hide = true)]
    LaneSockets {
        /// Port on loopback; 0: any
        #[arg(long)]
        port: u16,
    },
}

/// `top`.
#[derive(Debug, Args)]
pub struct Top {
    /// Print one frame as plain text and end
    #[arg(long)]
    pub once: bool,
    /// Columns of that frame
    #[arg(long, default_value_t = 100, requires = "once", value_parser = clap::value_parser!(u16).range(40..=500))]
    pub width: u16,
    /// Lines of that frame
    #[arg(long, default_value_t = 24, requires = "once", value_parser = clap::value_parser!(u16).range(10..=200))]
    pub height: u16,
}

/// `daemon`.
#[derive(Debug, Args)]
pub struct Daemon {
    /// Remove everything pinned in the kernel and end: every bottle is open afterwards; frozen processes stay frozen
    /// until a daemon runs again and thaws them
    #[arg(long)]
    pub unpin_all: bool,
}

/// How a bottle is to be guarded: `run` and `attach`.
#[derive(Debug, Args)]
pub struct Guarding {
    /// The agent in the bottle
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub agent: Option<String>,
    /// The parent bottle; by nesting without it
    #[arg(long, value_name = "BOTTLE", value_parser = name)]
    pub parent: Option<String>,
    /// Tokens for this launch (500k, 2M); once for each provider
    #[arg(long, value_name = "PROVIDER=TOKENS", value_parser = budget)]
    pub budget: Vec<(String, u64)>,
    /// What a crossed budget does: drop packets, and freeze or kill the processes
    #[arg(long, value_enum)]
    pub policy: Option<Policy>,
    /// What the bottle may reach besides the meter: everything, what the settings allow, or nothing
    #[arg(long, value_enum)]
    pub egress: Option<Egress>,
}

/// What a crossed budget does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the contract's words say it")]
pub enum Policy {
    Cutoff,
    Freeze,
    Kill,
}

impl From<Policy> for settings::Policy {
    fn from(word: Policy) -> Self {
        match word {
            Policy::Cutoff => Self::Cutoff,
            Policy::Freeze => Self::Freeze,
            Policy::Kill => Self::Kill,
        }
    }
}

/// What a bottle may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the contract's words say it")]
pub enum Egress {
    Open,
    Allowlist,
    Metered,
}

impl From<Egress> for settings::Egress {
    fn from(word: Egress) -> Self {
        match word {
            Egress::Open => Self::Open,
            Egress::Allowlist => Self::Allowlist,
            Egress::Metered => Self::Metered,
        }
    }
}

/// `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Name of the bottle; by default the command's with a number
    #[arg(long, value_parser = name)]
    pub name: Option<String>,
    /// How it is guarded.
    #[command(flatten)]
    pub guarding: Guarding,
    /// Run the command as this user; by default whoever called sudo
    #[arg(long, value_name = "U")]
    pub user: Option<String>,
    /// Start the command in this directory
    #[arg(long, value_name = "D")]
    pub workdir: Option<PathBuf>,
    /// Leave the proxy, base-URL and CA variables unset
    #[arg(long)]
    pub no_env: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `attach`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true)))]
pub struct Attach {
    /// Name of the bottle
    #[arg(value_parser = name)]
    pub name: String,
    /// The cgroup v2 directory
    #[arg(long, group = "what", value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// A process whose cgroup it is
    #[arg(long, group = "what")]
    pub pid: Option<u32>,
    /// A running Docker container
    #[arg(long, group = "what", value_name = "ID")]
    pub docker: Option<String>,
    /// A running Podman container
    #[arg(long, group = "what", value_name = "ID")]
    pub podman: Option<String>,
    /// An active systemd unit
    #[arg(long, group = "what", value_name = "UNIT")]
    pub unit: Option<String>,
    /// How it is guarded.
    #[command(flatten)]
    pub guarding: Guarding,
    /// Abort connections that its processes made before they were in that cgroup
    #[arg(long)]
    pub hard: bool,
}

/// `detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// The bottle
    #[arg(value_parser = name)]
    pub name: String,
    /// Also when it is cut: nothing holds it back afterwards
    #[arg(long)]
    pub force: bool,
}

/// `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Only this bottle
    #[arg(value_parser = name)]
    pub name: Option<String>,
    /// How it is printed.
    #[command(flatten)]
    pub json: Json,
}

/// `--json`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Json {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `cut`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whom").required(true)))]
pub struct Cut {
    /// The bottles
    #[arg(group = "whom", value_name = "NAME", value_parser = name)]
    pub names: Vec<String>,
    /// Every attached bottle
    #[arg(long, group = "whom")]
    pub all: bool,
    /// Words for the audit
    #[arg(long, value_name = "T")]
    pub reason: Option<String>,
    /// Drop and say nothing (the default)
    #[arg(long, conflicts_with = "answered")]
    pub silent: bool,
    /// Let the refusal lane answer
    #[arg(long)]
    pub answered: bool,
    /// Abort every socket too
    #[arg(long)]
    pub hard: bool,
}

/// `restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// The bottle
    #[arg(value_parser = name)]
    pub name: String,
    /// Add tokens to the governing budget; once for each provider
    #[arg(long, value_name = "PROVIDER=TOKENS", value_parser = budget)]
    pub add: Vec<(String, u64)>,
    /// Also when a budget is used up: requests stay refused until it is raised
    #[arg(long)]
    pub force: bool,
}

/// `freeze`.
#[derive(Debug, Args)]
pub struct Freeze {
    /// The bottle
    #[arg(value_parser = name)]
    pub name: String,
    /// Words for the audit
    #[arg(long, value_name = "T")]
    pub reason: Option<String>,
}

/// `thaw`.
#[derive(Debug, Args)]
pub struct Thaw {
    /// The bottle
    #[arg(value_parser = name)]
    pub name: String,
}

/// `kill`.
#[derive(Debug, Args)]
pub struct Kill {
    /// The bottle
    #[arg(value_parser = name)]
    pub name: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Words for the audit
    #[arg(long, value_name = "T")]
    pub reason: Option<String>,
}

/// `budget`. SCOPE is `global`, `bottle:NAME` or `agent:NAME`.
#[derive(Debug, Subcommand)]
pub enum Budget {
    /// Show every budget, with what is used of it
    List(Json),
    /// State a budget. What was added to it before is gone; below what is used, it cuts at once
    Set {
        /// global, bottle:NAME or agent:NAME
        #[arg(value_parser = scope)]
        scope: BudgetScope,
        /// Tokens in each window (500k, 2M)
        #[arg(value_name = "PROVIDER=TOKENS", value_parser = budget)]
        budget: (String, u64),
        /// When it starts anew, UTC; without it as before, or as the settings say
        #[arg(long, value_name = "W", value_parser = window())]
        window: Option<Window>,
    },
    /// Add tokens to a budget, in its present window; bottles that it covers then open
    Add {
        /// global, bottle:NAME or agent:NAME
        #[arg(value_parser = scope)]
        scope: BudgetScope,
        /// Tokens more (500k, 2M)
        #[arg(value_name = "PROVIDER=TOKENS", value_parser = budget)]
        budget: (String, u64),
    },
    /// Take back what commands stated and added; what the settings say stands again
    Clear {
        /// global, bottle:NAME or agent:NAME
        #[arg(value_parser = scope)]
        scope: BudgetScope,
        /// Whose tokens
        #[arg(value_parser = name)]
        provider: String,
    },
}

/// `usage`.
#[derive(Debug, Args)]
pub struct Usage {
    /// Only this bottle
    #[arg(long, value_name = "N", value_parser = bottle_or_host)]
    pub bottle: Option<String>,
    /// Only this agent
    #[arg(long, value_name = "N", value_parser = name)]
    pub agent: Option<String>,
    /// Only this provider
    #[arg(long, value_name = "P", value_parser = name)]
    pub provider: Option<String>,
    /// Only what started since: 2026-01-31, 2026-01-31T12:00:00Z, or 90m, 24h, 7d ago
    #[arg(long, value_name = "T", value_parser = since)]
    pub since: Option<UnixMs>,
    /// Group by this alone
    #[arg(long, value_enum)]
    pub by: Option<By>,
    /// One row for each exchange
    #[arg(long, conflicts_with = "by")]
    pub flows: bool,
    /// Print comma-separated values
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// How it is printed.
    #[command(flatten)]
    pub json: Json,
}

/// What `usage` is grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the contract's words say it")]
pub enum By {
    Bottle,
    Agent,
    Provider,
    Model,
    Day,
}

impl From<By> for GroupBy {
    fn from(by: By) -> Self {
        match by {
            By::Bottle => Self::Bottle,
            By::Agent => Self::Agent,
            By::Provider => Self::Provider,
            By::Model => Self::Model,
            By::Day => Self::Day,
        }
    }
}

/// `audit`.
#[derive(Debug, Args)]
pub struct Audit {
    /// Go on with what happens
    #[arg(long)]
    pub follow: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `env`.
#[derive(Debug, Args)]
pub struct Env {
    /// The bottle
    #[arg(value_parser = name)]
    pub name: String,
    /// Who will read it
    #[arg(long, value_enum, default_value_t = Shell::Sh)]
    pub shell: Shell,
}

/// `ca`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Ca {
    /// Print the path of the certificate
    Path,
    /// Make a new certificate
    Rotate,
}

/// `settings`.
#[derive(Debug, Subcommand)]
pub enum Settings {
    /// Say what is wrong with a settings file, with line and column
    Check {
        /// The file; the daemon's by default
        file: Option<PathBuf>,
        /// Have the daemon take its file as it is now, whole or not at all
        #[arg(long)]
        apply: bool,
    },
}

fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// A bottle's name, or `host`: what a peer of no bottle used is booked there.
fn bottle_or_host(text: &str) -> Result<String, String> {
    if text == "host" { Ok(text.to_owned()) } else { name(text) }
}

fn scope(text: &str) -> Result<BudgetScope, String> {
    text.parse()
}

fn window() -> impl TypedValueParser<Value = Window> {
    let words = PossibleValuesParser::new(Window::ALL.map(Window::as_str));
    words.try_map(|word| Window::from_word(&word).ok_or("no window"))
}

fn budget(text: &str) -> Result<(String, u64), String> {
    let (provider, tokens) = text.split_once('=').ok_or("PROVIDER=TOKENS is meant, as in claude=500k")?;
    let tokens = parse_tokens(tokens).map_err(|error| error.to_string())?;
    Ok((name(provider)?, tokens))
}

/// Tokens by provider.
///
/// # Errors
/// When a provider comes twice; the message names it.
pub fn by_provider(list: &[(String, u64)]) -> Result<BTreeMap<String, u64>, String> {
    let mut map = BTreeMap::new();
    for (provider, tokens) in list {
        if map.insert(provider.clone(), *tokens).is_some() {
            return Err(format!("{provider} is given twice"));
        }
    }
    Ok(map)
}

/// A moment, or a time ago, as milliseconds since the Unix epoch.
fn since(text: &str) -> Result<UnixMs, String> {
    let past = |ago: &SignedDuration| !ago.is_negative();
    let ago = || text.parse().ok().filter(past).or_else(|| days(text));
    let at = text
        .parse::<Timestamp>()
        .ok()
        .or_else(|| midnight(text))
        .or_else(|| Timestamp::now().checked_sub(ago()?).ok());
    at.map(Timestamp::as_millisecond).ok_or_else(|| {
        "a date, a UTC time (2026-01-31T12:00:00Z) or a time ago (90m, 24h, 7d) is meant".to_owned()
    })
}

fn midnight(text: &str) -> Option<Timestamp> {
    let date = text.parse::<civil::Date>().ok()?;
    Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// `7d`: days of 24 hours, which jiff's absolute durations have not.
fn days(text: &str) -> Option<SignedDuration> {
    let days: u32 = text.strip_suffix('d')?.parse().ok()?;
    Some(SignedDuration::from_hours(i64::from(days) * 24))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_dashes_is_the_command_s_own() {
        let cli = Cli::try_parse_from([
            "enforcer",
            "run",
            "--budget",
            "claude=200k",
            "--",
            "claude",
            "-p",
            "--json",
        ])
        .unwrap();
        let Command::Run(run) = cli.command else { panic!("run") };
        assert_eq!(run.guarding.budget, [("claude".to_owned(), 200_000)]);
        assert_eq!(run.command, ["claude", "-p", "--json"]);
    }

    #[test]
    fn times_are_moments_or_ago() {
        assert_eq!(since("2026-01-31"), Ok(1_769_817_600_000));
        assert_eq!(since("2026-01-31T00:00:01Z"), Ok(1_769_817_601_000));
        let now = Timestamp::now().as_millisecond();
        for (text, hours) in [("90m", 1.5), ("24h", 24.0), ("7d", 168.0)] {
            let ago = now - since(text).unwrap();
            assert!((f64::from(i32::try_from(ago / 1000).unwrap()) - hours * 3600.0).abs() < 60.0, "{text}");
        }
        for text in ["", "yesterday", "-d", "-90m", "99999999999d"] {
            assert!(since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_provider_has_one_budget() {
        let list = [("claude".to_owned(), 1), ("claude".to_owned(), 2)];
        assert_eq!(by_provider(&list), Err("claude is given twice".to_owned()));
        assert_eq!(by_provider(&list[..1]).unwrap()["claude"], 1);
    }
}
