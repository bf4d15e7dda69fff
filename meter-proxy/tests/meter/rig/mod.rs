//! The built meter between a controller and an upstream that the tests play.
//!
//! Real sockets on loopback, the real binary as the user `nobody`; no part of the meter is linked in but the
//! protocol. Everything ends with the values that hold it, also after a panic.
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]
mod config;
pub mod frames;
pub mod http2;
mod programs;
mod resolver;
mod tls;
mod upstream;
mod wire;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub use config::{config, far, localhost_is_metered, loopback_is_open, nowhere};
use meter_proxy::egress::EgressMode;
use meter_proxy::protocol::{
    self, BottleRef, Config, Identity, Refusal, Reserve, Settle, ToController, ToMeter,
};
pub use programs::curl;
pub use resolver::resolving;
use rustls_pki_types::{CertificateDer, ServerName};
use tls::Authority;
pub use tls::{careless_tls, client_tls, client_tls_of, greasing_tls, hidden_behind};
pub use upstream::{Deaf, Upstream, next_at, nobody_comes};
pub use wire::{ACCESS_DENIED, Answer, chunk, json_answer, post, read_chunk, rest_of, until_closed};

/// The bottle that every connection belongs to, unless told otherwise.
pub const BOTTLE: BottleRef = BottleRef { slot: 7, generation: 3 };

/// Another one.
pub const OTHER: BottleRef = BottleRef { slot: 8, generation: 1 };

/// Longest wait for anything that must come.
pub const SOON: Duration = Duration::from_secs(10);

const NOBODY: &str = "65534";

/// How the played controller answers.
pub struct Manner {
    pub attached: bool,
    /// Whose the connections are that come from now on.
    pub bottle: BottleRef,
    /// Where every client meant to connect, when it was redirected.
    pub original: Option<SocketAddr>,
    /// What every bottle may reach.
    pub egress: EgressMode,
    pub refusal: Option<Refusal>,
    pub permits: bool,
    pub settles: bool,
}

struct Shared {
    heard: Mutex<Vec<ToController>>,
    more: Condvar,
    manner: Mutex<Manner>,
    authority: Authority,
}

/// The running meter.
pub struct Rig {
    pub address: SocketAddr,
    socket: Option<Arc<OwnedFd>>,
    shared: Arc<Shared>,
    child: Child,
}

impl Rig {
    /// Starts the meter and waits until it is ready.
    pub fn start(config: Config) -> Self {
        Self::start_by(&["env", "ENFORCER_LOG=warn"], config)
    }

