"""One snapshot: a folder `snapshot-<n>` with `manifest.json`, `ledger.msgpack`, `filters.msgpack` and `index.faiss`.

The manifest names what the vectors are (table, source, pin, metric, dimension, filters), the offsets and the position
they stand at, and a seal (SHA-256 and size) of each file; it is sealed itself. Nothing is parsed before its seal is
checked, and nothing in it can run code: JSON, MessagePack and FAISS' own format. A seal proves that nothing was
damaged, not who wrote it: so what is behind it is checked as well, to the last byte (`native`, `image`, `filters`), and
takes no more memory than a few times its size. Written under another name and renamed when all of it is on the disk, so
a crash leaves the snapshot before.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import faiss
import msgspec
import numpy as np

from cdc.errors import DecodeError
from cdc.failpoint import failpoint
from cdc.position import WIDTH
from consumers.faiss.arrays import Ids, Out
from consumers.faiss.content import Content
from consumers.faiss.durable import Seal, make_folder, seal_of, sync_folder, write_bytes, write_pieces
from consumers.faiss.filters import ColumnImage, Filters, from_image
from consumers.faiss.flat import flat_of
from consumers.faiss.image import in_wire_form, pack, unpack
from consumers.faiss.index import Kind, VectorIndex, Write
from consumers.faiss.ivf import IvfIndex, ivf_from
from consumers.faiss.ledger import Ledger
from consumers.faiss.metric import Metric
from consumers.faiss.native import check_ivf, read_flat

FORMAT = 2
MANIFEST, LEDGER, INDEX = "manifest.json", "ledger.msgpack", "index.faiss"
FILTERS = "filters.msgpack"  # only where there are any
PREFIX = "snapshot-"
TEMPORARY = ".writing-"
MANIFEST_BYTES = 16 << 20  # 100,000 partitions; a larger one is not ours
REMEDY = "it is set aside and the one before is used; if there is none, everything is replayed"


Natural = Annotated[int, msgspec.Meta(ge=0)]
Dimension = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]  # four times what pgvector takes


class Kindred(msgspec.Struct, frozen=True):
    """What two snapshots must share so that one can stand for the other."""

    table: str
    source: str
    pin: str
    metric: Metric
    dimension: Dimension | None
    filters: tuple[str, ...] = ()

    def differs(self, other: Kindred) -> str | None:
        """The first field that differs, as a sentence's end; a dimension that is not known yet fits any."""
        for field in self.__struct_fields__:
            ours, theirs = getattr(self, field), getattr(other, field)
            if ours != theirs and not (field == "dimension" and None in (ours, theirs)):
                return f"{field} is {theirs!r} there and {ours!r} in the config"
        return None


class Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """See the module. `created` in Unix seconds."""

    format: int
    created: float
    kindred: Kindred
    kind: Kind | None
    trained_on: Natural
    evenness: float
    vectors: Natural
    rows: Natural
    watermark: str
    offsets: list[tuple[str, Natural, Natural]]  # topic, partition, next offset
    passed: list[tuple[str, Natural, Natural]]
    files: dict[str, Seal]
    logs: list[tuple[str, int, str]] = []  # topic, partition, Kafka's id of the topic


class _Sealed(msgspec.Struct, forbid_unknown_fields=True):
    sha256: str
    manifest: msgspec.Raw


class Taken(NamedTuple):
    """A moment of the content, independent of it: what a snapshot is written from."""

    manifest: Manifest
    ledger: list[bytes]  # pieces of its file
    vectors: Write | None
    filters: dict[str, ColumnImage]


def take(content: Content, kindred: Kindred, between: Callable[[], object] = lambda: None) -> Taken:
    """Packs the ledger, and pictures the index; the thread that changes the content calls it, between batches, while
    searches go on: `between` is called after each piece of the ledger."""
    index = content.index
    manifest = Manifest(
        FORMAT,
        time.time(),
        msgspec.structs.replace(kindred, dimension=index.dimension if index is not None else kindred.dimension),
        index.kind if index is not None else None,
        index.trained_on if isinstance(index, IvfIndex) else 0,
        index.evenness if isinstance(index, IvfIndex) else 0,
        index.size if index is not None else 0,
        len(content.ledger),
        content.watermark.decode(),
        [(topic, partition, offset) for (topic, partition), offset in content.offsets.items()],
        [(topic, partition, offset) for (topic, partition), offset in content.passed.items()],
        {},
        [(topic, partition, log) for (topic, partition), log in content.logs.items()],
    )
    kept = content.filters.image(content.ledger.room)
    return Taken(manifest, pack(content.ledger, between), index.export() if index is not None else None, kept)


def write(folder: Path, taken: Taken, between: Callable[[], object] = lambda: None) -> None:
    """Makes the snapshot durable under `folder`, which must not exist; `between` is called after each piece.
    Raises OSError, and leaves nothing then."""
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    failpoint("faiss.snapshot-begun")
    try:
        manifest = taken.manifest
        manifest.files[LEDGER] = write_pieces(temporary / LEDGER, in_pieces(taken.ledger))
        if taken.filters:
            manifest.files[FILTERS] = write_bytes(temporary / FILTERS, msgspec.msgpack.encode(taken.filters))
        if taken.vectors is not None:
            manifest.files[INDEX] = write_pieces(temporary / INDEX, spaced(taken.vectors, between))
        write_bytes(temporary / MANIFEST, sealed(msgspec.json.encode(manifest)))
        sync_folder(temporary)
        failpoint("faiss.snapshot-written")
        temporary.rename(folder)
        failpoint("faiss.snapshot-renamed")
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def in_pieces(pieces: Sequence[bytes]) -> Write:
    """A file that is there already."""
    return lambda out: [out(piece) for piece in pieces]


