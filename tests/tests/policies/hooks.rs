//! Hooks: told what happened, held to their bounds, and never waited for.
use std::fs;
use std::time::{Duration, Instant};

use support::clock::wait_until;
use support::provider::Reply;
use support::stage::Stage;

use crate::{SOON, Script, Ticking, detail, row};

/// With these hooks, and a budget that two answers of 65 tokens do not use up.
fn stage(hooks: &[(&str, &Script)]) -> Stage {
    let lines = hooks.iter().map(|(occasion, script)| {
        let path = script.path();
        format!(
            "  {occasion}: [{}, \"{{bottle}}\", \"{{cgroup}}\", \"{{provider}}\", \"{{cause}}\"]\n",
            path.display()
        )
    });
    let budget = "midstream: false\nbudget: { claude: 200 }\nwarn_at: [50]\n";
    Stage::new(Reply::default(), &format!("{budget}hooks:\n{}", lines.collect::<String>()))
}

#[test]
fn root_hooks_are_told_what_happened_by_arguments_alone() {
    let tell = Script::new("for word; do echo \"<$word>\"; done");
    let stage = stage(&[("cut", &tell), ("freeze", &tell), ("kill", &tell)]);
    let bottle = stage.bottle("told", &[]);
    let cgroup = bottle.cgroup.path().display();
    let reason = "$(touch /tmp/pwned); `id` {bottle} 'x'";
    stage.daemon.ok(&["cut", "told", "--reason", reason]);
    let said = row(&stage, "told", "hook", 1);
    assert_eq!(detail(&said), format!("cut: <told> | <{cgroup}> | <> | <by uid:0: {reason}>"));
    stage.daemon.ok(&["freeze", "told"]);
    assert!(detail(&row(&stage, "told", "hook", 2)).starts_with("freeze: <told>"));
    stage.daemon.ok(&["kill", "told", "--yes"]);
    assert!(detail(&row(&stage, "told", "hook", 3)).starts_with("kill: <told>"));
}

#[test]
fn root_the_hook_of_a_warning_is_called_once_with_what_is_used() {
    let tell = Script::new("echo \"$1 $3: $4\"");
    let stage = stage(&[("warn", &tell)]);
    let bottle = stage.bottle("warned", &[]);
    for _ in 0..2 {
        assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0));
    }
    let said = row(&stage, "warned", "hook", 1);
    assert!(detail(&said).starts_with("warn: warned claude: 130 of 200 claude tokens used"), "{said}");
    assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0));
    stage.daemon.wait_bottle("warned", |bottle| bottle["budget"]["claude"]["used"] == 195, SOON);
    assert_eq!(stage.audit("warned", "hook").len(), 1);
}

#[test]
fn root_a_hook_that_hangs_fails_or_talks_too_much_holds_nothing_up() {
    let hook =
        Script::new("case $1 in hangs) sleep 900;; fails) exit 9;; talks) yes | head -c 20000000;; esac");
    let stage = stage(&[("cut", &hook)]);
    let bottles = ["hangs", "fails", "talks"].map(|name| stage.bottle(name, &[]));
    let began = Instant::now();
    for bottle in &bottles {
        stage.daemon.ok(&["cut", &bottle.name]);
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(detail(&row(&stage, "fails", "hook", 1)).ends_with("exit status: 9"));
    let talks = row(&stage, "talks", "hook", 1);
    assert_eq!(talks["outcome"], "done", "it is read to its end: {talks}");
    assert!(detail(&talks).len() < 10_000, "{} bytes", detail(&talks).len());
    let hangs = wait_until(Duration::from_secs(20), || stage.audit("hangs", "hook").pop()).unwrap();
    assert_eq!(hangs["outcome"], "failed");
    assert!(detail(&hangs).contains("was killed: it did not end within 10 s"), "{hangs}");
}

#[test]
fn root_many_hooks_at_once_are_bounded_and_all_cuts_stand() {
    let slow = Script::new("echo x >> \"$(dirname \"$0\")/running\"; sleep 0.2");
    let stage = stage(&[("cut", &slow)]);
    let bottle = stage.bottle("often", &[]);
    let began = Instant::now();
    for _ in 0..12 {
        stage.daemon.ok(&["cut", "often"]);
        stage.daemon.ok(&["restore", "often"]);
    }
    let ticking = Ticking::start(&bottle.cgroup);
    row(&stage, "often", "hook", 12);
    // four at a time
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    assert_eq!(fs::read_to_string(slow.beside("running")).unwrap().lines().count(), 12);
    drop(ticking);
}

#[test]
fn root_a_hook_that_others_could_change_is_not_run() {
    let hook = Script::new("touch \"$(dirname \"$0\")/ran\"");
    let stage = stage(&[("cut", &hook)]);
    let _bottle = stage.bottle("wary", &[]);
    std::os::unix::fs::chown(hook.path(), Some(1234), None).unwrap();
    stage.daemon.ok(&["cut", "wary"]);
    let row = row(&stage, "wary", "hook", 1);
    assert_eq!(row["outcome"], "failed");
    assert!(detail(&row).contains("is not run as root: it belongs to uid 1234"), "{row}");
    assert!(wait_until(Duration::from_millis(300), || hook.beside("ran").exists().then_some(())).is_none());
}
