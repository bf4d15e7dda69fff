//! Launches a command inside a bottle's cgroup as an ordinary user, and waits for it.
//!
//! The child has joined before it runs its first instruction of the command, can gain no privileges, opens no
//! socket that a bottle's hooks do not see (`seccomp`) and inherits nothing but the three standard descriptors. It
//! stays in this process's session and process group, so Ctrl-C, Ctrl-Z and `fg` work as without us. Not here:
//! making the cgroup, asking the daemon.
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Gid, Uid, User as Account};

use super::seccomp::Filter;

/// `SI_KERNEL` of asm-generic/siginfo.h: the kernel sent the signal (the terminal's keys, a hang-up), and it
/// sent it to the whole process group.
const SI_KERNEL: i32 = 0x80;
/// Variables by which sudo tells of itself; the command is not to take itself for root's.
const SUDO_VARIABLES: [&str; 6] = ["SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND", "SUDO_HOME", "MAIL"];

/// Why a command was not launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The password database does not know the user.
    #[error("there is no user {0}")]
    NoSuchUser(String),
    /// The user's primary group may use the control socket, and a primary group cannot be taken away.
    #[error("the primary group of {0} is the control socket's group, so the command could lift its own cut")]
    ControlGroup(String),
    /// The operating system said no while things were made ready.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The answer.
        source: io::Error,
    },
    /// The command itself could not be started.
    #[error("{command} could not be started: {source}")]
    Start {
        /// The command's name.
        command: String,
        /// The answer.
        source: io::Error,
    },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> LaunchError {
    let what = what.into();
    move |source| LaunchError::Io { what, source }
}

/// Whom the command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: Uid,
    /// Primary group.
    pub gid: Gid,
    /// Login name.
    pub name: String,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
    /// Supplementary groups.
    pub groups: Vec<Gid>,
}

impl User {
    /// The user `name`, or whoever called sudo, or the current user.
    ///
    /// # Errors
    /// When the password or group database does not know them or cannot be read.
    pub fn choose(name: Option<&str>) -> Result<Self, LaunchError> {
        if let Some(name) = name {
            return Self::from_account(
                by_name(name)?.ok_or_else(|| LaunchError::NoSuchUser(name.to_owned()))?,
            );
        }
        let current = nix::unistd::getuid();
        let uid =
            if current.is_root() { sudo_id("SUDO_UID").map_or(current, Uid::from_raw) } else { current };
        // several names can share a uid: sudo says which one called
        let named = match std::env::var("SUDO_USER") {
            Ok(name) => by_name(&name)?.filter(|account| account.uid == uid),
            Err(_) => None,
        };
        let account = match named {
            Some(account) => Some(account),
            None => {
                Account::from_uid(uid).map_err(|errno| io_error("the password database")(errno.into()))?
            }
        };
        let mut user = Self::from_account(account.ok_or_else(|| LaunchError::NoSuchUser(uid.to_string()))?)?;
        if uid != current
            && let Some(gid) = sudo_id("SUDO_GID")
        {
            user.gid = Gid::from_raw(gid);
        }
        Ok(user)
    }

    fn from_account(account: Account) -> Result<Self, LaunchError> {
        let name =
            CString::new(account.name.as_str()).map_err(|error| io_error("the user's name")(error.into()))?;
        let groups = nix::unistd::getgrouplist(&name, account.gid)
            .map_err(|errno| io_error("the group database")(errno.into()))?;
        Ok(Self {
            uid: account.uid,
            gid: account.gid,
            name: account.name,
            home: account.dir,
            shell: account.shell,
            groups,
        })
    }

    /// The same user without the group that may use the control socket. Root keeps its own.
    ///
    /// # Errors
    /// When it is the primary group of an ordinary user.
    pub fn without_group(mut self, control: Gid) -> Result<Self, LaunchError> {
        if self.gid == control && !self.uid.is_root() {
            return Err(LaunchError::ControlGroup(self.name));
        }
        self.groups.retain(|&group| group != control);
        Ok(self)
    }
}

fn by_name(name: &str) -> Result<Option<Account>, LaunchError> {
    Account::from_name(name).map_err(|errno| io_error("the password database")(errno.into()))
}

fn sudo_id(variable: &str) -> Option<u32> {
    std::env::var(variable).ok()?.parse().ok()
}

