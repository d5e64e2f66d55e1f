-- What the pipeline remembers of its own operation, for people and programs that speak SQL. Nothing here is the truth
-- about data: that is in the topics and the stores. Losing this schema loses history, never a record.
-- Roles: cdc_operator is for the gateway, which keeps these tables; sql/070_rights.sql says who may do what.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'cdc_operator') THEN
        CREATE ROLE cdc_operator NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN RAISE NOTICE 'cdc_operator was made meanwhile';
    WHEN insufficient_privilege THEN RAISE NOTICE 'cdc_operator is left out: %', SQLERRM;
END $$;

CREATE TABLE IF NOT EXISTS cdc.watermarks (
    store        text NOT NULL CHECK (store <> ''),
    table_name   text NOT NULL CHECK (table_name ~ '^[^.]+\.[^.]+$'),
    history      text NOT NULL,
    position     text COLLATE "C" CHECK (position ~ '^[0-9a-f]{32}$'),
    lsn          pg_lsn GENERATED ALWAYS AS ((substr(position, 9, 8) || '/' || substr(position, 17, 8))::pg_lsn) STORED,
    committed_at timestamptz,
    complete     boolean NOT NULL,
    rows         bigint CHECK (rows >= 0),
    visible      pg_snapshot,
    visible_lsn  pg_lsn,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (store, table_name),
    CHECK ((position IS NULL) = (committed_at IS NULL)),
    CHECK ((visible IS NULL) = (visible_lsn IS NULL)),
    CHECK (NOT complete OR position IS NOT NULL),
    CHECK (visible_lsn IS NULL OR (position IS NOT NULL AND visible_lsn <= lsn))
);
COMMENT ON TABLE cdc.watermarks IS 'How far each store has applied each table; one row a store and table, overwritten.';
COMMENT ON COLUMN cdc.watermarks.store IS 'The store, as metrics name it: redis, faiss.';
COMMENT ON COLUMN cdc.watermarks.table_name IS 'schema.table, as the configuration and the topics name it.';
COMMENT ON COLUMN cdc.watermarks.history IS 'system identifier/timeline/database oid the position belongs to, see cdc.history().';
COMMENT ON COLUMN cdc.watermarks.position IS 'Everything at or before it is applied: 32 hex digits of epoch, commit LSN, ordinal. NULL: the store holds nothing that is known.';
COMMENT ON COLUMN cdc.watermarks.lsn IS 'The commit LSN within the position.';
COMMENT ON COLUMN cdc.watermarks.committed_at IS 'When the source committed what the position stands for; now less this is the lag.';
COMMENT ON COLUMN cdc.watermarks.complete IS 'The table''s snapshot is wholly in the store. Until then no row counts as being there.';
COMMENT ON COLUMN cdc.watermarks.rows IS 'Records of the table that the store itself counts; NULL when it was not asked.';
COMMENT ON COLUMN cdc.watermarks.visible IS 'Every transaction visible in this snapshot is applied, see cdc.marks.';
COMMENT ON COLUMN cdc.watermarks.visible_lsn IS 'The mark the snapshot is of; never beyond lsn.';
COMMENT ON COLUMN cdc.watermarks.recorded_at IS 'When this row was written last: an old one says nothing about now.';

