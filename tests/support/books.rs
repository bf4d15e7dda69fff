//! The ledger's books held against the provider's: what a flow was charged, and what its answer was billed.
use serde_json::Value;

use crate::agent::{Answer, Ended};
use crate::provider::{Billed, Record};

/// The classes of a row of `usage`. Panics when one is missing.
#[must_use]
pub fn charged(row: &Value) -> Billed {
    let figure = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("no {name} in {row}"));
    Billed {
        input: figure("input"),
        cache_write: figure("cache_write"),
        cache_read: figure("cache_read"),
        output: figure("output"),
        reasoning: figure("reasoning"),
    }
}

/// The answer came to its end, and is what the provider sent.
///
/// # Panics
/// When it is not.
pub fn assert_untouched(what: &str, answer: &Answer, record: &Record) {
    assert_eq!(answer.ended, Ended::Complete, "{what}");
    assert_eq!(
        (answer.body_bytes, &answer.body_sha256),
        (record.response_bytes, &record.response_sha256),
        "{what}: bytes received are bytes sent"
    );
}

/// The flow is charged what the provider billed, by the provider's own word.
///
/// # Panics
/// When it is not.
pub fn assert_settled(what: &str, flow: &Value, record: &Record) {
    assert_eq!(charged(flow), record.billed, "{what}: charged is billed: {flow}");
    assert_eq!(flow["provenance"], "reported", "{what}: {flow}");
    assert_eq!(flow["status"], "completed", "{what}: {flow}");
    assert_eq!(flow["estimated"], 0, "{what}: {flow}");
    assert_eq!(flow["http_status"], 200, "{what}: {flow}");
    let path = record.path.split('?').next().unwrap_or_default();
    assert_eq!(flow["endpoint"], path, "{what}: {flow}");
}
