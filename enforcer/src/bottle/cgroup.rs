//! Finding, checking and making cgroup v2 directories: what a bottle is attached to.
//!
//! The mount is found, never assumed (hybrid hosts have it beside v1). A [`Cgroup`] is an opened directory, so a
//! path that is removed and made again is not mistaken for it. Nothing here attaches; `processes` freezes and kills.
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use crate::kernel;

/// Why a path or a process is not a cgroup that can be guarded.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 on this host.
    #[error("no cgroup v2 file system is mounted (mount -t cgroup2 none /sys/fs/cgroup)")]
    NoMount,
    /// A relative path.
    #[error("{0} is not an absolute path")]
    Relative(PathBuf),
    /// Nothing is there.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// A symbolic link, which could point elsewhere tomorrow.
    #[error("{0} is a symbolic link; give the directory itself")]
    Link(PathBuf),
    /// A file.
    #[error("{0} is not a directory")]
    NotDirectory(PathBuf),
    /// Some other file system, cgroup v1 included.
    #[error("{0} is not a cgroup v2 directory")]
    NotCgroup(PathBuf),
    /// The whole host.
    #[error("{0} is the root cgroup: it holds every process of the host")]
    Root(PathBuf),
    /// A part of a threaded subtree.
    #[error("{path} is of type `{kind}`: only a domain cgroup holds whole processes")]
    Threaded {
        /// The directory.
        path: PathBuf,
        /// The content of its `cgroup.type`.
        kind: String,
    },
    /// Something is there already.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// Processes are in it or below it.
    #[error("{0} still has processes")]
    Busy(PathBuf),
    /// No such process.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// Any other refusal.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// An opened cgroup v2 directory, never the root one.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    id: u64,
    directory: File,
}

/// Where cgroup v2 is mounted, from `/proc/self/mountinfo`.
///
/// # Errors
/// [`CgroupError::NoMount`], or when the list of mounts cannot be read.
pub fn mount() -> Result<PathBuf, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read(path).map_err(|source| failed("read", path, source))?;
    find_mount(&mounts).ok_or(CgroupError::NoMount)
}