CREATE TABLE IF NOT EXISTS cdc.jobs (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    kind       text NOT NULL CHECK (kind <> ''),
    arguments  jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(arguments) = 'object'),
    asked_by   text NOT NULL DEFAULT session_user CHECK (asked_by <> ''),
    state      text NOT NULL DEFAULT 'queued'
               CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    stage      text,
    done       bigint NOT NULL DEFAULT 0 CHECK (done >= 0),
    total      bigint CHECK (total >= 0),
    before     jsonb,
    after      jsonb,
    error      text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    touched_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    cancel_at  timestamptz,
    ended_at   timestamptz,
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (ended_at IS NOT NULL)),
    CHECK (CASE state WHEN 'queued' THEN started_at IS NULL WHEN 'cancelled' THEN true WHEN 'failed' THEN true
                      ELSE started_at IS NOT NULL END),
    CHECK ((state = 'failed') = (error IS NOT NULL)),
    CHECK (state <> 'cancelled' OR cancel_at IS NOT NULL)
);
CREATE INDEX IF NOT EXISTS jobs_created ON cdc.jobs (created_at);
COMMENT ON TABLE cdc.jobs IS 'Long work that somebody asked for. A job that has ended never changes again.';
COMMENT ON COLUMN cdc.jobs.id IS 'What GET /jobs/{id} asks for.';
COMMENT ON COLUMN cdc.jobs.kind IS 'What is done: verify, repair, rebuild, snapshot, backfill, …';
COMMENT ON COLUMN cdc.jobs.arguments IS 'With what; an object. Never a secret.';
COMMENT ON COLUMN cdc.jobs.asked_by IS 'Who asked.';
COMMENT ON COLUMN cdc.jobs.state IS 'queued, running, or how it ended: succeeded, failed, cancelled.';
COMMENT ON COLUMN cdc.jobs.stage IS 'What it is doing, for a person.';
COMMENT ON COLUMN cdc.jobs.done IS 'Units of work done.';
COMMENT ON COLUMN cdc.jobs.total IS 'Units of work there are; NULL while that is unknown. An estimate: done may pass it.';
COMMENT ON COLUMN cdc.jobs.before IS 'Figures before the work.';
COMMENT ON COLUMN cdc.jobs.after IS 'The same figures after it.';
COMMENT ON COLUMN cdc.jobs.error IS 'Why it failed, in one sentence, without a value of any row.';
COMMENT ON COLUMN cdc.jobs.created_at IS 'When it was asked for.';
COMMENT ON COLUMN cdc.jobs.started_at IS 'When work began.';
COMMENT ON COLUMN cdc.jobs.touched_at IS 'When its process last said that it is alive; a running job that is silent has lost its process.';
COMMENT ON COLUMN cdc.jobs.cancel_at IS 'When somebody asked to cancel it; the job looks at this between its steps.';
COMMENT ON COLUMN cdc.jobs.ended_at IS 'When it ended, however it did.';

CREATE OR REPLACE FUNCTION cdc.keep_ended() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF OLD.ended_at IS NOT NULL THEN
        RAISE EXCEPTION 'job % has ended', OLD.id USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF OLD.state = 'running' AND NEW.state = 'queued' THEN
        RAISE EXCEPTION 'job % is at work', OLD.id USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION cdc.keep_ended IS 'Trigger: a job that has ended stays as it is.';
CREATE OR REPLACE TRIGGER keep_ended BEFORE UPDATE ON cdc.jobs FOR EACH ROW EXECUTE FUNCTION cdc.keep_ended();

CREATE TABLE IF NOT EXISTS cdc.signals (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind      text NOT NULL CHECK (kind IN ('snapshot', 'verify', 'repair', 'rebuild', 'backfill', 'pause', 'resume')),
    arguments jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(arguments) = 'object'),
    asked_by  text NOT NULL DEFAULT session_user CHECK (asked_by <> ''),
    asked_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    taken_at  timestamptz,
    taken_by  text,
    job_id    uuid REFERENCES cdc.jobs ON DELETE SET NULL,
    outcome   text CHECK (outcome IN ('accepted', 'refused')),
    reason    text,
    CHECK ((taken_at IS NULL) = (taken_by IS NULL)),
    CHECK (outcome IS NULL OR taken_at IS NOT NULL),
    CHECK (job_id IS NULL OR outcome = 'accepted'),
    CHECK (outcome IS DISTINCT FROM 'refused' OR reason IS NOT NULL)
);
CREATE INDEX IF NOT EXISTS signals_waiting ON cdc.signals (id) WHERE taken_at IS NULL;
COMMENT ON TABLE cdc.signals IS 'Insert a row to ask for something: INSERT INTO cdc.signals (kind, arguments) VALUES (''verify'', ''{"store": "redis"}'').';
COMMENT ON COLUMN cdc.signals.id IS 'The order in which they are taken.';
COMMENT ON COLUMN cdc.signals.kind IS 'What is asked for.';
COMMENT ON COLUMN cdc.signals.arguments IS 'With what: the arguments that the same call has over HTTP.';
COMMENT ON COLUMN cdc.signals.asked_by IS 'Who asks.';
COMMENT ON COLUMN cdc.signals.asked_at IS 'When.';
COMMENT ON COLUMN cdc.signals.taken_at IS 'When a process took it; NULL while it waits.';
COMMENT ON COLUMN cdc.signals.taken_by IS 'Which process did.';
COMMENT ON COLUMN cdc.signals.job_id IS 'The job that came of it.';
COMMENT ON COLUMN cdc.signals.outcome IS 'accepted, or refused for a reason; how the work ended is said by the job.';
COMMENT ON COLUMN cdc.signals.reason IS 'Why it was refused.';

