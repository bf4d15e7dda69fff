//! Writes one entry inside the transaction of its group. Reads nothing but whether a row is there.
use std::ops::Range;

use meter_proxy::tokens::Tokens;
use rusqlite::{Transaction, params};

use super::rollup;
use crate::audit::Action;
use crate::bottle::engine::Container;
use crate::budget::window::Hour;
use crate::budget::{Statement, Warned};
use crate::ledger::{Attachment, Entry, Owner, Reservation, Settlement, Stated, Verdict};

/// A figure beyond this is recorded as this: a thousand times what any provider can bill in one exchange, and
/// small enough that SQL sums of two million such rows do not overflow.
const MAX_FIGURE_TOKENS: u64 = 1 << 42;

/// Why an entry cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("a value cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{what} {id} is not in the ledger")]
    Unknown { what: &'static str, id: i64 },
}

pub(super) fn entry(transaction: &Transaction<'_>, entry: &Entry) -> Result<(), Refusal> {
    match entry {
        Entry::Attach(attachment) => attach(transaction, attachment),
        Entry::Detach { attachment, at } => detach(transaction, *attachment, *at),
        Entry::Reserve(reservation) => reserve(transaction, reservation),
        Entry::Progress { exchange, seen } => progress(transaction, *exchange, seen),
        Entry::Settle(settlement) => settle(transaction, settlement),
        Entry::State(stated) => state(transaction, stated),
        Entry::Reached(hour) => reach(transaction, *hour),
        Entry::Warned { owner, provider, warned } => record_warning(transaction, owner, provider, warned),
        Entry::Verdict(verdict) => record_verdict(transaction, verdict),
        Entry::Action(action) => record_action(transaction, action),
        Entry::RollUp { time, row } => roll_up(transaction, time, row.as_ref()),
    }
}

fn attach(transaction: &Transaction<'_>, attachment: &Attachment) -> Result<(), Refusal> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO bottles (id, name, agent, parent, ancestors_json, cgroup, cgroup_id, owns_cgroup, slot, \
         generation, policy, egress, launch_budget_json, attached_at_ms, container) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )?;
    insert.execute(params![
        attachment.id,
        attachment.name,
        attachment.agent,
        attachment.parent,
        serde_json::to_string(&attachment.ancestors)?,
        attachment.cgroup,
        attachment.cgroup_id.cast_signed(),
        attachment.owns_cgroup,
        attachment.slot,
        attachment.generation,
        attachment.policy.as_str(),
        attachment.egress.as_str(),
        serde_json::to_string(&attachment.launch_budget)?,
        attachment.attached_at,
        attachment.container.as_ref().map(Container::written),
    ])?;
    Ok(())
}

fn detach(transaction: &Transaction<'_>, attachment: i64, at_ms: i64) -> Result<(), Refusal> {
    let mut update = transaction
        .prepare_cached("UPDATE bottles SET detached_at_ms = coalesce(detached_at_ms, ?2) WHERE id = ?1")?;
    must_exist(update.execute(params![attachment, at_ms])?, "attachment", attachment)
}

fn reserve(transaction: &Transaction<'_>, reservation: &Reservation) -> Result<(), Refusal> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO exchanges (id, attachment_id, bottle, agent, ancestors_json, provider, endpoint, \
         model_asked, reserved_tokens, window_key, started_at_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    insert.execute(params![
        reservation.id,
        reservation.attachment,
        reservation.bottle,
        reservation.agent,
        serde_json::to_string(&reservation.ancestors)?,
        reservation.provider,
        reservation.endpoint,
        reservation.model,
        figure(reservation.reserved_tokens),
        reservation.hour.to_string(),
        reservation.started_at,
    ])?;
    Ok(())
}

/// What was seen of an exchange that has ended meanwhile is of no interest.
fn progress(transaction: &Transaction<'_>, exchange: i64, seen: &Tokens) -> Result<(), Refusal> {
    let mut update = transaction.prepare_cached(
        "UPDATE exchanges SET seen_input_tokens = ?2, seen_output_tokens = ?3 \
         WHERE id = ?1 AND ended_at_ms IS NULL",
    )?;
    update.execute(params![exchange, figure(seen.all_input()), figure(seen.output)])?;
    Ok(())
}

