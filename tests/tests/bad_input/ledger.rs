//! The ledger's file, when it is not what it should be, and when the disk is full: nothing opens unrecorded.
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::process::Command;
use std::time::Duration;

use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::mounts;
use support::process;
use support::provider::{Provider, Reply};
use support::require_root;

use crate::{FAILED, NOBODY, Place, SOON};

/// Room for the ledger and its log, and little more.
const SMALL_BYTES: usize = 2 << 20;

#[test]
fn root_a_ledger_that_cannot_be_trusted_is_refused_and_left_as_it_is() {
    require_root();
    let place = Place::new();
    let file = place.state().join("bot-bottle.db");
    let write = |bytes: &[u8]| {
        drop(fs::remove_file(&file));
        fs::write(&file, bytes).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    };
    write(
        b"SQLite format 3\0 and then something else entirely, for longer than a header is: damaged"
            .repeat(50)
            .as_slice(),
    );
    place.assert_refuses(FAILED, "bot-bottle.db");
    write(b"no database");
    place.assert_refuses(FAILED, "bot-bottle.db");
    assert_eq!(fs::read(&file).unwrap(), b"no database");
    write(b"");
    chown(&file, Some(NOBODY), None).unwrap();
    place.assert_refuses(FAILED, "it belongs to uid 65534");
    chown(&file, Some(0), None).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    place.assert_refuses(FAILED, "its mode is 0644, not 0600");
    fs::remove_file(&file).unwrap();
    let precious = place.beside("precious");
    fs::write(&precious, "").unwrap();
    symlink(&precious, &file).unwrap();
    place.assert_refuses(FAILED, "it is a link or no file");
    fs::remove_file(&file).unwrap();
    fs::hard_link(&precious, &file).unwrap();
    place.assert_refuses(FAILED, "bot-bottle.db");
    assert_eq!(fs::metadata(&precious).unwrap().len(), 0, "nothing is written through a link");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    place.assert_refuses(FAILED, "it is a link or no file");
}

#[test]
fn root_a_damaged_page_is_found_at_the_start() {
    let mut daemon = Daemon::start("");
    let group = TestCgroup::new("damaged");
    daemon.attach("b1", group.path(), &[]);
    drop(daemon.ok(&["cut", "b1"]));
    daemon.stop();
    let file = daemon.state_dir().join("bot-bottle.db");
    let whole = fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    let page = damaged.len() / 2 / 4096 * 4096;
    damaged[page..page + 4096].fill(0xa5);
    fs::write(&file, &damaged).unwrap();
    let output = process::run(daemon.command().arg("daemon"), SOON);
    assert_eq!((output.code, output.stdout.as_str()), (Some(FAILED), ""), "{output:?}");
    assert!(output.stderr.contains("enforcer: ") && output.stderr.contains("bot-bottle.db"), "{output:?}");
    assert!(!daemon.socket().exists());
    assert_eq!(fs::read(&file).unwrap(), damaged, "a damaged ledger is left as it is");
    fs::write(&file, &whole).unwrap();
    daemon.restart();
    assert_eq!(daemon.bottle("b1")["state"], "cut");
}

#[test]
fn root_a_full_disk_opens_nothing_and_is_got_over() {
    require_root();
    let provider = Provider::start(Reply::default());
    mounts::private(|| {
        let settings = format!("providers: {{ claude: {{ upstream: \"{}\" }} }}", provider.http_url());
        let mut daemon = Daemon::start("");
        daemon.stop();
        mounts::mount_small(&daemon.state_dir(), SMALL_BYTES);
        daemon.write_settings(&settings);
        daemon.restart();
        full_disk(&daemon, &provider);
        daemon.stop();
        // the directory must be free to be removed; what the daemon pinned goes by its own command first
        drop(daemon.ok(&["daemon", "--unpin-all"]));
        mounts::unmount(&daemon.state_dir());
    });
}

fn full_disk(daemon: &Daemon, provider: &Provider) {
    let [open, cut, late] = ["open", "cut", "late"].map(TestCgroup::new);
    daemon.attach("open", open.path(), &["--budget", "claude=1M"]);
    daemon.attach("cut", cut.path(), &[]);
    drop(daemon.ok(&["cut", "cut"]));
    assert_eq!(ask(daemon, &open).code, Some(0));
    let served = provider.billing_records().len();

    let ballast = daemon.state_dir().join("ballast");
    let fill = || drop(fs::write(&ballast, vec![0; SMALL_BYTES]));
    fill();
    // the log has room in its own file until it must grow
    let refused =
        wait_until(Duration::from_secs(10), || Some(ask(daemon, &open)).filter(|said| said.code != Some(0)));
    let refused = refused.expect("a full disk refuses");
    let served_before_full = provider.billing_records().len();
    assert!(refused.stdout.contains("record") || refused.stderr.contains("record"), "in words: {refused:?}");
    drop(ask(daemon, &open));
    assert_eq!(provider.billing_records().len(), served_before_full, "nothing leaves unrecorded");

    let attach = daemon.cli(&["attach", "late", "--cgroup", late.path().to_str().unwrap()]);
    assert_eq!(attach.code, Some(FAILED), "{attach:?}");
    assert!(attach.stderr.contains("not recorded, so not done"), "{attach:?}");
    let status = daemon.json(&["status"]);
    assert!(status["bottles"].as_array().unwrap().iter().all(|bottle| bottle["name"] != "late"), "{status}");
    let restore = daemon.cli(&["restore", "cut"]);
    assert_eq!(restore.code, Some(FAILED), "{restore:?}");
    assert_eq!(daemon.bottle("cut")["state"], "cut", "what is not recorded is not opened");
    // closing waits for no disk
    let said = daemon.cli(&["cut", "open"]);
    assert_eq!(daemon.bottle("open")["state"], "cut", "{said:?}");

    fs::remove_file(&ballast).unwrap();
    let restored = wait_until(SOON, || (daemon.cli(&["restore", "open"]).code == Some(0)).then_some(()));
    assert!(restored.is_some(), "{}", daemon.json(&["status"]));
    let answered = wait_until(SOON, || (ask(daemon, &open).code == Some(0)).then_some(()));
    assert!(answered.is_some(), "{}", daemon.json(&["status"]));
    assert!(daemon.json(&["status"])["daemon"]["closed"].is_null());
    drop(daemon.ok(&["restore", "cut"]));
    daemon.attach("late", late.path(), &[]);
    let cuts = daemon.json_lines(&["audit"]);
    assert!(
        cuts.iter().any(|row| row["action"] == "cut" && row["bottle"] == "open"),
        "the cut is recorded later"
    );
    assert!(served >= 1);
    for name in ["open", "cut", "late"] {
        drop(daemon.ok(&["detach", name, "--force"]));
    }
}

/// One request of an agent in the bottle.
fn ask(daemon: &Daemon, group: &TestCgroup) -> process::Output {
    let mut agent = Command::new(process::built("demo-agent"));
    agent.env("ANTHROPIC_BASE_URL", format!("http://{}/claude", daemon.listen_addr()));
    process::run(group.enter_before_exec(agent.arg("--json")), SOON)
}
