//! The machine's only file system: busybox, the programs at the paths that they have here, their libraries, and the
//! modules that sockets may ask for. Made anew for every boot.
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::package::Kernel;
use super::programs::Suite;
use crate::setup;

/// Directories of modules: protocols (SCTP, vsock, netfilter), what they build on, and interfaces (veth, tun).
const MODULES: [&str; 6] = [
    "kernel/net",
    "kernel/lib",
    "kernel/crypto",
    "kernel/arch/x86/crypto",
    "kernel/drivers/net/veth.ko",
    "kernel/drivers/net/tun.ko",
];
/// Directories that the guest mounts something on, or that programs expect.
const DIRECTORIES: [&str; 9] = ["bin", "sbin", "proc", "sys", "dev", "tmp", "run", "root", "etc"];
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// Builds the archive below `work`; returns its path. `words` are the arguments of every test program.
///
/// # Errors
/// When a file cannot be read or written, or a tool fails.
pub fn build(
    work: &Path,
    kernel: &Kernel,
    helpers: &[PathBuf],
    suites: &[&Suite],
    words: &[String],
) -> Result<PathBuf> {
    let root = Root::new(work.join("root"))?;
    let busybox = setup::find("busybox").context("no busybox")?;
    root.copy(&busybox, Path::new("/bin/busybox"))?;
    root.libraries_of(&busybox)?;
    root.write("init", include_str!("init.sh"))?;
    fs::set_permissions(root.0.join("init"), fs::Permissions::from_mode(0o755))?;
    root.write("etc/passwd", PASSWD)?;
    root.write("etc/group", GROUP)?;
    root.write("words", &words.join(" "))?;
    let line = |suite: &&Suite| {
        format!("{} {} {}\n", suite.name, suite.directory.display(), suite.program.display())
    };
    root.write("suites", &suites.iter().map(line).collect::<String>())?;
    for suite in suites {
        root.program(&suite.program)?;
        root.directory(&suite.directory)?;
    }
    helpers.iter().try_for_each(|helper| root.program(helper))?;
    root.modules(kernel)?;
    root.pack(&work.join("initramfs.cpio"))
}

/// The tree that becomes the archive.
struct Root(PathBuf);

impl Root {
    /// Empty but for its directories.
    fn new(path: PathBuf) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let root = Self(path);
        DIRECTORIES.iter().try_for_each(|directory| root.directory(&Path::new("/").join(directory)))?;
        Ok(root)
    }

    /// Where an absolute path of the guest lies here.
    fn within(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn directory(&self, path: &Path) -> Result<()> {
        let path = self.within(path);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.0.join(path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Copies a file of this host to a path of the guest.
    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        self.directory(to.parent().context("a file has a directory")?)?;
        let copied = fs::copy(from, self.within(to));
        copied.map(drop).with_context(|| format!("cannot copy {}", from.display()))
    }

    /// A program without its debug information, which is nine tenths of it, and its libraries, at the same paths.
    fn program(&self, program: &Path) -> Result<()> {
        self.directory(program.parent().context("a program has a directory")?)?;
        let to = self.within(program);
        run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&to).arg(program))?;
        self.libraries_of(program)
    }

    /// The libraries of a program of this host, at the same paths.
    fn libraries_of(&self, program: &Path) -> Result<()> {
        for library in libraries(program)? {
            if !self.within(&library).exists() {
                self.copy(&library, &library)?;
            }
        }
        Ok(())
    }

    /// The modules, with the index by which the guest's modprobe finds them.
    fn modules(&self, kernel: &Kernel) -> Result<()> {
        let to = self.0.join("lib/modules").join(&kernel.release);
        for part in MODULES {
            let parent = to.join(part).parent().context("a part has a directory")?.to_path_buf();
            fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
            let from = kernel.modules.join(part);
            if from.exists() {
                run(Command::new("cp").arg("--recursive").arg(from).arg(parent))?;
            }
        }
        run(Command::new("busybox").args(["depmod", "-b"]).arg(&self.0).arg(&kernel.release))
    }

    /// Packs the tree, every file root's.
    fn pack(&self, archive: &Path) -> Result<PathBuf> {
        let output =
            fs::File::create(archive).with_context(|| format!("cannot make {}", archive.display()))?;
        let mut cpio = Command::new("cpio");
        cpio.args(["--create", "--format=newc", "--owner=+0:+0", "--null", "--quiet"]).current_dir(&self.0);
        let mut child = cpio.stdin(Stdio::piped()).stdout(output).spawn().context("cannot start cpio")?;
        let names = Command::new("find").args([".", "-print0"]).current_dir(&self.0).output();
        let names = names.context("cannot start find")?;
        ensure!(names.status.success(), "find failed ({})", names.status);
        child
            .stdin
            .take()
            .context("cpio has no input")?
            .write_all(&names.stdout)
            .context("cpio ended early")?;
        let status = child.wait().context("cannot wait for cpio")?;
        ensure!(status.success(), "cpio failed ({status})");
        Ok(archive.to_path_buf())
    }
}

/// The shared libraries of a program and its loader, by `ldd`; a static one has none.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    if String::from_utf8_lossy(&output.stderr).contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    ensure!(output.status.success(), "`ldd {}` failed ({})", program.display(), output.status);
    Ok(paths(&String::from_utf8_lossy(&output.stdout)))
}

/// The paths of `NAME => PATH (ADDRESS)` and `PATH (ADDRESS)` lines.
fn paths(listing: &str) -> Vec<PathBuf> {
    let words = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_are_the_paths_that_ldd_names() {
        let listing = "\tlinux-vdso.so.1 (0x00007f9e8566b000)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f9e84e1e000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f9e8566d000)\n";
        assert_eq!(
            paths(listing),
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
    }
}
