"""The control schema's records, from Python: what may be written, by whom, and what may not be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection

from cdc.control import audit, incidents, signals, verify_runs, watermarks
from cdc.control.jobs import SILENT, Job
from cdc.control.retention import prune
from cdc.errors import PreconditionError
from cdc.migrations import migrate

TABLE = "public.memories"
NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=400)
TAKERS, SIGNALS = 4, 60
RUN = verify_runs.VerifyRun(
    store="redis", table=TABLE, started_at=NOW, ended_at=NOW, position="0" * 32, rows=7, run_by="test"
)
LETTER = incidents.Letter(
    id="t:0:1:", store="redis", table=TABLE, key={"id": "a"}, reason="dimension", message="3 of 8", topic="t",
    partition=0, offset=1, position=None, refused_at=NOW,
)  # fmt: skip
CONFLICT = incidents.Conflict(
    store="redis", table=TABLE, key={"id": "a"}, held={"a": 1}, incoming={"b": 1}, kept="held", position="0" * 32
)


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    """A superuser's, to an empty control schema."""
    migrate(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "TRUNCATE cdc.watermarks, cdc.jobs, cdc.signals, cdc.verify_runs, cdc.letters, cdc.conflicts, cdc.marks,"
            " cdc.schedules; DELETE FROM cdc.audit"
        )
        yield connection


def all_of(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode()).fetchall()


# jobs


def test_a_jobs_life(connection: Connection) -> None:
    job = Job.create(connection, "verify", {"store": "redis"}, "a person")
    assert (job.state, job.arguments, job.asked_by, job.started_at) == ("queued", {"store": "redis"}, "a person", None)
    job = job.start(connection, {"rows": 1})
    job = job.advance(connection, 3, 10, "comparing")
    job = job.advance(connection)  # alive, nothing new
    assert (job.state, job.done, job.total, job.stage, job.cancelling) == ("running", 3, 10, "comparing", False)
    ended = job.succeed(connection, {"rows": 2})
    assert (ended.state, ended.before, ended.after) == ("succeeded", {"rows": 1}, {"rows": 2})
    assert Job.read(connection, job.id) == ended
    for step in (job.start, job.advance, job.succeed, job.cancel, lambda c: job.fail(c, "why")):
        with pytest.raises(PreconditionError, match="is succeeded"):
            step(connection)
    assert Job.ask_to_cancel(connection, job.id) is None
    assert Job.read(connection, job.id) == ended
    with pytest.raises(PreconditionError, match="not there any more"):
        replace(job, id=uuid4()).advance(connection)


def test_jobs_are_cancelled(connection: Connection) -> None:
    waiting, running = (Job.create(connection, kind, {}, "me") for kind in ("rebuild", "repair"))
    running = running.start(connection)
    for job in (waiting, running):
        Job.ask_to_cancel(connection, job.id)
    assert (again := Job.read(connection, waiting.id)) is not None
    assert again.state == "cancelled"
    with pytest.raises(PreconditionError):
        waiting.start(connection)
    running = running.advance(connection, 1)
    assert running.cancelling
    assert running.cancel(connection).state == "cancelled"
    assert [job.kind for job in Job.newest(connection, 1)] == ["repair"]


def test_a_job_whose_process_is_gone(connection: Connection) -> None:
    silent, alive, waiting = (Job.create(connection, "verify", {}, "me") for _ in range(3))
    silent, alive = silent.start(connection), alive.start(connection)
    connection.execute("UPDATE cdc.jobs SET touched_at = touched_at - interval '1 hour' WHERE id <> %s", [alive.id])
    failed = Job.fail_silent(connection, timedelta(minutes=5))
    assert [(job.id, job.state, job.error) for job in failed] == [(silent.id, "failed", SILENT)]
    assert {job.id: job.state for job in Job.newest(connection)} == {
        silent.id: "failed", alive.id: "running", waiting.id: "queued",
    }  # fmt: skip


# signals


