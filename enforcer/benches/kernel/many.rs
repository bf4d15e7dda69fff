//! A thousand bottles in one controller: attached through its API, shown, taken over by the next one, and what they cost
//! while nothing happens.
use std::time::{Duration, Instant};

use enforcer::bottle::cgroup::Cgroup;
use enforcer::control::api;
use enforcer::control::client::Client;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::daemon::Daemon;
use crate::support::Bench;
use crate::support::adopt::BOTTLES;
use crate::support::figures::{nanoseconds, report};

/// Attached one after another; the others by several callers at once.
const IN_A_ROW: u32 = 100;
/// Callers at once.
const CALLERS: u32 = 32;
/// Times that all are asked for, and one.
const QUESTIONS: usize = 20;
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(5);

/// See the module's head.
pub fn many(bench: &Bench) {
    for number in 1..=BOTTLES {
        drop(Cgroup::create(&bench.cgroup.join(name(number))).unwrap());
    }
    let mut daemon = Daemon::start();
    let runtime = Runtime::new().unwrap();
    let client = daemon.client();
    attach_in_a_row(&runtime, &client, bench);
    attach_at_once(&runtime, &client, bench);
    ask(&runtime, &client);
    idle(daemon.pid());
    let restart = nanoseconds(|| daemon.restart());
    println!(
        "a controller ends and the next takes over {BOTTLES} bottles: {:?}",
        Duration::from_nanos(restart)
    );
    assert_eq!(runtime.block_on(client.status()).unwrap().bottles.len(), usize::try_from(BOTTLES).unwrap());
    let started = Instant::now();
    for number in 1..=BOTTLES {
        runtime.block_on(client.detach(&name(number), false)).unwrap();
    }
    println!("{BOTTLES} bottles detached through the API, one after another: {:?}", started.elapsed());
}

fn name(number: u32) -> String {
    format!("many-{number}")
}

fn order(bench: &Bench, number: u32) -> api::Attach {
    let name = name(number);
    let cgroup = bench.cgroup.join(&name).to_str().unwrap().to_owned();
    api::Attach { name, cgroup: Some(cgroup), ..api::Attach::default() }
}

fn attach_in_a_row(runtime: &Runtime, client: &Client, bench: &Bench) {
    let rounds = (1..=IN_A_ROW)
        .map(|number| nanoseconds(|| drop(runtime.block_on(client.attach(&order(bench, number))).unwrap())));
    report("attach a bottle through the API, each on disk before the next", rounds.collect());
}

fn attach_at_once(runtime: &Runtime, client: &Client, bench: &Bench) {
    let started = Instant::now();
    runtime.block_on(async {
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let orders: Vec<_> = (IN_A_ROW + 1..=BOTTLES)
                .filter(|number| number % CALLERS == caller)
                .map(|number| order(bench, number))
                .collect();
            let client = client.clone();
            callers.spawn(async move {
                for order in orders {
                    client.attach(&order).await.unwrap();
                }
            });
        }
        callers.join_all().await;
    });
    let took = started.elapsed();
    println!(
        "{} bottles attached through the API by {CALLERS} callers: {took:?}; {:?} for {BOTTLES}",
        BOTTLES - IN_A_ROW,
        took * BOTTLES / (BOTTLES - IN_A_ROW)
    );
}

fn ask(runtime: &Runtime, client: &Client) {
    let all = (0..QUESTIONS).map(|_| nanoseconds(|| drop(runtime.block_on(client.status()).unwrap())));
    report(&format!("status of {BOTTLES} bottles"), all.collect());
    let one = (0..QUESTIONS)
        .map(|_| nanoseconds(|| drop(runtime.block_on(client.bottle(&name(BOTTLES))).unwrap())));
    report(&format!("one bottle of {BOTTLES}"), one.collect());
}

/// Processor time that a process has used, by proc_pid_stat(5).
fn used(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
    let ticks: u64 = fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    Duration::from_millis(ticks * 1000 / u64::try_from(per_second).unwrap())
}

fn idle(pid: u32) {
    let before = used(pid);
    std::thread::sleep(IDLE);
    let percent = (used(pid) - before).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    println!("{BOTTLES} bottles, nothing happening: {percent:.1} % of one core");
}
