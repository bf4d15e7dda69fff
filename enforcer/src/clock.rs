//! Wall-clock time as the ledger and the documents write it.
use jiff::Timestamp;

use crate::ledger::UnixMs;

/// Now, milliseconds since the Unix epoch, UTC.
#[must_use]
pub fn now_ms() -> UnixMs {
    Timestamp::now().as_millisecond()
}

/// RFC 3339, UTC, milliseconds (`2026-01-31T12:00:00.000Z`). A time outside jiff's range is shown at its edge.
#[must_use]
pub fn rfc3339(at: UnixMs) -> String {
    let at = Timestamp::from_millisecond(at).unwrap_or(if at < 0 { Timestamp::MIN } else { Timestamp::MAX });
    format!("{at:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_milliseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert!(rfc3339(i64::MAX).starts_with("9999-"));
    }
}
