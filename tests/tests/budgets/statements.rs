//! What operators say by command: it counts at once, it is written with who said it, and it outlives the daemon.
use std::time::Duration;

use serde_json::{Value, json};
use support::provider::{End, Reply};
use support::stage::Stage;

use super::{EACH, SOON, cross, governs, is_cut, is_open, reply, rows, spend, text};

#[test]
fn root_a_budget_lowered_below_its_use_cuts_a_running_stream_at_once() {
    let stage = Stage::new(Reply::paced(5_000, 8, Duration::from_millis(2)), "budget: { claude: 1M }\n");
    let bottle = stage.bottle("b", &[]);
    let asking = stage.start_asking(&bottle, &["--stream"]);
    stage.daemon.wait_bottle("b", |bottle| bottle["budget"]["claude"]["used"].as_u64() > Some(50), SOON);
    let said = stage.daemon.ok(&["budget", "set", "global", "claude=50"]);
    assert!(said.starts_with("global claude: 50 tokens total, "), "{said}");
    // no wait: it was done before it was answered
    let cut = stage.daemon.bottle("b");
    assert!(is_cut(&cut), "{cut}");
    assert_eq!((&cut["cause"]["limit"], &cut["cause"]["scope"]), (&json!(50), &json!("global")), "{cut}");
    let record = stage.provider.wait_for(|records| records[0].end.is_some(), SOON).remove(0);
    assert_eq!(record.end, Some(End::ClientGone), "upstream is closed by the cut");
    asking.hang_up();
    let row = rows(&stage, "budget").pop().unwrap();
    assert_eq!((text(&row, "by"), text(&row, "outcome")), ("uid:0", "done"));
    assert_eq!(text(&row, "detail"), "set global claude: 50 tokens total (before: 1000000 tokens total)");
    println!("lowered, and cut {} us after the order was read", row["took_us"]);
}

#[test]
fn root_more_tokens_open_what_they_cover_and_outlive_the_daemon() {
    let mut stage = Stage::new(reply(), "midstream: false\nbudget: { claude: 60 }\n");
    let (one, two) = (stage.bottle("one", &[]), stage.bottle("two", &[]));
    cross(&stage, &one);
    stage.daemon.wait_bottle("two", is_cut, SOON);
    let said = stage.daemon.ok(&["budget", "add", "global", "claude=5"]);
    assert_eq!(
        said,
        "global claude: 65 tokens total, 5 of them added, 65 used, 0 left (settings); 2 bottles\n"
    );
    assert!(is_cut(&stage.daemon.bottle("one")), "that covers the debt alone");
    stage.daemon.ok(&["budget", "add", "global", "claude=10"]);
    for bottle in ["one", "two"] {
        assert!(is_open(&stage.daemon.bottle(bottle)));
    }
    let restored = stage.audit("two", "restore").pop().unwrap();
    assert_eq!(text(&restored, "by"), "uid:0");
    stage.daemon.ok(&["budget", "set", "bottle:two", "claude=500", "--window", "daily"]);
    spend(&stage, &two);
    stage.daemon.wait_bottle("one", is_cut, SOON);
    stage.daemon.kill9();
    stage.daemon.restart();
    assert_eq!(governs(&stage, "one"), format!("global:global {}/75", 2 * EACH));
    let budget = &stage.daemon.bottle("two")["budget"]["claude"];
    assert_eq!(
        (&budget["limit"], &budget["used"], &budget["window"]),
        (&json!(500), &json!(EACH), &json!("daily"))
    );
    assert!(text(budget, "until").ends_with("T00:00:00.000Z"), "{budget}");

    let said = stage.daemon.ok(&["budget", "clear", "bottle:two", "claude"]);
    assert_eq!(said, "no budget there any more\n");
    assert!(is_cut(&stage.daemon.bottle("two")), "the global one governs it again, and is used up");
    let table = stage.daemon.ok(&["budget", "list"]);
    let line = table.lines().find(|line| line.starts_with("global ")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(cells, ["global", "claude", "total", "75", "15", "130", "0", "-", "settings", "2"]);
}

#[test]
fn root_two_operators_at_once_are_both_written_and_the_last_word_holds() {
    let stage = Stage::new(reply(), "budget: { claude: 1000 }\n");
    let bottle = stage.bottle("b", &[]);
    spend(&stage, &bottle);
    for round in 0..10_u64 {
        let orders = [40 + round, 500 + round].map(|tokens| {
            let mut command = stage.daemon.command();
            command.args(["budget", "set", "global", &format!("claude={tokens}")]);
            command.stdout(std::process::Stdio::null()).spawn().unwrap()
        });
        for mut order in orders {
            assert!(order.wait().unwrap().success());
        }
        let budgets = stage.daemon.json(&["budget", "list"]);
        let limit = budgets[0]["limit"].as_u64().unwrap();
        let said = rows(&stage, "budget");
        assert_eq!(said.len() as u64, 2 * (round + 1), "both are written");
        let last = text(said.last().unwrap(), "detail").to_owned();
        assert!(last.starts_with(&format!("set global claude: {limit} tokens total")), "{limit}: {last}");
        let status = stage.daemon.wait_bottle("b", |bottle: &Value| is_cut(bottle) == (limit < EACH), SOON);
        assert_eq!(status["budget"]["claude"]["limit"], json!(limit));
    }
}
