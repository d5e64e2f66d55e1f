-- Who may do what in the control schema; cdc_reader needs none of it. cdc_viewer looks, cdc_operator (the gateway) keeps
-- the records and may not rewrite the audit log. An application that is to ask by signals: GRANT INSERT (kind, arguments)
-- ON cdc.signals TO app.
CREATE OR REPLACE FUNCTION cdc.allow(VARIADIC tables regclass[]) RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target regclass;
    role   name;
BEGIN
    FOREACH target IN ARRAY tables LOOP
        FOR role IN SELECT rolname FROM pg_roles WHERE rolname IN ('cdc_reader', 'cdc_viewer', 'cdc_operator') LOOP
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I',
                (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = target), role);
            EXECUTE format('GRANT SELECT ON TABLE %s TO %I', target, role); -- a regclass writes itself, quoted
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION cdc.allow IS 'Lets the roles of the pipeline read these tables, and nothing else. For who may grant on them.';

-- What runs with its owner's rights is for those named below, and for nobody else.
REVOKE EXECUTE ON FUNCTION cdc.count_changes, cdc.fold_counts, cdc.prune FROM PUBLIC;

DO $$
DECLARE
    looks CONSTANT text := 'cdc.watermarks, cdc.jobs, cdc.signals, cdc.verify_runs, cdc.letters, cdc.conflicts, cdc.marks,'
        ' cdc.tracked_tables, cdc.row_changes, cdc.row_counts, cdc.memory_sync_status';
    role  name;
BEGIN
    FOR role IN SELECT rolname FROM pg_roles WHERE rolname IN ('cdc_viewer', 'cdc_operator') LOOP
        EXECUTE format('GRANT SELECT ON %s TO %I', looks, role);
    END LOOP;
    FOR role IN SELECT rolname FROM pg_roles WHERE rolname = 'cdc_operator' LOOP
        EXECUTE format('GRANT SELECT, INSERT ON cdc.audit TO %I', role);
        EXECUTE format('GRANT INSERT, UPDATE ON cdc.watermarks, cdc.jobs, cdc.signals, cdc.letters TO %I', role);
        EXECUTE format('GRANT INSERT ON cdc.verify_runs, cdc.conflicts TO %I', role);
        EXECUTE format('GRANT INSERT, DELETE ON cdc.marks TO %I', role);
        EXECUTE format('GRANT EXECUTE ON FUNCTION cdc.prune TO %I', role);
    END LOOP;
    PERFORM cdc.allow('public.memories');
END $$;
