//! The kernel's refusals in words: what was tried, why not, and what is usually behind it.
use std::error::Error;
use std::io;
use std::path::Path;

use aya::maps::MapError;

use super::KernelError;

/// A failed attachment, with what is usually behind it.
pub fn not_attached(cgroup: &Path, error: io::Error) -> KernelError {
    if error.raw_os_error() == Some(libc::EPERM) {
        return KernelError::Unsupported {
            what: format!("the kernel refuses to attach to {}: {error}", cgroup.display()),
            hint: "a program is attached exclusively to a cgroup above it (see `bpftool cgroup tree`), \
                   or CAP_BPF and CAP_NET_ADMIN are missing"
                .to_owned(),
        };
    }
    failed("cannot attach to", cgroup, error)
}

/// A refusal at a path.
pub fn failed(what: &str, path: &Path, source: io::Error) -> KernelError {
    KernelError::Io { what: format!("{what} {}", path.display()), source }
}

/// A refusal of the kernel or of aya, with the cause's own words.
pub fn refused(what: &str, error: &(dyn Error + 'static)) -> KernelError {
    let hint =
        "see `enforcer doctor`; cgroup v2, BPF and BTF are needed, and root with CAP_BPF and CAP_NET_ADMIN";
    KernelError::Unsupported { what: format!("{what}: {}", chain(error)), hint: hint.to_owned() }
}

/// An error and its causes on one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// Whether the kernel said ENOENT.
pub fn is_not_found(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}