def spaced(write: Write, between: Callable[[], object]) -> Write:
    """The same with `between` called after each piece."""

    def spacing(out: Out) -> None:
        def passed(data: bytes | memoryview) -> None:
            out(data)
            between()

        write(passed)

    return spacing


def sealed(manifest: bytes) -> bytes:
    """The manifest's file, for which there is exactly one form."""
    return msgspec.json.format(
        msgspec.json.encode(_Sealed(hashlib.sha256(manifest).hexdigest(), msgspec.Raw(manifest))), indent=1
    )


def read_manifest(folder: Path) -> Manifest:
    """Checks the manifest and the seal of every file. Raises DecodeError naming what is damaged."""
    try:
        data = _read(folder / MANIFEST, MANIFEST_BYTES)
        compact = msgspec.json.format(data, indent=-1)
        outer = msgspec.json.decode(compact, type=_Sealed)
        if hashlib.sha256(outer.manifest).hexdigest() != outer.sha256 or sealed(bytes(outer.manifest)) != data:
            raise DecodeError(f"{folder / MANIFEST} does not match its own seal", hint=REMEDY)
        manifest = msgspec.json.decode(outer.manifest, type=Manifest)
        wanted = {INDEX: manifest.kind is not None, FILTERS: bool(manifest.kindred.filters), LEDGER: True}
        if set(manifest.files) != {name for name, there in wanted.items() if there}:
            raise ValueError("the manifest names other files")
        for name, (checksum, size) in manifest.files.items():
            path = folder / name
            if _size(path) != size or seal_of(path) != (checksum, size):
                raise DecodeError(f"{path} does not match the manifest", hint=REMEDY)
        if len(manifest.watermark) != WIDTH or not in_wire_form(manifest.watermark.encode()):
            raise ValueError("the watermark is no position")
    except (OSError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DecodeError(f"{folder} is damaged: {error}", hint=REMEDY) from error
    if manifest.format != FORMAT:
        raise DecodeError(f"{folder} has format {manifest.format}, this version reads {FORMAT}", hint=REMEDY)
    return manifest


def _size(path: Path) -> int:
    """Of a file itself: a link or a device is none of ours, and reading one might never end."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is not a file")
    return found.st_size


def _read(path: Path, most: int) -> bytes:
    if _size(path) > most:
        raise ValueError(f"{path.name} is larger than {most} bytes")
    return path.read_bytes()


def load(folder: Path, manifest: Manifest, content: Content) -> None:
    """Fills an empty content from files whose seals were checked. Raises DecodeError when they do not fit together."""
    try:
        ledger = unpack((folder / LEDGER).read_bytes())
        if len(ledger) != manifest.rows:
            raise ValueError("the ledger is not the one of the manifest")
        index = _index(folder, manifest, ledger)
        kept = _filters(folder, manifest.kindred.filters, ledger.room)
    except (OSError, RuntimeError, ValueError, msgspec.DecodeError) as error:
        raise DecodeError(f"{folder} cannot be loaded: {error}", hint=REMEDY) from error
    content.ledger, content.index, content.filters = ledger, index, kept
    content.offsets = {(topic, partition): offset for topic, partition, offset in manifest.offsets}
    content.passed = {(topic, partition): offset for topic, partition, offset in manifest.passed}
    content.logs = {(topic, partition): log for topic, partition, log in manifest.logs}
    content.watermark = manifest.watermark.encode()
    if content.source.dimension is None:
        content.source.dimension = manifest.kindred.dimension


def _filters(folder: Path, names: Sequence[str], rows: int) -> Filters:
    image: dict[str, ColumnImage] = {}
    if names:
        image = msgspec.msgpack.decode((folder / FILTERS).read_bytes(), type=dict[str, ColumnImage])
    return from_image(image, names, rows)


def _index(folder: Path, manifest: Manifest, ledger: Ledger) -> VectorIndex | None:
    live, metric, path = ledger.live(), manifest.kindred.metric, folder / INDEX
    if manifest.kind is None:
        if len(live) or manifest.vectors:
            raise ValueError("an index is missing")
        return None
    dimension = manifest.kindred.dimension
    if dimension is None:
        raise ValueError("an index without a dimension")
    if manifest.kind == "flat":
        ids, vectors = read_flat(path, dimension, manifest.vectors, metric)
        _agree(ids, live)
        return flat_of(ids, vectors, metric)
    _agree(check_ivf(path, dimension, manifest.vectors, metric), live)
    return ivf_from(faiss.read_index(str(path)), manifest.trained_on, manifest.evenness)


def _agree(ids: Ids, live: Ids) -> None:
    """Each live row has its vector, once, and nothing else has."""
    if not np.array_equal(np.sort(ids), live):
        raise ValueError("the index and the ledger do not hold the same ids")
