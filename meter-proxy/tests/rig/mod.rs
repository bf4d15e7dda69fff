//! The built meter between a controller and an upstream that the tests play.
//!
//! Real sockets on loopback, the real binary as the user `nobody`; no part of the meter is linked in but the
//! protocol. Everything ends with the values that hold it, also after a panic.
#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests: a failure here is a failed test")]
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use meter_proxy::egress::EgressMode;
use meter_proxy::protocol::{
    self, BottleRef, Config, Dialect, Identity, Leaf, Provider, Refusal, Reserve, Settle, ToController,
    ToMeter,
};
use rustls_pki_types::{CertificateDer, ServerName};

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

/// A certificate authority of the test's own.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    certificate: CertificateDer<'static>,
}

/// The running meter.
pub struct Rig {
    pub address: SocketAddr,
    socket: Option<Arc<OwnedFd>>,
    shared: Arc<Shared>,
    child: Child,
}

/// A configuration with one Anthropic and one OpenAI provider, both served by `upstream`.
pub fn config(upstream: SocketAddr) -> Config {
    let provider = |name: &str, dialect, host: &str| Provider {
        name: name.into(),
        dialect,
        hosts: vec![host.into()],
        upstream: Some(format!("http://{upstream}")),
    };
    Config {
        providers: vec![
            provider("claude", Dialect::Anthropic, "api.anthropic.com"),
            provider("codex", Dialect::Openai, "api.openai.com"),
        ],
        extra_roots_pem: String::new(),
        midstream: true,
        hold_ms: 60_000,
        settle_timeout_ms: 5_000,
        allow_private: Vec::new(),
        allow: Vec::new(),
    }
}

impl Rig {
    /// Starts the meter and waits until it is ready.
    pub fn start(config: Config) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the meter is started as root, to drop it: run as root"
        );
        let (ours, theirs) = protocol::pair().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_meter-proxy"))
            .args(["--uid", NOBODY, "--gid", NOBODY])
            .env("ENFORCER_LOG", "warn")
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
        let tls = client_tls(vec![self.shared.authority.certificate.clone()]);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        rustls::StreamOwned::new(rustls::ClientConnection::new(tls, name).unwrap(), stream)
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

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap().der().clone();
        Self { issuer: rcgen::Issuer::new(parameters, key), certificate }
    }

    fn sign(&self, host: &str) -> Leaf {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        Leaf { chain: vec![certificate.der().to_vec()], key: key.serialize_der() }
    }
}

/// TLS towards a server that one of `roots` signed.
pub fn client_tls(roots: Vec<CertificateDer<'static>>) -> Arc<rustls::ClientConfig> {
    let mut store = rustls::RootCertStore::empty();
    store.add_parsable_certificates(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_root_certificates(store).with_no_client_auth())
}

/// An answer as it came over the wire.
#[derive(Debug, Clone)]
pub struct Answer {
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads one answer: its head, then its body by `Content-Length`, chunks, or the end.
    ///
    /// # Errors
    /// When the connection ends, or breaks, before the answer does.
    pub fn read(stream: &mut impl Read) -> std::io::Result<Self> {
        let mut answer = Self::read_head(stream)?;
        if let Some(length) = answer.header("content-length") {
            answer.body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut answer.body)?;
        } else if answer.header("transfer-encoding").is_some() {
            while let Some(chunk) = read_chunk(stream)? {
                answer.body.extend(chunk);
            }
        }
        Ok(answer)
    }

    /// Reads the head alone.
    ///
    /// # Errors
    /// When the connection ends before it.
    pub fn read_head(stream: &mut impl Read) -> std::io::Result<Self> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        Ok(Self { head: String::from_utf8(head).unwrap(), body: Vec::new() })
    }

    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// The next chunk of a chunked body; `None` at its end.
///
/// # Errors
/// When the connection ends before it.
pub fn read_chunk(stream: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut size = Vec::new();
    let mut byte = [0];
    while !size.ends_with(b"\r\n") {
        stream.read_exact(&mut byte)?;
        size.push(byte[0]);
    }
    let length = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16).unwrap();
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk)?;
    chunk.truncate(length);
    Ok((length > 0).then_some(chunk))
}

/// A provider that the test plays, on loopback.
pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    heads: Mutex<Vec<String>>,
    body_bytes: AtomicUsize,
    ended: AtomicUsize,
}

impl Upstream {
    /// Serves every request with `serve`, which gets the connection after the request was read.
    pub fn start(serve: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let (serve, kept) = (Arc::new(serve), Arc::clone(&seen));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, serve, seen) = (stream.unwrap(), Arc::clone(&serve), Arc::clone(&seen));
                std::thread::spawn(move || {
                    while take_request(&mut stream, &seen).and_then(|()| serve(&mut stream)).is_ok() {}
                    seen.ended.fetch_add(1, Ordering::SeqCst);
                    // The other side may have closed it already.
                    drop(stream.shutdown(Shutdown::Both));
                });
            }
        });
        Self { address, seen: kept }
    }

    /// Serves every request with these bytes.
    pub fn saying(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |stream| stream.write_all(&answer))
    }

    /// Heads of the requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().unwrap().clone()
    }

    pub fn body_bytes(&self) -> usize {
        self.seen.body_bytes.load(Ordering::SeqCst)
    }

    /// Waits until a connection has ended; how long that took.
    pub fn ended(&self) -> Duration {
        let since = Instant::now();
        while self.seen.ended.load(Ordering::SeqCst) == 0 {
            assert!(since.elapsed() < SOON, "the connection to upstream should have been closed");
            std::thread::sleep(Duration::from_millis(1));
        }
        since.elapsed()
    }
}

/// A listening socket whose queue is full: who connects to it waits.
pub struct Deaf {
    pub address: SocketAddr,
    _held: (OwnedFd, Vec<TcpStream>),
}

impl Deaf {
    pub fn listen() -> Self {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        listen(&socket, 0).unwrap();
        let address = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
        let mut queue = Vec::new();
        while let Ok(queued) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queue.push(queued);
        }
        Self { address, _held: (socket, queue) }
    }
}

fn take_request(stream: &mut TcpStream, seen: &Seen) -> std::io::Result<()> {
    let head = Answer::read_head(stream)?;
    seen.heads.lock().unwrap().push(head.head.clone());
    let mut left = head.header("content-length").map_or(0, |length| length.parse::<usize>().unwrap());
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let most = left.min(buffer.len());
        let read = stream.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        seen.body_bytes.fetch_add(read, Ordering::SeqCst);
        left -= read;
    }
    Ok(())
}

/// Waits until the other side closes.
///
/// # Errors
/// Always: the connection is over.
pub fn until_closed(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    while stream.read(&mut [0; 64])? > 0 {}
    Err(std::io::ErrorKind::UnexpectedEof.into())
}

/// A JSON answer with a length.
pub fn json_answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// One chunk.
pub fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// A request to a gateway path.
pub fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: meter\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}
