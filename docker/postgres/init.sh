#!/bin/sh
# Runs once, on an empty data folder: the migrations in their order, then the role of reader and gateway with no more
# rights than they need (docs/operations.md#roles).
set -eu

database() { psql --no-psqlrc -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" "$@"; }

# Each is noted as applied, as `cdc init` does: what is deployed can then be told from what ought to be.
for migration in /migrations/[0-9]*.sql; do
    name=$(basename "$migration") sum=$(sha256sum "$migration")
    database --single-transaction -f "$migration" \
        -c "INSERT INTO cdc.migrations (number, name, sha256) VALUES ('${name%%_*}', '$name', '${sum%% *}')"
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
GRANT cdc_operator TO cdc;
SELECT NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'memory_cdc') AS missing \gset
\if :missing
CREATE PUBLICATION memory_cdc FOR TABLE public.memories WITH (publish_via_partition_root = false);
\endif
SQL
