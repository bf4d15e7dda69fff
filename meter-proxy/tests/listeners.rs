//! The built meter and its listening sockets: as many as it is handed, and those that come and go while it runs.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping")]
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use meter_proxy::egress::EgressMode;
use meter_proxy::protocol::{
    self, BottleRef, Config, Identity, MAX_DESCRIPTORS, OWN_LISTENER, ToController, ToMeter,
};

const NOBODY: &str = "65534";
const SOON: Duration = Duration::from_secs(10);

/// A meter and a controller that knows everybody as one bottle.
struct Rig {
    child: Child,
    socket: Arc<OwnedFd>,
    /// Listener and client's end of each question.
    identified: Receiver<(u32, SocketAddr)>,
}

impl Rig {
    /// Starts the meter with these sockets and, if it is not 0, this limit of open descriptors.
    fn start(sockets: &[(u32, TcpListener)], descriptors: u32) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the meter is started as root, to drop it: run as root"
        );
        let (ours, theirs) = protocol::pair().unwrap();
        let limit = if descriptors == 0 { String::new() } else { format!("ulimit -n {descriptors}; ") };
        let child = Command::new("sh")
            .args([
                "-c",
                &format!("{limit}exec \"$0\" --uid {NOBODY} --gid {NOBODY}"),
                env!("CARGO_BIN_EXE_meter-proxy"),
            ])
            .env("ENFORCER_LOG", "warn")
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        for batch in sockets.chunks(MAX_DESCRIPTORS) {
            let ids = batch.iter().map(|(id, _)| *id).collect();
            let fds: Vec<BorrowedFd<'_>> = batch.iter().map(|(_, socket)| socket.as_fd()).collect();
            protocol::send(ours.as_fd(), &ToMeter::Listeners { ids }, &fds).unwrap();
        }
        protocol::send(ours.as_fd(), &ToMeter::Config(config()), &[]).unwrap();
        let socket = Arc::new(ours);
        let (found, identified) = channel();
        let (ready, is_ready) = channel();
        let played = socket.clone();
        std::thread::spawn(move || play(&played, &found, &ready));
        is_ready.recv_timeout(SOON).expect("the meter serves");
        Self { child, socket, identified }
    }

    fn send(&self, message: &ToMeter, sockets: &[&TcpListener]) {
        let fds: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
        protocol::send(self.socket.as_fd(), message, &fds).unwrap();
    }

    /// Through which listener this client came.
    fn listener_of(&self, client: &TcpStream) -> u32 {
        let (listener, peer) = self.identified.recv_timeout(SOON).expect("the meter asks whose it is");
        assert_eq!(peer, client.local_addr().unwrap());
        listener
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // it may be gone already
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn play(socket: &OwnedFd, found: &mpsc::Sender<(u32, SocketAddr)>, ready: &mpsc::Sender<()>) {
    let mut buffer = Vec::new();
    while let Ok(Some((message, _))) = protocol::receive::<ToController>(socket.as_fd(), &mut buffer) {
        match message {
            ToController::Ready { .. } => ready.send(()).unwrap(),
            ToController::Identify { question, peer, listener, .. } => {
                let bottle = BottleRef { slot: 1, generation: 1 };
                let identity =
                    Some(Identity { bottle, name: "b".into(), original: None, egress: EgressMode::Open });
                let answer = ToMeter::Identified { question, identity };
                // the meter may be gone by now, and so may the test
                drop(protocol::send(socket.as_fd(), &answer, &[]));
                if found.send((listener, peer)).is_err() {
                    return;
                }
            }
            _ => {}
        }
    }
}

fn config() -> Config {
    Config {
        providers: Vec::new(),
        extra_roots_pem: String::new(),
        midstream: true,
        hold_ms: 1_000,
        settle_timeout_ms: 1_000,
        allow_private: Vec::new(),
        allow: Vec::new(),
    }
}

fn socket() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn client_of(socket: &TcpListener) -> TcpStream {
    let client = TcpStream::connect(socket.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client
}

/// Asks for what there is not; the connection stays.
fn assert_answered(mut client: &TcpStream) {
    client.write_all(b"GET /nobody HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let mut bytes = [0; 4_096];
        let read = client.read(&mut bytes).unwrap();
        assert!(read > 0, "it ended: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&bytes[..read]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn root_more_sockets_than_one_message_takes_are_each_known_by_their_id() {
    let sockets: Vec<_> = (0..20).map(|number| (OWN_LISTENER + number / 2, socket())).collect();
    let rig = Rig::start(&sockets, 0);
    for (id, socket) in &sockets {
        assert_eq!(rig.listener_of(&client_of(socket)), *id);
    }
}

#[test]
fn root_a_socket_that_comes_later_is_served_and_one_that_goes_is_closed() {
    let rig = Rig::start(&[(OWN_LISTENER, socket())], 0);
    let later = [socket(), socket()];
    let early = client_of(&later[0]);
    rig.send(&ToMeter::Listen { id: 7 }, &[&later[0], &later[1]]);
    assert_eq!(rig.listener_of(&early), 7, "who came before the meter was told has waited");
    let second = client_of(&later[1]);
    assert_eq!(rig.listener_of(&second), 7);
    assert_answered(&early);

    let address = later[0].local_addr().unwrap();
    drop(later);
    assert_eq!(rig.listener_of(&TcpStream::connect(address).unwrap()), 7, "the meter's copy is open");
    rig.send(&ToMeter::Unlisten { id: 99 }, &[]);
    rig.send(&ToMeter::Unlisten { id: 7 }, &[]);
    let until = std::time::Instant::now() + SOON;
    while !TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
        assert!(std::time::Instant::now() < until, "it is still open");
    }
    assert_answered(&early);
}

#[test]
fn root_idle_sockets_hold_no_place_of_connections() {
    // with 300 descriptors there are fewer places than these
    let sockets: Vec<_> = (0..70).map(|number| (OWN_LISTENER + number, socket())).collect();
    let rig = Rig::start(&sockets, 300);
    for (id, socket) in &sockets {
        let client = client_of(socket);
        assert_eq!(rig.listener_of(&client), *id);
        assert_answered(&client);
    }
}
