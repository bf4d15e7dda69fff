//! bpf(2) for links, pins and queries: what aya has no call for, or ties to a handle that dies with the process.
//! Beside it, memory shared with a map, a socket's network namespace, and a cgroup by its id.
//!
//! Field offsets are those of `union bpf_attr` in the kernel's `linux/bpf.h`. Nothing here decides anything.
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::{self, NonNull};

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// Programs directly attached to one cgroup at one hook that a query has room for; the kernel's own limit.
const MAX_PROGRAMS: usize = 64;

/// `union bpf_attr`, as 32-bit words; the kernel takes the unused rest as zero.
#[repr(C, align(8))]
struct Attributes([u32; 32]);

impl Attributes {
    /// Begins with these words.
    fn new<const N: usize>(words: [u32; N]) -> Self {
        let mut all = [0; 32];
        all[..N].copy_from_slice(&words);
        Self(all)
    }

    /// Stores an address in two words, from `word` on.
    fn address<T>(mut self, word: usize, pointer: *const T) -> Self {
        let bytes = (pointer.addr() as u64).to_ne_bytes();
        for (at, half) in bytes.chunks_exact(4).enumerate() {
            self.0[word + at] = u32::from_ne_bytes([half[0], half[1], half[2], half[3]]);
        }
        self
    }

    /// Calls the kernel; the result is a descriptor for some commands.
    fn call(&mut self, command: libc::c_int) -> io::Result<RawFd> {
        // SAFETY: the attributes are 128 valid, aligned bytes; the addresses in them were set by the callers
        // below, from buffers that outlive this call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size_of::<Self>()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        RawFd::try_from(result).map_err(io::Error::other)
    }

    /// As [`Self::call`], for commands that return a new descriptor.
    fn open(&mut self, command: libc::c_int) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// What the kernel says of a cgroup link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Id of the program behind the link.
    pub program_id: u32,
    /// Inode of the cgroup; 0 when the cgroup is gone.
    pub cgroup_id: u64,
}

/// Attaches a program to a cgroup; it stays while the returned link, or a pin of it, does.
pub fn link_create(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: u32) -> io::Result<OwnedFd> {
    Attributes::new([word(program), word(cgroup), hook]).open(LINK_CREATE)
}

/// Replaces the program behind a link, without a gap. ENOLINK: the cgroup is gone.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    Attributes::new([word(link), word(program)]).call(LINK_UPDATE).map(drop)
}

/// Takes the program off the cgroup before returning (closing a link's last descriptor does it some time later).
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    Attributes::new([word(link)]).call(LINK_DETACH).map(drop)
}

/// What a cgroup link is attached to.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // type, id, program id, padding, cgroup id (two words), attach type; later kernels add more
    let mut info = [0u32; 16];
    let length = 4 * 16;
    Attributes::new([word(link), length]).address(2, info.as_mut_ptr()).call(OBJ_GET_INFO_BY_FD)?;
    let mut cgroup_id = [0; 8];
    cgroup_id[..4].copy_from_slice(&info[4].to_ne_bytes());
    cgroup_id[4..].copy_from_slice(&info[5].to_ne_bytes());
    Ok(LinkInfo { program_id: info[2], cgroup_id: u64::from_ne_bytes(cgroup_id) })
}

/// Loads an LSM program that refuses, on the hook with this type id, for an attach type.
pub fn load_lsm_refusal(hook: u32, attach_type: u32) -> io::Result<OwnedFd> {
    /// `r0 = 0; exit`
    const REFUSE: [u64; 2] = [0xb7, 0x95];
    const TYPE_LSM: u32 = 29;
    let mut load = Attributes::new([TYPE_LSM, 2]).address(2, REFUSE.as_ptr()).address(4, c"GPL".as_ptr());
    (load.0[17], load.0[27]) = (attach_type, hook);
    load.open(PROG_LOAD)
}

/// Pins an object at a path on bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_string(path)?;
    Attributes::new([0, 0, word(object)]).address(0, path.as_ptr()).call(OBJ_PIN).map(drop)
}

/// Opens a pinned object.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    Attributes::new([]).address(0, path.as_ptr()).open(OBJ_GET)
}

/// Ids of the programs attached to this cgroup itself (not inherited from above) at one hook.
pub fn attached_programs(cgroup: BorrowedFd<'_>, hook: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let room = 64;
    let mut query = Attributes::new([word(cgroup), hook, 0, 0, 0, 0, room]).address(4, ids.as_mut_ptr());
    query.call(PROG_QUERY)?;
    let count = usize::try_from(query.0[6]).unwrap_or(MAX_PROGRAMS).min(MAX_PROGRAMS);
    Ok(ids[..count].to_vec())
}

/// Adds up what each CPU has counted at one index of a per-CPU array of `N` 64-bit counters. `cpus`: all that the kernel
/// could have, which is for how many it answers; both must be the map's own, for the kernel writes all of them.
pub fn sum_per_cpu<const N: usize>(map: BorrowedFd<'_>, index: u32, cpus: usize) -> io::Result<[u64; N]> {
    let mut counted = vec![[0u64; N]; cpus];
    let lookup = Attributes::new([word(map)]).address(2, &raw const index);
    lookup.address(4, counted.as_mut_ptr()).call(MAP_LOOKUP_ELEM)?;
    Ok(std::array::from_fn(|at| counted.iter().map(|cpu| cpu[at]).sum()))
}

/// Memory shared with a map that can be mapped, from its first byte on.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; how it is accessed is its owner's promise.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps so many bytes, to be read and written.
    pub fn of(map: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let address =
            unsafe { libc::mmap(ptr::null_mut(), length, protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast())
            .map(|base| Self { base, length })
            .ok_or_else(|| io::Error::other("mapped at 0"))
    }

    /// The first byte, page-aligned.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `of` with this length; nothing refers to it after `self`.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert_eq!(result, 0);
    }
}

/// Cookie of the network namespace that a socket is in (`SO_NETNS_COOKIE`): unique until the machine restarts.
///
/// # Errors
/// The kernel's (ENOPROTOOPT before Linux 5.14).
pub fn namespace_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = 8;
    // SAFETY: the kernel writes at most `length` bytes to the word, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Opens the cgroup with this id, without knowing its path. `mount`: a directory of cgroup v2.
///
/// # Errors
/// ESTALE when there is none; EPERM without `CAP_DAC_READ_SEARCH`.
pub fn open_cgroup(mount: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    /// `struct file_handle` with the kind `FILEID_KERNFS`.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: [u8; 8],
    }
    let mut handle = Handle { bytes: 8, kind: 0xfe, id: id.to_ne_bytes() };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the kernel reads a handle of `bytes` bytes after its head, which is what stands there.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a loaded program; `None` when there is none of this id any more.
pub fn open_program(id: u32) -> io::Result<Option<OwnedFd>> {
    match Attributes::new([id]).open(PROG_GET_FD_BY_ID) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        program => program.map(Some),
    }
}

/// What the kernel says of a loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its id, given to no other until the machine restarts.
    pub id: u32,
    /// The kernel's digest of its instructions, as two words.
    pub tag: [u32; 2],
    /// Its name.
    pub name: String,
}

/// What a program is.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    // `struct bpf_prog_info`: type, id, tag (two words), twelve other words, the name
    let mut info = [0u32; 20];
    Attributes::new([word(program), 4 * 20]).address(2, info.as_mut_ptr()).call(OBJ_GET_INFO_BY_FD)?;
    let name: Vec<u8> =
        info[16..].iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok(ProgramInfo { id: info[1], tag: [info[2], info[3]], name })
}

fn word(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}
