//! Tries what a command of `enforcer run` must not be able to do, and prints each answer of the kernel.
//!
//! `confined sockets` and `confined migrate ROOT ELSEWHERE` print one JSON object: the attempt and `ok` or the name of
//! the errno. `confined compat` makes one call of 32-bit x86. It decides nothing, and leaves nothing behind.
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

/// `SOCK_PACKET` of linux/net.h: by AF_INET to an AF_PACKET socket.
const SOCK_PACKET: i32 = 10;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Opens sockets of every sort, an io_uring and the terminal's input
    Sockets,
    /// Tries to leave its cgroup
    Migrate {
        /// Where cgroup v2 is mounted
        root: PathBuf,
        /// A cgroup that this user may write
        elsewhere: PathBuf,
    },
    /// Makes a socket by a call of 32-bit x86
    Compat,
}

fn main() -> anyhow::Result<()> {
    let answers = match Args::parse().what {
        What::Sockets => sockets(),
        What::Migrate { root, elsewhere } => migrations(&root, &elsewhere)?,
        What::Compat => {
            println!("{}", compat_socket());
            return Ok(());
        }
    };
    println!("{}", serde_json::to_string(&answers)?);
    Ok(())
}

type Answers = BTreeMap<String, String>;

fn word(outcome: io::Result<()>) -> String {
    match outcome {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.raw_os_error().map_or(error.to_string(), |n| format!("{:?}", Errno::from_raw(n))),
    }
}

fn sockets() -> Answers {
    let (cloexec, nonblock) = (libc::SOCK_CLOEXEC, libc::SOCK_NONBLOCK);
    let table = [
        ("unix", libc::AF_UNIX, libc::SOCK_STREAM, 0),
        ("tcp4", libc::AF_INET, libc::SOCK_STREAM | cloexec, 0),
        ("udp6", libc::AF_INET6, libc::SOCK_DGRAM | nonblock, 0),
        ("netlink raw", libc::AF_NETLINK, libc::SOCK_RAW | cloexec, libc::NETLINK_ROUTE),
        ("raw4", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        ("raw4 with flags", libc::AF_INET, libc::SOCK_RAW | cloexec | nonblock, libc::IPPROTO_RAW),
        ("raw6", libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
        ("packet of old", libc::AF_INET, SOCK_PACKET, 0),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ("xdp", libc::AF_XDP, libc::SOCK_RAW, 0),
        ("alg", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
    ];
    let mut answers: Answers = table
        .map(|(name, family, kind, protocol)| (name.to_owned(), word(socket(family, kind, protocol))))
        .into_iter()
        .collect();
    let mut parameters = [0u8; 120];
    // SAFETY: the kernel reads and writes `struct io_uring_params`, which is 120 bytes.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    answers.insert("io_uring".to_owned(), word(checked(ring)));
    for (name, request) in [("TIOCSTI", libc::TIOCSTI), ("TIOCLINUX", libc::TIOCLINUX)] {
        // SAFETY: no descriptor has this number, so the kernel reads nothing at the address.
        let typed = unsafe { libc::ioctl(-1, request, c"x".as_ptr()) };
        answers.insert(name.to_owned(), word(checked(typed.into())));
    }
    answers
}

/// Makes a socket, which ends with this process.
fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<()> {
    // SAFETY: socket(2) touches no memory.
    checked(unsafe { libc::socket(family, kind, protocol) }.into())
}

fn checked(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `socketcall(SYS_SOCKET, {AF_UNIX, SOCK_STREAM, 0})` as a 32-bit program makes it; its result.
#[cfg(target_arch = "x86_64")]
fn compat_socket() -> i64 {
    const SOCKETCALL: i64 = 102;
    let mut result = SOCKETCALL;
    // SAFETY: the call reads three words at an address that a 32-bit program could not hold, so it fails (EFAULT)
    // and touches nothing; the registers that it takes are named, rbx is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {call}", "int 0x80", "xchg rbx, {call}",
            call = inout(reg) 1_i64 => _, inout("rax") result, in("rcx") 0, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _,
        );
    }
    result
}

#[cfg(not(target_arch = "x86_64"))]
fn compat_socket() -> i64 {
    i64::from(-libc::ENOSYS)
}

fn migrations(root: &Path, elsewhere: &Path) -> anyhow::Result<Answers> {
    let own = cgroup_of(Pid::this())?;
    let own = root.join(own.trim_start_matches('/'));
    let above = own.parent().context("a cgroup has one above it")?;
    let mut answers = Answers::new();
    let mut attempt = |name: &str, action: &dyn Fn() -> io::Result<()>| -> anyhow::Result<()> {
        answers.insert(name.to_owned(), migrate(action)?);
        Ok(())
    };
    attempt("to the root", &|| join(&root.join("cgroup.procs")))?;
    attempt("to the one above", &|| join(&above.join("cgroup.procs")))?;
    attempt("to one of its own", &|| join(&elsewhere.join("cgroup.procs")))?;
    attempt("a thread to one of its own", &|| join(&elsewhere.join("cgroup.threads")))?;
    attempt("a child born in one of its own", &|| clone_into(elsewhere))?;
    attempt("by a mount of its own", &|| from_own_mount(root, elsewhere))?;
    attempt("to one below", &|| {
        fs::create_dir(own.join("below")).and_then(|()| join(&own.join("below/cgroup.procs")))
    })?;
    Ok(answers)
}

/// Makes the attempt in a child; `moved` when the child is elsewhere afterwards, whatever the kernel answered.
fn migrate(action: &dyn Fn() -> io::Result<()>) -> anyhow::Result<String> {
    let before = cgroup_of(Pid::this())?;
    let (mut answer, told) = io::pipe()?;
    let (held, hold) = io::pipe()?;
    // SAFETY: this program has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(hold);
            tell_and_wait(action, told, held);
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(told);
            let mut word = String::new();
            answer.read_to_string(&mut word)?;
            let after = cgroup_of(child)?;
            drop(hold);
            kill(child, Signal::SIGKILL)?;
            waitpid(child, None)?;
            Ok(if after == before { word } else { "moved".to_owned() })
        }
    }
}

/// The child's side: acts, tells, and stays to be looked at.
fn tell_and_wait(action: &dyn Fn() -> io::Result<()>, mut told: PipeWriter, mut held: PipeReader) {
    let word = word(action());
    if told.write_all(word.as_bytes()).is_ok() {
        drop(told);
        held.read_exact(&mut [0]).ok();
    }
}

fn cgroup_of(pid: Pid) -> anyhow::Result<String> {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let line = lines.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(line.context("no cgroup v2")?.to_owned())
}

fn join(procs: &Path) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(procs)?.write_all(b"0")
}

/// `clone3(CLONE_INTO_CGROUP)`: the child would be in the other cgroup from its first instruction.
fn clone_into(cgroup: &Path) -> io::Result<()> {
    /// Of linux/sched.h.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let directory = fs::File::open(cgroup)?;
    let mut arguments = [0u64; 11];
    (arguments[0], arguments[10]) = (CLONE_INTO_CGROUP, u64::from(directory.as_raw_fd().cast_unsigned()));
    // SAFETY: without CLONE_VM the child has its own memory; it ends at once. The kernel reads `struct clone_args`,
    // eleven words.
    match unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) } {
        // SAFETY: ends the child at once.
        0 => unsafe { libc::_exit(0) },
        result => checked(result),
    }
}

/// As root of a user namespace of its own, on a mount of its own.
fn from_own_mount(root: &Path, elsewhere: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    // over the old one: what the user may write there is decided anew
    mount(Some("none"), root, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
    join(&elsewhere.join("cgroup.procs"))
}
