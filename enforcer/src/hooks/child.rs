//! Runs one program of the operator's with a bound on its time and on what is kept of its words. No shell: what stands
//! in an argument stays in it. Not here: which program, when, and what becomes of the outcome.
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use std::{fs, io};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::watch;

use crate::state::{self, StateError};
use crate::text::scrub;

/// Most bytes that are kept of what a program says; the rest is read and forgotten.
pub const MAX_WORDS_BYTES: usize = 2 * 1024;
/// How long what a program left running may hold on to its outputs once it has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Why a program did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// Somebody else than root could have it do something else.
    #[error("{0} is not run as root: {1}")]
    Untrusted(String, String),
    /// Somebody else than root could replace it.
    #[error("it is not run as root: {0}")]
    Replaceable(#[from] StateError),
    /// It cannot be started or waited for.
    #[error("{program} cannot be run: {source}")]
    Io {
        /// The program.
        program: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// It did not end in time; it and its process group were killed.
    #[error("{program} was killed: it did not end within {} s{}", limit.as_secs_f32(), after(words))]
    Slow {
        /// The program.
        program: String,
        /// The bound.
        limit: Duration,
        /// What it said so far.
        words: String,
    },
    /// It ended, and says that it failed.
    #[error("{program}: {status}{}", after(words))]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        words: String,
    },
}

/// Runs it to its end; what it said, scrubbed. When this is dropped before, the program and its group are killed.
///
/// # Errors
/// See [`ChildError`].
pub async fn run(argv: &[String], limit: Duration) -> Result<String, ChildError> {
    let (name, arguments) = argv.split_first().map_or(("", [].as_slice()), |(name, rest)| (name, rest));
    let program = scrub(name);
    let path = trusted(Path::new(name))?;
    let io = |source| ChildError::Io { program: program.clone(), source };
    let mut running = start_as(&path, name, arguments).map_err(io)?;
    let said = Words::listen(&mut running);
    let ended = tokio::time::timeout(limit, running.end()).await;
    drop(running);
    let words = said.end().await;
    match ended {
        Err(_) => Err(ChildError::Slow { program, limit, words }),
        Ok(Err(source)) => Err(io(source)),
        Ok(Ok(status)) if status.success() => Ok(words),
        Ok(Ok(status)) => Err(ChildError::Failed { program, status, words }),
    }
}

/// Starts a program as the leader of a process group, with nothing of this one's surroundings but `PATH`; both its
/// outputs are to be read.
///
/// # Errors
/// When the operating system refuses.
pub fn start(program: &str, arguments: &[impl AsRef<OsStr>]) -> io::Result<Running> {
    start_as(Path::new(program), program, arguments)
}

/// As [`start`], under another name than its path: some programs do what they are called.
fn start_as(program: &Path, name: &str, arguments: &[impl AsRef<OsStr>]) -> io::Result<Running> {
    let mut command = Command::new(program);
    command.arg0(name).args(arguments).current_dir("/").env_clear().env("LC_ALL", "C");
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.kill_on_drop(true).spawn()?;
    Ok(Running { group: Some(Group::led_by(&child)?), child })
}

/// The program's path without links: what is looked at is what is run, wherever a link points by then. One that others
/// than root can write would give them root. Its interpreter, and what it starts, are its own author's care.
fn trusted(program: &Path) -> Result<PathBuf, ChildError> {
    let shown = scrub(&program.display().to_string());
    let io = |source| ChildError::Io { program: shown.clone(), source };
    let path = fs::canonicalize(program).map_err(io)?;
    let about = fs::metadata(&path).map_err(io)?;
    let own = nix::unistd::Uid::effective().as_raw();
    let why = match (about.uid(), about.mode() & 0o022) {
        (uid, _) if uid != 0 && uid != own => Some(format!("it belongs to uid {uid}")),
        (_, 0) => None,
        _ => Some("others than its owner can write it".to_owned()),
    };
    match why {
        Some(why) => Err(ChildError::Untrusted(shown, why)),
        None => {
            state::check_way(&path, "a program that is run as root")?;
            Ok(path)
        }
    }
}

/// A program that runs. When this is dropped, it is killed, and what it started and did not wait for.
#[must_use]
pub struct Running {
    // before the child, which is reaped at the latest when it is dropped
    group: Option<Group>,
    child: Child,
}

impl Running {
    /// Its outputs, for the first who asks.
    pub fn outputs(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// Waits for its end, and ends what it left running.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub async fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(group) = &self.group {
            group.has_lost_its_leader().await?;
        }
        self.group = None;
        self.child.wait().await
    }
}

/// A program's process group, killed when dropped. Its number is its leader's, which nobody else can have for as long as
/// that is not reaped: so the group is killed first.
struct Group {
    leader: Pid,
    /// A pidfd, which is readable once the leader has ended.
    ended: AsyncFd<OwnedFd>,
}

impl Group {
    fn led_by(child: &Child) -> io::Result<Self> {
        let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or(Errno::SRCH)?;
        // it has begun, and may have started others
        let ended = Self::watched(leader).inspect_err(|_| kill_group(leader))?;
        Ok(Self { leader, ended })
    }

    fn watched(leader: Pid) -> io::Result<AsyncFd<OwnedFd>> {
        let ended = pidfd_open(leader, PidfdFlags::empty())?;
        // SAFETY: an owned descriptor that nothing else uses; it goes with the result.
        Ok(unsafe { AsyncFd::register(ended) }?)
    }

    /// Waits for the end of the leader, and leaves it to be reaped.
    async fn has_lost_its_leader(&self) -> io::Result<()> {
        self.ended.readable().await?.retain_ready();
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        kill_group(self.leader);
    }
}