def test_each_signal_is_taken_once(connection: Connection, database: str) -> None:
    asked = [signals.ask(connection, "verify", {"n": n}, "me") for n in range(SIGNALS)]
    start = threading.Barrier(TAKERS)

    def take(number: int) -> list[int]:
        taken: list[int] = []
        with psycopg.connect(database) as own:
            start.wait()
            while found := signals.take(own, f"process {number}", 3):
                taken += [signal.id for signal in found]
                own.commit()
        return taken

    with ThreadPoolExecutor(TAKERS) as pool:
        taken = [signal for of_one in pool.map(take, range(TAKERS)) for signal in of_one]
    assert sorted(taken) == asked


def test_a_signal_becomes_a_job_or_is_refused(connection: Connection) -> None:
    first, second = (signals.ask(connection, "snapshot", {"table": TABLE}, "me") for _ in range(2))
    with pytest.raises(PreconditionError, match="was not taken"):
        signals.refuse(connection, first, "why")
    with connection.transaction():
        taken = signals.take(connection, "gateway")
        job = Job.create(connection, taken[0].kind, taken[0].arguments, taken[0].asked_by)
        signals.accept(connection, taken[0].id, job.id)
        signals.refuse(connection, taken[1].id, "one at a time")
    assert [signal.id for signal in taken] == [first, second]
    assert all_of(connection, "SELECT outcome, reason, job_id FROM cdc.signals ORDER BY id") == [
        ("accepted", None, job.id), ("refused", "one at a time", None),
    ]  # fmt: skip
    with pytest.raises(PreconditionError, match="has its answer"):
        signals.accept(connection, first, job.id)
    assert signals.take(connection, "gateway") == []


def test_a_process_that_dies_leaves_its_signals(connection: Connection, database: str) -> None:
    signals.ask(connection, "verify", {}, "me")
    with psycopg.connect(database) as dying:
        assert len(signals.take(dying, "dying")) == 1
        assert signals.take(connection, "other") == []  # does not wait for it
        dying.rollback()
    assert len(signals.take(connection, "other")) == 1


# what is kept of verify runs, letters, conflicts, calls


def test_verify_runs(connection: Connection) -> None:
    verify_runs.record_verify(connection, replace(RUN, missing=2, ended_at=NOW - timedelta(hours=1)))
    newest = replace(RUN, share=0.5)
    verify_runs.record_verify(connection, newest)
    faiss = replace(RUN, store="faiss", error="it was away")
    verify_runs.record_verify(connection, faiss)
    assert verify_runs.newest(connection) == [faiss, newest]
    assert [run.equal for run in (faiss, newest, replace(RUN, stale=1))] == [False, True, False]
    assert all_of(connection, "SELECT equal FROM cdc.verify_runs ORDER BY id") == [(False,), (True,), (False,)]


def test_letters_and_conflicts_are_mirrors(connection: Connection) -> None:
    for _again in range(2):
        incidents.mirror_letters(connection, [LETTER, replace(LETTER, id="other", key=None, table=None)])
        incidents.record_conflicts(connection, [CONFLICT, CONFLICT])
    incidents.mirror_letters(connection, [replace(LETTER, closed_at=NOW, outcome="superseded")])
    assert all_of(connection, "SELECT id, outcome FROM cdc.letters ORDER BY id") == [
        ("other", None), ("t:0:1:", "superseded"),
    ]  # fmt: skip
    assert all_of(connection, "SELECT held, incoming, kept FROM cdc.conflicts") == [({"a": 1}, {"b": 1}, "held")]
    incidents.mirror_letters(connection, [LETTER])  # a refilled store refused it anew
    assert all_of(connection, "SELECT closed_at, outcome FROM cdc.letters WHERE id = 't:0:1:'") == [(None, None)]


def test_the_audit_log_is_not_rewritten(connection: Connection) -> None:
    job = Job.create(connection, "verify", {}, "me")
    audit.write(connection, "me", "verify", {"store": "redis"}, "allowed", origin="10.0.0.1", job=job.id)
    audit.write(connection, "nobody", "verify", {}, "refused", reason="no key")
    kept = all_of(connection, "SELECT actor, action, outcome, reason, origin, job_id FROM cdc.audit ORDER BY id")
    assert kept == [("me", "verify", "allowed", None, "10.0.0.1", job.id),
                    ("nobody", "verify", "refused", "no key", None, None)]  # fmt: skip
    for statement in ("UPDATE cdc.audit SET actor = 'you'", "TRUNCATE cdc.audit"):  # by a superuser
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)
    with pytest.raises(psycopg.errors.CheckViolation):
        audit.write(connection, "me", "verify", {}, "refused")


