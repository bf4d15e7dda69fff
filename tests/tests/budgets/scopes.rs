//! Whose budget governs: a parent's over its subtree, an agent's and a bottle's over wider ones, a launch's over all.
use serde_json::json;
use support::stage::Stage;

use super::{BY_BILL, EACH, SOON, cross, governs, is_cut, is_open, refused, reply, rows, spend};

#[test]
fn root_one_parent_budget_cuts_its_subtree_and_an_outsider_goes_on() {
    let settings = "bottles:\n  base: { budget: { claude: 190 } }\n  a: { extends: base }\n";
    let stage = Stage::new(reply(), &(BY_BILL.to_owned() + settings));
    let a = stage.bottle("a", &[]);
    let b = stage.bottle("b", &["--parent", "base"]);
    let outsider = stage.bottle("outsider", &[]);
    spend(&stage, &a);
    spend(&stage, &b);
    assert_eq!(governs(&stage, "a"), "parent:base 130/190");
    // the third crosses, in the one, and cuts both
    cross(&stage, &a);
    for bottle in [&a, &b] {
        let cut = stage.daemon.wait_bottle(&bottle.name, is_cut, SOON);
        let told = ["kind", "scope", "owner", "limit", "used", "window", "rule"]
            .map(|key| cut["cause"][key].clone());
        assert_eq!(
            json!(told),
            json!(["budget", "parent", "base", 190, 3 * EACH, "total", "nearest"]),
            "{cut}"
        );
    }
    let words = refused(&stage, &b);
    let expected = "bottle b has used 195 of 190 claude tokens (budget of scope parent, owner base, window total, \
                    scope rule nearest)";
    assert!(words.contains(expected), "{words}");
    spend(&stage, &outsider);
    assert!(is_open(&stage.daemon.bottle("outsider")));

    let chain = &stage.daemon.json(&["status", "a"])["chain"]["claude"];
    let shown: Vec<_> = chain
        .as_array()
        .unwrap()
        .iter()
        .map(|link| json!([link["scope"], link["owner"], link["limit"], link["used"], link["binds"]]))
        .collect();
    let expected = json!([
        ["bottle", "a", null, 2 * EACH, false],
        ["parent", "base", 190, 3 * EACH, true],
        ["global", "global", null, 4 * EACH, false],
    ]);
    assert_eq!(json!(shown), expected);
    let text = stage.daemon.ok(&["status", "a"]);
    assert!(text.contains("claude: parent:base: the nearest budget governs"), "{text}");
}

#[test]
fn root_agent_and_bottle_budgets_override_wider_ones_downwards_and_upwards() {
    let settings = "budget: { claude: 130 }\nbottles:\n  small: { budget: { claude: 60 } }\n  \
                    big: { budget: { claude: 100000 } }\nagents:\n  careful: { budget: { claude: 50 } }\n";
    let stage = Stage::new(reply(), &(BY_BILL.to_owned() + settings));
    let (small, big) = (stage.bottle("small", &[]), stage.bottle("big", &[]));
    let careful = stage.bottle("careful-one", &["--agent", "careful"]);
    let agent_over_bottle = stage.bottle("other-careful-one", &["--agent", "careful"]);
    let plain = stage.bottle("plain", &[]);
    for (bottle, expected) in [
        ("small", "bottle:small 0/60"),
        ("big", "bottle:big 0/100000"),
        ("careful-one", "agent:careful 0/50"),
        ("plain", "global:global 0/130"),
    ] {
        assert_eq!(governs(&stage, bottle), expected);
    }
    // downwards: less than the wider budget allows
    cross(&stage, &small);
    assert!(is_open(&stage.daemon.bottle("plain")), "65 of 130 are used");
    cross(&stage, &careful);
    for bottle in [&careful, &agent_over_bottle] {
        stage.daemon.wait_bottle(&bottle.name, is_cut, SOON);
    }
    // with which the global one is used up: upwards, more than that
    stage.daemon.wait_bottle(&plain.name, is_cut, SOON);
    spend(&stage, &big);
    assert!(is_open(&stage.daemon.bottle("big")));
    // usage says which budget stands behind each row
    let usage = stage.daemon.json(&["usage"]);
    let mut rows = usage.as_array().unwrap().iter();
    let big = rows.find(|row| row["bottle"] == "big").unwrap();
    assert_eq!(big["governs"], "bottle:big", "{big}");
}

