//! Answers `usage` and `audit` on a read-only connection; a writer is never waited for.
use std::ops::Range;
use std::path::PathBuf;

use rusqlite::types::ToSql;
use rusqlite::{Connection, Row, params_from_iter};

use super::{count, database, load, optional_json, rollup};
use crate::audit;
use crate::budget::weights::Weights;
use crate::clock::rfc3339;
use crate::ledger::{FlowRow, GroupBy, LedgerError, Reader, UnixMs, UsageQuery, UsageRow};

/// The model that answered, or was asked for.
const MODEL: &str = "coalesce(model_answered, model_asked)";
/// Day of the start, UTC.
const DAY: &str = "strftime('%Y-%m-%d', started_at_ms / 1000, 'unixepoch')";

/// The reading end.
pub(super) struct SqliteReader {
    connection: Connection,
    path: PathBuf,
}

impl SqliteReader {
    pub(super) fn new(connection: Connection, path: PathBuf) -> Self {
        Self { connection, path }
    }
}

impl Reader for SqliteReader {
    fn usage(&mut self, query: &UsageQuery, weights: &Weights) -> Result<Vec<UsageRow>, LedgerError> {
        usage(&self.connection, query, weights).map_err(|error| database(&self.path, &error))
    }

    fn flows(&mut self, query: &UsageQuery, weights: &Weights) -> Result<Vec<FlowRow>, LedgerError> {
        flows(&self.connection, query, weights).map_err(|error| database(&self.path, &error))
    }

    fn newest_audit_row(&mut self) -> Result<i64, LedgerError> {
        self.connection
            .query_row("SELECT coalesce(max(id), 0) FROM actions", [], |row| row.get(0))
            .map_err(|error| database(&self.path, &error))
    }

    fn oldest_settled(&mut self) -> Result<Option<UnixMs>, LedgerError> {
        rollup::oldest_settled(&self.connection).map_err(|error| database(&self.path, &error))
    }

    fn beginning_of(&mut self, time: &Range<UnixMs>, most: u32) -> Result<Range<UnixMs>, LedgerError> {
        rollup::beginning_of(&self.connection, time, most).map_err(|error| database(&self.path, &error))
    }

    fn audit(&mut self, after: i64, limit: u32) -> Result<Vec<audit::Row>, LedgerError> {
        audit(&self.connection, after, limit).map_err(|error| database(&self.path, &error))
    }
}

fn usage(connection: &Connection, query: &UsageQuery, weights: &Weights) -> rusqlite::Result<Vec<UsageRow>> {
    let (condition, values) = conditions(query);
    let keys = keys(query.by);
    let sql = format!(
        "SELECT {keys}, sum(flows) AS flows, sum(input_tokens) AS input, sum(cache_write_tokens) AS cache_write, \
           sum(cache_read_tokens) AS cache_read, sum(output_tokens) AS output, \
           sum(reasoning_tokens) AS reasoning, sum(cache_write_5m_tokens) AS cache_write_5m, \
           sum(cache_write_1h_tokens) AS cache_write_1h, sum(tool_prompt_tokens) AS tool_prompt, \
           sum(estimated_input_tokens) AS estimated_input, \
           sum(estimated_cache_write_tokens) AS estimated_cache_write, \
           sum(estimated_cache_read_tokens) AS estimated_cache_read, \
           sum(estimated_output_tokens) AS estimated_output \
         FROM settled WHERE true{condition} \
         GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"
    );
    let mut select = connection.prepare_cached(&sql)?;
    select.query_map(params_from_iter(values), |row| usage_row(row, weights))?.collect()
}

/// The five columns that a row of usage may be grouped by; those that are not are NULL.
fn keys(by: Option<GroupBy>) -> String {
    let column = |group: GroupBy, expression: &str, name: &str| {
        let used = by.map_or(group != GroupBy::Day, |by| by == group);
        format!("{} AS {name}", if used { expression } else { "NULL" })
    };
    [
        column(GroupBy::Bottle, "bottle", "by_bottle"),
        column(GroupBy::Agent, "agent", "by_agent"),
        column(GroupBy::Provider, "provider", "by_provider"),
        column(GroupBy::Model, "model", "by_model"),
        column(GroupBy::Day, DAY, "by_day"),
    ]
    .join(", ")
}

