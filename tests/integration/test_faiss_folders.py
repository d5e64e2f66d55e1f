"""The FAISS store's folders: whose they are, rebuilds, losses, full disks, damage, wrong settings."""

from __future__ import annotations

import asyncio
import errno
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdc.errors import ConfigError, ConnectError, StoreError, StoreLost
from consumers.faiss import FaissStore
from tests.vector_records import (
    DIMENSION,
    SEEN,
    TOPIC,
    batch,
    config,
    fill,
    opened,
    record,
    vectors,
)

OTHER = """
import asyncio, sys
from pathlib import Path
from tests.vector_records import config
from cdc.errors import StoreError
from consumers.faiss import FaissStore
try:
    asyncio.run(FaissStore(config(Path(sys.argv[1]))).open())
except StoreError as error:
    print(error)
    sys.exit(3)
"""


async def test_two_processes_cannot_have_one_folder(tmp_path: Path) -> None:
    async with opened(config(tmp_path)):
        run = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", OTHER, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert run.returncode == 3, run.stderr
        assert "is in use by process" in run.stdout
        assert "→" in run.stdout
        with pytest.raises(StoreError, match="in use"):
            await FaissStore(config(tmp_path)).open()
    async with opened(config(tmp_path)):
        pass  # free again


async def test_a_rebuild_is_swapped_in_and_put_back(tmp_path: Path) -> None:
    async with opened(config(tmp_path)) as live:
        data = await fill(live, 20)
        await live.flush(force=True)
        elsewhere = FaissStore(config(tmp_path))  # the rebuild: never opened, most often another process
        shadow = await elsewhere.shadow()
        assert await shadow.open() == {}
        await fill(shadow, 30)
        await live.check()
        assert await live.count(*SEEN) == 20
        await elsewhere.swap()
        assert await live.count(*SEEN) == 20  # until it looks
        with pytest.raises(StoreLost, match="was replaced by gen-2"):
            await live.check()
        await live.close()
        assert len((await live.search(data[:1], 50))[0]) == 20  # what the runtime does: the old one answers until then
        assert await live.open() == {(TOPIC, 0): 30}
        await live.check()
        assert len((await live.search(data[:1], 50))[0]) == 30
        await elsewhere.rollback()
        with pytest.raises(StoreLost, match="was replaced by gen-1"):
            await live.check()
        assert await live.open() == {(TOPIC, 0): 20}
        with pytest.raises(StoreError, match="put back"):
            await elsewhere.rollback()
        with pytest.raises(StoreError, match="no shadow"):
            await elsewhere.swap()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["CURRENT", "gen-1", "gen-2"]
    await FaissStore(config(tmp_path)).shadow()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["CURRENT", "gen-1"]


async def test_a_folder_that_vanishes_is_noticed_and_filled_again(tmp_path: Path) -> None:
    path = tmp_path / "index"
    async with opened(config(path)) as store:
        await fill(store, 20)
        await store.flush(force=True)
        shutil.rmtree(path / "gen-1" / "snapshot-1")
        await store.check()
        assert await store.flush(force=True) == {(TOPIC, 0): 20}
        assert (path / "gen-1" / "snapshot-1" / "manifest.json").exists()
        shutil.rmtree(path)
        await store.check()
        assert await store.flush(force=True) == {(TOPIC, 0): 20}
        with pytest.raises(StoreError, match="in use"):  # the lock is on the new folder
            await FaissStore(config(path)).open()
    async with opened(config(path)) as store:
        assert await store.count(*SEEN) == 20


async def test_a_full_disk_moves_no_offset_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with opened(config(tmp_path, snapshot_records=5)) as store:
        await fill(store, 10)
        with monkeypatch.context() as patched:
            patched.setattr("consumers.faiss.keeper.write", full)
            assert await store.flush() == {}
            await store.settle()
            assert await store.flush() == {}
            with pytest.raises(ConnectError, match="cannot be written: No space left"):
                await store.flush(force=True)
        assert await store.flush(force=True) == {(TOPIC, 0): 10}


async def test_damage_falls_back_to_the_snapshot_before_and_other_settings_to_a_replay(tmp_path: Path) -> None:
    async with opened(config(tmp_path)) as store:
        await fill(store, 10)
        await store.flush(force=True)
        await fill(store, 20, lsn=1000)
        await store.flush(force=True)
    index = tmp_path / "gen-1" / "snapshot-2" / "index.faiss"
    data = bytearray(index.read_bytes())
    data[-1] ^= 1
    index.write_bytes(data)
    async with opened(config(tmp_path)) as store:
        assert await store.flush() == {(TOPIC, 0): 10}
        assert await store.count(*SEEN) == 10
        assert (tmp_path / "gen-1" / "damaged-snapshot-2").is_dir()
    for other in (
        config(tmp_path, metric="l2"),
        config(tmp_path, dimension=8),
        config(tmp_path, table={"text": "content"}),
    ):
        async with opened(other) as store:
            assert await store.flush() == {}
    async with opened(config(tmp_path, dimension=DIMENSION)) as store:
        assert await store.flush() == {(TOPIC, 0): 10}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"table": {"user": "user_id"}}, "neither a vector nor a text column"),
        ({"table": {"text": "content"}, "dimension": 3}, "the embedder gives 64"),
        ({"table_name": "memories"}, "is not schema.table"),
    ],
)
def test_a_wrong_configuration_is_named_at_once(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    wrong = dict(settings)
    faiss = {"table": wrong.pop("table_name")} if "table_name" in wrong else {}
    made = config(tmp_path, table=wrong.pop("table", None), **wrong)
    if faiss:
        made = made.model_copy(update={"faiss": made.faiss.model_copy(update=faiss)})
    with pytest.raises(ConfigError, match=sentence) as caught:
        FaissStore(made)
    assert caught.value.hint


async def test_using_a_store_that_is_not_open_says_so(tmp_path: Path) -> None:
    store = FaissStore(config(tmp_path))
    for step in (
        store.apply(batch([record(1, 1, None)])),
        store.flush(),
        store.check(),
        store.search(vectors(1, 3), 1),
    ):
        with pytest.raises(StoreError, match=r"not open|not loaded"):
            await step
    await store.close()
    file = tmp_path / "a file"
    file.write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        await FaissStore(config(file / "index")).open()
