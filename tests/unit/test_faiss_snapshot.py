"""A snapshot loads exactly as it was written, or not at all."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from cdc.errors import DecodeError, StoreError
from consumers.faiss import image
from consumers.faiss.arrays import Ids
from consumers.faiss.columns import VectorColumn
from consumers.faiss.content import Content
from consumers.faiss.folder import Generation, Home
from consumers.faiss.snapshot import MANIFEST, Kindred, load, read_manifest, sealed, take, write
from consumers.faiss.training import build
from tests.vector_records import deletion, key_of, position, record, vectors

OURS = Kindred("public.memories", "column embedding", "", "cosine", 8)
CORRUPTIONS = 200


def filled(kind: str = "flat") -> Content:
    content = empty()
    data = vectors(60, 8)
    content.apply([record(n, 10 + n, data[n]) for n in range(60)] + [record(90, 5, None), deletion(91, 6)])
    content.offsets = {("t.public.memories", 0): 62, ("t.public.memories", 3): 7}
    content.passed = {("t.public.other", 0): 9}
    if kind == "ivf" and content.index is not None:
        content.touched = set()
        content.replace(build("ivf", *content.index.dump(), "cosine"))
    return content


def empty() -> Content:
    return Content(VectorColumn("embedding", "cosine", None), "cosine")


def state_of(content: Content) -> Any:
    hits = [[(h.key, round(h.score, 5)) for h in found] for found in content.search(vectors(5, 8, seed=1), 60, 99)]
    ids: Ids = content.ledger.look_up([key_of(n) for n in range(95)])
    versions = content.versions([key_of(n) for n in range(95)])
    return (
        hits,
        ids.tolist(),
        versions,
        dict(content.offsets),
        dict(content.passed),
        content.watermark,
        content.ledger.floor,
    )


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_what_was_written_is_what_is_loaded(tmp_path: Path, kind: str) -> None:
    content, again = filled(kind), empty()
    content.truncate(position(12))
    write(tmp_path / "snapshot-1", take(content, OURS))
    load(tmp_path / "snapshot-1", read_manifest(tmp_path / "snapshot-1"), again)
    assert state_of(again) == state_of(content)
    assert again.index is not None
    assert again.index.kind == kind
    assert again.source.dimension == 8
    for each in (content, again):  # and both go on alike
        each.apply(
            [record(1, 500, np.ones(8, np.float32)), record(200, 501, -np.ones(8, np.float32)), deletion(2, 502)]
        )
    assert state_of(again) == state_of(content)


def test_a_ledger_is_packed_in_pieces_between_which_searches_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "PIECE_ROWS", 7)
    content, answers = filled(), []
    content.ledger.forget(content.ledger.look_up([key_of(3), key_of(50)]))
    parts = image.pack(content.ledger, lambda: answers.append(content.search(vectors(1, 8), 1, 1)))
    assert len(answers) == len(parts) > 2 * 60 // 7
    found = msgspec.msgpack.decode(b"".join(parts), type=image.Image)
    ids = np.frombuffer(found.ids, "<i8")
    assert found.keys == content.ledger.keys[ids].tolist()
    assert found.vectors == content.ledger.vectors[ids].tolist()
    again = image.unpack(b"".join(parts))
    assert b"".join(image.pack(again)) == b"".join(parts)
    assert (again.free, again.room) == (content.ledger.free, content.ledger.room)


def test_the_copy_does_not_follow_what_comes_later(tmp_path: Path) -> None:
    content, again = filled(), empty()
    before = state_of(content)
    taken = take(content, OURS)
    content.apply([record(n, 900, np.ones(8, np.float32)) for n in range(120)])
    content.offsets[("t.public.memories", 0)] = 1000
    write(tmp_path / "snapshot-1", taken)
    load(tmp_path / "snapshot-1", read_manifest(tmp_path / "snapshot-1"), again)
    assert state_of(again) == before


def test_nothing_but_deletes_has_no_index_file(tmp_path: Path) -> None:
    content, again = empty(), empty()
    content.apply([record(1, 1, None), deletion(2, 2)])
    write(tmp_path / "snapshot-1", take(content, OURS))
    load(tmp_path / "snapshot-1", read_manifest(tmp_path / "snapshot-1"), again)
    assert again.held() == [(key_of(1), position(1))]
    assert again.index is None


def corrupt(folder: Path, chance: random.Random) -> str:
    """Damages one file in one way; says which."""
    path = chance.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    way = chance.choice(["flip", "flip", "flip", "cut", "append", "remove", "zero", "swap"])
    at = chance.randrange(len(data))
    if way == "flip":
        data[at] ^= 1 << chance.randrange(8)
    elif way == "cut":
        del data[at:]
    elif way == "append":
        data += bytes(chance.choice([b"\n", b" ", b"\0", b"}"]))
    elif way == "zero":
        end = min(len(data), at + 64)
        data[at:end] = bytes(b ^ 0xFF for b in data[at:end])
    elif way == "swap":
        path.unlink()
        path.mkdir()
        return f"{path.name} became a folder"
    if way == "remove":
        path.unlink()
    else:
        path.write_bytes(data)
    return f"{path.name}: {way} at {at}"


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_no_corruption_loads_silently(tmp_path: Path, kind: str) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    write(tmp_path / "good", take(filled(kind), OURS))
    for number in range(CORRUPTIONS // 2):
        folder = tmp_path / f"bad-{number}"
        shutil.copytree(tmp_path / "good", folder)
        done = corrupt(folder, chance)
        with pytest.raises(DecodeError) as caught:
            read_manifest(folder)
        assert caught.value.hint, done
        shutil.rmtree(folder)
    read_manifest(tmp_path / "good")


def test_another_format_and_a_manifest_that_lies_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot-1"
    write(folder, take(filled(), OURS))
    good = (folder / MANIFEST).read_bytes()
    inner = good[good.index(b'"manifest": ') + len(b'"manifest": ') : -2]
    for old, new, sentence in (
        (b'"format": 2', b'"format": 1', "format 1"),
        (b'"vectors": 60', b'"vectors": 61', "is not the manifest's"),
    ):
        lie = inner.replace(old, new)
        assert lie != inner
        (folder / MANIFEST).write_bytes(sealed(msgspec.json.format(lie, indent=-1)))
        with pytest.raises(DecodeError, match=sentence):
            load(folder, read_manifest(folder), empty())


def test_damaged_ones_are_named_and_set_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    generation = Generation(tmp_path)
    for number in range(1, 4):
        assert generation.next_snapshot() == tmp_path / f"snapshot-{number}"
        write(generation.next_snapshot(), take(filled(), OURS))
    (tmp_path / "snapshot-3" / "index.faiss").write_bytes(b"x")
    (tmp_path / "snapshot-2" / MANIFEST).unlink()
    with capture_logs() as logs:
        assert [folder.name for folder, _manifest in generation.usable(OURS)] == ["snapshot-1"]
    assert [(log["log_level"], Path(log["snapshot"]).name) for log in logs] == [
        ("error", "snapshot-3"),
        ("error", "snapshot-2"),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged-snapshot-2", "damaged-snapshot-3", "snapshot-1"]
    assert generation.next_snapshot().name == "snapshot-4"


@pytest.mark.parametrize(
    "theirs",
    [
        Kindred("public.memories", "column embedding", "", "l2", 8),
        Kindred("public.memories", "column embedding", "", "cosine", 9),
        Kindred("public.memories", "hash of column content", "hash-1-8", "cosine", 8),
        Kindred("public.notes", "column embedding", "", "cosine", 8),
    ],
)
def test_a_snapshot_of_something_else_is_passed_over_with_a_warning(tmp_path: Path, theirs: Kindred) -> None:
    taken = take(filled(), OURS)
    write(tmp_path / "snapshot-1", taken)
    with capture_logs() as logs:
        assert list(Generation(tmp_path).usable(theirs)) == []
    assert [log["log_level"] for log in logs] == ["warning"]
    assert "in the config" in logs[0]["event"]
    assert logs[0]["hint"]
    assert [folder.name for folder, _manifest in Generation(tmp_path).usable(OURS)] == ["snapshot-1"]


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10, 11):
        (tmp_path / f"snapshot-{number}").mkdir()
        (tmp_path / f"damaged-snapshot-{number}").mkdir()
    Generation(tmp_path).prune(2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "damaged-snapshot-10", "damaged-snapshot-11", "snapshot-10", "snapshot-11",
    ]  # fmt: skip


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("consumers.faiss.snapshot.sync_folder", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "snapshot-1", take(filled(), OURS))
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".writing-snapshot-4").mkdir()
    generation = Generation(tmp_path)
    generation.tidy()
    assert list(tmp_path.iterdir()) == []


def test_the_pointer(tmp_path: Path) -> None:
    home = Home(tmp_path / "index")
    assert home.current() == (None, None)
    assert home.live() == "gen-1"
    assert home.fresh() == "gen-2"
    Generation(home.path / "gen-2").try_lock()
    home.point("gen-2", "gen-1")
    assert home.current() == ("gen-2", "gen-1")
    (home.path / f".CURRENT.{os.getpid()}").write_text("left by a kill, in a container by a process of our number")
    home.point("gen-12", None)
    for damaged in (
        b"../../etc",
        b"gen-12",
        b"",
        b"\xff\0",
        home.path.joinpath("CURRENT").read_bytes().replace(b"2", b""),
    ):
        (home.path / "CURRENT").write_bytes(damaged)
        with pytest.raises(StoreError, match="is damaged"):
            home.current()
        assert home.live() == "gen-2"
        assert (home.path / "damaged-CURRENT").read_bytes() == damaged
        assert home.current() == ("gen-2", None)
    (home.path / "gen-1" / "snapshot-1").mkdir(parents=True)
    (home.path / "CURRENT").unlink()
    assert home.live() == "gen-1"  # the newest may be a rebuild that never came to its end


def test_leftover_generations_go_but_not_those_in_use(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for number in range(1, 6):
        (tmp_path / f"gen-{number}").mkdir()
    home.clear()  # without a pointer nobody knows which is live
    assert len(list(tmp_path.iterdir())) == 5
    home.point("gen-2", "gen-1")
    used = Generation(tmp_path / "gen-4")
    used.lock()
    home.clear()
    used.unlock()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["CURRENT", "gen-1", "gen-2", "gen-4"]
