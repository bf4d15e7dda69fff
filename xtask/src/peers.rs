//! The programs that `cargo xtask bench meter` compares with: nginx and mitmproxy, below `target/peers` unless the
//! machine has them.
//!
//! Nothing is installed into the system: Debian's package of nginx would start a server of its own.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::setup;

/// The version that the figures are compared with.
const MITMPROXY: &str = "mitmproxy==11.0.2";

/// Where the peers are.
pub struct Peers {
    /// nginx.
    pub nginx: PathBuf,
    /// mitmproxy without a screen.
    pub mitmdump: PathBuf,
}

/// Finds or fetches them, and says what it does.
///
/// # Errors
/// When one is missing and cannot be fetched; the message names it.
pub fn ready() -> Result<Peers> {
    let dir = PathBuf::from("target/peers");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let dir = dir.canonicalize().context("target/peers")?;
    Ok(Peers { nginx: nginx(&dir)?, mitmdump: mitmdump(&dir)? })
}

/// The system's, or Debian's package unpacked.
fn nginx(dir: &Path) -> Result<PathBuf> {
    if let Some(found) = setup::find("nginx") {
        return Ok(found);
    }
    let unpacked = dir.join("nginx");
    let program = unpacked.join("usr/sbin/nginx");
    if !program.is_file() {
        let what = "nginx is missing, and `apt-get download nginx` gives none here: install it";
        setup::announce(Command::new("apt-get").args(["download", "nginx"]).current_dir(dir))
            .context(what)?;
        let package =
            fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path())).find(|path| is_package(path));
        let package = package.context("apt-get downloaded no package of nginx")?;
        setup::announce(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
    }
    ensure!(
        Command::new(&program).arg("-v").status().is_ok_and(|status| status.success()),
        "{} does not run here: install nginx",
        program.display()
    );
    Ok(program)
}

fn is_package(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("nginx_") && name.ends_with(".deb")
}

/// The system's, or one in a virtual environment of Python.
fn mitmdump(dir: &Path) -> Result<PathBuf> {
    if let Some(found) = setup::find("mitmdump") {
        return Ok(found);
    }
    let environment = dir.join("mitmproxy");
    let program = environment.join("bin/mitmdump");
    if !program.is_file() {
        let what = "mitmproxy is missing and cannot be fetched: install it";
        setup::announce(Command::new("python3").args(["-m", "venv"]).arg(&environment)).context(what)?;
        let mut pip = Command::new(environment.join("bin/pip"));
        setup::announce(pip.args(["install", "--quiet", MITMPROXY])).context(what)?;
    }
    Ok(program)
}
