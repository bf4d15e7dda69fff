//! The dashboard in a real terminal: whatever ends it, the terminal is as it was before.
#![allow(clippy::unwrap_used, reason = "helpers of a test say what they expect by unwrapping")]
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use enforcer::audit::Row;
use enforcer::control::api;
use enforcer::tui;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// Tells the child what its daemon does.
const DAEMON: &str = "DASHBOARD_TEST_DAEMON";
const ENTER_SCREEN: &str = "\x1b[?1049h";
const LEAVE_SCREEN: &str = "\x1b[?1049l";

/// A daemon that never answers, or whose client panics.
#[derive(Clone)]
struct Stub {
    panics: bool,
}

impl tui::Backend for Stub {
    async fn status(&self) -> Result<api::Status, String> {
        assert!(!self.panics, "a panic under the dashboard");
        Err("nobody is there".to_owned())
    }

    async fn audit(&self, _after: i64) -> Result<Vec<Row>, String> {
        Ok(vec![])
    }

    async fn cut(&self, _bottle: &str, _body: &api::Cut) -> Result<(), String> {
        Ok(())
    }

    async fn cut_all(&self, _body: &api::Cut) -> Result<(), String> {
        Ok(())
    }

    async fn freeze(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn thaw(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn kill(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn restore(&self, _bottle: &str, _body: &api::Restore) -> Result<(), String> {
        Ok(())
    }
}

#[tokio::test]
#[ignore = "the child of the other tests, in a terminal of its own"]
async fn child() {
    let panics = std::env::var(DAEMON).expect("run by the other tests") == "panics";
    tui::run(Stub { panics }).await.unwrap();
}

/// A dashboard in a pseudo-terminal; killed when dropped.
struct Dashboard {
    child: Child,
    master: File,
    slave: Option<OwnedFd>,
    seen: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Dashboard {
    fn start(daemon: &str) -> Self {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, vec![]).unwrap();
        let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        tcsetwinsize(&slave, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(DAEMON, daemon)
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave.try_clone().unwrap())
            .spawn()
            .unwrap();
        let master = File::from(master);
        let seen = Arc::default();
        let reader = Some(collect(master.try_clone().unwrap(), Arc::clone(&seen)));
        Self { child, master, slave: Some(slave), seen, reader }
    }

    fn wait_to_see(&self, words: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let seen = String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned();
            if seen.contains(words) {
                return;
            }
            assert!(Instant::now() < deadline, "no {words:?} in {seen:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the dashboard does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether lines are edited and typed keys shown, as a shell needs it.
    fn is_cooked(&self) -> bool {
        tcgetattr(&self.master).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        // fails when the child has ended already
        self.child.kill().ok();
        self.child.wait().ok();
        drop(self.slave.take());
        self.reader.take().map(JoinHandle::join);
    }
}

fn collect(mut master: File, seen: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        // the last slave's end is an error here
        while let Ok(read @ 1..) = master.read(&mut buffer) {
            seen.lock().unwrap().extend(&buffer[..read]);
        }
    })
}

#[test]
fn q_leaves_the_terminal_as_it_was() {
    let mut dashboard = Dashboard::start("absent");
    dashboard.wait_to_see(ENTER_SCREEN);
    dashboard.wait_to_see("nobody is there");
    assert!(!dashboard.is_cooked());
    dashboard.master.write_all(b"q").unwrap();
    assert!(dashboard.wait_for_end().success());
    dashboard.wait_to_see(LEAVE_SCREEN);
    assert!(dashboard.is_cooked());
}

#[test]
fn sigterm_leaves_the_terminal_as_it_was() {
    let mut dashboard = Dashboard::start("absent");
    dashboard.wait_to_see("nobody is there");
    kill_process(Pid::from_child(&dashboard.child), Signal::TERM).unwrap();
    assert!(dashboard.wait_for_end().success());
    dashboard.wait_to_see(LEAVE_SCREEN);
    assert!(dashboard.is_cooked());
}

#[test]
fn a_panic_leaves_the_terminal_as_it_was() {
    let mut dashboard = Dashboard::start("panics");
    dashboard.wait_to_see(ENTER_SCREEN);
    assert!(!dashboard.wait_for_end().success());
    dashboard.wait_to_see(LEAVE_SCREEN);
    assert!(dashboard.is_cooked());
}
