"""What a disk may hold after a power cut: file operations recorded in order, and states that POSIX allows made of them.

Data of a file is durable once the file was synced, a name once its folder was (fsync(2)): until then it may be there
or not, each name for itself, a rename wholly or not at all, and a file that was not synced may hold anything.
Recorded are the operations of one process by its audit events (PEP 578), and `os.fsync`.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Crash = Literal["nothing more", "everything", "in order", "any"]
WRITING = os.O_CREAT


@dataclass
class File:
    """`durable` None: nothing was synced."""

    durable: bytes | None = None


@dataclass
class Folder:
    """Names as a running system sees them, as the disk has them, and the changes between."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[dict[str, File | Folder | None]] = field(default_factory=list)  # each: name → what it is now

    def change(self, change: dict[str, File | Folder | None]) -> None:
        """One change that is there wholly or not at all."""
        _apply(self.names, change)
        self.pending.append(change)

    def sync(self) -> None:
        """All of it is on the disk."""
        self.durable, self.pending = dict(self.names), []


def _apply(names: dict[str, File | Folder], change: dict[str, File | Folder | None]) -> None:
    for name, what in change.items():
        if what is None:
            names.pop(name, None)
        else:
            names[name] = what


Operation = tuple[str, ...]  # create, mkdir, remove, rename, sync; then paths below the root


class Recording:
    """Operations below `root`, with the contents of synced files; `mark` notes what is promised from there on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations: list[tuple[Operation, bytes | None]] = []
        self.marks: list[tuple[int, int]] = []  # operations so far, promise
        self._lock = threading.Lock()

    def mark(self, promise: int) -> None:
        """Holds for every state after what was recorded by now."""
        self.marks.append((len(self.operations), promise))

    def promised(self, length: int) -> int:
        """The latest promise within so many operations."""
        return max((promise for at, promise in self.marks if at <= length), default=0)

    def note(self, kind: str, *paths: str, content: bytes | None = None) -> None:
        """An operation that is about to happen; those elsewhere are nothing to us."""
        inside = [os.path.relpath(path, self.root) for path in paths]
        if not any(path.startswith("..") for path in inside):
            with self._lock:
                self.operations.append(((kind, *inside), content))

    def event(self, name: str, arguments: tuple[Any, ...]) -> None:
        """An audit event."""
        if name == "open" and isinstance(arguments[0], str) and arguments[2] & WRITING:
            if _can_be_made(arguments[0]):
                self.note("create", arguments[0])
        elif name == "os.mkdir":
            if _can_be_made(os.fspath(arguments[0])):  # else it fails, and changes nothing
                self.note("mkdir", os.fspath(arguments[0]))
        elif name == "os.rename":
            self.note("rename", os.fspath(arguments[0]), os.fspath(arguments[1]))
        elif name in ("os.remove", "os.rmdir"):
            path, folder = os.fspath(arguments[0]), arguments[1]
            path = os.path.join(_of(folder), path) if folder not in (None, -1) else path
            if os.path.lexists(path):
                self.note("remove", path)

    def synced(self, handle: int) -> None:
        """An fsync that succeeded."""
        path = Path(_of(handle))
        self.note("sync", str(path), content=path.read_bytes() if path.is_file() else None)


def _can_be_made(path: str) -> bool:
    return not os.path.lexists(path) and os.path.isdir(os.path.dirname(path))


def _of(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")


_recording: Recording | None = None


def _hook(name: str, arguments: tuple[Any, ...]) -> None:
    if _recording is not None:
        _recording.event(name, arguments)


@contextmanager
def recorded(root: Path) -> Iterator[Recording]:
    """All operations of this process below `root` meanwhile. The hook stays for good, which is Python's rule."""
    global _recording
    if not hasattr(sys, "_cdc_hooked"):
        sys.addaudithook(_hook)
        sys._cdc_hooked = True  # type: ignore[attr-defined]
    recording, fsync = Recording(root), os.fsync

    def noting(handle: int) -> None:
        fsync(handle)
        recording.synced(handle)

    _recording, os.fsync = recording, noting  # type: ignore[assignment]
    try:
        yield recording
    finally:
        _recording, os.fsync = None, fsync


def disk_after(recording: Recording, length: int) -> Folder:
    """The disk after so many operations; the root itself is durable."""
    root = Folder()
    for (kind, *paths), content in recording.operations[:length]:
        parent, name = _find(root, paths[0])
        if kind == "create":
            parent.change({name: File()})
        elif kind == "mkdir":
            parent.change({name: Folder()})
        elif kind == "remove":
            parent.change({name: None})
        elif kind == "rename":
            other, target = _find(root, paths[1])
            assert other is parent, "a rename between folders is not modelled"
            parent.change({target: parent.names[name], name: None})
        else:
            what = root if paths[0] == "." else parent.names[name]
            if isinstance(what, Folder):
                what.sync()
            else:
                what.durable = content
    return root


def _find(root: Folder, path: str) -> tuple[Folder, str]:
    *parents, name = Path(path).parts or ("",)
    folder = root
    for part in parents:
        inner = folder.names[part]
        assert isinstance(inner, Folder), path
        folder = inner
    return folder, name


def write_out(folder: Folder, target: Path, crash: Crash, chance: random.Random) -> None:
    """Makes a state that the disk may be in."""
    target.mkdir()
    names = dict(folder.durable)
    for change in _survivors(folder.pending, crash, chance):
        _apply(names, change)
    for name, what in names.items():
        if isinstance(what, Folder):
            write_out(what, target / name, crash, chance)
        else:
            lost = chance.randbytes(chance.choice((0, 0, 7, 300)))
            (target / name).write_bytes(lost if what.durable is None else what.durable)


def _survivors(pending: list[Any], crash: Crash, chance: random.Random) -> list[Any]:
    if crash == "nothing more":
        return []
    if crash == "in order":
        return pending[: chance.randint(0, len(pending))]
    if crash == "any":
        return [change for change in pending if chance.random() < 0.5]
    return pending
