//! The silent cut, many times over: flips under load, programs replaced under load, cgroups made again at one path.
//!
//! Needs root. `ENFORCER_TEST_FULL=1` runs all the rounds.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::{Guard, Kernel as _};
use support::host::{Host, SLOT, guard, no_meter, retry};
use support::rounds;
use support::sender::{Receiver, Sender};
use support::streams::{Lane, now};

/// By then what passed the hook before the cut lies at the receiver, on a busy machine too.
const SETTLED: Duration = Duration::from_millis(10);
/// For this long nothing may come.
const WATCHED: Duration = Duration::from_millis(10);
const SOON: Duration = Duration::from_secs(10);

/// A bottle and two cgroups below it; removed when dropped.
struct Nest {
    inner: PathBuf,
    innermost: PathBuf,
}

impl Nest {
    fn below(path: &Path) -> Self {
        let inner = path.join("inner");
        let innermost = inner.join("innermost");
        for path in [&inner, &innermost] {
            drop(Cgroup::create(path).unwrap());
        }
        Self { inner, innermost }
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        for path in [&self.innermost, &self.inner] {
            let removed = retry(|| Cgroup::open(path).and_then(Cgroup::remove));
            if !std::thread::panicking() {
                removed.unwrap();
            }
        }
    }
}

/// Senders of both protocols and both families.
fn every_lane(cgroups: &[&PathBuf]) -> Vec<Lane> {
    let each = |cgroup| ["127.0.0.1", "[::1]"].map(|ip| [Lane::udp(cgroup, ip), Lane::tcp(cgroup, ip)]);
    cgroups.iter().flat_map(|cgroup| each(cgroup).into_iter().flatten()).collect()
}

fn wait_flowing(lanes: &mut [Lane], since: u64) {
    let end = Instant::now() + SOON;
    while lanes.iter().any(|lane| lane.latest <= since) {
        assert!(Instant::now() < end, "it does not flow");
        for lane in &mut *lanes {
            lane.drain();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn root_nothing_that_was_sent_after_the_store_of_a_cut_arrives() {
    let host = Host::new("flips");
    let loader = host.attached(no_meter());
    loader.open(SLOT);
    let nest = Nest::below(&host.cgroup);
    let mut lanes = every_lane(&[&host.cgroup, &nest.innermost]);
    let rounds = rounds(30, 300);
    for round in 0..rounds {
        let opened = now();
        loader.open(SLOT);
        wait_flowing(&mut lanes, opened);
        loader.cut(SLOT);
        let cut = now();
        std::thread::sleep(SETTLED);
        for lane in &mut lanes {
            lane.drain();
        }
        std::thread::sleep(WATCHED);
        for lane in &mut lanes {
            assert_eq!(lane.drain(), 0, "round {round}, {}: bytes came after the cut", lane.name);
            let late = lane.latest.saturating_sub(cut);
            assert_eq!(late, 0, "round {round}, {}: sent {late} ns after the cut, and came", lane.name);
        }
    }
    let [sent, refused, failed] =
        lanes.iter_mut().map(Lane::figures).fold([0; 3], |sum, add| [0, 1, 2].map(|at| sum[at] + add[at]));
    println!("{rounds} flips, {} senders: {sent} sends taken, {refused} refused, 0 came", lanes.len());
    assert!(sent > 0 && refused > 0 && failed == 0, "{sent} sent, {refused} refused, {failed} failed");
    drop(lanes);
}

#[test]
fn root_programs_are_replaced_under_senders_without_a_gap() {
    let host = Host::new("upgrade");
    let mut loader = host.attached(no_meter());
    loader.open(SLOT);
    let nest = Nest::below(&host.cgroup);
    let mut lanes = every_lane(&[&nest.innermost]);
    wait_flowing(&mut lanes, now());
    let rounds = rounds(300, 3_000) / 2;
    for cut in [false, true] {
        if cut {
            loader.cut(SLOT);
            std::thread::sleep(SETTLED);
        }
        let mut came = 0;
        for lane in &mut lanes {
            lane.drain();
            lane.figures();
        }
        let start = Instant::now();
        for _ in 0..rounds {
            // the one before it is still there: as when a controller is killed, nothing is put back
            loader = host.upgrade();
            assert_eq!(loader.adopted().len(), 1);
            assert_eq!(loader.is_open(SLOT), !cut);
            came += lanes.iter_mut().map(Lane::drain).sum::<usize>();
        }
        println!("{rounds} upgrades in {:?}, cut {cut}: {came} bytes came", start.elapsed());
        assert_eq!(came == 0, cut);
        for lane in &mut lanes {
            let figures @ [sent, refused, failed] = lane.figures();
            println!("{}: {sent} sends taken, {refused} refused", lane.name);
            // what is written to a connection is queued, and not refused
            let wrong = if cut && lane.is_udp() { sent } else { refused };
            assert_eq!((wrong, failed), (0, 0), "{}, cut {cut}", lane.name);
            let is_load = cut && !lane.is_udp() || figures.iter().sum::<u64>() > 10 * u64::from(rounds);
            assert!(is_load, "{}, cut {cut}: {figures:?} is no load", lane.name);
        }
    }
    drop(lanes);
}

#[test]
fn root_a_cgroup_made_again_at_the_same_path_inherits_nothing() {
    let host = Host::new("again");
    let loader = host.load();
    let path = host.cgroup.join("again");
    let receiver = Receiver::new("127.0.0.1");
    let to = receiver.0.local_addr().unwrap();
    let mut sender = Sender::start(Some(&host.cgroup));
    let mut order = |order: String| sender.order(&order);
    let (refused, passed) = ("PermissionDenied", "ok");
    for round in 1..=rounds(500, 10_000) {
        // one slot is used again at once, the other rests for a round
        let slot = 1 + round / 2 % 2;
        let cgroup = Cgroup::create(&path).unwrap();
        assert_eq!(order(format!("enter {}", path.display())), passed);
        assert_eq!(order(format!("udp {to}")), passed, "round {round}: a new cgroup is nobody's");
        let guard = Guard { slot, generation: round, ..guard(no_meter()) };
        loader.attach("b", &cgroup, guard).unwrap();
        assert_eq!(order(format!("udp {to}")), refused, "round {round}: not opened yet");
        loader.open(slot);
        order("bind 127.0.0.1:0".to_owned());
        assert_eq!(order(format!("towards {to}")), passed);
        assert_eq!(order("send".to_owned()), passed, "round {round}: open");
        loader.cut(slot);
        assert_eq!(order(format!("udp {to}")), refused, "round {round}: cut");
        assert_eq!(order(format!("enter {}", host.cgroup.display())), passed);
        retry(|| Cgroup::open(&path).and_then(Cgroup::remove)).unwrap();
        assert_eq!(order("send".to_owned()), refused, "round {round}: a socket outlives its cgroup, cut");
        loader.detach("b", slot).unwrap();
        assert!(!loader.is_open(slot), "round {round}: the slot is nobody's");
        let left = fs::read_dir(host.pins().join("bottles")).unwrap().count();
        assert_eq!(left, 0, "round {round}: a pin is left");
    }
}
