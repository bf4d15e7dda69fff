//! What a client that runs prints, both streams in one as a terminal shows them; the client is killed when dropped.
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::process;
use tempfile::TempDir;

/// See the top of this file.
pub struct Screen {
    client: Child,
    directory: TempDir,
}

impl Screen {
    /// Starts a client.
    pub fn of(command: &mut Command) -> Self {
        let directory = TempDir::new().unwrap();
        let file = File::create(Self::file(&directory)).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self { client: command.spawn().unwrap(), directory }
    }

    /// What is on it now.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(Self::file(&self.directory)).unwrap()).into_owned()
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
