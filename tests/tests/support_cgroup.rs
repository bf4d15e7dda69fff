//! The cgroup guard: children are inside from their first instruction, and nothing stays, also after a panic.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Duration;

use support::cgroup::TestCgroup;
use support::clock::wait_until;
use support::process::{exit_within, run};
use support::require_root;

#[test]
fn root_a_child_is_inside_before_its_first_instruction() {
    require_root();
    let group = TestCgroup::new("inside");
    let nested = group.child("nested");
    let mut command = Command::new("cat");
    let output = run(nested.enter_before_exec(command.arg("/proc/self/cgroup")), Duration::from_secs(5));
    let seen = output.stdout.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    assert!(nested.path().to_str().unwrap().ends_with(&seen), "{seen}");
    assert!(seen.ends_with("/nested"));
}

#[test]
fn root_nothing_stays_after_a_panic() {
    require_root();
    let mut kept = None;
    let mut sleepers = Vec::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let group = TestCgroup::new("panic");
        let outer = group.child("a");
        let nested = outer.child("b");
        sleepers.push(group.spawn(Command::new("sleep").arg("1000")));
        sleepers.push(nested.spawn(Command::new("sleep").arg("1000")));
        assert_eq!(nested.pids(), [sleepers[1].id()]);
        kept = Some(group.path().to_owned());
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert!(!kept.unwrap().exists(), "the cgroup is gone");
    for sleeper in &mut sleepers {
        assert_eq!(exit_within(sleeper, Duration::from_secs(5)), Some(None), "killed by a signal");
    }
}

#[test]
fn root_frozen_processes_are_removed_too() {
    require_root();
    let group = TestCgroup::new("frozen");
    let mut sleeper = group.spawn(Command::new("sleep").arg("1000"));
    std::fs::write(group.path().join("cgroup.freeze"), "1").unwrap();
    let frozen = || std::fs::read_to_string(group.path().join("cgroup.events")).unwrap().contains("frozen 1");
    assert!(wait_until(Duration::from_secs(5), || frozen().then_some(())).is_some());
    let path = group.path().to_owned();
    drop(group);
    assert!(!path.exists());
    assert_eq!(exit_within(&mut sleeper, Duration::from_secs(5)), Some(None));
}
