//! `enforcer run` with the built binary, in a real cgroup, against a control server whose controller makes
//! cgroups and guards nothing.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping")]
#[path = "support/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use enforcer::audit;
use enforcer::control::api::{
    Attach, Attached, Bottle, BudgetRow, Cut, Daemon, Detached, Environment, Lane, Meter, Packets, Problem,
    Programs, Reason, Reloaded, Restore, State, Status,
};
use enforcer::control::server::Server;
use enforcer::control::{Controller, Event};
use enforcer::core::BudgetOrder;
use enforcer::ledger::{FlowRow, UsageQuery, UsageRow};
use rustix::pty::OpenptFlags;
use tempfile::TempDir;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// Makes and removes cgroups under one of its own.
struct Fake {
    root: PathBuf,
    asked: std::sync::Mutex<Vec<Attach>>,
}

fn refuse<T>() -> Result<T, Problem> {
    Err(Problem { error: "not in this test".into(), hint: None, exit_code: 1 })
}

impl Fake {
    fn find(&self, name: &str) -> Result<Bottle, Problem> {
        let cgroup = self.root.join(name);
        let Ok(procs) = fs::read_to_string(cgroup.join("cgroup.procs")) else { return refuse() };
        Ok(Bottle {
            name: name.to_owned(),
            agent: None,
            parent: None,
            cgroup: cgroup.display().to_string(),
            pids: procs.lines().count(),
            state: State::Open,
            face: None,
            cause: None,
            policy: "cutoff".into(),
            egress: "open".into(),
            usage: BTreeMap::new(),
            budget: BTreeMap::new(),
            chain: BTreeMap::new(),
            kernel: Packets::default(),
        })
    }

    fn names(&self) -> Vec<String> {
        let directories = fs::read_dir(&self.root).unwrap().map(Result::unwrap).filter(|e| e.path().is_dir());
        directories.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }
}

impl Controller for Fake {
    async fn status(&self) -> Status {
        Status {
            daemon: Daemon {
                pid: 1,
                version: "0".into(),
                meter: Meter { pid: None, listen: "127.0.0.1:1".into(), state: "down".into() },
                lane: Lane { pid: None, state: "down".into() },
                kernel: Programs { programs: "attached".into(), lease_s: None },
                closed: None,
            },
            bottles: self.names().iter().map(|name| self.find(name).unwrap()).collect(),
        }
    }
    async fn bottle(&self, name: &str) -> Result<Bottle, Problem> {
        self.find(name)
    }
    async fn attach(&self, attach: Attach, _by: &str) -> Result<Attached, Problem> {
        assert!(attach.create);
        if fs::create_dir(self.root.join(&attach.name)).is_err() {
            return Err(Problem { error: "there is one already".into(), hint: None, exit_code: 2 });
        }
        let bottle = self.find(&attach.name)?;
        self.asked.lock().unwrap().push(attach);
        Ok(Attached { bottle, warnings: vec!["mind the gap".into()] })
    }
    async fn detach(&self, name: &str, force: bool, _by: &str) -> Result<Detached, Problem> {
        assert!(force);
        fs::remove_dir(self.root.join(name)).or_else(|_| refuse()).map(|()| Detached::default())
    }
    async fn cut(&self, _name: &str, _cut: Cut, _by: &str) -> Result<Bottle, Problem> {
        refuse()
    }
    async fn cut_all(&self, _cut: Cut, _by: &str) -> Result<Vec<Bottle>, Problem> {
        refuse()
    }
    async fn restore(&self, _name: &str, _restore: Restore, _by: &str) -> Result<Bottle, Problem> {
        refuse()
    }
    async fn freeze(&self, _name: &str, _reason: Reason, _by: &str) -> Result<Bottle, Problem> {
        refuse()
    }
    async fn thaw(&self, _name: &str, _by: &str) -> Result<Bottle, Problem> {
        refuse()
    }
    async fn kill(&self, _name: &str, _reason: Reason, _by: &str) -> Result<Bottle, Problem> {
        refuse()
    }
    async fn reload(&self, _by: &str) -> Result<Reloaded, Problem> {
        Ok(Reloaded::default())
    }
    async fn budgets(&self) -> Result<Vec<BudgetRow>, Problem> {
        refuse()
    }
    async fn state_budget(&self, _order: BudgetOrder, _by: &str) -> Result<Option<BudgetRow>, Problem> {
        refuse()
    }
    async fn environment(&self, name: &str) -> Result<Environment, Problem> {
        Ok(Environment { variables: vec![("BOTTLE_OF_TEST".into(), name.to_owned())], config: Vec::new() })
    }
    async fn usage(&self, _query: UsageQuery) -> Result<Vec<UsageRow>, Problem> {
        refuse()
    }
    async fn flows(&self, _query: UsageQuery) -> Result<Vec<FlowRow>, Problem> {
        refuse()
    }
    async fn audit(&self, _after: i64, _limit: u32) -> Result<Vec<audit::Row>, Problem> {
        refuse()
    }
    async fn holds_process(&self, _pid: i32) -> bool {
        false
    }
    fn subscribe(&self) -> broadcast::Receiver<Event> {
        broadcast::channel(1).1
    }
}

