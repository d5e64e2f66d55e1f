"""Files that are there wholly or not at all: temp, fsync, rename, fsync of the folder."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss as faiss_with_stubs

from cdc.failpoint import failpoint

faiss: Any = faiss_with_stubs  # its type stubs lack the writer
READ_BYTES = 1 << 20
Seal = tuple[str, int]  # SHA-256 in hex, size in bytes


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """A folder whose name is durable, and the names of those above it that had to be made."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def remove(path: Path) -> None:
    """A folder with everything in it, or whatever else stands there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a small file so that readers see the old or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # in a container a process that was killed here had the same number
    write_bytes(temporary, text.encode())
    failpoint("faiss.pointer-written")
    temporary.rename(path)
    sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> Seal:
    """A new durable file and its seal."""
    return _written(path, lambda write: write(data))


def write_index(path: Path, index: Any, between: Callable[[], object]) -> Seal:
    """A native FAISS file and its seal, taken of what FAISS hands over, not of what the disk made of it. `between` is
    called after each MiB."""

    def produce(write: Callable[[bytes], None]) -> None:
        def passed(data: bytes) -> None:
            write(data)
            between()

        faiss.write_index(index, faiss.PyCallbackIOWriter(passed, READ_BYTES))

    return _written(path, produce)


def _written(path: Path, produce: Callable[[Callable[[bytes], None]], None]) -> Seal:
    digest = hashlib.sha256()
    with path.open("xb") as file:

        def write(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        produce(write)
        file.flush()
        os.fsync(file.fileno())
        return digest.hexdigest(), file.tell()


def seal_of(path: Path) -> Seal:
    """Of a file as it is now. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()
