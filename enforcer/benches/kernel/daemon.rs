//! A real controller, built for release, with this program in the place of its meter (`identity::ask`).
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use enforcer::control::client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long it may take to start.
const START: Duration = Duration::from_secs(20);

/// A daemon with a state directory of its own. When dropped it is stopped, and what it pinned removed.
pub struct Daemon {
    directory: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    /// Starts one and waits until it serves.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::write(state.join("settings.yml"), "listen: \"127.0.0.1:0\"\n").unwrap();
        // it looks for the meter beside itself
        std::fs::copy(env!("CARGO_BIN_EXE_enforcer"), directory.path().join("enforcer")).unwrap();
        std::fs::copy(std::env::current_exe().unwrap(), directory.path().join("meter-proxy")).unwrap();
        let child = spawn(directory.path());
        let daemon = Self { directory, child };
        daemon.wait();
        daemon
    }

    /// Stops it and starts it again on what it left.
    pub fn restart(&mut self) {
        self.stop();
        self.child = spawn(self.directory.path());
        self.wait();
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A client of its control API.
    pub fn client(&self) -> Client {
        Client::new(self.directory.path().join("state/control.sock"))
    }

    fn wait(&self) {
        let end = Instant::now() + START;
        while !self.serves() {
            assert!(Instant::now() < end, "the daemon does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn serves(&self) -> bool {
        let output = command(self.directory.path(), &["status", "--json"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("serving")
    }

    /// Runs a command of the daemon that must succeed; what it prints.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = command(self.directory.path(), arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn stop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let published = PathBuf::from(self.run(&["ca", "path"]).trim_end());
        self.stop();
        self.run(&["daemon", "--unpin-all"]);
        std::fs::remove_dir_all(published.parent().unwrap()).unwrap();
    }
}

fn spawn(directory: &Path) -> Child {
    command(directory, &["daemon"]).stderr(Stdio::null()).spawn().unwrap()
}

fn command(directory: &Path, arguments: &[&str]) -> Command {
    let program: PathBuf = directory.join("enforcer");
    let mut command = Command::new(program);
    command.arg("--state-dir").arg(directory.join("state")).args(arguments);
    command
}