impl Cgroup {
    /// Opens the cgroup at an absolute path.
    ///
    /// # Errors
    /// One for each way in which it is not a cgroup that can be guarded, see [`CgroupError`].
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        if !path.is_absolute() {
            return Err(CgroupError::Relative(path.to_owned()));
        }
        let metadata = fs::symlink_metadata(path).map_err(|source| missing_or("find", path, source))?;
        if metadata.is_symlink() {
            return Err(CgroupError::Link(path.to_owned()));
        }
        if !metadata.is_dir() {
            return Err(CgroupError::NotDirectory(path.to_owned()));
        }
        let path = fs::canonicalize(path).map_err(|source| missing_or("find", path, source))?;
        let directory =
            OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(&path);
        let directory = directory.map_err(|source| missing_or("open", &path, source))?;
        let file_system = fstatfs(&directory).map_err(|error| failed("examine", &path, error.into()))?;
        if file_system.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(CgroupError::NotCgroup(path));
        }
        let id = directory.metadata().map_err(|source| failed("examine", &path, source))?.ino();
        let cgroup = Self { path, id, directory };
        cgroup.check_kind()?;
        Ok(cgroup)
    }

    /// Opens the cgroup that a process is in.
    ///
    /// # Errors
    /// As [`Self::open`]; [`CgroupError::NoProcess`].
    pub fn of_pid(pid: u32) -> Result<Self, CgroupError> {
        Self::open(&path_of(pid)?)
    }

    /// Makes a cgroup; its parent must be there.
    ///
    /// # Errors
    /// As [`Self::open`]; [`CgroupError::Exists`]. On an error nothing new is left.
    pub fn create(path: &Path) -> Result<Self, CgroupError> {
        if !path.is_absolute() {
            return Err(CgroupError::Relative(path.to_owned()));
        }
        fs::create_dir(path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => CgroupError::Exists(path.to_owned()),
            _ => missing_or("make", path, source),
        })?;
        Self::open(path).or_else(|error| {
            fs::remove_dir(path).map_err(|source| failed("remove", path, source))?;
            Err(error)
        })
    }

    /// Removes the cgroup and those below it. One that is gone already is no error.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] when a process is in any of them; then none is removed.
    pub fn remove(self) -> Result<(), CgroupError> {
        if !self.exists() {
            return Ok(());
        }
        if self.populated()? {
            return Err(CgroupError::Busy(self.path));
        }
        remove_tree(&self.path)
    }

    /// Inode of the directory: the id by which the kernel's programs know it.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Absolute path, without links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every process in it and below it, in no order; none when it is gone.
    ///
    /// # Errors
    /// When the kernel does not let it be read.
    pub fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        collect_pids(&self.handle(), &mut pids)
            .map_err(|source| failed("read the processes of", &self.path, source))?;
        Ok(pids)
    }

    /// Ids of it and of all below it: what the kernel says of sockets that were made in them. Its own alone when it
    /// is gone.
    ///
    /// # Errors
    /// When the kernel does not let it be read.
    pub fn ids(&self) -> Result<HashSet<u64>, CgroupError> {
        let mut ids = HashSet::from([self.id]);
        collect_ids(&self.handle(), &mut ids).map_err(|source| failed("read", &self.path, source))?;
        Ok(ids)
    }

    /// Whether a process is in it or below it. A process that is gone is not; one whose cgroup cannot be told
    /// counts as inside, since what is inside is trusted less.
    #[must_use]
    pub fn contains(&self, pid: u32) -> bool {
        match path_of(pid) {
            Ok(path) => path.starts_with(&self.path) && self.exists(),
            Err(CgroupError::NoProcess(_)) => false,
            Err(_) => true,
        }
    }

    /// Whether any process is in it or below it; `false` when it is gone.
    ///
    /// # Errors
    /// When the kernel does not let it be read.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        match fs::read_to_string(self.handle().join("cgroup.events")) {
            Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
            Err(error) if is_missing(&error) => Ok(false),
            Err(source) => Err(failed("read the events of", &self.path, source)),
        }
    }

    /// Whether the directory is still there, and still this one.
    #[must_use]
    pub fn exists(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.id)
    }

    /// Refuses the root cgroup and the parts of threaded subtrees.
    fn check_kind(&self) -> Result<(), CgroupError> {
        // the root has no type; a container's root has one, but it is what is mounted
        let kind = match fs::read_to_string(self.handle().join("cgroup.type")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CgroupError::Root(self.path.clone()));
            }
            kind => kind.map_err(|source| failed("read the type of", &self.path, source))?,
        };
        if self.path == mount()? {
            return Err(CgroupError::Root(self.path.clone()));
        }
        match kind.trim_end() {
            "domain" | "domain threaded" => Ok(()),
            kind => Err(CgroupError::Threaded { path: self.path.clone(), kind: kind.to_owned() }),
        }
    }

    /// A path that leads to the opened directory itself, whatever stands at `path` now.
    pub(super) fn handle(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// The directory of the cgroup that a process is in; the root one too.
///
/// # Errors
/// [`CgroupError::NoProcess`], [`CgroupError::NoMount`], or when `/proc` cannot be read.
pub fn path_of(pid: u32) -> Result<PathBuf, CgroupError> {
    let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let lines = fs::read(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => CgroupError::NoProcess(pid),
        _ if source.raw_os_error() == Some(libc::ESRCH) => CgroupError::NoProcess(pid),
        _ => failed("read", &path, source),
    })?;
    let below = lines.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"));
    let below = below.ok_or(CgroupError::NoMount)?;
    Ok(mount()?.join(PathBuf::from(OsString::from_vec(below.to_vec()))))
}

/// How many processes are in the cgroup with this path and inode, and below it; `None` when it is gone. For showing:
/// it asks for less than [`Cgroup::open`], and what cannot be read counts as none.
#[must_use]
pub fn count(path: &Path, id: u64) -> Option<usize> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.ino() != id => return None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Ok(_) | Err(_) => {}
    }
    let mut pids = Vec::new();
    match collect_pids(path, &mut pids) {
        Ok(()) => {}
        Err(error) => tracing::debug!(path = %path.display(), %error, "its processes cannot be counted"),
    }
    Some(pids.len())
}

/// The directory of the cgroup with this id (its inode), wherever it is; `None` when there is none, or when it cannot
/// be told.
#[must_use]
pub fn path_of_id(id: u64) -> Option<PathBuf> {
    let mount = mount().ok()?;
    let directory = kernel::open_cgroup(File::open(&mount).ok()?.as_fd(), id).ok()?;
    let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()?;
    // removed meanwhile, its name leads nowhere, or to another one
    let same = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.ino() == id);
    (same && path.starts_with(mount)).then_some(path)
}

/// The mounted hierarchy of cgroup v2, to ask it for many.
pub struct Hierarchy(File);

