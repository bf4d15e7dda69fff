//! The system calls that are left to the lane once it has its sockets: to take connections, to hear and to answer.
//!
//! An allow-list; anything else kills the process at once, and the controller starts another. No new socket, no
//! connection, no name for a socket, no file, no program, no thread, no other process. Not here: what an answer
//! may reach (the lane's cgroup).
use std::collections::BTreeMap;

use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule};

/// Calls that are allowed whatever their arguments.
const ALLOWED: &[i64] = &[
    // connections are taken, read, answered, closed
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // waiting
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // memory; `mmap` and `mprotect` below
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    // time and chance, where the kernel has to be asked for them
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    // signals that came, and the end
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Why the lane would have more calls than it needs.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The list cannot be made into a filter.
    #[error("the system call filter cannot be made: {0}")]
    Made(#[from] BackendError),
    /// The kernel did not take it.
    #[error("the system call filter cannot be put on: {0}")]
    PutOn(#[from] seccompiler::Error),
}

/// Puts the filter on this thread, for good. The process must have no other one.
///
/// # Errors
/// When the kernel has no such filters.
pub fn confine() -> Result<(), SeccompError> {
    Ok(seccompiler::apply_filter(&filter()?)?)
}

/// Kills the process at any call that is not listed, and at any of another architecture's numbers.
fn filter() -> Result<BpfProgram, SeccompError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let executable = MaskedEq(flag(libc::PROT_EXEC));
    for (call, argument, comparison, value) in [
        // no memory that can be executed
        (libc::SYS_mmap, 2, executable.clone(), 0),
        (libc::SYS_mprotect, 2, executable, 0),
        // a socket is made not to block, and looked at whether it is; before it is closed, whether it is one
        (libc::SYS_ioctl, 1, Eq, libc::FIONBIO),
        (libc::SYS_fcntl, 1, Eq, flag(libc::F_GETFL)),
        (libc::SYS_fcntl, 1, Eq, flag(libc::F_GETFD)),
    ] {
        let condition = SeccompCondition::new(argument, Dword, comparison, value)?;
        rules.entry(call).or_default().push(SeccompRule::new(vec![condition])?);
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture)?;
    Ok(filter.try_into()?)
}

/// A flag of the C interface, which is never negative, as the kernel compares it.
fn flag(flag: i32) -> u64 {
    u64::from(flag.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_reaches_out_is_on_the_list() {
        for call in [
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_bpf,
            libc::SYS_prctl,
        ] {
            assert!(!ALLOWED.contains(&call), "{call}");
        }
    }

    #[test]
    fn the_list_makes_a_filter() {
        assert!(filter().unwrap().len() > ALLOWED.len());
    }
}
