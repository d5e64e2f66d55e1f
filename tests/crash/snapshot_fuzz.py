"""Snapshots that somebody made up, with seals that are right: `python -m tests.crash.snapshot_fuzz SEED NUMBER FOLDER`.

In a process of its own with little memory: one that crashes, hangs or allocates without bound is seen from outside.
Each input is a good snapshot with one of its three files changed, by structure or by bytes, and sealed anew. It must
either be refused by DecodeError or give an index that can be searched, changed and written again.
"""

from __future__ import annotations

import copy
import hashlib
import random
import resource
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cdc.errors import DecodeError
from consumers.faiss.columns import VectorColumn
from consumers.faiss.content import Content
from consumers.faiss.snapshot import INDEX, LEDGER, MANIFEST, Kindred, load, read_manifest, sealed, take, write
from consumers.faiss.training import build
from tests.vector_records import deletion, record, vectors

MEMORY_BYTES = 768 << 20  # on top of what the libraries have mapped: a file of a few kB may not need that
SECONDS = 600  # of processor time: far more than any number of inputs asked for in a test needs
OURS = Kindred("public.memories", "column embedding", "", "l2", 4)
NUMBERS = (0, 1, -1, 2, 3, 4, 5, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63)
ODD: tuple[Any, ...] = (
    None, "", "x", "../../../etc/passwd", "/dev/zero", -1, 0, 1, 2, 20, 1 << 31, 1 << 62, 1 << 70, 1.5, 1e308, True, [],
    {}, [[]], [["t", -1, 5]], [["t", 0, -5]], {"a": 1}, "l2", "ip", "ivf", "flat", ["0" * 64, 0],
    {"/dev/zero": ["0" * 64, 0]}, {"../x": ["0" * 64, 1]}, "g" * 32, "0" * 32, "[" * 3000, "\ud7ff\0",
)  # fmt: skip
WORDS = (b"IxMp", b"IxF2", b"IxFI", b"IxFl", b"IwFl", b"IwPQ", b"IHNf", b"IxPT", b"IBxF", b"ilar", b"il00", b"sprs",
         b"full", b"IxM2", b"IxPq", b"Imiq", b"ISfs", b"IxLS")  # fmt: skip


def content(kind: str) -> Content:
    """20 vectors, a record without one, a tombstone, and numbers of forgotten keys."""
    made = Content(VectorColumn("embedding", "l2", None), "l2")
    data = vectors(24, 4)
    made.apply([record(n, 10 + n, data[n]) for n in range(24)] + [record(90, 50, None), deletion(91, 51)])
    made.truncate(record(0, 14).position)
    made.offsets, made.passed = {("t.public.memories", 0): 26}, {("t.public.other", 0): 9}
    if kind == "ivf" and made.index is not None:
        made.touched = set()
        made.replace(build("ivf", *made.index.dump(), "l2"))
    return made


def flip(data: bytes, chance: random.Random) -> bytes:
    """Some bits."""
    bent = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        bent[chance.randrange(len(bent))] ^= 1 << chance.randrange(8)
    return bytes(bent)


def cut(data: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return data[: chance.randrange(len(data))]


def extend(data: bytes, chance: random.Random) -> bytes:
    """Something follows, or comes in between."""
    at = chance.choice((len(data), chance.randrange(len(data))))
    return data[:at] + chance.randbytes(chance.randint(1, 40)) + data[at:]


def number(data: bytes, chance: random.Random) -> bytes:
    """A size, an id or a length becomes an odd one; often where one stands."""
    width = chance.choice((1, 4, 8))
    value = (chance.choice(NUMBERS) + chance.choice((0, 0, 1, -1))) % (1 << (8 * width))
    at = chance.choice((chance.randrange(len(data)), chance.randrange(min(200, len(data)))))
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def word(data: bytes, chance: random.Random) -> bytes:
    """Another type of index, where FAISS looks for one."""
    places = [at for each in WORDS if (at := data.find(each)) >= 0] or [0]
    at = chance.choice(places)
    return data[:at] + chance.choice(WORDS) + data[at + 4 :]


def nested(data: bytes, chance: random.Random) -> bytes:
    """Indexes in indexes."""
    return data[:37] * chance.randint(1, 200) + data


def claimed(data: bytes, chance: random.Random) -> bytes:
    """A MessagePack length far beyond the end."""
    at = chance.randrange(len(data))
    head = chance.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"))
    return data[:at] + head + struct.pack(">I", chance.choice((1 << 31, (1 << 32) - 1, 1 << 20))) + data[at:]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip, flip, cut, extend, number, number)
OF_INDEX = (*BYTES, number, number, word, nested)
OF_LEDGER = (*BYTES, claimed)


