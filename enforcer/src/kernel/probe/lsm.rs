//! Whether a program on the LSM hook of socket creation fires for a cgroup: some kernels refuse it, and some take
//! it and never ask it. The shortest program there is, on a throwaway cgroup: it refuses every socket.
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;

use aya::Btf;
use aya_obj::btf::BtfKind;
use rustix::net::{AddressFamily, SocketType};

use super::super::sys;
use super::inside::{ended_well, fork_in, refused};
use super::{Failure, Outcome, failure};
use crate::bottle::cgroup::Cgroup;

/// `bpf_lsm_` and the hook's name: where the kernel attaches such programs.
const HOOK: &str = "bpf_lsm_socket_create";
/// `BPF_LSM_CGROUP` of `enum bpf_attach_type`.
const LSM_CGROUP: u32 = 43;

pub(super) fn fires(cgroup: &Cgroup) -> Outcome {
    let refused_by = |error: io::Error| {
        let what = format!("refused: {error}");
        Failure { what, hint: Some(hint(&error).to_owned()) }
    };
    let hook = find_hook().map_err(refused_by)?;
    let program = sys::load_lsm_refusal(hook, LSM_CGROUP).map_err(refused_by)?;
    let link = sys::link_create(program.as_fd(), cgroup.as_fd(), LSM_CGROUP).map_err(refused_by)?;
    let opening = fork_in(cgroup, || {
        refused(rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).map_err(io::Error::from))
    });
    let fired = opening.and_then(ended_well);
    sys::link_detach(link.as_fd())?;
    if fired? {
        return Ok("fires: a program on socket_create refuses sockets of every family".to_owned());
    }
    Err(failure("loads but never fires (`bpf` is not in the list of the kernel's `lsm=`)"))
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "the kernel or its lockdown forbids LSM programs: what packets do not show is closed by `run` alone"
        }
        _ => {
            "a kernel with CONFIG_BPF_LSM and BTF has it: without, what packets do not show is closed by `run` alone"
        }
    }
}

/// Id of the hook among the kernel's types.
fn find_hook() -> io::Result<u32> {
    let missing = |error: aya::BtfError| io::Error::new(ErrorKind::NotFound, error);
    Btf::from_sys_fs().and_then(|btf| btf.id_by_type_name_kind(HOOK, BtfKind::Func)).map_err(missing)
}
