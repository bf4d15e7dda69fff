//! The programs and where each is attached: loaded once, recognised on a cgroup.
//!
//! Which cgroups they are attached to is `loader`'s business.
use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::resume_unwind;

use aya::Ebpf;
use aya::programs::{Program, ProgramError};

use super::refusal::{failed, refused};
use super::{KernelError, sys};
use crate::bottle::cgroup::Cgroup;

/// The programs, as the build script compiled them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer.bpf.o"));
/// The same, logging what they drop.
pub static LOGGING_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer-log.bpf.o"));

/// One place where a program is attached to a bottle.
pub struct Hook {
    /// Name of its pin.
    pub pin: &'static str,
    /// The program's name in the object.
    pub program: &'static str,
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
    /// Whether the program asks for its bottle's slot; the kernel keeps no storage for one that does not.
    pub slot: bool,
}

/// In the order in which they are attached.
pub const HOOKS: [Hook; 14] = [
    hook("egress", "enforcer_egress", 1),
    hook("ingress", "enforcer_ingress", 0),
    hook("sock_ops", "enforcer_sock_ops", 3),
    hook("connect4", "enforcer_connect4", 10),
    hook("connect6", "enforcer_connect6", 11),
    hook("sendmsg4", "enforcer_sendmsg4", 14),
    hook("sendmsg6", "enforcer_sendmsg6", 15),
    hook("bind4", "enforcer_bind4", 8),
    hook("bind6", "enforcer_bind6", 9),
    hook("sock_create", "enforcer_sock_create", 2),
    Hook { slot: false, ..hook("recvmsg4", "enforcer_recvmsg4", 19) },
    Hook { slot: false, ..hook("recvmsg6", "enforcer_recvmsg6", 20) },
    Hook { slot: false, ..hook("getpeername4", "enforcer_getpeername4", 29) },
    Hook { slot: false, ..hook("getpeername6", "enforcer_getpeername6", 30) },
];

const fn hook(pin: &'static str, program: &'static str, attach_type: u32) -> Hook {
    Hook { pin, program, attach_type, slot: true }
}

/// Loads the program of every hook.
pub fn load_programs(ebpf: &mut Ebpf) -> Result<Vec<OwnedFd>, KernelError> {
    let mut found: HashMap<&str, &mut Program> = ebpf.programs_mut().collect();
    // the verifier takes its time over each, and looks at as many at once as there are threads
    std::thread::scope(|scope| {
        let load = |hook: &'static Hook| {
            let program = found.remove(hook.program);
            scope.spawn(move || load_program(hook.program, program))
        };
        let loading: Vec<_> = HOOKS.iter().map(load).collect();
        loading.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

fn load_program(name: &str, program: Option<&mut Program>) -> Result<OwnedFd, KernelError> {
    let program = program.ok_or_else(|| KernelError::Unsupported {
        what: format!("the embedded object has no program {name}"),
        hint: "this build is broken: build it again".to_owned(),
    })?;
    let loaded = match program {
        Program::CgroupSkb(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        _ => Ok(()),
    };
    let what = format!("the kernel refuses the program {name}");
    loaded.map_err(|error| match &error {
        ProgramError::LoadError { io_error, verifier_log } => {
            tracing::debug!(program = name, %verifier_log, "refused by the verifier");
            refused(&what, io_error)
        }
        error => refused(&what, error),
    })?;
    let fd = program.fd().map_err(|error| refused(&what, &error))?;
    fd.as_fd().try_clone_to_owned().map_err(|source| KernelError::Io { what, source })
}

/// Refuses a cgroup that carries one of our programs, of this controller or of another.
pub fn check_unguarded(cgroup: &Cgroup) -> Result<(), KernelError> {
    let egress = &HOOKS[0];
    let unreadable = |source| failed("cannot read the programs of", cgroup.path(), source);
    for id in sys::attached_programs(cgroup.as_fd(), egress.attach_type).map_err(unreadable)? {
        let Some(program) = sys::open_program(id).map_err(unreadable)? else { continue };
        if sys::program_info(program.as_fd()).map_err(unreadable)?.name == egress.program {
            return Err(KernelError::AlreadyAttached(cgroup.path().to_owned()));
        }
    }
    Ok(())
}
