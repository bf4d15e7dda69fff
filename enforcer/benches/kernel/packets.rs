//! What a packet costs, by what its bottle asks of the program.
use std::path::Path;
use std::time::Duration;

use aya::programs::ProgramInfo;
use aya::sys::{Stats, enable_stats};
use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::{Allowed, AllowedPorts, Guard, Kernel as _, pins};

use crate::support::sending::Sending;
use crate::support::{Bench, guard};

/// Packets are counted for this long.
const PACKETS_FOR: Duration = Duration::from_secs(2);

/// See the module's head.
pub fn packets(bench: &Bench) {
    let loader = bench.open();
    let cgroup = Cgroup::open(&bench.cgroup).unwrap();
    loader.attach("b", &cgroup, guard(1)).unwrap();
    loader.open(1);
    let sending = Sending::start(&bench.cgroup);
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
    drop(sending);
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
