//! Sums of the `test result:` lines, one of which each test program prints. Pure.
use std::ops::AddAssign;

/// What has been counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that held.
    pub passed: usize,
    /// Tests that did not.
    pub failed: usize,
    /// Tests that were not run.
    pub ignored: usize,
}

impl Tally {
    /// Adds what a line says, if it is such a line.
    pub fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            if let Some((number, what)) = count.split_once(' ')
                && let Ok(number) = number.parse::<usize>()
            {
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.ignored += number,
                    _ => {}
                }
            }
        }
    }

    /// The summary that ends a run; `skipped` tests were not even started.
    pub fn summary(&self, skipped: usize) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.ignored + skipped)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn the_summaries_of_all_programs_are_added_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.02s",
            "test result: FAILED. 5 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "test result: of a test's own words",
        ] {
            tally.add(line);
        }
        assert_eq!(tally, Tally { passed: 7, failed: 3, ignored: 1 });
        assert_eq!(tally.summary(2), "7 passed, 3 failed, 3 skipped");
    }
}
