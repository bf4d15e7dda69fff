//! A controller of a test's own: started from the built binary in its own state directory, and taken down whole.
//!
//! Needs root. Speaks to it only as users do: by the command line.
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::clock::wait_until;
use crate::process::{self, Output, Seen};
use crate::{cgroup, require_root};

/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a start may take until the meter serves.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the controller may take to end when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A running controller with its meter. Dropped: bottles detached, processes ended, pins, cgroups and what it published removed.
pub struct Daemon {
    dir: TempDir,
    /// Its `PATH`, where that is not the test's.
    path: Option<OsString>,
    /// Whether it reads its clock's offset from a file, as a build for tests does when it is told to.
    has_test_clock: bool,
    /// How much it logs: `-v`, `-vv`.
    verbosity: Option<&'static str>,
    /// The `enforcer` that is run.
    program: PathBuf,
    child: Option<Child>,
    helpers: Vec<Seen>,
    own_cgroups: Vec<PathBuf>,
    run_dir: Option<PathBuf>,
}

impl Daemon {
    /// Starts one with these settings; `listen: "127.0.0.1:0"` is added when they say nothing of it.
    /// Panics, with its log, when it does not serve in time.
    #[must_use]
    pub fn start(settings: &str) -> Self {
        Self::start_on_path(settings, None)
    }

    /// As [`Daemon::start`], with a `PATH` of its own: where it finds the programs that it asks.
    #[must_use]
    pub fn start_on_path(settings: &str, path: Option<OsString>) -> Self {
        drop(process::built("meter-proxy"));
        Self::start_program(process::built("enforcer"), settings, path)
    }

    /// As [`Daemon::start`], with a clock that [`Daemon::set_clock`] turns; it shows `utc` from the first moment on.
    #[must_use]
    pub fn start_at(utc: &str, settings: &str) -> Self {
        drop(process::built("meter-proxy"));
        let mut daemon = Self::prepare(process::built("enforcer"), settings, None);
        daemon.has_test_clock = true;
        daemon.set_clock(utc);
        daemon.serve()
    }

    /// Changes what [`Daemon::restart`] starts it with: `-v`, `-vv` or neither.
    pub fn set_verbosity(&mut self, verbosity: Option<&'static str>) {
        self.verbosity = verbosity;
    }

    /// Turns the clock: from now on it goes on from there. RFC 3339.
    pub fn set_clock(&self, utc: &str) {
        assert!(self.has_test_clock, "this daemon goes by the host's clock");
        let wanted: jiff::Timestamp = utc.parse().unwrap_or_else(|error| panic!("{utc}: {error}"));
        let offset_ms = wanted.as_millisecond() - jiff::Timestamp::now().as_millisecond();
        fs::write(self.clock_file(), offset_ms.to_string()).expect("the clock's file");
    }

    fn clock_file(&self) -> PathBuf {
        self.dir.path().join("clock")
    }

    /// As [`Daemon::start`], with what stands as `enforcer` and `meter-proxy` in this directory.
    #[must_use]
    pub fn start_from(programs: &Path, settings: &str) -> Self {
        Self::start_program(programs.join("enforcer"), settings, None)
    }

    fn start_program(program: PathBuf, settings: &str, path: Option<OsString>) -> Self {
        Self::prepare(program, settings, path).serve()
    }

    fn serve(mut self) -> Self {
        self.spawn();
        self.wait_serving();
        self
    }

    fn prepare(program: PathBuf, settings: &str, path: Option<OsString>) -> Self {
        require_root();
        let dir =
            tempfile::Builder::new().prefix("enforcer-test-").tempdir().expect("a directory for the daemon");
        fs::DirBuilder::new().mode(0o700).create(dir.path().join("state")).expect("a state directory");
        let (helpers, own_cgroups) = (Vec::new(), Vec::new());
        let (has_test_clock, verbosity, child, run_dir) = (false, None, None, None);
        let daemon =
            Self { dir, path, has_test_clock, verbosity, program, child, helpers, own_cgroups, run_dir };
        daemon.write_settings(settings);
        daemon
    }

    /// Replaces settings.yml; the daemon reads it at its next start or SIGHUP.
    pub fn write_settings(&self, settings: &str) {
        let says_listen = settings.lines().any(|line| line.starts_with("listen:"));
        let listen = if says_listen { "" } else { "\nlisten: \"127.0.0.1:0\"\n" };
        fs::write(self.state_dir().join("settings.yml"), format!("{settings}{listen}"))
            .expect("settings.yml");
    }

