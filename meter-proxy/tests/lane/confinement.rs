//! The filter itself: what it forbids ends the process that tries.
//!
//! Each try is made by a process of its own: this very test program, told by a variable what to do.
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

const WHAT: &str = "LANE_TEST_TRIES";

/// What a confined process may not do, and does; the sockets were made before.
const FORBIDDEN: [&str; 12] = [
    "socket",
    "socketpair",
    "connect",
    "bind",
    "listen",
    "thread",
    "exec",
    "read a file",
    "write a file",
    "list files",
    "kill",
    "unconfine",
];

/// The signal of a forbidden call, signal(7).
const SIGSYS: i32 = 31;

fn tried(what: &str) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "confinement::what_a_confined_process_tries", "--ignored", "--nocapture"]);
    child.env(WHAT, what).output().unwrap().status
}

#[test]
fn what_reaches_out_is_deadly() {
    for what in FORBIDDEN {
        assert_eq!(tried(what).signal(), Some(SIGSYS), "{what}");
    }
}

#[test]
fn what_answers_is_allowed() {
    for what in ["nothing", "accept and answer", "answer a datagram", "allocate"] {
        assert_eq!(tried(what).code(), Some(0), "{what}");
    }
}

#[test]
#[ignore = "the process of the tests beside it, which start it"]
fn what_a_confined_process_tries() {
    let Ok(what) = std::env::var(WHAT) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _client = TcpStream::connect(address).unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let unbound =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    meter_proxy::lane::seccomp::confine().unwrap();
    // Results do not matter here: whoever comes back from a forbidden call ends as if all were well.
    match what.as_str() {
        "socket" => drop(UdpSocket::bind("127.0.0.1:0")),
        "socketpair" => drop(std::os::unix::net::UnixStream::pair()),
        "connect" => drop(rustix::net::connect(&unbound, &address)),
        "bind" => drop(rustix::net::bind(&unbound, &address)),
        "listen" => drop(rustix::net::listen(&unbound, 1)),
        "thread" => drop(std::thread::Builder::new().spawn(|| ())),
        "exec" => drop(Command::new("/bin/true").status()),
        "read a file" => drop(std::fs::read("/etc/hostname")),
        "write a file" => drop(std::fs::write("/dev/null", "x")),
        "list files" => drop(std::fs::read_dir("/")),
        "kill" => drop(rustix::process::test_kill_process(rustix::process::getpid())),
        "unconfine" => drop(meter_proxy::lane::seccomp::confine()),
        "accept and answer" => {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            std::io::Write::write_all(&mut stream, b"no").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        "answer a datagram" => {
            let own = datagrams.local_addr().unwrap();
            datagrams.send_to(b"x", own).unwrap();
            datagrams.recv_from(&mut [0; 8]).unwrap();
        }
        "allocate" => {
            let mut grown = Vec::new();
            for size in (0..24).map(|power| 1usize << power) {
                grown.push(vec![1u8; size]);
            }
            assert_eq!(grown.iter().map(Vec::len).sum::<usize>(), (1 << 24) - 1);
        }
        _ => {}
    }
    std::process::exit(0);
}
