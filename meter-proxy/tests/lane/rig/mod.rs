//! The built lane as the user `nobody`, between a controller and clients that the tests play.
//!
//! Real sockets on loopback; no part of the lane is linked in but the protocol. Everything ends with the values that
//! hold it, also after a panic.
#[allow(dead_code, reason = "shared with the meter's tests, which use the rest")]
#[path = "../../meter/rig/frames.rs"]
pub mod frames;
#[path = "../../meter/rig/programs.rs"]
mod programs;
#[allow(dead_code, reason = "shared with the meter's tests, which use the rest")]
#[path = "../../meter/rig/tls.rs"]
mod tls;
#[allow(dead_code, reason = "shared with the meter's tests, which use the rest")]
#[path = "../../meter/rig/wire.rs"]
mod wire;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use meter_proxy::protocol::{
    self, BottleRef, Dialect, LaneAnswer, LaneConfig, LaneToController, Leaf, OWN_LISTENER, Provider,
    Refusal, ToLane,
};
pub use programs::curl;
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName};
use tls::Authority;
pub use tls::{client_tls, client_tls_of};
pub use wire::{ACCESS_DENIED, Answer, post, rest_of};

/// The bottle that every connection belongs to, unless told otherwise.
pub const BOTTLE: BottleRef = BottleRef { slot: 7, generation: 3 };

/// Another one.
pub const OTHER: BottleRef = BottleRef { slot: 8, generation: 1 };

/// Longest wait for anything that must come.
pub const SOON: Duration = Duration::from_secs(10);

const NOBODY: &str = "65534";

/// How the played controller answers.
pub struct Manner {
    /// Whose the connections are that come from now on; of none: `None`.
    pub bottle: Option<BottleRef>,
    /// What they are told.
    pub refusal: Refusal,
    /// Where they meant to connect.
    pub original: Option<SocketAddr>,
    /// Whether it answers questions.
    pub answers: bool,
    /// Whether it signs leaves.
    pub signs: bool,
}

struct Shared {
    heard: Mutex<Vec<LaneToController>>,
    more: Condvar,
    manner: Mutex<Manner>,
    authority: Authority,
}

/// The running lane.
pub struct Rig {
    pub address: SocketAddr,
    /// Where it answers DNS queries.
    pub names: SocketAddr,
    socket: Option<Arc<OwnedFd>>,
    shared: Arc<Shared>,
    child: Child,
}

/// What a bottle hears whose budget is used up.
pub fn budget() -> Refusal {
    Refusal::Budget {
        bottle: "b1".into(),
        provider: "claude".into(),
        scope: "agent".into(),
        owner: "implementer".into(),
        limit: 100_000,
        used: 100_417,
        reserved: 0,
        window: "daily".into(),
        rule: "nearest".into(),
    }
}

/// A configuration with one Anthropic and one OpenAI provider, the second with two hosts and a pattern.
pub fn config() -> LaneConfig {
    let provider = |name: &str, dialect, hosts: &[&str]| Provider {
        name: name.into(),
        dialect,
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        upstream: None,
        include_usage: true,
    };
    LaneConfig {
        providers: vec![
            provider("claude", Dialect::Anthropic, &["api.anthropic.com"]),
            provider("codex", Dialect::Openai, &["api.openai.com", "chatgpt.com", "*.openai.test"]),
        ],
    }
}

/// The lane's process, with this end of its socket.
pub fn spawn(errors: Stdio) -> (Child, OwnedFd) {
    assert!(rustix::process::geteuid().is_root(), "the lane is started as root, to drop it: run as root");
    let (ours, theirs) = protocol::pair().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_meter-proxy"))
        .args(["lane", "--uid", NOBODY, "--gid", NOBODY, "--log", "warn"])
        .env_remove("ENFORCER_LOG")
        .stdin(Stdio::from(theirs))
        .stderr(errors)
        .spawn()
        .unwrap();
    (child, ours)
}

impl Rig {
    /// Starts the lane and waits until it is ready.
    pub fn start() -> Self {
        Self::start_telling(Stdio::inherit())
    }

    /// The same, where its log goes to `errors`.
    pub fn start_telling(errors: impl Into<Stdio>) -> Self {
        let (child, ours) = spawn(errors.into());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // A longer queue: whoever finds none waits for seconds.
        rustix::net::listen(&listener, 4_096).unwrap();
        let queries = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (address, names) = (listener.local_addr().unwrap(), queries.local_addr().unwrap());
        let manner =
            Manner { bottle: Some(BOTTLE), refusal: budget(), original: None, answers: true, signs: true };
        let shared = Arc::new(Shared {
            heard: Mutex::default(),
            more: Condvar::new(),
            manner: Mutex::new(manner),
            authority: Authority::new(),
        });
        let socket = Arc::new(ours);
        let rig =
            Self { address, names, socket: Some(Arc::clone(&socket)), shared: Arc::clone(&shared), child };
        rig.send_with(&ToLane::Listen { id: OWN_LISTENER }, &[listener.as_fd(), queries.as_fd()]);
        rig.send(&ToLane::Config(config()));
        std::thread::spawn(move || play(&socket, &shared));
        rig.heard(|message| matches!(message, LaneToController::Ready { .. }));
        rig
    }

