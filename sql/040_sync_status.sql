-- Which stores have which row, told by watermarks: no write per record.
--
-- A mark is a snapshot S of the running transactions and, read after it, the end L of the log. A transaction writes its
-- commit record before it leaves the list of running ones; so whatever S sees as committed has its commit record before
-- L, and a store that has applied everything up to L has it. A row is of the transaction in its xmin, which may be that
-- of a savepoint; snapshots know top-level transactions only. A savepoint's id is above its transaction's, so a row
-- whose xmin is below S's xmax can only be unapplied when some transaction that ran at S, with an id at or below that
-- xmin, wrote it; and since we see the row, that transaction has ended by now. Hence the bound of a store: the smallest
-- id that ran at S and does not run any more, and S's xmax where there is none. Rows below it are in the store. It may
-- say "not yet" for a moment to a row that is there, never "there" to one that is not.
CREATE TABLE IF NOT EXISTS cdc.marks (
    lsn      pg_lsn PRIMARY KEY,
    snapshot pg_snapshot NOT NULL,
    history  text NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE cdc.marks IS 'Pairs of a snapshot and the end of the log behind it. They lie in the log themselves: a crash that loses commits loses the marks that saw them.';
COMMENT ON COLUMN cdc.marks.lsn IS 'A store that has applied everything up to here has every transaction visible in the snapshot.';
COMMENT ON COLUMN cdc.marks.snapshot IS 'What was visible when the mark was taken.';
COMMENT ON COLUMN cdc.marks.history IS 'See cdc.history().';
COMMENT ON COLUMN cdc.marks.taken_at IS 'When.';

CREATE TABLE IF NOT EXISTS cdc.tracked_tables (
    table_name     text PRIMARY KEY,
    view_name      name NOT NULL UNIQUE,
    version_column name
);
COMMENT ON TABLE cdc.tracked_tables IS 'Tables with a view of which stores have which row, see cdc.track().';
COMMENT ON COLUMN cdc.tracked_tables.table_name IS 'schema.table.';
COMMENT ON COLUMN cdc.tracked_tables.view_name IS 'The view in the schema cdc.';
COMMENT ON COLUMN cdc.tracked_tables.version_column IS 'The column that holds the row''s version vector; NULL for none.';

CREATE OR REPLACE FUNCTION cdc.history() RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
    CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
         ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer END,
    (SELECT oid FROM pg_database WHERE datname = current_database()))
$$;
COMMENT ON FUNCTION cdc.history IS 'system identifier/timeline/database oid: positions and snapshots of another one (a restored dump, a copy, a promoted standby) say nothing here.';

CREATE OR REPLACE FUNCTION cdc.mark() RETURNS pg_lsn LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    most     CONSTANT integer := 1024; -- marks kept; beyond that every second one goes
    present  CONSTANT text := cdc.history();
    seen     pg_snapshot;
    log_end  pg_lsn;
BEGIN
    IF pg_current_xact_id_if_assigned() IS NOT NULL THEN -- a snapshot does not show its own transaction as running
        RAISE EXCEPTION 'cdc.mark() has to be the first write of its transaction'
            USING ERRCODE = 'active_sql_transaction', HINT = 'call it in a transaction of its own';
    END IF;
    seen := pg_current_snapshot();
    log_end := pg_current_wal_insert_lsn(); -- after the snapshot: the order is the proof
    INSERT INTO cdc.marks (lsn, snapshot, history) VALUES (log_end, seen, present) ON CONFLICT (lsn) DO NOTHING;
    DELETE FROM cdc.marks WHERE history <> present
        OR lsn < (SELECT min(visible_lsn) FROM cdc.watermarks WHERE history = present);
    IF (SELECT count(*) FROM cdc.marks) > most THEN
        DELETE FROM cdc.marks WHERE lsn IN (
            SELECT lsn FROM (SELECT lsn, row_number() OVER (ORDER BY lsn DESC) AS place FROM cdc.marks) numbered
            WHERE place % 2 = 0 AND lsn > (SELECT min(lsn) FROM cdc.marks)); -- the one the slowest store stands at stays
    END IF;
    RETURN log_end;
END $$;
COMMENT ON FUNCTION cdc.mark IS 'Takes a mark and removes those that no store needs any more; the end of the log as it was.';