/// A command to be launched.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Program and arguments; at least one.
    pub command: &'a [OsString],
    /// Whom it runs as.
    pub user: &'a User,
    /// Where it starts; the current directory without it.
    pub workdir: Option<&'a Path>,
    /// Variables set for it, over those inherited.
    pub variables: &'a [(String, String)],
    /// The cgroup it joins.
    pub cgroup: &'a Path,
    /// Whether it is not to reach everything: then root, too, goes without the capabilities to send below the hooks.
    pub confined: bool,
}

impl Launch<'_> {
    /// Starts the command. `signals` are held already, so that none is lost between start and wait.
    ///
    /// # Errors
    /// When the cgroup cannot be joined, the user not be become, or the program not be executed.
    pub fn start<'s>(&self, signals: &'s Signals) -> Result<Running<'s>, LaunchError> {
        let program = self.command.first().map_or(OsStr::new(""), OsString::as_os_str);
        let mut command = Command::new(program);
        command.args(self.command.get(1..).unwrap_or_default());
        self.set_environment(&mut command);
        let mut identity = Identity::prepare(self, signals.before)?;
        // SAFETY: `assume` makes system calls on values made before the fork and nothing else: it neither
        // allocates nor takes a lock.
        unsafe { command.pre_exec(move || identity.assume()) };
        let started = command.spawn();
        let command = program.to_string_lossy().into_owned();
        let child = started.map_err(|source| LaunchError::Start { command, source })?;
        Ok(Running { child, signals })
    }

    fn set_environment(&self, command: &mut Command) {
        for variable in SUDO_VARIABLES {
            command.env_remove(variable);
        }
        command
            .env("HOME", &self.user.home)
            .env("USER", &self.user.name)
            .env("LOGNAME", &self.user.name)
            .env("SHELL", &self.user.shell)
            .env("PATH", search_path(std::env::var_os("PATH"), &self.user.home))
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
    }
}

/// `PATH` with the user's own program directories first, as a login shell has them: sudo's holds only the
/// system's, and agents are commonly installed in `~/.local/bin`.
fn search_path(inherited: Option<OsString>, home: &Path) -> OsString {
    let inherited = inherited.unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    let known: Vec<PathBuf> = std::env::split_paths(&inherited).collect();
    let own = [".local/bin", "bin"].map(|directory| home.join(directory));
    let missing = own.into_iter().filter(|directory| directory.is_dir() && !known.contains(directory));
    std::env::join_paths(missing.chain(known.iter().cloned())).unwrap_or(inherited)
}

/// What the child does between fork and exec, with everything it needs made before.
struct Identity {
    procs: File,
    workdir: Option<CString>,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    become_user: bool,
    confined: bool,
    filter: Filter,
    signal_mask: SigSet,
}

impl Identity {
    fn prepare(launch: &Launch<'_>, signal_mask: SigSet) -> Result<Self, LaunchError> {
        let procs_path = launch.cgroup.join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&procs_path)
            .map_err(io_error(procs_path.display().to_string()))?;
        let workdir = launch.workdir.map(workdir_name).transpose()?;
        let User { uid, gid, groups, .. } = launch.user;
        let become_user = nix::unistd::geteuid().is_root();
        let filter = Filter::build().map_err(|error| io_error("the system call filter")(error.into()))?;
        let (uid, gid, groups) = (*uid, *gid, groups.clone());
        Ok(Self {
            procs,
            workdir,
            uid,
            gid,
            groups,
            become_user,
            confined: launch.confined,
            filter,
            signal_mask,
        })
    }

    /// Joins the cgroup, becomes the user, gives up what is left; the filter is for root as well. Async-signal-safe.
    fn assume(&mut self) -> io::Result<()> {
        nix::unistd::write(self.procs.as_fd(), b"0")?;
        if self.become_user && self.confined {
            drop_network_capabilities()?;
        }
        if self.become_user {
            nix::unistd::setgroups(&self.groups)?;
            nix::unistd::setresgid(self.gid, self.gid, self.gid)?;
            nix::unistd::setresuid(self.uid, self.uid, self.uid)?;
        }
        nix::sys::prctl::set_no_new_privs()?;
        self.filter.apply()?;
        if let Some(workdir) = &self.workdir {
            nix::unistd::chdir(workdir.as_c_str())?;
        }
        self.signal_mask.thread_set_mask()?;
        close_at_exec()
    }
}

