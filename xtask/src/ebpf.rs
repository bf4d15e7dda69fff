//! How the eBPF object is built: the one place that knows its compiler, flags and environment.
//!
//! Without dependencies, because `enforcer/build.rs` includes this file too. It installs nothing (`setup` does).
use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The bpf-linker release that this tree is built with.
pub const LINKER_VERSION: &str = "0.13.0";
/// What the object is compiled for.
pub const TARGET: &str = "bpfel-unknown-none";
/// Debian's compiler for the web browsers' needs, which comes with `core` for eBPF.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// Variables that say where cargo finds and fetches things; all others of cargo and rustc are for the outer
/// build and would leak the host's flags into the object.
const KEPT: [&str; 6] =
    ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "RUSTUP_HOME"];
/// Prefixes of what belongs to the outer build.
const SCRUBBED: [&str; 6] = ["CARGO", "RUST", "__CARGO", "TARGET", "MAKEFLAGS", "MFLAGS"];

/// A compiler that has `core` for eBPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// Debian's packaged compiler and prebuilt `core`.
    Debian,
    /// rustup's nightly, which builds `core` from its sources.
    Nightly,
}

/// What builds the object: a compiler and the linker.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// Which compiler.
    pub compiler: Compiler,
    /// The bpf-linker binary.
    pub linker: PathBuf,
}

impl Toolchain {
    /// Finds what is installed.
    ///
    /// # Errors
    /// One sentence naming what is missing and the command that sets it up.
    pub fn find() -> Result<Self, String> {
        let missing = |what: &str| format!("{what} is not installed: run `cargo xtask setup`");
        let compiler = find_compiler().ok_or_else(|| missing("a Rust compiler for eBPF"))?;
        let linker = find_linker().ok_or_else(|| missing(&format!("bpf-linker {LINKER_VERSION}")))?;
        Ok(Self { compiler, linker })
    }

    /// Builds the object of the workspace at `root`, with these of its features, below `target_dir`; returns its path.
    ///
    /// # Errors
    /// When cargo cannot be started or fails; its own output has gone to stderr.
    pub fn build(&self, root: &Path, features: &str, target_dir: &Path) -> Result<PathBuf, String> {
        let mut cargo = self.cargo();
        cargo.current_dir(root).args(["build", "--release", "--locked", "--package", "enforcer-ebpf"]);
        cargo.args(["--bin", "enforcer-ebpf", "--features", features, "--target", TARGET, "--target-dir"]);
        cargo.arg(target_dir).env("CARGO_ENCODED_RUSTFLAGS", self.flags());
        // bitcode goes to bpf-linker, which optimises the whole: rustc's own LTO would be in its way
        cargo.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
        let status = cargo.status().map_err(|error| format!("cannot start cargo: {error}"))?;
        if !status.success() {
            return Err(format!("building the eBPF object failed ({status})"));
        }
        Ok(target_dir.join(TARGET).join("release/enforcer-ebpf"))
    }

    /// A cargo that compiles with this toolchain.
    fn cargo(&self) -> Command {
        match self.compiler {
            Compiler::Debian => {
                let mut cargo = scrubbed(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                // aya-ebpf needs `asm_experimental_arch`, a nightly feature
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Compiler::Nightly => {
                let mut cargo = scrubbed("rustup");
                cargo.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
                cargo
            }
        }
    }

    /// Compiler flags: debug information and BTF, which the loader and the verifier's messages use.
    fn flags(&self) -> String {
        let linker = format!("-Clinker={}", self.linker.display());
        [linker.as_str(), "-Cdebuginfo=2", "-Clink-arg=--btf"].join("\x1f")
    }
}

/// The command, without the environment of the cargo that runs this.
pub fn scrubbed(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| text.starts_with(prefix));
        if starts(&SCRUBBED) && !starts(&KEPT) {
            command.env_remove(&name);
        }
    }
    // set and empty, it also overrides a wrapper from the user's cargo configuration
    command.env("RUSTC_WRAPPER", "");
    command
}

/// The compiler to use, Debian's first: it needs no sources.
pub fn find_compiler() -> Option<Compiler> {
    if Path::new(DEBIAN_RUSTC).is_file() && Path::new(DEBIAN_CORE).is_dir() {
        return Some(Compiler::Debian);
    }
    let output = scrubbed("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end());
    let sources = sysroot.join("lib/rustlib/src/rust/library/core");
    (output.status.success() && sources.is_dir()).then_some(Compiler::Nightly)
}

/// bpf-linker of this tree's release, in cargo's own bin directory or on the path.
pub fn find_linker() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let paths = env::var_os("PATH").unwrap_or_default();
    home.map(|home| home.join("bin"))
        .into_iter()
        .chain(env::split_paths(&paths))
        .map(|directory| directory.join("bpf-linker"))
        .find(|file| file.is_file() && is_release(file))
}

/// Whether it is the release that this tree is built with (`bpf-linker 0.13.0`).
fn is_release(linker: &Path) -> bool {
    let output = Command::new(linker).arg("--version").output();
    output.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).split_whitespace().last() == Some(LINKER_VERSION)
    })
}
