//! A mount namespace for one thread, so that a test can take mounts away or add some without the host's seeing it.
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Runs `work` on a thread of its own in a mount namespace of its own; programs that it starts are in there too.
pub fn private<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            work()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Takes a mount away in this namespace.
pub fn unmount(point: &Path) {
    umount2(point, MntFlags::MNT_DETACH).unwrap();
}

/// The mounts of this namespace, as proc_pid_mountinfo(5) has them. `/proc/self` would show the process's.
#[must_use]
pub fn mounts() -> String {
    std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// Mounts an empty tmpfs of `bytes` at `point`, mode 0700, in this namespace.
pub fn mount_small(point: &Path, bytes: usize) {
    let options = format!("size={bytes},mode=700");
    mount(Some("tmpfs"), point, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
}

/// Lets a file of the host's show another's content in this namespace.
pub fn show_instead(file: &Path, content: &Path) {
    mount(Some(content), file, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

/// Mounts cgroup v2 at `point`, as a host without v1 has it.
pub fn mount_cgroup2(point: &Path) {
    mount(Some("cgroup2"), point, Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
}
