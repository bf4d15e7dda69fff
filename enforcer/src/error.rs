//! Errors at the edge: what the operator reads and the code a command ends with.
//!
//! Each room has its own error; this file alone turns them into words, hints and exit codes. No decisions here.
use std::io::{self, Write};
use std::process::ExitCode;

use crate::bottle::cgroup::CgroupError;
use crate::bottle::engine::EngineError;
use crate::bottle::home::HomeError;
use crate::bottle::launch::LaunchError;
use crate::ca::CaError;
use crate::control::api::Problem;
use crate::control::server::ServerError;
use crate::core::AdoptError;
use crate::kernel::KernelError;
use crate::lane::LaneError;
use crate::ledger::LedgerError;
use crate::meter::MeterError;
use crate::settings::SettingsError;
use crate::state::StateError;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Tried and failed.
    Failed = 1,
    /// The command line, a name, a file or a number is wrong.
    Usage = 2,
    /// No daemon answers.
    NoDaemon = 3,
    /// A budget, a policy or a permission says no.
    Refused = 4,
    /// The kernel or the host cannot do it.
    Unsupported = 5,
    /// `run` could not start its command.
    NotStarted = 125,
}

impl Exit {
    /// The process's exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The meaning of a code that the API sent; an unknown one is a plain failure, 0 included: a problem is
    /// never a success.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        [Self::Usage, Self::NoDaemon, Self::Refused, Self::Unsupported, Self::NotStarted]
            .into_iter()
            .find(|exit| exit.code() == code)
            .unwrap_or(Self::Failed)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// What stops a command: one line, perhaps a hint, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What is wrong, one line.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// How the command ends.
    pub exit: Exit,
}

impl Failure {
    /// A failure without a hint.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, exit }
    }

    /// The same failure with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The operating system refused `what`.
    #[must_use]
    pub fn io(what: impl std::fmt::Display, source: &io::Error) -> Self {
        let exit =
            if source.kind() == io::ErrorKind::PermissionDenied { Exit::Refused } else { Exit::Failed };
        Self::new(exit, format!("{what}: {source}"))
    }

    /// A command or option that the contract names and this version lacks.
    #[must_use]
    pub fn not_yet(what: &str) -> Self {
        Self::new(Exit::Usage, format!("{what}: not yet in this version"))
    }

    /// Writes it to stderr, control characters made harmless.
    pub fn print(&self) {
        let mut text = format!("enforcer: {}\n", crate::text::scrub(&self.message));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("  hint: {}\n", crate::text::scrub(hint)));
        }
        // a closed stderr leaves the exit code, which is all that can still be told
        drop(io::stderr().write_all(text.as_bytes()));
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { message: problem.error, hint: problem.hint, exit: Exit::from_code(problem.exit_code) }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self { error: failure.message, hint: failure.hint, exit_code: failure.exit.code() }
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        let message = error.to_string();
        match error {
            KernelError::AlreadyAttached(_) => Self::new(Exit::Usage, message),
            KernelError::Unsupported { hint, .. } => Self::new(Exit::Unsupported, message).hint(hint),
            KernelError::Pins { .. } => Self::new(Exit::Unsupported, message).hint(
                "`enforcer daemon --unpin-all` removes what is pinned; every bottle is open afterwards",
            ),
            KernelError::Io { .. } => Self::new(Exit::Unsupported, message),
        }
    }
}

impl From<CgroupError> for Failure {
    fn from(error: CgroupError) -> Self {
        let exit = if matches!(error, CgroupError::NoMount) { Exit::Unsupported } else { Exit::Usage };
        Self::new(exit, error.to_string())
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Cgroup(error) => error.into(),
            EngineError::BadId { .. } => Self::new(Exit::Usage, message),
            EngineError::Unknown { program, .. } => {
                Self::new(Exit::Usage, message).hint(format!("{program} lists them: {}", listing(program)))
            }
            EngineError::NotRunning { .. } => Self::new(Exit::Usage, message)
                .hint("start it first, or attach the cgroup that it will be started in, with --cgroup"),
            EngineError::NoCgroup { .. } => Self::new(Exit::Usage, message)
                .hint("attach the cgroup that its processes are in, with --cgroup or --pid"),
            EngineError::NotInstalled(_) => Self::new(Exit::Unsupported, message)
                .hint("attach by --cgroup or --pid, or start the daemon with a PATH that holds it"),
            EngineError::Silent(_)
            | EngineError::Io { .. }
            | EngineError::Failed { .. }
            | EngineError::Unreadable(_) => Self::new(Exit::Unsupported, message)
                .hint("the daemon asks as root; --cgroup and --pid need no engine"),
        }
    }
}

