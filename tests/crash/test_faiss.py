"""The index's snapshots under damage, forgery, a full disk and power cuts: never loaded wrong, never lost."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from prometheus_client import REGISTRY

from cdc.embedded import Endpoints
from cdc.errors import ConnectError
from consumers.faiss import FaissStore
from consumers.faiss.folder import POINTER, Home
from consumers.faiss.snapshot import INDEX, LEDGER, MANIFEST, TEMPORARY
from consumers.store import Record
from tests.chance import seeded
from tests.crash.disk import Disk, mounted
from tests.crash.filesystem import Crash, disk_after, recorded, write_out
from tests.crash.stores import becomes_equal, committed, consuming, settings, table
from tests.vector_records import TOPIC, batch, config, deletion, opened, record, vectors
from tests.waiting import until

CORRUPTIONS = int(os.environ.get("CDC_CRASH_CORRUPTIONS", "1000"))
INPUTS = int(os.environ.get("CDC_CRASH_INPUTS", "10000"))
FUZZERS = 2  # processes
DISK_BYTES = 4 << 20
FULL_ROUNDS = 40
PREFIX_ROUNDS = int(os.environ.get("CDC_CRASH_ROUNDS", "1"))
SEEN = ("public", "memories")
DIMENSION = 4


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of fsyncs take minutes on a disk that others use too."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path))
    yield made
    shutil.rmtree(made)


class State(NamedTuple):
    """What an index is: its offsets, each key's position, each key's vector."""

    offsets: dict[tuple[str, int], int]
    held: dict[bytes, bytes]
    vectors: dict[bytes, bytes | None]


async def state_of(store: FaissStore) -> State:
    held = {key: position async for key, position in store.scan(*SEEN)}
    found = {key: await store.vector_of(key) for key in held}
    offsets = {**store.loaded().offsets}
    return State(offsets, held, {key: None if v is None else v.tobytes() for key, v in found.items()})


def history() -> list[Record]:
    """What the topic holds, by offset: inserts, updates, deletes."""
    data, records = vectors(60, DIMENSION), []
    for offset in range(60):
        key = offset % 25
        gone = offset % 11 == 7
        made = deletion(key, offset + 1, offset) if gone else record(key, offset + 1, data[offset], offset=offset)
        records.append(made)
    return records


HISTORY = history()
STOPS = (20, 40, 60)  # offsets of the snapshots that there are, and of the end


async def replay(store: FaissStore, until: int) -> None:
    """What a consumer does: from the store's own offset on."""
    start = store.loaded().offsets.get((TOPIC, 0), 0)
    if start < until:
        await store.apply(batch(HISTORY[start:until]))


@pytest.fixture
async def home(fast: Path) -> tuple[Path, dict[int, State]]:
    """An index with two snapshots, and its state at each stop."""
    states = {0: State({}, {}, {})}
    async with opened(config(fast / "good", metric="l2")) as store:
        for stop in STOPS:
            await replay(store, stop)
            states[stop] = await state_of(store)
            if stop != STOPS[-1]:
                await store.flush(force=True)
    return fast / "good", states


# damage


def damage(home: Path, chance: random.Random) -> None:
    """One way."""
    generation = home / "gen-1"
    number = chance.choice((1, 2, 2))
    folder = generation / f"snapshot-{number}"
    way = chance.choice(("flip", "flip", "cut", "cut", "append", "block", "missing", "unnamed", "mixed", "pointer"))
    if way == "pointer":
        _damage_file(home / POINTER, chance.choice(("flip", "cut", "append", "missing")), chance)
        return
    if way == "unnamed" and folder.exists():  # the rename did not reach the disk
        folder.rename(generation / f"{TEMPORARY}{folder.name}")
    elif way == "mixed":
        other = generation / f"snapshot-{3 - number}"
        names = chance.sample((MANIFEST, LEDGER, INDEX), chance.randint(1, 2))
        for name in names:
            if (other / name).exists() and folder.exists():
                shutil.copyfile(other / name, folder / name)
            elif folder.exists():
                (folder / name).unlink(missing_ok=True)
    elif folder.exists():
        paths = sorted(folder.iterdir())
        if paths:
            _damage_file(chance.choice(paths), way, chance)


