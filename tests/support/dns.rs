//! A small DNS server on loopback: answers A and AAAA from a table that a test changes, all with one time to live.
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
const HEADER_BYTES: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;
const IN: u16 = 1;
const NXDOMAIN: u8 = 3;

#[derive(Default)]
struct Shared {
    names: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    asked: Mutex<Vec<String>>,
    ending: AtomicBool,
}

/// A running server; ends when dropped.
pub struct Dns {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Serves at `ip`, port 53, in the network of the calling thread; `ttl_s` is the time to live of every answer.
    #[must_use]
    pub fn start(ip: &str, ttl_s: u32) -> Self {
        let socket = UdpSocket::bind(format!("{ip}:53")).expect("port 53 of a test's own network");
        socket.set_read_timeout(Some(LOOK)).expect("a socket takes a timeout");
        let shared = Arc::new(Shared::default());
        let served = shared.clone();
        let thread = std::thread::spawn(move || serve(&socket, &served, ttl_s));
        Self { shared, thread: Some(thread) }
    }

    /// Makes these the addresses of a name; none: the name exists and has none.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.shared.names.lock().unwrap().insert(name.to_owned(), addresses.to_vec());
    }

    /// The names that were asked for so far, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(socket: &UdpSocket, shared: &Shared, ttl_s: u32) {
    let mut question = [0; 512];
    while !shared.ending.load(Ordering::Acquire) {
        match socket.recv_from(&mut question) {
            Ok((length, from)) => {
                if let Some(answer) = answer(&question[..length], shared, ttl_s) {
                    drop(socket.send_to(&answer, from));
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("the DNS server: {error}"),
        }
    }
}

/// The answer to a message with one question, RFC 1035, 4.1.
fn answer(question: &[u8], shared: &Shared, ttl_s: u32) -> Option<Vec<u8>> {
    let (name, after) = name(question, HEADER_BYTES)?;
    let kind = u16::from_be_bytes([*question.get(after)?, *question.get(after + 1)?]);
    shared.asked.lock().unwrap().push(name.clone());
    let names = shared.names.lock().unwrap();
    let found = names.get(&name);
    let wanted = |ip: &&IpAddr| (kind == A && ip.is_ipv4()) || (kind == AAAA && ip.is_ipv6());
    let addresses: Vec<&IpAddr> = found.into_iter().flatten().filter(wanted).collect();
    let code = if found.is_some() { 0 } else { NXDOMAIN };
    let count = u8::try_from(addresses.len()).ok()?;
    let mut message = question.get(..2)?.to_vec();
    message.extend([0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    message.extend(question.get(HEADER_BYTES..after + 4)?);
    for ip in addresses {
        // the name is the one at the question
        message.extend([0xc0, 12]);
        message.extend(kind.to_be_bytes());
        message.extend(IN.to_be_bytes());
        message.extend(ttl_s.to_be_bytes());
        match ip {
            IpAddr::V4(ip) => message.extend([&[0, 4][..], &ip.octets()].concat()),
            IpAddr::V6(ip) => message.extend([&[0, 16][..], &ip.octets()].concat()),
        }
    }
    Some(message)
}

/// The name that begins at `at`, in lower case, and what comes after it.
fn name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = message.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
}