CREATE TABLE IF NOT EXISTS cdc.verify_runs (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    store      text NOT NULL CHECK (store <> ''),
    table_name text NOT NULL CHECK (table_name ~ '^[^.]+\.[^.]+$'),
    started_at timestamptz NOT NULL,
    ended_at   timestamptz NOT NULL,
    position   text COLLATE "C" CHECK (position ~ '^[0-9a-f]{32}$'),
    share      double precision NOT NULL DEFAULT 1 CHECK (share > 0 AND share <= 1),
    rows       bigint NOT NULL CHECK (rows >= 0),
    missing    bigint NOT NULL CHECK (missing >= 0),
    extra      bigint NOT NULL CHECK (extra >= 0),
    stale      bigint NOT NULL CHECK (stale >= 0),
    different  bigint NOT NULL CHECK (different >= 0),
    unsettled  bigint NOT NULL CHECK (unsettled >= 0),
    repaired   bigint NOT NULL DEFAULT 0 CHECK (repaired >= 0),
    error      text,
    run_by     text NOT NULL DEFAULT session_user CHECK (run_by <> ''),
    job_id     uuid REFERENCES cdc.jobs ON DELETE SET NULL,
    equal      boolean GENERATED ALWAYS AS
               (error IS NULL AND missing + extra + stale + different + unsettled = 0) STORED
);
CREATE INDEX IF NOT EXISTS verify_runs_newest ON cdc.verify_runs (store, table_name, ended_at);
COMMENT ON TABLE cdc.verify_runs IS 'Each comparison of a store with PostgreSQL, and what it found.';
COMMENT ON COLUMN cdc.verify_runs.id IS 'Grows with time.';
COMMENT ON COLUMN cdc.verify_runs.store IS 'The store compared.';
COMMENT ON COLUMN cdc.verify_runs.table_name IS 'schema.table.';
COMMENT ON COLUMN cdc.verify_runs.started_at IS 'When it began.';
COMMENT ON COLUMN cdc.verify_runs.ended_at IS 'When it ended.';
COMMENT ON COLUMN cdc.verify_runs.position IS 'The position compared at, 32 hex digits; NULL when it did not come so far.';
COMMENT ON COLUMN cdc.verify_runs.share IS 'Of the rows that were compared; 1 for all.';
COMMENT ON COLUMN cdc.verify_runs.rows IS 'Rows of the source compared.';
COMMENT ON COLUMN cdc.verify_runs.missing IS 'Keys the store lacks.';
COMMENT ON COLUMN cdc.verify_runs.extra IS 'Keys only the store has.';
COMMENT ON COLUMN cdc.verify_runs.stale IS 'Keys held in an older version.';
COMMENT ON COLUMN cdc.verify_runs.different IS 'Keys held in the right version with other content.';
COMMENT ON COLUMN cdc.verify_runs.unsettled IS 'Keys that changed at each look, so that nothing can be said of them.';
COMMENT ON COLUMN cdc.verify_runs.repaired IS 'Keys sent anew through the topic.';
COMMENT ON COLUMN cdc.verify_runs.error IS 'Why it ended early; NULL when it came to its end.';
COMMENT ON COLUMN cdc.verify_runs.run_by IS 'Who or what ran it.';
COMMENT ON COLUMN cdc.verify_runs.job_id IS 'The job it was part of.';
COMMENT ON COLUMN cdc.verify_runs.equal IS 'It came to its end and found no difference.';
