//! The ledger on real files: what goes in comes out, what must not happen is refused.
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use meter_proxy::tokens::{Ending, Provenance, Tokens};
use tempfile::TempDir;

use super::*;
use crate::audit::{Action, ActionKind, Cause, CauseKind};
use crate::bottle::engine::Container;
use crate::budget::weights::Weights;
use crate::budget::window::{Hour, Window};
use crate::budget::{Budget, Statement, Warned};
use crate::clock::DAY_MS;
use crate::ledger::{Attachment, GroupBy, Owner, Reservation, Settlement, Stated, Sum, UsageQuery, Verdict};

/// A ledger in a directory that is removed with it.
struct Fixture {
    dir: TempDir,
    ledger: SqliteLedger,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let ledger = SqliteLedger::open(&dir.path().join(FILE)).unwrap();
        Self { dir, ledger }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(FILE)
    }

    fn commit(&mut self, entries: &[Entry]) {
        self.ledger.commit(entries).unwrap();
    }

    /// Closes the ledger and opens it again, as a new controller does.
    fn reopened(self) -> Self {
        let Self { dir, ledger } = self;
        drop(ledger);
        let ledger = SqliteLedger::open(&dir.path().join(FILE)).unwrap();
        Self { dir, ledger }
    }
}

const HOUR: &str = "2026-01-31T12";

fn hour(text: &str) -> Hour {
    text.parse().unwrap()
}

fn stated(owner: Owner, provider: &str, statement: Statement) -> Stated {
    Stated { owner, provider: provider.to_owned(), statement, hour: hour(HOUR), at: 1 }
}

fn attachment(id: i64, name: &str, ancestors: &[&str]) -> Attachment {
    Attachment {
        id,
        name: name.to_owned(),
        agent: Some("coder".to_owned()),
        parent: ancestors.first().map(|&parent| parent.to_owned()),
        ancestors: ancestors.iter().map(|&ancestor| ancestor.to_owned()).collect(),
        cgroup: format!("/sys/fs/cgroup/{name}"),
        cgroup_id: u64::MAX - 5,
        owns_cgroup: true,
        container: Container::read("docker:0123abcd"),
        slot: u32::MAX,
        generation: 7,
        policy: crate::settings::Policy::Cutoff,
        egress: crate::settings::Egress::Allowlist,
        launch_budget: vec![("claude".to_owned(), 500_000)],
        attached_at: 1_000,
    }
}

fn reservation(id: i64, of: &Attachment) -> Reservation {
    Reservation {
        id,
        attachment: Some(of.id),
        bottle: of.name.clone(),
        agent: of.agent.clone(),
        ancestors: of.ancestors.clone(),
        provider: "claude".to_owned(),
        endpoint: "/v1/messages".to_owned(),
        model: Some("asked".to_owned()),
        reserved_tokens: 900,
        hour: hour(HOUR),
        started_at: 2_000 + id,
    }
}

fn settlement(id: i64, output: u64, provenance: Provenance) -> Settlement {
    Settlement {
        id,
        tokens: Tokens {
            input: 10,
            cache_write: 2,
            cache_read: 3,
            output,
            reasoning: 1,
            cache_write_5m: 1,
            cache_write_1h: 1,
            tool_prompt: 4,
        },
        provenance,
        ending: Ending::Completed,
        http_status: Some(200),
        model: Some("answered".to_owned()),
        raw: Some("{\"not\": json".to_owned()),
        hour: hour(HOUR),
        ended_at: 5_000 + id,
    }
}

fn cause() -> Cause {
    Cause {
        kind: CauseKind::Budget,
        provider: Some("claude".to_owned()),
        scope: Some("global".to_owned()),
        owner: Some("global".to_owned()),
        limit: Some(100),
        used: Some(101),
        window: Some("daily until 2026-02-01T00:00Z".to_owned()),
        rule: Some("nearest".to_owned()),
        flow: Some(1),
        at: "2026-01-31T12:00:00.000Z".to_owned(),
        by: "controller".to_owned(),
        reason: None,
        held: true,
        freeze: None,
        face: crate::kernel::Face::Answered,
        policy: crate::settings::Policy::Cutoff,
        processes: crate::audit::Processes::Running,
    }
}

fn sum<'a>(sums: &'a [Sum], owner: &Owner) -> Option<&'a Sum> {
    sums.iter().find(|sum| sum.owner == *owner)
}

