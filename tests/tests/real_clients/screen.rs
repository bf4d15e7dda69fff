//! What a client that runs prints, both streams in one as a terminal shows them; the client is killed when dropped.
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::clock::wait_until;
use support::process;
use tempfile::TempDir;

/// See the top of this file.
pub struct Screen {
    client: Child,
    began: Instant,
    directory: TempDir,
}

impl Screen {
    /// Starts a client that reads nothing.
    pub fn of(command: &mut Command) -> Self {
        Self::reading(command, Stdio::null())
    }

    /// Starts a client to which somebody could write, and does not.
    pub fn attended(command: &mut Command) -> Self {
        Self::reading(command, Stdio::piped())
    }

    fn reading(command: &mut Command, stdin: Stdio) -> Self {
        let directory = TempDir::new().unwrap();
        let file = File::create(Self::file(&directory)).unwrap();
        command.stdin(stdin).stdout(file.try_clone().unwrap()).stderr(file);
        Self { client: command.spawn().unwrap(), began: Instant::now(), directory }
    }

    /// What is on it now.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(Self::file(&self.directory)).unwrap()).into_owned()
    }

    /// Waits for these words: how long after its start they were there. Panics after `timeout`.
    pub fn shown(&self, words: &str, timeout: Duration) -> Duration {
        let wanted = bare(words);
        let shown =
            wait_until(timeout, || bare(&self.text()).contains(&wanted).then(|| self.began.elapsed()));
        shown.unwrap_or_else(|| panic!("no {words:?} within {timeout:?}:\n{}", self.text()))
    }

    /// The last line on it that has these words.
    pub fn line_with(&self, words: &str) -> Option<String> {
        self.text().lines().rfind(|line| line.contains(words)).map(|line| line.trim().to_owned())
    }

    /// Waits for the client's end: its exit code, if no signal ended it. Panics when it takes longer.
    pub fn ended(&mut self, timeout: Duration) -> Option<i32> {
        process::exit_within(&mut self.client, timeout)
            .unwrap_or_else(|| panic!("it goes on: {}", self.text()))
    }

    fn file(directory: &TempDir) -> PathBuf {
        directory.path().join("screen")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        process::kill(&mut self.client);
    }
}

/// What is shown without spaces, line ends and what steers a terminal: words are the same wherever a line is broken.
fn bare(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text.chars();
    while let Some(char) = rest.next() {
        match char {
            '\u{1b}' => skip_sequence(&mut rest),
            _ if char.is_whitespace() || char.is_control() => {}
            _ => shown.push(char),
        }
    }
    shown
}

/// Leaves out what follows an escape: ECMA-48's control sequences, and strings up to their end.
fn skip_sequence(rest: &mut std::str::Chars<'_>) {
    match rest.next() {
        Some('[') => drop(rest.find(|char| ('@'..='~').contains(char))),
        Some(']' | 'P' | '_' | '^') => drop(rest.find(|char| matches!(char, '\u{7}' | '\u{1b}'))),
        _ => {}
    }
}
