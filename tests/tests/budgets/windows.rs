//! Windows that begin anew, by a clock that the test turns: they reopen once, and never because a clock went back.
use std::time::Duration;

use serde_json::{Value, json};
use support::clock::wait_until;
use support::stage::Stage;

use super::{EACH, SOON, cross, governs, is_cut, is_open, reply, rows, spend, text};

/// How long it is watched that nothing opens: twenty looks at the clock.
const WATCHED: Duration = Duration::from_secs(2);

const DAILY: &str = "midstream: false\nwindow: daily\nbudget: { claude: 60 }\n";

fn restored_by_controller(stage: &Stage) -> Vec<Value> {
    rows(stage, "restore").into_iter().filter(|row| row["by"] == "controller").collect()
}

#[test]
fn root_a_daily_window_reopens_at_midnight_and_the_books_keep_every_day() {
    let stage = Stage::at("2090-05-15T22:59:00Z", reply(), DAILY);
    let bottle = stage.bottle("b", &[]);
    let cut = cross(&stage, &bottle);
    assert_eq!(cut["cause"]["window"], "daily until 2090-05-16T00:00Z", "{cut}");
    assert_eq!(cut["budget"]["claude"]["until"], "2090-05-16T00:00:00.000Z", "{cut}");
    // another hour is not another day
    stage.daemon.set_clock("2090-05-15T23:59:50Z");
    std::thread::sleep(WATCHED);
    assert!(is_cut(&stage.daemon.bottle("b")));
    stage.daemon.set_clock("2090-05-15T23:59:59Z");
    let open = stage.daemon.wait_bottle("b", is_open, SOON);
    assert_eq!(governs(&stage, "b"), "global:global 0/60");
    assert_eq!(open["usage"]["claude"]["total"], json!(EACH), "what was used is still told");
    let restored = restored_by_controller(&stage);
    assert_eq!(restored.len(), 1, "{restored:?}");
    assert_eq!(text(&restored[0], "detail"), "a window began anew at 2090-05-16T00:00 UTC");
    assert!(text(&restored[0], "at").starts_with("2090-05-16T00:00:0"), "{}", restored[0]);
    cross(&stage, &bottle);
    // the cut does not wait for the books
    let days = || {
        let by_day = stage.daemon.json(&["usage", "--by", "day"]);
        by_day.as_array().unwrap().iter().map(|row| json!([row["day"], row["total"]])).collect::<Value>()
    };
    let both = json!([["2090-05-15", EACH], ["2090-05-16", EACH]]);
    assert!(wait_until(SOON, || (days() == both).then_some(())).is_some(), "{}", days());
}

#[test]
fn root_a_clock_that_goes_back_opens_nothing_and_counts_nothing_again() {
    let mut stage = Stage::at("2090-05-15T12:00:00Z", reply(), DAILY);
    let bottle = stage.bottle("b", &[]);
    cross(&stage, &bottle);
    for back in ["2090-05-14T12:00:00Z", "2090-05-15T11:00:00Z", "1999-01-01T00:00:00Z"] {
        stage.daemon.set_clock(back);
        std::thread::sleep(WATCHED);
        assert!(is_cut(&stage.daemon.bottle("b")), "{back}");
        assert_eq!(governs(&stage, "b"), format!("global:global {EACH}/60"), "{back}");
    }
    let said = wait_until(SOON, || rows(&stage, "warn").pop()).unwrap();
    assert!(text(&said, "detail").contains("windows stand still until it is later"), "{said}");
    // nor does a new controller forget how late it has been
    stage.daemon.kill9();
    stage.daemon.restart();
    assert!(is_cut(&stage.daemon.bottle("b")));
    assert_eq!(governs(&stage, "b"), format!("global:global {EACH}/60"));
    // what is used while the clock is behind counts where windows stand
    stage.daemon.ok(&["budget", "add", "global", "claude=100"]);
    spend(&stage, &bottle);
    assert_eq!(governs(&stage, "b"), format!("global:global {}/160", 2 * EACH));
    stage.daemon.kill9();
    stage.daemon.restart();
    assert_eq!(
        governs(&stage, "b"),
        format!("global:global {}/160", 2 * EACH),
        "also for the next controller"
    );
    assert_eq!(restored_by_controller(&stage).len(), 0);
    stage.daemon.set_clock("2090-05-16T00:00:00Z");
    wait_until(SOON, || (governs(&stage, "b") == "global:global 0/60").then_some(())).unwrap();
}