def _damage_file(path: Path, way: str, chance: random.Random) -> None:
    if not path.exists() or way == "missing":
        path.unlink(missing_ok=True)
        return
    data = bytearray(path.read_bytes())
    at = chance.randrange(max(1, len(data)))
    if way == "flip" and data:
        data[at] ^= 1 << chance.randrange(8)
    elif way == "cut":
        del data[at:]
    elif way == "block" and data:
        end = min(len(data), at + 512)
        data[at:end] = bytes(byte ^ 0xFF for byte in data[at:end])
    else:
        data += chance.choice((b"\n", b" ", b"\0", b"}"))
    path.write_bytes(data)


def whole(bad: Path, good: Path) -> tuple[int, set[str]]:
    """By comparing bytes: the offset of the newest snapshot that is whole (0: none), and what is damaged before it."""
    damaged = set()
    for number in (2, 1):
        folder = bad / "gen-1" / f"snapshot-{number}"
        for original in (2, 1):
            if folder.exists() and files(folder) == files(good / "gen-1" / f"snapshot-{original}"):
                return STOPS[original - 1], damaged
        damaged.add(folder.name)
    return 0, damaged


def files(folder: Path) -> dict[str, bytes]:
    """What is in it."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_no_corruption_loads_silently(home: tuple[Path, dict[int, State]], fast: Path) -> None:
    """What is loaded is exactly the newest snapshot that is whole, or nothing; a replay makes it equal."""
    good, states = home
    chance = seeded()
    loaded = dict.fromkeys((0, *STOPS[:2]), 0)
    for number in range(CORRUPTIONS):
        bad = fast / "bad"
        shutil.copytree(good, bad)
        for _ in range(chance.choice((1, 1, 2))):
            damage(bad, chance)
        expected, damaged = whole(bad, good)
        async with opened(config(bad, metric="l2")) as store:
            assert await state_of(store) == states[expected], f"corruption {number}"
            loaded[expected] += 1
            await replay(store, STOPS[-1])
            assert await state_of(store) == states[STOPS[-1]], f"corruption {number}"
        assert damaged.isdisjoint(path.name for path in (bad / "gen-1").iterdir()), (
            "a damaged one was left in its place"
        )
        shutil.rmtree(bad)
    print(f"{CORRUPTIONS} corruptions; loaded: {loaded} (offset of the snapshot → times; 0: none, all is replayed)")


# forgery


def test_forged_snapshots_are_refused_or_work(fast: Path) -> None:
    """With seals that are right; in processes of their own, whose memory and time are bounded."""
    chance = seeded()
    fuzzers = []
    for number in range(FUZZERS):
        folder = fast / str(number)
        folder.mkdir()
        command = [sys.executable, "-m", "tests.crash.snapshot_fuzz", str(chance.randrange(1 << 32))]
        command += [str(INPUTS // FUZZERS), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        fuzzers.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        )
    told = [fuzzer.communicate()[0] for fuzzer in fuzzers]
    for fuzzer, text in zip(fuzzers, told, strict=True):
        print(text)
        assert fuzzer.returncode == 0, text


# a full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", DISK_BYTES) as made:
        yield made


async def test_a_full_disk_at_any_byte_of_a_snapshot(disk: Disk) -> None:
    """Each try either gives a whole snapshot or none, and the offsets are those of the last whole one."""
    chance, made = seeded(), config(disk.path / "index", metric="l2", keep_snapshots=1)
    failed = 0
    async with opened(made) as store:
        data = vectors(400, DIMENSION)
        durable: Any = {}
        for number in range(FULL_ROUNDS):
            changes = [record(key, 1000 * number + key + 1, data[key], offset=key) for key in range(400)]
            await store.apply(batch(changes, offset=number + 1))
            disk.leave(chance.choice((0, 4096, chance.randrange(120_000), chance.randrange(60_000))))
            try:
                durable = await store.flush(force=True)
            except ConnectError as error:
                failed += "No space left" in error.message
            assert await store.flush() == durable
            disk.clear()
            if number % 4 == 3:
                copy = disk.path.with_name("copy")
                shutil.copytree(disk.path / "index", copy)
                async with opened(config(copy, metric="l2")) as other:
                    assert dict(other.loaded().offsets) == durable
                shutil.rmtree(copy)
        assert await store.flush(force=True) == {(TOPIC, 0): FULL_ROUNDS}
    assert 0 < failed < FULL_ROUNDS
    print(f"{failed} of {FULL_ROUNDS} snapshots met a full disk")


async def test_a_start_on_a_full_disk_waits_for_space(disk: Disk) -> None:
    disk.leave(0)
    store = FaissStore(config(disk.path / "index"))
    for _ in range(2):
        with pytest.raises(ConnectError, match="No space left"):
            await store.open()
    disk.clear()
    assert await store.open() == {}
    await store.close()


async def test_consuming_goes_on_while_the_disk_is_full(servers: Endpoints, disk: Disk, tmp_path: Path) -> None:
    def written() -> float | None:
        return REGISTRY.get_sample_value("cdc_index_snapshot_timestamp_seconds", {"store": "faiss"})

    data = settings(servers.kafka_bootstrap, "redis://unused", tmp_path, faiss={"path": str(disk.path / "index")})
    async with table(data, seeded()) as made, consuming(made.config, "faiss") as consumer:
        await becomes_equal(made, consumer)
        await until(lambda: bool(list((disk.path / "index/gen-1").glob("snapshot-*"))), "a snapshot")
        await until(lambda: consumer.store._running().keeper._running is None, "no snapshot under way")
        disk.leave(0)
        before, offsets = written(), await consumer.store.flush()
        for _ in range(10):
            await made.change()
            await becomes_equal(made, consumer)
        await consumer.store.settle()
        assert await consumer.store.flush() == offsets
        assert written() == before  # its age is the alert's input
        assert all(at <= offsets.get(place, 0) for place, at in (await committed(made.config, "faiss")).items())
        disk.clear()
        ends = await made.ends()

        async def durable() -> bool:
            return dict(await consumer.store.flush()) == ends

        await until(durable, "a snapshot of all of it")
        assert written() != before


# power cuts


async def test_a_power_cut_between_any_two_file_operations(fast: Path) -> None:
    """Every prefix of what a first start, three snapshots, a rebuild and a roll-back do to the disk; each with what
    was not synced lost, kept, cut in order, and taken at will."""
    chance = seeded()
    root = fast / "root"
    root.mkdir()
    made = config(root / "a" / "index", metric="l2", keep_snapshots=1)
    states = [State({}, {}, {})]
    with recorded(root) as recording:
        async with opened(made) as store:
            for stop in STOPS:
                await replay(store, stop)
                states.append(await state_of(store))
                await store.flush(force=True)
                recording.mark(len(states) - 1)
            shadow = await store.shadow()
            await shadow.open()
            await shadow.apply(batch([record(7, 1, vectors(1, DIMENSION)[0])]))
            states.append(await state_of(shadow))
            await store.swap()
            recording.mark(len(states) - 1)
    operations = len(recording.operations)
    assert operations > 50, recording.operations
    cuts = 0
    for length in range(operations + 1):
        for crash in get_args(Crash):
            for _ in range(PREFIX_ROUNDS if crash in ("nothing more", "everything") else 2 * PREFIX_ROUNDS):
                after = fast / "after"
                write_out(disk_after(recording, length), after, crash, chance)
                async with opened(config(after / "a" / "index", metric="l2")) as store:
                    found = await state_of(store)
                assert found in states, (length, crash, recording.operations[:length][-3:])
                assert states.index(found) >= recording.promised(length), (length, crash)
                shutil.rmtree(after)
                cuts += 1
    assert Home(root / "a" / "index").current() == ("gen-2", "gen-1")
    print(f"{operations} operations, {cuts} power cuts")
