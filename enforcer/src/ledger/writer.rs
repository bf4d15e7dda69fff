//! The writer thread: commits what is submitted to it in groups, one transaction a group, and tells each
//! submitter the outcome in the order of submission. Decides nothing and waits for nobody but the disk.
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Entry, Ledger, LedgerError};

/// Most submissions in one transaction: bounds how long the first of a group waits for its acknowledgement.
const MAX_GROUP: usize = 1024;
/// How long the submissions of a failed group are tried one by one. A full disk or a held lock fails them all,
/// each after its own wait; what is left after this gets the group's error.
const RETRY_FOR: Duration = Duration::from_secs(5);

/// Told once whether a submission is durable. Runs on the writer thread (it must be short), or on the
/// submitter's when the writer has ended.
pub type Done = Box<dyn FnOnce(Result<(), Arc<LedgerError>>) + Send>;

struct Submission {
    entries: Vec<Entry>,
    done: Done,
}

/// A handle to the writer thread. When the last one is dropped, the thread finishes its queue and ends.
#[derive(Clone)]
pub struct Writer {
    /// Unbounded, so that no submitter ever waits for the disk. In practice its length is bounded: an exchange
    /// has at most one submission under way, and the gate permits no new one before its reservation is durable.
    queue: Sender<Submission>,
}

impl Writer {
    /// Starts the thread with the ledger it owns. Joining the handle waits for the queue's end.
    ///
    /// # Panics
    /// When the operating system gives no thread.
    #[must_use]
    pub fn spawn(ledger: Box<dyn Ledger>) -> (Self, JoinHandle<()>) {
        let (queue, submissions) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("ledger-writer".to_owned())
            .spawn(move || write(ledger, &submissions))
            .expect("a process that starts gets a second thread");
        (Self { queue }, thread)
    }

    /// Submits entries that are to become durable together. Returns at once; `done` is told the outcome.
    pub fn submit(&self, entries: Vec<Entry>, done: Done) {
        if let Err(mpsc::SendError(unsent)) = self.queue.send(Submission { entries, done }) {
            (unsent.done)(Err(Arc::new(LedgerError::Database {
                path: "(closed)".to_owned(),
                what: "the writer has ended".to_owned(),
            })));
        }
    }
}

fn write(mut ledger: Box<dyn Ledger>, submissions: &Receiver<Submission>) {
    while let Ok(first) = submissions.recv() {
        let group = std::iter::once(first).chain(submissions.try_iter().take(MAX_GROUP - 1)).collect();
        commit_group(ledger.as_mut(), group);
    }
}

fn commit_group(ledger: &mut dyn Ledger, mut group: Vec<Submission>) {
    let lengths: Vec<usize> = group.iter().map(|submission| submission.entries.len()).collect();
    let entries: Vec<Entry> = group.iter_mut().flat_map(|submission| submission.entries.drain(..)).collect();
    let outcome = ledger.commit(&entries).map_err(Arc::new);
    match outcome {
        Err(error) if group.len() > 1 => commit_apart(ledger, group, &lengths, &entries, &error),
        outcome => group.into_iter().for_each(|submission| (submission.done)(outcome.clone())),
    }
}

