-- Every statement of cdc/control, by name. Parameters are psycopg's %(name)s; a line `-- name:` begins a query, and the
-- lines after it say what it does and returns.

-- name: mark
-- Notes what is visible now and where the log stands; first in its transaction.
SELECT cdc.mark();

-- name: record_watermark
-- Overwrites what is known of a store and table; takes the newest mark it has reached. A position beyond the end of the
-- log is of a log that is no more: nothing can be said to be visible by it.
WITH given AS (
    SELECT %(position)s::text AS position, coalesce(%(history)s::text, cdc.history()) AS history,
           (substr(%(position)s::text, 9, 8) || '/' || substr(%(position)s::text, 17, 8))::pg_lsn AS lsn
), reached AS (
    SELECT m.snapshot, m.lsn FROM cdc.marks m JOIN given USING (history)
    WHERE m.lsn <= given.lsn AND given.lsn <= pg_current_wal_insert_lsn() ORDER BY m.lsn DESC LIMIT 1
)
INSERT INTO cdc.watermarks (store, table_name, history, position, committed_at, complete, rows, visible, visible_lsn)
SELECT %(store)s, %(table)s, g.history, g.position, %(committed_at)s::timestamptz, %(complete)s,
    %(rows)s::bigint, r.snapshot, r.lsn
FROM given g LEFT JOIN reached r ON true
ON CONFLICT (store, table_name) DO UPDATE SET
    history = excluded.history, position = excluded.position, committed_at = excluded.committed_at,
    complete = excluded.complete, rows = excluded.rows, visible = excluded.visible,
    visible_lsn = excluded.visible_lsn, recorded_at = clock_timestamp();

-- name: create_job
-- A job that waits; returns it.
INSERT INTO cdc.jobs (kind, arguments, asked_by) VALUES (%(kind)s, %(arguments)s, %(asked_by)s) RETURNING *;

-- name: read_job
-- One job.
SELECT * FROM cdc.jobs WHERE id = %(id)s;

-- name: newest_jobs
-- The newest first.
SELECT * FROM cdc.jobs ORDER BY created_at DESC, id LIMIT %(limit)s;

-- name: start_job
-- queued → running; none when it is not queued any more, or was asked to be cancelled.
UPDATE cdc.jobs SET state = 'running', before = %(before)s, started_at = clock_timestamp(),
    touched_at = clock_timestamp()
WHERE id = %(id)s AND state = 'queued' AND cancel_at IS NULL RETURNING *;

-- name: advance_job
-- Says how far a running job is, and that its process is alive; None keeps what was said before.
UPDATE cdc.jobs SET done = coalesce(%(done)s, done), total = coalesce(%(total)s, total),
    stage = coalesce(%(stage)s, stage), touched_at = clock_timestamp()
WHERE id = %(id)s AND state = 'running' RETURNING *;

-- name: end_job
-- The end, whatever it is; none when it has ended before.
UPDATE cdc.jobs SET state = %(state)s, error = %(error)s, after = coalesce(%(after)s, after),
    cancel_at = CASE %(state)s WHEN 'cancelled' THEN coalesce(cancel_at, clock_timestamp()) ELSE cancel_at END,
    touched_at = clock_timestamp(), ended_at = clock_timestamp()
WHERE id = %(id)s AND ended_at IS NULL AND (state = 'running' OR %(state)s <> 'succeeded') RETURNING *;

-- name: ask_job_to_cancel
-- A waiting job ends at once; a running one sees it at its next step.
UPDATE cdc.jobs SET cancel_at = coalesce(cancel_at, clock_timestamp()),
    state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,
    ended_at = CASE state WHEN 'queued' THEN clock_timestamp() END
WHERE id = %(id)s AND ended_at IS NULL RETURNING *;

-- name: fail_silent_jobs
-- Ends running jobs whose process has said nothing for so long: it is gone.
UPDATE cdc.jobs SET state = 'failed', error = %(error)s, ended_at = clock_timestamp()
WHERE state = 'running' AND touched_at < clock_timestamp() - %(silence)s RETURNING *;