fn hint(refused: Result<SqliteLedger, LedgerError>) -> String {
    match refused {
        Err(LedgerError::Unusable { what, hint, .. }) => format!("{what} [{hint}]"),
        Err(other) => panic!("refused otherwise: {other}"),
        Ok(_) => panic!("taken"),
    }
}

#[test]
fn a_new_controller_finds_what_was_committed() {
    let mut fixture = Fixture::new();
    let (open, gone) = (attachment(3, "child", &["mid", "top"]), attachment(4, "gone", &[]));
    let orphan = reservation(8, &open);
    let most = Budget { tokens: i64::MAX.unsigned_abs(), window: Window::Monthly };
    let said = [
        stated(Owner::Global, "claude", Statement::Set(most)),
        stated(Owner::Global, "claude", Statement::Add(0)),
        stated(Owner::Agent("coder".to_owned()), "codex", Statement::Clear),
        stated(Owner::Launch(3), "codex", Statement::Add(7)),
    ];
    let since = Window::Monthly.start(hour(HOUR));
    let warned = |percent| Warned { window: Window::Monthly, since, percent };
    fixture.commit(&[
        Entry::Attach(open.clone()),
        Entry::Attach(gone.clone()),
        Entry::Detach { attachment: 4, at: 9 },
        Entry::Reserve(orphan.clone()),
        Entry::Progress { exchange: 8, seen: Tokens { input: 40, ..Tokens::default() } },
        Entry::Progress {
            exchange: 8,
            seen: Tokens { input: 10, cache_read: 30, output: 600, ..Tokens::default() },
        },
        Entry::Verdict(Verdict { attachment: 3, cause: Some(cause()) }),
        Entry::State(said[0].clone()),
        Entry::State(said[1].clone()),
        Entry::State(said[2].clone()),
        Entry::State(said[3].clone()),
        Entry::Warned { owner: Owner::Global, provider: "claude".to_owned(), warned: warned(50) },
        Entry::Warned { owner: Owner::Global, provider: "claude".to_owned(), warned: warned(80) },
        Entry::Reached(hour("2026-01-31T13")),
        Entry::Reached(hour(HOUR)),
    ]);
    let snapshot = fixture.reopened().ledger.load().unwrap();
    assert_eq!(snapshot.attachments, [(open, Some(cause()))]);
    assert_eq!(snapshot.orphans, [(orphan, Tokens { input: 40, output: 600, ..Tokens::default() })]);
    assert_eq!(snapshot.stated, said);
    assert_eq!(snapshot.warned, [(Owner::Global, "claude".to_owned(), warned(80))], "the last one");
    assert_eq!(snapshot.reached, Some(hour("2026-01-31T13")), "it never goes back");
    assert_eq!((snapshot.last_exchange, snapshot.last_attachment, snapshot.last_generation), (8, 4, 7));
    assert_eq!((snapshot.sums, snapshot.own), (vec![], vec![]));
}

#[test]
fn opening_twice_migrates_once() {
    let fixture = Fixture::new().reopened();
    let steps: i64 = fixture
        .ledger
        .connection
        .query_row("SELECT count(*) FROM refinery_schema_history", [], |row| row.get(0))
        .unwrap();
    let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations")).unwrap();
    assert_eq!(steps, i64::try_from(files.count()).unwrap());
}

/// A ledger as an earlier version left it, with these rows.
fn left_by(version: i32, rows: &str) -> Fixture {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(FILE);
    open::older(&path, version).execute_batch(rows).unwrap();
    Fixture { ledger: SqliteLedger::open(&path).unwrap(), dir }
}

const OLD_BOTTLE: &str = "INSERT INTO bottles (id, name, ancestors_json, cgroup, cgroup_id, owns_cgroup, slot, \
    generation, policy, launch_budget_json, attached_at_ms) VALUES (1, 'old', '[]', '/c', 7, 0, 1, 1, 'cutoff', '[]', 0);";

#[test]
fn what_was_attached_before_there_were_modes_reaches_everything() {
    let snapshot = left_by(1, OLD_BOTTLE).ledger.load().unwrap();
    assert_eq!(snapshot.attachments[0].0.egress, crate::settings::Egress::Open);
}

