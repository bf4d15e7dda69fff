//! Who in a cgroup could send past every hook: a packet socket (AF_PACKET) puts frames on the wire by itself, and
//! whoever has CAP_NET_RAW can make one. Read from `/proc`; nothing is changed.
use std::fmt;
use std::fs;

/// CAP_NET_RAW, a bit of the capability masks.
const NET_RAW: u64 = 1 << 13;

/// A process that has the capability, or can get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Name of its program.
    pub name: String,
    /// Whether it has it now; else it is root and not kept from getting it by an exec.
    pub has: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.has { "has" } else { "can get" };
        write!(f, "process {} ({}) {what} CAP_NET_RAW", self.pid, self.name)
    }
}

/// The first of these processes that has the capability or can get it. One that ended meanwhile has not; one that
/// cannot be read has.
#[must_use]
pub fn holder(pids: &[u32]) -> Option<Holder> {
    pids.iter().find_map(|&pid| match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => judge(pid, &status),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => None,
        Err(_) => Some(Holder { pid, name: "unreadable".to_owned(), has: true }),
    })
}

/// Judges by the lines of proc_pid_status(5). A line that is missing counts as the worse.
fn judge(pid: u32, status: &str) -> Option<Holder> {
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let mask = |key| field(key).and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(u64::MAX);
    let has = mask("CapPrm:") & NET_RAW != 0;
    let is_root = field("Uid:").is_none_or(|uids| uids.split_whitespace().any(|uid| uid == "0"));
    let may_gain = mask("CapBnd:") & NET_RAW != 0 && field("NoNewPrivs:") != Some("1");
    let name = field("Name:").unwrap_or("unnamed").to_owned();
    (has || (is_root && may_gain)).then_some(Holder { pid, name, has })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uid: u32, permitted: u64, bounding: u64, no_new_privs: u8) -> String {
        format!(
            "Name:\tagent\nUid:\t1000\t{uid}\t1000\t1000\nCapPrm:\t{permitted:016x}\nCapBnd:\t{bounding:016x}\n\
             NoNewPrivs:\t{no_new_privs}\n"
        )
    }

    #[test]
    fn whoever_has_the_capability_or_is_root_and_can_get_it_is_found() {
        const ALL: u64 = 0x1ff_ffff_ffff;
        for (uid, permitted, bounding, no_new_privs, found) in [
            (1000, 0, ALL, 0, None),
            (1000, 0, 0, 0, None),
            (1000, NET_RAW, ALL, 1, Some(true)),
            (0, ALL, ALL, 1, Some(true)),
            (0, ALL & !NET_RAW, ALL & !NET_RAW, 0, None),
            (0, 0, ALL, 0, Some(false)),
            (0, 0, ALL, 1, None),
            (0, 0, ALL & !NET_RAW, 0, None),
        ] {
            let judged = judge(7, &status(uid, permitted, bounding, no_new_privs));
            assert_eq!(
                judged.map(|holder| holder.has),
                found,
                "{uid} {permitted:x} {bounding:x} {no_new_privs}"
            );
        }
        assert!(judge(7, "").is_some_and(|holder| holder.has), "what is not known is the worse");
        assert_eq!(holder(&[u32::MAX]), None);
    }
}