#[test]
fn root_a_launch_budget_overrides_all_and_ends_with_its_attachment() {
    let settings =
        "bottles:\n  b: { budget: { claude: 10000 } }\nagents:\n  a: { budget: { claude: 10000 } }\n";
    let stage = Stage::new(reply(), &(BY_BILL.to_owned() + settings));
    let bottle = stage.bottle("b", &["--agent", "a", "--budget", "claude=60"]);
    let cut = cross(&stage, &bottle);
    assert_eq!((&cut["cause"]["scope"], &cut["cause"]["owner"]), (&json!("launch"), &json!("b")));
    let listed = stage.daemon.json(&["budget", "list"]);
    let scopes: Vec<_> = listed.as_array().unwrap().iter().map(|row| row["scope"].clone()).collect();
    assert_eq!(json!(scopes), json!(["bottle:b", "agent:a", "launch:b"]));
    stage.daemon.ok(&["detach", "b", "--force"]);
    stage.daemon.attach("b", bottle.cgroup.path(), &["--agent", "a"]);
    assert_eq!(
        governs(&stage, "b"),
        format!("agent:a {EACH}/10000"),
        "the launch ended, what was used did not"
    );
}

#[test]
fn root_a_ceiling_and_the_strictest_hold_what_the_nearest_would_let_go_on() {
    for (rule, expected) in [("ceiling", "global"), ("strictest", "parent")] {
        let settings = format!(
            "{BY_BILL}scope_rule: {rule}\nbudget: {{ claude: 130 }}\nbottles:\n  base: {{ budget: {{ claude: 100 }} }}\n  \
             b: {{ extends: base, budget: {{ claude: 100000 }} }}\n"
        );
        let stage = Stage::new(reply(), &settings);
        let bottle = stage.bottle("b", &[]);
        spend(&stage, &bottle);
        assert!(is_open(&stage.daemon.bottle("b")));
        let cut = cross(&stage, &bottle);
        assert_eq!(
            (&cut["cause"]["scope"], &cut["cause"]["rule"]),
            (&json!(expected), &json!(rule)),
            "{cut}"
        );
    }
}

#[test]
fn root_weights_count_and_what_is_warned_of_is_warned_of_once() {
    let settings = "weights: { input: 0, output: 2.5 }\nwarn_at: [50, 80, 95]\nbudget: { claude: 230 }\n";
    let mut stage = Stage::new(reply(), &(BY_BILL.to_owned() + settings));
    let bottle = stage.bottle("b", &[]);
    // 25 of input for nothing, 40 of output for 100
    spend(&stage, &bottle);
    let usage = &stage.daemon.bottle("b")["usage"]["claude"];
    let told = ["input", "output", "total"].map(|class| usage[class].clone());
    assert_eq!(json!(told), json!([25, 40, 100]), "classes raw, the total by weight");
    assert_eq!(governs(&stage, "b"), "global:global 100/230");
    assert_eq!(rows(&stage, "warn").len(), 0);
    spend(&stage, &bottle);
    let warned = || -> Vec<String> {
        rows(&stage, "warn").iter().map(|row| format!("{} {}", row["bottle"], row["detail"])).collect()
    };
    let expected = ["\"b\" \"50% of the budget are used\"", "\"b\" \"80% of the budget are used\""];
    assert_eq!(warned(), expected);
    stage.daemon.kill9();
    stage.daemon.restart();
    assert_eq!(governs(&stage, "b"), "global:global 200/230");
    cross(&stage, &bottle);
    assert_eq!(rows(&stage, "warn").iter().filter(|row| row["cause"]["kind"] == "budget").count(), 3);
}