def test_retention(connection: Connection) -> None:
    for age in (OLD, NOW):
        job = Job.create(connection, "verify", {}, "me").start(connection)
        connection.execute("UPDATE cdc.jobs SET state = 'succeeded', ended_at = %s WHERE id = %s", [age, job.id])
        signals.ask(connection, "verify", {}, "me")
        taken = signals.take(connection, "me")[0]
        signals.refuse(connection, taken.id, "why")
        connection.execute("UPDATE cdc.signals SET taken_at = %s WHERE id = %s", [age, taken.id])
        incidents.mirror_letters(connection, [replace(LETTER, id=str(age), closed_at=age, outcome="redriven")])
    Job.create(connection, "verify", {}, "me").start(connection)  # what is open stays, however old
    incidents.mirror_letters(connection, [replace(LETTER, refused_at=OLD)])
    signals.ask(connection, "verify", {}, "me")
    for store, ages in {"redis": (OLD, OLD, NOW), "faiss": (OLD, OLD)}.items():  # the newest stays
        for age in ages:
            verify_runs.record_verify(connection, replace(RUN, store=store, started_at=age, ended_at=age))
    incidents.record_conflicts(connection, [CONFLICT])
    connection.execute("UPDATE cdc.conflicts SET noticed_at = %s", [OLD])
    connection.execute("INSERT INTO cdc.audit (at, actor, action, outcome) VALUES (%s, 'me', 'x', 'allowed')", [OLD])
    audit.write(connection, "me", "verify", {}, "allowed")
    assert prune(connection) == {
        "signals": 1, "verify_runs": 3, "jobs": 1, "letters": 1, "conflicts": 1, "audit": 1, "row_changes": 0,
    }  # fmt: skip
    assert sum(prune(connection).values()) == 0
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        prune(connection, keep_audit=timedelta(days=1))


# states that cannot be


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO cdc.jobs (kind, state) VALUES ('x', 'running')",
        "INSERT INTO cdc.jobs (kind, state, ended_at) VALUES ('x', 'failed', now())",
        "INSERT INTO cdc.jobs (kind, ended_at) VALUES ('x', now())",
        "INSERT INTO cdc.jobs (kind, state) VALUES ('x', 'paused')",
        "INSERT INTO cdc.jobs (kind, arguments) VALUES ('x', '[]')",
        "INSERT INTO cdc.jobs (kind, state, ended_at) VALUES ('x', 'cancelled', now())",
        "INSERT INTO cdc.signals (kind) VALUES ('dance')",
        "INSERT INTO cdc.signals (kind, outcome) VALUES ('verify', 'accepted')",
        "INSERT INTO cdc.signals (kind, taken_at) VALUES ('verify', now())",
        "INSERT INTO cdc.signals (kind, taken_at, taken_by, outcome) VALUES ('verify', now(), 'me', 'refused')",
        "INSERT INTO cdc.watermarks (store, table_name, history, complete) VALUES ('redis', 'public.x', '', true)",
        "INSERT INTO cdc.watermarks (store, table_name, history, complete) VALUES ('redis', 'x', '', false)",
        "INSERT INTO cdc.watermarks (store, table_name, history, complete, position, committed_at, visible,"
        " visible_lsn) VALUES ('redis', 'public.x', '', true, repeat('0', 32), now(), '1:1:', '0/1')",
        "INSERT INTO cdc.watermarks (store, table_name, history, complete, position, committed_at)"
        " VALUES ('redis', 'public.x', '', true, repeat('A', 32), now())",
        "INSERT INTO cdc.letters (id, store, reason, topic, partition, \"offset\", refused_at, outcome)"
        " VALUES ('a', 'redis', 'r', 't', 0, 0, now(), 'redriven')",
        "INSERT INTO cdc.verify_runs (store, table_name, started_at, ended_at, rows, missing, extra, stale, different,"
        " unsettled) VALUES ('redis', 'public.x', now(), now(), 1, -1, 0, 0, 0, 0)",
    ],
)  # fmt: skip
def test_wrong_states_are_impossible(connection: Connection, statement: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(statement.encode())


def test_a_job_that_has_ended_stays(connection: Connection) -> None:
    job = Job.create(connection, "verify", {}, "me").start(connection)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="at work"):
        connection.execute("UPDATE cdc.jobs SET state = 'queued', started_at = NULL")
    job.fail(connection, "why")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="has ended"):
        connection.execute("UPDATE cdc.jobs SET stage = 'x'")


