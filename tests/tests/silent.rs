//! A silent cut stands by itself: whoever of the controller and the meter is stopped, killed or away, and however long
//! it lasts.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::cgroup::TestCgroup;
use support::clock::{mono_ns, wait_until};
use support::process;
use support::provider::Reply;
use support::sink::Sink;
use support::stage::Stage;

const SOON: Duration = Duration::from_secs(10);
/// By then a receiver on a busy host has read what passed the hook before the cut.
const READ_LATE: Duration = Duration::from_millis(100);
/// How long it is watched that nothing comes.
const WATCHED: Duration = Duration::from_millis(400);
const PER_SECOND: &str = "10000";

/// A sender of ten thousand a second in a cgroup, and its receiver outside; ended when dropped.
struct Stream {
    name: String,
    sender: Child,
    sink: Sink,
}

impl Stream {
    fn start(cgroup: &TestCgroup, protocol: &str, ip: IpAddr) -> Self {
        let sink = if protocol == "udp" { Sink::udp(ip) } else { Sink::tcp(ip) };
        let mut command = Command::new(process::built("sender"));
        command.args([protocol, &sink.address().to_string(), "--pps", PER_SECOND]);
        let sender = cgroup.spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        Self { name: format!("{protocol} {ip} from {}", cgroup.path().display()), sender, sink }
    }

    /// From everywhere in a bottle, by everything.
    fn every(cgroups: &[&TestCgroup]) -> Vec<Self> {
        let ips: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let each = |cgroup: &TestCgroup| {
            let of = |protocol: &'static str| ips.map(|ip| Self::start(cgroup, protocol, ip));
            [of("udp"), of("tcp")].into_iter().flatten().collect::<Vec<_>>()
        };
        cgroups.iter().flat_map(|cgroup| each(cgroup)).collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        process::kill(&mut self.sender);
    }
}

fn assert_flowing(streams: &[Stream], since: u64) {
    for stream in streams {
        let flows = wait_until(SOON, || (stream.sink.bytes_since(since) > 0).then_some(()));
        assert!(flows.is_some(), "{} does not flow", stream.name);
    }
}

fn assert_nothing_came(streams: &[Stream], since: u64, when: &str) {
    std::thread::sleep(WATCHED);
    for stream in streams {
        assert_eq!(stream.sink.bytes_since(since), 0, "{when}: {}", stream.name);
    }
}

/// Stops a process for as long as this lives.
struct Stopped(Pid);

impl Stopped {
    fn now(pid: u32) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // a test may have killed it meanwhile
        let continued = kill(self.0, Signal::SIGCONT);
        assert!(matches!(continued, Ok(()) | Err(nix::errno::Errno::ESRCH)), "{continued:?}");
    }
}

fn meter_pid(stage: &Stage) -> u32 {
    let status = stage.daemon.json(&["status"]);
    u32::try_from(status["daemon"]["meter"]["pid"].as_u64().unwrap()).unwrap()
}

#[test]
fn root_a_cut_needs_neither_controller_nor_meter_alive() {
    let mut stage = Stage::new(Reply::default(), "lease: off\n");
    let bottle = stage.bottle("alone", &[]);
    let inner = bottle.cgroup.child("inner");
    let innermost = inner.child("innermost");
    let streams = Stream::every(&[&bottle.cgroup, &innermost]);
    assert_flowing(&streams, 0);
    // the meter is stopped before the cut: the cut asks nothing of it
    let (daemon, meter) = (stage.daemon.pid(), meter_pid(&stage));
    let meter_stopped = Stopped::now(meter);
    stage.daemon.ok(&["cut", "alone"]);
    let cut = mono_ns();
    std::thread::sleep(READ_LATE);
    let since = mono_ns();
    assert_nothing_came(&streams, since, "with the meter stopped");
    {
        let _daemon_stopped = Stopped::now(daemon);
        assert_nothing_came(&streams, since, "with both stopped");
    }
    drop(meter_stopped);
    assert_nothing_came(&streams, since, "with both going on");
    let seen = stage.daemon.meter();
    seen.kill();
    assert_nothing_came(&streams, since, "with the meter killed");
    stage.daemon.kill9();
    assert_nothing_came(&streams, since, "with the controller killed");
    stage.daemon.restart();
    assert_nothing_came(&streams, since, "under a new controller");
    println!("{} senders, cut for {} ms: 0 bytes", streams.len(), (mono_ns() - cut) / 1_000_000);
    stage.daemon.ok(&["restore", "alone"]);
    let udp: Vec<Stream> = streams.into_iter().filter(|stream| stream.name.starts_with("udp")).collect();
    assert_flowing(&udp, mono_ns());
}

