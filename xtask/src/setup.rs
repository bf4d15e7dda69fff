//! `cargo xtask setup`: finds, or on Debian and Ubuntu as root installs, what the build and the tests need.
//!
//! Does nothing but say so when all is there. Elsewhere it says what to run and fails; it never installs half.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::ebpf::{self, Compiler, LINKER_VERSION, Toolchain};

/// Where Debian and Ubuntu install packages with.
const APT: &str = "/usr/bin/apt-get";
/// The compiler with `core` for eBPF, and the LLVM that bpf-linker is built on: the same as that compiler's.
const COMPILER_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
const LINKER_PACKAGES: [&str; 4] = ["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LLVM_FEATURES: [&str; 3] = ["--no-default-features", "--features", "llvm-22"];
/// A program, and the Debian package that it comes from.
pub type Tool = (&'static str, &'static str);
/// What the build and the tests call.
const HOST_TOOLS: [Tool; 3] = [("cc", "gcc"), ("c++", "g++"), ("ip", "iproute2")];
/// What some end-to-end tests call besides: an agent's own tools, and an engine to put it into a container.
const TEST_TOOLS: [Tool; 3] = [("runc", "runc"), ("nft", "nftables"), ("node", "nodejs")];

/// What has to be done, in order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Debian packages to install.
    packages: Vec<&'static str>,
    /// Whether rustup's nightly and its sources are wanted.
    nightly: bool,
    /// Whether bpf-linker is to be installed, and for which compiler.
    linker: Option<Compiler>,
}

/// Sets up what is missing and says what it does.
///
/// # Errors
/// When something is missing and cannot be installed from here; the message says what to run.
pub fn run() -> Result<()> {
    let debian = Path::new(APT).is_file();
    let installs = debian && is_root()?;
    let mut plan = plan(debian);
    if installs && !plan.packages.is_empty() && !available(&plan.packages)? {
        println!("setup: this release has not all of {:?}; trying rustup's nightly", plan.packages);
        plan = self::plan(false);
    }
    if plan == Plan::default() {
        let tools = Toolchain::find().map_err(anyhow::Error::msg)?;
        println!("setup: nothing to do ({})", describe(&tools));
        return Ok(());
    }
    let steps = plan.steps();
    if !installs {
        bail!(
            "these are missing; as root on Debian or Ubuntu this command installs them. Run:\n{}",
            steps.join("\n")
        );
    }
    install(&plan)?;
    let tools = Toolchain::find().map_err(anyhow::Error::msg)?;
    println!("setup: done ({})", describe(&tools));
    Ok(())
}

/// Installs, as root on Debian and Ubuntu, the programs that only tests need; elsewhere names what is missing. It
/// stops no test run: a test that needs one of them fails and says which.
///
/// # Errors
/// When /proc cannot be read.
pub fn for_tests() -> Result<()> {
    let missing = missing(&TEST_TOOLS);
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new(APT).is_file() || !is_root()? {
        println!("setup: some tests need what is not installed here: {}", missing.join(", "));
    } else if let Err(error) = install_packages(&missing) {
        println!("setup: {error:#}; the tests that need one of {} will fail", missing.join(", "));
    }
    Ok(())
}

/// As [`run`], for programs that one task alone calls.
///
/// # Errors
/// As [`run`].
pub fn need(tools: &[Tool]) -> Result<()> {
    let packages = missing(tools);
    if packages.is_empty() {
        return Ok(());
    }
    ensure!(
        Path::new(APT).is_file() && is_root()?,
        "{packages:?} are missing: as root on Debian or Ubuntu this command installs them"
    );
    install_packages(&packages)
}

/// Packages of the programs that the path has not.
fn missing(tools: &[Tool]) -> Vec<&'static str> {
    tools.iter().filter(|(tool, _)| find(tool).is_none()).map(|(_, package)| *package).collect()
}

/// Compares what is here with what is needed.
fn plan(debian: bool) -> Plan {
    let mut plan = Plan::default();
    plan.packages.extend(missing(&HOST_TOOLS));
    let mut compiler = ebpf::find_compiler();
    if compiler.is_none() {
        if debian {
            plan.packages.extend(COMPILER_PACKAGES);
            compiler = Some(Compiler::Debian);
        } else {
            plan.nightly = true;
        }
    }
    if ebpf::find_linker().is_none() {
        let compiler = compiler.unwrap_or(Compiler::Nightly);
        if compiler == Compiler::Debian {
            plan.packages.extend(LINKER_PACKAGES);
        }
        plan.linker = Some(compiler);
    }
    plan
}

