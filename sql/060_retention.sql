-- What is old goes: SELECT * FROM cdc.prune(). For a scheduler: nothing calls it by itself.
CREATE OR REPLACE FUNCTION cdc.prune(keep interval DEFAULT '90 days', keep_audit interval DEFAULT '365 days')
    RETURNS TABLE (what text, removed bigint) LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    least_audit CONSTANT interval := '30 days'; -- who may call this must not be able to wipe out what he did
    oldest      CONSTANT timestamptz := clock_timestamp() - keep;
BEGIN
    IF keep < '0' OR keep_audit < least_audit THEN
        RAISE EXCEPTION 'the audit log is kept for % at least', least_audit USING ERRCODE = 'invalid_parameter_value';
    END IF;
    what := 'signals';
    DELETE FROM cdc.signals s WHERE s.outcome IS NOT NULL AND s.taken_at < oldest;
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN NEXT;
    what := 'verify_runs'; -- the newest of each store and table stays, however old: it is what is known
    DELETE FROM cdc.verify_runs r WHERE r.ended_at < oldest AND EXISTS (
        SELECT FROM cdc.verify_runs newer WHERE newer.store = r.store AND newer.table_name = r.table_name
            AND (newer.ended_at, newer.id) > (r.ended_at, r.id));
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN NEXT;
    what := 'jobs';
    DELETE FROM cdc.jobs j WHERE j.ended_at < oldest;
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN NEXT;
    what := 'letters';
    DELETE FROM cdc.letters l WHERE l.closed_at < oldest;
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN NEXT;
    what := 'conflicts';
    DELETE FROM cdc.conflicts c WHERE c.noticed_at < oldest;
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN NEXT;
    what := 'audit';
    DELETE FROM cdc.audit a WHERE a.at < clock_timestamp() - keep_audit;
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN NEXT;
    what := 'row_changes';
    DELETE FROM cdc.row_changes r WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = r.target);
    GET DIAGNOSTICS removed = ROW_COUNT;
    removed := removed + cdc.fold_counts();
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION cdc.prune IS 'Removes what is older than keep, of the audit log what is older than keep_audit, and folds the counters; how many rows of which table. What is open or waits stays.';
