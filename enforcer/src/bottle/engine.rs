//! Where a container engine or the service manager keeps the processes of what it runs: names to cgroups.
//!
//! Asks the engine's own command, once, with a bound on its time and its words, and reads the answer. What is
//! found is checked and attached elsewhere.
use std::path::{Component, Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::cgroup::{self, CgroupError};
use crate::hooks::child::{self, Running};
use crate::text::scrub;

/// How long a command may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes that are read of each of its outputs.
const MAX_OUTPUT_BYTES: u64 = 16 * 1024;
/// Longest name of a container or a unit, bytes; systemd's own limit.
const MAX_ID_BYTES: usize = 255;
/// Most characters of a command's complaint that are passed on.
const MAX_COMPLAINT_CHARS: usize = 200;
/// What a container's Go template asks for: its full id, the pid of its first process (0: it does not run).
const CONTAINER_FORMAT: &str = "{{.Id}} {{.State.Pid}}";

/// Who can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Docker: a container's name or id.
    Docker,
    /// Podman: a container's name or id.
    Podman,
    /// systemd: a unit's name.
    Systemd,
}

/// A container, as its engine knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Docker or Podman.
    pub engine: Engine,
    /// Its full id: a name may be another's tomorrow.
    pub id: String,
}

impl Container {
    /// As the ledger keeps it: `docker:ID`.
    #[must_use]
    pub fn written(&self) -> String {
        format!("{}:{}", self.engine.program(), self.id)
    }

    /// The same, read again; `None` for anything else.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let (engine, id) = text.split_once(':')?;
        let engine = [Engine::Docker, Engine::Podman].into_iter().find(|known| known.program() == engine)?;
        Some(Self { engine, id: id.to_owned() })
    }

    /// The engine's own command that makes an image of its file system. It is not to pause the container: that is the
    /// same freezer, and the end of the pause would thaw what is frozen. `None`: the engine is not installed any more.
    #[must_use]
    pub fn commit(&self, image: &str) -> Option<Vec<String>> {
        let program = installed(self.engine.program())?.into_os_string().into_string().ok()?;
        Some([&program, "commit", "--pause=false", &self.id, image].map(str::to_owned).to_vec())
    }
}

/// The program of this name on the daemon's `PATH`.
fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// What an engine named.
#[derive(Debug)]
pub struct Named {
    /// The directory of its cgroup.
    pub cgroup: PathBuf,
    /// The container, where it is one.
    pub container: Option<Container>,
}