/// How an engine is asked for all it has.
fn listing(program: &str) -> String {
    match program {
        "systemctl" => "systemctl list-units --all".into(),
        engine => format!("{engine} ps --all"),
    }
}

impl From<HomeError> for Failure {
    fn from(error: HomeError) -> Self {
        match error {
            HomeError::Cgroup(error) => error.into(),
            HomeError::Io { .. } => Self::new(Exit::Unsupported, error.to_string())
                .hint("the daemon makes cgroups: it needs root and a writable cgroup v2 mount"),
        }
    }
}

impl From<LaneError> for Failure {
    fn from(error: LaneError) -> Self {
        match error {
            LaneError::Cgroup(error) => error.into(),
            LaneError::Kernel(error) => error.into(),
            error => Self::new(Exit::Failed, error.to_string()),
        }
    }
}

impl From<MeterError> for Failure {
    fn from(error: MeterError) -> Self {
        let failure = Self::new(Exit::Failed, error.to_string());
        match error {
            MeterError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                failure.hint("another program listens there: set `listen` in the settings")
            }
            MeterError::Missing(_) => failure.hint("install meter-proxy beside enforcer"),
            _ => failure,
        }
    }
}

impl From<CaError> for Failure {
    fn from(error: CaError) -> Self {
        let message = error.to_string();
        match error {
            CaError::Unusable { hint, .. } => Self::new(Exit::Refused, message).hint(hint),
            _ => Self::new(Exit::Failed, message),
        }
    }
}

impl From<AdoptError> for Failure {
    fn from(error: AdoptError) -> Self {
        match error {
            AdoptError::Kernel(error) => error.into(),
            AdoptError::Bottle { .. } => Self::new(Exit::Unsupported, error.to_string()).hint(
                "nothing was changed; mend what stands in the way, or give all guards up with `enforcer daemon --unpin-all`",
            ),
            AdoptError::Thread(error) => Self::io("the core cannot be started", &error),
        }
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        let message = error.to_string();
        match error {
            LedgerError::Database { .. } => Self::new(Exit::Failed, message),
            LedgerError::Unusable { hint, .. } => Self::new(Exit::Failed, message).hint(hint),
        }
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self { message: error.to_string(), hint: error.hint().map(str::to_owned), exit: Exit::Usage }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        let exit = match error {
            StateError::Unusable { .. } => Exit::Refused,
            StateError::Locked { .. } => Exit::Failed,
        };
        Self { message: error.to_string(), hint: Some(error.hint().to_owned()), exit }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let message = error.to_string();
        match error {
            ServerError::InUse(_) => Self::new(Exit::Failed, message)
                .hint("one daemon serves one socket; name another with --socket"),
            ServerError::Unsafe { .. } => Self::new(Exit::Refused, message),
            ServerError::Io { source, .. } => Self { message, ..Self::io("", &source) },
        }
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        let message = error.to_string();
        match error {
            LaunchError::NoSuchUser(_) => Self::new(Exit::Usage, message),
            LaunchError::ControlGroup(_) => Self::new(Exit::Refused, message),
            LaunchError::Io { .. } => Self::new(Exit::NotStarted, message),
            LaunchError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Self::new(Exit::NotStarted, message)
                    .hint("sudo sets a PATH of its own: give the whole path, as in \"$(command -v NAME)\"")
            }
            LaunchError::Start { .. } => Self::new(Exit::NotStarted, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_keeps_its_words_and_code_both_ways() {
        let problem = Problem { error: "no".into(), hint: Some("yes".into()), exit_code: 4 };
        let failure = Failure::from(problem.clone());
        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(Problem::from(failure), problem);
    }

    #[test]
    fn a_problem_is_never_a_success() {
        for code in [0, 1, 6, 255] {
            assert_eq!(Exit::from_code(code), Exit::Failed);
        }
    }

    #[test]
    fn a_guarded_cgroup_is_a_wrong_argument_and_a_poor_kernel_is_the_host_s() {
        let twice = Failure::from(KernelError::AlreadyAttached("/x".into()));
        assert_eq!(twice.exit, Exit::Usage);
        let poor = Failure::from(KernelError::Unsupported { what: "no BTF".into(), hint: "upgrade".into() });
        assert_eq!((poor.exit, poor.hint.as_deref()), (Exit::Unsupported, Some("upgrade")));
    }
}