impl Plan {
    /// The plan as the commands a person would type.
    fn steps(&self) -> Vec<String> {
        let mut steps = Vec::new();
        if !self.packages.is_empty() {
            steps.push("  apt-get update".to_owned());
            steps.push(format!("  apt-get install -y --no-install-recommends {}", self.packages.join(" ")));
        }
        if self.nightly {
            steps.push("  rustup toolchain install nightly --component rust-src".to_owned());
        }
        if let Some(compiler) = &self.linker {
            let prefix = match compiler {
                Compiler::Debian => format!("LLVM_PREFIX={LLVM_PREFIX} "),
                Compiler::Nightly => String::new(),
            };
            steps.push(format!("  {prefix}{}", line(&install_linker(compiler))));
        }
        steps
    }
}

/// Carries the plan out.
fn install(plan: &Plan) -> Result<()> {
    if !plan.packages.is_empty() {
        install_packages(&plan.packages)?;
    }
    if plan.nightly {
        announce(Command::new("rustup").args([
            "toolchain",
            "install",
            "nightly",
            "--component",
            "rust-src",
        ]))?;
    }
    if let Some(compiler) = &plan.linker {
        announce(&mut install_linker(compiler))?;
    }
    Ok(())
}

/// Builds bpf-linker into cargo's own bin directory, where it stays for every clone.
fn install_linker(compiler: &Compiler) -> Command {
    let mut cargo = ebpf::scrubbed("cargo");
    cargo.args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION]);
    if *compiler == Compiler::Debian {
        // the plain `llvm-config` on the path may belong to another LLVM
        cargo.args(LLVM_FEATURES).env("LLVM_PREFIX", LLVM_PREFIX);
    }
    cargo
}

/// Installs Debian packages and removes none: `rustc-web` conflicts with Debian's own rustup. An index that has
/// grown old names files that are gone; a fresh one is tried once.
fn install_packages(packages: &[&str]) -> Result<()> {
    let mut apt = apt_install(packages);
    apt.arg("-y").env("DEBIAN_FRONTEND", "noninteractive");
    announce(&mut apt).or_else(|_| {
        announce(Command::new("apt-get").arg("update"))?;
        announce(&mut apt)
    })
}

/// Whether the package index, made anew if need be, is enough to install every package without removing any.
fn available(packages: &[&str]) -> Result<bool> {
    Ok(known(packages)? || {
        announce(Command::new("apt-get").arg("update"))?;
        known(packages)?
    })
}

fn known(packages: &[&str]) -> Result<bool> {
    let output = apt_install(packages).arg("--simulate").output().context("cannot start apt-get")?;
    Ok(output.status.success())
}

fn apt_install(packages: &[&str]) -> Command {
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--no-install-recommends", "--no-remove"]).args(packages);
    apt
}

/// Says what is run, runs it, and fails when it fails.
pub fn announce(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("setup: {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    ensure!(status.success(), "`{line}` failed ({status})");
    Ok(())
}

/// The command as a person would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// What is used, in a few words.
fn describe(tools: &Toolchain) -> String {
    let compiler = match tools.compiler {
        Compiler::Debian => "Debian's compiler for eBPF",
        Compiler::Nightly => "rustup's nightly with its sources",
    };
    format!("{compiler}, {}", tools.linker.display())
}

/// Where on the path this program is.
pub fn find(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut files = std::env::split_paths(&paths).chain(usual).map(|directory| directory.join(program));
    files.find(|file| file.is_file())
}

/// The workspace's root.
///
/// # Errors
/// Never, in a workspace.
pub fn workspace() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.map(Path::to_path_buf).context("no workspace above this package")
}

/// Whether this process may install and load: its effective user is root.
///
/// # Errors
/// When /proc cannot be read.
pub fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let uids =
        status.lines().find_map(|line| line.strip_prefix("Uid:")).context("no Uid in /proc/self/status")?;
    Ok(uids.split_whitespace().nth(1) == Some("0"))
}
