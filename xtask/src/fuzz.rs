//! `cargo xtask fuzz`: builds the fuzz targets of `tests/fuzz` with cargo-fuzz, runs them side by side, and prints what
//! each has done.
//!
//! The stable compiler is enough, and for sanitizers when it is told so (`RUSTC_BOOTSTRAP=1`). What is found on the way
//! goes to `tests/fuzz/target/corpus`, what fails to `tests/fuzz/artifacts`; the seeds stay as they are.
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::setup::{self, announce, need};

/// This release reads the settings that the targets are built with.
const CARGO_FUZZ_VERSION: &str = "0.13.2";
/// Longest that a target runs by itself, seconds.
const SECONDS: u64 = 30;
/// Longest that one input may take, seconds, and most memory of a target, MiB: a hang and a leak are findings.
const INPUT_SECONDS: u64 = 10;
const MEMORY_MIB: u64 = 1024;
/// Longest input, bytes: limits are low when they are fuzzed.
const MAX_INPUT_BYTES: u64 = 2048;

/// What to fuzz, and for how long.
#[derive(Args, Debug)]
pub struct Options {
    /// One of tests/fuzz/targets, or several [default: all of them]
    targets: Vec<String>,
    /// For so many seconds each
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
    /// For so many executions each instead
    #[arg(long, conflicts_with = "seconds")]
    runs: Option<u64>,
    /// Most targets that run at a time [default: the processors there are]
    #[arg(long)]
    jobs: Option<usize>,
    /// Build with this sanitizer; without one, inputs are tried at twice the speed
    #[arg(long, default_value = "none", value_parser = ["none", "address"])]
    sanitizer: String,
    /// How to build the targets
    #[arg(long, value_enum, default_value_t = Kind::Full)]
    build: Kind,
}

impl Options {
    /// A short round of every target, soon built: what continuous integration runs. Two targets share a processor: each
    /// has its time by the clock, and tries about half of the inputs.
    pub fn smoke() -> Self {
        Self {
            targets: Vec::new(),
            seconds: SECONDS,
            runs: None,
            jobs: Some(2 * processors()),
            sanitizer: "none".to_owned(),
            build: Kind::Quick,
        }
    }
}

/// Ways to build the targets.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Little optimised: sooner built, slower to run
    Quick,
    /// Optimised, with debug assertions
    Full,
    /// The same without hooks on comparisons, which tell the fuzzer what is looked for and take half of the time: for
    /// long rounds
    Untraced,
}

impl Kind {
    /// What cargo-fuzz is told.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Quick => &["--dev"],
            Self::Full => &[],
            Self::Untraced => &["--no-trace-compares"],
        }
    }

    /// The directory that cargo puts the programs into.
    fn profile(self) -> &'static str {
        match self {
            Self::Quick => "debug",
            Self::Full | Self::Untraced => "release",
        }
    }

    /// Where to build: beside the rest what is soon built, since it shares what runs on the host with the rest; for
    /// each other set of flags a place of its own.
    fn directory(self, root: &Path, sanitizer: &str) -> PathBuf {
        let own = |name| root.join("tests/fuzz/target").join(format!("{sanitizer}-{name}"));
        match self {
            Self::Quick => root.join("target"),
            Self::Full => own("full"),
            Self::Untraced => own("untraced"),
        }
    }
}

