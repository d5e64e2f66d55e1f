-- The canonical table: agents' memories. Any table works; this one is what the demo and the examples use.
-- REPLICA IDENTITY FULL brings the old values of unchanged TOAST columns along, so that every record in Kafka holds
-- the whole row without a query.
CREATE SCHEMA IF NOT EXISTS cdc;

CREATE OR REPLACE FUNCTION cdc.bump_version() RETURNS trigger LANGUAGE plpgsql AS $$
-- Counts this writer's changes of the row: {origin: counter}. The origin is the setting cdc.origin of the session, or
-- the database's name.
DECLARE
    origin text := coalesce(nullif(current_setting('cdc.origin', true), ''), current_database());
BEGIN
    NEW.version_vector := coalesce(NEW.version_vector, '{}')
        || jsonb_build_object(origin, coalesce((NEW.version_vector ->> origin)::bigint, 0) + 1);
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END $$;

CREATE TABLE IF NOT EXISTS public.memories (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id        text NOT NULL,
    kind           text NOT NULL DEFAULT 'note',
    content        text NOT NULL,
    metadata       jsonb NOT NULL DEFAULT '{}',
    importance     real CHECK (importance BETWEEN 0 AND 1), -- no NaN: wal2json cannot show it, so NULLs would be re-read
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    version_vector jsonb NOT NULL DEFAULT '{}'
);
ALTER TABLE public.memories REPLICA IDENTITY FULL;

CREATE OR REPLACE TRIGGER memories_version BEFORE INSERT OR UPDATE ON public.memories
    FOR EACH ROW EXECUTE FUNCTION cdc.bump_version();
