//! Numbers at their limits, names that come back, parents that go: one clear error, or the plain right thing.
use serde_json::json;
use support::stage::Stage;

use super::{EACH, SOON, cross, governs, is_cut, is_open, reply, rows, spend};

#[test]
fn root_budgets_at_the_integer_limits_hold_or_are_refused() {
    let stage = Stage::new(reply(), "");
    let bottle = stage.bottle("b", &[]);
    let most = i64::MAX.to_string();
    stage.daemon.ok(&["budget", "set", "global", &format!("claude={most}")]);
    spend(&stage, &bottle);
    assert_eq!(governs(&stage, "b"), format!("global:global {EACH}/{most}"));
    stage.daemon.ok(&["budget", "add", "global", &format!("claude={most}")]);
    let twice = stage.daemon.json(&["budget", "list"])[0]["limit"].clone();
    assert_eq!(twice, json!(2 * i64::MAX.unsigned_abs()), "nothing wraps");
    spend(&stage, &bottle);
    for (budget, words) in [
        ("claude=9223372036854775808", "more tokens than can be counted"),
        ("claude=-1", "a budget cannot be negative"),
        ("claude=1.5", "tokens are whole"),
        ("claude=", "not a number of tokens"),
        ("cluade=1", "there is no provider cluade"),
    ] {
        let output = stage.daemon.cli(&["budget", "set", "global", budget]);
        assert_eq!(output.code, Some(2), "{budget}: {}", output.stderr);
        assert!(output.stderr.contains(words), "{budget}: {}", output.stderr);
    }
    assert_eq!(stage.daemon.json(&["budget", "list"])[0]["limit"], twice, "nothing was left behind");
    stage.daemon.ok(&["budget", "set", "global", "claude=0"]);
    assert!(is_cut(&stage.daemon.bottle("b")), "nothing is allowed");
}

#[test]
fn root_a_name_that_comes_back_has_its_budget_and_what_it_used() {
    let stage = Stage::new(reply(), "");
    let bottle = stage.bottle("b", &[]);
    stage.daemon.ok(&["budget", "set", "bottle:b", "claude=100"]);
    spend(&stage, &bottle);
    stage.daemon.ok(&["detach", "b"]);
    drop(bottle);
    let again = stage.bottle("b", &[]);
    assert_eq!(governs(&stage, "b"), format!("bottle:b {EACH}/100"));
    cross(&stage, &again);
    stage.daemon.ok(&["detach", "b", "--force"]);
    drop(again);
    let _third = stage.bottle("b", &[]);
    let third = stage.daemon.bottle("b");
    assert!(is_cut(&third), "used up by name, cut from the start: {third}");
}

#[test]
fn root_a_parent_that_is_detached_under_its_children_still_holds_them() {
    let stage = Stage::new(reply(), "bottles:\n  base: { budget: { claude: 130 } }\n");
    let base = stage.bottle("base", &[]);
    let [one, two] = ["one", "two"].map(|name| stage.bottle(name, &["--parent", "base"]));
    spend(&stage, &one);
    stage.daemon.ok(&["detach", "base"]);
    drop(base);
    assert_eq!(governs(&stage, "two"), format!("parent:base {EACH}/130"));
    cross(&stage, &two);
    for bottle in ["one", "two"] {
        stage.daemon.wait_bottle(bottle, is_cut, SOON);
    }
    stage.daemon.ok(&["budget", "set", "bottle:base", "claude=1000"]);
    for bottle in ["one", "two"] {
        assert!(is_open(&stage.daemon.bottle(bottle)));
    }
    let words = stage.daemon.cli(&["budget", "clear", "agent:nobody", "claude"]);
    assert_eq!(words.code, Some(2), "{}", words.stderr);
    assert_eq!(rows(&stage, "budget").len(), 1, "what is refused is not done");
}
