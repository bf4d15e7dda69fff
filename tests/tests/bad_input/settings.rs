//! Settings that are not taken: each with its place, by `settings check` and by the daemon alike.
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

use support::process;
use support::require_root;

use crate::{NOBODY, Place, SOON, USAGE, ask, assert_refused, enforcer};

/// Text, place (line and column, from 1), and words of the refusal.
const WRONG: [(&str, &str, &str); 20] = [
    ("budget:\n  claude: abc\n", ":2:11: ", "not a number of tokens"),
    ("budget:\n  claude: -5\n", ":2:11: ", "negative"),
    ("budget:\n  claude: 99999999999999999999\n", ":2:11: ", "more tokens"),
    ("budget:\n  clade: 5\n", ":2:3: ", "clade"),
    ("budgets:\n  claude: 5\n", ":1:1: ", "budgets"),
    ("budget:\n  claude: &five 5\n", ":2:11: ", "anchor"),
    ("budget: *five\n", ":1:9: ", "unknown anchor"),
    ("budget: !!map {}\n", ":1:9: ", "tag"),
    ("shutdown: |\n  cutoff\n", ":2:3: ", "block scalar"),
    ("budget:\n  claude: 5\n  claude: 6\n", ":3:3: ", "claude"),
    ("budget: [\n", ":2:1: ", ""),
    ("budget:\n\tclaude: 5\n", ":2:2: ", "tab"),
    ("listen: nowhere\n", ":1:9: ", "nowhere"),
    ("listen: \"127.0.0.1:99999\"\n", ":1:9: ", "99999"),
    ("bottles:\n  ../x: {}\n", ":2:3: ", "name"),
    ("shutdown: \"\\e[31m\"\n", ":1:11: ", "31m"),
    ("bottles:\n  b: { cgroup: a/b }\n", ":2:16: ", "is not an absolute path"),
    ("bottles:\n  b: { cgroup: /sys/fs/cgroup/a/../b }\n", ":2:16: ", "goes up by"),
    ("bottles:\n  b: { cgroup: /tmp }\n", ":2:16: ", "is not below /"),
    ("bottles:\n  b: { cgroup: [] }\n", ":2:16: ", "string"),
];

#[test]
fn wrong_settings_have_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.yml");
    for (text, place, words) in WRONG {
        fs::write(&file, text).unwrap();
        let output = ask(&["settings", "check", file.to_str().unwrap()]);
        assert_refused(&output, USAGE, words);
        assert!(output.stderr.contains(&format!("settings.yml{place}")), "{text:?}: {output:?}");
    }
    fs::write(&file, "budgets: {}\n").unwrap();
    assert!(
        ask(&["settings", "check", file.to_str().unwrap()]).stderr.contains("hint: "),
        "a key is suggested"
    );
}

#[test]
fn root_the_daemon_takes_no_wrong_settings() {
    require_root();
    let place = Place::new();
    for (text, at, _) in WRONG.into_iter().step_by(4) {
        place.settings(text);
        place.assert_refuses(USAGE, &format!("settings.yml{at}"));
    }
}

#[test]
fn root_settings_that_another_may_change_are_refused() {
    require_root();
    let place = Place::new();
    let file = place.state().join("settings.yml");
    for mode in [0o622, 0o602, 0o660] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        place.assert_refuses(USAGE, "others than its owner can write it");
    }
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    chown(&file, Some(NOBODY), None).unwrap();
    place.assert_refuses(USAGE, "it belongs to uid 65534");
    fs::remove_file(&file).unwrap();
    symlink("/dev/null", &file).unwrap();
    place.assert_refuses(USAGE, "it is a symbolic link");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    place.assert_refuses(USAGE, "it is not a file");
    fs::remove_dir(&file).unwrap();
    fs::write(&file, vec![b'#'; 2 << 20]).unwrap();
    place.assert_refuses(USAGE, "bytes");
    fs::write(&file, b"shutdown: \xff\xfe\n").unwrap();
    place.assert_refuses(USAGE, "UTF-8");
    let mut missing = enforcer();
    missing.arg("--state-dir").arg(place.state()).args(["--settings", "/no/such.yml", "daemon"]);
    assert_refused(&process::run(&mut missing, SOON), USAGE, "there is no such file");
}
