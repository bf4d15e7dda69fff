//! Time in which an answer showed nothing, and what may have been generated in it: reasoning is billed and often not
//! shown, so whoever hangs up before the figures come would have it for nothing.
//!
//! Pure: the caller tells the time. Not here: what is shown (`tally`).
use std::time::Duration;

/// Shorter than this, nothing is hidden: streams pause between two events, and answers take a moment to begin.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Output that a second stands for, tokens: as fast as models that reason are commonly served. More than most come to,
/// less than the fastest hosts do; and what is generated in shorter pauses is not in it.
const TOKENS_PER_SECOND: u64 = 150;
/// Most that is taken for hidden, tokens: the longest outputs of today's models.
const MAX_HIDDEN_TOKENS: u64 = 128_000;

/// How long an answer showed nothing that no figures cover.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    now: Duration,
    /// When something was shown last.
    shown_at: Duration,
    uncovered: Duration,
}

impl Quiet {
    /// It is so long since the request left.
    pub(super) fn at(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// Something was shown now.
    pub(super) fn ends(&mut self) {
        self.uncovered += self.pause();
        self.shown_at = self.now;
    }

    /// Figures came now, of all output so far.
    pub(super) fn is_covered(&mut self) {
        *self = Self { now: self.now, shown_at: self.now, uncovered: Duration::ZERO };
    }

    /// What may have been generated and not shown, tokens.
    pub(super) fn hidden_tokens(&self) -> u64 {
        let seconds = (self.uncovered + self.pause()).as_secs();
        seconds.saturating_mul(TOKENS_PER_SECOND).min(MAX_HIDDEN_TOKENS)
    }

    /// The time since something was shown, if it is more than a pause.
    fn pause(&self) -> Duration {
        let since = self.now.saturating_sub(self.shown_at);
        if since > LONGEST_PAUSE { since } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_silence_that_no_figures_cover_counts() {
        let mut quiet = Quiet::default();
        let at = |quiet: &mut Quiet, ms| {
            quiet.at(Duration::from_millis(ms));
            quiet.hidden_tokens()
        };
        assert_eq!(at(&mut quiet, 2_000), 0, "an answer takes a moment to begin");
        assert_eq!(at(&mut quiet, 5_900), 5 * TOKENS_PER_SECOND);
        assert_eq!(at(&mut quiet, 1_000), 5 * TOKENS_PER_SECOND, "time does not go back");
        quiet.ends();
        assert_eq!(at(&mut quiet, 7_000), 5 * TOKENS_PER_SECOND, "it streams");
        quiet.ends();
        assert_eq!(at(&mut quiet, 11_100), 10 * TOKENS_PER_SECOND);
        quiet.is_covered();
        assert_eq!(at(&mut quiet, 12_000), 0);
        assert_eq!(at(&mut quiet, 1_000_000_000), MAX_HIDDEN_TOKENS);
    }
}