#[test]
fn root_a_window_that_began_while_no_controller_ran_opens_at_the_next_start() {
    let mut stage = Stage::at(
        "2090-05-15T12:00:00Z",
        reply(),
        "midstream: false\nwindow: hourly\nbudget: { claude: 60 }\n",
    );
    let bottle = stage.bottle("b", &[]);
    cross(&stage, &bottle);
    stage.daemon.stop();
    stage.daemon.set_clock("2090-05-15T15:30:00Z");
    stage.daemon.restart();
    stage.daemon.wait_bottle("b", is_open, SOON);
    assert_eq!(governs(&stage, "b"), "global:global 0/60");
    assert_eq!(restored_by_controller(&stage).len(), 1);
}

#[test]
fn root_with_reopen_manual_a_window_begins_anew_and_an_operator_opens() {
    let stage = Stage::at("2090-05-15T12:00:00Z", reply(), &format!("reopen: manual\n{DAILY}"));
    let bottle = stage.bottle("b", &[]);
    cross(&stage, &bottle);
    stage.daemon.set_clock("2090-05-16T12:00:00Z");
    wait_until(SOON, || (governs(&stage, "b") == "global:global 0/60").then_some(())).unwrap();
    std::thread::sleep(WATCHED);
    assert!(is_cut(&stage.daemon.bottle("b")));
    stage.daemon.ok(&["restore", "b"]);
    assert!(is_open(&stage.daemon.bottle("b")));
}

#[test]
fn root_a_window_opens_neither_what_an_operator_cut_nor_what_another_budget_cuts() {
    let settings = "midstream: false\nbudget: { claude: { tokens: 60, window: daily } }\nbottles:\n  total: { budget: { claude: 60 } }\n";
    let stage = Stage::at("2090-05-15T12:00:00Z", reply(), settings);
    let [total, both, daily] = ["total", "both", "daily"].map(|name| stage.bottle(name, &[]));
    cross(&stage, &total);
    for bottle in [&total, &both, &daily] {
        stage.daemon.wait_bottle(&bottle.name, is_cut, SOON);
    }
    stage.daemon.ok(&["cut", "both"]);
    stage.daemon.set_clock("2090-05-16T00:00:00Z");
    stage.daemon.wait_bottle("daily", is_open, SOON);
    std::thread::sleep(WATCHED);
    assert!(is_cut(&stage.daemon.bottle("total")), "its own budget has no window that ends");
    let both = stage.daemon.bottle("both");
    assert!(is_cut(&both) && both["cause"]["held"] == true, "an operator cut it too: {both}");
    stage.daemon.ok(&["restore", "both"]);
}

#[test]
fn root_a_window_lets_the_frozen_go_on_and_leaves_what_settings_left_cut() {
    let settings = |total| {
        format!(
            "{DAILY}bottles:\n  total: {{ budget: {{ claude: {{ tokens: {total}, window: total }} }} }}\n"
        )
    };
    let stage = Stage::at("2090-05-15T12:00:00Z", reply(), &settings(60));
    let total = stage.bottle("total", &[]);
    let daily = stage.bottle("daily", &["--policy", "freeze"]);
    cross(&stage, &total);
    // what the other used is the host's too
    let freezer = || std::fs::read_to_string(daily.cgroup.path().join("cgroup.freeze")).unwrap();
    stage.daemon.wait_bottle("daily", |bottle| bottle["state"] == "frozen", SOON);
    wait_until(SOON, || (freezer() == "1\n").then_some(())).unwrap();
    stage.write_settings(&settings(1000));
    stage.daemon.ok(&["settings", "check", "--apply"]);
    stage.daemon.set_clock("2090-05-16T00:00:00Z");
    stage.daemon.wait_bottle("daily", is_open, SOON);
    wait_until(SOON, || (freezer() == "0\n").then_some(())).expect("it is thawed with its opening");
    std::thread::sleep(WATCHED);
    assert!(is_cut(&stage.daemon.bottle("total")), "it was not a window that gave it room");
    stage.daemon.ok(&["restore", "total"]);
}