fn settle(transaction: &Transaction<'_>, settlement: &Settlement) -> Result<(), Refusal> {
    let tokens = &settlement.tokens;
    let mut update = transaction.prepare_cached(
        "UPDATE exchanges SET input_tokens = ?2, cache_write_tokens = ?3, cache_read_tokens = ?4, \
         output_tokens = ?5, reasoning_tokens = ?6, provenance = ?7, ending = ?8, http_status = ?9, \
         model_answered = ?10, usage_raw = ?11, window_key = ?12, ended_at_ms = ?13, cache_write_5m_tokens = ?14, \
         cache_write_1h_tokens = ?15, tool_prompt_tokens = ?16 \
         WHERE id = ?1 AND ended_at_ms IS NULL",
    )?;
    let settled = update.execute(params![
        settlement.id,
        figure(tokens.input),
        figure(tokens.cache_write),
        figure(tokens.cache_read),
        figure(tokens.output),
        figure(tokens.reasoning),
        settlement.provenance.as_str(),
        settlement.ending.as_str(),
        settlement.http_status,
        settlement.model,
        settlement.raw,
        settlement.hour.to_string(),
        settlement.ended_at,
        figure(tokens.cache_write_5m),
        figure(tokens.cache_write_1h),
        figure(tokens.tool_prompt),
    ])?;
    if settled == 1 {
        return Ok(());
    }
    // settled before, which changes nothing, or never reserved
    let mut find = transaction.prepare_cached("SELECT 1 FROM exchanges WHERE id = ?1")?;
    must_exist(find.exists([settlement.id])?.into(), "exchange", settlement.id)
}

/// An owner as the tables write it.
fn written(owner: &Owner) -> (&'static str, String) {
    match owner {
        Owner::Launch(attachment) => ("launch", attachment.to_string()),
        Owner::Agent(name) => ("agent", name.clone()),
        Owner::Bottle(name) => ("bottle", name.clone()),
        Owner::Global => ("global", String::new()),
    }
}

fn state(transaction: &Transaction<'_>, stated: &Stated) -> Result<(), Refusal> {
    let (kind, owner) = written(&stated.owner);
    let (statement, tokens, window) = match stated.statement {
        Statement::Set(budget) => ("set", Some(clamped(budget.tokens)), Some(budget.window.as_str())),
        Statement::Add(tokens) => ("add", Some(clamped(tokens)), None),
        Statement::Clear => ("clear", None, None),
    };
    let mut insert = transaction.prepare_cached(
        "INSERT INTO statements (owner_kind, owner, provider, statement, tokens, window, window_key, at_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    let hour = stated.hour.to_string();
    insert.execute(params![kind, owner, stated.provider, statement, tokens, window, hour, stated.at])?;
    Ok(())
}

fn reach(transaction: &Transaction<'_>, hour: Hour) -> Result<(), Refusal> {
    let mut upsert = transaction.prepare_cached(
        "INSERT INTO reached VALUES (1, ?1) \
         ON CONFLICT DO UPDATE SET window_key = max(window_key, excluded.window_key)",
    )?;
    upsert.execute([hour.to_string()])?;
    Ok(())
}

fn record_warning(
    transaction: &Transaction<'_>,
    owner: &Owner,
    provider: &str,
    warned: &Warned,
) -> Result<(), Refusal> {
    let (kind, owner) = written(owner);
    let mut replace =
        transaction.prepare_cached("INSERT OR REPLACE INTO warnings VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    let (window, since) = (warned.window.as_str(), warned.since.to_string());
    replace.execute(params![kind, owner, provider, window, since, warned.percent])?;
    Ok(())
}

fn record_verdict(transaction: &Transaction<'_>, verdict: &Verdict) -> Result<(), Refusal> {
    let cause = verdict.cause.as_ref().map(serde_json::to_string).transpose()?;
    let mut update = transaction.prepare_cached("UPDATE bottles SET cause_json = ?2 WHERE id = ?1")?;
    must_exist(update.execute(params![verdict.attachment, cause])?, "attachment", verdict.attachment)
}

fn record_action(transaction: &Transaction<'_>, action: &Action) -> Result<(), Refusal> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO actions (at_ms, bottle, action, cause_json, by_whom, outcome, detail, took_us) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    insert.execute(params![
        action.at,
        action.bottle,
        action.action.as_str(),
        action.cause.as_ref().map(serde_json::to_string).transpose()?,
        action.by,
        if action.done { "done" } else { "failed" },
        action.detail,
        action.took_us.map(clamped),
    ])?;
    Ok(())
}

fn roll_up(transaction: &Transaction<'_>, time: &Range<i64>, row: Option<&Action>) -> Result<(), Refusal> {
    let rolled = rollup::roll_up(transaction, time)?;
    match row.filter(|_| rolled > 0) {
        Some(row) => record_action(transaction, row),
        None => Ok(()),
    }
}

fn must_exist(rows: usize, what: &'static str, id: i64) -> Result<(), Refusal> {
    if rows == 0 { Err(Refusal::Unknown { what, id }) } else { Ok(()) }
}

fn figure(tokens: u64) -> i64 {
    clamped(tokens.min(MAX_FIGURE_TOKENS))
}

/// What SQLite's signed integers hold of it.
fn clamped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