CREATE OR REPLACE FUNCTION cdc.store_bounds(of_table text) RETURNS TABLE (store text, bound bigint) LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp AS $$
SELECT w.store, CASE WHEN w.complete AND w.history = cdc.history() AND w.visible IS NOT NULL THEN least(
    pg_snapshot_xmax(w.visible)::text::bigint,
    (SELECT min(ran::text::bigint) FROM pg_snapshot_xip(w.visible) ran
     WHERE ran NOT IN (SELECT pg_snapshot_xip(pg_current_snapshot()))))
END FROM cdc.watermarks w WHERE w.table_name = of_table
$$;
COMMENT ON FUNCTION cdc.store_bounds IS 'Per store of a table: rows of transactions below the bound are in the store; NULL where nothing is known.';

-- A row shows the low 32 bits of its transaction's id. One that is alive is less than 2^31 behind the next id; one that
-- is further back is frozen, so that any id in the past will do. What our own transaction wrote may lie ahead of it.
CREATE OR REPLACE FUNCTION cdc.whole_xid(low bigint, next bigint, writing boolean) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
SELECT CASE WHEN low < 3 THEN 0
            WHEN writing AND ((low - next) & 4294967295) < 2147483648 THEN NULL
            ELSE next - 1 - ((next - 1 - low) & 4294967295) END
$$;
COMMENT ON FUNCTION cdc.whole_xid IS 'The 64-bit id behind a row''s xmin, given a snapshot''s xmax and whether the own transaction has an id; NULL for a row it may have written itself.';

CREATE OR REPLACE FUNCTION cdc.key_columns(target regclass) RETURNS name[] LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp AS $$
SELECT coalesce(array_agg(a.attname ORDER BY k.place), '{}')
FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid
    AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(number, place)
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number
WHERE c.oid = target AND k.place <= i.indnkeyatts
$$;
COMMENT ON FUNCTION cdc.key_columns IS 'The columns that records of the table are keyed by, in order.';

CREATE OR REPLACE FUNCTION cdc.name_of(target regclass) RETURNS text LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp AS $$
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = target
$$;
COMMENT ON FUNCTION cdc.name_of IS 'schema.table, as the configuration names it.';

CREATE OR REPLACE FUNCTION cdc.status_query(target regclass) RETURNS text LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key  CONSTANT name[] := cdc.key_columns(target);
    odd  text; -- a key of this type has another text in JSON than in a record's key
BEGIN
    SELECT string_agg(format('%s %s', a.attname, format_type(a.atttypid, NULL)), ', ') INTO odd
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = target AND a.attname = ANY (key) AND t.typtype <> 'e' AND a.atttypid <> ALL (
        '{smallint,integer,bigint,uuid,text,varchar,boolean,date}'::regtype[]::oid[]);
    IF key = '{}' OR odd IS NOT NULL THEN
        RAISE EXCEPTION 'rows of % cannot be told apart by their keys: %', target, coalesce(odd, 'it has none')
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'a primary key of integers, uuid, text, boolean, date or enums is needed';
    END IF;
    RETURN format($query$
WITH now AS MATERIALIZED (
    SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next,
           pg_current_xact_id_if_assigned() IS NOT NULL AS writing
), bounds AS MATERIALIZED (
    SELECT store, bound FROM cdc.store_bounds(%1$L)
), known AS MATERIALIZED (
    SELECT array_agg(store ORDER BY store) AS stores, CASE WHEN bool_and(bound IS NOT NULL) THEN min(bound) END AS least
    FROM bounds
), parked AS MATERIALIZED ( -- what the reader itself refused is in no store
    SELECT b.store, l.key FROM cdc.letters l JOIN bounds b ON l.store IN (b.store, 'reader')
    WHERE l.table_name = %1$L AND l.closed_at IS NULL AND l.key IS NOT NULL
)
SELECT %2$s, x.xid::text::xid8 AS xid,
    CASE WHEN f.synced THEN known.stores ELSE ARRAY(
        SELECT store FROM bounds WHERE x.xid < bound AND (store, %4$s) NOT IN (SELECT p.store, p.key FROM parked p)
        ORDER BY store) END AS stores,
    CASE WHEN f.synced THEN '{}' ELSE ARRAY(
        SELECT store FROM bounds
        WHERE x.xid < bound IS NOT TRUE OR (store, %4$s) IN (SELECT p.store, p.key FROM parked p)
        ORDER BY store) END AS lacking,
    f.synced
FROM now CROSS JOIN known CROSS JOIN %3$s m
CROSS JOIN LATERAL (SELECT cdc.whole_xid(m.xmin::text::bigint, now.next, now.writing)) AS x(xid)
CROSS JOIN LATERAL (
    SELECT x.xid < known.least IS TRUE AND %4$s NOT IN (SELECT p.key FROM parked p)
) AS f(synced)$query$,
        cdc.name_of(target), (SELECT string_agg(format('m.%I', k), ', ') FROM unnest(key) k),
        target,
        (SELECT format('jsonb_build_object(%s)', string_agg(format('%L, m.%I', k, k), ', ')) FROM unnest(key) k));