#[test]
fn what_was_used_and_added_before_there_were_windows_counts_in_them() {
    let exchange = |id: i64, ended: &str| {
        format!(
            "INSERT INTO exchanges (id, attachment_id, bottle, ancestors_json, provider, endpoint, reserved_tokens, \
             window_key, started_at_ms, input_tokens, cache_write_tokens, cache_read_tokens, output_tokens, \
             reasoning_tokens, provenance, ending, ended_at_ms) \
             VALUES ({id}, 1, 'old', '[]', 'claude', '/', 9, 'total', 0, 10, 2, 3, 100, 1, 'reported', 'completed', \
             unixepoch('{ended}') * 1000);"
        )
    };
    let rows = [
        OLD_BOTTLE.to_owned(),
        exchange(1, "2026-01-30 23:59:59"),
        exchange(2, "2026-01-31 12:00:00"),
        exchange(3, "2026-01-31 12:59:59"),
        "INSERT INTO budgets VALUES (1, 'global', '', 'claude', 70, unixepoch('2026-01-31 12:30:00') * 1000);".into(),
    ];
    let snapshot = left_by(2, &rows.concat()).ledger.load().unwrap();
    assert_eq!(snapshot.reached, Some(hour(HOUR)));
    assert_eq!(snapshot.stated.len(), 1);
    assert_eq!((snapshot.stated[0].statement, snapshot.stated[0].hour), (Statement::Add(70), hour(HOUR)));
    assert_eq!(sum(&snapshot.sums, &Owner::Global).unwrap().flows, 3);
    let global: Vec<_> = snapshot.hours.iter().filter(|sum| sum.owner == Owner::Global).collect();
    let shown: Vec<_> = global.iter().map(|sum| (sum.hour.to_string(), sum.tokens.output)).collect();
    assert_eq!(shown, [("2026-01-30T23".to_owned(), 100), (HOUR.to_owned(), 200)]);
}

#[test]
fn sums_are_of_the_hour_that_was_said_and_not_of_the_clock() {
    let mut fixture = Fixture::new();
    let bottle = attachment(1, "b", &[]);
    fixture.commit(&[Entry::Attach(bottle.clone())]);
    for (id, at) in (1..).zip(["2025-11-30T23", "2026-01-30T23", HOUR, HOUR]) {
        let settled = Settlement { hour: hour(at), ..settlement(id, 100, Provenance::Reported) };
        fixture.commit(&[Entry::Reserve(reservation(id, &bottle)), Entry::Settle(settled)]);
    }
    let snapshot = fixture.reopened().ledger.load().unwrap();
    let global: Vec<_> = snapshot.hours.iter().filter(|sum| sum.owner == Owner::Global).collect();
    let shown: Vec<_> = global.iter().map(|sum| (sum.hour.to_string(), sum.tokens.output)).collect();
    assert_eq!(shown, [("2026-01-30T23".to_owned(), 100), (HOUR.to_owned(), 200)], "the present month alone");
    assert_eq!(sum(&snapshot.sums, &Owner::Global).unwrap().tokens.output, 400, "the total is all of it");
}

#[test]
fn each_account_counts_an_exchange_once() {
    let mut fixture = Fixture::new();
    // an ancestor named twice, and the bottle named as its own ancestor, count once all the same
    let child = attachment(1, "child", &["mid", "top", "mid", "child"]);
    let mid = attachment(2, "mid", &["top"]);
    let mut host = reservation(3, &mid);
    (host.attachment, host.bottle, host.agent, host.ancestors) = (None, "host".to_owned(), None, vec![]);
    fixture.commit(&[
        Entry::Attach(child.clone()),
        Entry::Attach(mid.clone()),
        Entry::Reserve(reservation(1, &child)),
        Entry::Reserve(reservation(2, &mid)),
        Entry::Reserve(host),
        Entry::Settle(settlement(1, 100, Provenance::Reported)),
        Entry::Settle(settlement(2, 200, Provenance::Estimated)),
        Entry::Settle(settlement(3, 300, Provenance::Partial)),
    ]);
    let snapshot = fixture.ledger.load().unwrap();
    let bottle = |name: &str| Owner::Bottle(name.to_owned());
    // owner, flows, output, estimated; the other classes are 15 an exchange
    for (owner, flows, output, estimated) in [
        (bottle("child"), 1, 100, 0),
        (bottle("mid"), 2, 300, 215),
        (bottle("top"), 2, 300, 215),
        (bottle("host"), 1, 300, 315),
        (Owner::Launch(1), 1, 100, 0),
        (Owner::Launch(2), 1, 200, 215),
        (Owner::Agent("coder".to_owned()), 2, 300, 215),
        (Owner::Global, 3, 600, 530),
    ] {
        let sum = sum(&snapshot.sums, &owner).unwrap();
        let found = (sum.flows, sum.tokens.output, sum.estimated.total());
        assert_eq!(found, (flows, output, estimated), "{owner:?}");
        assert_eq!(sum.tokens.total(), output + flows * 15, "{owner:?}");
    }
    assert_eq!(snapshot.sums.len(), 8);
    let own: Vec<_> = snapshot.own.iter().map(|sum| (sum.owner.clone(), sum.tokens.output)).collect();
    assert_eq!(own, [(bottle("child"), 100), (bottle("host"), 300), (bottle("mid"), 200)]);
    assert_eq!(snapshot.orphans, []);
}

