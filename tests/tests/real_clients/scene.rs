//! A client's whole world: a network with nothing but `lo`, a resolver and a hosts file of its own, a provider, and a
//! daemon that knows no other way to it.
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::dns::Dns;
use support::mounts;
use support::network::{PUBLIC4, in_own_network, ip};
use support::provider::Script;
use support::stage::{Bottle, Stage};
use tempfile::TempDir;

use crate::client::{Client, Reader, Way};
use crate::installed;

/// Longer than any client takes that is answered.
pub const ANSWERED: Duration = Duration::from_secs(60);
/// Names under which clients look for their providers.
const NAMES: [&str; 3] = ["api.anthropic.com", "api.openai.com", "chatgpt.com"];
/// The resolver of a private network.
const RESOLVER: &str = "10.9.8.7";

/// See the top of this file.
pub struct Scene {
    pub stage: Stage,
    /// Knows where providers are while a client is to find them itself; at all other times that they are nowhere.
    pub dns: Dns,
    files: TempDir,
}

impl Scene {
    /// Runs a test in a new one, whose provider speaks HTTP/2 as all of them do.
    pub fn with(script: impl Into<Script> + Send, settings: &str, test: impl FnOnce(&Self) + Send) {
        in_own_network(|| {
            mounts::private(|| {
                // some clients put programs into their home, and want none in a directory for temporary files
                let files = TempDir::new_in(installed::directory()).unwrap();
                fs::write(files.path().join("resolv.conf"), format!("nameserver {RESOLVER}\n")).unwrap();
                mounts::show_instead(Path::new("/etc/resolv.conf"), &files.path().join("resolv.conf"));
                fs::write(files.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
                mounts::show_instead(Path::new("/etc/hosts"), &files.path().join("hosts"));
                ip(&["address", "add", &format!("{RESOLVER}/32"), "dev", "lo"]);
                let dns = Dns::start(RESOLVER, 1);
                let script = script.into().offering_http2();
                test(&Self { stage: Stage::over_tls(script, settings), dns, files });
            });
        });
    }

    /// A client in a bottle that is given, of all that `enforcer env` prints, what it needs for this way alone.
    pub fn ask(&self, client: Client, way: Way, stream: bool, reader: Reader, bottle: &Bottle) -> Command {
        let printed = self.stage.daemon.environment(&bottle.name).into_iter();
        let needed = printed.filter(|(name, _)| client.needs(way).contains(&name.as_str()));
        let mut command = self.bare(client, way, stream, reader, bottle);
        assert_eq!(needed.clone().count(), client.needs(way).len(), "{client:?} needs what is not printed");
        command.envs(needed);
        command
    }

    /// A client in a bottle that is told nothing of the meter, but for its configuration on ways that need it.
    pub fn bare(&self, client: Client, way: Way, stream: bool, reader: Reader, bottle: &Bottle) -> Command {
        let found: &[IpAddr] = if way == Way::Redirect { &[PUBLIC4] } else { &[] };
        NAMES.iter().for_each(|name| self.dns.set(name, found));
        let home = tempfile::tempdir_in(self.files.path()).unwrap().keep();
        if let Some(config) = client.config(way, || self.config(bottle)) {
            fs::create_dir(home.join(".codex")).unwrap();
            fs::write(home.join(".codex/config.toml"), config).unwrap();
        }
        let mut command = client.ask(&home, stream, reader);
        bottle.cgroup.enter_before_exec(&mut command);
        command
    }

    /// The lines of configuration that `enforcer env` prints: the indented ones among the comments.
    fn config(&self, bottle: &Bottle) -> String {
        let printed = self.stage.daemon.ok(&["env", &bottle.name]);
        let lines: Vec<&str> = printed.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
        assert!(!lines.is_empty(), "{printed}");
        lines.join("\n")
    }
}
