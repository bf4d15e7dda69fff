//! The emulated machine: starts qemu without KVM, passes its console on and keeps a copy. Ends it when it takes too long.
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::console::Console;
use super::package::Kernel;
use crate::watch::Watch;

/// A boot ends within this time, or is killed.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// No network card, no disk, no display; a reset, such as after a panic, ends it.
const MACHINE: &str =
    "-accel tcg,thread=multi -cpu max -smp 2 -m 2G -nodefaults -no-reboot -display none -serial stdio";
/// Of its messages the kernel prints the gravest alone, so that they do not cut a result line in two; a bug in it
/// is a panic, and a panic a reset.
const ARGUMENTS: &str = "console=ttyS0 loglevel=1 oops=panic panic=-1";

/// Boots the kernel with the archive as its file system; returns what its console said, which `log` keeps.
///
/// # Errors
/// When qemu cannot be started or fails, or does not end in time.
pub fn run(kernel: &Kernel, archive: &Path, arguments: &str, log: &Path) -> Result<Console> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(MACHINE.split(' ')).arg("-kernel").arg(&kernel.image).arg("-initrd").arg(archive);
    qemu.args(["-append", &format!("{ARGUMENTS} {arguments}")]);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut copy = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut child = qemu.spawn().context("cannot start qemu-system-x86_64")?;
    let output = child.stdout.take().context("qemu has no output")?;
    let watch = Watch::start(child.id(), LIMIT);
    let mut console = Console::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read the console")?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\r');
        println!("{line}");
        writeln!(copy, "{line}").with_context(|| format!("cannot write {}", log.display()))?;
        console.feed(line);
    }
    let status = child.wait().context("cannot wait for qemu")?;
    ensure!(
        watch.end(),
        "the machine did not power off within {} minutes and was killed",
        LIMIT.as_secs() / 60
    );
    ensure!(status.success(), "qemu failed ({status})");
    Ok(console)
}
