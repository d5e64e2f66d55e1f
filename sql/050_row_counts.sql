-- A count of a table's rows without reading the table, kept by triggers on request: SELECT cdc.count_rows('public.notes').
-- A transaction adds one row of its own for each table it changes; no two ever write the same row, so that counting
-- makes nobody wait, deadlock or fail to serialize. Reading sums them; cdc.fold_counts() makes one row of many.
CREATE TABLE IF NOT EXISTS cdc.row_changes (
    target regclass NOT NULL,
    xid    xid8 NOT NULL,
    rows   bigint NOT NULL,
    PRIMARY KEY (target, xid)
);
COMMENT ON TABLE cdc.row_changes IS 'By how many rows each transaction changed each counted table; the sum is the count.';
COMMENT ON COLUMN cdc.row_changes.target IS 'The table.';
COMMENT ON COLUMN cdc.row_changes.xid IS 'The transaction; of a row that several were folded into, the one that did it.';
COMMENT ON COLUMN cdc.row_changes.rows IS 'Rows added less rows removed.';

CREATE OR REPLACE VIEW cdc.row_counts AS
    SELECT r.target, cdc.name_of(r.target) AS table_name, sum(r.rows)::bigint AS rows, count(*) AS transactions
    FROM cdc.row_changes r JOIN pg_class c ON c.oid = r.target GROUP BY r.target;
COMMENT ON VIEW cdc.row_counts IS 'The counted tables with their exact number of rows; transactions says how many rows were summed for that.';

CREATE OR REPLACE FUNCTION cdc.latest_only() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'the rows of a table can only be counted, or a counted one truncated, by the newest snapshot'
            USING ERRCODE = 'active_sql_transaction', HINT = 'do it in a transaction that is READ COMMITTED';
    END IF;
END $$;
COMMENT ON FUNCTION cdc.latest_only IS 'TRUNCATE removes rows that an old snapshot does not see: what is to be subtracted can only be told by a fresh one.';

-- With its owner's rights: who may write to a table needs none on the counters.
CREATE OR REPLACE FUNCTION cdc.count_changes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    change bigint;
BEGIN
    IF TG_OP = 'INSERT' THEN
        change := (SELECT count(*) FROM fresh);
    ELSIF TG_OP = 'DELETE' THEN
        change := -(SELECT count(*) FROM gone);
    ELSE
        PERFORM cdc.latest_only();
        change := -(SELECT sum(c.rows) FROM cdc.row_changes c WHERE c.target = TG_RELID);
    END IF;
    IF change <> 0 THEN
        INSERT INTO cdc.row_changes AS own VALUES (TG_RELID, pg_current_xact_id(), change)
        ON CONFLICT (target, xid) DO UPDATE SET rows = own.rows + excluded.rows;
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION cdc.count_changes IS 'Trigger, once a statement.';

CREATE OR REPLACE FUNCTION cdc.count_rows(target regclass) RETURNS bigint LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    present bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = target AND c.relkind = 'r' AND NOT c.relispartition
                   AND NOT EXISTS (SELECT FROM pg_inherits i WHERE target IN (i.inhrelid, i.inhparent))) THEN
        RAISE EXCEPTION '% is no ordinary table', target USING ERRCODE = 'wrong_object_type',
            HINT = 'a statement on a parent changes its partitions and the other way round: count those by count(*)';
    END IF;
    PERFORM cdc.latest_only();
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', target); -- writers wait until this has committed
    DELETE FROM cdc.row_changes c WHERE c.target = count_rows.target;
    EXECUTE format('CREATE OR REPLACE TRIGGER cdc_count_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS fresh'
        ' FOR EACH STATEMENT EXECUTE FUNCTION cdc.count_changes()', target);
    EXECUTE format('CREATE OR REPLACE TRIGGER cdc_count_delete AFTER DELETE ON %s REFERENCING OLD TABLE AS gone'
        ' FOR EACH STATEMENT EXECUTE FUNCTION cdc.count_changes()', target);
    EXECUTE format('CREATE OR REPLACE TRIGGER cdc_count_truncate AFTER TRUNCATE ON %s'
        ' FOR EACH STATEMENT EXECUTE FUNCTION cdc.count_changes()', target);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER cdc_count_insert, ENABLE ALWAYS TRIGGER cdc_count_delete,'
        ' ENABLE ALWAYS TRIGGER cdc_count_truncate', target);
    EXECUTE format('SELECT count(*) FROM %s', target) INTO present;
    INSERT INTO cdc.row_changes VALUES (target, pg_current_xact_id(), present);
    RETURN present;
END $$;
COMMENT ON FUNCTION cdc.count_rows IS 'Begins to count a table''s rows, which reads it once; the number of rows. For a role that owns the table and this schema.';

CREATE OR REPLACE FUNCTION cdc.uncount_rows(target regclass) RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('DROP TRIGGER IF EXISTS cdc_count_insert ON %s', target);
    EXECUTE format('DROP TRIGGER IF EXISTS cdc_count_delete ON %s', target);
    EXECUTE format('DROP TRIGGER IF EXISTS cdc_count_truncate ON %s', target);
    DELETE FROM cdc.row_changes c WHERE c.target = uncount_rows.target;
END $$;
COMMENT ON FUNCTION cdc.uncount_rows IS 'Ends that, and forgets the count.';

CREATE OR REPLACE FUNCTION cdc.fold_counts() RETURNS bigint LANGUAGE sql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
WITH many AS (
    SELECT c.target FROM cdc.row_changes c GROUP BY c.target HAVING count(*) > 1
), taken AS (
    SELECT c.target, c.xid FROM cdc.row_changes c JOIN many USING (target) FOR UPDATE OF c SKIP LOCKED
), folded AS (
    DELETE FROM cdc.row_changes c USING taken t WHERE c.target = t.target AND c.xid = t.xid RETURNING c.target, c.rows
), summed AS (
    INSERT INTO cdc.row_changes SELECT f.target, pg_current_xact_id(), sum(f.rows) FROM folded f GROUP BY f.target
)
SELECT count(*) FROM folded
$$;
COMMENT ON FUNCTION cdc.fold_counts IS 'Makes one row of those of finished transactions; how many they were. Nobody waits for it.';