/// A server, its cgroup and a directory that any user may write; all gone when dropped.
struct Stage {
    fake: Arc<Fake>,
    home: TempDir,
    shutdown: CancellationToken,
    _runtime: tokio::runtime::Runtime,
}

impl Stage {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = cgroup_mount().join(format!("enforcer-test-run-{}-{number}", std::process::id()));
        fs::create_dir(&root).unwrap();
        let fake = Arc::new(Fake { root, asked: std::sync::Mutex::default() });
        let home = TempDir::new().unwrap();
        fs::create_dir(home.path().join("run")).unwrap();
        fs::create_dir(home.path().join("out")).unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(home.path().join("out"), fs::Permissions::from_mode(0o777)).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let entered = runtime.enter();
        let server = Server::bind(&home.path().join("run/control.sock"), Some(CONTROL_GROUP)).unwrap();
        runtime.spawn(server.serve(fake.clone(), shutdown.clone()));
        drop(entered);
        Self { fake, home, shutdown, _runtime: runtime }
    }

    /// `enforcer run ARGUMENTS`, not started yet.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_enforcer"));
        command
            .arg("--socket")
            .arg(self.home.path().join("run/control.sock"))
            .arg("run")
            .args(arguments)
            .env("OUT", self.out())
            .current_dir(self.out())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A run whose command says `ready` on stdout when it is.
    fn started(&self, arguments: &[&str]) -> Child {
        let mut child =
            self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        child
    }

    fn out(&self) -> PathBuf {
        self.home.path().join("out")
    }

    fn written(&self, name: &str) -> String {
        fs::read_to_string(self.out().join(name)).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.shutdown.cancel();
        fs::write(self.fake.root.join("cgroup.kill"), "1").unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.fake.names().iter().any(|name| fs::remove_dir(self.fake.root.join(name)).is_err()) {
            assert!(Instant::now() < deadline, "{} stays", self.fake.root.display());
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::remove_dir(&self.fake.root).unwrap();
    }
}

/// A group that no account has.
const CONTROL_GROUP: u32 = 54_000;

fn cgroup_mount() -> PathBuf {
    enforcer::bottle::cgroup::mount().unwrap()
}

/// The value of a line of `/proc/PID/status`, words joined by one space.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn root_the_command_is_in_its_cgroup_from_its_first_instruction() {
    let stage = Stage::new();
    let output = stage.run(&["--user", "nobody", "--name", "b1", "--", "cp", "/proc/self/cgroup", "cgroup"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("mind the gap"));
    let root = stage.fake.root.file_name().unwrap().to_str().unwrap();
    assert!(stage.written("cgroup").contains(&format!("0::/{root}/b1\n")), "{}", stage.written("cgroup"));
    assert!(stage.fake.names().is_empty(), "the bottle is taken away");
}