def bend(image: dict[str, Any], chance: random.Random) -> None:
    """One field of a ledger, by its structure."""
    name = chance.choice(sorted(image))
    held = image[name]
    if isinstance(held, list):
        image[name] = chance.choice((held[:-1], held + held[-1:], held[::-1], [held[0]] * len(held), [], held[:1], 7))
    elif isinstance(held, bytes) and held:
        ways = (
            *BYTES,
            lambda raw, _c: raw[:8],
            lambda raw, _c: raw + raw,
            lambda _r, _c: b"",
            lambda r, _c: r[8:] + r[:8],
        )
        image[name] = chance.choice(ways)(held, chance)
    else:
        image[name] = chance.choice(
            (b"\0" * 8, struct.pack("<q", chance.choice(NUMBERS[:-1])), b"x", None, 1 << 40, [])
        )


def bend_manifest(manifest: dict[str, Any], chance: random.Random) -> None:
    """One or two fields, also inner ones. Copies: a bent field may be bent again, and must not come to hold itself."""
    for _ in range(chance.randint(1, 2)):
        inner: dict[str, Any] = chance.choice((manifest, manifest, manifest.get("kindred"), manifest.get("files")))
        if not isinstance(inner, dict) or not inner:
            inner = manifest
        name = chance.choice([*sorted(inner), "surplus"])
        if chance.random() < 0.15:
            inner.pop(name, None)
        else:
            inner[name] = copy.deepcopy(chance.choice(ODD))


def make(good: Path, bad: Path, chance: random.Random) -> str:
    """Writes one input; says which file was bent."""
    target = chance.choice((MANIFEST, LEDGER, LEDGER, INDEX, INDEX, INDEX))
    manifest = msgspec.json.decode((good / MANIFEST).read_bytes())["manifest"]
    if target != MANIFEST:
        data = (good / target).read_bytes()
        if target == LEDGER and chance.random() < 0.6:
            image = msgspec.msgpack.decode(data)
            bend(image, chance)
            data = msgspec.msgpack.encode(image)
        else:
            data = chance.choice(OF_INDEX if target == INDEX else OF_LEDGER)(data, chance)
        (bad / target).write_bytes(data)
        manifest["files"][target] = [hashlib.sha256(data).hexdigest(), len(data)]
    if target == MANIFEST or chance.random() < 0.1:
        bend_manifest(manifest, chance)
    text = msgspec.json.encode(manifest)
    if target == MANIFEST and chance.random() < 0.3:
        text = chance.choice(BYTES)(text, chance)
    (bad / MANIFEST).write_bytes(outer(text))
    return target


def outer(manifest: bytes) -> bytes:
    """The seal, also round what is no JSON any more."""
    try:
        return sealed(manifest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return b'{\n "sha256": "%s",\n "manifest": %s\n}' % (hashlib.sha256(manifest).hexdigest().encode(), manifest)


def use(folder: Path, scratch: Path) -> bool:
    """Whether it was taken; then it has to work. Raises whatever is not a refusal."""
    try:
        manifest = read_manifest(folder)
        if OURS.differs(manifest.kindred) is not None:
            return False
        loaded = Content(VectorColumn("embedding", "l2", None), "l2")
        load(folder, manifest, loaded)
    except DecodeError:
        return False
    width = loaded.source.dimension or 4
    loaded.search(np.ones((2, width), dtype=np.float32), 30, 99)
    loaded.apply([deletion(5, 1 << 40), record(7, 1 << 40, np.ones(width, np.float32)), record(500, 1 << 40, None)])
    loaded.versions([key for key, _position in loaded.held()])
    shutil.rmtree(scratch, ignore_errors=True)
    write(scratch, take(loaded, OURS))
    return True


def main(seed: int, inputs: int, folder: Path) -> None:
    """Prints what became of them; whatever goes wrong ends the process with its number."""
    chance, found = random.Random(seed), Counter[str]()
    kinds = ("flat", "ivf")
    for kind in kinds:
        write(folder / kind, take(content(kind), OURS))
        assert use(folder / kind, folder / "scratch"), "a good snapshot is refused"
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES, mapped + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    for at in range(inputs):
        kind = kinds[at % 2]
        bad = folder / "bad"
        for name in (MANIFEST, LEDGER, INDEX):
            (bad / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / kind / name, bad / name)
        target = make(folder / kind, bad, chance)
        try:
            found[f"{kind} {target} {'taken' if use(bad, folder / 'scratch') else 'refused'}"] += 1
        except BaseException:
            print(f"input {at} of seed {seed}: {kind} {target}, in {bad}", flush=True)
            raise
    for name, times in sorted(found.items()):
        print(f"{times:7d} {name}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
