//! What the meter costs, beside nginx as a bare reverse proxy and mitmproxy with an addon that reads usage: processor
//! time of a streamed answer, delay of an event, memory of an open stream.
//!
//! Run by `cargo xtask bench meter`, as root, with the built programs, against an upstream of its own on loopback.
//! All take turns within one run. Prints figures and judges none; needs no harness.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to report")]
mod contender;
mod load;
mod mitmproxy;
mod nginx;
mod upstream;

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::agent::{Mode, Options};
use support::enforcer::Daemon;
use support::stage::Bottle;
use support::{cgroup::TestCgroup, clock};

use contender::Contender;
use load::{Load, Pace};
use mitmproxy::Mitmproxy;
use nginx::Nginx;
use upstream::{NAME, Upstream};

/// Rounds of each measurement; every contender has its turn in each.
const ROUNDS: usize = 3;
/// Streams at a time where processor time is measured, and answers in all.
const STREAMS: usize = 32;
const ANSWERS: usize = 320;
/// Time between two events of a stream that is no burst.
const QUICK: Duration = Duration::from_millis(2);
/// The slow streams: as many, events this far apart.
const SLOW_STREAMS: usize = 64;
const SLOW: Duration = Duration::from_millis(50);
/// Streams that are open while memory is read.
const OPEN: usize = 1_000;
const OPEN_AT_MITMPROXY: usize = 200;

fn main() {
    let most = getrlimit(Resource::RLIMIT_NOFILE).unwrap().1;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    if let Some(load) = Load::asked_for() {
        return load.carry();
    }
    let upstream = Upstream::start();
    let nginx = Nginx::start(&upstream);
    let mitmproxy = Mitmproxy::start(&upstream);
    let daemon = Daemon::start(&settings(&upstream));
    let cgroup = TestCgroup::new("bench");
    daemon.attach("bench", cgroup.path(), &[]);
    let bottle = Bottle { name: "bench".to_owned(), cgroup };
    let contenders = Contenders::new(&upstream, &nginx, &mitmproxy, &daemon, &bottle);
    println!("nginx:     {}", nginx.command());
    println!("mitmproxy: {}", mitmproxy.command());
    println!("an answer: {} events, {} bytes", upstream::EVENTS, upstream::answer_bytes());
    contenders.processor_time("in one burst", Pace::BURST);
    contenders.processor_time("an event every 2 ms", Pace::every(QUICK));
    contenders.delay();
    contenders.memory();
}

/// The daemon's settings: the gateway speaks plain HTTP to the upstream, what is intercepted TLS.
fn settings(upstream: &Upstream) -> String {
    format!(
        "budget: {{ claude: 1000000000000, bench: 1000000000000 }}\n\
         providers:\n  claude: {{ upstream: \"http://{}\" }}\n  \
         bench: {{ dialect: anthropic, hosts: [{NAME}], upstream: \"https://localhost:{}\" }}\n\
         tls: {{ extra_roots: \"{}\" }}\n",
        upstream.http(),
        upstream.https().port(),
        upstream.ca_file().display(),
    )
}

/// Everyone who carries streams.
struct Contenders<'a> {
    direct: Contender<'a>,
    nginx: Contender<'a>,
    gateway: Contender<'a>,
    intercepted: Contender<'a>,
    mitmproxy: Contender<'a>,
}

impl<'a> Contenders<'a> {
    fn new(
        upstream: &Upstream,
        nginx: &Nginx,
        mitmproxy: &Mitmproxy,
        daemon: &Daemon,
        bottle: &'a Bottle,
    ) -> Self {
        let gateway = |base_url: String| Options {
            stream: true,
            prompt_bytes: Some(2_000),
            base_url: Some(base_url),
            ..Options::default()
        };
        let connect = |proxy: String, ca_file| Options {
            stream: true,
            prompt_bytes: Some(2_000),
            mode: Mode::Connect,
            authority: Some(NAME.to_owned()),
            proxy: Some(proxy),
            ca_file: Some(ca_file),
            ..Options::default()
        };
        let meter = vec![daemon.meter().pid(), daemon.pid()];
        let listen = format!("http://{}", daemon.listen_addr());
        let ca = daemon.run_dir().join("ca.pem");
        Self {
            direct: Contender::new("without a proxy", gateway(format!("http://{}", upstream.http()))),
            nginx: Contender::new("nginx", gateway(format!("http://{}", nginx.address())))
                .of_processes(nginx.pids()),
            gateway: Contender::new("meter, gateway", gateway(format!("{listen}/claude")))
                .of_processes(meter.clone())
                .inside(&bottle.cgroup),
            intercepted: Contender::new("meter, CONNECT and TLS", connect(listen, ca))
                .of_processes(meter)
                .inside(&bottle.cgroup),
            mitmproxy: Contender::new(
                "mitmproxy, CONNECT and TLS",
                connect(format!("http://{}", mitmproxy.address()), mitmproxy.ca_file()),
            )
            .of_processes(vec![mitmproxy.pid()]),
        }
    }

