//! What a packet costs, and how long after the store of a cut the last one passes.
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aya::programs::ProgramInfo;
use aya::sys::{Stats, enable_stats};
use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::{Allowed, AllowedPorts, Guard, Kernel as _, pins};

use crate::figures::{now, report};
use crate::inside::{Inside, shared};
use crate::{Bench, guard};

const FLIPS: usize = 2_000;
/// Packets are counted for this long.
const PACKETS_FOR: Duration = Duration::from_secs(2);

pub fn packet_and_flip(bench: &Bench) {
    let loader = bench.open();
    let cgroup = Cgroup::open(&bench.cgroup).unwrap();
    loader.attach("b", &cgroup, guard(1)).unwrap();
    loader.open(1);
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let times = shared::<Times>();
    let sender = sending(&bench.cgroup, receiver.local_addr().unwrap(), times);
    std::thread::sleep(Duration::from_millis(200));
    let egress = Path::new(pins::BPFFS).join(format!("enforcer-{}/progs/enforcer_egress", bench.instance));
    packet("egress of an open bottle, redirect on", &egress);
    loader.set_lease(1, Some(Duration::from_secs(60)));
    loader.beat();
    packet("egress of an open bottle, redirect on, with a lease", &egress);
    loader.set_lease(1, None);
    loader.refresh(Guard { redirect: false, ..guard(1) });
    packet("egress of an open bottle, redirect off", &egress);
    let any = AllowedPorts { any: true, ..AllowedPorts::default() };
    loader.set_allowed(1, &[Allowed { range: "127.0.0.0/8".parse().unwrap(), ports: any }]).unwrap();
    loader.refresh(Guard { lockdown: true, ..guard(1) });
    packet("egress of a confined bottle, redirect on", &egress);
    loader.set_allowed(1, &[]).unwrap();
    loader.refresh(guard(1));
    let mut leaked = 0;
    let rounds = (0..FLIPS).map(|_| {
        loader.open(1);
        std::thread::sleep(Duration::from_micros(500));
        let before = now();
        loader.cut(1);
        let after = now();
        std::thread::sleep(Duration::from_micros(500));
        leaked += usize::from(times.began.load(Ordering::SeqCst) > after);
        times.returned.load(Ordering::SeqCst).saturating_sub(before)
    });
    report("flip: before the store to the return of the last send", rounds.collect());
    println!(
        "flip: rounds with a send that began after the cut had returned, and passed: {leaked} of {FLIPS}"
    );
    drop(sender);
    loader.detach("b", 1).unwrap();
}

/// Time in an egress program by the kernel's own statistics (which add some 30 ns to every run).
fn packet(what: &str, program: &Path) {
    let statistics = enable_stats(Stats::RunTime).unwrap();
    let before = ProgramInfo::from_pin(program).unwrap();
    std::thread::sleep(PACKETS_FOR);
    let after = ProgramInfo::from_pin(program).unwrap();
    drop(statistics);
    let runs = after.run_count() - before.run_count();
    let time = after.run_time() - before.run_time();
    println!("{what}: mean {} ns a packet, n {runs}", time.as_nanos() / u128::from(runs.max(1)));
}

/// When the last packet that passed began and ended, monotonic nanoseconds, written by the sender.
struct Times {
    began: AtomicU64,
    returned: AtomicU64,
}

/// Sends datagrams as fast as it can, in a cgroup.
fn sending(cgroup: &Path, to: SocketAddr, times: &'static Times) -> Inside {
    Inside::start(Some(cgroup), || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        loop {
            let began = now();
            if socket.send_to(b"x", to).is_ok() {
                times.returned.store(now(), Ordering::SeqCst);
                times.began.store(began, Ordering::SeqCst);
            }
        }
    })
}
