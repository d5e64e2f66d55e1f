"""The source is not what it was: set back to a copy, recovered to an earlier point, failed over, made anew.

Each is refused before anything of it is written, says what was lost, and is mended by a resync.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.errors import GapError, PreconditionError
from cdc.kafka.progress import read_progress
from cdc.reader import Reader
from cdc.resync import resync
from tests.comparison import assert_equal_everywhere, assert_in_order, table_dump
from tests.crash.cluster import Cluster, prepared
from tests.pipeline import MEMORIES, ReaderTask, Running, pipeline, source
from tests.waiting import LIMIT_SECONDS, until

ROWS = """
INSERT INTO memories (id, content, embedding)
SELECT n, %s::text, array[n,0,0,0,0,0,0,1] FROM generate_series(%s::int, %s::int) n
"""


def change(config: Config, content: str, first: int, last: int) -> None:
    """Inserts rows."""
    with source(config) as connection:
        connection.execute(ROWS.encode(), [content, first, last])


@asynccontextmanager
async def following(servers: Endpoints, cluster: Cluster, folder: Path) -> AsyncIterator[Running]:
    """A pipeline over the cluster that has caught up with 40 rows."""
    config = prepared(servers, cluster, folder)
    change(config, "first", 1, 40)
    async with pipeline(config) as running:
        await running.caught_up()
        yield running


async def refused(config: Config, words: str, running: Running | None = None) -> GapError:
    """Waits for the refusal, of a running reader or of a new one; nothing was written by it."""
    before = await table_dump(config)
    reader = running.source.task if running else asyncio.ensure_future(Reader(config, gap_seconds=0).run())
    with pytest.raises(GapError, match=words) as caught:
        await asyncio.wait_for(reader, LIMIT_SECONDS)
    assert "cdc resync" in caught.value.hint
    assert await table_dump(config) == before
    print("refused:", caught.value.message)
    return caught.value


async def mended(running: Running) -> None:
    """A resync makes all equal again, and what comes then arrives."""
    assert (await resync(running.config)).epoch == 2
    running.source = ReaderTask(running.config)
    await running.caught_up()
    change(running.config, "after", 900, 910)
    await running.caught_up()
    assert_in_order(await assert_equal_everywhere(running))


async def test_files_put_back(servers: Endpoints, cluster: Cluster, tmp_path: Path) -> None:
    """Same system, same timeline, a slot with an earlier place: positions come again with other content."""
    async with following(servers, cluster, tmp_path) as running:
        config = running.config
        copy = await cluster.saved()
        change(config, "lost", 41, 80)
        await running.caught_up()
        await cluster.set_back(copy)  # under the running reader
        await refused(config, "set back: its WAL ends at", running)
        await refused(config, "set back: its WAL ends at")
        progress = await read_progress(config)
        assert progress is not None
        number = 100
        while cluster.lsn() <= progress.end_lsn + 10_000:
            change(config, "other", number, number + 9)
            number += 10
        for _ in range(2):  # and it stays refused: the slot was not told to move
            await refused(config, "written anew")
        await mended(running)


async def test_files_put_back_where_no_row_was_lost_go_on(servers: Endpoints, cluster: Cluster, tmp_path: Path) -> None:
    """The files of the very end: nothing is between, and so nothing is refused."""
    async with following(servers, cluster, tmp_path) as running:
        config = running.config
        await running.source.stop()
        copy = await cluster.saved()
        change(config, "unseen", 41, 50)
        await cluster.set_back(copy)
        change(config, "other", 41, 45)
        running.source = ReaderTask(config)
        await running.caught_up()
        assert_in_order(await assert_equal_everywhere(running))


async def test_a_standby_is_refused_until_and_after_its_promotion(
    servers: Endpoints, cluster: Cluster, tmp_path: Path
) -> None:
    async with following(servers, cluster, tmp_path) as running:
        config = running.config
        standby = await asyncio.to_thread(cluster.base_backup, "standby", "-R")
        await asyncio.to_thread(standby.start)
        postgres = config.postgres.model_copy(update={"dsn": standby.dsn})
        with pytest.raises(PreconditionError, match="a standby that was not promoted"):
            await Reader(config.model_copy(update={"postgres": postgres}), gap_seconds=0).run()
        change(config, "before", 41, 60)
        await running.caught_up()
        target = cluster.lsn()
        replayed = "SELECT pg_last_wal_replay_lsn() - '0/0'"
        await until(lambda: int(cluster.query(replayed, standby.dsn)) >= target, "the standby caught up")
        await cluster.immediate()
        cluster.query("SELECT pg_promote()", standby.dsn)
        await cluster.replaced_by(standby)
        await refused(config, "timeline .* up to .* timeline", running)
        change(config, "unseen", 61, 70)
        cluster.query(
            f"SELECT pg_create_logical_replication_slot('{config.postgres.slot}', '{config.postgres.plugin}')"
        )
        await refused(config, "timeline .* up to .* timeline")  # also with a slot of that name
        await mended(running)


async def test_recovered_to_an_earlier_point(servers: Endpoints, cluster: Cluster, tmp_path: Path) -> None:
    async with following(servers, cluster, tmp_path) as running:
        config = running.config
        earlier = await asyncio.to_thread(cluster.base_backup, "earlier")
        change(config, "kept", 41, 50)
        cluster.query("SELECT pg_create_restore_point('spot')")
        change(config, "lost", 51, 70)
        await running.caught_up()
        cluster.query("SELECT pg_switch_wal()")
        recovery = f"restore_command = 'cp {cluster.server.data}/pg_wal/%f %p'\n"
        recovery += "recovery_target_name = 'spot'\nrecovery_target_action = 'promote'\n"
        with (earlier.data / "postgresql.auto.conf").open("a") as file:
            file.write(recovery)
        (earlier.data / "recovery.signal").touch()
        await cluster.replaced_by(earlier)
        await until(lambda: cluster.query("SELECT pg_is_in_recovery()") == "False", "the end of recovery")
        assert cluster.query("SELECT count(*) FROM memories") == "50"
        await refused(config, "timeline .* up to .* timeline")
        await running.source.crash()
        await mended(running)


async def test_another_cluster_or_database(servers: Endpoints, cluster: Cluster, tmp_path: Path) -> None:
    async with following(servers, cluster, tmp_path) as running:
        config = running.config
        await running.source.stop()
        with closing(source(config.model_copy(update={"postgres": admin(config)}))) as connection:
            connection.execute("DROP DATABASE memories WITH (FORCE)")
            connection.execute("CREATE DATABASE memories")
        cluster.query(MEMORIES)
        change(config, "new", 1, 20)
        await refused(config, "is gone while progress stands at .*committed")
        cluster.query(
            f"SELECT pg_create_logical_replication_slot('{config.postgres.slot}', '{config.postgres.plugin}')"
        )
        await refused(config, "lost to the stream")
        await mended(running)
        await running.source.stop()
        await cluster.replaced_by(cluster.spare("anew"))
        cluster.query(MEMORIES)
        change(config, "new", 1, 20)
        await refused(config, "is of system")
        assert (await resync(config)).epoch == 3
        running.source = ReaderTask(config)
        await running.caught_up()
        await assert_equal_everywhere(running)


def admin(config: Config) -> object:
    """The same server's other database."""
    return config.postgres.model_copy(update={"dsn": config.postgres.dsn.replace("/memories", "/postgres")})
