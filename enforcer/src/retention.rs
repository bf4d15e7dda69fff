//! Retention: settled exchanges that are older than the settings keep are rolled up into sums, a day after the other, each
//! in parts that the writer has done with soon: a permit waits behind them.
//!
//! What a budget counts stays the same: sums take the place of the rows, and no window is as long as the shortest
//! retention. The audit is append-only and is never shortened, by nobody: the schema refuses it, how many rows a bottle
//! can cause is bounded where they are made, and each roll-up is a row of its own.
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::bottle::registry::Registry;
use crate::clock::{DAY_MS, now_ms};
use crate::control::api::Problem;
use crate::ledger::UnixMs;

/// Between two looks when there was nothing to do.
const PAUSE: Duration = Duration::from_secs(3_600);
/// Between two parts, so that the writer has time for others.
const BREATH: Duration = Duration::from_secs(1);
/// Most exchanges of a part, but for those of one millisecond.
const MAX_PART: u32 = 10_000;

/// Rolls up what is old until told to stop.
pub async fn keep(registry: Arc<Registry>, stop: CancellationToken) {
    loop {
        let pause = match next_part(&registry).await {
            Ok(Some(part)) => {
                registry.roll_up(part);
                BREATH
            }
            Ok(None) => PAUSE,
            Err(problem) => {
                tracing::warn!(problem.error, "old exchanges are not rolled up");
                PAUSE
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// What is to be rolled up next.
async fn next_part(registry: &Registry) -> Result<Option<Range<UnixMs>>, Problem> {
    let oldest = registry.oldest_settled().await?;
    match oldest.and_then(|oldest| due(oldest, now_ms(), registry.retention())) {
        Some(day) => registry.beginning_of(day, MAX_PART).await.map(Some),
        None => Ok(None),
    }
}

/// The day of the oldest exchange, if all of it is older than what is kept.
fn due(oldest: UnixMs, now: UnixMs, retention: Duration) -> Option<Range<UnixMs>> {
    let start = oldest.div_euclid(DAY_MS) * DAY_MS;
    let end = start + DAY_MS;
    let kept_ms = UnixMs::try_from(retention.as_millis()).unwrap_or(UnixMs::MAX);
    (end <= now.saturating_sub(kept_ms)).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_due_when_all_of_it_is_older_than_what_is_kept() {
        let retention = Duration::from_hours(32 * 24);
        let due_at = |now: UnixMs| due(DAY_MS + 5, now, retention);
        assert_eq!(due_at(34 * DAY_MS - 1), None);
        assert_eq!(due_at(34 * DAY_MS), Some(DAY_MS..2 * DAY_MS));
        assert_eq!(due(-5, 0, retention), None);
        assert_eq!(due(-40 * DAY_MS, 0, retention), Some(-40 * DAY_MS..-39 * DAY_MS));
        assert_eq!(due(0, UnixMs::MIN, Duration::MAX), None, "a clock that is far behind rolls nothing up");
    }
}
