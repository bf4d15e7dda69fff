-- Budgets with windows. An hour, UTC, is written '2026-01-31T12': every window begins at a full hour, and the order of
-- texts is that of hours.

-- The latest hour that windows have reached. It never goes back, whatever the clock does.
CREATE TABLE reached (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    window_key TEXT    NOT NULL
) STRICT;

-- What operators said of budgets, oldest first; what settings and launches define stands beneath it.
CREATE TABLE statements (
    id         INTEGER PRIMARY KEY,
    owner_kind TEXT    NOT NULL CHECK (owner_kind IN ('launch', 'agent', 'bottle', 'global')),
    owner      TEXT    NOT NULL,                                                          -- name, attachment id, or ''
    provider   TEXT    NOT NULL,
    statement  TEXT    NOT NULL CHECK (statement IN ('set', 'add', 'clear')),
    tokens     INTEGER CHECK (tokens >= 0),
    window     TEXT    CHECK (window IN ('total', 'hourly', 'daily', 'weekly', 'monthly')),
    window_key TEXT    NOT NULL,                                                          -- hour that it was said in
    at_ms      INTEGER NOT NULL,
    CHECK ((statement = 'clear') = (tokens IS NULL)),
    CHECK ((statement = 'set') = (window IS NOT NULL))
) STRICT;

INSERT INTO statements (id, owner_kind, owner, provider, statement, tokens, window_key, at_ms)
SELECT id, owner_kind, owner, provider, 'add', added_tokens,
       coalesce(strftime('%Y-%m-%dT%H', added_at_ms / 1000, 'unixepoch'), '1970-01-01T00'), added_at_ms
FROM budgets;
DROP TABLE budgets;

-- The last warning of each budget, so that no restart gives it again.
CREATE TABLE warnings (
    owner_kind TEXT    NOT NULL CHECK (owner_kind IN ('launch', 'agent', 'bottle', 'global')),
    owner      TEXT    NOT NULL,
    provider   TEXT    NOT NULL,
    window     TEXT    NOT NULL CHECK (window IN ('total', 'hourly', 'daily', 'weekly', 'monthly')),
    window_key TEXT    NOT NULL,                                                          -- first hour of the window
    percent    INTEGER NOT NULL CHECK (percent BETWEEN 1 AND 100),
    PRIMARY KEY (owner_kind, owner, provider)
) STRICT, WITHOUT ROWID;

-- From now on the window_key of an exchange is the hour that it counts in: the one it was settled in, by the clock that
-- never goes back.
UPDATE exchanges
SET window_key =
    coalesce(strftime('%Y-%m-%dT%H', coalesce(ended_at_ms, started_at_ms) / 1000, 'unixepoch'), '1970-01-01T00');

-- Settled figures by hour and by who is charged: what a start reads instead of every exchange there ever was.
CREATE TABLE sums (
    attachment_id                INTEGER NOT NULL,                                        -- 0: the host
    bottle                       TEXT    NOT NULL,
    agent                        TEXT    NOT NULL,                                        -- '': none
    ancestors_json               TEXT    NOT NULL,
    provider                     TEXT    NOT NULL,
    window_key                   TEXT    NOT NULL,
    flows                        INTEGER NOT NULL,
    input_tokens                 INTEGER NOT NULL,
    cache_write_tokens           INTEGER NOT NULL,
    cache_read_tokens            INTEGER NOT NULL,
    output_tokens                INTEGER NOT NULL,
    reasoning_tokens             INTEGER NOT NULL,
    -- the part of each that is not reported
    estimated_input_tokens       INTEGER NOT NULL,
    estimated_cache_write_tokens INTEGER NOT NULL,
    estimated_cache_read_tokens  INTEGER NOT NULL,
    estimated_output_tokens      INTEGER NOT NULL,
    PRIMARY KEY (attachment_id, bottle, agent, ancestors_json, provider, window_key)
) STRICT, WITHOUT ROWID;

CREATE INDEX sums_by_hour ON sums (window_key);

-- Whoever settles an exchange, it is summed in the same transaction.
CREATE TRIGGER settled_exchanges_are_summed AFTER UPDATE OF ended_at_ms ON exchanges
WHEN OLD.ended_at_ms IS NULL AND NEW.ended_at_ms IS NOT NULL
BEGIN
    INSERT INTO sums VALUES (
        coalesce(NEW.attachment_id, 0), NEW.bottle, coalesce(NEW.agent, ''), NEW.ancestors_json, NEW.provider,
        NEW.window_key, 1, NEW.input_tokens, NEW.cache_write_tokens, NEW.cache_read_tokens, NEW.output_tokens,
        NEW.reasoning_tokens,
        iif(NEW.provenance = 'reported', 0, NEW.input_tokens),
        iif(NEW.provenance = 'reported', 0, NEW.cache_write_tokens),
        iif(NEW.provenance = 'reported', 0, NEW.cache_read_tokens),
        iif(NEW.provenance = 'reported', 0, NEW.output_tokens)
    )
    ON CONFLICT DO UPDATE SET
        flows                        = flows + 1,
        input_tokens                 = input_tokens + excluded.input_tokens,
        cache_write_tokens           = cache_write_tokens + excluded.cache_write_tokens,
        cache_read_tokens            = cache_read_tokens + excluded.cache_read_tokens,
        output_tokens                = output_tokens + excluded.output_tokens,
        reasoning_tokens             = reasoning_tokens + excluded.reasoning_tokens,
        estimated_input_tokens       = estimated_input_tokens + excluded.estimated_input_tokens,
        estimated_cache_write_tokens = estimated_cache_write_tokens + excluded.estimated_cache_write_tokens,
        estimated_cache_read_tokens  = estimated_cache_read_tokens + excluded.estimated_cache_read_tokens,
        estimated_output_tokens      = estimated_output_tokens + excluded.estimated_output_tokens;
END;

INSERT INTO sums
SELECT coalesce(attachment_id, 0), bottle, coalesce(agent, ''), ancestors_json, provider, window_key, count(*),
       sum(input_tokens), sum(cache_write_tokens), sum(cache_read_tokens), sum(output_tokens), sum(reasoning_tokens),
       sum(iif(provenance = 'reported', 0, input_tokens)),
       sum(iif(provenance = 'reported', 0, cache_write_tokens)),
       sum(iif(provenance = 'reported', 0, cache_read_tokens)),
       sum(iif(provenance = 'reported', 0, output_tokens))
FROM exchanges
WHERE ended_at_ms IS NOT NULL
GROUP BY 1, 2, 3, 4, 5, 6;