impl Hierarchy {
    /// Finds and opens its top.
    ///
    /// # Errors
    /// When none is mounted, or it cannot be opened.
    pub fn open() -> io::Result<Self> {
        File::open(mount().map_err(io::Error::other)?).map(Self)
    }

    /// Whether there is no cgroup with this id (its inode) any more. Sockets that were made in it may still be there.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn has_lost(&self, id: u64) -> io::Result<bool> {
        match kernel::open_cgroup(self.0.as_fd(), id) {
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => Ok(true),
            found => found.map(|_| false),
        }
    }
}

/// The mount point of the first cgroup v2 line; fields as in proc_pid_mountinfo(5).
fn find_mount(mounts: &[u8]) -> Option<PathBuf> {
    mounts.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let point = fields.nth(4)?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (kind == b"cgroup2").then(|| PathBuf::from(OsString::from_vec(unescape(point))))
    })
}

/// Undoes mountinfo's `\ooo` for spaces, tabs, line ends and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

/// Adds the processes of a directory and of those below it.
fn collect_pids(directory: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(lines) => pids.extend(lines.lines().filter_map(|line| line.parse::<u32>().ok())),
        // a threaded child: its processes are listed in the domain above it
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) if is_missing(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    for child in children(directory)? {
        collect_pids(&child, pids)?;
    }
    Ok(())
}

/// Adds the ids of the directories below a directory; what vanishes meanwhile is skipped.
fn collect_ids(directory: &Path, ids: &mut HashSet<u64>) -> io::Result<()> {
    for child in children(directory)? {
        match fs::symlink_metadata(&child) {
            Ok(metadata) => ids.insert(metadata.ino()),
            Err(error) if is_missing(&error) => continue,
            Err(error) => return Err(error),
        };
        collect_ids(&child, ids)?;
    }
    Ok(())
}

/// Removes a directory and those below it, the lowest first.
fn remove_tree(directory: &Path) -> Result<(), CgroupError> {
    for child in children(directory).map_err(|source| failed("read", directory, source))? {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Err(CgroupError::Busy(directory.to_owned()))
        }
        Err(error) if !is_missing(&error) => Err(failed("remove", directory, error)),
        _ => Ok(()),
    }
}

/// The directories in a directory; none when it is gone. Its count of links says without reading it whether there
/// are any: two are its own, as on every file system that counts them.
fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::metadata(directory) {
        Ok(metadata) if metadata.nlink() == 2 => return Ok(Vec::new()),
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let entries = match fs::read_dir(directory) {
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Whether the kernel says that the cgroup is not there any more (ENODEV: removed while open).
pub(super) fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

pub(super) fn failed(what: &'static str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Io { what, path: path.to_owned(), source }
}

fn missing_or(what: &'static str, path: &Path, source: io::Error) -> CgroupError {
    match source.kind() {
        io::ErrorKind::NotFound => CgroupError::Missing(path.to_owned()),
        io::ErrorKind::NotADirectory => CgroupError::NotDirectory(path.to_owned()),
        _ => failed(what, path, source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_on_pure_and_hybrid_hosts() {
        let pure = b"24 1 0:22 / /proc rw shared:5 - proc proc rw\n\
                     30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_mount(pure), Some(PathBuf::from("/sys/fs/cgroup")));
        let hybrid = b"31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                       32 24 0:28 / /mnt/with\\040space rw master:1 shared:2 - cgroup2 none rw\n";
        assert_eq!(find_mount(hybrid), Some(PathBuf::from("/mnt/with space")));
        assert_eq!(find_mount(b"31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
        assert_eq!(find_mount(b"garbage\n\n"), None);
    }

    #[test]
    fn what_is_no_cgroup_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let link = directory.path().join("link");
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        assert!(matches!(Cgroup::open(Path::new("relative")), Err(CgroupError::Relative(_))));
        assert!(matches!(Cgroup::open(Path::new("/nowhere/x")), Err(CgroupError::Missing(_))));
        assert!(matches!(Cgroup::open(&file), Err(CgroupError::NotDirectory(_))));
        assert!(matches!(Cgroup::open(&link), Err(CgroupError::Link(_))));
        assert!(matches!(Cgroup::open(directory.path()), Err(CgroupError::NotCgroup(_))));
        assert!(matches!(Cgroup::open(&mount().unwrap()), Err(CgroupError::Root(_))));
        assert!(matches!(Cgroup::of_pid(u32::MAX), Err(CgroupError::NoProcess(_))));
    }
}
