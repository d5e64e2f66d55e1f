-- Up to where each dead-letter topic is mirrored in cdc.letters: written in the same transaction as the letters, so that
-- each entry of a topic is taken in exactly once, whoever mirrors, and pruned letters do not come back.
CREATE TABLE IF NOT EXISTS cdc.mirrors (
    store       text PRIMARY KEY CHECK (store <> ''),
    log         text NOT NULL,
    next_offset bigint NOT NULL CHECK (next_offset >= 0),
    mirrored_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE cdc.mirrors IS 'Up to where each store''s dead-letter topic is mirrored in cdc.letters.';
COMMENT ON COLUMN cdc.mirrors.store IS 'Whose dead letters: a store, or reader.';
COMMENT ON COLUMN cdc.mirrors.log IS 'Kafka''s id of the topic: one made anew is mirrored from its beginning.';
COMMENT ON COLUMN cdc.mirrors.next_offset IS 'The first entry not taken in yet.';
COMMENT ON COLUMN cdc.mirrors.mirrored_at IS 'When the topic''s end was last seen and taken in.';

DO $$
DECLARE
    role name;
BEGIN
    FOR role IN SELECT rolname FROM pg_roles WHERE rolname IN ('cdc_viewer', 'cdc_operator') LOOP
        EXECUTE format('GRANT SELECT ON cdc.mirrors TO %I', role);
    END LOOP;
    FOR role IN SELECT rolname FROM pg_roles WHERE rolname = 'cdc_operator' LOOP
        EXECUTE format('GRANT INSERT, UPDATE ON cdc.mirrors TO %I', role);
    END LOOP;
END $$;