#[test]
fn a_second_settlement_changes_nothing() {
    let mut fixture = Fixture::new();
    let bottle = attachment(1, "b", &[]);
    fixture.commit(&[
        Entry::Attach(bottle.clone()),
        Entry::Reserve(reservation(1, &bottle)),
        Entry::Settle(settlement(1, 100, Provenance::Reported)),
    ]);
    fixture.commit(&[Entry::Settle(settlement(1, 999, Provenance::Estimated))]);
    let snapshot = fixture.ledger.load().unwrap();
    assert_eq!(sum(&snapshot.sums, &Owner::Global).unwrap().tokens.output, 100);
}

#[test]
fn a_group_is_in_whole_or_not_at_all() {
    let mut fixture = Fixture::new();
    let bottle = attachment(1, "b", &[]);
    let cases = [
        (Entry::Settle(settlement(77, 1, Provenance::Reported)), "exchange 77 is not in the ledger"),
        (Entry::Detach { attachment: 9, at: 0 }, "attachment 9 is not in the ledger"),
        (Entry::Verdict(Verdict { attachment: 9, cause: None }), "attachment 9 is not in the ledger"),
        (Entry::Attach(attachment(1, "other", &[])), "UNIQUE constraint failed: bottles.id"),
        (Entry::Attach(attachment(2, "b", &[])), "UNIQUE constraint failed: bottles.name"),
        (Entry::Reserve(reservation(1, &attachment(9, "x", &[]))), "FOREIGN KEY constraint failed"),
    ];
    for (bad, words) in cases {
        let error = fixture.ledger.commit(&[Entry::Attach(bottle.clone()), bad]).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(fixture.ledger.load().unwrap(), Snapshot::default());
    }
}

#[test]
fn absurd_figures_neither_wrap_nor_stop_the_next_start() {
    let mut fixture = Fixture::new();
    let bottle = attachment(1, "b", &[]);
    fixture.commit(&[Entry::Attach(bottle.clone())]);
    for id in 1..=20 {
        let mut reserved = reservation(id, &bottle);
        reserved.reserved_tokens = u64::MAX;
        fixture.commit(&[
            Entry::Reserve(reserved),
            Entry::Settle(settlement(id, u64::MAX, Provenance::Reported)),
        ]);
    }
    let snapshot = fixture.ledger.load().unwrap();
    assert_eq!(sum(&snapshot.sums, &Owner::Global).unwrap().tokens.output, 20 << 42);
}

