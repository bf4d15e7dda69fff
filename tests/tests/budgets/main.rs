//! Budgets, whole: real agents in real bottles, a mock provider that bills 65 tokens a request, and commands.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
mod bad_input;
mod scopes;
mod statements;
mod windows;

use std::time::Duration;

use serde_json::Value;
use support::provider::Reply;
use support::stage::{Bottle, Stage};

const SOON: Duration = Duration::from_secs(10);
/// What the mock bills for one request.
const EACH: u64 = 65;
/// Exchanges are charged once they are settled, so that every figure is the bill's.
const BY_BILL: &str = "midstream: false\n";

/// Every answer bills [`EACH`].
fn reply() -> Reply {
    let reply = Reply::default();
    assert_eq!(reply.bill().total(), EACH);
    reply
}

fn is_open(bottle: &Value) -> bool {
    bottle["state"] == "open"
}

fn is_cut(bottle: &Value) -> bool {
    bottle["state"] == "cut"
}

/// One request that is answered, and charged before its end is delivered.
fn spend(stage: &Stage, bottle: &Bottle) {
    let asked = stage.ask(bottle, &["--stream"]);
    assert_eq!(asked.code, Some(0), "{}: {asked:?}", bottle.name);
}

/// One request whose settlement uses up a budget of this bottle: its answer is broken off, and the bottle cut. Without
/// `midstream` it is charged by the bill all the same.
fn cross(stage: &Stage, bottle: &Bottle) -> Value {
    drop(stage.ask(bottle, &["--stream"]));
    stage.daemon.wait_bottle(&bottle.name, is_cut, SOON)
}

/// One request that is refused; in these words.
fn refused(stage: &Stage, bottle: &Bottle) -> String {
    let asked = stage.ask(bottle, &["--stream"]);
    asked.one().refusal().unwrap_or_else(|| panic!("not refused: {asked:?}")).to_owned()
}

/// `SCOPE used/limit` of the budget that a bottle feels first.
fn governs(stage: &Stage, bottle: &str) -> String {
    let budget = &stage.daemon.bottle(bottle)["budget"]["claude"];
    format!("{}:{} {}/{}", text(budget, "scope"), text(budget, "owner"), budget["used"], budget["limit"])
}

fn text<'a>(document: &'a Value, key: &str) -> &'a str {
    document[key].as_str().unwrap_or_else(|| panic!("no {key} in {document}"))
}

/// Rows of the audit of one kind, oldest first.
fn rows(stage: &Stage, action: &str) -> Vec<Value> {
    let rows = stage.daemon.json_lines(&["audit"]).into_iter();
    rows.filter(|row| row["action"] == action).collect()
}
