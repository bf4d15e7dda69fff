//! Reads everything that a new controller must know. Settles nothing and judges nothing.
use std::collections::{BTreeMap, BTreeSet};

use meter_proxy::tokens::Tokens;
use rusqlite::{Connection, Row};

use super::{count, json, optional_json, rollup, unreadable};
use crate::audit::Cause;
use crate::bottle::engine::Container;
use crate::budget::window::{Hour, Window};
use crate::budget::{Budget, Statement, Warned};
use crate::ledger::{Attachment, HourSum, Owner, Reservation, Snapshot, Stated, Sum};
use crate::settings::{Egress, Policy};

pub(super) fn snapshot(connection: &Connection) -> rusqlite::Result<Snapshot> {
    let sums = sums(connection)?;
    let reached = reached(connection)?;
    let (last_attachment, last_generation) = connection.query_row(
        "SELECT coalesce(max(id), 0), coalesce(max(generation), 0) FROM bottles",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let last_exchange = rollup::last_exchange(connection)?;
    Ok(Snapshot {
        attachments: attachments(connection)?,
        orphans: orphans(connection)?,
        sums: sums.accounts.into_values().collect(),
        own: sums.own.into_values().collect(),
        hours: reached.map(|hour| hours(connection, hour)).transpose()?.unwrap_or_default(),
        reached,
        stated: stated(connection)?,
        warned: warned(connection)?,
        last_exchange,
        last_attachment,
        last_generation,
    })
}

fn attachments(connection: &Connection) -> rusqlite::Result<Vec<(Attachment, Option<Cause>)>> {
    let mut select = connection.prepare("SELECT * FROM bottles WHERE detached_at_ms IS NULL ORDER BY id")?;
    select.query_map([], |row| Ok((attachment(row)?, optional_json(row, "cause_json")?)))?.collect()
}

fn attachment(row: &Row<'_>) -> rusqlite::Result<Attachment> {
    let cgroup_id: i64 = row.get("cgroup_id")?;
    Ok(Attachment {
        id: row.get("id")?,
        name: row.get("name")?,
        agent: row.get("agent")?,
        parent: row.get("parent")?,
        ancestors: json(row, "ancestors_json")?,
        cgroup: row.get("cgroup")?,
        cgroup_id: cgroup_id.cast_unsigned(),
        owns_cgroup: row.get("owns_cgroup")?,
        container: row.get::<_, Option<String>>("container")?.as_deref().and_then(Container::read),
        slot: row.get("slot")?,
        generation: row.get("generation")?,
        policy: policy(row)?,
        egress: egress(row)?,
        launch_budget: json(row, "launch_budget_json")?,
        attached_at: row.get("attached_at_ms")?,
    })
}

/// The mode; a word that this version does not know is taken for the most closed one.
fn egress(row: &Row<'_>) -> rusqlite::Result<Egress> {
    let word: String = row.get("egress")?;
    Ok(Egress::from_word(&word).unwrap_or(Egress::Metered))
}

/// The policy; a word that this version does not know does nothing that cannot be undone.
fn policy(row: &Row<'_>) -> rusqlite::Result<Policy> {
    let word: String = row.get("policy")?;
    Ok(Policy::from_word(&word).unwrap_or(Policy::Freeze))
}

fn orphans(connection: &Connection) -> rusqlite::Result<Vec<(Reservation, Tokens)>> {
    let mut select = connection.prepare("SELECT * FROM exchanges WHERE ended_at_ms IS NULL ORDER BY id")?;
    select.query_map([], |row| Ok((reservation(row)?, seen(row)?)))?.collect()
}

/// What was seen of an exchange under way, its input in one.
fn seen(row: &Row<'_>) -> rusqlite::Result<Tokens> {
    let (input, output) = (count(row, "seen_input_tokens")?, count(row, "seen_output_tokens")?);
    Ok(Tokens { input, output, ..Tokens::default() })
}

fn reservation(row: &Row<'_>) -> rusqlite::Result<Reservation> {
    Ok(Reservation {
        id: row.get("id")?,
        attachment: row.get("attachment_id")?,
        bottle: row.get("bottle")?,
        agent: row.get("agent")?,
        ancestors: json(row, "ancestors_json")?,
        provider: row.get("provider")?,
        endpoint: row.get("endpoint")?,
        model: row.get("model_asked")?,
        reserved_tokens: count(row, "reserved_tokens")?,
        hour: hour(row)?,
        started_at: row.get("started_at_ms")?,
    })
}

/// Sums by owner and provider.
#[derive(Default)]
struct Sums {
    accounts: BTreeMap<(Owner, String), Sum>,
    own: BTreeMap<(Owner, String), Sum>,
}

/// SQL sums the hours of the same whereabouts, and each such row is then added to every account it counts in.
fn sums(connection: &Connection) -> rusqlite::Result<Sums> {
    let mut select = connection.prepare(
        "SELECT attachment_id, bottle, agent, ancestors_json, provider, sum(flows) AS flows, \
           sum(input_tokens) AS input, sum(cache_write_tokens) AS cache_write, \
           sum(cache_read_tokens) AS cache_read, sum(output_tokens) AS output, \
           sum(reasoning_tokens) AS reasoning, sum(estimated_input_tokens) AS estimated_input, \
           sum(estimated_cache_write_tokens) AS estimated_cache_write, \
           sum(estimated_cache_read_tokens) AS estimated_cache_read, \
           sum(estimated_output_tokens) AS estimated_output \
         FROM sums GROUP BY attachment_id, bottle, agent, ancestors_json, provider",
    )?;
    let mut rows = select.query([])?;
    let mut sums = Sums::default();
    while let Some(row) = rows.next()? {
        let bottle: String = row.get("bottle")?;
        let sum = Sum {
            owner: Owner::Bottle(bottle.clone()),
            provider: row.get("provider")?,
            tokens: tokens(row)?,
            estimated: estimated(row)?,
            flows: count(row, "flows")?,
        };
        for owner in owners(row, bottle)? {
            add(&mut sums.accounts, owner, &sum);
        }
        add(&mut sums.own, sum.owner.clone(), &sum);
    }
    Ok(sums)
}

/// The latest hour that windows have reached. A settlement cannot be of a later one, but for one of a time before this
/// was kept.
fn reached(connection: &Connection) -> rusqlite::Result<Option<Hour>> {
    let latest: Option<String> = connection.query_row(
        "SELECT max(window_key) FROM (SELECT window_key FROM reached UNION ALL SELECT max(window_key) FROM sums)",
        [],
        |row| row.get(0),
    )?;
    latest.map(|text| parsed("window_key", &text)).transpose()
}

/// Settled figures of the hours that count in a window that has not ended: the longest are a month and a week, and the
/// week may have begun in the month before.
fn hours(connection: &Connection, now: Hour) -> rusqlite::Result<Vec<HourSum>> {
    let since = Window::Monthly.start(now).min(Window::Weekly.start(now)).to_string();
    let mut select = connection.prepare(
        "SELECT attachment_id, bottle, agent, ancestors_json, provider, window_key, input_tokens AS input, \
           cache_write_tokens AS cache_write, cache_read_tokens AS cache_read, output_tokens AS output, \
           reasoning_tokens AS reasoning \
         FROM sums WHERE window_key >= ?1",
    )?;
    let mut rows = select.query([since])?;
    let mut hours = Vec::new();
    while let Some(row) = rows.next()? {
        let (provider, hour, tokens): (String, _, _) = (row.get("provider")?, hour(row)?, tokens(row)?);
        let owners = owners(row, row.get("bottle")?)?;
        hours.extend(owners.into_iter().map(|owner| HourSum {
            owner,
            provider: provider.clone(),
            hour,
            tokens,
        }));
    }
    Ok(hours)
}

fn hour(row: &Row<'_>) -> rusqlite::Result<Hour> {
    let text: String = row.get("window_key")?;
    parsed("window_key", &text)
}

fn parsed(column: &str, text: &str) -> rusqlite::Result<Hour> {
    text.parse().map_err(|error| unreadable(column, format!("{error}")))
}

/// Every account an exchange counts in, each once.
fn owners(row: &Row<'_>, bottle: String) -> rusqlite::Result<BTreeSet<Owner>> {
    let ancestors: Vec<String> = json(row, "ancestors_json")?;
    let attachment: i64 = row.get("attachment_id")?;
    let agent: String = row.get("agent")?;
    let mut owners = BTreeSet::from([Owner::Global, Owner::Bottle(bottle)]);
    owners.extend(ancestors.into_iter().map(Owner::Bottle));
    owners.extend((attachment != 0).then_some(Owner::Launch(attachment)));
    owners.extend((!agent.is_empty()).then_some(Owner::Agent(agent)));
    Ok(owners)
}

fn add(accounts: &mut BTreeMap<(Owner, String), Sum>, owner: Owner, sum: &Sum) {
    let account = accounts.entry((owner.clone(), sum.provider.clone())).or_insert_with(|| Sum {
        owner,
        provider: sum.provider.clone(),
        tokens: Tokens::default(),
        estimated: Tokens::default(),
        flows: 0,
    });
    account.tokens = account.tokens.saturating_add(&sum.tokens);
    account.estimated = account.estimated.saturating_add(&sum.estimated);
    account.flows = account.flows.saturating_add(sum.flows);
}

/// The columns named as the classes are.
pub(super) fn tokens(row: &Row<'_>) -> rusqlite::Result<Tokens> {
    Ok(Tokens {
        input: count(row, "input")?,
        cache_write: count(row, "cache_write")?,
        cache_read: count(row, "cache_read")?,
        output: count(row, "output")?,
        reasoning: count(row, "reasoning")?,
        ..Tokens::default()
    })
}

/// The columns `estimated_input` and so on.
pub(super) fn estimated(row: &Row<'_>) -> rusqlite::Result<Tokens> {
    Ok(Tokens {
        input: count(row, "estimated_input")?,
        cache_write: count(row, "estimated_cache_write")?,
        cache_read: count(row, "estimated_cache_read")?,
        output: count(row, "estimated_output")?,
        ..Tokens::default()
    })
}

fn stated(connection: &Connection) -> rusqlite::Result<Vec<Stated>> {
    let mut select = connection.prepare("SELECT * FROM statements ORDER BY id")?;
    select.query_map([], statement)?.collect()
}

fn statement(row: &Row<'_>) -> rusqlite::Result<Stated> {
    let word: String = row.get("statement")?;
    let tokens = count(row, "tokens")?;
    Ok(Stated {
        owner: owner(row)?,
        provider: row.get("provider")?,
        statement: match word.as_str() {
            "set" => Statement::Set(Budget { tokens, window: window(row)? }),
            "add" => Statement::Add(tokens),
            "clear" => Statement::Clear,
            _ => return Err(unreadable("statement", format!("{word:?}"))),
        },
        hour: hour(row)?,
        at: row.get("at_ms")?,
    })
}

fn warned(connection: &Connection) -> rusqlite::Result<Vec<(Owner, String, Warned)>> {
    let mut select = connection.prepare("SELECT * FROM warnings")?;
    let warning = |row: &Row<'_>| {
        let warned = Warned { window: window(row)?, since: hour(row)?, percent: row.get("percent")? };
        Ok((owner(row)?, row.get("provider")?, warned))
    };
    select.query_map([], warning)?.collect()
}

fn window(row: &Row<'_>) -> rusqlite::Result<Window> {
    let word: String = row.get("window")?;
    Window::from_word(&word).ok_or_else(|| unreadable("window", format!("{word:?}")))
}

fn owner(row: &Row<'_>) -> rusqlite::Result<Owner> {
    let kind: String = row.get("owner_kind")?;
    let owner: String = row.get("owner")?;
    match kind.as_str() {
        "launch" => owner.parse().map(Owner::Launch).map_err(|_| unreadable("owner", format!("{owner:?}"))),
        "agent" => Ok(Owner::Agent(owner)),
        "bottle" => Ok(Owner::Bottle(owner)),
        "global" => Ok(Owner::Global),
        _ => Err(unreadable("owner_kind", format!("{kind:?}"))),
    }
}