/// Why an engine did not name a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing that the engine could have named so.
    #[error("{id:?} is no {what}'s name: {why}")]
    BadId {
        /// As it was given.
        id: String,
        /// `container` or `unit`.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The command is not there.
    #[error("{0} is not installed, or not on the daemon's PATH")]
    NotInstalled(&'static str),
    /// The command did not end in time.
    #[error("{0} did not answer within {seconds} s", seconds = TIMEOUT.as_secs())]
    Silent(&'static str),
    /// The command could not be run.
    #[error("{program} cannot be run: {source}")]
    Io {
        /// The command.
        program: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The command refused.
    #[error("{program} failed: {complaint}")]
    Failed {
        /// The command.
        program: &'static str,
        /// The first line of what it said.
        complaint: String,
    },
    /// The command said something else than it was asked for.
    #[error("{0} gave an answer that cannot be read")]
    Unreadable(&'static str),
    /// The engine knows nothing of that name.
    #[error("{program} knows no {what} {id}")]
    Unknown {
        /// The command.
        program: &'static str,
        /// `container` or `unit`.
        what: &'static str,
        /// The name.
        id: String,
    },
    /// It is there and does not run.
    #[error("{what} {id} is not running")]
    NotRunning {
        /// `container` or `unit`.
        what: &'static str,
        /// The name.
        id: String,
    },
    /// It runs without a cgroup v2 of its own.
    #[error("{what} {id} has no cgroup (v2) of its own")]
    NoCgroup {
        /// `container` or `unit`.
        what: &'static str,
        /// The name.
        id: String,
    },
    /// The process that the engine named is in no cgroup that can be told.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl Engine {
    /// The command that is asked.
    fn program(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Systemd => "systemctl",
        }
    }

    /// What it names.
    fn what(self) -> &'static str {
        match self {
            Self::Docker | Self::Podman => "container",
            Self::Systemd => "unit",
        }
    }

    /// What its command is asked, but for the name at the end.
    fn question(self) -> &'static [&'static str] {
        match self {
            Self::Docker | Self::Podman => {
                &["inspect", "--type", "container", "--format", CONTAINER_FORMAT, "--"]
            }
            Self::Systemd => &["show", "--property=LoadState,ActiveState,ControlGroup", "--"],
        }
    }

    /// What the operator should know about guarding what this engine calls `id`; `None` where the cgroup stays.
    #[must_use]
    pub fn warning(self, id: &str) -> Option<String> {
        match self {
            Self::Docker | Self::Podman => Some(format!(
                "when container {id} is started again it gets a new cgroup, which is not guarded: to be without a gap, \
                 attach a cgroup that stays and start containers in it (--cgroup-parent)"
            )),
            Self::Systemd if id.ends_with(".slice") => None,
            Self::Systemd => Some(format!(
                "when unit {id} is started again it gets a new cgroup, which is not guarded: to be without a gap, \
                 attach the slice that it runs in"
            )),
        }
    }
}

/// The directory of the cgroup that holds what the engine calls `id`, wholly.
///
/// # Errors
/// One for each way in which there is none, see [`EngineError`].
pub async fn cgroup_of(engine: Engine, id: &str) -> Result<Named, EngineError> {
    check_id(engine, id)?;
    let answer = ask(engine, id).await?;
    let no_cgroup = || EngineError::NoCgroup { what: engine.what(), id: id.to_owned() };
    match engine {
        Engine::Docker | Engine::Podman => {
            let container = read_container(&answer).ok_or(EngineError::Unreadable(engine.program()))?;
            if container.pid == 0 {
                return Err(EngineError::NotRunning { what: engine.what(), id: id.to_owned() });
            }
            let cgroup = container_cgroup(&cgroup::path_of(container.pid)?, container.id);
            let known = Container { engine, id: container.id.to_owned() };
            Ok(Named { cgroup: cgroup.ok_or_else(no_cgroup)?, container: Some(known) })
        }
        Engine::Systemd => {
            let below = unit_cgroup(&answer, id)?;
            let path = cgroup::mount()?.join(below);
            if path.is_dir() { Ok(Named { cgroup: path, container: None }) } else { Err(no_cgroup()) }
        }
    }
}

/// Refuses what is no name, so that nothing is taken for an option, a pattern, a job or a path.
fn check_id(engine: Engine, id: &str) -> Result<(), EngineError> {
    let also: &[u8] = match engine {
        Engine::Docker | Engine::Podman => b"_.-",
        Engine::Systemd => b"_.-:@\\",
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || also.contains(&byte);
    let why = if id.is_empty() || id.len() > MAX_ID_BYTES {
        Some("it has 1 to 255 characters")
    } else if id.starts_with('-') {
        Some("it does not start with '-'")
    } else if !id.bytes().all(allowed) {
        Some("it has a character that no such name has")
    } else if engine == Engine::Systemd && id.bytes().all(|byte| byte.is_ascii_digit()) {
        Some("a number alone means a job")
    } else {
        None
    };
    match why {
        None => Ok(()),
        Some(why) => Err(EngineError::BadId { id: id.to_owned(), what: engine.what(), why }),
    }
}

/// Runs the engine's command; its standard output.
async fn ask(engine: Engine, id: &str) -> Result<String, EngineError> {
    let program = engine.program();
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => EngineError::NotInstalled(program),
        _ => EngineError::Io { program, source },
    };
    let question = [engine.question(), &[id]].concat();
    // what takes too long, and what it started, ends with its group
    let mut running = child::start(program, &question).map_err(failed)?;
    let said = tokio::time::timeout(TIMEOUT, listen(&mut running)).await;
    let (status, output, complaint) = said.map_err(|_| EngineError::Silent(program))?.map_err(failed)?;
    // an answer that fills its bound was cut off, and the command with it
    if output.len() as u64 == MAX_OUTPUT_BYTES {
        return Err(EngineError::Unreadable(program));
    }
    if !status.success() {
        return Err(refusal(engine, id, &complaint));
    }
    String::from_utf8(output).map_err(|_| EngineError::Unreadable(program))
}

/// Both outputs up to their bound, and how the command ended.
async fn listen(running: &mut Running) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdout, stderr) = running.outputs();
    let (output, complaint) = tokio::try_join!(read(stdout), read(stderr))?;
    Ok((running.end().await?, output, complaint))
}