/// Keeps every program started from here on from CAP_NET_ADMIN and CAP_NET_RAW, root's as well. Async-signal-safe.
fn drop_network_capabilities() -> io::Result<()> {
    /// Of linux/capability.h.
    const CAPABILITIES: [libc::c_ulong; 2] = [12, 13];
    for capability in CAPABILITIES {
        // SAFETY: this request reads its number alone and touches no memory of ours.
        let refused = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if refused != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The directory as the kernel takes it. Looked at now, for a clear error; entered later, as the user.
fn workdir_name(workdir: &Path) -> Result<CString, LaunchError> {
    let what = || format!("the working directory {}", workdir.display());
    if !std::fs::metadata(workdir).map_err(io_error(what()))?.is_dir() {
        return Err(io_error(what())(io::ErrorKind::NotADirectory.into()));
    }
    CString::new(workdir.as_os_str().as_bytes()).map_err(|error| io_error(what())(error.into()))
}

/// Marks every descriptor above stderr to be closed at exec: closed now, the standard library could not tell
/// of a failed exec any more.
pub(crate) fn close_at_exec() -> io::Result<()> {
    // SAFETY: close_range(2) with this flag changes descriptor flags only and touches no memory of ours.
    let refused =
        unsafe { libc::syscall(libc::SYS_close_range, 3_u32, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The signals that are to reach the command, held back from killing this process; let go when dropped.
#[derive(Debug)]
pub struct Signals {
    events: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Holds SIGINT, SIGQUIT, SIGTERM, SIGHUP and SIGCHLD back in the calling thread; call it before other
    /// threads are made.
    ///
    /// # Errors
    /// When the process cannot have one more descriptor.
    pub fn hold() -> io::Result<Self> {
        let held = SigSet::from_iter([
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGCHLD,
        ]);
        let before = SigSet::thread_get_mask()?;
        let events = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC)?;
        held.thread_block()?;
        Ok(Self { events, before })
    }

    /// The next signal and whether a process sent it (and not the terminal, which told the child as well).
    fn next(&self) -> io::Result<(Signal, bool)> {
        loop {
            if let Some(info) = self.events.read_signal()? {
                let number = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
                return Ok((Signal::try_from(number)?, info.ssi_code != SI_KERNEL));
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        if let Err(error) = self.before.thread_set_mask() {
            tracing::warn!(%error, "the signal mask stays changed");
        }
    }
}

/// A launched command.
#[derive(Debug)]
pub struct Running<'s> {
    child: Child,
    signals: &'s Signals,
}

impl Running<'_> {
    /// The command's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the command and passes on what other processes send to us. Returns its exit code, or 128 and
    /// the number of the signal that ended it.
    ///
    /// # Errors
    /// When the child cannot be waited for.
    pub fn wait(mut self) -> io::Result<u8> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(exit_code(status));
            }
            match self.signals.next()? {
                (Signal::SIGCHLD, _) | (_, false) => {}
                (signal, true) => self.forward(signal)?,
            }
        }
    }

    /// The child is ours and not waited for yet, so its id is nobody else's.
    fn forward(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)?)
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_s_own_programs_come_first_and_once() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join(".local/bin")).unwrap();
        let local = home.path().join(".local/bin").display().to_string();
        let path = search_path(Some("/usr/bin:/bin".into()), home.path());
        assert_eq!(path, OsString::from(format!("{local}:/usr/bin:/bin")));
        assert_eq!(search_path(Some(path.clone()), home.path()), path);
    }

    #[test]
    fn the_control_group_is_taken_away_or_the_launch_refused() {
        let user = User {
            uid: Uid::from_raw(1000),
            gid: Gid::from_raw(1000),
            name: "u".into(),
            home: "/".into(),
            shell: "/bin/sh".into(),
            groups: vec![Gid::from_raw(1000), Gid::from_raw(7)],
        };
        let without = user.clone().without_group(Gid::from_raw(7)).unwrap();
        assert_eq!(without.groups, [Gid::from_raw(1000)]);
        assert!(matches!(user.without_group(Gid::from_raw(1000)), Err(LaunchError::ControlGroup(_))));
    }

    #[test]
    fn a_signal_s_end_is_told_as_shells_tell_it() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}
