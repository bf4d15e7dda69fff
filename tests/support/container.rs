//! A container of runc's: a minimal root over the host's programs, in a cgroup below one of the test's.
//!
//! runc is run where only cgroup v2 is mounted, as on hosts without v1, so that it makes no other cgroup.
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cgroup::{self, TestCgroup};
use crate::{mounts, process};

const SOON: Duration = Duration::from_secs(10);
/// The host's directories that a container sees, read-only.
const SHARED: [&str; 5] = ["/usr", "/bin", "/sbin", "/lib", "/lib64"];
/// Where a container finds the workspace's built programs.
pub const PROGRAMS: &str = "/programs";

/// What a container is made from; removed when dropped.
pub struct Bundle {
    dir: TempDir,
}

impl Bundle {
    /// With these files (names without a directory, or in `etc`) in its root beside the host's programs.
    #[must_use]
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::Builder::new().prefix("enforcer-box-").tempdir().expect("a directory");
        let bundle = Self { dir };
        fs::create_dir_all(bundle.root().join("etc")).expect("a root");
        for (name, content) in files {
            fs::write(bundle.root().join(name), content).expect("a file of the root");
        }
        bundle
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root")
    }

    /// Starts these words in a container of this name, in a cgroup below `parent`; with a network of its own (nothing
    /// but `lo`) or in the calling thread's. Its standard output goes to a file of the test's.
    #[must_use]
    pub fn start(&self, parent: &TestCgroup, name: &str, own_network: bool, words: &[&str]) -> Container {
        let cgroup = parent.path().join(name);
        let below = cgroup.strip_prefix(cgroup::mount_point()).expect("a test's cgroup is below the mount");
        let config = config(&Path::new("/").join(below), own_network, words);
        fs::write(self.dir.path().join("config.json"), config.to_string()).expect("a configuration");
        let [stdout, stderr] =
            ["stdout", "stderr"].map(|end| File::create(self.output(name, end)).expect("a file"));
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.dir.path().join("state")).args(["run", "--bundle"]).arg(self.dir.path());
        runc.arg(name).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = mounts::private(|| {
            mounts::unmount(Path::new("/sys/fs/cgroup"));
            mounts::mount_cgroup2(Path::new("/sys/fs/cgroup"));
            runc.spawn().expect("runc is installed")
        });
        Container { child, cgroup }
    }

    /// Where a container's `stdout` or `stderr` goes.
    #[must_use]
    pub fn output(&self, name: &str, end: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("{name}.{end}"))
    }

    /// What a container has said on `stdout` or `stderr`.
    #[must_use]
    pub fn said(&self, name: &str, end: &str) -> String {
        fs::read_to_string(self.output(name, end)).unwrap_or_default()
    }
}

/// The OCI runtime configuration (version 1.0.2).
fn config(cgroup: &Path, own_network: bool, words: &[&str]) -> Value {
    let programs = process::built("inmate");
    let programs = programs.parent().expect("a program lies in a directory");
    let shared = SHARED.iter().map(|dir| (*dir, Path::new(*dir))).filter(|(_, source)| source.exists());
    let mut mounts = vec![json!({"destination": "/proc", "type": "proc", "source": "proc"})];
    mounts.extend(shared.chain([(PROGRAMS, programs)]).map(|(destination, source)| {
        json!({"destination": destination, "type": "none", "source": source, "options": ["rbind", "ro"]})
    }));
    let kinds = ["pid", "mount", "uts", "ipc"].into_iter().chain(own_network.then_some("network"));
    let namespaces: Vec<Value> = kinds.map(|kind| json!({ "type": kind })).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": true, "args": words,
            "env": ["PATH=/usr/bin:/usr/sbin:/bin:/sbin", "NODE_EXTRA_CA_CERTS=/ca.pem"],
        },
        "root": {"path": "root", "readonly": true},
        "hostname": "box",
        "mounts": mounts,
        "linux": {"cgroupsPath": cgroup, "namespaces": namespaces},
    })
}

/// A container that runs. Dropped: everything in it is killed.
pub struct Container {
    child: Child,
    cgroup: std::path::PathBuf,
}

impl Container {
    /// Waits for its end: the exit code of what ran in it. Panics after `timeout`.
    #[must_use]
    pub fn ended(&mut self, timeout: Duration) -> Option<i32> {
        let ended = process::exit_within(&mut self.child, timeout);
        ended.unwrap_or_else(|| panic!("the container did not end within {timeout:?}"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // runc removes the container, and ends, when what runs in it does; the cgroup may be gone already
        drop(fs::write(self.cgroup.join("cgroup.kill"), "1"));
        if process::exit_within(&mut self.child, SOON).is_none() {
            eprintln!("runc did not end with its container and was killed");
        }
    }
}
