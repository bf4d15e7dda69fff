//! What commands print: text that survives a closed pipe, JSON, words on stderr, aligned tables.
use std::io::{self, Write};

use meter_proxy::text::is_hostile;
use serde::Serialize;

use crate::error::{Exit, Failure};
use crate::text::scrub;

/// Writes to stdout. Ends the process, with success, when the reader has gone (`| head`): it has what it
/// wanted, and a command that only prints has nothing else to do.
///
/// # Errors
/// When stdout fails otherwise.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::io("stdout", &error)),
    }
}

/// Writes one JSON document and a line end to stdout.
///
/// # Errors
/// When stdout fails.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&format!("{}\n", json(value)?))
}

/// One JSON document on one line, exact and yet fit for a terminal: what would steer one is written as an escape.
///
/// # Errors
/// When the value has no JSON form.
pub fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value)
        .map(|document| escape(&document))
        .map_err(|error| Failure::new(Exit::Failed, format!("JSON: {error}")))
}

/// Writes hostile characters as `\uXXXX` (RFC 8259, 7: in UTF-16). They stand inside strings alone, and JSON's
/// own rules escape only some of them.
fn escape(document: &str) -> String {
    let mut escaped = String::with_capacity(document.len());
    for c in document.chars() {
        if is_hostile(c) {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}")));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// A word for the operator on stderr; a closed stderr loses it and nothing else.
pub fn say(words: &str) {
    drop(io::stderr().write_all(format!("enforcer: {}\n", scrub(words)).as_bytes()));
}

/// A cell for what may be missing.
#[must_use]
pub fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

/// Rows under a heading, columns aligned: the first to the left, those named in `right` to the right.
#[derive(Debug)]
pub struct Table {
    right: Vec<usize>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading; `right` lists the columns of numbers.
    #[must_use]
    pub fn new(heading: &[&str], right: impl IntoIterator<Item = usize>) -> Self {
        let right = right.into_iter().collect();
        Self { right, rows: vec![heading.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    /// Adds a row; cells are scrubbed.
    pub fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.iter().map(|cell| scrub(cell)).collect());
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
    fn json_stays_exact_and_steers_nothing() {
        let words = "\u{1b}[31m \u{9b}31m \u{7f}\u{202e}\u{e0041} größe 🙂 \\";
        let document = json(&words).unwrap();
        assert!(!document.chars().any(is_hostile), "{document}");
        assert!(document.contains("größe 🙂"), "{document}");
        assert_eq!(serde_json::from_str::<String>(&document).unwrap(), words);
    }

    #[test]
    fn columns_are_aligned_and_cells_scrubbed() {
        let mut table = Table::new(&["NAME", "TOKENS"], [1]);
        table.row(&["a".into(), "5".into()]);
        table.row(&["long\rname".into(), "1234567".into()]);
        assert_eq!(table.render(), "NAME        TOKENS\na                5\nlong\u{fffd}name  1234567\n");
    }
}
