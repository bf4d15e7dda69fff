//! A name server that the test plays, in a network of the test's own where it is the only one.
//!
//! Nothing can leave the machine from there: the network has nothing but `lo`.
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Length of a message's head, RFC 1035, 4.1.1.
const HEAD: usize = 12;
/// Types of a question for addresses, RFC 1035, 3.2.2, and RFC 3596, 2.1.
const A: u16 = 1;
const AAAA: u16 = 28;
/// The server could not find out, RFC 1035, 4.1.1.
const SERVER_FAILURE: u8 = 2;

/// Runs a test where every name is resolved by `answer`: the addresses of a name, each time that it is asked for
/// IPv4 or for IPv6; `None`: the server fails.
pub fn resolving(
    answer: impl Fn(&str) -> Option<Vec<IpAddr>> + Send + Sync + 'static,
    test: impl FnOnce() + Send,
) {
    let outcome = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            enter_own_network();
            serve_names(Arc::new(answer));
            test();
        });
        inside.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// This thread, and what it starts, lives in a network with nothing but `lo`, and asks the server there.
fn enter_own_network() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("run as root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
    std::os::unix::fs::chown(file.path(), Some(0), Some(0)).unwrap();
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    mount(Some(file.path()), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).unwrap();
}

fn serve_names(answer: Arc<impl Fn(&str) -> Option<Vec<IpAddr>> + Send + Sync + 'static>) {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, asker)) = socket.recv_from(&mut question) {
            let reply = reply(&question[..length], |name| answer(name));
            // Who asked may be gone by now.
            drop(socket.send_to(&reply, asker));
        }
    });
}

/// The answer to one question.
fn reply(question: &[u8], answer: impl Fn(&str) -> Option<Vec<IpAddr>>) -> Vec<u8> {
    let (name, end) = name_in(question);
    let kind = u16::from_be_bytes([question[end], question[end + 1]]);
    let (code, records) = match answer(&name) {
        None => (SERVER_FAILURE, Vec::new()),
        Some(addresses) => (0, addresses.iter().filter_map(|address| record(*address, kind)).collect()),
    };
    let count = u16::try_from(records.len()).unwrap().to_be_bytes();
    let head = [question[0], question[1], 0x81, 0x80 | code, 0, 1, count[0], count[1], 0, 0, 0, 0];
    [&head[..], &question[HEAD..end + 4], &records.concat()].concat()
}

/// The name that is asked for, and where it ends.
fn name_in(question: &[u8]) -> (String, usize) {
    let (mut labels, mut at) = (Vec::new(), HEAD);
    while question[at] > 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8(question[at + 1..end].to_vec()).unwrap());
        at = end;
    }
    (labels.join("."), at + 1)
}

/// An address of the name asked for, if it is of the kind asked for; not to be kept.
fn record(address: IpAddr, kind: u16) -> Option<Vec<u8>> {
    let bytes = match address {
        IpAddr::V4(address) if kind == A => address.octets().to_vec(),
        IpAddr::V6(address) if kind == AAAA => address.octets().to_vec(),
        _ => return None,
    };
    let [high, low] = kind.to_be_bytes();
    let length = u8::try_from(bytes.len()).unwrap();
    Some([&[0xc0, 12, high, low, 0, 1, 0, 0, 0, 0, 0, length][..], &bytes].concat())
}
