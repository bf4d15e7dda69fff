//! `audit`: what was done, by whom and why.
use std::time::Duration;

use super::output::{json, or_dash, print};
use crate::audit::{Cause, Row};
use crate::cli::{Audit, Global};
use crate::error::Failure;
use crate::text::scrub;

/// Rows asked for at once.
const PAGE: u32 = 1_000;
/// Pause between two questions with `--follow`. Asked by row id, so that no row is lost or told twice.
const FOLLOW_PAUSE: Duration = Duration::from_millis(300);

pub(super) fn run(global: &Global, audit: &Audit) -> Result<(), Failure> {
    let control = super::connect(global)?;
    let mut after = 0;
    loop {
        let rows = control.wait(control.client().audit(after, PAGE))?;
        for row in &rows {
            print(&if audit.json { json(row)? + "\n" } else { line(row) })?;
        }
        match rows.last() {
            Some(row) => after = row.id,
            None if audit.follow => std::thread::sleep(FOLLOW_PAUSE),
            None => return Ok(()),
        }
    }
}

fn line(row: &Row) -> String {
    let mut words = format!(
        "{}  {:<8} {:<12} {:<10}",
        row.at,
        row.action,
        scrub(&or_dash(row.bottle.as_deref())),
        scrub(&row.by)
    );
    if row.outcome != "done" {
        words.push_str(&format!(" {}", row.outcome.to_uppercase()));
    }
    if let Some(took_us) = row.took_us {
        words.push_str(&format!(" {took_us} us"));
    }
    for more in [row.cause.as_ref().map(Cause::to_string), row.detail.clone()].into_iter().flatten() {
        words.push_str(&format!("  {more}"));
    }
    format!("{}\n", scrub(&words))
}
