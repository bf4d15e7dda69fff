//! The books: how many settlements a second become durable in groups, and how long a start reads what they left.
use std::time::{Duration, Instant};

use enforcer::budget::window::Hour;
use enforcer::ledger::sqlite::{FILE, SqliteLedger};
use enforcer::ledger::{Attachment, Entry, Ledger as _, Reservation, Settlement};
use enforcer::settings::{Egress, Policy};
use meter_proxy::tokens::{Ending, Provenance};

use crate::figures::nanoseconds;
use crate::tokens;

/// Exchanges in one transaction.
const GROUP: usize = 500;
const ATTACHMENTS: usize = 20;
/// Hours that the exchanges are spread over: a month.
const HOURS: usize = 30 * 24;
/// A day of January 2026, and the hours before it.
const NOW_MS: i64 = 1_769_860_800_000;

/// For each of these numbers of exchanges: the rate, and what a start reads.
pub fn settle_and_load(histories: &[usize]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let mut ledger = SqliteLedger::open(&path).unwrap();
    let attachments: Vec<Attachment> = (0..ATTACHMENTS).map(attachment).collect();
    ledger.commit(&attachments.iter().cloned().map(Entry::Attach).collect::<Vec<_>>()).unwrap();
    let mut done = 0;
    for &history in histories {
        let (from, start) = (done, Instant::now());
        while done < history {
            let group = done..(done + GROUP).min(history);
            let entries: Vec<Entry> = group
                .clone()
                .flat_map(|nth| exchange(nth, &attachments[nth % ATTACHMENTS], history))
                .collect();
            ledger.commit(&entries).unwrap();
            done = group.end;
        }
        let rate = (done - from) as u128 * 1_000 / start.elapsed().as_millis().max(1);
        let load = nanoseconds(|| drop(ledger.load().unwrap()));
        println!(
            "{history} exchanges in {HOURS} hours: reserved and settled {rate} a second, {GROUP} a commit; a start reads \
             them in {:?}",
            Duration::from_nanos(load)
        );
    }
}

fn attachment(number: usize) -> Attachment {
    Attachment {
        id: i64::try_from(number).unwrap() + 1,
        name: format!("bottle-{number}"),
        agent: None,
        parent: Some("base".into()),
        ancestors: vec!["base".into()],
        cgroup: format!("/sys/fs/cgroup/bench/{number}"),
        cgroup_id: 1,
        owns_cgroup: false,
        slot: 1,
        generation: 1,
        policy: Policy::Cutoff,
        container: None,
        egress: Egress::Open,
        launch_budget: Vec::new(),
        attached_at: 0,
    }
}

/// The reservation and the settlement of the `nth` exchange of so many.
fn exchange(nth: usize, of: &Attachment, all: usize) -> [Entry; 2] {
    let id = i64::try_from(nth).unwrap() + 1;
    let ago = i64::try_from(HOURS - 1 - nth * HOURS / all).unwrap();
    let at = NOW_MS - ago * 3_600_000;
    let reservation = Reservation {
        id,
        attachment: Some(of.id),
        bottle: of.name.clone(),
        agent: None,
        ancestors: of.ancestors.clone(),
        provider: "claude".into(),
        endpoint: "/v1/messages".into(),
        model: Some("claude-model".into()),
        reserved_tokens: 100,
        hour: Hour::of(at),
        started_at: at,
    };
    let settlement = Settlement {
        id,
        tokens: tokens(nth),
        provenance: Provenance::Reported,
        ending: Ending::Completed,
        http_status: Some(200),
        model: Some("claude-model".into()),
        raw: None,
        hour: Hour::of(at),
        ended_at: at,
    };
    [Entry::Reserve(reservation), Entry::Settle(settlement)]
}
