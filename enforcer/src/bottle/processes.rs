//! Freezes, thaws and kills every process of a cgroup and of those below it, by the kernel's own files: whatever forks
//! meanwhile is in it. Blocks, within a bound. Not here: when that is done, and who is told.
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::cgroup::{Cgroup, CgroupError, failed, is_missing};

/// How long processes may take to stand still, or to end: all but those that the kernel itself keeps waiting do so in
/// milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for word of a change before the state is read again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Most process ids that a complaint names.
const NAMED_PIDS: usize = 5;

/// Why processes are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum ProcessesError {
    /// The cgroup was removed.
    #[error("{0} is gone")]
    Gone(PathBuf),
    /// Some process does not stop: the kernel keeps it waiting for something else, or it is being debugged.
    #[error("not all processes of {path} {what} within {seconds} s: {who}", seconds = PATIENCE.as_secs())]
    Slow {
        /// The cgroup.
        path: PathBuf,
        /// What they did not do.
        what: &'static str,
        /// Some of them.
        who: String,
    },
    /// Any other refusal.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl Cgroup {
    /// Has every process stand still, with its memory kept, and waits until all do. What is not still by then will be
    /// when it can: the order stands.
    ///
    /// # Errors
    /// See [`ProcessesError`].
    pub fn freeze(&self) -> Result<(), ProcessesError> {
        self.order("freeze", "cgroup.freeze", "1")?;
        self.wait_for("frozen 1", "stand still")
    }

    /// Lets the processes go on.
    ///
    /// # Errors
    /// See [`ProcessesError`].
    pub fn thaw(&self) -> Result<(), ProcessesError> {
        self.order("thaw", "cgroup.freeze", "0")
    }

    /// Kills every process, frozen ones too, and waits until none is left.
    ///
    /// # Errors
    /// See [`ProcessesError`].
    pub fn kill(&self) -> Result<(), ProcessesError> {
        self.order("kill the processes of", "cgroup.kill", "1")?;
        self.wait_for("populated 0", "ended")
    }

    /// Whether its processes were told to stand still, whoever told them; `false` when it is gone.
    ///
    /// # Errors
    /// When the kernel does not let it be read.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        match fs::read_to_string(self.handle().join("cgroup.freeze")) {
            Ok(state) => Ok(state.trim_end() == "1"),
            Err(error) if is_missing(&error) => Ok(false),
            Err(source) => Err(failed("read the freezer of", self.path(), source)),
        }
    }

    fn order(&self, what: &'static str, file: &str, value: &str) -> Result<(), ProcessesError> {
        fs::write(self.handle().join(file), value).map_err(|source| self.refused(what, source))
    }

    /// Waits until `cgroup.events` says so; the kernel wakes who polls it at each change.
    fn wait_for(&self, line: &str, what: &'static str) -> Result<(), ProcessesError> {
        let deadline = Instant::now() + PATIENCE;
        let refused = |source| self.refused("read the events of", source);
        let path = self.handle().join("cgroup.events");
        loop {
            // opened anew each time: a descriptor tells changes since it was read
            let mut events = fs::File::open(&path).map_err(refused)?;
            let said = io::read_to_string(&mut events).map_err(refused)?;
            if said.lines().any(|said| said == line) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.slow(what));
            }
            wait_for_change(&events).map_err(refused)?;
        }
    }

    fn slow(&self, what: &'static str) -> ProcessesError {
        let who = match self.pids() {
            Ok(pids) => {
                let named: Vec<String> = pids.iter().take(NAMED_PIDS).map(u32::to_string).collect();
                let more = if pids.len() > NAMED_PIDS { ", …" } else { "" };
                format!("{} of them, among which {}{more}", pids.len(), named.join(", "))
            }
            Err(error) => error.to_string(),
        };
        ProcessesError::Slow { path: self.path().to_owned(), what, who }
    }

    fn refused(&self, what: &'static str, source: io::Error) -> ProcessesError {
        if is_missing(&source) && !self.exists() {
            return ProcessesError::Gone(self.path().to_owned());
        }
        failed(what, self.path(), source).into()
    }
}

fn wait_for_change(events: &fs::File) -> io::Result<()> {
    let timeout = PollTimeout::try_from(LOOK_AGAIN).unwrap_or(PollTimeout::ZERO);
    match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