fn kill_group(leader: Pid) {
    match kill_process_group(leader, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => tracing::warn!(%error, group = %leader, "what a program left running is not killed"),
    }
}

/// What a program says on both outputs, read as it comes so that it never waits for a reader.
struct Words {
    kept: watch::Receiver<Vec<u8>>,
    readers: tokio::task::JoinSet<()>,
}

impl Words {
    fn listen(running: &mut Running) -> Self {
        let (keep, kept) = watch::channel(Vec::new());
        let mut readers = tokio::task::JoinSet::new();
        let (stdout, stderr) = running.outputs();
        if let Some(stdout) = stdout {
            readers.spawn(read(stdout, keep.clone()));
        }
        if let Some(stderr) = stderr {
            readers.spawn(read(stderr, keep));
        }
        Self { kept, readers }
    }

    /// What was said, in one line.
    async fn end(mut self) -> String {
        let all = async { while self.readers.join_next().await.is_some() {} };
        // a reader that has no end by then is dropped: somebody else holds the pipe
        drop(tokio::time::timeout(LAST_WORDS, all).await);
        let words = String::from_utf8_lossy(&self.kept.borrow()).trim().replace('\n', " | ");
        scrub(&words)
    }
}

/// Keeps the beginning, and reads the rest away.
async fn read(mut pipe: impl AsyncRead + Unpin, keep: watch::Sender<Vec<u8>>) {
    let mut buffer = [0; 4096];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => return,
            Ok(length) => keep.send_modify(|kept| {
                let room = MAX_WORDS_BYTES.saturating_sub(kept.len());
                kept.extend_from_slice(&buffer[..length.min(room)]);
            }),
            Err(error) => return tracing::debug!(%error, "a hook's words cannot be read"),
        }
    }
}

/// Words as they stand at the end of a sentence.
fn after(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!("; it said: {words}") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    use std::time::Instant;

    use super::*;

    fn sh(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
    }

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_it_says_is_kept_within_bounds_and_harmless() {
        let words = run(&sh("echo one; echo two >&2"), LIMIT).await.unwrap();
        assert!(["one | two", "two | one"].contains(&words.as_str()), "{words}");
        let words = run(&sh("yes \"$(printf '\\033[2J')\" | head -c 5000000"), LIMIT).await.unwrap();
        assert!(words.len() <= 3 * MAX_WORDS_BYTES && !words.contains('\x1b'), "{} bytes", words.len());
    }

    #[tokio::test]
    async fn a_failure_and_a_hanging_program_are_told_with_its_words() {
        let failed = run(&sh("echo no; exit 7"), LIMIT).await.unwrap_err().to_string();
        assert_eq!(failed, "/bin/sh: exit status: 7; it said: no");
        let began = Instant::now();
        let hangs = run(&sh("echo wait; sleep 1000 & sleep 1000"), Duration::from_millis(300)).await;
        let hangs = hangs.unwrap_err().to_string();
        assert!(hangs.contains("did not end within 0.3 s; it said: wait"), "{hangs}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let missing = run(&["/nowhere/at all".into()], LIMIT).await.unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/at all cannot be run: No such file"), "{missing}");
    }

    #[tokio::test]
    async fn what_it_leaves_running_ends_with_it() {
        let began = Instant::now();
        let pid = run(&sh("sleep 1000 & echo $!"), LIMIT).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let lives = || {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !state.is_empty() && !state.contains(") Z ")
        };
        while lives() {
            assert!(began.elapsed() < Duration::from_secs(10), "process {pid} lives on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_program_is_not_reaped_before_its_group_is_killed() {
        let mut running = start("/bin/sh", &["-c", "sleep 1000 & exit 3"]).unwrap();
        let group = running.group.as_ref().unwrap();
        group.has_lost_its_leader().await.unwrap();
        tokio::task::yield_now().await;
        let leader = fs::read_to_string(format!("/proc/{}/stat", group.leader)).unwrap();
        assert!(leader.contains(") Z "), "its number may be another's: {leader}");
        assert_eq!(running.end().await.unwrap().code(), Some(3));
        assert!(running.group.is_none());
    }

    #[tokio::test]
    async fn what_a_link_points_to_is_looked_at_and_run() {
        let dir = tempfile::tempdir().unwrap();
        let (hook, link) = (dir.path().join("hook"), dir.path().join("link"));
        fs::write(&hook, "#!/bin/sh\necho \"$0\"\n").unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&hook, &link).unwrap();
        let said = run(&[link.display().to_string()], LIMIT).await.unwrap();
        assert_eq!(said, fs::canonicalize(&hook).unwrap().display().to_string());
    }

    #[tokio::test]
    async fn a_program_that_others_can_change_is_not_run() {
        assert!(nix::unistd::Uid::effective().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hook");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let argv = [path.display().to_string()];
        mode(0o755);
        assert_eq!(run(&argv, LIMIT).await.unwrap(), "");
        mode(0o757);
        let words = run(&argv, LIMIT).await.unwrap_err().to_string();
        assert!(words.ends_with("is not run as root: others than its owner can write it"), "{words}");
        mode(0o755);
        chown(&path, Some(1234), None).unwrap();
        let words = run(&argv, LIMIT).await.unwrap_err().to_string();
        assert!(words.ends_with("it belongs to uid 1234"), "{words}");
        chown(&path, Some(0), None).unwrap();
        chown(dir.path(), Some(1234), None).unwrap();
        let words = run(&argv, LIMIT).await.unwrap_err().to_string();
        assert!(words.contains("above a program that is run as root and belongs to uid 1234"), "{words}");
    }
}