    /// Processor time of all of a contender's processes, an answer.
    fn processor_time(&self, how: &str, pace: Pace) {
        let turns = [&self.nginx, &self.gateway, &self.intercepted, &self.mitmproxy];
        let mut rounds = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            for (contender, spent) in turns.iter().zip(&mut rounds) {
                let before = contender.processor_time();
                contender.run(STREAMS, ANSWERS, pace);
                spent.push((contender.processor_time() - before) / u32::try_from(ANSWERS).unwrap());
            }
        }
        let [nginx, gateway, intercepted, mitmproxy] = rounds.map(median);
        println!(
            "\nprocessor time, an answer {how}, {STREAMS} streams at a time (median of {ROUNDS} rounds)"
        );
        for ((contender, answers), spent) in turns.iter().zip([nginx, gateway, intercepted, mitmproxy]) {
            println!("  {:<28} {spent:>10.1?}   n {answers}", contender.name);
        }
        println!("  gateway / nginx: {:.2}", gateway.as_secs_f64() / nginx.as_secs_f64());
        println!("  intercepted / mitmproxy: 1/{:.0}", mitmproxy.as_secs_f64() / intercepted.as_secs_f64());
    }

    /// From the upstream's write of an event to the client's reading of it.
    fn delay(&self) {
        let turns = [&self.direct, &self.nginx, &self.gateway, &self.intercepted];
        println!(
            "\ndelay of an event, {SLOW_STREAMS} streams, an event every {SLOW:?} each (median of {ROUNDS} rounds)"
        );
        let mut rounds = [const { (Vec::new(), Vec::new(), 0) }; 4];
        for _ in 0..ROUNDS {
            for (contender, (medians, tails, events)) in turns.iter().zip(&mut rounds) {
                let report = contender.run(SLOW_STREAMS, SLOW_STREAMS, Pace::every(SLOW));
                medians.push(Duration::from_nanos(report.median_ns));
                tails.push(Duration::from_nanos(report.p99_ns));
                *events += report.events;
            }
        }
        for (contender, (medians, tails, events)) in turns.iter().zip(rounds) {
            let (half, most) = (median(medians), median(tails));
            println!("  {:<28} median {half:>8.1?}   p99 {most:>8.1?}   n {events}", contender.name);
        }
    }

    /// Resident memory that an open stream adds.
    fn memory(&self) {
        println!("\nresident memory of open streams");
        let turns = [
            (&self.nginx, OPEN),
            (&self.gateway, OPEN),
            (&self.intercepted, OPEN),
            (&self.mitmproxy, OPEN_AT_MITMPROXY),
        ];
        for (contender, streams) in turns {
            let before = contender.resident_kib();
            let held = contender.hold(streams);
            let open = contender.resident_kib();
            drop(held);
            let each = open.saturating_sub(before) as f64 / streams as f64;
            println!(
                "  {:<28} {each:>6.1} KiB a stream   ({before} KiB before, {open} KiB with {streams} open)",
                contender.name
            );
            // what they held is given back, and settled, before the next has its turn
            std::thread::sleep(Duration::from_secs(2));
        }
    }
}

/// The middle of the rounds.
fn median(mut rounds: Vec<Duration>) -> Duration {
    rounds.sort_unstable();
    rounds[rounds.len() / 2]
}

/// Waits until something answers at this address.
fn wait_listening(address: std::net::SocketAddr) {
    let listening = || std::net::TcpStream::connect(address).ok();
    clock::wait_until(Duration::from_secs(30), listening).expect("a peer listens within 30 s");
}