#[test]
fn root_the_command_is_the_user_and_can_become_nobody_else() {
    let stage = Stage::new();
    let output = stage
        .command(&["--", "sh", "-c", "env > env; exec cp /proc/self/status status"])
        .envs([("SUDO_UID", "65534"), ("SUDO_GID", "65533"), ("SUDO_USER", "nobody"), ("SUDO_COMMAND", "x")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let status = stage.written("status");
    assert_eq!(field(&status, "Uid"), "65534 65534 65534 65534");
    assert_eq!(field(&status, "Gid"), "65533 65533 65533 65533");
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    for set in ["CapPrm", "CapEff", "CapAmb", "SigBlk"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    let env = stage.written("env");
    let lines: Vec<&str> = env.lines().collect();
    assert!(lines.contains(&"USER=nobody") && lines.contains(&"LOGNAME=nobody"), "{env}");
    assert!(lines.contains(&"HOME=/nonexistent") && lines.contains(&"BOTTLE_OF_TEST=sh-1"), "{env}");
    assert!(!env.contains("SUDO_"), "{env}");
}

#[test]
fn root_no_descriptor_but_the_standard_ones_is_inherited() {
    let stage = Stage::new();
    let inherits = "exec 7</etc/passwd 9<>/dev/null; exec \"$0\" \"$@\"";
    let run = stage.command(&["--user", "nobody", "--", "sh", "-c", "ls /proc/$$/fd"]);
    let output = Command::new("bash")
        .args(["-c", inherits])
        .arg(run.get_program())
        .args(run.get_args())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let fds = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for fd in ["0", "1", "2"] {
        assert!(fds.lines().any(|line| line == fd), "{fds}");
    }
    assert!(!fds.lines().any(|line| ["7", "9"].contains(&line)), "{fds}");
}

#[test]
fn root_the_command_s_end_is_ours() {
    let stage = Stage::new();
    for (script, code) in
        [("exit 0", 0), ("exit 7", 7), ("exit 125", 125), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
    {
        let output = stage.run(&["--user", "nobody", "--", "sh", "-c", script]);
        assert_eq!(output.status.code(), Some(code), "{script}: {}", text(&output.stderr));
    }
    assert!(stage.fake.names().is_empty());
}

#[test]
fn root_what_cannot_be_started_is_told_with_125_and_leaves_no_bottle() {
    let stage = Stage::new();
    for (arguments, words) in [
        (&["--user", "nobody", "--", "/no/such/agent"][..], "/no/such/agent could not be started"),
        (&["--user", "nobody", "--", "/etc/passwd"], "could not be started"),
        (&["--user", "nobody", "--workdir", "/no/such", "--", "true"], "the working directory /no/such"),
        (
            &["--user", "nobody", "--workdir", "/etc/passwd", "--", "true"],
            "the working directory /etc/passwd",
        ),
    ] {
        let output = stage.run(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
    assert!(stage.fake.names().is_empty());
    let output = stage.run(&["--user", "no-such-user", "--", "true"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
fn root_what_is_asked_reaches_the_daemon() {
    let stage = Stage::new();
    let arguments =
        ["--user", "nobody", "--budget", "claude=200k", "--agent", "a1", "--parent", "p1", "--no-env"];
    let output = stage.run(&[&arguments[..], &["--", "sh", "-c", "test -z \"$BOTTLE_OF_TEST\""]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let asked = stage.fake.asked.lock().unwrap();
    assert_eq!(asked[0].budget, BTreeMap::from([("claude".to_owned(), 200_000)]));
    assert_eq!((asked[0].agent.as_deref(), asked[0].parent.as_deref()), (Some("a1"), Some("p1")));
    assert_eq!(asked[0].name, "sh-1");
}

#[test]
fn root_a_name_that_is_taken_is_refused_or_passed_over() {
    let stage = Stage::new();
    fs::create_dir(stage.fake.root.join("true-1")).unwrap();
    let output = stage.run(&["--user", "nobody", "--name", "true-1", "--", "true"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(stage.run(&["--user", "nobody", "--", "true"]).status.success());
    assert_eq!(stage.fake.asked.lock().unwrap()[0].name, "true-2");
}

#[test]
fn root_signals_from_processes_are_passed_on() {
    let stage = Stage::new();
    let script = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let child = stage.started(&["--user", "nobody", "--", "sh", "-c", script]);
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "got it\n");
}

/// Starts a run in a session of its own on a new terminal, types Ctrl-C once it is ready; its exit code.
fn ctrl_c(stage: &Stage, command: &[&str]) -> Option<i32> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal =
        fs::File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name).unwrap();
    let mut run = stage.command(&[&["--user", "nobody", "--"], command].concat());
    run.stdin(terminal);
    // SAFETY: signal(2), setsid(2) and ioctl(2) alone: no allocation, no lock.
    unsafe {
        run.pre_exec(|| {
            // where tests run in the background of a shell Ctrl-C is ignored, and would be by all that they start
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            rustix::process::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
        });
    }
    let mut child = run.spawn().unwrap();
    while !stage.out().join("ready").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was ready");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::remove_file(stage.out().join("ready")).unwrap();
    let mut keyboard = fs::File::from(master);
    std::io::Write::write_all(&mut keyboard, b"\x03").unwrap();
    child.wait().unwrap().code()
}

#[test]
fn root_ctrl_c_comes_from_the_terminal_alone() {
    let stage = Stage::new();
    // the first ends when it hears; the second must hear nothing until it ends by itself
    let script = |rounds: u32| {
        format!("trap 'exit 9' INT; echo > ready; for i in $(seq {rounds}); do sleep 0.05; done")
    };
    assert_eq!(ctrl_c(&stage, &["sh", "-c", &script(400)]), Some(9), "the terminal tells the command");
    // out of the terminal's process group it would hear of it from us alone
    assert_eq!(ctrl_c(&stage, &["setsid", "sh", "-c", &script(20)]), Some(0), "we do not tell it again");
}

#[test]
fn root_what_the_command_leaves_behind_stays_guarded() {
    let stage = Stage::new();
    let script = "setsid sleep 60 >/dev/null 2>&1 & echo started";
    let output = stage.run(&["--user", "nobody", "--name", "b1", "--", "sh", "-c", script]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("1 process still runs in bottle b1; it stays attached"), "{stderr}");
    assert_eq!(stage.fake.names(), ["b1"]);
}

#[test]
fn root_as_root_is_said() {
    let stage = Stage::new();
    let output =
        stage.command(&["--", "true"]).env_remove("SUDO_UID").env_remove("SUDO_USER").output().unwrap();
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("runs as root"), "{}", text(&output.stderr));
}

#[test]
fn root_without_root_it_is_refused_before_anything_is_made() {
    let stage = Stage::new();
    let binary = program::copy_into(stage.home.path());
    let socket = stage.home.path().join("run/control.sock").display().to_string();
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--groups", &CONTROL_GROUP.to_string()])
        .arg(binary)
        .args(["--socket", &socket, "run", "--", "true"])
        .output()
        .unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("run needs root"), "{stderr}");
    assert!(stage.fake.names().is_empty());
}

#[test]
fn root_a_daemon_that_cannot_start_is_told_in_its_own_words() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let home = TempDir::new().unwrap();
    let state = home.path().join("state");
    let settings = home.path().join("none.yml");
    let output = Command::new(env!("CARGO_BIN_EXE_enforcer"))
        .arg("--state-dir")
        .arg(&state)
        .arg("--settings")
        .arg(&settings)
        .args(["run", "--user", "nobody", "--", "true"])
        .output()
        .unwrap();
    let stderr = text(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(stderr.contains("enforcer: the daemon did not start: "), "{stderr}");
    assert!(Path::exists(&state.join("daemon.log")), "{stderr}");
}
