//! Ends a program that takes too long, with everything it started. By process id alone, never by name.
use std::fs;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// A running watch; see [`Watch::end`].
pub struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<bool>,
}

impl Watch {
    /// Kills the process and its descendants after `limit`.
    pub fn start(pid: u32, limit: Duration) -> Self {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let in_time = !matches!(stopped.recv_timeout(limit), Err(RecvTimeoutError::Timeout));
            if !in_time {
                kill_with_descendants(pid);
            }
            in_time
        });
        Self { stop, thread }
    }

    /// The process has ended: whether in time.
    #[must_use]
    pub fn end(self) -> bool {
        drop(self.stop);
        self.thread.join().unwrap_or(false)
    }
}

/// Children first would let a parent start them anew: from the top down.
fn kill_with_descendants(pid: u32) {
    let children = children_of(pid);
    let killed = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
    if !killed.is_ok_and(|status| status.success()) {
        eprintln!("process {pid} cannot be killed");
    }
    children.into_iter().for_each(kill_with_descendants);
}

/// The processes whose parent this is, from the fourth field of `/proc/PID/stat`.
fn children_of(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|child| parent_of(*child) == Some(pid)).collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name, in brackets, may hold spaces and brackets
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_ends_with_what_it_started() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & echo; wait"]).spawn().unwrap();
        let grandchild = loop {
            if let Some(found) = children_of(child.id()).first() {
                break *found;
            }
            std::thread::yield_now();
        };
        let watch = Watch::start(child.id(), Duration::from_millis(50));
        assert!(!child.wait().unwrap().success());
        assert!(!watch.end());
        assert!(parent_of(grandchild).is_none_or(|parent| parent != child.id()));
    }

    #[test]
    fn what_ends_in_time_is_left_alone() {
        let mut child = Command::new("true").spawn().unwrap();
        let watch = Watch::start(child.id(), Duration::from_secs(60));
        assert!(child.wait().unwrap().success());
        assert!(watch.end());
    }
}