-- name: ask_signal
-- What an INSERT by hand does.
INSERT INTO cdc.signals (kind, arguments, asked_by) VALUES (%(kind)s, %(arguments)s, %(asked_by)s) RETURNING id;

-- name: take_signals
-- The oldest that wait and that nobody else is taking.
UPDATE cdc.signals s SET taken_at = clock_timestamp(), taken_by = %(taken_by)s
FROM (SELECT id FROM cdc.signals WHERE taken_at IS NULL ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED) w
WHERE s.id = w.id RETURNING s.id, s.kind, s.arguments, s.asked_by, s.asked_at;

-- name: answer_signal
-- The answer to a signal that was taken; none when it has one.
UPDATE cdc.signals SET outcome = %(outcome)s, reason = %(reason)s, job_id = %(job_id)s
WHERE id = %(id)s AND taken_at IS NOT NULL AND outcome IS NULL RETURNING id;

-- name: record_verify
-- One run.
INSERT INTO cdc.verify_runs (store, table_name, started_at, ended_at, position, share, rows, missing, extra, stale,
    different, unsettled, repaired, error, run_by, job_id)
VALUES (%(store)s, %(table)s, %(started_at)s, %(ended_at)s, %(position)s, %(share)s, %(rows)s, %(missing)s, %(extra)s,
    %(stale)s, %(different)s, %(unsettled)s, %(repaired)s, %(error)s, %(run_by)s, %(job_id)s) RETURNING id;

-- name: newest_verify
-- The newest run of each store and table.
SELECT DISTINCT ON (store, table_name) store, table_name AS "table", started_at, ended_at, position, share, rows,
    missing, extra, stale, different, unsettled, repaired, error, run_by, job_id
FROM cdc.verify_runs ORDER BY store, table_name, ended_at DESC, id DESC;

-- name: verified_since
-- Runs recorded after a number, in order.
SELECT id, store, table_name AS "table", started_at, ended_at, position, share, rows, missing, extra, stale, different,
    unsettled, repaired, error, run_by, job_id
FROM cdc.verify_runs WHERE id > %(number)s ORDER BY id;

-- name: last_verified
-- Of each store and table the newest run, and when a run over all rows last found nothing.
SELECT DISTINCT ON (store, table_name) id, store, table_name AS "table", started_at, ended_at, position, share, rows,
    missing, extra, stale, different, unsettled, repaired, error, run_by, job_id,
    max(ended_at) FILTER (WHERE error IS NULL AND share = 1 AND missing + extra + stale + different = 0)
        OVER (PARTITION BY store, table_name) AS passed_at
FROM cdc.verify_runs ORDER BY store, table_name, ended_at DESC, id DESC;

-- name: mirror_letter
-- A letter as the topic shows it now.
INSERT INTO cdc.letters (id, store, table_name, key, reason, message, topic, partition, "offset", position, refused_at,
    closed_at, outcome)
VALUES (%(id)s, %(store)s, %(table)s, %(key)s, %(reason)s, %(message)s, %(topic)s, %(partition)s, %(offset)s,
    %(position)s, %(refused_at)s, %(closed_at)s, %(outcome)s)
ON CONFLICT (store, id) DO UPDATE SET reason = excluded.reason, message = excluded.message, refused_at = excluded.refused_at,
    closed_at = excluded.closed_at, outcome = excluded.outcome;

-- name: lock_mirror
-- Up to where a store's dead letters are mirrored, of which log, held until the transaction's end.
SELECT log, next_offset FROM cdc.mirrors WHERE store = %(store)s FOR UPDATE;

-- name: begin_mirror
-- Nothing is mirrored yet; whoever comes second waits for the first.
INSERT INTO cdc.mirrors (store, log, next_offset) VALUES (%(store)s, %(log)s, 0) ON CONFLICT (store) DO NOTHING;

-- name: move_mirror
-- Everything before that offset is mirrored.
UPDATE cdc.mirrors SET log = %(log)s, next_offset = %(next_offset)s, mirrored_at = clock_timestamp()
WHERE store = %(store)s;

