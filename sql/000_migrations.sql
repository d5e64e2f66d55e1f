-- What of sql/ is in this database. `cdc init --dsn` applies each file once, in the order of their numbers, in a
-- transaction of its own, and notes it here. A file that was applied never changes: what comes later has a new number.
CREATE SCHEMA IF NOT EXISTS cdc;

CREATE TABLE IF NOT EXISTS cdc.migrations (
    number     integer PRIMARY KEY CHECK (number >= 0),
    name       text NOT NULL UNIQUE CHECK (name ~ '^[0-9]{3}_[a-z0-9_]+\.sql$' AND left(name, 3)::integer = number),
    sha256     text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_by text NOT NULL DEFAULT session_user
);
COMMENT ON SCHEMA cdc IS 'The control schema of memory-cdc. Never captured by the pipeline itself.';
COMMENT ON TABLE cdc.migrations IS 'The files of sql/ that were applied, each once.';
COMMENT ON COLUMN cdc.migrations.number IS 'The number the file begins with; the order in which they are applied.';
COMMENT ON COLUMN cdc.migrations.name IS 'The file.';
COMMENT ON COLUMN cdc.migrations.sha256 IS 'Of its text, in hex: an applied file that was changed is noticed.';
COMMENT ON COLUMN cdc.migrations.applied_at IS 'When it was applied, or found to be there.';
COMMENT ON COLUMN cdc.migrations.applied_by IS 'The role that applied it.';

-- Whoever runs `cdc doctor` may compare: the names and checksums of public files are no secret.
GRANT USAGE ON SCHEMA cdc TO PUBLIC;
GRANT SELECT ON cdc.migrations TO PUBLIC;