/// Gives each submission of a failed group its own transaction, so that a bad entry fails nobody else's.
fn commit_apart(
    ledger: &mut dyn Ledger,
    group: Vec<Submission>,
    lengths: &[usize],
    entries: &[Entry],
    group_error: &Arc<LedgerError>,
) {
    let deadline = Instant::now() + RETRY_FOR;
    let mut rest = entries;
    for (submission, &length) in group.into_iter().zip(lengths) {
        let (own, others) = rest.split_at(length);
        rest = others;
        let outcome = if Instant::now() < deadline {
            ledger.commit(own).map_err(Arc::new)
        } else {
            Err(Arc::clone(group_error))
        };
        (submission.done)(outcome);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::sync::Mutex;
    use std::sync::mpsc::Receiver;

    use super::*;
    use crate::budget::Statement;
    use crate::budget::weights::Weights;
    use crate::budget::window::Hour;
    use crate::ledger::sqlite::{FILE, SqliteLedger};
    use crate::ledger::{Owner, Reader, Snapshot, Stated, UsageQuery};

    /// Notes each commit's tokens; refuses a commit that holds the bad number. Each says that it has begun and
    /// waits for the gate, until the test drops its ends of both.
    struct FakeLedger {
        commits: Arc<Mutex<Vec<Vec<u64>>>>,
        begun: Sender<()>,
        gate: Receiver<()>,
    }

    const BAD: u64 = 13;

    impl Ledger for FakeLedger {
        fn load(&mut self) -> Result<Snapshot, LedgerError> {
            Ok(Snapshot::default())
        }

        fn commit(&mut self, entries: &[Entry]) -> Result<(), LedgerError> {
            if self.begun.send(()).is_ok() {
                self.gate.recv().unwrap_or_default();
            }
            let tokens: Vec<u64> = entries.iter().map(tokens).collect();
            let refused = tokens.contains(&BAD);
            self.commits.lock().unwrap().push(tokens);
            if refused { Err(refusal("bad")) } else { Ok(()) }
        }

        fn reader(&self) -> Result<Box<dyn Reader>, LedgerError> {
            Err(refusal("no reader"))
        }
    }

    fn refusal(what: &str) -> LedgerError {
        LedgerError::Database { path: "fake".to_owned(), what: what.to_owned() }
    }

    fn added(tokens: u64) -> Entry {
        let (provider, statement) = ("claude".to_owned(), Statement::Add(tokens));
        Entry::State(Stated { owner: Owner::Global, provider, statement, hour: Hour::default(), at: 0 })
    }

    fn tokens(entry: &Entry) -> u64 {
        match entry {
            Entry::State(Stated { statement: Statement::Add(tokens), .. }) => *tokens,
            other => panic!("{other:?}"),
        }
    }

    /// Submits a first entry, and while the ledger is at it, the given submissions; returns what each was told,
    /// in the order it was told, and the commits.
    fn run(submissions: &[&[u64]]) -> (Vec<(usize, bool)>, Vec<Vec<u64>>) {
        let commits = Arc::new(Mutex::new(Vec::new()));
        let (begun, first_begun) = mpsc::channel();
        let (open_gate, gate) = mpsc::channel();
        let (writer, thread) =
            Writer::spawn(Box::new(FakeLedger { commits: Arc::clone(&commits), begun, gate }));
        let told = Arc::new(Mutex::new(Vec::new()));
        let submit = |number: usize, tokens: &[u64]| {
            let told = Arc::clone(&told);
            let done: Done = Box::new(move |outcome| told.lock().unwrap().push((number, outcome.is_ok())));
            writer.submit(tokens.iter().copied().map(added).collect(), done);
        };
        submit(0, &[0]);
        first_begun.recv().unwrap();
        for (index, tokens) in submissions.iter().enumerate() {
            submit(index + 1, tokens);
        }
        drop((first_begun, open_gate, writer));
        thread.join().unwrap();
        let told = told.lock().unwrap().clone();
        let commits = commits.lock().unwrap().clone();
        (told, commits)
    }

    #[test]
    fn what_waits_is_committed_together_and_told_in_order() {
        let (told, commits) = run(&[&[1, 2], &[], &[3], &[4]]);
        assert_eq!(told, [(0, true), (1, true), (2, true), (3, true), (4, true)]);
        assert_eq!(commits, [vec![0], vec![1, 2, 3, 4]]);
    }

    #[test]
    fn a_group_is_bounded() {
        let many: Vec<&[u64]> = vec![&[1]; 3 * MAX_GROUP];
        let (told, commits) = run(&many);
        assert_eq!(told.len(), 3 * MAX_GROUP + 1);
        let sizes: Vec<usize> = commits.iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, MAX_GROUP, MAX_GROUP, MAX_GROUP]);
    }

    #[test]
    fn a_bad_entry_fails_its_own_submission_alone() {
        let (told, commits) = run(&[&[1], &[2, BAD], &[3]]);
        assert_eq!(told, [(0, true), (1, true), (2, false), (3, true)]);
        assert_eq!(commits, [vec![0], vec![1, 2, BAD, 3], vec![1], vec![2, BAD], vec![3]]);
    }

    #[test]
    fn a_writer_that_has_ended_says_so() {
        let (queue, submissions) = mpsc::channel();
        drop(submissions);
        let (tell, told) = mpsc::channel();
        let done: Done = Box::new(move |outcome| tell.send(outcome.is_err()).unwrap());
        Writer { queue }.submit(vec![added(1)], done);
        assert!(told.recv().unwrap());
    }

    const CHILD: &str = "ENFORCER_TEST_LEDGER_DIR";

    /// Commits one number after the other and prints each when it is acknowledged: a few by itself, without end
    /// as the child of the test below.
    #[test]
    fn acknowledged_numbers_are_printed() {
        let given = std::env::var_os(CHILD);
        let own = tempfile::tempdir().unwrap();
        let dir = given.as_deref().map_or(own.path(), Path::new);
        let ledger = SqliteLedger::open(&dir.join(FILE)).unwrap();
        let mut reader = ledger.reader().unwrap();
        let (writer, thread) = Writer::spawn(Box::new(ledger));
        let last = if given.is_some() { u64::MAX } else { 10 };
        for number in 1..=last {
            let (tell, told) = mpsc::channel();
            let done: Done = Box::new(move |outcome| tell.send(outcome).unwrap());
            writer.submit(vec![added(number)], done);
            told.recv().unwrap().unwrap();
            println!("acknowledged {number}");
        }
        drop(writer);
        thread.join().unwrap();
        assert_eq!(reader.usage(&UsageQuery::default(), &Weights::default()).unwrap(), []);
        assert_eq!(added_tokens(dir), (1..=last).sum::<u64>());
    }

    #[test]
    fn what_was_acknowledged_survives_kill_9() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ledger::writer::tests::acknowledged_numbers_are_printed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        // the test runner's own words may stand in the same line as the first number
        let number =
            |line: String| line.rsplit_once("acknowledged ").and_then(|(_, n)| n.parse::<u64>().ok());
        let reached = lines.by_ref().filter_map(number).find(|&number| number >= 200);
        child.kill().unwrap();
        child.wait().unwrap();
        let last = lines.filter_map(number).last().or(reached).unwrap();
        let found = added_tokens(dir.path());
        // the number after the last acknowledged one may be durable too: killed between commit and print
        let acknowledged: u64 = (1..=last).sum();
        assert!(found == acknowledged || found == acknowledged + last + 1, "{found} after {last} numbers");
    }

    fn added_tokens(dir: &Path) -> u64 {
        let snapshot = SqliteLedger::open(&dir.join(FILE)).unwrap().load().unwrap();
        snapshot.stated.into_iter().map(|stated| tokens(&Entry::State(stated))).sum()
    }
}
