//! Starts a daemon in the background when none answers, for `run`.
//!
//! It is this same program in a session of its own, logging into the state directory. What keeps it from
//! serving is told in its own words.
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::output::say;
use crate::bottle::launch::close_at_exec;
use crate::cli::Global;
use crate::control::client::{Blocking, ClientError};
use crate::error::{Exit, Failure};
use crate::state::StateDir;

/// Longest wait until a new daemon serves.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(50);
/// Most of the daemon's log that is read for its last words, bytes.
const LOG_TAIL_BYTES: u64 = 8 * 1024;

/// Returns once a daemon answers on `control`.
///
/// # Errors
/// When one is there and refuses us, or when a new one does not come to serve.
pub(super) fn ensure_daemon(global: &Global, control: &Blocking) -> Result<(), Failure> {
    match control.wait(control.client().status()) {
        Ok(_) => Ok(()),
        Err(ClientError::NoDaemon(_)) => start(global, control),
        Err(error) => Err(error.into()),
    }
}

fn start(global: &Global, control: &Blocking) -> Result<(), Failure> {
    let log_path = StateDir::open(global.state_dir.as_deref())?.file("daemon.log");
    let (mut log, begin) = open_log(&log_path).map_err(|error| Failure::io(log_path.display(), &error))?;
    let mut daemon = spawn(global, &log, control.client().socket())
        .map_err(|error| Failure::io("start a daemon", &error))?;
    say(&format!("no daemon answered; started one (pid {}, log {})", daemon.id(), log_path.display()));
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match control.wait(control.client().status()) {
            Ok(_) => return Ok(()),
            Err(ClientError::NoDaemon(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = daemon.try_wait().map_err(|error| Failure::io("wait for the daemon", &error))?;
        if let Some(status) = ended {
            let exit =
                status.code().and_then(|code| u8::try_from(code).ok()).map_or(Exit::Failed, Exit::from_code);
            return Err(last_words(&mut log, begin, exit).hint(format!("its log is {}", log_path.display())));
        }
        if Instant::now() > deadline {
            return Err(give_up(&mut daemon, &log_path));
        }
        std::thread::sleep(POLL);
    }
}

/// A daemon that may come to serve later would surprise whoever was told that there is none.
fn give_up(daemon: &mut Child, log_path: &Path) -> Failure {
    let mut message = format!("the daemon does not serve after {} s", START_TIMEOUT.as_secs());
    if let Err(error) = daemon.kill().and_then(|()| daemon.wait()) {
        message.push_str(&format!(", and cannot be ended: {error}"));
    }
    Failure::new(Exit::NoDaemon, message).hint(format!("its log is {}", log_path.display()))
}

/// The log, and where this daemon's part of it begins.
fn open_log(path: &Path) -> io::Result<(File, u64)> {
    let log = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let begin = log.metadata()?.len();
    Ok((log, begin))
}

fn spawn(global: &Global, log: &File, socket: &Path) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("enforcer")
        .args(arguments(global, socket))
        .current_dir("/")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.try_clone()?);
    // SAFETY: setsid(2) and close_range(2) alone: no allocation, no lock.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            close_at_exec()
        });
    }
    command.spawn()
}

/// The daemon's command line: what we were told, with paths that hold from its directory too.
fn arguments(global: &Global, socket: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["--socket".into(), absolute(socket)];
    for (option, path) in [("--state-dir", &global.state_dir), ("--settings", &global.settings)] {
        if let Some(path) = path {
            arguments.extend([option.into(), absolute(path)]);
        }
    }
    arguments.extend((0..global.verbose).map(|_| "-v".into()));
    arguments.push("daemon".into());
    arguments
}

fn absolute(path: &Path) -> OsString {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).into_os_string()
}

/// What the daemon said last: its own error line, or the last line of its log.
fn last_words(log: &mut File, begin: u64, exit: Exit) -> Failure {
    let mut text = Vec::new();
    let read = log
        .seek(SeekFrom::Start(begin))
        .and_then(|_| log.by_ref().take(LOG_TAIL_BYTES).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let words = match read {
        Err(error) => format!("(its log cannot be read: {error})"),
        Ok(_) => words_of(&text),
    };
    Failure::new(exit, format!("the daemon did not start: {words}"))
}

fn words_of(log: &str) -> String {
    let said = log.lines().rev().find_map(|line| line.strip_prefix("enforcer: "));
    let last = || log.lines().rev().find(|line| !line.trim().is_empty());
    said.or_else(last).unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_s_last_words_are_its_error() {
        assert_eq!(words_of("INFO x\nenforcer: port taken\n  hint: another\n"), "port taken");
        assert_eq!(words_of("thread panicked\n\n"), "thread panicked");
        assert_eq!(words_of(""), "it said nothing");
    }
}
