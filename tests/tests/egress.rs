//! Egress modes from end to end: `run` and `attach` with the built daemon, rules by name with a DNS server of the
//! test's own, and the meter's refusals.
//!
//! Each test has a network of its own, on whose `lo` the far ends are: what leaves a bottle arrives at the test.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::dns::Dns;
use support::network::{PUBLIC4, PUBLIC6, in_own_network};
use support::process::{self, Output, built, copy_program};
use support::provider::Reply;
use support::stage::{Bottle, Stage};

const SOON: Duration = Duration::from_secs(30);
/// Longer than a name's shortest time to live, and the wait for the next look.
const TTL: Duration = Duration::from_secs(20);
/// Another address on `lo`.
const SECOND4: &str = "203.0.113.8";
const HOST_CANNOT: Option<i32> = Some(5);

/// A far end that counts what arrives.
struct Far(TcpListener);

impl Far {
    fn new(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    /// Bytes of the connections that wait here.
    fn bytes(&self) -> usize {
        let mut bytes = 0;
        while let Ok((mut stream, _)) = self.0.accept() {
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            bytes += stream.read(&mut [0; 1024]).unwrap_or(0);
        }
        bytes
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// Whether a process of the bottle gets bytes here; refused at once otherwise.
    fn is_reached(&self, cgroup: &TestCgroup) -> bool {
        let mut sender = Command::new(built("sender"));
        sender.args(["tcp", &self.address().to_string(), "--for-ms", "50"]);
        let output = process::run(cgroup.enter_before_exec(&mut sender), SOON);
        let bytes = self.bytes();
        match output.code {
            Some(0) => assert!(bytes > 0, "{output:?}"),
            _ => {
                assert!(output.stderr.contains("Operation not permitted"), "{output:?}");
                assert_eq!(bytes, 0);
            }
        }
        bytes > 0
    }
}

fn ip(arguments: &[&str]) {
    let output = process::run(Command::new("ip").args(arguments), SOON);
    assert_eq!(output.code, Some(0), "ip {arguments:?}: {}", output.stderr);
}

/// A CONNECT from inside the bottle to somewhere that is not metered.
fn ask_connect(stage: &Stage, bottle: &Bottle, authority: &str) -> Output {
    let mut agent = stage.agent(bottle, &["--mode", "connect", "--authority", authority]);
    process::run(&mut agent, SOON)
}

fn assert_metered(stage: &Stage, bottle: &Bottle) {
    for way in
        [&["--stream"][..], &["--mode", "connect"], &["--provider", "codex", "--mode", "connect", "--stream"]]
    {
        let asked = stage.ask(bottle, way);
        let record = stage.provider.billing_records().pop().unwrap();
        assert_eq!(asked.one().body_sha256, record.response_sha256, "{way:?}");
    }
}

/// A process of root in the cgroup; killed when dropped.
struct Inside(Child);

impl Inside {
    fn start(cgroup: &TestCgroup, command: &mut Command) -> Self {
        Self(cgroup.spawn(command.stdin(Stdio::null()).stdout(Stdio::null())))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        process::kill(&mut self.0);
    }
}

#[test]
fn root_run_in_mode_metered_reaches_its_provider_and_nobody_else() {
    in_own_network(|| {
        let dns = Dns::start("127.0.0.1", 5);
        let stage =
            Stage::over_tls(Reply::default(), "resolvers: [127.0.0.1]\nallow: ['203.0.113.7:9000']\n");
        let programs = tempfile::tempdir().unwrap();
        fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = |name: &str| {
            let copy = programs.path().join(name);
            copy_program(&built(name), &copy);
            copy.to_str().unwrap().to_owned()
        };
        let run = |words: &[&str]| {
            let mut command = stage.daemon.command();
            command.args(["run", "--user", "nobody", "--name", "launched", "--egress", "metered", "--"]);
            process::run(command.args(words).current_dir("/"), SOON)
        };
        let (agent, sender) = (program("demo-agent"), program("sender"));
        let output = run(&[&agent, "--json", "--stream", "--mode", "connect"]);
        assert_eq!(output.code, Some(0), "{output:?}\n{}", stage.daemon.logs());
        assert_eq!(stage.provider.billing_records().len(), 1);
        let far = [Far::new("203.0.113.7:9000"), Far::new("[2001:db8::7]:9000"), Far::new("127.0.0.1:9000")];
        for far in &far {
            let output = run(&[&sender, "tcp", &far.address().to_string(), "--for-ms", "50"]);
            assert_eq!((output.code, far.bytes()), (Some(1), 0), "{output:?}");
            assert!(output.stderr.contains("Operation not permitted"), "{output:?}");
        }
        let output = run(&[&agent, "--json", "--mode", "connect", "--authority", "elsewhere.test"]);
        assert!(output.stderr.contains("403"), "{output:?}");
        assert!(!dns.asked().contains(&"elsewhere.test".to_owned()), "the meter asks nobody for it either");
    });
}

#[test]
fn root_attach_with_an_allow_list_reaches_what_its_rules_name() {
    in_own_network(|| {
        ip(&["address", "add", &format!("{SECOND4}/32"), "dev", "lo"]);
        let dns = Dns::start("127.0.0.1", 5);
        dns.set("git.test", &[PUBLIC4, PUBLIC6]);
        let rules =
            "allow: ['git.test:9418', '203.0.113.0/24:5432', '[2001:db8::7]:5433', 'nowhere.test:9418']\n";
        let stage = Stage::over_tls(Reply::default(), &format!("{rules}resolvers: [127.0.0.1]\n"));
        let cgroup = TestCgroup::new("listed");
        let path = cgroup.path().to_str().unwrap();
        let attached = stage.daemon.cli(&["attach", "listed", "--cgroup", path, "--egress", "allowlist"]);
        assert_eq!(attached.code, Some(0), "{attached:?}");
        let said = "rule nowhere.test:9418 lets nothing through until its name is found";
        assert!(attached.stderr.contains(said), "{attached:?}");
        assert_eq!(stage.daemon.bottle("listed")["egress"], "allowlist");
        assert!(stage.daemon.ok(&["status"]).contains("allowlist"));
        let rows = stage.audit("listed", "attach");
        assert!(rows[0]["detail"].as_str().unwrap().contains(said), "{rows:?}");

        let second = Far::new(&format!("{SECOND4}:9418"));
        for (address, reached) in [
            ("203.0.113.7:9418", true),
            ("[2001:db8::7]:9418", true),
            ("203.0.113.7:5432", true),
            ("[2001:db8::7]:5433", true),
            ("203.0.113.7:9419", false),
            ("[2001:db8::7]:5432", false),
            ("127.0.0.1:9418", false),
        ] {
            assert_eq!(Far::new(address).is_reached(&cgroup), reached, "{address}");
        }
        assert!(!second.is_reached(&cgroup));
        // the name moves; connections to its old address live on
        dns.set("git.test", &[SECOND4.parse::<IpAddr>().unwrap()]);
        dns.set("nowhere.test", &[PUBLIC4]);
        let found = wait_until(TTL, || second.is_reached(&cgroup).then_some(()));
        assert!(found.is_some(), "the new address is not reached\n{}", stage.daemon.logs());
        assert!(Far::new("203.0.113.7:9418").is_reached(&cgroup));

        let bottle = Bottle { name: "listed".into(), cgroup };
        assert_metered(&stage, &bottle);
        let refused = ask_connect(&stage, &bottle, "elsewhere.test");
        assert!(refused.stderr.contains("403"), "{refused:?}");
        let again = ask_connect(&stage, &bottle, "elsewhere.test");
        assert!(again.stderr.contains("403"), "{again:?}");
        let told = stage.audit("listed", "meter");
        let told: Vec<_> =
            told.iter().filter(|row| row["detail"].as_str().unwrap().contains("elsewhere.test")).collect();
        assert_eq!(told.len(), 1, "{told:?}");
    });
}

#[test]
fn root_a_restart_keeps_the_mode_and_writes_the_rules_anew() {
    in_own_network(|| {
        let dns = Dns::start("127.0.0.1", 5);
        dns.set("git.test", &[PUBLIC4]);
        let mut stage = Stage::over_tls(
            Reply::default(),
            "egress: allowlist\nallow: ['git.test:9418']\nresolvers: [127.0.0.1]\n",
        );
        let bottle = stage.bottle("kept", &[]);
        let (listed, other) = (Far::new("203.0.113.7:9418"), Far::new("203.0.113.7:9419"));
        assert!(listed.is_reached(&bottle.cgroup) && !other.is_reached(&bottle.cgroup));
        stage.daemon.kill9();
        assert!(
            listed.is_reached(&bottle.cgroup) && !other.is_reached(&bottle.cgroup),
            "nobody is at the wheel"
        );
        stage.daemon.restart();
        assert_eq!(stage.daemon.bottle("kept")["egress"], "allowlist");
        let found = wait_until(TTL, || listed.is_reached(&bottle.cgroup).then_some(()));
        assert!(found.is_some(), "the rule is not written anew\n{}", stage.daemon.logs());
        assert!(!other.is_reached(&bottle.cgroup));
    });
}

#[test]
fn root_the_closer_of_nested_modes_holds_in_the_meter_too() {
    in_own_network(|| {
        let _dns = Dns::start("127.0.0.1", 5);
        let settings = "allow: ['203.0.113.7:9000']\nresolvers: [127.0.0.1]\nallow_private: ['203.0.113.0/24']\n\
                        bottles:\n  inner: { egress: open }\n";
        let stage = Stage::over_tls(Reply::default(), settings);
        let outer = stage.bottle("outer", &["--egress", "metered"]);
        let cgroup = outer.cgroup.child("inner");
        stage.daemon.attach("inner", cgroup.path(), &[]);
        let inner = Bottle { name: "inner".into(), cgroup };
        assert_eq!(stage.daemon.bottle("inner")["egress"], "open");
        let far = Far::new("203.0.113.7:9000");
        assert!(!far.is_reached(&inner.cgroup));
        let refused = ask_connect(&stage, &inner, "203.0.113.7:9000");
        assert!(refused.stderr.contains("403") && far.bytes() == 0, "{refused:?}");
        assert_metered(&stage, &inner);
        stage.daemon.ok(&["detach", "outer"]);
        assert!(far.is_reached(&inner.cgroup));
        drop(inner);
    });
}

#[test]
fn root_who_could_send_below_the_hooks_is_not_confined() {
    in_own_network(|| {
        let stage = Stage::new(Reply::default(), "resolvers: [127.0.0.1]\n");
        let cgroup = TestCgroup::new("raw");
        let path = cgroup.path().to_str().unwrap();
        let attach = |mode: &str| stage.daemon.cli(&["attach", "raw", "--cgroup", path, "--egress", mode]);
        let inside = Inside::start(&cgroup, Command::new("sleep").arg("60"));
        let output = attach("metered");
        assert_eq!(output.code, Some(0), "nothing leads out of a network with lo alone: {output:?}");
        stage.daemon.ok(&["detach", "raw"]);
        ip(&["link", "add", "cable", "type", "veth", "peer", "name", "other"]);
        let output = attach("metered");
        assert_eq!(output.code, HOST_CANNOT, "{output:?}");
        assert!(
            output.stderr.contains("(sleep) has CAP_NET_ADMIN over a network that leads out"),
            "{output:?}"
        );
        assert!(output.stderr.contains("hint: start it with enforcer run"), "{output:?}");
        assert!(stage.daemon.json(&["status"])["bottles"].as_array().unwrap().is_empty());
        let output = attach("open");
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(output.stderr.contains("is not metered"), "{output:?}");
        stage.daemon.ok(&["detach", "raw"]);
        drop(inside);

        let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
        let harmless = [&nobody[..], &["--no-new-privs", "sleep", "60"]].concat();
        // root of a user namespace below has no power over the network it came from
        let below = [&nobody[..], &["unshare", "--user", "--map-root-user", "sleep", "60"]].concat();
        for words in [harmless, below] {
            let _inside = Inside::start(&cgroup, Command::new("setpriv").args(&words));
            let reached = wait_until(SOON, || (attach("metered").code == Some(0)).then_some(()));
            assert!(reached.is_some(), "{words:?}: {:?}", attach("metered"));
            stage.daemon.ok(&["detach", "raw"]);
        }
    });
}

#[test]
fn root_an_empty_cgroup_is_confined_with_a_warning() {
    in_own_network(|| {
        let stage = Stage::new(Reply::default(), "resolvers: [127.0.0.1]\n");
        let cgroup = TestCgroup::new("empty");
        let path = cgroup.path().to_str().unwrap();
        let output = stage.daemon.cli(&["attach", "empty", "--cgroup", path, "--egress", "metered"]);
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(output.stderr.contains("has no processes yet"), "{output:?}");
        let wrong = stage.daemon.cli(&["attach", "x", "--cgroup", path, "--egress", "closed"]);
        assert_eq!(wrong.code, Some(2), "{wrong:?}");
    });
}

#[test]
fn wrong_rules_have_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.yml");
    for (text, place, words, hint) in [
        ("egress: closed\n", ":1:9: ", "unknown variant `closed`", ""),
        ("allow:\n  - '*.github.com:443'\n", ":2:5: ", "a name with * has no addresses", "list each name"),
        ("allow: ['a.test', 'fd00::1:443']\n", ":1:19: ", "without brackets", "[fd00::1]:443"),
        ("allow: ['10.1.0.0/8:443']\n", ":1:9: ", "bits beyond its prefix", "10.0.0.0/8"),
        ("allow: ['a.test:0']\n", ":1:9: ", "not one of 1 to 65535", "host:port"),
        ("resolvers: [dns.test]\n", ":1:13: ", "no address of a DNS server", "10.0.0.53"),
        ("bottles:\n  b: { egress: none }\n", ":2:16: ", "unknown variant `none`", ""),
    ] {
        fs::write(&file, text).unwrap();
        let mut check = Command::new(built("enforcer"));
        let output = process::run(check.args(["settings", "check", file.to_str().unwrap()]), SOON);
        assert_eq!(output.code, Some(2), "{text:?}: {output:?}");
        assert!(output.stderr.contains(&format!("settings.yml{place}")), "{text:?}: {output:?}");
        assert!(output.stderr.contains(words) && output.stderr.contains(hint), "{text:?}: {output:?}");
    }
}
