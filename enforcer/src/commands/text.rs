//! Words on the terminal: tables, human numbers, and nothing that a terminal would obey.
use std::borrow::Cow;
use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Exit, Failure};

/// Writes to stdout. A reader that has gone (`| head`) is no failure: it has what it wanted.
///
/// # Errors
/// When stdout fails otherwise.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::io("stdout", &error)),
        _ => Ok(()),
    }
}

/// Writes one JSON document and a line end to stdout.
///
/// # Errors
/// When stdout fails.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&format!("{}\n", json(value)?))
}

/// One JSON document on one line.
///
/// # Errors
/// When the value has no JSON form.
pub fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::new(Exit::Failed, format!("JSON: {error}")))
}

/// A word for the operator on stderr; a closed stderr loses it and nothing else.
pub fn say(words: &str) {
    drop(io::stderr().write_all(format!("enforcer: {}\n", scrub(words)).as_bytes()));
}

/// The text with every control and bidirectional formatting character as its escape (`\u{1b}`), so that a
/// name cannot move the cursor, set the clipboard or turn a line around.
#[must_use]
pub fn scrub(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_unsafe(c) { clean.extend(c.escape_unicode()) } else { clean.push(c) }
    }
    Cow::Owned(clean)
}

/// C0, C1, DEL, line and paragraph separators, and the bidirectional controls of Unicode's UAX #9.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A count as people read it: `999`, `12.3k`, `5M`; rounded down, so that a budget never looks fuller.
#[must_use]
pub fn human(count: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    match UNITS.iter().find(|(size, _)| count >= *size) {
        None => count.to_string(),
        Some((size, unit)) => match count % size / (size / 10) {
            0 => format!("{}{unit}", count / size),
            tenths => format!("{}.{tenths}{unit}", count / size),
        },
    }
}

/// A cell for what may be missing.
#[must_use]
pub fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

/// Rows under a heading, columns aligned: the first to the left, those named in `right` to the right.
#[derive(Debug)]
pub struct Table {
    right: &'static [usize],
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading; `right` lists the columns of numbers.
    #[must_use]
    pub fn new(heading: &[&str], right: &'static [usize]) -> Self {
        Self { right, rows: vec![heading.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    /// Adds a row; cells are scrubbed.
    pub fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.iter().map(|cell| scrub(cell).into_owned()).collect());
    }

    /// The table as lines, two spaces between columns and none at a line's end.
    #[must_use]
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
            })
            .map(Option::unwrap_or_default)
            .collect();
        self.rows.iter().map(|row| self.line(row, &widths)).collect()
    }

    fn line(&self, row: &[String], widths: &[usize]) -> String {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                if self.right.contains(&column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_in_a_name() {
        assert_eq!(scrub("plain é"), "plain é");
        assert_eq!(scrub("a\u{1b}]52;c;x\u{7}"), "a\\u{1b}]52;c;x\\u{7}");
        assert_eq!(scrub("a\u{202e}b\u{9b}c\n\u{7f}"), "a\\u{202e}b\\u{9b}c\\u{a}\\u{7f}");
    }

    #[test]
    fn numbers_are_short_and_never_round_up() {
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1k"),
            (12_399, "12.3k"),
            (999_999, "999.9k"),
            (5_000_000, "5M"),
            (u64::MAX, "18446744T"),
        ] {
            assert!(human(count).starts_with(text), "{count}: {}", human(count));
        }
    }

    #[test]
    fn columns_are_aligned_and_cells_scrubbed() {
        let mut table = Table::new(&["NAME", "TOKENS"], &[1]);
        table.row(&["a".into(), "5".into()]);
        table.row(&["long\rname".into(), "1234567".into()]);
        assert_eq!(
            table.render(),
            "NAME            TOKENS\na                    5\nlong\\u{d}name  1234567\n"
        );
    }
}
