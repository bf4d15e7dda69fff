//! What the machine's console says: how each test program ended there. Pure.
use std::collections::BTreeMap;

use crate::tally::Tally;

/// How far a test program came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Course {
    /// It printed `test result: ok`.
    ok: bool,
    /// Its exit code, once it has ended.
    code: Option<i32>,
}

/// Read line by line.
#[derive(Debug, Default)]
pub struct Console {
    tally: Tally,
    courses: BTreeMap<String, Course>,
    running: Option<String>,
    panic: Option<String>,
}

impl Console {
    /// Takes the next line.
    pub fn feed(&mut self, line: &str) {
        self.tally.add(line);
        if let Some(name) = line.strip_prefix("guest: begin ") {
            self.courses.insert(name.to_owned(), Course::default());
            self.running = Some(name.to_owned());
        } else if let Some((name, code)) =
            line.strip_prefix("guest: end ").and_then(|end| end.rsplit_once(' '))
        {
            self.courses.entry(name.to_owned()).or_default().code = code.parse().ok();
            self.running = None;
        } else if line.starts_with("test result: ok. ") {
            let running = self.running.as_ref().and_then(|name| self.courses.get_mut(name));
            running.into_iter().for_each(|course| course.ok = true);
        } else if line.contains("Kernel panic") {
            self.panic = Some(line.to_owned());
        }
    }

    /// The sums of what was printed so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Why these programs did not all end well, if they did not.
    pub fn complaints<'a>(&self, expected: impl Iterator<Item = &'a str>) -> Vec<String> {
        let programs = expected.filter_map(|name| {
            let what = match self.courses.get(name) {
                Some(Course { ok: true, code: Some(0) }) => return None,
                Some(Course { code: Some(code), .. }) => format!("ended with code {code}"),
                Some(Course { code: None, .. }) => "did not end".to_owned(),
                None => "was not started".to_owned(),
            };
            Some(format!("{name} {what}"))
        });
        self.panic.iter().cloned().chain(programs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str =
        "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.1s";

    fn complaints(lines: &[&str]) -> Vec<String> {
        let mut console = Console::default();
        lines.iter().for_each(|line| console.feed(line));
        console.complaints(["a/b"].into_iter())
    }

    #[test]
    fn a_program_with_a_good_result_and_end_is_well() {
        let mut console = Console::default();
        for line in ["guest: begin a/b", OK, "guest: end a/b 0"] {
            console.feed(line);
        }
        assert_eq!(console.tally().passed, 2);
        assert_eq!(console.complaints(["a/b"].into_iter()), [""; 0]);
    }

    #[test]
    fn all_else_is_not() {
        assert_eq!(complaints(&[]), ["a/b was not started"]);
        assert_eq!(complaints(&["guest: begin a/b", OK]), ["a/b did not end"]);
        assert_eq!(complaints(&["guest: begin a/b", "guest: end a/b 0"]), ["a/b ended with code 0"]);
        assert_eq!(complaints(&["guest: begin a/b", OK, "guest: end a/b 101"]), ["a/b ended with code 101"]);
        assert_eq!(
            complaints(&["guest: begin c/d", OK, "guest: end c/d 0", "guest: begin a/b", "guest: end a/b 0"]),
            ["a/b ended with code 0"]
        );
        let panic = "[    5.2] Kernel panic - not syncing: Attempted to kill init!";
        assert_eq!(complaints(&["guest: begin a/b", panic]), [panic, "a/b did not end"]);
    }
}
