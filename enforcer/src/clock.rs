//! Wall-clock time as the ledger and the documents write it.
use jiff::Timestamp;

use crate::ledger::UnixMs;

/// A day of UTC, milliseconds: leap seconds are not counted.
pub const DAY_MS: UnixMs = 24 * 3_600 * 1_000;

/// Now, milliseconds since the Unix epoch, UTC.
#[must_use]
pub fn now_ms() -> UnixMs {
    let now = Timestamp::now().as_millisecond();
    #[cfg(debug_assertions)]
    let now = now.saturating_add(test::offset_ms());
    now
}

/// RFC 3339, UTC, milliseconds (`2026-01-31T12:00:00.000Z`). A time outside jiff's range is shown at its edge.
#[must_use]
pub fn rfc3339(at: UnixMs) -> String {
    let at = Timestamp::from_millisecond(at).unwrap_or(if at < 0 { Timestamp::MIN } else { Timestamp::MAX });
    format!("{at:.3}")
}

/// A clock that tests of the built daemon can turn, in builds with debug assertions alone: a release has no code that
/// would read it, so nobody who can set a daemon's environment turns a real one. (The kernel's time namespaces have no
/// wall clock, and to turn the host's would turn it for everything that runs there.)
#[cfg(debug_assertions)]
pub mod test {
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Duration;

    use crate::ledger::UnixMs;

    /// Names a file that holds milliseconds to add to the wall clock; written anew, it counts at once.
    const FILE: &str = "ENFORCER_TEST_CLOCK";
    const LOOKED_AT_EACH: Duration = Duration::from_millis(5);

    static OFFSET_MS: AtomicI64 = AtomicI64::new(0);

    pub(super) fn offset_ms() -> UnixMs {
        OFFSET_MS.load(Ordering::Relaxed)
    }

    /// Follows the file that the environment names, if it names one, as long as the process lives.
    pub fn follow() {
        let Some(file) = std::env::var_os(FILE) else { return };
        tracing::warn!(file = %file.display(), "the clock is a test's");
        let look = move || {
            let written = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            // a file that is being written anew is empty for a moment
            OFFSET_MS.store(written.unwrap_or_else(offset_ms), Ordering::Relaxed);
        };
        look();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(LOOKED_AT_EACH);
                look();
            }
        });
    }
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
