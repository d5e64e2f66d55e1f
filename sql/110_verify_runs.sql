-- Who compares also says what came out: `cdc verify` runs as cdc_viewer where roles are used.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'cdc_viewer') THEN
        GRANT INSERT ON cdc.verify_runs TO cdc_viewer;
    END IF;
END $$;
