//! The state directory: whose it is, the lock of the one daemon that works on it, and where the public files of
//! that daemon stand. Reads and writes nothing of what lies in it.
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::hash::Hasher;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{Uid, User};
use siphasher::sip::SipHasher13;

/// The default state directory, in the home of the user the process runs as.
const DEFAULT_NAME: &str = ".bot-bottle";
/// Where public files of daemons stand.
const RUN_ROOT: &str = "/run";
/// The default daemon's directory there, and the first part of every other's.
const RUN_NAME: &str = "enforcer";
const SOCKET_FILE: &str = "control.sock";
const LOCK_FILE: &str = "daemon.lock";
/// Characters of an instance's name.
const INSTANCE_LEN: usize = 12;

/// Why a state directory is not taken; one line each.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory, one above it, or a file in it is not what it should be.
    #[error("{}: {what}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: String,
    },
    /// Another daemon works on it.
    #[error("{}: another daemon is running on this state directory (pid {pid})", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The other daemon, as it wrote itself down.
        pid: String,
    },
}

impl StateError {
    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> &str {
        match self {
            Self::Unusable { hint, .. } => hint,
            Self::Locked { .. } => "stop it first, or give this one another --state-dir",
        }
    }

    fn new(path: &Path, what: impl Into<String>, hint: &str) -> Self {
        Self::Unusable { path: path.to_owned(), what: what.into(), hint: hint.to_owned() }
    }

    fn io(path: &Path, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "make the directories above it first",
            io::ErrorKind::PermissionDenied => "run as root",
            _ => "name another directory with --state-dir",
        };
        Self::new(path, error.to_string(), hint)
    }
}

/// A state directory that is this process's user's alone.
#[derive(Debug)]
pub struct StateDir {
    /// Canonical.
    path: PathBuf,
    /// Of a directory that was named; `None` for the default one.
    instance: Option<String>,
}

/// Held by the daemon for as long as it lives; the kernel gives it up when the process dies, however it dies.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl StateDir {
    /// Opens the directory that was named, or the default one, `~/.bot-bottle` of the user the process runs as
    /// (by the password database, not by `HOME`); makes it when it is missing.
    ///
    /// # Errors
    /// When it is no directory or a link, belongs to another user, is open to group or others, or when somebody
    /// else could replace it.
    pub fn open(explicit: Option<&Path>) -> Result<Self, StateError> {
        let given = match explicit {
            Some(path) => std::path::absolute(path).map_err(|error| StateError::io(path, &error))?,
            None => default_path()?,
        };
        // a slash at the end would look through a link at what it points to
        let given: PathBuf = given.components().collect();
        check_way(&given, "the state directory")?;
        make_missing(&given, 0o700)?;
        check_own(&given)?;
        let path = given.canonicalize().map_err(|error| StateError::io(&given, &error))?;
        check_way(&path, "the state directory")?;
        let instance = explicit.map(|_| instance_name(&path));
        Ok(Self { path, instance })
    }

    /// The directory, canonical.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Twelve of `[a-z0-9]` that name the daemon of this directory on this host, the same at every start;
    /// `None` for the default directory.
    #[must_use]
    pub fn instance(&self) -> Option<&str> {
        self.instance.as_deref()
    }

    /// Takes the directory for this process.
    ///
    /// # Errors
    /// When another daemon has it.
    pub fn lock(&self) -> Result<Lock, StateError> {
        let path = self.file(LOCK_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(|error| StateError::io(&path, &error))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err((file, Errno::EWOULDBLOCK)) => return Err(self.locked_by(file)),
            Err((_, errno)) => return Err(StateError::io(&path, &errno.into())),
        };
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| StateError::io(&path, &error))?;
        Ok(Lock { _file: file })
    }

    fn locked_by(&self, mut file: File) -> StateError {
        let mut pid = String::new();
        let known = file.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
        let pid = if known { pid.trim().to_owned() } else { "not written down yet".to_owned() };
        StateError::Locked { path: self.path.clone(), pid }
    }

    /// The directory for files that others may read (the CA's certificate): `/run/enforcer`, or
    /// `/run/enforcer-INSTANCE` for a directory that was named, because nobody else reaches into that one.
    /// Made when it is missing.
    ///
    /// # Errors
    /// When it cannot be made, or somebody else could write into it.
    pub fn run_dir(&self) -> Result<PathBuf, StateError> {
        run_dir_in(Path::new(RUN_ROOT), self.instance())
    }

    /// Where that directory is, made or not.
    #[must_use]
    pub fn run_path(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(run_name(self.instance()))
    }

    /// Where the control socket of this directory's daemon stands.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        control_socket(self.instance.as_ref().map(|_| self.path()))
    }
}

