#!/bin/sh
# Runs once, on an empty data folder: the migrations in their order, then the reader's role with no more rights than
# it needs (docs/operations.md#roles).
set -eu

database() { psql --no-psqlrc -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" "$@"; }

for migration in /migrations/[0-9]*.sql; do
    database -f "$migration"
done

# psql reads the password itself, so that it appears in no process list.
database <<'SQL'
\set password `cat /run/secrets/cdc_password`
SELECT NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'cdc') AS missing \gset
\if :missing
CREATE ROLE cdc LOGIN REPLICATION;
\endif
ALTER ROLE cdc PASSWORD :'password';
GRANT USAGE ON SCHEMA public, cdc TO cdc;
GRANT SELECT ON public.memories TO cdc;
SELECT NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'memory_cdc') AS missing \gset
\if :missing
CREATE PUBLICATION memory_cdc FOR TABLE public.memories WITH (publish_via_partition_root = false);
\endif
SQL