END $$;
COMMENT ON FUNCTION cdc.status_query IS 'The query behind a view of cdc.track().';

CREATE OR REPLACE FUNCTION cdc.track(target regclass, view_name name DEFAULT NULL, version_column name DEFAULT NULL)
    RETURNS name LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    named CONSTANT name := coalesce(view_name,
        (SELECT relname || '_sync_status' FROM pg_class WHERE oid = target));
    rows  CONSTANT name := named || '_rows';
    query CONSTANT text := cdc.status_query(target);
    role  name;
BEGIN
    EXECUTE format('DROP VIEW IF EXISTS cdc.%I', named);
    EXECUTE format('DROP FUNCTION IF EXISTS cdc.%I()', rows);
    -- The text of a function depends on no table: the table can still be altered and dropped. Having no settings of its
    -- own it is put into the query that uses it, so that WHERE id = … goes by the index.
    EXECUTE format('CREATE FUNCTION cdc.%I() RETURNS TABLE (%s, xid xid8, stores text[], lacking text[], synced boolean)'
        ' LANGUAGE sql STABLE AS %L', rows,
        (SELECT string_agg(format('%I %s', k.name, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY k.place)
         FROM unnest(cdc.key_columns(target)) WITH ORDINALITY AS k(name, place)
         JOIN pg_attribute a ON a.attrelid = target AND a.attname = k.name), query);
    EXECUTE format('CREATE VIEW cdc.%I AS SELECT * FROM cdc.%I()', named, rows);
    EXECUTE format('COMMENT ON VIEW cdc.%I IS %L', named, format(
        'Per row of %s: its key, the transaction that wrote it, the stores that have it by their watermarks, those not '
        'proven to have it (yet, or because of an open dead letter), and whether all do.', cdc.name_of(target)));
    FOR role IN SELECT rolname FROM pg_roles WHERE rolname IN ('cdc_viewer', 'cdc_operator') LOOP
        EXECUTE format('GRANT SELECT ON cdc.%I TO %I', named, role);
    END LOOP;
    DELETE FROM cdc.tracked_tables t WHERE t.table_name = cdc.name_of(target);
    INSERT INTO cdc.tracked_tables VALUES (cdc.name_of(target), named, track.version_column);
    RETURN named;
END $$;
COMMENT ON FUNCTION cdc.track IS 'Makes the view cdc.<name> of which stores have which row of a table; again after its key has changed.';

CREATE OR REPLACE FUNCTION cdc.covered(of_table text) RETURNS TABLE (store text, source_rows bigint, covered_rows bigint)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target CONSTANT regclass := to_regclass(
        format('%I.%I', split_part(of_table, '.', 1), split_part(of_table, '.', 2)));
BEGIN
    IF target IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format($query$
WITH now AS MATERIALIZED (
    SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next,
           pg_current_xact_id_if_assigned() IS NOT NULL AS writing
), bounds AS MATERIALIZED (
    SELECT store, bound FROM cdc.store_bounds($1)
), ids AS (
    SELECT cdc.whole_xid(m.xmin::text::bigint, now.next, now.writing) AS xid, count(*) AS rows
    FROM %s m CROSS JOIN now GROUP BY 1
)
SELECT b.store, coalesce(sum(i.rows), 0)::bigint, coalesce(sum(i.rows) FILTER (WHERE i.xid < b.bound), 0)::bigint
FROM bounds b LEFT JOIN ids i ON true GROUP BY b.store$query$, target) USING of_table;
END $$;
COMMENT ON FUNCTION cdc.covered IS 'Per store: the rows a table has now, and those of them that the store''s watermark covers. None for a table that is gone.';

CREATE OR REPLACE FUNCTION cdc.sync_statistics() RETURNS TABLE (store text, table_name text, complete boolean,
    source_rows bigint, covered_rows bigint, store_rows bigint, parked bigint, lag_seconds double precision,
    lag_bytes bigint, recorded_at timestamptz, verified_at timestamptz, verified_equal boolean)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
WITH tables AS (SELECT DISTINCT w.table_name FROM cdc.watermarks w),
    counts AS (SELECT t.table_name, c.* FROM tables t CROSS JOIN LATERAL cdc.covered(t.table_name) c),
    log_end AS (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn)
SELECT w.store, w.table_name, w.complete, c.source_rows, c.covered_rows, w.rows,
    (SELECT count(*) FROM cdc.letters l
     WHERE l.table_name = w.table_name AND l.store = w.store AND l.closed_at IS NULL),
    CASE WHEN w.position IS NOT NULL -- GREATEST passes NULL over, and an unknown lag is not 0
         THEN greatest(0, extract(epoch FROM clock_timestamp() - w.committed_at))::double precision END,
    CASE WHEN w.position IS NOT NULL THEN greatest(0, e.lsn - w.lsn)::bigint END, w.recorded_at, v.ended_at, v.equal
FROM cdc.watermarks w CROSS JOIN log_end e
LEFT JOIN counts c ON c.table_name = w.table_name AND c.store = w.store
LEFT JOIN LATERAL (SELECT r.ended_at, r.equal FROM cdc.verify_runs r
    WHERE r.store = w.store AND r.table_name = w.table_name ORDER BY r.ended_at DESC, r.id DESC LIMIT 1) v ON true
ORDER BY w.table_name, w.store
$$;
COMMENT ON FUNCTION cdc.sync_statistics IS 'Per store and table: rows at the source, those the watermark covers, the store''s own count, open letters, lag in seconds and bytes of WAL, the newest verify run. Reads each table once.';

CREATE OR REPLACE FUNCTION cdc.check_record(of_table text, record_key jsonb) RETURNS TABLE (present boolean, xid bigint,
    version jsonb, stores text[], lacking text[], letters jsonb, conflicts jsonb)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    newest CONSTANT integer := 10; -- conflicts shown
    target CONSTANT regclass := format('%I.%I', split_part(of_table, '.', 1), split_part(of_table, '.', 2));
    named  CONSTANT text := (SELECT string_agg(format('s.%I = %L', k.key, k.value), ' AND ')
                             FROM jsonb_each_text(record_key) k);
    column_named CONSTANT name := (SELECT t.version_column FROM cdc.tracked_tables t WHERE t.table_name = of_table);
BEGIN
    IF NOT cdc.key_columns(target)::text[] <@ ARRAY(SELECT jsonb_object_keys(record_key)) THEN
        RAISE EXCEPTION 'the key of % is %', of_table, cdc.key_columns(target) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('SELECT true, s.xid::text::bigint, s.stores, s.lacking FROM (%s) s WHERE %s',
        cdc.status_query(target), named) INTO present, xid, stores, lacking;
    present := coalesce(present, false);
    IF column_named IS NOT NULL THEN
        EXECUTE format('SELECT to_jsonb(s) -> %L FROM %s s WHERE %s', column_named, target, named) INTO version;
    END IF;
    stores := coalesce(stores, '{}');
    lacking := coalesce(lacking, '{}');
    SELECT coalesce(jsonb_agg(to_jsonb(l) ORDER BY l.refused_at DESC), '[]') INTO letters FROM cdc.letters l
        WHERE l.table_name = of_table AND l.key = record_key AND l.closed_at IS NULL;
    SELECT coalesce(jsonb_agg(to_jsonb(c) ORDER BY c.id DESC), '[]') INTO conflicts FROM (
        SELECT * FROM cdc.conflicts k WHERE k.table_name = of_table AND k.key = record_key
        ORDER BY k.id DESC LIMIT newest) c;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION cdc.check_record IS 'One row, by {key column: value}: whether it is there, its version, the stores that have it, open dead letters, the newest conflicts.';

CREATE OR REPLACE FUNCTION cdc.check_memory(id uuid) RETURNS TABLE (present boolean, xid bigint, version jsonb,
    stores text[], lacking text[], letters jsonb, conflicts jsonb)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT * FROM cdc.check_record('public.memories', jsonb_build_object('id', check_memory.id))
$$;
COMMENT ON FUNCTION cdc.check_memory IS 'cdc.check_record() of one row of public.memories.';

DO $$
BEGIN
    PERFORM cdc.track('public.memories', 'memory_sync_status', 'version_vector');
END $$;
