//! The optional hook on socket() of every family: a program of the BPF LSM, attached to a bottle's cgroup.
//!
//! Not every kernel loads it, and one that loads it may never run it: it is used where it was seen to refuse a socket,
//! once, when the loader is opened. Where it is not, who could make packet sockets is not let into a confined bottle,
//! which is not decided here.
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf};
use rustix::net::{AddressFamily, SocketType};

use super::hooks::Hook;
use super::refusal::chain;
use super::sys;
use crate::bottle::cgroup::{self, Cgroup, CgroupError};

/// Where it is attached: `BPF_LSM_CGROUP`.
pub const HOOK: Hook =
    Hook { pin: "socket_create", program: "enforcer_socket_create", attach_type: 43, slot: true };
/// The LSM's hook that it runs at.
const LSM_HOOK: &str = "socket_create";
/// How often, and after which pause, the trial's cgroup is removed while its process is still ending.
const REMOVALS: u32 = 100;
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

/// Loads the program and sees whether it refuses a socket.
///
/// # Errors
/// Why it cannot be used here, in words.
pub fn load(ebpf: &mut Ebpf, btf: Option<&Btf>) -> Result<OwnedFd, String> {
    let btf = btf.ok_or("the kernel has no BTF")?;
    let Some(Program::LsmCgroup(program)) = ebpf.program_mut(HOOK.program) else {
        return Err("the embedded object lacks the program".to_owned());
    };
    program.load(LSM_HOOK, btf).map_err(|error| match &error {
        // without what the verifier has to say of it, which is long
        ProgramError::LoadError { io_error, .. } => format!("the kernel refuses it: {io_error}"),
        error => chain(error),
    })?;
    let program = program.fd().map_err(|error| chain(&error))?;
    let program = program.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    if refuses_a_socket(program.as_fd())? {
        Ok(program)
    } else {
        Err("it is loaded and never run".to_owned())
    }
}

/// Attaches the program to a cgroup made for this, whose slot stays unwritten (then it refuses), and has a process
/// in there make a raw socket.
fn refuses_a_socket(program: BorrowedFd<'_>) -> Result<bool, String> {
    let path = cgroup::mount().map_err(|error| error.to_string())?;
    let path = path.join(format!("enforcer-lsm-{}", std::process::id()));
    let trial = Cgroup::create(&path).map_err(|error| error.to_string())?;
    let outcome = sys::link_create(program, trial.as_fd(), HOOK.attach_type)
        .and_then(|_link| socket_in(&trial))
        .map_err(|error| error.to_string());
    if let Err(error) = remove(&trial) {
        tracing::warn!(%error, "the cgroup of a trial stays");
    }
    match outcome?.raw_os_error() {
        Some(libc::EAFNOSUPPORT) => Ok(true),
        Some(libc::EALREADY) => Ok(false),
        other => Err(format!("its trial ended with error {other:?}")),
    }
}

/// What a process in the cgroup gets for asking for a raw socket: the error, or EALREADY for a socket. The process
/// ends before it runs any program.
fn socket_in(trial: &Cgroup) -> io::Result<io::Error> {
    let procs = OpenOptions::new().write(true).open(trial.path().join("cgroup.procs"))?;
    let ask = move || -> io::Result<()> {
        nix::unistd::write(&procs, b"0")?;
        let made = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::UDP));
        match made {
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EALREADY)),
            Err(error) => Err(error.into()),
        }
    };
    let mut never_run = Command::new("/proc/self/exe");
    // SAFETY: between fork and exec it makes system calls on what was made before the fork, and nothing else.
    unsafe { never_run.pre_exec(ask) };
    match never_run.spawn() {
        Err(error) => Ok(error),
        Ok(mut child) => {
            child.kill()?;
            child.wait()?;
            Err(io::Error::other("the trial's process went on"))
        }
    }
}

fn remove(trial: &Cgroup) -> Result<(), CgroupError> {
    for _ in 0..REMOVALS {
        match Cgroup::open(trial.path()).and_then(Cgroup::remove) {
            Err(CgroupError::Busy(_)) => std::thread::sleep(REMOVAL_PAUSE),
            outcome => return outcome,
        }
    }
    Cgroup::open(trial.path()).and_then(Cgroup::remove)
}