    pub fn send(&self, message: &ToLane) {
        self.send_with(message, &[]);
    }

    pub fn send_with(&self, message: &ToLane, sockets: &[BorrowedFd<'_>]) {
        protocol::send(self.socket.as_ref().unwrap().as_fd(), message, sockets).unwrap();
    }

    pub fn manner(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.shared.manner.lock().unwrap());
    }

    /// Waits for a message that the lane sent, now or before.
    pub fn heard(&self, wanted: impl Fn(&LaneToController) -> bool) -> LaneToController {
        let until = Instant::now() + SOON;
        let mut heard = self.shared.heard.lock().unwrap();
        loop {
            if let Some(message) = heard.iter().find(|message| wanted(message)) {
                return message.clone();
            }
            let left = until.checked_duration_since(Instant::now()).expect("the lane should have said so");
            heard = self.shared.more.wait_timeout(heard, left).unwrap().0;
        }
    }

    pub fn count(&self, wanted: impl Fn(&LaneToController) -> bool) -> usize {
        self.shared.heard.lock().unwrap().iter().filter(|message| wanted(message)).count()
    }

    /// Waits until the lane has asked about so many connections.
    pub fn asked(&self, times: usize) {
        let until = Instant::now() + SOON;
        while self.count(is_why) < times {
            assert!(Instant::now() < until, "the lane should have asked {times} times");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A connection to the lane.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// What comes back to these words, until the lane closes.
    pub fn said_to(&self, words: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(words.as_bytes()).unwrap();
        String::from_utf8(rest_of(&mut stream)).unwrap()
    }

    /// The whole answer to a request, after which the lane must have closed.
    pub fn ask(&self, request: &str) -> Answer {
        Answer::read(&mut self.said_to(request).as_bytes()).unwrap()
    }

    /// A stream through an accepted CONNECT.
    pub fn through(&self, authority: &str) -> TcpStream {
        let mut stream = self.connect();
        write!(stream, "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").unwrap();
        let accepted = Answer::read_head(&mut stream).unwrap();
        assert_eq!((accepted.status(), accepted.header("connection")), (200, None));
        stream
    }

    /// TLS with the lane as `name`, trusting the played controller's authority.
    pub fn secure(&self, stream: TcpStream, name: &str) -> StreamOwned<ClientConnection, TcpStream> {
        self.secure_by(client_tls(vec![self.root()]), stream, name)
    }

    pub fn secure_by(
        &self,
        tls: Arc<rustls::ClientConfig>,
        stream: TcpStream,
        name: &str,
    ) -> StreamOwned<ClientConnection, TcpStream> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        StreamOwned::new(ClientConnection::new(tls, name).unwrap(), stream)
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.shared.authority.certificate.clone()
    }

    /// The same as a file holds it.
    pub fn root_pem(&self) -> &str {
        &self.shared.authority.certificate_pem
    }

    /// A certificate that clients of the lane trust for `host`.
    pub fn leaf(&self, host: &str) -> Leaf {
        self.shared.authority.sign(host)
    }

    /// Closes the controller's end and waits for the lane's exit.
    pub fn leave(&mut self) -> ExitStatus {
        if let Some(socket) = self.socket.take() {
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
        }
        exited(&mut self.child)
    }

    /// A line of the lane's `/proc/PID/status`.
    pub fn status_line(&self, key: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// How many descriptors the lane has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let ran = self.runs();
        let left = self.socket.take().is_none();
        // It may be gone already; then there is nothing to end.
        drop(self.child.kill());
        drop(self.child.wait());
        if !std::thread::panicking() {
            assert!(ran || left, "the lane ended by itself: it made a call that it may not make, perhaps");
        }
    }
}

/// Waits for a process to end.
pub fn exited(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + SOON;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < until, "the process should have ended");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn is_why(message: &LaneToController) -> bool {
    matches!(message, LaneToController::Why { .. })
}

/// The played controller.
fn play(socket: &OwnedFd, shared: &Shared) {
    let mut buffer = Vec::new();
    while let Ok(Some((message, _))) = protocol::receive::<LaneToController>(socket.as_fd(), &mut buffer) {
        let answer = answer(&message, shared);
        shared.heard.lock().unwrap().push(message);
        shared.more.notify_all();
        if let Some(answer) = answer {
            // The lane may be gone by now, which is what its test is about.
            drop(protocol::send(socket.as_fd(), &answer, &[]));
        }
    }
}

fn answer(message: &LaneToController, shared: &Shared) -> Option<ToLane> {
    let manner = shared.manner.lock().unwrap();
    match message {
        LaneToController::Why { question, .. } if manner.answers => {
            let answer = manner.bottle.map(|bottle| LaneAnswer {
                bottle,
                name: "b1".into(),
                refusal: manner.refusal.clone(),
                original: manner.original,
            });
            Some(ToLane::Because { question: *question, answer })
        }
        LaneToController::Sign { question, host } => {
            let leaf: Result<Leaf, String> =
                manner.signs.then(|| shared.authority.sign(host)).ok_or_else(|| "no key".into());
            Some(ToLane::Signed { question: *question, leaf })
        }
        LaneToController::Why { .. } | LaneToController::Ready { .. } => None,
    }
}
