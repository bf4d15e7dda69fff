//! Windows: when a budget starts anew, in UTC. Pure; what time it is comes from whoever asks.
//!
//! Every window begins at a full hour, so an hour is all that must be known of a settlement to say which windows it
//! counts in, and all that must be kept of the clock so that it never goes back.
use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use crate::ledger::UnixMs;

const HOUR_MS: i64 = 3_600_000;
const HOURS_A_DAY: i64 = 24;
/// The last hour of the year 9998: it and the ends of its windows are written with four digits of year.
const LAST_HOUR: i64 = 70_380_767;

/// When a budget starts anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// Never.
    #[default]
    Total,
    /// Each hour.
    Hourly,
    /// Each day, at 00:00 UTC.
    Daily,
    /// Each Monday, at 00:00 UTC.
    Weekly,
    /// The first of each month, at 00:00 UTC.
    Monthly,
}

impl Window {
    /// Every window, as accounts keep their sums.
    pub const ALL: [Self; 5] = [Self::Total, Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly];

    /// The word used in settings and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
        }
    }

    /// The window of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|window| window.as_str() == word)
    }

    /// Its place in [`Window::ALL`].
    pub(super) fn index(self) -> usize {
        self as usize
    }

    /// The first hour of the window that holds this one.
    #[must_use]
    pub fn start(self, hour: Hour) -> Hour {
        let date = hour.date();
        match self {
            Self::Total => Hour(0),
            Self::Hourly => hour,
            Self::Daily => Hour::midnight(date),
            Self::Weekly => {
                let since_monday = i64::from(date.weekday().since(Weekday::Monday));
                Hour((Hour::midnight(date).0 - since_monday * HOURS_A_DAY).max(0))
            }
            Self::Monthly => Hour::midnight(date.first_of_month()),
        }
    }

    /// The first hour of the next window; `None` where there is none.
    #[must_use]
    pub fn end(self, hour: Hour) -> Option<Hour> {
        let date = hour.date();
        let days = match self {
            Self::Total => return None,
            Self::Hourly => return Some(Hour(hour.0 + 1)),
            Self::Daily => 1,
            Self::Weekly => 7 - i64::from(date.weekday().since(Weekday::Monday)),
            Self::Monthly => i64::from(date.days_in_month() - date.day()) + 1,
        };
        Some(Hour(Hour::midnight(date).0 + days * HOURS_A_DAY))
    }
}

/// One hour, UTC, counted from the Unix epoch. Written `2026-01-31T12`, so that the order of texts is that of hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(i64);

impl Hour {
    /// The hour of a moment; one before the epoch or beyond the calendar counts as the nearest in it.
    #[must_use]
    pub fn of(at: UnixMs) -> Self {
        Self(at.div_euclid(HOUR_MS).clamp(0, LAST_HOUR))
    }

    /// Its first moment.
    #[must_use]
    pub fn start_ms(self) -> UnixMs {
        self.0 * HOUR_MS
    }

    fn midnight(date: Date) -> Self {
        let days = date.duration_since(Date::constant(1970, 1, 1)).as_hours() / HOURS_A_DAY;
        Self(days * HOURS_A_DAY)
    }

    fn date(self) -> Date {
        let days = self.0.clamp(0, LAST_HOUR + HOURS_A_DAY) / HOURS_A_DAY;
        Date::constant(1970, 1, 1).saturating_add(days.days())
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}T{:02}", self.date(), self.0 % HOURS_A_DAY)
    }
}

/// A text is no hour as the ledger writes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no hour (2026-01-31T12)")]
pub struct NoHour(String);

impl FromStr for Hour {
    type Err = NoHour;

    fn from_str(text: &str) -> Result<Self, NoHour> {
        let at: Option<Timestamp> = format!("{text}:00:00Z").parse().ok();
        let hour = at.map(|at| Self::of(at.to_zoned(TimeZone::UTC).timestamp().as_millisecond()));
        hour.filter(|hour| hour.to_string() == text).ok_or_else(|| NoHour(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hour(text: &str) -> Hour {
        text.parse().unwrap()
    }

    /// window, an hour in it, its first hour, the first of the next
    #[test]
    fn windows_begin_and_end_in_utc() {
        for (window, within, start, end) in [
            (Window::Total, "2026-01-31T12", "1970-01-01T00", None),
            (Window::Hourly, "2026-01-31T12", "2026-01-31T12", Some("2026-01-31T13")),
            (Window::Hourly, "2026-12-31T23", "2026-12-31T23", Some("2027-01-01T00")),
            (Window::Daily, "2026-01-31T00", "2026-01-31T00", Some("2026-02-01T00")),
            (Window::Daily, "2024-02-28T23", "2024-02-28T00", Some("2024-02-29T00")),
            // 2026-02-01 is a Sunday
            (Window::Weekly, "2026-02-01T23", "2026-01-26T00", Some("2026-02-02T00")),
            (Window::Weekly, "2026-02-02T00", "2026-02-02T00", Some("2026-02-09T00")),
            (Window::Weekly, "2026-01-01T00", "2025-12-29T00", Some("2026-01-05T00")),
            (Window::Weekly, "1970-01-01T00", "1970-01-01T00", Some("1970-01-05T00")),
            (Window::Monthly, "2024-02-29T23", "2024-02-01T00", Some("2024-03-01T00")),
            (Window::Monthly, "2026-12-01T00", "2026-12-01T00", Some("2027-01-01T00")),
            (Window::Monthly, "9998-12-31T23", "9998-12-01T00", Some("9999-01-01T00")),
        ] {
            let what = format!("{} {within}", window.as_str());
            assert_eq!(window.start(hour(within)).to_string(), start, "{what}");
            assert_eq!(window.end(hour(within)).map(|end| end.to_string()).as_deref(), end, "{what}");
            assert_eq!(Window::from_word(window.as_str()), Some(window));
            assert_eq!(Window::ALL[window.index()], window);
        }
    }

    #[test]
    fn hours_have_one_text_each() {
        assert_eq!(Hour::of(1_769_860_800_000).to_string(), "2026-01-31T12");
        assert_eq!(Hour::of(-1).to_string(), "1970-01-01T00");
        assert_eq!(Hour::of(i64::MAX).to_string(), "9998-12-31T23");
        for text in ["", "total", "2026-01-31", "2026-01-31T24", "2026-1-31T12", "2026-01-31T12:30"] {
            assert!(text.parse::<Hour>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn each_hour_is_in_one_window_of_each_kind(at in 0_i64..LAST_HOUR) {
            let hour = Hour(at);
            prop_assert_eq!(hour.to_string().parse::<Hour>().unwrap(), hour);
            for window in Window::ALL {
                let start = window.start(hour);
                prop_assert!(start <= hour && window.start(start) == start);
                if let Some(end) = window.end(hour) {
                    prop_assert!(end > hour && window.start(end) == end);
                    prop_assert_eq!(window.start(Hour(end.0 - 1)), start);
                    prop_assert_eq!(window.end(start), Some(end));
                }
            }
        }
    }
}
