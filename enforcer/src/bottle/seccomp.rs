//! The system call filter of commands started by `run`: what the programs on a cgroup's packets cannot see.
//!
//! Those see the internet families alone. So a command gets no socket of another family (AF_PACKET, AF_VSOCK,
//! AF_XDP …), no raw one, no io_uring, and cannot type into the operator's terminal. It is no sandbox: files,
//! processes and the kernel's other calls are not its business.
use std::io;

use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{self, Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// The families that a command may open: those that the packet hooks see, and two that end on this host. Netlink
/// sockets are commonly opened as `SOCK_RAW`, which means nothing there, so the rule on raw sockets leaves them out.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// The kernel's `SOCK_TYPE_MASK`: what of a socket's type is not `SOCK_CLOEXEC` or `SOCK_NONBLOCK`.
const TYPE_MASK: u64 = 0xf;
/// `SOCK_PACKET` of linux/net.h: the kernel turns AF_INET with this type into AF_PACKET.
const SOCK_PACKET: i32 = 10;

/// Rules by the number of their system call; a call that fits any rule of its list is refused.
type Rules = Vec<(libc::c_long, Vec<SeccompRule>)>;

/// Why the filter cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It was not compiled, or there is none for this machine.
    #[error("it cannot be made: {0}")]
    Compile(#[from] BackendError),
    /// The kernel has no filters that answer with an error.
    #[error("the kernel does not offer it: {0}")]
    Kernel(io::Error),
}

impl From<FilterError> for io::Error {
    fn from(error: FilterError) -> Self {
        match error {
            FilterError::Compile(error) => Self::other(error),
            FilterError::Kernel(error) => error,
        }
    }
}

/// The filter, compiled, to be put on between fork and exec.
#[derive(Debug)]
pub struct Filter {
    /// One for each error that a call is refused with; the kernel asks all of them.
    programs: Vec<BpfProgram>,
}

impl Filter {
    /// Compiles the filter for this machine.
    ///
    /// # Errors
    /// When this machine or its kernel has no such filters.
    pub fn build() -> Result<Self, FilterError> {
        check_kernel().map_err(FilterError::Kernel)?;
        let mut programs = vec![
            compile(other_families()?, libc::EAFNOSUPPORT)?,
            compile([raw_sockets()?, terminal_input()?].concat(), libc::EPERM)?,
            // as on a kernel without it: programs fall back to ordinary calls
            compile(vec![(libc::SYS_io_uring_setup, Vec::new())], libc::ENOSYS)?,
        ];
        if cfg!(target_arch = "x86_64") {
            programs.push(x32_calls());
        }
        Ok(Self { programs })
    }

    /// Puts the filter on the calling thread and on all that it starts; it cannot be taken off. Makes system calls
    /// and nothing else, so that it may be called between fork and exec.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn apply(&self) -> io::Result<()> {
        self.programs.iter().try_for_each(|program| {
            seccompiler::apply_filter(program).map_err(|error| match error {
                seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
                _ => io::ErrorKind::InvalidInput.into(),
            })
        })
    }
}

/// Whether the kernel has filters that make a call fail.
fn check_kernel() -> io::Result<()> {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: seccomp(2) reads one word at this address, and changes nothing.
    let refused =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A program that lets everything pass but these calls.
///
/// Calls of another architecture (32-bit programs on a 64-bit kernel) kill the process: they have numbers of their
/// own, and `socketcall` hides its arguments behind a pointer that no filter can follow. Failing them would be no
/// kinder, since such a program could not even end: `exit` would fail as well.
fn compile(rules: Rules, errno: i32) -> Result<BpfProgram, BackendError> {
    let refuse = SeccompAction::Errno(errno.cast_unsigned());
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, refuse, machine)?.try_into()
}

/// x32 calls come under x86-64's name, with numbers beside those that the other programs look for.
fn x32_calls() -> BpfProgram {
    const NUMBER: u32 = 0;
    /// `__X32_SYSCALL_BIT` of asm/unistd.h.
    const X32: u32 = 0x4000_0000;
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    // the codes of linux/bpf_common.h: load a word, jump when a bit is set, return
    [(0x20, 0, NUMBER), (0x45, 1, X32), (0x06, 0, libc::SECCOMP_RET_ALLOW), (0x06, 0, REFUSE)]
        .map(|(code, jt, k)| seccompiler::sock_filter { code, jt, jf: 0, k })
        .to_vec()
}

/// Sockets of families that are not on the list.
fn other_families() -> Result<Rules, BackendError> {
    let rule = || {
        SeccompRule::new(FAMILIES.iter().map(|&family| argument(0, Ne, family)).collect::<Result<_, _>>()?)
    };
    Ok(vec![(libc::SYS_socket, vec![rule()?]), (libc::SYS_socketpair, vec![rule()?])])
}

/// Sockets that write their own headers.
fn raw_sockets() -> Result<Rules, BackendError> {
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_RAW, SOCK_PACKET] {
            rules.push(SeccompRule::new(vec![
                argument(0, Eq, family)?,
                argument(1, MaskedEq(TYPE_MASK), kind)?,
            ])?);
        }
    }
    Ok(vec![(libc::SYS_socket, rules.clone()), (libc::SYS_socketpair, rules)])
}

