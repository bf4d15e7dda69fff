//! Rows of the audit that agents can cause: how many are written in a time, and how many were left out.
use std::collections::HashMap;
use std::time::{Duration, Instant};

use meter_proxy::protocol::Notice;

use super::Core;
use super::durable::action;
use crate::audit::ActionKind;

/// In this time at most one row of the audit per bottle and provider says that a request was refused, and at most
/// [`NOTICES`] rows per bottle say what the meter noticed.
const ROWS_SPAN: Duration = Duration::from_secs(10);
/// See [`ROWS_SPAN`].
const NOTICES: u64 = 20;
/// What rows of notices are about; others are about a provider.
const NOTICE: &str = "notice";

/// Bounds the rows that an agent can cause in the audit, by bottle and what they are about.
#[derive(Default)]
pub(super) struct RowLimit(HashMap<(String, String), Span>);

/// What was written and left out since a span began.
struct Span {
    began: Instant,
    kind: ActionKind,
    written: u64,
    left_out: u64,
}

impl Span {
    fn new(kind: ActionKind, began: Instant) -> Self {
        Self { began, kind, written: 0, left_out: 0 }
    }
}

/// Rows of one bottle that were left out and that no later row has told of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    bottle: String,
    about: String,
    kind: ActionKind,
    rows: u64,
}

impl RowLimit {
    /// Counts a row; says how many were left out in the span before when this one may be written.
    pub(super) fn count(
        &mut self,
        bottle: &str,
        about: &str,
        kind: ActionKind,
        most: u64,
        now: Instant,
    ) -> Option<u64> {
        let key = (bottle.to_owned(), about.to_owned());
        let span = self.0.entry(key).or_insert_with(|| Span::new(kind, now));
        let mut left_out = 0;
        if now.duration_since(span.began) >= ROWS_SPAN {
            left_out = span.left_out;
            *span = Span::new(kind, now);
        }
        if span.written >= most {
            span.left_out += 1;
            return None;
        }
        span.written += 1;
        Some(left_out)
    }

    /// Forgets spans that ended long ago; what they left out.
    fn prune(&mut self, now: Instant) -> Vec<LeftOut> {
        let over = self.0.extract_if(|_, span| now.duration_since(span.began) >= 6 * ROWS_SPAN);
        let left = over.filter(|(_, span)| span.left_out > 0);
        left.map(|((bottle, about), span)| LeftOut { bottle, about, kind: span.kind, rows: span.left_out })
            .collect()
    }
}

impl Core {
    /// Records what was noticed, within bounds.
    pub(super) fn notice(&mut self, kind: ActionKind, notice: Notice) {
        let bottle = notice.bottle.map(|bottle| self.name_of(bottle.slot));
        let about = bottle.as_deref().unwrap_or_default();
        let Some(left_out) = self.rows.count(about, NOTICE, kind, NOTICES, Instant::now()) else { return };
        let mut row = action(kind, bottle, None, "controller");
        row.detail = Some(match left_out {
            0 => notice.detail,
            more => format!("{} ({more} more notices since the last row)", notice.detail),
        });
        self.record(row);
    }

    /// Closes what was left out of the audit, where no row has come since that could tell it.
    pub(super) fn tell_left_out(&mut self, now: Instant) {
        for LeftOut { bottle, about, kind, rows } in self.rows.prune(now) {
            let mut row = action(kind, Some(bottle).filter(|bottle| !bottle.is_empty()), None, "controller");
            row.detail = Some(match about.as_str() {
                NOTICE => format!("{rows} more notices since the last row"),
                provider => format!("{rows} more refusals ({provider}) since the last row"),
            });
            self.record(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_told_by_the_next_row_or_by_one_of_its_own() {
        let mut rows = RowLimit::default();
        let began = Instant::now();
        let count =
            |rows: &mut RowLimit, after| rows.count("b", "claude", ActionKind::Refuse, 1, began + after);
        assert_eq!(count(&mut rows, Duration::ZERO), Some(0));
        assert_eq!(count(&mut rows, Duration::ZERO), None);
        assert_eq!(count(&mut rows, ROWS_SPAN), Some(1), "the next row tells it");
        assert_eq!(count(&mut rows, ROWS_SPAN), None);
        assert_eq!(rows.prune(began + 6 * ROWS_SPAN), []);
        let left = LeftOut { bottle: "b".into(), about: "claude".into(), kind: ActionKind::Refuse, rows: 1 };
        assert_eq!(rows.prune(began + 7 * ROWS_SPAN), [left]);
        assert_eq!(rows.prune(began + 7 * ROWS_SPAN), [], "once");
    }
}
