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

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::agent::{Mode, Options};
use support::cgroup::TestCgroup;
use support::clock;
use support::enforcer::Daemon;

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
/// Fewer of mitmproxy: it stalls now and then when its connections carry more than a few.
const ANSWERS_OF_MITMPROXY: usize = 64;
/// Time between two events of a stream that is no burst.
const QUICK: Duration = Duration::from_millis(2);
/// The slow streams: as many, events this far apart.
const SLOW_STREAMS: usize = 64;
const SLOW: Duration = Duration::from_millis(50);
/// Length of a question.
const PROMPT_BYTES: usize = 2_000;
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
    let scene = Scene::set(&upstream);
    println!("nginx:     {}", scene.nginx.command());
    println!("mitmproxy: {}", scene.mitmproxy.command());
    println!("an answer: {} events, {} bytes", upstream::EVENTS, upstream::answer_bytes());
    scene.processor_time("in one burst", Pace::BURST);
    scene.processor_time("an event every 2 ms", Pace::every(QUICK));
    scene.delay();
    drop(scene);
    println!("\nresident memory of open streams, each in processes just started");
    memory(&Scene::set(&upstream).nginx(), OPEN);
    memory(&Scene::set(&upstream).gateway(), OPEN);
    memory(&Scene::set(&upstream).intercepted(), OPEN);
    memory(&Scene::set(&upstream).mitmproxy(), OPEN_AT_MITMPROXY);
}

/// Resident memory that an open stream adds to one that has carried a few.
fn memory(contender: &Contender<'_>, streams: usize) {
    contender.run(STREAMS, STREAMS, Pace::BURST);
    let before = contender.resident_kib();
    let held = contender.hold(streams);
    let open = contender.resident_kib();
    drop(held);
    let each = open.saturating_sub(before) / u64::try_from(streams).unwrap();
    println!(
        "  {:<28} {each:>5} KiB a stream   ({before} KiB before, {open} KiB with {streams} open)",
        contender.name
    );
}

/// Everyone who carries streams, before one upstream.
struct Scene<'a> {
    upstream: &'a Upstream,
    nginx: Nginx,
    mitmproxy: Mitmproxy,
    daemon: Daemon,
    bottle: TestCgroup,
}

impl<'a> Scene<'a> {
    fn set(upstream: &'a Upstream) -> Self {
        let daemon = Daemon::start(&settings(upstream));
        let bottle = TestCgroup::new("bench");
        daemon.attach("bench", bottle.path(), &[]);
        let (nginx, mitmproxy) = (Nginx::start(upstream), Mitmproxy::start(upstream));
        Self { upstream, nginx, mitmproxy, daemon, bottle }
    }

    fn direct(&self) -> Contender<'_> {
        Contender::new("without a proxy", gateway(format!("http://{}", self.upstream.http())))
    }

    fn nginx(&self) -> Contender<'_> {
        let way = gateway(format!("http://{}", self.nginx.address()));
        Contender::new("nginx", way).of_processes(self.nginx.pids())
    }

    fn gateway(&self) -> Contender<'_> {
        let way = gateway(format!("http://{}/claude", self.daemon.listen_addr()));
        Contender::new("meter, gateway", way).of_processes(self.meter()).inside(&self.bottle)
    }

    fn intercepted(&self) -> Contender<'_> {
        let proxy = format!("http://{}", self.daemon.listen_addr());
        let way = connect(proxy, self.daemon.run_dir().join("ca.pem"));
        Contender::new("meter, CONNECT and TLS", way).of_processes(self.meter()).inside(&self.bottle)
    }

    fn mitmproxy(&self) -> Contender<'_> {
        let way = connect(format!("http://{}", self.mitmproxy.address()), self.mitmproxy.ca_file());
        Contender::new("mitmproxy, CONNECT and TLS", way).of_processes(vec![self.mitmproxy.pid()])
    }

    /// The meter and its controller: what one asks, the other answers and writes down.
    fn meter(&self) -> Vec<u32> {
        vec![self.daemon.meter().pid(), self.daemon.pid()]
    }

    /// Processor time of all of a contender's processes, an answer.
    fn processor_time(&self, how: &str, pace: Pace) {
        let turns = [
            (self.nginx(), ANSWERS),
            (self.gateway(), ANSWERS),
            (self.intercepted(), ANSWERS),
            (self.mitmproxy(), ANSWERS_OF_MITMPROXY),
        ];
        let mut rounds = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            for ((contender, answers), spent) in turns.iter().zip(&mut rounds) {
                let before = contender.processor_time();
                contender.run(STREAMS, *answers, pace);
                spent.push((contender.processor_time() - before) / u32::try_from(*answers).unwrap());
            }
        }
        let [nginx, gateway, intercepted, mitmproxy] = rounds.map(median);
        println!(
            "\nprocessor time, an answer {how}, {STREAMS} streams at a time (median of {ROUNDS} rounds)"
        );
        for ((contender, answers), spent) in turns.iter().zip([nginx, gateway, intercepted, mitmproxy]) {
            println!("  {:<28} {spent:>10.1?}   n {answers} a round", contender.name);
        }
        println!("  gateway / nginx: {:.2}", gateway.as_secs_f64() / nginx.as_secs_f64());
        println!("  intercepted / mitmproxy: 1/{:.0}", mitmproxy.as_secs_f64() / intercepted.as_secs_f64());
    }

    /// From the upstream's write of an event to the client's reading of it.
    fn delay(&self) {
        let turns = [self.direct(), self.nginx(), self.gateway(), self.intercepted()];
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

/// Straight at a server that speaks plain HTTP.
fn gateway(base_url: String) -> Options {
    let base_url = Some(base_url);
    Options { stream: true, prompt_bytes: Some(PROMPT_BYTES), base_url, ..Options::default() }
}

/// Through a proxy that opens the tunnel with a certificate of its own CA.
fn connect(proxy: String, ca_file: PathBuf) -> Options {
    Options {
        stream: true,
        prompt_bytes: Some(PROMPT_BYTES),
        mode: Mode::Connect,
        authority: Some(NAME.to_owned()),
        proxy: Some(proxy),
        ca_file: Some(ca_file),
        ..Options::default()
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
