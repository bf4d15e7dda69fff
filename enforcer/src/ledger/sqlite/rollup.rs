//! Rolls settled exchanges up: their sums by who is charged for which model take their place. What a budget counts is
//! the same before and after, and an id is never given out again. Which are old enough is not known here.
use std::ops::Range;

use rusqlite::{Connection, OptionalExtension as _, Transaction};

use crate::clock::DAY_MS;
use crate::ledger::UnixMs;

/// One sum takes the place of many rows of a day, or of a part of it, in the same transaction. Gives how many rows.
pub(super) fn roll_up(transaction: &Transaction<'_>, time: &Range<UnixMs>) -> rusqlite::Result<usize> {
    let day = time.start.div_euclid(DAY_MS) * DAY_MS;
    let mut insert = transaction.prepare_cached(
        "INSERT INTO rolled (attachment_id, bottle, agent, ancestors_json, provider, model, day_ms, last_exchange, \
           flows, input_tokens, cache_write_tokens, cache_read_tokens, output_tokens, reasoning_tokens, \
           cache_write_5m_tokens, cache_write_1h_tokens, tool_prompt_tokens, \
           estimated_input_tokens, estimated_cache_write_tokens, estimated_cache_read_tokens, \
           estimated_output_tokens) \
         SELECT attachment_id, bottle, agent, ancestors_json, provider, coalesce(model_answered, model_asked), ?3, \
           max(id), count(*), sum(input_tokens), sum(cache_write_tokens), sum(cache_read_tokens), \
           sum(output_tokens), sum(reasoning_tokens), \
           sum(cache_write_5m_tokens), sum(cache_write_1h_tokens), sum(tool_prompt_tokens), \
           sum(iif(provenance = 'reported', 0, input_tokens)), \
           sum(iif(provenance = 'reported', 0, cache_write_tokens)), \
           sum(iif(provenance = 'reported', 0, cache_read_tokens)), \
           sum(iif(provenance = 'reported', 0, output_tokens)) \
         FROM exchanges WHERE ended_at_ms IS NOT NULL AND started_at_ms >= ?1 AND started_at_ms < ?2 \
         GROUP BY 1, 2, 3, 4, 5, 6",
    )?;
    insert.execute((time.start, time.end, day))?;
    let mut delete = transaction.prepare_cached(
        "DELETE FROM exchanges WHERE ended_at_ms IS NOT NULL AND started_at_ms >= ?1 AND started_at_ms < ?2",
    )?;
    delete.execute((time.start, time.end))
}

/// Highest id that was given to an exchange; 0 for none.
pub(super) fn last_exchange(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row(
        "SELECT max(coalesce((SELECT max(id) FROM exchanges), 0), \
                    coalesce((SELECT max(last_exchange) FROM rolled), 0))",
        [],
        |row| row.get(0),
    )
}

pub(super) fn oldest_settled(connection: &Connection) -> rusqlite::Result<Option<UnixMs>> {
    connection.query_row(
        "SELECT min(started_at_ms) FROM exchanges WHERE ended_at_ms IS NOT NULL",
        [],
        |row| row.get(0),
    )
}

pub(super) fn beginning_of(
    connection: &Connection,
    time: &Range<UnixMs>,
    most: u32,
) -> rusqlite::Result<Range<UnixMs>> {
    let mut starts = connection.prepare_cached(
        "SELECT started_at_ms FROM exchanges \
         WHERE ended_at_ms IS NOT NULL AND started_at_ms >= ?1 AND started_at_ms < ?2 \
         ORDER BY started_at_ms LIMIT 1 OFFSET ?3",
    )?;
    let mut start_of = |nth: u32| -> rusqlite::Result<Option<UnixMs>> {
        starts.query_row((time.start, time.end, nth), |row| row.get(0)).optional()
    };
    let (first, next) = (start_of(0)?, start_of(most)?);
    let end = first.zip(next).map_or(time.end, |(first, next)| next.max(first + 1));
    Ok(time.start..end)
}
