-- The container that a bottle was attached by, as its engine knows it (docker:ID, podman:ID); NULL: by none.
ALTER TABLE bottles ADD COLUMN container TEXT CHECK (container LIKE 'docker:_%' OR container LIKE 'podman:_%');

-- Exchanges that are older than the settings keep, summed by day and by who is charged for which model. The audit is
-- never rolled up.
CREATE TABLE rolled (
    id                           INTEGER PRIMARY KEY,
    attachment_id                INTEGER REFERENCES bottles (id),                         -- NULL: the host
    bottle                       TEXT    NOT NULL,
    agent                        TEXT,
    ancestors_json               TEXT    NOT NULL CHECK (json_type(ancestors_json) = 'array'),
    provider                     TEXT    NOT NULL,
    model                        TEXT,
    day_ms                       INTEGER NOT NULL,                                        -- its first moment, UTC
    last_exchange                INTEGER NOT NULL,                                        -- highest id among them
    flows                        INTEGER NOT NULL CHECK (flows > 0),
    input_tokens                 INTEGER NOT NULL CHECK (input_tokens >= 0),
    cache_write_tokens           INTEGER NOT NULL CHECK (cache_write_tokens >= 0),
    cache_read_tokens            INTEGER NOT NULL CHECK (cache_read_tokens >= 0),
    output_tokens                INTEGER NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens             INTEGER NOT NULL CHECK (reasoning_tokens >= 0),
    cache_write_5m_tokens        INTEGER NOT NULL CHECK (cache_write_5m_tokens >= 0),
    cache_write_1h_tokens        INTEGER NOT NULL CHECK (cache_write_1h_tokens >= 0),
    tool_prompt_tokens           INTEGER NOT NULL CHECK (tool_prompt_tokens >= 0),
    -- the part of each that is not reported
    estimated_input_tokens       INTEGER NOT NULL CHECK (estimated_input_tokens >= 0),
    estimated_cache_write_tokens INTEGER NOT NULL CHECK (estimated_cache_write_tokens >= 0),
    estimated_cache_read_tokens  INTEGER NOT NULL CHECK (estimated_cache_read_tokens >= 0),
    estimated_output_tokens      INTEGER NOT NULL CHECK (estimated_output_tokens >= 0)
) STRICT;

CREATE INDEX rolled_by_day ON rolled (day_ms);

-- What has not ended is not in any sum yet.
CREATE TRIGGER exchanges_under_way_are_not_deleted BEFORE DELETE ON exchanges
WHEN OLD.ended_at_ms IS NULL
BEGIN
    SELECT RAISE(ABORT, 'an exchange under way is not rolled up');
END;

-- Everything that was settled, whether it is kept by itself or rolled up.
CREATE VIEW settled AS
SELECT attachment_id, bottle, agent, ancestors_json, provider, coalesce(model_answered, model_asked) AS model,
       started_at_ms, 1 AS flows, input_tokens, cache_write_tokens, cache_read_tokens, output_tokens, reasoning_tokens,
       cache_write_5m_tokens, cache_write_1h_tokens, tool_prompt_tokens,
       iif(provenance = 'reported', 0, input_tokens) AS estimated_input_tokens,
       iif(provenance = 'reported', 0, cache_write_tokens) AS estimated_cache_write_tokens,
       iif(provenance = 'reported', 0, cache_read_tokens) AS estimated_cache_read_tokens,
       iif(provenance = 'reported', 0, output_tokens) AS estimated_output_tokens
FROM exchanges
WHERE ended_at_ms IS NOT NULL
UNION ALL
SELECT attachment_id, bottle, agent, ancestors_json, provider, model,
       day_ms, flows, input_tokens, cache_write_tokens, cache_read_tokens, output_tokens, reasoning_tokens,
       cache_write_5m_tokens, cache_write_1h_tokens, tool_prompt_tokens,
       estimated_input_tokens, estimated_cache_write_tokens, estimated_cache_read_tokens, estimated_output_tokens
FROM rolled;
