//! Agents that find their provider by its name, with no proxy and no base URL: while they are cut, names lead to the
//! refusal lane and no resolver hears of it; after that to where they led before.
//!
//! Real resolving programs (getent, curl) over a resolver of the test's own, in a network of the test's own.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::dns::Dns;
use support::mounts;
use support::namespace::Holder;
use support::network::{Namespace, PUBLIC4, in_own_network, ip};
use support::process::{self, Output};
use support::provider::Reply;
use support::stage::{Bottle, Stage};
use tempfile::NamedTempFile;

const SOON: Duration = Duration::from_secs(20);
const NAME: &str = "api.anthropic.com";
/// Where every name is while a bottle is cut: RFC 2544.
const EVERYWHERE: &str = "198.18.0.1";
/// A stub as systemd-resolved's, and a resolver of a private network.
const RESOLVERS: [&str; 2] = ["127.0.0.53", "10.9.8.7"];
const PRIVATE: &str = "10.9.8.7/32";
const QUESTION: &str = r#"{"model":"claude-3","max_tokens":8,"messages":[{"role":"user","content":"hi"}]}"#;

/// The resolvers that programs of the test's mount namespace ask.
struct ResolvConf(NamedTempFile);

impl ResolvConf {
    fn new() -> Self {
        let file = NamedTempFile::new().unwrap();
        mounts::show_instead("/etc/resolv.conf".as_ref(), file.path());
        Self(file)
    }

    fn name(&self, resolver: &str) {
        fs::write(self.0.path(), format!("nameserver {resolver}\noptions timeout:1 attempts:1\n")).unwrap();
    }
}

/// A bottle, and the network namespace of its processes where that is not the test's.
struct Scene<'s> {
    stage: &'s Stage,
    bottle: Bottle,
    holder: Option<Holder>,
    servers: [Dns; 2],
    conf: &'s ResolvConf,
}

impl Scene<'_> {
    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_clear().env("PATH", "/usr/bin:/bin");
        self.bottle.cgroup.enter_before_exec(&mut command);
        if let Some(holder) = &self.holder {
            holder.enter_before_exec(&mut command);
        }
        process::run(&mut command, SOON)
    }

    /// Where the name is, as getaddrinfo says.
    fn address(&self) -> String {
        let found = self.run(&["getent", "ahosts", NAME]);
        assert_eq!(found.code, Some(0), "{}: {found:?}", self.bottle.name);
        found.stdout.split_whitespace().next().unwrap().to_owned()
    }

    /// What a client that knows the name alone is told, and its HTTP status.
    fn ask(&self) -> (String, Output) {
        let ca = self.stage.daemon.ok(&["ca", "path"]);
        let url = format!("https://{NAME}/v1/messages");
        let status = "\n%{http_code}";
        let asked = self.run(&["curl", "-sS", "--cacert", ca.trim(), "-w", status, "-d", QUESTION, &url]);
        (asked.stdout.lines().last().unwrap_or_default().to_owned(), asked)
    }

    fn asked(&self) -> usize {
        self.servers.iter().map(|server| server.asked().len()).sum()
    }

    /// The name is where the resolver says, and the provider answers.
    fn goes_there(&self, resolver: &str) {
        self.conf.name(resolver);
        let before = self.asked();
        assert_eq!(self.address(), PUBLIC4.to_string(), "{}, {resolver}", self.bottle.name);
        let (status, asked) = self.ask();
        assert_eq!(status, "200", "{}, {resolver}: {asked:?}", self.bottle.name);
        assert!(self.asked() > before);
    }

    /// The name is at the lane, which says why, and nobody else hears of it.
    fn hears_why(&self, resolver: &str, why: &str) {
        self.conf.name(resolver);
        let before = self.asked();
        assert_eq!(self.address(), EVERYWHERE, "{}, {resolver}", self.bottle.name);
        let (status, asked) = self.ask();
        assert!(status == "402" && asked.stdout.contains(why), "{}: {asked:?}", self.bottle.name);
        assert_eq!(self.asked(), before, "a resolver heard of it");
    }

    /// Nothing is resolved, and nobody hears of it.
    fn is_deaf(&self, resolver: &str) {
        self.conf.name(resolver);
        let before = self.asked();
        assert_eq!(self.run(&["getent", "ahosts", NAME]).code, Some(2));
        assert_ne!(self.ask().1.code, Some(0));
        assert_eq!(self.asked(), before, "a resolver heard of it");
    }
}

fn servers() -> [Dns; 2] {
    ip(&["address", "add", PRIVATE, "dev", "lo"]);
    RESOLVERS.map(|resolver| {
        let server = Dns::start(resolver, 300);
        server.set(NAME, &[PUBLIC4]);
        server
    })
}

/// A bottle in the test's network namespace, and one in a namespace with nothing but `lo`.
fn scenes<'s>(stage: &'s Stage, conf: &'s ResolvConf) -> [Scene<'s>; 2] {
    let here = Scene { stage, bottle: stage.bottle("here", &[]), holder: None, servers: servers(), conf };
    let cgroup = TestCgroup::new("apart");
    let holder = Holder::start(&cgroup);
    stage.daemon.attach("apart", cgroup.path(), &[]);
    let bottle = Bottle { name: "apart".into(), cgroup };
    let servers = Namespace::of_process(holder.pid()).enter(servers);
    [here, Scene { stage, bottle, holder: Some(holder), servers, conf }]
}

