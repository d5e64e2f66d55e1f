-- What went wrong with single records, and who did what: mirrors for people who speak SQL. The dead-letter topic stays
-- the truth about letters.
CREATE TABLE IF NOT EXISTS cdc.letters (
    id         text NOT NULL,
    store      text NOT NULL CHECK (store <> ''),
    table_name text CHECK (table_name ~ '^[^.]+\.[^.]+$'),
    key        jsonb,
    reason     text NOT NULL,
    message    text NOT NULL DEFAULT '',
    topic      text NOT NULL,
    partition  integer NOT NULL CHECK (partition >= -1),
    "offset"   bigint NOT NULL CHECK ("offset" >= -1),
    position   text COLLATE "C" CHECK (position ~ '^[0-9a-f]{32}$'),
    refused_at timestamptz NOT NULL,
    closed_at  timestamptz,
    outcome    text CHECK (outcome IN ('redriven', 'superseded', 'discarded')),
    PRIMARY KEY (store, id),
    CHECK ((closed_at IS NULL) = (outcome IS NULL))
);
CREATE INDEX IF NOT EXISTS letters_open ON cdc.letters (table_name, store) WHERE closed_at IS NULL;
COMMENT ON TABLE cdc.letters IS 'Dead letters: records a store could not hold. A mirror of the dead-letter topics.';
COMMENT ON COLUMN cdc.letters.id IS 'What `cdc dlq` names it by; two stores may refuse the same record.';
COMMENT ON COLUMN cdc.letters.store IS 'Who refused the record: a store, or reader.';
COMMENT ON COLUMN cdc.letters.table_name IS 'schema.table; NULL for a record that is not of a table.';
COMMENT ON COLUMN cdc.letters.key IS 'The record''s key, {column: value}; NULL when it does not parse.';
COMMENT ON COLUMN cdc.letters.reason IS 'The label of the metric.';
COMMENT ON COLUMN cdc.letters.message IS 'The reason in words.';
COMMENT ON COLUMN cdc.letters.topic IS 'Where the record lies.';
COMMENT ON COLUMN cdc.letters.partition IS 'Where the record lies; -1 for one that was never written.';
COMMENT ON COLUMN cdc.letters."offset" IS 'Where the record lies; -1 for one that was never written.';
COMMENT ON COLUMN cdc.letters.position IS 'The record''s position, 32 hex digits; NULL for a record not of ours.';
COMMENT ON COLUMN cdc.letters.refused_at IS 'When it was refused.';
COMMENT ON COLUMN cdc.letters.closed_at IS 'When it was settled; NULL while it is open and its key parked.';
COMMENT ON COLUMN cdc.letters.outcome IS 'How: redriven, superseded by a newer record, or discarded.';

CREATE TABLE IF NOT EXISTS cdc.conflicts (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    store      text NOT NULL CHECK (store <> ''),
    table_name text NOT NULL CHECK (table_name ~ '^[^.]+\.[^.]+$'),
    key        jsonb NOT NULL,
    held       jsonb NOT NULL,
    incoming   jsonb NOT NULL,
    kept       text NOT NULL CHECK (kept IN ('held', 'incoming', 'merged')),
    position   text COLLATE "C" NOT NULL CHECK (position ~ '^[0-9a-f]{32}$'),
    noticed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (store, table_name, key, position)
);
CREATE INDEX IF NOT EXISTS conflicts_noticed ON cdc.conflicts (noticed_at);
COMMENT ON TABLE cdc.conflicts IS 'Versions of a row that two writers made without knowing of each other.';
COMMENT ON COLUMN cdc.conflicts.id IS 'Grows with time.';
COMMENT ON COLUMN cdc.conflicts.store IS 'The store that saw it.';
COMMENT ON COLUMN cdc.conflicts.table_name IS 'schema.table.';
COMMENT ON COLUMN cdc.conflicts.key IS 'The row''s key, {column: value}.';
COMMENT ON COLUMN cdc.conflicts.held IS 'The version vector that was there, {origin: counter}.';
COMMENT ON COLUMN cdc.conflicts.incoming IS 'The version vector that came, concurrent to it.';
COMMENT ON COLUMN cdc.conflicts.kept IS 'Which of the two stayed, or merged.';
COMMENT ON COLUMN cdc.conflicts.position IS 'The position of the record that came; a replay adds no second row.';
COMMENT ON COLUMN cdc.conflicts.noticed_at IS 'When it was seen.';

CREATE TABLE IF NOT EXISTS cdc.audit (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor     text NOT NULL CHECK (actor <> ''),
    origin    text,
    action    text NOT NULL CHECK (action <> ''),
    arguments jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(arguments) = 'object'),
    outcome   text NOT NULL CHECK (outcome IN ('allowed', 'refused', 'failed')),
    reason    text,
    job_id    uuid,
    db_role   text NOT NULL DEFAULT session_user,
    CHECK (outcome = 'allowed' OR reason IS NOT NULL)
);
CREATE INDEX IF NOT EXISTS audit_at ON cdc.audit (at);
COMMENT ON TABLE cdc.audit IS 'Administrative calls, refused ones included. Rows are added and never changed; only cdc.prune() removes old ones.';
COMMENT ON COLUMN cdc.audit.id IS 'Grows with time.';
COMMENT ON COLUMN cdc.audit.at IS 'When.';
COMMENT ON COLUMN cdc.audit.actor IS 'Who called, as far as the caller was known.';
COMMENT ON COLUMN cdc.audit.origin IS 'From where: a network address, or the command.';
COMMENT ON COLUMN cdc.audit.action IS 'What was called.';
COMMENT ON COLUMN cdc.audit.arguments IS 'With what. Never a secret.';
COMMENT ON COLUMN cdc.audit.outcome IS 'allowed, refused or failed.';
COMMENT ON COLUMN cdc.audit.reason IS 'Why it was refused or failed.';
COMMENT ON COLUMN cdc.audit.job_id IS 'The job that came of it; it may be pruned before this row is.';
COMMENT ON COLUMN cdc.audit.db_role IS 'The role of the connection that wrote this.';

CREATE OR REPLACE FUNCTION cdc.refuse() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% of cdc.% is refused', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;
COMMENT ON FUNCTION cdc.refuse IS 'Trigger: what is written stays, whoever asks.';
CREATE OR REPLACE TRIGGER refuse BEFORE UPDATE OR TRUNCATE ON cdc.audit FOR EACH STATEMENT EXECUTE FUNCTION cdc.refuse();
