//! Old exchanges are rolled up while the daemon runs, and everything that is counted stays the same.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::time::Duration;

use support::clock::wait_until;
use support::provider::Reply;
use support::stage::Stage;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn root_what_is_rolled_up_is_used_all_the_same() {
    let mut stage = Stage::new(Reply::default(), "budget: { claude: 1M }\nretention: 40d\n");
    let bottle = stage.bottle("aged", &[]);
    for _ in 0..3 {
        assert_eq!(stage.ask(&bottle, &["--stream"]).code, Some(0));
    }
    let used = |stage: &Stage| stage.daemon.bottle("aged")["budget"]["claude"]["used"].clone();
    let before = (used(&stage), stage.daemon.json(&["usage"]));
    stage.daemon.stop();
    let ledger = rusqlite::Connection::open(stage.daemon.state_dir().join("bot-bottle.db")).unwrap();
    let age = "UPDATE exchanges SET started_at_ms = started_at_ms - 86400000 * ?2, \
               ended_at_ms = ended_at_ms - 86400000 * ?2 WHERE id = ?1";
    for (id, days) in [(1, 90), (2, 45), (3, 39)] {
        assert_eq!(ledger.execute(age, [id, days]).unwrap(), 1);
    }
    drop(ledger);
    stage.daemon.restart();
    let rolled = wait_until(SOON, || Some(stage.flows("aged")).filter(|flows| flows.len() == 1));
    assert!(rolled.is_some(), "{:#?}", stage.flows("aged"));
    assert_eq!((used(&stage), stage.daemon.json(&["usage"])), before);
    let rows = stage.daemon.json_lines(&["audit"]).into_iter().filter(|row| row["action"] == "retention");
    assert_eq!(rows.count(), 2, "a row for each day");
    stage.daemon.restart();
    assert_eq!(used(&stage), before.0, "and for the next controller");
}
