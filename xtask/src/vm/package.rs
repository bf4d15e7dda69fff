//! Debian's kernel packages: finds the newest of a series, downloads and unpacks it once. Installs nothing.
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::setup;

/// The flavour without drivers of real hardware: the smallest.
const FLAVOUR: &str = "cloud-amd64";

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// What `uname -r` says there.
    pub release: String,
    /// What is booted.
    pub image: PathBuf,
    /// Its modules, `kernel/…` below.
    pub modules: PathBuf,
}

/// The newest kernel of a series (`6.1`) that apt knows, unpacked below `work`.
///
/// # Errors
/// When apt knows none, or it can be neither found there nor downloaded.
pub fn fetch(series: &str, work: &Path) -> Result<Kernel> {
    let numeric = series.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    ensure!(numeric, "`{series}` is no kernel series: expected numbers with points, such as 6.1");
    let package = find(series)?;
    let unpacked = work.join(&package);
    if !unpacked.is_dir() {
        download(&package, work, &unpacked)?;
    }
    let release = package.trim_start_matches("linux-image-").to_owned();
    let kernel = Kernel {
        image: unpacked.join("boot").join(format!("vmlinuz-{release}")),
        modules: unpacked.join("lib/modules").join(&release),
        release,
    };
    ensure!(kernel.image.is_file() && kernel.modules.is_dir(), "{} holds no kernel", unpacked.display());
    Ok(kernel)
}

/// The name of the newest package; root makes an index anew that has none.
fn find(series: &str) -> Result<String> {
    if let Some(package) = newest(&listing()?, series) {
        return Ok(package);
    }
    if setup::is_root()? {
        setup::announce(Command::new("apt-get").arg("update"))?;
    }
    newest(&listing()?, series).with_context(|| {
        format!("apt knows no package linux-image-{series}.*-{FLAVOUR}: Debian 12 has it for 6.1")
    })
}

/// Names of all kernel packages, one a line.
fn listing() -> Result<String> {
    let output = Command::new("apt-cache").args(["pkgnames", "linux-image-"]).output();
    let output = output.context("cannot start apt-cache: the kernel comes from a Debian package")?;
    ensure!(output.status.success(), "apt-cache failed ({})", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The package with the greatest version among `linux-image-SERIES.*-FLAVOUR`.
fn newest(listing: &str, series: &str) -> Option<String> {
    let version = |package: &str| -> Option<Vec<u32>> {
        let version = package.strip_prefix("linux-image-")?.strip_suffix(FLAVOUR)?.strip_suffix('-')?;
        version.strip_prefix(series)?.strip_prefix('.')?;
        let numbers = version.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
        numbers.map(|number| number.parse().ok()).collect()
    };
    let candidates = listing.lines().filter_map(|package| Some((version(package)?, package)));
    candidates.max().map(|(_, package)| package.to_owned())
}

/// Downloads the package and unpacks it; what is there afterwards is whole.
fn download(package: &str, work: &Path, unpacked: &Path) -> Result<()> {
    let partial = work.join("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    let mut apt = Command::new("apt-get");
    apt.args(["download", package]).current_dir(&partial);
    setup::announce(&mut apt).or_else(|error| {
        ensure!(setup::is_root()?, error);
        setup::announce(Command::new("apt-get").arg("update"))?;
        setup::announce(&mut apt)
    })?;
    let mut files = fs::read_dir(&partial)?.filter_map(|entry| Some(entry.ok()?.path()));
    let archive = files.find(|path| path.extension() == Some(OsStr::new("deb")));
    let archive = archive.with_context(|| format!("no package in {}", partial.display()))?;
    let tree = partial.join("tree");
    setup::announce(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&tree))?;
    fs::rename(&tree, unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
    fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))
}

#[cfg(test)]
mod tests {
    use super::newest;

    #[test]
    fn the_newest_of_the_series_is_taken_by_number() {
        let listing = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64\n\
            linux-image-6.1.0-57-cloud-amd64-unsigned\nlinux-image-6.1.0-58-amd64\n\
            linux-image-6.12.117+deb12-cloud-amd64\nlinux-image-6.12.98+deb12-cloud-amd64\n\
            linux-image-6.12-cloud-amd64\nlinux-image-cloud-amd64\n";
        assert_eq!(newest(listing, "6.1").as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(listing, "6.12").as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(listing, "6.6"), None);
    }
}