-- name: close_lost_letters
-- The topic that held them is no more, so nothing can settle them.
UPDATE cdc.letters SET closed_at = clock_timestamp(), outcome = 'discarded'
WHERE store = %(store)s AND closed_at IS NULL;

-- name: record_conflict
-- A replay adds nothing.
INSERT INTO cdc.conflicts (store, table_name, key, held, incoming, kept, position)
VALUES (%(store)s, %(table)s, %(key)s, %(held)s, %(incoming)s, %(kept)s, %(position)s)
ON CONFLICT (store, table_name, key, position) DO NOTHING;

-- name: write_audit
-- One call.
INSERT INTO cdc.audit (actor, origin, action, arguments, outcome, reason, job_id)
VALUES (%(actor)s, %(origin)s, %(action)s, %(arguments)s, %(outcome)s, %(reason)s, %(job_id)s) RETURNING id;

-- name: prune
-- Removes what is old; what of it, and how much.
SELECT what, removed FROM cdc.prune(%(keep)s, %(keep_audit)s);

-- name: statistics
-- Each store and table.
SELECT * FROM cdc.sync_statistics();

-- name: check_record
-- One record.
SELECT * FROM cdc.check_record(%(table)s, %(key)s);

-- name: disable_schedules
-- Those that are not asked for any more.
UPDATE cdc.schedules SET enabled = false WHERE enabled AND name <> ALL (%(names)s::text[]);

-- name: enable_schedule
-- One that is asked for; one that comes back, or becomes something else, begins anew.
INSERT INTO cdc.schedules AS s (name, kind, period) VALUES (%(name)s, %(kind)s, %(period)s)
ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, period = excluded.period, enabled = true,
    first_seen = CASE WHEN s.enabled AND s.kind = excluded.kind THEN s.first_seen ELSE clock_timestamp() END,
    last_success = CASE WHEN s.kind = excluded.kind THEN s.last_success END,
    last_error = CASE WHEN s.kind = excluded.kind THEN s.last_error END
WHERE (s.kind, s.period, s.enabled) IS DISTINCT FROM (excluded.kind, excluded.period, true);

-- name: settle_schedules
-- Takes over how jobs ended.
UPDATE cdc.schedules s SET job = NULL, last_job = j.id,
    last_success = CASE j.state WHEN 'succeeded' THEN j.ended_at ELSE s.last_success END,
    last_error = CASE j.state WHEN 'succeeded' THEN NULL ELSE coalesce(j.error, j.state) END
FROM cdc.jobs j WHERE j.id = s.job AND j.ended_at IS NOT NULL RETURNING s.name, j.state;

-- name: read_schedules
-- Those that are asked for.
SELECT name, kind, extract(epoch FROM period)::float8 AS period_seconds, first_seen, last_run, last_success, last_error,
    job, last_job
FROM cdc.schedules WHERE enabled ORDER BY name;

-- name: claim_schedule
-- Begins a run, unless somebody else has since it was seen, or one is under way.
UPDATE cdc.schedules SET last_run = clock_timestamp()
WHERE name = %(name)s AND enabled AND job IS NULL AND last_run IS NOT DISTINCT FROM %(last_run)s RETURNING name;

-- name: schedule_runs
-- The job of a run that was begun.
UPDATE cdc.schedules SET job = %(job)s WHERE name = %(name)s;

-- name: schedule_refused
-- Why a run that was begun has no job.
UPDATE cdc.schedules SET last_error = %(error)s WHERE name = %(name)s;

-- name: note_verify_subjects
-- What is to be verified from now on.
INSERT INTO cdc.verify_subjects (store, table_name) SELECT * FROM unnest(%(stores)s::text[], %(tables)s::text[])
ON CONFLICT (store, table_name) DO NOTHING;

-- name: verify_subjects
-- Since when it is.
SELECT store, table_name, first_seen FROM cdc.verify_subjects ORDER BY store, table_name;
