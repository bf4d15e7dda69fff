//! The meter's first act: it stops being root, for good, and can prove it.
//!
//! Not here: what the meter does afterwards. Must run before any thread is started.
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getresgid, getresuid, setgroups, setresgid, setresuid, setuid};

/// Why the meter would still have a way to be root.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Asked to run as root.
    #[error("the meter does not run as root: give it a user and a group of its own")]
    Root,
    /// The kernel refused a step.
    #[error("privileges could not be dropped: {step}: {errno}")]
    Refused {
        /// What was asked.
        step: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// All steps went through, and root can still be had, or the user is not the one asked for.
    #[error("privileges are not gone after they were dropped")]
    Regained,
}

/// Becomes `uid` and `gid` for good. A process that is not root must be that user already.
///
/// # Errors
/// When either is 0, or the kernel refuses a step, or root could be had again.
pub fn drop_to(uid: u32, gid: u32) -> Result<(), PrivilegeError> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    if uid.is_root() || gid.as_raw() == 0 {
        return Err(PrivilegeError::Root);
    }
    if Uid::effective().is_root() {
        step("setgroups", setgroups(&[]))?;
        step("setresgid", setresgid(gid, gid, gid))?;
        step("setresuid", setresuid(uid, uid, uid))?;
    }
    step("no_new_privs", prctl::set_no_new_privs())?;
    // The change of user clears it, so it comes after.
    step("death signal", prctl::set_pdeathsig(Signal::SIGKILL))?;
    verify(uid, gid)
}

/// Raises the limit of open descriptors as far as it goes: a stream takes two.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_descriptor_limit() -> Result<u64, PrivilegeError> {
    let (_, most) = step("getrlimit", getrlimit(Resource::RLIMIT_NOFILE))?;
    step("setrlimit", setrlimit(Resource::RLIMIT_NOFILE, most, most))?;
    Ok(most)
}

/// Whether every id is the one asked for and the way back is closed.
fn verify(uid: Uid, gid: Gid) -> Result<(), PrivilegeError> {
    let users = step("getresuid", getresuid())?;
    let groups = step("getresgid", getresgid())?;
    let user_is = [users.real, users.effective, users.saved].iter().all(|id| *id == uid);
    let group_is = [groups.real, groups.effective, groups.saved].iter().all(|id| *id == gid);
    if user_is && group_is && setuid(Uid::from_raw(0)).is_err() {
        Ok(())
    } else {
        Err(PrivilegeError::Regained)
    }
}

/// Names the step that the kernel refused.
fn step<T>(step: &'static str, result: nix::Result<T>) -> Result<T, PrivilegeError> {
    result.map_err(|errno| PrivilegeError::Refused { step, errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_no_user_for_the_meter() {
        assert!(matches!(drop_to(0, 65534), Err(PrivilegeError::Root)));
        assert!(matches!(drop_to(65534, 0), Err(PrivilegeError::Root)));
    }
}