/// The pipe is closed at the bound: whoever writes on is ended by it.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// What a command's complaint means. Docker and Podman say that they know no such container in several ways.
fn refusal(engine: Engine, id: &str, complaint: &[u8]) -> EngineError {
    let complaint = String::from_utf8_lossy(complaint);
    let lower = complaint.to_lowercase();
    let (program, what) = (engine.program(), engine.what());
    if ["no such container", "no such object"].iter().any(|words| lower.contains(words)) {
        return EngineError::Unknown { program, what, id: id.to_owned() };
    }
    let first =
        complaint.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it did not say why");
    let complaint = scrub(first).chars().take(MAX_COMPLAINT_CHARS).collect();
    EngineError::Failed { program, complaint }
}

/// What an engine says of a container.
#[derive(Debug, PartialEq, Eq)]
struct Told<'a> {
    /// 64 hexadecimal digits.
    id: &'a str,
    /// Its first process, as this process namespace knows it; 0: it does not run.
    pid: u32,
}

/// Reads an answer to [`CONTAINER_FORMAT`].
fn read_container(answer: &str) -> Option<Told<'_>> {
    let (id, pid) = answer.trim_end_matches('\n').split_once(' ')?;
    let whole = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some(Told { id, pid: pid.parse().ok()? }).filter(|_| whole)
}

/// The container's own cgroup, given that of its first process: the highest directory that is named after its id.
/// That is `docker-ID.scope` or `libpod-ID.scope` (systemd driver), `ID` or `libpod-ID` (cgroupfs driver),
/// `libpod-payload-ID` (`--cgroups=split`); the process may sit deeper. `None`: the process is somewhere else.
fn container_cgroup(process: &Path, id: &str) -> Option<PathBuf> {
    let is_own = |name: &str| {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        ["", "docker-", "libpod-", "libpod-payload-"]
            .iter()
            .any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest == id))
    };
    let mut path = PathBuf::new();
    for component in process.components() {
        path.push(component);
        if let Component::Normal(name) = component
            && name.to_str().is_some_and(is_own)
        {
            return Some(path);
        }
    }
    None
}