# rights


@pytest.fixture
def as_role(connection: Connection, database: str) -> Iterator[Any]:
    """A connection as one of the roles."""
    made: list[Connection] = []

    def open_as(role: str) -> Connection:
        made.append(psycopg.connect(database, autocommit=True))
        made[-1].execute(f"SET ROLE {role}".encode())
        return made[-1]

    yield open_as
    for opened in made:
        opened.close()


def test_the_operator_can_keep_everything(as_role: Any, connection: Connection) -> None:
    operator = as_role("cdc_operator")
    connection.execute("INSERT INTO memories (user_id, content) VALUES ('a', 'b')")
    watermarks.record(operator, [watermarks.Watermark("redis", TABLE, "0" * 32, NOW, True, 1)])
    job = Job.create(operator, "verify", {}, "me").start(operator)
    job.advance(operator, 1)
    job.succeed(operator)
    signals.ask(operator, "verify", {}, "me")
    signals.refuse(operator, signals.take(operator, "me")[0].id, "why")
    verify_runs.record_verify(operator, RUN)
    incidents.mirror_letters(operator, [LETTER, LETTER])
    incidents.record_conflicts(operator, [CONFLICT])
    audit.write(operator, "me", "verify", {}, "allowed")
    prune(operator)
    for query in ("memory_sync_status", "sync_statistics()", "row_counts", "audit", "check_memory(gen_random_uuid())"):
        all_of(operator, f"SELECT * FROM cdc.{query}")
    for statement in (
        "UPDATE cdc.audit SET actor = 'you'", "DELETE FROM cdc.audit", "DELETE FROM cdc.jobs",
        "CREATE TABLE cdc.mine ()",
        "INSERT INTO memories (user_id, content) VALUES ('a', 'b')", "UPDATE cdc.migrations SET name = ''",
        "SELECT cdc.count_rows('memories')", "SELECT cdc.fold_counts()", "INSERT INTO cdc.row_changes DEFAULT VALUES",
    ):  # fmt: skip
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            operator.execute(statement.encode())


def test_the_viewer_only_looks(as_role: Any) -> None:
    viewer = as_role("cdc_viewer")
    for query in ("memory_sync_status", "sync_statistics()", "jobs", "row_counts", "check_memory(gen_random_uuid())"):
        all_of(viewer, f"SELECT * FROM cdc.{query}")
    for statement in (
        "INSERT INTO cdc.signals (kind) VALUES ('verify')", "SELECT cdc.mark()", "SELECT * FROM cdc.audit",
        "UPDATE cdc.jobs SET kind = 'x'", "SELECT * FROM cdc.prune()", "DELETE FROM cdc.watermarks",
    ):  # fmt: skip
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            viewer.execute(statement.encode())


def test_the_reader_and_anybody_see_the_ledger_alone(as_role: Any, connection: Connection) -> None:
    tables = [name for (name,) in all_of(connection, "SELECT tablename FROM pg_tables WHERE schemaname = 'cdc'")]
    reader = as_role("cdc_reader")
    assert all_of(reader, "SELECT count(*) > 0 FROM cdc.migrations") == [(True,)]
    for name in set(tables) - {"migrations", "conditions"}:  # of backfills, which the reader runs
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            all_of(reader, f"SELECT * FROM cdc.{name}")
