"""sql/ in a database: each file once, in order, noted; and what is refused instead of guessed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from cdc import migrations
from cdc.doctor.finding import Finding
from cdc.doctor.migrations import check
from cdc.errors import PreconditionError
from cdc.migrations import Migration, applied, migrate

KNOWN = migrations.migrations()
NAMES = [file.name for file in KNOWN]
TOGETHER = 6  # programs that migrate at once


def execute(dsn: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def found(dsn: str) -> list[Finding]:
    """What the doctor says of it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return list(check(connection))


def assert_refused(dsn: str, text: str, remedy: str) -> None:
    """By the migration, which changes nothing, and by the doctor, in the same words."""
    before = execute(dsn, "SELECT * FROM cdc.migrations ORDER BY number")
    with pytest.raises(PreconditionError, match=text) as refused:
        migrate(dsn)
    assert remedy in refused.value.hint
    assert execute(dsn, "SELECT * FROM cdc.migrations ORDER BY number") == before
    assert [(finding.level, finding.text, finding.remedy) for finding in found(dsn)] == [
        ("error", refused.value.message, refused.value.hint)
    ]


def test_each_file_once_in_order(dsn: str) -> None:
    assert [finding.level for finding in found(dsn)] == ["warning"]
    assert migrate(dsn) == NAMES
    assert sorted(NAMES) == NAMES
    with psycopg.connect(dsn) as connection:
        assert [(a.number, a.name, a.sha256) for a in applied(connection)] == [
            (file.number, file.name, file.sha256) for file in KNOWN
        ]
    assert migrate(dsn) == []
    assert [finding.level for finding in found(dsn)] == ["ok"]


def test_a_database_of_before_is_adopted(dsn: str) -> None:
    for file in KNOWN:
        if file.number in (10, 20):
            execute(dsn, file.text)
    execute(dsn, "INSERT INTO memories (user_id, content) VALUES ('a', 'kept')")
    assert [finding.level for finding in found(dsn)] == ["warning"]
    assert migrate(dsn) == NAMES
    assert execute(dsn, "SELECT content FROM memories") == [("kept",)]


def test_files_run_by_hand_are_adopted(dsn: str) -> None:
    """As a container's first start does: psql, and nobody notes it."""
    for file in KNOWN:
        execute(dsn, file.text)
    execute(dsn, "INSERT INTO cdc.jobs (kind) VALUES ('verify')")
    assert migrate(dsn) == NAMES
    assert execute(dsn, "SELECT kind FROM cdc.jobs") == [("verify",)]


def test_a_changed_file_is_refused(dsn: str) -> None:
    migrate(dsn)
    execute(dsn, "UPDATE cdc.migrations SET sha256 = repeat('0', 64) WHERE number = 10")
    assert_refused(dsn, "010_memories.sql is not what was applied", "the next number")


def test_a_file_that_was_never_applied_is_refused(dsn: str) -> None:
    migrate(dsn)
    execute(dsn, "DELETE FROM cdc.migrations WHERE number = 20")
    assert_refused(dsn, "020_roles.sql was never applied", "give the file the next number")


def test_a_file_that_is_gone_is_refused(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(dsn)
    shown = [file for file in KNOWN if file.number != 20]
    monkeypatch.setattr(migrations, "migrations", lambda: shown)
    monkeypatch.setattr("cdc.doctor.migrations.migrations", lambda: shown)
    assert_refused(dsn, "020_roles.sql was applied, and this program does not have it", "or a newer one")


def test_a_newer_database_is_refused(dsn: str) -> None:
    migrate(dsn)
    note = "INSERT INTO cdc.migrations (number, name, sha256) VALUES (999, '999_later.sql', repeat('0', 64))"
    execute(dsn, note)
    assert_refused(dsn, "newer than this program: it has sql/999_later.sql", "or a newer one")


def test_what_is_to_come_is_said(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(dsn)
    monkeypatch.setattr(
        "cdc.doctor.migrations.migrations", lambda: [*KNOWN, Migration(998, "998_next.sql", "SELECT 1")]
    )
    finding = found(dsn)[0]
    assert (finding.level, finding.text) == ("warning", f"sql/ is applied up to {NAMES[-1]}, 998_next.sql is to come")


def test_a_file_that_fails_leaves_nothing(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Migration(999, "999_broken.sql", "CREATE TABLE cdc.half (); SELECT 1 / 0")
    last = Migration(998, "998_sound.sql", "CREATE TABLE cdc.whole ()")
    monkeypatch.setattr(migrations, "migrations", lambda: [*KNOWN, last, broken])
    with pytest.raises(PreconditionError, match="999_broken"):
        migrate(dsn)
    there = execute(dsn, "SELECT tablename FROM pg_tables WHERE tablename IN ('half', 'whole')")
    assert there == [("whole",)]  # each file is a transaction of its own
    assert execute(dsn, "SELECT max(number) FROM cdc.migrations") == [(998,)]


def test_programs_that_migrate_at_once(dsn: str) -> None:
    with ThreadPoolExecutor(TOGETHER) as pool:
        done = list(pool.map(migrate, [dsn] * TOGETHER))
    assert sorted(done) == [[]] * (TOGETHER - 1) + [NAMES]


@pytest.mark.parametrize(("names", "text"), [(("010_a.sql", "010_b.sql"), "same number"), (("x.sql",), "no number")])
def test_files_are_numbered(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], text: str) -> None:
    (tmp_path / "sql").mkdir()
    for name in names:
        (tmp_path / "sql" / name).write_text("SELECT 1")
    monkeypatch.setattr(migrations, "files", lambda _package: tmp_path)
    with pytest.raises(PreconditionError, match=text):
        migrations.migrations()


def test_a_table_and_column_without_a_word_is_none_of_ours(dsn: str) -> None:
    """Whoever looks with \\d+ is told what everything is."""
    migrate(dsn)
    silent = execute(
        dsn,
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind = 'r'"
        " WHERE n.nspname = 'cdc' AND c.relkind IN ('r', 'v') AND (obj_description(c.oid, 'pg_class') IS NULL"
        " OR (a.attnum IS NOT NULL AND col_description(c.oid, a.attnum) IS NULL))",
    )
    assert silent == []
    assert (
        execute(
            dsn,
            "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'cdc'::regnamespace"
            " AND obj_description(p.oid, 'pg_proc') IS NULL"
            " AND p.proname NOT IN ('bump_version', 'memory_sync_status_rows')",
        )
        == []
    )