/// The unit's cgroup below the mount, from `systemctl show`'s `KEY=VALUE` lines.
fn unit_cgroup<'a>(answer: &'a str, id: &str) -> Result<&'a Path, EngineError> {
    let (program, what) = (Engine::Systemd.program(), Engine::Systemd.what());
    let value = |key: &str| {
        answer
            .lines()
            .find_map(|line| line.split_once('=').filter(|(found, _)| *found == key))
            .map(|(_, v)| v)
    };
    let (Some(load), Some(active)) = (value("LoadState"), value("ActiveState")) else {
        return Err(EngineError::Unreadable(program));
    };
    if load == "not-found" {
        return Err(EngineError::Unknown { program, what, id: id.to_owned() });
    }
    match value("ControlGroup") {
        None | Some("") if matches!(active, "inactive" | "failed") => {
            Err(EngineError::NotRunning { what, id: id.to_owned() })
        }
        None | Some("") => Err(EngineError::NoCgroup { what, id: id.to_owned() }),
        Some(path) => {
            let below = path.strip_prefix('/').map(Path::new);
            below
                .filter(|below| below.components().all(|part| matches!(part, Component::Normal(_))))
                .ok_or(EngineError::Unreadable(program))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_container_s_own_cgroup_is_found_wherever_its_process_sits() {
        for (process, own) in [
            ("/c/system.slice/docker-ID.scope", Some("/c/system.slice/docker-ID.scope")),
            ("/c/system.slice/docker-ID.scope/init.scope", Some("/c/system.slice/docker-ID.scope")),
            ("/c/docker/ID", Some("/c/docker/ID")),
            ("/c/docker/ID/system.slice/cron.service", Some("/c/docker/ID")),
            ("/c/agents.slice/ID/docker/OTHER", Some("/c/agents.slice/ID")),
            ("/c/docker/OTHER/docker/ID", Some("/c/docker/OTHER/docker/ID")),
            ("/c/machine.slice/libpod-ID.scope/container", Some("/c/machine.slice/libpod-ID.scope")),
            ("/c/machine.slice/libpod-ID.scope", Some("/c/machine.slice/libpod-ID.scope")),
            ("/c/libpod_parent/libpod-ID", Some("/c/libpod_parent/libpod-ID")),
            ("/c/x.service/libpod-payload-ID", Some("/c/x.service/libpod-payload-ID")),
            ("/c/machine.slice/libpod-conmon-ID.scope", None),
            ("/c/user.slice/session-1.scope", None),
            ("/c/docker/IDx", None),
            ("/c/docker-xID.scope", None),
            ("/c", None),
        ] {
            let named = |path: &str| path.replace("ID", ID).replace("OTHER", &ID.replace('0', "f"));
            assert_eq!(
                container_cgroup(Path::new(&named(process)), ID),
                own.map(|own| PathBuf::from(named(own))),
                "{process}"
            );
        }
    }

    #[test]
    fn a_container_s_answer_is_read_strictly() {
        let answer = |pid: &str| format!("{ID} {pid}\n");
        assert_eq!(read_container(&answer("42")), Some(Told { id: ID, pid: 42 }));
        assert_eq!(read_container(&answer("0")), Some(Told { id: ID, pid: 0 }));
        for bad in ["", "\n", "42\n", "abc 42\n", &answer("-1"), &answer("4 2"), &answer("99999999999")] {
            assert_eq!(read_container(bad), None, "{bad:?}");
        }
        let two = [answer("1"), answer("2")].concat();
        assert_eq!(read_container(&two), None, "two containers are none");
        assert_eq!(read_container(&answer("1").replace('0', "g")), None);
    }

    #[test]
    fn a_container_is_written_and_read_again() {
        let container = Container { engine: Engine::Podman, id: ID.to_owned() };
        assert_eq!(Container::read(&container.written()), Some(container));
        assert_eq!(Container::read("systemctl:x.service"), None);
        assert_eq!(Container::read(ID), None);
    }

    #[test]
    fn a_unit_s_answer_names_its_cgroup_or_why_there_is_none() {
        let answer = |load: &str, active: &str, group: &str| {
            format!("ControlGroup={group}\nLoadState={load}\nActiveState={active}\n")
        };
        let read = |answer: &str| unit_cgroup(answer, "x.service").map(Path::to_owned);
        let found = read(&answer("loaded", "active", "/system.slice/a\\x2db.service")).unwrap();
        assert_eq!(found, Path::new("system.slice/a\\x2db.service"));
        assert_eq!(read(&answer("loaded", "active", "/")).unwrap(), Path::new(""), "the root, refused later");
        let refused = |text: &str| read(text).unwrap_err().to_string();
        assert_eq!(refused(&answer("not-found", "inactive", "")), "systemctl knows no unit x.service");
        assert_eq!(refused(&answer("loaded", "inactive", "")), "unit x.service is not running");
        assert_eq!(refused(&answer("loaded", "active", "")), "unit x.service has no cgroup (v2) of its own");
        assert_eq!(refused("LoadState=loaded\nActiveState=failed\n"), "unit x.service is not running");
        for bad in
            ["", "nonsense", &answer("loaded", "active", "/a/../b"), &answer("loaded", "active", "a/b")]
        {
            assert_eq!(refused(bad), "systemctl gave an answer that cannot be read", "{bad:?}");
        }
    }

    #[test]
    fn only_names_are_asked_for() {
        for (engine, good) in [
            (Engine::Docker, "my-agent_1.x"),
            (Engine::Podman, ID),
            (Engine::Systemd, "agent@1.service"),
            (Engine::Systemd, "agents-a\\x2db.slice"),
        ] {
            check_id(engine, good).unwrap();
        }
        let long = "x".repeat(256);
        for bad in ["", "-x", "--help", "a b", "a/b", "a\n", "*", "é", "a;b", "$(x)", &long] {
            for engine in [Engine::Docker, Engine::Podman, Engine::Systemd] {
                assert!(check_id(engine, bad).is_err(), "{engine:?} {bad:?}");
            }
        }
        assert!(check_id(Engine::Systemd, "42").is_err(), "a job");
        assert!(check_id(Engine::Docker, "42").is_ok(), "an abbreviated id");
    }

    #[test]
    fn the_first_line_of_a_complaint_is_passed_on_harmless_and_short() {
        for words in ["Error: No such container: x", "Error response from daemon: no such object: \"x\""] {
            let unknown = refusal(Engine::Docker, "x", words.as_bytes());
            assert_eq!(unknown.to_string(), "docker knows no container x");
        }
        let hostile = [b"\n\x1b[31mCannot connect\xff", &[b'x'; 1000][..], b"\nmore"].concat();
        let said = refusal(Engine::Podman, "x", &hostile).to_string();
        assert!(said.starts_with("podman failed: "), "{said}");
        assert!(said.chars().count() < 250 && !said.chars().any(char::is_control), "{said}");
    }
}
