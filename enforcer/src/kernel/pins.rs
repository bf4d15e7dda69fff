//! What is pinned on bpffs and where: `<root>/<MAP>`, `<root>/progs/<program>`, `<root>/bottles/<name>/<hook>`, and
//! `<root>/outlived/<cgroup id>/<hook>` of bottles that were let go when their cgroup was gone and sockets of it were not.
//!
//! Three facts that no kernel object holds are links beside them: `<root>/abi` points to the version, `<root>/build`
//! to the build whose programs every link runs, and `<root>/bottles/<name>/slot` to the slot. This file lists and
//! removes; what a pin means is `loader`'s and `programs`'.
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use enforcer_ebpf::ABI_VERSION;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::refusal::failed;
use super::{KernelError, sys};
use crate::lane::is_own_guard;

/// Where bpffs is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Directory of what was set aside.
const OUTLIVED: &str = "outlived";
/// Length of a name that bpffs takes, bytes.
const NAME_MAX: usize = 255;

/// The pins of one controller.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins of the host's controller, or of a named instance.
    pub fn of(instance: Option<&str>) -> Self {
        let name =
            instance.map_or_else(|| "enforcer".to_owned(), |name| format!("enforcer-{}", escape(name)));
        Self { root: Path::new(BPFFS).join(name) }
    }

    /// The directory of all of them; maps lie in it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A program's pin.
    pub fn program(&self, program: &str) -> PathBuf {
        self.root.join("progs").join(program)
    }

    /// A bottle's directory.
    pub fn bottle(&self, name: &str) -> PathBuf {
        self.root.join("bottles").join(escape(name))
    }

    /// The pin of a bottle's link.
    pub fn link(&self, name: &str, hook: &str) -> PathBuf {
        self.bottle(name).join(hook)
    }

    /// Makes the directories, and refuses what a controller of another version has pinned there. Whether there
    /// was nothing yet.
    pub fn prepare(&self) -> Result<bool, KernelError> {
        let version = self.root.join("abi");
        let fresh =
            !version.is_symlink() && !self.root.join("BOTTLES").exists() && self.bottles()?.is_empty();
        let inside = ["progs", "bottles", OUTLIVED].map(|name| self.root.join(name));
        for directory in std::iter::once(&self.root).chain(&inside) {
            make_directory(directory)?;
        }
        if fresh {
            let made = symlink(ABI_VERSION.to_string(), &version);
            return made.map(|()| true).map_err(|source| failed("cannot pin", &version, source));
        }
        match fs::read_link(&version) {
            Ok(there) if there == Path::new(&ABI_VERSION.to_string()) => Ok(false),
            Ok(there) => Err(KernelError::Pins {
                what: format!(
                    "version {} of the maps is pinned, this controller has {ABI_VERSION}",
                    there.display()
                ),
                path: version,
            }),
            Err(error) => Err(KernelError::Pins { path: version, what: error.to_string() }),
        }
    }

    /// The build whose programs are pinned and run by every link; `None` when that is not known.
    pub fn build(&self) -> Option<String> {
        fs::read_link(self.root.join("build")).ok()?.into_os_string().into_string().ok()
    }

    /// Says which build it is, or, with `None`, that it is not known: then the next controller loads its own.
    ///
    /// # Errors
    /// When that cannot be pinned.
    pub fn set_build(&self, build: Option<&str>) -> Result<(), KernelError> {
        let link = self.root.join("build");
        remove_pin(&link)?;
        let Some(build) = build else { return Ok(()) };
        symlink(build, &link).map_err(|source| failed("cannot pin", &link, source))
    }

    /// Makes a bottle's directory and writes its slot there.
    pub fn add_bottle(&self, name: &str, slot: u32) -> Result<(), KernelError> {
        let directory = self.bottle(name);
        if escape(name).len() > NAME_MAX {
            let source = io::Error::from(io::ErrorKind::InvalidFilename);
            return Err(failed("cannot pin", &directory, source));
        }
        fs::create_dir(&directory).map_err(|source| failed("cannot make", &directory, source))?;
        let slot_link = directory.join("slot");
        symlink(slot.to_string(), &slot_link).map_err(|source| failed("cannot pin", &slot_link, source))
    }

    /// The slot written in a bottle's directory.
    pub fn slot(&self, name: &str) -> Result<u32, KernelError> {
        let path = self.bottle(name).join("slot");
        let wrong = |what: String| KernelError::Pins { path: path.clone(), what };
        let target = fs::read_link(&path).map_err(|error| wrong(error.to_string()))?;
        let number = target.to_str().and_then(|text| text.parse().ok());
        number.ok_or_else(|| wrong(format!("{} is not a slot", target.display())))
    }

    /// Names of what is pinned of a bottle, in no order: its hooks, beside the slot.
    pub fn links(&self, name: &str) -> Result<Vec<OsString>, KernelError> {
        let paths = list(&self.bottle(name))?;
        Ok(paths.iter().filter_map(|path| path.file_name().map(OsStr::to_owned)).collect())
    }

    /// Names of the bottles that are pinned, in no order.
    pub fn bottles(&self) -> Result<Vec<String>, KernelError> {
        let directory = self.root.join("bottles");
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|source| failed("cannot read", &directory, source))?,
        };
        entries
            .map(|entry| {
                let entry = entry.map_err(|source| failed("cannot read", &directory, source))?;
                let name = entry.file_name().to_str().and_then(unescape);
                name.ok_or_else(|| KernelError::Pins {
                    path: entry.path(),
                    what: "not a bottle's name".to_owned(),
                })
            })
            .collect()
    }

    /// Takes a bottle's hooks off its cgroup and removes its directory. What is not there is no error.
    pub fn remove_bottle(&self, name: &str) -> Result<(), KernelError> {
        remove_links(&self.bottle(name))
    }

    /// Keeps a bottle's hooks where they are, under no bottle's name, for as long as [`Self::sweep`] finds them on.
    pub fn set_aside(&self, name: &str, cgroup_id: u64) -> Result<(), KernelError> {
        let (from, to) = (self.bottle(name), self.root.join(OUTLIVED).join(cgroup_id.to_string()));
        fs::rename(&from, &to).map_err(|source| failed("cannot set aside", &from, source))
    }

    /// Removes what was set aside and is on nothing any more: the last socket of that cgroup was closed.
    pub fn sweep(&self) -> Result<(), KernelError> {
        for directory in list(&self.root.join(OUTLIVED))? {
            let mut is_on = false;
            for path in list(&directory)?.iter().filter(|path| !path.is_symlink()) {
                let info = sys::open_pin(path).and_then(|link| sys::link_info(link.as_fd()));
                is_on |= info.map_err(|source| failed("cannot read", path, source))?.cgroup_id != 0;
            }
            if !is_on {
                remove_links(&directory)?;
            }
        }
        Ok(())
    }

    /// Removes everything; returns how many bottles were pinned. Not being there is no error.
    pub fn remove_all(&self) -> Result<usize, KernelError> {
        let bottles = self.root.join("bottles");
        let mut count = 0;
        // by directory, not by name: what cannot be read as a name has to go too
        for directory in list(&bottles)? {
            remove_links(&directory)?;
            let name = directory.file_name().and_then(OsStr::to_str).and_then(unescape);
            count += usize::from(!name.is_some_and(|name| is_own_guard(&name)));
        }
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("cannot remove", &self.root, error))
            }
            _ => Ok(count),
        }
    }
}