#[test]
fn usage_is_grouped_and_filtered() {
    let mut fixture = Fixture::new();
    let (a, b) = (attachment(1, "a", &[]), attachment(2, "b", &["a"]));
    let mut late = reservation(3, &b);
    late.started_at = 86_400_000;
    let mut open = reservation(4, &b);
    open.model = Some("only asked".to_owned());
    fixture.commit(&[
        Entry::Attach(a.clone()),
        Entry::Attach(b.clone()),
        Entry::Reserve(reservation(1, &a)),
        Entry::Reserve(reservation(2, &b)),
        Entry::Reserve(late),
        Entry::Reserve(open),
        Entry::Settle(settlement(1, 100, Provenance::Reported)),
        Entry::Settle(settlement(2, 200, Provenance::Partial)),
        Entry::Settle(settlement(3, 300, Provenance::Reported)),
    ]);
    let mut reader = fixture.ledger.reader().unwrap();
    let weights = Weights::default();

    let all = reader.usage(&UsageQuery::default(), &weights).unwrap();
    let shown: Vec<_> = all.iter().map(|row| (row.bottle.as_deref(), row.total, row.estimated)).collect();
    assert_eq!(shown, [(Some("a"), 115, 0), (Some("b"), 530, 215)]);
    assert_eq!(all[0].model.as_deref(), Some("answered"));
    assert_eq!(all[0].day, None);

    let by_day =
        reader.usage(&UsageQuery { by: Some(GroupBy::Day), ..UsageQuery::default() }, &weights).unwrap();
    let shown: Vec<_> =
        by_day.iter().map(|row| (row.day.as_deref(), row.bottle.as_deref(), row.flows)).collect();
    assert_eq!(shown, [(Some("1970-01-01"), None, 2), (Some("1970-01-02"), None, 1)]);

    for (query, flows) in [
        (UsageQuery { bottle: Some("b".to_owned()), ..UsageQuery::default() }, 2),
        (UsageQuery { agent: Some("nobody".to_owned()), ..UsageQuery::default() }, 0),
        (UsageQuery { provider: Some("claude".to_owned()), ..UsageQuery::default() }, 3),
        (UsageQuery { since: Some(86_400_000), ..UsageQuery::default() }, 1),
    ] {
        let found: u64 = reader.usage(&query, &weights).unwrap().iter().map(|row| row.flows).sum();
        assert_eq!(found, flows, "{query:?}");
    }

    let flows = reader.flows(&UsageQuery::default(), &weights).unwrap();
    let ids: Vec<_> = flows.iter().map(|flow| (flow.id, flow.status.as_str(), flow.usage.total)).collect();
    assert_eq!(ids, [(1, "completed", 115), (2, "completed", 215), (4, "open", 0), (3, "completed", 315)]);
    assert_eq!(flows[2].usage.model.as_deref(), Some("only asked"));
    assert_eq!((flows[1].usage.estimated, flows[1].provenance.as_deref()), (215, Some("partial")));
    assert_eq!((flows[0].started.as_str(), flows[0].reserved), ("1970-01-01T00:00:02.001Z", 900));
}

#[test]
fn what_is_rolled_up_counts_as_before_and_gives_no_id_again() {
    let mut fixture = Fixture::new();
    let child = attachment(3, "child", &["top"]);
    fixture.commit(&[Entry::Attach(child.clone())]);
    for id in 1..=6 {
        let begun = Reservation { started_at: 1_000 * id, ..reservation(id, &child) };
        fixture.commit(&[Entry::Reserve(begun)]);
        let provenance = if id == 2 { Provenance::Partial } else { Provenance::Reported };
        if id != 3 {
            fixture.commit(&[Entry::Settle(settlement(id, 100 + id.unsigned_abs(), provenance))]);
        }
    }
    let mut reader = fixture.ledger.reader().unwrap();
    let weights = Weights::default();
    let by_model = UsageQuery { by: Some(GroupBy::Model), ..UsageQuery::default() };
    let before = (fixture.ledger.load().unwrap(), reader.usage(&UsageQuery::default(), &weights).unwrap());
    let models = reader.usage(&by_model, &weights).unwrap();
    assert_eq!(reader.oldest_settled().unwrap(), Some(1_000));
    for (most, end) in [(2, 4_000), (4, 6_000), (5, 7_000), (9, 7_000), (0, 1_001)] {
        assert_eq!(reader.beginning_of(&(0..7_000), most).unwrap(), 0..end, "{most}");
    }

    fixture.commit(&[rolled_up(0..2_001)]);
    fixture.commit(&[rolled_up(2_001..7_000)]);
    let after = (fixture.ledger.load().unwrap(), reader.usage(&UsageQuery::default(), &weights).unwrap());
    assert_eq!(after, before);
    assert_eq!(reader.usage(&by_model, &weights).unwrap(), models);
    let kept: Vec<i64> =
        reader.flows(&UsageQuery::default(), &weights).unwrap().iter().map(|flow| flow.id).collect();
    assert_eq!(kept, [3], "what has not ended is kept");
    assert_eq!(reader.oldest_settled().unwrap(), None);
    let deleted = fixture.ledger.connection.execute("DELETE FROM exchanges", []).unwrap_err().to_string();
    assert_eq!(deleted, "an exchange under way is not rolled up");

    // what ends late is rolled up late
    fixture.commit(&[Entry::Settle(settlement(3, 103, Provenance::Reported)), rolled_up(0..7_000)]);
    let snapshot = fixture.reopened().ledger.load().unwrap();
    assert_eq!((snapshot.last_exchange, snapshot.orphans.len()), (6, 0));
    let global = sum(&snapshot.sums, &Owner::Global).unwrap();
    assert_eq!((global.flows, global.tokens.output), (6, 621));
}

