//! A cut depends on no proxy: a meter that forwards whatever it is told not to, as root, reaches no cut bottle, and
//! nothing of the bottle reaches it.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::inmate::Inmate;
use support::process;

const SOON: Duration = Duration::from_secs(10);
/// By then what passed before the cut has arrived, on a busy host too.
const SETTLED: Duration = Duration::from_millis(200);
const WATCHED: Duration = Duration::from_millis(500);

/// Whoever the hostile meter serves: it talks to the bottle all the time, and counts what it hears.
struct FarEnd {
    address: SocketAddr,
    heard: Arc<AtomicUsize>,
}

impl FarEnd {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(AtomicUsize::new(0));
        let counted = heard.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (mut writer, heard) = (stream.try_clone().unwrap(), counted.clone());
                std::thread::spawn(move || listen(stream, &heard));
                std::thread::spawn(move || {
                    while writer.write_all(b"into the bottle").is_ok() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }
        });
        Self { address, heard }
    }

    fn heard(&self) -> usize {
        self.heard.load(Ordering::SeqCst)
    }
}

fn listen(mut stream: TcpStream, heard: &AtomicUsize) {
    let mut buffer = [0; 4096];
    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
        heard.fetch_add(bytes, Ordering::SeqCst);
    }
}

/// Reads until there is nothing; whether there was something.
fn read_all(inmate: &mut Inmate) -> bool {
    let mut any = false;
    loop {
        let answer = inmate.order("read");
        if answer == "EAGAIN" {
            return any;
        }
        assert!(answer.starts_with("ok "), "{answer}");
        any = true;
    }
}

#[test]
fn root_a_hostile_meter_reaches_no_cut_bottle_and_hears_nothing_of_it() {
    let far = FarEnd::start();
    let programs = tempfile::tempdir().unwrap();
    process::copy_program(&process::built("enforcer"), &programs.path().join("enforcer"));
    process::copy_program(&process::built("hostile-meter"), &programs.path().join("meter-proxy"));
    fs::write(programs.path().join("upstream"), far.address.to_string()).unwrap();
    let daemon = Daemon::start_from(programs.path(), "");
    let cgroup = TestCgroup::new("prey");
    daemon.attach("prey", cgroup.path(), &[]);
    let mut inmate = Inmate::start(Some(&cgroup));
    let listen = daemon.listen_addr();
    inmate.ok(&format!("connect {listen}"));
    inmate.ok("write");
    assert!(inmate.order("read").starts_with("ok "), "it forwards, as nobody allowed it to");
    wait_until(SOON, || (far.heard() > 0).then_some(())).expect("both ways");

    daemon.ok(&["cut", "prey"]);
    std::thread::sleep(SETTLED);
    let heard = far.heard();
    // what had come before the cut; the last order waits half a second in vain
    read_all(&mut inmate);
    for _ in 0..3 {
        inmate.ok("write");
        assert!(!read_all(&mut inmate), "a byte came into the bottle");
        assert_eq!(inmate.order(&format!("connect {listen}")), "EPERM");
    }
    std::thread::sleep(WATCHED);
    assert_eq!(far.heard(), heard, "a byte left the bottle");

    daemon.ok(&["restore", "prey"]);
    // the far side's timer has backed off meanwhile
    let goes_on = wait_until(SOON, || inmate.order("read").starts_with("ok ").then_some(()));
    assert!(goes_on.is_some(), "the same connection goes on");
    wait_until(SOON, || (far.heard() > heard).then_some(())).expect("what was queued leaves now");
}
