//! mitmproxy with an addon that passes an answer's bytes on and reads the usage out of them, as add-ons do.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::process;
use tempfile::TempDir;

use crate::nginx::free_port;
use crate::upstream::Upstream;
use crate::wait_listening;

/// Where it is; `cargo xtask bench` sets it.
const PROGRAM: &str = "ENFORCER_BENCH_MITMDUMP";

/// A running mitmdump; stopped when dropped.
pub struct Mitmproxy {
    child: Child,
    address: SocketAddr,
    dir: TempDir,
    command: String,
}

impl Mitmproxy {
    /// Whatever it is asked for, it dials this upstream, by TLS.
    pub fn start(upstream: &Upstream) -> Self {
        let program = std::env::var(PROGRAM).unwrap_or_else(|_| "mitmdump".to_owned());
        let dir = tempfile::tempdir().unwrap();
        let address = free_port();
        std::fs::write(dir.path().join("usage.py"), addon(upstream.https())).unwrap();
        let mut command = Command::new(&program);
        command.args(["--quiet", "--listen-host", "127.0.0.1", "--listen-port"]);
        command.arg(address.port().to_string()).args(["--set", "connection_strategy=lazy", "--set"]);
        command.arg(format!("confdir={}", dir.path().display())).arg("--set");
        command.arg(format!("ssl_verify_upstream_trusted_ca={}", upstream.ca_file().display()));
        command.arg("--scripts").arg(dir.path().join("usage.py"));
        let words = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
        let line = format!("{program} {}", words.join(" "));
        let child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        let mitmproxy = Self { child, address, dir, command: line };
        wait_listening(address);
        mitmproxy
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Certificate of its own CA, which it makes when it starts.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("mitmproxy-ca-cert.pem")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn command(&self) -> &str {
        &self.command
    }
}

impl Drop for Mitmproxy {
    fn drop(&mut self) {
        process::stop(&mut self.child, Duration::from_secs(5));
    }
}

fn addon(upstream: SocketAddr) -> String {
    format!(
        r#"import json

UPSTREAM = ("{}", {})


class Tail:
    """Passes each chunk on; reads the usage of the lines that it completes."""

    def __init__(self):
        self.rest = b""
        self.usage = {{}}

    def __call__(self, chunk):
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                self.usage.update(event.get("usage") or event.get("message", {{}}).get("usage") or {{}})
        return chunk


class Usage:
    def server_connect(self, data):
        data.server.address = UPSTREAM

    def responseheaders(self, flow):
        flow.response.stream = Tail()


addons = [Usage()]
"#,
        upstream.ip(),
        upstream.port()
    )
}