fn rolled_up(time: std::ops::Range<i64>) -> Entry {
    Entry::RollUp { time, row: None }
}

/// Settled exchanges of the second day since 1970, evenly over it.
fn fill_a_day(fixture: &mut Fixture, exchanges: i64) {
    let bottle = attachment(1, "b", &[]);
    let begun = Reservation { started_at: DAY_MS, ..reservation(1, &bottle) };
    fixture.commit(&[Entry::Attach(bottle), Entry::Reserve(begun)]);
    fixture.commit(&[Entry::Settle(settlement(1, 5, Provenance::Reported))]);
    let connection = &fixture.ledger.connection;
    let columns: String = connection
        .query_row(
            "SELECT group_concat(name, ', ') FROM pragma_table_info('exchanges') \
             WHERE name NOT IN ('id', 'started_at_ms')",
            [],
            |row| row.get(0),
        )
        .unwrap();
    let copy = format!(
        "WITH RECURSIVE number (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM number WHERE n < {exchanges}) \
         INSERT INTO exchanges (id, started_at_ms, {columns}) \
         SELECT n, {DAY_MS} + n * {DAY_MS} / ({exchanges} + 1), {columns} FROM number, exchanges WHERE id = 1"
    );
    connection.execute(&copy, []).unwrap();
}

/// In the long rounds a million of them.
#[test]
fn a_large_day_is_rolled_up_in_parts_that_are_soon_done() {
    let exchanges = if std::env::var_os("ENFORCER_TEST_FULL").is_some() { 1_000_000 } else { 25_000 };
    let most = 10_000;
    let mut fixture = Fixture::new();
    fill_a_day(&mut fixture, exchanges);
    let mut reader = fixture.ledger.reader().unwrap();
    let (query, weights, day) = (UsageQuery::default(), Weights::default(), DAY_MS..2 * DAY_MS);
    let before = reader.usage(&query, &weights).unwrap();
    let (mut left, mut slowest, mut parts) = (exchanges, Duration::ZERO, 0);
    while left > 0 {
        let part = reader.beginning_of(&day, most).unwrap();
        let began = std::time::Instant::now();
        fixture.commit(&[rolled_up(part.clone())]);
        slowest = slowest.max(began.elapsed());
        let count = "SELECT count(*) FROM exchanges";
        let now_left = fixture.ledger.connection.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap();
        let rolled = left - now_left;
        assert!((1..=i64::from(most)).contains(&rolled), "{rolled} in one transaction");
        assert_eq!(part.end == day.end, now_left == 0, "the last part ends with the day");
        (left, parts) = (now_left, parts + 1);
    }
    assert_eq!(reader.usage(&query, &weights).unwrap(), before);
    let days = "SELECT count(*) FROM rolled WHERE day_ms <> ?1";
    let elsewhere = fixture.ledger.connection.query_row(days, [DAY_MS], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(elsewhere, 0, "each part stands for its day");
    println!("{exchanges} exchanges in {parts} parts, the slowest {slowest:?}");
}

#[test]
fn the_audit_is_append_only() {
    let mut fixture = Fixture::new();
    let action = |detail: &str| {
        Entry::Action(Action {
            at: 0,
            bottle: Some("b".to_owned()),
            action: ActionKind::Cut,
            cause: Some(cause()),
            by: "uid:0".to_owned(),
            done: true,
            detail: Some(detail.to_owned()),
            took_us: Some(42),
        })
    };
    fixture.commit(&[action("one"), action("two"), action("three")]);
    let connection = &fixture.ledger.connection;
    for change in [
        "UPDATE actions SET by_whom = 'nobody'",
        "DELETE FROM actions",
        "INSERT OR REPLACE INTO actions (id, at_ms, action, by_whom, outcome) VALUES (1, 0, 'cut', 'x', 'done')",
    ] {
        let refused = connection.execute(change, []).unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{change}: {refused}");
    }
    let rows = fixture.ledger.reader().unwrap().audit(1, 1).unwrap();
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.id, row.detail.as_deref(), row.outcome.as_str()), (2, Some("two"), "done"));
    assert_eq!((row.action.as_str(), row.took_us, &row.cause), ("cut", Some(42), &Some(cause())));
}

