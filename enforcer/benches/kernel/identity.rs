//! What it costs to know whose a connection is: the meter's question to a real controller, over their socket, and
//! its answer.
//!
//! The controller is the built daemon, with its own state directory. The meter is this program once more, which
//! asks and does nothing else, and tells every connection how long its question took.
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use enforcer::bottle::cgroup::Cgroup;
use enforcer_ebpf::LISTENER_HOST;
use meter_proxy::protocol::{self, ToController, ToMeter};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::figures::{nanoseconds, report};
use crate::inside::{Inside, shared};
use crate::{Bench, network};

/// Connections, each of which is asked about once.
const QUESTIONS: usize = 5_000;
/// The daemon starts its meter with this; nobody else starts this program so.
pub const METER_ARGUMENT: &str = "--uid";
/// How long the daemon may take to start.
const START: Duration = Duration::from_secs(20);

/// A bottle of a real daemon connects to a public address, again and again.
pub fn identity(bench: &Bench) {
    let cgroup = bench.cgroup.join("asked");
    drop(Cgroup::create(&cgroup).unwrap());
    let daemon = Daemon::start();
    daemon.run(&["attach", "asked", "--cgroup", cgroup.to_str().unwrap()]);
    let times = shared::<[AtomicU64; QUESTIONS]>();
    let client = Inside::start(Some(&cgroup), || {
        for time in times {
            let mut took = [0; 8];
            let mut stream = TcpStream::connect((network::PUBLIC4, 443)).unwrap();
            stream.read_exact(&mut took).unwrap();
            time.store(u64::from_ne_bytes(took), Ordering::SeqCst);
        }
    });
    client.finish();
    let rounds = times.iter().map(|time| time.load(Ordering::SeqCst)).collect();
    report("whose is it: the meter's question to the controller, and the answer", rounds);
    daemon.run(&["detach", "asked"]);
}

/// A daemon with a state directory of its own. When dropped it is stopped, and what it pinned and published removed.
struct Daemon {
    directory: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::write(state.join("settings.yml"), "listen: \"127.0.0.1:0\"\n").unwrap();
        // it looks for the meter beside itself
        std::fs::copy(env!("CARGO_BIN_EXE_enforcer"), directory.path().join("enforcer")).unwrap();
        std::fs::copy(std::env::current_exe().unwrap(), directory.path().join("meter-proxy")).unwrap();
        let child = command(directory.path(), &["daemon"]).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Self { directory, child };
        let end = Instant::now() + START;
        while !daemon.serves() {
            assert!(Instant::now() < end, "the daemon does not serve");
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    fn serves(&self) -> bool {
        let output = command(self.directory.path(), &["status", "--json"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("serving")
    }

    /// Runs a command of the daemon that must succeed; returns what it prints.
    fn run(&self, arguments: &[&str]) -> String {
        let output = command(self.directory.path(), arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let published = PathBuf::from(self.run(&["ca", "path"]).trim_end());
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
        self.run(&["daemon", "--unpin-all"]);
        std::fs::remove_dir_all(published.parent().unwrap()).unwrap();
    }
}

fn command(directory: &Path, arguments: &[&str]) -> Command {
    let program: PathBuf = directory.join("enforcer");
    let mut command = Command::new(program);
    command.arg("--state-dir").arg(directory.join("state")).args(arguments);
    command
}

/// The meter's part, when the daemon has started this program in its place: its socket is the standard input.
pub fn ask() {
    let socket = rustix::stdio::stdin();
    let mut buffer = Vec::new();
    let listener = loop {
        let (_, mut descriptors) = protocol::receive::<ToMeter>(socket, &mut buffer).unwrap().unwrap();
        if !descriptors.is_empty() {
            // the host's own is the first
            break TcpListener::from(descriptors.remove(0));
        }
    };
    let ready = ToController::Ready { pid: std::process::id() };
    protocol::send(socket, &ready, &[]).unwrap();
    for question in 0.. {
        let (mut stream, peer) = listener.accept().unwrap();
        let local = stream.local_addr().unwrap();
        let asked = ToController::Identify { question, peer, local, listener: LISTENER_HOST };
        let took = nanoseconds(|| {
            protocol::send(socket, &asked, &[]).unwrap();
            answer(&mut buffer, question);
        });
        stream.write_all(&took.to_ne_bytes()).unwrap();
    }
}

/// Waits for the answer to a question.
fn answer(buffer: &mut Vec<u8>, asked: u64) {
    loop {
        // the controller has hung up: so the meter ends
        let Some((message, _)) = protocol::receive::<ToMeter>(rustix::stdio::stdin(), buffer).unwrap() else {
            std::process::exit(0);
        };
        if let ToMeter::Identified { question, identity } = message
            && question == asked
        {
            assert!(identity.is_some(), "a connection of nobody");
            return;
        }
    }
}
