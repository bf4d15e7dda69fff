//! The clients: many agents in one process, started in a bottle or outside, over the way that they are told.
//!
//! The benchmark runs itself for that, with its orders as one JSON argument.
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use support::agent::{Agent, Ended, Mode, Options};
use support::cgroup::TestCgroup;
use support::clock::mono_ns;
use support::process;

use crate::upstream::{HOLD_AFTER, PACE, STAMP, STAMP_DIGITS};

/// First argument of a process that carries a load.
const ORDER: &str = "--carry";
/// Longest that one load takes.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Events that a held stream has seen.
const EVENTS_BEFORE_HOLD: usize = 20;

/// How the upstream's events come.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Pace {
    pause_us: u64,
    held: bool,
}

impl Pace {
    /// As fast as they can be written.
    pub const BURST: Self = Self { pause_us: 0, held: false };
    /// A few at once, then nothing.
    pub const HELD: Self = Self { pause_us: 0, held: true };

    /// One each time this has passed.
    pub fn every(pause: Duration) -> Self {
        Self { pause_us: u64::try_from(pause.as_micros()).unwrap(), held: false }
    }
}

/// What a process of clients is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    streams: usize,
    answers: usize,
    pace: Pace,
    connect: bool,
    base_url: Option<String>,
    proxy: Option<String>,
    ca_file: Option<PathBuf>,
    authority: Option<String>,
    prompt_bytes: Option<usize>,
}

/// What it saw.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Whole answers.
    pub answers: usize,
    /// Stamped events.
    pub events: usize,
    /// Middle and 99th percentile of the time from an event's writing to its reading, nanoseconds.
    pub median_ns: u64,
    /// See `median_ns`.
    pub p99_ns: u64,
}

impl Load {
    /// `answers` in all over `streams` connections.
    pub fn new(streams: usize, answers: usize, pace: Pace, way: &Options) -> Self {
        Self {
            streams,
            answers,
            pace,
            connect: way.mode == Mode::Connect,
            base_url: way.base_url.clone(),
            proxy: way.proxy.clone(),
            ca_file: way.ca_file.clone(),
            authority: way.authority.clone(),
            prompt_bytes: way.prompt_bytes,
        }
    }

    /// The order that this process was started with.
    pub fn asked_for() -> Option<Self> {
        let mut arguments = std::env::args().skip_while(|argument| argument != ORDER).skip(1);
        arguments.next().map(|order| serde_json::from_str(&order).unwrap())
    }

    /// Runs it in a process of its own, to its end.
    pub fn run(&self, cgroup: Option<&TestCgroup>) -> Report {
        let output = process::finish(self.start(cgroup), TIMEOUT);
        assert_eq!(output.code, Some(0), "the clients: {}", output.stderr);
        let report: Report = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(report.answers, self.answers, "every answer is whole");
        report
    }

    /// Starts it, and returns when every stream is open.
    pub fn hold(&self, cgroup: Option<&TestCgroup>) -> Held {
        let mut child = self.start(cgroup);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let held = Held(child);
        assert_eq!(line.trim(), "open", "every stream opens");
        held
    }

    fn start(&self, cgroup: Option<&TestCgroup>) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([ORDER, &serde_json::to_string(self).unwrap()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match cgroup {
            Some(cgroup) => cgroup.spawn(&mut command),
            None => command.spawn().unwrap(),
        }
    }

    /// Does what was ordered, and prints the report.
    pub fn carry(self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let report = runtime.block_on(self.ask_all());
        println!("{}", serde_json::to_string(&report).unwrap());
    }

    async fn ask_all(self) -> Report {
        let left = Arc::new(AtomicUsize::new(self.answers));
        let open = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = (0..self.streams)
            .map(|_| tokio::spawn(self.clone().ask_again_and_again(Arc::clone(&left), Arc::clone(&open))))
            .collect();
        let (mut answers, mut delays) = (0, Vec::new());
        for worker in workers {
            let (whole, seen) = worker.await.unwrap();
            answers += whole;
            delays.extend(seen);
        }
        delays.sort_unstable();
        let at = |percent: usize| delays[(delays.len() - 1) * percent / 100];
        Report { answers, events: delays.len(), median_ns: at(50), p99_ns: at(99) }
    }

    /// One connection's share: whole answers, and the delay of each stamped event.
    async fn ask_again_and_again(self, left: Arc<AtomicUsize>, open: Arc<AtomicUsize>) -> (usize, Vec<u64>) {
        let mut agent = Agent::new(self.options()).unwrap();
        let (mut whole, mut delays) = (0, Vec::new());
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            let mut events = 0;
            let answer = agent.ask(|data| {
                events += 1;
                if self.pace.held
                    && events == EVENTS_BEFORE_HOLD
                    && open.fetch_add(1, Ordering::Relaxed) + 1 == self.streams
                {
                    println!("open");
                }
                delays.extend(stamp(data).map(|written| mono_ns().saturating_sub(written)));
            });
            let answer = answer.await.unwrap();
            whole += usize::from(answer.ended == Ended::Complete && answer.status == 200);
        }
        (whole, delays)
    }

    fn options(&self) -> Options {
        let mut headers = vec![(PACE.to_owned(), self.pace.pause_us.to_string())];
        if self.pace.held {
            headers.push((HOLD_AFTER.to_owned(), EVENTS_BEFORE_HOLD.to_string()));
        }
        Options {
            stream: true,
            mode: if self.connect { Mode::Connect } else { Mode::Gateway },
            base_url: self.base_url.clone(),
            proxy: self.proxy.clone(),
            ca_file: self.ca_file.clone(),
            authority: self.authority.clone(),
            prompt_bytes: self.prompt_bytes,
            headers,
            ..Options::default()
        }
    }
}

/// The instant that an event carries.
fn stamp(data: &str) -> Option<u64> {
    let begin = data.find(STAMP)? + STAMP.len();
    data.get(begin..begin + STAMP_DIGITS)?.parse().ok()
}

/// Streams that are kept open until this is dropped.
pub struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        process::kill(&mut self.0);
    }
}
