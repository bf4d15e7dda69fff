//! Cuts that cannot be made as they were ordered: of nobody, of what has vanished, to be answered by a lane that cannot
//! start or with a certificate that nobody can sign. The more closed state stands, and something says so.
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;
use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::inmate::Inmate;
use support::process;
use support::provider::Reply;
use support::require_root;
use support::stage::{Bottle, Stage};

use crate::{Place, REFUSED, SOON, USAGE, assert_refused};

/// The built programs, but for a lane that ends at once with these words from when this file is there.
fn programs_with_mortal_lane(directory: &Path, end: &Path, words: &str) {
    process::copy_program(&process::built("enforcer"), &directory.join("enforcer"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = lane ] && [ -e {} ] && echo '{words}' >&2 && exit 1\nexec {} \"$@\"\n",
        end.display(),
        process::built("meter-proxy").display()
    );
    let written = directory.join("script");
    fs::write(&written, script).unwrap();
    fs::set_permissions(&written, Permissions::from_mode(0o755)).unwrap();
    process::copy_program(&written, &directory.join("meter-proxy"));
}

#[test]
fn root_a_lane_that_cannot_start_makes_answered_cuts_silent_and_is_told_of() {
    require_root();
    let directory = tempfile::tempdir().unwrap();
    let end = directory.path().join("end");
    programs_with_mortal_lane(directory.path(), &end, "this machine has no seccomp");
    let daemon = Daemon::start_from(directory.path(), "");
    fs::write(&end, "").unwrap();
    daemon.lane().unwrap().kill();
    let state = || daemon.json(&["status"])["daemon"]["lane"]["state"].clone();
    let tried = || daemon.logs().matches("this machine has no seccomp").count() >= 2;
    wait_until(SOON, || tried().then_some(())).expect("it is tried again and again");
    assert_ne!(state(), "serving");
    let group = TestCgroup::new("unanswered");
    daemon.attach("unanswered", group.path(), &[]);
    let mut inmate = Inmate::start(Some(&group));
    let meter = daemon.listen_addr();
    inmate.ok(&format!("connect {meter}"));
    daemon.ok(&["cut", "unanswered", "--answered"]);
    for order in [format!("connect {meter}"), "connect 203.0.113.7:443".into(), "udp 127.0.0.53:53".into()] {
        assert_eq!(inmate.order(&order), "EPERM", "{order}");
    }
    let told = |row: &serde_json::Value| {
        row["detail"].as_str().is_some_and(|detail| detail.contains("answered cuts are silent ones"))
    };
    assert!(daemon.json_lines(&["audit"]).iter().any(told), "{:?}", daemon.json_lines(&["audit"]));
    daemon.ok(&["restore", "unanswered"]);
    inmate.ok(&format!("connect {meter}"));
    fs::remove_file(&end).unwrap();
    wait_until(SOON, || (state() == "serving").then_some(())).expect("it serves once it can");
}

#[test]
fn root_a_daemon_that_could_sign_nothing_does_not_start() {
    require_root();
    for (file, mode, words) in [
        ("ca.key", 0o600, "ca.key: it is no private key"),
        ("ca.pem", 0o644, "ca.key: it is gone, but its certificate is there"),
    ] {
        let place = Place::new();
        let path = place.state().join(file);
        fs::write(&path, "nonsense").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        place.assert_refuses(REFUSED, words);
    }
}

#[test]
fn root_of_several_names_the_known_ones_are_cut_and_the_unknown_one_is_told() {
    let stage = Stage::new(Reply::default(), "");
    let bottles = ["one", "two"].map(|name| stage.bottle(name, &[]));
    for order in [&["cut", "none", "one", "nobody", "two"][..], &["cut", "none", "one", "--answered"]] {
        let output = stage.daemon.cli(order);
        assert_eq!(output.code, Some(USAGE), "{output:?}");
        assert!(output.stderr.contains("enforcer: there is no bottle none\n"), "{output:?}");
        for bottle in &bottles {
            let status = stage.daemon.bottle(&bottle.name);
            assert_eq!([&status["state"], &status["face"]], [&json!("cut"), &json!("silent")]);
        }
    }
}

#[test]
fn root_orders_to_a_bottle_whose_cgroup_vanished_leave_it_as_closed_as_it_was() {
    let stage = Stage::new(Reply::default(), "");
    let Bottle { cgroup, .. } = stage.bottle("lost", &[]);
    let path = cgroup.path().to_str().unwrap().to_owned();
    stage.daemon.ok(&["cut", "lost", "--answered"]);
    drop(cgroup);
    let gone = || (stage.daemon.bottle("lost")["state"] == "gone").then_some(());
    wait_until(SOON, gone).unwrap();
    for (order, face) in [("--answered", "answered"), ("--silent", "silent"), ("--answered", "silent")] {
        let said = stage.daemon.ok(&["cut", "lost", order, "--hard"]);
        assert_eq!(said, format!("lost: gone ({face})\n"), "{order}");
    }
    assert_eq!(stage.daemon.ok(&["restore", "lost"]), "lost: gone\n", "there is nothing to be opened");
    let attach = stage.daemon.cli(&["attach", "other", "--cgroup", &path]);
    assert_refused(&attach, USAGE, &format!("{path} does not exist"));
    let run = stage.daemon.cli(&["attach", "other", "--pid", "4194305"]);
    assert_refused(&run, USAGE, "4194305");
    stage.daemon.ok(&["detach", "lost"]);
    assert_eq!(stage.daemon.json(&["status"])["bottles"], json!([]));
}