    /// Its state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Its control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.state_dir().join("control.sock")
    }

    /// `enforcer --state-dir DIR`, to which a test adds a verb.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--state-dir").arg(self.state_dir());
        command
    }

    /// Runs one command to its end.
    #[must_use]
    pub fn cli(&self, args: &[&str]) -> Output {
        process::run(self.command().args(args), COMMAND_TIMEOUT)
    }

    /// Runs one command that must succeed; its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.cli(args);
        assert_eq!(output.code, Some(0), "enforcer {args:?}: {}\n{}", output.stdout, output.stderr);
        output.stdout
    }

    /// Runs one command that must succeed, with `--json`; its document.
    #[must_use]
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("enforcer {args:?} --json: {error}: {text}"))
    }

    /// Runs one command that prints one JSON object a line (`audit`).
    #[must_use]
    pub fn json_lines(&self, args: &[&str]) -> Vec<Value> {
        let text = self.ok(&[args, &["--json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// One bottle of `status --json`. Panics when it is not attached.
    #[must_use]
    pub fn bottle(&self, name: &str) -> Value {
        let status = self.json(&["status"]);
        let bottles = status["bottles"].as_array().cloned().unwrap_or_default();
        let found = bottles.into_iter().find(|bottle| bottle["name"] == name);
        found.unwrap_or_else(|| panic!("no bottle {name} in {status:#}"))
    }

    /// Waits until `status --json` has a bottle of this name for which `wanted` holds; panics with the status.
    pub fn wait_bottle(&self, name: &str, wanted: impl Fn(&Value) -> bool, timeout: Duration) -> Value {
        let found = wait_until(timeout, || Some(self.bottle(name)).filter(|bottle| wanted(bottle)));
        found.unwrap_or_else(|| panic!("not within {timeout:?}: {:#}", self.bottle(name)))
    }

    /// Attaches a cgroup as a bottle; `options` as on the command line.
    pub fn attach(&self, name: &str, cgroup: &Path, options: &[&str]) {
        let path = cgroup.to_str().expect("a test's cgroup has a plain name");
        self.ok(&[&["attach", name, "--cgroup", path], options].concat());
    }

    /// The variables of `enforcer env NAME`, as an env file has them.
    #[must_use]
    pub fn environment(&self, name: &str) -> Vec<(String, String)> {
        let text = self.ok(&["env", name, "--shell", "dotenv"]);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let variables = lines.map(|line| line.split_once('=').expect("a variable a line"));
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// `ADDRESS:PORT` of the meter.
    #[must_use]
    pub fn listen_addr(&self) -> String {
        let status = self.json(&["status"]);
        status["daemon"]["meter"]["listen"].as_str().expect("status tells where the meter listens").to_owned()
    }

    /// Process id of the controller. Panics after [`Daemon::kill9`].
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// The meter as it runs now.
    #[must_use]
    pub fn meter(&self) -> Seen {
        let status = self.json(&["status"]);
        let pid = status["daemon"]["meter"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.and_then(Seen::now).unwrap_or_else(|| panic!("no meter runs: {status:#}"))
    }

    /// The refusal lane as it runs now; none while it is down.
    #[must_use]
    pub fn lane(&self) -> Option<Seen> {
        let status = self.json(&["status"]);
        let pid = status["daemon"]["lane"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.filter(|_| status["daemon"]["lane"]["state"] == "serving").and_then(Seen::now)
    }

    /// SIGKILL for the controller, as a crash; the meter ends by itself.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::kill(&mut child);
        }
    }

    /// A controller on the same state directory: stops this one (if it runs) and starts another.
    pub fn restart(&mut self) {
        self.stop();
        self.spawn();
        self.wait_serving();
    }

    /// Asks the controller to end (SIGTERM), kills it if it does not.
    pub fn stop(&mut self) {
        let stopped = self.child.take().is_none_or(|mut child| process::stop(&mut child, STOP_TIMEOUT));
        if !stopped {
            eprintln!("the daemon did not end within {STOP_TIMEOUT:?} of SIGTERM and was killed");
        }
    }

    /// What the controller and its meter logged, of all starts.
    #[must_use]
    pub fn logs(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        let stderr = log.try_clone().expect("a descriptor for the log");
        let mut command = self.command();
        command.args(self.verbosity).arg("daemon").stdin(Stdio::null()).stdout(log).stderr(stderr);
        command.envs(self.path.as_ref().map(|path| ("PATH", path)));
        command.envs(self.has_test_clock.then(|| ("ENFORCER_TEST_CLOCK", self.clock_file())));
        self.child = Some(command.spawn().expect("the daemon can be started"));
    }

    fn wait_serving(&mut self) {
        let serving = wait_until(START_TIMEOUT, || {
            let ended =
                self.child.as_mut().and_then(|child| child.try_wait().expect("a child can be waited for"));
            assert!(ended.is_none(), "the daemon ended at its start: {ended:?}\n{}", self.logs());
            let daemon = &self.status_if_any()["daemon"];
            ["meter", "lane"].iter().all(|helper| daemon[helper]["state"] == "serving").then_some(())
        });
        assert!(serving.is_some(), "the daemon does not serve within {START_TIMEOUT:?}\n{}", self.logs());
        self.run_dir = Some(self.run_dir());
        self.remember();
    }

    /// Directory of what it publishes, under `/run`; its name is its instance's, which pins and cgroups bear too.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        let certificate = PathBuf::from(self.ok(&["ca", "path"]).trim_end());
        certificate.parent().expect("the certificate lies in a directory").to_owned()
    }

    /// Notes the meter, and the cgroups that it and the controller moved to (never the test's own), with the one for
    /// bottles beside them, for the end.
    fn remember(&mut self) {
        let own = cgroup::of_process(std::process::id());
        let daemon = &self.status_if_any()["daemon"];
        let helpers = ["meter", "lane"].map(|helper| daemon[helper]["pid"].as_u64());
        let helpers = helpers.map(|pid| pid.and_then(|pid| u32::try_from(pid).ok()));
        self.helpers.extend(helpers.into_iter().flatten().filter_map(Seen::now));
        for pid in helpers.into_iter().chain([Some(self.pid())]).flatten() {
            let Some(path) = cgroup::of_process(pid).filter(|path| Some(path) != own.as_ref()) else {
                continue;
            };
            let bottles = path.with_file_name("bottles");
            for path in [path, bottles].into_iter().filter(|path| path.exists()) {
                if !self.own_cgroups.contains(&path) {
                    self.own_cgroups.push(path);
                }
            }
        }
    }

    /// `status --json`, or null: for what must not panic.
    fn status_if_any(&self) -> Value {
        let output = self.try_cli(&["status", "--json"]);
        output.ok().and_then(|output| serde_json::from_str(&output.stdout).ok()).unwrap_or_default()
    }

    fn try_cli(&self, args: &[&str]) -> Result<Output, String> {
        process::try_run(self.command().args(args), COMMAND_TIMEOUT)
    }

    /// Runs a command of the clearing up; that it failed is said, and the clearing up goes on.
    fn clear_up(&self, args: &[&str]) {
        match self.try_cli(args) {
            Ok(output) if output.code == Some(0) => {}
            Ok(output) => eprintln!("enforcer {args:?}: {}", output.stderr),
            Err(problem) => eprintln!("{problem}"),
        }
    }

    fn detach_all(&self) {
        for bottle in self.status_if_any()["bottles"].as_array().into_iter().flatten() {
            if let Some(name) = bottle["name"].as_str() {
                self.clear_up(&["detach", name, "--force"]);
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon ---\n{}--- end of the log ---", self.logs());
        }
        if self.child.is_some() {
            self.remember();
            self.detach_all();
            self.stop();
        }
        self.clear_up(&["daemon", "--unpin-all"]);
        self.helpers.iter().for_each(Seen::kill);
        remove_left(&self.own_cgroups);
        if let Some(run_dir) = self.run_dir.take()
            && let Err(error) = fs::remove_dir_all(&run_dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("cannot remove {}: {error}", run_dir.display());
        }
    }
}

/// Removes the daemon's own cgroups and what they were made in, where nothing is in them any more.
fn remove_left(cgroups: &[PathBuf]) {
    let top = cgroup::mount_point();
    for group in cgroups {
        for level in group.ancestors().take_while(|level| **level != top && level.starts_with(&top)) {
            // another daemon's processes may be in there: then it stays, and is that one's to remove
            if fs::remove_dir(level).is_err() {
                break;
            }
        }
    }
}
