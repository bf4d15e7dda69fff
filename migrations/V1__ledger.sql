-- The ledger: who was attached, what each exchange reserved and used, tokens added by hand, and the audit.
-- Units stand at the end of a column's name; times are milliseconds since the Unix epoch, UTC.

-- One row an attachment, from attach to detach.
CREATE TABLE bottles (
    id                 INTEGER PRIMARY KEY,
    name               TEXT    NOT NULL,
    agent              TEXT,
    parent             TEXT,
    ancestors_json     TEXT    NOT NULL CHECK (json_type(ancestors_json) = 'array'),      -- names, nearest first
    cgroup             TEXT    NOT NULL,
    cgroup_id          INTEGER NOT NULL,                                                  -- inode, as signed bits
    owns_cgroup        INTEGER NOT NULL CHECK (owns_cgroup IN (0, 1)),
    slot               INTEGER NOT NULL CHECK (slot BETWEEN 0 AND 4294967295),
    generation         INTEGER NOT NULL CHECK (generation BETWEEN 0 AND 4294967295),
    policy             TEXT    NOT NULL,
    launch_budget_json TEXT    NOT NULL CHECK (json_type(launch_budget_json) = 'array'),  -- [[provider, tokens], …]
    attached_at_ms     INTEGER NOT NULL,
    detached_at_ms     INTEGER,
    cause_json         TEXT    CHECK (cause_json IS NULL OR json_type(cause_json) = 'object')  -- NULL: open
) STRICT;

-- A name is attached once at a time.
CREATE UNIQUE INDEX bottles_attached ON bottles (name) WHERE detached_at_ms IS NULL;

-- One row an exchange: the reservation first, the settlement into the same row.
CREATE TABLE exchanges (
    id                 INTEGER PRIMARY KEY,
    attachment_id      INTEGER REFERENCES bottles (id),                                   -- NULL: the host
    bottle             TEXT    NOT NULL,
    agent              TEXT,
    ancestors_json     TEXT    NOT NULL CHECK (json_type(ancestors_json) = 'array'),      -- names, nearest first
    provider           TEXT    NOT NULL,
    endpoint           TEXT    NOT NULL,
    model_asked        TEXT,
    reserved_tokens    INTEGER NOT NULL CHECK (reserved_tokens >= 0),
    window_key         TEXT    NOT NULL,
    started_at_ms      INTEGER NOT NULL,
    seen_input_tokens  INTEGER CHECK (seen_input_tokens >= 0),                            -- all classes, as last written
    seen_output_tokens INTEGER CHECK (seen_output_tokens >= 0),                           -- while under way

    input_tokens       INTEGER CHECK (input_tokens >= 0),                                 -- uncached
    cache_write_tokens INTEGER CHECK (cache_write_tokens >= 0),
    cache_read_tokens  INTEGER CHECK (cache_read_tokens >= 0),
    output_tokens      INTEGER CHECK (output_tokens >= 0),                                -- reasoning included
    reasoning_tokens   INTEGER CHECK (reasoning_tokens >= 0),
    provenance         TEXT    CHECK (provenance IN ('reported', 'partial', 'estimated')),
    ending             TEXT    CHECK (ending IN ('completed', 'upstream_error', 'upstream_broke', 'client_gone',
                                                 'cut', 'unsent', 'orphaned')),
    http_status        INTEGER,
    model_answered     TEXT,
    usage_raw          TEXT,                                                              -- the provider's own words
    ended_at_ms        INTEGER,

    -- settled whole or not at all
    CHECK ((ended_at_ms IS NULL) = (provenance IS NULL)),
    CHECK ((ended_at_ms IS NULL) = (ending IS NULL)),
    CHECK ((ended_at_ms IS NULL) = (input_tokens IS NULL)),
    CHECK ((ended_at_ms IS NULL) = (cache_write_tokens IS NULL)),
    CHECK ((ended_at_ms IS NULL) = (cache_read_tokens IS NULL)),
    CHECK ((ended_at_ms IS NULL) = (output_tokens IS NULL)),
    CHECK ((ended_at_ms IS NULL) = (reasoning_tokens IS NULL))
) STRICT;

CREATE INDEX exchanges_open ON exchanges (id) WHERE ended_at_ms IS NULL;
CREATE INDEX exchanges_by_start ON exchanges (started_at_ms);
CREATE INDEX exchanges_by_bottle ON exchanges (bottle, started_at_ms);

-- Tokens that the operator added to a budget; the budgets themselves stand in settings and attachments.
CREATE TABLE budgets (
    id           INTEGER PRIMARY KEY,
    owner_kind   TEXT    NOT NULL CHECK (owner_kind IN ('launch', 'agent', 'bottle', 'global')),
    owner        TEXT    NOT NULL,                                                        -- name, attachment id, or ''
    provider     TEXT    NOT NULL,
    added_tokens INTEGER NOT NULL CHECK (added_tokens >= 0),
    added_at_ms  INTEGER NOT NULL
) STRICT;

-- The audit.
CREATE TABLE actions (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms      INTEGER NOT NULL,
    bottle     TEXT,
    action     TEXT    NOT NULL,
    cause_json TEXT    CHECK (cause_json IS NULL OR json_type(cause_json) = 'object'),
    by_whom    TEXT    NOT NULL,
    outcome    TEXT    NOT NULL CHECK (outcome IN ('done', 'failed')),
    detail     TEXT,
    took_us    INTEGER CHECK (took_us >= 0)
) STRICT;

CREATE TRIGGER actions_are_not_changed BEFORE UPDATE ON actions
BEGIN
    SELECT RAISE(ABORT, 'the audit is append-only');
END;

CREATE TRIGGER actions_are_not_deleted BEFORE DELETE ON actions
BEGIN
    SELECT RAISE(ABORT, 'the audit is append-only');
END;