#[test]
fn root_a_stopped_or_dead_meter_lets_nothing_through() {
    let stage = Stage::new(Reply::default(), "");
    let bottle = stage.bottle("walled", &[]);
    assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0));
    let before = stage.provider.records().len();
    {
        let _stopped = Stopped::now(meter_pid(&stage));
        // it is accepted by the kernel, and nobody reads it
        let asking = stage.start_asking(&bottle, &["--stream"]);
        stage.daemon.ok(&["cut", "walled"]);
        let cut = stage.daemon.bottle("walled");
        assert_eq!(cut["state"], "cut", "{cut}");
        std::thread::sleep(WATCHED);
        assert_eq!(stage.provider.records().len(), before, "nothing passed a stopped meter");
        let complaint = stage.start_asking(&bottle, &["--stream"]).complaint(SOON);
        assert!(complaint.contains("Operation not permitted"), "{complaint}");
        asking.hang_up();
    }
    std::thread::sleep(WATCHED);
    assert_eq!(stage.provider.records().len(), before, "what waited in its queue is refused");
}

#[test]
fn root_a_stream_that_was_cut_for_five_seconds_goes_on_whole() {
    let stage = Stage::new(Reply::paced(300, 8, Duration::from_millis(10)), "");
    let bottle = stage.bottle("patient", &[]);
    let asking = stage.start_asking(&bottle, &["--stream"]);
    stage.provider.wait_for(|records| records.first().is_some_and(|r| r.billed.output > 200), SOON);
    stage.daemon.ok(&["cut", "patient"]);
    std::thread::sleep(Duration::from_secs(5));
    let restored = mono_ns();
    stage.daemon.ok(&["restore", "patient"]);
    // the far side's retransmission timer has backed off meanwhile
    let asked = asking.ended(Duration::from_secs(25));
    println!("the stream was whole {} ms after the restore", (mono_ns() - restored) / 1_000_000);
    assert_eq!(asked.code, Some(0), "{asked:?}");
    let record = &stage.provider.billing_records()[0];
    assert_eq!(asked.one().body_sha256, record.response_sha256, "not one byte is missing or changed");
    let flow = stage.flows("patient").pop().unwrap();
    let told = ["provenance", "status", "output"].map(|key| flow[key].clone());
    assert_eq!(json!(told), json!(["reported", "completed", 2_400]), "{flow}");
}

/// What a new controller says of a bottle that it found cut.
fn row_of_start(stage: &Stage, bottle: &str) -> Value {
    let mut rows = stage.audit(bottle, "cut").into_iter();
    rows.rfind(|row| row["by"] == "controller").unwrap_or_default()
}

#[test]
fn root_where_ledger_and_kernel_disagree_the_more_closed_wins_and_the_audit_says_so() {
    let mut stage = Stage::new(Reply::default(), "lease: off\n");
    let (told, found) = (stage.bottle("told", &[]), stage.bottle("found", &[]));
    stage.daemon.ok(&["cut", "found"]);
    stage.daemon.stop();
    // the ledger is made to say the opposite of the kernel, of both
    let ledger = rusqlite::Connection::open(stage.daemon.state_dir().join("bot-bottle.db")).unwrap();
    let swap = "UPDATE bottles SET cause_json = CASE name WHEN 'told' THEN \
                (SELECT cause_json FROM bottles WHERE name = 'found') END";
    assert_eq!(ledger.execute(swap, []).unwrap(), 2);
    drop(ledger);
    stage.daemon.restart();
    for (bottle, words) in [(&told, "the kernel let it pass"), (&found, "found cut in the kernel")] {
        let status = stage.daemon.bottle(&bottle.name);
        assert_eq!(status["state"], "cut", "{status}");
        let row = row_of_start(&stage, &bottle.name);
        assert!(row.to_string().contains(words), "{}: {row}", bottle.name);
        let stream = Stream::start(&bottle.cgroup, "udp", Ipv4Addr::LOCALHOST.into());
        assert_nothing_came(&[stream], 0, &bottle.name);
    }
}
