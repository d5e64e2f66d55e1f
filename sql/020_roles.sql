-- Roles with no more rights than their work needs (docs/security.md): cdc_reader streams and snapshots, cdc_viewer compares
-- and counts. Both are made without LOGIN; whoever runs the database lets them in, with a password of his own:
-- ALTER ROLE cdc_reader LOGIN, then \password cdc_reader in psql.
-- Roles belong to the whole server: they may be there already, or be made by another session at this moment. Where
-- this session may not make roles they are left out, and any other role will do: `cdc doctor` names what it lacks.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'cdc_reader') THEN
        CREATE ROLE cdc_reader NOLOGIN REPLICATION;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN RAISE NOTICE 'cdc_reader was made meanwhile';
    WHEN insufficient_privilege THEN RAISE NOTICE 'cdc_reader is left out: %', SQLERRM;
END $$;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'cdc_viewer') THEN
        CREATE ROLE cdc_viewer NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN RAISE NOTICE 'cdc_viewer was made meanwhile';
    WHEN insufficient_privilege THEN RAISE NOTICE 'cdc_viewer is left out: %', SQLERRM;
END $$;

CREATE OR REPLACE FUNCTION cdc.allow(VARIADIC tables regclass[]) RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
-- Lets both roles read these tables, and nothing else. To be called by who may grant on them: SELECT cdc.allow('public.notes').
DECLARE
    target regclass;
    role   name;
BEGIN
    FOREACH target IN ARRAY tables LOOP
        FOR role IN SELECT rolname FROM pg_roles WHERE rolname IN ('cdc_reader', 'cdc_viewer') LOOP
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I',
                (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = target), role);
            EXECUTE format('GRANT SELECT ON TABLE %s TO %I', target, role); -- a regclass writes itself, quoted
        END LOOP;
    END LOOP;
END $$;

DO $$
BEGIN
    PERFORM cdc.allow('public.memories');
END $$;
