-- Conditions of backfills (docs/operations.md). Anybody may write a logical message, so that one only names a condition: the
-- condition itself, which the reader runs with its own rights, stands here, where only some may write.
CREATE TABLE IF NOT EXISTS cdc.conditions (
    id         uuid PRIMARY KEY,
    table_name text NOT NULL CHECK (table_name ~ '^[^.]+\.[^.]+$'),
    condition  text NOT NULL CHECK (condition <> ''),
    asked_by   text NOT NULL DEFAULT session_user CHECK (asked_by <> ''),
    asked_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE cdc.conditions IS 'Which rows a backfill sends, where it is told by a condition. Whoever may insert here has the reader run it, in a transaction that only reads.';
COMMENT ON COLUMN cdc.conditions.id IS 'The backfill''s.';
COMMENT ON COLUMN cdc.conditions.table_name IS 'schema.table.';
COMMENT ON COLUMN cdc.conditions.condition IS 'What stands after WHERE.';
COMMENT ON COLUMN cdc.conditions.asked_by IS 'Who asked.';
COMMENT ON COLUMN cdc.conditions.asked_at IS 'When. A row is of no use once its backfill has ended; the next request removes those older than 30 days.';

DO $$
DECLARE
    role name;
BEGIN
    FOR role IN SELECT rolname FROM pg_roles WHERE rolname IN ('cdc_reader', 'cdc_operator') LOOP
        EXECUTE format('GRANT SELECT, INSERT, DELETE ON cdc.conditions TO %I', role);
    END LOOP;
END $$;