/// What a query asks for, as conditions after the first one, and their values.
fn conditions(query: &UsageQuery) -> (String, Vec<&dyn ToSql>) {
    let mut condition = String::new();
    let mut values: Vec<&dyn ToSql> = Vec::new();
    let mut only = |comparison: &str, value| {
        condition.push_str(" AND ");
        condition.push_str(comparison);
        condition.push_str(" ?");
        values.push(value);
    };
    if let Some(bottle) = &query.bottle {
        only("bottle =", bottle);
    }
    if let Some(agent) = &query.agent {
        only("agent =", agent);
    }
    if let Some(provider) = &query.provider {
        only("provider =", provider);
    }
    if let Some(since) = &query.since {
        only("started_at_ms >=", since);
    }
    (condition, values)
}

fn usage_row(row: &Row<'_>, weights: &Weights) -> rusqlite::Result<UsageRow> {
    let tokens = load::tokens(row)?;
    Ok(UsageRow {
        bottle: row.get("by_bottle")?,
        agent: row.get("by_agent")?,
        provider: row.get("by_provider")?,
        model: row.get("by_model")?,
        day: row.get("by_day")?,
        flows: count(row, "flows")?,
        input: tokens.input,
        cache_write: tokens.cache_write,
        cache_read: tokens.cache_read,
        output: tokens.output,
        reasoning: tokens.reasoning,
        cache_write_5m: count(row, "cache_write_5m")?,
        cache_write_1h: count(row, "cache_write_1h")?,
        tool_prompt: count(row, "tool_prompt")?,
        total: weights.total(&tokens),
        estimated: weights.total(&load::estimated(row)?),
        governs: None,
    })
}

fn flows(connection: &Connection, query: &UsageQuery, weights: &Weights) -> rusqlite::Result<Vec<FlowRow>> {
    let (condition, values) = conditions(query);
    let sql = format!(
        "SELECT id, started_at_ms, ended_at_ms, ending, provenance, endpoint, http_status, reserved_tokens, \
           bottle AS by_bottle, agent AS by_agent, provider AS by_provider, {MODEL} AS by_model, NULL AS by_day, \
           1 AS flows, input_tokens AS input, cache_write_tokens AS cache_write, \
           cache_read_tokens AS cache_read, output_tokens AS output, reasoning_tokens AS reasoning, \
           cache_write_5m_tokens AS cache_write_5m, cache_write_1h_tokens AS cache_write_1h, \
           tool_prompt_tokens AS tool_prompt, \
           iif(provenance = 'reported', 0, input_tokens) AS estimated_input, \
           iif(provenance = 'reported', 0, cache_write_tokens) AS estimated_cache_write, \
           iif(provenance = 'reported', 0, cache_read_tokens) AS estimated_cache_read, \
           iif(provenance = 'reported', 0, output_tokens) AS estimated_output \
         FROM exchanges WHERE true{condition} ORDER BY started_at_ms, id"
    );
    let mut select = connection.prepare_cached(&sql)?;
    select.query_map(params_from_iter(values), |row| flow_row(row, weights))?.collect()
}

fn flow_row(row: &Row<'_>, weights: &Weights) -> rusqlite::Result<FlowRow> {
    let ended: Option<i64> = row.get("ended_at_ms")?;
    let ending: Option<String> = row.get("ending")?;
    Ok(FlowRow {
        id: row.get("id")?,
        started: rfc3339(row.get("started_at_ms")?),
        ended: ended.map(rfc3339),
        status: ending.unwrap_or_else(|| "open".to_owned()),
        provenance: row.get("provenance")?,
        endpoint: row.get("endpoint")?,
        http_status: row.get("http_status")?,
        reserved: count(row, "reserved_tokens")?,
        usage: usage_row(row, weights)?,
    })
}

fn audit(connection: &Connection, after: i64, limit: u32) -> rusqlite::Result<Vec<audit::Row>> {
    let mut select = connection.prepare_cached("SELECT * FROM actions WHERE id > ?1 ORDER BY id LIMIT ?2")?;
    select.query_map((after, limit), audit_row)?.collect()
}

fn audit_row(row: &Row<'_>) -> rusqlite::Result<audit::Row> {
    let took_us: Option<i64> = row.get("took_us")?;
    Ok(audit::Row {
        id: row.get("id")?,
        at: rfc3339(row.get("at_ms")?),
        bottle: row.get("bottle")?,
        action: row.get("action")?,
        cause: optional_json(row, "cause_json")?,
        by: row.get("by_whom")?,
        outcome: row.get("outcome")?,
        detail: row.get("detail")?,
        took_us: took_us.map(|_| count(row, "took_us")).transpose()?,
    })
}