/// Characters put into the terminal that the command shares with the operator, whose shell would read them.
fn terminal_input() -> Result<Rules, BackendError> {
    let request = |request: u64| SeccompRule::new(vec![SeccompCondition::new(1, Dword, Eq, request)?]);
    Ok(vec![(libc::SYS_ioctl, vec![request(libc::TIOCSTI)?, request(libc::TIOCLINUX)?])])
}

/// A condition on the low 32 bits of a call's argument: the kernel takes these arguments as `int`.
fn argument(index: u8, operator: SeccompCmpOp, value: i32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, Dword, operator, u64::from(value.cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;

    /// What the kernel makes of a call: the most severe answer of all programs.
    fn answer(architecture: u32, number: i64, arguments: &[u64]) -> u32 {
        let mut data = [0u8; 64];
        data[..4].copy_from_slice(&u32::try_from(number).unwrap().to_ne_bytes());
        data[4..8].copy_from_slice(&architecture.to_ne_bytes());
        for (at, argument) in arguments.iter().enumerate() {
            data[16 + 8 * at..24 + 8 * at].copy_from_slice(&argument.to_ne_bytes());
        }
        let answers = Filter::build().unwrap().programs.into_iter().map(|program| interpret(&program, &data));
        answers.min_by_key(|answer| (answer & libc::SECCOMP_RET_ACTION_FULL).cast_signed()).unwrap()
    }

    /// The classic BPF that the compiler makes use of.
    fn interpret(program: &[seccompiler::sock_filter], data: &[u8; 64]) -> u32 {
        let (mut at, mut a) = (0, 0u32);
        loop {
            let step = &program[at];
            at += 1;
            let taken = match step.code {
                0x06 => return step.k,
                0x20 => {
                    let from = step.k as usize;
                    a = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
                    continue;
                }
                0x54 => {
                    a &= step.k;
                    continue;
                }
                0x05 => {
                    at += step.k as usize;
                    continue;
                }
                0x15 => a == step.k,
                0x45 => a & step.k != 0,
                code => panic!("an instruction with code {code:#x}"),
            };
            at += usize::from(if taken { step.jt } else { step.jf });
        }
    }

    fn refused(errno: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
    }

    fn socket(family: i32, kind: i32) -> u32 {
        let word = |value: i32| u64::from(value.cast_unsigned());
        let answers = [libc::SYS_socket, libc::SYS_socketpair].map(|number| {
            // the kernel takes `int`: what stands in the upper half must change nothing
            [0, 7 << 32].map(|upper| answer(X86_64, number, &[upper | word(family), upper | word(kind), 0]))
        });
        assert!(
            answers.iter().flatten().all(|answer| *answer == answers[0][0]),
            "{family} {kind} {answers:x?}"
        );
        answers[0][0]
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_internet_s_families_pass_and_no_others() {
        let kinds = [libc::SOCK_STREAM, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::SOCK_SEQPACKET];
        for kind in kinds {
            for family in FAMILIES {
                assert_eq!(socket(family, kind), libc::SECCOMP_RET_ALLOW, "{family} {kind}");
            }
        }
        for family in (-1..64).filter(|family| !FAMILIES.contains(family)) {
            assert_eq!(socket(family, libc::SOCK_RAW) & 0xffff_0000, libc::SECCOMP_RET_ERRNO, "{family}");
            assert_eq!(socket(family, libc::SOCK_STREAM), refused(libc::EAFNOSUPPORT), "{family}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn raw_sockets_are_refused_whatever_their_flags_but_netlink_s_are_not() {
        for flags in [0, libc::SOCK_CLOEXEC, libc::SOCK_NONBLOCK, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK] {
            for family in [libc::AF_INET, libc::AF_INET6] {
                for kind in [libc::SOCK_RAW, SOCK_PACKET] {
                    assert_eq!(socket(family, kind | flags), refused(libc::EPERM), "{family} {kind} {flags}");
                }
            }
            assert_eq!(socket(libc::AF_NETLINK, libc::SOCK_RAW | flags), libc::SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn io_uring_is_missing_and_the_terminal_s_input_is_closed() {
        assert_eq!(answer(X86_64, libc::SYS_io_uring_setup, &[8, 0]), refused(libc::ENOSYS));
        for request in [libc::TIOCSTI, libc::TIOCLINUX, libc::TIOCSTI | 1 << 32] {
            assert_eq!(answer(X86_64, libc::SYS_ioctl, &[0, request]), refused(libc::EPERM), "{request:x}");
        }
        assert_eq!(answer(X86_64, libc::SYS_ioctl, &[0, libc::TIOCGWINSZ]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(answer(X86_64, libc::SYS_connect, &[0, 0]), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn no_other_set_of_call_numbers_leads_around() {
        let packet = [libc::AF_PACKET, libc::SOCK_RAW].map(|word| u64::from(word.cast_unsigned()));
        for number in [libc::SYS_socket, libc::SYS_io_uring_setup, libc::SYS_getpid] {
            assert_eq!(answer(X86_64, 0x4000_0000 | number, &packet), refused(libc::ENOSYS), "x32 {number}");
            assert_eq!(answer(I386, number, &packet), libc::SECCOMP_RET_KILL_PROCESS, "i386 {number}");
        }
    }
}
