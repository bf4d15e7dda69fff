//! What was found of the sockets of a bottle, in words for the operator and the audit. Looks at none.

/// How many of each kind are described one by one.
const SHOWN: usize = 3;

/// What was found; an empty one is no proof that there is nothing, but all that can be seen.
#[derive(Debug, Default)]
pub struct Report {
    /// Made outside the bottle and left as they were.
    pub(super) foreign: Vec<String>,
    /// Made outside, and aborted.
    pub(super) aborted: Vec<String>,
    /// Made outside, and the abort was refused.
    pub(super) failed: Vec<String>,
    /// May have been made outside: the kernel does not tell.
    pub(super) unjudged: Vec<String>,
    /// Of families that no cgroup's hooks see, wherever they were made.
    pub(super) beside: Vec<String>,
    /// What could not be looked at.
    pub(super) unexamined: Vec<String>,
}

impl Report {
    /// What may send past every hook, so that nothing confines the bottle; `None` when all sockets were looked at and
    /// none can.
    #[must_use]
    pub fn past_every_hook(&self) -> Option<String> {
        if !self.beside.is_empty() {
            return Some(format!("it holds sockets that no cgroup governs ({})", first_of(&self.beside)));
        }
        let unknown = (!self.unexamined.is_empty()).then(|| first_of(&self.unexamined));
        unknown.map(|found| format!("sockets that it holds could not be examined ({found})"))
    }

    /// One line for each thing that the operator should know of the bottle `name`; none when nothing was found.
    #[must_use]
    pub fn lines(&self, name: &str) -> Vec<String> {
        let line = |found: &[String], what: String, end: &str| {
            (!found.is_empty()).then(|| format!("{what}: {} ({}){end}", found.len(), first_of(found)))
        };
        [
            line(
                &self.foreign,
                format!("sockets in {name} that were made outside it and are not governed"),
                "; attach --hard aborts such connections",
            ),
            line(
                &self.aborted,
                format!("sockets in {name} that were made outside it and are aborted now"),
                "; what their processes send through the same descriptors again is not governed",
            ),
            line(
                &self.failed,
                format!(
                    "sockets in {name} that were made outside it, are not governed and cannot be aborted"
                ),
                "",
            ),
            line(
                &self.unjudged,
                format!("sockets in {name} that may have been made outside it, which cannot be told"),
                "; they are left as they are",
            ),
            line(
                &self.beside,
                format!("sockets in {name} that no cgroup governs"),
                "; they cannot be aborted",
            ),
            line(&self.unexamined, format!("sockets in {name} that could not be examined"), ""),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The first few, and how many more there are.
fn first_of(found: &[String]) -> String {
    let mut words: Vec<String> = found.iter().take(SHOWN).cloned().collect();
    if found.len() > SHOWN {
        words.push(format!("and {} more", found.len() - SHOWN));
    }
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_governed_or_known_to_be_can_be_confined() {
        let found = || vec!["pid 7: it".to_owned()];
        let foreign = Report { foreign: found(), unjudged: found(), failed: found(), ..Report::default() };
        assert_eq!(foreign.past_every_hook(), None);
        let beside = Report { beside: found(), ..Report::default() }.past_every_hook();
        assert_eq!(beside.as_deref(), Some("it holds sockets that no cgroup governs (pid 7: it)"));
        let unexamined = Report { unexamined: found(), ..Report::default() }.past_every_hook();
        assert_eq!(unexamined.as_deref(), Some("sockets that it holds could not be examined (pid 7: it)"));
    }

    #[test]
    fn a_report_counts_and_shows_the_first_few() {
        assert!(Report::default().lines("b").is_empty());
        let four = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let report = Report { foreign: four, beside: vec!["p".into()], ..Report::default() };
        assert_eq!(
            report.lines("b"),
            [
                "sockets in b that were made outside it and are not governed: 4 (a; b; c; and 1 more); \
                 attach --hard aborts such connections",
                "sockets in b that no cgroup governs: 1 (p); they cannot be aborted",
            ]
        );
    }
}