fn on_stage(settings: &str, play: impl FnOnce(Stage, &ResolvConf) + Send) {
    in_own_network(|| {
        mounts::private(|| {
            let conf = ResolvConf::new();
            conf.name(RESOLVERS[0]);
            play(Stage::over_tls(Reply::default(), settings), &conf);
        });
    });
}

#[test]
fn root_an_agent_that_resolves_its_provider_s_name_hears_why_it_is_cut_and_no_resolver_does() {
    on_stage("", |stage, conf| {
        for scene in scenes(&stage, conf) {
            let name = &scene.bottle.name;
            for round in ["tea time", "lunch"] {
                RESOLVERS.into_iter().for_each(|resolver| scene.goes_there(resolver));
                stage.daemon.ok(&["cut", name, "--answered", "--reason", round]);
                RESOLVERS.into_iter().for_each(|resolver| scene.hears_why(resolver, round));
                stage.daemon.ok(&["restore", name]);
            }
            RESOLVERS.into_iter().for_each(|resolver| scene.goes_there(resolver));
            stage.daemon.ok(&["cut", name, "--answered"]);
            stage.daemon.ok(&["cut", name, "--silent"]);
            RESOLVERS.into_iter().for_each(|resolver| scene.is_deaf(resolver));
        }
    });
}

#[test]
fn root_a_confined_bottle_s_queries_are_answered_too_when_it_is_cut() {
    on_stage("resolvers: [127.0.0.53]\n", |stage, conf| {
        let bottle = stage.bottle("confined", &["--egress", "metered"]);
        let scene = Scene { stage: &stage, bottle, holder: None, servers: servers(), conf };
        scene.goes_there("127.0.0.53");
        stage.daemon.ok(&["cut", "confined", "--answered", "--reason", "tea time"]);
        RESOLVERS.into_iter().for_each(|resolver| scene.hears_why(resolver, "tea time"));
        stage.daemon.ok(&["restore", "confined"]);
        scene.goes_there("127.0.0.53");
    });
}

#[test]
fn root_without_its_lane_a_cut_bottle_s_queries_are_refused_and_a_new_lane_answers_them() {
    on_stage("", |stage, conf| {
        let [scene, apart] = scenes(&stage, conf);
        for name in ["here", "apart"] {
            stage.daemon.ok(&["cut", name, "--answered", "--reason", "tea time"]);
        }
        let lane = stage.daemon.lane().unwrap();
        let pid = stage.daemon.json(&["status"])["daemon"]["lane"]["pid"].as_i64().unwrap();
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGSTOP).unwrap();
        let refused = [&scene, &apart].map(|scene| scene.run(&["getent", "ahosts", NAME]).code);
        assert_eq!(refused, [Some(2); 2], "it says nothing now");
        lane.kill();
        wait_until(SOON, || stage.daemon.lane().filter(|other| *other != lane)).unwrap();
        let serves =
            || (stage.daemon.json(&["status"])["daemon"]["lane"]["state"] == "serving").then_some(());
        wait_until(SOON, serves).unwrap();
        for scene in [&scene, &apart] {
            let answered = || (scene.run(&["getent", "ahosts", NAME]).code == Some(0)).then_some(());
            wait_until(SOON, answered).unwrap();
            scene.hears_why(RESOLVERS[1], "tea time");
        }
    });
}

/// Ports of IPv4's loopback that have a UDP socket in the test's network namespace.
fn udp_ports() -> Vec<u16> {
    let table = fs::read_to_string("/proc/thread-self/net/udp").unwrap();
    let local = table.lines().filter_map(|line| line.split_whitespace().nth(1)?.strip_prefix("0100007F:"));
    local.map(|port| u16::from_str_radix(port, 16).unwrap()).collect()
}

#[test]
fn root_where_another_has_the_lane_s_port_a_cut_is_silent_and_nothing_gets_there() {
    on_stage("", |stage, conf| {
        let ports = udp_ports();
        let [port] = ports[..] else { panic!("the lane alone has one: {ports:?}") };
        let cgroup = TestCgroup::new("taken");
        let holder = Holder::start(&cgroup);
        let namespace = Namespace::of_process(holder.pid());
        let (servers, squatter) =
            namespace.enter(|| (servers(), UdpSocket::bind(("127.0.0.1", port)).unwrap()));
        stage.daemon.attach("taken", cgroup.path(), &[]);
        let bottle = Bottle { name: "taken".into(), cgroup };
        let scene = Scene { stage: &stage, bottle, holder: Some(holder), servers, conf };
        scene.goes_there(RESOLVERS[0]);
        stage.daemon.ok(&["cut", "taken", "--answered"]);
        RESOLVERS.into_iter().for_each(|resolver| scene.is_deaf(resolver));
        squatter.set_nonblocking(true).unwrap();
        assert!(squatter.recv(&mut [0; 8]).is_err(), "something got out");
        let why = format!("the refusal lane cannot listen: 127.0.0.1:{port} is taken");
        let told = format!("an answered cut is silent in one of its network namespaces: {why}");
        assert!(stage.daemon.logs().contains(&told), "{}", stage.daemon.logs());
    });
}