/// Builds and runs them.
///
/// # Errors
/// When a target does not exist or cannot be built, or an input is found that fails.
pub fn run(options: &Options) -> Result<()> {
    setup::run()?;
    need(&[("c++", "g++")])?;
    let root = setup::workspace()?;
    let home = root.join("tests/fuzz");
    let targets = chosen(&home, &options.targets)?;
    install()?;
    let programs = build(&root, &home, options)?;
    let jobs = options.jobs.unwrap_or_else(processors);
    let (begun, count) = (Instant::now(), targets.len());
    let left = Mutex::new(VecDeque::from(targets));
    let failed = Mutex::new(Vec::new());
    let next = || left.lock().ok()?.pop_front();
    println!("fuzz: {:<16} {:>12} {:>10} {:>8}", "target", "executions", "a second", "seconds");
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(target) = next() {
                    if let Err(error) = fuzz(&home, &programs, &target, options) {
                        eprintln!("fuzz: {target}: {error:#}");
                        failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(target);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    ensure!(failed.is_empty(), "these targets failed: {}", failed.join(", "));
    println!("fuzz: {count} targets in {} s, {jobs} at a time, nothing found", begun.elapsed().as_secs());
    Ok(())
}

/// Processors that this process may use.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The targets that are asked for, or all.
fn chosen(home: &Path, asked: &[String]) -> Result<Vec<String>> {
    let directory = home.join("targets");
    let files = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut all: Vec<String> =
        files.filter_map(|file| Some(file.ok()?.path().file_stem()?.to_str()?.to_owned())).collect();
    all.sort_unstable();
    if let Some(unknown) = asked.iter().find(|target| !all.contains(target)) {
        bail!("there is no fuzz target {unknown}; there are {}", all.join(", "));
    }
    Ok(if asked.is_empty() { all } else { asked.to_vec() })
}

/// Installs cargo-fuzz where it is missing, little optimised: it only starts others.
fn install() -> Result<()> {
    let known = Command::new("cargo").args(["fuzz", "--version"]).stderr(Stdio::null()).output();
    if known.is_ok_and(|known| known.status.success()) {
        return Ok(());
    }
    let version = ["--version", CARGO_FUZZ_VERSION];
    announce(Command::new("cargo").args(["install", "--debug", "--locked", "cargo-fuzz"]).args(version))
        .context("the targets are built by cargo-fuzz, which is not here and could not be installed")
}

/// Builds all targets; where their programs are.
fn build(root: &Path, home: &Path, options: &Options) -> Result<PathBuf> {
    let Options { sanitizer, build, .. } = options;
    let begun = Instant::now();
    // the directory, for this compiler's own name
    let target = target_triple()?;
    let directory = build.directory(root, sanitizer);
    let mut cargo = Command::new("cargo");
    cargo.args(["fuzz", "build", "--sanitizer", sanitizer, "--target", &target]).args(build.options());
    cargo.arg("--fuzz-dir").arg(home).arg("--target-dir").arg(&directory);
    match build {
        Kind::Quick => cargo.envs([
            ("CARGO_PROFILE_DEV_OPT_LEVEL", "1"),
            ("CARGO_PROFILE_DEV_DEBUG", "false"),
            ("CARGO_INCREMENTAL", "0"),
        ]),
        Kind::Full | Kind::Untraced => &mut cargo,
    };
    if sanitizer != "none" {
        // a nightly compiler's option, which the stable one knows too
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    announce(&mut cargo)?;
    println!("fuzz: built in {} s", begun.elapsed().as_secs());
    Ok(directory.join(target).join(build.profile()))
}

/// The host as the compiler names it.
fn target_triple() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let about = String::from_utf8_lossy(&output.stdout);
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not tell its host")
}

/// Runs one target and prints its figures.
fn fuzz(home: &Path, programs: &Path, target: &str, options: &Options) -> Result<()> {
    let found = home.join("target/corpus").join(target);
    let artifacts = home.join("artifacts").join(target);
    for directory in [&found, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let log = home.join("target").join(format!("{target}.log"));
    let output = fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut program = Command::new(programs.join(target));
    program.arg(&found).arg(home.join("corpus").join(target));
    program.arg(format!("-artifact_prefix={}/", artifacts.display()));
    program.arg(match options.runs {
        Some(runs) => format!("-runs={runs}"),
        None => format!("-max_total_time={}", options.seconds),
    });
    program.args([
        format!("-timeout={INPUT_SECONDS}"),
        format!("-rss_limit_mb={MEMORY_MIB}"),
        format!("-max_len={MAX_INPUT_BYTES}"),
        "-print_final_stats=1".to_owned(),
    ]);
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
    let begun = Instant::now();
    let status = program.status().with_context(|| format!("cannot start {target}"))?;
    let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let said = String::from_utf8_lossy(&said);
    if !status.success() {
        let last: Vec<&str> = said.lines().rev().take(40).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!("{status}; {} ends with\n{}", log.display(), last.join("\n"));
    }
    let executions = executions(&said).with_context(|| format!("{} has no figures", log.display()))?;
    ensure!(executions > 0, "no input was tried");
    report(target, executions, begun.elapsed());
    Ok(())
}

fn report(target: &str, executions: u64, took: Duration) {
    let seconds = took.as_secs().max(1);
    println!("fuzz: {target:<16} {executions:>12} {:>10} {seconds:>8}", executions / seconds);
}

/// How often libFuzzer says that it ran the target.
fn executions(said: &str) -> Option<u64> {
    let figure = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    figure.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_a_run_are_read() {
        let said = "Done 7 runs\nstat::number_of_executed_units: 1234\nstat::average_exec_per_sec:     9\n";
        assert_eq!(executions(said), Some(1_234));
        assert_eq!(executions("==1== ERROR: libFuzzer: deadly signal"), None);
    }

    #[test]
    fn every_target_has_seeds() {
        let home = setup::workspace().unwrap().join("tests/fuzz");
        for target in chosen(&home, &[]).unwrap() {
            let seeds = fs::read_dir(home.join("corpus").join(&target));
            assert!(seeds.is_ok_and(|mut seeds| seeds.next().is_some()), "{target}");
        }
        assert!(chosen(&home, &["nothing".to_owned()]).is_err());
    }
}