/// Mounts bpffs if it is not.
pub fn mount_bpffs() -> Result<(), KernelError> {
    let is_bpffs = |path: &str| statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if is_bpffs(BPFFS) {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700")).map_err(|error| {
        KernelError::Unsupported {
            what: format!("cannot mount the bpf file system at {BPFFS}: {error}"),
            hint: format!("mount it from the host: mount -t bpf bpf {BPFFS}"),
        }
    })
}

/// Removes a pin; what it names stays where it is in use. Not being there is no error.
pub fn remove_pin(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("cannot remove", path, error)),
        _ => Ok(()),
    }
}

/// Detaches every link of a directory, then removes the directory.
fn remove_links(directory: &Path) -> Result<(), KernelError> {
    let mut paths = list(directory)?;
    // the slot goes last: as long as a hook is there, it is known whose it is
    paths.sort_by_key(|path| path.is_symlink());
    for path in paths {
        if !path.is_symlink() {
            let link = sys::open_pin(&path).map_err(|source| failed("cannot open", &path, source))?;
            sys::link_detach(link.as_fd()).map_err(|source| failed("cannot detach", &path, source))?;
        }
        fs::remove_file(&path).map_err(|source| failed("cannot remove", &path, source))?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("cannot remove", directory, error))
        }
        _ => Ok(()),
    }
}

/// The paths in a directory; none when it is not there.
fn list(directory: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| failed("cannot read", directory, source))?,
    };
    let paths: io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    paths.map_err(|source| failed("cannot read", directory, source))
}

/// Makes a directory of root's own, or refuses one that is there and is not: what is pinned there is trusted.
fn make_directory(path: &Path) -> Result<(), KernelError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => return result.map_err(|source| failed("cannot make", path, source)),
    }
    let there = fs::symlink_metadata(path).map_err(|source| failed("cannot read", path, source))?;
    if there.is_dir() && there.uid() == 0 && there.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(KernelError::Pins {
        path: path.to_owned(),
        what: "is not a directory of root's own, mode 0700".to_owned(),
    })
}

/// A name as bpffs takes it: it refuses dots, so every byte but letters, digits, `-` and `_` becomes `%XX`.
fn escape(name: &str) -> String {
    let mut escaped = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// The name that [`escape`] made this of.
fn unescape(escaped: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = escaped.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_file_system() {
        for name in ["b1", "a.b", "..", "a/b", "ünïcode %41", "tab\there", ""] {
            let escaped = escape(name);
            assert!(!escaped.contains(['.', '/']), "{escaped}");
            assert_eq!(unescape(&escaped).as_deref(), Some(name));
        }
        assert_eq!(unescape("%4"), None);
        assert_eq!(unescape("%zz"), None);
    }

    #[test]
    fn each_instance_has_its_own_directory() {
        assert_eq!(Pins::of(None).root(), Path::new("/sys/fs/bpf/enforcer"));
        assert_eq!(Pins::of(Some("t.1")).root(), Path::new("/sys/fs/bpf/enforcer-t%2E1"));
        assert_eq!(Pins::of(None).link("a", "egress"), Path::new("/sys/fs/bpf/enforcer/bottles/a/egress"));
    }
}
