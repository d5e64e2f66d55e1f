-- What runs again and again, when it last succeeded, and since when that is awaited: kept here, so that a gateway that
-- starts anew neither forgets a run nor sets the clock back.
CREATE TABLE IF NOT EXISTS cdc.schedules (
    name         text PRIMARY KEY CHECK (name <> ''),
    kind         text NOT NULL CHECK (kind <> ''),
    period       interval NOT NULL CHECK (period > '0'),
    enabled      boolean NOT NULL DEFAULT true,
    first_seen   timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_run     timestamptz,
    last_success timestamptz,
    last_error   text,
    job          uuid REFERENCES cdc.jobs ON DELETE SET NULL,
    last_job     uuid REFERENCES cdc.jobs ON DELETE SET NULL,
    CHECK (last_success IS NULL OR last_run IS NOT NULL),
    CHECK (job IS NULL OR last_run IS NOT NULL)
);
COMMENT ON TABLE cdc.schedules IS 'What the gateway does again and again; one row a name of its configuration.';
COMMENT ON COLUMN cdc.schedules.name IS 'As in [schedule.<name>], and in the label schedule of the metrics.';
COMMENT ON COLUMN cdc.schedules.kind IS 'What is done: verify, snapshot, backfill, repair, rebuild, prune, command.';
COMMENT ON COLUMN cdc.schedules.period IS 'The longest time between two runs; without a success for two of them somebody is paged.';
COMMENT ON COLUMN cdc.schedules.enabled IS 'False once it has left the configuration, or was turned off there.';
COMMENT ON COLUMN cdc.schedules.first_seen IS 'Since when it has been asked for; one that never succeeded counts from here.';
COMMENT ON COLUMN cdc.schedules.last_run IS 'When it was last begun.';
COMMENT ON COLUMN cdc.schedules.last_success IS 'When a run last ended well; NULL while none has.';
COMMENT ON COLUMN cdc.schedules.last_error IS 'Why the last run failed; NULL when it succeeded.';
COMMENT ON COLUMN cdc.schedules.job IS 'The job that runs now.';
COMMENT ON COLUMN cdc.schedules.last_job IS 'The job that ended last.';

CREATE TABLE IF NOT EXISTS cdc.verify_subjects (
    store      text NOT NULL CHECK (store <> ''),
    table_name text NOT NULL CHECK (table_name ~ '^[^.]+\.[^.]+$'),
    first_seen timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (store, table_name)
);
COMMENT ON TABLE cdc.verify_subjects IS 'Since when each table has been in each store: what no verify ever passed for counts from here.';
COMMENT ON COLUMN cdc.verify_subjects.store IS 'The store.';
COMMENT ON COLUMN cdc.verify_subjects.table_name IS 'schema.table.';
COMMENT ON COLUMN cdc.verify_subjects.first_seen IS 'When the gateway first saw it.';

DO $$
DECLARE
    role name;
BEGIN
    FOR role IN SELECT rolname FROM pg_roles WHERE rolname IN ('cdc_viewer', 'cdc_operator') LOOP
        EXECUTE format('GRANT SELECT ON cdc.schedules, cdc.verify_subjects TO %I', role);
    END LOOP;
    FOR role IN SELECT rolname FROM pg_roles WHERE rolname = 'cdc_operator' LOOP
        EXECUTE format('GRANT INSERT, UPDATE ON cdc.schedules TO %I', role);
        EXECUTE format('GRANT INSERT ON cdc.verify_subjects TO %I', role);
    END LOOP;
END $$;
