"""Files that are there wholly or not at all: temp, fsync, rename, fsync of the folder."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cdc.failpoint import failpoint
from consumers.faiss.arrays import Out

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
    return write_pieces(path, lambda out: out(data))


def write_pieces(path: Path, produce: Callable[[Out], object]) -> Seal:
    """The same of what is handed over piece by piece; the seal is of that, not of what the disk made of it."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb", buffering=0) as file:

        def out(data: bytes | memoryview) -> None:
            nonlocal size
            digest.update(data)
            size += len(data)
            piece = memoryview(data)
            while piece:  # a disk that fills up takes a part first
                piece = piece[file.write(piece) :]

        produce(out)
        os.fsync(file.fileno())
        return digest.hexdigest(), size


def seal_of(path: Path) -> Seal:
    """Of a file as it is now. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()
