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
use crate::{home, installed};

/// Longer than any client takes that is answered.
pub const ANSWERED: Duration = Duration::from_secs(60);
/// Names under which clients look for their providers.
const NAMES: [&str; 5] = [
    "api.anthropic.com",
    "api.openai.com",
    "chatgpt.com",
    "generativelanguage.googleapis.com",
    "bedrock-runtime.us-east-1.amazonaws.com",
];
/// The clients' resolver, one of a private network.
const RESOLVER: &str = "10.9.8.7";
/// The daemon's: what clients ask is told apart.
const DAEMON_RESOLVER: &str = "10.9.8.6";

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
        Self::staged(|| Stage::over_tls(script.into().offering_http2(), settings), test);
    }

    /// The same with a daemon whose settings name no upstream: it asks for the provider as its clients do.
    pub fn by_its_names(script: impl Into<Script> + Send, test: impl FnOnce(&Self) + Send) {
        Self::staged(|| Stage::by_its_names(script.into().offering_http2(), PUBLIC4), test);
    }

    fn staged(stage: impl FnOnce() -> Stage + Send, test: impl FnOnce(&Self) + Send) {
        in_own_network(|| {
            // some clients put programs into their home, and want none in a directory for temporary files
            let files = TempDir::new_in(installed::directory()).unwrap();
            let for_daemon = resolver(DAEMON_RESOLVER);
            NAMES.iter().for_each(|name| for_daemon.set(name, &[PUBLIC4]));
            let stage = asking(DAEMON_RESOLVER, &files, stage);
            let scene = Self { stage, dns: resolver(RESOLVER), files };
            asking(RESOLVER, &scene.files, || test(&scene));
        });
    }

    /// A client in a bottle that is told what it needs on this way.
    pub fn ask(&self, client: Client, way: Way, stream: bool, reader: Reader, bottle: &Bottle) -> Command {
        let mut command = self.told(client, way, stream, reader, bottle);
        bottle.cgroup.enter_before_exec(&mut command);
        command
    }

    /// A client in no bottle that is given, of all that `enforcer env` prints for one, what it needs on this way alone.
    pub fn told(&self, client: Client, way: Way, stream: bool, reader: Reader, bottle: &Bottle) -> Command {
        let printed = self.stage.daemon.environment(&bottle.name).into_iter();
        let needed = printed.filter(|(name, _)| client.needs(way).contains(&name.as_str()));
        let mut command = self.bare(client, way, stream, reader, bottle);
        assert_eq!(needed.clone().count(), client.needs(way).len(), "{client:?} needs what is not printed");
        command.envs(needed);
        if way == Way::Gateway && matches!(client.provider(), "gemini" | "bedrock") {
            let variable = self.line_for(client, bottle);
            command.envs(variable.split_once('='));
        }
        command
    }

    /// A client in no bottle that is told nothing of the meter, but for its configuration on ways that need it.
    pub fn bare(&self, client: Client, way: Way, stream: bool, reader: Reader, bottle: &Bottle) -> Command {
        let found: &[IpAddr] = if way == Way::Redirect { &[PUBLIC4] } else { &[] };
        NAMES.iter().for_each(|name| self.dns.set(name, found));
        let home = tempfile::tempdir_in(self.files.path()).unwrap().keep();
        if let Some((file, config)) = home::config(client, way, || self.line_for(client, bottle)) {
            fs::create_dir(home.join(file).parent().unwrap()).unwrap();
            fs::write(home.join(file), config).unwrap();
        }
        client.ask(&home, way, stream, reader)
    }

    /// The line that `enforcer env` prints for this client alone: indented, below a comment that begins with its name.
    fn line_for(&self, client: Client, bottle: &Bottle) -> String {
        let printed = self.stage.daemon.ok(&["env", &bottle.name]);
        let about = format!("# {} ", client.addressed_as());
        let mut lines = printed.lines().skip_while(|line| !line.starts_with(&about)).skip(1);
        lines.next().and_then(|line| line.strip_prefix("#   ")).expect(&printed).to_owned()
    }
}

/// A DNS server at this address, which the test's network gets.
fn resolver(address: &str) -> Dns {
    ip(&["address", "add", &format!("{address}/32"), "dev", "lo"]);
    Dns::start(address, 1)
}

/// Does something where programs ask this resolver alone, and know no name from a file but their own.
fn asking<T: Send>(resolver: &str, files: &TempDir, work: impl FnOnce() -> T + Send) -> T {
    mounts::private(|| {
        let show = |name: &str, text: String| {
            let shown = files.path().join(format!("{name}-{resolver}"));
            fs::write(&shown, text).unwrap();
            mounts::show_instead(&Path::new("/etc").join(name), &shown);
        };
        show("resolv.conf", format!("nameserver {resolver}\n"));
        show("hosts", "127.0.0.1 localhost\n".to_owned());
        work()
    })
}
