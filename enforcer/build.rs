//! Builds the eBPF programs with their own compiler, for `enforcer` to embed. Installs nothing.
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[allow(dead_code, reason = "xtask uses the other half of this file")]
#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

/// What the object is made from, and the migrations that a macro embeds; relative to the workspace's root.
const SOURCES: [&str; 6] = [
    "enforcer-ebpf/src",
    "enforcer-ebpf/Cargo.toml",
    "Cargo.toml",
    "Cargo.lock",
    "xtask/src/ebpf.rs",
    "migrations",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace above this package")?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo set no OUT_DIR")?);
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let toolchain = ebpf::Toolchain::find()?;
    println!("cargo::rerun-if-changed={}", toolchain.linker.display());
    for (features, name) in [("programs", "enforcer.bpf.o"), ("programs,log", "enforcer-log.bpf.o")] {
        let object = toolchain.build(root, features, &target_directory(&out).join("ebpf"))?;
        fs::copy(&object, out.join(name)).map_err(|error| format!("{}: {error}", object.display()))?;
    }
    Ok(())
}

/// The target directory above OUT_DIR, which cargo marks; a directory of its own below it serves all profiles.
fn target_directory(out: &Path) -> &Path {
    out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file()).unwrap_or(out)
}