/// Where the control socket stands: in the state directory that was named, else `/run/enforcer/control.sock`.
#[must_use]
pub fn control_socket(explicit: Option<&Path>) -> PathBuf {
    explicit.map_or_else(|| Path::new(RUN_ROOT).join(RUN_NAME), Path::to_owned).join(SOCKET_FILE)
}

fn default_path() -> Result<PathBuf, StateError> {
    let uid = Uid::effective();
    match User::from_uid(uid) {
        Ok(Some(user)) => Ok(user.dir.join(DEFAULT_NAME)),
        Ok(None) | Err(_) => {
            let what = format!("uid {uid} has no home in the password database");
            Err(StateError::new(Path::new(DEFAULT_NAME), what, "name a directory with --state-dir"))
        }
    }
}

/// Whether anybody but root and this user could swap a directory on the way to what is there, or the link that names
/// one. `what` is there, for words.
///
/// # Errors
/// When somebody could, or it cannot be looked at.
pub fn check_way(path: &Path, what: &str) -> Result<(), StateError> {
    for above in path.ancestors().skip(1) {
        let about = fs::symlink_metadata(above).map_err(|error| StateError::io(above, &error))?;
        let uid = about.uid();
        if uid != 0 && uid != Uid::effective().as_raw() {
            let what = format!("it lies above {what} and belongs to uid {uid}");
            return Err(StateError::new(above, what, "keep it under directories of root"));
        }
        // in a sticky directory only the owner of an entry can replace it; a link's own mode means nothing
        let sticky = about.mode() & 0o1000 != 0;
        if about.is_dir() && about.mode() & 0o022 != 0 && !sticky {
            let what = format!("it lies above {what} and others can write it");
            return Err(StateError::new(above, what, "chmod go-w it, or keep what is below elsewhere"));
        }
    }
    Ok(())
}

fn make_missing(path: &Path, mode: u32) -> Result<(), StateError> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode))
            .map_err(|error| StateError::io(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(StateError::io(path, &error)),
    }
}

/// Looks at the directory itself, never through a link, by a descriptor that only a directory gives.
fn look_at(path: &Path) -> Result<Metadata, StateError> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    match opened.and_then(|dir| dir.metadata()) {
        Ok(about) => Ok(about),
        Err(_) if path.is_symlink() => {
            Err(StateError::new(path, "it is a symbolic link", "name the directory itself"))
        }
        Err(error) if error.raw_os_error() == Some(Errno::ENOTDIR as i32) => {
            Err(StateError::new(path, "it is not a directory", "name a directory"))
        }
        Err(error) => Err(StateError::io(path, &error)),
    }
}

fn check_own(path: &Path) -> Result<(), StateError> {
    let about = look_at(path)?;
    let own = Uid::effective().as_raw();
    if about.uid() != own {
        let what = format!("it belongs to uid {}, not to uid {own}", about.uid());
        return Err(StateError::new(path, what, "run as its owner (root), or chown it"));
    }
    let mode = about.mode() & 0o7777;
    if mode != 0o700 {
        let what = format!("its mode is {mode:04o}, not 0700");
        return Err(StateError::new(path, what, "chmod 700 it"));
    }
    Ok(())
}

fn run_name(instance: Option<&str>) -> String {
    instance.map_or_else(|| RUN_NAME.to_owned(), |instance| format!("{RUN_NAME}-{instance}"))
}

fn run_dir_in(root: &Path, instance: Option<&str>) -> Result<PathBuf, StateError> {
    let path = root.join(run_name(instance));
    make_missing(&path, 0o755)?;
    let about = look_at(&path)?;
    if about.uid() != Uid::effective().as_raw() || about.mode() & 0o022 != 0 {
        let what = format!("it belongs to uid {}, mode {:04o}", about.uid(), about.mode() & 0o7777);
        return Err(StateError::new(&path, what, "remove it, and start again"));
    }
    Ok(path)
}