    /// The same by a program that becomes the meter: its arguments, the meter's own following them.
    pub fn start_by(launcher: &[&str], config: Config) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the meter is started as root, to drop it: run as root"
        );
        let (ours, theirs) = protocol::pair().unwrap();
        let child = Command::new(launcher[0])
            .args(&launcher[1..])
            .arg(env!("CARGO_BIN_EXE_meter-proxy"))
            .args(["--uid", NOBODY, "--gid", NOBODY])
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            heard: Mutex::default(),
            more: Condvar::new(),
            manner: Mutex::new(Manner {
                attached: true,
                bottle: BOTTLE,
                original: None,
                egress: EgressMode::Open,
                refusal: None,
                permits: true,
                settles: true,
            }),
            authority: Authority::new(),
        });
        let socket = Arc::new(ours);
        protocol::send(socket.as_fd(), &ToMeter::Listeners { ids: vec![1] }, &[listener.as_fd()]).unwrap();
        protocol::send(socket.as_fd(), &ToMeter::Config(config), &[]).unwrap();
        let rig = Self { address, socket: Some(Arc::clone(&socket)), shared: Arc::clone(&shared), child };
        std::thread::spawn(move || play(&socket, &shared));
        rig.heard(|message| matches!(message, ToController::Ready { .. }));
        rig
    }

    pub fn send(&self, message: &ToMeter) {
        protocol::send(self.socket.as_ref().unwrap().as_fd(), message, &[]).unwrap();
    }

    /// Returns when the meter has taken in everything sent so far, and its settlements so far are heard: the
    /// question that this takes comes after them, and answers come in the order of the socket.
    pub fn taken_in(&self) {
        let original = self.shared.manner.lock().unwrap().original.take();
        assert_eq!(self.ask("GET /nobody HTTP/1.1\r\nHost: m\r\n\r\n").status(), 404);
        self.manner(|manner| manner.original = original);
    }

    pub fn manner(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.shared.manner.lock().unwrap());
    }

    /// Waits for a message that the meter sent, now or before.
    pub fn heard(&self, wanted: impl Fn(&ToController) -> bool) -> ToController {
        self.heard_within(SOON, wanted).expect("the meter should have said so")
    }

    pub fn heard_within(
        &self,
        wait: Duration,
        wanted: impl Fn(&ToController) -> bool,
    ) -> Option<ToController> {
        let until = Instant::now() + wait;
        let mut heard = self.shared.heard.lock().unwrap();
        loop {
            if let Some(message) = heard.iter().find(|message| wanted(message)) {
                return Some(message.clone());
            }
            let left = until.checked_duration_since(Instant::now())?;
            heard = self.shared.more.wait_timeout(heard, left).unwrap().0;
        }
    }

    pub fn count(&self, wanted: impl Fn(&ToController) -> bool) -> usize {
        self.shared.heard.lock().unwrap().iter().filter(|message| wanted(message)).count()
    }

    /// Waits for the only settlement, and until the meter has said all that it had to say by then.
    pub fn settlement(&self) -> Settle {
        let ToController::Settle(settle) = self.heard(|message| matches!(message, ToController::Settle(_)))
        else {
            unreachable!()
        };
        self.taken_in();
        assert_eq!(self.count(|message| matches!(message, ToController::Settle(_))), 1);
        settle
    }

    /// Waits for a reservation.
    pub fn reservation(&self) -> Reserve {
        match self.heard(|message| matches!(message, ToController::Reserve(_))) {
            ToController::Reserve(reserve) => reserve,
            _ => unreachable!(),
        }
    }

    /// Waits until so many exchanges are settled, and gives them all.
    pub fn exchanges(&self, many: usize) -> Vec<(Reserve, Settle)> {
        let until = Instant::now() + SOON;
        while self.count(|message| matches!(message, ToController::Settle(_))) < many {
            assert!(Instant::now() < until, "{many} exchanges should be settled");
            std::thread::sleep(Duration::from_millis(5));
        }
        let heard = self.shared.heard.lock().unwrap();
        let settled = heard.iter().filter_map(|message| match message {
            ToController::Settle(settle) => Some(settle.clone()),
            _ => None,
        });
        let reserve = |settle: &Settle| {
            heard.iter().find_map(|message| match message {
                ToController::Reserve(reserve) if reserve.exchange == settle.exchange => {
                    Some(reserve.clone())
                }
                _ => None,
            })
        };
        settled.map(|settle| (reserve(&settle).unwrap(), settle)).collect()
    }

    /// A connection to the meter.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// One request on a connection of its own.
    pub fn ask(&self, request: &str) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        Answer::read(&mut stream).unwrap()
    }

    /// A tunnel to `authority`, TLS inside it speaking to `name`.
    pub fn tunnel(
        &self,
        authority: &str,
        name: &str,
    ) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        let mut stream = self.connect();
        write!(stream, "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").unwrap();
        assert_eq!(Answer::read_head(&mut stream).unwrap().status(), 200);
        self.secure(stream, name)
    }

    /// TLS with the meter as `name`, trusting the played controller's authority.
    pub fn secure(
        &self,
        stream: TcpStream,
        name: &str,
    ) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        let tls = client_tls(self.roots());
        let name = ServerName::try_from(name.to_owned()).unwrap();
        rustls::StreamOwned::new(rustls::ClientConnection::new(tls, name).unwrap(), stream)
    }

    /// Whom clients trust that trust the played controller's authority.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.shared.authority.certificate.clone()]
    }

    /// The same as a file holds it.
    pub fn root_pem(&self) -> &str {
        &self.shared.authority.certificate_pem
    }

    /// A connection that the kernel redirected from `original`.
    pub fn redirected(&self, original: SocketAddr) -> TcpStream {
        self.manner(|manner| manner.original = Some(original));
        let stream = self.connect();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Closes the controller's end and waits for the meter's exit.
    pub fn leave(&mut self) -> ExitStatus {
        if let Some(socket) = self.socket.take() {
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
        }
        self.exited()
    }

    fn exited(&mut self) -> ExitStatus {
        let until = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the meter should have ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A line of the meter's `/proc/PID/status`.
    pub fn status_line(&self, key: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned()
    }

    /// The meter's `/proc/PID/stat`, from its third field on.
    pub fn stat(&self) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1.to_owned()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.socket = None;
        // It may be gone already; then there is nothing to end.
        drop(self.child.kill());
        drop(self.child.wait());
        if !std::thread::panicking() {
            self.shared.assert_each_settled_once();
        }
    }
}

impl Shared {
    fn assert_each_settled_once(&self) {
        let heard = self.heard.lock().unwrap();
        let mut settled: Vec<u64> = heard
            .iter()
            .filter_map(|message| match message {
                ToController::Settle(settle) => Some(settle.exchange),
                _ => None,
            })
            .collect();
        settled.sort_unstable();
        assert!(settled.windows(2).all(|pair| pair[0] != pair[1]), "settled twice: {settled:?}");
    }
}

/// The played controller.
fn play(socket: &OwnedFd, shared: &Shared) {
    let mut buffer = Vec::new();
    while let Ok(Some((message, _))) = protocol::receive::<ToController>(socket.as_fd(), &mut buffer) {
        let answer = answer(&message, shared);
        shared.heard.lock().unwrap().push(message);
        shared.more.notify_all();
        if let Some(answer) = answer {
            // The meter may be gone by now, which is what its test is about.
            drop(protocol::send(socket.as_fd(), &answer, &[]));
        }
    }
}

fn answer(message: &ToController, shared: &Shared) -> Option<ToMeter> {
    let manner = shared.manner.lock().unwrap();
    match message {
        ToController::Identify { question, .. } => {
            let identity = Identity {
                bottle: manner.bottle,
                name: "b1".into(),
                original: manner.original,
                egress: manner.egress,
            };
            Some(ToMeter::Identified { question: *question, identity: manner.attached.then_some(identity) })
        }
        ToController::Reserve(reserve) => match &manner.refusal {
            Some(refusal) => Some(ToMeter::Refused { exchange: reserve.exchange, refusal: refusal.clone() }),
            None => manner.permits.then_some(ToMeter::Permit { exchange: reserve.exchange }),
        },
        ToController::Settle(settle) => {
            manner.settles.then_some(ToMeter::Settled { exchange: settle.exchange })
        }
        ToController::Sign { question, host } => {
            Some(ToMeter::Signed { question: *question, leaf: Ok(shared.authority.sign(host)) })
        }
        _ => None,
    }
}

pub fn is_notice(message: &ToController, words: &str) -> bool {
    matches!(message, ToController::Notice(notice) if notice.bottle == Some(BOTTLE) && notice.detail.contains(words))
}
