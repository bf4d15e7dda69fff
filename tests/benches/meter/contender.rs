//! One who carries streams: how it is reached, and what its processes spend.
use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use support::agent::Options;
use support::cgroup::TestCgroup;

use crate::load::{Held, Load, Pace, Report};

/// One of those compared.
pub struct Contender<'a> {
    /// What it is called in the figures.
    pub name: &'static str,
    way: Options,
    pids: Vec<u32>,
    cgroup: Option<&'a TestCgroup>,
}

impl<'a> Contender<'a> {
    /// Reached this way; of no process yet, its clients outside of every bottle.
    pub fn new(name: &'static str, way: Options) -> Self {
        Self { name, way, pids: Vec::new(), cgroup: None }
    }

    /// What these processes spend counts.
    pub fn of_processes(self, pids: Vec<u32>) -> Self {
        Self { pids, ..self }
    }

    /// Its clients run in this bottle.
    pub fn inside(self, cgroup: &'a TestCgroup) -> Self {
        Self { cgroup: Some(cgroup), ..self }
    }

    /// Asks `answers` times over `streams` connections, to the end.
    pub fn run(&self, streams: usize, answers: usize, pace: Pace) -> Report {
        Load::new(streams, answers, pace, &self.way).run(self.cgroup)
    }

    /// Opens `streams` and keeps them open.
    pub fn hold(&self, streams: usize) -> Held {
        Load::new(streams, streams, Pace::HELD, &self.way).hold(self.cgroup)
    }

    /// User and system time of its processes so far, ended threads included.
    pub fn processor_time(&self) -> Duration {
        let clocks = self.pids.iter().map(|pid| {
            let pid = Pid::from_raw(i32::try_from(*pid).unwrap());
            Duration::from(clock_gettime(clock_getcpuclockid(pid).unwrap()).unwrap())
        });
        clocks.sum()
    }

    /// Resident memory of its processes, KiB.
    pub fn resident_kib(&self) -> u64 {
        self.pids.iter().map(|pid| resident_kib(*pid)).sum()
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
