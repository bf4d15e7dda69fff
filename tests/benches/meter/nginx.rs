//! nginx as a bare reverse proxy: one location, unbuffered, connections to the upstream kept.
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::process;
use tempfile::TempDir;

use crate::upstream::Upstream;
use crate::wait_listening;

/// Where it is; `cargo xtask bench` sets it.
const PROGRAM: &str = "ENFORCER_BENCH_NGINX";

/// A running nginx; stopped when dropped.
pub struct Nginx {
    child: Child,
    address: SocketAddr,
    dir: TempDir,
    program: String,
}

impl Nginx {
    /// Before this upstream.
    pub fn start(upstream: &Upstream) -> Self {
        let program = std::env::var(PROGRAM).unwrap_or_else(|_| "nginx".to_owned());
        let dir = tempfile::tempdir().unwrap();
        let address = free_port();
        std::fs::write(dir.path().join("nginx.conf"), configuration(address, upstream.http())).unwrap();
        let mut command = Command::new(&program);
        command.arg("-p").arg(dir.path()).args(["-c", "nginx.conf", "-e", "error.log"]);
        let child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        let nginx = Self { child, address, dir, program };
        wait_listening(address);
        nginx
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The command and its configuration, in one line.
    pub fn command(&self) -> String {
        let configuration = std::fs::read_to_string(self.dir.path().join("nginx.conf")).unwrap();
        let words: Vec<_> = configuration.split_whitespace().collect();
        format!("{} -p DIR -c nginx.conf, which says: {}", self.program, words.join(" "))
    }

    /// Its workers; the master carries nothing.
    pub fn pids(&self) -> Vec<u32> {
        let master = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        process::stop(&mut self.child, Duration::from_secs(5));
    }
}

/// A port that nobody has at the moment.
pub fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn configuration(address: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "daemon off;
user root;
pid nginx.pid;
worker_processes auto;
worker_rlimit_nofile 16384;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  keepalive_requests 1000000;
  upstream bench {{ server {upstream}; keepalive 128; keepalive_requests 1000000; }}
  server {{
    listen {address};
    location / {{
      proxy_pass http://bench; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"
    )
}