#[test]
fn a_reader_cannot_write() {
    let fixture = Fixture::new();
    let connection = open::readable(&fixture.path()).unwrap();
    let refused = connection.execute("DELETE FROM exchanges", []).unwrap_err();
    assert!(refused.to_string().contains("readonly"), "{refused}");
}

#[test]
fn a_damaged_file_is_refused_and_left_as_it_is() {
    for (what, damage) in [
        ("another kind of file", (|bytes: &mut Vec<u8>| bytes[..16].fill(b'x')) as fn(&mut Vec<u8>)),
        ("cut in the middle", |bytes| bytes.truncate(bytes.len() / 2)),
        ("a page of noise", |bytes| bytes[4096..8192].fill(0xa5)),
    ] {
        let fixture = Fixture::new();
        let path = fixture.path();
        let Fixture { dir, ledger } = fixture;
        drop(ledger);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let words = hint(SqliteLedger::open(&path));
        assert!(words.contains("damaged") && words.contains("backup"), "{what}: {words}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{what}");
        drop(dir);
    }
}

#[test]
fn a_newer_or_another_schema_is_refused() {
    for (change, words) in [
        (
            "INSERT INTO refinery_schema_history VALUES (9, 'later', '2026-01-31T12:00:00Z', '5')",
            "this version does not know",
        ),
        ("UPDATE refinery_schema_history SET checksum = '5'", "is not this version's"),
    ] {
        let fixture = Fixture::new();
        fixture.ledger.connection.execute(change, []).unwrap();
        let path = fixture.path();
        let refused = hint(SqliteLedger::open(&path));
        assert!(refused.contains(words), "{refused}");
    }
}

#[test]
fn a_file_that_is_not_ours_alone_is_refused() {
    let chmod = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
    type Change<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, &str, Change<'_>); 5] = [
        ("mode", "its mode is 0640, not 0600", &chmod),
        ("mode of the log", "its mode is 0640, not 0600", &|path| {
            fs::write(companion(path, "-wal"), "").unwrap();
            chmod(&companion(path, "-wal"));
        }),
        ("link", "it is a link or no file", &|path| {
            fs::rename(path, companion(path, ".real")).unwrap();
            symlink(companion(path, ".real"), path).unwrap();
        }),
        ("link in place of the log", "it is a link or no file", &|path| {
            symlink("/nowhere", companion(path, "-shm")).unwrap();
        }),
        ("hard link", "a second name", &|path| fs::hard_link(path, companion(path, ".other")).unwrap()),
    ];
    for (what, words, change) in cases {
        let Fixture { dir, ledger } = Fixture::new();
        drop(ledger);
        let path = dir.path().join(FILE);
        change(&path);
        let refused = hint(SqliteLedger::open(&path));
        assert!(refused.contains(words), "{what}: {refused}");
    }
}

#[test]
fn a_file_that_vanished_from_beside_its_log_is_not_made_anew() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(FILE);
    fs::write(companion(&path, "-wal"), "what was not checkpointed").unwrap();
    let refused = hint(SqliteLedger::open(&path));
    assert!(refused.contains("is gone"), "{refused}");
    assert!(!path.exists());
}

#[test]
fn a_held_lock_is_an_error_and_not_a_success() {
    let mut fixture = Fixture::new();
    fixture.ledger.connection.busy_timeout(std::time::Duration::from_millis(50)).unwrap();
    let other = Connection::open(fixture.path()).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let error = fixture.ledger.commit(&[Entry::Attach(attachment(1, "b", &[]))]).unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
    other.execute_batch("ROLLBACK").unwrap();
    fixture.commit(&[Entry::Attach(attachment(1, "b", &[]))]);
}

fn companion(path: &Path, suffix: &str) -> PathBuf {
    path.with_file_name(format!("{FILE}{suffix}"))
}