/// The hash is SipHash-1-3 with a zero key: a name must outlive an upgrade, which the standard library's own
/// hasher does not promise.
fn instance_name(path: &Path) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut hasher = SipHasher13::new();
    hasher.write(path.as_os_str().as_encoded_bytes());
    let mut rest = hasher.finish();
    let mut name = String::with_capacity(INSTANCE_LEN);
    for _ in 0..INSTANCE_LEN {
        // below 36, so it always fits
        let digit = usize::try_from(rest % 36).unwrap_or_default();
        name.push(char::from(DIGITS[digit]));
        rest /= 36;
    }
    name
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::unistd::chown;
    use tempfile::TempDir;

    use super::*;

    fn refused<T: std::fmt::Debug>(result: Result<T, StateError>) -> String {
        let error = result.unwrap_err();
        format!("{error} [{}]", error.hint())
    }

    #[test]
    fn a_missing_directory_is_made_for_its_owner_alone() {
        let temp = TempDir::new().unwrap();
        let path = temp.path().join("state");
        let state = StateDir::open(Some(&path)).unwrap();
        assert_eq!(state.path(), path.canonicalize().unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(state.control_socket(), state.path().join("control.sock"));
    }

    #[test]
    fn the_instance_is_of_the_place_and_not_of_the_spelling() {
        let temp = TempDir::new().unwrap();
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        let name = |path: &Path| StateDir::open(Some(path)).unwrap().instance().unwrap().to_owned();
        assert_ne!(name(&a), name(&b));
        assert_eq!(name(&a), name(&temp.path().join("b/../a/.")));
        // written down: it names pins that the next version must find
        assert_eq!(instance_name(Path::new("/var/lib/enforcer")), "lxqd0eozj2ap");
    }

    #[test]
    fn the_default_is_the_home_of_the_effective_user() {
        let home = User::from_uid(Uid::effective()).unwrap().unwrap().dir;
        assert_eq!(default_path().unwrap(), home.join(".bot-bottle"));
        assert_eq!(control_socket(None), Path::new("/run/enforcer/control.sock"));
    }

    #[test]
    fn what_is_not_a_directory_of_ours_alone_is_refused() {
        let temp = TempDir::new().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::write(at("file"), "").unwrap();
        StateDir::open(Some(&at("real"))).unwrap();
        symlink(at("real"), at("link")).unwrap();
        DirBuilder::new().mode(0o750).create(at("wide")).unwrap();
        fs::create_dir(at("writable")).unwrap();
        fs::set_permissions(at("writable"), Permissions::from_mode(0o777)).unwrap();
        for (name, words) in [
            ("file", "it is not a directory [name a directory]"),
            ("link", "it is a symbolic link [name the directory itself]"),
            ("wide", "its mode is 0750, not 0700 [chmod 700 it]"),
            ("writable/state", "it lies above the state directory and others can write it [chmod go-w it"),
            ("missing/state", "No such file or directory"),
            ("file/state", "Not a directory"),
        ] {
            let refused = refused(StateDir::open(Some(&at(name))));
            assert!(refused.contains(words), "{name}: {refused}");
        }
    }

    #[test]
    fn root_refuses_directories_of_others() {
        assert!(Uid::effective().is_root(), "this test needs root");
        let temp = TempDir::new().unwrap();
        let theirs = temp.path().join("theirs");
        StateDir::open(Some(&theirs)).unwrap();
        chown(&theirs, Some(1234.into()), None).unwrap();
        let words = refused(StateDir::open(Some(&theirs)));
        assert!(words.contains("it belongs to uid 1234, not to uid 0"), "{words}");
        let words = refused(StateDir::open(Some(&theirs.join("below"))));
        assert!(words.contains("above the state directory and belongs to uid 1234"), "{words}");
        let words = refused(run_dir_in(temp.path(), Some("none")).and_then(|path| {
            chown(&path, Some(1234.into()), None).unwrap();
            run_dir_in(temp.path(), Some("none"))
        }));
        assert!(words.contains("it belongs to uid 1234, mode 0755"), "{words}");
    }

    #[test]
    fn a_second_daemon_is_told_the_pid_of_the_first() {
        let temp = TempDir::new().unwrap();
        let state = StateDir::open(Some(&temp.path().join("state"))).unwrap();
        let lock = state.lock().unwrap();
        let words = refused(state.lock());
        assert!(words.contains(&format!("(pid {})", std::process::id())), "{words}");
        drop(lock);
        state.lock().unwrap();
    }

    #[test]
    fn a_lock_file_that_is_a_link_is_not_followed() {
        let temp = TempDir::new().unwrap();
        let state = StateDir::open(Some(&temp.path().join("state"))).unwrap();
        let target = temp.path().join("target");
        fs::write(&target, "precious").unwrap();
        symlink(&target, state.file(LOCK_FILE)).unwrap();
        refused(state.lock());
        assert_eq!(fs::read_to_string(target).unwrap(), "precious");
    }

    #[test]
    fn the_run_directory_can_be_read_by_all() {
        let temp = TempDir::new().unwrap();
        let default = run_dir_in(temp.path(), None).unwrap();
        assert_eq!(default, temp.path().join("enforcer"));
        assert_eq!(fs::metadata(&default).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(run_dir_in(temp.path(), Some("abc")).unwrap(), temp.path().join("enforcer-abc"));
        fs::set_permissions(&default, Permissions::from_mode(0o775)).unwrap();
        let words = refused(run_dir_in(temp.path(), None));
        assert!(words.contains("mode 0775 [remove it"), "{words}");
    }
}
